"""Training score: differentiable outside change and transfer, computed with the MODEL's own networks.

Learned gates and the upper bounds are optimized on it. It measures what the ruler measures (`measurement.py`) with
different networks, so that exploiting a network's blind spots does not count as success.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from stylefusion_hf.core.sizes import nearest_heights
from stylefusion_hf.evaluation import measurement as core
from stylefusion_hf.evaluation.measurement import distance
from stylefusion_hf.evaluation.pairs import FITTING_SEED, Pairs, draw_pairs, style_codes
from stylefusion_hf.imaging.alignment import pose_regions, static_regions, warp
from stylefusion_hf.imaging.features import PooledMaps, colour
from stylefusion_hf.models.layers import chunk_size

__all__ = ["LEAST_DIFFERENCE", "Looks", "Scores", "SwapTargets", "TrainingScore", "distance"]

HEADS = ("colour", "maps", "outline")
LEAST_DIFFERENCE = tuple(core.LEAST_DIFFERENCE[head] for head in HEADS)


class _Rows:
    """A dataclass of tensors with the same first dimension, indexed by row."""

    def __getitem__(self, index):
        return type(self)(*(getattr(self, f.name)[index] for f in fields(self)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Looks(_Rows):
    """N plain pictures, described once and then paired in any way.

    `codes` (N, S), `images` (N, 3, H, W), the segmenter's `probs` (N, R, H, W) and `labels` (N, H, W), and each
    region's
    look: `colour` (N, R, C), `maps` (N, R, D).
    """

    codes: Tensor
    images: Tensor
    probs: Tensor
    labels: Tensor
    colour: Tensor
    maps: Tensor


@dataclass(frozen=True)
class SwapTargets(_Rows):
    """B items, each a base, a source and a region to swap.

    `base`, `source` (B, S); `region` (B,), segmenter channels; `plain`, `other` (B, 3, H, W), the pictures of base and
    source; `mask` (B, H, W), the region in the base; `visible` (B, H, W), where neither base nor source occludes it;
    `valid` (B,), 1 if it is large enough in both, else 0; `colour` (B, C), `maps` (B, D),
    `outline` (B, cells), the source's region in the base's pose; `initial_distance` (B, 3), the base's distance from
    them, in the order of `HEADS`. Images and masks are at the measuring size.
    """

    base: Tensor
    source: Tensor
    region: Tensor
    plain: Tensor
    other: Tensor
    mask: Tensor
    visible: Tensor
    valid: Tensor
    colour: Tensor
    maps: Tensor
    outline: Tensor
    initial_distance: Tensor


@dataclass(frozen=True)
class Scores(_Rows):
    """Scores of swaps of B items; invalid items are 0 throughout.

    `outside` (B,): squared change outside the region; `outside_reference` (B,): change there if the full source is
    taken. `transfer` (B, 3): remaining distance to the source's region, by head; `transfer_reference` (B, 3): that
    distance before the swap; `heads` (B, 3): the heads' weights. Only `outside` and `transfer` carry a gradient.
    """

    outside: Tensor
    outside_reference: Tensor
    transfer: Tensor
    transfer_reference: Tensor
    heads: Tensor

    def ratios(self, groups: Tensor | None = None, count: int = 1) -> tuple[Tensor, Tensor]:
        """Return O and T of each of `count` groups of items, as ratios of sums, (count,) each; `groups` (B,) int."""
        sums = self.sums(groups, count)
        left = sums.transfer / sums.transfer_reference.clamp_min(1e-8)
        heads = sums.heads / sums.heads.sum(dim=1, keepdim=True).clamp_min(1e-8)
        return sums.outside / sums.outside_reference.clamp_min(1e-8), 1 - (heads * left).sum(dim=1)

    def sums(self, groups: Tensor | None = None, count: int = 1) -> Scores:
        """Return the sums over each group of items, one row per group."""
        if groups is None:
            groups = torch.zeros(len(self.outside), dtype=torch.long, device=self.outside.device)
        values = (getattr(self, f.name) for f in fields(self))
        return Scores(*(v.new_zeros(count, *v.shape[1:]).index_add(0, groups, v) for v in values))

    def loss(self, weight: float | Tensor, scale: Scores | None = None, groups: Tensor | None = None) -> Tensor:
        """Return O + weight (1 - T), summed over groups.

        Args:
            weight: weight of transfer, one number or (B,).
            scale: (B) rows whose `outside_reference` and `transfer_reference` divide each item's figures. None: the
                sums over the item's group, so that the loss is a ratio of sums.
            groups: (B,) int from 0 to B - 1; None is one group.
        """
        if scale is None:
            groups = torch.zeros_like(self.outside, dtype=torch.long) if groups is None else groups
            scale = self.sums(groups, len(self.outside))[groups]
        outside = self.outside / scale.outside_reference.clamp_min(1e-8)
        left = self.transfer / scale.transfer_reference.clamp_min(1e-8)
        return (outside + weight * (self.heads * left).sum(dim=1)).sum()


class TrainingScore:
    """Differentiable outside change and transfer of fused style codes.

    For base a, source b, region r: I0, Ib and I1 are the pictures of a, b and the fused code. M is the union of r in
    I0 and I1, dilated by 1/64 of the width; no gradient flows through it.

        O = sum |(1 - M) (I1 - I0)|^2 / sum |(1 - M) (Ib - I0)|^2
        T = 1 - mean over heads f of: sum |f(I1) - f(Ib')| / sum |f(I0) - f(Ib')|

    f: r's color (`features.colour`); r's means of the generator's 16 and 32 px maps, with standardized channels; and
    r's soft outline (`measurement.outline`) from the segmenter where r is visible in I0 and Ib' (regions are ordered
    back to front, and a swap cannot show skin through hair). Ib' is Ib aligned with I0 by a similarity of the `pose`
    regions (only the outline is warped, since means over a region do not depend on its position); `static` regions are
    not aligned. A region that vanishes in I1 keeps its initial distance in color and maps; its outline pulls it back.
    Heads on which a region hardly differs between samples are left out.

    Args:
        pipe: a pipeline with a segmenter.
        pose: regions that pose is estimated from; None: the moving leaves of the root's first child.
        static: regions that do not move with the pose; None: names that begin with bg or background.
        samples: number of samples for the statistics of the maps and the choice of heads.
        resolutions: resolutions of the maps, or those nearest to them.
        batch: batch size without gradients; None: what `chunk_size` allows, at most 32.
        size: measuring size, to which larger pictures are downsampled; None: `measurement.LARGEST_SIZE`.

    Raises:
        ValueError: the model has no segmenter, a region is unknown, or there are no maps of these resolutions.
    """

    def __init__(
        self,
        pipe,
        pose: Sequence[str] | None = None,
        static: Sequence[str] | None = None,
        samples: int = 128,
        resolutions: Sequence[int] = (16, 32),
        batch: int | None = None,
        size: int | None = None,
    ):
        if pipe.segmenter is None:
            raise ValueError("this model has no segmenter, which evaluation needs to locate regions: add segmenter/")
        self.pipe, self.size = pipe, size or core.LARGEST_SIZE
        self.batch = batch or chunk_size(pipe.generator.mean_side, 32)
        self.regions = list(pipe.segmenter.config.regions)
        tree = pipe.fusion.tree
        if static is None:
            static = static_regions(self.regions)
        if pose is None:
            pose = pose_regions(tree, static)
        if unknown := [name for name in (*pose, *static) if name not in self.regions]:
            raise ValueError(f"unknown region {unknown[0]!r}: the segmenter knows {', '.join(self.regions)}")
        self.pose = [self.regions.index(name) for name in pose]
        self.static = torch.tensor([name in static for name in self.regions], device=pipe.generator.device)
        found = nearest_heights(resolutions, pipe.generator.feature_sizes)
        if not found:
            known = sorted(pipe.generator.feature_sizes)
            raise ValueError(f"no feature maps of {list(resolutions)} pixels; there are {known}")
        resolutions = found
        self.pooled_maps = PooledMaps(self._sample_maps(samples, resolutions), resolutions)
        self.head_weights = self._weigh_heads(samples)  # (R, 3), rows sum to 1

    @torch.no_grad()
    def _weigh_heads(self, samples: int) -> Tensor:
        looks = self.pool(samples)
        half = len(looks.codes) // 2
        base, source, rows = looks[:half], looks[half:], []
        for r in range(len(self.regions)):
            sizes, differences = [], []
            for some in torch.arange(half, device=looks.codes.device).split(self.batch):
                t = self.targets(base[some], source[some], torch.full_like(some, r))
                valid = t.valid > 0
                sizes.append(torch.stack([x.norm(dim=1) for x in (t.colour, t.maps, t.outline)], dim=1)[valid])
                differences.append(t.initial_distance[valid])
            size, difference = torch.cat(sizes), torch.cat(differences)
            typical = difference.median(dim=0).values if len(size) else size.sum(dim=0)
            least = size.mean(dim=0).nan_to_num() * torch.tensor(LEAST_DIFFERENCE, device=size.device)
            rows.append(core.head_weights((typical >= least).unbind()))
        return torch.stack(rows)

    @torch.no_grad()
    def _sample_maps(self, samples: int, resolutions: Sequence[int]) -> dict[int, Tensor]:
        g, end = self.pipe.generator, FITTING_SEED + samples
        parts = []
        for s in range(FITTING_SEED, end, self.batch):
            maps = g.synthesis(style_codes(g, range(s, min(s + self.batch, end))), return_features=True)[1]
            wanted = {r: x.float() for r, x in maps.items() if r in resolutions}  # larger maps are dropped
            parts.append(wanted or {r: x[:1].float() for r, x in maps.items() if r <= 32})
        return {r: torch.cat([part[r] for part in parts]) for r in parts[0]}

    @torch.no_grad()
    def describe(self, codes: Tensor, images: Tensor, probs: Tensor) -> Looks:
        """Describe N plain pictures by region: style codes (N, S), images (N, 3, H, W), probabilities (N, R, H, W)."""
        images, probs = (core.at_measuring_size(x, self.size) for x in (images, probs))
        colours, pooled, labels = [], [], probs.argmax(dim=1)
        for s, x, label in zip(*(v.split(self.batch) for v in (codes, images, labels)), strict=True):
            masks = [label == r for r in range(len(self.regions))]
            maps = self.pipe.generator.synthesis(s, return_features=True)[1]
            colours.append(torch.stack([colour(x, m) for m in masks], dim=1))
            pooled.append(torch.stack([self.pooled_maps(maps, m) for m in masks], dim=1))
        return Looks(codes, images, probs, labels, torch.cat(colours), torch.cat(pooled))

    def pool(self, count: int, first_seed: int = FITTING_SEED) -> Looks:
        """Draw and describe `count` samples, rounded up to an even number: first even seeds, then odd seeds."""
        bases, sources = [], []
        pairs = -(-count // 2)
        for start in range(0, pairs, self.batch):  # only one batch of full-size pictures at a time
            n = min(self.batch, pairs - start)
            base, source = self.describe_pairs(draw_pairs(self.pipe, n, first_seed + 2 * start, self.batch))
            bases.append(base)
            sources.append(source)
        every = [*bases, *sources]
        return Looks(*(torch.cat([getattr(x, f.name) for x in every]) for f in fields(Looks)))

    def describe_pairs(self, pairs: Pairs) -> tuple[Looks, Looks]:
        """Describe bases and sources."""
        return (
            self.describe(pairs.base, pairs.plain, pairs.base_probs),
            self.describe(pairs.source, pairs.other, pairs.source_probs),
        )

    @torch.no_grad()
    def targets(self, base: Looks, source: Looks, region: Tensor) -> SwapTargets:
        """Return the targets of swapping `region` (B,), segmenter channels, from B sources into B bases."""
        rows = torch.arange(len(region), device=region.device)
        theta = core.poses_onto(base.labels, source.labels, self.pose, len(self.regions))
        moved = warp(source.probs.float(), core.keep_static(theta, self.static[region]))
        visible = ~core.in_front(region, base.labels, moved.argmax(dim=1))
        outline = core.outline(moved[rows, region], visible)
        mask, there = base.labels == region[:, None, None], source.labels == region[:, None, None]
        valid = core.is_counted(mask) & core.is_counted(there)
        colours, maps = source.colour[rows, region], source.maps[rows, region]
        initial_distance = [
            distance(base.colour[rows, region], colours),
            distance(base.maps[rows, region], maps),
            distance(core.outline(base.probs[rows, region], visible), outline),
        ]
        return SwapTargets(
            base=base.codes,
            source=source.codes,
            region=region,
            plain=base.images,
            other=source.images,
            mask=mask,
            visible=visible,
            valid=valid.float(),
            colour=colours,
            maps=maps,
            outline=outline,
            initial_distance=torch.stack(initial_distance, dim=1),
        )

    def __call__(self, targets: SwapTargets, fused: Tensor) -> Scores:
        """Score fused style codes (B, S), differentiably."""
        t = targets
        image, maps = self.pipe.generator.synthesis(fused, return_features=True)
        image = image.clamp(-1, 1)
        probs = self.pipe.segmenter.segment(image).softmax(dim=1)
        image, probs = (core.at_measuring_size(x, self.size) for x in (image, probs))
        rows = torch.arange(len(fused), device=fused.device)
        own = probs[rows, t.region]
        now = own.detach() >= probs.detach().amax(dim=1)  # equals argmax at a fraction of its cost
        outside = ~core.changed_area(t.mask, now)
        left = torch.stack(
            [
                distance(colour(image, now), t.colour),
                distance(self.pooled_maps(maps, now), t.maps),
                distance(core.outline(own, t.visible), t.outline),
            ],
            dim=1,
        )
        # A vanished region keeps its initial distance; only its outline can pull it back.
        vanished = ~core.is_counted(now)[:, None] & torch.tensor([h != "outline" for h in HEADS], device=now.device)
        left = torch.where(vanished, torch.maximum(t.initial_distance, left.detach()), left)
        valid = t.valid
        return Scores(
            outside=core.squared_change(image, t.plain, outside) * valid,
            outside_reference=core.squared_change(t.other, t.plain, outside) * valid,
            transfer=left * valid[:, None],
            transfer_reference=t.initial_distance * valid[:, None],
            heads=self.head_weights[t.region] * valid[:, None],
        )
