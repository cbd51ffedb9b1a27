"""Offloading and layerwise casting, for every use of the pipelines, on the device of tests/fake_device.py."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from stylefusion_hf import StyleFusionPipeline, StyleGenerator
from stylefusion_hf.models.hooks import execution_device, has_hooks, plain_copy
from tests.offloading import MODES, USES
from tests.tiny import TinyEncoder, tiny_fusion, tiny_generator, tiny_mobile_generator, tiny_pipeline, tiny_segmenter

python_backend = pytest.mark.skipif(
    not hasattr(torch.utils.backend_registration, "_setup_privateuseone_for_python_backend"),
    reason="this torch takes no devices written in Python",
)


@pytest.fixture(scope="module")
def table() -> dict:
    command = [
        sys.executable,
        "-m",
        "tests.offloading",
        "--small",
    ]  # a process of its own: the device stays registered
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@python_backend
@pytest.mark.parametrize("mode", list(MODES)[1:])
def test_every_use_of_the_pipelines_gives_what_it_gives_without(table, mode):
    found = table["StyleGAN2"][mode]
    assert set(USES) - set(found) == {"walk in z", "inversion in s"}
    wrong = {use: value for use, value in found.items() if use in USES and (isinstance(value, str) or value > 1e-4)}
    assert not wrong
    assert not found["left"]  # on the device
    assert found["same weights"]


@python_backend
@pytest.mark.parametrize("kind", ["MobileStyleGAN", "StyleGAN3", "with labels"])
def test_other_generators(table, kind):
    for found in table[kind].values():
        assert not {use: v for use, v in found.items() if use in USES and (isinstance(v, str) or v > 1e-4)}


@pytest.mark.parametrize("mode", ["leaf_level", "block_level"])
def test_offloaded_models_have_an_identity_and_save(mode, tmp_path):
    pipe = tiny_pipeline(segmenter=True)
    expected, digests = pipe(base=1, output_type="pt").images, pipe.model_identity()["sha256"]
    pipe.enable_group_offload(torch.device("cpu"), offload_type=mode, num_blocks_per_group=1)
    out = pipe(base=1, output_type="pt")
    assert torch.equal(out.images, expected)
    assert out.recipe["model"]["sha256"] == digests
    assert torch.equal(pipe.from_recipe(out.recipe, output_type="pt").images, expected)
    pipe.save_pretrained(tmp_path / "saved")
    again = StyleFusionPipeline.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(base=1, output_type="pt").images, expected)


@pytest.mark.parametrize("make", [tiny_generator, tiny_mobile_generator])
def test_casting_rounds_the_weights_and_saves_what_it_computes_with(make, tmp_path):
    generator, w = make(), torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    plain = generator(w, latent_type="w").sample
    generator.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    weights = dict(generator.named_parameters())
    assert {p.dtype for p in weights.values() if p.ndim > 1} == {torch.float8_e4m3fn}
    assert {p.dtype for p in weights.values() if p.ndim < 2} == {torch.float32}
    assert generator.dtype == torch.float32
    rounded = generator(w, latent_type="w").sample
    assert not torch.equal(rounded, plain)
    assert torch.equal(generator.synthesis(generator.to_style(w)), rounded)
    generator.save_pretrained(tmp_path)
    assert torch.equal(StyleGenerator.from_pretrained(tmp_path)(w, latent_type="w").sample, rounded)


def test_casting_skips_what_it_is_told_to():
    generator = tiny_generator()
    generator.enable_layerwise_casting(
        storage_dtype=torch.float8_e4m3fn, skip_modules_pattern=("mapping",), skip_modules_classes=(StyleGenerator,)
    )
    kept = {name for name, p in generator.named_parameters() if p.ndim > 1 and p.dtype == torch.float32}
    assert kept == {"affine_weight", "mapping.layers.0.weight", "mapping.layers.1.weight"}


def test_a_plain_copy_has_no_hooks_and_its_own_weights():
    generator = tiny_generator()
    generator.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    copied = plain_copy(generator)
    assert has_hooks(generator)
    assert not has_hooks(copied)
    assert execution_device(copied) == torch.device("cpu")
    assert copied.affine_weight.data_ptr() != generator.affine_weight.data_ptr()
    s = torch.randn(1, generator.style_dim)
    assert torch.equal(copied.synthesis(s), generator.synthesis(s))


def test_what_cannot_be_offloaded_is_refused_at_once():
    generator = tiny_generator()
    pipe = StyleFusionPipeline(generator, tiny_fusion(generator), tiny_segmenter(), TinyEncoder())
    with pytest.raises(ValueError, match=r"the encoder is a TinyEncoder.*enable_model_cpu_offload"):
        pipe.enable_sequential_cpu_offload(device="cpu")
    with pytest.raises(ValueError, match="the encoder is a TinyEncoder"):
        pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(ValueError, match="leave use_stream out"):
        pipe.enable_group_offload(torch.device("cpu"), use_stream=True, exclude_modules="encoder")
    with pytest.raises(ValueError, match="leave it out"):
        generator.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", use_stream=True)
    with pytest.raises(ValueError, match="offload_to_disk_path is not supported"):
        pipe.enable_group_offload(torch.device("cpu"), offload_to_disk_path="x", exclude_modules="encoder")
    with pytest.raises(ValueError, match="offload_to_disk_path is not supported"):
        generator.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", offload_to_disk_path="x")
    assert not any(has_hooks(part) for part in pipe.components.values())
    pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level", exclude_modules="encoder")
    assert pipe(base=1).images
