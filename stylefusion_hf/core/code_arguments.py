"""Texts that name a code in a file, `FILE[:NAME[:NUMBER]]`. Imports no torch: the command line checks them first."""

from __future__ import annotations

import os
import re

from stylefusion_hf.core.regular_files import open_regular

SUFFIXES = (".safetensors", ".npz", ".npy", ".pt", ".pth", ".pkl")
NAMED = re.compile(r"\.(safetensors|npz|npy|pt|pth|pkl)(:|$)", re.IGNORECASE)
MAGIC = (b"PK\x03\x04", b"\x93NUMPY", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")  # zip, numpy, pickle
LONGEST = 8192  # characters
MOST_COLONS = 16  # after the file, in names such as C:\\me.jpg


def names_codes(argument: str) -> bool:
    """Return whether a text names a file of codes: by its suffix, before `:NAME`, or by the first bytes of a file."""
    if len(argument) > LONGEST:
        return False
    if NAMED.search(argument):
        return True
    try:
        with open_regular(argument) as file:
            return file.read(8).startswith(MAGIC)
    except (OSError, ValueError):
        return False


def split_file(argument: str) -> list[str]:
    """Split `FILE[:NAME[:NUMBER]]`; colons that belong to an existing file's name stay, those of a name split it."""
    rest: list[str] = []
    text = argument
    for _ in range(MOST_COLONS + 1):
        if os.path.exists(text):
            return [text, *rest]
        text, colon, last = text.rpartition(":")
        if not colon or not text:
            break
        rest.insert(0, last)
    match = NAMED.search(argument)  # no such file: its name ends with its suffix
    return [argument[: match.end(1)] if match else argument]
