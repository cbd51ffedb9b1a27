"""The frozen generator and segmenter of a fusion training, and the looks and positions of regions that they give.

Everything happens at the training resolution: pictures are the generator's own of that size (`synthesis(up_to=R)`).
Resolutions are heights; widths follow from the generator's aspect ratio.
"""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.sizes import nearest_heights
from stylefusion_hf.imaging.alignment import pixel_places
from stylefusion_hf.imaging.features import PooledMaps, colour, texture
from stylefusion_hf.training.choices import FEATURES

logger = logging.getLogger("stylefusion_hf")
DEFAULT_RESOLUTION = 256  # the largest by default: layers below it determine structure


@dataclass
class Description:
    """N described pictures.

    Attributes:
        images: (N, 3, H, W) in [-1, 1].
        probs: (N, R, H, W), of the segmenter.
        centers: (N, R, 2).
        looks: {head: (N, R, D)}, features that pose does not change: "colour", and "maps" or "texture".
        maps: {resolution: (N, C, h, h)}, the generator's feature maps, channels in units of their deviation; empty
            unless requested.
    """

    images: Tensor
    probs: Tensor
    centers: Tensor
    looks: dict[str, Tensor]
    maps: dict[int, Tensor]

    @property
    def masks(self) -> Tensor:
        """(N, R, H, W), where each region is the most probable one; without gradient."""
        probs = self.probs.detach()
        return probs >= probs.amax(dim=1, keepdim=True)


def training_resolution(asked: int | None, sizes: Sequence[int]) -> int:
    """Return --train_resolution; by default the generator's largest picture size up to 256. ValueError if unknown."""
    if asked is None:
        return max((r for r in sizes if r <= DEFAULT_RESOLUTION), default=min(sizes))
    if asked not in sizes or (asked < 16 and asked != max(sizes)):
        known = ", ".join(str(r) for r in sizes if r >= 16)
        raise ValueError(f"--train_resolution {asked}: this generator makes pictures of {known} px")
    return asked


