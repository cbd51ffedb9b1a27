"""Refinement: what it improves, what it leaves alone, and how calls ask for it."""

import json

import pytest
import torch
from torch import Tensor

from stylefusion_hf import Direction, RegionSegmenter, RegionTree, StyleFusionPipeline
from stylefusion_hf.cli import main
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.editing.refinement import (
    LEAK_WEIGHT,
    TRANSFER_WEIGHT,
    Networks,
    SwapGoal,
    Swaps,
    learning_rate_for,
    refine,
)
from tests.tiny import draw, tiny_fusion, tiny_generator, tiny_pipeline

STEPS = 6


@pytest.fixture(scope="module")
def pipe() -> StyleFusionPipeline:
    made = tiny_pipeline(segmenter=True)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def networks(pipe) -> Networks:
    def render(s: Tensor):
        return pipe.generator.synthesis(s, return_features=True)

    regions = list(pipe.segmenter.config.regions)
    return Networks(pipe.fusion.fuse, render, pipe.segmenter.segment, pipe.fusion.tree, regions)


@pytest.fixture(scope="module")
def codes(pipe) -> Tensor:
    """Style codes of four seeds."""
    with torch.no_grad():
        return pipe.generator.to_style(pipe.generator.mapping(draw(4, pipe.generator.config.z_dim)))


def mixes(networks: Networks, codes: Tensor, **swaps: list[int]) -> tuple[dict[str, Tensor], Tensor]:
    """Two mixes on the first code: each region's code is that of these numbers."""
    rows = {name: swaps.get(name, [0, 0]) for name in networks.tree.nodes}
    return {name: codes[row] for name, row in rows.items()}, codes[[0, 0]]


def losses(networks: Networks, given: dict[str, Tensor], base: Tensor, found: Tensor) -> Tensor:
    swaps = Swaps.of(networks, given, base)
    assert swaps is not None
    with torch.no_grad():
        return SwapGoal(networks, swaps)(found, LEAK_WEIGHT, TRANSFER_WEIGHT)


def test_it_improves_every_mix_and_starts_from_the_nets(networks, codes):
    given, base = mixes(networks, codes, hair=[1, 2], mouth=[0, 3])
    fused = networks.fuse(given)
    seen: list[Tensor] = []
    found = refine(networks, given, base, steps=STEPS, on_step=lambda step, loss: seen.append(loss))
    before, after = (losses(networks, given, base, x) for x in (fused, found))
    assert (after < before).all()
    assert len(seen) == STEPS
    assert torch.allclose(torch.stack(seen).min(dim=0).values, after, rtol=1e-4)
    assert torch.equal(refine(networks, given, base, steps=0), fused)
    # What makes a mix worse is not kept.
    wild = refine(networks, given, base, steps=2, learning_rate=100.0)
    assert (losses(networks, given, base, wild) <= before * (1 + 1e-5)).all()


def test_few_steps_are_larger_ones_and_those_too_large_are_taken_back(networks, codes):
    assert [learning_rate_for(n) for n in (1, 4, 5, 20)] == [1.5, 1.5, 1.2, 0.3]
    given, base = mixes(networks, codes, hair=[1, 2], mouth=[0, 3])
    seen: list[Tensor] = []
    found = refine(networks, given, base, steps=16, learning_rate=20.0, on_step=lambda step, loss: seen.append(loss))
    before = losses(networks, given, base, networks.fuse(given))
    assert (seen[0] > before).any()  # the first step went too far
    assert (losses(networks, given, base, found) < 0.97 * before).all()


def test_gates_stay_between_the_codes(networks, codes):
    given, base = mixes(networks, codes, hair=[1, 2])
    swaps = Swaps.of(networks, given, base)
    found = refine(networks, given, base, steps=STEPS, learning_rate=5.0, leak_weight=0.0, transfer_weight=100.0)
    moved = found - swaps.fused + swaps.gates[:, 0] * swaps.difference[:, 0]  # gate times difference
    low, high = (f(swaps.difference[:, 0], torch.zeros(())) for f in (torch.minimum, torch.maximum))
    assert (moved >= low - 1e-4).all()
    assert (moved <= high + 1e-4).all()


def test_a_mix_does_not_depend_on_its_batch(networks, codes):
    given, base = mixes(networks, codes, hair=[1, 2], mouth=[0, 3])
    both = refine(networks, given, base, steps=STEPS)
    alone = [refine(networks, {n: x[k : k + 1] for n, x in given.items()}, base[:1], steps=STEPS) for k in (0, 1)]
    a, b = (losses(networks, given, base, x) for x in (both, torch.cat(alone)))
    assert torch.allclose(a, b, rtol=0.02)  # Adam turns roundings into small steps


def test_nothing_to_do_and_no_gradients_for_the_networks(pipe, networks, codes):
    given, base = mixes(networks, codes)
    assert torch.equal(refine(networks, given, base, steps=STEPS), base)
    given, base = mixes(networks, codes, hair=[1, 2])
    pipe.generator.requires_grad_(True)
    try:
        with torch.inference_mode():
            refine(networks, given, base, steps=1)
        assert all(p.grad is None for p in pipe.generator.parameters())
    finally:
        pipe.generator.requires_grad_(False)


