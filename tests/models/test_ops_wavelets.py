"""MobileStyleGAN's native operators against their references: values, gradients, layouts, types, graphs."""

import itertools
import shutil
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

from stylefusion_hf.ops import native
from stylefusion_hf.ops.separable import (
    Separable,
    depthwise_conv2d,
    depthwise_ref,
    has_wavelet_block,
    wavelet_block,
    wavelet_block_ref,
)
from stylefusion_hf.ops.wavelets import inverse_haar, inverse_haar_ref
from tests.tiny import W_DIM, draw, tiny_mobile_generator

LAYOUTS = [torch.contiguous_format, torch.channels_last]
SIZES = [(1, 1), (1, 5), (4, 1), (2, 2), (7, 5), (35, 18)]


@pytest.fixture(autouse=True)
def on(built_library: Path):
    with native.use("native"):
        assert native.covers(torch.zeros(1)), native.choose("cpu")
        yield


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def rand(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check_close(ours, theirs, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance, check_stride=False)


def block_arguments(batch: int, c: int, inner: int, outer: int, h: int, w: int, noise: int | None, colors: int = 0):
    """Arguments of `wavelet_block`; `noise`: for how many samples, None for no noise."""

    def separable(i: int, o: int, seed: int) -> Separable:
        maps = None if noise is None else draw(noise, 1, 2 * h, 2 * w, seed=seed)
        weight = draw(o, i, 1, 1, seed=seed + 2) / i**0.5
        return Separable(draw(i, 1, 3, 3, seed=seed + 1), weight, draw(o, seed=seed + 3), maps)

    image = (draw(batch, 4 * colors, outer, seed=5), draw(4 * colors, seed=6)) if colors else None
    x = draw(batch, 4 * c, h, w)
    return (
        x,
        draw(batch, 4 * c, seed=1),
        separable(c, inner, 10),
        separable(inner, outer, 20),
        draw(batch, inner),
        image,
    )


# --- Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3, 16, 37])
def test_single_operators(channels, size, layout, threads):
    x = rand(3, 4 * channels, *size).contiguous(memory_format=layout)
    before, scale, weight = x.clone(), rand(3, 4 * channels, seed=1), rand(4 * channels, 1, 3, 3, seed=2)
    for factors in (None, scale):
        for ours, theirs in (
            (inverse_haar(x, factors), inverse_haar_ref(x, factors)),
            (depthwise_conv2d(x, weight, factors), depthwise_ref(x, weight, factors)),
        ):
            check_close(ours, theirs)
            assert ours.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before), "the input must not be written to"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("noise", "colors"), [(None, 0), (1, 0), (3, 0), (1, 3), (None, 1)])
def test_a_block(size, noise, colors, layout, threads):
    x, scale, first, second, style, image = block_arguments(3, 5, 12, 7, *size, noise, colors)
    x = x.contiguous(memory_format=layout)
    assert has_wavelet_block(x)
    ours = wavelet_block(x, scale, first, second, style, image)
    check_close(ours, wavelet_block_ref(x, scale, first, second, style, image), 1e-4)
    assert ours.is_contiguous(memory_format=torch.contiguous_format if colors else torch.channels_last)


@pytest.mark.parametrize("size", [(40, 33), (3, 700), (9, 300)])  # several strips; a strip of two rows
def test_a_block_in_strips(size, threads):
    x, scale, first, second, style, image = block_arguments(2, 4, 8, 8, *size, 2, 3)
    for last in (None, image):
        ours = wavelet_block(x, scale, first, second, style, last)
        check_close(ours, wavelet_block_ref(x, scale, first, second, style, last), 1e-4)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 4e-3), (torch.bfloat16, 4e-2)]
)
def test_types(dtype, tolerance):
    x, scale, weight = rand(2, 8, 6, 5, dtype=dtype), rand(2, 8, seed=1).float(), rand(8, 1, 3, 3, seed=2).float()
    for ours, theirs in (
        (inverse_haar(x, scale), inverse_haar_ref(x.double(), scale.double())),
        (depthwise_conv2d(x, weight, scale), depthwise_ref(x.double(), weight.double(), scale.double())),
    ):
        assert ours.dtype == dtype
        check_close(ours.double(), theirs, 4 * tolerance)
    assert has_wavelet_block(x) == (dtype == torch.float32)


def test_types_agree_with_the_references():
    """A scale in float32, as under mixed precision, does not change the type of the result."""
    x, scale = rand(2, 8, 6, 5, dtype=torch.bfloat16), rand(2, 8, seed=1).float()
    assert inverse_haar_ref(x, scale).dtype == torch.bfloat16
    with native.use("reference"):
        assert inverse_haar(x, scale).dtype == torch.bfloat16


