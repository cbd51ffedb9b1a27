"""Rasterizing SVG text to pictures and label maps. Does not import torch, so that worker processes start fast."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

# Picture and label map are drawn at SAMPLES times the size without anti-aliasing, so that each sample belongs to one
# region. A pixel's color is the mean of its samples, and its label the most frequent region among them. With the
# rasterizer's anti-aliasing, borders in the label map would have the gray of a third region, and a shape covered by
# another (skin under hair) would shine through along its outline.
SAMPLES = 3


def draw(picture: str, labels: str, ground: Callable[[int], np.ndarray], regions: int, size: int):
    """Draw a picture (size, size, 3) and its label map (size, size), both uint8.

    Args:
        picture: SVG text with a transparent background.
        labels: SVG text in grays whose level is the region's number.
        ground: size -> background (size, size or 1, 3), float in 0..255. A gradient would take resvg five times as
            long.
        regions: number of regions.
        size: side in pixels.
    """
    # Composite the picture over the background, averaging the samples of each pixel (premultiplied by alpha).
    image = _rasterize(picture, size * SAMPLES).astype(np.float32)
    image[..., 3] /= 255
    image[..., :3] *= image[..., 3:]
    mean = _sum_of_samples(image) / SAMPLES**2
    pixels = mean[..., :3] + (1 - mean[..., 3:]) * ground(size)

    # Each pixel's label is the region with the most samples.
    levels = _rasterize(labels, size * SAMPLES)[..., 0]
    votes = np.stack([_sum_of_samples((levels == region).view(np.uint8)) for region in range(regions)])
    return (pixels + 0.5).astype(np.uint8), votes.argmax(axis=0).astype(np.uint8)


def _sum_of_samples(samples: np.ndarray) -> np.ndarray:
    """Sum the SAMPLES x SAMPLES samples of each pixel: (SAMPLES * size, SAMPLES * size, ...) -> (size, size, ...)."""
    total = samples[::SAMPLES, ::SAMPLES].copy()
    for y, x in np.ndindex(SAMPLES, SAMPLES):
        if y or x:
            total += samples[y::SAMPLES, x::SAMPLES]
    return total


def _rasterize(svg: str, size: int) -> np.ndarray:
    """Rasterize SVG text to (size, size, 4) uint8, without anti-aliasing."""
    import resvg_py  # callers have already checked that it is installed

    png = resvg_py.svg_to_bytes(
        svg_string=svg,
        width=size,
        height=size,
        skip_system_fonts=True,
        shape_rendering="crisp_edges",
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
