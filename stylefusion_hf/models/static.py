"""Generator and segmenter as fixed arithmetic, tensors in and tensors out: what `stylefusion export` traces.

Equalised learning rates, gains and constant noise are multiplied into the weights once, modulation scales activations
around convolutions with ordinary weights, and only PyTorch's own functions are called, so that a graph holds nothing
that another runtime lacks. The numbers are those of the models; every export and tests/test_export.py compare them.
The fusion nets are in static_fusion.py.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylefusion_hf.models.fusion_net import GAIN, SLOPE
from stylefusion_hf.models.generator import StyleGAN2Generator
from stylefusion_hf.models.layers import normalize_2nd_moment, to_fast_layout
from stylefusion_hf.models.segmenter import RegionSegmenter

EPS = 1e-8  # of the demodulation


# ----------------------------------------------------------------------------------------------------
# z -> s.


class StaticLinear(nn.Module):
    """An `EqualizedLinear` or `FoldedLinear`, (B, in) -> (B, out), with a leaky ReLU if `activated`.

    A leaky ReLU is positively homogeneous, so its gain is in weight and bias, too.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Any, activated: bool):
        super().__init__()
        self.activated = activated
        gain = GAIN if activated else 1.0
        self.register_buffer("weight", layer.weight.detach() * (layer.weight_gain * gain))
        self.register_buffer("bias", layer.bias.detach() * (layer.bias_gain * gain))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.weight, self.bias)
        return F.leaky_relu(x, SLOPE) if self.activated else x


class StaticMapping(nn.Module):
    """z (B, z_dim), truncation psi (a scalar: 1 for none, 0 for the mean's code) -> packed style codes (B, S)."""

    mean: Tensor
    affine_weight: Tensor
    affine_bias: Tensor

    def __init__(self, generator: StyleGAN2Generator):
        super().__init__()
        self.layers = nn.ModuleList(StaticLinear(layer, layer.act == "lrelu") for layer in generator.mapping.layers)
        self.register_buffer("mean", generator.w_avg.detach().clone())
        self.register_buffer("affine_weight", generator.affine_weight.detach() * generator.affine_gain)
        self.register_buffer("affine_bias", generator.affine_bias.detach().clone())

    def forward(self, z: Tensor, truncation_psi: Tensor) -> Tensor:
        return self.style(normalize_2nd_moment(z), truncation_psi)

    def style(self, x: Tensor, truncation_psi: Tensor) -> Tensor:
        """From what the first layer takes."""
        for layer in self.layers:
            x = layer(x)
        return F.linear(self.mean + truncation_psi * (x - self.mean), self.affine_weight, self.affine_bias)


class StaticConditionalMapping(StaticMapping):
    """... and class labels (B, label_dim), of a class-conditional generator."""

    def __init__(self, generator: StyleGAN2Generator):
        super().__init__(generator)
        self.embed = StaticLinear(generator.mapping.embed, activated=False)

    def forward(self, z: Tensor, class_labels: Tensor, truncation_psi: Tensor) -> Tensor:  # type: ignore[override]
        label = normalize_2nd_moment(self.embed(class_labels))
        return self.style(torch.cat([normalize_2nd_moment(z), label], dim=1), truncation_psi)


# ----------------------------------------------------------------------------------------------------
# s -> images.


