"""Regions from a generator's own feature maps, found without labels or learned from a few.

In a generator's feature maps, places of the same part lie close together: Collins et al. ("Editing in Style", arXiv
2004.14367) cluster them; DatasetGAN (arXiv 2104.06490) and RepurposeGAN (arXiv 2103.04379) learn parts from a few
painted samples. A labeler works on generated pictures only; `regions.distillation` makes a `RegionSegmenter` of it,
which works on any picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from stylefusion_hf.core.sizes import size_at
from stylefusion_hf.models.config_checks import checked_config, positive, register_to_config
from stylefusion_hf.models.hooks import compute_dtype
from stylefusion_hf.models.layers import check_real
from stylefusion_hf.models.loading import StrictModelMixin
from stylefusion_hf.models.style_generator import StyleGenerator


@dataclass
class LabellerOutput(BaseOutput):
    """`logits`: (B, R, H, W), one map per region in the order of `config.regions`."""

    logits: Tensor


def readable_layers(generator: StyleGenerator, finest: int) -> list[int]:
    """Resolutions of the feature maps from 8 px (coarser ones hold no parts) to `finest`, else the last one."""
    sizes = list(generator.feature_sizes)
    return [r for r in sizes if 8 <= r <= finest] or sizes[-1:]


def describe(maps: Mapping[int, Tensor], resolutions: Sequence[int], size: int) -> Tensor:
    """Feature maps {h: (B, C_h, h, w)} as one, (B, sum of C_h, size, width), of unit length at every place.

    Each map has unit length of its own first, so that no layer outweighs the others by its scale. ValueError for a
    resolution that is not among the maps.
    """
    if missing := [r for r in resolutions if r not in maps]:
        raise ValueError(f"there are no feature maps of {missing[0]} pixels; there are {sorted(maps)}")
    for height in resolutions:
        check_real(f"feature maps of {height} pixels", maps[height])
    # Between places too: a mean of two directions is shorter than either.
    parts = [F.normalize(_resized(F.normalize(maps[r].float(), dim=1), size), dim=1) for r in resolutions]
    return torch.cat(parts, dim=1) / len(parts) ** 0.5


def _resized(x: Tensor, height: int) -> Tensor:
    size = size_at(height, (x.shape[-2], x.shape[-1]))
    if x.shape[-2] >= height:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class FeatureLabeller(StrictModelMixin, ConfigMixin):
    """Feature maps of a generator -> region logits.

    Without hidden layers the class weights are directions, and the logit is the cosine times 1 / temperature, as in
    spherical k-means. With them it is an ensemble of small networks, place by place, whose probabilities are averaged.

    Args:
        regions: names of the regions.
        resolutions: which feature maps are read.
        channels: their widths.
        classes: the region that each class belongs to, by number; a region's probability is its classes' sum. None:
            one class per region.
        hidden: widths of the hidden layers; empty for none.
        members: networks in the ensemble.

    Raises:
        ValueError: fewer than two regions, a name twice, a region without a class, or widths that do not fit.
    """

    @register_to_config
    @checked_config
    def __init__(
        self,
        regions: Sequence[str] = ("background", "foreground"),
        resolutions: Sequence[int] = (8, 16, 32),
        channels: Sequence[int] = (128, 128, 64),
        classes: Sequence[int] | None = None,
        hidden: Sequence[int] = (),
        members: int = 1,
    ):
        super().__init__()
        regions, classes = list(regions), list(range(len(regions)) if classes is None else classes)
        positive(members=members)
        if len(regions) < 2 or len(set(regions)) != len(regions):
            raise ValueError(f"a labeller needs two or more different region names, got {regions}")
        if sorted(set(classes)) != list(range(len(regions))):
            raise ValueError(f"classes must name each of the {len(regions)} regions by number, got {classes}")
        if not resolutions or len(channels) != len(resolutions) or min(channels) < 1 or min(hidden, default=1) < 1:
            raise ValueError(f"resolutions {list(resolutions)} and channels {list(channels)} do not fit")
        self.register_to_config(classes=classes)
        widths = [sum(channels), *hidden, len(classes)]
        self.layers = nn.ModuleList(
            nn.Conv1d(widths[k] * (members if k else 1), widths[k + 1] * members, 1, groups=members if k else 1)
            for k in range(len(widths) - 1)
        )

    @classmethod
    def of(
        cls, generator: StyleGenerator, regions: Sequence[str], layers: Sequence[int], **config: Any
    ) -> FeatureLabeller:
        """A new labeler of these feature maps of a generator; `config`: further arguments."""
        channels = [generator.feature_sizes[r] for r in layers]
        return cls(regions=list(regions), resolutions=list(layers), channels=channels, **config)

    @property
    def size(self) -> int:
        """Height of the maps before they are enlarged: the finest one's."""
        return int(max(self.config.resolutions))

    def read(self, features: Tensor) -> Tensor:
        """Described features (B, D, P) of P places -> log probabilities of the regions by member, (B, M, R, P)."""
        x = features
        for k, layer in enumerate(self.layers):
            x = layer(F.leaky_relu(x, 0.2) if k else x)
        x = x.unflatten(1, (self.config.members, -1)).log_softmax(dim=2)  # (B, M, classes, P)
        regions = len(self.config.regions)
        if len(self.config.classes) == regions:
            order = torch.tensor(self.config.classes, device=x.device).argsort()
            return x[:, :, order]
        owner = F.one_hot(torch.tensor(self.config.classes, device=x.device), regions).to(x)
        return (x.exp().transpose(2, 3) @ owner).transpose(2, 3).clamp_min(1e-12).log()

    def label(self, maps: Mapping[int, Tensor], size: int | None = None) -> Tensor:
        """Logits (B, R, size, width) from feature maps as of `generator.synthesis(..., return_features=True)`.

        size: their height; None for that of the finest maps that are read. ValueError for maps of another generator.
        """
        return self(maps, size, return_dict=False)[0]

    def _label(self, maps: Mapping[int, Tensor], size: int | None) -> Tensor:
        x = describe(maps, self.config.resolutions, self.size)
        if x.shape[1] != sum(self.config.channels):
            raise ValueError(
                f"expected feature maps of {list(self.config.channels)} channels at {list(self.config.resolutions)}"
                f" pixels, got {[maps[r].shape[1] for r in self.config.resolutions]}: another generator's?"
            )
        places = self.read(x.flatten(2).to(compute_dtype(self.layers[0])))
        found = places.float().exp().mean(dim=1).clamp_min(1e-12).log().unflatten(2, x.shape[2:])
        return _resized(found, size or self.size).to(places.dtype)

    def forward(
        self, maps: Mapping[int, Tensor], size: int | None = None, return_dict: bool = True
    ) -> LabellerOutput | tuple:
        """`label`, as an output object."""
        logits = self._label(maps, size)
        return LabellerOutput(logits=logits) if return_dict else (logits,)


FeatureLabeller.__module__ = "stylefusion_hf"
