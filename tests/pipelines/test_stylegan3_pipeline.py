"""Whatever works on a StyleGAN2 works on a StyleGAN3, and its pictures move."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import (
    Direction,
    StyleFusionInterpolationPipeline,
    StyleFusionInversionPipeline,
    StyleFusionPipeline,
    StyleGAN3Generator,
)
from stylefusion_hf.cli import main
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.editing.directions import ganspace, sefa, style_channel
from stylefusion_hf.export.graph_files import trace
from stylefusion_hf.export.graphs import export, graphs
from stylefusion_hf.export.rendering import kind_of
from stylefusion_hf.regions.discovery import discover
from stylefusion_hf.regions.working_size import working_size
from tests.command_line import fails
from tests.tiny import W_DIM, draw, tiny_fusion, tiny_pipeline, tiny_segmenter, tiny_stylegan3_generator

REGIONS = {"hair": 7, "eyes": [3, 4]}
ONNX = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
MOVED: dict[str, Any] = {"translate": (0.25, -0.125), "rotate": 20}


@pytest.fixture(scope="module")
def pipe() -> StyleFusionPipeline:
    generator = tiny_stylegan3_generator().requires_grad_(False)
    made = StyleFusionPipeline(generator, tiny_fusion(generator), tiny_segmenter())
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def saved(pipe: StyleFusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stylegan3")
    pipe.save_pretrained(folder)
    return folder


def numbers(out: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in out.images])


# --- Pipelines -------------------------------------------------------------------------------------------------------


def test_a_saved_pipeline_draws_the_same_pictures(pipe, saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = StyleFusionPipeline.from_pretrained(saved)
    assert isinstance(loaded.generator, StyleGAN3Generator) and not caplog.records
    first = pipe(base=[1, 2], regions=REGIONS, global_code=5, output_masks=True)
    again = loaded(base=[1, 2], regions=REGIONS, global_code=5)
    assert np.array_equal(numbers(first), numbers(again))
    assert first.masks["hair"].shape == (2, 32, 32)
    noisy = pipe(base=[1, 2], regions=REGIONS, global_code=5, noise_mode="random")
    assert np.abs(numbers(noisy).astype(int) - numbers(first)).max() <= 1  # it has no noise inputs


def test_recipes_hold_the_motion(pipe: StyleFusionPipeline) -> None:
    out = pipe(base=[1, 2], regions=REGIONS, **MOVED)
    assert (out.recipe["translate"], out.recipe["rotate"]) == ([0.25, -0.125], 20.0)
    text = json.dumps(out.recipe)
    again = pipe.from_recipe(text)
    assert np.array_equal(numbers(out), numbers(again)) and json.dumps(again.recipe) == text
    still = pipe(base=[1, 2], regions=REGIONS)
    assert "translate" not in still.recipe and "rotate" not in still.recipe
    assert torch.equal(out.style_codes[:, 4:], still.style_codes[:, 4:])
    expected = pipe.generator.move_style(still.style_codes, (0.25, -0.125), 20)
    assert torch.equal(out.style_codes, expected)
    one = Recipe.from_dict(out.recipe).select(1)
    assert np.abs(numbers(pipe.from_recipe(one))[0].astype(int) - numbers(out)[1]).max() <= 1
    assert kind_of(one) != kind_of(Recipe.from_dict(still.recipe).select(1))  # shards do not mix them in a batch


@pytest.mark.parametrize(
    ("call", "match"),
    [
        ({"translate": 0.5}, "translate is two numbers, right and down"),
        ({"translate": (1, 2, 3)}, "translate is two numbers, right and down"),
        ({"translate": (1, "x")}, "translate: each of the two is a number"),
        ({"translate": (float("nan"), 0)}, "translate: each of the two is a number"),
        ({"rotate": float("inf")}, "rotate is a number"),
        ({"rotate": "left"}, "rotate is a number"),
    ],
)
def test_motions_that_are_none(pipe: StyleFusionPipeline, call: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        pipe(base=1, **call)
    recipe = {"version": 1, "base": 1} | call
    with pytest.raises(ValueError, match=match):
        Recipe.from_dict(recipe)


@pytest.mark.parametrize("call", [{"translate": (0.1, 0.0)}, {"rotate": 5}])
def test_other_generators_refuse(call: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tiny_pipeline()
    with pytest.raises(ValueError, match="a StyleGAN2Generator has none: leave them out"):
        other(base=1, **call)
    assert other(base=1, translate=(0, 0), rotate=0).images
    with pytest.raises(ValueError, match="a StyleGAN2Generator has none"):
        other.from_recipe(
            {"version": 1, "base": 1, **{k: list(v) if k == "translate" else v for k, v in call.items()}}
        )
    out = str(tmp_path / "x.png")
    assert "StyleGAN2Generator has none" in fails(capsys, "fuse", "--base", "1", "--rotate", "5", "--out", out)


def test_interpolation(pipe: StyleFusionPipeline) -> None:
    walk = StyleFusionInterpolationPipeline.from_pipe(pipe)
    walk.set_progress_bar_config(disable=True)
    made = walk(base=[1, 2], regions={"hair": [3, 4]}, frames=3, **MOVED)
    ends = [numbers(pipe(base=k + 1, regions={"hair": k + 3}, **MOVED))[0] for k in range(2)]
    frames = np.stack([np.asarray(frame) for frame in made.frames]).astype(int)
    assert np.abs(frames[0] - ends[0]).max() <= 1 and np.abs(frames[-1] - ends[1]).max() <= 1
    assert made.recipe["rotate"] == 20


def test_half_precision(pipe: StyleFusionPipeline) -> None:
    whole = pipe(base=1, output_type="pt").images[0]
    generator = tiny_stylegan3_generator().requires_grad_(False)
    half = StyleFusionPipeline(generator, tiny_fusion(generator)).to(dtype=torch.bfloat16)
    assert float((half(base=1, output_type="pt").images[0].float() - whole).abs().mean()) < 0.05


# --- Edits, inversion, regions ---------------------------------------------------------------------------------------


def test_directions_are_found(pipe: StyleFusionPipeline) -> None:
    g = pipe.generator
    found = [
        *sefa(g, count=2),
        *ganspace(g, count=1, samples=64),
        *ganspace(g, count=1, samples=64, space="features", resolution=16),
        style_channel(g, "rgb0", 2, samples=64),
        Direction("turn", "w", draw(W_DIM), layers=(1, 2)),
    ]
    plain = pipe(base=1).style_codes
    for direction in found:
        edited = pipe(base=1, edits={"all": direction(3.0)}).style_codes
        assert edited.shape == plain.shape and not torch.equal(edited, plain)


def test_inversion_finds_a_picture_of_the_generator(pipe: StyleFusionPipeline) -> None:
    g = pipe.generator
    target = g.synthesis(g.to_style(g.mapping(draw(1, W_DIM, seed=5))))
    inverter = StyleFusionInversionPipeline.from_pipe(pipe)
    inverter.set_progress_bar_config(disable=True)
    picture = Image.fromarray(target[0].clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy())

    def distance(steps: int) -> float:
        out = inverter(picture, num_inference_steps=steps, num_tuning_steps=0, start="mean")
        assert out.codes.tensor.shape == (1, 6, W_DIM)
        return float(out.mse)

    assert distance(30) < 0.7 * distance(0)


def test_regions_are_discovered_in_features_without_margins(pipe: StyleFusionPipeline) -> None:
    found = discover(pipe.generator, samples=16, clusters=6, num_regions=2, trials=2, progress=False)
    assert len(found.tree.leaves) == 2
    assert set(found.labeller.config.resolutions) == {16, 32}
    _, maps = pipe.generator.synthesis(draw(2, pipe.generator.style_dim), return_features=True)
    assert found.labeller(maps).logits.shape == (2, 2, 32, 32)


def test_smaller_pictures_are_fitted_where_they_are_asked_for() -> None:
    g = tiny_stylegan3_generator().requires_grad_(False)
    assert working_size(g) == 32 and g.picture_sizes == [32]
    assert working_size(g, 16) == 16 and g.picture_sizes == [16, 32]
    with pytest.raises(ValueError, match="a working size of 8 px: choose from 16, 32"):
        working_size(g, 8)


# --- Files -----------------------------------------------------------------------------------------------------------


def small() -> StyleFusionPipeline:
    generator = tiny_stylegan3_generator(resolution=16, channels=[8, 6, 5], num_layers=2, num_critical=1)
    return StyleFusionPipeline(generator, tiny_fusion(generator, "all*(sky, sea)"), tiny_segmenter("all*(sky, sea)"))


@torch.no_grad()
def test_graphs_have_a_dynamic_batch() -> None:
    for name, graph in graphs(small()).items():
        program = trace(graph).module()
        for batch in (1, 3):
            inputs = graph.example(batch)
            torch.testing.assert_close(program(*inputs), graph.original(*inputs), rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.skipif(bool(ONNX), reason=f"not installed (extra `export`): {', '.join(ONNX)}")
def test_onnx(tmp_path: Path) -> None:
    made = export(small(), tmp_path / "graphs", "onnx", only=("mapping", "synthesis"))
    assert all(graph.error is not None and graph.error < 1e-3 for graph in made)


@pytest.mark.parametrize("command", [
    "fuse --base 1 --region hair=7 --translate -0.2 .1 --rotate 10 --out fused.png",
    "sheet --out sheet.png",
    "interpolate --base 1,2 --frames 2 --out walk.gif",
    "render --random 3 --out shards",
    "regions discover --samples 24 --steps 2 --clusters 6 --num-regions 2 --out regions",
])  # fmt: skip
def test_commands(command: str, saved: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = main([*command.split(), "--model", str(saved)])
    captured = capsys.readouterr()
    assert code == 0, captured.err + captured.out
    assert any(tmp_path.iterdir())
