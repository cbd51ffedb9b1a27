"""The Space with rectangular models, with transparency, and with models whose pictures are no images."""

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from stylefusion_hf.imaging.modes import MODES
from tests.pipelines.test_shapes import shaped_pipeline

pytest.importorskip("gradio")

from stylefusion_hf.spaces_app import jobs, pictures
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.results import result


def decoded(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


@pytest.mark.parametrize(
    "changes",
    [{"base_size": [4, 6]}, {"resolution": 24, "base_size": [3, 5], "img_channels": 4}, {"img_channels": 2}],
)
def test_pictures_labels_films_and_uploads(changes, tmp_path: Path):
    model = Model(shaped_pipeline(**changes))
    (height, width), mode = model.size, MODES[model.channels]
    shown = result(model, model.render(model.check({"version": 1, "base": 1})), "a caption")
    assert shown["aspect"] == width / height
    assert decoded(shown["png"]).size == decoded(shown["labels"]).size == (width, height)
    assert decoded(shown["png"]).mode == mode and decoded(shown["labels"]).mode == "L"
    assert model.thumbnails([1])[0].size == (width, height)
    clear = Image.new("RGBA", (90, 70), (255, 0, 0, 0))
    clear.save(tmp_path / "clear.png")
    opened = pictures.open_picture(str(tmp_path / "clear.png"), "it", model.size, model.channels)
    assert opened.mode == mode
    assert model.invert([opened], 1)[1][0].size == (width, height)
    recipe = {"version": 1, "num_images": 1, "base": 1, "truncation_psi": 0.7}
    films = jobs.AnimationFolder()
    with Image.open(films.write(model, recipe, None, [2], 4, 10.0)) as film:
        assert film.size == (width, height) and film.mode == ("RGBA" if mode in ("LA", "RGBA") else "RGB")
    assert jobs.draw_sheet(model, [1], [2], 0.7).mode == "RGB"


def test_large_uploads_keep_what_a_rectangle_can_show(tmp_path: Path):
    for size, kept in (((3000, 1000), (1024, 512)), ((1000, 3000), (512, 1024)), ((2000, 2000), (512, 512))):
        Image.new("RGB", size, "red").save(tmp_path / "x.png")
        assert pictures.open_picture(str(tmp_path / "x.png"), "it", (64, 128)).size == kept
        assert pictures.open_picture(str(tmp_path / "x.png"), "it", (128, 64)).size == kept


def test_models_of_five_channels_are_refused():
    with pytest.raises(ValueError, match=r'img_channels is 5, .*output_type="pt"'):
        Model(shaped_pipeline(img_channels=5))
