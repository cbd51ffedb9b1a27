"""MobileStyleGAN's generator: its layers, its style space, w+ rows, noise, memory."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from stylefusion_hf import FusionHierarchy, MobileStyleGANGenerator, StyleGAN2Generator, StyleGenerator
from stylefusion_hf.models import mobile_synthesis
from stylefusion_hf.models.layers import normalize_2nd_moment
from stylefusion_hf.models.mobile_layers import Block
from stylefusion_hf.ops import native
from stylefusion_hf.ops.wavelets import inverse_haar, inverse_haar_ref
from tests.tiny import W_DIM, Z_DIM, draw, style_codes, tiny_fusion, tiny_generator, tiny_mobile_generator


def as_published(g: MobileStyleGANGenerator, s: torch.Tensor, noise: bool = True) -> torch.Tensor:
    """The network step by step, as the paper describes it."""
    styles = iter(g.split_style(s).values())
    net = g.synthesis

    def modulate(x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        return x * next(styles)[:, :, None, None] * gain

    def finish(x: torch.Tensor, layer: torch.nn.Module) -> torch.Tensor:
        if noise and g.config.use_noise:
            x = x + layer.noise_const * layer.noise_strength
        return F.leaky_relu(x + layer.bias[:, None, None], 0.2)

    x = modulate(net.const.expand(len(s), -1, -1, -1), 1 / math.sqrt(9 * len(net.const)))
    x = finish(F.conv2d(x, net.conv.weight, padding=1), net.conv)
    for block in net.blocks:
        x = inverse_haar_ref(modulate(x))
        for layer in (block.conv1, block.conv2):
            x = modulate(x, 1 / math.sqrt(9 * x.shape[1]))
            x = F.conv2d(x, layer.depthwise, padding=1, groups=x.shape[1])
            x = finish(F.conv2d(x, layer.pointwise), layer)
    x = F.conv2d(modulate(x, 1 / math.sqrt(x.shape[1])), net.to_image.weight, net.to_image.bias)
    return inverse_haar_ref(x)


# --- The wavelet transform -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gradients", [False, True])
def test_the_transform_agrees_with_its_reference(layout: torch.memory_format, gradients: bool) -> None:
    x, scale = draw(2, 12, 5, 3).contiguous(memory_format=layout), draw(2, 12, seed=1)
    with torch.set_grad_enabled(gradients):
        torch.testing.assert_close(inverse_haar(x), inverse_haar_ref(x))
        torch.testing.assert_close(inverse_haar(x, scale), inverse_haar_ref(x, scale))
    low = F.pad(torch.ones(1, 1, 2, 2), (0, 0, 0, 0, 0, 3))
    assert torch.equal(inverse_haar(low), torch.full((1, 1, 4, 4), 0.5))
    assert torch.allclose(inverse_haar(x).square().sum(), x.square().sum(), rtol=1e-5)  # it is orthonormal


def test_the_transform_has_gradients() -> None:
    x, scale = draw(1, 8, 2, 3).double().requires_grad_(), draw(1, 8).double().requires_grad_()
    assert torch.autograd.gradcheck(inverse_haar, (x, scale))


# --- Synthesis -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{}, {"resolution": 16, "channels": [12, 4], "img_channels": 1}])
@pytest.mark.parametrize("batch", [1, 3])
def test_pictures_are_those_of_the_published_network(config: dict, batch: int) -> None:
    g = tiny_mobile_generator(**config)
    s = style_codes(g, batch)
    expected = as_published(g, s)
    assert expected.std() > 0.1
    torch.testing.assert_close(g.synthesis(s), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(g.synthesis(s), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(g.synthesis(s, "none"), as_published(g, s, noise=False), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("resolution", [8, 16, 64])
def test_any_resolution(resolution: int) -> None:
    half = resolution.bit_length() - 3
    g = tiny_mobile_generator(resolution=resolution, channels=[8] * half)
    assert g.synthesis(style_codes(g)).shape == (2, 3, resolution, resolution)
    assert g.num_ws == tiny_generator(resolution=resolution, channels=[8] * (half + 1)).num_ws


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_strips_and_parts_of_a_batch_give_the_same_pictures(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients maps are computed a few rows and a few pictures at a time."""
    g = tiny_mobile_generator(resolution=64, channels=[8, 8, 8, 6])
    s = style_codes(g, 3)
    expected, maps = g.synthesis(s, return_features=True)
    seen = []
    original = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, x, *a, **k: seen.append(x.shape) or original(self, x, *a, **k))
    monkeypatch.setattr(mobile_synthesis, "STRIP", 2 * 2 * 16 * 6 * 4 * rows)
    monkeypatch.setattr(mobile_synthesis, "chunk_size", lambda resolution, most: 1)
    with torch.no_grad(), native.use("reference"):
        torch.testing.assert_close(g.synthesis(s), expected, rtol=1e-4, atol=1e-5)
        again, found = g.synthesis(s, return_features=True)
    assert {shape[2] for shape in seen} >= {rows + 1, rows + 2} and all(len(shape) == 4 for shape in seen)
    torch.testing.assert_close(again, expected, rtol=1e-4, atol=1e-5)
    assert found.keys() == maps.keys() == {4, 8, 16, 32}
    for size, features in found.items():
        torch.testing.assert_close(features, maps[size], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("noise_mode", ["const", "random", "none"])
def test_an_empty_batch(noise_mode: str) -> None:
    g = tiny_mobile_generator()
    with torch.no_grad(), native.use("reference"):
        assert g.synthesis(style_codes(g)[:0], noise_mode).shape == (0, 3, 32, 32)


def test_features_are_those_of_every_block() -> None:
    g = tiny_mobile_generator()
    _, maps = g.synthesis(style_codes(g), return_features=True)
    assert {size: x.shape[1] for size, x in maps.items()} == g.feature_sizes == {4: 8, 8: 8, 16: 6}
    picture, some = g.synthesis(style_codes(g), return_features=True, up_to=8)
    assert picture is None and some.keys() == {4, 8} and torch.equal(some[8], maps[8])


def test_what_the_styles_scale() -> None:
    g = tiny_mobile_generator()
    s = style_codes(g)
    with torch.no_grad():
        image, maps = g.synthesis(s, return_features=True)
        inputs = list(g.synthesis.styled_inputs(s))
        assert [x.shape[1] for x in inputs] == g.synthesis.sizes
        # A block's features are what the next block's first style scales; the last style scales what the picture's
        # layer takes.
        for k, x in enumerate(maps.values()):
            torch.testing.assert_close(inputs[1 + 3 * k], x)
        styles = s.split(g.synthesis.sizes, dim=1)
        torch.testing.assert_close(g.synthesis.to_image(inputs[-1], styles[-1]), image)
        # A style vector changes what the later ones scale, and nothing before it.
        for k in range(len(inputs)):
            changed = torch.cat([v * (i != k) for i, v in enumerate(styles)], dim=1)
            again = list(g.synthesis.styled_inputs(changed))
            assert all(torch.equal(a, b) for a, b in zip(inputs[: k + 1], again[: k + 1], strict=True))
            assert all(not torch.allclose(a, b) for a, b in zip(inputs[k + 1 :], again[k + 1 :], strict=True))
        assert image.shape[2] == 2 * inputs[-1].shape[2]
    with pytest.raises(ValueError, match="a style code of this generator is"):
        next(g.synthesis.styled_inputs(s[:, 1:]))


def test_noise_modes() -> None:
    g = tiny_mobile_generator()
    s = style_codes(g)
    stored, none = g.synthesis(s), g.synthesis(s, "none")
    assert not torch.equal(stored, none) and torch.equal(stored, g.synthesis(s, "const"))

    def drawn(seed: int, codes: torch.Tensor = s) -> torch.Tensor:
        return g.synthesis(codes, "random", generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1), drawn(1)) and not torch.equal(drawn(1), drawn(2))
    same = drawn(1, torch.cat([s[:1], s[:1]]))
    assert not torch.equal(same[0], same[1])  # each sample has noise of its own
    torch.testing.assert_close(same[:1], drawn(1, s[:1]))  # and the first one that of a single run
    with torch.no_grad():
        torch.testing.assert_close(drawn(1), drawn(1).detach())
    with pytest.raises(ValueError, match="unknown noise_mode 'loud'"):
        g.synthesis(s, "loud")
    quiet = tiny_mobile_generator(use_noise=False)
    assert torch.equal(quiet.synthesis(s), quiet.synthesis(s, "none"))


