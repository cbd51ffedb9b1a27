"""The ways to swap a region that StyleFusion is measured against, on a tiny pipeline whose regions are known."""

from types import SimpleNamespace

import pytest
import torch

from stylefusion_hf.evaluation import channels
from stylefusion_hf.evaluation.baselines import (
    ConstantInterpolation,
    EditingInStyle,
    LocalChannels,
    RetrieveInStyle,
    StyleMixing,
)
from stylefusion_hf.evaluation.fusion_swaps import StaticGates, StyleFusionSwap
from stylefusion_hf.evaluation.gates import LearnedGates
from stylefusion_hf.evaluation.masked_swaps import FeatureBlending, PixelPaste, blend_features
from stylefusion_hf.evaluation.methods import move
from stylefusion_hf.evaluation.pairs import VALIDATION_SEED, Pairs, draw_pairs, render, with_unrelated_sources
from stylefusion_hf.evaluation.registry import METHODS, SOURCE_BLIND, build_methods
from tests.planted import TREE, planted_pipeline
from tests.tiny import STYLE_DIM, tiny_fusion, tiny_mobile_generator, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return planted_pipeline()


@pytest.fixture(scope="module")
def pairs(pipe):
    return draw_pairs(pipe, 3, VALIDATION_SEED)


def same(pairs: Pairs) -> Pairs:
    """Every source is its base."""
    return Pairs(pairs.base, pairs.base, pairs.plain, pairs.plain, pairs.base_probs, pairs.base_probs)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in SOURCE_BLIND])
def test_a_source_that_is_the_base_changes_nothing(pipe, pairs, name):
    method = build_methods(pipe, [name])[name]
    if isinstance(method, LearnedGates):
        method.logits = torch.randn(len(method.lambdas), len(method.regions), STYLE_DIM)
    assert len(method.strengths) >= 10
    for strength in (method.strengths[0], method.strengths[-1]):
        images = method.swap(same(pairs), "b", strength)
        torch.testing.assert_close(images, pairs.plain, rtol=0, atol=1e-5)
        assert not images.requires_grad


@pytest.mark.parametrize("name", METHODS)
def test_a_method_at_full_strength_changes_the_picture_within_bounds(pipe, pairs, name):
    method = build_methods(pipe, [name])[name]
    if isinstance(method, LearnedGates):
        method.logits = torch.zeros(len(method.lambdas), len(method.regions), STYLE_DIM)
    images = method.swap(pairs, "b", method.strengths[-1])
    assert images.shape == pairs.plain.shape and images.abs().max() <= 1
    assert ((images - pairs.plain).abs().amax(dim=(1, 2, 3)) > 0.01).all()


def test_names_are_checked(pipe, pairs):
    with pytest.raises(ValueError, match="unknown method 'gan': choose from stylefusion, stylefusion-wider,"):
        build_methods(pipe, ["stylefusion", "gan"])
    made = build_methods(pipe, ["stylefusion-refined", "stylefusion"], refine_steps=3)
    assert list(made) == ["stylefusion-refined", "stylefusion"] and made["stylefusion-refined"].steps == 3
    with pytest.raises(ValueError, match="unknown region 'nose': the segmenter knows a, b, right"):
        ConstantInterpolation(pipe).swap(pairs, "nose", 1)
    with pytest.raises(ValueError, match="no segmenter"):
        build_methods(tiny_pipeline(), ["stylefusion"])


def test_move_is_exact_at_both_ends():
    a, b = torch.randn(2, 1000) * 100, torch.randn(2, 1000) * 1e-3
    assert torch.equal(move(a, b, 0.0), a) and torch.equal(move(a, b, 1.0), b)
    gate = torch.tensor([0.0, 1.0]).repeat(500)
    assert torch.equal(move(a, b, gate), torch.where(gate == 1, b, a))


# --- StyleFusion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wider", "region", "nodes"), [
    (False, "b", ["b"]),
    (True, "b", ["b", "left"]),
    (True, "right", ["right"]),
])  # fmt: skip
def test_stylefusion_swaps_as_the_pipeline_does(pipe, pairs, wider, region, nodes):
    for strength in (0.3, 1.0):
        given = dict.fromkeys(nodes, pairs.source)
        out = pipe(base=pairs.base, nodes=given, strength=strength, latent_type="s", output_type="pt").images
        images = StyleFusionSwap(pipe, wider).swap(pairs, region, strength)
        torch.testing.assert_close(images / 2 + 0.5, out, rtol=0, atol=1e-5)


# --- Gates -----------------------------------------------------------------------------------------------------------


def test_interpolation_goes_from_base_to_source(pipe, pairs):
    method = ConstantInterpolation(pipe)
    torch.testing.assert_close(method.swap(pairs, "a", 0.0), pairs.plain)
    torch.testing.assert_close(method.swap(pairs, "a", 1.0), pairs.other)
    torch.testing.assert_close(method.swap(pairs, "a", 0.25), render(pipe, pairs.base.lerp(pairs.source, 0.25)))


