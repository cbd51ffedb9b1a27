"""Output files and folders of the commands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from stylefusion_hf.core.files import RECIPE_KEY, save_image


def output_file(path: str, suffixes: Sequence[str]) -> Path:
    """Check that `path` can be written, and create its parent folder; to be called before any long computation.

    Raises:
        ValueError: the suffix is not one of `suffixes`. OSError: `path` is a folder, or cannot be written.
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
    """Create the folder `path` and its parents.

    Raises:
        OSError: it cannot be created; says why.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(f"{path} is a file, not a folder") from error
    except OSError as error:
        raise OSError(f"the folder {path} cannot be created: {error.strerror or error}") from error
    return folder


def save_png(image: Image.Image, path: Path, recipe: str | None = None) -> None:
    """Write a PNG, with the picture's recipe as a text chunk."""
    info = PngInfo()
    if recipe is not None:
        info.add_text(RECIPE_KEY, recipe)  # uncompressed, since PIL refuses to read large compressed chunks
    save_image(image, path, pnginfo=info)


def report_written(path: str | os.PathLike[str], what: str = "") -> None:
    """Print what was written, and where."""
    print(f"wrote {os.path.abspath(path)}" + (f" ({what})" if what else ""))