class FrozenNetworks:
    """The frozen generator and segmenter.

    Args:
        order: the segmenter's channel of each region. Its other channels are ignored: each pixel belongs to the most
            probable region among these.
        resolution: height of pictures, masks and losses; by default the generator's.
        features: the looks besides color, from `FEATURES`.
        map_resolutions: of the generator's feature maps to use, or those nearest to them.
        keep_maps: whether descriptions include the maps themselves, for the spatial contrast.
        batch: pictures to render at once without gradients.
        precision: context of rendering and segmenting, such as `accelerator.autocast`.
        dtype: of the weights that the pictures of a training step are drawn and segmented with. Autocast alone would
            cast frozen weights again in each step, and native operators take the dtype that they are given. Everything
            that is measured once (the pool, start gates) keeps the networks' own dtype.

    Attributes:
        size: (height, width) of pictures, masks and losses.
        segmenter_resolution: the height at which the segmenter sees pictures, set by `choose_segmenter_resolution`.
    """

    def __init__(
        self,
        generator,
        segmenter,
        order: list[int],
        resolution: int | None = None,
        features: Sequence[str] = ("maps",),
        map_resolutions: Sequence[int] = (16, 32),
        keep_maps: bool = False,
        batch: int = 64,
        precision: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        dtype: torch.dtype | None = None,
    ):
        if unknown := [name for name in features if name not in FEATURES]:
            raise ValueError(f"unknown features {unknown[0]!r}: choose from {', '.join(FEATURES)}")
        self.generator, self.segmenter, self.order, self.features = generator, segmenter, order, tuple(features)
        self.full_resolution = generator.config.resolution
        self.resolution = resolution or self.full_resolution
        self.segmenter_resolution, self.size = self.resolution, generator.size_at(self.resolution)
        self.map_resolutions = nearest_heights(map_resolutions, generator.feature_sizes)
        self.keep_maps, self.batch, self.precision = keep_maps, batch, precision
        self.dtype = None if dtype == generator.dtype else dtype
        self._cast: dict[str, Any] = {}
        self.pooled: PooledMaps | None = None

    # --- Preparation ---

    @torch.no_grad()
    def calibrate(self, codes: Tensor) -> None:
        """Measure the maps' means and deviations on samples (N, S)."""
        parts = []
        for s in codes.split(self.batch):
            found = self.generator.synthesis(s, return_features=True, up_to=self.resolution)[1]
            parts.append({r: x.float() for r, x in found.items() if r in self.map_resolutions})
        maps = {r: torch.cat([p[r] for p in parts]) for r in parts[0]}
        if maps:
            self.pooled = PooledMaps(maps, self.map_resolutions)
        elif "maps" in self.features or self.keep_maps:
            raise ValueError(
                f"pictures of {self.resolution} px have no maps of 16 or 32 px: train with"
                " --features texture and without --spatial_weight"
            )

    @torch.no_grad()
    def choose_segmenter_resolution(self, codes: Tensor, tolerance: float = 0.02) -> float:
        """Choose the smallest size at which the segmenter labels training pictures as it labels full pictures.

        Segmenters are trained on pictures of the generator's full size and vary in how well they handle smaller ones.

        Args:
            codes: samples (N, S).
            tolerance: how far the IoU may be below that of the best size.

        Returns:
            The mean IoU, at the chosen size, between labels of training pictures and of full pictures.
        """
        sizes = [self.resolution]
        while sizes[-1] < self.full_resolution:
            sizes.append(2 * sizes[-1])
        counts = torch.zeros(len(sizes), len(self.order), 2)  # intersection, union
        for s in codes.split(max(1, self.batch * self.resolution**2 // self.full_resolution**2)):
            full = self._segment(self.generator.synthesis(s).clamp(-1, 1), self.full_resolution)
            truth = F.adaptive_avg_pool2d(full, self.size).argmax(dim=1)
            small = self.generator.synthesis(s, up_to=self.resolution).clamp(-1, 1)
            for i, size in enumerate(sizes):
                guess = self._segment(small, size).argmax(dim=1)
                for r in range(len(self.order)):
                    a, b = truth == r, guess == r
                    counts[i, r] += torch.stack([(a & b).sum(), (a | b).sum()]).cpu()
        iou = torch.where(counts[..., 1] > 0, counts[..., 0] / counts[..., 1].clamp_min(1), torch.nan).nanmean(dim=1)
        chosen = next(i for i in range(len(sizes)) if iou[i] >= iou.max() - tolerance)
        self.segmenter_resolution = sizes[chosen]
        return float(iou[chosen])

    # --- Rendering and describing ---

    def render(self, codes: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Return images in [-1, 1] and feature maps of style codes (B, S)."""
        generator = self._in_dtype("generator", codes)
        with self.precision():
            image, maps = generator.synthesis(codes.to(generator.dtype), return_features=True, up_to=self.resolution)
        wanted = self.pooled.resolutions if self.pooled else ()
        return image.float().clamp(-1, 1), {r: maps[r].float() for r in wanted}

    def segment(self, images: Tensor) -> Tensor:
        """Return the regions' probabilities (B, R, H, W)."""
        return self._segment(images, self.segmenter_resolution)

    def _segment(self, images: Tensor, size: int) -> Tensor:
        """Return probabilities at the pictures' size, segmented at a height of `size` px."""
        if size == images.shape[-2]:
            segmenter = self._in_dtype("segmenter", images)
            with self.precision():
                x = images.to(getattr(segmenter, "dtype", images.dtype))
                return segmenter.segment(x)[:, self.order].float().softmax(dim=1)
        large = F.interpolate(images, size=self.generator.size_at(size), mode="bilinear", align_corners=False)
        return F.adaptive_avg_pool2d(self._segment(large, size), (images.shape[-2], images.shape[-1]))

    def _in_dtype(self, name: str, inputs: Tensor) -> Any:
        """Return a network; where gradients flow to the inputs, its copy of the asked dtype."""
        network = getattr(self, name)
        if self.dtype is None or not inputs.requires_grad or not isinstance(network, torch.nn.Module):
            return network
        if name not in self._cast:
            # diffusers' own `to` warns of modules that should stay in float32, of which these have none
            self._cast[name] = torch.nn.Module.to(copy.deepcopy(network), dtype=self.dtype)
        return self._cast[name]

    def describe(self, images: Tensor, maps: Mapping[int, Tensor], probs: Tensor) -> Description:
        """Describe rendered pictures; differentiable except for the masks."""
        found = Description(images, probs, soft_centers(probs), {}, {})
        masks = found.masks
        found.looks["colour"] = colour(images, masks)
        if "maps" in self.features and self.pooled is not None:
            found.looks["maps"] = self.pooled(maps, masks)
        if "texture" in self.features:
            each = images[:, None].expand(-1, masks.shape[1], -1, -1, -1).flatten(0, 1)
            found.looks["texture"] = texture(each, masks.flatten(0, 1)).unflatten(0, masks.shape[:2])
        if self.keep_maps and self.pooled is not None:
            found.maps = {r: self.pooled.standardised(maps, r) for r in self.pooled.resolutions}
        return found

    def __call__(self, codes: Tensor) -> Description:
        """Render and describe style codes (B, S)."""
        images, maps = self.render(codes)
        return self.describe(images, maps, self.segment(images))


def soft_centers(probs: Tensor) -> Tensor:
    """Return the centers (B, R, 2) of probabilities as (x, y), in `affine_grid`'s units; differentiable."""
    ys, xs = (pixel_places(n, probs.device).to(probs.dtype) for n in probs.shape[-2:])
    weight = probs.square()  # uncertain pixels should not pull a center
    total = weight.sum(dim=(2, 3)).clamp_min(1e-6)
    return torch.stack([(weight.sum(dim=2) * xs).sum(-1) / total, (weight.sum(dim=3) * ys).sum(-1) / total], dim=-1)
