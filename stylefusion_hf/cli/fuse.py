"""Fuse one picture from a base and a code per region.

A code is a seed, a picture file, which the model's encoder turns into a code (better with --optimize and --tune), or
a file with a code: CODES:NAME of `stylefusion invert`, NVIDIA's projected_w.npz, .npy, latents.pt of e4e and PTI, with
:NUMBER where it holds several. --region, --node and --strength are repeatable. The picture contains its recipe, from
which --from-recipe makes it again. A recipe with pictures or edits is also written to a file next to the picture,
together with a tuned generator, where --from-recipe finds both.

    stylefusion fuse --base 1 --region hair=7 --region eyes=3 --global 5 --out fused.png
    stylefusion fuse --base 1 --node face=5 --strength 0.7 --masks masks --out fused.png
    stylefusion fuse --base 1 --region hair=7 --edit hair=directions.safetensors:sefa-3=2.5 --out fused.png
    stylefusion fuse --base b.png --region hair=a.png --region clothes=7 --optimize 200 --tune 100 --out mixed.png
    stylefusion fuse --from-recipe fused.png --out again.png
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from stylefusion_hf.cli._edits import read_edits
from stylefusion_hf.cli._invert import (
    add_inversion_arguments,
    inversion_arguments,
    invert_pictures,
    save_tuned_generator,
)
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
from stylefusion_hf.core.files import RECIPE_KEY, write_json
from stylefusion_hf.core.regular_files import check_regular, open_regular
from stylefusion_hf.imaging.png_text import read_png_text

if TYPE_CHECKING:
    from stylefusion_hf.core.recipes import Recipe

CODE_OPTIONS = (
    "base",
    "region",
    "node",
    "global",
    "edit",
    "class_label",
    "strength",
    "psi",
    "refine",
    "translate",
    "rotate",
    "noise_mode",
    "optimize",
    "tune",
    "fit",
    "prior",
)  # not allowed with --from-recipe, since a recipe contains these


def add_arguments(parser: argparse.ArgumentParser) -> None:
    codes = parser.add_argument_group("codes")
    codes.add_argument(
        "--base", metavar="CODE", help="code of every node that is not set otherwise (default: a random seed)"
    )
    add_code_arguments(codes)
    codes.add_argument(
        "--from-recipe", metavar="FILE", help="read all of this from a recipe, or from a picture that contains one"
    )
    codes.add_argument("--any-model", action="store_true", help="accept a recipe that was written with other weights")
    add_inversion_arguments(parser)
    look = parser.add_argument_group("look")
    look.add_argument(
        "--strength",
        action="append",
        metavar="[NAME=]NUMBER",
        help="how far to go from the base to the codes, 0 to 1 (default: 1)",
    )
    look.add_argument("--psi", type=number, help="truncation (default: the model's own)")
    add_refinement(look)
    look.add_argument(
        "--translate",
        nargs=2,
        type=number,
        metavar=("X", "Y"),
        help="move the picture right and down, in fractions of its width (StyleGAN3 only)",
    )
    look.add_argument(
        "--rotate", type=number, metavar="DEGREES", help="turn the picture counterclockwise (StyleGAN3 only)"
    )
    look.add_argument(
        "--noise-mode", choices=("const", "random", "none"), help="noise of the generator (default: const)"
    )
    files = parser.add_argument_group("files")
    files.add_argument("--out", default="fused.png", metavar="PNG", help="file to write (default: fused.png)")
    files.add_argument("--masks", metavar="DIR", help="also write a mask per region")
    files.add_argument(
        "--recipe", metavar="JSON", help="also write the recipe (default: OUT.json if it has more than seeds)"
    )
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    check_call(args)
    recipe = _read_recipe(args) if args.from_recipe else None  # checked completely before a model is loaded
    call = {} if args.from_recipe else _call(args)
    settings = inversion_arguments(args)
    out = output_file(args.out, [".png"])
    recipe_out = output_file(args.recipe, [".json"]) if args.recipe else None
    masks_out = output_folder(args.masks) if args.masks else None

    pipe, with_masks = load_pipeline(args, light=True), masks_out is not None
    result: Any
    if recipe is not None:
        if not args.generator:
            _load_tuned(pipe, recipe.to_dict(), Path(args.from_recipe).parent)
        result = pipe.from_recipe(recipe, check_model=not args.any_model, output_masks=with_masks)
    else:
        result = pipe(**invert_pictures(pipe, call, settings), output_masks=with_masks)

    text = json.dumps(result.recipe)
    save_png(result.images[0], out, text)
    report_written(out, f"{result.images[0].width} x {result.images[0].height} pixels, with its recipe")
    if recipe_out is None and recipe is None and not _has_only_seeds(result.recipe):
        recipe_out = out.with_suffix(".json")
    if recipe_out is not None:
        write_json(recipe_out, result.recipe, indent=2)
        report_written(recipe_out, "the recipe")
    save_tuned_generator(pipe, out.parent, settings)
    if masks_out is not None:
        names = _write_masks(result.masks, masks_out)
        report_written(masks_out, f"masks of {', '.join(names)}")


def _call(args: argparse.Namespace) -> dict[str, Any]:
    """Return the pipeline's arguments."""
    call = call_arguments(args, code) | {"noise_mode": args.noise_mode or "const"}
    if args.translate is not None:
        call["translate"] = args.translate
    if args.rotate is not None:
        call["rotate"] = args.rotate
    if args.edit:
        call["edits"] = read_edits(args.edit)
    return call


