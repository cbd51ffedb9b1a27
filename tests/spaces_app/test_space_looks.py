"""Choosing by looking, and what the page says about a model: without a browser."""

import base64
import io
import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the Space needs the extra `space`")

from stylefusion_hf.conversion.companions import ASSETS, find_companions
from stylefusion_hf.conversion.credits import CREDITS, LIMITS
from stylefusion_hf.conversion.report import LICENSES, Report, model_card
from stylefusion_hf.core.files import RECIPE_KEY
from stylefusion_hf.spaces_app import (
    crops,
    dials,
    film_recipes,
    jobs,
    looks,
    model_text,
    picture_files,
    results,
    settings,
    thumbnails,
)
from stylefusion_hf.spaces_app.changes import places
from stylefusion_hf.spaces_app.edit_example import find_example
from stylefusion_hf.spaces_app.edit_responses import ResponseMeter
from stylefusion_hf.spaces_app.jobs import AnimationFolder, add_edit, draw_sheet, start_recipe
from stylefusion_hf.spaces_app.models import Model, Picture
from stylefusion_hf.spaces_app.settings import Dial, Settings, to_recipe
from tests.tiny import tiny_pipeline


def tiny_model(name: str = "test/avatar", tree: str = "avatar", segmenter: bool = True) -> Model:
    pipe = tiny_pipeline(tree, segmenter=segmenter)
    pipe.register_to_config(_name_or_path=name)
    return Model(pipe)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model()


@pytest.fixture(scope="module")
def single() -> Model:
    return tiny_model("test/single", "all", segmenter=False)


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def pixels(image: Image.Image) -> np.ndarray:
    return np.array(image.convert("RGB"))


# ----------------------------------------------------------------------------------------------------
# Boxes around regions.


def test_a_box_holds_a_small_region_and_lies_in_the_picture() -> None:
    for top, left in ((0, 0), (20, 30), (50, 54)):
        mask = np.zeros((64, 64), dtype=bool)
        mask[top : top + 12, left : left + 8] = True
        box = crops.region_box(mask)
        assert box is not None
        x, y, right, bottom = box
        assert right - x == bottom - y >= 16
        assert 0 <= x <= left and 0 <= y <= top and right <= 64 and bottom <= 64
        assert mask[y:bottom, x:right].sum() == mask.sum()


def test_a_large_or_missing_region_is_the_whole_picture() -> None:
    assert crops.region_box(np.ones((64, 64), dtype=bool)) is None
    assert crops.region_box(np.zeros((64, 64), dtype=bool)) is None
    image = Image.new("RGB", (64, 64))
    assert crops.crop(image, None) is image


def test_stray_pixels_do_not_widen_a_box() -> None:
    mask = np.zeros((64, 64), dtype=bool)
    mask[20:36, 20:36] = True
    box = crops.region_box(mask)
    mask[63, 63] = mask[0, 63] = True
    assert crops.region_box(mask) == box


def test_a_box_fits_rectangular_pictures() -> None:
    mask = np.zeros((64, 32), dtype=bool)
    mask[56:64, 24:32] = True
    assert crops.region_box(mask) == (20, 52, 32, 64)
    assert crops.scale_box((20, 52, 32, 64), 2) == (40, 104, 64, 128)


# ----------------------------------------------------------------------------------------------------
# Rows of candidates.


@pytest.mark.parametrize("place", range(8))
def test_each_candidate_is_the_present_picture_with_its_seed(model: Model, place: int) -> None:
    present = dials.example_settings(model, 1)
    row, value = looks.render_row(model, present, looks.Row(place))
    assert row.key == looks.key_of(model, present, row) != ""
    seeds = [seed for seed, _ in value["looks"]]
    assert seeds == looks.seeds_of(row) and len(set(seeds)) == looks.COUNT
    chosen = looks.pick(model, present, place, seeds[3])
    picture = model.render(to_recipe(chosen, model.regions, model.tree.root)).image
    shown = pixels(opened(value["looks"][3][1])).astype(int)
    height, width = shown.shape[:2]
    whole = pixels(picture).astype(int)
    places_of = [
        (y, x) for y in range(whole.shape[0] - height + 1) for x in range(whole.shape[1] - width + 1)
    ]  # cropped somewhere
    assert min(np.abs(whole[y : y + height, x : x + width] - shown).max() for y, x in places_of) <= 1


