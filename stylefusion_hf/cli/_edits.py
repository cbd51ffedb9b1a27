"""Edits as arguments: `--edit hair=directions.safetensors:sefa-3=2.5`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stylefusion_hf.cli._shared import checked, number

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
    from stylefusion_hf.core.edits import Edit, load_directions
    from stylefusion_hf.core.tensor_files import pick

    files: dict[str, dict[str, Direction]] = {}
    found: dict[str, Edit] = {}
    for text in values:
        region, equals, rest = (part.strip() for part in text.partition("="))
        where, colon, direction = rest.rpartition(":")
        if not colon or direction.startswith(("/", "\\")):  # no colon, or that of a drive (C:\...)
            where, direction = rest, ""
        name, _, strength = direction.partition("=")
        if not (region and equals and where):
            raise ValueError(
                f"--edit {text}: expected NAME=FILE:DIRECTION=STRENGTH, such as hair=d.safetensors:sefa-3=2"
            )
        if where not in files:
            files[where] = load_directions(where)
        known = files[where]
        name = name or (next(iter(known)) if len(known) == 1 else "")
        amount = checked(strength, f"--edit {text}", number) if strength else 1.0
        found[region] = found.get(region, Edit(())) + pick(known, name, where)(amount)
    return found
