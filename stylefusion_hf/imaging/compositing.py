"""Putting a changed face back into its photograph: where it changed, with which color at the seam, and the warp.

    edited, coverage = blend_change(photograph.image, face_square(landmarks), original, before, after, regions)

Mask and colors are found in the aligned square, at WORKING pixels or less; the photograph is only read and written, a
strip at a time, within the square's bounding box. Where the mask is 0 its pixels keep their values exactly.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

WORKING = 256  # pixels of the square's side in which mask and colors are found
STRIP = 2**20  # pixels of the photograph that are blended at once
# Mean absolute changes, as shares of the range from black to white: below the first nothing changed, above the second
# all did.
CHANGED = (0.015, 0.04)  # inside the given regions
CHANGED_ANYWHERE = (0.05, 0.1)  # where no region is given
CHANGED_NEARBY = (0.08, 0.16)  # around the regions: shadows, and what was behind them
MARGIN, NEARBY, BORDER = 1 / 64, 1 / 16, 1 / 24  # of the square's side
MOST_SHIFT = 0.3  # of the range
MOST_TINT = 0.5  # mean deviation of a shadow's three colors, as a share of its darkness


def blend_change(
    image: Image.Image,
    corners: np.ndarray,
    original: Tensor,
    before: Tensor,
    after: Tensor,
    regions: Tensor | None = None,
    stays: Tensor | None = None,
) -> tuple[Image.Image, Image.Image]:
    """Blend what changed between two pictures of an aligned face into its photograph.

    Args:
        image: the upright photograph, mode L, LA, RGB or RGBA.
        corners: of the square around its face, (4, 2), as from `faces.face_square`.
        original: the aligned face, (3, n, n) in [-1, 1].
        before, after: its reconstruction, and the same with the changes, (3, n, n) in [-1, 1].
        regions, stays: as in `change_mask`.

    Returns:
        As `put_back`.
    """
    mask = change_mask(before, after, regions, stays)
    trust = inside_photograph(corners, image.size, mask.shape[-1]).to(mask)
    trust = trust * unchanged(before, after, mask.shape[-1], regions)
    shift = color_shift(original, after, mask, trust)
    levels = ((after + 1) * 127.5).round().clamp(0, 255).byte()
    return put_back(image, corners, Image.fromarray(levels.permute(1, 2, 0).cpu().numpy()), mask, shift)


# ----------------------------------------------------------------------------------------------------
# Where the picture changed.


def change_mask(before: Tensor, after: Tensor, regions: Tensor | None = None, stays: Tensor | None = None) -> Tensor:
    """Return how much of each pixel to replace: 1 where `after` differs from `before`, with soft edges.

    Args:
        before: the reconstruction of the aligned face, (3, n, n) in [-1, 1].
        after: the same with its changes.
        regions: (n, n), 0 to 1: the regions that were meant to change, as they lie before and after. Outside of them
            only strong changes nearby count. None: changes count anywhere.
        stays: (n, n), 1 where the region is another and the same before and after, else 0. Of the changes nearby only
            those there count, and of these only shadows: a new outline of another region, an ear's for example, is no
            part of the change, nor is another color. None: all strong changes nearby count.

    Returns:
        (h, h) with h = min(n, WORKING), from 0 to 1; 0 at the square's border.
    """
    side = min(before.shape[-1], WORKING)
    change = measured_change(before, after, side)
    if regions is None:
        mask = smoothstep(dilate(change, side * MARGIN), *CHANGED_ANYWHERE)
    else:
        union = F.adaptive_avg_pool2d(regions[None, None].float(), side)[0, 0]
        close = smoothstep(dilate(change, side * NEARBY / 2), *CHANGED)
        mask = dilate(union, side * MARGIN) * close
        nearby = soften(dilate(union, side * NEARBY), side * MARGIN)
        if stays is not None:
            nearby = (
                nearby * F.adaptive_avg_pool2d(stays[None, None].float(), side)[0, 0] * shadows(before, after, side)
            )
        mask = torch.maximum(mask, nearby * smoothstep(change, *CHANGED_NEARBY))
    mask = soften(mask, side * MARGIN) * border_ramp(side, max(1.0, side * BORDER)).to(mask)
    return ((mask - 0.02) / 0.96).clamp(0, 1)


def measured_change(before: Tensor, after: Tensor, side: int) -> Tensor:
    """Return the mean absolute change of colors (side, side), as a share of the range, smoothed a little."""
    change = (after.float() - before.float()).abs().mean(dim=0) / 2
    return soften(F.adaptive_avg_pool2d(change[None, None], side)[0, 0], side / 128)


def shadows(before: Tensor, after: Tensor, side: int) -> Tensor:
    """Return (side, side), 1 where a picture got darker by about as much in each color, else 0."""
    change = F.adaptive_avg_pool2d((after.float() - before.float())[None], side)[0]
    light = change.mean(dim=0)
    tint = soften((change - light).abs().mean(dim=0), side / 128)
    return (tint <= -MOST_TINT * soften(light, side / 128)).float()


def unchanged(before: Tensor, after: Tensor, side: int, regions: Tensor | None = None) -> Tensor:
    """Return (side, side), 1 where two pictures differ by less than a change and no given region lies, else 0."""
    kept = 1 - smoothstep(measured_change(before, after, side), *CHANGED)
    if regions is None:
        return kept
    return kept * (1 - dilate(F.adaptive_avg_pool2d(regions[None, None].float(), side)[0, 0], 1))


def dilate(x: Tensor, radius: float) -> Tensor:
    """Return the maximum of (h, w) within `radius` pixels in each direction."""
    r = max(1, round(radius))
    return F.max_pool2d(x[None, None], 2 * r + 1, stride=1, padding=r)[0, 0]


def soften(x: Tensor, radius: float) -> Tensor:
    """Return the mean of (h, w) within about `radius` pixels: twice that of half the radius."""
    r = max(1, round(radius / 2))
    for _ in range(2):
        x = F.avg_pool2d(x[None, None], 2 * r + 1, stride=1, padding=r, count_include_pad=False)[0, 0]
    return x


def smoothstep(x: Tensor, low: float, high: float) -> Tensor:
    """Return 0 below `low`, 1 above `high`, and a cubic in between."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def border_ramp(side: int, width: float) -> Tensor:
    """Return (side, side): 0 at the border, 1 from `width` pixels inside."""
    near = torch.minimum(torch.arange(side), torch.arange(side).flip(0)).float()
    return smoothstep(torch.minimum(near[:, None], near[None, :]), 0, width)


