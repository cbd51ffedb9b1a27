"""`stylefusion edit-photo`: what is written, how it is made again, and what is refused in one line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFilter, ImageOps

from stylefusion_hf import StyleFusionPipeline
from stylefusion_hf.cli import main
from stylefusion_hf.cli.edit_photo import describe_reconstruction
from stylefusion_hf.core.code_files import load_codes
from stylefusion_hf.core.edits import Direction, save_directions
from tests.command_line import fails
from tests.pipelines.test_photograph import POINTS, SIZE, photograph
from tests.tiny import NUM_WS, W_DIM, draw, tiny_pipeline

pytestmark = pytest.mark.usefixtures("elsewhere")
QUICK = ["--landmarks", "points.json", "--optimize", "2"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    pipe = tiny_pipeline(segmenter=True)
    StyleFusionPipeline(pipe.generator, pipe.fusion, pipe.segmenter).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def photographs(elsewhere: None, tmp_path: Path) -> None:
    """me.png and you.png, and their landmarks, in the folder that commands run in."""
    for seed, name in enumerate(("me.png", "you.png")):
        photograph(seed=seed).save(tmp_path / name, icc_profile=b"profile")
    points = POINTS.tolist()
    (tmp_path / "points.json").write_text(json.dumps({"me.png": points, "you.png": points}))
    (tmp_path / "finder.py").write_text(f"def find(image):\n    return [{points}, {points}]\n")


def pixels(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_a_photograph_and_its_recipe(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["edit-photo", "me.png", "--model", model]
    files = ["--mask", "mask.png", "--reconstruction", "rec.png"]
    assert main([*call, "--region", "hair=7", *QUICK, "--out", "new.png", *files]) == 0
    said = capsys.readouterr().out
    assert "new.png (150 x 120 pixels)" in said and "new.json" in said and "reconstruction: MSE" in said
    mask = pixels("mask.png")
    assert np.array_equal(pixels("new.png")[mask == 0], pixels("me.png")[mask == 0])
    assert (pixels("new.png") != pixels("me.png")).any()
    with Image.open("new.png") as image:
        assert image.info["icc_profile"] == b"profile"
    assert pixels("rec.png").shape == (32, 32, 3)

    assert main([*call, "--from-recipe", "new.json", "--out", "again.png", "--mask", "again-mask.png"]) == 0
    assert Path("again.png").read_bytes() == Path("new.png").read_bytes()
    assert np.array_equal(pixels("again-mask.png"), mask)
    assert not Path("again.json").exists()
    error = fails(capsys, *call[:1], "you.png", *call[2:], "--from-recipe", "new.json", "--out", "again.png")
    assert "--any-photograph" in error
    flags = ["--from-recipe", "new.json", "--any-photograph", "--any-model", "--out", "again.png"]
    assert main([*call[:1], "you.png", *call[2:], *flags]) == 0


@pytest.mark.parametrize("given", ["jpg", "png", "webp"])
@pytest.mark.parametrize("kept", ["jpg", "png", "webp"])
def test_a_turned_file_keeps_all_but_the_edit(model: str, given: str, kept: str) -> None:
    """The pixels outside the mask, the color profile and what EXIF says, from each format to each."""
    profile, exif = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), Image.Exif()
    exif[0x010F], exif[0x0112] = "Me", 6
    options = {"png": {}, "jpg": {"quality": 95, "subsampling": 0}, "webp": {"lossless": True}}[given]
    upright = photograph().resize((SIZE[0] // 10, SIZE[1] // 10)).resize(SIZE, Image.Resampling.BICUBIC)
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(f"turned.{given}", exif=exif, icc_profile=profile, **options)
    Path("turned.json").write_text(json.dumps(POINTS.tolist()))
    call = ["edit-photo", f"turned.{given}", "--model", model, "--landmarks", "turned.json", "--optimize", "1"]
    assert main([*call, "--region", "hair=7", "--out", f"new.{kept}", "--mask", "mask.png"]) == 0
    with Image.open(f"turned.{given}") as before, Image.open(f"new.{kept}") as after:
        assert after.info["icc_profile"] == profile and after.getexif()[0x010F] == "Me"
        assert after.getexif()[0x0112] == (6 if kept == given else 1)
        assert after.size == (SIZE[::-1] if kept == given else SIZE)
        values = [np.asarray(ImageOps.exif_transpose(image)).astype(int) for image in (before, after)]
    difference = np.abs(values[1] - values[0]).max(axis=-1)
    outside = pixels("mask.png") == 0
    if kept != "jpg":
        assert not difference[outside].any()
    else:  # blocks of 8 pixels that lie beside the mask change with it, the others by rounding alone
        far = np.asarray(Image.fromarray(~outside).filter(ImageFilter.MaxFilter(17))) == 0
        assert far.any() and difference[far].max() <= 4
    assert difference[~outside].max() > 20


def test_several_photographs_go_to_a_folder(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    save_directions("d.safetensors", [Direction("smile", "w", draw(W_DIM))])
    call = ["edit-photo", "me.png", "you.png", "--model", model, *QUICK, "--edit", "mouth=d.safetensors:smile=3"]
    assert main([*call, "--region", "hair=7", "--out", "edited"]) == 0
    names = {path.name for path in Path("edited").iterdir()}
    assert names == {"me.png", "me.json", "you.png", "you.json"}
    assert capsys.readouterr().out.count("reconstruction: MSE") == 2


def test_codes_of_faces_go_on_in_other_commands(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    both = ["edit-photo", "me.png", "you.png", "--model", model, *QUICK, "--codes", "faces.safetensors"]
    assert main(both) == 0
    said = capsys.readouterr().out
    assert "the codes of me, you" in said and said.count("reconstruction: MSE") == 2
    assert not Path("edited.png").exists() and not Path("edited").exists()
    codes = load_codes("faces.safetensors")
    assert list(codes) == ["me", "you"] and codes["me"].tensor.shape == (1, NUM_WS, W_DIM)

    # Hair from the other photograph's code.
    call = ["edit-photo", "me.png", "--model", model, *QUICK, "--region", "hair=faces.safetensors:you"]
    assert main([*call, "--out", "one.png", "--codes", "mine.safetensors"]) == 0
    assert load_codes("mine.safetensors")["me"].tensor.equal(codes["me"].tensor)
    assert "hair" in json.loads(Path("one.json").read_text())["fusion"]["regions"]
    # A walk from one person to the other.
    walk = ["--base", "faces.safetensors:me,faces.safetensors:you", "--steps", "3", "--out", "walk.gif"]
    assert main(["interpolate", "--model", model, *walk]) == 0
    assert Path("walk.gif").exists()


def test_another_photograph_and_tuning(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    call = ["edit-photo", "me.png", "--model", model, "--optimize", "1", "--detector", "finder:find", "--face", "0"]
    call += ["--region", "hair=you.png", "--out", "out/new.jpg"]
    assert "choose one by face=N" in fails(capsys, *call)
    assert main([*call, "--source-face", "1", "--tune", "1"]) == 0
    assert "the tuned generator" in capsys.readouterr().out
    assert main(["edit-photo", "me.png", "--model", model, "--from-recipe", "out/new.json", "--out", "again.jpg"]) == 0
    assert Path("again.jpg").read_bytes() == Path("out/new.jpg").read_bytes()


def test_a_reconstruction_that_is_no_face_is_said_to_be_none() -> None:
    class Result:
        explained, mse = [0.95, 0.4, -3.0], [0.01, 0.1, 0.5]

    good, poor, worse = (describe_reconstruction(Result, k, None, True) for k in range(3))
    assert "explains 95% of this face" in good and "does not draw" not in good
    assert "40%" in poor and "it does not draw such a picture" in poor
    assert " 0%" in worse and "does not draw" in worse
    assert "does not draw" in describe_reconstruction(Result, 1, 50, True)
    assert "does not draw" in describe_reconstruction(Result, 1, 100, False)
    for steps, has_encoder, enough in ((49, True, 50), (0, True, 50), (1, False, 100), (99, False, 100)):
        said = describe_reconstruction(Result, 1, steps, has_encoder)
        assert (
            f"after {steps} step" in said
            and f"too few to tell whether it draws such a picture: take {enough}" in said
            and "does not" not in said
        )
        assert "too few" not in describe_reconstruction(Result, 0, steps, has_encoder)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["me.png", *QUICK], "nothing to change: give --region"),
        (["me.png", *QUICK, "--codes", "a.safetensors", "--mask", "m.png"], "--mask needs something to change"),
        (["me.png", *QUICK, "--codes", "a.safetensors", "--strength", "0.5"], "--strength needs something to change"),
        (["me.png", "sub/me.png", "--codes", "a.safetensors"], "would have one name"),
        (["me.png", *QUICK, "--codes", "a.png"], "a.png: expected a file name"),
        (["me.png", "--codes", "a.safetensors", "--from-recipe", "points.json"], "--codes are those of a search"),
        (["nobody.png", "--region", "hair=7"], "there is no picture file nobody.png"),
        ([".", "--region", "hair=7"], "is a folder: name a picture file"),
        (["me.png", "--region", "hair=7", "--out", "new.gif"], "new.gif: expected a file name"),
        (["me.png", "--region", "hair=7", "--out", "me.png"], "overwritten by its own edit"),
        (["me.png", "you.png", "--region", "hair=7", "--out", "new.png"], "name a folder"),
        (["me.png", "me.png", "--region", "hair=7", "--out", "f"], "would both become me"),
        (["me.png", "you.png", "--region", "hair=7", "--out", "f", "--mask", "m.png"], "--mask names one picture"),
        (["me.png", "--region", "hairs=7"], "did you mean 'hair'"),
        (["me.png", "--region", "hair=nobody.jpg"], "there is no picture file nobody.jpg"),
        (["me.png", "--region", "hair=7", "--detector", "nobody"], "no landmark detector is called 'nobody'"),
        (["me.png", "--region", "hair=7", "--detector", "finder:find"], "2 faces were found in the picture me.png"),
        (["me.png", "--region", "hair=7", "--detector", "finder:find", "--face", "2"], "got face=2"),
        (["me.png", "--region", "hair=7", *QUICK, "--face", "0"], "--face chooses among faces that a detector finds"),
        (["me.png", "--region", "hair=7", "--face", "x"], "is not an integer"),
        (["clear.png", "--region", "hair=7", "--out", "new.jpg"], "JPEG cannot keep the transparency"),
        (["deep.png", "--region", "hair=7"], "16 bits per channel"),
        (["print.jpg", "--region", "hair=7"], "is CMYK"),
        (["film.gif", "--region", "hair=7"], "has 2 frames"),
        (["points.json", "--region", "hair=7"], "cannot read the picture points.json"),
        (["me.png", "--from-recipe", "points.json"], "points.json: this is not the recipe of a photograph"),
        (["me.png", "--from-recipe", "points.json", "--region", "hair=7"], "leave out --region"),
        (["me.png", "you.png", "--from-recipe", "points.json", "--out", "f"], "a recipe is of one photograph"),
        (["me.png", "--from-recipe", "nobody.json"], "nobody.json"),
    ],
)
def test_what_is_refused(model: str, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    photograph("RGBA").save("clear.png")
    Path("sub").mkdir()
    photograph().save("sub/me.png")
    Image.fromarray(np.zeros(SIZE, np.uint16)).save("deep.png")
    photograph().convert("CMYK").save("print.jpg")
    photograph().save("film.gif", save_all=True, append_images=[photograph(seed=1)])
    before = Path("me.png").read_bytes()
    assert said in fails(capsys, "edit-photo", "--model", model, *flags)
    assert Path("me.png").read_bytes() == before and not Path("edited.png").exists()
