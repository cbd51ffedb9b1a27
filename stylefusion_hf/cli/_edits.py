"""Edits as arguments: `--edit hair=directions.safetensors:sefa-3=2.5`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stylefusion_hf.cli.arguments import convert_argument, number
from stylefusion_hf.cli.checks import check_file
from stylefusion_hf.core.checks import shown

if TYPE_CHECKING:
    from stylefusion_hf import Direction
    from stylefusion_hf.core.edits import Edit


def read_edits(values: Iterable[str]) -> dict[str, Edit]:
    """Parse edits: `["hair=directions.safetensors:sefa-3=2.5"]` -> {"hair": that direction with that strength}.

    The strength defaults to 1; the direction's name may be left out if the file has only one. Several edits of the
    same region add up.

    Raises:
        ValueError, OSError: an invalid argument, file or direction; names the argument.
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
    """Split "hair=directions.safetensors:sefa-3=2.5" into ("hair", "directions.safetensors", "sefa-3", 2.5)."""
    region, equals, rest = (part.strip() for part in text.partition("="))
    where, colon, direction = rest.rpartition(":")
    if not colon or direction.startswith(("/", "\\")):  # no colon, or only that of a drive (C:\...)
        where, direction = rest, ""
    name, _, strength = direction.partition("=")
    if not (region and equals and where):
        raise ValueError(
            f"--edit {shown(text)}: expected NAME=FILE:DIRECTION=STRENGTH, such as hair=d.safetensors:sefa-3=2"
        )
    return region, where, name, convert_argument(strength, f"--edit {shown(text)}", number) if strength else 1.0