def test_wrong_codes() -> None:
    g = tiny_mobile_generator()
    with pytest.raises(ValueError, match=rf"a style code of this generator is \(batch, {g.style_dim}\), got \(1, 5\)"):
        g.synthesis(torch.zeros(1, 5))
    with pytest.raises(ValueError, match="up_to is one of 4, 8, 16, 32, got 64"):
        g.synthesis(style_codes(g), up_to=64)


# --- The style space -------------------------------------------------------------------------------------------------


def test_the_published_model_has_6752_style_numbers() -> None:
    with torch.device("meta"):
        g = MobileStyleGANGenerator(1024)
    wide, narrow = [512, 128, 512] * 4, [512, 128, 256, 256, 64, 128, 128, 32, 64]
    assert list(g.style_sizes.values()) == [512, *wide, *narrow, 64]
    assert list(g.style_sizes) == [*(f"conv{i}" for i in range(22)), "rgb0"]
    assert g.style_dim == 6752 and g.num_ws == 18
    assert list(g.style_resolutions.values()) == [
        4,
        *(r for r in (8, 16, 32, 64, 128, 256, 512) for _ in range(3)),
        512,
    ]


def test_rows_of_w_plus_go_to_layers_by_resolution() -> None:
    """Each row moves the layers whose counterparts in StyleGAN2 it moves, of the same resolution."""
    g, other = tiny_mobile_generator(), tiny_generator()
    assert g.num_ws == other.num_ws == 8
    w = draw(1, 1, W_DIM).expand(1, 8, W_DIM)
    start = g.split_style(g.to_style(w))
    torch.testing.assert_close(g.to_style(w), g.to_style(w[:, 0]))
    moved = {}
    for row in range(8):
        changed = w.clone()
        changed[:, row] += 1
        found = g.split_style(g.to_style(changed))
        moved[row] = [name for name in start if not torch.allclose(found[name], start[name])]
    assert moved == {
        0: ["conv0"],
        1: ["conv1", "conv2"],
        2: ["conv3"],
        3: ["conv4", "conv5"],
        4: ["conv6"],
        5: ["rgb0"],
        6: [],
        7: [],
    }
    by_row = {}
    for generator in (g, other):
        parts = generator.style_rows.split(list(generator.style_sizes.values()))
        for rows, resolution in zip(parts, generator.style_resolutions.values(), strict=True):
            by_row.setdefault(generator, {}).setdefault(int(rows[0]), set()).add(resolution)
    assert all(sizes <= by_row[other][row] for row, sizes in by_row[g].items())


