"""Visitors' pictures, decoded: once each, one at a time, and no larger than a model needs them."""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections import OrderedDict

from PIL import Image

from stylefusion_hf.imaging.images import MAX_PIXELS, check_image
from stylefusion_hf.spaces_app.uploads import read_file

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")  # what browsers show; Pillow reads many more, some by other programs
LEAST_KEPT = 512  # pixels: the side of the square that is kept of a larger picture, or twice the model's
MAX_KEPT = 16  # pictures

_lock = threading.Lock()
_kept: OrderedDict[tuple[object, ...], Image.Image] = OrderedDict()


class Unreadable(ValueError):
    """A file that is no picture, or is cut off or forged."""


def open_picture(path: str, name: str, resolution: int) -> Image.Image:
    """An uploaded picture as from `images.open_image`, in mode RGB; of a large one the middle square, made smaller.

    Args:
        path: checked to be the visitor's own.
        name: what it is called in errors, which never have its place.
        resolution: of the model.

    Raises:
        ValueError: not a file, no picture that a browser shows, too large or too small, several frames.
    """
    side = max(LEAST_KEPT, 2 * resolution)
    try:
        found = os.lstat(path)
        key = (path, found.st_mtime_ns, found.st_size, side)
        with _lock:
            if key not in _kept:
                _kept[key] = decode(read_file(path), name, side)
                while len(_kept) > MAX_KEPT:
                    _kept.popitem(last=False)
            _kept.move_to_end(key)
            return _kept[key].copy()
    except OSError as error:
        raise ValueError(f"cannot read {name}: {error.strerror or 'it is no longer here'}, upload it again") from None


def decode(data: bytes, name: str, side: int) -> Image.Image:
    """The picture in a file's bytes; of one with more than 2 * `side`**2 pixels the middle square, made that small.

    Raises:
        ValueError: as in `open_picture`.
    """
    picture = open_checked(data, name, FORMATS)
    with picture:
        try:
            if picture.width * picture.height <= 2 * side**2:
                return check_image(picture, name)
            if min(picture.size) > side:
                picture.draft(None, (side, side))  # a JPEG is decoded at a half, a quarter or an eighth of its size
            return check_image(_smaller(picture, name, side), name)
        except OSError as error:
            raise Unreadable(str(error)) from None


def open_checked(data: bytes, name: str, formats: tuple[str, ...], most: int = MAX_PIXELS) -> Image.Image:
    """The picture in a file's bytes, not decoded: its format, size and number of frames are checked from the header.

    Raises:
        ValueError: says what it is and what to do.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the check below says it better
            picture = Image.open(io.BytesIO(data), formats=formats)
    except Image.DecompressionBombError:
        raise ValueError(f"{name} has too many megapixels: at most {most // 10**6} are taken") from None
    except Exception:  # parsers raise whatever they stumble over in a file that is cut off or forged
        known = ", ".join(formats)
        raise Unreadable(f"cannot read {name}: not a picture in one of the formats {known}") from None
    width, height = picture.size
    if width * height > most:
        megapixels = f"{width * height / 1e6:.0f} megapixels"
        raise ValueError(f"{name} is {width} x {height} pixels, {megapixels}: at most {most // 10**6} are taken")
    if picture.format != "MPO" and _has_frames(picture):  # MPO: a camera's JPEG, with another view behind it
        raise ValueError(f"{name} has 2 frames or more: save the one that is meant as a picture of its own")
    return picture


def _has_frames(picture: Image.Image) -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))  # looks no further than for a second frame
    except Exception:
        return True


def _smaller(picture: Image.Image, name: str, side: int) -> Image.Image:
    """The middle square of a picture, of `side` pixels at most; its information (orientation) goes along."""
    try:
        picture.load()
        if picture.mode.startswith("I"):  # 16 bits, which the other filters do not take
            picture = check_image(picture, name)
        elif picture.mode not in ("L", "RGB", "RGBA", "LA", "CMYK"):
            picture = picture.convert("RGBA" if picture.has_transparency_data else "RGB")
    except Exception as error:  # decoders raise whatever they stumble over
        raise Unreadable(f"cannot read {name}: the file is damaged") from error
    edge = min(picture.size)
    left, top = (picture.width - edge) // 2, (picture.height - edge) // 2
    size = min(edge, side)
    return picture.resize((size, size), Image.Resampling.LANCZOS, (left, top, left + edge, top + edge), reducing_gap=2)
