"""What a wrong input has to lead to: one line, raised by this package's own code, that names the thing given.

`attempt` runs a call and returns what it gives, or a `Refusal` after a look at the error. `TRIED` counts the attempts,
and the test session's summary tells them. STYLEFUSION_EXAMPLES=10000 raises the number of random inputs a property.
"""

from __future__ import annotations

import os
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck

ROOT = Path(__file__).resolve().parent.parent
OURS = tuple(str(ROOT / folder) + os.sep for folder in ("stylefusion_hf", "pipelines", "conversion"))
ERRORS = (ValueError, TypeError, OSError, FloatingPointError)
LONGEST = 1200  # characters of a message that still is one clear line
TRIED: Counter[str] = Counter()
MANY = os.environ.get("STYLEFUSION_EXAMPLES", "")  # random inputs a property; none for what the tests themselves say


@dataclass(frozen=True)
class Refusal:
    """An error that passed the checks of `attempt`."""

    error: Exception

    def __str__(self) -> str:
        return str(self.error)


def attempt(kind: str, call: Callable[[], Any], names: str = "") -> Any:
    """What `call` returns, or a `Refusal`; AssertionError for an error that helps nobody.

    Args:
        kind: what is tried, for the count.
        call: without arguments.
        names: what the error has to mention; "" where that is not known beforehand.
    """
    TRIED[kind] += 1
    try:
        return call()
    except ERRORS as raised:
        error = raised
    text = str(error)
    inside = traceback.extract_tb(error.__traceback__)[-1].filename
    assert os.path.realpath(inside).startswith(OURS), f"raised in {inside}: {type(error).__name__}: {text}"
    assert text, f"{type(error).__name__} without a word"
    assert len(text.splitlines()) == 1, f"not one line: {text!r}"
    assert len(text) <= LONGEST, f"{len(text)} characters: {text[:200]!r}"
    assert names in text, f"does not name {names!r}: {text!r}"
    return Refusal(error)


def examples(count: int) -> hypothesis.settings:
    """Settings of a property test: `count` inputs, the same in every run, unless STYLEFUSION_EXAMPLES is set."""
    return hypothesis.settings(
        max_examples=int(MANY) if MANY else count,
        derandomize=not MANY,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
