"""Safetensors files of named tensors with a table in their metadata: the format of direction and code files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from stylefusion_hf.core.checks import closest, listed, short, shown
from stylefusion_hf.core.files import atomic_path
from stylefusion_hf.core.json_files import parse_json
from stylefusion_hf.core.regular_files import check_regular

T = TypeVar("T")


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file atomically. OSError, naming the file, if it cannot be written."""
    with atomic_path(path) as part:
        try:
            save_file(dict(tensors), part, metadata=dict(metadata))
        except SafetensorError as error:  # e.g. a full disk
            raise OSError(f"{os.fspath(path)} could not be written: {error}") from error


def read_tensors(
    path: str | os.PathLike[str], file_format: str, version: str, table: str, kind: str, hint: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file's tensors by name, and the table in its metadata, which has the same names.

    Args:
        path: the file.
        file_format, version: required values of "format" and "version" in its metadata.
        table: metadata key that holds the table as JSON.
        kind: what the tensors are called in errors, such as "codes".
        hint: how such a file is made, for errors.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a damaged file or one of another kind; names it and what is wrong. Nothing is unpickled.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        raise FileNotFoundError(2, f"no such file of {kind}", path)
    check_regular(path)
    where = shown(path, 400)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != file_format or metadata.get("version") != version:
                raise ValueError(
                    f"{where} is not a file of {kind}: its metadata lack format={file_format}, version={version}"
                )
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{where} is not a file of {kind} ({shown(str(error), 200)}): {hint}") from error
    entries = parse_json(metadata.get(table, ""), f"{where}: the table of {kind} in its metadata")
    if not isinstance(entries, dict) or set(entries) != set(tensors) or not entries:
        raise ValueError(f"{where}: the table in its metadata and the tensors do not name the same {kind}")
    return tensors, entries


def says_nothing(path: str) -> bool:
    """Return whether this is a sound safetensors file whose metadata name no format, or only the library's own."""
    try:
        with safe_open(path, "pt") as file:
            return (file.metadata() or {}).get("format") in (None, "pt", "np")
    except (SafetensorError, OSError):
        return False


def pick(entries: Mapping[str, T], name: str, where: str, kind: str = "direction") -> T:
    """Return the entry called `name`. ValueError otherwise, listing some entries of `where` and the closest match."""
    if name not in entries:
        problem = f"has no {kind} {short(name)}: it has" if name else f"holds several {kind}s, name one of"
        raise ValueError(f"{shown(where, 400)} {problem} {listed(entries)}{closest(name, entries)}")
    return entries[name]
