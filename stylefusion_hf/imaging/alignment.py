"""Bringing one picture's regions to where another's are: similarities from label maps or from poses, and warps.

All functions are pure and batched. Label maps are (B, H, W) integers, images (B, 3, H, W) in [-1, 1]; coordinates are
in `affine_grid`'s units, -1 to 1 from edge to edge.

In a rectangle these units are longer on one axis than on the other, where a rotation of the picture is none of the
coordinates. `aspect`, the width divided by the height, says by how much.
"""

from collections.abc import Collection, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.region_tree import RegionTree

# --- Pose: a similarity that brings the regions of one image onto those of another -----------------------------------


def static_regions(names: Iterable[str]) -> list[str]:
    """Of region names, those that do not move with the pose: named bg... or background..."""
    return [n for n in names if n.lower().startswith(("bg", "background"))]


def pose_regions(tree: RegionTree, static: Collection[str]) -> list[str]:
    """Leaves whose places tell the pose: those under the root's first child that move, or all that move."""
    first = (tree.children(tree.root) or (tree.root,))[0]
    moving = [leaf for leaf in tree.leaves if leaf not in static]
    return [leaf for leaf in moving if leaf in tree.subtree(first)] or moving


def pixel_places(count: int, device: torch.device) -> Tensor:
    """Where the middles of `count` pixels in a row lie, (count,), from edge to edge -1 to 1."""
    return (torch.arange(count, dtype=torch.float32, device=device) * 2 + 1) / count - 1


def region_centroids(labels: Tensor, num_regions: int) -> tuple[Tensor, Tensor]:
    """Centroids (B, R, 2) as (x, y) and areas (B, R) as shares of the image; both 0 for an absent region."""
    masks, grid = _masks_and_places(labels, num_regions)
    area = masks.sum(dim=1)
    centroid = torch.einsum("bpr,pc->brc", masks, grid) / area.clamp_min(1)[..., None]
    return centroid, area / masks.shape[1]


def _masks_and_places(labels: Tensor, num_regions: int) -> tuple[Tensor, Tensor]:
    """Masks (B, HW, R) and the pixels' (x, y), (HW, 2)."""
    _, h, w = labels.shape
    xs, ys = (pixel_places(n, labels.device) for n in (w, h))
    grid = torch.stack([xs.expand(h, w), ys[:, None].expand(h, w)], dim=-1).reshape(-1, 2)
    return F.one_hot(labels.long(), num_regions).to(torch.float32).flatten(1, 2), grid


def region_axes(labels: Tensor, num_regions: int) -> Tensor:
    """Ends of each region's major axis, (B, R, 2, 2) as two (x, y), in no particular order: where it lies, how it
    leans, how large it is. One standard deviation to either side of the centroid; the centroid for an absent region.
    """
    masks, grid = _masks_and_places(labels, num_regions)
    centroid, _ = region_centroids(labels, num_regions)
    products = torch.stack([grid[:, 0] ** 2, grid[:, 1] ** 2, grid[:, 0] * grid[:, 1]], dim=1)
    mean = torch.einsum("bpr,pc->brc", masks, products) / masks.sum(dim=1).clamp_min(1)[..., None]
    x, y = centroid.unbind(dim=-1)
    wide = aspect_of(labels)  # the axes are those of the picture, not of its coordinates
    xx, yy, xy = (mean[..., 0] - x * x) * wide**2, mean[..., 1] - y * y, (mean[..., 2] - x * y) * wide
    angle = torch.atan2(2 * xy, xx - yy) / 2
    longest = (xx + yy) / 2 + torch.hypot((xx - yy) / 2, xy)
    half = torch.stack([angle.cos() / wide, angle.sin()], dim=-1) * longest.clamp_min(0).sqrt()[..., None]
    return torch.stack([centroid - half, centroid + half], dim=2)


