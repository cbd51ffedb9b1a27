"""Regions of pictures: their masks, least sizes and occlusion, and distances between their looks.

Everything that compares regions uses these functions (refinement, the ruler, the training score and the fusion
objective), so that "outside", "visible" and "too small to count" mean the same everywhere.

Sizes are fractions of the picture, so that a figure means the same at 64 and at 1024 pixels. Label maps are (B, H, W)
integers or, of R regions, (B, R, H, W) booleans; regions are listed back to front.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.imaging.features import layout

MIN_PIXELS = 8  # least area of a region that counts, at 64 x 64 pixels
MIN_AREA = MIN_PIXELS / 64**2  # the same as a share of the picture, about 0.2 %
BORDER = 1 / 64  # of the width; regions are dilated by this much before anything counts as outside

# A head (one of the features that describe a look) is ignored for regions that hardly differ in it: where the typical
# difference between two pictures is below this share of the feature's norm. Maps are standardized and always differ.
LEAST_DIFFERENCE = {"colour": 0.05, "maps": 0.0, "texture": 0.4, "outline": 0.1}


# --- Sizes -----------------------------------------------------------------------------------------------------------


def least_pixels(height: int, width: int) -> int:
    """Return the least number of pixels of a region that counts: 8 at 64 x 64, 128 at 256 x 256; at least 1."""
    return max(1, round(MIN_AREA * height * width))


def border_width(width: int) -> int:
    """Return the dilation of regions in pixels at this width: 1 up to 127, 4 at 256."""
    return max(1, int(width * BORDER))


# --- Masks -----------------------------------------------------------------------------------------------------------


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Dilate masks (B, H, W) or (B, R, H, W) by `radius` pixels in every direction."""
    x = mask.float()
    x = F.max_pool2d(x, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(x, (2 * radius + 1, 1), stride=1, padding=(radius, 0)) > 0


def changed_area(before: Tensor, after: Tensor) -> Tensor:
    """Return the dilated union of a region's masks (..., H, W) in two pictures; everything else is outside."""
    return dilate(before | after, border_width(before.shape[-1]))


def is_counted(mask: Tensor, least: int | None = None) -> Tensor:
    """Return whether masks (..., H, W) are large enough for the region to count, (...)."""
    return mask.sum(dim=(-2, -1)) >= (least_pixels(*mask.shape[-2:]) if least is None else least)


def in_front(region: int | Tensor, *labels: Tensor) -> Tensor:
    """Return where something lies in front of a region in any of the label maps (B, H, W): (B, H, W).

    region: one number, or one per picture, (B,).
    """
    depth = region[:, None, None] if isinstance(region, Tensor) else region
    hidden = labels[0] > depth
    for more in labels[1:]:
        hidden = hidden | (more > depth)
    return hidden


# --- Looks -----------------------------------------------------------------------------------------------------------


def outline(probs: Tensor, visible: Tensor) -> Tensor:
    """Return a region's soft outline where it is visible; probabilities and masks are (B, H, W) or (B, R, H, W)."""
    return layout(probs * visible)


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Return the Euclidean distance over the last dimension, smoothed near 0."""
    return ((x - y).square().sum(dim=-1) + 1e-8).sqrt() - 1e-4


def squared_change(image: Tensor, reference: Tensor, where: Tensor) -> Tensor:
    """Sum (image - reference)^2 over channels and the pixels of masks (B, H, W): (B,)."""
    return (where[:, None].to(image.dtype) * (image - reference).square()).flatten(1).sum(dim=1)


def head_weights(heads: Collection[Tensor]) -> Tensor:
    """Return equal weights of the heads that count along a new last dimension; all 0 if none counts."""
    chosen = torch.stack(list(heads), dim=-1).float()
    return chosen / chosen.sum(dim=-1, keepdim=True).clamp_min(1)
