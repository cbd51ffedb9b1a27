"""What several commands share: the model, codes and `NAME=VALUE` pairs as arguments, pictures as files."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stylefusion_hf.cli import _light
from stylefusion_hf.cli._checks import check_model, check_named_device, check_regions
from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.devices import check_device
from stylefusion_hf.core.files import save_image
from stylefusion_hf.imaging.images import open_image

if TYPE_CHECKING:
    from stylefusion_hf import StyleFusionPipeline

T = TypeVar("T")

MAX_SEED = 2**32 - 1
MAX_COUNT = 10**9  # of anything that is counted
PICTURES = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif", ".heic", ".ppm")
RECIPE_KEY = "stylefusion"  # the PNG text chunk that holds a picture's recipe


# --- The model --------------------------------------------------------------------------------------


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model` and `--device`, for every command that uses a model."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="FOLDER|ID", help="a folder or a Hub id (default: the embedded model)")
    group.add_argument("--generator", metavar="FOLDER", help="instead of the model's: one that --tune made of it")
    add_device_argument(group)


def add_device_argument(group: Any, text: str = "cpu, cuda, cuda:1, mps ...") -> None:
    """`--device`, for every command that computes."""
    group.add_argument("--device", help=f"{text} (default: cuda where there is one, else cpu)")


def check_call(args: argparse.Namespace) -> None:
    """What can be refused of a command's device, model and regions, before torch is imported for the rest.

    Raises:
        ValueError, OSError: no such device or model, or a region that it does not have.
    """
    check_named_device(args.device)
    check_regions(check_model(args), args)


def load_pipeline(
    args: argparse.Namespace, class_name: str = "StyleFusionPipeline", light: bool = False
) -> StyleFusionPipeline:
    """The pipeline that `--model`, `--generator` and `--device` ask for.

    Args:
        args: parsed.
        class_name: a pipeline of this package.
        light: the command needs nothing of diffusers but this, so that it is imported in part.

    Raises:
        ValueError, OSError: no such model, a damaged one, or no such device.
    """
    if light:
        _light.import_diffusers(check_model(args))

    from diffusers.utils import logging

    import stylefusion_hf

    pipeline_class: Any = getattr(stylefusion_hf, class_name)
    device = chosen_device(args.device)
    logging.disable_progress_bar()  # three small parts: only a download, which has its own bars, takes long
    parts = {}
    try:
        if args.generator:
            parts["generator"] = stylefusion_hf.StyleGenerator.from_pretrained(args.generator)
        load = pipeline_class.from_embedded if not args.model else partial(pipeline_class.from_pretrained, args.model)
        pipe = load(**parts)
    finally:
        logging.enable_progress_bar()
    return pipe.to(device)


def chosen_device(name: str | None) -> str:
    """`name`, or cuda where there is one, else cpu. ValueError for a device that torch cannot use here."""
    try:
        return check_device(name)
    except ValueError as error:
        raise ValueError(f"--device {error}") from error


# --- Arguments --------------------------------------------------------------------------------------


def seed(text: str) -> int:
    """An argument that is a seed."""
    if not text.strip().isdecimal() or len(text) > 20 or int(text) > MAX_SEED:
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is no seed: give an integer from 0 to {MAX_SEED}")
    return int(text)


def _quoted(text: str) -> str:
    return f"'{shown(text)}'"


def seeds(text: str) -> list[int]:
    """An argument that is a list of seeds: `1,2,3`."""
    return [seed(part) for part in text.split(",")]


def classes(text: str) -> list[int]:
    """An argument that is one class or several: `3`, `0,4`. Which there are, the model says."""
    found = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 10 for part in found):
        raise argparse.ArgumentTypeError(
            f"{_quoted(text)} is no class: give an integer from 0, or several such as 0,4"
        )
    return [int(part) for part in found]


def add_class_argument(group: Any, what: str = "of every seed", metavar: str = "CLASS") -> None:
    """`--class-label`, for every command that takes seeds."""
    group.add_argument(
        "--class-label",
        type=classes,
        metavar=metavar,
        help=f"the class {what}, of a conditional model (default: each seed has its own)",
    )


def number(text: str) -> float:
    """An argument that is a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is no number")
    return value


def positive(text: str) -> int:
    """An argument that is an integer from 1."""
    if not text.strip().isdecimal() or len(text) > 20 or not 1 <= int(text) <= MAX_COUNT:
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is no integer from 1 to {MAX_COUNT}")
    return int(text)


