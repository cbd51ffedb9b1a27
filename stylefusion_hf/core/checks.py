"""Checks of single arguments, each one clear line; `short`, `shown` and `listed` quote untrusted text in it."""

from __future__ import annotations

import difflib
import math
import os
import reprlib
import sys
from collections.abc import Iterable
from itertools import islice
from typing import Any

SHOWN = 80  # characters of anything from outside that an error quotes
LISTED = 400  # characters of a list of names in an error


class _Short(reprlib.Repr):
    """reprlib's, bounded in length and depth, for untrusted values."""

    def __init__(self) -> None:
        super().__init__()
        self.maxother = SHOWN

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**30:  # Python refuses to write integers of thousands of digits
            return repr(x)
        return f"an integer of {x.bit_length()} bits"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:SHOWN])

    repr_bytearray = repr_bytes

    def repr_instance(self, x: Any, level: int) -> str:
        if hasattr(x, "dtype") and not _is_numpy(x):  # numbers say less than what they are the array of
            return f"{type(x).__name__} of {x.dtype}"
        return " ".join(super().repr_instance(x, level).split())


def short(value: Any, text: int = 0) -> str:
    """`value` as printable text of one line, at most 80 characters, whatever it is; never raises.

    Args:
        value: anything; shown as Python writes it, so that text has quotes around it.
        text: show a text as it is instead, up to this many characters.
    """
    return shown(str(value), text) if text else shown(_SHORT.repr(value), SHOWN)


def shown(text: str, most: int = SHOWN) -> str:
    """A text as it is, cut to `most` characters, with escapes in place of whatever would not print as itself.

    Control characters (ESC and CSI among them), line breaks, marks that change the direction of writing, invisible
    characters and lone surrogates are escaped, so that a terminal and a log show one line of what is there.
    """
    escaped = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text[: most + 1])
    return escaped if len(text) <= most and len(escaped) <= most else escaped[: max(0, most - 3)] + "..."


def listed(names: Iterable[Any], most: int = LISTED) -> str:
    """Names for an error, separated by commas: as many as fit into `most` characters, then how many more there are."""
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
    """An error in one line of printable text; of the system's errors the file and what is wrong with it."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"  # without "[Errno 2]"
    return shown(" ".join(text[: 4 * most].split()), most) or type(error).__name__


def closest(name: Any, names: Iterable[Any]) -> str:
    """ "; did you mean 'hair'?" for a name that is like one of `names`, else ""; bounded work for any names."""
    if not isinstance(name, str) or len(name) > 40:  # not a typing error
        return ""
    known = [known for known in islice(names, 200) if isinstance(known, str) and len(known) <= 40]
    matches = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {short(matches[0])}?" if matches else ""


_SHORT = _Short()


def _is_numpy(value: Any, kinds: str = "biufc") -> bool:
    """Whether it is one of numpy's numbers (not an array) of these kinds; `--help` must not import numpy for it."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic) and value.dtype.kind in kinds


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """`value` as a float; ValueError that begins with `name` unless it is a finite number within these bounds."""
    number = (isinstance(value, (int, float)) or _is_numpy(value, "iuf")) and not isinstance(value, bool)
    if not number or not least <= value <= most or not abs(value) <= 1e300:  # NaN fails the comparisons
        bounds = "" if math.isinf(least) else f" from {least:g} to {most:g}"
        raise ValueError(f"{name} is a number{bounds}, got {short(value)}")
    return float(value)


def check_count(name: str, value: Any, most: int, least: int = 1) -> int:
    """`value` as an int; ValueError that begins with `name` unless it is an integer within these bounds."""
    integer = (isinstance(value, int) or _is_numpy(value, "iu")) and not isinstance(value, bool)
    if not integer or not least <= value <= most:
        raise ValueError(f"{name} is an integer from {least} to {most}, got {short(value)}")
    return int(value)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """ValueError that names the argument and what it may be."""
    choices = tuple(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"unknown {name} {short(value)}: choose from {', '.join(choices)}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """`value` as a bool; ValueError that begins with `name` for anything else ("False" would count as true)."""
    if not (isinstance(value, bool) or _is_numpy(value, "b")):
        raise ValueError(f"{name} is True or False, got {short(value)}")
    return bool(value)


def check_path(value: Any) -> str:
    """The text of a folder's path or a Hub id; ValueError for anything that is neither."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text or len(text) > 4096:
        raise ValueError(f"a model is a folder's path or a Hub id (user/name), got {short(value)}")
    return text
