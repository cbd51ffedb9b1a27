"""Change regions of the face in a photograph, and keep everything else.

The face is found, aligned, inverted (its code is searched for), fused like by `stylefusion fuse`, and what changed is
blended back. A code is a seed, another photograph, whose face is found and inverted too, or CODES:NAME from a file
written by `stylefusion invert`. PNG and WebP files keep all other pixels exactly, JPEG files as far as JPEG can. A
recipe is written next to the picture; with it and the photograph, --from-recipe makes the same file again.

    stylefusion edit-photo me.jpg --model faces --region hair=7 --out new.jpg
    stylefusion edit-photo me.jpg --model faces --region hair=you.jpg --region mouth=3 --out new.jpg
    stylefusion edit-photo group.jpg --face 1 --edit mouth=directions.safetensors:smile=2 --out new.png
    stylefusion edit-photo me.jpg you.jpg --region hair=7 --out edited
    stylefusion edit-photo me.jpg you.jpg --codes faces.safetensors
    stylefusion edit-photo me.jpg --from-recipe new.json --out again.jpg
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from stylefusion_hf.cli._edits import read_edits
from stylefusion_hf.cli._invert import count
from stylefusion_hf.cli.arguments import (
    add_code_arguments,
    add_model_arguments,
    add_refinement,
    call_arguments,
    code,
    number,
)
from stylefusion_hf.cli.loading import check_call, load_pipeline
from stylefusion_hf.cli.outputs import output_file, output_folder, report_written, save_png
from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.files import write_json

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SEARCH = ("detector", "face", "num_inference_steps", "num_tuning_steps", "prior_weight")  # arguments of `invert`
ONLY_CHANGES = ("strength", "psi", "class_label", "refine", "source_face", "mask")  # say how something changes
CALL_OPTIONS = (
    "region",
    "node",
    "global",
    "edit",
    "class_label",
    "strength",
    "psi",
    "refine",
    "landmarks",
    "detector",
    "face",
    "source_face",
    "optimize",
    "tune",
    "prior",
)  # not allowed with --from-recipe, which contains these


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photographs", nargs="+", metavar="PHOTOGRAPH", help="a picture file")
    codes = parser.add_argument_group("codes")
    add_code_arguments(codes)
    codes.add_argument(
        "--strength",
        action="append",
        metavar="[NAME=]NUMBER",
        help="how far to go from the photograph to the codes, 0 to 1 (default: 1)",
    )
    codes.add_argument("--psi", type=number, help="truncation of seeds (default: the model's own)")
    add_refinement(codes)
    codes.add_argument("--from-recipe", metavar="JSON", help="read all of this from a recipe of this photograph")
    codes.add_argument("--any-model", action="store_true", help="accept a recipe that was written with other weights")
    codes.add_argument("--any-photograph", action="store_true", help="accept a recipe of other pixels of this size")
    faces = parser.add_argument_group("faces")
    source = faces.add_mutually_exclusive_group()
    source.add_argument("--landmarks", metavar="JSON", help="a file with the landmarks, as of `stylefusion align`")
    source.add_argument("--detector", metavar="NAME|MODULE:CALLABLE", help="what finds the faces (default: mtcnn)")
    faces.add_argument("--face", type=count, metavar="N", help="which of several faces; 0 is the largest")
    faces.add_argument("--source-face", type=count, metavar="N", help="the same in photographs given as codes")
    search = parser.add_argument_group("search of the face's code")
    search.add_argument(
        "--optimize", type=count, metavar="STEPS", help="steps of optimization (default: 50, without an encoder 100)"
    )
    search.add_argument("--tune", type=count, metavar="STEPS", help="steps of tuning a copy of the generator")
    search.add_argument("--prior", type=number, help="weight that keeps codes near the generator's own")
    files = parser.add_argument_group("files")
    files.add_argument(
        "--out",
        default="edited.png",
        metavar="FILE|FOLDER",
        help="a .png, .jpg or .webp file, or a folder for several photographs (default: edited.png)",
    )
    files.add_argument(
        "--codes",
        metavar="SAFETENSORS",
        help="also write the faces' codes, named as the files, for `interpolate`, `fuse` and `edit`; with nothing to"
        " change, write only these",
    )
    files.add_argument("--mask", metavar="PNG", help="also write how much of each pixel was replaced")
    files.add_argument("--reconstruction", metavar="PNG", help="also write what the model makes of the face unchanged")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from stylefusion_hf.core.code_files import save_codes
    from stylefusion_hf.imaging.photographs import read_photograph

    check_call(args)
    _check_photographs(args)
    only_codes = bool(args.codes) and not args.from_recipe and not _changes(args)
    targets = [] if only_codes else _targets(args)
    for k, file in enumerate(args.photographs):  # a bad one is found before the first is edited
        photograph = read_photograph(file)
        if not only_codes:
            photograph.check_target(targets[k])
    extras = {name: output_file(path, [".png"]) for name in ("mask", "reconstruction") if (path := vars(args)[name])}
    if extras and (total := len(args.photographs)) > 1:
        raise ValueError(f"--{next(iter(extras))} names one picture, and {total} photographs were given")
    if args.from_recipe:
        return _repeat(args, targets[0], extras)

    codes = output_file(args.codes, [".safetensors"]) if args.codes else None
    call = _call(args)
    pipe: Any = load_pipeline(args, "StyleFusionPhotoPipeline", light=True)
    points, total = call.pop("landmarks"), len(args.photographs)
    if only_codes:
        call = {name: value for name, value in call.items() if name in SEARCH}
    found: dict[str, Any] = {}
    # Tuning has one generator for all photographs; without it they are edited one at a time.
    groups = [range(total)] if args.tune else [range(k, k + 1) for k in range(total)]
    for group in groups:
        given = None if points is None else [points[k] for k in group]
        edit = pipe.invert if only_codes else pipe
        result = edit([args.photographs[k] for k in group], landmarks=given, **call)
        for at, k in enumerate(group):
            if not only_codes:
                _write(targets[k], result.photographs[at], result.recipes[at])
            print(describe_reconstruction(result, at, args.optimize, pipe.encoder is not None))
            found[Path(args.photographs[k]).stem] = result.codes.rows()[at]
    if codes is not None:
        save_codes(codes, found)
        report_written(codes, f"the codes of {', '.join(found)}")
    if "mask" in extras:
        save_png(result.masks[0], extras["mask"])
        report_written(extras["mask"], "how much of each pixel was replaced")
    if "reconstruction" in extras:
        save_png(result.reconstructions[0], extras["reconstruction"])
        report_written(extras["reconstruction"], "what the model makes of the face unchanged")
    if result.generator is not None:
        from stylefusion_hf.inversion.tuned import save_tuned

        folder = save_tuned(result.generator, (targets[0] if targets else codes or Path()).parent)
        report_written(folder, "the tuned generator, which the recipes need")


def describe_reconstruction(result: Any, at: int, steps: int | None, has_encoder: bool) -> str:
    """Return one line on how near the model comes to a face, with a warning if that is not near.

    Args:
        steps: of the search; None for the default.
    """
    from stylefusion_hf.pipelines.photo_outputs import describe_likeness
    from stylefusion_hf.pipelines.photo_search import default_steps

    share, mse, enough = float(result.explained[at]), float(result.mse[at]), default_steps(has_encoder)
    said = describe_likeness(share, enough if steps is None else steps, enough)
    return f"reconstruction: MSE {mse:.4f}; {said}"


def _call(args: argparse.Namespace) -> dict[str, Any]:
    """Return the pipeline's arguments; checks and reads everything that needs no model."""
    from stylefusion_hf.imaging.landmarks import load_detector, read_landmarks

    given = argparse.Namespace(**vars(args) | {"base": None})
    call = {name: value for name, value in call_arguments(given, code).items() if name != "base"}
    if args.edit:
        call["edits"] = read_edits(args.edit)
    if not _changes(args) and not args.codes:
        raise ValueError("nothing to change: give --region NAME=CODE, --node, --global or --edit, or --codes FILE")
    if not _changes(args) and (useless := [name for name in ONLY_CHANGES if vars(args)[name] is not None]):
        raise ValueError(f"--{useless[0].replace('_', '-')} needs something to change: give --region NAME=CODE, ...")
    if args.landmarks and args.face is not None:
        raise ValueError("--face chooses among faces that a detector finds: leave it out with --landmarks")
    call["landmarks"] = read_landmarks(args.landmarks, args.photographs) if args.landmarks else None
    if args.detector or not args.landmarks:
        sys.path.append(os.getcwd())  # module:callable may be in the current folder
        call["detector"] = load_detector(args.detector or "mtcnn")
    named = {"optimize": "num_inference_steps", "tune": "num_tuning_steps", "prior": "prior_weight"}
    named |= {"face": "face", "source_face": "source_face"}
    return call | {name: vars(args)[flag] for flag, name in named.items() if vars(args)[flag] is not None}


