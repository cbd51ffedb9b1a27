"""Measurement core: the size at which pictures are measured, poses, and which features count for a region.

The ruler, the training score and the fusion objective use it together with `imaging/regions.py`, so that "outside",
"visible" and "too small to count" mean the same in all three. Only the networks differ: the ruler has its own judges,
the others use the model's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.sizes import size_at
from stylefusion_hf.imaging.alignment import pose_between
from stylefusion_hf.imaging.regions import (
    LEAST_DIFFERENCE,
    MIN_AREA,
    MIN_PIXELS,
    border_width,
    changed_area,
    dilate,
    distance,
    head_weights,
    in_front,
    is_counted,
    least_pixels,
    outline,
    squared_change,
)

__all__ = [
    "LARGEST_SIZE",
    "LEAST_DIFFERENCE",
    "MIN_AREA",
    "MIN_PIXELS",
    "at_measuring_size",
    "border_width",
    "changed_area",
    "differing_heads",
    "dilate",
    "distance",
    "head_weights",
    "in_front",
    "is_counted",
    "keep_static",
    "least_pixels",
    "most_probable",
    "outline",
    "poses_onto",
    "squared_change",
]

LARGEST_SIZE = 256  # larger pictures are downsampled to this size by default


def at_measuring_size(images: Tensor, size: int | None) -> Tensor:
    """Downsample images (B, C, H, W) to a height of `size`; smaller ones, and all if it is None, stay."""
    if size is None or images.shape[-2] <= size:
        return images
    smaller = size_at(size, (images.shape[-2], images.shape[-1]))
    return F.interpolate(images, size=smaller, mode="bilinear", align_corners=False, antialias=True)


def most_probable(probs: Tensor) -> Tensor:
    """Return labels (B, H, W) of probabilities (B, R, H, W); `max` is several times faster here than `argmax`."""
    return probs.max(dim=1).indices


def poses_onto(target: Tensor, source: Tensor, posing: Sequence[int], regions: int) -> Tensor:
    """Return warps (B, 2, 3) that align the `posing` regions of the sources with the targets'; labels (B, H, W)."""
    return pose_between(target, source, list(posing), regions)


def keep_static(theta: Tensor, static: Tensor) -> Tensor:
    """Replace similarities (B, 2, 3) by the identity for regions that do not move with the pose; static: (B,)."""
    still = torch.eye(2, 3, device=theta.device, dtype=theta.dtype)
    return torch.where(static[:, None, None], still, theta)


def differing_heads(difference: Mapping[str, Tensor], size: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return {head: whether pictures differ enough in it to be compared}, booleans shaped like the entries.

    difference: {head: typical distance between the looks of two pictures}; size: {head: typical norm of a look}.
    """
    return {head: difference[head] >= LEAST_DIFFERENCE[head] * size[head] for head in difference}
