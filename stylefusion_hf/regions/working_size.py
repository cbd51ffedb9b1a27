"""The size of the pictures that regions are found in: the generator's own, or previews where these are large.

Regions are read off feature maps of at most 64 px. Previews of 128 px show them as well as full pictures do, at a
fraction of the time and memory.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from stylefusion_hf.models.style_generator import StyleGenerator

logger = logging.getLogger("stylefusion_hf")
PREVIEW = 128  # pixels
LARGEST = 256  # generators up to this size work on their full pictures


def working_size(generator: StyleGenerator, asked: int | None = None, layers: Sequence[int] = ()) -> int:
    """Return the height to work at, one of `generator.picture_sizes`; a preview head is fitted where one is missing.

    Args:
        asked: that height; None for `PREVIEW` px or the next below, or for full pictures of up to `LARGEST` px.
        layers: feature maps that are read, none of which may be larger.

    Raises:
        ValueError: a size that the generator has neither pictures nor features of, or one below a layer's.
    """
    full = generator.config.resolution
    sizes = sorted({*generator.feature_sizes, *generator.picture_sizes})
    least = max(layers, default=4)
    if asked is not None:
        if asked not in sizes or asked < max(least, 16 if full >= 16 else full):
            known = ", ".join(str(size) for size in sizes if size >= max(least, 16))
            reason = f" (feature maps of {least} px are read)" if least > 16 else ""
            raise ValueError(f"a working size of {asked} px: choose from {known}{reason}")
        size = asked
    else:
        previews = [size for size in sizes if least <= size <= PREVIEW]
        size = full if full <= LARGEST else max(previews, default=least)
    if size not in generator.picture_sizes:
        logger.info("fitting previews of %d px to the generator's pictures", size)
        generator.fit_preview(size)
    return size
