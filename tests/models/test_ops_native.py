"""The native operators against `impl="ref"`: values, gradients, layouts, types; and what torch asks of an operator.

They are built once, in a folder of this session's, unless the user's cache has them. How they are built and what
happens where that fails is in test_ops_build.py.
"""

import ctypes
import itertools
import logging
import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from stylefusion_hf import StyleGAN2Discriminator, StyleGAN2Generator
from stylefusion_hf.ops import (
    bias_act,
    conv2d_resample,
    modulated_conv2d_act,
    native,
    setup_filter,
    upfirdn2d,
    upfirdn2d_bias_act,
)

FIR = setup_filter([1, 3, 3, 1])
NATIVE = Path(native.__file__).parent
ON_CPU = Path(__file__).parents[1] / "data" / "cuda_on_cpu"
LAYOUTS = [torch.contiguous_format, torch.channels_last]
HALVES = {torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def on(built_library: Path):
    with native.use("native"):
        assert native.covers(torch.zeros(1)), native.choose("cpu")
        yield


def rand(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


class Calls:
    """Counts the calls of native operators: a test of a path must know that it was taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.names: list[str] = []
        for name in ("upfirdn2d", "bias_act", "upfirdn2d_bias_act"):
            monkeypatch.setattr(native, name, self._counted(name, getattr(native, name)))

    def _counted(self, name, function):
        def call(*args):
            self.names.append(name)
            return function(*args)

        return call


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    return Calls(monkeypatch)


# --- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 17])  # 1 and 3 are special cases of the kernel, 17 is odd
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (1, 3), (3, 2), (4, 3)])
def test_upfirdn2d(up, down, channels, layout, calls):
    taps = ([1, 3, 3, 1], [1, 2, 5], [2], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    paddings = ((0, 0, 0, 0), (2, 1, 2, 1), (-1, 2, 0, -1), (5, 7, -2, 9), (9, -3, 9, 0))
    x = rand(2, channels, 11, 10).contiguous(memory_format=layout)
    for f, padding in itertools.product(map(setup_filter, taps), paddings):
        if f.numel() > 8 * up:  # does not fit
            continue
        fast = upfirdn2d(x, f, up, down, padding, gain=2.5)
        torch.testing.assert_close(fast, upfirdn2d(x, f, up, down, padding, gain=2.5, impl="ref"))
        assert fast.is_contiguous(memory_format=layout)
    assert set(calls.names) == {"upfirdn2d"}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2)])
def test_upfirdn2d_in_tiles_and_threads(up, down, layout):
    """Rows that are longer than what the kernel works on at once, shared between threads."""
    before = torch.get_num_threads()
    try:
        for channels, width in ((1, 9001), (3, 3001), (40, 333), (700, 40)):
            x = rand(1, channels, 5, width).contiguous(memory_format=layout)
            ref = upfirdn2d(x, FIR, up, down, (2, 1, 1, 2), impl="ref")
            for threads in (1, 3):
                torch.set_num_threads(threads)
                torch.testing.assert_close(upfirdn2d(x, FIR, up, down, (2, 1, 1, 2)), ref)
    finally:
        torch.set_num_threads(before)


OPTIONS = list(itertools.product(("linear", "lrelu"), (None, 0.7), *[(False, True)] * 3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("act", "clamp", "bias", "scale", "noise"), OPTIONS)
def test_bias_act(act, clamp, bias, scale, noise, layout):
    for shape, samples in (((2, 3, 7, 5), 2), ((3, 33, 4, 4), 1)):
        x = rand(*shape).contiguous(memory_format=layout)
        before = x.clone()
        given = {"bias": rand(shape[1]) if bias else None, "scale": rand(*shape[:2]) if scale else None}
        given["noise"] = rand(samples, 1, *shape[2:]) if noise else None
        ref = bias_act(x, act=act, gain=2.0, clamp=clamp, impl="ref", **given)
        fast = bias_act(x, act=act, gain=2.0, clamp=clamp, **given)
        torch.testing.assert_close(fast, ref)
        assert fast.is_contiguous(memory_format=layout)
        assert torch.equal(x, before), "the input must not be written to"
        wide = upfirdn2d(x, FIR, 2, 1, (2, 1, 2, 1))
        given["noise"] = rand(samples, 1, *wide.shape[2:]) if noise else None
        both = upfirdn2d_bias_act(x, FIR, (2, 1, 2, 1), 1.0, act=act, gain=2.0, clamp=clamp, up=2, **given)
        torch.testing.assert_close(both, bias_act(wide, act=act, gain=2.0, clamp=clamp, impl="ref", **given))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_types(dtype, layout, calls):
    """Sums are float inside, so results are within a rounding or two of double's; parameters may be of other types."""
    x = rand(2, 20, 9, 9, dtype=dtype).contiguous(memory_format=layout)
    scale, bias, noise = rand(2, 20), rand(20, dtype=torch.float32), rand(1, 1, 8, 8, dtype=torch.float32)
    tolerance = HALVES.get(dtype, 1e-5)
    for fused in (False, True):
        with torch.no_grad():
            if fused:
                y = upfirdn2d_bias_act(x, FIR, (1, 1, 1, 1), 4.0, bias, scale=scale, noise=noise, clamp=3.0)
            else:
                y = upfirdn2d(x, FIR, padding=(1, 1, 1, 1), gain=4.0)
                y = bias_act(y, bias, scale=scale, noise=noise, clamp=3.0)
        assert y.dtype == dtype and y.is_contiguous(memory_format=layout)
        ref = upfirdn2d(x.double(), FIR, padding=(1, 1, 1, 1), gain=4.0, impl="ref")
        ref = bias_act(ref, bias, scale=scale, noise=noise, clamp=3.0, impl="ref")
        torch.testing.assert_close(y.double(), ref, rtol=4 * tolerance, atol=4 * tolerance)
    assert calls.names == ["upfirdn2d", "bias_act", "upfirdn2d_bias_act"]


def test_other_types_and_maps_of_biases_are_left_to_pytorch(calls):
    x = torch.ones(1, 2, 4, 4)
    assert bias_act(x, torch.ones(1, 2, 4, 4)).shape == x.shape
    assert bias_act(torch.ones(4, 2), torch.ones(2)).shape == (4, 2)
    taps = FIR.clone().requires_grad_()
    assert torch.autograd.grad(upfirdn2d(x, taps).sum(), taps)[0].shape == (4,)  # ours have no gradient for taps
    assert upfirdn2d(x.to("meta"), FIR.to("meta")).shape == (1, 2, 1, 1)
    assert calls.names == []


@pytest.mark.parametrize(
    "make",
    [
        lambda: rand(2, 6, 8, 8)[:, ::2],
        lambda: rand(2, 6, 8, 8).contiguous(memory_format=torch.channels_last)[:, 1:5],
        lambda: rand(2, 6, 8, 8)[..., 1:7, ::2],
        lambda: rand(6, 2, 8, 8).transpose(0, 1),
        lambda: rand(2, 1, 1, 8).expand(2, 5, 8, 8),
        lambda: rand(2, 1, 8, 8).contiguous(memory_format=torch.channels_last),
        lambda: rand(2, 4, 1, 1).contiguous(memory_format=torch.channels_last),
    ],
)
def test_views(make):
    x = make()
    before = x.clone()
    padding = (3, 3, 3, 3)
    torch.testing.assert_close(upfirdn2d(x, FIR, padding=padding), upfirdn2d(x, FIR, padding=padding, impl="ref"))
    bias, noise = rand(x.shape[1]), rand(2 * x.shape[0], 1, *x.shape[2:])[::2]
    torch.testing.assert_close(bias_act(x, bias, noise=noise), bias_act(x, bias, noise=noise, impl="ref"))
    assert torch.equal(x, before)


def test_empty_batch():
    x = torch.empty(0, 3, 8, 8, requires_grad=True)
    y = bias_act(upfirdn2d(x, FIR, up=2, padding=(2, 1, 2, 1)), torch.zeros(3), scale=torch.ones(0, 3))
    assert y.shape == (0, 3, 16, 16)
    assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    with torch.no_grad():
        assert upfirdn2d_bias_act(x, FIR, (0, 0, 0, 0), 1.0).shape == (0, 3, 5, 5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_a_number_stays_so(layout):
    x = rand(1, 3, 12, 12, dtype=torch.float32)
    x[0, 0, 3, 3], x[0, 1, 6, 6], x[0, 2, 9, 2] = math.nan, math.inf, -math.inf
    x = x.contiguous(memory_format=layout)
    for clamp in (None, 2.0):
        same = {"rtol": 1e-5, "atol": 1e-5, "equal_nan": True}
        torch.testing.assert_close(bias_act(x, clamp=clamp), bias_act(x, clamp=clamp, impl="ref"), **same)
        ref = bias_act(upfirdn2d(x, FIR, impl="ref"), clamp=clamp, impl="ref")
        torch.testing.assert_close(upfirdn2d_bias_act(x, FIR, (0, 0, 0, 0), 1.0, clamp=clamp), ref, **same)
    ones, leaf = torch.ones_like(x), x.clone().requires_grad_()
    grads = [torch.autograd.grad(bias_act(leaf, impl=impl), leaf, ones)[0] for impl in ("fast", "ref")]
    torch.testing.assert_close(*grads)


# --- Gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)])
@pytest.mark.parametrize("padding", [(1, 1, 1, 1), (2, 3, -1, 4)])
def test_gradients_of_upfirdn2d(up, down, padding, layout):
    x = rand(2, 2, 5, 4).contiguous(memory_format=layout).requires_grad_()
    ys = [upfirdn2d(x, setup_filter([1, 2, 5]), up, down, padding, 2.0, impl) for impl in ("fast", "ref")]
    g = rand(*ys[0].shape).requires_grad_()
    first = [torch.autograd.grad(y, x, g, create_graph=True)[0] for y in ys]
    torch.testing.assert_close(*first)
    torch.testing.assert_close(*(torch.autograd.grad(gx.square().sum(), g)[0] for gx in first))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("act", "clamp", "samples"), [("lrelu", None, 1), ("lrelu", 0.9, 2), ("linear", None, 2)])
def test_gradients_of_bias_act(act, clamp, samples, layout):
    x = rand(2, 3, 3, 4).contiguous(memory_format=layout)
    inputs = [t.requires_grad_() for t in (x, rand(2, 3), rand(3), rand(samples, 1, 3, 4))]

    def call(x, s, b, n, impl="fast"):
        return bias_act(x, b, act, clamp=clamp, scale=s, noise=n, impl=impl)

    g = rand(*x.shape)
    grads = [torch.autograd.grad(call(*inputs, impl=impl), inputs, g) for impl in ("fast", "ref")]
    for fast, ref in zip(*grads, strict=True):
        torch.testing.assert_close(fast, ref)
    for given in itertools.product((False, True), repeat=3):  # any of them may be missing
        some = [t if keep else None for t, keep in zip(inputs[1:], given, strict=True)]
        wanted = [t for t in (x, *some) if t is not None]
        grads = [torch.autograd.grad(call(x, *some, impl=impl), wanted, g) for impl in ("fast", "ref")]
        for fast, ref in zip(*grads, strict=True):
            torch.testing.assert_close(fast, ref)


def test_gradcheck():
    def block(x, s, b, n):
        return bias_act(upfirdn2d(x, FIR, 2, 1, (2, 1, 2, 1)), b, scale=s, noise=n, clamp=1.2)

    inputs = [t.requires_grad_() for t in (rand(2, 2, 3, 2), rand(2, 2), rand(2), rand(1, 1, 6, 4))]
    assert gradcheck(block, inputs)
    assert gradgradcheck(block, inputs)
    x, w = rand(1, 2, 4, 4).requires_grad_(), rand(2, 2, 3, 3).requires_grad_()
    assert gradgradcheck(lambda x, w: bias_act(conv2d_resample(x, w, FIR, down=2), rand(2)), (x, w))


@pytest.mark.parametrize("dtype", HALVES)
def test_gradients_in_half_precision(dtype):
    x = rand(2, 3, 6, 6, dtype=dtype).requires_grad_()
    b, s = rand(3, dtype=torch.float32).requires_grad_(), rand(2, 3, dtype=torch.float32).requires_grad_()
    grads = torch.autograd.grad(bias_act(x, b, scale=s).sum(), (x, b, s))
    double = torch.autograd.grad(bias_act(x.double(), b, scale=s, impl="ref").sum(), (x, b, s))
    for ours, theirs in zip(grads, double, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours.double(), theirs.double(), rtol=0.05, atol=0.1)


def test_the_fused_operator_gives_way_where_a_gradient_is_wanted(calls):
    x, w, s, b = rand(2, 3, 4, 4), rand(5, 3, 3, 3).requires_grad_(), rand(2, 3), rand(5)
    noise = rand(1, 1, 8, 8)
    y = modulated_conv2d_act(x, w, s, b, noise, 1.5, FIR, up=2)
    assert calls.names == ["upfirdn2d", "bias_act"]
    ref = modulated_conv2d_act(x, w, s, b, noise, 1.5, FIR, up=2, impl="ref")
    torch.testing.assert_close(y, ref, rtol=1e-5, atol=1e-6)  # demodulation is float32 in the fast path
    grads = [torch.autograd.grad(out.square().sum(), w)[0] for out in (y, ref)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(modulated_conv2d_act(x, w, s, b, noise, 1.5, FIR, up=2), y.detach())
    assert calls.names[2:] == ["upfirdn2d_bias_act"]
    with pytest.raises(RuntimeError, match="inference only"):
        native.upfirdn2d_bias_act(
            x.requires_grad_(), FIR, 1, 1, (0, 0, 0, 0), 1.0, None, None, None, "lrelu", 1.0, None
        ).sum().backward()


# --- Models ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def generator() -> StyleGAN2Generator:
    torch.manual_seed(0)
    model = StyleGAN2Generator(resolution=16, channels=[8, 8, 6], z_dim=8, w_dim=8, mapping_layers=2)
    for conv in model.synthesis.convs:
        torch.nn.init.normal_(conv.noise_strength)
        torch.nn.init.normal_(conv.bias)
    return model


def test_pictures_are_the_same(generator, calls):
    z = rand(3, 8, dtype=torch.float32)
    with torch.no_grad():
        ours = generator(z).sample
    assert calls.names.count("upfirdn2d_bias_act") == 2
    with torch.no_grad(), native.use("reference"):
        theirs = generator(z).sample
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_double_gradients_of_models(generator):
    """Path-length regularization of a generator, R1 of a discriminator."""
    discriminator = StyleGAN2Discriminator(resolution=16, channels=[8, 8, 6])
    w, images = rand(2, 8, dtype=torch.float32), rand(4, 3, 16, 16, dtype=torch.float32)

    def regularisers():
        x = w.clone().requires_grad_()
        out = generator(x, latent_type="w").sample
        path = torch.autograd.grad((out * images[:2]).sum(), x, create_graph=True)[0].square().sum()
        real = images.clone().requires_grad_()
        r1 = torch.autograd.grad(discriminator(real).logits.sum(), real, create_graph=True)[0].square().sum()
        weights = [*generator.synthesis.parameters(), *discriminator.parameters()]
        return torch.autograd.grad(path + r1, weights, allow_unused=True)

    ours = regularisers()
    with native.use("reference"):
        theirs = regularisers()
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3 * float(b.abs().max()) + 1e-6)


# --- What torch asks of an operator ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    ops, check = torch.ops.stylefusion, torch.library.opcheck
    x = rand(2, 3, 8, 6, dtype=torch.float32).contiguous(memory_format=layout)
    scale, bias, noise = (rand(*shape, dtype=torch.float32) for shape in ((2, 3), (3,), (1, 1, 7, 5)))
    check(
        ops.upfirdn2d_bias_act.default,
        (x, FIR, 1, 1, [1, 1, 1, 1], 4.0, scale, bias, noise, True, 1.4, 256.0),
    )
    leaves = [t.clone().requires_grad_() for t in (scale, bias, rand(2, 1, 8, 6, dtype=torch.float32))]
    leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
    check(ops.upfirdn2d.default, (leaf, FIR, 2, 1, [2, 1, 2, 1], 4.0, False))
    check(ops.upfirdn2d.default, (leaf, FIR, 1, 2, [1, 1, 1, 1], 1.0, True))
    check(ops.bias_act.default, (leaf, *leaves, True, 1.4, 1.0))
    check(ops.bias_act.default, (leaf, None, None, leaves[2], False, 1.0, None))
    check(ops.act_grad.default, (leaf, x * 2, True, 1.4, 1.0))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend, generator):
    if backend == "inductor" and not shutil.which("c++"):
        pytest.skip("inductor needs a C++ compiler")
    s = generator.to_style(rand(2, 8, dtype=torch.float32)).detach().requires_grad_()
    block = generator.synthesis.convs[1]
    x = rand(2, 8, 4, 4, dtype=torch.float32)

    def layer(x, s):
        return block(x, s, "const")

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    inputs = (x, s[:, :8])
    torch.testing.assert_close(compiled(*inputs), layer(*inputs), rtol=1e-4, atol=1e-4)
    first = torch.autograd.grad(compiled(*inputs).square().sum(), s)[0]
    torch.testing.assert_close(first, torch.autograd.grad(layer(*inputs).square().sum(), s)[0], rtol=1e-3, atol=1e-3)
    if backend == "aot_eager":  # the whole network, as it is used; and one whose first call is a compiled one
        with torch.no_grad(), native.use("native"):
            whole = torch.compile(generator.synthesis, fullgraph=True, backend=backend)
            torch.testing.assert_close(whole(s), generator.synthesis(s), rtol=1e-4, atol=1e-4)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated, and warns of every check of a shape
def test_exported_programs_hold_pytorch_operators_only():
    class Layer(torch.nn.Module):
        def forward(self, x):
            return upfirdn2d(bias_act(x, torch.ones(2)), FIR)

    x = torch.ones(1, 2, 4, 4)
    assert "stylefusion::" not in str(torch.jit.trace(Layer(), x).graph)
    assert "stylefusion." not in str(torch.export.export(Layer(), (x,), strict=False).graph)


def test_transforms_without_rules_are_left_to_pytorch(calls):
    x, bias = rand(2, 3, 6, 6), rand(3)

    def call(x):
        return bias_act(upfirdn2d(x, FIR), bias)

    value, tangent = torch.func.jvp(call, (x,), (x,))
    with native.use("reference"):
        torch.testing.assert_close((value, tangent), torch.func.jvp(call, (x,), (x,)))
    with torch.autograd.forward_ad.dual_level():
        dual = call(torch.autograd.forward_ad.make_dual(x, x))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, tangent)
    assert torch.func.grad(lambda x: call(x).sum())(x).shape == x.shape
    assert torch.func.vmap(call)(x[None]).shape == (1, *value.shape)
    assert calls.names == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: upfirdn2d(rand(1, 1, 2, 9), FIR), "4 taps do not fit on images"),
        (lambda: upfirdn2d(rand(1, 1, 4, 4), FIR, up=0), "at least 1"),
        (lambda: bias_act(rand(2, 3, 4, 4), rand(4)), "take a bias of"),
        (lambda: bias_act(rand(2, 3, 4, 4), scale=rand(3)), "take a scale of"),
        (lambda: bias_act(rand(2, 3, 4, 4), noise=rand(3, 1, 4, 4)), "take noise of"),
        (lambda: upfirdn2d_bias_act(rand(1, 3, 4, 4), FIR, (2, 2, 2, 2), 1.0, noise=rand(1, 1, 4, 4)), "take noise"),
        (lambda: bias_act(rand(2, 3, 4, 4), gain=-1.0), "must not be negative"),
    ],
)
@pytest.mark.parametrize("mode", ["native", "reference"])
def test_bad_input(call, message, mode):
    with native.use(mode), pytest.raises(ValueError, match=message):
        call()