def test_named_vectors() -> None:
    g = tiny_mobile_generator()
    parts = g.split_style(style_codes(g))
    assert list(parts) == list(g.style_sizes) and torch.equal(torch.cat(list(parts.values()), 1), style_codes(g))
    assert g.conv_sizes == [8, 8, 2, 8, 8, 2, 6] and g.rgb_sizes == [6]


def test_mapping_normalizes_and_truncates() -> None:
    g = tiny_mobile_generator()
    z = draw(2, Z_DIM)
    x = normalize_2nd_moment(z)
    for layer in g.mapping.layers:
        x = F.leaky_relu(F.linear(x, layer.weight, layer.bias), 0.2) * math.sqrt(2)
    torch.testing.assert_close(g.mapping(z), x)
    torch.testing.assert_close(g.mapping(10 * z), x)
    assert torch.equal(g.truncate(x, 0.0), g.w_avg.expand(2, -1))
    before = g.w_avg.clone()
    torch.testing.assert_close(g.estimate_w_avg(1000, seed=1), g.mapping(draw(1000, Z_DIM, seed=1)).mean(0))
    assert not torch.equal(before, g.w_avg)


def test_fusion_nets_work_on_its_codes() -> None:
    g = tiny_mobile_generator()
    fusion = tiny_fusion(g)
    given = {node: style_codes(g, 2, seed=k) for k, node in enumerate(fusion.tree.nodes)}
    fused = fusion.fuse(given)
    assert fused.shape == (2, g.style_dim) and not any(torch.equal(fused, code) for code in given.values())
    same = fusion.fuse(dict.fromkeys(fusion.tree.nodes, style_codes(g)))
    assert torch.equal(same, style_codes(g))
    assert g.synthesis(fused).isfinite().all()


