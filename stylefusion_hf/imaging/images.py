"""Pictures from outside: the one place where they are opened, checked and brought to a model's size.

What cannot be used is refused in one line that says what it is and what to do; nothing is cropped, cut down to a first
frame or clipped in silence. Colour profiles are not applied: numbers are taken as sRGB.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    import torch

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
FORMATS = frozenset({"PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF", "PPM"})  # Pillow's names
MAX_PIXELS = 64_000_000  # a camera's largest pictures; below Pillow's own warning (89 million)
MIN_SIDE = 8  # pixels; what is smaller shows nothing
MAX_UPSCALING = 4  # times; beyond it most of what a model sees was made up by interpolation

Fit: TypeAlias = Literal["refuse", "crop", "pad"]
_TOO_LARGE = f"at most {MAX_PIXELS // 10**6} are taken, make it smaller first"
_TARGETS = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> mode
_CONVERTIBLE = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})

# ----------------------------------------------------------------------------------------------------
# From a file, or an image in hand, to 8 bits.


def open_image(path: str | os.PathLike[str], channels: int = 3) -> Image.Image:
    """A picture file, upright and decoded to its end.

    Args:
        path: a PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or PPM file (HEIF where a plug-in of Pillow reads it).
        channels: 3 for mode RGB, 1 for L, 4 for RGBA.

    Returns:
        As from `check_image`.

    Raises:
        OSError: the file cannot be read: missing, no picture, cut off.
        ValueError: `check_image` refuses what it holds, or it is of another format.
    """
    name = picture_name(path)
    with _opened(path, name) as opened:
        return check_image(opened, name, channels)


def image_size(path: str | os.PathLike[str]) -> tuple[int, int]:
    """(width, height) as stored, from a file's header alone, which is checked; raises what `open_image` does of it."""
    name = picture_name(path)
    with _opened(path, name) as opened:
        _check_header(opened, name)
        return opened.size


def check_image(image: Image.Image, name: str = "the image", channels: int = 3) -> Image.Image:
    """An upright image of 8 bits a channel.

    Turned as its EXIF orientation says. Transparent pixels are put on white, unless 4 channels are asked for; 16-bit
    grey is scaled to 8 bits; palette, grey, 1-bit, CMYK, YCbCr and HSV are converted.

    Args:
        image: any PIL image, decoded or not; it is not changed.
        name: what it is called in errors.
        channels: 3 for mode RGB, 1 for L, 4 for RGBA.

    Raises:
        ValueError: several frames or pages, more than MAX_PIXELS (told from the header, before anything is decoded), a
            side below MIN_SIDE, or a mode whose numbers have no defined range (float, 32-bit integers).
        OSError: it cannot be decoded to its end.
    """
    if channels not in _TARGETS:
        raise ValueError(f"channels must be 3 (colour), 1 (grey) or 4 (colour and alpha), got {channels}")
    _check_header(image, name)
    try:
        image.load()
        picture = _to_8_bits(image)
        turned = ImageOps.exif_transpose(picture)
    except Exception as error:  # decoders raise whatever they stumble over in a file that is cut off or forged
        raise OSError(f"cannot read {name}: {_reason(error)}") from error
    if turned.has_transparency_data:
        turned = turned.convert("RGBA")
        if channels != 4:
            turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned)
    return turned.convert(_TARGETS[channels])


def picture_name(path: str | os.PathLike[str]) -> str:
    """What a file is called in errors, which are one line whatever is in its name."""
    return "the picture " + "".join(c if c.isprintable() else repr(c)[1:-1] for c in os.fspath(path))


@contextmanager
def _opened(path: str | os.PathLike[str], name: str) -> Iterator[Image.Image]:
    """The file with its header read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # _check_header says it better
            opened = Image.open(path)
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
        raise ValueError(f"{name} has more than {limit / 1e6:.0f} megapixels: {_TOO_LARGE}") from error
    except Exception as error:
        raise OSError(f"cannot read {name}: {_reason(error)}") from error
    with opened:
        if opened.format not in FORMATS:
            raise ValueError(f"{name} is a {opened.format} file: save it as PNG, JPEG or WebP")
        yield opened


def _check_header(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} is {width} x {height} pixels, {width * height / 1e6:.0f} megapixels: {_TOO_LARGE}")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{name} is {width} x {height} pixels: too small, each side needs at least {MIN_SIDE}")
    if image.format != "MPO":  # a camera's JPEG with its depth map or second eye behind it: the first is the picture
        try:
            count = getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
        except Exception as error:  # what follows the first frame is cut off or forged
            raise OSError(f"cannot read {name}: {_reason(error)}") from error
        if count > 1:
            kind = "pages" if image.format == "TIFF" else "frames"
            raise ValueError(f"{name} has {count} {kind}: save the one that is meant as a picture of its own")
    if image.mode not in _CONVERTIBLE and not _is_16_bit(image):
        raise ValueError(
            f"{name} has mode {image.mode}, whose numbers have no range or colours known here: convert it to RGB or L"
        )


def _is_16_bit(image: Image.Image) -> bool:
    # Mode I is 32 bits of any range, but also what some versions of Pillow give for 16-bit PNG and PPM files
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """The image, its 16-bit levels scaled: Pillow's own conversion would clip them."""
    if not _is_16_bit(image):
        return image
    import numpy as np

    levels = np.asarray(image)
    picture = Image.fromarray((levels >> 8).astype(np.uint8))
    if "transparency" in image.info:  # one level of a PNG that stands for a clear pixel
        picture.putalpha(Image.fromarray(np.where(levels == image.info["transparency"], 0, 255).astype(np.uint8)))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = image.getexif().get(ExifTags.Base.Orientation, 1)
    picture.info["exif"] = exif.tobytes()
    return picture


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow knows, give a PNG, JPEG or WebP file"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


