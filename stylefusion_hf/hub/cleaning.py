"""Removal of local paths and unneeded metadata from files before they are published.

Local paths are reduced to their last part: `/home/jane/runs/base` becomes `base`. Pixels and weights are unchanged.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import tempfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from stylefusion_hf.core.checks import short
from stylefusion_hf.core.files import RECIPE_KEY
from stylefusion_hf.core.hub_files import LOCAL_PATH

MAX_HEADER = 100_000_000  # bytes of a safetensors header, as in the library
MAX_JSON = 2**26  # bytes of a JSON or text file that is published
MAX_DEPTH = 64  # levels of nested lists and objects


# --- Text ------------------------------------------------------------------------------------------------------------

_PART = r"[^\s/\\\"'`|<>()\[\]{},;*?]+"
# An absolute path of two parts or more, outside URLs (`https://host/a/b`) and links to a site's own pages (`](/a/b)`).
POSIX = re.compile(rf"(?<![\w./:~%+\\-])(?<!\]\()(?:file:/+(?=/))?(?:/{_PART}){{2,}}/?")
WINDOWS = re.compile(rf"(?<![\w\\])(?:file:/+)?(?:[A-Za-z]:[\\/]+|\\\\[\w.$-]+\\)(?:{_PART}[\\/]+)*(?:{_PART})?")
HOMES = re.compile(r"[\\/](home|Users|Documents and Settings)[\\/]+[^\\/]+[\\/]*$")
# Where users keep files; paths elsewhere (/usr/bin/env, /v1/models) are cleaned only if they exist on this machine.
ROOTS = re.compile(
    r"(?:file:/+)?/+(?:home|Users|Volumes|root|tmp|var|private|mnt|media|data\d*|work\w*|scratch\d*|storage|nfs\d*|srv"
    r"|projects?|gpfs\w*|lustre|cluster|content|kaggle|run|etc|proc)(?:/|$)"
)


def base_name(path: str) -> str:
    """Return the last part of a path of any operating system; `~` for a home, whose last part is a user's name."""
    stripped = path.rstrip("/\\ ")
    if HOMES.search("/" + stripped) or stripped == str(Path.home()):
        return "~"
    return re.split(r"[\\/]", stripped)[-1] or "path"


def clean_text(text: str) -> str:
    """Replace every local path in a free text by its last part; URLs and Hub ids are kept."""
    home = str(Path.home())
    if len(home) > 1:  # first, since a user name may contain spaces
        text = re.sub(rf"(?<![\w./:~%+-]){re.escape(home + os.sep)}", "/home/_/", text)

    def replace_path(match: re.Match[str]) -> str:
        path = match[0]
        end = path[len(path.rstrip(".:!")) :]  # punctuation of the sentence
        path = path.removesuffix(end) if end else path
        return base_name(path) + end if path[0] != "/" or ROOTS.match(path) or os.path.exists(path) else match[0]

    return POSIX.sub(replace_path, WINDOWS.sub(replace_path, text))


def is_local_path(text: str) -> bool:
    """Return whether a value as a whole is an absolute path or a path below a home."""
    if "\n" in text or len(text) > 4096:
        return False
    absolute = text.startswith(("/", "~/", "\\\\", "file:")) or re.match(r"[A-Za-z]:[\\/]", text) is not None
    return absolute and re.search(r"[\\/][^\\/]", text) is not None


# --- JSON ------------------------------------------------------------------------------------------------------------


