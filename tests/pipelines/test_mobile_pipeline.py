"""Whatever works on a StyleGAN2 works on a MobileStyleGAN: everything knows generators by one interface."""

import importlib.util
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import (
    Code,
    Direction,
    MobileStyleGANGenerator,
    StyleFusionInterpolationPipeline,
    StyleFusionInversionPipeline,
    StyleFusionPipeline,
    StyleGenerator,
)
from stylefusion_hf.cli import main
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.core.edits import load_directions, save_directions, style_offsets
from stylefusion_hf.editing.directions import ganspace, sefa, style_channel
from stylefusion_hf.export.graph_files import trace
from stylefusion_hf.export.graphs import export, graphs
from stylefusion_hf.hub.loading import weights_sha256
from stylefusion_hf.inversion.tuned import find_tuned, save_tuned
from stylefusion_hf.pipelines import steps
from stylefusion_hf.regions.discovery import discover
from tests.tiny import NUM_WS, W_DIM, draw, tiny_fusion, tiny_mobile_generator, tiny_segmenter

REGIONS = {"hair": 7, "eyes": [3, 4]}
ONNX = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]


def mobile_pipeline(**changes: Any) -> StyleFusionPipeline:
    generator = tiny_mobile_generator(**changes).requires_grad_(False)
    pipe = StyleFusionPipeline(generator, tiny_fusion(generator), tiny_segmenter())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> StyleFusionPipeline:
    return mobile_pipeline()


