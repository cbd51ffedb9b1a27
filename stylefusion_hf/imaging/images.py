"""Reading untrusted pictures: the only place where files are opened, checked and prepared for a model.

Unusable pictures are refused with a one-line error that says what to do; nothing is silently cropped, reduced to its
first frame or clipped. Color profiles are not applied: values are interpreted as sRGB.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, UnidentifiedImageError

from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.regular_files import open_regular
from stylefusion_hf.imaging.arrays import array_images, pixels_to_tensor
from stylefusion_hf.imaging.modes import ALPHA, MODES, put_on_white
from stylefusion_hf.imaging.picture_headers import (
    MAX_PIXELS,
    MIN_SIDE,
    TOO_LARGE,
    check_header,
    check_picture,
    explain,
    is_16_bit,
    orientation,
)
from stylefusion_hf.imaging.squares import MAX_UPSCALING, Fit, Size, fit_picture, fit_square, resize_middle

if TYPE_CHECKING:
    import numpy as np
    import torch

__all__ = [
    "MAX_PIXELS",
    "MAX_UPSCALING",
    "MIN_SIDE",
    "Fit",
    "array_images",
    "check_image",
    "fit_picture",
    "fit_square",
    "image_size",
    "open_image",
    "open_labels",
    "opened_image",
    "picture_files",
    "picture_name",
    "pixels_to_tensor",
    "resize_middle",
    "to_tensor",
]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
FORMATS = frozenset({"PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF", "PPM"})  # Pillow's names
MAX_BYTES = 2**29  # of a file; 64 megapixels of 3 x 16 bits, uncompressed, have 384 million bytes

TURNS = {  # EXIF orientation -> the transpose that makes it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# ----------------------------------------------------------------------------------------------------
# From a file, image or array to an 8-bit image.


def open_image(path: str | os.PathLike[str], channels: int = 3) -> Image.Image:
    """Open a picture file, decode it completely and turn it upright.

    Args:
        path: a PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or PPM file (HEIF with a Pillow plug-in).
        channels: 3 for mode RGB, 1 for L, 4 for RGBA, 2 for LA.

    Returns:
        An image as from `check_image`.

    Raises:
        OSError: the file cannot be read: missing, not a regular file, truncated, or not a picture of these formats.
        ValueError: `check_image` refuses the picture, or the file has more than MAX_BYTES.
    """
    name = picture_name(path)
    with opened_image(path) as opened:
        return check_image(opened, name, channels)


def image_size(path: str | os.PathLike[str], upright: bool = False) -> tuple[int, int]:
    """Read (width, height) from a file's header, which is checked; raises like `open_image`.

    As stored, or with `upright` after applying the EXIF orientation.
    """
    with opened_image(path) as opened:
        sideways = upright and orientation(opened, picture_name(path)) >= 5
        return opened.size[::-1] if sideways else opened.size


def open_labels(path: str | os.PathLike[str], shape: tuple[int, int] | None = None) -> np.ndarray:
    """Read a label map (H, W), uint8: the values of a palette or gray PNG, which are ids rather than colors.

    Args:
        path: a PNG file.
        shape: the required (H, W); None for any.

    Raises:
        OSError: the file cannot be read, or is not a PNG.
        ValueError: another mode or size, or what `open_image` refuses.
    """
    import numpy as np

    with opened_image(path, ["PNG"]) as opened:
        if opened.mode not in ("P", "L"):
            raise ValueError(
                f"{shown(os.fspath(path), 400)} has mode {opened.mode}: label maps must be palette or gray PNGs whose"
                " values are ids"
            )
        if shape is not None and opened.size != shape[::-1]:
            (width, height), (h, w) = opened.size, shape
            raise ValueError(f"{shown(os.fspath(path), 400)} is {width} x {height} pixels, expected {w} x {h}")
        try:
            return np.array(opened, dtype=np.uint8)
        except Exception as error:  # decoders raise all kinds of errors
            raise OSError(f"cannot read {picture_name(path)}: {explain(error)}") from error


def check_image(image: Image.Image | np.ndarray, name: str = "the image", channels: int = 3) -> Image.Image:
    """Return an upright image with 8 bits per channel.

    The EXIF orientation is applied. Transparent pixels are composited on white, unless 2 or 4 channels are
    requested; 16-bit gray is scaled to 8 bits; palette, gray, 1-bit, CMYK, YCbCr and HSV are converted.

    Args:
        image: any PIL image, decoded or not (it is not modified), or an array of one picture as in `array_images`.
        name: its name in errors.
        channels: 3 for mode RGB, 1 for L, 4 for RGBA, 2 for LA.

    Raises:
        ValueError: several frames or pages, more than MAX_PIXELS (known from the header, before decoding), a side
            below MIN_SIDE, or a mode without a defined range (float, 32-bit integers).
        OSError: it cannot be decoded completely.
    """
    if channels not in MODES:
        raise ValueError(
            f"channels must be 3 (color), 1 (gray), 4 (color and alpha) or 2 (gray and alpha), got {channels}: a model"
            " with other img_channels takes no image files, only tensors"
        )
    if not isinstance(image, Image.Image):
        images = array_images(image, name)
        if len(images) != 1:
            raise ValueError(f"{name} is an array of {len(images)} pictures: give one")
        image = images[0]
    check_picture(image, name)
    try:
        image.load()
        turn = TURNS.get(orientation(image, name))
        picture = _to_8_bits(image)
        turned = picture.copy() if turn is None else picture.transpose(turn)
        if turned.has_transparency_data:
            turned = turned.convert("RGBA") if channels in ALPHA else put_on_white(turned)
        picture = turned.convert(MODES[channels])
        for key in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):  # stale orientation
            picture.info.pop(key, None)
        return picture
    except Exception as error:  # decoders raise all kinds of errors for truncated or forged files
        raise OSError(f"cannot read {name}: {explain(error)}") from error


def picture_name(path: str | os.PathLike[str]) -> str:
    """Return a file's name for errors, escaped so that they stay on one line."""
    return "the picture " + shown(os.fspath(path), 400)


