"""Candidate terms that the shipped objective does not use: switches for research, measured in benchmarks/objective.

docs/research/objective.md says which were tried and what they gave. All are batched and differentiable; B samples, R
regions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.evaluation.measurement import changed_area, distance, is_counted, outline

# --- Looks -----------------------------------------------------------------------------------------------------------


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


def looks_left(c, references, found) -> Tensor:
    """What is left of the distance to each region's own looks, over the heads that tell that region apart; (B, R)."""
    seen = {**found.looks, "outline": outline(found.probs, references.visible)}
    wanted = {**references.looks, "outline": references.outline}
    left = torch.stack([distance(seen[h], wanted[h]) for h in c.scales.heads], dim=2) / c.scales.whole
    gone = ~is_counted(found.masks)[..., None]
    not_outline = torch.tensor([h != "outline" for h in c.scales.heads], device=gone.device)
    # A region that vanished keeps its whole distance; its outline pulls it back.
    left = torch.where(gone & not_outline, left.detach().clamp_min(1), left)
    return (left * c.scales.head_weights).sum(dim=2)


# --- Change outside --------------------------------------------------------------------------------------------------


def outside_change(image: Tensor, reference: Tensor, changed: Tensor, power: float = 2) -> Tensor:
    """Change where nothing should change: sum of |image - reference|^power elsewhere than in `changed`, (B,).

    The ruler squares; a power of 1 is as hard on a faint change everywhere as on a strong one in few places.

    Args:
        image, reference: two pictures whose codes differ in some leaves only.
        changed: (B, H, W), true where those leaves' regions are in either picture, widened.
    """
    return ((image - reference).abs().pow(power) * ~changed[:, None]).sum(dim=(1, 2, 3))


def outside_term(c, sample, found) -> tuple[Tensor, Tensor]:
    """Change outside the regions that differ from the reference (the base, or a twin's partner), and where there is
    a reference; (B,) both.
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
    whole = (sample.changed * c.scales.outside).sum(dim=1) / sample.changed.sum(dim=1).clamp_min(1)
    return change / whole.clamp_min(1e-6), sample.changed.any(dim=1)


# --- Realism and balance ---------------------------------------------------------------------------------------------


def implausibility(logits: Tensor) -> Tensor:
    """Non-saturating GAN loss of fused pictures, (B,); their discriminator's logits are (B, 1)."""
    return F.softplus(-logits[:, 0])


def deficit_weights(transfer: Tensor, power: float, limit: float = 3.0) -> Tensor:
    """Weights of regions by what they lack: ((1 - T) / mean (1 - T))^power, between 1 / limit and limit; (R,)."""
    lacking = (1 - transfer).clamp(0.02, 1)
    return (lacking / lacking.mean()).pow(power).clamp(1 / limit, limit)


def research_terms(c, sample, references, found, weight: Tensor) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Those of weight above 0, and "looks", which says in one number how a training goes; as `composed_terms`."""
    counted = sample.counted.float()
    share = counted * weight / counted.sum(dim=1, keepdim=True).clamp_min(1)  # of a sample's regions
    left = looks_left(c, references, found)
    left = left if c.weights["looks"] else left.detach()
    terms: dict[str, tuple[Tensor, Tensor | None]] = {
        "looks": ((share * left).sum(dim=1), None),
        "looks left": (left, None),
    }
    if c.weights["outside"]:
        terms["outside"] = outside_term(c, sample, found)
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
