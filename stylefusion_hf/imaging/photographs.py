"""Photographs that are edited in part: everything that is not edited is written as it was read.

    photograph = read_photograph("me.jpg")           # upright pixels in their own mode, and what else the file holds
    photograph.with_image(edited).save("new.jpg")    # the same metadata, orientation, tables of JPEG, size and mode

`images.open_image` prepares pictures for a model instead, and converts what it is given.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, JpegImagePlugin

from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.files import save_image
from stylefusion_hf.imaging.images import TURNS, array_images, opened_image, picture_name
from stylefusion_hf.imaging.picture_headers import check_picture, explain, is_16_bit, orientation

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}  # that can be written
LARGEST_SIDE = {"PNG": 2**31 - 1, "JPEG": 65500, "WEBP": 16383}  # pixels, by format
MAX_EXIF = 65533  # bytes in a segment of a JPEG file
MODES = {  # mode of a file -> modes that hold the same values, without and with transparency
    "1": ("L", "LA"),
    "L": ("L", "LA"),
    "LA": ("LA", "LA"),
    "P": ("RGB", "RGBA"),
    "PA": ("RGBA", "RGBA"),
    "RGB": ("RGB", "RGBA"),
    "RGBX": ("RGB", "RGBA"),
    "RGBA": ("RGBA", "RGBA"),
}
BACK = TURNS | {6: TURNS[8], 8: TURNS[6]}  # the turns that undo TURNS
# What of a TIFF file's tags describes the photograph rather than the layout of the file.
KEPT_TAGS = (270, 271, 272, 305, 306, 315, 316, 33432, ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo)
ORIENTATION = 0x0112
EXIF_HEADER = b"Exif\0\0"  # before EXIF data in a JPEG file
MAX_TEXT = 65000  # bytes of XMP, or of a comment; more does not fit into a segment of a JPEG file


@dataclass(frozen=True)
class Photograph:
    """The pixels of a photograph and what its file says beside them.

    Args:
        image: upright, of mode L, LA, RGB or RGBA, with the values of the file.
        name: in errors.
        format: Pillow's name of the file's format; "" for a picture that is not from a file.
        orientation: in which the file stores the pixels, 1 to 8, as in EXIF.
        exif: the file's EXIF data, with that orientation and without a thumbnail, which an edit makes stale.
        options: further arguments of Pillow's `save`: the color profile, resolution, XMP, tables of JPEG.
    """

    image: Image.Image
    name: str = "the photograph"
    format: str = ""
    orientation: int = 1
    exif: bytes = b""
    options: dict[str, Any] = field(default_factory=dict)

    def rgb(self) -> Image.Image:
        """Return the picture as a model sees it: RGB, on white where it is transparent."""
        if "A" not in self.image.mode:
            return self.image.convert("RGB")
        picture = self.image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")

    def sha256(self) -> str:
        """Return the hex digest of the upright pixels, with their mode and size."""
        digest = hashlib.sha256(f"{self.image.mode} {self.image.width} {self.image.height}\n".encode())
        for top in range(0, self.image.height, 256):
            strip = self.image.crop((0, top, self.image.width, min(top + 256, self.image.height)))
            digest.update(strip.tobytes())
        return digest.hexdigest()

    def with_image(self, image: Image.Image) -> Photograph:
        """Return this photograph with other pixels; ValueError for another mode or size."""
        if (image.mode, image.size) != (self.image.mode, self.image.size):
            raise ValueError(
                f"{self.name} has mode {self.image.mode} and {self.image.size} pixels, not {image.mode} and"
                f" {image.size}"
            )
        return replace(self, image=image)

    def check_target(self, path: str | os.PathLike[str]) -> str:
        """Return the format that a file name means; ValueError if a file of it cannot hold this photograph."""
        where, kind = shown(os.fspath(path), 200), FORMATS.get(Path(path).suffix.lower())
        if kind is None:
            raise ValueError(f"{where}: expected a file name that ends in {', '.join(FORMATS)}")
        if kind == "JPEG" and "A" in self.image.mode:
            raise ValueError(f"{where}: JPEG cannot keep the transparency of {self.name}: name a .png or .webp file")
        if max(self.image.size) > LARGEST_SIDE[kind]:
            raise ValueError(
                f"{where}: {self.name} is {self.image.width} x {self.image.height} pixels, and {kind} has at most"
                f" {LARGEST_SIDE[kind]} on a side: name a .png file"
            )
        if kind == "JPEG" and len(self.exif) > MAX_EXIF:
            raise ValueError(
                f"{where}: {self.name} has {len(self.exif):,} bytes of EXIF data, and a JPEG file at most"
                f" {MAX_EXIF:,}: name a .png or .webp file"
            )
        return kind

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a PNG, JPEG or WebP file, by the suffix; PNG and WebP keep every value.

        A file of the same format stores the pixels in the same orientation, a JPEG with the same tables. Of another
        format it stores them upright, as its EXIF data then say.

        Raises:
            ValueError: as in `check_target`. OSError: the file cannot be written.
        """
        kind = self.check_target(path)
        options, image = dict(self.options), self.image
        exif, turned = self.exif, self.orientation != 1
        if turned and kind == self.format and set_orientation(exif, self.orientation) is not None:
            image = image.transpose(BACK[self.orientation])
        elif turned:
            exif = set_orientation(exif, 1) or exif
            options.pop("xmp", None)  # it may have the orientation too
        if kind == "JPEG":
            options = {"quality": 95, "subsampling": 0} | options
            if "qtables" in options:
                options.pop("quality")
        else:
            for name in ("qtables", "subsampling", "progressive", "comment"):
                options.pop(name, None)
        if kind == "WEBP":
            options |= {"lossless": True, "exact": True}  # exact: the colors of transparent pixels too
        if exif:
            options["exif"] = exif
        save_image(image, path, kind, **options)