class Smooth(nn.Module):
    """The low-pass filter after a transposed convolution: (B, C, 2H + 1, ...) -> (B, C, 2H, ...), one axis at a time.

    Upsampling by zeros lost three quarters of the brightness, which comes back here: a factor of two for each axis.
    """

    vertical: Tensor
    horizontal: Tensor

    def __init__(self, taps: Tensor, channels: int):
        super().__init__()
        kernel = 2 * taps.flip(0)  # flipped, as a convolution in the mathematical sense is meant
        self.register_buffer("vertical", kernel.view(1, 1, -1, 1).repeat(channels, 1, 1, 1))
        self.register_buffer("horizontal", kernel.view(1, 1, 1, -1).repeat(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.vertical, padding=(1, 0), groups=x.shape[1])
        return F.conv2d(x, self.horizontal, padding=(0, 1), groups=x.shape[1])


class Enlarge(nn.Module):
    """Images at twice the size, zero insertion and filter in one: (B, C, H, W) -> (B, C, 2H, 2W)."""

    kernel: Tensor

    def __init__(self, taps: Tensor, channels: int):
        super().__init__()
        self.register_buffer("kernel", 4 * torch.outer(taps, taps).repeat(channels, 1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        return F.conv_transpose2d(image, self.kernel, stride=2, padding=1, groups=image.shape[1])


class StaticConv(nn.Module):
    """`SynthesisConv` with constant noise: x (B, in, H, W), style (B, in) -> (B, out, H * up, W * up)."""

    weight: Tensor
    energy: Tensor
    bias: Tensor
    noise: Tensor | None

    def __init__(self, layer: Any):
        super().__init__()
        weight = layer.weight.detach()
        self.clamp = layer.clamp
        self.smooth = Smooth(layer.fir, len(weight)) if layer.up == 2 else None
        # A transposed convolution upsamples by two; the demodulation sums the squares of an output channel's weights.
        stored = weight.transpose(0, 1) if layer.up == 2 else weight
        self.register_buffer("weight", stored.contiguous())
        self.register_buffer("energy", weight.square().sum(dim=(2, 3)))
        self.register_buffer("bias", layer.bias.detach().view(1, -1, 1, 1) * GAIN)
        noise = layer.noise_const[None, None] * layer.noise_strength.detach() * GAIN if layer.use_noise else None
        self.register_buffer("noise", noise)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        scale = (F.linear(style.square(), self.energy) + EPS).rsqrt() * GAIN
        x = x * style[:, :, None, None]
        if self.smooth is None:
            x = F.conv2d(x, self.weight, padding=1)
        else:
            x = self.smooth(F.conv_transpose2d(x, self.weight, stride=2))
        x = x * scale[:, :, None, None]
        if self.noise is not None:  # not added to the bias beforehand, which would make (C, H, W) of H W numbers
            x = x + self.noise
        x = F.leaky_relu(x + self.bias, SLOPE)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class StaticRGB(nn.Module):
    """`ToRGB`: x (B, in, H, W), style (B, in) -> (B, img_channels, H, W)."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: Any):
        super().__init__()
        self.clamp = layer.clamp
        self.register_buffer("weight", layer.weight.detach() * layer.weight_gain)
        self.register_buffer("bias", layer.bias.detach().clone())

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        x = F.conv2d(x * style[:, :, None, None], self.weight, self.bias)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class StaticSynthesis(nn.Module):
    """Packed style codes (B, S) -> images (B, img_channels, H, W), about [-1, 1], with the stored noise."""

    const: Tensor

    def __init__(self, generator: StyleGAN2Generator):
        super().__init__()
        network = generator.synthesis
        self.sizes = list(network.sizes)
        self.register_buffer("const", network.const.detach()[None].clone())
        self.convs = nn.ModuleList(StaticConv(layer) for layer in network.convs)
        self.rgbs = nn.ModuleList(StaticRGB(layer) for layer in network.rgbs)
        self.enlarge = Enlarge(network.fir, generator.config.img_channels)

    def forward(self, style_code: Tensor) -> Tensor:
        styles = iter(style_code.split(self.sizes, dim=1))
        conv_styles = [next(styles) for _ in self.convs]
        x = self.convs[0](to_fast_layout(self.const), conv_styles[0])
        image = self.rgbs[0](x, next(styles))
        for k in range(1, len(self.rgbs)):
            for i in (2 * k - 1, 2 * k):
                x = self.convs[i](x, conv_styles[i])
            image = self.rgbs[k](x, next(styles)) + self.enlarge(image)
        return image


# ----------------------------------------------------------------------------------------------------
# Images -> regions.


class StaticSegmenter(nn.Module):
    """Images (B, C, H, W) in [-1, 1], of one size -> region logits (B, R, H, W)."""

    def __init__(self, segmenter: RegionSegmenter):
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        return self.segmenter.segment(images)
