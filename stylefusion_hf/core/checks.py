"""Checks of single arguments, each one clear line; and `short`, which shows what was given in such a line."""

from __future__ import annotations

import math
import os
import reprlib
from collections.abc import Iterable
from typing import Any

import numpy as np


class _Short(reprlib.Repr):
    """reprlib's, bounded in length and depth, for whatever a stranger sends."""

    def repr_int(self, x: int, level: int) -> str:
        if abs(x) < 10**30:  # Python refuses to write integers of thousands of digits
            return repr(x)
        return f"an integer of {x.bit_length()} bits"

    def repr_instance(self, x: Any, level: int) -> str:
        if hasattr(x, "dtype") and not isinstance(x, np.generic):  # numbers say less than what they are the array of
            return f"{type(x).__name__} of {x.dtype}"
        return " ".join(super().repr_instance(x, level).split())


def short(value: Any, text: int = 0) -> str:
    """`value` as text of one line: at most some hundred characters, and without an error, whatever it is.

    With `text` a text is given as it is, up to so many characters.
    """
    return _SHORT.repr(value) if not text else str(value)[:text]


_SHORT = _Short()


def check_number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """`value` as a float; ValueError that begins with `name` unless it is a finite number within these bounds."""
    number = isinstance(value, (int, float, np.floating, np.integer)) and not isinstance(value, bool)
    if not number or not least <= value <= most or not abs(value) <= 1e300:  # NaN fails the comparisons
        bounds = "" if math.isinf(least) else f" from {least:g} to {most:g}"
        raise ValueError(f"{name} is a number{bounds}, got {short(value)}")
    return float(value)


def check_count(name: str, value: Any, most: int, least: int = 1) -> int:
    """`value` as an int; ValueError that begins with `name` unless it is an integer within these bounds."""
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
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
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"{name} is True or False, got {short(value)}")
    return bool(value)


def check_path(value: Any) -> str:
    """The text of a folder's path or a Hub id; ValueError for anything that is neither."""
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text or "\0" in text or len(text) > 4096:
        raise ValueError(f"a model is a folder's path or a Hub id (user/name), got {short(value)}")
    return text
