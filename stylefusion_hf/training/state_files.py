"""Nested states of a training as files: the structure as JSON, the tensors in a safetensors file beside it.

Nothing here pickles or unpickles.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor

from stylefusion_hf.core.checks import short
from stylefusion_hf.core.files import write_json
from stylefusion_hf.core.tensor_files import write_tensors

# --- Writing ---------------------------------------------------------------------------------------------------------


def write_state(path: Path, state: Any) -> None:
    """Write nested dicts, lists and tuples of tensors, numbers, strings, booleans and None.

    Args:
        path: ends in .json and receives the structure; tensors go into a .safetensors file of the same name.

    Raises:
        TypeError: the state contains something else. OSError: it cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    structure = _pack(state, (), tensors)
    if tensors:
        write_weights(path.with_suffix(".safetensors"), tensors)
    write_json(path, structure, indent=None)


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file, which requires them to be contiguous and to share no memory."""
    found, taken = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        address = tensor.untyped_storage().data_ptr()
        found[name] = tensor.clone() if address in taken else tensor
        taken.add(address)
    write_tensors(path, found, {"format": "pt"})


def _pack(value: Any, place: tuple[str, ...], tensors: dict[str, Tensor]) -> Any:
    """Return the structure as JSON: plain values as they are, all else as an object whose only key names its type."""
    if isinstance(value, Tensor):
        name = "/".join(place) or "tensor"
        while name in tensors:
            name += "+"
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, Mapping):
        if wrong := [key for key in value if type(key) not in (str, int)]:
            raise TypeError(f"a checkpoint cannot store a dict with the key {short(wrong[0])}")
        return {"dict": [[key, _pack(item, (*place, str(key)), tensors)] for key, item in value.items()]}
    if isinstance(value, (list, tuple)):
        items = [_pack(item, (*place, str(i)), tensors) for i, item in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a checkpoint cannot store {'/'.join(place)}, of type {type(value).__name__}")


# --- Reading ---------------------------------------------------------------------------------------------------------


def read_state(path: Path, names: Collection[str]) -> Any:
    """Return what `write_state` wrote, with tensors on the CPU.

    Args:
        path: the JSON file.
        names: the files that may be opened, as listed in the manifest.

    Raises:
        ValueError: a file is not among these, or damaged.
    """
    weights, tensors = path.with_suffix(".safetensors"), {}
    if weights.name in names:
        tensors = read_weights(weights, names)
    return _unpack(read_listed_json(path, names), tensors)


def read_weights(path: Path, names: Collection[str]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. ValueError if it is not among `names`."""
    with safe_open(_check_listed(path, names), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def read_listed_json(path: Path, names: Collection[str]) -> Any:
    """Return the content of a JSON file. ValueError if it is not among `names`."""
    return json.loads(_check_listed(path, names).read_text(encoding="utf-8"))


def _check_listed(path: Path, names: Collection[str]) -> Path:
    if path.name not in names:
        raise ValueError(f"it has no {path.name}")
    return path


def _unpack(found: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(found, list):
        raise ValueError("its structure is damaged")
    if not isinstance(found, dict):
        return found
    ((kind, content),) = found.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpack(item, tensors) for key, item in content}
    if kind in ("list", "tuple"):
        return {"list": list, "tuple": tuple}[kind](_unpack(item, tensors) for item in content)
    raise ValueError(f"its structure is damaged: {short(kind)}")
