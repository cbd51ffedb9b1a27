"""FusionHierarchy and StrictModelMixin: saving, and loading of whole, incomplete and damaged checkpoints."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from tests.models.test_fusion import ODD, draw_codes, small


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_round_trip(tmp_path, dtype):
    fusion = small("all*(half*(mouth, skin), hair)", **ODD, gate_bias=True, pooling="mean")
    fusion.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert RegionTree.from_dict(config["tree"]) == fusion.tree
    loaded = FusionHierarchy.from_pretrained(tmp_path, dtype=dtype)
    codes = draw_codes(fusion)
    assert loaded.dtype == (dtype or torch.float32)
    assert torch.get_default_dtype() == torch.float32
    expected = fusion.to(loaded.dtype).fuse(codes)
    assert torch.equal(loaded.fuse(codes), expected)
    assert FusionHierarchy.from_config(loaded.config).tree == fusion.tree
    assert FusionHierarchy.__module__ == "stylefusion_hf"


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_missing_nets_are_named(tmp_path, low_cpu_mem_usage):
    fusion = small()
    fusion.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "net_face" not in k}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"incomplete.*missing or incomplete: face\.") as error:
        FusionHierarchy.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_weights_of_another_shape(tmp_path, low_cpu_mem_usage):
    small().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_width": 25}))
    with pytest.raises(ValueError, match=r"do not fit FusionHierarchy's config\.json"):
        FusionHierarchy.from_pretrained(tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)


@pytest.mark.parametrize("keep", [0, 5, 200, -100])
def test_truncated_weights(tmp_path, keep):
    small().save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(OSError, match=r"FusionHierarchy cannot be loaded.*truncated") as error:
        FusionHierarchy.from_pretrained(tmp_path)
    assert file.name in str(error.value)


@pytest.mark.parametrize("name", ["diffusion_pytorch_model.safetensors", "config.json"])
def test_missing_file(tmp_path, name):
    small().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(OSError, match="FusionHierarchy cannot be loaded from"):
        FusionHierarchy.from_pretrained(tmp_path)


def test_failed_load_leaves_the_default_dtype(tmp_path):
    small().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"pooling": "median"}))
    with pytest.raises(ValueError, match="pooling='median' must be one of max, mean"):
        FusionHierarchy.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.get_default_dtype() == torch.float32


def test_missing_shard(tmp_path):
    small().save_pretrained(tmp_path, max_shard_size="10KB")
    next(tmp_path.glob("*-00002-of-*")).unlink()
    with pytest.raises(OSError, match=r"FusionHierarchy cannot be loaded from.*00002-of"):
        FusionHierarchy.from_pretrained(tmp_path)


def test_loading_info_is_still_to_be_had(tmp_path):
    small(RegionTree.preset("church")).save_pretrained(tmp_path)
    fusion, info = FusionHierarchy.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(fusion, FusionHierarchy)
    assert not info["missing_keys"]
