"""What a hostile file can become at worst: text, numbers, and records of what it asked for. Nothing here acts.

Also the one error of this package's conversion, and the allowance that bounds what a file may cost.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stylefusion_hf.core.checks import shown

MiB = 2**20
MAX_RATIO = 10  # weights shrink by a tenth, sparse ones to a quarter; a zip bomb shrinks to a thousandth


class ConversionError(ValueError):
    """A source that cannot be converted: the message names the file, what is wrong with it and what to do.

    The message becomes one printable line, whatever names of the file are in it.
    """

    def __init__(self, message: str):
        super().__init__(shown(" ".join(message[:8000].split()), 2000))


@dataclass(frozen=True)
class Global:
    """A name that a pickle refers to, `module.name`. It is never looked up."""

    path: str

    def __repr__(self) -> str:
        return f"<name {self.path[:80]}>"


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """An object that a pickle describes and that is not rebuilt: its class or function by name, and its state.

    Attributes:
        name: the class, or the function whose result it would have been.
        args, kwargs: what it would have been called with.
        state: what `__setstate__` would have been given.
        items, elements: entries of a dict or list subclass.
    """

    name: str
    args: tuple = ()
    kwargs: Any = None
    state: Any = None
    items: dict = field(default_factory=dict)
    elements: list = field(default_factory=list)

    def __repr__(self) -> str:  # short on purpose: the state may be huge, or contain itself
        return f"<record of {self.name[:80]}>"

    def entries(self) -> dict:
        """The state where it is a dict, with the entries of a dict subclass on top."""
        state = self.state if isinstance(self.state, dict) else {}
        return {**state, **self.items} if self.items else state

    def view(self) -> Mapping[Any, Any]:
        """`entries` without a copy: a file may have many records that share one large state."""
        state = self.state if isinstance(self.state, dict) else {}
        return ChainMap(self.items, state) if self.items else state


class Budget:
    """What reading one file may cost: every opcode, string, nested pickle and tensor, charged BEFORE it is made.

    One budget serves a whole file, with all files inside of it: what each of them may cost would add up.

    Args:
        name: the file's name, for errors.
        size: the file's size in bytes.
        structure: bytes allowed for everything that is no tensor or array data (objects, names, small strings).
    """

    def __init__(self, name: str, size: int, structure: int = 128 * MiB):
        self.name, self.structure = name, structure
        # Bytes of data that are made rather than viewed: inflated, or copied so that torch may write to them.
        self.held, self.held_limit = 0, MAX_RATIO * size + MiB
        # Views of the file are free; their sum matters only because a consumer may copy each. Honest files share a
        # storage between a few tensors at most.
        self.data, self.data_limit = 0, 4 * size + MiB
        # Real checkpoints hold few keys that are no text (optimiser states); hashes of numbers can be made to collide.
        self.other_keys = 5_000
        # torch.save bytes that lie in the file as a string, by that string's identity (kept alive beside the result).
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
            raise self.error("has more dictionary keys that are no text than any checkpoint needs")

    def error(self, problem: str) -> ConversionError:
        return ConversionError(f"{self.name}: {problem}")


class LongText:
    """A long string, left in the file (UTF-8) until somebody asks for it.

    Pickles of protocol 2 write array data as text: as `str` the weights would be held twice.
    """

    def __init__(self, view: memoryview):
        self.view = view

    def __str__(self) -> str:
        return bytes(self.view).decode("utf-8", "surrogatepass")

    def latin1(self) -> bytes:
        """One byte a character. ValueError for characters beyond the 256 of Latin-1."""
        return str(self).encode("latin-1")


class LazyArray:
    """An array whose data are a `LongText`; `np.asarray` decodes it. Shape and dtype were checked when it was made."""

    def __init__(self, text: LongText, dtype: np.dtype, shape: tuple[int, ...], order: str):
        self.text, self.dtype, self.shape, self.order = text, dtype, shape, order

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        data = self.text.latin1()
        if len(data) != int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize:
            raise ConversionError(f"an array of shape {self.shape} comes with {len(data):,} bytes of data")
        array = np.frombuffer(bytearray(data), self.dtype).reshape(self.shape, order=self.order)  # type: ignore[call-overload]
        return array if dtype is None else array.astype(dtype)
