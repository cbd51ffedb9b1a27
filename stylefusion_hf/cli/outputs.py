"""Output files and folders of the commands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stylefusion_hf.core.files import RECIPE_KEY, save_image


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
