"""MobileStyleGAN's depthwise convolution, and its whole synthesis block in one pass.

`impl="fast"` uses the native operators on CPUs if enabled (see `native/__init__.py`), else PyTorch's.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.ops.bias_act import SLOPE
from stylefusion_hf.ops.upfirdn2d import check_impl
from stylefusion_hf.ops.wavelets import inverse_haar_ref, is_eager, is_native


class Separable(NamedTuple):
    """Depthwise 3 x 3 and 1 x 1 convolution with noise, bias and leaky ReLU.

    depthwise (in, 1, 3, 3), pointwise (out, in, 1, 1), bias (out,), noise (1 or B, 1, H, W) or None.
    """

    depthwise: Tensor
    pointwise: Tensor
    bias: Tensor
    noise: Tensor | None


def depthwise_ref(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """Compute `depthwise_conv2d` by a grouped convolution of the scaled input."""
    if scale is not None:
        x = x * scale[:, :, None, None].to(x.dtype)
    return F.conv2d(x, weight.to(x.dtype), padding=1, groups=x.shape[1])


def depthwise_conv2d(x: Tensor, weight: Tensor, scale: Tensor | None = None, impl: str = "fast") -> Tensor:
    """Convolve each channel of `x * scale` with its own 3 x 3 kernel, zeros around: (B, C, H, W) -> (B, C, H, W).

    Args:
        x: (B, C, H, W).
        weight: (C, 1, 3, 3).
        scale: (B, C).
        impl: `"fast"` or `"ref"`.

    Raises:
        ValueError: an unknown `impl`, or shapes that do not fit.
    """
    check_impl(impl)
    channels = x.shape[1]
    if tuple(weight.shape) != (channels, 1, 3, 3):
        raise ValueError(
            f"features {tuple(x.shape)} take a weight of {(channels, 1, 3, 3)}; got {tuple(weight.shape)}"
        )
    if scale is not None and tuple(scale.shape) != tuple(x.shape[:2]):
        raise ValueError(f"features {tuple(x.shape)} take a scale of {tuple(x.shape[:2])}; got {tuple(scale.shape)}")
    if impl == "fast" and is_native(x):
        return torch.ops.stylefusion.depthwise(x, weight, scale)
    if impl == "fast" and scale is not None and x.shape[0] == 1 and is_eager():
        # A pass over the kernel instead of one over the maps.
        weight, scale = weight * scale.reshape(channels, 1, 1, 1).to(weight.dtype), None
    return depthwise_ref(x, weight, scale)


def wavelet_block_ref(
    x: Tensor,
    scale: Tensor,
    first: Separable,
    second: Separable,
    style: Tensor,
    to_image: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute `wavelet_block` step by step."""
    x = inverse_haar_ref(x, scale)
    for layer, factors in ((first, None), (second, style)):
        x = depthwise_ref(x, layer.depthwise, factors)
        x = F.conv2d(x, layer.pointwise.to(x.dtype), layer.bias.to(x.dtype))
        x = F.leaky_relu(x if layer.noise is None else x + layer.noise.to(x.dtype), SLOPE)
    if to_image is None:
        return x
    weight, bias = to_image
    x = torch.einsum("bchw,bpc->bphw", x, weight.to(x.dtype)) + bias.to(x.dtype)[:, None, None]
    return F.pixel_shuffle(x, 2)


def has_wavelet_block(x: Tensor, *parameters: Tensor | None) -> bool:
    """Return whether `wavelet_block` has a native implementation for this input, which has no gradients.

    The parameters must be in place, on the input's device and in its dtype, which hooks may only see to later.
    """
    wants_gradient = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, *parameters))
    in_place = all(t is None or (t.dtype == x.dtype and t.device == x.device) for t in parameters)
    return x.dtype == torch.float32 and in_place and not wants_gradient and is_native(x)


def wavelet_block(
    x: Tensor,
    scale: Tensor,
    first: Separable,
    second: Separable,
    style: Tensor,
    to_image: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Compute a synthesis block: (B, 4 C, H, W) -> (B, out, 2 H, 2 W), channels-last, or a picture.

    The native operator works in strips of rows that stay in the caches: only `x` and the result are whole maps. Where
    it does not apply (see `has_wavelet_block`), the reference computes the same.

    Args:
        x: (B, 4 C, H, W), bands as in `inverse_haar`.
        scale: (B, 4 C), of the transform's input.
        first, second: the two convolutions.
        style: (B, out channels of `first`), of the input of `second`.
        to_image: weight (B, 4 k, out) and bias (4 k,) of a final 1 x 1 convolution to 2 x 2 pixels of k colors each;
            then the result is a picture (B, k, 4 H, 4 W), contiguous, and the features are not kept.
    """
    given = (scale, style, *first, *second, *(to_image or ()))
    if not has_wavelet_block(x, *given):
        return wavelet_block_ref(x, scale, first, second, style, to_image)
    weight, bias = to_image or (None, None)
    return torch.ops.stylefusion.wavelet_block(x, scale, *first, style, *second, weight, bias)
