"""A small U-Net (Ronneberger et al., arXiv 1505.04597) that segments generated images into regions."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import BaseOutput
from torch import nn

from stylefusion_hf.models.config_checks import checked_config, positive, register_to_config
from stylefusion_hf.models.layers import check_images, to_fast_layout
from stylefusion_hf.models.loading import StrictModelMixin

LARGEST = 2**14  # pixels, as for the generators


@dataclass
class SegmenterOutput(BaseOutput):
    """`logits`: (B, R, H, W), one map per region in the order of `config.regions`."""

    logits: torch.Tensor


def segmenter_channels(resolution: int) -> list[int]:
    """Return widths of the levels for pictures of that size, with a narrow first level for large ones.

    There are enough levels for every logit to depend on at least half of the picture's width.
    """
    widths = [16, 32, 64, 96] if resolution < 1024 else [8, 16, 32, 64, 96]
    while receptive_field(len(widths)) < resolution / 2:
        widths.append(96)
    return widths


def receptive_field(levels: int) -> int:
    """Return how many pixels across a logit of a U-Net with that many levels depends on."""
    down = sum(4 * 2**k for k in range(levels)) + sum(2**k for k in range(levels - 1))
    up = sum(4 * 2**k for k in range(levels - 1))
    return 1 + down + up


class ConvBlock(nn.Module):
    """Two 3 x 3 convolutions, each with group norm (no batch statistics) and SiLU: (B, in, ...) -> (B, out, ...)."""

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        return F.silu(self.norm2(self.conv2(x)))


class RegionSegmenter(StrictModelMixin, ConfigMixin):
    """Images (B, 3, H, W) in [-1, 1] -> region logits (B, R, H, W).

    Args:
        regions: names of the regions, in the order of the logits; a tree's leaves must be among them.
        channels: width of each level (`segmenter_channels` has some for every size); every level after the first
            works at half the resolution of the one before.
        groups: of the group normalization; must divide every width.
        img_channels: 3 for RGB.
        resolution: of the pictures that it was trained on, where the generator's own are larger: larger pictures are
            averaged down to it, and the logits interpolated. None: pictures of any size are taken as they are.

    Images of any size are taken; sides that the levels do not halve evenly are padded inside and cropped again.

    Raises:
        ValueError: fewer than two regions, a name twice, a width that `groups` does not divide, or a
            resolution above 16384.
    """

    @register_to_config
    @checked_config
    def __init__(
        self,
        regions: Sequence[str] = ("background", "foreground"),
        channels: Sequence[int] = (16, 32, 64, 96),
        groups: int = 8,
        img_channels: int = 3,
        resolution: int | None = None,
    ):
        super().__init__()
        regions, channels = list(regions), list(channels)
        positive(groups=groups, img_channels=img_channels, resolution=resolution)
        if resolution is not None and resolution > LARGEST:
            raise ValueError(f"resolution must be at most {LARGEST}, got {resolution}")
        if len(regions) < 2 or len(set(regions)) != len(regions):
            raise ValueError(f"a segmenter needs two or more different region names, got {regions}")
        if not channels or any(c < 1 or c % groups for c in channels):
            raise ValueError(f"every width must be a positive multiple of groups={groups}, got {channels}")
        widths = [img_channels, *channels]
        self.down = nn.ModuleList(ConvBlock(i, o, groups) for i, o in pairwise(widths))
        ups = range(len(channels) - 2, -1, -1)
        self.up = nn.ModuleList(ConvBlock(channels[k + 1] + channels[k], channels[k], groups) for k in ups)
        self.head = nn.Conv2d(channels[0], len(regions), 1)

    def feature_maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The levels' features of images (B, 3, H, W) on the way down: [(B, channels[k], h_k, w_k)]."""
        return list(self(images, return_dict=False, output="features"))

    def _reduce(self, images: torch.Tensor) -> torch.Tensor:
        """Check images, and average those larger than `resolution` down to it, keeping their aspect ratio."""
        check_images(images, self.config.img_channels)
        most = self.config.resolution
        if most is None or max(images.shape[-2:]) <= most:
            return images
        scale = most / max(images.shape[-2:])
        height, width = (max(1, round(side * scale)) for side in images.shape[-2:])
        return F.adaptive_avg_pool2d(images, (height, width))

    def _levels(self, images: torch.Tensor) -> list[torch.Tensor]:
        height, width = images.shape[-2:]
        step = 2 ** (len(self.down) - 1)
        x = F.pad(images, (0, -width % step, 0, -height % step), mode="replicate")
        x, maps = to_fast_layout(x), []
        for k, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if k else x)
            maps.append(x)
        return maps

    def segment(self, images: torch.Tensor, return_features: bool = False):
        """Logits (B, R, H, W); with `return_features` also the features of the lowest level, (B, C, h, w)."""
        if return_features:
            return self(images, return_dict=False, output="both")
        return self(images, return_dict=False)[0]

    def _segment(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        seen = self._reduce(images)
        *skips, features = self._levels(seen)
        x = features
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = block(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], dim=1))
        logits = self.head(x)[..., : seen.shape[-2], : seen.shape[-1]]
        if seen is not images:
            size = (images.shape[-2], images.shape[-1])
            logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        return logits, features

    def forward(
        self, images: torch.Tensor, return_dict: bool = True, *, output: str = "logits"
    ) -> SegmenterOutput | tuple:
        """`logits` (B, R, H, W) of images (B, 3, H, W) in [-1, 1].

        output: "logits"; "features", a tuple of what `feature_maps` lists; or "both", a tuple of logits and the lowest
            level's features. The other methods pass through this call too, since offloading, layerwise casting and
            torch.compile act on calls.
        """
        if output == "features":
            return tuple(self._levels(self._reduce(images)))
        logits, features = self._segment(images)
        if output == "both":
            return logits, features
        return SegmenterOutput(logits=logits) if return_dict else (logits,)


RegionSegmenter.__module__ = "stylefusion_hf"
