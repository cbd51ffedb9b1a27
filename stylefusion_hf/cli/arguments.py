"""Arguments that several commands share: models, devices, seeds, codes and `NAME=VALUE` pairs."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.code_arguments import names_codes, split_file
from stylefusion_hf.core.seeds import MAX_SEED
from stylefusion_hf.imaging.images import open_image

T = TypeVar("T")

MAX_COUNT = 10**9  # for any argument that is a count
PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".ppm")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--model`, `--generator` and `--device`, for commands that use a model."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="FOLDER|ID", help="a folder or a Hub id (default: the embedded model)")
    group.add_argument(
        "--generator", metavar="FOLDER", help="use this generator, made by --tune, instead of the model's"
    )
    add_device_argument(group)


def add_device_argument(group: Any, text: str = "cpu, cuda, cuda:1, mps ...") -> None:
    """Add `--device`, for commands that compute."""
    group.add_argument("--device", help=f"{text} (default: cuda if available, else cpu)")


def seed(text: str) -> int:
    """Convert an argument that is a seed."""
    if not text.strip().isdecimal() or len(text) > 20 or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is not a seed: give an integer from 0 to {MAX_SEED}")
    return int(text)


def _quoted(text: str) -> str:
    return f"'{shown(text)}'"


def seeds(text: str) -> list[int]:
    """Convert an argument that is a list of seeds: `1,2,3`."""
    return [seed(part) for part in text.split(",")]


def classes(text: str) -> list[int]:
    """Convert an argument that is one class or several: `3`, `0,4`. Whether a class exists depends on the model."""
    found = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 10 for part in found):
        raise argparse.ArgumentTypeError(
            f"{_quoted(text)} is not a class: give an integer from 0, or several such as 0,4"
        )
    return [int(part) for part in found]


def add_class_argument(group: Any, what: str = "of every seed", metavar: str = "CLASS") -> None:
    """Add `--class-label`, for commands that take seeds."""
    group.add_argument(
        "--class-label",
        type=classes,
        metavar=metavar,
        help=f"the class {what}, for conditional models (default: each seed has its own)",
    )


def add_code_arguments(group: Any) -> None:
    """Add the codes of regions and of what they share, and edits."""
    group.add_argument("--region", action="append", metavar="NAME=CODE", help="code of a region or a whole subtree")
    group.add_argument("--node", action="append", metavar="NAME=CODE", help="code of this node of the tree only")
    group.add_argument("--global", metavar="CODE", help="code of what the regions share: pose and layout")
    add_class_argument(group)
    group.add_argument(
        "--edit", action="append", metavar="NAME=FILE:DIRECTION[=STRENGTH]", help="change a region along a direction"
    )


def add_refinement(group: Any) -> None:
    """Add `--refine`."""
    group.add_argument(
        "--refine",
        type=positive,
        metavar="STEPS",
        help="optimize the gates of this picture, so that regions are more like their sources and less changes around"
        " them: 6 steps are enough, and take some seconds on a CPU (default: none)",
    )


def number(text: str) -> float:
    """Convert an argument that is a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is not a finite number")
    return value


def positive(text: str) -> int:
    """Convert an argument that is an integer from 1."""
    if not text.strip().isdecimal() or len(text) > 20 or not 1 <= int(text) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is not an integer from 1 to {MAX_COUNT}")
    return int(text)


def code(text: str) -> Any:
    """Convert an argument that is a code: a seed, a picture file, or a code in a file, `FILE` or `FILE:NAME`.

    Picture files are opened, and codes in files are read: `invert`'s CODES.safetensors, and other tools' .npz and .pt.
    """
    if text.strip().isdecimal():
        return seed(text)
    suffix = os.path.splitext(text)[1].lower()
    try:
        # latents.pt of e4e and PTI name codes by pictures: FILE:me.jpg is one of these.
        if not (suffix in PICTURES and os.path.isfile(text)) and names_codes(text):
            _check_exists(split_file(text)[0], "file of codes")

            from stylefusion_hf.core.code_files import pick_code

            return pick_code(text)
        if os.path.isfile(text) or suffix in PICTURES or os.sep in text or "/" in text:
            _check_exists(text, "picture file")
            return open_image(text)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(f"{error}") from error
    if _is_number(text):
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is not a seed: give an integer from 0 to {MAX_SEED}")
    raise argparse.ArgumentTypeError(
        f"{_quoted(text)} is neither a seed (an integer from 0), a picture file, nor a code such as"
        " codes.safetensors:NAME or projected_w.npz"
    )


