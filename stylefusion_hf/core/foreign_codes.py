"""Codes in files of other tools: NVIDIA's projected_w.npz, .npy, latents.pt of e4e and PTI, rosinality's projector.

Such files do not name their space. A key or a file's name says z; else the shape decides, leading dimensions of size
one aside: (w_dim,) is a code in w, (rows, w_dim) one in w+, (N, 1, w_dim) are N codes in w, (N, rows, w_dim) N in w+.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stylefusion_hf.core.checks import listed, short, shown
from stylefusion_hf.core.codes import MAX_CODES, Code
from stylefusion_hf.core.tensor_files import pick
from stylefusion_hf.core.untrusted.inert import LazyArray, Record
from stylefusion_hf.core.untrusted.safe_pickle import load

# Names that tools give to codes, as keys and as names of files: w, w_plus, projected_w, latents, face_latent_code.
CODE_NAME = re.compile(
    r"((projected_|d?latent_)?(z|w|ws|wp|w\+|w_?plus)|(.*_)?(w_?pivot|pivot|d?latents?|(d?latent_)?codes?))"
    r"(_?\d+)?"
)
PICTURE_NAME = re.compile(r"\.(png|jpe?g|webp|bmp|tiff?)$")  # e4e and PTI name codes by their pictures
Z_NAME = re.compile(r"(projected_|d?latent_)?z(_?\d+)?")
DIRECTION_FILE = re.compile(r"boundar(y|ies)|direction")  # in the name of a file
# Words of directions' names: what such files are called, and attributes that nobody calls a code by. Names of regions
# are none of them: hair.npy may be the code of someone with that hair.
TELLING = re.compile(
    r"(?<![a-z])(boundar(y|ies)|directions?|attributes?|sliders?|delta|axis|interfacegan|ganspace|styleclip|sefa"
    r"|age|gender|pose|yaw|pitch|roll|smil(e|es|ing)|(eye)?glasses|young|expression|emotion|zoom)(?![a-z])"
)
DIRECTION_NAMES = {"boundary", "direction", "directions", "lat_comp", "comp", "eigvec"}
DIRECTIONS_HINT = "holds directions, not codes: `stylefusion convert` makes a file for --edit of them"

Array = np.ndarray | LazyArray | torch.Tensor


def load_foreign_code(path: str, selectors: tuple[str, ...] = ()) -> Code:
    """Read one code of a file.

    Args:
        path: a file that `untrusted.safe_pickle` reads.
        selectors: the name of an array in the file, its number among the codes of an array, or both in this order.

    Raises:
        ValueError: not a file of codes, or one of several codes of which the selectors choose none; names the file.
    """
    return choose_code(load(path), path, selectors)


def choose_code(content: Any, path: str, selectors: tuple[str, ...] = ()) -> Code:
    """Return one code of a loaded file, as `load_foreign_code` does; `path` is its name."""
    where, stem = shown(path, 400), os.path.splitext(os.path.basename(path))[0].lower()
    arrays = find_codes(content)
    if not arrays:
        raise ValueError(f"{where} {_problem(content)}")
    if DIRECTION_FILE.search(stem) and not any(CODE_NAME.fullmatch(key.lower()) for key in arrays):
        raise ValueError(f"{where} {DIRECTIONS_HINT}")
    left = _join_name(list(selectors), arrays)
    named = len(left) == 2 or (len(left) == 1 and (left[0] in arrays or not left[0].isdecimal() or len(arrays) > 1))
    if named and "" in arrays:
        raise ValueError(f"{where}: its codes have no names but numbers, FILE:0; got {short(left[0])}")
    name = left.pop(0) if named else next(iter(arrays)) if len(arrays) == 1 else ""
    array = pick(arrays, name, path, "code")
    if left and not (left[0].isdecimal() and len(left[0]) < 10):
        raise ValueError(f"{where}: after {short(name)} comes the number of a code, got {short(left[0])}")
    known = "z" if Z_NAME.fullmatch(name.lower()) or (not name and Z_NAME.fullmatch(stem)) else None
    try:
        return _code(array, known, int(left[0]) if left else None)
    except ValueError as error:
        raise ValueError(f"{where}{f': {short(name)}' if name else ''}: {error}") from error


def _join_name(selectors: list[str], arrays: Mapping[str, Array]) -> list[str]:
    """Return at most a name and a number, of a text that was split at every colon: those of a name belong to it."""
    whole = ":".join(selectors)
    if len(selectors) < 2 or whole in arrays:
        return [whole] if selectors else []
    *name, number = selectors
    return [":".join(name), number]


def find_codes(content: Any) -> dict[str, Array]:
    """Return the arrays of a loaded file that may be codes, by name ("" for a bare array).

    Where some names are usual for codes, the other arrays (noise, images, losses) are left out.
    """
    if _is_array(content):
        return {"": content}
    if isinstance(content, (list, tuple)):
        stacked = _stack(content)
        return {} if stacked is None else {"": stacked}
    if not isinstance(content, Mapping) or len(content) > MAX_CODES:
        return {}
    keys = {str(key): value for key, value in (_by_picture(content) or content).items()}
    if DIRECTION_NAMES & set(keys) or holds_weights(content):
        return {}
    found: dict[str, Array] = {}
    for key, value in keys.items():
        if isinstance(value, Mapping):
            value = _projected(value)
        elif isinstance(value, (list, tuple)):
            value = _stack(value)
        if value is not None and _is_array(value):
            found[key] = value
    usual = {key: value for key, value in found.items() if CODE_NAME.fullmatch(key.lower())}
    return usual or found


def looks_like_codes(content: Any, stem: str) -> bool:
    """Return whether a file holds codes rather than directions: by its keys, its name, or arrays per picture."""
    arrays = find_codes(content)
    if DIRECTION_FILE.search(stem.lower()):
        return False
    if any(CODE_NAME.fullmatch((name or stem).lower()) for name in arrays) or (arrays and _by_picture(content)):
        return True
    if any(PICTURE_NAME.search(name.lower()) for name in arrays):
        return True
    if TELLING.search(stem.lower()):  # encoder4editing's pose.pt is (1, 18, 512), as a code would be
        return False
    if arrays and isinstance(content, Mapping) and any(_projected(v) is not None for v in content.values()):
        return True
    return any(_is_batch_of_w_plus(tuple(array.shape)) for array in arrays.values())


def _is_batch_of_w_plus(shape: tuple[int, ...]) -> bool:
    return len(shape) > 2 and shape[-2] > 1 and sum(n != 1 for n in shape[:-2]) <= 1


def _by_picture(content: Any) -> Mapping | None:
    """Return the codes within {"latents": {picture: code}}; None for any other content."""
    if not isinstance(content, Mapping) or len(content) != 1:
        return None
    key, value = next(iter(content.items()))
    nested = isinstance(value, Mapping) and 0 < len(value) <= MAX_CODES and _projected(value) is None
    return value if nested and CODE_NAME.fullmatch(str(key).lower()) else None


def _projected(value: Any) -> Array | None:
    """Return the code of a picture as rosinality's projector saves it: {"latent": ..., "noise": [...], "img": ...}."""
    entries = value.items() if isinstance(value, Mapping) else ()
    return next((v for k, v in entries if CODE_NAME.fullmatch(str(k).lower()) and _is_array(v)), None)


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, LazyArray, torch.Tensor))