def read_photograph(source: Any, name: str = "the photograph") -> Photograph:
    """Read a photograph without changing a value.

    Args:
        source: a file, a PIL image or an array (H, W) or (H, W, C).
        name: its name in errors; a file has its own.

    Raises:
        ValueError: a picture whose values could not be written back (CMYK, 16 bits per channel, several frames, ...),
            or what `picture_headers.check_picture` refuses; says what to do.
        OSError: it cannot be decoded.
    """
    if isinstance(source, Photograph):
        return source
    if isinstance(source, (str, os.PathLike)):
        with opened_image(source) as opened:
            return _read(opened, picture_name(source))
    if isinstance(source, Image.Image):
        return _read(source, name)
    pictures = array_images(source, name)
    if len(pictures) != 1:
        raise ValueError(f"{name} is an array of {len(pictures)} pictures: give a list of pictures")
    return _read(pictures[0], name)


def _read(opened: Image.Image, name: str) -> Photograph:
    check_picture(opened, name)
    _check_values(opened, name)
    with _explained(name):
        opened.load()
    turn = orientation(opened, name)
    with _explained(name):
        plain, transparent = MODES[opened.mode]
        mode = transparent if opened.has_transparency_data else plain
        # Pillow knows which color of gray or a palette is transparent when it converts to RGBA, not to LA.
        picture = opened.convert("RGBA") if mode == "LA" and opened.mode != "LA" else opened
        picture = picture.convert(mode) if picture.mode != mode else picture
        image = picture.transpose(TURNS[turn]) if turn in TURNS else picture.copy()
    image.info = {}
    kind = {"MPO": "JPEG"}.get(opened.format or "", opened.format or "")
    exif = without_thumbnail(_exif(opened))
    return Photograph(image, name, kind, turn if turn in TURNS else 1, exif, _options(opened))


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Raise what decoders raise for truncated or forged files as an OSError that names the picture."""
    try:
        yield
    except Exception as error:  # of any kind
        raise OSError(f"cannot read {name}: {explain(error)}") from error


def _check_values(opened: Image.Image, name: str) -> None:
    """Refuse pictures of which Pillow or a change of color space would lose values."""
    if opened.mode == "CMYK":
        raise ValueError(f"{name} is CMYK, made for printing: save it as RGB first")
    deep = is_16_bit(opened) or any(_is_deep(tile) for tile in getattr(opened, "tile", ()))
    bits = getattr(opened, "tag_v2", {}).get(258) or ()  # of a TIFF file
    if deep or max(bits if isinstance(bits, tuple) else (bits,), default=8) > 8:
        raise ValueError(f"{name} has 16 bits per channel, of which 8 would be lost: save it with 8 bits first")
    if opened.mode not in MODES:
        raise ValueError(f"{name} has mode {opened.mode}, which cannot be kept: save it as RGB or gray first")


def _is_deep(tile: Any) -> bool:
    """Return whether a file's pixels have more than 8 bits per channel, which Pillow reduces (PNG, PPM)."""
    values = tile[3] if isinstance(tile[3], tuple) else (tile[3],)
    return any(
        (isinstance(v, str) and ";16" in v) or (tile[0] == "ppm" and type(v) is int and v > 255) for v in values
    )