def fit_similarity(
    target: Tensor, source: Tensor, weight: Tensor, scale_limit: float = 1.15, aspect: float = 1.0
) -> Tensor:
    """Similarities that take points of `target` to those of `source`, by least squares (Umeyama, 1991, in 2-D).

    Args:
        target, source: (B, P, 2).
        weight: (B, P), not negative; a point without weight counts for nothing.
        scale_limit: scales are kept between 1 / limit and limit.
        aspect: of the pictures.

    Returns:
        (B, 2, 3) matrices as `F.affine_grid` takes them: they sample the source's image at the target's place. With
        one point or none with weight a translation or the identity.
    """
    square = target.new_tensor([aspect, 1.0])  # brings both axes to one unit
    target, source = target * square, source * square
    total = weight.sum(dim=1, keepdim=True).clamp_min(1e-8)[..., None]
    w = weight[..., None]
    mean_t, mean_s = (w * target).sum(1, keepdim=True) / total, (w * source).sum(1, keepdim=True) / total
    t, s = target - mean_t, source - mean_s
    # As complex numbers z the best factor is sum(w conj(t) s) / sum(w |t|^2).
    real = (w * (t * s)).sum(dim=(1, 2))
    imag = (weight * (t[..., 0] * s[..., 1] - t[..., 1] * s[..., 0])).sum(1)
    spread = (w * t.square()).sum(dim=(1, 2))
    one_point = spread < 1e-4
    real = torch.where(one_point, torch.ones_like(real), real / spread.clamp_min(1e-8))
    imag = torch.where(one_point, torch.zeros_like(imag), imag / spread.clamp_min(1e-8))
    size = torch.hypot(real, imag).clamp_min(1e-8)
    factor = size.clamp(1 / scale_limit, scale_limit) / size
    a, b = real * factor, imag * factor
    rotation = torch.stack([torch.stack([a, -b], -1), torch.stack([b, a], -1)], dim=1)
    shift = mean_s.squeeze(1) - torch.einsum("bij,bj->bi", rotation, mean_t.squeeze(1))
    rotation = rotation * square / square[:, None]
    return torch.cat([rotation, (shift / square)[..., None]], dim=2)


def pose_between(target_labels: Tensor, source_labels: Tensor, pose_regions: list[int], num_regions: int) -> Tensor:
    """(B, 2, 3): how to sample the sources so that their `pose_regions` lie where the targets' do."""
    target, source = (region_centroids(labels, num_regions) for labels in (target_labels, source_labels))
    return pose_between_centroids(*target, *source, pose_regions, aspect_of(target_labels))


def aspect_of(pictures: Tensor) -> float:
    """Width divided by height of pictures or maps (..., H, W)."""
    return pictures.shape[-1] / pictures.shape[-2]


def pose_between_centroids(
    ct: Tensor, at: Tensor, cs: Tensor, as_: Tensor, pose_regions: Sequence[int], aspect: float = 1.0
) -> Tensor:
    """`pose_between` for centroids (B, R, 2) and areas (B, R) that are known already: targets', then sources'."""
    # A small region's centroid says where it is; a large one's also says what hides part of it. Fewer than a
    # thousandth of the pixels say nothing.
    seen, area = torch.minimum(at, as_)[:, pose_regions] > 1e-3, torch.maximum(at, as_)[:, pose_regions]
    weight = seen / area.clamp_min(1e-3)
    return fit_similarity(ct[:, pose_regions], cs[:, pose_regions], weight, aspect=aspect)


def warp(x: Tensor, theta: Tensor, mode: str = "bilinear") -> Tensor:
    """Images (B, C, H, W) sampled by similarities (B, 2, 3); beyond the border they continue with their border."""
    grid = F.affine_grid(theta.to(x.dtype), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode=mode, padding_mode="border", align_corners=False)


def inside(theta: Tensor, height: int, width: int) -> Tensor:
    """(B, H, W), true where `warp` reads from within the source's frame."""
    grid = F.affine_grid(theta, [theta.shape[0], 1, height, width], align_corners=False)
    return (grid.abs() <= 1).all(dim=-1)
