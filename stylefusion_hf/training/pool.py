"""The pool of a fusion training: plain pictures, rendered and described once, whose codes are mixed in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.imaging.alignment import aspect_of, pose_between_centroids, region_centroids, warp
from stylefusion_hf.training.networks import FrozenNetworks

LARGE = ("images", "probs", "labels", "maps")  # may be stored in host memory


@dataclass
class RenderedPool:
    """N plain pictures.

    Attributes on the training's device:
        codes: (N, S).
        looks, centers: as in `Description`.
        centroids, areas: (N, R, 2) and (N, R), of the label maps.

    Large attributes, which may be on another device; read them through the methods:
        images: (N, 3, H, W) uint8.
        probs: (N, R, H, W) float16.
        labels: (N, H, W) uint8.
        maps: {resolution: (N, C, h, h) float16}.
    """

    codes: Tensor
    images: Tensor
    probs: Tensor
    labels: Tensor
    centers: Tensor
    centroids: Tensor
    areas: Tensor
    looks: dict[str, Tensor]
    maps: dict[int, Tensor]

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    @torch.no_grad()
    def render(cls, networks: FrozenNetworks, codes: Tensor, device: str | torch.device | None = None) -> RenderedPool:
        """Render and describe style codes (N, S). `device`: of the large attributes; by default the codes'."""
        parts = []
        for s in tqdm(codes.split(networks.batch), desc="pool", leave=False):
            found = networks(s)
            labels = found.probs.argmax(dim=1)
            where, area = region_centroids(labels, found.probs.shape[1])
            part = cls(
                codes=s,
                images=found.images.add(1).mul(127.5).round().to(torch.uint8),
                probs=found.probs.half(),
                labels=labels.to(torch.uint8),
                centers=found.centers,
                centroids=where,
                areas=area,
                looks=found.looks,
                maps={r: x.half() for r, x in found.maps.items()},
            )
            if device is not None:
                for name in LARGE:
                    value = getattr(part, name)
                    value = {k: x.to(device) for k, x in value.items()} if name == "maps" else value.to(device)
                    setattr(part, name, value)
            parts.append(part)

        def concatenate(name: str):
            values = [getattr(p, name) for p in parts]
            if isinstance(values[0], dict):
                return {k: torch.cat([v[k] for v in values]) for k in values[0]}
            return torch.cat(values)

        return cls(*(concatenate(f.name) for f in fields(cls)))

    # --- Large attributes by index, on the training's device ---

    def _take(self, stored: Tensor, *index: Tensor) -> Tensor:
        return stored[tuple(i.to(stored.device) for i in index)].to(self.codes.device)

    def pictures(self, index: Tensor) -> Tensor:
        """Return images in [-1, 1], of shape index.shape + (3, H, W)."""
        return self._take(self.images, index).float().div(127.5).sub(1)

    def label_maps(self, index: Tensor) -> Tensor:
        """Return label maps (..., H, W) uint8."""
        return self._take(self.labels, index)

    def probabilities(self, index: Tensor, region: Tensor) -> Tensor:
        """Return the probabilities (..., H, W) float16 of one region each; `region` broadcasts against `index`."""
        return self._take(self.probs, *torch.broadcast_tensors(index, region))

    def feature_maps(self, index: Tensor) -> dict[int, Tensor]:
        """Return {resolution: (..., C, h, h) float16}."""
        return {r: self._take(x, index) for r, x in self.maps.items()}

    # --- Poses ---

    def poses(self, target: Tensor, source: Tensor, regions: Sequence[int]) -> Tensor:
        """Return the transforms (..., 2, 3) that move these regions of `source` pictures to where `target` has them.

        Both are indices. As `alignment.pose_between`, but from stored centroids.
        """
        a, b = target.flatten(), source.flatten()
        wide = aspect_of(self.labels)
        poses = pose_between_centroids(
            self.centroids[a], self.areas[a], self.centroids[b], self.areas[b], regions, wide
        )
        return poses.unflatten(0, target.shape)


def warp_each(planes: Tensor, theta: Tensor) -> Tensor:
    """Warp planes (B, R, C, H, W) by transforms (B, R, 2, 3)."""
    return warp(planes.flatten(0, 1).float(), theta.flatten(0, 1)).unflatten(0, planes.shape[:2])
