"""Registration of the native operators with torch: signatures, shape inference (fake kernels) and gradients.

`define()` runs once per process, before the first library is loaded. Double backward (R1, path length) works: the
gradients of StyleGAN2's operators consist of differentiable operators; MobileStyleGAN's compute theirs in one pass and
give way to the reference where a graph of them is asked for. Taps have no gradient.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn.grad import conv2d_weight

NAMESPACE = "stylefusion"
SCHEMAS = (
    "upfirdn2d(Tensor x, Tensor taps, int up, int down, SymInt[] padding, float gain, bool flip) -> Tensor",
    "upfirdn2d_bias_act(Tensor x, Tensor taps, int up, int down, SymInt[] padding, float fir_gain, Tensor? scale, "
    "Tensor? bias, Tensor? noise, bool lrelu, float gain, float? clamp) -> Tensor",
    "bias_act(Tensor x, Tensor? scale, Tensor? bias, Tensor? noise, bool lrelu, float gain, float? clamp) -> Tensor",
    "act_grad(Tensor grad, Tensor y, bool lrelu, float gain, float? clamp) -> Tensor",
    "inverse_haar(Tensor x, Tensor? scale) -> Tensor",
    "inverse_haar_grad(Tensor grad, Tensor x, Tensor? scale) -> (Tensor, Tensor)",
    "depthwise(Tensor x, Tensor weight, Tensor? scale) -> Tensor",
    "depthwise_grad(Tensor grad, Tensor x, Tensor weight, Tensor? scale) -> (Tensor, Tensor)",
    "wavelet_block(Tensor x, Tensor scale, Tensor depthwise1, Tensor pointwise1, Tensor bias1, Tensor? noise1, "
    "Tensor scale2, Tensor depthwise2, Tensor pointwise2, Tensor bias2, Tensor? noise2, Tensor? image_weight, "
    "Tensor? image_bias) -> Tensor",
)


@functools.cache
def define() -> torch.library.Library:
    """Define the operators. They exist as long as the returned library object, which is cached for the process."""
    library = torch.library.Library(NAMESPACE, "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    for name, fake in (
        ("upfirdn2d", _fake_upfirdn2d),
        ("upfirdn2d_bias_act", _fake_upfirdn2d),
        ("bias_act", _fake_like),
        ("act_grad", lambda grad, y, *_: _fake_like(y)),
        ("inverse_haar", _fake_inverse_haar),
        ("inverse_haar_grad", _fake_scaled_grad),
        ("depthwise", lambda x, *_: _channels_last(x, *x.shape)),
        ("depthwise_grad", _fake_scaled_grad),
        ("wavelet_block", _fake_wavelet_block),
    ):
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    for name, backward, setup in (
        ("upfirdn2d", _upfirdn2d_backward, _upfirdn2d_setup),
        ("upfirdn2d_bias_act", _no_backward("upfirdn2d_bias_act", "upfirdn2d and bias_act have gradients"), None),
        ("bias_act", _bias_act_backward, _bias_act_setup),
        ("act_grad", _act_grad_backward, _act_grad_setup),
        ("inverse_haar", _inverse_haar_backward, _inverse_haar_setup),
        ("depthwise", _depthwise_backward, _depthwise_setup),
        ("wavelet_block", _no_backward("wavelet_block", "inverse_haar and depthwise have gradients"), None),
    ):
        torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup, lib=library)
    return library


# --- Shapes ----------------------------------------------------------------------------------------------------------


def _layout(x: torch.Tensor) -> torch.memory_format:
    """Return the result's memory layout, which is the input's; glue.cpp follows the same rule."""
    last = x.ndim == 4 and not x.is_contiguous() and x.stride(1) == 1
    return torch.channels_last if last else torch.contiguous_format


def _fake_like(x, *_):
    return torch.empty_like(x, memory_format=_layout(x))


def _fake_upfirdn2d(x, taps, up, down, padding, *_):
    b, c, h, w = x.shape
    left, right, top, bottom = padding
    size = [(n * up + pad - taps.shape[0]) // down + 1 for n, pad in ((h, top + bottom), (w, left + right))]
    return torch.empty(b, c, *size, dtype=x.dtype, device=x.device, memory_format=_layout(x))


def _channels_last(x, *shape):
    return torch.empty(*shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _fake_inverse_haar(x, *_):
    b, c, h, w = x.shape
    return _channels_last(x, b, c // 4, 2 * h, 2 * w)


def _fake_scaled_grad(grad, x, *_):
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    return _channels_last(x, *x.shape), torch.empty(x.shape[:2], dtype=sums, device=x.device)


def _fake_wavelet_block(x, *args):
    b, _, h, w = x.shape
    if args[-1] is None:
        return _channels_last(x, b, args[7].shape[0], 2 * h, 2 * w)
    return torch.empty(b, args[-1].shape[0] // 4, 4 * h, 4 * w, dtype=x.dtype, device=x.device)


# --- Gradients -------------------------------------------------------------------------------------------------------


def _upfirdn2d_setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, taps, ctx.up, ctx.down, ctx.padding, ctx.gain, ctx.flip = inputs
    ctx.size, ctx.out_size = x.shape[2:], output.shape[2:]
    ctx.save_for_backward(taps)


def _upfirdn2d_backward(ctx: Any, grad: torch.Tensor):
    """Apply the transposed operation: swap up and down, flip the taps, and pad to the size of x."""
    (taps,) = ctx.saved_tensors
    left, _, top, _ = ctx.padding
    padding = []
    for before, size, out in ((left, ctx.size[1], ctx.out_size[1]), (top, ctx.size[0], ctx.out_size[0])):
        front = taps.shape[0] - 1 - before
        # The gradient, upsampled by `down`, padded and filtered, must have exactly (size - 1) * up + 1 positions.
        padding += [front, (size - 1) * ctx.up + taps.shape[0] - front - out * ctx.down]
    grad_x = torch.ops.stylefusion.upfirdn2d(grad, taps, ctx.down, ctx.up, padding, ctx.gain, not ctx.flip)
    return grad_x, None, None, None, None, None, None


def _bias_act_setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    x, scale, bias, noise, ctx.lrelu, ctx.gain, ctx.clamp = inputs
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.noise_like = None if noise is None else (noise.shape, noise.dtype)
    of_scale = scale is not None and scale.requires_grad  # only then x is needed again
    of_y = ctx.lrelu or ctx.clamp is not None
    ctx.save_for_backward(scale, x if of_scale else None, output if of_y else None)


def _bias_act_backward(ctx: Any, grad: torch.Tensor):
    scale, x, y = ctx.saved_tensors
    if y is None:
        before_act = grad * ctx.gain
    else:
        before_act = torch.ops.stylefusion.act_grad(grad, y, ctx.lrelu, ctx.gain, ctx.clamp)
    grad_x = grad_scale = grad_bias = grad_noise = None
    if ctx.needs_input_grad[0]:
        grad_x = before_act if scale is None else before_act * _like_pixels(scale, grad).to(grad.dtype)
    if ctx.needs_input_grad[1]:
        grad_scale = (before_act * x).flatten(2).sum(2) if grad.ndim == 4 else before_act * x
        grad_scale = grad_scale.to(scale.dtype)
    if ctx.needs_input_grad[2]:
        grad_bias = before_act.sum((0, 2, 3) if grad.ndim == 4 else 0).to(ctx.bias_dtype)
    if ctx.needs_input_grad[3]:
        shape, dtype = ctx.noise_like
        grad_noise = before_act.sum(1, keepdim=True)
        grad_noise = (grad_noise.sum(0, keepdim=True) if shape[0] == 1 else grad_noise).to(dtype)
    return grad_x, grad_scale, grad_bias, grad_noise, None, None, None


def _like_pixels(scale: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return scale.view(*scale.shape, *(1,) * (x.ndim - 2))


def _act_grad_setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    _, y, ctx.lrelu, ctx.gain, ctx.clamp = inputs
    ctx.save_for_backward(y)


def _act_grad_backward(ctx: Any, grad: torch.Tensor):
    """Differentiate act_grad: it is linear in grad, and its derivative in y is zero wherever it exists."""
    (y,) = ctx.saved_tensors
    return torch.ops.stylefusion.act_grad(grad, y, ctx.lrelu, ctx.gain, ctx.clamp), None, None, None, None


def _inverse_haar_setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _inverse_haar_backward(ctx: Any, grad: torch.Tensor):
    x, scale = ctx.saved_tensors
    if torch.is_grad_enabled():
        from stylefusion_hf.ops.wavelets import inverse_haar_ref

        return _differentiate(inverse_haar_ref, (x, scale), grad)
    grad_x, grad_scale = torch.ops.stylefusion.inverse_haar_grad(grad, x, scale)
    return grad_x, None if scale is None else grad_scale.to(scale.dtype)


def _depthwise_setup(ctx: Any, inputs: tuple, output: torch.Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _depthwise_backward(ctx: Any, grad: torch.Tensor):
    x, weight, scale = ctx.saved_tensors
    if torch.is_grad_enabled():
        from stylefusion_hf.ops.separable import depthwise_ref

        return _differentiate(depthwise_ref, (x, weight, scale), grad)
    grad_x, grad_scale = torch.ops.stylefusion.depthwise_grad(grad, x, weight, scale)
    grad_weight = None
    if ctx.needs_input_grad[1]:
        scaled = x if scale is None else x * scale[:, :, None, None].to(x.dtype)
        grad = grad.to(x.dtype)
        grad_weight = conv2d_weight(scaled, weight.shape, grad, padding=1, groups=x.shape[1]).to(weight.dtype)
    return grad_x, grad_weight, None if scale is None else grad_scale.to(scale.dtype)


def _differentiate(function: Callable, inputs: tuple, grad: torch.Tensor) -> tuple:
    """Return the gradients of a function as a graph that can be differentiated further; None for other inputs."""
    wanted = [x for x in inputs if x is not None and x.requires_grad]
    found = iter(torch.autograd.grad(function(*inputs), wanted, grad, create_graph=True))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in inputs)


def _no_backward(name: str, instead: str) -> Callable:
    def backward(ctx: Any, *grads: torch.Tensor):
        raise RuntimeError(f"stylefusion::{name} is for inference only; {instead}")

    return backward