def _check_exists(path: str, what: str) -> None:
    if os.path.isdir(path):
        raise IsADirectoryError(f"{shown(path, 200)} is a folder: name a {what}")
    if not os.path.exists(path):
        raise FileNotFoundError(f"there is no {what} {shown(path, 200)}")


def _is_number(text: str) -> bool:
    try:
        float(text[:100])
    except ValueError:
        return False
    return True


def codes(text: str) -> list[Any]:
    """Convert an argument that is one code or several: `7,8,9`, `me.png,7`."""
    return [code(part) for part in ([text] if os.path.isfile(text) else text.split(","))]


def seed_or_file(text: str) -> Any:
    """Convert an argument that is a seed, or a file with a code or a picture, to that code."""
    return code(text) if os.path.isfile(text) or names_codes(text) else seed(text)


def seeds_or_files(text: str) -> list[Any]:
    """Convert an argument that is a list of seeds and files: `1,2,projected_w.npz`."""
    return [seed_or_file(part) for part in ([text] if os.path.isfile(text) else text.split(","))]


def parse_pairs(values: Iterable[str] | None, option: str, convert: Callable[[str], T]) -> dict[str, T]:
    """Parse pairs: `["hair=7", "eyes=3"]` -> `{"hair": 7, "eyes": 3}`.

    Raises:
        ValueError: no `=`, the same name twice, or a value that `convert` rejects; names the option.
    """
    found: dict[str, T] = {}
    for text in values or ():
        name, equals, value = text.partition("=")
        name = name.strip()
        if not (name and equals and value):
            raise ValueError(f"{option} {shown(text)}: expected NAME=VALUE, such as {option} hair=7")
        if name in found:
            raise ValueError(f"{option} sets {_quoted(name)} twice")
        found[name] = convert_argument(value, f"{option} {shown(text)}", convert)
    return found


def convert_argument(text: str, option: str, convert: Callable[[str], T]) -> T:
    """Return `convert(text)`; ValueError names the option."""
    try:
        return convert(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{option}: {error}") from error


def parse_strength(values: list[str]) -> float | dict[str, float]:
    """Parse --strength: one number for all nodes, or a number per named node."""
    if all("=" in text for text in values):
        return parse_pairs(values, "--strength", number)
    if len(values) > 1:
        raise ValueError("--strength takes one number, or NAME=NUMBER once per node: not both, and not two numbers")
    return convert_argument(values[0], f"--strength {shown(values[0])}", number)


def call_arguments(args: argparse.Namespace, convert: Callable[[str], Any]) -> dict[str, Any]:
    """Convert the arguments of codes, with --strength, --class-label, --psi and --refine, to a pipeline's.

    Args:
        args: parsed arguments.
        convert: converts a text to a code, or to a list of codes.
    """
    given = vars(args)
    call: dict[str, Any] = {
        "base": None if args.base is None else convert_argument(args.base, f"--base {shown(args.base)}", convert),
        "regions": parse_pairs(args.region, "--region", convert),
        "nodes": parse_pairs(args.node, "--node", convert),
        "truncation_psi": args.psi,
    }
    if given["global"] is not None:
        call["global_code"] = convert_argument(given["global"], f"--global {shown(given['global'])}", convert)
    if args.strength:
        call["strength"] = parse_strength(args.strength)
    if args.class_label is not None:
        call["class_labels"] = args.class_label
    if given.get("refine") is not None:
        call["refine_steps"] = args.refine
    return call
