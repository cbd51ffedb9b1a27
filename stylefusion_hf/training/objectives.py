"""What fused images should be like: the candidate terms of the fusion objective, each a small pure function.

StyleFusion's authors published no training code, so all of this is a RECONSTRUCTION:
docs/research/objective.md says which terms were tried and which won. `criterion.py` weighs and sums them.

All functions are batched and differentiable. B samples, R regions, listed back to front; images (B, 3, H, W) in
[-1, 1], probabilities (B, R, H, W), masks (B, H, W) or (B, R, H, W). Distances are relative to what they are between
two random pictures, so that 1 means "as far as a stranger's" for every region, head and generator.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.evaluation.score import distance
from stylefusion_hf.imaging.alignment import pixel_places

# --- Locality --------------------------------------------------------------------------------------------------------


def outside_change(image: Tensor, reference: Tensor, changed: Tensor, power: float = 2) -> Tensor:
    """Change where nothing should: sum of |image - reference|^power elsewhere than in `changed`, (B,).

    The ruler squares; a power of 1 is as hard on a faint change everywhere as on a strong one in few places.

    Args:
        image, reference: two pictures whose codes differ in some leaves only.
        changed: (B, H, W), true where those leaves' regions are in either picture, widened.
    """
    return ((image - reference).abs().pow(power) * ~changed[:, None]).sum(dim=(1, 2, 3))


# --- Transfer --------------------------------------------------------------------------------------------------------


def compose(claims: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Which region should be where, by the painter's algorithm.

    Args:
        claims: (B, R, H, W), where each region lies in its own reference.
        hidden: (B, R, H, W), where the frame has the region and its own reference hides it (skin under that picture's
            hair): it goes on there, in unknown colours, behind what hid it.

    Returns:
        layout (B, H, W), the foremost region that claims the place or is hidden there, -1 where none does; owner
        (B, H, W), the same, but -1 where its colour is not known.
    """
    depth = torch.arange(claims.shape[1], device=claims.device)[:, None, None]
    layout = torch.where(claims | hidden, depth, -1).amax(dim=1)
    known = claims.gather(1, layout.clamp_min(0)[:, None])[:, 0] & (layout >= 0)
    return layout, torch.where(known, layout, -1)


def masked_distance(difference: Tensor, mask: Tensor, levels: int = 3) -> Tensor:
    """Sum of |difference| (B, 3, H, W) under a mask (B, H, W), per sample, over full, half and quarter size; (B,).

    The smaller sizes forgive a shift of a pixel or two, which is what an estimated pose is good for.
    """
    x, total = difference * mask[:, None], torch.zeros_like(difference[:, 0, 0, 0])
    for level in range(levels):
        total = total + x.abs().sum(dim=(1, 2, 3)) * 4**level / levels
        if level < levels - 1:
            x = F.avg_pool2d(x, 2)
    return total


def relative_distance(image: Tensor, target: Tensor, stranger: Tensor, mask: Tensor, floor: float = 0.02) -> Tensor:
    """`masked_distance` of an image from its target over that of a stranger from the target, (B,).

    0 where the mask is empty. `floor`: the mean difference that at least counts, so that look-alikes do not weigh
    infinitely.
    """
    m = mask.to(image.dtype)
    least = floor * m.sum(dim=(1, 2)) * image.shape[1]
    scale = masked_distance(stranger - target, m) + least
    return masked_distance(image - target, m) / scale.clamp_min(1e-6)


def segmentation_loss(probs: Tensor, layout: Tensor, frame: Tensor) -> Tensor:
    """Cross entropy (B,) of the fused picture's regions with those that should be there.

    Args:
        probs: (B, R, H, W).
        layout: (B, H, W) from `compose`. Where it is -1 a region went that the frame had there: only that it be gone
            is asked, whatever shows instead.
        frame: (B, H, W), labels of the frame.
    """
    p = probs.clamp_min(1e-6)
    hit = -p.gather(1, layout.clamp_min(0)[:, None])[:, 0].log()
    miss = -torch.log1p(-p.gather(1, frame[:, None])[:, 0].clamp_max(0.999))
    return torch.where(layout >= 0, hit, miss).mean(dim=(1, 2))


