"""Layers shared by StyleGAN2's networks: equalized learning rate, the mapping MLP, the channel schedule."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from stylefusion_hf.core.checks import short
from stylefusion_hf.ops import bias_act, conv2d_resample, setup_filter

FIR_TAPS = (1, 3, 3, 1)

# --- Checks of what models are called with ---------------------------------------------------------------------------


def check_real(name: str, value: Any) -> None:
    """ValueError unless a model's input is a tensor of floating-point numbers."""
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise ValueError(f"{name} must be a tensor of floating-point numbers, got {short(value)}")


def check_images(images: Any, channels: int) -> None:
    """ValueError unless images are a tensor (batch, channels, H, W) of floating-point numbers."""
    check_real("images", images)
    if images.ndim != 4 or images.shape[1] != channels:
        raise ValueError(f"expected images (batch, {channels}, H, W), got {tuple(images.shape)}")


# --- Sizes and widths ------------------------------------------------------------------------------------------------


def block_resolutions(resolution: int) -> list[int]:
    """Return [4, 8, ..., resolution]; ValueError unless it is a power of two from 4 to 16384."""
    if not isinstance(resolution, int) or resolution < 4 or resolution > 2**14 or resolution & (resolution - 1):
        raise ValueError(f"resolution must be a power of two between 4 and 16384, got {resolution!r}")
    return [2**i for i in range(2, resolution.bit_length())]


def block_heights(resolution: int, base_size: Sequence[int] | None = None) -> list[int]:
    """Return the heights of the blocks of a network whose smallest features have `base_size` (height, width).

    None means 4 x 4, which gives `block_resolutions`. ValueError unless `resolution` is the base's height times a
    power of two and no side exceeds 16384 pixels.
    """
    if base_size is None:
        return block_resolutions(resolution)
    if len(base_size) != 2 or not all(isinstance(side, int) and side > 0 for side in base_size):
        raise ValueError(f"base_size is a height and a width, such as [4, 6]; got {short(base_size)}")
    height, width = base_size
    doublings, rest = divmod(resolution, height)
    if rest or doublings < 1 or doublings & (doublings - 1) or max(resolution, width * doublings) > 2**14:
        raise ValueError(
            f"resolution must be {height} (the height of base_size {short(list(base_size))}) times a power of two,"
            f" with no side above {2**14} pixels; got {resolution!r}"
        )
    return [height * 2**k for k in range(doublings.bit_length())]


def chunk_size(resolution: int, most: int) -> int:
    """Return the batch size for computation without gradients: `most` up to 128 pixels, less at larger sizes."""
    return max(1, min(most, most * 128**2 // resolution**2))


def channel_schedule(
    resolution: int, channel_base: int = 32768, channel_max: int = 512, base_size: Sequence[int] | None = None
) -> list[int]:
    """Return the channels at 4, 8, ..., resolution as in NVIDIA's configurations: min(base / resolution, max).

    Blocks that start from another size than 4 x 4 have the channels of their number.
    """
    blocks = len(block_heights(resolution, base_size))
    return [max(min(channel_base // (4 * 2**k), channel_max), 1) for k in range(blocks)]


def check_channels(channels, resolution: int, base_size: Sequence[int] | None = None) -> list[int]:
    """Return the channel counts as a list, one per block from the smallest up; ValueError if they do not fit."""
    blocks = block_heights(resolution, base_size)
    channels = list(channels)
    if len(channels) != len(blocks) or not all(isinstance(c, int) and c > 0 for c in channels):
        raise ValueError(
            f"a network of resolution {resolution} needs {len(blocks)} positive channel counts, for {blocks};"
            f" got {channels}"
        )
    return channels


def register_fir(module: nn.Module) -> None:
    """Register the low-pass filter as a buffer that follows `.to(device)`; not saved, the architecture fixes it."""
    module.register_buffer("fir", setup_filter(FIR_TAPS), persistent=False)


def to_fast_layout(x: torch.Tensor) -> torch.Tensor:
    """Convert to channels-last where it is faster: on CPUs (2-4x for depthwise filters), on GPUs in half precision."""
    if x.device.type == "cpu" or x.dtype in (torch.float16, torch.bfloat16):
        return x.contiguous(memory_format=torch.channels_last)
    return x


# --- Equalized learning rate: weights of unit variance, scaled when used (arXiv 1710.10196, section 4.1) -------------


class EqualizedLinear(nn.Module):
    """Linear layer (B, in) -> (B, out). `lr_multiplier` < 1 slows its learning: stored values are larger by 1 / it.

    With `equalized=False`, weights are stored unscaled.
    """

    def __init__(self, in_features, out_features, act="linear", lr_multiplier=1.0, bias_init=0.0, equalized=True):
        super().__init__()
        self.weight_gain = lr_multiplier / math.sqrt(in_features) if equalized else 1.0
        self.bias_gain = lr_multiplier if equalized else 1.0
        spread = lr_multiplier if equalized else math.sqrt(in_features)
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / spread)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init) / self.bias_gain))
        self.act, self.equalized = act, equalized

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.equalized:
            x = F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))
            return F.leaky_relu(x, 0.2) * math.sqrt(2) if self.act == "lrelu" else x
        x = x @ (self.weight * self.weight_gain).t().to(x.dtype)
        return bias_act(x, self.bias * self.bias_gain, self.act)


