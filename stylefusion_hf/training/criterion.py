"""The loss of fusion nets: samples, their references, and the weighted sum of the terms that the flags name.

`composed.py` is the objective that ships, `contrastive.py` the one that the paper describes, `objectives.py` has what
else was tried. This module draws, scales and sums.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stylefusion_hf.core.memory import MemoryPlan, memory_budget
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.evaluation.measurement import border_width
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.training.composed import composed_terms
from stylefusion_hf.training.contrastive import contrastive_terms
from stylefusion_hf.training.networks import Description, FrozenNetworks
from stylefusion_hf.training.objectives import deficit_weights, research_terms
from stylefusion_hf.training.pool import RenderedPool
from stylefusion_hf.training.references import Fuse, ReferenceMaker, RegionReferences
from stylefusion_hf.training.roles import Roles
from stylefusion_hf.training.samples import Sample, SampleSource
from stylefusion_hf.training.sampling import Shares
from stylefusion_hf.training.scales import StrangerScales

TERMS = ("outside", "looks", "locality", "transfer", "regions", "pooled", "spatial", "pose", "layout", "realism")
NEED_PICTURE = ("locality", "transfer", "regions")  # terms that need a whole picture put together from the owners


class Criterion:
    """The loss of fused codes.

    Args:
        tree, roles: the regions.
        networks: frozen ones.
        pool: plain pictures.
        weights: of `TERMS`. Terms of weight 0 are not computed, but for the looks, which are watched anyway, and for
            those that one of `NEED_PICTURE` brings along.
        reference: of `references.REFERENCES`: what owns a region's look.
        deficit: exponent of the weights by lacking transfer (0: all regions alike).
        temperature: of the contrasts.
        discriminator: for realism.
        negatives: how many pictures of the pool the pooled contrast sets against the owner.
        power: of the differences that make the change outside.
        plan: how many samples at once, for memory; all of them if left out.
    """

    def __init__(
        self,
        tree: RegionTree,
        roles: Roles,
        networks: FrozenNetworks,
        pool: RenderedPool,
        weights: Mapping[str, float],
        reference: str = "warped",
        deficit: float = 1.0,
        temperature: float = 0.1,
        discriminator: StyleGAN2Discriminator | None = None,
        negatives: int = 512,
        power: float = 2,
        plan: MemoryPlan | None = None,
    ):
        if unknown := [name for name in weights if name not in TERMS]:
            raise ValueError(f"unknown term {unknown[0]!r}: choose from {', '.join(TERMS)}")
        self.tree, self.roles, self.networks, self.pool = tree, roles, networks, pool
        self.weights = {name: float(weights.get(name, 0)) for name in TERMS}
        self.deficit, self.temperature, self.discriminator = deficit, temperature, discriminator
        self.negatives, self.power = negatives, power
        self.source = SampleSource(tree, roles, pool)
        self.ids = self.source.ids
        columns = {name: i for i, name in enumerate(tree.nodes)}
        groups = [columns[n] for n, _, _ in roles.groups]
        self.group_columns = torch.tensor(groups, device=pool.codes.device, dtype=torch.long)
        self.border = border_width(networks.resolution)
        self.references = ReferenceMaker(
            tree,
            roles,
            networks,
            pool,
            reference,
            with_maps=self.weights["spatial"] > 0,
            with_picture=any(self.weights[name] for name in NEED_PICTURE),
        )
        self.plan = plan or MemoryPlan(memory_budget(pool.codes.device), networks.resolution, len(pool), "", 0)
        self.scales = StrangerScales(self.source, self.references, roles, power, self.plan.references)

    def draw(self, batch: int, draw: torch.Generator, shares: Shares) -> Sample:
        """A batch of samples."""
        return self.source.draw(batch, draw, shares)

    def codes(self, sample: Sample) -> dict[str, Tensor]:
        """{node: style codes (B, S)}."""
        return self.source.codes(sample)

    def targets(self, sample: Sample, fuse: Fuse | None = None) -> RegionReferences:
        """What the samples should look like; `fuse` makes the aligned references."""
        return self.references(sample, fuse)

    def __call__(
        self,
        sample: Sample,
        references: RegionReferences,
        found: Description,
        transfer: Tensor | None = None,
        whole: Sample | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Mean losses by term, and what is left of each region's distance where it alone was swapped.

        Args:
            found: the fused pictures.
            transfer: (R,), how much of each region's look has been carried over of late, for the deficit's weights.
            whole: the batch that `sample` is a part of: the losses of its parts sum to the whole batch's.

        Returns:
            {term: number}; (2, R): the sum of (1 - T) over single swaps, and their number.
        """
        weight = torch.ones(len(self.ids), device=self.ids.device)
        if transfer is not None and self.deficit:
            weight = deficit_weights(transfer, self.deficit)
        terms: dict[str, tuple[Tensor, Tensor | None]] = {}
        for make in (composed_terms, contrastive_terms, research_terms):
            terms |= make(self, sample, references, found, weight)
        lacking = terms.pop("looks left")[0]
        if "left" in terms:
            left = terms.pop("left")[0][:, None]
            lacking = left if self.weights["transfer"] else lacking
        counts = self.counts(sample if whole is None else whole)
        losses = {}
        for name, (values, chosen) in terms.items():
            total = values.sum() if chosen is None else (values * chosen).sum()
            losses[name] = total / counts.get(name, len(sample if whole is None else whole))
        alone = (sample.counted & sample.single[:, None]).float()
        return losses, torch.stack([(lacking.detach() * alone).sum(dim=0), alone.sum(dim=0)])

    def counts(self, sample: Sample) -> dict[str, Tensor]:
        """Over how much the terms that leave mixes out take their means."""
        chosen = {
            "pose": sample.frame != sample.base,
            "layout": sample.nodes[:, self.group_columns] != sample.base[:, None],
            "outside": sample.changed.any(dim=1),
        }
        return {name: x.sum().clamp_min(1) for name, x in chosen.items()}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum."""
        return torch.stack([self.weights[name] * value for name, value in losses.items() if self.weights[name]]).sum()
