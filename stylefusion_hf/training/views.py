"""What the trainer knows of pictures: each region's looks and place, read off by the model's own frozen networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.imaging.alignment import pose_between_centroids, region_centroids, warp
from stylefusion_hf.imaging.features import PooledMaps, colour, layout, texture
from stylefusion_hf.models.layers import at_once
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.training.objectives import soft_middles

FEATURES = ("maps", "texture")


@dataclass
class Views:
    """N pictures: `images` (N, 3, H, W) in [-1, 1]; `probs` (N, R, H, W) of the segmenter; `middles` (N, R, 2).

    `looks`: {head: (N, R, D)}, what pose does not change: "colour", and "maps" or "texture". `maps`: {resolution:
    (N, C, h, h)}, the generator's feature maps, channels in units of their deviation; empty unless asked for.
    """

    images: Tensor
    probs: Tensor
    middles: Tensor
    looks: dict[str, Tensor]
    maps: dict[int, Tensor]

    @property
    def masks(self) -> Tensor:
        """(N, R, H, W), where a region is the most probable one; no gradient."""
        probs = self.probs.detach()
        return probs >= probs.amax(dim=1, keepdim=True)


class Eye:
    """Frozen generator and segmenter, and how to read their output.

    Args:
        order: the segmenter's channel of each region. What else it knows counts for nothing: such a pixel goes to the
            most probable region of these.
        features: which looks besides colour: some of `FEATURES`.
        resolutions: of the generator's maps.
        keep_maps: whether views carry the maps themselves, for the spatial contrast.
    """

    def __init__(
        self,
        g: StyleGenerator,
        segmenter: RegionSegmenter,
        order: list[int],
        features: Sequence[str] = ("maps",),
        resolutions: Sequence[int] = (16, 32),
        keep_maps: bool = False,
    ):
        if unknown := [name for name in features if name not in FEATURES]:
            raise ValueError(f"unknown features {unknown[0]!r}: choose from {', '.join(FEATURES)}")
        self.g, self.segmenter, self.order, self.features = g, segmenter, order, tuple(features)
        self.resolutions, self.keep_maps = resolutions, keep_maps
        self.pooled: PooledMaps | None = None

    @torch.no_grad()
    def calibrate(self, codes: Tensor) -> None:
        """Take the maps' means and deviations from samples (N, S)."""
        parts = []
        for s in codes.split(self.batch):
            found = self.g.synthesis(s, return_features=True)[1]
            parts.append({r: x.float() for r, x in found.items() if r in self.resolutions})  # the others are large
        maps = {r: torch.cat([p[r] for p in parts]) for r in parts[0]}
        if maps:
            self.pooled = PooledMaps(maps, self.resolutions)
        elif "maps" in self.features or self.keep_maps:
            raise ValueError(
                f"a generator of {self.g.config.resolution} px has no maps of {list(self.resolutions)} px: train with"
                " --features texture and without --spatial_weight"
            )

    @property
    def batch(self) -> int:
        """Pictures that are rendered at once where there is no gradient."""
        return at_once(self.g.config.resolution, 64)

    def render(self, codes: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Images in [-1, 1] and feature maps of style codes (B, S)."""
        image, maps = self.g.synthesis(codes, return_features=True)
        return image.clamp(-1, 1), {r: maps[r] for r in (self.pooled.resolutions if self.pooled else ())}

    def segment(self, images: Tensor) -> Tensor:
        """Probabilities (B, R, H, W)."""
        return self.segmenter.segment(images)[:, self.order].softmax(dim=1)

    def describe(self, images: Tensor, maps: Mapping[int, Tensor], probs: Tensor) -> Views:
        """Rendered pictures as views; differentiable but for the masks."""
        view = Views(images, probs, soft_middles(probs), {}, {})
        masks = view.masks
        view.looks["colour"] = colour(images, masks)
        if "maps" in self.features and self.pooled is not None:
            view.looks["maps"] = self.pooled(maps, masks)
        if "texture" in self.features:
            each = images[:, None].expand(-1, masks.shape[1], -1, -1, -1).flatten(0, 1)
            view.looks["texture"] = texture(each, masks.flatten(0, 1)).unflatten(0, masks.shape[:2])
        if self.keep_maps and self.pooled is not None:
            view.maps = {r: self.pooled.standardised(maps, r) for r in self.pooled.resolutions}
        return view

    def __call__(self, codes: Tensor) -> Views:
        """Style codes (B, S) as views."""
        images, maps = self.render(codes)
        return self.describe(images, maps, self.segment(images))


@dataclass
class Pool:
    """N plain pictures, described once. `codes` (N, S); `images` uint8; `probs` float16; `labels` (N, H, W) uint8;
    `looks`, `middles`, `maps` as in `Views` (maps float16); `centroids` (N, R, 2) and `areas` (N, R) of the labels.
    """

    codes: Tensor
    images: Tensor
    probs: Tensor
    labels: Tensor
    middles: Tensor
    centroids: Tensor
    areas: Tensor
    looks: dict[str, Tensor]
    maps: dict[int, Tensor]

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    @torch.no_grad()
    def of(cls, eye: Eye, codes: Tensor) -> Pool:
        """Render and describe style codes (N, S)."""
        parts = []
        for s in tqdm(codes.split(eye.batch), desc="pool", leave=False):
            view = eye(s)
            labels = view.probs.argmax(dim=1)
            where, area = region_centroids(labels, view.probs.shape[1])
            parts.append(
                cls(
                    s,
                    view.images.add(1).mul(127.5).round().to(torch.uint8),
                    view.probs.half(),
                    labels.to(torch.uint8),
                    view.middles,
                    where,
                    area,
                    view.looks,
                    {r: x.half() for r, x in view.maps.items()},
                )
            )

        def joined(name: str):
            values = [getattr(p, name) for p in parts]
            if isinstance(values[0], dict):
                return {k: torch.cat([v[k] for v in values]) for k in values[0]}
            return torch.cat(values)

        return cls(*(joined(f.name) for f in fields(cls)))

    def pictures(self, index: Tensor) -> Tensor:
        """Images in [-1, 1], shape of `index` + (3, H, W)."""
        return self.images[index].float().div(127.5).sub(1)

    def poses(self, target: Tensor, source: Tensor, regions: Sequence[int]) -> Tensor:
        """(..., 2, 3): how to sample pictures `source` so that these regions lie where they do in `target`; indices.

        As `alignment.pose_between`, from centroids that are known already.
        """
        to, by = target.flatten(), source.flatten()
        poses = pose_between_centroids(self.centroids[to], self.areas[to], self.centroids[by], self.areas[by], regions)
        return poses.unflatten(0, target.shape)


def outlines(probs: Tensor, visible: Tensor) -> Tensor:
    """Soft outlines (B, R, cells^2) of probabilities (B, R, H, W) where nothing hides them (`visible`, alike)."""
    return layout(probs * visible)


def moved(planes: Tensor, theta: Tensor) -> Tensor:
    """(B, R, C, H, W) sampled by (B, R, 2, 3)."""
    return warp(planes.flatten(0, 1).float(), theta.flatten(0, 1)).unflatten(0, planes.shape[:2])
