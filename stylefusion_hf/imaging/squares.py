"""Pictures as squares or rectangles of a model's size."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from PIL import Image

from stylefusion_hf.core.sizes import describe_size

MAX_UPSCALING = 4  # beyond this factor, most of what a model sees is interpolation

Fit: TypeAlias = Literal["refuse", "crop", "pad"]
Size: TypeAlias = int | tuple[int, int]  # the side of a square, or (height, width)


def as_size(size: Size) -> tuple[int, int]:
    """Return (height, width) of the side of a square, or of a size."""
    return (size, size) if isinstance(size, int) else size


def fit_square(image: Image.Image, resolution: int, fit: Fit = "refuse", name: str = "the image") -> Image.Image:
    """Resize an image to (resolution, resolution) with a Lanczos filter, without aliasing.

    Args:
        image: an image of mode RGB, L, RGBA or LA, as from `check_image`.
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
    return fit_picture(image, resolution, fit, name)


def fit_picture(image: Image.Image, size: Size, fit: Fit = "refuse", name: str = "the image") -> Image.Image:
    """Resize an image to a model's pictures, which may be rectangles: `fit_square` for any (height, width).

    An image of the model's aspect ratio, to the pixel, is only resized; `fit` is for all others.

    Example:
        >>> from PIL import Image
        >>> from stylefusion_hf.imaging.images import fit_picture
        >>> fit_picture(Image.new("RGB", (300, 200)), (32, 48)).size  # height x width; PIL has width x height
        (48, 32)
    """
    if fit not in get_args(Fit):
        raise ValueError(f"fit must be one of {', '.join(map(repr, get_args(Fit)))}; got {fit!r}")
    (width, height), (tall, wide) = image.size, as_size(size)
    if height * MAX_UPSCALING < tall or width * MAX_UPSCALING < wide:
        if tall == wide:
            least = f"each side needs at least {-(-tall // MAX_UPSCALING)}"
        else:
            least = f"it needs at least {-(-wide // MAX_UPSCALING)} x {-(-tall // MAX_UPSCALING)}"
        raise ValueError(f"{name} is {width} x {height} pixels, too small for a model of {wide} x {tall}: {least}")
    across, down = _middle_box(image.size, (tall, wide))
    if (across, down) != image.size and fit == "refuse":
        if tall == wide:
            raise ValueError(
                f"{name} is {width} x {height} pixels, and the model takes squares: align a face by its landmarks"
                ' (`stylefusion align`), or make it square with fit="crop" or fit="pad" (--fit on the command line)'
            )
        raise ValueError(
            f"{name} is {width} x {height} pixels, and the model's pictures are {describe_size((tall, wide))}, of"
            ' another aspect ratio: use fit="crop" or fit="pad" (--fit on the command line)'
        )
    if fit == "pad" and (across, down) != image.size:
        canvas = (width, round(width * tall / wide)) if down == height else (round(height * wide / tall), height)
        padded = Image.new(image.mode, canvas, "white")
        padded.paste(image, ((padded.width - width) // 2, (padded.height - height) // 2))
        image = padded
    return resize_middle(image, (tall, wide), Image.Resampling.LANCZOS)


def resize_middle(image: Image.Image, size: Size, resampling: Image.Resampling) -> Image.Image:
    """Crop the largest box of that aspect ratio in the middle and resize it, unless it already has the right size."""
    tall, wide = as_size(size)
    across, down = _middle_box(image.size, (tall, wide))
    left, top = (image.width - across) // 2, (image.height - down) // 2
    box = (left, top, left + across, top + down)
    return image.crop(box) if (across, down) == (wide, tall) else image.resize((wide, tall), resampling, box)


def _middle_box(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of the largest box within PIL's `size` that has the aspect ratio of (height, width)."""
    (width, height), (tall, wide) = size, wanted
    if width * tall >= height * wide:
        return max(1, min(width, round(height * wide / tall))), height
    return width, max(1, min(height, round(width * tall / wide)))
