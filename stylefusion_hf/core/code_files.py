"""Codes in files: safetensors, written by `stylefusion invert`, and those of other tools (`foreign_codes`).

Both are named alike: `--region hair=codes.safetensors:NAME`, `--base projected_w.npz`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from stylefusion_hf.core.checks import short, shown
from stylefusion_hf.core.code_arguments import split_file
from stylefusion_hf.core.codes import Code
from stylefusion_hf.core.regular_files import check_regular
from stylefusion_hf.core.tensor_files import pick, read_tensors, says_nothing, write_tensors

FORMAT, VERSION = "stylefusion-codes", "1"


def save_codes(path: str | os.PathLike[str], codes: Mapping[str, Code]) -> None:
    """Write named codes as float32. ValueError if there are none, or if a name is empty."""
    if not codes or not all(codes):
        raise ValueError("expected codes under names that are not empty")
    spaces = {name: code.space for name, code in codes.items()}
    metadata = {"format": FORMAT, "version": VERSION, "spaces": json.dumps(spaces)}
    tensors = {name: code.tensor.detach().float().cpu().contiguous().clone() for name, code in codes.items()}
    write_tensors(path, tensors, metadata)


def load_codes(path: str | os.PathLike[str]) -> dict[str, Code]:
    """Read codes by name, in the order in which they were written.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a code file, or a damaged one; names the file and what is wrong. Nothing is unpickled.
    """
    path, hint = os.fspath(path), "`stylefusion invert` makes one of pictures"
    tensors, spaces = read_tensors(path, FORMAT, VERSION, "spaces", "codes", hint)
    codes = {}
    for name, space in spaces.items():
        try:
            codes[name] = Code(tensors[name], space)
        except ValueError as error:
            raise ValueError(f"{shown(path, 400)}: {short(name)}: {error}") from error
    return codes


def pick_code(argument: str | os.PathLike[str]) -> Code:
    """Read the code of `FILE`, `FILE:NAME`, or of another tool's file also `FILE:NUMBER` or `FILE:NAME:NUMBER`.

    Safetensors are another tool's where their metadata do not name a format of this package. The name is optional
    if the file has only one code.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of codes or a damaged one, an unknown name, or several codes of which none is named.
    """
    where, *selectors = split_file(os.fspath(argument))
    if not os.path.exists(where):
        raise FileNotFoundError(2, "no such file of codes", where)
    check_regular(where)
    if not where.lower().endswith(".safetensors") or says_nothing(where):
        from stylefusion_hf.core.foreign_codes import load_foreign_code

        return load_foreign_code(where, tuple(selectors))
    codes, name = load_codes(where), ":".join(selectors)
    code = pick(codes, name or (next(iter(codes)) if len(codes) == 1 else ""), where, "code")
    if len(code) != 1:
        raise ValueError(f"{shown(where, 400)}: {short(name)} holds {len(code)} codes, expected one")
    return code
