"""Registration of the native operators with torch: signatures, shape inference (fake kernels) and gradients.

`define()` runs once per process, before the first library is loaded. Gradients consist of differentiable operators, so
double backward (R1, path length) works. Taps have no gradient.
"""

from __future__ import annotations

import functools
from typing import Any

import torch

NAMESPACE = "stylefusion"
SCHEMAS = (
    "upfirdn2d(Tensor x, Tensor taps, int up, int down, SymInt[] padding, float gain, bool flip) -> Tensor",
    "upfirdn2d_bias_act(Tensor x, Tensor taps, int up, int down, SymInt[] padding, float fir_gain, Tensor? scale, "
    "Tensor? bias, Tensor? noise, bool lrelu, float gain, float? clamp) -> Tensor",
    "bias_act(Tensor x, Tensor? scale, Tensor? bias, Tensor? noise, bool lrelu, float gain, float? clamp) -> Tensor",
    "act_grad(Tensor grad, Tensor y, bool lrelu, float gain, float? clamp) -> Tensor",
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
    ):
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=library)
    for name, backward, setup in (
        ("upfirdn2d", _upfirdn2d_backward, _upfirdn2d_setup),
        ("upfirdn2d_bias_act", _no_backward, None),
        ("bias_act", _bias_act_backward, _bias_act_setup),
        ("act_grad", _act_grad_backward, _act_grad_setup),
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


def _no_backward(ctx: Any, grad: torch.Tensor):
    raise RuntimeError("stylefusion::upfirdn2d_bias_act is for inference only; upfirdn2d and bias_act have gradients")
