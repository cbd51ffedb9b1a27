"""Pictures as squares of a model's resolution."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from PIL import Image

MAX_UPSCALING = 4  # beyond this factor, most of what a model sees is interpolation

Fit: TypeAlias = Literal["refuse", "crop", "pad"]


def fit_square(image: Image.Image, resolution: int, fit: Fit = "refuse", name: str = "the image") -> Image.Image:
    """Resize an image to (resolution, resolution) with a Lanczos filter, without aliasing.

    Args:
        image: an image of mode RGB, L or RGBA, as from `check_image`.
        resolution: the model's resolution in pixels.
        fit: how to handle an image that is not square: "refuse" it, "crop" it to the middle, or "pad" it with white.
        name: its name in errors.

    Raises:
        ValueError: not square with fit="refuse", a side below a quarter of `resolution`, or an unknown `fit`.

    Example:
        >>> from PIL import Image
        >>> from stylefusion_hf.imaging.images import fit_square
        >>> fit_square(Image.new("RGB", (300, 200)), 64, fit="crop").size
        (64, 64)
    """
    if fit not in get_args(Fit):
        raise ValueError(f"fit must be one of {', '.join(map(repr, get_args(Fit)))}; got {fit!r}")
    width, height = image.size
    if min(width, height) * MAX_UPSCALING < resolution:
        raise ValueError(
            f"{name} is {width} x {height} pixels, too small for a model of {resolution} x {resolution}: each side"
            f" needs at least {-(-resolution // MAX_UPSCALING)}"
        )
    if width != height and fit == "refuse":
        raise ValueError(
            f"{name} is {width} x {height} pixels, and the model takes squares: align a face by its landmarks"
            ' (`stylefusion align`), or make it square with fit="crop" or fit="pad" (--fit on the command line)'
        )
    if fit == "pad":
        square = Image.new(image.mode, (max(image.size),) * 2, "white")
        square.paste(image, ((square.width - width) // 2, (square.height - height) // 2))
        image = square
    return resize_middle(image, resolution, Image.Resampling.LANCZOS)


def resize_middle(image: Image.Image, resolution: int, resampling: Image.Resampling) -> Image.Image:
    """Crop the largest square in the middle and resize it, unless it already has the right size."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    return image.crop(box) if side == resolution else image.resize((resolution, resolution), resampling, box)
