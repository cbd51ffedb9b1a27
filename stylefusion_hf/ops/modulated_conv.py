"""Convolutions of StyleGAN2: with resampling, and modulated by a style (Karras et al., arXiv 1912.04958, section 2.2).

A modulated convolution multiplies its weights by a style per input channel and, if demodulated, normalizes every
output channel of the product. Convolution is linear, so scaling the ACTIVATIONS before and after a convolution with
static weights gives the same result: one ordinary batched convolution instead of one per sample. `impl="ref"` computes
the weights of every sample, as in the paper.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F

from stylefusion_hf.ops.bias_act import bias_act, upfirdn2d_bias_act
from stylefusion_hf.ops.context import wide_dtype
from stylefusion_hf.ops.upfirdn2d import check_impl, upfirdn2d

EPS = 1e-8


def conv2d_resample(
    x: torch.Tensor,
    weight: torch.Tensor,
    f: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    groups: int = 1,
    impl: str = "fast",
) -> torch.Tensor:
    """Apply a same-size convolution after 2x upsampling or before 2x downsampling, both with the filter `f`.

    Args:
        x: (B, C_in, H, W).
        weight: (C_out, C_in / groups, k, k) with odd k. With `up=2` it is stored for a transposed convolution, rotated
            by 180 degrees relative to the others, as in all published StyleGAN2 checkpoints in PyTorch.
        f: taps (N,) with even N, required if `up` or `down` is 2.
        up, down: 1 or 2, not both 2.

    Returns:
        (B, C_out, H * up / down, W * up / down).
    """
    check_impl(impl)
    _check_resampling(weight, f, up, down)
    k = weight.shape[-1]
    weight = weight.to(x.dtype)
    if f is None or up == down == 1:
        return F.conv2d(x, weight, padding=k // 2, groups=groups)
    n = f.numel()
    if impl == "ref":
        # Upsample, then convolve; or filter, then convolve with a stride. The filter pads for the convolution too,
        # treating the image as zero outside.
        if up == 2:
            x = upfirdn2d(x, f, up=2, padding=(n // 2 + k // 2, n // 2 - 1 + k // 2) * 2, gain=4.0, impl="ref")
            return F.conv2d(x, weight.flip(2, 3), groups=groups)
        x = upfirdn2d(x, f, padding=(n // 2 - 1 + k // 2, n // 2 - 1 + k // 2) * 2, impl="ref")
        return F.conv2d(x, weight, stride=2, groups=groups)
    if up == 2:
        if groups != 1:
            raise ValueError("upsampling with groups is only supported by the reference implementation")
        x, padding = _convolve_up(x, weight, f)
        return upfirdn2d(x, f, padding=padding, gain=4.0)
    if k == 1:  # filtering commutes with a pointwise convolution: downsample first, to convolve fewer pixels
        return F.conv2d(upfirdn2d(x, f, down=2, padding=(n // 2 - 1,) * 4), weight, groups=groups)
    return F.conv2d(upfirdn2d(x, f, padding=(n // 2 - 1 + k // 2,) * 4), weight, stride=2, groups=groups)


def _check_resampling(weight, f, up, down) -> None:
    k = weight.shape[-1]
    if (up, down) not in ((1, 1), (2, 1), (1, 2)) or k % 2 == 0 or weight.shape[-2] != k:
        raise ValueError(
            f"expected up and down of 1 or 2 and a square odd kernel; got {up=}, {down=}, {tuple(weight.shape)=}"
        )
    if max(up, down) == 2 and (f is None or f.numel() % 2):
        raise ValueError("resampling by two needs a filter with an even number of taps")


def _convolve_up(x, weight, f):
    """Compute the upsampling convolution without its filter, (B, C_out, 2 H + k - 2, ...), and the filter's padding.

    Filter and convolution are linear and shift-invariant, so they can be swapped: convolving at the low resolution is
    a quarter of the work.
    """
    p = f.numel() // 2 - weight.shape[-1] // 2  # equal on both sides
    return F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), (p, p, p, p)


def demodulation(weight: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """Return 1 / norm of each output channel's modulated weights, (B, C_out), as a product over squared weights.

    Computed in float32 or wider, also under autocast: the squares overflow in half precision.
    """
    wide = wide_dtype(style.dtype)
    device = style.device.type
    # Only if autocast is on: in a traced graph the block would become a graph of its own.
    plain = torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
    with plain:
        return (style.to(wide).square() @ weight.to(wide).square().sum(dim=(2, 3)).t() + EPS).rsqrt()


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    style: torch.Tensor,
    demodulate: bool = True,
    f: torch.Tensor | None = None,
    up: int = 1,
    impl: str = "fast",
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Convolve with weights modulated by a style per sample.

    Args:
        x: (B, C_in, H, W).
        weight: (C_out, C_in, k, k).
        style: (B, C_in), one factor per input channel.
        demodulate: normalize every output channel's modulated weights to norm one.
        f, up: as in [`conv2d_resample`].

    Returns:
        The features (B, C_out, H * up, W * up), and factors (B, C_out) by which the caller must still multiply them,
        or None. `bias_act(scale=)` does so in the pass that adds the bias.
    """
    check_impl(impl)
    _check_modulation(x, weight, style)
    if impl == "ref":
        return _modulate_weights(x, weight, style, demodulate, f, up), None
    x, weight, scale = _modulate(x, weight, style, demodulate)
    return conv2d_resample(x, weight, f, up=up), scale