def read_json(path: Path, where: str) -> Any:
    """Read a JSON file; ValueError for anything else."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ValueError(f"more than {MAX_JSON} bytes")
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        problem = short(" ".join(str(error).split()), 80)
        raise ValueError(f"{where} is not JSON ({problem}): correct it, or remove it from the folder") from error


def clean_json(value: Any, depth: int = 0) -> Any:
    """Remove `_name_or_path` at any depth of a JSON value, and local paths in its names and texts.

    ValueError if it is nested deeper than any config.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"JSON of more than {MAX_DEPTH} levels is not published")
    if isinstance(value, str):
        return base_name(value) if is_local_path(value) else clean_text(value)
    if isinstance(value, list):
        return [clean_json(item, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    code = {"space", "shape", "data"} <= set(value)  # a recipe's code, whose base64 data may contain slashes
    cleaned: dict[str, Any] = {}
    for key, item in value.items():
        if key == LOCAL_PATH:
            continue
        name = str(clean_json(key))
        while name in cleaned:  # two paths with the same last part
            name += "'"
        cleaned[name] = item if code and key == "data" else clean_json(item, depth + 1)
    return cleaned


def encode_json(value: Any) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()


# --- Weights ---------------------------------------------------------------------------------------------------------

# Metadata kept in safetensors files: diffusers' format mark, and the keys of directions and codes.
METADATA = ("format", "version", "directions", "spaces")


class CleanedFiles:
    """Temporary copies of files with rewritten headers; they are removed with this object."""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._count = 0

    def weights(self, path: Path, where: str) -> Path:
        """Return a safetensors file, or a copy whose metadata are reduced to METADATA; tensors are copied in chunks.

        ValueError for a file that is not safetensors.
        """
        with path.open("rb") as file:
            header, size = read_header(file, where)
            metadata = header.get("__metadata__") or {}
            kept = {key: _clean_entry(metadata[key]) for key in METADATA if key in metadata}
            if kept == metadata:
                return path
            header = {name: entry for name, entry in header.items() if name != "__metadata__"}
            text = json.dumps({"__metadata__": kept, **header} if kept else header, separators=(",", ":")).encode()
            text += b" " * (-len(text) % 8)
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="stylefusion-publish-")
            self._count += 1
            copy = Path(self._folder.name, f"{self._count}-{path.name}")
            file.seek(8 + size)
            with copy.open("wb") as target:
                target.write(len(text).to_bytes(8, "little") + text)
                shutil.copyfileobj(file, target, 2**22)
        return copy


def read_header(file: BinaryIO, where: str) -> tuple[dict[str, Any], int]:
    """Read the header of a safetensors file; returns it with its size in bytes. ValueError for other files."""
    try:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size)) if 0 < size <= MAX_HEADER else None
        valid = isinstance(header, dict) and isinstance(header.get("__metadata__", {}), dict)
    except (ValueError, RecursionError):
        valid = False
    if not valid:
        raise ValueError(f"{where} is not a safetensors file: save the model again")
    return header, size  # type: ignore[return-value]  # a dict, as checked above


def _clean_entry(entry: Any) -> str:
    """Clean a metadata entry, which may be a JSON text."""
    try:
        table = json.loads(str(entry))
    except (ValueError, RecursionError):
        return str(clean_json(str(entry)))
    # The keys of a table are names of tensors and must not change.
    cleaned = {k: clean_json(v) for k, v in table.items()} if isinstance(table, dict) else clean_json(table)
    return str(entry) if cleaned == table else json.dumps(cleaned)


# --- Pictures --------------------------------------------------------------------------------------------------------

RECIPE_CHUNK = b"tEXt" + RECIPE_KEY.encode() + b"\0"
SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Chunks that affect the pixels; all others (texts, EXIF, times, private chunks) are dropped.
CHUNKS = frozenset(b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB sBIT bKGD pHYs acTL fcTL fdAT".split())


def clean_png(content: bytes, where: str) -> bytes:
    """Reduce a PNG to its pixels and its recipe, if it has one; ValueError for a damaged file."""
    if not content.startswith(SIGNATURE):
        raise ValueError(f"{where} is not a PNG file: save it again, or remove it from the folder")
    kept, offset, kind = [SIGNATURE], len(SIGNATURE), b""
    while kind != b"IEND":
        if len(content) < offset + 12:
            raise ValueError(f"{where} is cut off: save it again, or remove it from the folder")
        size, kind = struct.unpack(">I4s", content[offset : offset + 8])
        data = content[offset + 8 : offset + 8 + size]
        if kind in CHUNKS:
            kept.append(content[offset : offset + 12 + size])
        elif kind == b"tEXt" and data.startswith(RECIPE_KEY.encode() + b"\0"):
            recipe = _clean_recipe(data[len(RECIPE_KEY) + 1 :])
            if recipe is not None:
                data = RECIPE_KEY.encode() + b"\0" + recipe
                check = zlib.crc32(kind + data)
                kept.append(struct.pack(">I4s", len(data), kind) + data + struct.pack(">I", check))
        offset += 12 + size
    return b"".join(kept)


def _clean_recipe(text: bytes) -> bytes | None:
    """Remove local paths from a recipe; None for a text that is not a recipe."""
    try:
        recipe = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return json.dumps(clean_json(recipe)).encode() if is_recipe(recipe) else None


def is_recipe(value: Any) -> bool:
    """Return whether a JSON value has the required fields of a recipe and no unknown ones."""
    from stylefusion_hf.core.recipes import FIELDS

    return isinstance(value, Mapping) and {"version", "base"} <= set(value) <= set(FIELDS)


def has_metadata(path: Path) -> bool:
    """Return whether a JPEG, WebP or GIF file has comments, EXIF or XMP, or cannot be read; decodes no pixels."""
    try:
        with Image.open(path, formats=["JPEG", "WEBP", "GIF"]) as picture:
            fields = {"exif", "comment", "xmp", "XML:com.adobe.xmp", "photoshop", "Raw profile type exif"}
            return bool(fields & set(picture.info)) or bool(picture.getexif())
    except Exception:  # decoders may raise anything for a damaged file
        return True