# ----------------------------------------------------------------------------------------------------
# Colors at the seam.


def color_shift(original: Tensor, after: Tensor, mask: Tensor, trust: Tensor) -> Tensor:
    """Return what to add to `after` so that it meets the photograph's colors at the seam.

    Around the mask it is the difference of the two pictures, inside the smooth surface that continues it: the membrane
    of gradient-domain blending (Perez et al., Poisson Image Editing, 2003) for pictures whose gradients are kept.

    Args:
        original: the aligned photograph, (3, n, n) in [-1, 1].
        after: (3, n, n), the changed picture.
        mask: (h, h), as from `change_mask`.
        trust: (h, h), 0 where the pictures differ by more than their colors: beyond the photograph's border, and where
            the change goes on outside the mask.

    Returns:
        (3, h, h), in units of the pictures; 0 if no pixel can be trusted.
    """
    side = mask.shape[-1]
    difference = F.adaptive_avg_pool2d((original.float() - after.float())[None], side)
    weight = ((1 - mask) * trust)[None, None].to(difference)
    if not bool(weight.sum() > 1e-3):
        return torch.zeros_like(difference[0])
    most = 2 * MOST_SHIFT
    return continue_smoothly(difference.clamp(-most, most), weight)[0].clamp(-most, most)


def continue_smoothly(values: Tensor, weight: Tensor, sweeps: int = 8) -> Tensor:
    """Return (1, C, h, w) that equals `values` where `weight` (1, 1, h, w) is 1 and is harmonic where it is 0.

    Coarse sizes first (pull-push, Gortler et al., The Lumigraph, 1996), then sweeps of Jacobi's method at each size.
    """
    height, width = values.shape[-2:]
    if max(height, width) <= 2:
        mean = (values * weight).sum(dim=(2, 3), keepdim=True) / weight.sum(dim=(2, 3), keepdim=True).clamp_min(1e-8)
        surface = mean.expand_as(values)
    else:
        size = (-(-height // 2), -(-width // 2))
        share = F.adaptive_avg_pool2d(weight, size)
        small = F.adaptive_avg_pool2d(values * weight, size) / share.clamp_min(1e-8)
        coarse = continue_smoothly(small, (4 * share).clamp(max=1), sweeps)
        surface = F.interpolate(coarse, size=(height, width), mode="bilinear", align_corners=False)
    for _ in range(sweeps):
        padded = F.pad(surface, (1, 1, 1, 1), mode="replicate")
        mean = (padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1] + padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]) / 4
        surface = values * weight + mean * (1 - weight)
    return surface


