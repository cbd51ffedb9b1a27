"""The training score: outside change and transfer, differentiable, from the MODEL's own networks.

Learned gates and the limit of S are optimized on it. It measures what the ruler measures (`measurement.py`), with
other networks, so that an optimizer's blind spots are not mistaken for success.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

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
    """N plain pictures, described once and paired in any way.

    `codes` (N, S), `images` (N, 3, H, W), `probs` (N, R, H, W) of the segmenter and the `labels` (N, H, W) they make,
    and what each region looks like: `colour` (N, R, C), `maps` (N, R, D).
    """

    codes: Tensor
    images: Tensor
    probs: Tensor
    labels: Tensor
    colour: Tensor
    maps: Tensor


@dataclass(frozen=True)
class SwapTargets(_Rows):
    """B items, each a base, a source and a region that is to change hands.

    `base`, `source` (B, S); `region` (B,), the segmenter's channels; `plain`, `other` (B, 3, H, W), the pictures of
    base and source; `mask` (B, H, W), the region in the base; `visible` (B, H, W), where nothing of base or source
    lies in front of it; `valid` (B,), 1 where it is large enough in both, else 0; `colour` (B, C), `maps` (B, D),
    `outline` (B, cells), the source's region in the base's pose; `whole` (B, 3), the base's distance from them, in the
    order of `HEADS`. Images and masks are at the measuring size.
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
    whole: Tensor


@dataclass(frozen=True)
class Scores(_Rows):
    """What swaps of B items did; invalid items are 0 throughout.

    `outside` (B,): squared change outside the region; `outside_whole` (B,): what taking the whole source changes
    there. `transfer` (B, 3): what is left of the distance to the source's region, by head; `transfer_whole` (B, 3):
    that distance before the swap; `heads` (B, 3): the heads' weights. Only `outside` and `transfer` carry a gradient.
    """

    outside: Tensor
    outside_whole: Tensor
    transfer: Tensor
    transfer_whole: Tensor
    heads: Tensor

    def ratios(self, groups: Tensor | None = None, count: int = 1) -> tuple[Tensor, Tensor]:
        """O and T of each of `count` groups of items, as ratios of sums, (count,) each; `groups` (B,) int."""
        sums = self.sums(groups, count)
        left = sums.transfer / sums.transfer_whole.clamp_min(1e-8)
        heads = sums.heads / sums.heads.sum(dim=1, keepdim=True).clamp_min(1e-8)
        return sums.outside / sums.outside_whole.clamp_min(1e-8), 1 - (heads * left).sum(dim=1)

    def sums(self, groups: Tensor | None = None, count: int = 1) -> Scores:
        """The sums over each group of items: row g is group g's."""
        if groups is None:
            groups = torch.zeros(len(self.outside), dtype=torch.long, device=self.outside.device)
        values = (getattr(self, f.name) for f in fields(self))
        return Scores(*(v.new_zeros(count, *v.shape[1:]).index_add(0, groups, v) for v in values))

    def loss(self, weight: float | Tensor, scale: Scores | None = None, groups: Tensor | None = None) -> Tensor:
        """O + weight (1 - T), summed over groups: a number.

        Args:
            weight: of transfer, one number or (B,).
            scale: (B) rows whose `outside_whole` and `transfer_whole` divide each item's figures. None: the sums over
                the item's group, so that the loss is of ratios of sums.
            groups: (B,) int from 0 to B - 1; None is one group.
        """
        if scale is None:
            groups = torch.zeros_like(self.outside, dtype=torch.long) if groups is None else groups
            scale = self.sums(groups, len(self.outside))[groups]
        outside = self.outside / scale.outside_whole.clamp_min(1e-8)
        left = self.transfer / scale.transfer_whole.clamp_min(1e-8)
        return (outside + weight * (self.heads * left).sum(dim=1)).sum()


