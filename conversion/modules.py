"""Pickled networks, taken apart: the tensors and the plain attributes of every module, by the module's path.

NVIDIA's snapshots hold modules as `torch_utils.persistence._reconstruct_persistent_obj(meta)`, and `meta["state"]` is
the module's `__dict__`; a module pickled whole by torch has the same dictionary as its state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stylefusion_hf.conversion.inert import ConversionError, LazyArray, MiB, Record

MAX_MODULES = 10_000
MAX_DEPTH = 32
MAX_ENTRIES = 500_000  # attributes and tensors of all modules: many modules may share one dictionary of them
MAX_PATHS = 64 * MiB  # characters of the names of all tensors: one tensor may be listed a million times


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


def module_state(value: Any) -> tuple[str, Mapping[Any, Any]] | None:
    """(class name, `__dict__`) if `value` describes a module; else None."""
    if not isinstance(value, Record):
        return None
    name, state = value.name.rsplit(".", 1)[-1], value.state
    if name == "_reconstruct_persistent_obj" and value.args:
        meta = value.args[0]
        meta = meta.view() if isinstance(meta, Record) else meta
        if not isinstance(meta, Mapping):
            return None
        given, state = meta.get("class_name"), meta.get("state")
        name = given[:80] if type(given) is str else ""  # never str() of what a file holds: it may hold itself
    state = state.view() if isinstance(state, Record) else state
    return (name, state) if isinstance(state, Mapping) and isinstance(state.get("_modules"), dict) else None


def take_apart(value: Any, name: str) -> Taken:
    """All modules of a pickled network. ConversionError if it is none, or no tree of sane size."""
    taken = Taken()
    pending: list[tuple[str, Any]] = [("", value)]
    entries_left = MAX_ENTRIES
    while pending:
        path, module = pending.pop()
        described = module_state(module)
        if described is None:
            raise ConversionError(f"{name}: {path[:200] or 'the network'} is no module; damaged, or of another kind")
        taken.classes[path], state = described
        groups = [state.get(group) for group in ("_parameters", "_buffers")]
        entries_left -= len(state) + sum(len(group) for group in groups if isinstance(group, dict))
        if (
            len(taken.classes) + len(pending) + len(state["_modules"]) > MAX_MODULES
            or path.count(".") > MAX_DEPTH
            or entries_left < 0
        ):
            raise ConversionError(f"{name}: has more modules than any StyleGAN2; it is damaged")
        prefix = f"{path}." if path else ""
        for entries in groups:
            for key, tensor in entries.items() if isinstance(entries, dict) else ():
                if isinstance(tensor, torch.Tensor):
                    taken.tensors[f"{prefix}{str(key)[:80]}"] = tensor
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


LEAVES = (torch.Tensor, np.ndarray, LazyArray)
CONTAINERS = (dict, list, tuple, Record)

# --- Naming what is in a file ---------------------------------------------------------------------


def tensor_names(value: Any, prefix: str = "") -> list[str]:
    """The paths of all tensors and arrays inside of whatever a file held, each container visited once.

    ConversionError for more names than any checkpoint has.
    """
    names: list[str] = []
    seen: set[int] = set()
    pending: list[tuple[str, Any]] = [(prefix, value)]
    left = MAX_PATHS
    while pending:
        path, item = pending.pop()
        if isinstance(item, LEAVES):
            names.append(path)
            continue
        if not isinstance(item, CONTAINERS) or id(item) in seen:
            continue
        seen.add(id(item))
        if len(path) > 500:
            continue
        join, children = f"{path}/" if path else "", []
        for key, child in _children(item):
            if isinstance(child, LEAVES) or (isinstance(child, CONTAINERS) and id(child) not in seen):
                children.append((path if key is None else f"{join}{str(key)[:80]}", child))
                left -= len(path) + 100
                if left < 0:
                    raise ConversionError("the checkpoint refers to more tensors than any has; it is damaged")
        pending += reversed(children)
    return names


def _children(item: Any) -> Iterator[tuple[Any, Any]]:
    """What lies in a container, each with its key or number; None for parts that bear the container's own name.

    The dictionaries and tuples of a record are such parts: records may share them, and each is visited once.
    """
    if (described := module_state(item)) is not None:
        yield from ((None, described[1].get(group)) for group in ("_parameters", "_buffers", "_modules"))
    elif isinstance(item, Record):
        yield from ((None, part) for part in (item.state, item.items, item.args, item.elements))
    else:
        yield from item.items() if isinstance(item, dict) else enumerate(item)
