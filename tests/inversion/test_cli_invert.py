"""`stylefusion invert`, and pictures as codes of `fuse` and `interpolate`: what is written, what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stylefusion_hf import Code, StyleFusionInversionPipeline, StyleFusionPipeline
from stylefusion_hf.cli import main
from stylefusion_hf.core.code_files import load_codes, pick_code, save_codes
from stylefusion_hf.core.files import RECIPE_KEY
from tests.command_line import fails
from tests.inversion.test_inversion import pil
from tests.tiny import NUM_WS, RESOLUTION, W_DIM, draw, tiny_encoder, tiny_generator, tiny_pipeline

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    pipe = tiny_pipeline(segmenter=True)
    StyleFusionPipeline(pipe.generator, pipe.fusion, pipe.segmenter, tiny_encoder()).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """a.png and b.png in the folder that commands run in."""
    g = tiny_generator()
    with torch.no_grad():
        images = g.synthesis(g.to_style(g.mapping(draw(2, W_DIM, seed=8))), noise_mode="none")
    for name, image in zip("ab", images, strict=True):
        pil(image).save(tmp_path / f"{name}.png")
    return tmp_path


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def recipe(path: str | Path) -> dict:
    with Image.open(path) as image:
        image.load()
        return json.loads(image.info[RECIPE_KEY])


# ----------------------------------------------------------------------------------------------------
# invert


def test_invert_writes_codes_pictures_and_figures(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["invert", "a.png", "b.png", "--model", model, "--optimize", "3", "--out", "found"]) == 0
    said = capsys.readouterr().out
    assert "codes.safetensors (2 codes in w+)" in said and "MSE" in said
    codes = load_codes("found/codes.safetensors")
    assert list(codes) == ["a", "b"]
    assert codes["a"].space == "w+" and codes["a"].tensor.shape == (1, NUM_WS, W_DIM)
    figures = json.loads(Path("found/figures.json").read_text())
    assert figures["b"]["steps"] == 3 and figures["a"]["mse"] > 0
    # The reconstruction carries a recipe that makes it again.
    assert main(["fuse", "--model", model, "--from-recipe", "found/a.png", "--out", "again.png"]) == 0
    assert np.abs(pixels("again.png") - pixels("found/a.png")).max() <= 1
    capsys.readouterr()


def test_a_code_of_a_file_is_a_code_everywhere(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invert", ".", "--model", model, "--space", "w", "--out", "found"]) == 0
    codes = "found/codes.safetensors"
    call = ["--base", f"{codes}:a", "--region", f"hair={codes}:b", "--region", "eyes=3"]
    assert main(["fuse", "--model", model, *call, "--out", "mixed.png"]) == 0
    made = recipe("mixed.png")
    assert made["base"]["space"] == "w" and made["regions"]["eyes"] == 3
    assert json.loads(Path("mixed.json").read_text()) == made
    walk = ["--base", "1", "--region", f"hair={codes}:a,{codes}:b", "--frames", "3", "--out", "frames"]
    assert main(["interpolate", "--model", model, *walk]) == 0
    assert len(list(Path("frames").glob("*.png"))) == 3
    capsys.readouterr()


def test_a_model_of_a_generator_alone_can_be_inverted(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_generator().save_pretrained("alone/generator")
    Path("alone/model_index.json").write_text(
        json.dumps(
            {"_class_name": "StyleFusionInversionPipeline", "generator": ["stylefusion_hf", "StyleGAN2Generator"]}
        )
    )
    assert main(["invert", "a.png", "--model", "alone", "--optimize", "2", "--fit", "pad", "--out", "found"]) == 0
    assert load_codes("found/codes.safetensors")["a"].space == "w+"
    with Image.open("found/a.png") as image:
        assert image.size == (RESOLUTION, RESOLUTION) and RECIPE_KEY not in image.info
    capsys.readouterr()


def test_masks_and_weights_reach_the_loss(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    half = np.zeros((RESOLUTION, RESOLUTION), np.uint8)
    half[:, : RESOLUTION // 2] = 255
    Image.fromarray(half).save("mask.png")
    run = ["invert", "a.png", "--model", model, "--optimize", "3", "--out"]
    assert main([*run, "plain"]) == main([*run, "masked", "--mask", "mask.png"]) == 0
    assert main([*run, "weighed", "--region-weight", "hair=5"]) == 0
    found = [load_codes(f"{name}/codes.safetensors")["a"].tensor for name in ("plain", "masked", "weighed")]
    assert not torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
    capsys.readouterr()


# ----------------------------------------------------------------------------------------------------
# Pictures as codes of fuse


def test_a_mix_of_pictures_and_seeds_comes_back_from_its_recipe(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--base", "b.png", "--region", "hair=a.png", "--region", "clothes=7", "--out", "mixes/mixed.png"]
    assert main(["fuse", "--model", model, *call]) == 0
    made = recipe("mixes/mixed.png")
    assert made["regions"]["hair"]["space"] == "w+" and made["regions"]["clothes"] == 7
    assert json.loads(Path("mixes/mixed.json").read_text()) == made
    for source in ("mixes/mixed.png", "mixes/mixed.json"):
        assert main(["fuse", "--model", model, "--from-recipe", source, "--out", "again.png"]) == 0
        assert np.array_equal(pixels("again.png"), pixels("mixes/mixed.png"))
    assert not Path("again.json").exists()
    capsys.readouterr()


def test_a_tuned_generator_travels_with_the_recipe(
    model: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = ["--base", "b.png", "--region", "hair=a.png", "--optimize", "2", "--tune", "3", "--out", "mixes/mixed.png"]
    assert main(["fuse", "--model", model, *call]) == 0
    said = capsys.readouterr().out
    sha256 = recipe("mixes/mixed.png")["model"]["sha256"]["generator"]
    folder = Path("mixes", f"generator-{sha256[:16]}")
    assert "inverted 2 pictures" in said and folder.is_dir() and folder.name in said
    again = ["fuse", "--model", model, "--from-recipe", "mixes/mixed.json", "--out", "again.png"]
    assert main(again) == 0
    assert np.array_equal(pixels("again.png"), pixels("mixes/mixed.png"))
    assert main([*again, "--generator", str(folder)]) == 0
    # Without that folder the recipe is refused, with another one's weights too.
    folder.rename("mixes/elsewhere")
    assert "generator have other weights" in fails(capsys, *again)
    tiny_generator(seed=5).save_pretrained(folder)
    assert "holds other weights than the recipe's generator" in fails(capsys, *again)


def test_several_pictures_are_inverted_together(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    walk = ["--base", "1", "--region", "hair=a.png,b.png", "--frames", "3", "--optimize", "2", "--out", "frames"]
    assert main(["interpolate", "--model", model, *walk]) == 0
    assert "inverted 2 pictures" in capsys.readouterr().out
    assert len(list(Path("frames").glob("*.png"))) == 3


# ----------------------------------------------------------------------------------------------------
# Refusals


def test_a_folder_of_large_pictures_is_inverted_in_groups(
    model: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only so many fit in memory; each has the codes of a call for all."""
    arguments = ["invert", "a.png", "b.png", "--model", model, "--optimize", "2", "--batch-size", "1", "--out"]
    assert main([*arguments, "together"]) == 0
    counts: list[int] = []
    call = StyleFusionInversionPipeline.__call__

    def counted(pipe: Any, images: Any, **settings: Any) -> Any:
        counts.append(len(images))
        return call(pipe, images, **settings)

    monkeypatch.setattr(StyleFusionInversionPipeline, "__call__", counted)
    monkeypatch.setattr("stylefusion_hf.cli.invert.PIXELS", RESOLUTION**2)
    assert main([*arguments, "apart"]) == 0
    assert counts == [1, 1]
    codes = [load_codes(Path(folder, "codes.safetensors")) for folder in ("together", "apart")]
    assert list(codes[0]) == list(codes[1]) == ["a", "b"]
    assert all(torch.equal(codes[0][name].tensor, codes[1][name].tensor) for name in "ab")
    figures = [Path(folder, "figures.json").read_text() for folder in ("together", "apart")]
    assert figures[0] == figures[1] and pixels("together/b.png").tolist() == pixels("apart/b.png").tolist()
    assert main([*arguments, "tuned", "--tune", "1"]) == 0
    assert counts == [1, 1, 2]  # they share a generator


