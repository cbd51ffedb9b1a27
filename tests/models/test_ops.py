"""Every fast path against its plain reference: values, gradients, double gradients."""

import itertools

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from stylefusion_hf.ops import bias_act, conv2d_resample, modulated_conv2d, setup_filter, upfirdn2d

FIR = setup_filter([1, 3, 3, 1])


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (1, 3)])
@pytest.mark.parametrize("padding", [(0, 0, 0, 0), (2, 1, 2, 1), (1, 1, 1, 1), (-1, 2, 0, -1), (3, 0, 1, 2)])
@pytest.mark.parametrize("taps", [[1, 3, 3, 1], [1, 2, 5]])
def test_upfirdn2d(up, down, padding, taps):
    x, f = rand(2, 3, 7, 6), setup_filter(taps)
    fast = upfirdn2d(x, f, up, down, padding, gain=2.5)
    ref = upfirdn2d(x, f, up, down, padding, gain=2.5, impl="ref")
    assert fast.shape == ref.shape
    torch.testing.assert_close(fast, ref)


def test_upfirdn2d_is_a_convolution_and_not_a_correlation():
    x = torch.zeros(1, 1, 1, 5, dtype=torch.float64)
    x[..., 2] = 1
    f = setup_filter([1.0, 0.0, 3.0])
    line = upfirdn2d(x.expand(1, 1, 5, 5), f, padding=(1, 1, 1, 1))[0, 0, 2]
    torch.testing.assert_close(line, torch.tensor([0, 0.25, 0, 0.75, 0], dtype=torch.float64) * 1.0)


@pytest.mark.parametrize(("up", "down", "k"), [(1, 1, 3), (1, 1, 1), (2, 1, 3), (2, 1, 1), (1, 2, 3), (1, 2, 1)])
def test_conv2d_resample(up, down, k):
    x, w = rand(2, 3, 8, 8).requires_grad_(), rand(5, 3, k, k).requires_grad_()
    fast, ref = (conv2d_resample(x, w, FIR, up, down, impl=i) for i in ("fast", "ref"))
    assert fast.shape == (2, 5, 8 * up // down, 8 * up // down)
    torch.testing.assert_close(fast, ref)
    g = rand(*fast.shape)
    for a, b in zip(*(torch.autograd.grad(y, (x, w), g) for y in (fast, ref)), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("demodulate", "up", "k"), [(True, 1, 3), (True, 2, 3), (False, 1, 1)])
def test_modulated_conv2d(demodulate, up, k):
    x, w, s = rand(3, 4, 6, 6).requires_grad_(), rand(5, 4, k, k).requires_grad_(), rand(3, 4).requires_grad_()

    def run(impl):
        y, scale = modulated_conv2d(x, w, s, demodulate, FIR, up, impl)
        return bias_act(y, scale=scale, act="linear", impl=impl)

    fast, ref = run("fast"), run("ref")
    torch.testing.assert_close(fast, ref, rtol=1e-5, atol=1e-7)  # demodulation factors are float32 in the fast path
    g = rand(*fast.shape)
    for a, b in zip(*(torch.autograd.grad(y, (x, w, s), g) for y in (fast, ref)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("up", "k", "demodulate"), [(1, 3, True), (2, 3, True), (1, 1, False)])
def test_a_single_sample_is_modulated_in_the_weights_where_they_are_fewer(up, k, demodulate):
    w, s = rand(3, 4, k, k).requires_grad_(), rand(1, 4).requires_grad_()
    for size in (2, 9):  # fewer features than weights, and more
        x = rand(1, 4, size, size).requires_grad_()

        def run(impl, x=x):
            y, scale = modulated_conv2d(x, w, s, demodulate, FIR, up, impl)
            return bias_act(y, scale=scale, act="linear", impl=impl)

        fast, ref = run("fast"), run("ref")
        torch.testing.assert_close(fast, ref)
        g = rand(*fast.shape)
        for a, b in zip(*(torch.autograd.grad(y, (x, w, s), g) for y in (fast, ref)), strict=True):
            torch.testing.assert_close(a, b)
    x = rand(1, 4, 9, 9)
    _, scale = modulated_conv2d(x, w, s, demodulate, FIR, up)
    assert scale is None  # which says that it was done so
    assert gradgradcheck(lambda w, s: modulated_conv2d(x, w, s, demodulate, FIR, up)[0].sin(), (w, s))


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("half", [torch.float16, torch.bfloat16])
def test_modulated_conv2d_survives_large_styles_in_half_precision(half, size):
    x, w, s = rand(1, 4, size, size), rand(5, 4, 3, 3), rand(1, 4) * 5e4
    y, scale = modulated_conv2d(x.to(half), w.to(half), s.float())
    assert torch.isfinite(bias_act(y, scale=scale)).all()


OPTIONS = list(itertools.product(("linear", "lrelu"), (None, 2.0), (None, 0.7), (False, True), (False, True)))


@pytest.mark.parametrize(("act", "gain", "clamp", "bias", "scale"), OPTIONS)
def test_bias_act(act, gain, clamp, bias, scale):
    x = rand(2, 3, 4, 4)
    arguments = {"bias": rand(3) if bias else None, "scale": rand(2, 3) if scale else None}
    before = x.clone()
    fast = bias_act(x, act=act, gain=gain, clamp=clamp, **arguments)
    torch.testing.assert_close(fast, bias_act(x, act=act, gain=gain, clamp=clamp, impl="ref", **arguments))
    assert torch.equal(x, before), "the input must not be written to"


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("batch", "samples"), [(1, 1), (2, 1), (2, 2), (5, 1), (5, 5)])
@pytest.mark.parametrize("vectors", [(), ("bias",), ("scale",), ("bias", "scale")])
def test_noise(vectors, batch, samples, layout):
    x = rand(batch, 3, 4, 4).contiguous(memory_format=layout).requires_grad_()
    inputs = {"noise": rand(samples, 1, 4, 4), "bias": rand(3), "scale": rand(batch, 3)}
    inputs = {name: inputs[name].requires_grad_() for name in ("noise", *vectors)}
    before = x.clone()
    fast, ref = (bias_act(x, impl=impl, **inputs) for impl in ("fast", "ref"))
    torch.testing.assert_close(fast, ref)
    assert torch.equal(x, before), "the input must not be written to"
    wanted = (x, *inputs.values())
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), wanted) for y in (fast, ref)), strict=True):
        torch.testing.assert_close(a, b)


