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


def test_a_device_as_map(tmp_path):
    tiny_generator().save_pretrained(tmp_path)
    assert StyleGAN2Generator.from_pretrained(tmp_path, device_map="cpu").device == torch.device("cpu")
