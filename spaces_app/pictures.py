"""Decoding of uploaded pictures: once each, one at a time, and no larger than the model needs."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections import OrderedDict

from PIL import Image

from stylefusion_hf.imaging.images import MAX_PIXELS, check_image
from stylefusion_hf.imaging.squares import Size, as_size
from stylefusion_hf.spaces_app.uploads import read_file

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # what browsers show; Pillow reads many more, some with external programs
LEAST_KEPT = 512  # minimum shorter side in pixels of what is kept of a larger picture, else twice the model's
MAX_KEPT = 16  # decoded pictures in the cache

_lock = threading.Lock()
_kept: OrderedDict[tuple[object, ...], Image.Image] = OrderedDict()


class UnreadablePicture(ValueError):
    """A file that is not a picture, is truncated or is forged."""


def open_picture(path: str, name: str, resolution: Size, channels: int = 3) -> Image.Image:
    """Open an uploaded picture as `images.open_image` does; a large one is cropped and downscaled.

    Args:
        path: already checked to be the visitor's own file.
        name: how errors call the picture; they never show its path.
        resolution: side of the model's pictures, or (height, width).
        channels: of the model's pictures, 1 to 4.

    Raises:
        ValueError: not a file, not a picture that browsers show, too large, too small, or with several frames.
    """
    size = as_size(resolution)
    side, ratio = max(LEAST_KEPT, 2 * min(size)), max(size) / min(size)
    try:
        found = os.lstat(path)
        key = (path, found.st_mtime_ns, found.st_size, side, ratio, channels)
        with _lock:
            if key not in _kept:
                _kept[key] = decode(read_file(path), name, side, ratio, channels)
                while len(_kept) > MAX_KEPT:
                    _kept.popitem(last=False)
            _kept.move_to_end(key)
            return _kept[key].copy()
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror or 'it is no longer here'}, upload it again") from None


def decode(data: bytes, name: str, side: int, ratio: float = 1.0, channels: int = 3) -> Image.Image:
    """Decode a file; a picture of more than 2 * `side`**2 pixels is cropped in the middle and downscaled.

    Args:
        data: the file's content.
        name: how errors call the picture.
        side: the shorter side of what is kept of a large picture.
        ratio: the longer side of what is kept is at most that many times the shorter; 1 keeps a square. It is the same
            for upright pictures and for those that are to be turned by a quarter.
        channels: as in `check_image`.

    Raises:
        ValueError: as in `open_picture`.
    """
    picture = open_checked(data, name, FORMATS)
    with picture:
        try:
            if picture.width * picture.height <= 2 * side**2:
                return check_image(picture, name, channels)
            if min(picture.size) > side:
                picture.draft(None, (side, side))  # a JPEG is decoded at a half, a quarter or an eighth of its size
            return check_image(_crop_and_shrink(picture, name, side, ratio, channels), name, channels)
        except OSError as error:
            raise UnreadablePicture(str(error)) from None


def open_checked(data: bytes, name: str, formats: tuple[str, ...], most: int = MAX_PIXELS) -> Image.Image:
    """Open a picture without decoding it, after checking the format, size and number of frames in its header.

    Raises:
        ValueError: says what is wrong and what to do.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below has a better message
            picture = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has too many megapixels: at most {most // 10**6} are allowed") from None
    except Exception:  # parsers may raise anything for a truncated or forged file
        known = ", ".join(formats)
        raise UnreadablePicture(f"cannot read {name}: not a picture in one of the formats {known}") from None
    width, height = picture.size
    if width * height > most:
        megapixels = f"{width * height / 1e6:.0f} megapixels"
        raise ValueError(f"{name} is {width} x {height} pixels, {megapixels}: at most {most // 10**6} are allowed")
    if picture.format != "MPO" and _has_frames(picture):  # MPO: a camera's JPEG followed by another view
        raise ValueError(f"{name} has 2 frames or more: save one of them as a separate picture")
    return picture


def _has_frames(picture: Image.Image) -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))  # only looks for a second frame
    except Exception:
        return True


def _crop_and_shrink(picture: Image.Image, name: str, side: int, ratio: float, channels: int) -> Image.Image:
    """Return the middle of a picture as in `decode`; keeps its `info` (orientation)."""
    try:
        picture.load()
        if picture.mode.startswith("I"):  # 16 bits, which the resampling filters do not support
            picture = check_image(picture, name, channels)
        elif picture.mode not in ("L", "RGB", "RGBA", "LA", "CMYK"):
            picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except Exception as error:  # decoders may raise anything for a damaged file
        raise UnreadablePicture(f"cannot read {name}: the file is damaged") from error
    edge = min(picture.size)
    width, height = (min(whole, round(edge * ratio)) for whole in picture.size)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    scale = min(1.0, side / edge)
    size, box = (round(width * scale), round(height * scale)), (left, top, left + width, top + height)
    return picture.resize(size, Image.Resampling.LANCZOS, box, reducing_gap=2)
