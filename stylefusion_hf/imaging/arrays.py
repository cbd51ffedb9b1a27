"""Arrays of pictures to PIL images, and PIL images to tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from PIL import Image

from stylefusion_hf.imaging.modes import MODES, to_picture
from stylefusion_hf.imaging.picture_headers import MAX_PIXELS, TOO_LARGE

if TYPE_CHECKING:
    import torch


def array_images(array: Any, name: str = "the image") -> list[Image.Image]:
    """Convert an array of one or more pictures to PIL images of mode L, LA, RGB or RGBA.

    Args:
        array: uint8, or floats in [0, 1], which are rounded to 8 bits; (H, W), (H, W, C) or (N, H, W, C) with 1 to 4
            channels.
        name: its name in errors.

    Raises:
        ValueError: another type, shape or range; begins with `name`.

    Example:
        >>> import numpy as np
        >>> from stylefusion_hf.imaging.images import array_images
        >>> array_images(np.zeros((20, 30, 3), np.uint8))[0].size
        (30, 20)
    """
    import numpy as np

    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} must be a PIL image or an array (height, width, 3), got {type(array).__name__}")
    shape, floats = array.shape, array.dtype.kind == "f"
    flat = array[..., None] if array.ndim == 2 else array
    batch = flat[None] if flat.ndim == 3 else flat
    if batch.ndim != 4 or batch.shape[-1] not in MODES or not batch.size or not (floats or array.dtype == np.uint8):
        raise ValueError(
            f"{name}: a picture as an array has the shape (height, width, 3), or 1, 2 or 4 channels, or none, and the"
            f" type uint8, or float with numbers from 0 to 1; got {shape} of {array.dtype}"
        )
    if batch[0].size > 4 * MAX_PIXELS:
        raise ValueError(f"{name} has {batch.shape[1] * batch.shape[2] / 1e6:.0f} megapixels: {TOO_LARGE}")
    if floats:
        if not bool(((batch >= 0) & (batch <= 1)).all()):  # NaN fails too
            least, largest = np.nanmin(batch), np.nanmax(batch)
            raise ValueError(
                f"{name}: a picture of floating-point numbers must have values from 0 to 1, got {least:.3g} to"
                f" {largest:.3g}: convert -1 to 1 with (x + 1) / 2, bytes with x / 255"
            )
        batch = np.round(batch * 255).astype(np.uint8)
    return [to_picture(pixels) for pixels in np.asarray(batch)]


def pixels_to_tensor(image: Image.Image) -> torch.Tensor:
    """Convert an image of mode RGB, L, RGBA or LA to (channels, height, width), float32 in [-1, 1]."""
    import numpy as np
    import torch

    pixels = np.array(image, dtype=np.float32).reshape(image.height, image.width, len(image.getbands()))
    return torch.from_numpy(pixels).permute(2, 0, 1) / 127.5 - 1
