"""Text chunks of PNG files, such as a picture's recipe, read without decoding pixels."""

from __future__ import annotations

import os
import zlib

from stylefusion_hf.core.regular_files import open_regular

PNG = b"\x89PNG\r\n\x1a\n"
MAX_CHUNKS = 100_000  # of a PNG file; encoders write pixels in chunks of at least 8 KiB


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
