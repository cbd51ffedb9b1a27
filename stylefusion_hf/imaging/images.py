"""Reading untrusted pictures: the only place where they are opened, checked and resized for a model.

Unusable pictures are refused with a one-line error that says what to do; nothing is silently cropped, reduced to its
first frame or clipped. Color profiles are not applied: values are interpreted as sRGB.
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
MAX_PIXELS = 64_000_000  # the largest camera pictures; below Pillow's own warning (89 million)
MAX_BYTES = 2**29  # of a file; 64 megapixels of 3 x 16 bits, uncompressed, have 384 million bytes
MIN_SIDE = 8  # pixels; smaller pictures show nothing
MAX_PAGES = 100  # counted at most, for an error message
MAX_UPSCALING = 4  # beyond this factor, most of what a model sees is interpolation

Fit: TypeAlias = Literal["refuse", "crop", "pad"]
_TOO_LARGE = f"at most {MAX_PIXELS // 10**6} are taken, make it smaller first"
_TARGETS = {1: "L", 3: "RGB", 4: "RGBA"}  # channels -> mode
_TURNS = {  # EXIF orientation -> the transpose that makes it upright
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
# From a file, image or array to an 8-bit image.


def open_image(path: str | os.PathLike[str], channels: int = 3) -> Image.Image:
    """Open a picture file, decode it completely and turn it upright.

    Args:
        path: a PNG, JPEG, WebP, BMP, TIFF, GIF, AVIF or PPM file (HEIF with a Pillow plug-in).
        channels: 3 for mode RGB, 1 for L, 4 for RGBA.

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
        sideways = upright and _orientation(opened, picture_name(path)) >= 5
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
            raise OSError(f"cannot read {picture_name(path)}: {_reason(error)}") from error


def check_image(image: Image.Image | np.ndarray, name: str = "the image", channels: int = 3) -> Image.Image:
    """Return an upright image with 8 bits per channel.

    The EXIF orientation is applied. Transparent pixels are composited on white, unless 4 channels are requested;
    16-bit gray is scaled to 8 bits; palette, gray, 1-bit, CMYK, YCbCr and HSV are converted.

    Args:
        image: any PIL image, decoded or not (it is not modified), or an array of one picture as in `array_images`.
        name: its name in errors.
        channels: 3 for mode RGB, 1 for L, 4 for RGBA.

    Raises:
        ValueError: several frames or pages, more than MAX_PIXELS (known from the header, before decoding), a side
            below MIN_SIDE, or a mode without a defined range (float, 32-bit integers).
        OSError: it cannot be decoded completely.
    """
    if channels not in _TARGETS:
        raise ValueError(f"channels must be 3 (color), 1 (gray) or 4 (color and alpha), got {channels}")
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
        for key in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):  # stale orientation
            picture.info.pop(key, None)
        return picture
    except Exception as error:  # decoders raise all kinds of errors for truncated or forged files
        raise OSError(f"cannot read {name}: {_reason(error)}") from error


def array_images(array: Any, name: str = "the image") -> list[Image.Image]:
    """Convert an array of one or more pictures to PIL images of mode L, RGB or RGBA.

    Args:
        array: uint8, or floats in [0, 1], which are rounded to 8 bits; (H, W), (H, W, C) or (N, H, W, C) with 1, 3 or
            4 channels.
        name: its name in errors.

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
        raise ValueError(f"{name} must be a PIL image or an array (height, width, 3), got {type(array).__name__}")
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
        if not bool(((batch >= 0) & (batch <= 1)).all()):  # NaN fails too
            least, largest = np.nanmin(batch), np.nanmax(batch)
            raise ValueError(
                f"{name}: a picture of floating-point numbers must have values from 0 to 1, got {least:.3g} to"
                f" {largest:.3g}: convert -1 to 1 with (x + 1) / 2, bytes with x / 255"
            )
        batch = np.round(batch * 255).astype(np.uint8)
    return [Image.fromarray(np.ascontiguousarray(p[..., 0] if p.shape[-1] == 1 else p)) for p in np.asarray(batch)]


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
                warnings.simplefilter("ignore")  # _check_header reports it better
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
    if image.format != "MPO":  # camera JPEGs with a depth map or second view after the picture: use the first
        try:
            count = _frames(image)
        except Exception as error:  # the data after the first frame are truncated or forged
            raise OSError(f"cannot read {name}: {_reason(error)}") from error
        if count > 1:
            kind = "pages" if image.format == "TIFF" else "frames"
            several = f"{count} {kind}" if count < MAX_PAGES else f"at least {MAX_PAGES} {kind}"
            raise ValueError(f"{name} has {several}: save the intended one as a separate picture")
    if image.mode not in _CONVERTIBLE and not _is_16_bit(image):
        raise ValueError(
            f"{name} has mode {image.mode}, whose values have no known range or colors: convert it to RGB or L"
        )


def _frames(image: Image.Image) -> int:
    """Count frames or pages, up to MAX_PAGES, because Pillow's own count is quadratic."""
    if not getattr(image, "is_animated", False):
        return 1
    if image.format != "TIFF":
        return min(getattr(image, "n_frames", 1), MAX_PAGES)
    file = getattr(image, "fp", None)
    return MAX_PAGES if file is None else count_pages(file, MAX_PAGES)