class EqualizedConv(nn.Module):
    """Convolution (B, in, H, W) -> (B, out, H / down, W / down)."""

    fir: torch.Tensor

    def __init__(self, in_channels, out_channels, kernel_size, act="lrelu", down=1, bias=True, clamp=None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = 1 / math.sqrt(in_channels * kernel_size**2)
        self.act, self.down, self.clamp = act, down, clamp
        register_fir(self)

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        x = conv2d_resample(x, self.weight * self.weight_gain, self.fir, down=self.down)
        gain_total = gain * (math.sqrt(2) if self.act == "lrelu" else 1.0)
        return bias_act(x, self.bias, self.act, gain_total, None if self.clamp is None else self.clamp * gain)


# --- Mapping: z (and a label) -> w, an MLP of leaky-ReLU layers at a hundredth of the learning rate (arXiv 1812.04948)


def normalize_2nd_moment(x: torch.Tensor) -> torch.Tensor:
    """Scale (B, C) to a mean square of one per sample ("pixel norm")."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class MappingNetwork(nn.Module):
    """z (B, z_dim) and labels (B, label_dim) -> (B, w_dim). The discriminator uses `z_dim=0` (labels only).

    Without layers, which only a network of labels may have, the embedding of a label is the result.
    """

    def __init__(
        self, z_dim, label_dim, w_dim, num_layers, width=None, embed_dim=None, lr_multiplier=0.01, equalized=True
    ):
        super().__init__()
        width, embed_dim = width or w_dim, embed_dim or w_dim
        bare = num_layers == 0 and not z_dim and embed_dim == w_dim
        if (num_layers < 1 and not bare) or w_dim < 1 or z_dim + label_dim < 1:
            raise ValueError(
                f"a mapping needs layers, w_dim and an input; got {num_layers=}, {w_dim=}, {z_dim=}, {label_dim=}"
            )
        self.z_dim, self.label_dim = z_dim, label_dim
        self.embed = EqualizedLinear(label_dim, embed_dim) if label_dim else None
        widths = [z_dim + (embed_dim if label_dim else 0)] + [width] * (num_layers - 1) + [w_dim] * (num_layers > 0)
        self.layers = nn.ModuleList(
            EqualizedLinear(i, o, "lrelu", lr_multiplier, equalized=equalized) for i, o in pairwise(widths)
        )

    def forward(self, z: torch.Tensor | None, class_labels: torch.Tensor | None = None) -> torch.Tensor:
        parts = []
        if self.z_dim:
            if z is None or z.ndim != 2 or z.shape[1] != self.z_dim:
                raise ValueError(f"z must be (batch, {self.z_dim}), got {None if z is None else tuple(z.shape)}")
            check_real("z", z)
            parts.append(normalize_2nd_moment(z))
        if self.embed is not None:
            if class_labels is None or class_labels.ndim != 2 or class_labels.shape[1] != self.label_dim:
                shape = None if class_labels is None else tuple(class_labels.shape)
                raise ValueError(
                    f"this model is class-conditional: class_labels must be (batch, {self.label_dim}), got {shape}"
                )
            dtype = parts[0].dtype if parts else torch.promote_types(class_labels.dtype, torch.float16)
            parts.append(normalize_2nd_moment(self.embed(class_labels.to(dtype))))
        elif class_labels is not None and class_labels.numel():
            raise ValueError("class_labels were given, but this model was trained without labels")
        x = torch.cat([p.expand(max(q.shape[0] for q in parts), -1) for p in parts], dim=1)
        for layer in self.layers:
            x = layer(x)
        return x
