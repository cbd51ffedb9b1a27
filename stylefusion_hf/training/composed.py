"""The composed objective, used for the shipped nets: a complete target picture for every mix of codes.

A sample assigns codes to the nodes of the tree. The plain picture of the root's code is the FRAME: where things should
be. The plain picture of a leaf's code is the OWNER of that region: what it should look like. The target is composed
from the owners' pictures, each region moved into the frame's pose and painted back to front.

    locality   regions that keep the frame's code look as in the target
    transfer   the other regions look as in the target
    regions    the fused picture's segmentation is the target's
    pose       the pose regions' centers are the frame's
    layout     an inner node's children are placed relative to each other as in the picture of that node's own code

B samples, R regions, listed back to front; images (B, 3, H, W) in [-1, 1], probabilities (B, R, H, W). Distances are
divided by those between two random pictures: 1 means "as far as an unrelated picture" for every region and generator.
Lengths and areas are fractions of the picture, so that terms are comparable between resolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.evaluation.measurement import distance

CELLS = 64  # pictures are compared in cells of 1/64 of the width, the accuracy of an estimated pose

# --- The target ------------------------------------------------------------------------------------------------------


def compose(claims: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Compute which region should be where, by the painter's algorithm.

    Args:
        claims: (B, R, H, W), where each region is in its owner's picture, moved into the frame's pose.
        hidden: (B, R, H, W), where the frame shows the region but its owner's picture hides it (skin under that
            picture's hair): there the region continues, in unknown colors, behind what hides it.

    Returns:
        layout: (B, H, W), the foremost region that claims the pixel or is hidden there, -1 where there is none.
        owner: (B, H, W), the same, but -1 where its color is unknown.
    """
    depth = torch.arange(claims.shape[1], device=claims.device)[:, None, None]
    layout = torch.where(claims | hidden, depth, -1).amax(dim=1)
    known = claims.gather(1, layout.clamp_min(0)[:, None])[:, 0] & (layout >= 0)
    return layout, torch.where(known, layout, -1)


# --- Locality and transfer -------------------------------------------------------------------------------------------


def cell_features(images: Tensor) -> Tensor:
    """Average images (B, C, H, W) over cells; if a cell is more than a pixel, also measure how much detail it has.

    The pose's error makes the phase of detail finer than a cell unknown, but not its strength.

    Returns (B, C or 2 C, h, w).
    """
    side = cell_side(images.shape[-2], images.shape[-1])
    if side == 1:
        return images
    mean = F.avg_pool2d(images, side)
    detail = F.avg_pool2d((images - F.interpolate(mean, scale_factor=side, mode="nearest")).abs(), side)
    return torch.cat([mean, detail], dim=1)


def cell_side(height: int, width: int) -> int:
    """Return the side of a cell in pixels, a power of two that divides both: CELLS or more cells are across."""
    side = 1
    while 2 * side <= width // CELLS and height % (2 * side) == 0 and width % (2 * side) == 0:
        side *= 2
    return side