def test_style_mixing_mixes_rows_of_w_plus(pipe, pairs):
    method, g = StyleMixing(pipe), pipe.generator
    assert len(method.settings) == g.num_ws * (g.num_ws + 1) and method.settings[-1] == (0, g.num_ws, 1.0)
    w = torch.randn(2, g.num_ws, g.config.w_dim)
    a, b = g.to_style(w)
    for strength in method.strengths:
        first, end, amount = method.settings[int(strength)]
        mixed = w[:1].clone()
        mixed[:, first:end] = w[1, first:end]
        torch.testing.assert_close(move(a, b, method.gate("a", strength)), a.lerp(g.to_style(mixed)[0], amount))
    torch.testing.assert_close(method.swap(pairs, "a", method.strengths[-1]), pairs.other)


@pytest.fixture
def stripes():
    """A pipeline whose first layer's channel 0 is active in the leftmost quarter alone."""
    pipe = planted_pipeline()
    with torch.no_grad():
        pipe.generator.synthesis.const[0] = torch.tensor([1.0, 0, 0, 0])
    return pipe


def test_memberships_are_shares_of_energy(stripes):
    found = EditingInStyle(stripes, samples=8).membership
    assert found.shape == (3, STYLE_DIM)
    torch.testing.assert_close(found.sum(dim=0), torch.ones(STYLE_DIM))
    # By hand: columns of 1, 0, 0, 0 have energies 9, 1, 1, 1 about their mean; region a has 1 1/2 of them, b another
    # 1 1/2, right the last.
    torch.testing.assert_close(found[:, 0], torch.tensor([9.5, 1.5, 1.0]) / 12)


def test_memberships_of_a_mobile_generator():
    torch.manual_seed(0)
    pipe = planted_pipeline()
    mobile = tiny_mobile_generator()
    with torch.no_grad():
        mobile.synthesis.const[0] = torch.tensor([1.0, 0, 0, 0])
    inputs = channels.styled_inputs(mobile, torch.randn(2, mobile.style_dim))
    assert [x.shape[1] for x in inputs] == mobile.synthesis.sizes
    stand_in = SimpleNamespace(generator=mobile, segmenter=pipe.segmenter)
    masks = torch.zeros(2, 3, 16, 16)
    masks[:, 0, :, :4], masks[:, 1, :, 4:8], masks[:, 2, :, 8:] = 1, 1, 1
    with torch.no_grad():
        sums = torch.cat(channels.activation_energies(stand_in, torch.randn(2, mobile.style_dim), masks), dim=2)
    assert sums.shape == (2, 3, mobile.style_dim, 3)
    # The first layer's channel 0 is active in the leftmost quarter alone, which is region 0.
    torch.testing.assert_close(sums[0, :, 0, 0], torch.tensor([4.0, 0.0, 0.0]))


def test_memberships_need_style_vectors():
    generator = SimpleNamespace(synthesis=torch.nn.Identity())
    with pytest.raises(ValueError, match="not from those of SimpleNamespace: leave editing-in-style"):
        next(channels.styled_inputs(generator, torch.zeros(1, 4)))


def test_a_channel_without_energy_belongs_to_all_alike(stripes):
    with torch.no_grad():
        stripes.generator.synthesis.const[1] = 0.5
    found = channels.memberships(stripes, 4)
    torch.testing.assert_close(found[:, 1], torch.full((3,), 1 / 3))


def test_editing_in_style_takes_the_members_first(pipe):
    method = EditingInStyle(pipe)
    widths = pipe.generator.synthesis.sizes
    first = torch.tensor([0.9, 0.05, 0.3, 0.8, 0.0, 0.6, 0.2, 0.1])
    method.membership = torch.stack([torch.cat([first, torch.zeros(STYLE_DIM - 8)])] * 3)

    def chosen(rho: float, epsilon: float) -> list[int]:
        method.settings = [(rho, epsilon, 1.0)]
        gate = method.gate("a", 0)
        method.settings = [(rho, epsilon, 0.5)]
        torch.testing.assert_close(method.gate("a", 0), gate / 2)
        assert not gate[widths[0] :].any() or rho < 0
        return gate[: widths[0]].nonzero().flatten().tolist()

    assert chosen(0.0, 0.05) == []
    assert chosen(0.0, 0.2) == [0]
    assert chosen(0.0, 0.31) == [0, 3]  # shortfalls .1 and .2
    assert chosen(0.0, 8.0) == [0, 1, 2, 3, 5, 6, 7]
    assert chosen(0.25, 8.0) == [0, 2, 3, 5]


