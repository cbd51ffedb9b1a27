"""Checks of picture headers before Pillow opens a file: sizes that its decoders would allocate, and PNG text.

Pillow checks the size of a picture after opening its file. Two formats can exhaust memory before that: a WebP file's
canvas is allocated, and every tag of a TIFF directory is copied, even if all of them point to the same bytes.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import BinaryIO, Literal

from stylefusion_hf.core.regular_files import open_regular

PNG = b"\x89PNG\r\n\x1a\n"
MAX_EXIF = 2**20  # bytes in a JPEG file; one segment has at most 64 KiB
MAX_CHUNKS = 100_000  # of a PNG file; encoders write pixels in chunks of at least 8 KiB
TAG_SIZES = {3: 2, 4: 4, 5: 8, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}  # TIFF's; else 1 byte


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


def read_png_text(path: str | os.PathLike[str], keyword: str, most: int) -> str | None:
    """Read the text stored in a PNG file under a keyword (tEXt, zTXt or iTXt), or None; no pixels are decoded.

    Args:
        path: the file.
        keyword: keyword of the chunk; the first one counts.
        most: maximum size of the decompressed text in bytes.

    Raises:
        OSError: the file cannot be read, is not a regular file, or is truncated or damaged before the text is found.
        ValueError: not a PNG file, an implausible number of chunks, or a longer text.
    """
    key = keyword.encode("latin-1") + b"\0"
    with open_regular(path) as file:
        if file.read(8) != PNG:
            raise ValueError("not a PNG file")
        for _ in range(MAX_CHUNKS):
            head = file.read(8)
            if len(head) < 8:
                raise OSError("the file is cut off")
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            if kind == b"IEND":
                return None
            taken = b""
            if kind in (b"tEXt", b"zTXt", b"iTXt"):
                taken = file.read(min(length, len(key)))
            if taken != key:
                file.seek(length - len(taken) + 4, os.SEEK_CUR)
                continue
            if length > most + 1024:  # a keyword, and iTXt's language
                raise ValueError(f"its text {keyword!r} is longer than {most:,} bytes")
            data = file.read(length - len(taken))
            if file.read(4) != zlib.crc32(kind + taken + data).to_bytes(4, "big"):
                raise OSError("its text is damaged, or cut off")
            return _text(kind, data, most, keyword)
    raise ValueError(f"it has more than {MAX_CHUNKS:,} chunks")


def _text(kind: bytes, data: bytes, most: int, keyword: str) -> str:
    """Decode a text chunk from the bytes after its keyword."""
    encoding, packed = "latin-1", kind == b"zTXt"
    if kind == b"zTXt":
        data = data[1:]  # the compression method, of which there is only one
    elif kind == b"iTXt":
        encoding, packed = "utf-8", data[:1] == b"\1"
        data = data[2:].partition(b"\0")[2].partition(b"\0")[2]  # language, translated keyword
    if packed:
        inflate = zlib.decompressobj()
        try:
            data = inflate.decompress(data, most + 1)
        except zlib.error as error:
            raise OSError(f"its text cannot be inflated: {error}") from None
    if len(data) > most:
        raise ValueError(f"its text {keyword!r} is longer than {most:,} bytes")
    return data.decode(encoding, "replace")