def test_the_kernels_stay_within_their_memory():
    """Python checks first; behind it the operators themselves refuse what does not fit."""
    ops, x = torch.ops.stylefusion, rand(1, 3, 4, 4)
    for call in (
        lambda: ops.upfirdn2d(x, rand(9), 1, 1, [0, 0, 0, 0], 1.0, False),
        lambda: ops.upfirdn2d(x, FIR, 1, 0, [0, 0, 0, 0], 1.0, False),
        lambda: ops.upfirdn2d(x, FIR, 1, 1, [0, 0, 0], 1.0, False),
        lambda: ops.upfirdn2d(x.int(), FIR, 1, 1, [0, 0, 0, 0], 1.0, False),
        lambda: ops.bias_act(x, None, rand(2), None, True, 1.0, None),
        lambda: ops.bias_act(x, rand(2, 3), None, None, True, 1.0, None),
        lambda: ops.bias_act(x, None, None, rand(1, 1, 2, 8), True, 1.0, None),
        lambda: ops.act_grad(x, rand(1, 3, 2, 2), True, 1.0, None),
    ):
        with pytest.raises(RuntimeError, match="stylefusion: "):
            call()


# --- CUDA, without a GPU ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_cuda_kernels_compile(tmp_path):
    if not shutil.which("nvcc"):
        pytest.skip("there is no nvcc to compile the CUDA kernels with")
    archs = [f"-gencode=arch=compute_{sm},code=sm_{sm}" for sm in (80, 90)]
    command = ["nvcc", "-std=c++17", "-O1", *archs, "-c", str(NATIVE / "kernels_cuda.cu"), "-o", str(tmp_path / "k.o")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_cuda_kernels_compute_what_the_cpus_do(tmp_path):
    """Their text, compiled for the CPU with one thread after the other: shows wrong indices, not wrong launches."""
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    text = (NATIVE / "kernels_cuda.cu").read_text()
    launch = "kernel<<<blocks(count), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args...);"
    assert text.count(launch) == text.count("<<<") == 1
    # Three blocks at most, so that threads take further turns.
    text = text.replace(launch, "emulate(blocks(count) < 3 ? blocks(count) : 3, 64, [&] { kernel(args...); });")
    for header in ("cuda_bf16.h", "cuda_fp16.h"):
        text = text.replace(f"#include <{header}>\n", "")
    source, library = tmp_path / "emulated.cpp", tmp_path / "emulated.so"
    source.write_text(text + (ON_CPU / "entry.cpp").read_text())
    command = [compiler, "-std=c++17", "-O1", "-shared", "-fPIC", f"-I{ON_CPU}", f"-I{NATIVE}", source, "-o", library]
    subprocess.run([str(part) for part in command], check=True, timeout=300)
    emulated = ctypes.CDLL(str(library))
    for name in ("run_upfirdn2d", "run_bias_act", "run_act_grad"):
        getattr(emulated, name).restype = ctypes.c_char_p

    def pointer(t):
        return ctypes.c_void_p(None if t is None else t.data_ptr())

    def act(lrelu, gain, clamp, on=1.0):
        return (ctypes.c_double * 4)(0.2 if lrelu else 1.0, gain, math.inf if clamp is None else clamp, on)

    ops = torch.ops.stylefusion
    cases = itertools.product(LAYOUTS, [(1, 1), (2, 1), (1, 2), (3, 2)], [(1, 1, 1, 1), (2, 3, -1, 4)], [4, 3], [1, 2])
    for layout, (up, down), padding, n, samples in cases:
        last = layout == torch.channels_last
        x = rand(2, 5, 9, 8, dtype=torch.float32).contiguous(memory_format=layout)
        taps = torch.tensor([1.0, 2.0, 4.0, 8.0][:n]) / 8
        expected = ops.upfirdn2d(x, taps, up, down, padding, 1.5, True)
        h, w = expected.shape[2:]
        scale, bias, noise = (rand(*s, dtype=torch.float32) for s in ((2, 5), (5,), (samples, 1, h, w)))
        size = (ctypes.c_int64 * 6)(*x.shape, h, w)
        fir = (ctypes.c_int64 * 5)(n, up, down, padding[0], padding[2])
        parameters = pointer(scale), pointer(bias), pointer(noise), int(samples > 1)
        gain, y = ctypes.c_double(1.5), torch.empty_like(expected)
        for on in (0.0, 1.0):
            if on:
                expected = ops.bias_act(expected, scale, bias, noise, True, 1.4, 0.9)
            call = pointer(x), pointer(y), size, int(last), pointer(taps), fir, gain, *parameters
            assert emulated.run_upfirdn2d(*call, act(True, 1.4, 0.9, on)) is None
            torch.testing.assert_close(y, expected)
        small = ops.bias_act(x, scale, None, rand(1, 1, 9, 8, dtype=torch.float32), True, 1.4, None)
        noise = rand(1, 1, 9, 8, dtype=torch.float32)
        out = torch.empty_like(x)
        call = pointer(x), pointer(out), size, int(last), pointer(scale), pointer(None), pointer(noise), 0
        assert emulated.run_bias_act(*call, act(True, 1.4, None)) is None
        torch.testing.assert_close(out, small)
        assert emulated.run_act_grad(pointer(x), pointer(small), pointer(out), x.numel(), act(True, 1.4, 0.9)) is None
        torch.testing.assert_close(out, ops.act_grad(x, small, True, 1.4, 0.9))


def test_nothing_is_said_where_all_is_well(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.INFO, "stylefusion_hf"), native.use("auto"):
        upfirdn2d(torch.ones(1, 1, 4, 4), FIR)
    assert not caplog.records
