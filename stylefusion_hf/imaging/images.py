"""Pictures from outside: the one place where they are opened, checked and brought to a model's size.

What cannot be used is refused in one line that says what it is and what to do; nothing is cropped, cut down to a first
frame or clipped in silence. Colour profiles are not applied: numbers are taken as sRGB.
"""

from __future__ import annotations

import io
import os
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from PIL import ExifTags, Image, UnidentifiedImageError

from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.regular_files import open_regular
from stylefusion_hf.imaging.picture_headers import check_header, check_tags, count_pages

if TYPE_CHECKING:
    import numpy as np
    import torch

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif"})
FORMATS = frozenset({"PNG", "JPEG", "MPO", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF", "PPM"})  # Pillow's names
MAX_PIXELS = 64_000_000  # a camera's largest pictures; below Pillow's own warning (89 million)
MAX_BYTES = 2**29  # of a file; 64 megapixels of 16 bits and 3 channels, not compressed, have 384 million
MIN_SIDE = 8  # pixels; what is smaller shows nothing
MAX_PAGES = 100  # that are counted for an error
MAX_UPSCALING = 4  # times; beyond it most of what a model sees was made up by interpolation

Fit: TypeAlias = Literal["refuse", "crop", "pad"]
_TOO_LARGE = f"at most {MAX_PIXELS // 10**6} are taken, make it smaller first"
_TARGETS = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> mode
_TURNS = {  # EXIF orientation -> what brings it upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
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
        OSError: the file cannot be read: missing, not a regular file, cut off, or not a picture of these formats.
        ValueError: `check_image` refuses what it holds, or it has more than MAX_BYTES.
    """
    name = picture_name(path)
    with opened_image(path) as opened:
        return check_image(opened, name, channels)


def image_size(path: str | os.PathLike[str], upright: bool = False) -> tuple[int, int]:
    """(width, height) from a file's header alone, which is checked; raises what `open_image` does of it.

    As stored, or with `upright` as its EXIF orientation says.
    """
    with opened_image(path) as opened:
        sideways = upright and _orientation(opened, picture_name(path)) >= 5
        return opened.size[::-1] if sideways else opened.size


def open_labels(path: str | os.PathLike[str], shape: tuple[int, int] | None = None) -> np.ndarray:
    """A label map (H, W), uint8: the values of a palette or grey PNG, which are ids and not colors.

    Args:
        path: a PNG file.
        shape: (H, W) that it must have; None for any.

    Raises:
        OSError: the file cannot be read, or is not a PNG.
        ValueError: another mode or size, or what `open_image` refuses.
    """
    import numpy as np

    with opened_image(path, ["PNG"]) as opened:
        if opened.mode not in ("P", "L"):
            raise ValueError(
                f"{shown(os.fspath(path), 400)} has mode {opened.mode}: label maps are palette or grey PNGs, their"
                " values ids"
            )
        if shape is not None and opened.size != shape[::-1]:
            (width, height), (h, w) = opened.size, shape
            raise ValueError(f"{shown(os.fspath(path), 400)} is {width} x {height} pixels, expected {w} x {h}")
        try:
            return np.array(opened, dtype=np.uint8)
        except Exception as error:  # decoders raise whatever they stumble over
            raise OSError(f"cannot read {picture_name(path)}: {_reason(error)}") from error


def check_image(image: Image.Image | np.ndarray, name: str = "the image", channels: int = 3) -> Image.Image:
    """An upright image of 8 bits a channel.

    Turned as its EXIF orientation says. Transparent pixels are put on white, unless 4 channels are asked for; 16-bit
    grey is scaled to 8 bits; palette, grey, 1-bit, CMYK, YCbCr and HSV are converted.

    Args:
        image: any PIL image, decoded or not, which is not changed; or an array of one picture, as `array_images`
            takes it.
        name: what it is called in errors.
        channels: 3 for mode RGB, 1 for L, 4 for RGBA.

    Raises:
        ValueError: several frames or pages, more than MAX_PIXELS (told from the header, before anything is decoded), a
            side below MIN_SIDE, or a mode whose numbers have no defined range (float, 32-bit integers).
        OSError: it cannot be decoded to its end.
    """
    if channels not in _TARGETS:
        raise ValueError(f"channels must be 3 (colour), 1 (grey) or 4 (colour and alpha), got {channels}")
    if not isinstance(image, Image.Image):
        images = array_images(image, name)
        if len(images) != 1:
            raise ValueError(f"{name} is an array of {len(images)} pictures: give one")
        image = images[0]
    _check_header(image, name)
    try:
        image.load()
        turn = _TURNS.get(_orientation(image, name))
        picture = _to_8_bits(image)
        turned = picture.copy() if turn is None else picture.transpose(turn)
        if turned.has_transparency_data:
            turned = turned.convert("RGBA")
            if channels != 4:
                turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned)
        picture = turned.convert(_TARGETS[channels])
        for note in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):  # it is upright now
            picture.info.pop(note, None)
        return picture
    except Exception as error:  # decoders raise whatever they stumble over in a file that is cut off or forged
        raise OSError(f"cannot read {name}: {_reason(error)}") from error


def array_images(array: Any, name: str = "the image") -> list[Image.Image]:
    """PIL images of an array of one picture or several: L, RGB or RGBA.

    Args:
        array: uint8, or floating-point numbers from 0 to 1, which are rounded to 8 bits; (H, W), (H, W, C) or
            (N, H, W, C) with 1, 3 or 4 channels.
        name: what it is called in errors.

    Raises:
        ValueError: another type, shape or range; begins with `name`.

    Example:
        >>> import numpy as np
        >>> from stylefusion_hf.imaging.images import array_images
        >>> array_images(np.zeros((20, 30, 3), np.uint8))[0].size
        (30, 20)
    """
    import numpy as np

    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is a PIL image or an array (height, width, 3), got {type(array).__name__}")
    shape, floats = array.shape, array.dtype.kind == "f"
    flat = array[..., None] if array.ndim == 2 else array
    batch = flat[None] if flat.ndim == 3 else flat
    if batch.ndim != 4 or batch.shape[-1] not in _TARGETS or not batch.size or not (floats or array.dtype == np.uint8):
        raise ValueError(
            f"{name}: a picture as an array has the shape (height, width, 3), or 1 or 4 channels, or none, and the"
            f" type uint8, or float with numbers from 0 to 1; got {shape} of {array.dtype}"
        )
    if batch[0].size > 4 * MAX_PIXELS:
        raise ValueError(f"{name} has {batch.shape[1] * batch.shape[2] / 1e6:.0f} megapixels: {_TOO_LARGE}")
    if floats:
        if not bool(((batch >= 0) & (batch <= 1)).all()):  # NaN fails, too
            least, largest = np.nanmin(batch), np.nanmax(batch)
            raise ValueError(
                f"{name}: a picture of floating-point numbers has them from 0 to 1, got {least:.3g} to"
                f" {largest:.3g}: (x + 1) / 2 brings -1 to 1 there, x / 255 bytes"
            )
        batch = np.round(batch * 255).astype(np.uint8)
    return [Image.fromarray(np.ascontiguousarray(p[..., 0] if p.shape[-1] == 1 else p)) for p in np.asarray(batch)]


def picture_name(path: str | os.PathLike[str]) -> str:
    """What a file is called in errors, which are one line whatever is in its name."""
    return "the picture " + shown(os.fspath(path), 400)


@contextmanager
def opened_image(path: str | os.PathLike[str], formats: Sequence[str] | None = None) -> Iterator[Image.Image]:
    """A picture file with its header read and checked; its pixels are decoded where they are asked for.

    The only place of the package where `Image.open` is called: with Pillow's readers of FORMATS and no others, some of
    which start programs, and for regular files only.

    Args:
        path: the file.
        formats: of FORMATS; None for all.

    Raises:
        OSError, ValueError: as from `open_image`, but for what only decoding shows.
    """
    name = picture_name(path)
    try:
        file = open_regular(path)
    except OSError as error:
        raise OSError(f"cannot read {name}: {_reason(error)}") from error
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
                warnings.simplefilter("ignore")  # _check_header says it better
                opened = Image.open(file, formats=known)
        except Image.DecompressionBombError as error:
            limit = 2 * (Image.MAX_IMAGE_PIXELS or MAX_PIXELS)
            raise ValueError(f"{name} has more than {limit / 1e6:.0f} megapixels: {_TOO_LARGE}") from error
        except UnidentifiedImageError as error:
            kind = Image.registered_extensions().get(Path(path).suffix.lower(), "")
            if formats is None and kind and kind not in FORMATS:
                raise ValueError(f"{name} is a {kind} file: save it as PNG, JPEG or WebP") from error
            raise OSError(f"cannot read {name}: {_reason(error)}") from error
        except ValueError as error:
            if "megapixels" in str(error):
                raise ValueError(f"{name} {error}: {_TOO_LARGE}") from error
            raise OSError(f"cannot read {name}: {_reason(error)}") from error
        except Exception as error:
            raise OSError(f"cannot read {name}: {_reason(error)}") from error
        with opened:
            _check_header(opened, name)
            yield opened


def _check_header(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} is {width} x {height} pixels, {width * height / 1e6:.0f} megapixels: {_TOO_LARGE}")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{name} is {width} x {height} pixels: too small, each side needs at least {MIN_SIDE}")
    if image.format != "MPO":  # a camera's JPEG with its depth map or second eye behind it: the first is the picture
        try:
            count = _frames(image)
        except Exception as error:  # what follows the first frame is cut off or forged
            raise OSError(f"cannot read {name}: {_reason(error)}") from error
        if count > 1:
            kind = "pages" if image.format == "TIFF" else "frames"
            several = f"{count} {kind}" if count < MAX_PAGES else f"at least {MAX_PAGES} {kind}"
            raise ValueError(f"{name} has {several}: save the one that is meant as a picture of its own")
    if image.mode not in _CONVERTIBLE and not _is_16_bit(image):
        raise ValueError(
            f"{name} has mode {image.mode}, whose numbers have no range or colours known here: convert it to RGB or L"
        )


def _frames(image: Image.Image) -> int:
    """How many frames or pages there are; MAX_PAGES stands for more, as Pillow's count of them is quadratic."""
    if not getattr(image, "is_animated", False):
        return 1
    if image.format != "TIFF":
        return min(getattr(image, "n_frames", 1), MAX_PAGES)
    file = getattr(image, "fp", None)
    return MAX_PAGES if file is None else count_pages(file, MAX_PAGES)


def _orientation(image: Image.Image, name: str) -> int:
    """1 to 8 as EXIF has it; OSError for EXIF data that are made to exhaust the memory."""
    try:
        exif = image.info.get("exif", b"")
        if not exif and isinstance(image.info.get("Raw profile type exif"), str):  # as older programs keep it in PNG
            exif = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        if isinstance(exif, bytes) and exif and image.format != "TIFF":
            check_tags(io.BytesIO(exif.removeprefix(b"Exif\0\0")))
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # whatever a parser stumbles over
        raise OSError(f"cannot read {name}: its EXIF data are damaged ({_reason(error)})") from error
    return value if isinstance(value, int) else 1


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
    return picture


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow knows, give a PNG, JPEG or WebP file"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return shown(" ".join(text.split()), 400)


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