def _read_recipe(args: argparse.Namespace) -> Recipe:
    """Read the recipe of one picture from a JSON file, or from the text chunk of a PNG written by `stylefusion fuse`.

    Raises:
        ValueError: not a recipe, a recipe of several pictures, or options that conflict with --from-recipe.
        OSError: the file cannot be read.
    """
    others = [name for name in CODE_OPTIONS if vars(args)[name] is not None]
    if others:
        flags = ", ".join("--" + name.replace("_", "-") for name in others)
        raise ValueError(f"--from-recipe determines the whole picture: leave out {flags}")

    path, where = Path(args.from_recipe), shown(args.from_recipe, 400)
    check_regular(path)  # before torch is imported

    from stylefusion_hf.core.recipes import MAX_CHARACTERS, Recipe

    if path.suffix.lower() == ".png":
        try:
            text: str | bytes | None = read_png_text(path, RECIPE_KEY, MAX_CHARACTERS)
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            problem = getattr(error, "strerror", None) or error
            raise type(error)(f"{where} cannot be read as a picture with a recipe: {problem}") from error
        if text is None:
            raise ValueError(
                f"{where} carries no recipe: it was not written by `stylefusion fuse`, or another program removed it"
            )
    else:
        with open_regular(path) as file:
            text = file.read(MAX_CHARACTERS + 1)
    try:
        recipe = Recipe.from_json(text)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    if recipe.num_images != 1:
        raise ValueError(f"{where}: this recipe makes {recipe.num_images} pictures, but --out names one file")
    return recipe


def _has_only_seeds(recipe: Mapping[str, Any]) -> bool:
    """Return whether all codes of a recipe are seeds."""
    from stylefusion_hf.core.recipes import Recipe

    return all(isinstance(row, int) for rows in Recipe.from_dict(recipe).groups().values() for row in rows)


def _load_tuned(pipe: Any, recipe: Mapping[str, Any], folder: Path) -> None:
    """Give the pipeline the tuned generator that a recipe needs, if it is in the recipe's folder."""
    from stylefusion_hf.inversion.tuned import find_tuned

    tuned = find_tuned(recipe, folder)
    if tuned is not None:
        pipe.register_modules(generator=tuned.to(pipe.device))


def _write_masks(masks: Mapping[str, Any], folder: Path) -> list[str]:
    """Write masks {region: (1, H, W), 0 to 1} as grayscale PNGs; returns the regions.

    Characters that are invalid in file names are percent-encoded: the mask of the region a/b is a%2Fb.png.
    """
    for name, mask in masks.items():
        levels = mask[0].float().clamp(0, 1).mul(255).round().byte().cpu().numpy()
        file = "".join(f"%{ord(mark):02X}" if mark in '<>:"/\\|?%' else mark for mark in name)
        save_png(Image.fromarray(levels, mode="L"), folder / f"{file}.png")
    return list(masks)
