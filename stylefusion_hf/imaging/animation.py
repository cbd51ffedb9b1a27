"""Writing frames to PNG, GIF, WebP and MP4 files, one frame at a time.

Pillow's writers of GIF and WebP collect all frames before they write the first (its WebP writer also the whole file),
so memory grows with the length of the animation. Here Pillow encodes single frames, and the container, a few bytes per
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
from stylefusion_hf.core.installing import install_command
from stylefusion_hf.imaging.modes import MODES, keep_transparency, put_on_white

SUFFIXES = (".gif", ".webp", ".mp4")
NUMBER = re.compile(r"%(?:0(\d))?d")  # the frame's number in a pattern such as frames/hair-%03d.png
MIN_FPS, MAX_FPS = 0.1, 120.0
GIF_MAX_FPS = 50.0  # delays are in hundredths of a second, and players treat 0 and 1 as a tenth of a second


class Writer(Protocol):
    """Writes the frames of an animation in order."""

    def add(self, frame: Image.Image) -> None:
        """Write a frame; all frames have the same size."""

    def close(self) -> None:
        """Finish the file after the last frame."""


def write_animation(path: str | os.PathLike[str], frames: Iterable[Image.Image], fps: float = 25.0) -> int:
    """Write frames as they come; the file appears complete or not at all.

    Args:
        path: `.gif` (256 colors per frame), `.webp` (lossless), `.mp4` (H.264; needs the extra `video`), a folder for
            0000.png, 0001.png, ..., or a pattern of PNG files such as `frames/hair-%03d.png`.
        frames: pictures of the same size, at least one. PNG and WebP keep their transparency; GIF and MP4 have none,
            so there they are put on white.
        fps: frames per second, 0.1 to 120, in a GIF up to 50; ignored for PNG files. GIF and WebP loop forever.

    Returns:
        The number of frames.

    Raises:
        ValueError: another suffix or fps, no frames, or frames of different sizes.
        ImportError: MP4 without imageio-ffmpeg.
        OSError: the path cannot be written, or is a folder with files in it.
    """
    target = Path(os.path.realpath(check_target(path, fps)))  # resolves ".", ".." and links
    count, size = 0, None
    with _temporary_path(target) as place:
        writer = _writer(place, fps)
        try:
            for frame in frames:
                if frame.size != (size := size or frame.size):
                    raise ValueError(f"frame {count} has {frame.size} pixels, those before it {size}: use one size")
                writer.add(frame)
                count += 1
        finally:
            writer.close()
        if not count:
            raise ValueError("there are no frames to write")
        _move(place, target)
    return count


def check_target(path: str | os.PathLike[str], fps: float) -> Path:
    """Return `path` if frames can be written there at `fps`; call it before the work rather than after it.

    Raises: as in `write_animation`.
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
    """Yield the existing files that match the pattern."""
    before, _, after = NUMBER.split(pattern.name)
    for file in sorted(pattern.parent.iterdir()):
        if re.fullmatch(re.escape(before) + r"\d+" + re.escape(after), file.name):
            yield file


@contextmanager
def _temporary_path(target: Path) -> Iterator[Path]:
    """Yield a temporary path with the same name on the same disk, which is always removed afterward."""
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
    """Return the duration of frame `count` in 1 / `unit` seconds, rounded so that the total duration is right."""
    return round((count + 1) * unit / fps) - round(count * unit / fps)


# ----------------------------------------------------------------------------------------------------
# The formats.


def is_large(frame: Image.Image) -> bool:
    """Return whether a frame is compressed with the least effort.

    At 1024 px, Pillow's default of lossless WebP takes 1.9 s, three times a generator's time for the picture; the
    least effort takes .1 s, and 9 % more bytes.
    """
    return frame.width * frame.height > 256**2


class PngWriter:
    """Writes one PNG file per frame."""

    def __init__(self, pattern: Path):
        self.pattern, self.count = pattern, 0

    def add(self, frame: Image.Image) -> None:
        """Write a frame."""
        frame = frame if frame.mode in MODES.values() else keep_transparency(frame)
        name = NUMBER.sub(lambda found: str(self.count).zfill(int(found[1] or 0)), self.pattern.name)
        frame.save(self.pattern.parent / name, compress_level=1 if is_large(frame) else 6)
        self.count += 1

    def close(self) -> None:
        """Do nothing; every frame is already complete."""