def pooled_contrast(
    anchor: Tensor, positive: Tensor, negatives: Tensor, temperature: float = 0.1, alike: float = 0.9
) -> Tensor:
    """InfoNCE (van den Oord et al., arXiv 1807.03748) of each region's pooled features, (B, R).

    Args:
        anchor, positive: (B, R, D), the fused picture's region and the same region of the code that owns it.
        negatives: (N, R, D), that region of other pictures.
        alike: negatives whose cosine with the positive exceeds this are left out: looks repeat.
    """
    a, p, n = (F.normalize(x, dim=-1, eps=1e-6) for x in (anchor, positive, negatives))
    same = torch.einsum("brd,brd->br", a, p)
    others = torch.einsum("brd,nrd->brn", a, n)
    repeated = torch.einsum("brd,nrd->brn", p, n) > alike
    logits = torch.cat([same[..., None], others.masked_fill(repeated, -torch.inf)], dim=-1) / temperature
    return -logits.log_softmax(dim=-1)[..., 0]


def spatial_contrast(
    anchor: Tensor, references: Tensor, masks: Tensor, temperature: float = 0.1, alike: float = 0.9
) -> Tensor:
    """Region-contrastive loss on feature maps, place by place, (B,).

    At a place of region r the positive is the map of the code that owns r; the negatives are the maps of the sample's
    other codes AT THAT PLACE. A place weighs 1 - max cos(positive, negative): where all codes look the same there is
    nothing to learn.

    Args:
        anchor: (B, C, h, w), the fused picture's map, channels in units of their deviation.
        references: (B, R, C, h, w), the maps of each region's own code, in the pose that is wanted.
        masks: (B, R, h, w), where a region lies in the fused picture and in its own reference. They do not overlap.
        alike: negatives whose cosine with the positive exceeds this are left out: two regions may share a code.
    """
    a = F.normalize(anchor.flatten(2), dim=1, eps=1e-6)
    refs = F.normalize(references.flatten(3), dim=2, eps=1e-6)  # (B, R, C, P)
    m = masks.flatten(2)
    positive = torch.einsum("brcp,brp->bcp", refs, m)
    same = torch.einsum("bcp,bcp->bp", a, positive)
    others = torch.einsum("bcp,brcp->brp", a, refs)
    likeness = torch.einsum("bcp,brcp->brp", positive, refs)
    dropped = likeness > alike
    logits = torch.cat([same[:, None], others.masked_fill(dropped, -torch.inf)], dim=1) / temperature
    weight = m.sum(dim=1) * (1 - likeness.masked_fill(dropped, 0.0).amax(dim=1)).clamp(0, 1) * ~dropped.all(dim=1)
    return (-logits.log_softmax(dim=1)[:, 0] * weight).sum(dim=1) / weight.sum(dim=1).clamp_min(1)


# --- Common codes ----------------------------------------------------------------------------------------------------


def soft_middles(probs: Tensor) -> Tensor:
    """Middles (B, R, 2) of probabilities as (x, y), in `affine_grid`'s units; they move when the picture does."""
    ys, xs = (pixel_places(n, probs.device).to(probs.dtype) for n in probs.shape[-2:])
    sure = probs.square()  # a pixel that nobody is sure of should not pull a middle
    total = sure.sum(dim=(2, 3)).clamp_min(1e-6)
    return torch.stack([(sure.sum(dim=2) * xs).sum(-1) / total, (sure.sum(dim=3) * ys).sum(-1) / total], dim=-1)


def pose_error(middles: Tensor, wanted: Tensor, weight: Tensor) -> Tensor:
    """Mean distance (B,) of the pose regions' middles (B, P, 2) from where they should be; weight (B, P) of each."""
    return (weight * distance(middles, wanted)).sum(dim=1) / weight.sum(dim=1).clamp_min(1e-6)


def offsets(middles: Tensor, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """Where the first group of regions lies as seen from the second, for each pair of groups: (B, pairs, 2)."""
    return torch.stack([middles[:, list(a)].mean(dim=1) - middles[:, list(b)].mean(dim=1) for a, b in pairs], dim=1)


# --- Realism and balance ---------------------------------------------------------------------------------------------


def implausibility(logits: Tensor) -> Tensor:
    """Non-saturating GAN loss of fused pictures, (B,); their discriminator's logits are (B, 1)."""
    return F.softplus(-logits[:, 0])


def deficit_weights(transfer: Tensor, power: float, limit: float = 3.0) -> Tensor:
    """Weights of regions by what they lack: ((1 - T) / mean (1 - T))^power, between 1 / limit and limit; (R,)."""
    lacking = (1 - transfer).clamp(0.02, 1)
    return (lacking / lacking.mean()).pow(power).clamp(1 / limit, limit)