def _stack(items: Any) -> np.ndarray | None:
    """Stack a list of equal arrays, one per picture; None for anything else."""
    if not 0 < len(items) <= MAX_CODES or not all(_is_array(item) for item in items):
        return None
    if len({tuple(item.shape) for item in items}) > 1:
        return None
    return np.stack([_numbers(item) for item in items])


def _numbers(array: Array) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()
    return np.asarray(array)


def _code(array: Array, space: str | None, index: int | None) -> Code:
    """Return one code of an array, whose `index` is None where it holds only one."""
    if isinstance(array, torch.Tensor) and not array.is_floating_point():
        raise ValueError(f"a code holds floating-point numbers, this array {array.dtype}")
    if not isinstance(array, torch.Tensor) and array.dtype.kind != "f":
        raise ValueError(f"a code holds floating-point numbers, this array {array.dtype}")
    shape = tuple(array.shape)
    batch = [n for n in shape[:-2] if n != 1]
    if not shape or not math.prod(shape) or len(batch) > 1 or (space == "z" and batch and shape[-2] != 1):
        raise ValueError(
            f"an array of the shape {shape} is not a code, which is (w_dim,) or (rows, w_dim), nor several, (N, rows,"
            " w_dim)"
        )
    codes = _numbers(array).reshape(*(batch or [1]), *shape[-2:])  # (N, rows, dim), or (1, dim) of a bare vector
    if codes.ndim == 3 and (codes.shape[1] == 1 or space == "z" or (len(shape) == 2 and index is not None)):
        codes = codes.reshape(-1, shape[-1])  # one row per code
    if index is None and len(codes) > 1:
        raise ValueError(f"holds {len(codes)} codes: name one by its number, FILE:0 to FILE:{len(codes) - 1}")
    if index is not None and index >= len(codes):
        last = f"holds {len(codes)} codes, 0 to {len(codes) - 1}" if len(codes) > 1 else "holds one code, number 0"
        raise ValueError(f"{last}: there is no {index}")
    row = codes[index or 0]
    with np.errstate(over="ignore"):  # what overflows becomes inf, which `Code` refuses
        return Code(torch.from_numpy(np.array(row, dtype=np.float32)), space or ("w+" if row.ndim == 2 else "w"))


def _problem(content: Any) -> str:
    """Say what a file holds that has no codes."""
    if isinstance(content, Mapping):
        keys = {str(key) for key in content}
        if DIRECTION_NAMES & keys:
            return DIRECTIONS_HINT
        if holds_weights(content):
            return "holds a network's weights, not codes: `stylefusion convert` makes a model of them"
        return f"holds no codes, which are arrays of numbers: its keys are {listed(keys) or 'none'}"
    if isinstance(content, Record):
        return f"holds {short(content, 80)}, not codes: save them as an array of numbers"
    return f"holds a {type(content).__name__}, not codes: save them as an array of numbers"


def holds_weights(content: Mapping[Any, Any]) -> bool:
    """Return whether a dictionary, or one in it, has names of a network's layers."""
    inner = [value for value in content.values() if isinstance(value, Mapping)]
    return any(str(key).endswith((".weight", ".bias")) for mapping in (content, *inner) for key in mapping)