@contextmanager
def opened_image(path: str | os.PathLike[str], formats: Sequence[str] | None = None) -> Iterator[Image.Image]:
    """Open a picture file and check its header; pixels are decoded on demand.

    The only place in the package that calls `Image.open`: for regular files only, and only with Pillow's readers for
    FORMATS, since some other readers start programs.

    Args:
        path: the file.
        formats: a subset of FORMATS; None for all.

    Raises:
        OSError, ValueError: as in `open_image`, except for errors found in decoding.
    """
    name = picture_name(path)
    try:
        file = open_regular(path)
    except OSError as error:
        raise OSError(f"cannot read {name}: {explain(error)}") from error
    with file:
        size = os.fstat(file.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f"{name} has {size:,} bytes: at most {MAX_BYTES:,} are read")
        if not size:
            raise OSError(f"cannot read {name}: the file is empty, and not a picture that Pillow knows")
        Image.init()
        known = [kind for kind in formats or sorted(FORMATS) if kind in Image.OPEN]
        try:
            check_header(file, MAX_PIXELS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # check_picture reports it better
                opened = Image.open(file, formats=known)
        except Image.DecompressionBombError as error:
            limit = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
            raise ValueError(f"{name} has more than {limit / 1e6:.0f} megapixels: {TOO_LARGE}") from error
        except UnidentifiedImageError as error:
            kind = Image.registered_extensions().get(Path(path).suffix.lower(), "")
            if formats is None and kind and kind not in FORMATS:
                raise ValueError(f"{name} is a {kind} file: save it as PNG, JPEG or WebP") from error
            raise OSError(f"cannot read {name}: {explain(error)}") from error
        except ValueError as error:
            if "megapixels" in str(error):
                raise ValueError(f"{name} {error}: {TOO_LARGE}") from error
            raise OSError(f"cannot read {name}: {explain(error)}") from error
        except Exception as error:
            raise OSError(f"cannot read {name}: {explain(error)}") from error
        with opened:
            check_picture(opened, name)
            yield opened


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit levels to 8 bits, which Pillow's own conversion would clip."""
    if not is_16_bit(image):
        return image
    import numpy as np

    levels = np.asarray(image)
    picture = Image.fromarray((levels >> 8).astype(np.uint8))
    if "transparency" in image.info:  # a PNG's gray level for transparent pixels
        picture.putalpha(Image.fromarray(np.where(levels == image.info["transparency"], 0, 255).astype(np.uint8)))
    return picture


# ----------------------------------------------------------------------------------------------------
# Batches for a model.


def to_tensor(
    images: Sequence[Image.Image],
    resolution: Size,
    channels: int = 3,
    fit: Fit = "refuse",
    names: Sequence[str] | None = None,
) -> torch.Tensor:
    """Convert PIL images to a batch (B, channels, height, width), float32 in [-1, 1].

    Args:
        images: at least one; `check_image` and `fit_picture` are applied to each.
        resolution: side of the model's pictures in pixels, or (height, width).
        channels: 3, 1, 4 or 2.
        fit: as in `fit_picture`.
        names: their names in errors, one per image; None for `images[0]`, `images[1]`, ...

    Raises:
        ValueError, OSError: as in `check_image` and `fit_picture`; also no image, or another number of names.

    Example:
        >>> from PIL import Image
        >>> from stylefusion_hf.imaging.images import to_tensor
        >>> to_tensor([Image.new("RGB", (40, 40), "white")], resolution=16).mean().item()
        1.0
    """
    import torch

    if not images:
        raise ValueError("expected at least one image, got none")
    names = [f"images[{i}]" for i in range(len(images))] if names is None else names
    if len(names) != len(images):
        raise ValueError(f"{len(names)} names were given for {len(images)} images: give one per image")
    batch = []
    for image, name in zip(images, names, strict=True):
        fitted = fit_picture(check_image(image, name, channels), resolution, fit, name)
        batch.append(pixels_to_tensor(fitted))
    return torch.stack(batch)


# ----------------------------------------------------------------------------------------------------
# Folders.


def picture_files(folder: str | os.PathLike[str]) -> list[Path]:
    """Return the picture files below a folder, sorted by path; hidden files and folders are skipped.

    Raises:
        NotADirectoryError: no such folder.
        ValueError: no picture in it; lists what it contains.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder")
    found = []
    for path in root.rglob("*"):
        hidden = any(part.startswith((".", "__MACOSX")) for part in path.relative_to(root).parts)
        if path.suffix.lower() in SUFFIXES and not hidden and path.is_file():
            found.append(path)
    if not found:
        kinds = Counter(path.suffix.lower() or "no suffix" for path in root.rglob("*") if path.is_file())
        others = ", ".join(f"{count} x {kind}" for kind, count in kinds.most_common(4))
        holds = f"; it holds {others}" if others else ""
        raise ValueError(f"no pictures in {root} (looked for {', '.join(sorted(SUFFIXES))}){holds}")
    return sorted(found, key=lambda path: path.relative_to(root).as_posix())