def _exif(opened: Image.Image) -> bytes:
    exif = opened.info.get("exif")
    if opened.format != "TIFF" and isinstance(exif, bytes) and exif:
        return EXIF_HEADER + exif if exif[:4] in (b"II*\0", b"MM\0*") else exif  # WebP files have it without
    try:
        found = opened.getexif()
        if opened.format == "TIFF":
            kept = Image.Exif()
            for tag in KEPT_TAGS:
                if tag in found:
                    kept[tag] = found.get_ifd(tag) if tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo) else found[tag]
            found = kept
        return found.tobytes() if len(found) else b""
    except Exception:  # tags that Pillow reads but cannot write: the picture itself is sound
        return b""


def _options(opened: Image.Image) -> dict[str, Any]:
    """Return what Pillow's `save` needs to keep color profile, resolution, XMP and the tables of a JPEG file."""
    info, options = opened.info, {}
    for name in ("icc_profile", "xmp", "comment"):
        if isinstance(info.get(name), bytes) and 0 < len(info[name]) < (MAX_TEXT if name != "icc_profile" else 2**24):
            options[name] = info[name]
    dpi = info.get("dpi")
    if isinstance(dpi, tuple) and len(dpi) == 2 and all(0 < float(value) < 65536 for value in dpi):
        options["dpi"] = tuple(float(value) for value in dpi)
    if tables := getattr(opened, "quantization", None):
        options["qtables"] = tables
        sampling = JpegImagePlugin.get_sampling(opened) if getattr(opened, "layers", 1) == 3 else -1
        if sampling >= 0:
            options["subsampling"] = sampling
        if info.get("progressive"):
            options["progressive"] = True
    return options


# ----------------------------------------------------------------------------------------------------
# EXIF data, changed in place: rewriting them would break makers' notes, which hold absolute offsets.


def set_orientation(exif: bytes, value: int) -> bytes | None:
    """Return EXIF data with another orientation, or None if they have none."""
    found = _directory(exif)
    if found is None:
        return None
    order, entries, count = found
    for at in range(entries, entries + 12 * count, 12):
        tag, kind = struct.unpack_from(order + "HH", exif, at)
        if tag == ORIENTATION and kind == 3:
            return exif[: at + 8] + struct.pack(order + "H", value) + exif[at + 10 :]
    return None


def without_thumbnail(exif: bytes) -> bytes:
    """Return EXIF data whose first directory names no second one, which is that of the thumbnail."""
    found = _directory(exif)
    if found is None:
        return exif
    _, entries, count = found
    at = entries + 12 * count
    return exif[:at] + b"\0\0\0\0" + exif[at + 4 :] if len(exif) >= at + 4 else exif


def _directory(exif: bytes) -> tuple[str, int, int] | None:
    """Return byte order, offset of the first directory's entries, and their number; None for no EXIF data."""
    start = 6 if exif[:6] == EXIF_HEADER else 0
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[start : start + 4])
    if order is None or len(exif) < start + 8:
        return None
    entries = start + struct.unpack_from(order + "I", exif, start + 4)[0]
    if entries + 2 > len(exif):
        return None
    count = struct.unpack_from(order + "H", exif, entries)[0]
    return (order, entries + 2, count) if entries + 2 + 12 * count <= len(exif) else None