def test_bias_act_takes_a_map_of_biases():
    x, noise = rand(2, 3, 4, 4), rand(2, 1, 4, 4)
    torch.testing.assert_close(bias_act(x, noise), bias_act(x, noise, impl="ref"))


def test_double_gradients():
    x, w, s = rand(2, 2, 4, 4).requires_grad_(), rand(2, 2, 3, 3).requires_grad_(), rand(2, 2).requires_grad_()

    def block(x, w, b):
        return bias_act(conv2d_resample(x, w, FIR, down=2), b)

    bias = rand(2).requires_grad_()
    assert gradcheck(block, (x, w, bias))
    assert gradgradcheck(block, (x, w, bias))
    assert gradgradcheck(lambda x, s: modulated_conv2d(x, w.detach(), s, demodulate=False, f=FIR, up=2)[0], (x, s))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: upfirdn2d(rand(2, 3), FIR), "expected images"),
        (lambda: upfirdn2d(rand(1, 1, 4, 4), FIR, impl="cuda"), "unknown implementation 'cuda'"),
        (lambda: setup_filter([[1, 2], [2, 1]]), "flat list of taps"),
        (lambda: setup_filter([1, -1]), "non-zero sum"),
        (lambda: conv2d_resample(rand(1, 1, 4, 4), rand(1, 1, 3, 3), FIR, up=2, down=2), "not|expected up and down"),
        (lambda: conv2d_resample(rand(1, 1, 4, 4), rand(1, 1, 3, 3), None, up=2), "even number of taps"),
        (lambda: modulated_conv2d(rand(2, 3, 4, 4), rand(5, 3, 3, 3), rand(1, 3)), "do not fit"),
        (lambda: bias_act(rand(1, 1), act="relu"), "unknown activation 'relu'"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
