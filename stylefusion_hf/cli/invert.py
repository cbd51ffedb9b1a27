"""Find the codes of given pictures, so that they can be fused, edited and animated.

An encoder guesses each code in one pass; --optimize improves the codes, and --tune a copy of the generator. Pictures
must have the generator's aspect ratio, mostly a square: use `stylefusion align` for photographs of faces, or --fit to
crop or pad.

Writes codes.safetensors, a reconstruction of each picture with its recipe, figures.json, and the tuned generator to
--out. Other commands accept these codes as CODES:NAME.

    stylefusion invert me.png you.png --optimize 200 --out inverted
    stylefusion fuse --base inverted/codes.safetensors:me --region hair=inverted/codes.safetensors:you --out mixed.png
    stylefusion invert portraits --optimize 200 --tune 100 --region-weight background=0.2 --out inverted
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stylefusion_hf.cli._invert import add_inversion_arguments, inversion_arguments
from stylefusion_hf.cli.arguments import add_model_arguments, number, parse_pairs, positive
from stylefusion_hf.cli.loading import check_call, load_pipeline
from stylefusion_hf.cli.outputs import output_folder, report_written, save_png
from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.files import write_json

PIXELS = 2**24  # of pictures inverted in one call: 16 of 1024 px


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="a picture file, or a folder of them")
    parser.add_argument(
        "--space", choices=("w+", "w", "s"), default="w+", help="latent space of the codes (default: w+)"
    )
    parser.add_argument("--start", choices=("encoder", "mean"), help="initial code (default: encoder if available)")
    add_inversion_arguments(parser)
    weights = parser.add_argument_group("weights of pixels")
    weights.add_argument(
        "--region-weight",
        action="append",
        metavar="REGION=NUMBER",
        help="weight of a region's pixels (default: 1)",
    )
    weights.add_argument("--mask", metavar="PICTURE", help="grayscale picture: white pixels count, black ones do not")
    parser.add_argument("--batch-size", type=positive, help="pictures per batch (default: by resolution)")
    parser.add_argument("--out", default="inverted", metavar="FOLDER", help="folder to write (default: inverted)")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from stylefusion_hf.imaging.images import picture_files

    check_call(args)
    for given in args.pictures:
        if not Path(given).exists():
            raise FileNotFoundError(f"there is no picture or folder {shown(given, 200)}")
    files = [f for given in args.pictures for f in (picture_files(given) if Path(given).is_dir() else [Path(given)])]
    names = unique_names(files)
    settings = inversion_arguments(args)
    weights = parse_pairs(args.region_weight, "--region-weight", number)
    out = output_folder(args.out)
    pipe: Any = load_pipeline(args, "StyleFusionInversionPipeline", light=True)

    from stylefusion_hf.core.code_files import save_codes
    from stylefusion_hf.core.memory import chunk_size
    from stylefusion_hf.pipelines.targets import read_targets

    height, width = pipe.generator.picture_size
    masks = read_mask(args.mask, (height, width)) if args.mask else None
    call = {"latent_type": args.space, "start": args.start, "masks": masks, "region_weights": weights}
    call |= {"batch_size": args.batch_size, **settings}
    # Tuning has one generator for all pictures. Without it they are independent, and need not fit in memory together.
    most = len(files) if args.tune else chunk_size(height * width, PIXELS, len(files))
    for file in files if most < len(files) else ():  # a bad picture is found before the first is inverted
        read_targets(str(file), pipe.generator, args.fit or "refuse")
    codes: dict[str, Any] = {}
    figures: dict[str, dict[str, float]] = {}
    for first in range(0, len(files), most):
        group = names[first : first + most]
        result = pipe([str(file) for file in files[first : first + most]], **call)
        rows = result.codes.rows()
        codes |= dict(zip(group, rows, strict=True))
        tuned = {} if result.generator is None else {"generator": result.generator}
        for name, row, image in zip(group, rows, result.images, strict=True):
            save_png(image, out / f"{name}.png", reconstruction_recipe(pipe, row, tuned))
        figures |= describe_result(result, group)
    save_codes(out / "codes.safetensors", codes)
    report_written(out / "codes.safetensors", f"{len(names)} codes in {args.space}")
    write_json(out / "figures.json", figures, indent=2)
    mse, distance = (
        sum(each[figure] for each in figures.values()) / len(figures) for figure in ("mse", "feature_distance")
    )
    report_written(out, f"reconstructions; MSE {mse:.4f}, feature distance {distance:.3f}")
    if tuned:
        from stylefusion_hf.inversion.tuned import save_tuned

        folder = save_tuned(result.generator, out)
        report_written(folder, "the tuned generator: pass it as --generator to other commands")


def describe_result(result: Any, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return {picture: its figures}."""
    return {
        name: {"mse": round(float(mse), 6), "feature_distance": round(float(distance), 6), "steps": int(steps)}
        for name, mse, distance, steps in zip(names, result.mse, result.feature_distance, result.steps, strict=True)
    }


def unique_names(files: list[Path]) -> list[str]:
    """Return the files' names without suffixes; ValueError if two are the same."""
    names = [file.stem for file in files]
    if twice := [name for name in names if names.count(name) > 1]:
        both = [str(file) for file in files if file.stem == twice[0]]
        raise ValueError(f"{both[0]} and {both[1]} would both be called {twice[0]}: rename one")
    return names


def read_mask(path: str, size: tuple[int, int]) -> Any:
    """Read a mask as a tensor (1, height, width) with values from 0 to 1."""
    from stylefusion_hf.imaging.images import open_image, to_tensor

    opened = open_image(path, channels=1)
    return (to_tensor([opened], size, 1, "refuse", [f"the mask {path}"])[:, 0] + 1) / 2


def reconstruction_recipe(pipe: Any, row: Any, tuned: dict[str, Any]) -> str | None:
    """Return the recipe of a reconstruction; None for a model without fusion nets, which cannot render recipes."""
    if pipe.fusion is None:
        return None
    from stylefusion_hf import StyleFusionPipeline

    fuser = StyleFusionPipeline.from_pipe(pipe, **tuned)
    return json.dumps(fuser(base=row, noise_mode="none", output_type="latent").recipe)
