"""What diffusers' own pipeline tests ask of a pipeline, for every pipeline class of the package.

A new class is a line in PIPELINES. What belongs to one class alone is in its own test file.
"""

import inspect
import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from PIL import Image

import stylefusion_hf
from stylefusion_hf import (
    Code,
    StyleFusionInterpolationPipeline,
    StyleFusionInversionPipeline,
    StyleFusionPhotoPipeline,
    StyleFusionPipeline,
)
from stylefusion_hf.hub.loading import HubMixin
from tests.devices import from_device, same, to_device
from tests.hub_server import HubServer
from tests.portraits import FIVE
from tests.tiny import STYLE_DIM, TinyEncoder, draw, tiny_pipeline

WEIGHTS = "diffusion_pytorch_model.safetensors"
PARTS = ("fusion", "generator", "segmenter")


@dataclass
class Specimen:
    """A class, a call of it, and calls of which the first gives what the others give one after the other."""

    kind: Any
    call: dict[str, Any]
    batch: dict[str, Any]
    singles: list[dict[str, Any]]
    drawn: dict[str, Any] = field(default_factory=dict)  # a call that draws from `generator`
    unused: str = "segmenter"  # a component without which this call gives the same


PHOTOS = draw(3, 3, 32, 32).sigmoid()  # pictures in [0, 1]
FACES = [Image.fromarray((p * 255).byte().permute(1, 2, 0).numpy()) for p in PHOTOS]
WHOLE = 0.16 * (FIVE - FIVE.mean(axis=0)) + [15.5, 16.9]  # landmarks whose square is about the whole picture
CHANGE = {"regions": {"hair": 7, "background": 3}, "num_inference_steps": 2}
PIPELINES = {
    "fuse": Specimen(
        StyleFusionPipeline,
        {"base": 1, "regions": {"hair": 7}},
        {"base": [1, 2, 3], "regions": {"hair": 7}},
        [{"base": seed, "regions": {"hair": 7}} for seed in (1, 2, 3)],
        {"regions": {"hair": 7}, "noise_mode": "random"},
    ),
    "interpolate": Specimen(
        StyleFusionInterpolationPipeline,
        {"base": 1, "regions": {"hair": [7, 8]}, "frames": 3},
        {"base": 1, "regions": {"hair": [7, 8]}, "frames": 3, "batch_size": 3},
        [{"base": 1, "regions": {"hair": [7, 8]}, "frames": 3, "batch_size": 1}],
        {"regions": {"hair": [7, 8]}, "frames": 3},
    ),
    "invert": Specimen(
        StyleFusionInversionPipeline,
        {"image": PHOTOS[:1], "num_inference_steps": 2},
        {"image": PHOTOS, "num_inference_steps": 2},
        [{"image": PHOTOS[i : i + 1], "num_inference_steps": 2} for i in range(3)],
        {"image": PHOTOS, "num_tuning_steps": 2},
        unused="fusion",
    ),
    "photograph": Specimen(
        StyleFusionPhotoPipeline,
        {"image": FACES[0], "landmarks": WHOLE, **CHANGE},
        {"image": FACES, "landmarks": [WHOLE] * 3, **CHANGE},
        [{"image": FACES[i], "landmarks": WHOLE, **CHANGE} for i in range(3)],
        {"image": FACES[0], "landmarks": WHOLE, **CHANGE, "num_inference_steps": 0, "num_tuning_steps": 3},
        unused="encoder",
    ),
}


@pytest.fixture(params=PIPELINES)
def specimen(request: pytest.FixtureRequest) -> Specimen:
    return PIPELINES[request.param]


@pytest.fixture
def pipe(specimen: Specimen) -> Any:
    return build(specimen)


def build(specimen: Specimen) -> Any:
    made = specimen.kind(**tiny_pipeline(segmenter=True).components)
    made.set_progress_bar_config(disable=True)
    return made


def run(pipe: Any, call: dict[str, Any], output_type: str = "pt") -> Any:
    """The first output: pictures."""
    return from_device(to_device(pipe)(**call, output_type=output_type, return_dict=False)[0])


def same_weights(a: Any, b: Any) -> bool:
    """Wherever they are: a model that has computed is on the device of the tests."""
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(from_device(x[key]), from_device(y[key])) for key in x)


def test_every_pipeline_class_is_here() -> None:
    exported = [getattr(stylefusion_hf, name) for name in stylefusion_hf.__all__]
    public = {kind for kind in exported if isinstance(kind, type) and issubclass(kind, DiffusionPipeline)}
    assert public | set(HubMixin.__subclasses__()) == {specimen.kind for specimen in PIPELINES.values()}


# ----------------------------------------------------------------------------------------------------
# Calls.


