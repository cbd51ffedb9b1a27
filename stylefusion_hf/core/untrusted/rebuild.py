"""Replacements for the containers and array functions that pickles call, registered in `machine.CONSTRUCTORS`.

Each checks its arguments against the data in the file and charges the budget. None calls what the file names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from stylefusion_hf.core.untrusted.inert import LazyArray, LongText, Record
from stylefusion_hf.core.untrusted.machine import CONSTRUCTORS, Machine, Shell

MAX_DIMS = 16


def stands_in_for(*names: str) -> Callable[[Callable], Callable]:
    """Register a function as the replacement for these pickled names."""

    def register(function: Callable) -> Callable:
        CONSTRUCTORS.update(dict.fromkeys(names, function))
        return function

    return register


def python_names(*names: str) -> list[str]:
    """Return the names with the module of Python 3 and of Python 2."""
    return [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in names]


def numpy_names(module: str, name: str) -> list[str]:
    """Return the names before and after numpy 2, which renamed numpy.core to numpy._core."""
    return [f"numpy.{core}.{module}.{name}" for core in ("core", "_core")]


def check_shape(machine: Machine, shape: Any, what: str) -> tuple[int, ...]:
    """Return a shape as a tuple of plausible dimensions, or raise. Allocates nothing."""
    if type(shape) is int:
        shape = (shape,)
    if type(shape) not in (tuple, list) or len(shape) > MAX_DIMS:
        raise machine.damaged(f"{what} without a shape")
    # Check the product without zeros too: libraries multiply the other dimensions.
    if any(type(n) is not int or n < 0 for n in shape) or math.prod(max(n, 1) for n in shape) > 2**48:
        raise machine.damaged(f"{what} with impossible dimensions")
    return tuple(shape)


# --- Plain containers -----------------------------------------------------------------------------


@stands_in_for("collections.OrderedDict", *python_names("dict"))
def ordered_dict(machine: Machine, items: Any = ()) -> dict:
    result: dict = {}
    if type(items) is dict:
        items = list(items.items())
    if type(items) not in (list, tuple):
        raise machine.damaged("a dictionary without pairs")
    machine.budget.charge(100 * len(items))
    for pair in items:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise machine.damaged("a dictionary without pairs")
        result[machine.check_key(pair[0])] = pair[1]
    return result


@stands_in_for("collections.defaultdict")
def default_dict(machine: Machine, factory: Any = None, items: Any = ()) -> dict:
    return ordered_dict(machine, items)


def _elements(machine: Machine, items: Any) -> Any:
    if type(items) not in (list, tuple, set, frozenset):
        raise machine.damaged("a container without elements")
    machine.budget.charge(216 + 64 * len(items))
    return items


@stands_in_for(*python_names("set"))
def plain_set(machine: Machine, items: Any = ()) -> set:
    return {machine.check_key(item) for item in _elements(machine, items)}


@stands_in_for(*python_names("frozenset"))
def plain_frozenset(machine: Machine, items: Any = ()) -> frozenset:
    return frozenset(machine.check_key(item) for item in _elements(machine, items))


@stands_in_for(*python_names("list"))
def plain_list(machine: Machine, items: Any = ()) -> list:
    return list(_elements(machine, items))


@stands_in_for("torch.Size", *python_names("tuple"))
def plain_tuple(machine: Machine, items: Any = ()) -> tuple:
    return tuple(_elements(machine, items))


@stands_in_for(*python_names("bytes", "bytearray"))
def plain_bytes(machine: Machine, data: Any = b"", encoding: Any = None) -> Any:
    if type(data) is int:
        raise machine.error("requests an empty buffer by size, as no checkpoint does; it looks like a pickle bomb")
    return as_bytes(machine, data)


@stands_in_for("_codecs.encode")
def encode(machine: Machine, text: Any, encoding: Any = "latin1") -> Any:
    """Decode bytes as protocol 2 stores them. Long text stays encoded until an array is made of it."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, (str, LongText)):
        return NotImplemented
    return text if isinstance(text, LongText) else as_bytes(machine, text)