def test_editing_in_style_all_at_once(pipe):
    method = EditingInStyle(pipe, form="simultaneous")
    method.membership = torch.rand(3, STYLE_DIM)
    torch.testing.assert_close(method.gate("b", 2.0), (2 * method.membership[1]).clamp(max=1))
    with pytest.raises(ValueError, match="unknown form 'both' of Editing in Style: choose sequential or simultaneous"):
        EditingInStyle(pipe, form="both")


def test_local_channels_are_those_that_paint_the_region(monkeypatch):
    """A stand-in for a generator, whose channel j paints column j and nothing else."""
    pipe = SimpleNamespace(
        generator=SimpleNamespace(synthesis=lambda s: s[:, None, None].expand(-1, 3, 32, -1), style_dim=32),
        segmenter=SimpleNamespace(config=SimpleNamespace(regions=["a", "b", "right"])),
    )
    labels = torch.tensor([0] * 12 + [1] * 12 + [2] * 8).expand(6, 32, 32)
    monkeypatch.setattr(channels, "fitting_samples", lambda *_: (torch.randn(6, 32), labels))
    method = LocalChannels(pipe)
    torch.testing.assert_close(method.shares.sum(dim=0), torch.ones(32))
    method.settings = [(12, 1.0), (12, 0.25)]
    assert method.gate("b", 0).nonzero().flatten().tolist() == list(range(12, 24))
    torch.testing.assert_close(method.gate("b", 1), method.gate("b", 0) / 4)


def test_every_local_channel_is_the_source(pipe, pairs):
    method = LocalChannels(pipe, samples=4)
    assert method.settings[-1] == (STYLE_DIM, 1.0)
    for strength, (count, amount) in enumerate(method.settings):
        assert float(method.gate("a", strength).sum()) == pytest.approx(count * amount)
    torch.testing.assert_close(method.swap(pairs, "a", method.strengths[-1]), pairs.other)


def test_retrieve_in_style_has_gates_of_each_pair(pipe, pairs):
    method = RetrieveInStyle(pipe, samples=8)
    gates = method.gates(pairs)
    assert gates.shape == (3, 3, STYLE_DIM)
    # Of one pair alone they are the same: nothing is averaged over the batch.
    torch.testing.assert_close(method.gates(pairs[1:2]), gates[1:2], rtol=1e-3, atol=1e-4)
    assert (gates[0] - gates[1]).abs().max() > 0.05
    own = method.memberships(pairs.base, pairs.base_probs)
    torch.testing.assert_close(own.sum(dim=1), torch.ones(3, STYLE_DIM))
    full = method.settings.index((0.1, 1.0))
    torch.testing.assert_close(
        method.swap(pairs, "b", full),
        render(pipe, move(pairs.base, pairs.source, (gates / 0.1).softmax(dim=1)[:, 1])),
    )


def test_retrieve_in_style_takes_a_channel_that_is_active_in_the_region_alone(stripes):
    """The first layer's channel 0 is the same in all pictures: it belongs to the leftmost quarter."""
    method = RetrieveInStyle(stripes, samples=8)
    pairs = draw_pairs(stripes, 2, VALIDATION_SEED)
    torch.testing.assert_close(
        method.memberships(pairs.base, pairs.base_probs)[:, :, 0], torch.tensor([9.5, 1.5, 1.0]).expand(2, 3) / 12
    )


# --- What ignores the source -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCE_BLIND)
def test_methods_that_ignore_the_source_draw_the_same_whatever_it_is(pipe, pairs, name):
    method = build_methods(pipe, [name])[name]
    images = method.swap(pairs, "b", 1.0)
    assert torch.equal(method.swap(with_unrelated_sources(pipe, pairs), "b", 1.0), images)
    assert (images - pairs.plain).abs().max() > 0.01


def test_a_method_is_found_by_its_former_name(pipe):
    assert list(build_methods(pipe, ["stranger", "random-code"])) == ["random-code"]


def test_the_mean_and_the_random_code_are_swaps_of_their_codes(pipe, pairs):
    nodes = pipe.fusion.tree.nodes
    codes = {"mean": pipe.generator.to_style(pipe.generator.w_avg[None]).expand_as(pairs.base),
             "random-code": pairs.unrelated}  # fmt: skip
    for name, code in codes.items():
        expected = render(pipe, pipe.fusion.fuse({n: code if n == "b" else pairs.base for n in nodes}))
        torch.testing.assert_close(build_methods(pipe, [name])[name].swap(pairs, "b", 1.0), expected)
    assert not torch.equal(pairs.unrelated, pairs.base) and not torch.equal(pairs.unrelated, pairs.source)
    without = Pairs(*(getattr(pairs, n) for n in
                      ("base", "source", "plain", "other", "base_probs", "source_probs")))  # fmt: skip
    with pytest.raises(ValueError, match="these pairs have no unrelated codes"):
        build_methods(pipe, ["random-code"])["random-code"].swap(without, "b", 1.0)