def code(text: str) -> Any:
    """A code: a seed; a picture file, which is opened; or `CODES.safetensors:NAME` of `stylefusion invert`."""
    if text.strip().isdecimal():
        return seed(text)
    suffix = os.path.splitext(text)[1].lower()
    try:
        if ".safetensors" in text.lower():
            file = text if os.path.isfile(text) else text.rpartition(":")[0] or text
            _check_there(file, "file of codes")

            from stylefusion_hf.core.code_files import pick_code

            return pick_code(text)
        if os.path.isfile(text) or suffix in PICTURES or os.sep in text or "/" in text:
            _check_there(text, "picture file")
            return open_image(text)
    except (ValueError, OSError) as error:
        raise argparse.ArgumentTypeError(f"{error}") from error
    if _is_number(text):
        raise argparse.ArgumentTypeError(f"{_quoted(text)} is no seed: give an integer from 0 to {MAX_SEED}")
    raise argparse.ArgumentTypeError(
        f"{_quoted(text)} is neither a seed (an integer from 0), a picture file, nor a code such as"
        " codes.safetensors:NAME"
    )


def _check_there(path: str, what: str) -> None:
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
    """An argument that is one code or several: `7,8,9`, `me.png,7`."""
    return [code(part) for part in ([text] if os.path.isfile(text) else text.split(","))]


def pairs(values: Iterable[str] | None, option: str, convert: Callable[[str], T]) -> dict[str, T]:
    """`["hair=7", "eyes=3"]` -> `{"hair": 7, "eyes": 3}`.

    Raises:
        ValueError: no `=`, the same name twice, or a value that `convert` refuses; names the option.
    """
    found: dict[str, T] = {}
    for text in values or ():
        name, equals, value = text.partition("=")
        name = name.strip()
        if not (name and equals and value):
            raise ValueError(f"{option} {shown(text)}: expected NAME=VALUE, such as {option} hair=7")
        if name in found:
            raise ValueError(f"{option} sets {_quoted(name)} twice")
        found[name] = checked(value, f"{option} {shown(text)}", convert)
    return found


def checked(text: str, option: str, convert: Callable[[str], T]) -> T:
    """`convert(text)`, with an error that names the option."""
    try:
        return convert(text)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"{option}: {error}") from error


def strength(values: list[str]) -> float | dict[str, float]:
    """One number for all nodes, or a number for each named one."""
    if all("=" in text for text in values):
        return pairs(values, "--strength", number)
    if len(values) > 1:
        raise ValueError("--strength is one number, or NAME=NUMBER once for each node: not both, and not two numbers")
    return checked(values[0], f"--strength {shown(values[0])}", number)


def call_arguments(args: argparse.Namespace, convert: Callable[[str], Any]) -> dict[str, Any]:
    """What --base, --region, --node, --global, --strength, --class-label and --psi say, as a pipeline's arguments.

    Args:
        args: parsed.
        convert: from text to a code, or to a list of them.
    """
    given = vars(args)
    call: dict[str, Any] = {
        "base": None if args.base is None else checked(args.base, f"--base {shown(args.base)}", convert),
        "regions": pairs(args.region, "--region", convert),
        "nodes": pairs(args.node, "--node", convert),
        "truncation_psi": args.psi,
    }
    if given["global"] is not None:
        call["global_code"] = checked(given["global"], f"--global {shown(given['global'])}", convert)
    if args.strength:
        call["strength"] = strength(args.strength)
    if args.class_label is not None:
        call["class_labels"] = args.class_label
    return call


# --- Files ------------------------------------------------------------------------------------------


def output_file(path: str, suffixes: Sequence[str]) -> Path:
    """`path` with its parent folder made, checked before the long work rather than after it.

    Raises:
        ValueError: another suffix. OSError: a folder of that name, or a place that cannot be written.
    """
    file = Path(path)
    if file.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: expected a file name that ends in {' or '.join(suffixes)}")
    if file.is_dir():
        raise IsADirectoryError(f"{path} is a folder: name a file")
    output_folder(str(file.parent))
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written: permission denied")
    return file


def output_folder(path: str) -> Path:
    """`path`, made with its parents.

    Raises:
        OSError: it cannot be made; says why.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(f"{path} is a file, not a folder") from error
    except OSError as error:
        raise OSError(f"the folder {path} cannot be made: {error.strerror or error}") from error
    return folder


def save_png(image: Image.Image, path: Path, recipe: str | None = None) -> None:
    """Write a PNG, with the picture's recipe as a text chunk."""
    info = PngInfo()
    if recipe is not None:
        info.add_text(RECIPE_KEY, recipe)  # not compressed: PIL refuses to read large chunks that are
    save_image(image, path, pnginfo=info)


def wrote(path: str | os.PathLike[str], what: str = "") -> None:
    """Say what was written, and where."""
    print(f"wrote {os.path.abspath(path)}" + (f" ({what})" if what else ""))
