"""Layers of StyleGAN3: the Fourier input and its transform, and alias-free synthesis layers (arXiv 2106.12423)."""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylefusion_hf.models.layers import to_fast_layout
from stylefusion_hf.models.stylegan3_plan import LayerPlan, SignalPlan, draw_frequencies
from stylefusion_hf.ops.bias_act import SLOPE
from stylefusion_hf.ops.context import scale_and_shift, wide_dtype
from stylefusion_hf.ops.filtered_lrelu import filtered_lrelu
from stylefusion_hf.ops.modulated_conv import EPS

TINY = 1e-12

# --- The input: Fourier features of pixel coordinates, which a style rotates and moves (section 4.1, app. F.1) -------


class FourierInput(nn.Module):
    """Styles (B, 4) -> maps (B, C, size, size). A style is (cos, sin, x, y), the inverse motion of the picture.

    Attributes:
        transform: (3, 3), maps the picture's coordinates, from -0.5 to 0.5, before the style does.
    """

    freqs: Tensor
    phases: Tensor
    transform: Tensor

    def __init__(self, channels: int, size: int, rate: int, bandwidth: float):
        super().__init__()
        self.size, self.rate, self.bandwidth = size, rate, bandwidth
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.register_buffer("transform", torch.eye(3))
        self.register_buffer("freqs", draw_frequencies(channels, bandwidth))
        self.register_buffer("phases", torch.rand(channels) - 0.5)

    def forward(self, style: Tensor) -> Tensor:
        wide = wide_dtype(style.dtype)
        device = style.device.type
        plain = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with plain:  # phases are large sums: half precision would shift the maps
            x = self._features(style.to(wide))
            x = x @ (self.weight.to(wide) / math.sqrt(self.weight.shape[0])).t()
        return x.permute(0, 3, 1, 2).to(style.dtype)

    def _features(self, style: Tensor) -> Tensor:
        """Sines (B, size, size, C) of the moved coordinates."""
        # The style's rotation, then its translation, then the transform: coordinates of the picture -> of the input.
        cos, sin, x, y = normalize_motion(style).unbind(dim=1)
        transform = self.transform.to(style)
        rotation = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1)  # (B, 2, 2)
        shift = transform[:2, 2] - torch.stack([x, y], 1)
        freqs = self.freqs.to(style) @ rotation  # (B, C, 2)
        phases = self.phases.to(style) + (freqs @ shift[:, :, None]).squeeze(2)
        freqs = freqs @ transform[:2, :2]
        # Frequencies above the bandwidth, which a transform that shrinks the picture causes, fade out.
        amplitudes = 1 - (freqs.norm(dim=2) - self.bandwidth) / (self.rate / 2 - self.bandwidth)
        # The sampling grid: pixel centers, (size,) along each axis.
        places = (torch.arange(self.size, dtype=style.dtype, device=style.device) + 0.5 - self.size / 2) / self.rate
        across, along = (places[:, None] * freqs[:, None, :, axis] for axis in (0, 1))  # (B, size, C)
        angles = across[:, None] + along[:, :, None] + phases[:, None, None]
        return torch.sin(angles * (2 * math.pi)) * amplitudes.clamp(0, 1)[:, None, None]


def normalize_motion(style: Tensor) -> Tensor:
    """Scale (B, 4) = (cos, sin, x, y), in place of which a network gives any numbers, so that cos² + sin² = 1."""
    return style / style[:, :2].norm(dim=1, keepdim=True).clamp_min(TINY)


def move_input(style: Tensor, x: float, y: float, degrees: float) -> Tensor:
    """Return input styles (B, 4) whose pictures are rotated about the middle, then moved by (x, y) picture widths.

    The style's motion after the inverse of the given one, as NVIDIA's `gen_images.py` composes them, is again a
    rotation and a translation: the style of the moved picture.
    """
    cos, sin, right, down = normalize_motion(style).unbind(dim=1)
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return torch.stack(
        [cos * c - sin * s, sin * c + cos * s, x + c * right + s * down, y - s * right + c * down], dim=1
    )


# --- Synthesis layers ------------------------------------------------------------------------------------------------


