"""Pickled networks as flat tables: tensors and plain attributes of every module, by the module's path.

NVIDIA's snapshots store modules as `torch_utils.persistence._reconstruct_persistent_obj(meta)`, where `meta["state"]`
is the module's `__dict__`; a module pickled by torch has the same dictionary as its state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stylefusion_hf.core.untrusted.inert import ConversionError, LazyArray, MiB, Record

# Children of torch.compile, DataParallel, FSDP and activation checkpointing that hold the wrapped module.
WRAPPERS = frozenset({"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
MAX_MODULES = 10_000
MAX_DEPTH = 32
MAX_ENTRIES = 500_000  # attributes and tensors of all modules: many modules may share one dictionary
MAX_PATHS = 64 * MiB  # characters in the names of all tensors: one tensor may be listed a million times


class BrokenModule(ConversionError):
    """A pickled module that cannot be read."""


@dataclass
class ModuleTable:
    """A network's tensors by state-dict name, and by path ("" for the root) each module's attributes, class, and
    keyword arguments where NVIDIA's persistence kept them."""

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)
    arguments: dict[str, dict[str, Any]] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)

    def values(self, key: str, skip: str = "\0") -> list[Any]:
        """Return the distinct values of an attribute, over all modules except those whose path ends with `skip`."""
        found: list[Any] = []
        for path, attributes in self.attributes.items():
            if key in attributes and not path.endswith(skip) and attributes[key] not in found:
                found.append(attributes[key])
        return found


PERSISTENT = "_reconstruct_persistent_obj"


def is_persistent(value: Record) -> bool:
    """Return whether a module was pickled by NVIDIA's torch_utils.persistence."""
    return value.name.rsplit(".", 1)[-1] == PERSISTENT


def module_state(value: Any) -> tuple[str, Mapping[Any, Any]] | None:
    """Return (class name, `__dict__`) if `value` describes a module, else None."""
    if not isinstance(value, Record):
        return None
    name, state = value.name.rsplit(".", 1)[-1], value.state
    if name == "OptimizedModule" and value.args and isinstance(value.args[0], Record):  # of torch.compile
        return module_state(value.args[0]) if value.args[0].name != value.name else None
    if name == PERSISTENT and value.args:
        meta = value.args[0]
        meta = meta.view() if isinstance(meta, Record) else meta
        if not isinstance(meta, Mapping):
            return None
        given, state = meta.get("class_name"), meta.get("state")
        name = given[:80] if type(given) is str else ""  # no str(): the object may contain itself
    state = state.view() if isinstance(state, Record) else state
    return (name, state) if isinstance(state, Mapping) and isinstance(state.get("_modules"), dict) else None


def read_modules(value: Any, name: str) -> ModuleTable:
    """Collect all modules of a pickled network. ConversionError if it is not a network, or unreasonably large."""
    table = ModuleTable()
    pending: list[tuple[str, Any]] = [("", value)]
    entries_left = MAX_ENTRIES
    while pending:
        path, module = pending.pop()
        described = module_state(module)
        if described is None:
            raise BrokenModule(f"{name}: {path[:200] or 'the network'} is not a module; damaged, or of another kind")
        table.classes[path], state = described
        groups = [state.get(group) for group in ("_parameters", "_buffers")]
        entries_left -= len(state) + sum(len(group) for group in groups if isinstance(group, dict))
        if (
            len(table.classes) + len(pending) + len(state["_modules"]) > MAX_MODULES
            or path.count(".") > MAX_DEPTH
            or entries_left < 0
        ):
            raise BrokenModule(f"{name}: has more modules than any StyleGAN2; it is damaged")
        prefix = f"{path}." if path else ""
        for entries in groups:
            for key, tensor in entries.items() if isinstance(entries, dict) else ():
                if isinstance(tensor, torch.Tensor):
                    table.tensors[f"{prefix}{str(key)[:80]}"] = tensor
        table.attributes[path] = {k: v for k, v in state.items() if is_plain(v)}
        table.arguments[path] = _flat_arguments(state.get("_init_kwargs"))
        for key, child in reversed(state["_modules"].items()):
            if child is not None:
                pending.append((path if key in WRAPPERS else f"{prefix}{str(key)[:80]}", child))
    return table


def without_wrappers(tensors: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Drop the parts of names that wrappers of modules add, anywhere in a name: `module._orig_mod.style.1.weight`."""
    wrapped = [key for key in tensors if type(key) is str and not WRAPPERS.isdisjoint(key.split(".")[:-1])]
    if not wrapped:
        return tensors
    plain = {key: ".".join(part for part in key.split(".") if part not in WRAPPERS) for key in wrapped}
    renamed = {plain.get(key, key): value for key, value in tensors.items()}
    return renamed if len(renamed) == len(tensors) else tensors


def _flat_arguments(value: Any) -> dict[str, Any]:
    """Return keyword arguments, those nested in `synthesis_kwargs` and the like under their own names."""
    found: dict[str, Any] = {}
    pending = [value]
    for arguments in pending:  # a file may nest one dictionary in itself
        arguments = arguments.view() if isinstance(arguments, Record) else arguments
        for key, inner in arguments.items() if isinstance(arguments, Mapping) and len(arguments) <= 100 else ():
            if isinstance(inner, (Mapping, Record)):
                pending += [inner] if len(pending) < 16 else []
            else:
                found[str(key)[:80]] = inner
    return found


def is_plain(value: Any) -> bool:
    """Return whether a value is text, a number, or a short list of numbers: safe to compare and to print."""
    if type(value) in (list, tuple):
        return len(value) <= 16 and all(type(x) in (int, float) for x in value)
    return value is None or type(value) in (str, int, float, bool)


LEAVES = (torch.Tensor, np.ndarray, LazyArray)
CONTAINERS = (dict, list, tuple, Record)

# --- Tensor names ---------------------------------------------------------------------------------


def tensor_names(value: Any, prefix: str = "") -> list[str]:
    """Return the paths of all tensors and arrays in a loaded object, visiting each container once.

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
    """Yield a container's items with their keys or indices.

    The key is None for the dictionaries and tuples of a record: they are named like the record itself, and records may
    share them.
    """
    if (described := module_state(item)) is not None:
        yield from ((None, described[1].get(group)) for group in ("_parameters", "_buffers", "_modules"))
    elif isinstance(item, Record):
        yield from ((None, part) for part in (item.state, item.items, item.args, item.elements))
    else:
        yield from item.items() if isinstance(item, dict) else enumerate(item)
