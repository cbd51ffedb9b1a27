"""Named tensors in safetensors files with a table about them: files of directions, files of codes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

T = TypeVar("T")


def read_tensors(
    path: str | os.PathLike[str], file_format: str, version: str, table: str, kind: str, hint: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file by name, and the table in its metadata, which has the same names.

    Args:
        path: the file.
        file_format, version: what its metadata must say under "format" and "version".
        table: the metadata's key of the table, as JSON.
        kind: what the tensors are called in errors, such as "codes".
        hint: how such a file is made.

    Raises:
        FileNotFoundError: no such file.
        ValueError: another or a damaged file; names it and what is wrong. Nothing is unpickled.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(2, f"no such file of {kind}", path)
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is no {kind} file ({error}): {hint}") from error
    if metadata.get("format") != file_format or metadata.get("version") != version:
        raise ValueError(f"{path} is no {kind} file: its metadata lack format={file_format}, version={version}")
    try:
        entries = json.loads(metadata.get(table, ""))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: the table of {kind} in its metadata is not JSON ({error})") from error
    if not isinstance(entries, dict) or set(entries) != set(tensors) or not entries:
        raise ValueError(f"{path}: the table in its metadata and the tensors do not name the same {kind}")
    return tensors, entries


def pick(entries: Mapping[str, T], name: str, where: str, kind: str = "direction") -> T:
    """The entry of that name; ValueError that lists some of those in `where`, and the closest match."""
    if name not in entries:
        names = list(entries)
        listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
        closest = get_close_matches(name, names, n=1)
        hint = f"; did you mean {closest[0]!r}?" if closest else ""
        problem = f"has no {kind} {name!r}: it has" if name else f"holds several {kind}s, name one of"
        raise ValueError(f"{where} {problem} {listed}{hint}")
    return entries[name]
