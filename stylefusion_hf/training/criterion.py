"""The loss of fusion nets: samples, their references, and the weighted sum of the terms that the flags choose.

`composed.py` is the objective of the shipped nets, `contrastive.py` the one that the paper describes, `objectives.py`
has other terms that were tried. This module draws, scales and sums.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from stylefusion_hf.core.memory import MemoryPlan, memory_budget
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.evaluation.measurement import border_width
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.training.choices import TERMS, Shares
from stylefusion_hf.training.composed import composed_terms
from stylefusion_hf.training.contrastive import contrastive_terms
from stylefusion_hf.training.networks import Description, FrozenNetworks
from stylefusion_hf.training.objectives import deficit_weights, research_terms
from stylefusion_hf.training.pool import RenderedPool
from stylefusion_hf.training.references import Fuse, ReferenceMaker, RegionReferences
from stylefusion_hf.training.roles import Roles
from stylefusion_hf.training.samples import Sample, SampleSource
from stylefusion_hf.training.scales import UnrelatedScales

NEED_PICTURE = ("locality", "transfer", "regions")  # terms that need a target picture composed from the owners'


class Criterion:
    """The loss of fused codes.

    Args:
        tree, roles: the regions.
        networks: the frozen networks.
        pool: plain pictures.
        weights: of `TERMS`. Terms of weight 0 are not computed, except the looks, which are always logged, and those
            that come with any of `NEED_PICTURE`.
        reference: one of `references.REFERENCES`: the picture that a region should resemble.
        deficit: exponent of the regions' weights by missing transfer (0: equal weights).
        temperature: of the contrasts.
        discriminator: for realism.
        negatives: number of the pool's pictures that the pooled contrast uses as negatives.
        power: of the differences in the change outside.
        plan: how many samples fit into memory at once; by default all of them.
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
        self.border = border_width(networks.size[1])
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
        self.scales = UnrelatedScales(self.source, self.references, roles, power, self.plan.references)

    def draw(self, batch: int, draw: torch.Generator, shares: Shares) -> Sample:
        """Draw a batch of samples."""
        return self.source.draw(batch, draw, shares)

    def codes(self, sample: Sample) -> dict[str, Tensor]:
        """Return {node: style codes (B, S)}."""
        return self.source.codes(sample)

    def targets(self, sample: Sample, fuse: Fuse | None = None) -> RegionReferences:
        """Return what the samples should look like; `fuse` makes the aligned references."""
        return self.references(sample, fuse)

    def __call__(
        self,
        sample: Sample,
        references: RegionReferences,
        found: Description,
        transfer: Tensor | None = None,
        batch: Sample | None = None,
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Return the mean loss of each term, and the remaining distance of regions that were swapped alone.

        Args:
            found: the fused pictures.
            transfer: (R,), the recent transfer of each region's look, for the deficit's weights.
            batch: the batch that `sample` is a part of; the losses of its parts sum to that of the batch.

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
        batch = sample if batch is None else batch
        counts = self.counts(batch)
        losses = {}
        for name, (values, chosen) in terms.items():
            total = values.sum() if chosen is None else (values * chosen).sum()
            losses[name] = total / counts.get(name, len(batch))
        alone = (sample.counted & sample.single[:, None]).float()
        return losses, torch.stack([(lacking.detach() * alone).sum(dim=0), alone.sum(dim=0)])

    def counts(self, sample: Sample) -> dict[str, Tensor]:
        """Return the number of values that terms with a mask average over."""
        chosen = {
            "pose": sample.frame != sample.base,
            "layout": sample.nodes[:, self.group_columns] != sample.base[:, None],
            "outside": sample.changed.any(dim=1),
            "leak": sample.changed.any(dim=1),
        }
        return {name: x.sum().clamp_min(1) for name, x in chosen.items()}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the terms."""
        return torch.stack([self.weights[name] * value for name, value in losses.items() if self.weights[name]]).sum()
