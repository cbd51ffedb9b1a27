"""Sizes of pictures, (height, width): as text, and scaled to another height."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def describe_size(size: tuple[int, int]) -> str:
    """Return "64 px" for a square, "32 x 48 px (height x width)" for a rectangle.

    Example:
        >>> from stylefusion_hf.core.sizes import describe_size
        >>> describe_size((64, 64)), describe_size((32, 48))
        ('64 px', '32 x 48 px (height x width)')
    """
    height, width = size
    return f"{height} px" if height == width else f"{height} x {width} px (height x width)"


def size_at(height: int, size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) of that height in the aspect ratio of `size`."""
    return height, max(1, round(height * size[1] / size[0]))


def nearest_heights(wanted: Sequence[int], heights: Iterable[int]) -> list[int]:
    """Return the heights within half an octave of each wanted one: 16 and 32 are 12 and 24 where heights are 3, 6, ...

    Wanted heights that have none are left out.
    """
    known = sorted(heights)
    return [height for goal in wanted for height in known if goal**2 < 2 * height**2 <= 4 * goal**2]
