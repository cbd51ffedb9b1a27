"""Limits on the size of JSON from visitors. Imports neither gradio nor torch."""

from __future__ import annotations

import json
from typing import Any

MAX_BODY = 2**20  # bytes of a request; a recipe of photographs at 1024 px takes some 50 kB per region
MAX_VALUES, MAX_DEPTH = 20_000, 32
TOO_MANY = f"it holds more than {MAX_VALUES} values"
TOO_DEEP = f"its values are nested in more than {MAX_DEPTH} lists and objects"


class TooLarge(ValueError):
    """JSON that exceeds a limit; the message names the limit."""


def read_json(text: bytes | str) -> Any:
    """Parse a JSON text.

    Raises:
        TooLarge: more values, or deeper nesting, than the page needs. Values are counted before parsing, which would
            take memory.
        ValueError: not JSON.
    """
    comma, bracket, brace = (b",", b"[", b"{") if isinstance(text, bytes) else (",", "[", "{")
    if text.count(comma) + text.count(bracket) + text.count(brace) > MAX_VALUES:  # type: ignore[arg-type]
        raise TooLarge(TOO_MANY)
    try:
        data = json.loads(text)
    except RecursionError:
        raise TooLarge(TOO_DEEP) from None
    level = [data]
    for _ in range(MAX_DEPTH + 1):
        level = [item for each in level if isinstance(each, (list, dict)) for item in _items(each)]
        if not level:
            return data
    raise TooLarge(TOO_DEEP)


def _items(value: Any) -> Any:
    return value.values() if isinstance(value, dict) else value
