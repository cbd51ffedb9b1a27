"""The opcodes of `safe_pickle`: values, memo, containers, names, calls and state. Importing registers them."""

from __future__ import annotations

import codecs
import struct
import warnings
from typing import Any

from stylefusion_hf.core.untrusted.inert import Global, Record
from stylefusion_hf.core.untrusted.machine import Machine, Shell, call, opcode

MAX_PROTOCOL = 5
MAX_INTEGER = 256  # bytes; real integers fit into ten

# --- Numbers and constants ------------------------------------------------------------------------


def _integer(machine: Machine, line: bytes) -> int:
    if len(line) > 2 * MAX_INTEGER:
        raise machine.damaged(f"an integer of {len(line):,} digits")
    return int(line)


@opcode(b"\x80")
def proto(m: Machine) -> None:
    version = m.unsigned(1)
    if version > MAX_PROTOCOL:
        raise m.error(f"pickle protocol {version} is unknown (up to {MAX_PROTOCOL} is read): damaged, or not a pickle")


@opcode(b"\x95")
def frame(m: Machine) -> None:
    size, start = m.unsigned(8), m.position
    m.take(size)  # a frame is only a hint for streams, but one that ends beyond the file shows that it is truncated
    m.position = start


@opcode(b"N\x88\x89")
def constant(m: Machine) -> None:
    m.push({0x4E: None, 0x88: True, 0x89: False}[m.code])


@opcode(b"KMJ")
def small_integer(m: Machine) -> None:
    m.push(m.signed(4) if m.code == 0x4A else m.unsigned(1 if m.code == 0x4B else 2))


@opcode(b"\x8a\x8b")
def long_integer(m: Machine) -> None:
    n = m.unsigned(1) if m.code == 0x8A else m.signed(4)
    if n > MAX_INTEGER:
        raise m.damaged(f"an integer of {n:,} bytes")
    m.push(m.signed(n))


@opcode(b"IL")
def integer_line(m: Machine) -> None:
    line = m.line(64 * 1024)
    if m.code == 0x49 and line in (b"00", b"01"):
        m.push(line == b"01")
    else:
        m.push(_integer(m, line.rstrip(b"L") if m.code == 0x4C else line))


@opcode(b"FG")
def floating(m: Machine) -> None:
    m.push(float(m.line(256)) if m.code == 0x46 else struct.unpack(">d", m.take(8))[0])


# --- Strings --------------------------------------------------------------------------------------


@opcode(b"X\x8c\x8d")
def unicode_text(m: Machine) -> None:
    m.push(m.text(m.unsigned({0x58: 4, 0x8C: 1, 0x8D: 8}[m.code])))


@opcode(b"V")
def unicode_line(m: Machine) -> None:
    line = m.line(len(m.buffer))
    m.budget.charge(4 * len(line))
    m.push(line.decode("raw-unicode-escape"))


@opcode(b"BC\x8e\x96")
def byte_string(m: Machine) -> None:
    m.push(m.data(m.unsigned({0x42: 4, 0x43: 1}.get(m.code, 8))))


@opcode(b"TU")
def old_string(m: Machine) -> None:
    m.push(m.byte_text(m.signed(4) if m.code == 0x54 else m.unsigned(1)))


@opcode(b"S")
def old_string_line(m: Machine) -> None:
    line = m.line(len(m.buffer)).strip()
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise m.damaged("a string without quotes")
    with warnings.catch_warnings(action="ignore"):  # about unknown escapes
        m.push(codecs.escape_decode(line[1:-1])[0].decode("latin-1"))


# --- The stack and the memo -----------------------------------------------------------------------


@opcode(b"(")
def mark(m: Machine) -> None:
    m.below.append(m.stack)
    m.stack = []


@opcode(b"0")
def pop(m: Machine) -> None:
    if m.stack:
        m.pop()
    else:
        m.pop_mark()


@opcode(b"1")
def pop_mark(m: Machine) -> None:
    m.pop_mark()


@opcode(b"2")
def duplicate(m: Machine) -> None:
    m.push(m.top())


@opcode(b"ghj")
def get(m: Machine) -> None:
    key = int(m.line(32)) if m.code == 0x67 else m.unsigned(1 if m.code == 0x68 else 4)
    if key not in m.memo:
        raise m.damaged(f"it refers to object {key}, which it did not store")
    m.push(m.memo[key])


