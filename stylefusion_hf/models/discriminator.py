"""Discriminators as diffusers models: StyleGAN2's (Karras et al., arXiv 1912.04958; residual architecture), and a
projected one on the features of a frozen network."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import BaseOutput
from torch import nn

from stylefusion_hf.core.sizes import size_at
from stylefusion_hf.models.config_checks import checked_config, drop_empty, positive, register_to_config
from stylefusion_hf.models.layers import (
    EqualizedConv,
    EqualizedLinear,
    MappingNetwork,
    block_resolutions,
    channel_schedule,
    check_channels,
    check_real,
    to_fast_layout,
)
from stylefusion_hf.models.loading import StrictModelMixin
from stylefusion_hf.models.segmenter import RegionSegmenter


@dataclass
class DiscriminatorOutput(BaseOutput):
    """`logits`: (B, 1), higher for images judged real."""

    logits: torch.Tensor


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution: (B, in, H, W) -> (B, out, H / 2, W / 2)."""

    def __init__(self, in_channels, out_channels, clamp=None):
        super().__init__()
        self.conv0 = EqualizedConv(in_channels, in_channels, 3, clamp=clamp)
        self.conv1 = EqualizedConv(in_channels, out_channels, 3, down=2, clamp=clamp)
        self.skip = EqualizedConv(in_channels, out_channels, 1, act="linear", down=2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        half = math.sqrt(0.5)  # the sum of two branches keeps the variance of one
        return self.conv1(self.conv0(x), gain=half) + self.skip(x, gain=half)


def minibatch_std(x: torch.Tensor, group_size: int, num_channels: int) -> torch.Tensor:
    """Append channels with the standard deviation over groups of samples (Karras et al., arXiv 1710.10196, section 3).

    x is (B, C, H, W), the result (B, C + num_channels, H, W). A group has `group_size` samples, or the largest smaller
    number that divides the batch. Sample i shares its group with samples i + k * B / group, as in NVIDIA's code.
    """
    b, c, h, w = x.shape
    group = next(g for g in range(min(group_size, b), 0, -1) if b % g == 0)
    y = x.reshape(group, -1, num_channels, c // num_channels, h, w)
    y = ((y - y.mean(dim=0)).square().mean(dim=0) + 1e-8).sqrt().mean(dim=(2, 3, 4))  # (B / group, num_channels)
    y = y.reshape(-1, num_channels, 1, 1).repeat(group, 1, h, w)
    return torch.cat([x, y.to(x.dtype)], dim=1)


def _check_shape(images: torch.Tensor, expected: tuple[int, ...]) -> None:
    """ValueError unless images are a batch of pictures of the shape (channels, height, width)."""
    check_real("images", images)
    if images.ndim != 4 or tuple(images.shape[1:]) != expected:
        raise ValueError(
            f"expected images of shape (batch, {', '.join(map(str, expected))}), got {tuple(images.shape)}"
        )


class StyleGAN2Discriminator(StrictModelMixin, ConfigMixin):
    """Images (B, C, H, W) in [-1, 1] -> logits (B, 1).

    Args:
        resolution: height of the images, and their width unless `base_size` says otherwise; a power of two from 8.
        channels: one count per block, from 4 x 4 up; None for NVIDIA's schedule with `channel_base` 32768, at most
            512.
        label_dim: size of the class-label vector; 0 for an unconditional model.
        mapping_layers: depth of the MLP that maps labels for the projection (class-conditional models only); 0 for
            the normalized embedding itself.
        label_embed_dim: width of that projection; None for the channels at 4 x 4.
        mbstd_group_size, mbstd_channels: settings of the minibatch standard deviation; 0 channels switch it off, so
            that a sample's logit does not depend on the rest of its batch.
        conv_clamp: clamp on activations, for half precision.
        input_skips: how many of the largest blocks are followed by a fromRGB layer of the image at their output's
            resolution (the "input skips" of the paper's figure 7). Growing to twice the resolution adds one.
        mapping_width, mapping_embed_dim: widths of that MLP's hidden layers and input; None for the projection's.
        base_size: (height, width) of the smallest features, as in `StyleGAN2Generator`; None for 4 x 4.

    Raises:
        ValueError: the resolution is not a power of two (times the base's height), or other numbers do not fit it.
    """

    @register_to_config
    @checked_config
    def __init__(
        self,
        resolution: int = 64,
        channels: Sequence[int] | None = None,
        label_dim: int = 0,
        mapping_layers: int = 8,
        label_embed_dim: int | None = None,
        img_channels: int = 3,
        mbstd_group_size: int = 4,
        mbstd_channels: int = 1,
        conv_clamp: float | None = None,
        input_skips: int = 0,
        mapping_width: int | None = None,
        mapping_embed_dim: int | None = None,
        base_size: Sequence[int] | None = None,
    ):
        super().__init__()
        base_size = None if list(base_size or ()) == [4, 4] else base_size
        schedule = channel_schedule(resolution, base_size=base_size) if channels is None else channels
        channels = check_channels(schedule, resolution, base_size)
        if len(channels) < 2:
            least = 2 * (base_size or (4,))[0]
            raise ValueError(f"a discriminator needs a resolution of at least {least}, got {resolution}")
        if mbstd_channels < 0 or mbstd_group_size < 1 or (mbstd_channels and channels[0] % mbstd_channels):
            raise ValueError(
                f"mbstd_channels must be 0 or divide the {channels[0]} channels at 4 x 4, and mbstd_group_size must be"
                f" positive; got {mbstd_channels=}, {mbstd_group_size=}"
            )
        positive(img_channels=img_channels, conv_clamp=conv_clamp, label_embed_dim=label_embed_dim)
        positive(mapping_width=mapping_width, mapping_embed_dim=mapping_embed_dim)
        if not 0 <= input_skips <= len(channels) - 1:
            raise ValueError(f"input_skips must be from 0 to {len(channels) - 1} (the blocks), got {input_skips}")
        self.register_to_config(channels=channels, base_size=base_size)
        drop_empty(self, "base_size")  # so that configs of squares stay as they were
        height, width = base_size or (4, 4)
        self.picture_size = size_at(resolution, (height, width))
        c4 = channels[0]
        embed = label_embed_dim or c4
        self.fromrgb = EqualizedConv(img_channels, channels[-1], 1, clamp=conv_clamp)
        # From the image's resolution down to 8 x 8.
        pairs = zip(channels[:0:-1], channels[-2::-1], strict=True)
        self.blocks = nn.ModuleList(DiscriminatorBlock(i, o, conv_clamp) for i, o in pairs)
        self.skips = nn.ModuleList(
            EqualizedConv(img_channels, width, 1, clamp=conv_clamp) for width in channels[-2::-1][:input_skips]
        )
        widths = {"width": mapping_width or embed, "embed_dim": mapping_embed_dim or embed}
        self.mapping = MappingNetwork(0, label_dim, embed, mapping_layers, **widths) if label_dim else None
        self.conv = EqualizedConv(c4 + mbstd_channels, c4, 3, clamp=conv_clamp)
        self.fc = EqualizedLinear(c4 * math.prod(base_size or (4, 4)), c4, act="lrelu")
        self.out = EqualizedLinear(c4, embed if label_dim else 1)

    def forward(
        self, images: torch.Tensor, class_labels: torch.Tensor | None = None, return_dict: bool = True
    ) -> DiscriminatorOutput | tuple:
        """`logits` (B, 1). ValueError if the images have another shape than the model's."""
        expected = (self.config.img_channels, *self.picture_size)
        _check_shape(images, expected)
        x = self.fromrgb(to_fast_layout(images))
        for k, block in enumerate(self.blocks):
            x = block(x)
            if k < len(self.skips):
                images = F.avg_pool2d(images, 2)
                x = x + self.skips[k](to_fast_layout(images))
        if self.config.mbstd_channels:
            x = minibatch_std(x, self.config.mbstd_group_size, self.config.mbstd_channels)
        x = self.out(self.fc(self.conv(x).flatten(1)))
        if self.mapping is not None:
            # Projection (Miyato & Koyama, arXiv 1802.05637).
            x = (x * self.mapping(None, class_labels).to(x.dtype)).sum(dim=1, keepdim=True) / math.sqrt(x.shape[1])
        return DiscriminatorOutput(logits=x) if return_dict else (x,)


StyleGAN2Discriminator.__module__ = "stylefusion_hf"


def turn_into_buffers(module: nn.Module) -> None:
    """Turn parameters into buffers of the same names: still saved and moved with the module, but never trained."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())


class FeatureHead(nn.Module):
    """Small discriminator of one feature level: (B, width, size, size) -> logits (B, 1)."""

    def __init__(self, width: int, size: int, group_size: int):
        super().__init__()
        self.group_size = group_size
        self.blocks = nn.Sequential(*(DiscriminatorBlock(width, width) for _ in range(size.bit_length() - 3)))
        self.conv = EqualizedConv(width + 1, width, 3)
        self.fc = EqualizedLinear(width * 16, width, act="lrelu")
        self.out = EqualizedLinear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = minibatch_std(self.blocks(to_fast_layout(x)), self.group_size, 1)
        return self.out(self.fc(self.conv(x).flatten(1)))


class ProjectedDiscriminator(StrictModelMixin, ConfigMixin):
    """Images (B, C, H, W) in [-1, 1] -> logits (B, 1), from the features of a frozen segmenter.

    After Projected GAN (Sauer et al., arXiv 2111.01007): random convolutions that are never trained mix the feature
    maps of several levels across channels and, from the coarsest level up, across scales; one small discriminator per
    level reads the mixture, and the logits are averaged. No level sees the pixels themselves.

    Args:
        network: constructor arguments of the [`RegionSegmenter`] whose encoder gives the features.
        resolution: resolution of the images, a power of two. Levels from 4 x 4 to half of it are used.
        width: channels of the mixtures and of the small discriminators.
        mbstd_group_size: group size of the minibatch standard deviation at the end of each small discriminator.

    Raises:
        ValueError: the network has no usable level at this resolution, or another number does not fit.
    """

    @register_to_config
    @checked_config
    def __init__(
        self, network: Mapping | None = None, resolution: int = 64, width: int = 64, mbstd_group_size: int = 4
    ):
        super().__init__()
        block_resolutions(resolution)
        positive(width=width, mbstd_group_size=mbstd_group_size)
        self.frozen = RegionSegmenter(**dict(network or {}))
        self.frozen.up = nn.ModuleList()  # features need no decoder
        self.frozen.head = nn.Identity()  # type: ignore[assignment]
        turn_into_buffers(self.frozen)
        sizes = {k: resolution >> k for k in range(1, len(self.frozen.down)) if resolution >> k >= 4}
        if not sizes:
            raise ValueError(f"a segmenter with {len(self.frozen.down)} levels has no usable one at {resolution} px")
        self.levels = list(sizes)
        widths = self.frozen.config.channels
        # Buffers: kept in checkpoints, but invisible to optimizers.
        for k in self.levels:
            self.register_buffer(f"across_channels{k}", torch.randn(width, widths[k], 1, 1) / math.sqrt(widths[k]))
            self.register_buffer(f"across_scales{k}", torch.randn(width, width, 3, 3) / math.sqrt(9 * width))
        self.heads = nn.ModuleList(FeatureHead(width, size, mbstd_group_size) for size in sizes.values())

    def forward(self, images: torch.Tensor, return_dict: bool = True) -> DiscriminatorOutput | tuple:
        """`logits` (B, 1). ValueError if the images have another shape than the model's."""
        expected = (self.frozen.config.img_channels, self.config.resolution, self.config.resolution)
        _check_shape(images, expected)
        maps = self.frozen.feature_maps(images)
        logits, coarser = [], None
        for head, k in zip(self.heads[::-1], self.levels[::-1], strict=True):
            x = F.conv2d(maps[k], getattr(self, f"across_channels{k}").to(maps[k].dtype))
            if coarser is not None:
                x = x + F.interpolate(coarser, scale_factor=2, mode="nearest")
            coarser = x = F.conv2d(x, getattr(self, f"across_scales{k}").to(x.dtype), padding=1)
            logits.append(head(x))
        mean = torch.stack(logits).mean(dim=0)
        return DiscriminatorOutput(logits=mean) if return_dict else (mean,)
