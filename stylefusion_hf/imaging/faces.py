"""Face alignment as in FFHQ: crop the oriented square around a face, given its landmarks.

The geometry is that of CelebA-HQ (Karras et al., arXiv 1710.10196, appendix C), which FFHQ also uses (Karras et al.,
arXiv 1812.04948). Landmarks are pixel coordinates in the upright picture, x to the right and y down, with (0, 0) the
center of the first pixel; either

- (68, 2), in the order of iBUG 300-W (and dlib): the eyes are points 36 to 47, the corners of the mouth 48 and 54; or
- (5, 2): left eye, right eye, nose, left and right corner of the mouth, where left is the left side of the picture.

`imaging.landmarks` reads or detects them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image, ImageFilter, ImageStat

from stylefusion_hf.imaging.images import MAX_UPSCALING, MIN_SIDE, check_image

Padding: TypeAlias = Literal["reflect", "refuse"]
MAX_SIZE = 1024  # FFHQ's resolution

# ----------------------------------------------------------------------------------------------------
# Landmarks.


def check_landmarks(landmarks: Any, name: str = "the landmarks") -> np.ndarray:
    """Return landmarks as an array (68, 2) or (5, 2), float64.

    Raises:
        ValueError: another shape, numbers that are not finite, or impossible faces: coinciding eyes, or left and right
            swapped; begins with `name`.
    """
    try:
        points = np.asarray(landmarks, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} are not numbers: expected 68 or 5 pairs [x, y]") from error
    if points.shape not in ((68, 2), (5, 2)):
        raise ValueError(
            f"{name} have the shape {points.shape}: expected (68, 2), in the order of iBUG 300-W, or (5, 2)"
        )
    if not np.isfinite(points).all():
        raise ValueError(f"{name} have numbers that are not finite")
    eye_left, eye_right, mouth_left, mouth_right = _anchors(points)
    across, down = eye_right - eye_left, (mouth_left + mouth_right - eye_left - eye_right) / 2
    if np.hypot(*across) < 1 or np.hypot(*down) < 1:
        raise ValueError(f"{name} are not a face: the eyes, or the eyes and the mouth, are less than a pixel apart")
    if across[0] * down[1] - across[1] * down[0] <= 0:  # with y down, the mouth is clockwise of the eyes
        raise ValueError(
            f"{name} are mirrored: the left eye must be the one on the left of the picture, likewise the mouth corners"
        )
    return points


def _anchors(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the centers of left and right eye and the left and right mouth corner, which define FFHQ's square."""
    if len(points) == 5:
        return points[0], points[1], points[3], points[4]
    return points[36:42].mean(axis=0), points[42:48].mean(axis=0), points[48], points[54]


def face_square(landmarks: Any) -> np.ndarray:
    """Return the corners of the square that FFHQ crops around a face (Karras et al., arXiv 1710.10196, appendix C).

    The horizontal axis is the sum of the vector from eye to eye and the normal of the vector from eyes to mouth; the
    side is the larger of 4 times the distance between the eyes and 3.6 times the distance from eyes to mouth; the
    center lies a tenth of the way from the eyes to the mouth.

    Args:
        landmarks: (68, 2) or (5, 2), in pixels.

    Returns:
        (4, 2), in the same coordinates: upper left, lower left, lower right, upper right.

    Raises:
        ValueError: as in `check_landmarks`.

    Example:
        >>> from stylefusion_hf.imaging.faces import face_square
        >>> face_square([[40, 50], [60, 50], [50, 60], [42, 70], [58, 70]]).tolist()
        [[10.0, 12.0], [10.0, 92.0], [90.0, 92.0], [90.0, 12.0]]
    """
    eye_left, eye_right, mouth_left, mouth_right = _anchors(check_landmarks(landmarks))
    eyes, mouth = (eye_left + eye_right) / 2, (mouth_left + mouth_right) / 2
    across, down = eye_right - eye_left, mouth - eyes
    axis = across + np.array([down[1], -down[0]])  # `down`, turned to the right of the picture
    x = axis / np.hypot(*axis) * max(2 * np.hypot(*across), 1.8 * np.hypot(*down))
    y = np.array([-x[1], x[0]])
    middle = eyes + 0.1 * down
    return np.stack([middle - x - y, middle - x + y, middle + x + y, middle + x - y])


# ----------------------------------------------------------------------------------------------------
# Alignment.