def test_output_types(specimen, pipe):
    pt, array, pil, latent = (run(pipe, specimen.batch, kind) for kind in ("pt", "np", "pil", "latent"))
    count = len(pil)
    assert pt.shape == (count, 3, 32, 32) and pt.dtype == torch.float32
    assert 0 <= pt.min() < pt.max() <= 1
    assert array.shape == (count, 32, 32, 3) and array.dtype == np.float32
    assert np.array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert all(isinstance(image, Image.Image) and image.size == (32, 32) for image in pil)
    assert np.array_equal(np.asarray(pil[-1]), (array[-1] * 255).round())
    assert latent.shape == (count, STYLE_DIM)
    for bad in ("jpg", None, ""):
        with pytest.raises(ValueError, match=f"unknown output_type {bad!r}: choose from pil, np, pt, latent"):
            pipe(**specimen.call, output_type=bad)


def test_the_same_each_time(specimen, pipe):
    first = run(pipe, specimen.call)
    assert same(run(pipe, specimen.call), first)
    assert same(run(build(specimen), specimen.call), first)

    def drawn(seed: int) -> torch.Tensor:
        return run(pipe, specimen.drawn | {"generator": torch.Generator().manual_seed(seed)})

    assert same(drawn(0), drawn(0))
    assert not same(drawn(0), drawn(1))


def test_a_sample_equals_its_single_run(specimen, pipe):
    found = torch.cat([run(pipe, single) for single in specimen.singles])
    batch = run(pipe, specimen.batch)
    if specimen.kind is StyleFusionPhotoPipeline:  # of whole levels: a rounding moves a pixel by one of them
        assert ((found - batch).abs() > 1e-4).float().mean() < 1e-3
        torch.testing.assert_close(found, batch, rtol=0, atol=1.01 / 255)
        return
    torch.testing.assert_close(found, batch, rtol=0, atol=1e-4)


def test_tuple_equals_output_class(specimen, pipe):
    output, parts = pipe(**specimen.call, output_type="np"), pipe(**specimen.call, output_type="np", return_dict=False)
    assert isinstance(output, BaseOutput) and isinstance(parts, tuple)
    for a, b in zip(output.to_tuple(), parts, strict=True):
        if isinstance(a, Code):
            a, b = a.tensor, b.tensor
        assert np.array_equal(a, b) if not isinstance(a, dict) else a == b


def test_unknown_arguments(specimen, pipe):
    with pytest.raises(TypeError, match="unknown_argument"):
        pipe(**specimen.call, unknown_argument=1)
    with pytest.raises(TypeError, match="unknown_argument"):
        specimen.kind(**pipe.components, unknown_argument=1)
    assert inspect.signature(type(pipe).__call__).parameters["return_dict"].default is True


def test_nothing_is_differentiated_or_switched(specimen, pipe):
    pipe.generator.train()
    before = {name: p.clone() for name, p in pipe.generator.state_dict().items()}
    found = pipe(**specimen.call, output_type="pt")
    assert not any(v.requires_grad for v in found.values() if isinstance(v, torch.Tensor))
    assert pipe.generator.training
    assert torch.is_grad_enabled()
    assert all(torch.equal(before[name], p) for name, p in pipe.generator.state_dict().items())
    to_device(pipe)  # what is moved in inference mode cannot be differentiated with ever after
    with torch.inference_mode():
        assert same(run(pipe, specimen.call), run(pipe, specimen.call))


def test_a_progress_bar_can_be_switched_off(specimen, pipe, capfd):
    run(pipe, specimen.call)
    assert capfd.readouterr().err == ""


# ----------------------------------------------------------------------------------------------------
# Components.


def test_components(specimen, pipe):
    names = set(inspect.signature(specimen.kind.__init__).parameters) - {"self"}
    assert set(pipe.components) == names
    again = specimen.kind(**pipe.components)
    assert all(again.components[name] is part for name, part in pipe.components.items())
    assert same(run(again, specimen.call), run(pipe, specimen.call))
    assert set(specimen.kind._optional_components) <= names
    assert set(specimen.kind.model_cpu_offload_seq.split("->")) == names


def test_optional_components(specimen, pipe, tmp_path):
    required = {name: part for name, part in pipe.components.items() if name not in pipe._optional_components}
    bare = specimen.kind(**required)
    bare.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"model_index.json", *required}
    loaded = specimen.kind.from_pretrained(tmp_path)
    assert all(loaded.components[name] is None for name in pipe._optional_components)
    assert same(run(loaded, specimen.call), run(bare, specimen.call))
    for name in required:
        with pytest.raises(ValueError, match=f"{name} must be a "):
            specimen.kind(**required | {name: None})
    pipe.save_pretrained(tmp_path / "all")
    assert specimen.kind.from_pretrained(tmp_path / "all", segmenter=None).segmenter is None
    encoder = TinyEncoder()
    assert specimen.kind.from_pretrained(tmp_path / "all", encoder=encoder).encoder is encoder