def as_bytes(machine: Machine, data: Any) -> bytes | memoryview:
    """Return bytes from bytes, a view of the file, or Python 2 text."""
    if isinstance(data, str):
        machine.budget.charge(len(data))
        return data.encode("latin-1")
    if isinstance(data, LongText):
        machine.budget.charge(5 * len(data.view))  # decoded at up to four bytes per character, then encoded
        return data.latin1()
    if isinstance(data, (bytes, memoryview)):
        return data
    raise machine.damaged("data that is not bytes")


@stands_in_for("copyreg._reconstructor", "copy_reg._reconstructor")
def reconstructor(machine: Machine, cls: Any, base: Any = None, state: Any = None) -> Record:
    return Record(getattr(cls, "path", "<no class>"))


# --- numpy ----------------------------------------------------------------------------------------

NUMBERS = {"b1", "i1", "u1", *(f"{kind}{size}" for kind in "iu" for size in (2, 4, 8)), "f2", "f4", "f8", "c8", "c16"}


class DtypeShell(Shell):
    """A numpy dtype whose state, which has the byte order, is still missing."""

    def __init__(self, code: str):
        super().__init__()
        self.code = code

    def finish(self, machine: Machine, state: Any) -> np.dtype:
        order = state[1] if type(state) is tuple and len(state) > 1 else None
        if order not in ("<", ">", "=", "|"):
            raise machine.damaged("a number format without a byte order")
        return np.dtype(self.code).newbyteorder(order)


@stands_in_for("numpy.dtype")
def dtype(machine: Machine, code: Any, *flags: Any) -> Any:
    known = type(code) is str and len(code) < 8 and code.lstrip("<>=|") in NUMBERS
    return DtypeShell(code) if known else NotImplemented


class ArrayShell(Shell):
    """An array whose state (version, shape, dtype, column-major, data) is still missing."""

    def finish(self, machine: Machine, state: Any) -> Any:
        if type(state) is not tuple or len(state) not in (4, 5):
            raise machine.damaged("an array without its shape and data")
        shape, kind, columns, data = state[-4:]
        if not isinstance(kind, (np.dtype, DtypeShell)):  # strings, objects, structures: not weights
            return Record("numpy.ndarray", (), None, state)
        return make_array(machine, data, kind, shape, "F" if columns else "C")


@stands_in_for(*numpy_names("multiarray", "_reconstruct"))
def reconstruct_array(machine: Machine, *_: Any) -> ArrayShell:
    return ArrayShell()


@stands_in_for(*numpy_names("numeric", "_frombuffer"))
def array_from_buffer(machine: Machine, data: Any, kind: Any, shape: Any, order: Any = "C") -> Any:
    return make_array(machine, data, kind, shape, order)


def make_array(machine: Machine, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray | LazyArray:
    """Build an array that views its bytes in place; copies only short data, which must become writable."""
    kind = np.dtype(kind.code) if isinstance(kind, DtypeShell) else kind
    shape = check_shape(machine, shape, "an array")
    if not isinstance(kind, np.dtype) or order not in ("C", "F"):
        raise machine.damaged("an array that does not hold numbers")
    wanted = math.prod(shape) * kind.itemsize
    machine.budget.charge_data(wanted)
    if isinstance(data, LongText):
        if not len(data.view) // 2 <= wanted <= len(data.view):
            raise machine.damaged(f"an array of shape {shape} with {len(data.view):,} bytes of text")
        return LazyArray(data, kind, shape, order)
    view = as_bytes(machine, data)
    if len(view) != wanted:
        raise machine.damaged(f"an array of shape {shape} and {wanted:,} bytes has {len(view):,} bytes of data")
    machine.budget.charge(300)
    if not wanted:
        return np.empty(shape, kind)
    if isinstance(view, bytes):  # torch requires writable memory
        machine.budget.charge_held(len(view))
        view = memoryview(bytearray(view))
    return np.frombuffer(view, kind).reshape(shape, order=order)


@stands_in_for(*numpy_names("multiarray", "scalar"))
def number(machine: Machine, kind: Any, data: Any = b"") -> Any:
    if not isinstance(kind, (np.dtype, DtypeShell)):
        return NotImplemented
    array = make_array(machine, data, kind, (), "C")
    return np.asarray(array).item()