def test_what_cannot_be_inverted_is_one_line(model: str, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("notes.txt").write_text("no picture")
    Image.new("RGB", (64, 48)).save("wide.png")
    (photos / "more").mkdir()
    Image.new("RGB", (64, 64)).save("more/a.png")
    (photos / "none").mkdir()
    cases = {
        ("invert", "missing.png"): "missing.png",
        ("invert", "notes.txt"): "notes.txt",
        ("invert", "none"): "no pictures in none",
        ("invert", "wide.png"): "wide.png is 64 x 48 pixels, and the model takes squares",
        ("invert", "a.png", "more/a.png"): "a.png and more/a.png would both be called a",
        ("invert", "a.png", "--optimize", "-1"): "'-1' is not an integer from 0",
        ("invert", "a.png", "--prior", "1"): "--prior only affects optimization: give --optimize STEPS too",
        ("invert", "a.png", "--region-weight", "beard=2"): "no region 'beard'",
        ("invert", "a.png", "--region-weight", "hair"): "expected NAME=VALUE",
        ("invert", "a.png", "--mask", "notes.txt"): "notes.txt",
        ("invert", "a.png", "--out", "notes.txt"): "notes.txt is a file, not a folder",
        ("invert", "a.png", "--generator", "more"): "more",
        ("fuse", "--base", "1", "--tune", "3"): "no code is a picture file, so --optimize",
        ("fuse", "--base", "1", "--from-recipe", "a.png", "--tune", "3"): "leave out --base, --tune",
        ("fuse", "--base", "wide.png"): "and the model takes squares",
        ("fuse", "--base", "nothing.safetensors:a"): "nothing.safetensors",
    }
    for argv, message in cases.items():
        assert message in fails(capsys, *argv, "--model", model), argv
    assert main(["fuse", "--model", model, "--base", "wide.png", "--fit", "crop", "--out", "cropped.png"]) == 0


def test_files_of_codes_that_are_none(photos: Path) -> None:
    codes = {"a": Code(draw(1, W_DIM), "w"), "all": Code(draw(3, W_DIM), "w")}
    save_codes("codes.safetensors", codes)
    assert torch.equal(pick_code("codes.safetensors:a").tensor, codes["a"].tensor)
    save_codes("one.safetensors", {"only": codes["a"]})
    assert pick_code("one.safetensors").space == "w"
    Path("text.safetensors").write_text("no tensors")
    about = {"format": "stylefusion-codes", "version": "1"}
    save_file({"x": draw(1, 3)}, "spaceless.safetensors", metadata=about | {"spaces": "{"})
    save_file({"x": draw(1, 3)}, "other.safetensors", metadata=about | {"spaces": '{"y": "w"}'})
    save_file({"x": draw(1, 3)}, "unknown.safetensors", metadata=about | {"spaces": '{"x": "q"}'})
    save_file({"x": torch.full((1, 3), torch.nan)}, "nan.safetensors", metadata=about | {"spaces": '{"x": "w"}'})
    cases = {
        "codes.safetensors": "holds several codes, name one of a, all",
        "codes.safetensors:b": "has no code 'b': it has a, all",
        "codes.safetensors:all": "'all' holds 3 codes, expected one",
        "text.safetensors": "is not a file of codes",
        "spaceless.safetensors": "is not JSON",
        "other.safetensors": "do not name the same codes",
        "unknown.safetensors": "unknown latent space 'q'",
        "nan.safetensors": "not finite",
    }
    for argument, message in cases.items():
        with pytest.raises(ValueError, match=message):
            pick_code(argument)
    with pytest.raises(FileNotFoundError):
        pick_code("missing.safetensors:a")
    with pytest.raises(ValueError, match="names that are not empty"):
        save_codes("empty.safetensors", {})