def align(
    image: Image.Image, landmarks: Any, size: int = 1024, padding: Padding = "reflect", name: str = "the image"
) -> Image.Image:
    """Crop a face, rotate it upright and scale it as in FFHQ.

    The square of `face_square` is sampled bilinearly at four times the size and reduced with a Lanczos filter, as in
    the script that made FFHQ. Two differences: that script is off by up to a quarter of an output pixel when it first
    shrinks a large picture, and it uses an exact Gaussian blur, while this uses Pillow's (three box filters).

    Args:
        image: any picture that `images.check_image` accepts.
        landmarks: (68, 2) or (5, 2), in pixels of the upright picture.
        size: side of the result in pixels, from 8 to 1024 (FFHQ's).
        padding: how to handle a square that extends beyond the picture. "reflect", as in FFHQ: mirror the picture at
            its border and, going outwards, increasingly blur it and fade to its median color, starting inside the
            picture at a third of the padding's width from the border. "refuse": an error.
        name: name of the image in errors.

    Returns:
        (size, size), mode RGB.

    Raises:
        ValueError: landmarks that `check_landmarks` refuses or that lie outside the picture, a face too small for
            `size`, a square beyond the picture with padding="refuse", a bad argument, or as in `check_image`.
        OSError: the image cannot be decoded.
    """
    if padding not in get_args(Padding):
        raise ValueError(f"padding is {' or '.join(map(repr, get_args(Padding)))}; got {padding!r}")
    if not isinstance(size, int) or not MIN_SIDE <= size <= MAX_SIZE:
        raise ValueError(f"size is an integer from {MIN_SIDE} to {MAX_SIZE}, got {size!r}")
    picture = check_image(image, name)
    points = check_landmarks(landmarks, f"the landmarks of {name}")
    quad = face_square(points) + 0.5  # from here (0, 0) is the corner of the first pixel, as in Pillow
    side = float(np.hypot(*(quad[3] - quad[0])))
    _check_place(points, side, picture.size, name)
    if side < max(MIN_SIDE, size / MAX_UPSCALING):
        raise ValueError(
            f"{name}: the square around the face has a side of {side:.0f} pixels, too small for a result of {size}:"
            f" give a larger picture, or a size of at most {int(side * MAX_UPSCALING)}"
        )
    beyond = np.concatenate([-quad.min(axis=0), quad.max(axis=0) - picture.size])  # left, top, right, bottom
    if padding == "refuse" and beyond.max() > 1e-3:
        raise ValueError(
            f"{name}: the square around the face extends {math.ceil(beyond.max())} pixels beyond the picture: give a"
            ' picture with more space around the face, or padding="reflect"'
        )

    shrink = math.floor(side / size / 2)
    if shrink > 1:  # keep at least twice the size, so that bilinear sampling does not alias
        small = picture.resize(
            (round(picture.width / shrink), round(picture.height / shrink)), Image.Resampling.LANCZOS
        )
        quad *= np.divide(small.size, picture.size)
        picture, side = small, float(np.hypot(*(quad[3] - quad[0])))
    border = max(round(side * 0.1), 3)
    low, high = np.floor(quad.min(axis=0)) - border, np.ceil(quad.max(axis=0)) + border
    left, top = (int(v) for v in np.maximum(low, 0))
    right, bottom = (int(v) for v in np.minimum(high, picture.size))
    picture = picture.crop((left, top, right, bottom))
    pads = [int(v) for v in (left - low[0], top - low[1], high[0] - right, high[1] - bottom)]
    quad -= (left, top)
    if padding == "reflect" and max(pads) > border - 4:  # the square ends within 4 pixels of the border
        pads = [max(pad, round(side * 0.3)) for pad in pads]
        picture = _padded(picture, pads, blur=side * 0.02)
        quad += pads[:2]

    sampled = 4 * size
    method, bilinear = Image.Transform.QUAD, Image.Resampling.BILINEAR
    square = picture.transform((sampled, sampled), method, tuple(quad.flatten()), bilinear)
    return square.resize((size, size), Image.Resampling.LANCZOS)


def _check_place(points: np.ndarray, side: float, size: tuple[int, int], name: str) -> None:
    """Raise ValueError if eyes or mouth lie outside the picture by more than a tenth of the square's side."""
    anchors = np.stack(_anchors(points))
    if (anchors < -side / 10).any() or (anchors > np.array(size) + side / 10).any():
        low, high = points.min(axis=0), points.max(axis=0)
        raise ValueError(
            f"{name} is {size[0]} x {size[1]} pixels, and its landmarks (x from {low[0]:.0f} to {high[0]:.0f}, y from"
            f" {low[1]:.0f} to {high[1]:.0f}) lie outside: give those of this picture, in its own size, upright"
        )


def _padded(picture: Image.Image, pads: Sequence[int], blur: float) -> Image.Image:
    """Pad as in FFHQ: reflected, blurred toward the outside, and faded to the median color.

    Args:
        picture: mode RGB.
        pads: left, top, right, bottom, in pixels.
        blur: standard deviation in pixels.
    """
    left, top, right, bottom = pads
    pixels = np.pad(np.asarray(picture), ((top, bottom), (left, right), (0, 0)), "reflect")
    height, width, _ = pixels.shape
    xs, ys = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    # 1 at the outer border, 0 where the picture begins, negative inside
    outside = 1 - np.minimum(
        np.minimum(xs / left, (width - 1 - xs) / right), np.minimum(ys / top, (height - 1 - ys) / bottom)
    )

    def weight(values: np.ndarray) -> Image.Image:
        return Image.fromarray(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8))

    padded = Image.fromarray(pixels)
    padded = Image.composite(padded.filter(ImageFilter.GaussianBlur(blur)), padded, weight(3 * outside + 1))
    median = tuple(ImageStat.Stat(padded).median)
    return Image.composite(Image.new("RGB", padded.size, median), padded, weight(outside))
