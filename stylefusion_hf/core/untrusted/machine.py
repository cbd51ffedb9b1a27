"""The opcode loop behind `safe_pickle`, whose docstring explains why it exists.

The loop reads one pickle from a buffer. Its time is linear in the file's size, as pickles have no jumps, and its
memory is bounded, as every opcode is charged to a `Budget` before it allocates anything.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable
from typing import Any

from stylefusion_hf.core.untrusted.inert import Budget, ConversionError, Global, LongText, Record

SMALL = 4096  # bytes; longer byte strings stay views of the file
LONG_TEXT = 256 * 1024  # bytes; longer text is decoded lazily
OBJECT = 64  # bytes charged per opcode; opcodes that allocate more charge more
MAX_ARGUMENTS = 16  # of a call to one of our constructors: the arguments are copied at each call
MAX_GLOBAL = 500  # characters of a module's name, and of a class's
STOP = 0x2E

_Op = Callable[["Machine"], None]
OPS: dict[int, _Op] = {}

# Pickled name -> our replacement function (see rebuild.py). It is called with the machine and the pickled arguments;
# if it returns NotImplemented, the call becomes a record, as for unknown names.
CONSTRUCTORS: dict[str, Callable] = {}


def opcode(codes: bytes) -> Callable[[_Op], _Op]:
    """Register a function for these opcodes."""

    def register(function: _Op) -> _Op:
        OPS.update(dict.fromkeys(codes, function))
        return function

    return register


class Machine:
    """An interpreter for ONE pickle in a buffer.

    Args:
        buffer: contains the pickle; the result has views of it, so it must not change.
        budget: shared by all pickles of the file.
        start: offset of the pickle.
        persistent: makes an object from a persistent id (torch's storages); by default a `Record`.
        nested: nesting depth of the file.
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
        """Return the object and set `position` to the byte after the pickle. ConversionError if it is malformed."""
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
                    raise self.error(f"damaged or not a pickle: unknown opcode {self.code} at {self.position - 1:,}")
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

    # --- Operations used by the opcodes ---

    def error(self, problem: str) -> ConversionError:
        return self.budget.error(problem)

    def damaged(self, problem: str) -> ConversionError:
        return self.budget.error(f"damaged near byte {self.position:,} ({problem})")

    def take(self, n: int) -> memoryview:
        """Return a view of the next n bytes; n is checked against the file before anything is allocated."""
        start = self.position
        end = start + n
        if n < 0 or end > len(self.buffer):
            left = len(self.buffer) - start
            raise self.error(f"truncated or damaged: {n:,} bytes are declared at byte {start:,}, {left:,} are left")
        self.position = end
        return self.buffer[start:end]

    def line(self, limit: int) -> bytes:
        """Return the text up to the next line feed (protocols 0 and 1)."""
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
            chunk = min(2 * chunk, 64 * 1024)  # start small: most lines are short
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
        """Pop everything pushed since the last mark."""
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
        """Return n bytes: copied if they are few, so that they can be a dictionary key; else a view."""
        view = self.take(n)
        self.budget.charge(min(n, SMALL) + 200)
        return bytes(view) if n <= SMALL else view

    def text(self, n: int) -> str | LongText:
        view = self.take(n)
        if n > LONG_TEXT:
            return LongText(view)
        self.budget.charge(2 * n)
        text = bytes(view).decode("utf-8", "surrogatepass")
        self.budget.charge(max(0, sys.getsizeof(text) - 2 * n))  # up to four bytes per character
        return text

    def byte_text(self, n: int) -> str | memoryview:
        """Return a Python 2 string, which may be text or bytes; decoding as Latin-1 is lossless."""
        view = self.take(n)
        if n > LONG_TEXT:
            return view
        self.budget.charge(n)
        return bytes(view).decode("latin-1")

    def check_key(self, key: Any) -> Any:
        """Return `key` if it may be a dictionary key or set member: its hash must be cheap to compute."""
        if type(key) is str:
            return key
        self.budget.charge_key()
        pending, seen = [key], 0
        while pending:  # tuples can share parts, which makes hashing them exponential
            item = pending.pop()
            seen += 1
            if seen > 64 or type(item) not in HASHABLE:
                raise self.damaged("a dictionary key is not a plain value")
            if type(item) in (tuple, frozenset):
                seen += len(item)
                pending.extend(item if seen <= 64 else ())
        return key

    def set_items(self, target: Any, flat: list) -> None:
        if isinstance(target, Record):
            target = target.items
        if type(target) is not dict or len(flat) % 2:
            raise self.damaged("entries for an object that is not a dictionary")
        for i in range(0, len(flat), 2):
            self.budget.charge(100)
            target[self.check_key(flat[i])] = flat[i + 1]

    def extend(self, target: Any, values: list) -> None:
        if isinstance(target, Record):
            target = target.elements
        if type(target) is not list:
            raise self.damaged("elements for an object that is not a list")
        target.extend(values)

    def name(self, module: Any, qualified: Any) -> Global:
        if type(module) is not str or type(qualified) is not str:
            raise self.damaged("the name of a class is not text")
        # Each name is a new string, although the file may refer to two memoized strings any number of times.
        self.budget.charge(OBJECT + 4 * (min(len(module), MAX_GLOBAL) + min(len(qualified), MAX_GLOBAL)))
        return Global(f"{module[:MAX_GLOBAL]}.{qualified[:MAX_GLOBAL]}")

    def replace_top(self, shell: Any, value: Any) -> None:
        """Replace a shell by its finished object, on the stack and in the memo."""
        self.stack[-1] = value
        for key in shell.memo_keys:
            self.memo[key] = value
        shell.memo_keys.clear()  # otherwise, building the same shell repeatedly would take quadratic time

    def store(self, key: int) -> None:
        value = self.top()
        if isinstance(value, Shell):
            value.memo_keys.append(key)
        self.memo[key] = value


class Shell:
    """An object whose state is still missing; `finish(machine, state)` returns the object to replace it."""

    def __init__(self) -> None:
        self.memo_keys: list[int] = []

    def finish(self, machine: Machine, state: Any) -> Any:
        raise NotImplementedError


HASHABLE = {str, int, float, bool, bytes, type(None), tuple, frozenset, Global, Record}


def call(machine: Machine, function: Any, args: Any, kwargs: Any = None) -> Any:
    """Evaluate REDUCE and related opcodes: call one of our constructors, or make a record. Calls nothing else."""
    if type(args) is not tuple:
        raise machine.damaged("arguments that are not a tuple")
    if isinstance(function, Global):
        constructor = CONSTRUCTORS.get(function.path)
        if constructor is not None and not kwargs and len(args) <= MAX_ARGUMENTS:
            result = constructor(machine, *args)
            if result is not NotImplemented:
                return result
        return Record(function.path, args, kwargs)
    if isinstance(function, Record):
        machine.budget.charge(500)  # for the new name
        return Record(f"<result of {function!r}>", args, kwargs)
    return Record("<call of no name>", args, kwargs)
