"""From SVG text to pixels and label maps, alike for all artwork. Without torch: workers start fast."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image

# Picture and label map are both drawn at SAMPLES times the size without anti-aliasing, so that each sample lies in
# exactly one region: a pixel's colour is the mean of its samples and its label the region with most of them. With a
# rasteriser's own anti-aliasing a map's borders would read as some third region's grey, and in the picture a shape
# exactly covered by another (skin under hair) would shine through along the outline.
SAMPLES = 3


def draw(picture: str, labels: str, ground: Callable[[int], np.ndarray], regions: int, size: int):
    """The picture (size, size, 3) and its label map (size, size), both uint8.

    Args:
        picture: SVG text on a transparent ground.
        labels: SVG text in greys whose level is the region's number.
        ground: size -> (size, size or 1, 3), float in 0..255: what is behind the picture. resvg takes five times as
            long for a gradient.
        regions: how many.
        size: pixels.
    """
    image = _rasterise(picture, size * SAMPLES).astype(np.float32)
    image[..., 3] /= 255
    image[..., :3] *= image[..., 3:]
    mean = _sum_of_samples(image) / SAMPLES**2
    pixels = mean[..., :3] + (1 - mean[..., 3:]) * ground(size)
    levels = _rasterise(labels, size * SAMPLES)[..., 0]
    votes = np.stack([_sum_of_samples((levels == region).view(np.uint8)) for region in range(regions)])
    return (pixels + 0.5).astype(np.uint8), votes.argmax(axis=0).astype(np.uint8)


def _sum_of_samples(samples: np.ndarray) -> np.ndarray:
    """Each pixel's SAMPLES x SAMPLES samples added: (SAMPLES * size, SAMPLES * size, ...) -> (size, size, ...)."""
    total = samples[::SAMPLES, ::SAMPLES].copy()
    for y, x in np.ndindex(SAMPLES, SAMPLES):
        if y or x:
            total += samples[y::SAMPLES, x::SAMPLES]
    return total


def _rasterise(svg: str, size: int) -> np.ndarray:
    """SVG text as (size, size, 4) uint8, without anti-aliasing."""
    import resvg_py  # its absence is reported by parts_folder, which every drawing has passed before

    png = resvg_py.svg_to_bytes(
        svg_string=svg,
        width=size,
        height=size,
        skip_system_fonts=True,
        shape_rendering="crisp_edges",
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"))
