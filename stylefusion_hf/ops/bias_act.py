"""Scale, bias, noise, activation, gain and clamp in one pass over the feature map, or in as few as PyTorch allows.

The contract is that of NVIDIA's `bias_act` (stylegan3, `torch_utils/ops/bias_act.py`), extended by StyleGAN2's noise
per pixel and by an optional scale per sample and channel, used to demodulate a modulated convolution (see
`modulated_conv.py`). `impl="fast"` uses the native operator if enabled (see `native/__init__.py`), else PyTorch's.
"""

import math

import torch
import torch.nn.functional as F

from stylefusion_hf.ops import native
from stylefusion_hf.ops.context import scale_and_shift
from stylefusion_hf.ops.upfirdn2d import check_fir, check_impl, upfirdn2d

DEFAULT_GAIN = {"linear": 1.0, "lrelu": math.sqrt(2.0)}
SLOPE = 0.2


def bias_act(
    x: torch.Tensor,
    bias: torch.Tensor | None = None,
    act: str = "lrelu",
    gain: float | None = None,
    clamp: float | None = None,
    scale: torch.Tensor | None = None,
    impl: str = "fast",
    noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `clamp(act(x * scale + bias + noise) * gain)`.

    Args:
        x: (B, C, H, W) or (B, C).
        bias: a channel vector (C,), or a map (1 or B, 1 or C, H, W).
        act: `"linear"` or `"lrelu"` (slope 0.2).
        gain: default 1 for linear and sqrt(2) for lrelu, which preserves the variance.
        clamp: limits the result to [-clamp, clamp]; None for no limit.
        scale: (B, C), multiplied to x first.
        impl: `"fast"` or `"ref"`.
        noise: (1 or B, 1, H, W), already multiplied by its strength.

    Raises:
        ValueError: an unknown `act` or `impl`, a negative gain, or shapes that do not fit.
    """
    check_impl(impl)
    gain = _check(x.shape, act, gain, scale, bias, noise, impl)
    # A native call has an overhead of about 50 us, too much for the (B, C) of a mapping network.
    has_work = act == "lrelu" or any(t is not None for t in (scale, bias, noise))
    if impl == "fast" and x.ndim == 4 and has_work and _is_vector(bias) and native.covers(x):
        return native.bias_act(x, scale, bias, noise, act, gain, clamp)
    tail = (1,) * (x.ndim - 2)
    if bias is not None:
        bias = (bias.view(1, -1, *tail) if bias.ndim == 1 else bias).to(x.dtype)
    if scale is not None:
        scale = scale.view(*scale.shape, *tail).to(x.dtype)
    if noise is not None:
        noise = noise.to(x.dtype)
    if impl == "ref":
        y = x if scale is None else x * scale
        y = y if bias is None else y + bias
        y = y if noise is None else y + noise
        y = (F.leaky_relu(y, SLOPE) if act == "lrelu" else y) * gain
    else:
        y = _affine(x, scale, bias, noise, gain)
        # Both activations are positively homogeneous, so the gain is applied before them. In place only if y is not
        # the caller's tensor.
        if act == "lrelu":
            y = F.leaky_relu(y, SLOPE) if y is x else F.leaky_relu_(y, SLOPE)
    return y if clamp is None else y.clamp(-clamp, clamp)


def upfirdn2d_bias_act(
    x: torch.Tensor,
    f: torch.Tensor,
    padding: tuple[int, int, int, int],
    fir_gain: float,
    bias: torch.Tensor | None = None,
    act: str = "lrelu",
    gain: float | None = None,
    clamp: float | None = None,
    scale: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    up: int = 1,
    down: int = 1,
    impl: str = "fast",
) -> torch.Tensor:
    """Compute `bias_act(upfirdn2d(x, f, up, down, padding, fir_gain), bias, ...)`, as after an upsampling convolution.

    One pass over the feature map with native operators and without gradients. Arguments and errors are those of the
    two functions.
    """
    given = [t for t in (x, f, scale, bias, noise) if t is not None]
    wants_gradient = torch.is_grad_enabled() and any(t.requires_grad for t in given)
    if impl == "fast" and not wants_gradient and _is_vector(bias) and native.covers(x):
        gain = _check(check_fir(x, f, up, down, padding), act, gain, scale, bias, noise, impl)
        f = f.to(x.device)
        return native.upfirdn2d_bias_act(x, f, up, down, padding, fir_gain, scale, bias, noise, act, gain, clamp)
    y = upfirdn2d(x, f, up, down, padding, fir_gain, impl)
    return bias_act(y, bias, act, gain, clamp, scale, impl, noise)


def _affine(x, scale, bias, noise, gain):
    """Compute (x * scale + bias + noise) * gain: one pass over x, and a second one for noise."""
    if noise is not None and bias is not None and x.is_contiguous() and len(x) >= 4 * len(noise):
        # A combined map costs three passes, but only over one sample that the batch shares. Not for channels-last: the
        # map would be channels-first, which slows down every later access.
        bias, noise = bias + noise, None
    if scale is not None and bias is not None:
        y = scale_and_shift(x, scale * gain, bias * gain)
    elif scale is not None:
        y = x * (scale * gain)
    elif bias is not None:
        y = torch.add(bias * gain, x, alpha=gain)
    else:
        y = x if gain == 1.0 else x * gain
    if noise is None:
        return y
    return y + noise * gain if y is x else y.add_(noise * gain)


def _is_vector(bias: torch.Tensor | None) -> bool:
    return bias is None or bias.ndim == 1


def _check(shape, act, gain, scale, bias, noise, impl) -> float:
    """Return the gain; ValueError for arguments that do not fit features of this shape. A bias map is not checked."""
    if act not in DEFAULT_GAIN:
        raise ValueError(f"unknown activation {act!r}; choose from {', '.join(DEFAULT_GAIN)}")
    gain = DEFAULT_GAIN[act] if gain is None else float(gain)
    if gain < 0 and impl == "fast":
        raise ValueError(f"the gain of an activation must not be negative, got {gain}")
    b, c, *size = shape
    if scale is not None and tuple(scale.shape) != (b, c):
        raise ValueError(f"features {tuple(shape)} take a scale of {(b, c)}; got {tuple(scale.shape)}")
    if bias is not None and bias.ndim == 1 and bias.shape[0] != c:
        raise ValueError(f"features {tuple(shape)} take a bias of {(c,)}; got {tuple(bias.shape)}")
    if noise is not None and tuple(noise.shape) not in ((1, 1, *size), (b, 1, *size)):
        raise ValueError(
            f"features {tuple(shape)} take noise of {(1, 1, *size)} or {(b, 1, *size)}; got {tuple(noise.shape)}"
        )
    return gain
