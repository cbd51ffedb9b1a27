"""Feed-forward encoder: pictures to w+, as offsets from the mean code (pSp, Richardson et al., arXiv 2008.00951)."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import BaseOutput
from torch import nn

from stylefusion_hf.models.config_checks import checked_config, drop_empty, positive, register_to_config
from stylefusion_hf.models.layers import check_images, to_fast_layout
from stylefusion_hf.models.loading import StrictModelMixin
from stylefusion_hf.models.segmenter import ConvBlock


@dataclass
class EncoderOutput(BaseOutput):
    """`latents`: w+ codes (B, num_ws, w_dim)."""

    latents: torch.Tensor


class ImageEncoder(StrictModelMixin, ConfigMixin):
    """Images (B, 3, H, W) in [-1, 1] -> w+ (B, num_ws, w_dim).

    A code is the mean code, plus one offset for all rows, plus one offset per row (e4e, Tov et al., arXiv 2102.02766),
    both along w's principal axes in units of the standard deviation there. A new encoder predicts the mean code for
    every picture.

    Args:
        num_ws, w_dim: shape of the generator's w+.
        resolution: size in pixels to which images of any size are resized internally.
        channels: widths at 1/2 of the resolution (before and after its convolutions), 1/4, 1/8, ...
        reduced: channels of the last map, which the head reads unpooled.
        features: width of the layer before the two offset layers.
        row_axes: how many of the leading principal axes the offsets per row use; None for all. The offset for all rows
            always uses all of them.
        groups: number of groups of the group normalization; must divide every width.
        img_channels: 3 for RGB.

    Raises:
        ValueError: fewer than two widths, a width not divisible by `groups`, or a resolution that cannot be halved
            once per level.
    """

    w_mean: torch.Tensor
    w_axes: torch.Tensor

    @register_to_config
    @checked_config
    def __init__(
        self,
        num_ws: int = 10,
        w_dim: int = 512,
        resolution: int = 64,
        channels: Sequence[int] = (32, 48, 96, 160),
        reduced: int = 32,
        features: int = 256,
        groups: int = 8,
        img_channels: int = 3,
        row_axes: int | None = None,
    ):
        super().__init__()
        channels = list(channels)
        positive(groups=groups, img_channels=img_channels, reduced=reduced, features=features, row_axes=row_axes)
        if len(channels) < 2 or any(c < 1 or c % groups for c in channels):
            raise ValueError(f"expected at least two widths that are multiples of groups={groups}, got {channels}")
        step = 2 ** (len(channels) - 1)
        if resolution < step or resolution % step:
            raise ValueError(f"resolution must be a multiple of {step} for {len(channels)} widths, got {resolution}")
        if num_ws < 1 or w_dim < 1:
            raise ValueError(f"num_ws and w_dim must be at least 1, got {num_ws} and {w_dim}")
        if row_axes is not None and row_axes > w_dim:
            raise ValueError(f"row_axes must be at most w_dim, {w_dim}, got {row_axes}")
        drop_empty(self, "row_axes")
        self.stem = nn.Conv2d(img_channels, channels[0], 4, stride=2, padding=1)
        self.levels = nn.ModuleList(ConvBlock(i, o, groups) for i, o in pairwise(channels))
        self.reduce = nn.Conv2d(channels[-1], reduced, 1)
        # Flattened rather than pooled: the position of a feature is part of the code.
        self.to_features = nn.Linear(reduced * (resolution // step) ** 2, features)
        self.to_code = nn.Linear(features, w_dim)
        self.to_rows = nn.Linear(features, num_ws * (w_dim if row_axes is None else row_axes))
        for head in (self.to_code, self.to_rows):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.register_buffer("w_mean", torch.zeros(w_dim))
        self.register_buffer("w_axes", torch.eye(w_dim))  # (axis, w_dim), of one standard deviation, ascending

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Return w+ codes (B, num_ws, w_dim) for images (B, 3, H, W) in [-1, 1]; ValueError for other shapes."""
        return self(images, return_dict=False)[0]

    def _encode(self, images: torch.Tensor) -> torch.Tensor:
        config = self.config
        check_images(images, config.img_channels)
        x, size = images, (config.resolution, config.resolution)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
        x = F.silu(self.stem(to_fast_layout(x)))
        for k, block in enumerate(self.levels):
            x = block(F.avg_pool2d(x, 2) if k else x)
        features = F.silu(self.to_features(F.silu(self.reduce(x)).flatten(1)))
        rows = self.to_rows(features).unflatten(1, (config.num_ws, -1))
        rows = F.pad(rows, (config.w_dim - rows.shape[-1], 0))  # the leading axes are the last
        return self.w_mean + (self.to_code(features)[:, None] + rows) @ self.w_axes

    @torch.no_grad()
    def fit_axes(self, w: torch.Tensor) -> None:
        """Set the mean and the axes to those of a sample of w, (N, w_dim)."""
        values, vectors = torch.linalg.eigh(w.detach().t().cov().cpu().double())
        self.w_mean.copy_(w.mean(dim=0))
        self.w_axes.copy_((vectors * values.clamp_min(0).sqrt()).t())

    def forward(self, images: torch.Tensor, return_dict: bool = True) -> EncoderOutput | tuple:
        """Return `latents`: w+ (B, num_ws, w_dim) of images (B, 3, H, W) in [-1, 1]."""
        latents = self._encode(images)
        return EncoderOutput(latents=latents) if return_dict else (latents,)


def encoder_channels(resolution: int) -> list[int]:
    """Return encoder widths for a resolution (a power of two from 16), down to a last map of 8 x 8 or smaller."""
    widths = [32, 48, 96, 160]
    levels = max(1, (resolution // 8).bit_length() - 1)  # halvings down to 8 pixels
    return widths[: levels + 1] if levels < len(widths) else [*widths, *[160] * (levels + 1 - len(widths))]


ImageEncoder.__module__ = "stylefusion_hf"
