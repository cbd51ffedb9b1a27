"""Checks of pictures before their pixels are decoded: sizes, frames, modes and EXIF data.

Pillow checks the size of a picture after opening its file. Two formats can exhaust memory before that: a WebP file's
canvas is allocated, and every tag of a TIFF directory is copied, even if all of them point to the same bytes.
"""

from __future__ import annotations

import io
import os
import struct
from typing import BinaryIO, Literal

from PIL import ExifTags, Image, UnidentifiedImageError

from stylefusion_hf.core.checks import shown

MAX_PIXELS = 64_000_000  # the largest camera pictures; below Pillow's own warning (89 million)
MIN_SIDE = 8  # pixels; smaller pictures show nothing
MAX_PAGES = 100  # counted at most, for an error message
TOO_LARGE = f"at most {MAX_PIXELS // 10**6} are taken, make it smaller first"
MAX_EXIF = 2**20  # bytes in a JPEG file; one segment has at most 64 KiB
TAG_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # TIFF's; else 1 byte
CONVERTIBLE = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"})


def check_header(file: BinaryIO, most_pixels: int) -> None:
    """Refuse files that would exhaust memory before Pillow knows the picture's size; rewinds the file.

    Raises:
        ValueError: a WebP canvas of more than `most_pixels`.
        OSError: a TIFF directory, or EXIF directory in a JPEG file, whose tags claim more bytes than there are.
    """
    file.seek(0)
    start = file.read(30)
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        width, height = _webp_size(start)
        if width * height > most_pixels:
            raise ValueError(f"is {width} x {height} pixels, {width * height / 1e6:.0f} megapixels")
    elif start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        check_tags(file)
    elif start[:2] == b"\xff\xd8":
        check_tags(io.BytesIO(_jpeg_exif(file)))
    file.seek(0)


