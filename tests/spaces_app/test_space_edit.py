"""The tab Edit without a browser: strips of directions, and where directions come from."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="the Space needs the extra `space`")

import gradio

from stylefusion_hf.core.edits import Direction, save_directions
from stylefusion_hf.spaces_app import app, edit, model_files, strips
from stylefusion_hf.spaces_app.compose_events import QUICK
from stylefusion_hf.spaces_app.edit_example import find_example
from stylefusion_hf.spaces_app.edit_responses import STRENGTH, Response, ResponseMeter, explain, own_region
from stylefusion_hf.spaces_app.jobs import add_edit, start_recipe
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.opening import open_when_seen
from tests.spaces_app.test_space_looks import opened, pixels
from tests.tiny import W_DIM, tiny_pipeline


def named(name: str, width: int = W_DIM) -> Direction:
    return Direction(name, "w", torch.eye(width)[len(name) % width])


def tiny_model(folder: Path | None = None) -> Model:
    pipe = tiny_pipeline("avatar", segmenter=True)
    pipe.register_to_config(_name_or_path=str(folder or "test/avatar"))
    return Model(pipe)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("model")
    save_directions(folder / "directions.safetensors", [named("age"), named("hair_color")])
    return tiny_model(folder)


def test_directions_of_the_models_folder_are_shown_by_name(model: Model) -> None:
    assert list(model.directions()) == ["age", "hair_color"]
    assert edit.direction_choices(model) == [("Age", "age"), ("Hair color", "hair_color")]
    found = strips.StripDrawer(model).draw(start_recipe(model, 3))
    assert [(strip["name"], strip["label"]) for strip in found] == [("age", "Age"), ("hair_color", "Hair color")]


def test_a_model_without_a_file_gets_found_directions() -> None:
    names = list(tiny_model().directions())
    assert names[:2] == ["sefa-0", "sefa-1"] and len(names) == 12
    assert [strips.direction_name(name) for name in ("sefa-0", "pc003", "eye-size")] == ["SeFa 0", "PCA 3", "Eye size"]


@pytest.mark.parametrize("content", [b"", b"no directions", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_of_directions_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "directions.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="directions.safetensors"):
        tiny_model(tmp_path)


def test_directions_of_another_model_are_refused(tmp_path: Path) -> None:
    save_directions(tmp_path / "directions.safetensors", [named("age", W_DIM + 1)])
    with pytest.raises(ValueError, match="directions.safetensors: .*'age'.*found in another model"):
        tiny_model(tmp_path)


def test_a_models_files_are_looked_for_where_it_came_from(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for place, name, path in ((tmp_path, "a.txt", str(tmp_path / "a.txt")), (tmp_path, "b.txt", None),
                              ("embedded", "README.md", None), ("", "README.md", None),
                              ("test/not-in-the-cache", "a.txt", None)):  # fmt: skip
        pipe = SimpleNamespace(config={"_name_or_path": str(place)})
        assert model_files.find_file(pipe, name) == path


def test_a_strip_is_the_picture_moved_by_its_strengths(model: Model) -> None:
    start = start_recipe(model, 3)
    found = strips.StripDrawer(model).draw(start)
    for strip in found:
        assert [strength for strength, _ in strip["looks"]] == [-2, -1, 0, 1, 2]
        for strength, uri in strip["looks"]:
            recipe = add_edit(model, start, model.tree.root, strip["name"], strength)
            expected = pixels(model.render(recipe).image).astype(int)
            assert np.abs(pixels(opened(uri)) - expected).max() <= 1, (strip["name"], strength)
    ends = [pixels(opened(found[0]["looks"][end][1])) for end in (0, 4)]
    assert not np.array_equal(*ends)


def test_a_strip_keeps_the_edits_of_regions(model: Model) -> None:
    start = add_edit(model, start_recipe(model, 3), "hair", "age", 3.0)
    start = add_edit(model, start, model.tree.root, "age", 3.0)  # which the strips replace
    (middle,) = [uri for strength, uri in strips.StripDrawer(model).draw(start)[0]["looks"] if not strength]
    hair = add_edit(model, start_recipe(model, 3), "hair", "age", 3.0)
    assert np.abs(pixels(opened(middle)).astype(int) - pixels(model.render(hair).image)).max() <= 1


def test_strips_are_drawn_once_a_picture(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    drawer = strips.StripDrawer(model)
    first = drawer.draw(start_recipe(model, 3))
    calls: list[Any] = []
    render = model.render_small
    monkeypatch.setattr(model, "render_small", lambda *args: calls.append(args) or render(*args))
    assert drawer.draw(start_recipe(model, 3)) is first and not calls
    for seed in range(strips.KEPT):
        drawer.draw(start_recipe(model, 50 + seed))
    assert len(calls) == strips.KEPT * (1 + len(model.directions()))  # one batch per direction
    assert len(drawer._kept) == strips.KEPT


@pytest.fixture(scope="module")
def tab(model: Model) -> edit.Edit:
    with gradio.Blocks():
        chosen = gradio.Dropdown([("a", 0)], value=0)
        with gradio.Tab("Edit") as shown:
            button = gradio.Button()
            return edit.Edit(
                [model], chosen, lambda *_: None, lambda take, state: button.click(None, None, state), shown, QUICK
            )


def click(**asked: Any) -> Any:
    return gradio.EventData(None, asked)


def test_a_click_on_a_strip_takes_its_direction_and_strength(tab: edit.Edit, model: Model) -> None:
    start = start_recipe(model, 3)
    region, name, strength, shown, recipe, *_ = tab._pick(
        click(direction="hair_color", strength=-2), 0, start, "hair", "age", 1
    )
    assert (region, name, strength, shown["picked"]) == (
        tab.region_of(0, start, "hair_color"), "hair_color", -2, "hair_color"
    )  # fmt: skip
    assert recipe == model.draft(add_edit(model, start, region, "hair_color", -2)).recipe
    assert tab._pick(click(direction="age"), 0, start, "hair", "hair_color", 1.5)[1:3] == ["age", 1.5]
    same = tab._pick(click(direction="age", strength=-1), 0, start, "mouth", "age", 1.5)
    assert same[:3] == ["mouth", "age", -1]  # another strength of the same direction: the region stays


@pytest.mark.parametrize(
    "asked",
    [{}, {"direction": "smile"}, {"direction": 1}, {"direction": ["age"]}, {"direction": "age", "strength": 99},
     {"direction": "age", "strength": "2"}, {"direction": "age", "strength": float("nan")}],
)  # fmt: skip
def test_a_click_on_no_strip_is_refused(tab: edit.Edit, model: Model, asked: Any) -> None:
    with pytest.raises(ValueError, match="no such direction|strength of an edit"):
        tab._pick(click(**asked), 0, start_recipe(model, 3), "hair", "age", 1)


def test_responses_are_what_edits_of_regions_change(model: Model) -> None:
    meter, start = ResponseMeter(model), start_recipe(model, 3)
    found = meter.measure(start, "age")
    assert set(found) <= set(model.regions) and len(found) > 1
    before = pixels(model.render(start).image).astype(float)
    labels = np.asarray(model.render(start).labels)
    for region, response in found.items():
        edited = pixels(model.render(add_edit(model, start, region, "age", STRENGTH)).image)
        changed, inside = np.abs(edited - before).mean(axis=-1), labels == model.regions.index(region)
        assert response.inside == pytest.approx(changed[inside].mean(), abs=0.1), region
        assert response.outside == pytest.approx(changed[~inside].mean(), abs=0.1), region
    assert meter.measure(start, "age") is found  # once a picture and direction


def test_a_direction_chooses_its_region(tab: edit.Edit, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    start = start_recipe(model, 3)
    responses = dict.fromkeys(model.regions, Response(5.0, 1.0))
    monkeypatch.setattr(ResponseMeter, "measure", lambda *_: responses | {"mouth": Response(30.0, 1.0)})
    region, recipe, *_ = tab._turn(0, start, "hair", "age", 2.0)
    assert region == "mouth" and recipe == model.draft(add_edit(model, start, "mouth", "age", 2.0)).recipe
    assert tab._pick(click(direction="age"), 0, start, "hair", "hair_color", 2.0)[0] == "mouth"
    monkeypatch.setattr(ResponseMeter, "measure", lambda *_: responses)  # none is ahead, as for a pose
    root, recipe, local, everywhere, _ = tab._turn(0, start, "hair", "age", 2.0)
    assert root == model.tree.root in [value for _, value in edit.edit_choices(model)]
    assert local["png"] == everywhere["png"]
    with pytest.raises(ValueError, match="no such direction"):
        tab._turn(0, start, "hair", "smile", 2.0)


@pytest.mark.parametrize(
    ("inside", "own"),
    [({"hair": 30, "bg": 5}, "hair"), ({"hair": 7, "bg": 5}, None), ({"hair": 1.5, "bg": 0}, None), ({}, None),
     ({"hair": 3}, "hair")],
)  # fmt: skip
def test_a_direction_belongs_to_a_region_that_is_clearly_ahead(inside: dict[str, float], own: str | None) -> None:
    assert own_region({name: Response(float(level), 0.0) for name, level in inside.items()}) == own


@pytest.mark.parametrize(
    ("region", "strength", "text"),
    [("mouth", 2.0, ""), ("all", 2.0, ""), ("bg", 0.0, "Nothing changes at 0: move How far."),
     ("bg", 2.0, "Smile changes next to nothing here in: background. It shows most in: mouth."),
     ("hair", 2.0, "Smile changes little here in: hair. It shows most in: mouth."),
     ("l_eye", 2.0, "There is no left eye in this picture, so that nothing shows: choose another region.")],
)  # fmt: skip
def test_an_edit_that_shows_little_says_so(region: str, strength: float, text: str) -> None:
    responses = {"mouth": Response(30, 3), "hair": Response(8, 2), "bg": Response(1, 1)}
    assert explain(responses, region, "all", "Smile", strength) == text
    assert explain({}, region, "all", "Smile", 2.0) == ""  # without a segmenter


def test_a_direction_that_shows_in_no_region_alone_says_so() -> None:
    responses = {"mouth": Response(10, 3), "hair": Response(8, 2)}
    assert "Pose shows in no region alone" in explain(responses, "all", "all", "Pose", 1.0)
    assert explain(responses, "hair", "all", "Pose", 1.0) == ""


def test_the_note_is_on_the_page(tab: edit.Edit, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    responses = {"mouth": Response(30, 3), "hair": Response(1, 1)}
    monkeypatch.setattr(ResponseMeter, "measure", lambda *_: responses)
    *_, note = tab.render_edits(0, start_recipe(model, 3), "hair", "age", 2.0)
    assert note["visible"] and note["value"] == "Age changes next to nothing here in: hair. It shows most in: mouth."
    *_, note = tab.render_edits(0, start_recipe(model, 3), "mouth", "age", 2.0)
    assert not note["visible"] and note["value"] == ""


def test_the_tab_opens_with_the_example(tab: edit.Edit, model: Model) -> None:
    start, seed, region, direction, strength, _, before, local, everywhere, _ = tab._open(0)
    example = find_example(ResponseMeter(model))
    assert (start, seed, region, direction, strength) == (
        example.recipe, 1, example.region, example.direction, example.strength
    )  # fmt: skip
    assert before["caption"] == "as it is" and local["png"] != everywhere["png"]


def test_preparing_a_page_draws_what_its_first_visitor_sees(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    page = app.build([model])
    assert len(page.preparations) == 2
    for make in page.preparations:
        make()
    found: list[Any] = []
    monkeypatch.setattr(edit, "find_example", lambda *args: found.append(args))
    monkeypatch.setattr(model, "_fuse", lambda *args: found.append(args))
    page.preparations[0]()
    assert not found


def test_content_is_made_when_its_tab_is_seen_and_once() -> None:
    made: list[int] = []

    def make(index: int) -> list[int]:
        made.append(index)
        return [index]

    with gradio.Blocks() as page:
        chosen, shown = gradio.Dropdown([("a", 0), ("b", 1)], value=0), gradio.Number()
        with gradio.Tab("Here") as tab:
            open_when_seen(tab, chosen, make, [chosen], [shown], lambda index: [None], [shown])
    firsts = [each.fn for each in page.fns.values() if each.fn is not None and each.fn.__name__ == "first"]
    (reset,) = [each.fn for each in page.fns.values() if each.fn is not None and each.fn.__name__ == "reset"]
    assert len(firsts) == 2  # the tab is opened; the model has changed
    for first in firsts:
        assert list(first("Here", False, 1)) == [True, 1]
        for where, done in (("There", False), ("", False), (None, False), ("Here", True)):
            assert first(where, done, 1) == gradio.skip()
    assert made == [1, 1] and reset(0) == [False, None]


def test_the_picture_in_the_middle_is_an_image(model: Model) -> None:
    looks = strips.StripDrawer(model).draw(start_recipe(model, 3))[0]["looks"]
    assert isinstance(opened(looks[2][1]), Image.Image)
