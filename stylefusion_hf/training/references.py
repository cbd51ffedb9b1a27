"""What the regions of a mix should look like: their owners' pictures, in the wanted pose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.evaluation.measurement import outline
from stylefusion_hf.imaging.alignment import inside, warp
from stylefusion_hf.training.choices import REFERENCES
from stylefusion_hf.training.composed import compose
from stylefusion_hf.training.networks import Description, FrozenNetworks
from stylefusion_hf.training.pool import RenderedPool, warp_each
from stylefusion_hf.training.roles import Roles
from stylefusion_hf.training.samples import Sample

Fuse = Callable[[dict[str, Tensor]], Tensor]


@dataclass
class RegionReferences:
    """References of B mixes, without gradient.

    Attributes:
        looks: {head: (B, R, D)}.
        outline: (B, R, cells^2), of the `visible` (B, R, H, W) part.
        masks: (B, R, H, W), the regions in their references.
        maps: {resolution: (B, R, C, h, h)}, if needed.
        picture: (B, 3, H, W), composed from the references, if needed.
        layout, color_of: (B, H, W), from `composed.compose`, if needed.
    """

    looks: dict[str, Tensor]
    outline: Tensor
    visible: Tensor
    masks: Tensor
    maps: dict[int, Tensor]
    picture: Tensor | None = None
    layout: Tensor | None = None
    color_of: Tensor | None = None


class ReferenceMaker:
    """Makes the references of samples.

    Args:
        kind: "unaligned", the owners' plain pictures; "warped", these moved into the frame's pose by a similarity;
            "aligned", the nets' own pictures with that code in every leaf.
        with_maps, with_picture: whether these are needed besides the looks.
    """

    def __init__(
        self,
        tree: RegionTree,
        roles: Roles,
        networks: FrozenNetworks,
        pool: RenderedPool,
        kind: str,
        with_maps: bool,
        with_picture: bool,
    ):
        if kind not in REFERENCES:
            raise ValueError(f"unknown reference {kind!r}: choose from {', '.join(REFERENCES)}")
        self.tree, self.roles, self.networks, self.pool = tree, roles, networks, pool
        self.kind, self.with_maps, self.with_picture = kind, with_maps, with_picture
        self.ids = torch.arange(len(roles.names), device=pool.codes.device)
        self.is_static = torch.tensor([int(r) in roles.static for r in self.ids], device=pool.codes.device)

    @torch.no_grad()
    def __call__(self, sample: Sample, fuse: Fuse | None = None) -> RegionReferences:
        """Return the references of a sample; `fuse` makes the aligned ones, which are otherwise warped."""
        if self.kind == "aligned" and fuse is not None:
            return self._from_nets(sample, fuse)
        return self._from_pool(sample)

    def _from_pool(self, sample: Sample) -> RegionReferences:
        pool, own, rows = self.pool, sample.owners, self.ids
        depth = rows[:, None, None]
        # Transforms that move each owner's picture into the frame's pose.
        identity = torch.eye(2, 3, device=own.device)
        theta = pool.poses(sample.frame[:, None].expand_as(own), own, self.roles.pose)
        stays = (own == sample.frame[:, None]) | self.is_static | (self.kind == "unaligned")
        theta = torch.where(stays[..., None, None], identity, theta)
        # The region, and where nothing is in front of it in the owner's picture and in the frame.
        labels = pool.label_maps(own)
        planes = torch.stack([pool.probabilities(own, rows), (labels <= depth).half()], dim=2)
        planes = warp_each(planes, theta)
        frame = pool.label_maps(sample.frame)[:, None]
        visible = (frame <= depth) & (planes[:, :, 1] > 0.5)
        found = RegionReferences(
            looks={h: x[own, rows] for h, x in pool.looks.items()},
            outline=outline(planes[:, :, 0], visible),
            visible=visible,
            masks=planes[:, :, 0] > 0.5,
            maps={r: warp_each(x, theta) for r, x in pool.feature_maps(own).items()} if self.with_maps else {},
        )
        if self.with_picture:
            warped = warp(labels.flatten(0, 1)[:, None].float(), theta.flatten(0, 1), "nearest")
            within = inside(theta.flatten(0, 1), *warped.shape[-2:]).view_as(visible)
            images = warp_each(pool.pictures(own), theta)
            self._compose(found, frame, images, warped.view_as(visible).long(), within)
        return found

    def _from_nets(self, sample: Sample, fuse: Fuse) -> RegionReferences:
        depth = self.ids[:, None, None]
        seen, place = self._render_aligned(sample, fuse)
        labels = seen.probs.argmax(dim=1)
        frame = self.pool.label_maps(sample.frame)[:, None]
        visible = (frame <= depth) & (labels[place] <= depth)
        found = RegionReferences(
            looks={h: x[place, self.ids] for h, x in seen.looks.items()},
            outline=outline(seen.probs[place, self.ids], visible),
            visible=visible,
            masks=labels[place] == depth,
            maps={r: x[place] for r, x in seen.maps.items()} if self.with_maps else {},
        )
        if self.with_picture:
            self._compose(found, frame, seen.images[place], labels[place], torch.ones_like(visible))
        return found

    def _compose(self, found: RegionReferences, frame: Tensor, images: Tensor, labels: Tensor, within: Tensor) -> None:
        """Add the picture: each region from its own image (B, R, 3, H, W) and labels (B, R, H, W)."""
        depth = self.ids[:, None, None]
        claims = (labels == depth) & within
        hidden = (frame == depth) & ((labels > depth) | ~within)
        found.layout, found.color_of = compose(claims, hidden)
        place = found.color_of.clamp_min(0)[:, None, None].expand(-1, 1, images.shape[2], -1, -1)
        found.picture = images.gather(1, place)[:, 0]

    def _render_aligned(self, sample: Sample, fuse: Fuse) -> tuple[Description, Tensor]:
        """Render each mix's distinct owners with its common codes. Also return each region's index in them, (B, R)."""
        own, codes = sample.owners, self.pool.codes
        keys = torch.arange(len(own), device=own.device)[:, None] * len(self.pool) + own
        distinct, place = keys.unique(return_inverse=True)
        row, code = distinct // len(self.pool), codes[distinct % len(self.pool)]
        inner = {n: codes[sample.nodes[row, self.tree.nodes.index(n)]] for n in self.tree.inner}
        return self.networks(fuse({**dict.fromkeys(self.tree.leaves, code), **inner})), place
