"""`stylefusion sheet` and `stylefusion fuse`: what is written, and one line for every bad input."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylefusion_hf.cli import main
from stylefusion_hf.imaging.sheets import contact_sheet
from tests.command_line import fails
from tests.tiny import RESOLUTION, tiny_pipeline

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny pipeline as a folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(segmenter=True).save_pretrained(folder)
    return str(folder)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


# ----------------------------------------------------------------------------------------------------
# sheet


def test_sheet_writes_the_contact_sheet(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [
        "sheet",
        "--model",
        model,
        "--bases",
        "1,2",
        "--sources",
        "11,12",
        "--psi",
        "0.5",
        "--out",
        "new/sheet.png",
    ]
    assert main(argv) == 0
    assert os.path.abspath("new/sheet.png") in capsys.readouterr().out
    expected = contact_sheet(tiny_pipeline(), [1, 2], [11, 12], truncation_psi=0.5)
    assert np.array_equal(pixels("new/sheet.png"), np.asarray(expected))


def test_sheet_draws_rows_from_a_seed(model: str) -> None:
    for name in ("a", "b"):
        argv = ["--seed", "5", "--rows", "3", "--scale", "1", "--batch-size", "7", "--out", f"{name}.png"]
        assert main(["sheet", "--model", model, *argv]) == 0
    assert np.array_equal(pixels("a.png"), pixels("b.png"))
    assert len(pixels("a.png")) > 3 * RESOLUTION


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bases", "1,x", "--sources", "1"], "'x' is not a seed"),
        (["--bases", "1,-2", "--sources", "1"], "'-2' is not a seed"),
        (["--bases", "1", "--sources", "4294967296"], "from 0 to 4294967295"),
        (["--bases", "1,2"], "--bases and --sources go together"),
        (["--bases", "1,2", "--sources", "1,2,3"], "got 2 and 3"),
        (["--seed", "1", "--bases", "1"], "--seed draws bases and sources"),
        (["--rows", "3"], "--rows goes with --seed"),
        (["--rows", "0", "--seed", "1"], "'0' is not an integer from 1"),
        (["--psi", "nan"], "'nan' is not a finite number"),
        (["--out", "sheet.xyz"], "sheet.xyz: expected a file name that ends in .png"),
        (["--frobnicate"], "--frobnicate"),
        (["--device", "nonsense"], "--device nonsense"),
    ],
)
def test_sheet_refuses(model: str, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert message in fails(capsys, "sheet", "--model", model, *argv)
    assert not list(Path.cwd().iterdir())


# ----------------------------------------------------------------------------------------------------
# fuse


def test_fuse_passes_every_code_on(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    argv = "--base 1 --region hair=7 --region eyes=3 --node face=5 --global 6 --strength hair=0.5 --strength all=0.8"
    more = "--psi 0.6 --noise-mode none --out out.png --recipe out.json --masks masks"
    assert main(["fuse", "--model", model, *argv.split(), *more.split()]) == 0

    expected = tiny_pipeline(segmenter=True)(
        base=1,
        regions={"hair": 7, "eyes": 3},
        nodes={"face": 5},
        global_code=6,
        strength={"hair": 0.5, "all": 0.8},
        truncation_psi=0.6,
        noise_mode="none",
        output_masks=True,
    )
    assert np.array_equal(pixels("out.png"), np.asarray(expected.images[0]))
    recipe = json.loads(Path("out.json").read_text(encoding="utf-8"))
    for name in ("base", "regions", "nodes", "global_code", "strength", "truncation_psi", "noise_mode"):
        assert recipe[name] == expected.recipe[name]
    assert {file.stem for file in Path("masks").iterdir()} == set(expected.masks)
    assert np.array_equal(pixels("masks/hair.png")[..., 0] == 255, expected.masks["hair"][0].numpy())
    said = capsys.readouterr().out
    assert all(os.path.abspath(name) in said for name in ("out.png", "out.json", "masks"))


def test_a_picture_carries_its_recipe(model: str) -> None:
    assert main(["fuse", "--model", model, "--region", "hair=7", "--out", "one.png", "--recipe", "one.json"]) == 0
    with Image.open("one.png") as image:
        recipe = json.loads(image.text["stylefusion"])  # type: ignore[attr-defined]
    assert recipe == json.loads(Path("one.json").read_text(encoding="utf-8"))
    assert isinstance(recipe["base"], int)  # drawn, and named
    for source in ("one.png", "one.json"):
        assert main(["fuse", "--model", model, "--from-recipe", source, "--out", "again.png"]) == 0
        assert np.array_equal(pixels("one.png"), pixels("again.png"))


def test_one_strength_is_for_all_nodes(model: str) -> None:
    assert main(["fuse", "--model", model, "--base", "1", "--region", "hair=7", "--strength", "0"]) == 0
    assert np.array_equal(pixels("fused.png"), np.asarray(tiny_pipeline()(base=1).images[0]))


def test_another_models_recipe_is_refused_unless_asked_for(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(tmp_path / "other")
    tiny_pipeline(seed=5).save_pretrained(other)
    assert main(["fuse", "--model", model, "--base", "1", "--out", "one.png"]) == 0
    assert "other weights" in fails(capsys, "fuse", "--model", other, "--from-recipe", "one.png")
    assert main(["fuse", "--model", other, "--from-recipe", "one.png", "--any-model", "--out", "two.png"]) == 0
    assert not np.array_equal(pixels("one.png"), pixels("two.png"))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--region", "hare=7"], "hair"),  # the closest name
        (["--node", "nose=7"], "unknown region 'nose'"),
        (["--region", "hair"], "expected NAME=VALUE"),
        (["--region", "hair=7", "--region", "hair=8"], "--region sets 'hair' twice"),
        (["--region", "hair=missing.png"], "--region hair=missing.png: there is no picture file missing.png"),
        (["--region", "hair=seven"], "'seven' is neither a seed"),
        (["--region", "hair=text.png"], "cannot read the picture text.png: not a picture"),
        (["--region", "hair=grey.png"], "no encoder"),
        (["--base", "-1"], "--base"),
        (["--strength", "0.5", "--strength", "hair=1"], "--strength takes one number, or NAME=NUMBER"),
        (["--strength", "hair=much"], "--strength hair=much: 'much' is not a finite number"),
        (["--region", "hair=7", "--strength", "hair=2"], "strength"),
        (["--global", "5", "--region", "all=7"], "global_code"),
        (["--out", "text.png/fused.png"], "text.png is a file, not a folder"),
        (["--out", "."], "expected a file name that ends in .png"),
        (["--recipe", "recipe.yaml"], "expected a file name that ends in .json"),
        (["--masks", "text.png"], "text.png is a file, not a folder"),
        (["--from-recipe", "missing.json"], "missing.json: No such file"),
        (["--from-recipe", "grey.png"], "grey.png carries no recipe"),
        (["--from-recipe", "text.png"], "text.png"),
        (["--from-recipe", "broken.json"], "recipe"),
        (["--from-recipe", "list.json"], "recipe"),
        (["--from-recipe", "binary.json"], "binary.json: the recipe is not JSON"),
        (["--from-recipe", "broken.json", "--base", "1", "--psi", "1"], "leave out --base, --psi"),
    ],
)
def test_fuse_refuses(model: str, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    Path("text.png").write_text("not a picture")
    Path("broken.json").write_text("{")
    Path("list.json").write_text("[1]")
    Path("binary.json").write_bytes(b"\xff\xfe\x00")
    Image.new("L", (8, 8)).save("grey.png")
    assert message in fails(capsys, "fuse", "--model", model, *argv)
    assert not Path("fused.png").exists()


def test_masks_need_a_segmenter(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "plain")
    assert "segmenter" in fails(capsys, "fuse", "--model", "plain", "--base", "1", "--masks", "masks")


# ----------------------------------------------------------------------------------------------------
# Models that are not there, or not whole.


def test_a_missing_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "no/such" in fails(capsys, "sheet", "--model", "no/such")
    (tmp_path / "empty").mkdir()
    assert "model_index.json" in fails(capsys, "sheet", "--model", "empty")


def test_truncated_weights(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_pipeline().save_pretrained(tmp_path / "model")
    weights = tmp_path / "model" / "generator" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "truncated" in fails(capsys, "fuse", "--model", "model", "--base", "1")
