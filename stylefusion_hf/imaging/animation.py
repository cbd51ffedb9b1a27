"""Frames to files, one frame at a time: PNG, GIF, WebP and MP4.

Pillow's own writers of GIF and WebP collect all frames before they write the first (its WebP also the whole file), so
that memory grows with the length of a film. Here Pillow encodes single frames, and what joins them, a few bytes a
frame in both formats, is written as they come.
"""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO, Protocol

import numpy as np
from PIL import Image

from stylefusion_hf.core.files import PARTIAL, error_about, flush

SUFFIXES = (".gif", ".webp", ".mp4")
NUMBER = re.compile(r"%(?:0(\d))?d")  # the frame's number in a pattern such as frames/hair-%03d.png
MIN_FPS, MAX_FPS = 0.1, 120.0
GIF_MAX_FPS = 50.0  # delays are in hundredths of a second, and players take 0 and 1 of them for a tenth


class Writer(Protocol):
    """Takes the frames of a film in their order."""

    def add(self, frame: Image.Image) -> None:
        """Write a frame; all are of one size."""

    def close(self) -> None:
        """Write what comes after the last."""


def write_animation(path: str | os.PathLike[str], frames: Iterable[Image.Image], fps: float = 25.0) -> int:
    """Writes frames as they come; the file appears whole, or not at all.

    Args:
        path: `.gif` (256 colours a frame), `.webp` (lossless), `.mp4` (H.264; extra `video`), a folder, which gets
            0000.png, 0001.png, ..., or a pattern of PNG files such as `frames/hair-%03d.png`.
        frames: pictures of one size, at least one.
        fps: frames a second, 0.1 to 120, in a GIF up to 50; PNG files have none. GIF and WebP play for ever.

    Returns:
        How many frames there were.

    Raises:
        ValueError: another suffix or fps, no frames, or two sizes. ImportError: MP4 without imageio-ffmpeg.
        OSError: a place that cannot be written, or a folder with files in it.
    """
    target = Path(os.path.realpath(check_target(path, fps)))  # ".", ".." and links get their names
    count, size = 0, None
    with _beside(target) as place:
        writer = _writer(place, fps)
        try:
            for frame in frames:
                if frame.size != (size := size or frame.size):
                    raise ValueError(f"frame {count} has {frame.size} pixels, those before it {size}: give one size")
                writer.add(frame.convert("RGB"))
                count += 1
        finally:
            writer.close()
        if not count:
            raise ValueError("there are no frames to write")
        _move(place, target)
    return count


def check_target(path: str | os.PathLike[str], fps: float) -> Path:
    """`path`, if frames can be written there at `fps`; checked before the work rather than after it.

    Raises: as `write_animation`.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix == ".png":
        if len(NUMBER.findall(target.name)) != 1:
            raise ValueError(
                f"{target} names one picture: write the frame's number as %d, such as {target.stem}-%03d.png, or name"
                " a folder"
            )
        if target.parent.is_dir() and (old := next(_numbered(target), None)):
            raise FileExistsError(f"{old} exists already: frames are written to new files only")
    elif not suffix:
        if target.is_dir() and any(target.iterdir()):
            raise FileExistsError(f"{target} is a folder with files in it: frames are written to an empty or new one")
        if target.exists() and not target.is_dir():
            raise NotADirectoryError(f"{target} is a file, not a folder")
    elif suffix not in SUFFIXES:
        raise ValueError(
            f"{target}: expected a file name that ends in {', '.join(SUFFIXES)}, a pattern such as frame-%03d.png, or"
            " a folder"
        )
    elif target.is_dir():
        raise IsADirectoryError(f"{target} is a folder: name a file")
    most = GIF_MAX_FPS if suffix == ".gif" else MAX_FPS
    if not MIN_FPS <= fps <= most:
        kind = "a GIF" if suffix == ".gif" else "a film"
        raise ValueError(f"fps is {fps:g}, and {kind} has {MIN_FPS:g} to {most:g} frames a second")
    if suffix == ".mp4":
        _ffmpeg()
    return target


def _numbered(pattern: Path) -> Iterator[Path]:
    """The files there that the pattern names."""
    before, _, after = NUMBER.split(pattern.name)
    for file in sorted(pattern.parent.iterdir()):
        if re.fullmatch(re.escape(before) + r"\d+" + re.escape(after), file.name):
            yield file


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A place of the same name on the same disk, which goes away whatever happens."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f"{PARTIAL}frames-", dir=target.parent) as folder:
        try:
            yield Path(folder, target.name)
        except OSError as error:
            if error.filename is None or str(error.filename).startswith(folder):
                raise error_about(error, target) from error
            raise


def _move(place: Path, target: Path) -> None:
    if target.suffix.lower() == ".png":
        _move_files(place.parent, target.parent)
    elif target.is_dir():  # an empty one
        _move_files(place, target)
    else:
        if place.is_file():
            flush(place)
        os.replace(place, target)
        flush(target.parent)


def _move_files(source: Path, target: Path) -> None:
    for file in sorted(source.iterdir()):
        os.replace(file, target / file.name)


def _writer(place: Path, fps: float) -> Writer:
    kinds: dict[str, Any] = {".gif": GifWriter, ".webp": WebPWriter, ".mp4": Mp4Writer}
    suffix = place.suffix.lower()
    if suffix in kinds:
        writer: Writer = kinds[suffix](place, fps)
        return writer
    if suffix:
        return PngWriter(place)
    place.mkdir()
    return PngWriter(place / "%04d.png")


def _time(count: int, fps: float, unit: float) -> int:
    """How long frame `count` is shown, in units a second; rounded so that the film's length is right."""
    return round((count + 1) * unit / fps) - round(count * unit / fps)