def test_a_region_that_the_source_lacks_is_asked_for_its_outline_alone(networks, codes):
    absent = networks.regions.index("hair")

    def segment(pictures: Tensor) -> Tensor:
        logits = networks.segment(pictures)
        lacking = pictures.sub(source).flatten(1).abs().amax(dim=1) < 1e-5
        logits[lacking, absent] = -100.0
        return logits

    given, base = mixes(networks, codes, hair=[1, 1])
    source = networks.draw(codes[1:2])[0].clamp(-1, 1)
    swaps = Swaps.of(networks, given, base)
    other = Networks(networks.fuse, networks.draw, segment, networks.tree, networks.regions)
    goal = SwapGoal(other, swaps)
    assert torch.equal(goal.weights, torch.tensor([1.0, 0.0, 0.0]).expand(2, 1, 3))
    assert SwapGoal(networks, swaps).weights[..., 1:].sum() > 0


# --- In a call -------------------------------------------------------------------------------------------------------


def test_the_recipe_carries_it(pipe):
    plain = pipe(base=1, regions={"hair": [7, 8]})
    out = pipe(base=1, regions={"hair": [7, 8]}, refine_steps=STEPS)
    assert out.recipe["refine_steps"] == STEPS
    assert "refine_steps" not in plain.recipe
    assert not torch.equal(out.style_codes, plain.style_codes)
    assert torch.equal(pipe.from_recipe(json.dumps(out.recipe)).style_codes, out.style_codes)
    assert Recipe.from_dict(out.recipe).select(1).refine_steps == STEPS
    pipe.enable_slicing()
    try:
        again = pipe(base=1, regions={"hair": [7, 8]}, refine_steps=STEPS).style_codes
        assert torch.allclose(again, out.style_codes, atol=0.1)
    finally:
        pipe.disable_slicing()


def test_edits_strengths_and_random_noise(pipe):
    half = pipe(base=1, regions={"hair": 7}, strength=0.5, refine_steps=2, noise_mode="random")
    assert half.style_codes.isfinite().all()
    offset = pipe.generator.to_style(draw(1, pipe.generator.config.w_dim)) * 0.2
    edited = pipe(base=1, edits={"mouth": Direction("louder", "s", offset[0])}, refine_steps=2)
    assert edited.style_codes.isfinite().all()


@pytest.mark.parametrize(
    "config",
    [
        {"resolution": 32, "base_size": [4, 6]},
        {"resolution": 8, "channels": [8, 8], "img_channels": 1},  # no maps of 16 or 32 px
        {"img_channels": 4},
    ],
)
def test_generators_of_any_form(config):
    """With an inner node that has no net, whose code stands for two regions."""
    tree = RegionTree.parse("all*(pair(a, b), c)")
    generator = tiny_generator(**config)
    channels = generator.config.img_channels
    segmenter = RegionSegmenter(regions=["c", "a", "b"], channels=[4, 4], groups=2, img_channels=channels).eval()
    made = StyleFusionPipeline(generator, tiny_fusion(generator, tree), segmenter)
    made.set_progress_bar_config(disable=True)
    given = {"base": 1, "regions": {"pair": 7}, "output_type": "latent"}
    nets, refined = (made(**given, refine_steps=steps).style_codes for steps in (0, STEPS))
    assert not torch.equal(nets, refined)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"refine_steps": 5}, "no region has a code of its own"),
        ({"refine_steps": 5, "global_code": 3}, "no region has a code of its own"),
        ({"refine_steps": -1, "regions": {"hair": 7}}, "refine_steps is an integer from 0"),
        ({"refine_steps": 2.5, "regions": {"hair": 7}}, "refine_steps is an integer from 0"),
        ({"refine_steps": 10**6, "regions": {"hair": 7}}, "refine_steps is an integer from 0"),
    ],
)
def test_what_cannot_be_refined(pipe, call, message):
    with pytest.raises(ValueError, match=message):
        pipe(base=1, **call)


def test_a_pipeline_without_a_segmenter():
    bare = tiny_pipeline()
    with pytest.raises(ValueError, match="refine_steps needs a segmenter"):
        bare(base=1, regions={"hair": 7}, refine_steps=5)
    with pytest.raises(ValueError, match="refine_steps needs a segmenter"):
        bare.from_recipe({"version": 1, "base": 1, "regions": {"hair": 7}, "refine_steps": 5})


def test_the_command(tmp_path, pipe, capsys):
    model, out = tmp_path / "model", tmp_path / "fused.png"
    pipe.save_pretrained(model)
    call = ["fuse", "--model", str(model), "--base", "1", "--region", "hair=7", "--out", str(out)]
    assert main([*call, "--refine", "3"]) == 0
    again = tmp_path / "again.png"
    assert main(["fuse", "--model", str(model), "--from-recipe", str(out), "--out", str(again)]) == 0
    assert again.read_bytes() == out.read_bytes()
    capsys.readouterr()
    assert main(["fuse", "--model", str(model), "--from-recipe", str(out), "--refine", "3"]) == 2
    assert "leave out --refine" in capsys.readouterr().err
