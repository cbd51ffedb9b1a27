"""Find codes whose pictures are given ones, so that they can be fused, edited and walked between.

An encoder guesses a code in one pass; --optimize improves each code, --tune a copy of the generator. Pictures are
squares like the generator's: `stylefusion align` makes them of photographs of faces, --fit crops or pads others.

Written into --out: codes.safetensors, a reconstruction of each picture with its recipe, figures.json, and after tuning
the generator's copy. A code is then CODES:NAME wherever a command takes one.

    stylefusion invert me.png you.png --optimize 200 --out inverted
    stylefusion fuse --base inverted/codes.safetensors:me --region hair=inverted/codes.safetensors:you --out mixed.png
    stylefusion invert portraits --optimize 200 --tune 100 --region-weight background=0.2 --out inverted
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from stylefusion_hf.cli._invert import add_inversion_arguments, inversion_arguments
from stylefusion_hf.cli._shared import (
    add_model_arguments,
    check_call,
    load_pipeline,
    number,
    output_folder,
    pairs,
    positive,
    save_png,
    wrote,
)
from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="a picture file, or a folder of them")
    parser.add_argument("--space", choices=("w+", "w", "s"), default="w+", help="of the codes (default: w+)")
    parser.add_argument("--start", choices=("encoder", "mean"), help="(default: encoder, where the model has one)")
    add_inversion_arguments(parser)
    weights = parser.add_argument_group("what counts")
    weights.add_argument(
        "--region-weight",
        action="append",
        metavar="REGION=NUMBER",
        help="how much a region's pixels count (default: 1)",
    )
    weights.add_argument("--mask", metavar="PICTURE", help="grey picture: white pixels count, black ones do not")
    weights.add_argument("--batch-size", type=positive, help="pictures at once (default: what fits the resolution)")
    parser.add_argument("--out", default="inverted", metavar="FOLDER", help="where to write (default: inverted)")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from stylefusion_hf.imaging.images import picture_files

    check_call(args)
    for given in args.pictures:
        if not Path(given).exists():
            raise FileNotFoundError(f"there is no picture or folder {shown(given, 200)}")
    files = [f for given in args.pictures for f in (picture_files(given) if Path(given).is_dir() else [Path(given)])]
    names = names_of(files)
    settings = inversion_arguments(args)
    weights = pairs(args.region_weight, "--region-weight", number)
    out = output_folder(args.out)
    pipe: Any = load_pipeline(args, "StyleFusionInversionPipeline", light=True)
    masks = read_mask(args.mask, pipe.generator.config.resolution) if args.mask else None
    result = pipe(
        [str(file) for file in files],
        latent_type=args.space,
        start=args.start,
        masks=masks,
        region_weights=weights,
        batch_size=args.batch_size,
        **settings,
    )

    from stylefusion_hf.core.code_files import save_codes

    rows = result.codes.rows()
    save_codes(out / "codes.safetensors", dict(zip(names, rows, strict=True)))
    wrote(out / "codes.safetensors", f"{len(names)} codes in {args.space}")
    tuned = {} if result.generator is None else {"generator": result.generator}
    for name, row, image in zip(names, rows, result.images, strict=True):
        save_png(image, out / f"{name}.png", recipe_of(pipe, row, tuned))
    figures = {
        name: {"mse": round(float(mse), 6), "feature_distance": round(float(apart), 6), "steps": int(steps)}
        for name, mse, apart, steps in zip(names, result.mse, result.feature_distance, result.steps, strict=True)
    }
    write_json(out / "figures.json", figures, indent=2)
    wrote(out, f"reconstructions; MSE {result.mse.mean():.4f}, feature distance {result.feature_distance.mean():.3f}")
    if tuned:
        from stylefusion_hf.inversion.tuned import save_tuned

        folder = save_tuned(result.generator, out)
        wrote(folder, "the tuned generator: pass it as --generator to other commands")


def names_of(files: list[Path]) -> list[str]:
    """The files' names without suffixes; ValueError where two are the same."""
    names = [file.stem for file in files]
    if twice := [name for name in names if names.count(name) > 1]:
        both = [str(file) for file in files if file.stem == twice[0]]
        raise ValueError(f"{both[0]} and {both[1]} would both be called {twice[0]}: rename one")
    return names


def read_mask(path: str, resolution: int) -> Any:
    """(1, resolution, resolution) from 0 to 1."""
    from stylefusion_hf.imaging.images import open_image, to_tensor

    opened = open_image(path, channels=1)
    return (to_tensor([opened], resolution, 1, "refuse", [f"the mask {path}"])[:, 0] + 1) / 2


def recipe_of(pipe: Any, row: Any, tuned: dict[str, Any]) -> str | None:
    """The recipe of a reconstruction; None for a model without fusion nets, which makes no pictures of recipes."""
    if pipe.fusion is None:
        return None
    from stylefusion_hf import StyleFusionPipeline

    fuser = StyleFusionPipeline.from_pipe(pipe, **tuned)
    return json.dumps(fuser(base=row, noise_mode="none", output_type="latent").recipe)
