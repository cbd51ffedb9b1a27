"""Faces of five colored dots, whose landmarks are known."""

import math
from typing import Any

import numpy as np
from PIL import Image

# Left eye, right eye, nose, corners of the mouth; FFHQ's square around them is 200 pixels wide.
FIVE = np.array([[175.0, 180], [225, 180], [200, 205], [180, 230], [220, 230]])
COLOURS = ((255, 0, 0), (0, 255, 0), (255, 255, 0), (0, 0, 255), (255, 0, 255))


def _sixty_eight() -> np.ndarray:
    """iBUG's 68 points with the same eyes and mouth; the others somewhere on the face."""
    points = np.tile(FIVE[2], (68, 1)) + np.random.default_rng(0).uniform(-40, 40, (68, 2))
    ring = np.array([[math.cos(k * math.pi / 3), math.sin(k * math.pi / 3)] for k in range(6)]) * 8
    points[36:42], points[42:48] = FIVE[0] + ring, FIVE[1] + ring
    points[48], points[54] = FIVE[3], FIVE[4]
    return points


SIXTY_EIGHT = _sixty_eight()


def similarity(points: np.ndarray, scale: float, angle: float, shift: Any) -> np.ndarray:
    """Points turned about (0, 0) by an angle in radians, clockwise on the screen, scaled and shifted."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return scale * points @ turn.T + shift


def portrait(points: np.ndarray, size: tuple[int, int], radius: float = 4) -> Image.Image:
    """Black, with a smooth dot around each of five landmarks (in pixels, whole numbers being pixels' middles)."""
    pixels = np.zeros((size[1], size[0], 3), np.uint8)
    reach = math.ceil(radius) + 2
    for (x, y), colour in zip(points, COLOURS, strict=True):
        left, top = max(round(x) - reach, 0), max(round(y) - reach, 0)
        patch = pixels[top : round(y) + reach + 1, left : round(x) + reach + 1]
        ys, xs = np.indices(patch.shape[:2])
        cover = np.clip(radius + 0.5 - np.hypot(xs + left - x, ys + top - y), 0, 1)
        patch[:] = np.maximum(patch, np.rint(cover[..., None] * colour))
    return Image.fromarray(pixels)


def blob_centre(image: Image.Image, index: int) -> np.ndarray:
    """(x, y), in pixels, of the dot number `index`."""
    difference = np.asarray(image, dtype=float) - np.array(COLOURS[index])
    weight = np.clip(1 - np.sqrt((difference**2).sum(axis=-1)) / 150, 0, None)
    assert weight.sum() > 0, f"there is no dot of the color {COLOURS[index]}"
    ys, xs = np.indices(weight.shape)
    return np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum()