@pytest.mark.parametrize("build", [tiny_mobile_generator, tiny_generator])
def test_a_hierarchy_for_a_generator(build) -> None:
    g = build()
    fusion = FusionHierarchy.for_generator(g, "all*(face, hair)", hidden_width=16)
    assert fusion.style_width == g.style_dim
    assert fusion.spec.conv_sizes == tuple(g.conv_sizes) and fusion.spec.rgb_sizes == tuple(g.rgb_sizes)
    assert fusion.spec.padded_width == 8
    assert fusion.fuse(dict.fromkeys(fusion.tree.nodes, style_codes(g))).shape == (2, g.style_dim)
    assert (
        FusionHierarchy.for_generator(g, "all*(face, hair)", hidden_width=16, padded_width=12).spec.padded_width == 12
    )


# --- Configs and files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "message"), [
    ({"resolution": 4}, "between 8 and 16384"),
    ({"resolution": 48}, "power of two"),
    ({"channels": [8, 8]}, "needs 3 positive channel counts"),
    ({"channels": [8, 6, 8]}, "multiples of 4, got 6"),
    ({"preview_resolutions": [32]}, "preview_resolutions must be among"),
    ({"preview_resolutions": ["8"]}, "preview_resolutions"),
    ({"img_channels": 0}, "img_channels must be above 0"),
])  # fmt: skip
def test_configs_that_do_not_fit(config: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_mobile_generator(**config)


@pytest.mark.parametrize("build", [tiny_mobile_generator, tiny_generator])
def test_the_interface_loads_whichever_generator_there_is(build, tmp_path) -> None:
    g = build()
    g.save_pretrained(tmp_path / "generator")
    loaded = StyleGenerator.from_pretrained(tmp_path, subfolder="generator")
    assert type(loaded) is type(g) and isinstance(loaded, StyleGenerator)
    assert torch.equal(loaded.synthesis(style_codes(g)), g.synthesis(style_codes(g)))


def test_what_the_interface_does_not_load(tmp_path) -> None:
    with pytest.raises(OSError, match="StyleGAN2Generator cannot be loaded from"):
        StyleGenerator.from_pretrained(tmp_path)
    for name in ("StyleGAN2Discriminator", "StyleGenerator", "__version__", "os"):
        (tmp_path / "config.json").write_text(json.dumps({"_class_name": name}))
        with pytest.raises(ValueError, match=f"holds no generator of this package: its config.json is of a '{name}'"):
            StyleGenerator.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="a model is a folder's path or a Hub id"):
        StyleGenerator.from_pretrained(None)


def test_it_is_safe_in_half_precision() -> None:
    g = tiny_mobile_generator()
    s = style_codes(g)
    expected = g.synthesis(s).detach()
    for dtype in (torch.float16, torch.bfloat16):
        half = tiny_mobile_generator().to(dtype)
        with torch.no_grad():
            found = half.synthesis(s.to(dtype))
        assert found.dtype == dtype
        assert float((found.float() - expected).std() / expected.std()) < 0.05


def test_saved_with_its_class_at_the_top_of_the_package(tmp_path) -> None:
    assert MobileStyleGANGenerator.__module__ == StyleGAN2Generator.__module__ == "stylefusion_hf"
    tiny_mobile_generator().save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["_class_name"] == "MobileStyleGANGenerator"