class GifWriter:
    """Writes GIF89a (https://www.w3.org/Graphics/GIF/spec-gif89a.txt), each frame with its own 256 colors."""

    def __init__(self, path: Path, fps: float):
        self.file, self.fps, self.count = path.open("wb"), fps, 0

    def add(self, frame: Image.Image) -> None:
        """Write a frame, which replaces the one before."""
        # No dithering, which would flicker in still areas; no interlacing, which would reorder the rows.
        colours = put_on_white(frame).quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        colours.save(buffer, format="GIF", optimize=False, interlace=0)
        table, pixels = _gif_parts(buffer.getvalue())
        if self.count == 0:
            self.file.write(b"GIF89a" + struct.pack("<HHBBB", *frame.size, 0x70, 0, 0))  # no global color table
            self.file.write(b"\x21\xff\x0bNETSCAPE2.0\x03\x01\x00\x00\x00")  # loop forever
        size = (len(table) // 3).bit_length() - 2  # the table has 2 ** (size + 1) colors
        self.file.write(struct.pack("<BBBBHBB", 0x21, 0xF9, 4, 0x04, _time(self.count, self.fps, 100), 0, 0))
        self.file.write(struct.pack("<BHHHHB", 0x2C, 0, 0, *frame.size, 0x80 | size) + table + pixels)
        self.count += 1

    def close(self) -> None:
        """Write the trailer."""
        self.file.write(b"\x3b")
        self.file.close()


def _gif_parts(data: bytes) -> tuple[bytes, bytes]:
    """Return the color table and the compressed pixels of a single-frame GIF."""

    def table(flags: int, at: int) -> bytes:
        return data[at : at + 3 * 2 ** ((flags & 7) + 1)] if flags & 0x80 else b""

    colours, at = table(data[10], 13), 13
    at += len(colours)
    while data[at] == 0x21:  # extensions: a label, then length-prefixed blocks
        at = _after_blocks(data, at + 2)
    own = table(data[at + 9], at + 10)  # a local table overrides the global one
    start = at + 10 + len(own)
    return own or colours, data[start : _after_blocks(data, start + 1)]


def _after_blocks(data: bytes, at: int) -> int:
    while data[at]:
        at += 1 + data[at]
    return at + 1


class WebPWriter:
    """Writes animated WebP (RFC 9649), each frame lossless and complete."""

    def __init__(self, path: Path, fps: float):
        self.file: BinaryIO = path.open("wb")
        self.fps, self.count, self.transparent = fps, 0, False

    def add(self, frame: Image.Image) -> None:
        """Write a frame, which replaces the one before."""
        buffer, frame = io.BytesIO(), keep_transparency(frame)
        self.transparent |= frame.mode == "RGBA"
        effort = {"method": 0, "quality": 0} if is_large(frame) else {}  # of the compression: all are lossless
        frame.save(buffer, format="WEBP", lossless=True, exact=True, **effort)  # exact: under transparency too
        size = b"".join((side - 1).to_bytes(3, "little") for side in frame.size)
        if self.count == 0:
            self.file.write(b"RIFF\x00\x00\x00\x00WEBP")  # the length is filled in by close()
            self._chunk(b"VP8X", b"\x02\x00\x00\x00" + size)  # an animation
            self._chunk(b"ANIM", bytes(6))  # no background, loop forever
        time = _time(self.count, self.fps, 1000).to_bytes(3, "little")
        self._chunk(b"ANMF", bytes(6) + size + time + b"\x02" + _webp_picture(buffer.getvalue()))  # 2: do not blend
        self.count += 1

    def close(self) -> None:
        """Write the file's length, and whether it has transparency, into its header."""
        length = self.file.tell() - 8
        if self.count:
            self.file.seek(4)
            self.file.write(struct.pack("<I", length))
            self.file.seek(20)
            self.file.write(b"\x12" if self.transparent else b"\x02")
        self.file.close()

    def _chunk(self, name: bytes, content: bytes) -> None:
        self.file.write(name + struct.pack("<I", len(content)) + content + bytes(len(content) % 2))


def _webp_picture(data: bytes) -> bytes:
    """Return the picture chunk of a lossless WebP file."""
    at = 12
    while data[at : at + 4] != b"VP8L":
        length = struct.unpack_from("<I", data, at + 4)[0]
        at += 8 + length + length % 2
    length = struct.unpack_from("<I", data, at + 4)[0]
    return data[at : at + 8 + length + length % 2]


class Mp4Writer:
    """Writes H.264 in MP4 with the ffmpeg bundled with imageio-ffmpeg."""

    def __init__(self, path: Path, fps: float):
        self.path, self.fps = path, fps
        self.sink: Any = None  # started with the first frame, which sets the size

    def add(self, frame: Image.Image) -> None:
        """Send a frame to ffmpeg; odd sides get one more row or column, since H.264 subsamples colors by two."""
        pixels = np.asarray(put_on_white(frame))
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
        raise ImportError(f"MP4 needs imageio-ffmpeg: {install_command('video')}, or write .webp") from error
    return imageio_ffmpeg