# ----------------------------------------------------------------------------------------------------
# The formats.


class PngWriter:
    """One file a frame."""

    def __init__(self, pattern: Path):
        self.pattern, self.count = pattern, 0

    def add(self, frame: Image.Image) -> None:
        """Write a frame."""
        name = NUMBER.sub(lambda found: str(self.count).zfill(int(found[1] or 0)), self.pattern.name)
        frame.save(self.pattern.parent / name)
        self.count += 1

    def close(self) -> None:
        """Nothing comes after the last."""


class GifWriter:
    """GIF89a (https://www.w3.org/Graphics/GIF/spec-gif89a.txt), every frame with 256 colours of its own."""

    def __init__(self, path: Path, fps: float):
        self.file, self.fps, self.count = path.open("wb"), fps, 0

    def add(self, frame: Image.Image) -> None:
        """Write a frame, which replaces the one before."""
        # Not dithered: dots would crawl over what stands still. Not interlaced: rows would come out of their order.
        colours = frame.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        colours.save(buffer, format="GIF", optimize=False, interlace=0)
        table, pixels = _gif_parts(buffer.getvalue())
        if self.count == 0:
            self.file.write(b"GIF89a" + struct.pack("<HHBBB", *frame.size, 0x70, 0, 0))  # no table for all frames
            self.file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # play for ever
        size = (len(table) // 3).bit_length() - 2  # the table has 2 ** (size + 1) colours
        self.file.write(struct.pack("<BBBBHBB", 0x21, 0xF9, 4, 0x04, _time(self.count, self.fps, 100), 0, 0))
        self.file.write(struct.pack("<BHHHHB", 0x2C, 0, 0, *frame.size, 0x80 | size) + table + pixels)
        self.count += 1

    def close(self) -> None:
        """Write the trailer."""
        self.file.write(b"\x3b")
        self.file.close()


def _gif_parts(data: bytes) -> tuple[bytes, bytes]:
    """The colour table and the compressed pixels of a GIF of one picture."""

    def table(flags: int, at: int) -> bytes:
        return data[at : at + 3 * 2 ** ((flags & 7) + 1)] if flags & 0x80 else b""

    colours, at = table(data[10], 13), 13
    at += len(colours)
    while data[at] == 0x21:  # extensions: a label, then blocks with their length before them
        at = _after_blocks(data, at + 2)
    own = table(data[at + 9], at + 10)  # the picture's own table comes before the one for all
    start = at + 10 + len(own)
    return own or colours, data[start : _after_blocks(data, start + 1)]


def _after_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += 1 + data[at]
    return at + 1


class WebPWriter:
    """Animated WebP (RFC 9649), every frame lossless and whole."""

    def __init__(self, path: Path, fps: float):
        self.file: BinaryIO = path.open("wb")
        self.fps, self.count = fps, 0

    def add(self, frame: Image.Image) -> None:
        """Write a frame, which replaces the one before."""
        buffer = io.BytesIO()
        frame.save(buffer, format="WEBP", lossless=True)
        size = b"".join((side - 1).to_bytes(3, "little") for side in frame.size)
        if self.count == 0:
            self.file.write(b"RIFF\x00\x00\x00\x00WEBP")  # the length comes last
            self._chunk(b"VP8X", b"\x02\x00\x00\x00" + size)  # an animation, without transparency
            self._chunk(b"ANIM", bytes(6))  # no background, play for ever
        time = _time(self.count, self.fps, 1000).to_bytes(3, "little")
        self._chunk(b"ANMF", bytes(6) + size + time + b"\x02" + _webp_picture(buffer.getvalue()))  # 2: do not blend
        self.count += 1

    def close(self) -> None:
        """Write the file's length into its head."""
        length = self.file.tell() - 8
        if self.count:
            self.file.seek(4)
            self.file.write(struct.pack("<I", length))
        self.file.close()

    def _chunk(self, name: bytes, content: bytes) -> None:
        self.file.write(name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2))


def _webp_picture(data: bytes) -> bytes:
    """The chunk with the picture of a lossless WebP."""
    at = 12
    while data[at : at + 4] != b"VP8L":
        length = struct.unpack_from("<I", data, at + 4)[0]
        at += 8 + length + length % 2
    length = struct.unpack_from("<I", data, at + 4)[0]
    return data[at : at + 8 + length + length % 2]


class Mp4Writer:
    """H.264 in MP4, by the ffmpeg that imageio-ffmpeg brings."""

    def __init__(self, path: Path, fps: float):
        self.path, self.fps = path, fps
        self.sink: Any = None  # started with the first frame, whose size it is told

    def add(self, frame: Image.Image) -> None:
        """Hand a frame to ffmpeg; odd sides get one more row or column, since H.264 halves the colours' resolution."""
        pixels = np.asarray(frame)
        pixels = np.pad(pixels, ((0, frame.height % 2), (0, frame.width % 2), (0, 0)), mode="edge")
        if self.sink is None:
            size = (pixels.shape[1], pixels.shape[0])
            self.sink = _ffmpeg().write_frames(
                str(self.path), size, fps=self.fps, codec="libx264", macro_block_size=2, quality=8
            )
            self.sink.send(None)
        self.sink.send(pixels.tobytes())

    def close(self) -> None:
        """Wait for ffmpeg."""
        if self.sink is not None:
            self.sink.close()


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise ImportError("MP4 needs imageio-ffmpeg: pip install 'stylefusion-hf[video]', or write .webp") from error
    return imageio_ffmpeg