@opcode(b"pqr")
def put(m: Machine) -> None:
    m.budget.charge(100)
    m.store(int(m.line(32)) if m.code == 0x70 else m.unsigned(1 if m.code == 0x71 else 4))


@opcode(b"\x94")
def memoize(m: Machine) -> None:
    m.budget.charge(100)
    m.store(len(m.memo))


# --- Containers -----------------------------------------------------------------------------------


@opcode(b")]}")
def empty_container(m: Machine) -> None:
    m.push({0x29: tuple, 0x5D: list, 0x7D: dict}[m.code]())


@opcode(b"\x85\x86\x87")
def short_tuple(m: Machine) -> None:
    items = [m.pop() for _ in range(m.code - 0x84)]
    m.push(tuple(reversed(items)))


@opcode(b"tl")
def marked_sequence(m: Machine) -> None:
    items = m.pop_mark()
    m.push(tuple(items) if m.code == 0x74 else items)


@opcode(b"d")
def marked_dict(m: Machine) -> None:
    flat = m.pop_mark()
    entries: dict[Any, Any] = {}
    m.set_items(entries, flat)
    m.push(entries)


@opcode(b"\x8f")
def empty_set(m: Machine) -> None:
    m.budget.charge(216)
    m.push(set())


@opcode(b"\x91")
def marked_frozenset(m: Machine) -> None:
    items = m.pop_mark()
    m.budget.charge(216 + 64 * len(items))
    m.push(frozenset(m.check_key(item) for item in items))


@opcode(b"\x90")
def add_items(m: Machine) -> None:
    items, target = m.pop_mark(), m.top()
    if isinstance(target, Record):
        target.elements.extend(items)
    elif type(target) is set:
        m.budget.charge(64 * len(items))
        target.update(m.check_key(item) for item in items)
    else:
        raise m.damaged("members for an object that is not a set")


@opcode(b"ae")
def append(m: Machine) -> None:
    values = [m.pop()] if m.code == 0x61 else m.pop_mark()
    m.extend(m.top(), values)


@opcode(b"su")
def set_items(m: Machine) -> None:
    flat = [m.pop(), m.pop()][::-1] if m.code == 0x73 else m.pop_mark()
    m.set_items(m.top(), flat)


# --- Names, calls and state -----------------------------------------------------------------------


@opcode(b"c")
def global_line(m: Machine) -> None:
    module, qualified = m.line(1024).decode(), m.line(1024).decode()
    m.push(m.name(module, qualified))


@opcode(b"\x93")
def global_stack(m: Machine) -> None:
    qualified, module = m.pop(), m.pop()
    m.push(m.name(module, qualified))


@opcode(b"R\x81\x92")
def reduce(m: Machine) -> None:
    kwargs = m.pop() if m.code == 0x92 else None
    args, function = m.pop(), m.pop()
    m.budget.charge(250)
    m.push(call(m, function, args, kwargs))


@opcode(b"i")
def instance_line(m: Machine) -> None:
    module, qualified = m.line(1024).decode(), m.line(1024).decode()
    m.budget.charge(250)
    m.push(Record(m.name(module, qualified).path, tuple(m.pop_mark())))


@opcode(b"o")
def instance(m: Machine) -> None:
    items = m.pop_mark()
    if not items:
        raise m.damaged("an instance without a class")
    m.budget.charge(250)
    m.push(Record(items[0].path if isinstance(items[0], Global) else "<no class>", tuple(items[1:])))


@opcode(b"b")
def build(m: Machine) -> None:
    state, target = m.pop(), m.top()
    if isinstance(target, Shell):
        m.replace_top(target, target.finish(m, state))
    elif isinstance(target, Record):
        target.state = state
    # Other targets are tensors, arrays and containers made by our constructors; a file must not set their attributes.


@opcode(b"PQ")
def persistent_id(m: Machine) -> None:
    key = m.line(1024).decode() if m.code == 0x50 else m.pop()
    m.budget.charge(250)
    m.push(Record("<persistent object>", (key,)) if m.persistent is None else m.persistent(key))


@opcode(b"\x82\x83\x84")
def extension(m: Machine) -> None:
    raise m.error("it uses Python's extension registry, which no checkpoint does")


@opcode(b"\x97\x98")
def out_of_band(m: Machine) -> None:
    raise m.error("its data is outside the file (pickle protocol 5 with buffers): save it again without them")
