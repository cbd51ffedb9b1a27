"""Options of from_pretrained that these models answer in one line."""

from __future__ import annotations

import pytest
import torch

from stylefusion_hf import StyleFusionPipeline, StyleGAN2Generator
from tests.tiny import tiny_generator, tiny_pipeline


def test_pickles_are_named_with_the_way_to_load_them(tmp_path):
    generator = tiny_generator()
    generator.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match=r"only diffusion_pytorch_model\.bin, a pickle.*use_safetensors=False"):
        StyleGAN2Generator.from_pretrained(tmp_path)
    loaded = StyleGAN2Generator.from_pretrained(tmp_path, use_safetensors=False)
    assert torch.equal(loaded.affine_weight, generator.affine_weight)


def test_pickles_of_a_pipeline(tmp_path):
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(OSError, match=r"diffusion_pytorch_model\.bin, a pickle.*use_safetensors=False"):
        StyleFusionPipeline.from_pretrained(tmp_path)
    loaded = StyleFusionPipeline.from_pretrained(tmp_path, use_safetensors=False)
    assert torch.equal(loaded(base=1, output_type="pt").images, pipe(base=1, output_type="pt").images)


@pytest.mark.parametrize("device_map", ["auto", "sequential", "balanced_low_0", ""])
def test_strategies_for_several_devices_are_refused(device_map, tmp_path):
    tiny_generator().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"device_map=.* is not supported, only a device or a dict"):
        StyleGAN2Generator.from_pretrained(tmp_path, device_map=device_map)
    with pytest.raises(ValueError, match=r"device_map=.* is not supported, only 'balanced', a device"):
        StyleFusionPipeline.from_pretrained(tmp_path, device_map=device_map)


@pytest.mark.parametrize("device_map", ["cpu", torch.device("cpu"), {"": "cpu"}])
def test_a_device_as_map(device_map, tmp_path):
    tiny_generator().save_pretrained(tmp_path)
    assert StyleGAN2Generator.from_pretrained(tmp_path, device_map=device_map).device == torch.device("cpu")
    tiny_pipeline().save_pretrained(tmp_path / "pipe")
    if isinstance(device_map, dict):
        with pytest.raises(ValueError, match=r"device_map=\{'': 'cpu'\} is not supported, only 'balanced', a device:"):
            StyleFusionPipeline.from_pretrained(tmp_path / "pipe", device_map=device_map)
    else:
        loaded = StyleFusionPipeline.from_pretrained(tmp_path / "pipe", device_map=device_map)
        assert loaded.device == torch.device("cpu")


@pytest.mark.parametrize(
    "device_map", ["cuda", torch.device("cuda"), 7, 1.5, {"": "moon"}, {"generator": "cpu"}, True]
)
def test_maps_that_cannot_be_used_are_one_line(device_map, tmp_path):
    if torch.cuda.is_available() and str(device_map) == "cuda":
        pytest.skip("this machine has CUDA")
    tiny_pipeline().save_pretrained(tmp_path)
    for load in (
        lambda: StyleGAN2Generator.from_pretrained(tmp_path, subfolder="generator", device_map=device_map),
        lambda: StyleFusionPipeline.from_pretrained(tmp_path, device_map=device_map),
    ):
        with pytest.raises(ValueError, match=r"^device_map=") as caught:
            load()
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_pickles_are_named_and_nothing_else_is_said(variant, tmp_path, capfd, caplog):
    tiny_pipeline().save_pretrained(tmp_path, safe_serialization=False, variant=variant)
    for load in (
        lambda: StyleFusionPipeline.from_pretrained(tmp_path, variant=variant),
        lambda: StyleGAN2Generator.from_pretrained(tmp_path, subfolder="generator", variant=variant),
    ):
        with pytest.raises(
            OSError, match=r"only diffusion_pytorch_model(\.fp16)?\.bin, a pickle.*use_safetensors=False"
        ):
            load()
    assert capfd.readouterr().err == "" and not caplog.records
    assert StyleFusionPipeline.from_pretrained(tmp_path, variant=variant, use_safetensors=False).generator is not None