def _orientation(image: Image.Image, name: str) -> int:
    """Return the EXIF orientation, 1 to 8; OSError for EXIF data crafted to exhaust memory."""
    try:
        exif = image.info.get("exif", b"")
        if not exif and isinstance(image.info.get("Raw profile type exif"), str):  # older PNG writers
            exif = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        if isinstance(exif, bytes) and exif and image.format != "TIFF":
            check_tags(io.BytesIO(exif.removeprefix(b"Exif\0\0")))
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # parsers raise all kinds of errors
        raise OSError(f"cannot read {name}: its EXIF data are damaged ({_reason(error)})") from error
    return value if isinstance(value, int) else 1


def _is_16_bit(image: Image.Image) -> bool:
    # Mode I is 32 bits of any range, but some versions of Pillow also use it for 16-bit PNG and PPM files.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _to_8_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit levels to 8 bits, which Pillow's own conversion would clip."""
    if not _is_16_bit(image):
        return image
    import numpy as np

    levels = np.asarray(image)
    picture = Image.fromarray((levels >> 8).astype(np.uint8))
    if "transparency" in image.info:  # a PNG's gray level for transparent pixels
        picture.putalpha(Image.fromarray(np.where(levels == image.info["transparency"], 0, 255).astype(np.uint8)))
    return picture


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow knows, give a PNG, JPEG or WebP file"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return shown(" ".join(text.split()), 400)


# ----------------------------------------------------------------------------------------------------
# Resizing for a model.


def fit_square(image: Image.Image, resolution: int, fit: Fit = "refuse", name: str = "the image") -> Image.Image:
    """Resize an image to (resolution, resolution) with a Lanczos filter, without aliasing.

    Args:
        image: an image of mode RGB, L or RGBA, as from `check_image`.
        resolution: the model's resolution in pixels.
        fit: how to handle an image that is not square: "refuse" it, "crop" it to the middle, or "pad" it with white.
        name: its name in errors.

    Raises:
        ValueError: not square with fit="refuse", a side below a quarter of `resolution`, or an unknown `fit`.

    Example:
        >>> from PIL import Image
        >>> from stylefusion_hf.imaging.images import fit_square
        >>> fit_square(Image.new("RGB", (300, 200)), 64, fit="crop").size
        (64, 64)
    """
    if fit not in get_args(Fit):
        raise ValueError(f"fit must be one of {', '.join(map(repr, get_args(Fit)))}; got {fit!r}")
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
    """Crop the largest square in the middle and resize it, unless it already has the right size."""
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
    """Convert PIL images to a batch (B, channels, resolution, resolution), float32 in [-1, 1].

    Args:
        images: at least one; `check_image` and `fit_square` are applied to each.
        resolution: the model's resolution in pixels.
        channels: 3, 1 or 4.
        fit: as in `fit_square`.
        names: their names in errors, one per image; None for `images[0]`, `images[1]`, ...

    Raises:
        ValueError, OSError: as in `check_image` and `fit_square`; also no image, or another number of names.

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
        fitted = fit_square(check_image(image, name, channels), resolution, fit, name)
        batch.append(pixels_to_tensor(fitted))
    return torch.stack(batch)


def pixels_to_tensor(image: Image.Image) -> torch.Tensor:
    """Convert an image of mode RGB, L or RGBA to (channels, height, width), float32 in [-1, 1]."""
    import numpy as np
    import torch

    pixels = np.array(image, dtype=np.float32).reshape(image.height, image.width, len(image.getbands()))
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1


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