@pytest.mark.parametrize(("one", "other"), list(itertools.permutations(PIPELINES, 2)))
def test_one_pipeline_from_another(one, other, tmp_path):
    pipe, kind = build(PIPELINES[one]), PIPELINES[other].kind
    made = kind.from_pipe(pipe)
    assert type(made) is kind
    assert all(made.components[name] is part for name, part in pipe.components.items())
    unused = PIPELINES[one].unused
    back = type(pipe).from_pipe(made, **{unused: None})
    assert back.components[unused] is None and back.generator is pipe.generator
    assert same(run(back, PIPELINES[one].call), run(pipe, PIPELINES[one].call))
    pipe.save_pretrained(tmp_path)  # either loads what the other saved
    loaded = kind.from_pretrained(tmp_path)
    assert same_weights(loaded.fusion, pipe.fusion)
    assert isinstance(kind.from_pipe(loaded, dtype=torch.float16).generator, type(pipe.generator))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_a_dtype(specimen, pipe, dtype):
    expected = run(pipe, specimen.call)
    assert pipe.to(dtype) is pipe
    assert pipe.dtype == dtype
    assert {part.dtype for part in pipe.components.values() if part is not None} == {dtype}
    found = run(pipe, specimen.call)
    assert found.dtype == torch.float32 and found.isfinite().all()
    assert (found - expected).abs().mean() < 0.05


def test_to_a_device(specimen, pipe):
    assert pipe.to("cpu").device == torch.device("cpu")
    assert pipe.to(device="meta").device.type == "meta"
    if torch.cuda.is_available():
        there = build(specimen).to("cuda")
        assert {part.device.type for part in there.components.values() if part is not None} == {"cuda"}
        expected = run(build(specimen), specimen.call)
        assert (run(there, specimen.call).cpu() - expected).abs().max() < 1 / 128
        offloaded = build(specimen)
        offloaded.enable_model_cpu_offload()
        assert (run(offloaded, specimen.call).cpu() - expected).abs().max() < 1 / 128


# ----------------------------------------------------------------------------------------------------
# Saving and loading.


def test_save_and_load(specimen, pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["_class_name"] == specimen.kind.__name__
    assert {name: index[name][0] for name in PARTS} == dict.fromkeys(PARTS, "stylefusion_hf")
    assert index["encoder"] == [None, None]
    loaded = specimen.kind.from_pretrained(tmp_path)
    loaded.set_progress_bar_config(disable=True)
    assert same(run(loaded, specimen.call), run(pipe, specimen.call))
    assert not any(loaded.components[name].training for name in PARTS)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(files) == 7
    assert all((again / file).read_bytes() == (tmp_path / file).read_bytes() for file in files)
    assert DiffusionPipeline.load_config(tmp_path)["_class_name"] == specimen.kind.__name__


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_load_in_a_dtype(specimen, pipe, tmp_path, dtype):
    pipe.save_pretrained(tmp_path)
    loaded = specimen.kind.from_pretrained(tmp_path, dtype=dtype)
    assert {part.dtype for part in loaded.components.values() if part is not None} == {dtype}
    assert same(run(loaded, specimen.call), run(pipe.to(dtype), specimen.call))
    mixed = specimen.kind.from_pretrained(tmp_path, dtype={"fusion": dtype, "default": torch.float32})
    assert (mixed.fusion.dtype, mixed.generator.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("max_shard_size", [None, "3KB"])
def test_variants_and_shards(specimen, pipe, tmp_path, variant, max_shard_size):
    pipe.save_pretrained(tmp_path, variant=variant, max_shard_size=max_shard_size)
    dot = f".{variant}" if variant else ""
    for name in PARTS:
        sharded = (tmp_path / name / f"{WEIGHTS}.index{dot}.json").is_file()
        assert sharded is (max_shard_size is not None)
        assert len(list((tmp_path / name).glob(f"*model{dot}*.safetensors"))) > 1 if sharded else True
    loaded = specimen.kind.from_pretrained(tmp_path, variant=variant)
    assert all(same_weights(loaded.components[name], pipe.components[name]) for name in PARTS)
    with pytest.raises(ValueError, match="has weights of the variant 'ema'"):
        specimen.kind.from_pretrained(tmp_path, variant="ema")


def test_compiled_components_are_saved_as_they_were(specimen, pipe, tmp_path):
    expected = run(pipe, specimen.call)
    pipe.generator = torch.compile(pipe.generator, backend="eager")
    pipe.save_pretrained(tmp_path)
    loaded = specimen.kind.from_pretrained(tmp_path)
    assert type(loaded.generator) is stylefusion_hf.StyleGAN2Generator
    assert same(run(loaded, specimen.call), expected)


def test_through_the_hub(hub: HubServer, specimen, pipe, tmp_path: Path):
    pipe.push_to_hub("me/pipe")
    loaded = specimen.kind.from_pretrained("me/pipe", cache_dir=tmp_path)
    assert same(run(loaded, specimen.call), run(pipe, specimen.call))
    trusted = DiffusionPipeline.from_pretrained("me/pipe", cache_dir=tmp_path, trust_remote_code=True)
    assert type(trusted) is specimen.kind
    assert same(run(trusted, specimen.call), run(pipe, specimen.call))
