"""The measurement core: what a region of a picture is, when it counts, what hides it, and how far two looks are apart.

The ruler judges swaps with it, the training score optimizes gates with it, and the fusion objective trains nets with
it, so that all three mean the same by "outside", "visible" and "too small to count". The networks differ: the ruler
has judges of its own, the other two use the model's.

Sizes are fractions of the picture, so that a figure means the same at 64 and at 1024 pixels. Label maps are (B, H, W)
integers or, of R regions, (B, R, H, W) booleans; regions are listed back to front.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.imaging.alignment import pose_between
from stylefusion_hf.imaging.features import layout

LARGEST_SIZE = 256  # pixels at which pictures are measured by default, if they are larger
MIN_PIXELS = 8  # of a region at 64 x 64 pixels, for it to count
MIN_AREA = MIN_PIXELS / 64**2  # the same as a share of the picture, about 0.2 %
BORDER = 1 / 64  # of the width: by how much a region is widened before anything counts as outside

# A head (one of the features of a look) counts for nothing for a region that hardly differs in it from picture to
# picture: where the difference between two pictures is less than this share of the feature's size. Maps are in units
# of their deviation over samples: they always differ.
LEAST_DIFFERENCE = {"colour": 0.05, "maps": 0.0, "texture": 0.4, "outline": 0.1}


# --- Sizes -----------------------------------------------------------------------------------------------------------


def least_pixels(height: int, width: int) -> int:
    """How many pixels a region needs to count: 8 at 64 x 64 pixels, 128 at 256 x 256; at least 1."""
    return max(1, round(MIN_AREA * height * width))


def border_width(width: int) -> int:
    """By how many pixels regions are widened at this width: 1 up to 127, 4 at 256."""
    return max(1, int(width * BORDER))


def at_measuring_size(images: Tensor, size: int | None) -> Tensor:
    """Images (B, C, H, W) averaged down to `size` pixels; smaller ones, and all where `size` is None, as they are."""
    if size is None or images.shape[-1] <= size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False, antialias=True)


# --- Regions ---------------------------------------------------------------------------------------------------------


def most_probable(probs: Tensor) -> Tensor:
    """Labels (B, H, W) of probabilities (B, R, H, W); `max` is several times faster here than `argmax`."""
    return probs.max(dim=1).indices


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Masks (B, H, W) or (B, R, H, W), each widened by `radius` pixels in every direction."""
    x = mask.float()
    x = F.max_pool2d(x, (1, 2 * radius + 1), stride=1, padding=(0, radius))
    return F.max_pool2d(x, (2 * radius + 1, 1), stride=1, padding=(radius, 0)) > 0


def changed_area(before: Tensor, after: Tensor) -> Tensor:
    """Where a region is in either picture, masks (..., H, W), with its border: what lies elsewhere is outside."""
    return dilate(before | after, border_width(before.shape[-1]))


def is_counted(mask: Tensor, least: int | None = None) -> Tensor:
    """Whether masks (..., H, W) have the pixels that a region needs to count, (...)."""
    return mask.sum(dim=(-2, -1)) >= (least_pixels(*mask.shape[-2:]) if least is None else least)


def in_front(region: int | Tensor, *labels: Tensor) -> Tensor:
    """Where something lies in front of a region in any of the label maps (B, H, W): (B, H, W).

    region: a number, or one for each picture, (B,).
    """
    depth = region[:, None, None] if isinstance(region, Tensor) else region
    hidden = labels[0] > depth
    for more in labels[1:]:
        hidden = hidden | (more > depth)
    return hidden


# --- Poses -----------------------------------------------------------------------------------------------------------


def poses_onto(target: Tensor, source: Tensor, posing: Sequence[int], regions: int) -> Tensor:
    """(B, 2, 3): how to sample sources so that their `posing` regions lie where the targets' do; labels (B, H, W)."""
    return pose_between(target, source, list(posing), regions)


def keep_static(theta: Tensor, static: Tensor) -> Tensor:
    """Similarities (B, 2, 3) without those of regions that do not move with the pose; static: (B,) booleans."""
    still = torch.eye(2, 3, device=theta.device, dtype=theta.dtype)
    return torch.where(static[:, None, None], still, theta)


# --- Looks -----------------------------------------------------------------------------------------------------------


def outline(probs: Tensor, visible: Tensor) -> Tensor:
    """A region's soft outline where nothing hides it: probabilities (B, H, W) or (B, R, H, W) and masks alike."""
    return layout(probs * visible)


def distance(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean, over the last dimension; smooth where it is 0."""
    return ((x - y).square().sum(dim=-1) + 1e-8).sqrt() - 1e-4


def squared_change(image: Tensor, reference: Tensor, where: Tensor) -> Tensor:
    """Sum over pixels and channels of (image - reference)^2 under masks (B, H, W): (B,)."""
    return (where[:, None].to(image.dtype) * (image - reference).square()).flatten(1).sum(dim=1)


def differing_heads(difference: Mapping[str, Tensor], size: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{head: whether pictures differ in it enough to say anything}, booleans shaped as the entries.

    difference: {head: a typical distance between two pictures' looks}; size: {head: the typical norm of a look}.
    """
    return {head: difference[head] >= LEAST_DIFFERENCE[head] * size[head] for head in difference}


def head_weights(heads: Collection[Tensor]) -> Tensor:
    """Equal weights of the heads that count, in their order along a new last dimension; none count: all 0."""
    chosen = torch.stack(list(heads), dim=-1).float()
    return chosen / chosen.sum(dim=-1, keepdim=True).clamp_min(1)