def test_the_row_is_rendered_again_only_if_something_else_changed(model: Model) -> None:
    present = dials.example_settings(model, 1)
    row, _ = looks.render_row(model, present, looks.first_row(model))
    picked = looks.pick(model, present, row.place, 5)
    assert looks.key_of(model, picked, row) == row.key  # the other candidates are on the same picture
    assert looks.picked_seed(model, picked, row) == 5
    other = looks.pick(model, present, 0, 77)
    assert looks.key_of(model, other, row) != row.key
    more = looks.moved(model, row, {"more": True})
    assert (more.place, more.page) == (row.place, 1)
    assert not set(looks.seeds_of(more)) & set(looks.seeds_of(row))
    assert looks.moved(model, row, {"place": 1}) == looks.Row(1)


@pytest.mark.parametrize("place", [-1, 8, "2", True, None, 2.0, [2]])
def test_a_click_on_no_dial_is_refused(model: Model, place: Any) -> None:
    with pytest.raises(ValueError, match="no such dial"):
        looks.pick(model, dials.blank_settings(model, 1), place, 5)
    with pytest.raises(ValueError, match="no such dial"):
        looks.moved(model, looks.Row(0), {"place": place})


@pytest.mark.parametrize("seed", [-1, 10_000, 2.0, "7", None, True, 2**40])
def test_a_click_on_no_candidate_is_refused(model: Model, seed: Any) -> None:
    with pytest.raises(ValueError, match="no such candidate"):
        looks.pick(model, dials.blank_settings(model, 1), 2, seed)


def test_locks_and_strengths_hold(model: Model) -> None:
    present = dials.blank_settings(model, 1).with_dial("hair", model.regions, Dial(3, 0.5))
    place = 2 + model.regions.index("hair")
    assert looks.pick(model, present, place, 8).dial("hair", model.regions) == Dial(8, 0.5)
    locked = present.with_dial("hair", model.regions, Dial(3, 0.5, locked=True))
    with pytest.raises(ValueError, match="hair is locked"):
        looks.pick(model, locked, place, 8)
    assert looks.render_row(model, locked, looks.Row(place))[1]["locked"]


def test_another_model_gets_a_row_of_its_own(model: Model, single: Model) -> None:
    assert looks.fitted(single, looks.Row(7, 3)) == looks.Row(0)
    assert looks.fitted(model, looks.Row(7, 3)) == looks.Row(7, 3)


