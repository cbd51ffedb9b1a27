"""The opcode loop of `safe_pickle`, which says why it exists.

The loop reads one pickle from a buffer. Time is linear in the file's size, as there are no jumps; every opcode is
charged to a `Budget` before it makes anything, so memory is bounded too.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

from stylefusion_hf.conversion.inert import Budget, ConversionError, Global, LongText, Record

SMALL = 4096  # bytes up to which a byte string is copied out of the file
LONG_TEXT = 256 * 1024  # bytes up to which a text is decoded at once
OBJECT = 64  # bytes charged for every opcode; those that leave more behind charge more
MAX_ARGUMENTS = 16  # of a call that one of our constructors answers; a tuple of a million is copied at each call
MAX_GLOBAL = 500  # characters of a module's name, and of a class's
STOP = 0x2E

_Op = Callable[["Machine"], None]
OPS: dict[int, _Op] = {}

# Name -> the function of ours that stands in for it (see rebuild.py). It gets the machine and the pickled arguments,
# and may return NotImplemented, which makes a record as for any other name.
CONSTRUCTORS: dict[str, Callable] = {}


def opcode(codes: bytes) -> Callable[[_Op], _Op]:
    """Register a function for the opcodes that it serves."""

    def register(function: _Op) -> _Op:
        OPS.update(dict.fromkeys(codes, function))
        return function

    return register


class Machine:
    """Reads ONE pickle from a buffer.

    Args:
        buffer: where the pickle lies; views of it go into the result, so it must stay unchanged.
        budget: bounds on the cost, shared with every pickle of the file.
        start: where the pickle begins.
        persistent: what makes an object of a persistent id (torch's storages); None: a `Record`.
        nested: how many files this one lies inside of.
    """

    def __init__(
        self,
        buffer: memoryview,
        budget: Budget,
        start: int = 0,
        persistent: Callable[[Any], Any] | None = None,
        nested: int = 0,
    ):
        self.buffer, self.budget, self.position = buffer, budget, start
        self.persistent, self.nested = persistent, nested
        self.stack: list = []
        self.below: list[list] = []  # the stacks under each mark
        self.memo: dict[int, Any] = {}
        self.code = 0

    def load(self) -> Any:
        """The object. `position` is then the byte after the pickle. ConversionError for anything malformed."""
        charge, buffer, end = self.budget.charge, self.buffer, len(self.buffer)
        try:
            while True:
                if self.position >= end:
                    raise self.error("truncated: the file ends in the middle of a pickle")
                self.code = buffer[self.position]
                self.position += 1
                if self.code == STOP:
                    return self.pop()
                charge(OBJECT)
                function = OPS.get(self.code)
                if function is None:
                    raise self.error(f"damaged or no pickle: unknown opcode {self.code} at byte {self.position - 1:,}")
                function(self)
        except ConversionError:
            raise
        except (
            ValueError,
            TypeError,
            LookupError,
            ArithmeticError,
            AttributeError,
            RuntimeError,
            struct.error,
        ) as error:
            raise self.damaged(" ".join(str(error).split())[:200]) from None
        except MemoryError:
            raise self.error("needs more memory than there is") from None

    # --- what the opcodes use ---

    def error(self, problem: str) -> ConversionError:
        return self.budget.error(problem)

    def damaged(self, problem: str) -> ConversionError:
        return self.budget.error(f"damaged near byte {self.position:,} ({problem})")

    def take(self, n: int) -> memoryview:
        """The next n bytes, as a view; n is checked against the file before anything is allocated."""
        start = self.position
        end = start + n
        if n < 0 or end > len(self.buffer):
            left = len(self.buffer) - start
            raise self.error(f"truncated or damaged: {n:,} bytes are declared at byte {start:,}, {left:,} are left")
        self.position = end
        return self.buffer[start:end]

    def line(self, limit: int) -> bytes:
        """The text up to the next line feed (protocols 0 and 1)."""
        start, chunk = self.position, 128
        while self.position < min(len(self.buffer), start + limit):
            window = bytes(self.buffer[self.position : self.position + min(chunk, start + limit - self.position)])
            found = window.find(b"\n")
            if found >= 0:
                end = self.position + found
                self.budget.charge(end - start)
                self.position = end + 1
                return bytes(self.buffer[start:end])
            self.position += len(window)
            chunk = min(2 * chunk, 64 * 1024)  # a short line must not cost a large window
        raise self.error(f"truncated or damaged: no end of the line that begins at byte {start:,}")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise self.damaged("nothing on the stack")
        return self.stack.pop()

    def top(self) -> Any:
        if not self.stack:
            raise self.damaged("nothing on the stack")
        return self.stack[-1]

    def pop_mark(self) -> list:
        """What was pushed since the last mark."""
        if not self.below:
            raise self.damaged("no mark on the stack")
        items, self.stack = self.stack, self.below.pop()
        return items

    def unsigned(self, n: int) -> int:
        return int.from_bytes(self.take(n), "little")

    def signed(self, n: int) -> int:
        self.budget.charge(2 * n)
        return int.from_bytes(self.take(n), "little", signed=True)

    def data(self, n: int) -> bytes | memoryview:
        """n bytes: copied if few, so that they can be a key; else a view."""
        view = self.take(n)
        self.budget.charge(min(n, SMALL) + 200)
        return bytes(view) if n <= SMALL else view

    def text(self, n: int) -> str | LongText:
        view = self.take(n)
        if n > LONG_TEXT:
            return LongText(view)
        self.budget.charge(2 * n)
        text = bytes(view).decode("utf-8", "surrogatepass")
        self.budget.charge(max(0, sys.getsizeof(text) - 2 * n))  # up to four bytes a character
        return text

    def byte_text(self, n: int) -> str | memoryview:
        """A string of Python 2: text or bytes, which only the reader can know. Latin-1 loses nothing."""
        view = self.take(n)
        if n > LONG_TEXT:
            return view
        self.budget.charge(n)
        return bytes(view).decode("latin-1")

    def check_key(self, key: Any) -> Any:
        """Whether `key` may be a dictionary's key or a set's member: its hash must cost nothing to compute."""
        if type(key) is str:
            return key
        self.budget.charge_key()
        pending, seen = [key], 0
        while pending:  # tuples can share parts, so that their hash takes exponential time
            item = pending.pop()
            seen += 1
            if seen > 64 or type(item) not in HASHABLE:
                raise self.damaged("a dictionary key is no plain value")
            if type(item) in (tuple, frozenset):
                seen += len(item)
                pending.extend(item if seen <= 64 else ())
        return key

    def set_items(self, target: Any, flat: list) -> None:
        if isinstance(target, Record):
            target = target.items
        if type(target) is not dict or len(flat) % 2:
            raise self.damaged("entries for what is no dictionary")
        for i in range(0, len(flat), 2):
            self.budget.charge(100)
            target[self.check_key(flat[i])] = flat[i + 1]

    def extend(self, target: Any, values: list) -> None:
        if isinstance(target, Record):
            target = target.elements
        if type(target) is not list:
            raise self.damaged("elements for what is no list")
        target.extend(values)

    def name(self, module: Any, qualified: Any) -> Global:
        if type(module) is not str or type(qualified) is not str:
            raise self.damaged("the name of a class is no text")
        # The texts may be memoised ones, to which a file refers any number of times; each name is a new text.
        self.budget.charge(OBJECT + 4 * (min(len(module), MAX_GLOBAL) + min(len(qualified), MAX_GLOBAL)))
        return Global(f"{module[:MAX_GLOBAL]}.{qualified[:MAX_GLOBAL]}")

    def replace_top(self, shell: Any, value: Any) -> None:
        """Put a finished object in the place of its shell, which the pickle may have stored for later."""
        self.stack[-1] = value
        for key in shell.memo_keys:
            self.memo[key] = value
        shell.memo_keys.clear()  # else building the same shell again and again would take quadratic time

    def store(self, key: int) -> None:
        value = self.top()
        if isinstance(value, Shell):
            value.memo_keys.append(key)
        self.memo[key] = value


class Shell:
    """An object between its creation and its state: `finish(machine, state)` gives the object to put in its place."""

    def __init__(self) -> None:
        self.memo_keys: list[int] = []

    def finish(self, machine: Machine, state: Any) -> Any:
        raise NotImplementedError


HASHABLE = {str, int, float, bool, bytes, type(None), tuple, frozenset, Global, Record}


def call(machine: Machine, function: Any, args: Any, kwargs: Any = None) -> Any:
    """What REDUCE and its relatives come to: one of our constructors, or a record. Nothing else is ever called."""
    if type(args) is not tuple:
        raise machine.damaged("arguments that are no tuple")
    if isinstance(function, Global):
        constructor = CONSTRUCTORS.get(function.path)
        if constructor is not None and not kwargs and len(args) <= MAX_ARGUMENTS:
            result = constructor(machine, *args)
            if result is not NotImplemented:
                return result
        return Record(function.path, args, kwargs)
    if isinstance(function, Record):
        machine.budget.charge(500)  # for a name of its own
        return Record(f"<result of {function!r}>", args, kwargs)
    return Record("<call of no name>", args, kwargs)
