"""Generator, discriminator and segmenter: shapes, spaces, errors. What all models owe is in test_mixins_models.py."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from stylefusion_hf.models.discriminator import StyleGAN2Discriminator, minibatch_std
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
from tests.tiny import tiny_generator


def generator(**kwargs):
    torch.manual_seed(0)
    defaults = {"resolution": 16, "channels": [12, 8, 4], "z_dim": 6, "w_dim": 10, "mapping_layers": 2}
    g = StyleGAN2Generator(**{**defaults, **kwargs}).eval()
    with torch.no_grad():  # noise that shows, a mean that is not zero
        g.w_avg.normal_()
        for conv in g.synthesis.convs:
            if conv.use_noise:
                conv.noise_strength.fill_(0.3)
    return g


@pytest.mark.parametrize(
    ("resolution", "channels", "layers", "labels", "noise"),
    [(4, [6], 1, 0, True), (8, [5, 3], 3, 4, False), (32, [16, 8, 8, 2], 8, 0, True), (64, None, 2, 2, True)],
)
@torch.no_grad()
def test_any_shape(resolution, channels, layers, labels, noise):
    if channels is None:
        channels = [4] * 5
    g = generator(resolution=resolution, channels=channels, mapping_layers=layers, label_dim=labels, use_noise=noise)
    c = torch.eye(labels)[:2] if labels else None
    w = g.mapping(torch.randn(2, 6), c)
    assert w.shape == (2, 10)
    assert g.num_ws == 2 * len(channels)
    assert g.style_dim == sum(g.conv_sizes) + sum(g.rgb_sizes)
    s = g.to_style(w)
    for mode in ("const", "random", "none"):
        assert g.synthesis(s, noise_mode=mode).shape == (2, 3, resolution, resolution)
    vectors = g.split_style(s)
    assert list(vectors)[0] == "conv0"
    assert torch.equal(torch.cat(list(vectors.values()), dim=1), s)
    if resolution > 4:
        d = StyleGAN2Discriminator(resolution=resolution, channels=channels, label_dim=labels, mapping_layers=2)
        assert d(g.synthesis(s), c).logits.shape == (2, 1)


@torch.no_grad()
def test_spaces_agree():
    g = generator()
    w = g.mapping(torch.randn(3, 6))
    rows = w[:, None].expand(-1, g.num_ws, -1)
    torch.testing.assert_close(g.to_style(rows), g.to_style(w))
    # Row i drives convolution i, row 2k + 1 toRGB k: changing one row changes these vectors and no others.
    for row in range(g.num_ws):
        other = rows.clone()
        other[:, row] += 1
        changed = [n for n, v in g.split_style(g.to_style(other) - g.to_style(rows)).items() if v.abs().max() > 1e-3]
        expected = [f"conv{row}"] if row < len(g.conv_sizes) else []
        expected += [f"rgb{row // 2}"] if row % 2 else []
        assert changed == expected
    z = torch.randn(3, 6)
    out = g(z, truncation_psi=0.5, noise_mode="none")
    s = g.to_style(g.truncate(g.mapping(z), 0.5))
    torch.testing.assert_close(out.sample, g(s, latent_type="s", noise_mode="none").sample)
    torch.testing.assert_close(out.style_codes, s)
    assert torch.equal(g(z, return_dict=False)[0], g(z).sample)


@torch.no_grad()
def test_a_sample_does_not_depend_on_its_batch():
    g = generator()
    z = torch.randn(5, 6)
    together = g(z).sample
    for i in range(5):
        torch.testing.assert_close(g(z[i : i + 1]).sample[0], together[i], rtol=1e-4, atol=1e-5)


@torch.no_grad()
@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("half", "tolerance"), [(torch.float16, 0.01), (torch.bfloat16, 0.06)])
def test_half_precision(half, tolerance, batch):
    g = tiny_generator(conv_clamp=256.0)
    s = g.to_style(torch.randn(batch, g.config.w_dim)) * 30  # demodulation takes out what would overflow
    whole = g.synthesis(s)
    found = g.to(half).synthesis(s.to(half))
    assert found.dtype == half and found.isfinite().all() and found.is_contiguous()
    assert float((found.float() - whole).std() / whole.std()) < tolerance


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
def test_autocast_to_half_precision(batch):
    g = tiny_generator()
    s = g.to_style(torch.randn(batch, g.config.w_dim)) * 100  # squares that half precision cannot hold
    whole = g.synthesis(s)
    with torch.autocast("cpu", torch.float16):
        found = g.synthesis(s)
    assert float((found.float() - whole).std() / whole.std()) < 0.05


def test_gradients_after_a_call_in_inference_mode():
    g = tiny_generator().requires_grad_(False)
    s = torch.randn(2, g.style_dim)
    with torch.inference_mode():
        g.synthesis(s)
    s.requires_grad_()
    g.synthesis(s).mean().backward()
    assert s.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 2])
def test_synthesis_compiles_whole(batch):
    g = tiny_generator()
    s = torch.randn(batch, g.style_dim) + 1
    compiled = torch.compile(g.synthesis, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(s), g.synthesis(s), rtol=1e-4, atol=1e-4)


def test_truncation():
    g = generator()
    w = torch.randn(2, 10)
    torch.testing.assert_close(g.truncate(w, 1.0), w)
    torch.testing.assert_close(g.truncate(w, 0.0), g.w_avg.expand(2, -1))
    cut = g.truncate(w, 0.3, cutoff=2)
    torch.testing.assert_close(cut[:, 2:], w[:, None].expand(-1, g.num_ws - 2, -1))
    torch.testing.assert_close(cut[:, 0], g.truncate(w, 0.3))


@torch.no_grad()
def test_noise_modes():
    g, z = generator(), torch.randn(1, 6)
    s = g.to_style(g.mapping(z))
    assert torch.equal(g.synthesis(s), g.synthesis(s))
    draw = [g.synthesis(s, noise_mode="random", generator=torch.Generator().manual_seed(i)) for i in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2])
    assert not torch.equal(g.synthesis(s), g.synthesis(s, noise_mode="none"))


@torch.no_grad()
def test_features_are_those_of_every_resolution():
    image, features = (g := generator()).synthesis(torch.randn(2, g.style_dim), return_features=True)
    assert {r: tuple(f.shape) for r, f in features.items()} == {4: (2, 12, 4, 4), 8: (2, 8, 8, 8), 16: (2, 4, 16, 16)}
    assert image.shape == (2, 3, 16, 16)


def test_minibatch_std_can_be_off():
    d = StyleGAN2Discriminator(resolution=8, channels=[8, 8], mbstd_channels=0)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(d(x).logits[:1], d(x[:1]).logits)
    # Groups of four where the batch allows, of the next smaller divisor where not.
    assert minibatch_std(torch.randn(6, 4, 2, 2), 4, 1).shape == (6, 5, 2, 2)


def test_gradients_reach_everything():
    g = generator(label_dim=2)
    d = StyleGAN2Discriminator(resolution=16, channels=[12, 8, 4], label_dim=2, mapping_layers=1)
    c = torch.eye(2)
    images = g(torch.randn(2, 6), c, noise_mode="random").sample
    images.retain_grad()
    d(images, c).logits.sum().backward()
    for name, p in [*g.named_parameters(), *d.named_parameters()]:
        assert p.grad is not None and p.grad.abs().sum() > 0, name


def test_gradients_and_double_gradients_of_the_discriminator():
    torch.manual_seed(0)
    d = StyleGAN2Discriminator(resolution=8, channels=[2, 2], label_dim=2, mapping_layers=1).double()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    c = torch.eye(2, dtype=torch.float64)
    assert gradcheck(lambda x: d(x, c).logits, x, fast_mode=True)
    assert gradgradcheck(lambda x: d(x, c).logits, x, fast_mode=True)


@torch.no_grad()
def test_segmenter_takes_any_size():
    model = RegionSegmenter(regions=["a", "b"], channels=[8, 8, 8])
    for size in ((64, 64), (33, 20), (5, 7)):
        assert model.segment(torch.randn(1, 3, *size)).shape == (1, 2, *size)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: generator(resolution=48), "power of two"),
        (lambda: generator(resolution=2), "power of two"),
        (lambda: generator(channels=[4, 4]), r"needs 3 positive channel counts.*got \[4, 4\]"),
        (lambda: generator(channels=[4, 0, 4]), "positive channel counts"),
        (lambda: generator(z_dim=0), "z_dim"),
        (lambda: generator(mapping_layers=0), "mapping needs layers"),
        (lambda: generator().mapping(torch.randn(2, 7)), r"\(batch, 6\), got \(2, 7\)"),
        (lambda: generator(label_dim=3).mapping(torch.randn(2, 6)), "class-conditional"),
        (lambda: generator().mapping(torch.randn(1, 6), torch.eye(1)), "without labels"),
        (lambda: generator().to_style(torch.randn(2, 11)), r"got \(2, 11\)"),
        (lambda: generator().synthesis(torch.randn(2, 5)), r"got \(2, 5\)"),
        (lambda: generator().synthesis(torch.randn(1, 5), noise_mode="some"), "unknown noise_mode 'some'"),
        (lambda: generator().truncate(torch.randn(1, 10), 0.5, cutoff=9), "between 0 and 6"),
        (lambda: generator()(torch.randn(1, 6), latent_type="p"), "unknown latent_type 'p'"),
        (
            lambda: StyleGAN2Discriminator(resolution=16, channels=[4, 4, 4])(torch.randn(1, 3, 8, 8)),
            r"3, 16, 16\), got",
        ),
        (lambda: StyleGAN2Discriminator(resolution=4, channels=[4]), "at least 8"),
        (lambda: RegionSegmenter(regions=["a", "a"]), "different region names"),
        (lambda: RegionSegmenter(channels=[12]), "multiple of groups"),
        (lambda: RegionSegmenter().segment(torch.randn(3, 8, 8)), "expected images"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