def _changes(args: argparse.Namespace) -> bool:
    """Return whether anything is to change."""
    return bool(args.region or args.node or args.edit or vars(args)["global"])


def _repeat(args: argparse.Namespace, target: Path, extras: dict[str, Path]) -> None:
    """Make an edited photograph again from its recipe."""
    if others := [name for name in CALL_OPTIONS if vars(args)[name] is not None]:
        flags = ", ".join("--" + name.replace("_", "-") for name in others)
        raise ValueError(f"--from-recipe determines the whole picture: leave out {flags}")
    if len(args.photographs) > 1:
        raise ValueError(f"a recipe is of one photograph, and {len(args.photographs)} were given")
    if args.codes:
        raise ValueError("--codes are those of a search, and --from-recipe makes none: leave it out")
    if "reconstruction" in extras:
        raise ValueError("--reconstruction is of a search, and --from-recipe makes none: leave it out")
    from stylefusion_hf.core.recipes import MAX_CHARACTERS
    from stylefusion_hf.core.regular_files import open_regular
    from stylefusion_hf.pipelines.photo_recipes import PhotoRecipe

    with open_regular(args.from_recipe) as file:
        text = file.read(MAX_CHARACTERS + 1)
    try:
        recipe = PhotoRecipe.from_json(text)
    except ValueError as error:
        raise ValueError(f"{shown(args.from_recipe, 400)}: {error}") from error
    pipe: Any = load_pipeline(args, "StyleFusionPhotoPipeline", light=True)
    if not args.generator:
        from stylefusion_hf.inversion.tuned import find_tuned

        tuned = find_tuned(recipe.fusion.to_dict(), Path(args.from_recipe).parent)
        if tuned is not None:
            pipe.register_modules(generator=tuned.to(pipe.device))
    photograph, mask = pipe.from_recipe(
        recipe,
        args.photographs[0],
        check_model=not args.any_model,
        check_photograph=not args.any_photograph,
    )
    _write(target, photograph)
    if "mask" in extras:
        save_png(mask, extras["mask"])
        report_written(extras["mask"], "how much of each pixel was replaced")