def test_a_block_does_not_depend_on_the_default_type():
    arguments = block_arguments(1, 2, 3, 4, 4, 4, 1, 1)
    expected = wavelet_block(*arguments)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(wavelet_block(*arguments), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_empty_batches():
    x = torch.empty(0, 8, 4, 4, requires_grad=True)
    y = depthwise_conv2d(inverse_haar(x, torch.ones(0, 8)), torch.ones(2, 1, 3, 3), torch.ones(0, 2))
    assert y.shape == (0, 2, 8, 8) and torch.autograd.grad(y.sum(), x)[0].shape == x.shape
    with torch.no_grad():
        arguments = block_arguments(1, 2, 3, 4, 4, 4, 1, 1)
        _, _, first, second, _, (weight, bias) = arguments
        empty = wavelet_block(x, torch.ones(0, 8), first, second, torch.ones(0, 3), (weight[:0], bias))
        assert empty.shape == (0, 1, 16, 16)


@pytest.mark.parametrize("mode", ["native", "reference"])
def test_shapes_that_do_not_fit(mode):
    x = draw(2, 8, 4, 4)
    with native.use(mode):
        with pytest.raises(ValueError, match=r"take a weight of \(8, 1, 3, 3\); got \(4, 1, 3, 3\)"):
            depthwise_conv2d(x, draw(4, 1, 3, 3))
        with pytest.raises(ValueError, match=r"take a scale of \(2, 8\); got \(1, 8\)"):
            depthwise_conv2d(x, draw(8, 1, 3, 3), draw(1, 8))


def test_the_kernels_stay_within_their_memory():
    ops, x = torch.ops.stylefusion, draw(1, 8, 4, 4)
    x4, scale, first, second, style, _ = block_arguments(1, 2, 3, 4, 4, 4, 1)
    for call in (
        lambda: ops.inverse_haar(draw(1, 6, 4, 4), None),
        lambda: ops.inverse_haar(x, draw(1, 4)),
        lambda: ops.inverse_haar_grad(draw(1, 2, 8, 7), x, None),
        lambda: ops.depthwise(x, draw(4, 1, 3, 3), None),
        lambda: ops.depthwise_grad(draw(1, 8, 4, 3), x, draw(8, 1, 3, 3), None),
        lambda: ops.wavelet_block(x4, scale[:, :4], *first, style, *second, None, None),
        lambda: ops.wavelet_block(x4, scale, *second, style, *first, None, None),
        lambda: ops.wavelet_block(x4, scale, *first, style, *second, draw(1, 12, 3), draw(12)),
        lambda: ops.wavelet_block(x4.double(), scale, *first, style, *second, None, None),
    ):
        with pytest.raises(RuntimeError, match="stylefusion: "):
            call()


# --- Gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("scaled", [False, True])
def test_gradients(scaled, layout, threads):
    x = rand(2, 8, 35, 3).contiguous(memory_format=layout).requires_grad_()
    scale = rand(2, 8, seed=1).requires_grad_() if scaled else None
    weight = rand(8, 1, 3, 3, seed=2).requires_grad_()
    for fast, ref, inputs in (
        (inverse_haar, inverse_haar_ref, (x, scale)),
        (depthwise_conv2d, depthwise_ref, (x, weight, scale)),
    ):
        given = [t for t in inputs if t is not None]
        ours, theirs = fast(*inputs), ref(*inputs)
        g = rand(*ours.shape, seed=3)
        for a, b in zip(torch.autograd.grad(ours, given, g), torch.autograd.grad(theirs, given, g), strict=True):
            check_close(a, b)


def test_gradcheck_of_any_order():
    def both(x, scale, weight, second):
        return depthwise_conv2d(inverse_haar(x, scale), weight, second).square()

    inputs = [rand(2, 8, 2, 3), rand(2, 8, seed=1), rand(2, 1, 3, 3, seed=2), rand(2, 2, seed=3)]
    assert torch.autograd.gradcheck(both, [t.requires_grad_() for t in inputs])
    assert torch.autograd.gradgradcheck(both, inputs)


def test_a_block_gives_way_where_a_gradient_is_wanted():
    x, scale, first, second, style, _ = block_arguments(2, 2, 3, 4, 4, 4, 1)
    scale.requires_grad_()
    assert not has_wavelet_block(x, scale) and has_wavelet_block(x, style)
    y = wavelet_block(x, scale, first, second, style)
    assert torch.autograd.grad(y.sum(), scale)[0].abs().sum() > 0
    with pytest.raises(RuntimeError, match="wavelet_block is for inference only"):
        torch.ops.stylefusion.wavelet_block(x, scale, *first, style, *second, None, None).sum().backward()


# --- The model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("mode", ["const", "random", "none"])
def test_pictures_and_gradients_are_the_same(mode, batch, threads):
    g = tiny_mobile_generator(resolution=64, channels=[8, 8, 12, 6])
    g.fit_preview(16, samples=2)
    s = g.to_style(draw(batch, W_DIM)).detach()

    def results():
        noise = torch.Generator().manual_seed(1)
        with torch.no_grad():
            picture, maps = g.synthesis(s, mode, return_features=True, generator=noise)
            noise.manual_seed(1)
            found = [picture, *maps.values(), g.synthesis(s, mode, generator=noise)]
        leaf = s.clone().requires_grad_()
        weights = [leaf, *g.synthesis.parameters()]
        full = g.synthesis(leaf, mode, generator=noise.manual_seed(1))
        found += torch.autograd.grad(full.square().mean(), weights, allow_unused=True)
        preview = g.synthesis(leaf, mode, generator=noise.manual_seed(1), up_to=16)
        return [*found, *torch.autograd.grad(preview.square().mean(), leaf)]

    ours = results()
    with native.use("reference"):
        theirs = results()
    for a, b in zip(ours, theirs, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            check_close(a, b, 1e-3)


# --- What torch asks of an operator ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_opcheck(layout):
    ops, check = torch.ops.stylefusion, torch.library.opcheck
    x = draw(2, 8, 6, 4).contiguous(memory_format=layout)
    leaf, scale = x.clone(memory_format=torch.preserve_format).requires_grad_(), draw(2, 8).requires_grad_()
    weight = draw(8, 1, 3, 3).requires_grad_()
    check(ops.inverse_haar.default, (leaf, scale))
    check(ops.depthwise.default, (leaf, weight, scale))
    check(ops.inverse_haar_grad.default, (draw(2, 2, 12, 8), x, scale.detach()))
    check(ops.depthwise_grad.default, (draw(2, 8, 6, 4), x, weight.detach(), None))
    for colors in (0, 3):
        x, scale, first, second, style, image = block_arguments(2, 2, 3, 4, 6, 4, 1, colors)
        x = x.contiguous(memory_format=layout)
        check(ops.wavelet_block.default, (x, scale, *first, style, *second, *(image or (None, None))))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile(backend):
    if backend == "inductor" and not shutil.which("c++"):
        pytest.skip("inductor needs a C++ compiler")
    if backend == "inductor" and TorchVersion(torch.__version__) < "2.7":
        pytest.skip("inductor of torch 2.6 cannot lower these layers (NotImplementedError: View)")
    g = tiny_mobile_generator(resolution=16, channels=[8, 4])
    s = g.to_style(draw(2, W_DIM)).detach().requires_grad_()
    compiled = torch.compile(g.synthesis, fullgraph=True, backend=backend)
    check_close(compiled(s), g.synthesis(s), 1e-4)
    first = torch.autograd.grad(compiled(s).square().sum(), s)[0]
    check_close(first, torch.autograd.grad(g.synthesis(s).square().sum(), s)[0], 1e-3)
    with torch.no_grad():
        check_close(compiled(s), g.synthesis(s), 1e-4)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore")
def test_exported_programs_hold_pytorch_operators_only():
    g = tiny_mobile_generator(resolution=16, channels=[8, 4]).requires_grad_(False)
    s = g.to_style(draw(2, W_DIM))
    with torch.no_grad():
        traced = torch.jit.trace(g.synthesis, s, check_trace=False).graph
        exported = torch.export.export(g.synthesis, (s,), strict=False).graph
    assert "stylefusion::" not in str(traced)
    assert "torch.ops.stylefusion" not in str(exported)


def test_transforms_without_rules_are_left_to_pytorch():
    x = rand(2, 8, 3, 3)

    def call(x):
        return depthwise_conv2d(inverse_haar(x), torch.ones(2, 1, 3, 3, dtype=x.dtype))

    value, tangent = torch.func.jvp(call, (x,), (x,))
    check_close(value, tangent)  # it is linear
    assert torch.func.vmap(call)(x[None]).shape == (1, *value.shape)
    assert list(itertools.chain(value.shape)) == [2, 2, 6, 6]
