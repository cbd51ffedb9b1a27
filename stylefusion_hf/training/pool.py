"""The pool of a fusion training: plain pictures that are rendered and described once, and mixed ever after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.imaging.alignment import pose_between_centroids, region_centroids, warp
from stylefusion_hf.training.networks import FrozenNetworks

LARGE = ("images", "probs", "labels", "maps")  # what may lie in the host's memory


@dataclass
class RenderedPool:
    """N plain pictures. On the training's device: `codes` (N, S); `looks` and `centers` as in `Description`;
    `centroids` (N, R, 2) and `areas` (N, R) of the label maps.

    What is large may lie elsewhere, and is read by the methods: `images` uint8; `probs` float16; `labels` (N, H, W)
    uint8; `maps` float16.
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
        """Render and describe style codes (N, S); `device`: where the large parts go, the codes' if left out."""
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
                    moved = {k: x.to(device) for k, x in value.items()} if name == "maps" else value.to(device)
                    setattr(part, name, moved)
            parts.append(part)

        def joined(name: str):
            values = [getattr(p, name) for p in parts]
            if isinstance(values[0], dict):
                return {k: torch.cat([v[k] for v in values]) for k in values[0]}
            return torch.cat(values)

        return cls(*(joined(f.name) for f in fields(cls)))

    # --- What is large, by index, on the training's device ---

    def _take(self, stored: Tensor, *index: Tensor) -> Tensor:
        return stored[tuple(i.to(stored.device) for i in index)].to(self.codes.device)

    def pictures(self, index: Tensor) -> Tensor:
        """Images in [-1, 1], shape of `index` + (3, H, W)."""
        return self._take(self.images, index).float().div(127.5).sub(1)

    def label_maps(self, index: Tensor) -> Tensor:
        """(..., H, W) uint8."""
        return self._take(self.labels, index)

    def probabilities(self, index: Tensor, region: Tensor) -> Tensor:
        """Of one region each, (..., H, W) float16; `region` broadcasts against `index`."""
        return self._take(self.probs, *torch.broadcast_tensors(index, region))

    def feature_maps(self, index: Tensor) -> dict[int, Tensor]:
        """{resolution: (..., C, h, h)} float16."""
        return {r: self._take(x, index) for r, x in self.maps.items()}

    # --- Poses ---

    def poses(self, target: Tensor, source: Tensor, regions: Sequence[int]) -> Tensor:
        """(..., 2, 3): how to sample pictures `source` so that these regions lie where they do in `target`; indices.

        As `alignment.pose_between`, from centroids that are known already.
        """
        to, by = target.flatten(), source.flatten()
        poses = pose_between_centroids(self.centroids[to], self.areas[to], self.centroids[by], self.areas[by], regions)
        return poses.unflatten(0, target.shape)


def warp_each(planes: Tensor, theta: Tensor) -> Tensor:
    """(B, R, C, H, W) sampled by (B, R, 2, 3)."""
    return warp(planes.flatten(0, 1).float(), theta.flatten(0, 1)).unflatten(0, planes.shape[:2])
