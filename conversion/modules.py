"""Pickled networks, taken apart: the tensors and the plain attributes of every module, by the module's path.

NVIDIA's snapshots hold modules as `torch_utils.persistence._reconstruct_persistent_obj(meta)`, and `meta["state"]` is
the module's `__dict__`; a module pickled whole by torch has the same dictionary as its state.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stylefusion_hf.conversion.inert import ConversionError, LazyArray, Record

MAX_MODULES = 10_000
MAX_DEPTH = 32


@dataclass
class Taken:
    """A network: tensors named as in its state dict, attributes and class of each module by path ("" the network)."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)

    def values(self, key: str, skip: str = "\0") -> list[Any]:
        """The distinct values of an attribute among all modules, but those whose path ends with `skip`."""
        found: list[Any] = []
        for path, attributes in self.attributes.items():
            if key in attributes and not path.endswith(skip) and attributes[key] not in found:
                found.append(attributes[key])
        return found


def module_state(value: Any) -> tuple[str, dict] | None:
    """(class name, `__dict__`) if `value` describes a module; else None."""
    if not isinstance(value, Record):
        return None
    name, state = value.name.rsplit(".", 1)[-1], value.state
    if name == "_reconstruct_persistent_obj" and value.args:
        meta = value.args[0]
        meta = meta.entries() if isinstance(meta, Record) else meta
        if not isinstance(meta, dict):
            return None
        given, state = meta.get("class_name"), meta.get("state")
        name = given[:80] if type(given) is str else ""  # never str() of what a file holds: it may hold itself
    state = state.entries() if isinstance(state, Record) else state
    return (name, state) if isinstance(state, dict) and isinstance(state.get("_modules"), dict) else None


def take_apart(value: Any, name: str) -> Taken:
    """All modules of a pickled network. ConversionError if it is none, or no tree of sane size."""
    taken = Taken()
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        path, module = pending.pop()
        described = module_state(module)
        if described is None:
            raise ConversionError(f"{name}: {path or 'the network'} is no module; a damaged file, or of another kind")
        taken.classes[path], state = described
        if len(taken.classes) > MAX_MODULES or path.count(".") > MAX_DEPTH:
            raise ConversionError(f"{name}: has more modules than any StyleGAN2; it is damaged")
        prefix = f"{path}." if path else ""
        for group in ("_parameters", "_buffers"):
            entries = state.get(group)
            for key, tensor in entries.items() if isinstance(entries, dict) else ():
                if isinstance(tensor, torch.Tensor):
                    taken.tensors[f"{prefix}{key}"] = tensor
        taken.attributes[path] = {k: v for k, v in state.items() if is_plain(v)}
        for key, child in reversed(state["_modules"].items()):
            if child is not None:
                pending.append((f"{prefix}{str(key)[:80]}", child))
    return taken


def is_plain(value: Any) -> bool:
    """A setting: text, a number, or a short list of numbers; safe to compare and to print."""
    if type(value) in (list, tuple):
        return len(value) <= 16 and all(type(x) in (int, float) for x in value)
    return value is None or type(value) in (str, int, float, bool)


# --- Naming what is in a file ---------------------------------------------------------------------


def tensor_names(value: Any, prefix: str = "") -> list[str]:
    """The paths of all tensors and arrays inside of whatever a file held, each container visited once."""
    names: list[str] = []
    seen: set[int] = set()
    pending: list[tuple[str, Any]] = [(prefix, value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, (torch.Tensor, np.ndarray, LazyArray)):
            names.append(path)
            continue
        if not isinstance(item, (dict, list, tuple, Record)) or id(item) in seen:
            continue
        seen.add(id(item))
        join = f"{path}/" if path else ""
        if len(path) > 500:
            children: list[tuple[str, Any]] = []
        elif (described := module_state(item)) is not None:
            state = described[1]
            groups = (state.get(group) for group in ("_parameters", "_buffers", "_modules"))
            children = [(f"{join}{k}", v) for group in groups for k, v in _entries(group)]
        elif isinstance(item, Record):
            children = [(f"{join}{k}", v) for k, v in item.entries().items()]
            children += [(f"{join}{i}", v) for i, v in enumerate((*item.args, *item.elements))]
        elif isinstance(item, dict):
            children = [(f"{join}{str(k)[:80]}", v) for k, v in item.items()]
        else:
            children = [(f"{join}{i}", v) for i, v in enumerate(item)]
        pending += reversed(children)
    return names


def _entries(value: Any) -> list[tuple[str, Any]]:
    return [(str(k)[:80], v) for k, v in value.items()] if isinstance(value, dict) else []
