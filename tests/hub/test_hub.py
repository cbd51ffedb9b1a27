"""Pipelines from folders; those from a Hub are in test_hub_download.py."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from stylefusion_hf import StyleFusionPipeline
from stylefusion_hf.hub import loading as hub
from stylefusion_hf.models.loading import weights_sha256
from tests.tiny import TinyEncoder, tiny_fusion, tiny_pipeline, tiny_segmenter

CALL: dict[str, Any] = {"base": 1, "regions": {"hair": 7}, "output_type": "pt"}
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def saved(tmp_path) -> Path:
    """A pipeline folder with a segmenter, in float32 and fp16."""
    folder = tmp_path / "saved"
    pipe = tiny_pipeline(segmenter=True)
    pipe.save_pretrained(folder)
    pipe.to(dtype=torch.float16).save_pretrained(folder, variant="fp16")
    return folder


def re_exporting(folder: Path) -> Path:
    """As published repositories are: with files that let plain diffusers load them, which here fail if they run."""
    config = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(config | {"_class_name": ["pipeline", "StyleFusionPipeline"]}))
    (folder / "pipeline.py").write_text("raise RuntimeError('foreign code was run')")
    for name in ("generator", "fusion", "segmenter"):
        (folder / name / "stylefusion_hf.py").write_text("raise RuntimeError('foreign code was run')")
    return folder


# ----------------------------------------------------------------------------------------------------
# Folders.


def test_a_component_that_is_passed_must_fit(saved):
    with pytest.raises(ValueError, match="generator's conv_sizes"):
        StyleFusionPipeline.from_pretrained(saved, generator=tiny_pipeline(channels=[8, 8, 8, 4]).generator)


@pytest.mark.parametrize("foreign", [False, True])
def test_variants_and_dtypes(saved, foreign):
    if foreign:
        re_exporting(saved)
    half = StyleFusionPipeline.from_pretrained(saved, variant="fp16", dtype=torch.float16)
    assert {half.generator.dtype, half.fusion.dtype, half.segmenter.dtype} == {torch.float16}
    assert half.dtype == torch.float16
    (saved / "generator" / WEIGHTS).unlink()
    assert torch.equal(
        StyleFusionPipeline.from_pretrained(saved, variant="fp16")(**CALL).images,
        half.to(dtype=torch.float32)(**CALL).images,
    )
    with pytest.raises(OSError, match=f"StyleGAN2Generator cannot be loaded.*generator: there is no {WEIGHTS}"):
        StyleFusionPipeline.from_pretrained(saved)
    mixed = StyleFusionPipeline.from_pretrained(saved, variant="fp16", dtype={"fusion": torch.bfloat16})
    assert (mixed.generator.dtype, mixed.fusion.dtype) == (torch.float32, torch.bfloat16)
    with pytest.raises(ValueError, match=r"no component in .* has weights of the variant 'ema'"):
        StyleFusionPipeline.from_pretrained(saved, variant="ema")


def test_foreign_code_is_not_run(saved):
    expected = tiny_pipeline()(**CALL).images
    assert torch.equal(StyleFusionPipeline.from_pretrained(re_exporting(saved))(**CALL).images, expected)


def test_nothing_that_is_saved_has_a_local_path(saved, tmp_path):
    loaded = StyleFusionPipeline.from_pretrained(saved)
    loaded.save_pretrained(tmp_path / "again")
    texts = [path.read_text() for path in (tmp_path / "again").rglob("*.json")]
    assert len(texts) == 4
    assert not any("_name_or_path" in text or str(tmp_path) in text for text in texts)
    assert loaded.config["_name_or_path"] == str(saved)  # but in memory
    assert loaded.generator.config["_name_or_path"] == str(saved / "generator")
    recipe = loaded(base=1).recipe
    assert recipe["model"]["name"] == "saved"
    assert str(tmp_path) not in json.dumps(recipe)


def remove(path: str):
    def damage(folder: Path) -> None:
        target = folder / path
        shutil.rmtree(target) if target.is_dir() else target.unlink()

    return damage


def truncate(folder: Path) -> None:
    file = folder / "fusion" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-50])


def drop_net(folder: Path) -> None:
    file = folder / "fusion" / WEIGHTS
    save_file({k: v for k, v in load_file(file).items() if "net_face" not in k}, file, metadata={"format": "pt"})


def edit_index(**changes):
    def damage(folder: Path) -> None:
        index = json.loads((folder / "model_index.json").read_text())
        (folder / "model_index.json").write_text(json.dumps(index | changes))

    return damage


def odd_resolution(folder: Path) -> None:
    config = json.loads((folder / "generator" / "config.json").read_text())
    (folder / "generator" / "config.json").write_text(json.dumps(config | {"resolution": 33}))


DAMAGED = {
    "no index": (remove("model_index.json"), OSError, "saved is not a pipeline folder: it has no model_index.json"),
    "index is no JSON": (
        lambda f: (f / "model_index.json").write_text("{"),
        OSError,
        "model_index.json' is not a valid",
    ),
    "index is a list": (
        lambda f: (f / "model_index.json").write_text("[]"),
        OSError,
        "must be a JSON object, found list",
    ),
    "component is missing": (
        remove("fusion"),
        OSError,
        "the component 'fusion' is listed .*saved/fusion has no config",
    ),
    "optional one is missing": (remove("segmenter"), OSError, "the component 'segmenter' is listed"),
    "component is not listed": (
        edit_index(fusion=[None, None]),
        OSError,
        "lists no 'fusion', which StyleFusionPipeline",
    ),
    "unknown class": (edit_index(fusion=["stylefusion_hf", "Fusor"]), ValueError, "has no class `Fusor`"),
    "no weights": (remove(f"generator/{WEIGHTS}"), OSError, f"saved/generator: there is no {WEIGHTS}"),
    "truncated": (
        truncate,
        OSError,
        "FusionHierarchy cannot be loaded from .*saved/fusion: its weights are truncated",
    ),
    "a missing net": (drop_net, ValueError, "saved/fusion is incomplete: its tree .* are missing or incomplete: face"),
    "odd resolution": (odd_resolution, ValueError, "resolution must be a power of two between 4 and 16384, got 33"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_folders(saved, case):
    damage, kind, message = DAMAGED[case]
    damage(saved)
    with pytest.raises(kind, match=message):
        StyleFusionPipeline.from_pretrained(saved)
    assert torch.get_default_dtype() == torch.float32


def test_pipes_share_components(saved):
    pipe = StyleFusionPipeline.from_pretrained(saved, dtype=torch.float16)
    other = StyleFusionPipeline.from_pipe(pipe)
    assert all(other.components[name] is module for name, module in pipe.components.items())
    assert other.dtype == torch.float16
    assert other.config["_name_or_path"] == str(saved)
    encoder = TinyEncoder()
    assert StyleFusionPipeline.from_pipe(pipe, segmenter=None, encoder=encoder).encoder is encoder
    assert StyleFusionPipeline.from_pipe(pipe, dtype=torch.float32).generator.dtype == torch.float32
    assert StyleFusionPipeline(**pipe.components).fusion is pipe.fusion
    assert pipe.to("cpu").device.type == "cpu"


def test_the_embedded_model(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "_assets", lambda: saved)
    pipe = StyleFusionPipeline.from_embedded(segmenter=None)
    assert pipe.segmenter is None
    assert pipe(base=1).recipe["model"]["name"] == "embedded"
    monkeypatch.setattr(hub, "_assets", lambda: tmp_path)
    with pytest.raises(OSError, match=r"no embedded model: .*model_index\.json is missing"):
        StyleFusionPipeline.from_embedded()


@pytest.mark.parametrize(
    ("name", "public"),
    [
        (None, None),
        ("someone/avatars", "someone/avatars"),
        ("avatars", "avatars"),
        ("/home/me/avatars", "avatars"),
        ("/home/me/avatars/", "avatars"),
        ("./avatars", "avatars"),
        ("a/b/avatars", "avatars"),
        ("..", ".."),
        ("C:\\Users\\me\\avatars", "avatars"),
    ],
)
def test_names_that_recipes_give(name, public):
    pipe = tiny_pipeline()
    if name is not None:
        pipe.register_to_config(_name_or_path=name)
    assert pipe.model_identity()["name"] == public


def test_hashes_follow_the_weights():
    pipe = tiny_pipeline()
    first = pipe.model_identity()["sha256"]
    assert first["generator"] == weights_sha256(pipe.generator)
    known = pipe.__dict__["_known_sha256"]["generator"]
    assert pipe.model_identity()["sha256"] == first
    assert pipe.__dict__["_known_sha256"]["generator"] is known  # not hashed again
    with torch.no_grad():
        next(pipe.fusion.parameters()).add_(1)
    second = pipe.model_identity()["sha256"]
    assert second["generator"] == first["generator"]
    assert second["fusion"] != first["fusion"]
    pipe.register_modules(fusion=tiny_fusion(pipe.generator))
    assert pipe.model_identity()["sha256"] == first
    assert weights_sha256(tiny_segmenter(seed=1)) != weights_sha256(tiny_segmenter(seed=2))