def masked_distance(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted sum (B,) of |a - b| of `cell_features` (B, C, h, w); weight (B, h, w).

    The mean over cells of 1/64, 1/32 and 1/16 of the picture's width (at least a pixel each). Larger cells forgive
    small shifts.
    """
    difference = (a - b) * weight[:, None]
    sums: list[Tensor] = []
    while True:
        sums.append(difference.abs().sum(dim=(1, 2, 3)) * 4 ** len(sums))
        if difference.shape[-1] <= CELLS // 4 or min(difference.shape[-2:]) < 2:
            return torch.stack(sums).mean(dim=0)
        difference = F.avg_pool2d(difference, 2)


def relative_distance(image: Tensor, target: Tensor, unrelated: Tensor, mask: Tensor, floor: float = 0.02) -> Tensor:
    """Return the distance (B,) of images from their targets, divided by that of unrelated pictures.

    Args:
        mask: (B, H, W), the pixels to compare. The distance is 0 if there are none.
        floor: least mean difference to divide by, so that similar pictures do not weigh infinitely.
    """
    seen, wanted, other = (cell_features(x) for x in (image, target, unrelated))
    weight = F.adaptive_avg_pool2d(mask.to(image.dtype), (seen.shape[-2], seen.shape[-1]))
    least = floor * weight.sum(dim=(1, 2)) * image.shape[1]
    scale = masked_distance(other, wanted, weight) + least
    return masked_distance(seen, wanted, weight) / scale.clamp_min(1e-6)


def segmentation_loss(probs: Tensor, layout: Tensor, frame: Tensor) -> Tensor:
    """Return the cross entropy (B,) between the fused picture's regions and the target's.

    Args:
        probs: (B, R, H, W).
        layout: (B, H, W) from `compose`. -1 marks pixels where a region of the frame disappeared; there we only
            penalize its presence.
        frame: (B, H, W), labels of the frame.
    """
    p = probs.clamp_min(1e-6)
    hit = -p.gather(1, layout.clamp_min(0)[:, None])[:, 0].log()
    miss = -torch.log1p(-p.gather(1, frame[:, None])[:, 0].clamp_max(0.999))
    return torch.where(layout >= 0, hit, miss).mean(dim=(1, 2))


# --- Pose and layout -------------------------------------------------------------------------------------------------


def pose_error(centers: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Return the weighted mean distance (B,) of the pose regions' centers (B, P, 2) from the wanted ones.

    weight: (B, P).
    """
    return (weight * distance(centers, wanted)).sum(dim=1) / weight.sum(dim=1).clamp_min(1e-6)


def offsets(centers: Tensor, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """Return the offset (B, pairs, 2) of the first group of regions from the second, for each pair of groups."""
    return torch.stack([centers[:, list(a)].mean(dim=1) - centers[:, list(b)].mean(dim=1) for a, b in pairs], dim=1)


# --- The loss --------------------------------------------------------------------------------------------------------


def composed_terms(c, sample, references, found, weight: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return each term as (values, mask of those that count, or None if all do).

    Args:
        c: the `Criterion`, for its pool, roles and scales.
        sample, references: of B mixes.
        found: the `Description` of the fused pictures.
        weight: (R,), of the regions.
    """
    pool, pose = c.pool, c.roles.pose
    frame = pool.pictures(sample.frame)
    terms: dict[str, tuple[Tensor, Tensor | None]] = {}
    if references.picture is not None:
        foreign = sample.owners != sample.frame[:, None]  # (B, R)
        unrelated = pool.pictures(torch.where(foreign, sample.owners, -1).amax(dim=1).clamp_min(0))
        swapped = foreign.gather(1, references.color_of.clamp_min(0).flatten(1)).view_as(references.color_of)
        known = references.color_of >= 0
        still, carried = known & ~swapped, known & swapped
        terms["locality"] = relative_distance(found.images, references.picture, unrelated, still), None
        mean_weight = (foreign * weight).sum(dim=1) / foreign.sum(dim=1).clamp_min(1)
        left = relative_distance(found.images, references.picture, frame, carried)
        terms["transfer"] = left * mean_weight, None
        terms["left"] = left, None  # unweighted, reported as 1 - T
        labels = pool.label_maps(sample.frame).long()
        terms["regions"] = segmentation_loss(found.probs, references.layout, labels), None
    if c.weights["pose"]:
        off = pose_error(
            found.centers[:, pose], pool.centers[sample.frame][:, pose], c.scales.pose_weight(sample.frame)
        )
        terms["pose"] = off / c.scales.pose, sample.frame != sample.base
    if c.weights["layout"] and c.scales.layout is not None:
        owners = sample.nodes[:, c.group_columns]  # (B, groups)
        each = torch.arange(owners.shape[1], device=owners.device)
        goal = c.scales.offsets(pool.centers[owners.flatten()]).view(*owners.shape, -1, 2)[:, each, each]
        terms["layout"] = (
            distance(c.scales.offsets(found.centers), goal) / c.scales.layout,
            owners != sample.base[:, None],
        )
    return terms