# ----------------------------------------------------------------------------------------------------
# From the square to the photograph.


def square_map(corners: np.ndarray, side: int) -> np.ndarray:
    """Return the affine map (2, 3) from points of the photograph to those of the square of `side` pixels.

    Points are those of Pillow's transforms: (0, 0) is the corner of the first pixel, its center (0.5, 0.5).

    Args:
        corners: (4, 2), as from `faces.face_square`: centers of pixels are whole numbers.
    """
    origin, down, _, right = np.asarray(corners, dtype=np.float64) + 0.5
    x, y = right - origin, down - origin
    matrix = np.stack([x / (x @ x), y / (y @ y)]) * side
    return np.concatenate([matrix, -(matrix @ origin)[:, None]], axis=1)


def inside_photograph(corners: np.ndarray, size: tuple[int, int], side: int) -> Tensor:
    """Return (side, side), 1 where a pixel of the square lies in the photograph of `size`, else 0."""
    origin, down, _, right = np.asarray(corners, dtype=np.float64) + 0.5
    steps = (np.arange(side) + 0.5) / side
    points = origin + steps[:, None, None] * (down - origin) + steps[None, :, None] * (right - origin)
    return torch.from_numpy(((points > 0) & (points < size)).all(axis=-1).astype(np.float32))


def put_back(
    image: Image.Image, corners: np.ndarray, changed: Image.Image, mask: Tensor, shift: Tensor
) -> tuple[Image.Image, Image.Image]:
    """Blend a changed square into a photograph.

    Args:
        image: the upright photograph, mode L, LA, RGB or RGBA; its transparency is kept.
        corners: of the square in it, (4, 2), as from `faces.face_square`.
        changed: the changed square, (n, n), mode RGB.
        mask: (h, h), 0 to 1.
        shift: (3, h, h), added to `changed`, in units of -1 to 1.

    Returns:
        The edited photograph, of the same mode and size, and how much of each pixel was replaced, mode L: 0 where it
        kept its values exactly.
    """
    edited, coverage = image.copy(), Image.new("L", image.size)
    corners = np.asarray(corners, dtype=np.float64)
    side = float(np.hypot(*(corners[3] - corners[0])))
    gray = image.mode in ("L", "LA")
    if side < changed.width:  # pictures are reduced before they are sampled
        small = max(1, math.ceil(side))
        changed = changed.resize((small, small), Image.Resampling.LANCZOS)
    if gray:
        changed = changed.convert("L")
        shift = (shift * torch.tensor([0.299, 0.587, 0.114]).to(shift)[:, None, None]).sum(dim=0, keepdim=True)
    opacity = Image.fromarray(mask.float().cpu().numpy())
    shifts = [Image.fromarray(channel.float().cpu().numpy() * 127.5) for channel in shift]
    low = np.maximum(np.floor(corners.min(axis=0)), 0).astype(int)
    high = np.minimum(np.ceil(corners.max(axis=0)) + 1, image.size).astype(int)
    if (high <= low).any():
        return edited, coverage
    rows = max(1, STRIP // int(high[0] - low[0]))
    for top in range(int(low[1]), int(high[1]), rows):
        box = (int(low[0]), top, int(high[0]), min(top + rows, int(high[1])))

        def sample(picture: Image.Image, resampling: Image.Resampling, box: tuple[int, ...] = box) -> np.ndarray:
            matrix = square_map(corners, picture.width)
            matrix[:, 2] += matrix[:, :2] @ box[:2]
            size = (box[2] - box[0], box[3] - box[1])
            affine = tuple(matrix.flatten())
            return np.asarray(picture.transform(size, Image.Transform.AFFINE, affine, resampling), dtype=np.float32)

        weight = sample(opacity, Image.Resampling.BILINEAR).clip(0, 1)
        pixels = np.array(image.crop(box))
        before = pixels if pixels.ndim == 3 else pixels[..., None]
        channels = len(shifts)
        added = np.stack([sample(channel, Image.Resampling.BILINEAR) for channel in shifts], axis=-1)
        after = sample(changed, Image.Resampling.BICUBIC).reshape(added.shape) + added
        colors = before[..., :channels]  # without transparency
        blended = colors + weight[..., None] * (after - colors)
        colors[:] = np.rint(blended.clip(0, 255)).astype(np.uint8)
        edited.paste(Image.fromarray(pixels), box)
        coverage.paste(Image.fromarray(np.ceil(weight * 255).astype(np.uint8)), box)
    return edited, coverage
