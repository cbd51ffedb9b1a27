"""Channels of a model's pictures and modes of PIL: the only table of both, and what is done about transparency.

Transparency is never dropped. Formats that have it keep it (PNG, WebP); for others, and on sheets, pictures are put on
white.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}  # channels -> mode
ALPHA = (2, 4)  # the numbers of channels with transparency


def check_viewable(channels: int) -> None:
    """Raise ValueError if pictures of a generator with so many channels cannot be images."""
    if channels not in MODES:
        raise ValueError(
            f"the generator's img_channels is {channels}, and image files have 1 to 4 channels"
            f' ({", ".join(MODES.values())}): only output_type="pt" (or "np") gives its pictures, as numbers'
        )


def to_picture(pixels: np.ndarray) -> Image.Image:
    """Return an image of mode L, LA, RGB or RGBA from 8-bit pixels (H, W, C). ValueError for other channels."""
    import numpy as np

    check_viewable(pixels.shape[2])
    return Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))


def put_on_white(image: Image.Image) -> Image.Image:
    """Return an opaque image in mode RGB: transparent pixels show white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    picture = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def keep_transparency(image: Image.Image) -> Image.Image:
    """Return the image in mode RGBA if it has any transparency, else in mode RGB."""
    return image.convert("RGBA" if image.has_transparency_data else "RGB")
