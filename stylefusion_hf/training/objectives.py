"""Candidate terms that the shipped objective does not use: switches for research, measured in benchmarks/objective.

docs/research/objective.md reports the results. All terms are batched and differentiable; B samples, R regions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.evaluation.measurement import changed_area, distance, is_counted, outline

# --- Looks -----------------------------------------------------------------------------------------------------------


def pooled_contrast(
    anchor: Tensor, positive: Tensor, negatives: Tensor, temperature: float = 0.1, max_cosine: float = 0.9
) -> Tensor:
    """Return the InfoNCE (van den Oord et al., arXiv 1807.03748) of each region's pooled features, (B, R).

    Args:
        anchor, positive: (B, R, D), a region in the fused picture and in the picture of its own code.
        negatives: (N, R, D), the same region in other pictures.
        max_cosine: negatives more similar to the positive are left out, since looks repeat.
    """
    a, p, n = (F.normalize(x, dim=-1, eps=1e-6) for x in (anchor, positive, negatives))
    same = torch.einsum("brd,brd->br", a, p)
    others = torch.einsum("brd,nrd->brn", a, n)
    repeated = torch.einsum("brd,nrd->brn", p, n) > max_cosine
    logits = torch.cat([same[..., None], others.masked_fill(repeated, -torch.inf)], dim=-1) / temperature
    return -logits.log_softmax(dim=-1)[..., 0]


def looks_left(c, references, found) -> Tensor:
    """Return the remaining distance (B, R) to each region's wanted looks, over the heads that distinguish it."""
    seen = {**found.looks, "outline": outline(found.probs, references.visible)}
    wanted = {**references.looks, "outline": references.outline}
    left = torch.stack([distance(seen[h], wanted[h]) for h in c.scales.heads], dim=2) / c.scales.whole
    gone = ~is_counted(found.masks)[..., None]
    not_outline = torch.tensor([h != "outline" for h in c.scales.heads], device=gone.device)
    # A region that vanished keeps its full distance; its outline pulls it back.
    left = torch.where(gone & not_outline, left.detach().clamp_min(1), left)
    return (left * c.scales.head_weights).sum(dim=2)


# --- Change outside --------------------------------------------------------------------------------------------------


def outside_change(image: Tensor, reference: Tensor, changed: Tensor, power: float = 2) -> Tensor:
    """Return the change where nothing should change: the sum of |image - reference|^power outside `changed`, (B,).

    The ruler squares; a power of 1 penalizes a faint change everywhere as much as a strong one in few pixels.

    Args:
        image, reference: two pictures whose codes differ only in some leaves.
        changed: (B, H, W), true where those leaves' regions are in either picture, dilated.
    """
    return ((image - reference).abs().pow(power) * ~changed[:, None]).sum(dim=(1, 2, 3))


def outside_terms(c, sample, found) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the change (B,) outside the regions that differ from the reference, and a mask (B,) of samples with one.

    The reference is the base or, for a twin, its partner. "outside" divides by the change outside these regions when
    the whole picture is swapped (the ruler's O), "leak" by that inside them: small regions may change as small a part
    of what is around them as they are small themselves.
    """
    is_twin = (sample.twin >= 0)[:, None, None, None]
    partner = torch.where(sample.twin >= 0, sample.twin, torch.arange(len(sample.base), device=sample.base.device))
    masks = found.masks
    reference = torch.where(is_twin, found.images[partner], c.pool.pictures(sample.base))
    before = c.pool.label_maps(sample.base)[:, None] == c.ids[:, None, None]
    before = torch.where(is_twin, masks[partner], before)
    chosen = sample.changed[..., None, None]
    area = changed_area((before & chosen).any(dim=1), (masks & chosen).any(dim=1))
    change = outside_change(found.images, reference, area, c.power)
    outside = (sample.changed * c.scales.outside).sum(dim=1) / sample.changed.sum(dim=1).clamp_min(1)
    inside = (sample.changed * c.scales.inside).sum(dim=1)
    scales = {"outside": outside, "leak": inside}
    return {name: (change / scale.clamp_min(1e-6), sample.changed.any(dim=1)) for name, scale in scales.items()}


# --- Realism and balance ---------------------------------------------------------------------------------------------


def implausibility(logits: Tensor) -> Tensor:
    """Return the non-saturating GAN loss (B,) of fused pictures from the discriminator's logits (B, 1)."""
    return F.softplus(-logits[:, 0])


def deficit_weights(transfer: Tensor, power: float, limit: float = 3.0) -> Tensor:
    """Return weights (R,) by missing transfer: ((1 - T) / mean (1 - T))^power, clamped to [1 / limit, limit]."""
    lacking = (1 - transfer).clamp(0.02, 1)
    return (lacking / lacking.mean()).pow(power).clamp(1 / limit, limit)


def research_terms(c, sample, references, found, weight: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Return the terms of weight above 0, and "looks", which summarizes progress; arguments as in `composed_terms`."""
    counted = sample.counted.float()
    share = counted * weight / counted.sum(dim=1, keepdim=True).clamp_min(1)  # of a sample's regions
    left = looks_left(c, references, found)
    left = left if c.weights["looks"] else left.detach()
    terms: dict[str, tuple[Tensor, Tensor | None]] = {
        "looks": ((share * left).sum(dim=1), None),
        "looks left": (left, None),
    }
    if c.weights["outside"] or c.weights["leak"]:
        terms |= {name: term for name, term in outside_terms(c, sample, found).items() if c.weights[name]}
    if c.weights["pooled"]:
        some = torch.arange(min(c.negatives, len(c.pool)), device=c.ids.device)
        pick = (sample.first + some) % len(c.pool)
        each = [
            pooled_contrast(found.looks[h], references.looks[h], c.pool.looks[h][pick], c.temperature)
            for h in found.looks
        ]
        terms["pooled"] = (share * torch.stack(each).mean(dim=0)).sum(dim=1), None
    if c.weights["realism"] and c.discriminator is not None:
        terms["realism"] = implausibility(c.discriminator(found.images).logits), None
    return terms
