"""Edits as arguments: `--edit hair=directions.safetensors:sefa-3=2.5`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stylefusion_hf.cli._checks import check_file
from stylefusion_hf.cli._shared import checked, number
from stylefusion_hf.core.checks import shown

if TYPE_CHECKING:
    from stylefusion_hf import Direction
    from stylefusion_hf.core.edits import Edit


def read_edits(values: Iterable[str]) -> dict[str, Edit]:
    """`["hair=directions.safetensors:sefa-3=2.5"]` -> {"hair": that direction with that strength}.

    The strength is 1 where it is left out, the direction's name where the file has only one. What is given for one
    name more than once adds up.

    Raises:
        ValueError, OSError: the argument, its file or the direction in it; names the argument.
    """
    parsed = [_split(text) for text in values]
    for _, where, _, _ in parsed:
        check_file(where, "--edit")

    from stylefusion_hf.core.edits import Edit, load_directions
    from stylefusion_hf.core.tensor_files import pick

    files: dict[str, dict[str, Direction]] = {}
    found: dict[str, Edit] = {}
    for region, where, name, amount in parsed:
        if where not in files:
            files[where] = load_directions(where)
        known = files[where]
        name = name or (next(iter(known)) if len(known) == 1 else "")
        found[region] = found.get(region, Edit(())) + pick(known, name, where)(amount)
    return found


def _split(text: str) -> tuple[str, str, str, float]:
    """ "hair=directions.safetensors:sefa-3=2.5" -> ("hair", "directions.safetensors", "sefa-3", 2.5)."""
    region, equals, rest = (part.strip() for part in text.partition("="))
    where, colon, direction = rest.rpartition(":")
    if not colon or direction.startswith(("/", "\\")):  # no colon, or that of a drive (C:\...)
        where, direction = rest, ""
    name, _, strength = direction.partition("=")
    if not (region and equals and where):
        raise ValueError(
            f"--edit {shown(text)}: expected NAME=FILE:DIRECTION=STRENGTH, such as hair=d.safetensors:sefa-3=2"
        )
    return region, where, name, checked(strength, f"--edit {shown(text)}", number) if strength else 1.0
