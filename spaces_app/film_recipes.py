"""Recipes of animations and sheets, and their place in WebP, GIF and MP4 files. Does not import gradio.

The recipe of an animation makes its keyframes, that of a sheet the pictures of its region columns, row by row.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from PIL import Image

from stylefusion_hf.core.recipes import Recipe

USER_COMMENT, EXIF_IFD = 0x9286, 0x8769  # of Exif, which WebP files have in place of PNG's text chunks
EXIF_FLAG = 0x08  # in the flags of WebP's chunk VP8X (RFC 9649)
FLAGS_AT = 20  # their place in the file: after "RIFF", its size, "WEBP", "VP8X" and its size
GIF_BLOCK = 255  # bytes of one block of a GIF's comment
GIF_END = b"\x3b"
MP4_UUID = uuid5(NAMESPACE_URL, "https://arxiv.org/abs/2107.07437").bytes  # of our box


def keyframe_recipe(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recipe of a walk's keyframes; `call` as `jobs.walk_arguments` returns it."""

    def rows(codes: Sequence[Any] | None) -> Any:
        return None if codes is None else tuple(codes)

    return Recipe(
        base=tuple(call["base"]),
        num_images=max(map(len, [call["base"], *call["regions"].values()])),
        regions={name: tuple(codes) for name, codes in call["regions"].items()},
        nodes={name: tuple(codes) for name, codes in call["nodes"].items()},
        global_code=rows(call["global_code"]),
        class_labels=rows(call["class_labels"]),
        truncation_psi=call["truncation_psi"],
        truncation_cutoff=call["truncation_cutoff"],
        strength=call["strength"],
        translate=call["translate"],
        rotate=call["rotate"],
    ).to_dict()


def sheet_recipe(
    regions: Sequence[str], bases: Sequence[int], sources: Sequence[int], psi: float | None
) -> dict[str, Any]:
    """Return the recipe of a sheet's region columns, row by row: in each picture, one region has the source's seed.

    Args:
        regions: the columns.
        bases, sources: seeds, one per row; a single one is repeated.
        psi: truncation.
    """
    count = max(len(bases), len(sources))
    rows = zip(*(list(seeds) * (count // len(seeds)) for seeds in (bases, sources)), strict=True)
    cells = [(base, source, column) for base, source in rows for column in regions]
    return Recipe(
        base=tuple(base for base, _, _ in cells),
        num_images=len(cells),
        regions={  # a region with the base's own seed looks as it does in the base
            name: tuple(source if name == column else base for base, source, column in cells) for name in regions
        },
        truncation_psi=psi,
    ).to_dict()


def add_to_film(path: Path, recipe: Mapping[str, Any]) -> None:
    """Write a recipe into an animation: as Exif comment of a WebP, as comment of a GIF, or in a box of an MP4."""
    text = json.dumps(recipe).encode("ascii")
    if path.suffix == ".webp":
        _add_to_webp(path, text)
    elif path.suffix == ".gif":
        _add_to_gif(path, text)
    elif path.suffix == ".mp4":
        with path.open("ab") as file:  # players skip boxes that they do not know (ISO/IEC 14496-12, "uuid")
            file.write(struct.pack(">I", 8 + len(MP4_UUID) + len(text)) + b"uuid" + MP4_UUID + text)


def _add_to_webp(path: Path, text: bytes) -> None:
    exif = exif_comment(text)
    with path.open("r+b") as file:
        file.seek(FLAGS_AT)
        flags = file.read(1)[0]
        file.seek(FLAGS_AT)
        file.write(bytes([flags | EXIF_FLAG]))
        file.seek(0, 2)
        file.write(b"EXIF" + struct.pack("<I", len(exif)) + exif + bytes(len(exif) % 2))
        size = file.tell() - 8
        file.seek(4)
        file.write(struct.pack("<I", size))


def _add_to_gif(path: Path, text: bytes) -> None:
    parts = [text[i : i + GIF_BLOCK] for i in range(0, len(text), GIF_BLOCK)]
    comment = b"\x21\xfe" + b"".join(bytes([len(part)]) + part for part in parts) + b"\x00"
    with path.open("r+b") as file:
        file.seek(-1, 2)
        if file.read(1) != GIF_END:
            raise ValueError("the GIF is not complete")
        file.seek(-1, 2)
        file.write(comment + GIF_END)


def exif_comment(text: bytes) -> bytes:
    """Return Exif data whose user comment is an ASCII text, as in `picture_files`."""
    exif = Image.Exif()
    exif[EXIF_IFD] = {USER_COMMENT: b"ASCII\0\0\0" + text}  # get_ifd of Pillow 10 returns a copy
    return exif.tobytes().removeprefix(b"Exif\0\0")
