"""The one reader of untrusted JSON, bounded in size, depth and number of values; every error is one line.

It also rejects what JSON parsers disagree about: NaN, infinities, numbers beyond a double, and duplicate keys.
"""

from __future__ import annotations

import json
import math
import os
from typing import Any

from stylefusion_hf.core.checks import short, shown
from stylefusion_hf.core.regular_files import open_regular

LARGEST = 2**24  # bytes of a file, unless the caller sets another limit
MAX_VALUES = 500_000  # in one text; a value of two characters takes up to a hundred bytes of memory
MAX_DEPTH = 64  # levels of nested objects and lists


def parse_json(text: str | bytes, what: str, largest: int = LARGEST, values: int = MAX_VALUES) -> Any:
    """Parse a JSON text.

    Args:
        text: str, or UTF-8 bytes; a byte-order mark is allowed.
        what: the subject of error messages, such as "the recipe".
        largest: limit on its length in bytes (or characters).
        values: limit on its number of values, counted by commas and brackets.

    Raises:
        ValueError: one line that begins with `what`.

    Example:
        >>> from stylefusion_hf.core.json_files import parse_json
        >>> parse_json('{"base": [1, 2]}', "the recipe")
        {'base': [1, 2]}
    """
    if len(text) > largest:
        raise ValueError(f"{what} is too long: {len(text):,} bytes, at most {largest:,} are read")
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not JSON: it is not UTF-8 text (byte {error.start:,})") from None
    if sum(map(decoded.count, ",[{")) > values:
        raise ValueError(f"{what} is too large: at most {values:,} values are read")
    too_deep = ValueError(f"{what} is not JSON that can be read: it is nested deeper than {MAX_DEPTH} levels")
    try:
        value = json.loads(decoded, object_pairs_hook=_object)
        depth = _check_values(value)
    except RecursionError:
        raise too_deep from None
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {shown(str(error), 200)}") from None
    if depth > MAX_DEPTH:
        raise too_deep
    return value


def read_json(path: str | os.PathLike[str], what: str = "", largest: int = LARGEST, values: int = MAX_VALUES) -> Any:
    """Read a JSON file. Arguments as for `parse_json`; `what` defaults to the path.

    Raises:
        FileNotFoundError: no such file.
        OSError: it cannot be read, or is not a regular file.
        ValueError: as from `parse_json`.
    """
    what = what or shown(os.fspath(path), 400)
    with open_regular(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"{what} is too long: {os.path.getsize(path):,} bytes, at most {largest:,} are read")
    return parse_json(content, what, largest, values)


def read_object(
    path: str | os.PathLike[str], what: str = "", largest: int = LARGEST, values: int = MAX_VALUES
) -> dict[str, Any]:
    """Read a JSON file that holds an object, as `read_json` does. ValueError for any other value."""
    value = read_json(path, what, largest, values)
    if not isinstance(value, dict):
        raise ValueError(f"{what or shown(os.fspath(path), 400)} is a JSON object, found {type(value).__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"an object has the key {short(twice)} twice")
    for key, value in pairs:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{shown(key)} is a number that is not finite ({value})")
    return found


def _check_values(value: Any) -> int:
    """Return the nesting depth of objects and lists, up to MAX_DEPTH + 1, without recursion.

    ValueError for a number in a list that is not finite.
    """
    level, depth = [value], 0
    while depth <= MAX_DEPTH:
        for item in level:
            if isinstance(item, float) and not math.isfinite(item):
                raise ValueError(f"a number is not finite ({item})")
        level = [item for item in level if isinstance(item, (dict, list))]
        if not level:
            break
        depth += 1
        inside = [item.values() if isinstance(item, dict) else item for item in level]
        level = [item for items in inside for item in items]
    return depth