def test_thumbnails_that_follow_one_code_are_cut_from_one_picture(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    fuse = model._fuse
    monkeypatch.setattr(model, "_fuse", lambda *args: calls.append(args) or fuse(*args))
    alone = [model.thumbnails([811], region=region)[0] for region in (None, *model.regions)]
    assert len(calls) == 1 and model.thumbnails([811, 812], region="hair")[0] is alone[1 + model.regions.index("hair")]
    assert len(calls) == 2 and len({image.tobytes() for image in alone}) > 2
    many = range(900, 900 + 2 * thumbnails.MOST_SOURCES)
    assert len(model.thumbnails(many, region="hair")) == len(many) and len(calls) == 3
    assert len(model._thumbnails._sources) == thumbnails.MOST_SOURCES


def test_thumbnails_show_the_region(model: Model) -> None:
    whole, hair = model.thumbnails([4])[0], model.thumbnails([4], region="hair")[0]
    masks = model.render_small({"version": 1, "base": 4, "truncation_psi": model.psi}, "hair")[1]
    assert masks is not None
    box = crops.region_box(masks[0])
    inside = np.array(crops.crop(Image.fromarray(masks[0]), box))
    before, after = pixels(crops.crop(whole, box)).astype(float), pixels(hair).astype(float)
    changed = np.abs(after - before).mean(axis=2)
    assert inside.any() and not inside.all()
    assert changed[~inside].mean() > 1.5 * changed[inside].mean()  # what surrounds it fades
    mask = np.zeros((96, 96), dtype=bool)
    mask[:, 48:] = True
    faded = pixels(thumbnails.focus(Image.new("RGB", (96, 96), "black"), mask))
    assert (faded[:, 60:] == 0).all() and (faded[:, :36] > 100).all()
    image = Image.new("RGB", (8, 8), "red")
    assert thumbnails.focus(image, np.zeros((8, 8), dtype=bool)) is image


# ----------------------------------------------------------------------------------------------------
# Any model.


def test_a_generator_without_nets_has_one_dial_and_says_how_to_get_others(single: Model) -> None:
    assert places(single) == [0]
    assert "stylefusion regions" in dials.explain_base(single, dials.blank_settings(single, 1))
    assert "stylefusion train fusion" in model_text.describe_model(single)
    for number in range(len(dials.EXAMPLES)):
        assert dials.example_settings(single, number).regions == (Dial(),)
    row, value = looks.render_row(single, dials.blank_settings(single, 1), looks.first_row(single))
    assert (row.place, value["title"]) == (0, "Eight pictures: click one.")


CARD = """---
license: other
license_name: see-below
---
# My model

<!-- hidden --> Draws **cats**, see [the paper](http://evil.example/x).
<script>alert(1)</script>

| a | table |
```python
code()
```

## Licence and terms

For <b>research</b> only. {long}

## Limitations

- Blurry paws.

## Training

Not shown.

## Acknowledgements

Thanks to A & B.
"""


def test_a_card_is_shortened_and_escaped(model: Model, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD.replace("{long}", "word " * 500), encoding="utf-8")
    model.pipe.register_to_config(_name_or_path=str(tmp_path))
    try:
        html = model_text.describe_model(model)
    finally:
        model.pipe.register_to_config(_name_or_path="test/avatar")
    assert "Draws cats, see the paper." in html
    for hidden in ("script", "alert", "evil.example", "hidden", "table", "code()", "Not shown", "<b>"):
        assert hidden not in html, hidden
    assert "&lt;b&gt;research&lt;/b&gt; only" in html and "word..." in html
    assert "Blurry paws." in html and "Thanks to A &amp; B." in html
    assert len(html) < 3400


def test_a_license_in_the_header_alone_is_shown() -> None:
    assert model_text.sections_of("---\nlicense: mit\n---\n# x\n") == {"License": "mit"}
    named = "---\nlicense: other\nlicense_name: <nvidia>\n---\ntext"
    assert model_text.sections_of(named) == {"": "text", "License": "<nvidia>"}
    assert model_text.sections_of("") == {}


@pytest.mark.parametrize("kind", CREDITS)
def test_cards_of_conversions_name_license_credits_and_limits(kind: str) -> None:
    report = Report(kind, credits=["The nets: somebody."], limits=["Dials: some."])
    texts = model_text.sections_of(model_card(report, "faces"))
    assert texts["License"].split()[0] == LICENSES[kind].split()[0]
    assert texts["Credits"].startswith(CREDITS[kind][:60]) and "The nets: somebody." in texts["Credits"]
    assert texts["Limits"].startswith("Dials: some.") and LIMITS[kind][-40:] in texts["Limits"]


def test_the_faces_nets_say_what_they_are_good_for(model: Model, tmp_path: Path) -> None:
    about = json.loads((ASSETS / "faces" / "companions.json").read_text())
    sources = {name: {"name": name, "bytes": 1, "sha256": digest} for name, digest in about["generator"].items()}
    found = find_companions(sources)
    assert found is not None and found.credits and found.limits
    report = Report("mobilestylegan", sources, notes=found.notes, credits=found.credits, limits=found.limits)
    (tmp_path / "README.md").write_text(model_card(report, "faces"), encoding="utf-8")
    model.pipe.register_to_config(_name_or_path=str(tmp_path))
    try:
        html = model_text.describe_model(model)
    finally:
        model.pipe.register_to_config(_name_or_path="test/avatar")
    for said in ("License", "non-commercial", "Credits", "Belousov", "Kafri", "Limits", "clothes change little"):
        assert said in html, said


def test_a_model_without_a_card_says_so(model: Model) -> None:
    html = model_text.describe_model(model)  # test/avatar is not in the cache, and the Hub is not asked in tests
    assert "ask whoever made it" in html
    assert "avatar" in html  # its name, and nothing else of the embedded model
    assert "Stanley" not in html


def test_no_text_of_the_page_describes_one_model() -> None:
    folder = Path(str(model_text.spaces_app.__file__)).parent
    for path in folder.iterdir():
        if path.suffix in (".py", ".js", ".md") and path.name != "embedded.md":
            text = path.read_text(encoding="utf-8").lower()
            assert "portrait" not in text and "avatar" not in text, path.name


# ----------------------------------------------------------------------------------------------------
# The opening edit, files, and wording.


def test_the_opening_edit_is_the_best_of_those_tried(model: Model) -> None:
    example = find_example(ResponseMeter(model))

    def score(region: str, direction: str) -> float:
        (before,), masks = model.render_small(example.recipe, region)
        assert masks is not None
        if masks[0].all() or not masks[0].any():
            return -np.inf
        (after,), _ = model.render_small(add_edit(model, example.recipe, region, direction, example.strength))
        changed = np.abs(np.asarray(after, dtype=float) - np.asarray(before, dtype=float)).mean(axis=-1)
        return changed[masks[0]].mean() - 4 * changed[~masks[0]].mean()

    found = score(example.region, example.direction)
    others = [score(region, name) for region in model.regions for name in list(model.directions())[:6]]
    assert found >= max(others) - 0.5


def test_files_of_a_picture_carry_its_recipe(model: Model) -> None:
    picture = model.render(start_recipe(model, 3))
    for kind, scale in (("2x", 2), ("4x", 4)):
        file = picture_files.picture_file(model, picture, kind)
        image = opened(file["uri"])
        assert image.size == tuple(scale * side for side in picture.image.size)
        assert json.loads(image.info[RECIPE_KEY]) == picture.recipe
        enlarged = picture.image.resize(image.size, Image.Resampling.LANCZOS)
        assert np.array_equal(pixels(image), pixels(enlarged))
    webp = opened(picture_files.picture_file(model, picture, "webp")["uri"])
    assert np.array_equal(pixels(webp), pixels(picture.image))
    comment = webp.getexif().get_ifd(film_recipes.EXIF_IFD)[film_recipes.USER_COMMENT]
    assert json.loads(comment.removeprefix(b"ASCII\0\0\0")) == picture.recipe
    for kind in ("8x", None, 2, "png"):
        with pytest.raises(ValueError, match="pictures are saved as 1x, 2x, 4x or webp"):
            picture_files.picture_file(model, picture, kind)


def test_the_background_is_left_out(model: Model, single: Model) -> None:
    picture = model.render(start_recipe(model, 3))
    assert picture.labels is not None
    behind = np.array(picture.labels) == model.regions.index("background")
    assert behind.any() and not behind.all()
    for kind, scale in (("1x", 1), ("webp", 1), ("2x", 2), ("4x", 4)):
        file = picture_files.picture_file(model, picture, kind, transparent=True)
        image = opened(file["uri"])
        assert file["name"].startswith("stylefusion-transparent") and image.mode == "RGBA"
        assert image.size == tuple(scale * side for side in picture.image.size)
        if scale == 1:  # its colors stay, and so does its recipe
            assert np.array_equal(np.array(image)[..., 3], np.where(behind, 0, 255))
            assert np.array_equal(np.array(image)[..., :3], pixels(picture.image))
        if kind != "webp":
            assert json.loads(image.info[RECIPE_KEY]) == picture.recipe
    for other in (single, tiny_model("test/no-map", segmenter=False)):
        with pytest.raises(ValueError, match="have no background that could be left out"):
            picture_files.picture_file(other, other.render(start_recipe(other, 3)), "1x", transparent=True)


def test_the_edge_of_a_large_cutout_is_soft_and_lies_inside() -> None:
    labels = np.zeros((512, 512), dtype=np.uint8)
    labels[:, 256:] = 1
    picture = Picture(Image.new("RGB", (512, 512), "red"), Image.fromarray(labels), {})
    alpha = np.array(picture_files.cut_out(SimpleNamespace(background=(1,)), picture))[..., 3]  # type: ignore[arg-type]
    assert (alpha[:, 256:] == 0).all() and (alpha[:, :250] == 255).all()
    assert ((alpha > 0) & (alpha < 255)).any()


def test_recent_pictures_are_kept(model: Model) -> None:
    first = model.render(start_recipe(model, 3))
    assert model.render(start_recipe(model, 3)) is first
    for seed in range(model._kept + 1):
        model.render(start_recipe(model, 100 + seed))
    assert len(model._pictures) == model._kept
    again = model.render(start_recipe(model, 3))
    assert again is not first and np.array_equal(pixels(again.image), pixels(first.image))


def test_a_film_as_mp4(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, folder = model.check({"version": 1, "base": 3}), AnimationFolder()
    with monkeypatch.context() as patch:
        patch.setattr(jobs.importlib.util, "find_spec", lambda name: None)
        assert jobs.animation_suffixes() == (".webp", ".gif")
        with pytest.raises(ValueError, match="must be .webp or .gif, got '.mp4' .MP4 needs imageio-ffmpeg"):
            folder.write(model, recipe, "hair", [9], 6, 10, ".mp4")
    ffmpeg = pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed (extra `video`)")
    path = folder.write(model, recipe, "hair", [9], 6, 10, ".mp4")
    assert ffmpeg.count_frames_and_secs(str(path))[0] == 6
    boxes, data, at = {}, path.read_bytes(), 0
    while at < len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        boxes[name] = data[at + 8 : at + size]
        at += size
    assert at == len(data) and b"moov" in boxes
    kind, text = boxes[b"uuid"][:16], boxes[b"uuid"][16:]
    assert kind == film_recipes.MP4_UUID and json.loads(text)["regions"] == {"hair": [3, 9]}


@pytest.mark.parametrize("suffix", [".webp", ".gif"])
def test_a_film_carries_the_recipe_of_its_keyframes(model: Model, suffix: str) -> None:
    recipe = model.check({"version": 1, "base": 3, "regions": {"hair": 7}, "strength": {"hair": 0.5}})
    folder = AnimationFolder()
    path = folder.write(model, recipe, "hair", [9, 4], 6, 10, suffix)
    with Image.open(path) as film:
        assert film.n_frames == 6  # type: ignore[attr-defined]
        frames = []
        for number in range(6):
            film.seek(number)
            frames.append(pixels(film))
        if suffix == ".webp":
            comment = film.getexif().get_ifd(film_recipes.EXIF_IFD)[film_recipes.USER_COMMENT]
            text = comment.removeprefix(b"ASCII\0\0\0")
        else:
            data = path.read_bytes()
            at, text = data.rindex(b"\x21\xfe") + 2, b""
            while data[at]:
                text, at = text + data[at + 1 : at + 1 + data[at]], at + 1 + data[at]
            assert data[at:] == b"\x00\x3b"
    found = json.loads(text)
    assert found["regions"] == {"hair": [7, 9, 4]} and found["num_images"] == 3
    made = model.pipe.from_recipe(found).images
    if suffix == ".webp":  # two frames from one keyframe to the next
        assert all(np.abs(pixels(made[k]).astype(int) - frames[2 * k]).max() <= 1 for k in range(3))


def test_a_sheet_carries_the_recipe_of_its_pictures(model: Model) -> None:
    sheet = draw_sheet(model, [1, 4], [21], 0.5)
    recipe = json.loads(sheet.info[RECIPE_KEY])
    made = model.pipe.from_recipe(recipe).images
    assert len(made) == 2 * len(model.regions)
    hair = len(model.regions) + model.regions.index("hair")
    alone = model.pipe(base=4, regions={"hair": 21}, truncation_psi=0.5).images[0]
    assert np.abs(pixels(made[hair]).astype(int) - pixels(alone)).max() <= 1


@pytest.mark.parametrize("text", ["[]", "{}", '{"a": 1}', '{"version": 1}', "3", "no json", '"text"', "null"])
def test_a_foreign_file_is_not_a_recipe_of_this_app(text: str) -> None:
    with pytest.raises(ValueError, match="not a recipe of this app"):
        results.check_recipe_text(text)


@pytest.mark.parametrize("seed", [1.5, -1, 2**32, float("nan"), float("inf"), "x"])
def test_what_is_not_a_seed_is_refused_with_the_dials_name(model: Model, seed: Any) -> None:
    shown = dials.blank_settings(model, 1).values()
    shown[3 + 3 * (1 + model.regions.index("hair"))] = seed
    typed = Settings.from_values(shown, len(model.regions), {})
    with pytest.raises(ValueError, match="Hair: .* is not a seed: give an integer from 0 to 4294967295"):
        dials.check_seeds(model, typed)
    with pytest.raises(ValueError, match="the picture: .* is not a seed"):
        start_recipe(model, seed)
    assert settings.read_seed(2.0, "x") == 2