@pytest.fixture(scope="module")
def saved(pipe: StyleFusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mobile")
    pipe.save_pretrained(folder)
    return folder


def numbers(out: Any) -> np.ndarray:
    return np.stack([np.asarray(image) for image in out.images])


# --- Pipelines -------------------------------------------------------------------------------------------------------


def test_a_saved_pipeline_draws_the_same_pictures(pipe, saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    loaded = StyleFusionPipeline.from_pretrained(saved)
    assert isinstance(loaded.generator, MobileStyleGANGenerator) and not caplog.records
    index = json.loads((saved / "model_index.json").read_text())
    assert index["generator"] == ["stylefusion_hf", "MobileStyleGANGenerator"]
    first = pipe(base=[1, 2], regions=REGIONS, global_code=5, output_masks=True)
    again = loaded(base=[1, 2], regions=REGIONS, global_code=5)
    assert np.array_equal(numbers(first), numbers(again))
    assert first.masks["hair"].shape == (2, 32, 32)


def test_a_recipe_makes_the_picture_again(pipe: StyleFusionPipeline) -> None:
    rows = Code(draw(1, NUM_WS, W_DIM), "w+")
    edit = Direction("older", "w+", draw(NUM_WS, W_DIM), scale=0.2)(1.5)
    calls: list[dict[str, Any]] = [
        {"base": 1, "regions": REGIONS | {"skin": rows}, "strength": 0.5},
        {"base": 1, "noise_mode": "random", "generator": torch.Generator().manual_seed(3)},
        {"base": 1, "edits": {"hair": edit}, "truncation_psi": 0.5},
    ]
    for call in calls:
        out = pipe(**call)
        text = json.dumps(out.recipe)
        again = pipe.from_recipe(json.loads(text))
        assert np.array_equal(numbers(out), numbers(again)) and json.dumps(again.recipe) == text


def test_random_noise_of_a_batch_is_that_of_single_runs(pipe: StyleFusionPipeline) -> None:
    def generators() -> list[torch.Generator]:
        return [torch.Generator().manual_seed(seed) for seed in (1, 2)]

    both = pipe(base=[1, 2], noise_mode="random", generator=generators(), output_type="pt").images
    for k, generator in enumerate(generators()):
        one = pipe(base=k + 1, noise_mode="random", generator=generator, output_type="pt").images
        torch.testing.assert_close(one[0], both[k], rtol=0, atol=1e-4)


def test_slices_and_dtypes(pipe: StyleFusionPipeline) -> None:
    whole = pipe(base=[1, 2, 3], output_type="pt").images
    pipe.enable_slicing()
    torch.testing.assert_close(pipe(base=[1, 2, 3], output_type="pt").images, whole, rtol=0, atol=1e-4)
    pipe.disable_slicing()
    half = mobile_pipeline().to(dtype=torch.bfloat16)
    assert float((half(base=1, output_type="pt").images[0].float() - whole[0]).abs().mean()) < 0.05


def test_interpolation(pipe: StyleFusionPipeline) -> None:
    walk = StyleFusionInterpolationPipeline.from_pipe(pipe)
    walk.set_progress_bar_config(disable=True)
    frames = np.stack([np.asarray(f) for f in walk(base=[1, 2], regions={"hair": [3, 4]}, frames=3).frames]).astype(
        int
    )
    ends = [numbers(pipe(base=k + 1, regions={"hair": k + 3}))[0] for k in range(2)]
    assert frames.shape == (3, 32, 32, 3)
    assert np.abs(frames[0] - ends[0]).max() <= 1 and np.abs(frames[-1] - ends[1]).max() <= 1


# --- Edits -----------------------------------------------------------------------------------------------------------


def test_rows_of_a_direction_move_their_layers_only(pipe: StyleFusionPipeline) -> None:
    g = pipe.generator
    direction = Direction("turn", "w", draw(W_DIM), layers=(1, 2))
    found = g.split_style(style_offsets(g, [direction.step(g)], "cpu"))
    assert {name for name, offset in found.items() if offset.any()} == {"conv1", "conv2", "conv3"}
    in_s = Direction("style", "s", draw(g.style_dim), layers=(5,)).step(g)
    assert {name for name, offset in g.split_style(in_s.tensor).items() if offset.any()} == {"rgb0"}
    convolutions = Direction("space", "s", draw(sum(g.conv_sizes))).step(g)  # as StyleSpace's, without toRGB
    assert convolutions.tensor.shape == (1, g.style_dim)
    with pytest.raises(ValueError, match="row 8 of w.: there are 0 to 7"):
        Direction("far", "w", draw(W_DIM), layers=(8,)).step(g)


def test_directions_are_found(pipe: StyleFusionPipeline, tmp_path: Path) -> None:
    g = pipe.generator
    found = [
        *sefa(g, count=2),
        *ganspace(g, count=1, samples=64),
        *ganspace(g, count=1, samples=64, space="features", resolution=8),
        style_channel(g, "rgb0", 2, samples=64),
    ]
    assert not torch.equal(found[0].tensor, sefa(g, count=1, layers=[0, 1])[0].tensor)
    plain = pipe(base=1).style_codes
    for direction in found:
        edited = pipe(base=1, edits={"all": direction(3.0)}).style_codes
        assert edited.shape == plain.shape and not torch.equal(edited, plain)
    with pytest.raises(ValueError, match="feature maps of 4, 8, 16 pixels, not 32"):
        ganspace(g, count=1, samples=64, space="features", resolution=32)
    named = [Direction(f"d{k}", d.space, d.tensor, d.scale) for k, d in enumerate(found)]
    save_directions(tmp_path / "found.safetensors", named)
    assert len(load_directions(tmp_path / "found.safetensors")) == 5


@pytest.mark.skipif("STYLEFUSION_FACES" not in os.environ, reason="STYLEFUSION_FACES does not name shared/faces")
def test_published_directions_of_18_rows(tmp_path: Path) -> None:
    """Of FFHQ's StyleGAN2, as they are."""
    source = Path(os.environ["STYLEFUSION_FACES"], "directions")
    g = MobileStyleGANGenerator(1024, channels=[4] * 8, mapping_layers=1).eval().requires_grad_(False)
    convert(source, tmp_path / "found", progress=False, overwrite=True)
    found = load_directions(tmp_path / "found/directions.safetensors")
    assert {"age", "smile", "pose"} <= set(found)
    for direction in found.values():
        offsets = style_offsets(g, [direction.step(g)], "cpu")
        assert offsets.shape == (1, g.style_dim) and offsets.any()


# --- Inversion -------------------------------------------------------------------------------------------------------


def test_inversion_finds_a_picture_of_the_generator(pipe: StyleFusionPipeline, tmp_path: Path) -> None:
    g = pipe.generator
    code = g.mapping(draw(1, W_DIM, seed=5))
    target = g.synthesis(g.to_style(code), noise_mode="none")
    inverter = StyleFusionInversionPipeline.from_pipe(pipe)
    inverter.set_progress_bar_config(disable=True)
    picture = Image.fromarray(target[0].clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy())

    def distance(steps: int) -> float:
        codes = inverter(picture, num_inference_steps=steps, start="mean").codes.tensor
        assert codes.shape == (1, NUM_WS, W_DIM)
        with torch.no_grad():
            found = g.synthesis(g.to_style(codes), noise_mode="none")
        return float((found.clamp(-1, 1) - target.clamp(-1, 1)).square().mean())

    assert distance(30) < 0.7 * distance(0)
    path = save_tuned(g, tmp_path)
    again = find_tuned({"model": {"sha256": {"generator": weights_sha256(g)}}}, tmp_path)
    assert path.is_dir() and isinstance(again, MobileStyleGANGenerator)


# --- Regions and training --------------------------------------------------------------------------------------------


def test_regions_are_discovered(pipe: StyleFusionPipeline) -> None:
    found = discover(pipe.generator, samples=16, clusters=6, num_regions=2, trials=2, progress=False)
    assert len(found.tree.leaves) == 2
    _, maps = pipe.generator.synthesis(draw(2, pipe.generator.style_dim), return_features=True)
    assert found.labeller(maps).logits.shape[1] == 2


# --- Files -----------------------------------------------------------------------------------------------------------


def small() -> StyleFusionPipeline:
    """8 px and few nets: an export takes about as long as it has operations."""
    generator = tiny_mobile_generator(resolution=16, channels=[8, 6])
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
    made = export(small(), tmp_path / "graphs", "onnx", only=("mapping", "synthesis"))  # the others are not its own
    assert {graph.name for graph in made} == {"mapping", "synthesis"}
    assert all(graph.error is not None and graph.error < 1e-3 for graph in made)


@pytest.mark.parametrize("command", [
    "fuse --base 1 --region hair=7 --out fused.png",
    "sheet --out sheet.png",
    "interpolate --base 1,2 --frames 2 --out walk.gif",
    "directions discover --method sefa --count 2 --out found.safetensors --sheet sheet.png",
    "render --random 3 --out shards",
    "regions discover --samples 24 --steps 2 --clusters 6 --num-regions 2 --out regions",
])  # fmt: skip
def test_commands(command: str, saved: Path, tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    code = main([*command.split(), "--model", str(saved)])
    captured = capsys.readouterr()
    assert code == 0, captured.err + captured.out
    assert any(tmp_path.iterdir())


def test_the_interface_is_what_pipelines_ask_for() -> None:
    for kind in (StyleFusionPipeline, StyleFusionInterpolationPipeline, StyleFusionInversionPipeline):
        assert kind.__init__.__annotations__["generator"] in (StyleGenerator, "StyleGenerator")


# --- Memory ----------------------------------------------------------------------------------------------------------


def test_large_pictures_are_segmented_a_few_at_a_time() -> None:
    """Maps of 16 pictures of 1024 px at once would take gigabytes."""
    sizes: list[int] = []

    class Segmenter:
        config = SimpleNamespace(regions=["left", "right"])

        def segment(self, images: torch.Tensor) -> torch.Tensor:
            sizes.append(len(images))
            return torch.stack([images[:, 0], -images[:, 0]], dim=1)

    images = draw(3, 3, 512, 512)
    masks = steps.segment(Segmenter(), images)
    assert sizes == [1, 1, 1]
    assert torch.equal(masks["left"], images[:, 0] >= 0) and masks["right"].shape == (3, 512, 512)
    sizes.clear()
    steps.segment(Segmenter(), draw(20, 3, 64, 64))
    steps.segment(Segmenter(), draw(3, 3, 64, 64), slice_size=2)
    assert sizes == [16, 4, 2, 1]