class AliasFreeLayer(nn.Module):
    """Modulated convolution, bias, filtered leaky ReLU: (B, in, H, W) -> (B, out, size, size).

    The picture's layer convolves without demodulation and has no activation.

    Attributes:
        magnitude_ema: the mean square of its inputs in training, by which they are normalized.
        up_filter, down_filter: of the filtered leaky ReLU, or None (see `LayerPlan`).
    """

    magnitude_ema: Tensor
    up_filter: Tensor | None
    down_filter: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, layer: LayerPlan, plan: SignalPlan, clamp: float | None):
        super().__init__()
        self.layer, self.clamp = layer, clamp
        self.to_picture = layer.index == len(plan.rates) - 1
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, layer.kernel, layer.kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("magnitude_ema", torch.ones([]))
        self.register_buffer("up_filter", layer.up_filter(plan))
        self.register_buffer("down_filter", layer.down_filter(plan))

    def forward(self, x: Tensor, style: Tensor, impl: str = "fast") -> Tensor:
        """Compute the layer; `impl="ref"` follows the definitions of modulation and of the filtered leaky ReLU."""
        weight, style, scale = self._modulation(style)
        gain, slope = (1.0, 1.0) if self.to_picture else (math.sqrt(2), SLOPE)
        if impl == "ref":
            x = self._convolve_ref(x, weight, style, scale)
        else:
            x = self._convolve(to_fast_layout(x), weight, style, scale)
        if impl == "fast" and self._is_plain():
            return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)
        return filtered_lrelu(
            x, self.up_filter, self.down_filter, None, self.layer.up, self.layer.down, self.layer.padding,
            gain, slope, self.clamp, impl,
        )  # fmt: skip

    def _is_plain(self) -> bool:
        """Return whether what follows the convolution is the clamp alone."""
        layer = self.layer
        return self.to_picture and layer.up == layer.down == 1 and not any(layer.padding)

    def _modulation(self, style: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return weights, factors (B, in) of the input and (B, out) of the output (None for none), in float32."""
        wide = wide_dtype(style.dtype)
        weight, style = self.weight.to(wide), style.to(wide)
        input_gain = self.magnitude_ema.to(wide).rsqrt()
        if self.to_picture:
            return weight, style * (input_gain / math.sqrt(weight[0].numel())), None
        # Normalized before the squares, which half precision could not hold. Per sample, unlike NVIDIA's code: the
        # factor cancels, and a picture must not depend on its batch.
        weight = weight * weight.square().mean(dim=(1, 2, 3), keepdim=True).clamp_min(TINY).rsqrt()
        style = style * style.square().mean(dim=1, keepdim=True).clamp_min(TINY).rsqrt()
        device = style.device.type
        plain = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
        with plain:
            scale = (style.square() @ weight.square().sum(dim=(2, 3)).t() + EPS).rsqrt()
        return weight, style * input_gain, scale

    def _convolve(self, x: Tensor, weight: Tensor, style: Tensor, scale: Tensor | None) -> Tensor:
        """Convolve and add the bias: one convolution for the batch, of scaled maps or, for one sample, with its own
        weights.
        """
        padding, bias = self.layer.kernel - 1, self.bias.to(x.dtype)
        if x.shape[0] == 1 and weight.numel() < x.numel():
            weight = weight * style[:, :, None, None]
            weight = weight if scale is None else weight * scale[0, :, None, None, None]
            return F.conv2d(x, weight.to(x.dtype), bias, padding=padding)
        x = x * style[:, :, None, None].to(x.dtype)
        if scale is None:
            return F.conv2d(x, weight.to(x.dtype), bias, padding=padding)
        x = F.conv2d(x, weight.to(x.dtype), padding=padding)
        return scale_and_shift(x, scale[:, :, None, None].to(x.dtype), bias[:, None, None])

    def _convolve_ref(self, x: Tensor, weight: Tensor, style: Tensor, scale: Tensor | None) -> Tensor:
        """Convolve with separate weights for every sample, as in the paper."""
        parts = []
        for i in range(x.shape[0]):
            own = weight * style[i, None, :, None, None]
            own = own if scale is None else own * scale[i, :, None, None, None]
            parts.append(F.conv2d(x[i : i + 1], own.to(x.dtype), self.bias.to(x.dtype), padding=self.layer.kernel - 1))
        return torch.cat(parts) if parts else x.new_empty(0, len(weight), *x.shape[2:])