# --- Nets of constant gates ------------------------------------------------------------------------------------------


def constant_fusion(pipe):
    """Untrained nets whose gates are constants of their own."""
    fusion = tiny_fusion(pipe.generator, TREE, gate_bias=True, final_activation="linear", pooling="mean")
    for name, parameter in fusion.named_parameters():
        if ".layers." in name and name.split(".layers.")[1].startswith(
            f"{len(fusion.net('all').blender_common.layers) - 1}."
        ):
            torch.nn.init.zeros_(parameter)
    return fusion


def test_static_gates_are_loaded_and_swap_as_nets_do(pipe, pairs, tmp_path):
    fusion = constant_fusion(pipe)
    fusion.save_pretrained(tmp_path / "fusion")
    for folder in (tmp_path, tmp_path / "fusion"):
        method = StaticGates.load(pipe, folder)
        images = method.swap(pairs, "b", 1.0)
        expected = fusion.fuse({n: pairs.source if n == "b" else pairs.base for n in fusion.tree.nodes})
        torch.testing.assert_close(images, render(pipe, expected))
    swapped = fusion.fuse({n: pairs.source if n == "b" else pairs.base for n in fusion.tree.nodes})
    gates = (swapped - pairs.base) / (pairs.source - pairs.base)
    clear = ((pairs.source - pairs.base).abs() > 0.1).all(dim=0)
    assert gates[:, clear].std(dim=0).max() < 1e-3  # the same for all pairs


def test_nets_that_look_at_the_codes_are_no_static_gates(pipe):
    with pytest.raises(ValueError, match="gates depend on the codes: train constant ones"):
        StaticGates(pipe, pipe.fusion)
    other = tiny_fusion(pipe.generator, "all*(left, right)", gate_bias=True)
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    with pytest.raises(ValueError, match="static gates are for 88 style channels and the tree"):
        StaticGates(pipe, other)


# --- Masks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", range(4))
def test_features_blended_everywhere_are_coarse_styles_of_the_source(pipe, pairs, block):
    everywhere = torch.ones(3, 32, 32)
    images = blend_features(pipe, pairs.base, pairs.source, everywhere, 4 * 2**block)
    a, b = pipe.generator.split_style(pairs.base), pipe.generator.split_style(pairs.source)
    coarse = [*(f"conv{i}" for i in range(2 * block + 1)), *(f"rgb{k}" for k in range(block + 1))]
    mixed = [b[name] if name in coarse else a[name] for name in a]
    torch.testing.assert_close(images, render(pipe, torch.cat(mixed, dim=1)), rtol=0, atol=1e-5)
    nowhere = blend_features(pipe, pairs.base, pairs.source, 0 * everywhere, 4 * 2**block)
    torch.testing.assert_close(nowhere, pairs.plain, rtol=0, atol=1e-5)


def test_features_blended_at_the_end_are_pixels(pipe, pairs):
    method = FeatureBlending(pipe)
    strength = method.settings.index((1.0, 0.0, 32))
    images = method.swap(pairs, "b", strength)
    torch.testing.assert_close(images[..., 12:24], pairs.other[..., 12:24], rtol=0, atol=1e-5)
    torch.testing.assert_close(images[..., :12], pairs.plain[..., :12], rtol=0, atol=1e-5)
    wide = method.swap(pairs, "b", method.settings.index((1.0, 1 / 32, 32)))
    torch.testing.assert_close(wide[..., 11:25], pairs.other[..., 11:25], rtol=0, atol=1e-5)
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in pipe.generator.synthesis.modules())


def test_blending_refuses_a_size_without_a_block(pipe, pairs):
    for size in (0, 2, 7, 64):
        with pytest.raises(
            ValueError, match=f"no block of this generator has {size} pixels: choose from 4, 8, 16, 32"
        ):
            blend_features(pipe, pairs.base, pairs.source, torch.ones(3, 32, 32), size)


def test_pixels_are_pasted_exactly(pipe, pairs):
    images = PixelPaste(pipe).swap(pairs, "right", 1.0)
    assert torch.equal(images[..., 24:], pairs.other[..., 24:]) and torch.equal(
        images[..., :24], pairs.plain[..., :24]
    )
    half = PixelPaste(pipe).swap(pairs, "right", 0.5)
    torch.testing.assert_close(half[..., 24:], (pairs.plain + pairs.other)[..., 24:] / 2)
    gone = Pairs(*(getattr(pairs, n) for n in ("base", "source", "plain", "other", "base_probs")),
                 pairs.source_probs * torch.tensor([1.0, 1.0, 0.0]).view(1, 3, 1, 1))  # fmt: skip
    assert torch.equal(PixelPaste(pipe).swap(gone, "right", 1.0), pairs.plain)
