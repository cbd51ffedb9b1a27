"""Scale, bias, activation, gain and clamp in as few passes over the feature map as plain PyTorch allows.

The contract is that of NVIDIA's `bias_act` (stylegan3, `torch_utils/ops/bias_act.py`), with an optional scale per
sample and channel in front, which is where the demodulation of a modulated convolution ends up (see
`modulated_conv.py`).
"""

import math

import torch
import torch.nn.functional as F

from stylefusion_hf.ops.upfirdn2d import check_impl

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
) -> torch.Tensor:
    """`clamp(act(x * scale + bias) * gain)`.

    Args:
        x: (B, C, H, W) or (B, C).
        bias: broadcastable to x once viewed as a channel vector when it has one dimension, (C,); or a full
            (1 or B, 1 or C, H, W) map, as when noise was added to it.
        act: `"linear"` or `"lrelu"` (slope 0.2).
        gain: default 1 for linear and sqrt(2) for lrelu, which keeps the variance.
        clamp: the result is limited to [-clamp, clamp]; None for no limit.
        scale: (B, C), multiplied onto x first.
        impl: `"fast"` or `"ref"`.
    """
    check_impl(impl)
    if act not in DEFAULT_GAIN:
        raise ValueError(f"unknown activation {act!r}; choose from {', '.join(DEFAULT_GAIN)}")
    gain = DEFAULT_GAIN[act] if gain is None else float(gain)
    tail = (1,) * (x.ndim - 2)
    if bias is not None:
        bias = (bias.view(1, -1, *tail) if bias.ndim == 1 else bias).to(x.dtype)
    if scale is not None:
        scale = scale.view(*scale.shape, *tail).to(x.dtype)
    if impl == "ref":
        y = x if scale is None else x * scale
        y = y if bias is None else y + bias
        y = (F.leaky_relu(y, SLOPE) if act == "lrelu" else y) * gain
    else:
        y = _affine(x, scale, bias, gain)
        # Both activations are positively homogeneous, so the gain was moved in front of them. In place only on a
        # tensor of our own.
        if act == "lrelu":
            y = F.leaky_relu(y, SLOPE) if y is x else F.leaky_relu_(y, SLOPE)
    return y if clamp is None else y.clamp(-clamp, clamp)


def _affine(x, scale, bias, gain):
    """x * scale * gain + bias * gain in one pass."""
    if gain < 0:
        raise ValueError(f"the gain of an activation must not be negative, got {gain}")
    if scale is not None and bias is not None:
        return torch.addcmul(bias * gain, x, scale * gain)
    if scale is not None:
        return x * (scale * gain)
    if bias is not None:
        return torch.add(bias * gain, x, alpha=gain)
    return x if gain == 1.0 else x * gain