def _write(target: Path, photograph: Any, recipe: Any = None) -> None:
    photograph.save(target)
    image = photograph.image
    report_written(target, f"{image.width} x {image.height} pixels")
    if recipe is not None:
        write_json(target.with_suffix(".json"), recipe)
        report_written(target.with_suffix(".json"), "the recipe")


def _check_photographs(args: argparse.Namespace) -> None:
    """Raise OSError for a photograph that is no file, ValueError for two whose codes would have the same name."""
    stems: dict[str, str] = {}
    for file in args.photographs:
        if os.path.isdir(file):
            raise IsADirectoryError(f"{shown(file, 200)} is a folder: name a picture file")
        if not os.path.exists(file):
            raise FileNotFoundError(f"there is no picture file {shown(file, 200)}")
        if args.codes and Path(file).stem in stems:
            raise ValueError(f"the codes of {stems[Path(file).stem]} and {file} would have one name: rename one")
        stems[Path(file).stem] = file


def _targets(args: argparse.Namespace) -> list[Path]:
    """Return each photograph's output file; ValueError if two share one, or a photograph would be overwritten."""
    files = [Path(file) for file in args.photographs]
    if len(files) == 1 and not os.path.isdir(args.out):
        targets = [output_file(args.out, SUFFIXES)]
    else:
        if Path(args.out).suffix.lower() in SUFFIXES:
            raise ValueError(f"--out {args.out} names one picture, and {len(files)} were given: name a folder")
        folder = output_folder(args.out)
        targets = [folder / (file.name if file.suffix.lower() in SUFFIXES else f"{file.stem}.png") for file in files]
    taken: dict[Path, Path] = {}
    for file, target in zip(files, targets, strict=True):
        recipe = target.with_suffix(".json")
        if recipe in taken:
            raise ValueError(f"{taken[recipe]} and {file} would both become {target.stem}: rename one")
        if target.resolve() == file.resolve():
            raise ValueError(f"{file} would be overwritten by its own edit: give another --out")
        taken[recipe] = file
    return targets