class TrainingScore:
    """Differentiable outside change and transfer of fused style codes.

    For base a, source b, region r; I0, Ib, I1 the pictures of a, b and the fused code. M is where r is in I0 or in
    I1, widened by 1/64 of the width, and a constant to the gradient.

        O = sum |(1 - M) (I1 - I0)|^2 / sum |(1 - M) (Ib - I0)|^2
        T = 1 - mean over heads f of: sum |f(I1) - f(Ib')| / sum |f(I0) - f(Ib')|

    f: r's color (`features.colour`); r's means of the generator's 16 and 32 px maps, channels in units of their
    deviation; r's soft outline (`measurement.outline`), through the segmenter, where nothing hides r in I0 or Ib'
    (regions are listed back to front: a swap cannot show skin through hair). Ib' is Ib brought to I0's pose by a
    similarity of the `pose` regions (only the outline is moved: means over a region do not change with its place);
    `static` regions stay where they are. A region that vanishes in I1 keeps its whole distance in color and maps,
    and its outline pulls it back. Heads on which a region hardly differs among samples are left out.

    Args:
        pipe: a pipeline with a segmenter.
        pose: names of the regions that tell the pose; None: the leaves of the root's first child that move.
        static: names of those that do not move with it; None: names that begin with bg or background.
        samples: pictures that the maps' deviations are taken from.
        resolutions: of the maps.
        batch: pictures rendered at once without gradients; None: what `chunk_size` allows, at most 32.
        size: pixels to measure at; larger pictures are averaged down. None: `measurement.LARGEST_SIZE`.

    Raises:
        ValueError: no segmenter, a region that it does not know, or no map of these resolutions.
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
            raise ValueError("this model has no segmenter: nothing tells which pixels belong to a region")
        self.pipe, self.size = pipe, size or core.LARGEST_SIZE
        self.batch = batch or chunk_size(pipe.generator.config.resolution, 32)
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
        self.pooled_maps = PooledMaps(self._sample_maps(samples, resolutions), resolutions)
        self.head_weights = self._weigh_heads(samples)  # (R, 3), rows sum to 1

    @torch.no_grad()
    def _weigh_heads(self, samples: int) -> Tensor:
        looks = self.pool(samples)
        half = len(looks.codes) // 2
        base, source, rows = looks[:half], looks[half:], []
        for r in range(len(self.regions)):
            t = self.targets(base, source, torch.full((half,), r, device=looks.codes.device))
            valid = t.valid > 0
            size = torch.stack([x.norm(dim=1) for x in (t.colour, t.maps, t.outline)], dim=1)[valid]
            typical = t.whole[valid].median(dim=0).values if len(size) else size.sum(dim=0)
            least = size.mean(dim=0).nan_to_num() * torch.tensor(LEAST_DIFFERENCE, device=size.device)
            rows.append(core.head_weights((typical >= least).unbind()))
        return torch.stack(rows)

    @torch.no_grad()
    def _sample_maps(self, samples: int, resolutions: Sequence[int]) -> dict[int, Tensor]:
        g, end = self.pipe.generator, FITTING_SEED + samples
        parts = []
        for s in range(FITTING_SEED, end, self.batch):
            maps = g.synthesis(style_codes(g, range(s, min(s + self.batch, end))), return_features=True)[1]
            wanted = {r: x.float() for r, x in maps.items() if r in resolutions}  # the others are large
            parts.append(wanted or {r: x[:1].float() for r, x in maps.items() if r <= 32})
        return {r: torch.cat([part[r] for part in parts]) for r in parts[0]}

    @torch.no_grad()
    def describe(self, codes: Tensor, images: Tensor, probs: Tensor) -> Looks:
        """N plain pictures by region: style codes (N, S), images (N, 3, H, W), the segmenter's (N, R, H, W)."""
        images, probs = (core.at_measuring_size(x, self.size) for x in (images, probs))
        colours, pooled, labels = [], [], probs.argmax(dim=1)
        for s, x, label in zip(*(v.split(self.batch) for v in (codes, images, labels)), strict=True):
            masks = [label == r for r in range(len(self.regions))]
            maps = self.pipe.generator.synthesis(s, return_features=True)[1]
            colours.append(torch.stack([colour(x, m) for m in masks], dim=1))
            pooled.append(torch.stack([self.pooled_maps(maps, m) for m in masks], dim=1))
        return Looks(codes, images, probs, labels, torch.cat(colours), torch.cat(pooled))

    def pool(self, count: int, first_seed: int = FITTING_SEED) -> Looks:
        """`count` samples (one more if odd), described: first those of even seeds, then those of odd ones."""
        bases, sources = [], []
        pairs = -(-count // 2)
        for start in range(0, pairs, self.batch):  # full-size pictures of one batch at a time
            n = min(self.batch, pairs - start)
            base, source = self.describe_pairs(draw_pairs(self.pipe, n, first_seed + 2 * start, self.batch))
            bases.append(base)
            sources.append(source)
        every = [*bases, *sources]
        return Looks(*(torch.cat([getattr(x, f.name) for x in every]) for f in fields(Looks)))

    def describe_pairs(self, pairs: Pairs) -> tuple[Looks, Looks]:
        """Bases and sources."""
        return (
            self.describe(pairs.base, pairs.plain, pairs.base_probs),
            self.describe(pairs.source, pairs.other, pairs.source_probs),
        )

    @torch.no_grad()
    def targets(self, base: Looks, source: Looks, region: Tensor) -> SwapTargets:
        """What a swap of `region` (B,), segmenter channels, from B sources into B bases is measured by."""
        rows = torch.arange(len(region), device=region.device)
        theta = core.poses_onto(base.labels, source.labels, self.pose, len(self.regions))
        moved = warp(source.probs.float(), core.keep_static(theta, self.static[region]))
        visible = ~core.in_front(region, base.labels, moved.argmax(dim=1))
        outline = core.outline(moved[rows, region], visible)
        mask, there = base.labels == region[:, None, None], source.labels == region[:, None, None]
        valid = core.is_counted(mask) & core.is_counted(there)
        colours, maps = source.colour[rows, region], source.maps[rows, region]
        whole = [
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
            whole=torch.stack(whole, dim=1),
        )

    def __call__(self, targets: SwapTargets, fused: Tensor) -> Scores:
        """The scores of fused style codes (B, S); their gradient flows back to the codes."""
        t = targets
        image, maps = self.pipe.generator.synthesis(fused, return_features=True)
        image = image.clamp(-1, 1)
        probs = self.pipe.segmenter.segment(image).softmax(dim=1)
        image, probs = (core.at_measuring_size(x, self.size) for x in (image, probs))
        rows = torch.arange(len(fused), device=fused.device)
        own = probs[rows, t.region]
        now = own.detach() >= probs.detach().amax(dim=1)  # as argmax says, in a fraction of its time
        outside = ~core.changed_area(t.mask, now)
        left = torch.stack(
            [
                distance(colour(image, now), t.colour),
                distance(self.pooled_maps(maps, now), t.maps),
                distance(core.outline(own, t.visible), t.outline),
            ],
            dim=1,
        )
        # A region that vanished keeps its whole distance; only its outline can pull it back.
        vanished = ~core.is_counted(now)[:, None] & torch.tensor([h != "outline" for h in HEADS], device=now.device)
        left = torch.where(vanished, torch.maximum(t.whole, left.detach()), left)
        valid = t.valid
        return Scores(
            outside=core.squared_change(image, t.plain, outside) * valid,
            outside_whole=core.squared_change(t.other, t.plain, outside) * valid,
            transfer=left * valid[:, None],
            transfer_whole=t.whole * valid[:, None],
            heads=self.head_weights[t.region] * valid[:, None],
        )
