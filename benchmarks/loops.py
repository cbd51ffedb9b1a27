"""What `benchmarks.speed` compares with: what the published code computes, in its order, in our words.

(a) `authors_fusion`: the authors' StyleFusion (arXiv 2107.07437) goes through a tree one picture, one net and one
style vector at a time, and multiplies every layer's weights by their gain in each call.
(b) `nvidia_synthesis`: the operations to which NVIDIA's networks (stylegan2-ada-pytorch, stylegan3's StyleGAN2) fall
back without their CUDA kernels: weights modulated for each sample and one grouped convolution, two-dimensional
depthwise filters, zeros inserted where a picture is upsampled, noise, bias, activation and gain one after the other.

Both take our models and give their numbers (tests/repository/test_benchmarks.py).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf import FusionHierarchy, StyleGAN2Generator
from stylefusion_hf.models.fusion.net import GAIN, SLOPE, Blender

# --- (a) Fusion ------------------------------------------------------------------------------------------------------


def authors_fusion(fusion: FusionHierarchy, codes: Mapping[str, Tensor]) -> Tensor:
    """Fused codes (B, S) from a code (1 or B, S) for every node, picture by picture."""
    batch = max(len(code) for code in codes.values())
    rows = ({n: c[i % len(c)][None] for n, c in codes.items()} for i in range(batch))
    return torch.cat([_fuse_one(fusion, row, fusion.tree.root) for row in rows])


def _fuse_one(fusion: FusionHierarchy, codes: Mapping[str, Tensor], node: str) -> Tensor:
    if node not in fusion.tree.fused:
        return codes[node]
    spec, net = fusion.spec, fusion.net(node)
    first, second = (_fuse_one(fusion, codes, child).split(spec.sizes, 1) for child in fusion.tree.children(node))
    common, out = codes[node].split(spec.sizes, 1), []
    for v, (a, b) in enumerate(zip(first, second, strict=True)):
        hot = spec.indicators([v]).to(a).repeat(1, spec.indicator_repeats)
        extra = torch.zeros(1, spec.padded_width).to(a)
        if v in spec.common_rows:
            extra = _up(common[v], spec.padded_width)
            a, b = (_blend(net.blender_common, x, common[v], None, hot, spec.padded_width) for x in (a, b))
        out.append(_blend(net.blender_segments, a, b, extra, hot, spec.padded_width))
    return torch.cat(out, 1)


def _up(x: Tensor, width: int) -> Tensor:
    return F.interpolate(x[:, None], width)[:, 0]


def _blend(blender: Blender, a: Tensor, b: Tensor, extra: Tensor | None, hot: Tensor, width: int) -> Tensor:
    size = a.shape[1]
    a, b = _up(a, width), _up(b, width)
    x = torch.cat([a, b, *([] if extra is None else [extra]), hot], 1)
    for layer in blender.layers:
        x = F.leaky_relu(layer(x), SLOPE) * GAIN  # `layer` multiplies its whole matrix by the gain, each time
    q = torch.sigmoid(x)
    return F.adaptive_max_pool1d((a + q * (b - a))[:, None], size)[:, 0]


# --- (b) Synthesis ---------------------------------------------------------------------------------------------------


def nvidia_synthesis(generator: StyleGAN2Generator, s: Tensor) -> Tensor:
    """Images (B, C, H, W) of style codes (B, S), with the stored noise."""
    net = generator.synthesis
    styles = list(s.split(net.sizes, dim=1))
    rgb_styles = styles[len(net.convs) :]
    x = net.const.to(s.dtype).expand(len(s), -1, -1, -1)
    image, layer = None, 0
    for k, to_rgb in enumerate(net.rgbs):
        for _ in range(1 if k == 0 else 2):
            conv = net.convs[layer]
            x = _modulated(x, conv.weight, styles[layer], True, conv.up, conv.fir)
            if conv.use_noise:
                x = x + (conv.noise_const * conv.noise_strength).to(x.dtype)
            x = F.leaky_relu(x + conv.bias.to(x.dtype).view(1, -1, 1, 1), 0.2) * 2**0.5
            x = x if conv.clamp is None else x.clamp(-conv.clamp, conv.clamp)
            layer += 1
        y = _modulated(x, to_rgb.weight, rgb_styles[k] * to_rgb.weight_gain, False, 1, None)
        y = y + to_rgb.bias.to(y.dtype).view(1, -1, 1, 1)
        y = y if to_rgb.clamp is None else y.clamp(-to_rgb.clamp, to_rgb.clamp)
        image = y if image is None else y + _filter(_zeros_between(image), net.fir, (2, 1, 2, 1))
    return image


def _modulated(x: Tensor, weight: Tensor, style: Tensor, demodulate: bool, up: int, fir: Tensor | None) -> Tensor:
    b, c, h, w = x.shape
    own = weight[None] * style[:, None, :, None, None]
    if demodulate:
        own = own * (own.square().sum(dim=(2, 3, 4)) + 1e-8).rsqrt()[:, :, None, None, None]
    own, flat = own.to(x.dtype), x.reshape(1, b * c, h, w)
    if up == 1:
        y = F.conv2d(flat, own.flatten(0, 1), padding=weight.shape[-1] // 2, groups=b)
    else:
        turned = own.transpose(1, 2).reshape(b * c, -1, *weight.shape[2:])
        y = F.conv_transpose2d(flat, turned, stride=2, groups=b)
        y = _filter(y, fir, (1, 1, 1, 1))
    return y.reshape(b, -1, *y.shape[2:])


def _zeros_between(x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    x = F.pad(x.reshape(b, c, h, 1, w, 1), (0, 1, 0, 0, 0, 1))
    return x.reshape(b, c, 2 * h, 2 * w)


def _filter(x: Tensor, fir: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
    """The 4 x 4 filter at twice the taps' sum along each axis, one channel at a time."""
    taps = fir.to(x.dtype).flip(0) * 2
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(F.pad(x, padding), kernel, groups=x.shape[1])