# ----------------------------------------------------------------------------------------------------
# To a model's size.


def fit_square(image: Image.Image, resolution: int, fit: Fit = "refuse", name: str = "the image") -> Image.Image:
    """An image brought to (resolution, resolution), with Lanczos' filter and without aliasing.

    Args:
        image: of mode RGB, L or RGBA, as from `check_image`.
        resolution: the model's side in pixels.
        fit: what happens to an image that is not square: "refuse" it, "crop" it to the middle, or "pad" it with white.
        name: what it is called in errors.

    Raises:
        ValueError: not square where `fit` is "refuse", a side below a quarter of `resolution`, or an unknown `fit`.

    Example:
        >>> from PIL import Image
        >>> from stylefusion_hf.imaging.images import fit_square
        >>> fit_square(Image.new("RGB", (300, 200)), 64, fit="crop").size
        (64, 64)
    """
    if fit not in get_args(Fit):
        raise ValueError(f"fit is {', '.join(map(repr, get_args(Fit)))}; got {fit!r}")
    width, height = image.size
    if min(width, height) * MAX_UPSCALING < resolution:
        raise ValueError(
            f"{name} is {width} x {height} pixels, too small for a model of {resolution} x {resolution}: each side"
            f" needs at least {-(-resolution // MAX_UPSCALING)}"
        )
    if width != height and fit == "refuse":
        raise ValueError(
            f"{name} is {width} x {height} pixels, and the model takes squares: align a face by its landmarks"
            ' (`stylefusion align`), or make it square with fit="crop" or fit="pad" (--fit on the command line)'
        )
    if fit == "pad":
        square = Image.new(image.mode, (max(image.size),) * 2, "white")
        square.paste(image, ((square.width - width) // 2, (square.height - height) // 2))
        image = square
    return resize_middle(image, resolution, Image.Resampling.LANCZOS)


def resize_middle(image: Image.Image, resolution: int, resampling: Image.Resampling) -> Image.Image:
    """The largest square in an image's middle, resized; left as it is where the size is right."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.crop(box) if side == resolution else image.resize((resolution, resolution), resampling, box)


def to_tensor(
    images: Sequence[Image.Image],
    resolution: int,
    channels: int = 3,
    fit: Fit = "refuse",
    names: Sequence[str] | None = None,
) -> torch.Tensor:
    """PIL images as a batch (B, channels, resolution, resolution), float32 in [-1, 1].

    Args:
        images: at least one; `check_image` and `fit_square` are applied to each.
        resolution: the model's side in pixels.
        channels: 3, 1 or 4.
        fit: as in `fit_square`.
        names: what they are called in errors; None for `images[0]`, `images[1]`, ...

    Raises:
        ValueError, OSError: as from `check_image` and `fit_square`; no image, or other than one name an image.

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
        raise ValueError(f"{len(names)} names were given for {len(images)} images: give one an image")
    batch = []
    for image, name in zip(images, names, strict=True):
        fitted = fit_square(check_image(image, name, channels), resolution, fit, name)
        batch.append(pixels_to_tensor(fitted))
    return torch.stack(batch)


def pixels_to_tensor(image: Image.Image) -> torch.Tensor:
    """An image of mode RGB, L or RGBA as (channels, height, width), float32 in [-1, 1]."""
    import numpy as np
    import torch

    pixels = np.array(image, dtype=np.float32).reshape(image.height, image.width, len(image.getbands()))
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


# ----------------------------------------------------------------------------------------------------
# Folders.


def picture_files(folder: str | os.PathLike[str]) -> list[Path]:
    """The picture files below a folder, sorted by path; hidden files and folders are passed over.

    Raises:
        NotADirectoryError: no such folder. ValueError: no picture in it; says what lies there instead.
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
