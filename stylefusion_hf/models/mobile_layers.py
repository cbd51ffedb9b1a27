"""Layers of MobileStyleGAN: convolutions with noise, a synthesis block, the picture's layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylefusion_hf.models.style_generator import draw_noise
from stylefusion_hf.ops import bias_act
from stylefusion_hf.ops.bias_act import SLOPE
from stylefusion_hf.ops.separable import Separable, depthwise_conv2d, has_wavelet_block, wavelet_block
from stylefusion_hf.ops.wavelets import HAAR, inverse_haar, is_eager, is_native


class Noise(NamedTuple):
    """Noise for a layer. Only the layer itself scales it, so that its tensors are used in its own call.

    `drawn`: (B, 1, resolution, resolution), or None for the layer's stored noise. `rows`: which of its rows, or None
    for all.
    """

    drawn: Tensor | None
    rows: slice | None = None  # no slice as the default, which the compiler of torch 2.6 does not know


class NoisyActivation(nn.Module):
    """Noise, bias, leaky ReLU: the end of every convolution. The activation has no gain."""

    noise_const: Tensor

    def __init__(self, channels: int, resolution: int, use_noise: bool):
        super().__init__()
        self.resolution, self.use_noise = resolution, use_noise
        self.bias = nn.Parameter(torch.zeros(channels))
        if use_noise:
            self.noise_strength = nn.Parameter(torch.zeros([]))
            self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def noise(self, mode: str, generator: torch.Generator | None, like: Tensor) -> Noise | None:
        """The noise of one picture, on the device of `like`, or None."""
        if not self.use_noise or mode == "none":
            return None
        return Noise(draw_noise(self.resolution, 1, like, generator) if mode == "random" else None)

    def scaled(self, noise: Noise | None) -> Tensor | None:
        """(B, 1, rows, resolution), or None."""
        if noise is None:
            return None
        maps = self.noise_const[None, None] if noise.drawn is None else noise.drawn
        maps = maps if noise.rows is None else maps[:, :, noise.rows]
        return maps.to(self.bias.dtype) * self.noise_strength

    def convolve(self, x: Tensor, weight: Tensor, given: Noise | None, padding: int = 0) -> Tensor:
        """Convolve (B, in, H, W) at its size, then add noise and bias and activate.

        padding: half the kernel's size, as a number: from a shape, torch 2.6 traces it as a tensor.
        """
        weight, noise = weight.to(x.dtype), self.scaled(given)
        if is_native(x):  # a product over channels-last pixels, and one pass over the maps
            if padding:
                x = F.conv2d(x, weight, padding=padding)
            else:
                x = F.linear(x.permute(0, 2, 3, 1), weight.flatten(1)).permute(0, 3, 1, 2)
            return bias_act(x, self.bias, "lrelu", gain=1.0, noise=noise)
        x = F.conv2d(x, weight, self.bias.to(x.dtype), padding=padding)
        return F.leaky_relu_(x if noise is None else x.add_(noise.to(x.dtype)), SLOPE)


class StyledConv(NoisyActivation):
    """3 x 3 convolution of the styled input, noise, bias, leaky ReLU: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int, use_noise: bool):
        super().__init__(out_channels, resolution, use_noise)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.gain = 1 / math.sqrt(9 * in_channels)

    def forward(self, x: Tensor, style: Tensor, noise: Noise | None) -> Tensor:
        return self.convolve(x * (style * self.gain)[:, :, None, None], self.weight, noise, padding=1)


class SeparableConv(NoisyActivation):
    """Depthwise 3 x 3 and 1 x 1 convolution of the styled input, noise, bias, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int, use_noise: bool):
        super().__init__(out_channels, resolution, use_noise)
        self.gain = 1 / math.sqrt(9 * in_channels)
        self.depthwise = nn.Parameter(torch.randn(in_channels, 1, 3, 3) * math.sqrt(in_channels))
        self.pointwise = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1) / math.sqrt(in_channels))

    def forward(self, x: Tensor, style: Tensor | None, noise: Noise | None) -> Tensor:
        """`style` (B, in) with the gain, or None where the input is scaled already."""
        return self.convolve(depthwise_conv2d(x, self.depthwise, style), self.pointwise, noise)

    def with_noise(self, noise: Noise | None) -> Separable:
        return Separable(self.depthwise, self.pointwise, self.bias, self.scaled(noise))


class Block(nn.Module):
    """(B, in, H, W) -> (B, out, 2 H, 2 W): inverse Haar transform and two separable convolutions, each styled."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int, use_noise: bool):
        super().__init__()
        self.conv1 = SeparableConv(in_channels // 4, out_channels, resolution, use_noise)
        self.conv2 = SeparableConv(out_channels, out_channels, resolution, use_noise)
        self.sizes = [in_channels, in_channels // 4, out_channels]

    def forward(
        self,
        x: Tensor,
        styles: Sequence[Tensor],
        noises: Sequence[Noise | None],
        to_image: ToImage | None = None,
        image_style: Tensor | None = None,
    ) -> Tensor:
        """Features, or the picture that `to_image` makes of them."""
        up, first, second = styles
        # The first convolution's style scales what the transform gives: it can as well scale the bands that it takes.
        first, second = first * self.conv1.gain, second * self.conv2.gain
        up = up * torch.cat([first, first.repeat_interleave(3, dim=1)], dim=1)
        weights = [*self.parameters(), *(() if to_image is None else to_image.parameters())]
        if has_wavelet_block(x, up, second, *weights):
            image = None if to_image is None or image_style is None else to_image.fold(image_style)
            convs = self.conv1.with_noise(noises[0]), self.conv2.with_noise(noises[1])
            return wavelet_block(x, up, *convs, second, image)
        x = self.conv1(inverse_haar(x, up), None, noises[0])
        x = self.conv2(x, second, noises[1])
        return x if to_image is None else to_image(x, image_style)


class ToImage(nn.Module):
    """Styled 1 x 1 convolution and inverse Haar transform: (B, in, H, W) -> (B, img_channels, 2 H, 2 W)."""

    def __init__(self, in_channels: int, img_channels: int):
        super().__init__()
        self.gain = 1 / math.sqrt(in_channels)
        self.weight = nn.Parameter(torch.randn(4 * img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(4 * img_channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        # The transform mixes the four bands of a pixel, so that it is folded into the convolution's weights.
        weight, bias = self._to_pixels(self.weight.flatten(1)), self._to_pixels(self.bias[:, None])[:, 0]
        weight, style = weight[:, :, None, None], (style * self.gain)[:, :, None, None]
        if is_eager() and x.shape[0] == 1:
            weight = weight * style
        else:
            x = x * style
        x = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype))
        return F.pixel_shuffle(x.contiguous(), 2)

    def fold(self, style: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (B, 4 img_channels, in) and bias of a 1 x 1 convolution to pixels, style and transform folded in."""
        weight = self._to_pixels(self.weight.flatten(1)) * (style * self.gain)[:, None]
        return weight, self._to_pixels(self.bias[:, None])[:, 0]

    def _to_pixels(self, bands: Tensor) -> Tensor:
        """(4 C, n), low bands and then three details for each channel -> (4 C, n), four pixels for each channel."""
        channels = len(bands) // 4
        sorted_bands = torch.cat([bands[:channels, None], bands[channels:].unflatten(0, (channels, 3))], dim=1)
        haar = torch.tensor(HAAR, dtype=bands.dtype, device=bands.device)
        return torch.einsum("bp,cbn->cpn", haar, sorted_bands).flatten(0, 1)