def _webp_size(start: bytes) -> tuple[int, int]:
    """Return (width, height) from the first chunk, or (0, 0) if it is of an unknown kind."""
    kind = start[12:16]
    if kind == b"VP8X" and len(start) >= 30:
        return 1 + int.from_bytes(start[24:27], "little"), 1 + int.from_bytes(start[27:30], "little")
    if kind == b"VP8L" and len(start) >= 25:
        bits = int.from_bytes(start[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and len(start) >= 30:
        width, height = struct.unpack("<HH", start[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return 0, 0


def _jpeg_exif(file: BinaryIO) -> bytes:
    """Return the EXIF data of a JPEG file, joined from several segments as Pillow does."""
    file.seek(2)
    exif = b""
    while (head := file.read(4))[:1] == b"\xff" and len(head) == 4 and head[1] not in (0xD9, 0xDA):
        if head[1] == 0xFF:  # padding
            file.seek(-3, os.SEEK_CUR)
            continue
        length = int.from_bytes(head[2:], "big") - 2
        data = file.read(6) if head[1] == 0xE1 and length >= 6 else b""
        if data == b"Exif\0\0":
            exif += file.read(length - 6)
            if len(exif) > MAX_EXIF:
                raise OSError(f"damaged: it has more than {MAX_EXIF:,} bytes of EXIF data")
        else:
            file.seek(max(0, length) - len(data), os.SEEK_CUR)
    return exif


def count_pages(file: BinaryIO, most: int) -> int:
    """Count the directories of a TIFF file, up to `most`, without reading tags; the file position is restored."""
    here = file.tell()
    file.seek(0)
    head = file.read(16)
    order: Literal["little", "big"] = "little" if head[:2] == b"II" else "big"
    big = head[2:4] in (b"+\0", b"\0+")
    offset = int.from_bytes(head[8:16] if big else head[4:8], order)
    pages = 0
    while offset and pages < most:
        file.seek(offset % 2**62)
        count = int.from_bytes(file.read(8 if big else 2), order)
        file.seek(count * (20 if big else 12) % 2**61, os.SEEK_CUR)
        offset = int.from_bytes(file.read(8 if big else 4), order)
        pages += 1
    file.seek(here)
    return pages


def check_tags(file: BinaryIO) -> None:
    """Raise OSError if the tags of a TIFF file's first directory claim more bytes than the whole file has.

    Also used for the EXIF data of other formats, which are embedded TIFF files.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(16)
    order, big = "<" if head[:2] == b"II" else ">", head[2:4] in (b"+\0", b"\0+")
    counted, entry, claimed = (8, 20, 0) if big else (2, 12, 0)
    file.seek(int.from_bytes(head[8:16] if big else head[4:8], "little" if order == "<" else "big") % 2**62)
    count = int.from_bytes(file.read(counted), "little" if order == "<" else "big")
    data = file.read(min(count, 2**16) * entry)
    for at in range(0, len(data) - entry + 1, entry):
        kind, length = struct.unpack_from(order + ("HQ" if big else "HI"), data, at + 2)
        claimed += length * TAG_SIZES.get(kind, 1)
    if claimed > size:
        raise OSError("damaged: its tags claim more bytes than it has")


def check_picture(image: Image.Image, name: str) -> None:
    """Check the size, the number of frames and the mode of an opened picture, which need no decoding.

    Raises:
        ValueError: a picture that is too large or too small, has several frames, or an unsupported mode.
        OSError: the data after the first frame are damaged.
    """
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ValueError(f"{name} is {width} x {height} pixels, {width * height / 1e6:.0f} megapixels: {TOO_LARGE}")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"{name} is {width} x {height} pixels: too small, each side needs at least {MIN_SIDE}")
    if image.format != "MPO":  # camera JPEGs with a depth map or second view after the picture: use the first
        try:
            count = count_frames(image)
        except Exception as error:  # the data after the first frame are truncated or forged
            raise OSError(f"cannot read {name}: {explain(error)}") from error
        if count > 1:
            kind = "pages" if image.format == "TIFF" else "frames"
            several = f"{count} {kind}" if count < MAX_PAGES else f"at least {MAX_PAGES} {kind}"
            raise ValueError(f"{name} has {several}: save the intended one as a separate picture")
    if image.mode not in CONVERTIBLE and not is_16_bit(image):
        raise ValueError(
            f"{name} has mode {image.mode}, whose values have no known range or colors: convert it to RGB or L"
        )


def count_frames(image: Image.Image) -> int:
    """Count frames or pages, up to MAX_PAGES, because Pillow's own count is quadratic."""
    if not getattr(image, "is_animated", False):
        return 1
    if image.format != "TIFF":
        return min(getattr(image, "n_frames", 1), MAX_PAGES)
    file = getattr(image, "fp", None)
    return MAX_PAGES if file is None else count_pages(file, MAX_PAGES)


def orientation(image: Image.Image, name: str) -> int:
    """Return the EXIF orientation, 1 to 8; OSError for EXIF data crafted to exhaust memory."""
    try:
        exif = image.info.get("exif", b"")
        if not exif and isinstance(image.info.get("Raw profile type exif"), str):  # older PNG writers
            exif = bytes.fromhex("".join(image.info["Raw profile type exif"].split("\n")[3:]))
        if isinstance(exif, bytes) and exif and image.format != "TIFF":
            check_tags(io.BytesIO(exif.removeprefix(b"Exif\0\0")))
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # parsers raise all kinds of errors
        raise OSError(f"cannot read {name}: its EXIF data are damaged ({explain(error)})") from error
    return value if isinstance(value, int) else 1


def is_16_bit(image: Image.Image) -> bool:
    # Mode I is 32 bits of any range, but some versions of Pillow also use it for 16-bit PNG and PPM files.
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def explain(error: Exception) -> str:
    """Return the reason why a picture cannot be read, on one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not a picture that Pillow knows, give a PNG, JPEG or WebP file"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return shown(" ".join(text.split()), 400)
