"""Convolutions of StyleGAN2: with resampling, and modulated by a style (Karras et al., arXiv 1912.04958, section 2.2).

A modulated convolution multiplies its weights by a style per input channel and, if demodulated, normalises every
output channel of the product. Because a convolution is linear, the same numbers come from scaling the ACTIVATIONS
before and after a convolution with static weights: one ordinary batched convolution instead of one a sample.
`impl="ref"` builds the weights of every sample, as the paper writes it.
"""

from contextlib import nullcontext

import torch
import torch.nn.functional as F

from stylefusion_hf.ops.bias_act import bias_act, upfirdn2d_bias_act
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
    """Same-size convolution preceded by 2x upsampling or followed by 2x downsampling, both with the filter `f`.

    Args:
        x: (B, C_in, H, W).
        weight: (C_out, C_in / groups, k, k) with odd k. With `up=2` it is kept as a transposed convolution wants it,
            turned by 180 degrees against the others: so do all published StyleGAN2 checkpoints in PyTorch.
        f: taps (N,) with even N, needed when `up` or `down` is 2.
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
        # Upsample, then convolve; filter, then convolve with a stride: as the operations read. The convolution's
        # padding is asked of the filter, which sees the image continue as zeros.
        if up == 2:
            x = upfirdn2d(x, f, up=2, padding=(n // 2 + k // 2, n // 2 - 1 + k // 2) * 2, gain=4.0, impl="ref")
            return F.conv2d(x, weight.flip(2, 3), groups=groups)
        x = upfirdn2d(x, f, padding=(n // 2 - 1 + k // 2, n // 2 - 1 + k // 2) * 2, impl="ref")
        return F.conv2d(x, weight, stride=2, groups=groups)
    if up == 2:
        if groups != 1:
            raise ValueError("upsampling with groups is only there in the reference implementation")
        x, padding = _convolve_up(x, weight, f)
        return upfirdn2d(x, f, padding=padding, gain=4.0)
    if k == 1:  # filtering commutes with a pointwise convolution: do it where there are fewer pixels
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
    """The upsampling convolution before its filter, (B, C_out, 2 H + k - 2, ...), and the padding the filter needs.

    Order swapped (both are linear and shift-invariant): convolve at the low resolution, a quarter of the work.
    """
    p = f.numel() // 2 - weight.shape[-1] // 2  # the border that filter and kernel leave, equal on both sides
    return F.conv_transpose2d(x, weight.transpose(0, 1), stride=2), (p, p, p, p)


def demodulation(weight: torch.Tensor, style: torch.Tensor) -> torch.Tensor:
    """1 / norm of each output channel's modulated weights, (B, C_out): one product over squared weights.

    In float32 at least, also under autocast: half precision has no room for squares.
    """
    wide = torch.promote_types(style.dtype, torch.float32)
    device = style.device.type
    # Only where it is on: in a traced graph the block would be a graph of its own.
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
    """Convolution whose weights are modulated by a style per sample.

    Args:
        x: (B, C_in, H, W).
        weight: (C_out, C_in, k, k).
        style: (B, C_in), one factor an input channel.
        demodulate: whether every output channel's modulated weights are brought to norm one.
        f, up: as in [`conv2d_resample`].

    Returns:
        The features (B, C_out, H * up, W * up) and the factors (B, C_out) that are still to be multiplied onto them
        (by `bias_act(scale=)`, which does it in the pass that adds the bias), or None if there are none.
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
    """A whole synthesis layer: demodulated convolution, bias, noise, leaky ReLU, clamp.

    The arguments are those of [`modulated_conv2d`] and [`bias_act`]. This is the one place that sees both the filter
    of an upsampling convolution and what follows it, which a native operator does together.
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
    """By the book: a convolution with weights of its own for every sample."""
    b, _, h, w = x.shape
    per_sample = weight[None] * style[:, None, :, None, None]
    if demodulate:
        per_sample = per_sample * (per_sample.square().sum(dim=(2, 3, 4), keepdim=True) + EPS).rsqrt()
    flat = per_sample.reshape(-1, *weight.shape[1:])
    y = conv2d_resample(x.reshape(1, -1, h, w), flat, f, up=up, groups=b, impl="ref")
    return y.reshape(b, -1, *y.shape[2:])


def _modulate(x, weight, style, demodulate):
    """Features and weights to convolve, and the factors (B, C_out) for afterwards, or None.

    A single sample's style goes into the weights where they are fewer than the features, else onto the features.
    """
    if x.dtype == torch.float16 and demodulate:
        # Half precision overflows at 65504. Demodulation cancels any factor on a sample's style or on the weights.
        style = style / style.abs().amax(dim=1, keepdim=True).clamp_min(EPS)
        weight = weight / weight.abs().amax().clamp_min(EPS)
    scale = demodulation(weight, style) if demodulate else None
    if x.shape[0] > 1 or weight.numel() >= x.numel():
        return x * style[:, :, None, None].to(x.dtype), weight, scale
    wide = torch.promote_types(x.dtype, torch.float32)
    own = weight.to(wide) * style.to(wide)[:, :, None, None]
    return x, own if scale is None else own * scale[0, :, None, None, None], None
