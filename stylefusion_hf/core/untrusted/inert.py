"""Inert objects for untrusted files: names, records and lazy data, which never execute anything.

Also `ConversionError`, the one error of reading and converting such files, and `Budget`, which bounds what reading
a file costs.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stylefusion_hf.core.checks import shown

MiB = 2**20
MAX_RATIO = 10  # compression ratio; weights shrink by a tenth, sparse ones to a quarter, zip bombs to a thousandth


class ConversionError(ValueError):
    """A file that cannot be read or converted: the message names the file, what is wrong with it and what to do.

    The message is reduced to one printable line, whatever the names in it.
    """

    def __init__(self, message: str):
        super().__init__(shown(" ".join(message[:8000].split()), 2000))


@dataclass(frozen=True)
class Global:
    """A name `module.name` in a pickle. It is never looked up."""

    path: str

    def __repr__(self) -> str:
        return f"<name {self.path[:80]}>"


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """A description of a pickled object that we do not rebuild.

    Attributes:
        name: its class, or the function that would have returned it.
        args, kwargs: the arguments of that call.
        state: the argument of `__setstate__`.
        items, elements: entries of a dict or list subclass.
    """

    name: str
    args: tuple = ()
    kwargs: Any = None
    state: Any = None
    items: dict = field(default_factory=dict)
    elements: list = field(default_factory=list)

    def __repr__(self) -> str:  # omits the state, which may be huge or contain itself
        return f"<record of {self.name[:80]}>"

    def entries(self) -> dict:
        """Return the state if it is a dict, updated with the entries of a dict subclass."""
        state = self.state if isinstance(self.state, dict) else {}
        return {**state, **self.items} if self.items else state

    def view(self) -> Mapping[Any, Any]:
        """Return `entries` without copying: many records of a file may share one large state."""
        state = self.state if isinstance(self.state, dict) else {}
        return ChainMap(self.items, state) if self.items else state


class Budget:
    """Limits on the cost of reading one file. Every opcode, string, nested pickle and tensor is charged in advance.

    One budget covers a file and all files nested in it; separate budgets would add up.

    Args:
        name: the file's name, for errors.
        size: the file's size in bytes.
        structure: bytes allowed for everything but tensor and array data (objects, names, small strings).
    """

    def __init__(self, name: str, size: int, structure: int = 128 * MiB):
        self.name, self.structure = name, structure
        # Bytes of data that are allocated rather than viewed: inflated, or copied to be writable.
        self.held, self.held_limit = 0, MAX_RATIO * size + MiB
        # Views of the file are free; we bound their sum because a consumer may copy each of them. In real files few
        # tensors share a storage.
        self.data, self.data_limit = 0, 4 * size + MiB
        # Real checkpoints have few non-text keys (optimizer states), and hashes of numbers can be made to collide.
        self.other_keys = 5_000
        # torch.save bytes nested in the file: id of the byte string -> (the string, to keep its id in use, result).
        self.nested: dict[int, tuple[Any, Any]] = {}

    def charge(self, nbytes: int) -> None:
        self.structure -= nbytes
        if self.structure < 0:
            raise self.error("asks for more memory than any checkpoint's structure needs; it looks like a pickle bomb")

    def charge_data(self, nbytes: int) -> None:
        self.data += nbytes
        if self.data > self.data_limit:
            raise self.error(f"its tensors claim over {self.data:,} bytes, more than four times what the file holds")

    def charge_held(self, nbytes: int) -> None:
        self.held += nbytes
        if self.held > self.held_limit:
            raise self.error(
                f"its parts inflate to over {self.held:,} bytes, more than {MAX_RATIO} times what the file holds: it"
                " is a zip bomb"
            )

    def charge_key(self) -> None:
        self.other_keys -= 1
        if self.other_keys < 0:
            raise self.error("has more dictionary keys that are not text than any checkpoint needs")

    def error(self, problem: str) -> ConversionError:
        return ConversionError(f"{self.name}: {problem}")


class LongText:
    """A long UTF-8 string that is decoded only on request.

    Protocol 2 stores array data as text; decoding it to `str` would hold the weights in memory twice.
    """

    def __init__(self, view: memoryview):
        self.view = view

    def __str__(self) -> str:
        return bytes(self.view).decode("utf-8", "surrogatepass")

    def latin1(self) -> bytes:
        """Encode as Latin-1, one byte per character. ValueError for other characters."""
        return str(self).encode("latin-1")


class LazyArray:
    """An array whose data is a `LongText`, decoded by `np.asarray`. Shape and dtype are checked before."""

    def __init__(self, text: LongText, dtype: np.dtype, shape: tuple[int, ...], order: str):
        self.text, self.dtype, self.shape, self.order = text, dtype, shape, order

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        data = self.text.latin1()
        if len(data) != int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize:
            raise ConversionError(f"an array of shape {self.shape} comes with {len(data):,} bytes of data")
        array = np.frombuffer(bytearray(data), self.dtype).reshape(self.shape, order=self.order)  # type: ignore[call-overload]
        return array if dtype is None else array.astype(dtype)