def modulated_conv2d_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    style: torch.Tensor,
    bias: torch.Tensor,
    noise: torch.Tensor | None = None,
    clamp: float | None = None,
    f: torch.Tensor | None = None,
    up: int = 1,
    impl: str = "fast",
) -> torch.Tensor:
    """Apply a complete synthesis layer: demodulated convolution, bias, noise, leaky ReLU, clamp.

    The arguments are those of [`modulated_conv2d`] and [`bias_act`]. Here the filter of an upsampling convolution and
    the operations after it can be fused into one native operator.
    """
    if f is None or impl == "ref" or up == 1:
        x, scale = modulated_conv2d(x, weight, style, True, f, up, impl)
        return bias_act(x, bias, "lrelu", clamp=clamp, scale=scale, impl=impl, noise=noise)
    check_impl(impl)
    _check_modulation(x, weight, style)
    _check_resampling(weight, f, up, down=1)
    x, weight, scale = _modulate(x, weight, style, True)
    x, padding = _convolve_up(x, weight.to(x.dtype), f)
    return upfirdn2d_bias_act(x, f, padding, 4.0, bias, "lrelu", clamp=clamp, scale=scale, noise=noise)


def _check_modulation(x, weight, style) -> None:
    b, c_in = x.shape[:2]
    if weight.shape[1] != c_in or style.shape != (b, c_in):
        raise ValueError(
            f"features {tuple(x.shape)}, weight {tuple(weight.shape)} and style {tuple(style.shape)} do not fit: "
            f"the style must be {(b, c_in)}, the weight's second number {c_in}"
        )


def _modulate_weights(x, weight, style, demodulate, f, up):
    """Convolve with separate weights for every sample, as in the paper."""
    b, _, h, w = x.shape
    per_sample = weight[None] * style[:, None, :, None, None]
    if demodulate:
        per_sample = per_sample * (per_sample.square().sum(dim=(2, 3, 4), keepdim=True) + EPS).rsqrt()
    flat = per_sample.reshape(-1, *weight.shape[1:])
    y = conv2d_resample(x.reshape(1, -1, h, w), flat, f, up=up, groups=b, impl="ref")
    return y.reshape(b, -1, *y.shape[2:])


def _modulate(x, weight, style, demodulate):
    """Return features and weights to convolve, and factors (B, C_out) to multiply afterward, or None.

    The style is applied to the weights if there is a single sample and they are smaller than the features, else to the
    features.
    """
    if x.dtype == torch.float16 and demodulate:
        # Half precision overflows at 65504, so normalize. Demodulation cancels factors of the style and the weights.
        style = style / style.abs().amax(dim=1, keepdim=True).clamp_min(EPS)
        weight = weight / weight.abs().amax().clamp_min(EPS)
    scale = demodulation(weight, style) if demodulate else None
    if x.shape[0] > 1 or weight.numel() >= x.numel():
        return x * style[:, :, None, None].to(x.dtype), weight, scale
    wide = wide_dtype(x.dtype)
    own = weight.to(wide) * style.to(wide)[:, :, None, None]
    return x, own if scale is None else own * scale[0, :, None, None, None], None
