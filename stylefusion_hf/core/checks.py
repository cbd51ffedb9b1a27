"""Argument checks that fail with one clear line. `short`, `shown` and `listed` quote untrusted text in messages."""

from __future__ import annotations

import difflib
import math
import os
import reprlib
import sys
from collections.abc import Iterable
from itertools import islice
from typing import Any

SHOWN = 80  # characters of untrusted text quoted in an error
LISTED = 400  # characters of a list of names in an error


class _Short(reprlib.Repr):
    """A `repr` bounded in length and depth, for untrusted values."""

    def __init__(self) -> None:
        super().__init__()
        self.maxother = SHOWN

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**30:  # Python refuses to print integers of thousands of digits
            return repr(x)
        return f"an integer of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:SHOWN])

    repr_bytearray = repr_bytes

    def repr_instance(self, x: Any, level: int) -> str:
        if hasattr(x, "dtype") and not _is_numpy(x):  # an array's type says more than its first numbers
            return f"{type(x).__name__} of {x.dtype}"
        return " ".join(super().repr_instance(x, level).split())


def short(value: Any, text: int = 0) -> str:
    """Return any value as one printable line of at most 80 characters; never raises.

    Args:
        value: anything; shown as its repr, so strings are quoted.
        text: if nonzero, show `str(value)` without quotes instead, up to this many characters.
    """
    return shown(str(value), text) if text else shown(_SHORT.repr(value), SHOWN)


def shown(text: str, most: int = SHOWN) -> str:
    """Return a text shortened to `most` characters, with unprintable characters escaped.

    Control characters (including ESC and CSI), line breaks, bidirectional marks, invisible characters and lone
    surrogates are escaped, so that terminals and logs show exactly one line.
    """
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: most + 1])
    return escaped if len(text) <= most and len(escaped) <= most else escaped[: max(0, most - 3)] + "..."


def listed(names: Iterable[Any], most: int = LISTED) -> str:
    """Join names with commas: as many as fit into `most` characters, then how many more there are."""
    names, used = list(names), 0
    parts: list[str] = []
    for i, name in enumerate(names):
        part = shown(str(name))
        used += len(part) + 2
        if parts and used > most:
            return f"{', '.join(parts)} and {len(names) - i} more"
        parts.append(part)
    return ", ".join(parts)


def describe_error(error: BaseException, most: int = 1000) -> str:
    """Return an error as one line of printable text; for system errors, the file and what is wrong with it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"  # without "[Errno 2]"
    return shown(" ".join(text[: 4 * most].split()), most) or type(error).__name__


def closest(name: Any, names: Iterable[Any]) -> str:
    """Return "; did you mean 'hair'?" for a name that resembles one of `names`, else "". The work is bounded."""
    if not isinstance(name, str) or len(name) > 40:  # too long for a typo
        return ""
    known = [known for known in islice(names, 200) if isinstance(known, str) and len(known) <= 40]
    matches = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {short(matches[0])}?" if matches else ""


_SHORT = _Short()


def _is_numpy(value: Any, kinds: str = "biufc") -> bool:
    """Return whether a value is a numpy scalar of these kinds, without importing numpy (`--help` must stay fast)."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in kinds


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """Return `value` as a float; ValueError that begins with `name` unless it is finite and within the bounds."""
    value = float(value) if _is_numpy(value, "iuf") else value  # a float32 would overflow in the comparisons
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not least <= value <= most or not abs(value) <= 1e300:  # NaN fails the comparisons
        bounds = "" if math.isinf(least) else f" from {least:g} to {most:g}"
        raise ValueError(f"{name} is a number{bounds}, got {short(value)}")
    return float(value)


def check_count(name: str, value: Any, most: int, least: int = 1) -> int:
    """Return `value` as an int; ValueError that begins with `name` unless it is an integer within the bounds."""
    integer = (isinstance(value, int) or _is_numpy(value, "iu")) and not isinstance(value, bool)
    if not integer or not least <= value <= most:
        raise ValueError(f"{name} is an integer from {least} to {most}, got {short(value)}")
    return int(value)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value`; ValueError that lists the choices if it is not one of them."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"unknown {name} {short(value)}: choose from {', '.join(choices)}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Return `value` as a bool; ValueError that begins with `name` otherwise (the text "False" would be truthy)."""
    if not (isinstance(value, bool) or _is_numpy(value, "b")):
        raise ValueError(f"{name} is True or False, got {short(value)}")
    return bool(value)


def check_path(value: Any) -> str:
    """Return a folder's path or a Hub id as text; ValueError for anything that is neither."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text or len(text) > 4096:
        raise ValueError(f"a model is a folder's path or a Hub id (user/name), got {short(value)}")
    return text
