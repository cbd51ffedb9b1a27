"""The names of containers and arrays that `safe_pickle` knows, and the functions of ours that stand in for them.

Each checks what it is given against the data that are really there and charges the budget. It never calls what the
file names.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from stylefusion_hf.conversion.inert import LazyArray, LongText, Record
from stylefusion_hf.conversion.machine import CONSTRUCTORS, Machine, Shell

MAX_DIMS = 16


def stands_in_for(*names: str) -> Callable[[Callable], Callable]:
    def register(function: Callable) -> Callable:
        CONSTRUCTORS.update(dict.fromkeys(names, function))
        return function

    return register


def python_names(*names: str) -> list[str]:
    """The names as Python 3 and as Python 2 spell the module."""
    return [f"{module}.{name}" for module in ("builtins", "__builtin__") for name in names]


def numpy_names(module: str, name: str) -> list[str]:
    """numpy.core was renamed to numpy._core in numpy 2."""
    return [f"numpy.{core}.{module}.{name}" for core in ("core", "_core")]


def checked_shape(machine: Machine, shape: Any, what: str) -> tuple[int, ...]:
    """A tuple of plausible dimensions, or an error; nothing is allocated."""
    if type(shape) is int:
        shape = (shape,)
    if type(shape) not in (tuple, list) or len(shape) > MAX_DIMS:
        raise machine.damaged(f"{what} without a shape")
    # Also where one is 0: libraries multiply the others.
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
        raise machine.damaged("a dictionary of no pairs")
    machine.budget.charge(100 * len(items))
    for pair in items:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            raise machine.damaged("a dictionary of no pairs")
        result[machine.check_key(pair[0])] = pair[1]
    return result


@stands_in_for("collections.defaultdict")
def default_dict(machine: Machine, factory: Any = None, items: Any = ()) -> dict:
    return ordered_dict(machine, items)


def _elements(machine: Machine, items: Any) -> Any:
    if type(items) not in (list, tuple, set, frozenset):
        raise machine.damaged("a container of no elements")
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
        raise machine.error("asks for an empty buffer by size, as no checkpoint does; it looks like a pickle bomb")
    return as_bytes(machine, data)


@stands_in_for("_codecs.encode")
def encode(machine: Machine, text: Any, encoding: Any = "latin1") -> Any:
    """How protocol 2 writes bytes. A long text stays what it is until an array is made of it."""
    if encoding not in ("latin1", "latin-1") or not isinstance(text, (str, LongText)):
        return NotImplemented
    return text if isinstance(text, LongText) else as_bytes(machine, text)


def as_bytes(machine: Machine, data: Any) -> bytes | memoryview:
    """Bytes of whatever holds them: bytes, a view of the file, or text of Python 2."""
    if isinstance(data, str):
        machine.budget.charge(len(data))
        return data.encode("latin-1")
    if isinstance(data, LongText):
        machine.budget.charge(5 * len(data.view))  # decoded, at up to four bytes a character, then encoded
        return data.latin1()
    if isinstance(data, (bytes, memoryview)):
        return data
    raise machine.damaged("data that are no bytes")


@stands_in_for("copyreg._reconstructor", "copy_reg._reconstructor")
def reconstructor(machine: Machine, cls: Any, base: Any = None, state: Any = None) -> Record:
    return Record(getattr(cls, "path", "<no class>"))


# --- numpy ----------------------------------------------------------------------------------------

NUMBERS = {"b1", "i1", "u1", *(f"{kind}{size}" for kind in "iu" for size in (2, 4, 8)), "f2", "f4", "f8", "c8", "c16"}


class DtypeShell(Shell):
    """A numpy dtype before its state, which gives the byte order."""

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
    """An array before its state: (version, shape, dtype, column-major, data)."""

    def finish(self, machine: Machine, state: Any) -> Any:
        if type(state) is not tuple or len(state) not in (4, 5):
            raise machine.damaged("an array without its shape and data")
        shape, kind, columns, data = state[-4:]
        if not isinstance(kind, (np.dtype, DtypeShell)):  # strings, objects, structures: no numbers of a network
            return Record("numpy.ndarray", (), None, state)
        return make_array(machine, data, kind, shape, "F" if columns else "C")


@stands_in_for(*numpy_names("multiarray", "_reconstruct"))
def reconstruct_array(machine: Machine, *_: Any) -> ArrayShell:
    return ArrayShell()


@stands_in_for(*numpy_names("numeric", "_frombuffer"))
def array_from_buffer(machine: Machine, data: Any, kind: Any, shape: Any, order: Any = "C") -> Any:
    return make_array(machine, data, kind, shape, order)


def make_array(machine: Machine, data: Any, kind: Any, shape: Any, order: Any) -> np.ndarray | LazyArray:
    """An array over the bytes where they are; nothing is copied."""
    kind = np.dtype(kind.code) if isinstance(kind, DtypeShell) else kind
    shape = checked_shape(machine, shape, "an array")
    if not isinstance(kind, np.dtype) or order not in ("C", "F"):
        raise machine.damaged("an array of no numbers")
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
    if isinstance(view, bytes):  # torch wants memory that it may write to
        machine.budget.charge_held(len(view))
        view = memoryview(bytearray(view))
    return np.frombuffer(view, kind).reshape(shape, order=order)


@stands_in_for(*numpy_names("multiarray", "scalar"))
def number(machine: Machine, kind: Any, data: Any = b"") -> Any:
    if not isinstance(kind, (np.dtype, DtypeShell)):
        return NotImplemented
    array = make_array(machine, data, kind, (), "C")
    return np.asarray(array).item()
