"""Where a region is on a picture: square boxes around masks, for pictures that show one region. Imports no gradio."""

from __future__ import annotations

import numpy as np
from PIL import Image

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels

TAILS = 0.02  # share of a mask's pixels beyond each side of its box: single stray pixels do not widen it
MARGIN = 0.25  # added around the box, as a share of its longer side
LEAST = 0.25  # side of the smallest box, as a share of the picture's shorter side
WHOLE = 0.75  # from this share of the picture's shorter side on, the whole picture is shown


def region_box(mask: np.ndarray) -> Box | None:
    """Return a square around a region, or None if the region is large or not there.

    Args:
        mask: (H, W), bool.
    """
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return None
    height, width = mask.shape
    top, bottom = np.quantile(rows, [TAILS, 1 - TAILS])
    left, right = np.quantile(columns, [TAILS, 1 - TAILS])
    shorter = min(height, width)
    side = max((max(bottom - top, right - left) + 1) * (1 + 2 * MARGIN), LEAST * shorter)
    if side >= WHOLE * shorter:
        return None
    whole = round(side)
    x = min(max(round((left + right + 1 - side) / 2), 0), width - whole)
    y = min(max(round((top + bottom + 1 - side) / 2), 0), height - whole)
    return x, y, x + whole, y + whole


def scale_box(box: Box, factor: float) -> Box:
    """Return the box on a picture that is `factor` times as large."""
    left, top, right, bottom = (round(edge * factor) for edge in box)
    return left, top, max(right, left + 1), max(bottom, top + 1)


def crop(image: Image.Image, box: Box | None) -> Image.Image:
    """Return the part of a picture in the box; the picture itself for None."""
    return image if box is None else image.crop(box)
