"""The Space without a browser: its settings, its endpoints, and what strangers may send."""

import base64
import importlib
import io
import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import pytest
import torch
from PIL import Image

gradio = pytest.importorskip("gradio", reason="the Space needs the extra `space`")

from gradio.state_holder import SessionState  # noqa: E402
from gradio_client import Client, handle_file  # noqa: E402

from stylefusion_hf import (  # noqa: E402
    FusionHierarchy,
    MobileStyleGANGenerator,
    RegionSegmenter,
    StyleFusionInterpolationPipeline,
    StyleFusionPipeline,
)
from stylefusion_hf.core.codes import seed_classes  # noqa: E402
from stylefusion_hf.core.files import RECIPE_KEY  # noqa: E402
from stylefusion_hf.spaces_app import app, changes, compose, compose_values, dials, errors, jobs, results, turns  # noqa: E402
from stylefusion_hf.spaces_app.models import Model  # noqa: E402
from stylefusion_hf.spaces_app.models import plain as plain_recipe  # noqa: E402
from stylefusion_hf.spaces_app.settings import (  # noqa: E402
    COMMON,
    Dial,
    History,
    Settings,
    from_recipe,
    to_recipe,
    unrefined,
    with_class,
)
from tests.command_line import fails  # noqa: E402
from tests.space_server import serving  # noqa: E402
from tests.tiny import TinyEncoder, tiny_fusion, tiny_pipeline  # noqa: E402

ENDPOINTS = ["about", "compose", "edit", "from_recipe", "interpolate", "invert", "mix", "sheet"]
PATIENCE = {"timeout": 300}  # seconds: a machine with much other work answers late
FLAT = "all*(sky(sun, clouds), ground)"  # a region with regions below it that have no codes of their own


def tiny_model(name: str, tree: str = "avatar", encoder: bool = False) -> Model:
    pipe = tiny_pipeline(tree, segmenter=True)
    pipe.register_to_config(_name_or_path=name)
    if encoder:
        pipe.encoder = TinyEncoder()
    return Model(pipe)


@pytest.fixture(scope="module")
def models() -> list[Model]:
    return [tiny_model("test/avatar"), tiny_model("test/flat", FLAT, encoder=True)]


@pytest.fixture(scope="module")
def url(models: list[Model], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(models, tmp_path_factory.mktemp("gradio")) as address:
        yield address


@pytest.fixture
def client(url: str, tmp_path: Path) -> Client:
    return Client(url, verbose=False, download_files=str(tmp_path), httpx_kwargs=PATIENCE)


def pixels(image: Any) -> np.ndarray:
    return np.array(image if isinstance(image, Image.Image) else Image.open(image))


# ----------------------------------------------------------------------------------------------------
# Settings.


def test_settings_and_recipes_say_the_same(models: list[Model]) -> None:
    model = models[0]
    names, root = model.regions, model.tree.root
    settings = Settings(
        Dial(4),
        Dial(5, 0.25),
        (Dial(), Dial(7, 0.5), Dial(), Dial(8), Dial(), Dial(0, 0.0)),
        psi=0.6,
        kept={"regions": {"face": 3}, "nodes": {names[0]: 9}, "strength": {"face": 0.75}},
    )
    recipe = model.check(to_recipe(settings, names, root))
    assert from_recipe(recipe, names, root) == settings
    assert Settings.from_values(settings.values(), len(names), settings.kept) == settings
    assert model.render(recipe).recipe["regions"] == {"face": 3, names[1]: 7, names[3]: 8, names[5]: 0}


def test_one_strength_for_all_becomes_a_strength_for_each(models: list[Model]) -> None:
    model = models[0]
    recipe = {"version": 1, "base": 1, "regions": {"hair": 7, "face": 2}, "global_code": 3, "strength": 0.5}
    checked = model.check(recipe)
    again = to_recipe(from_recipe(checked, model.regions, model.tree.root), model.regions, model.tree.root)
    assert again["strength"] == {"hair": 0.5, "face": 0.5, "all": 0.5}
    assert np.array_equal(pixels(model.render(again).image), pixels(model.render(checked).image))


def test_a_photograph_stays_until_its_dial_has_a_seed(models: list[Model]) -> None:
    model = models[1]
    (code, other), _, _ = model.invert([Image.new("RGB", (32, 32), color) for color in ("white", "black")], 0)
    recipe = model.check(jobs.mix_codes([code, other], {"ground": 1}, 1, 0.7))
    settings = from_recipe(recipe, model.regions, model.tree.root)
    assert [dial.seed for dial in (settings.base, settings.common, *settings.regions)] == [None] * 4
    assert to_recipe(settings, model.regions, model.tree.root)["regions"] == {"ground": other}
    shuffled = changes.shuffle(model, settings, [3])
    assert isinstance(to_recipe(shuffled, model.regions, model.tree.root)["regions"]["ground"], int)
    kept = to_recipe(changes.reset_dial(model, settings, 3), model.regions, model.tree.root)
    assert "regions" not in kept
    assert kept[COMMON] == other


def test_a_class_for_all_seeds_or_each_ones_own() -> None:
    pipe = tiny_pipeline(segmenter=True, label_dim=3)
    pipe.register_to_config(_name_or_path="test/classes")
    model = Model(pipe)
    names, root = model.regions, model.tree.root
    own = dials.example_settings(model, 0)
    assert dials.class_of(own) == dials.OWN
    chosen = with_class(own, 2)
    assert (dials.class_of(chosen), dials.class_of(with_class(chosen, None))) == (2, dials.OWN)
    assert [value for _, value in dials.class_choices(model)] == [dials.OWN, 0, 1, 2]
    recipe = model.check(to_recipe(chosen, names, root))
    assert recipe["class_labels"] == [2]
    assert from_recipe(recipe, names, root) == chosen
    made = [compose.stage_value(model, state) for state in (own, chosen)]
    assert made[0]["png"] != made[1]["png"]
    assert "class 2" in made[1]["caption"]
    assert json.loads(parse_qs(made[1]["query"])["recipe"][0])["class_labels"] == [2]
    assert "class_labels=[2]" in made[1]["code"]
    assert (
        model.thumbnails([4])[0].tobytes() != model.thumbnails([4], [(seed_classes([4], 3)[0] + 1) % 3])[0].tobytes()
    )
    app.build([model])  # a page with the control
    assert jobs.draw_sheet(model, [1], [2]).width > 0
    assert jobs.walk_arguments(model, recipe, "hair", [3])["class_labels"] == [2]


def test_twenty_regions_some_called_like_a_recipes_fields() -> None:
    tree = "n0*(base, n1*(global_code, n2*(regions, nodes)))"
    for i in range(3, 19):
        tree = f"n{i}*({tree}, r{i})"
    model = tiny_model("test/twenty", tree)
    assert len(model.regions) == 20
    settings = dials.blank_settings(model, 1)
    for place, name in enumerate(model.regions):
        settings = settings.with_dial(name, model.regions, Dial(place + 10))
    recipe = model.check(to_recipe(settings, model.regions, model.tree.root))
    assert recipe["base"] == 1
    assert recipe["regions"] == {name: place + 10 for place, name in enumerate(model.regions)}
    assert from_recipe(recipe, model.regions, model.tree.root) == settings
    assert dials.display_name("base") == "Base"
    assert dials.caption(model, settings).startswith("base 1 · base 10 · ")
    kept = settings.with_dial("base", model.regions, Dial(), {"space": "w"}).kept
    assert kept == {"regions": {"base": {"space": "w"}}}
    query = results.link_query(model, model.render(recipe).recipe)
    assert json.loads(parse_qs(query)["recipe"][0])["regions"]["nodes"] == 13
    app.build([model])


def test_history_takes_a_turning_dial_for_one_step() -> None:
    states = [Settings(Dial(i), Dial(), (), 0.7) for i in range(5)]
    history = History([states[0]]).push(states[1], "base", 10.0).push(states[2], "base", 11.5)
    assert history.steps == [states[0], states[2]]
    history = history.push(states[3], "base", 20.0).push(states[4], "psi", 20.1)
    assert history.steps == [states[0], *states[2:]]
    buttons = History([states[0]]).push(states[1], "", 10.0).push(states[2], "", 10.1)
    assert buttons.steps == states[:3]
    undone = history.move(-1).move(-1)
    assert undone.present == states[2]
    assert undone.move(-5).present == states[0]
    assert undone.push(states[1], "", 0).steps == [states[0], states[2], states[1]]
    assert history.move(-1).move(1).present == states[4]


def test_locks_hold_against_another_base(models: list[Model]) -> None:
    model = models[0]
    settings = dials.blank_settings(model, 4).with_dial("hair", model.regions, Dial(locked=True))
    settings = changes.lock_dial(model, settings, 2 + model.regions.index("hair"))
    assert settings.dial("hair", model.regions) == Dial(4, locked=True)  # the base's look is its own now
    before, after = (to_recipe(state, model.regions, "all") for state in (dials.blank_settings(model, 4), settings))
    assert np.array_equal(pixels(model.render(before).image), pixels(model.render(after).image))


def test_a_surprise_changes_the_base_and_one_or_two_regions(models: list[Model]) -> None:
    model = models[0]
    settings = dials.example_settings(model, 3).with_dial("hair", model.regions, Dial(4, locked=True))
    for _ in range(20):
        surprised = changes.surprise(model, settings)
        own = [name for name in model.regions if surprised.dial(name, model.regions).seed is not None]
        assert surprised.dial("hair", model.regions) == Dial(4, locked=True)
        assert 2 <= len(own) <= 3
        assert surprised.base != settings.base
        assert dials.explain_base(model, surprised) == ""  # the base has an effect

    fixed = replace(settings, base=replace(settings.base, locked=True))
    surprised = changes.surprise(model, fixed)
    assert surprised.base == fixed.base
    changed = [a != b for a, b in zip(surprised.regions, fixed.regions, strict=True)]
    assert 1 <= sum(changed) <= 2
    locked = replace(fixed, common=Dial(locked=True), regions=tuple(Dial(1, locked=True) for _ in model.regions))
    with pytest.raises(ValueError, match="all dials are locked"):
        changes.surprise(model, locked)


def test_a_control_without_effect_says_so(models: list[Model]) -> None:
    model = models[0]
    every = replace(dials.blank_settings(model, 4), regions=tuple(Dial(i) for i in range(len(model.regions))))
    assert dials.explain_base(model, every).startswith("Sets pose and layout only")
    nothing = replace(every, common=Dial(3))
    assert dials.explain_base(model, nothing).startswith("Changes nothing now")
    pictures = [
        model.render(to_recipe(replace(nothing, base=Dial(seed)), model.regions, "all")).image for seed in (4, 5)
    ]
    assert np.array_equal(*map(pixels, pictures))  # it is true
    assert dials.explain_base(model, replace(nothing, common=Dial(3, 0.5))).startswith("Sets pose")
    assert "thumbnails" in dials.explain_psi(every)
    photograph = Settings(Dial(), Dial(), tuple(Dial() for _ in model.regions), 0.7, {"base": {"space": "w"}})
    assert dials.explain_psi(photograph).startswith("Changes nothing now")


def test_the_map_of_regions_has_every_leaf_below_its_dial(models: list[Model]) -> None:
    model = models[1]
    assert model.regions == ("sky", "ground")
    recipe = {"version": 1, "base": 1, "truncation_psi": 1.0}
    masks = model.pipe.from_recipe(recipe, output_masks=True).masks
    labels = pixels(model.render(recipe).labels)
    assert np.array_equal(labels == 0, (masks["sun"] | masks["clouds"])[0].numpy())
    assert np.array_equal(labels == 1, masks["ground"][0].numpy())


# ----------------------------------------------------------------------------------------------------
# What a picture brings along.


def test_the_python_of_a_picture_makes_it(
    models: list[Model], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = models[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(StyleFusionPipeline, "from_pretrained", lambda name: model.pipe)
    recipe = model.check({"version": 1, "base": 3, "regions": {"hair": 7}, "global_code": 5, "strength": {"all": 0.5}})
    picture = model.render(recipe)
    exec(results.snippet(model, picture.recipe), {})
    assert np.array_equal(pixels("stylefusion.png"), pixels(picture.image))

    edit = jobs.add_edit(model, recipe, "hair", "sefa-1", 2.0)
    picture = model.render(edit)
    Path("stylefusion.json").write_text(json.dumps(picture.recipe))
    exec(results.snippet(model, picture.recipe), {})
    assert np.array_equal(pixels("stylefusion.png"), pixels(picture.image))


def test_a_link_carries_seeds_only(models: list[Model]) -> None:
    model = models[0]
    recipe = model.render({"version": 1, "base": 3, "regions": {"hair": 7}, "truncation_psi": 0.5}).recipe
    fields = parse_qs(results.link_query(model, recipe))
    assert fields["model"] == ["test/avatar"]
    again = model.render(model.check(fields["recipe"][0]))
    assert again.recipe == recipe
    assert results.link_query(model, jobs.add_edit(model, recipe, "hair", "sefa-1", 2.0)) == ""


def test_recipes_are_read_from_png_and_json(models: list[Model], tmp_path: Path) -> None:
    picture = models[0].render({"version": 1, "base": 3, "truncation_psi": 0.5})
    (tmp_path / "a.png").write_bytes(results.encode_png(picture.image, picture.recipe))
    (tmp_path / "a.json").write_text(json.dumps(picture.recipe))
    for name in ("a.png", "a.json"):
        assert json.loads(results.read_recipe(str(tmp_path / name))) == picture.recipe
    picture.image.save(tmp_path / "bare.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "a.png").read_bytes()[:300])
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name, reason in (("bare.png", "carries no recipe"), ("cut.png", "damaged"), ("binary.json", "not a recipe")):
        with pytest.raises(ValueError, match=reason):
            results.read_recipe(str(tmp_path / name))


# ----------------------------------------------------------------------------------------------------
# Endpoints.


def test_the_endpoints_are_named_typed_and_told(client: Client) -> None:
    named = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert sorted(named) == [f"/{name}" for name in ENDPOINTS]
    for endpoint in named.values():
        assert endpoint["description"]
        assert all(parameter["parameter_name"] for parameter in endpoint["parameters"])
    kinds = {p["parameter_name"]: p["type"]["type"] for p in named["/compose"]["parameters"] if "type" in p["type"]}
    assert kinds["base"] == "integer"
    assert kinds["psi"] == "number"
    about = client.predict(api_name="/about")
    assert about["regions"] == ["mouth", "skin", "eyes", "clothes", "background", "hair"]
    assert client.predict(model="test/flat", api_name="/about")["regions"] == ["sky", "ground"]


def test_compose_is_the_librarys_picture_with_its_recipe(client: Client, models: list[Model]) -> None:
    call: dict[str, Any] = {"base": 4, "regions": {"hair": 7}, "strength": {"hair": 0.5}}
    path, recipe = client.predict(**call, global_code="5", psi=0.6, api_name="/compose")
    expected = models[0].pipe(**call, global_code=5, truncation_psi=0.6)
    assert np.array_equal(pixels(path), pixels(expected.images[0]))
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        assert json.loads(picture.info[RECIPE_KEY]) == recipe == expected.recipe
    again, _ = client.predict(recipe=recipe, api_name="/from_recipe")
    assert np.array_equal(pixels(again), pixels(path))


def test_edit(client: Client, models: list[Model]) -> None:
    path, recipe = client.predict(base=4, region="hair", direction="pc001", amount=-2, api_name="/edit")
    direction = models[0].directions()["pc001"]
    assert np.array_equal(pixels(path), pixels(models[0].pipe(base=4, edits={"hair": direction(-2.0)}).images[0]))
    back, _ = client.predict(region="hair", direction="pc001", amount=0, recipe=recipe, api_name="/edit")
    assert np.array_equal(pixels(back), pixels(models[0].pipe(base=4).images[0]))


def test_pictures_are_read_and_mixed(client: Client, models: list[Model], tmp_path: Path) -> None:
    model, found = models[1], []
    for color in ("white", "black"):
        Image.new("RGB", (48, 40), color).save(tmp_path / f"{color}.png")
        picture = handle_file(str(tmp_path / f"{color}.png"))
        found.append(client.predict(picture=picture, model="test/flat", api_name="/invert")[1])
    path, _ = client.predict(
        recipe=found[0], regions={"ground": found[1], "sky": 3}, model="test/flat", api_name="/mix"
    )
    images = [Image.new("RGB", (32, 32), color) for color in ("white", "black")]
    expected = model.pipe(base=images[0], regions={"ground": images[1], "sky": 3}).images[0]
    assert np.array_equal(pixels(path), pixels(expected))


def test_without_an_encoder_pictures_take_steps(client: Client, models: list[Model], tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "teal").save(tmp_path / "teal.png")
    picture = handle_file(str(tmp_path / "teal.png"))
    with pytest.raises(Exception, match="no encoder"):
        client.predict(picture=picture, api_name="/invert")
    path, recipe = client.predict(picture=picture, steps=4, api_name="/invert")
    assert recipe["base"]["space"] == "w+"
    start = models[0].pipe(base=1, truncation_psi=0.0).images[0]
    target = pixels(tmp_path / "teal.png").astype(float)
    assert np.square(pixels(path) - target).mean() < np.square(pixels(start) - target).mean()


def test_animations_are_exact(client: Client, models: list[Model]) -> None:
    path = client.predict(base=4, region="hair", seeds="7, 8", frames=6, api_name="/interpolate")
    pipe = StyleFusionInterpolationPipeline.from_pipe(models[0].pipe)
    pipe.set_progress_bar_config(disable=True)
    expected = pipe(base=4, regions={"hair": [4, 7, 8]}, frames=6, loop=True, easing="smooth").frames
    with Image.open(path) as film:
        assert film.n_frames == 6
        for i, frame in enumerate(expected):
            film.seek(i)
            assert np.array_equal(pixels(film.convert("RGB")), pixels(frame))
    gif = client.predict(base=4, region="", seeds="7", frames=3, suffix=".gif", api_name="/interpolate")
    assert Image.open(gif).n_frames == 3


def test_the_python_of_an_animation_makes_its_frames(models: list[Model]) -> None:
    from stylefusion_hf.spaces_app.walk import walk_snippet

    model = models[0]
    recipe = model.check({"version": 1, "base": 4, "regions": {"hair": 2, "eyes": 3}, "truncation_psi": 0.6})
    text = walk_snippet(model, recipe, "hair", [7, 8], 5, 20.0, ".webp")
    stream = model.walk(jobs.walk_arguments(model, recipe, "hair", [7, 8]) | {"frames": 5, "loop": True})
    frames = [frame for batch in stream for frame in batch]
    written: dict[str, Any] = {}
    walker = StyleFusionInterpolationPipeline.from_pipe(model.pipe)
    lines = [line for line in text.splitlines() if not line.startswith(("from", "pipe ="))]
    exec("\n".join(lines), {"pipe": walker, "write_animation": lambda name, made, fps: written.update({name: made})})
    assert all(np.array_equal(pixels(a), pixels(b)) for a, b in zip(written["walk.webp"], frames, strict=True))


def test_sheet(client: Client, models: list[Model]) -> None:
    from stylefusion_hf.imaging.sheets import contact_sheet

    path = client.predict(bases="1, 4", sources="21 24", psi=0.5, api_name="/sheet")
    assert np.array_equal(pixels(path), pixels(contact_sheet(models[0].pipe, [1, 4], [21, 24], truncation_psi=0.5)))


# ----------------------------------------------------------------------------------------------------
# Untrusted input.


@pytest.mark.parametrize(
    ("endpoint", "call", "message"),
    [
        ("compose", {"base": -1}, "seed is an integer"),
        ("compose", {"base": 1.5}, "seed is an integer"),
        ("compose", {"regions": {"tail": 1}}, "unknown region 'tail'"),
        ("compose", {"regions": {"hair": "7"}}, "seed"),
        ("compose", {"regions": [1]}, "object"),
        ("compose", {"regions": {"hair": 1}, "strength": {"hair": 7}}, "from 0 to 1"),
        ("compose", {"psi": 1e305}, "psi"),
        ("compose", {"model": "../../etc"}, "no model"),
        ("compose", {"global_code": "1, 2"}, "seeds"),
        ("from_recipe", {"recipe": {"version": 9}}, "version"),
        ("from_recipe", {"recipe": {"version": 1, "base": 1, "regions": {"hair": {"space": "w"}}}}, "space, shape"),
        ("from_recipe", {"recipe": {"version": 1, "base": 1, "model": {"name": "x", "sha256": {"fusion": "0" * 64}}}},
         "another model"),
        ("edit", {"direction": "up"}, "no direction 'up'"),
        ("edit", {"amount": 1000}, "-10 to 10"),
        ("interpolate", {"frames": 100000}, "2 to 120"),
        ("interpolate", {"seeds": "1," * 400}, "seeds"),
        ("interpolate", {"seeds": "1" * 5000}, "characters"),
        ("interpolate", {"suffix": "/../../x.png"}, "animation"),
        ("interpolate", {"fps": 0}, "fps"),
        ("sheet", {"bases": "one"}, "not a seed"),
        ("sheet", {"bases": "1," * 9}, "1 to 8"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line(client: Client, endpoint: str, call: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=f"(?i){message}") as caught:
        client.predict(**call, api_name=f"/{endpoint}")
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(side: int = 30_000) -> bytes:
    """A PNG of 900 megapixels in a few kB."""
    rows = zlib.compress((b"\0" + bytes(side // 8)) * side, 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_uploads_are_bounded_and_checked(client: Client, tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(bomb())
    (tmp_path / "text.png").write_text("#!/bin/sh")
    (tmp_path / "large.png").write_bytes(os.urandom(11 << 20))
    Image.new("RGB", (64, 64)).save(
        tmp_path / "film.gif", save_all=True, append_images=[Image.new("RGB", (64, 64), 9)]
    )
    for name, message in (
        ("bomb.png", "megapixels"),
        ("text.png", "not a picture"),
        ("large.png", "maximum file size"),
        ("film.gif", "2 frames"),
    ):
        picture = handle_file(str(tmp_path / name))
        with pytest.raises(Exception, match=message) as caught:
            client.predict(picture=picture, steps=1, api_name="/invert")
        if name != "large.png":  # the client's own message
            assert "/" not in str(caught.value)


def test_junk_at_the_pages_own_events_harms_nothing(url: str, client: Client) -> None:
    import httpx

    junk = ["../../etc/passwd", -1, None, {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, 1e308, [[]]]
    with httpx.Client(base_url=f"{url}/gradio_api", **PATIENCE) as stranger:
        events = stranger.get(f"{url}/config").json()["dependencies"]
        assert len(events) > 50
        for number, event in enumerate(events):
            data = [junk[(number + i) % len(junk)] for i in range(len(event["inputs"]))]
            body = {
                "data": data,
                "fn_index": event["id"],
                "session_hash": f"junk{number}",
                "event_data": {"example": "x"},
            }
            if event["queue"] is False:
                answer = stranger.post("/run/predict", json=body).text
            else:
                stranger.post("/queue/join", json=body)
                with stranger.stream("GET", "/queue/data", params={"session_hash": f"junk{number}"}) as lines:
                    answer = next(line for line in lines.iter_lines() if "process_completed" in line)
            assert not re.search("root:|Traceback|site-packages|stylefusion_hf/", answer), event["id"]
    assert client.predict(base=1, api_name="/compose")[1]["base"] == 1


def test_files_of_the_server_are_out_of_reach(url: str) -> None:
    import httpx

    for place in ("/etc/passwd", str(Path(__file__)), "../../etc/passwd"):
        assert httpx.get(f"{url}/gradio_api/file={place}").status_code in (403, 404)
    fields = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    named = httpx.post(f"{url}/gradio_api/call/invert", json={"data": [fields, 1, "test/avatar"]})
    events = httpx.get(f"{url}/gradio_api/call/invert/{named.json()['event_id']}").text
    assert "event: error" in events
    assert "root:" not in events


def test_messages_hold_no_path_and_bugs_no_detail() -> None:
    assert errors.public_message("[Errno 2] no such file: '/tmp/gradio/ab/secret/a.png' here") == (
        "[Errno 2] no such file: 'a.png' here"
    )
    assert errors.public_message("within 1/255, user/repo") == "Within 1/255, user/repo"
    assert errors.public_message(r"in C:\Users\me\x.png") == "In x.png"
    assert len(errors.public_message("x" * 10_000)) == errors.MAX_LENGTH

    def broken() -> None:
        raise RuntimeError("token hf_abc at /root")

    with pytest.raises(gradio.Error) as caught:
        errors.show_errors(broken)()
    assert "hf_abc" not in str(caught.value)


@pytest.mark.parametrize("clients", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_clients_at_once_get_their_own_pictures(url: str, models: list[Model], tmp_path: Path, clients: int) -> None:
    def visit(number: int) -> list[bool]:
        visitor = Client(url, verbose=False, download_files=str(tmp_path / str(number)), httpx_kwargs=PATIENCE)
        right = []
        for turn in range(3):
            seed = 100 * turn + number
            path, recipe = visitor.predict(base=seed, regions={"hair": seed + 1}, api_name="/compose")
            expected = models[0].pipe(base=seed, regions={"hair": seed + 1}).images[0]
            right.append(recipe["base"] == seed and np.array_equal(pixels(path), pixels(expected)))
        return right

    with ThreadPoolExecutor(clients) as pool:
        assert all(all(right) for right in pool.map(visit, range(clients)))


def test_who_comes_when_too_many_wait_is_told_so(models: list[Model]) -> None:
    from stylefusion_hf.spaces_app.models import MAX_WAITING

    model, recipe = models[0], {"version": 1, "base": 4242, "truncation_psi": 1.0}
    with ThreadPoolExecutor(MAX_WAITING) as pool:
        with model.take_turn():
            jobs = [pool.submit(model.render, recipe) for _ in range(MAX_WAITING)]
            done, others = wait(jobs, return_when=FIRST_COMPLETED)
            assert [str(job.exception()) for job in done] == [
                "many people are turning dials just now: try again in a moment"
            ]
        assert all(job.result().recipe["base"] == 4242 for job in others)
    assert model.render(recipe)


def test_dials_come_first_but_every_turn_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(turns.time, "monotonic", lambda: now[0])
    line, order = turns.Turns(8), []

    def visit(name: str, patience: float) -> None:
        with line.take(patience):
            order.append(name)

    with ThreadPoolExecutor(8) as pool, line.take():
        for name, asked, patience in (
            ("row", 100.0, turns.ROW), ("picture", 100.1, turns.PICTURE), ("dial", 100.2, turns.DIAL),
            ("late dial", 101.1, turns.DIAL), ("late row", 101.1, turns.ROW),
        ):  # fmt: skip
            now[0] = asked
            count = len(line._waiting)
            pool.submit(visit, name, patience)
            while len(line._waiting) == count:
                time.sleep(0.001)
    assert order == ["dial", "picture", "row", "late dial", "late row"]
    with pytest.raises(KeyError), line.take():
        raise KeyError
    with line.take():  # the turn of one that failed has ended
        assert not line._waiting


def test_nothing_is_written_beside_the_code(url: str) -> None:
    app = sys.modules["stylefusion_hf.spaces_app.app"]
    suffixes = {path.suffix for path in Path(str(app.__file__)).parent.iterdir() if path.is_file()}
    assert suffixes <= {".py", ".js", ".css", ".md", ".txt"}


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads this process's memory from /proc")
def test_memory_is_steady(models: list[Model]) -> None:
    def resident() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

    def renders(count: int) -> None:
        for seed in range(count):
            compose.stage_value(models[0], dials.blank_settings(models[0], seed))

    renders(40)
    before = resident()
    renders(120)
    assert resident() - before < 16  # MB; the pictures themselves are 3 kB each


# ----------------------------------------------------------------------------------------------------
# The page's own events, started, and elsewhere.


def test_another_model_brings_its_own_dials(models: list[Model]) -> None:
    with gradio.Blocks() as page:
        chosen = gradio.Dropdown([("a", 0), ("b", 1)], value=0)
        tab = compose.Compose(models, chosen)
    assert page.config
    values = tab.history.value.present.values()
    updates = tab.events.switch(1, tab.history.value, *values)
    first, second = tab.stage.value["dials"], updates[tab.stage]["value"]["dials"]  # stage.js hides the others
    assert first == ["base", "global", "0", "1", "2", "3", "4", "5"] and second == ["base", "global", "0", "1"]
    assert updates[tab.cards[2].seed]["label"] == "Sky"
    assert updates[tab.history].present.base == Dial(dials.EXAMPLES[0][0])
    assert updates[tab.stage]["value"]["regions"] == ["Sky", "Ground"]


def test_a_refinement_is_of_one_picture(models: list[Model]) -> None:
    model = models[0]
    with gradio.Blocks():
        chosen = gradio.Dropdown([("a", 0), ("b", 1)], value=0)
        tab = compose.Compose(models, chosen)
    plain = changes.shuffle(model, dials.blank_settings(model, 3), [2])
    shown = tab.events._refine(0, History([plain]), *plain.values())
    refined = shown[tab.history].present
    assert refined.kept["refine_steps"] == changes.REFINE_STEPS
    assert "refined" in shown[tab.stage]["value"]["caption"]
    recipe = to_recipe(refined, model.regions, model.tree.root)
    assert not np.array_equal(pixels(model.render(recipe).image), pixels(model.render(plain_recipe(recipe)).image))
    assert from_recipe(model.check(recipe), model.regions, model.tree.root) == refined
    # Another look ends it, a lock does not, and neither previews nor candidates wait for it.
    locked = changes.lock_dial(model, refined, 2)
    assert locked.kept == refined.kept
    assert unrefined(refined) == plain
    small, _ = model.render_small(recipe)
    assert np.array_equal(pixels(small[0]), pixels(model.render_small(plain_recipe(recipe))[0][0]))
    with pytest.raises(ValueError, match="every region follows the base"):
        changes.refine(model, dials.blank_settings(model, 3))


def test_what_a_recipe_may_ask_of_a_refinement(models: list[Model]) -> None:
    recipe = {"version": 1, "base": 1, "regions": {"hair": 7}, "refine_steps": 41}
    with pytest.raises(ValueError, match="refines its picture in 41 steps: this page takes 40"):
        models[0].check(recipe)
    bare = tiny_pipeline()
    with pytest.raises(ValueError, match="this model has none"):
        Model(bare).check({**recipe, "refine_steps": 5})


def test_zero_gpu_is_asked_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    from stylefusion_hf.spaces_app import device

    asked = []

    def gpu(duration: int) -> Any:
        return lambda function: asked.append(duration) or function

    monkeypatch.setitem(sys.modules, "spaces", SimpleNamespace(GPU=gpu))
    try:
        assert importlib.reload(device).on_gpu(abs)(-2) == 2
        assert asked == [device.SECONDS]
    finally:
        monkeypatch.setitem(sys.modules, "spaces", None)  # as where it is not installed
        importlib.reload(device)
    assert device.on_gpu(abs) is abs


def test_the_command_refuses_in_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "no-such-model" in fails(capsys, "space", "--model", str(tmp_path / "no-such-model"))
    assert "--port" in fails(capsys, "space", "--port", "0")


@pytest.mark.slow  # a process of its own, with torch and gradio
def test_app_py_runs_where_nothing_lies_beside_it(tmp_path: Path) -> None:
    from stylefusion_hf.spaces_app import app

    shutil.copy(str(app.__file__), tmp_path / "app.py")  # as in a Space on the Hub, which has the package as a wheel
    program = "import app, gradio; gradio.Blocks.launch = lambda page, **settings: print(len(page.blocks), settings);"
    program += "app.main(['embedded'])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(str(app.__file__)).resolve().parents[1])},
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[0]) > 100
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["app.py"]


def test_a_taken_port_is_told_with_the_flag_that_names_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def launch(**settings: Any) -> None:
        raise OSError(
            "Cannot find empty port in range: 7860-7959. Set GRADIO_SERVER_PORT or pass server_port to launch()."
        )

    monkeypatch.setattr(app, "queued", lambda page: SimpleNamespace(launch=launch))
    monkeypatch.delenv("GRADIO_SERVER_PORT", raising=False)
    for settings, start in (({"server_port": 8123}, "port 8123 is taken"), ({}, "ports 7860 to 7959 are taken")):
        with pytest.raises(OSError, match=f"^{start}: name a free one with --port, such as --port 8000$"):
            app.serve(SimpleNamespace(is_running=False), **settings)  # type: ignore[arg-type]


def test_models_have_different_names(models: list[Model]) -> None:
    from stylefusion_hf.spaces_app import app

    with pytest.raises(ValueError, match="different names"):
        app.build([models[0], models[0]])


# ----------------------------------------------------------------------------------------------------
# Large models: previews while a dial turns, the full picture when it rests.


@pytest.fixture(scope="module")
def large() -> Model:
    return make_large()


def make_large() -> Model:
    """Return a MobileStyleGAN of 512 px with no fusion nets, as converted, and previews of 64 and 256 px."""
    torch.manual_seed(0)
    generator = MobileStyleGANGenerator(512, channels=[4] * 7, z_dim=16, w_dim=16, mapping_layers=1)
    generator.eval().estimate_w_avg(64)
    for size in (64, 256):
        generator.fit_preview(size, samples=8)
    sizes = {"conv_sizes": generator.conv_sizes, "rgb_sizes": generator.rgb_sizes}
    pipe = StyleFusionPipeline(generator, FusionHierarchy(tree="all", num_indicators=20, **sizes))
    pipe.register_to_config(_name_or_path="test/large")
    model = Model(pipe)
    # A random generator's previews do not resemble its pictures, so that none would be chosen.
    assert model.preview is None
    model.preview, model._small = 256, 64
    return model


def test_a_turning_dial_shows_a_preview_and_a_resting_one_the_picture(large: Model) -> None:
    settings = dials.blank_settings(large, 3)
    draft, full = (compose.stage_value(large, settings, draft=draft) for draft in (True, False))
    assert (draft["draft"], full["draft"]) == (True, False) and draft["smooth"]
    assert [opened(value["png"]).width for value in (draft, full)] == [256, 512]
    assert draft["recipe"] == full["recipe"] and draft["query"] == full["query"]
    assert np.array_equal(pixels(opened(full["png"])), pixels(large.render(json.loads(full["recipe"])).image))


def test_the_page_asks_for_the_full_picture_when_the_dials_rest(large: Model) -> None:
    page = app.build([large])
    rests = [f for f in page.fns.values() if f.fn is not None and f.fn.__name__ == "rest"]
    (rest,) = rests
    assert [name for _, name in rest.targets] == ["submit"]
    history = History([dials.blank_settings(large, 3)])
    value = rest.fn(0, history)
    assert not value["draft"] and opened(value["png"]).width == 512
    script = (app.HERE / "stage.js").read_text(encoding="utf-8")
    assert 'trigger("submit")' in script


def test_a_page_begins_with_previews(large: Model) -> None:
    page = app.build([large])
    values = {block.elem_id: block.value for block in page.blocks.values() if hasattr(block, "value")}
    start = values["sf-compose-stage"]
    assert start["draft"] and start["png"].startswith("data:image/webp")
    assert opened(start["png"]).width == 256
    for name in ("sf-edit-before", "sf-edit-local", "sf-edit-global"):
        assert not values[name], name  # made when the tab is opened
    inlined = re.findall(r"data:image/[^\"' ]+", json.dumps(list(map(str, values.values()))))
    assert inlined and sum(map(len, inlined)) < 400_000


def test_maps_of_large_pictures_are_small(large: Model) -> None:
    generator, tree = large.pipe.generator, "all*(face, hair)"
    segmenter = RegionSegmenter(["face", "hair"], channels=[4, 4], groups=2).eval()
    pipe = StyleFusionPipeline(generator, tiny_fusion(generator, tree, num_indicators=20), segmenter)
    pipe.register_to_config(_name_or_path="test/large-map")
    model = Model(pipe)
    picture = model.render({"version": 1, "base": 3, "truncation_psi": 1.0})
    assert picture.image.size == (512, 512) and picture.labels is not None and picture.labels.size == (256, 256)
    whole = pixels(model.render_map(picture.recipe))
    assert whole.shape[:2] == (512, 512)
    assert (whole[::2, ::2] == pixels(picture.labels)).mean() > 0.8  # noise, of a random generator


def test_outlines_come_after_the_full_picture() -> None:
    generator, tree = make_large().pipe.generator, "all*(face, hair)"
    segmenter = RegionSegmenter(["face", "hair"], channels=[4, 4], groups=2).eval()
    pipe = StyleFusionPipeline(generator, tiny_fusion(generator, tree, num_indicators=20), segmenter)
    pipe.register_to_config(_name_or_path="test/late-map")
    model = Model(pipe)
    model.preview = 256
    settings = dials.blank_settings(model, 5)
    assert compose_values.outline_value(model, settings) is None  # nothing is shown yet
    shown = compose_values.stage_value(model, settings)
    assert not shown["draft"] and shown["labels"] is None and shown["outlined"]
    late = compose_values.outline_value(model, settings)
    assert late is not None and late["key"] == shown["key"]
    recipe = to_recipe(settings, model.regions, model.tree.root)
    kept = model.render(recipe)
    assert kept is model.kept_picture(recipe) and kept.labels is not None
    assert np.array_equal(pixels(opened(late["labels"])), pixels(kept.labels))
    assert compose_values.stage_value(model, settings)["labels"] == late["labels"]  # from now on at once
    assert model.render(recipe | {"base": 6}, keep=False).labels is not None
    assert model.kept_picture(recipe | {"base": 6}) is None


def test_an_idle_page_rests(large: Model) -> None:
    page = app.queued(app.build([large]))
    assert gradio.Blocks().queue()._queue.sleep_when_free < app.QUEUE_SECONDS  # else gradio has changed
    assert page._queue.sleep_when_free == app.QUEUE_SECONDS


def test_sessions_hold_no_copies_of_what_components_show(large: Model) -> None:
    page = app.build([large])
    assert all(config["props"] for config in page.get_config_file()["components"])
    session = SessionState(page)
    assert session.blocks_config.blocks.keys() == page.blocks.keys()
    assert not any(session.config_values.values())
    plain = SessionState(gradio.Interface(lambda x: x, "text", "text"))
    assert any(plain.config_values.values())  # else gradio has changed


def test_thumbnails_come_after_the_full_picture(large: Model) -> None:
    with gradio.Blocks():
        chosen = gradio.Dropdown([("a", 0)], value=0)
        tab = compose.Compose([large], chosen)
    before = History([dials.blank_settings(large, 3)])
    after = before.push(dials.blank_settings(large, 77), "0 seed", 0.0)
    thumbnail = tab.cards[0].thumbnail
    updates = tab.updates(large, after, before.present, before.present.values())
    assert updates[tab.stage]["value"]["draft"] and thumbnail not in updates
    row = tab.row.value
    rested = tab.events._look_again(row, 0, after)
    assert "seed 77" in rested[thumbnail] and tab.looks in rested


def test_a_walk_of_previews_and_its_python(large: Model, tmp_path: Path) -> None:
    from stylefusion_hf.spaces_app.walk import size_choices, walk_snippet

    assert size_choices(large)["choices"] == [("256 px, quick", 256), ("64 px, quick", 64), ("512 px", 0)]
    recipe = large.check({"version": 1, "base": 4})
    folder = jobs.AnimationFolder()
    with Image.open(folder.write(large, recipe, None, [7], 4, 20.0, ".webp", height=256)) as film:
        assert (film.size, film.n_frames) == ((256, 256), 4)  # type: ignore[attr-defined]
        frames = []
        for number in range(4):
            film.seek(number)
            frames.append(pixels(film.convert("RGB")))
    text = walk_snippet(large, recipe, None, [7], 4, 20.0, ".webp", 256)
    written: dict[str, Any] = {}
    walker = StyleFusionInterpolationPipeline.from_pipe(large.pipe)
    lines = [line for line in text.splitlines() if not line.startswith(("from", "pipe ="))]
    exec("\n".join(lines), {"pipe": walker, "write_animation": lambda name, made, fps: written.update({name: made})})
    assert all(np.array_equal(pixels(a), b) for a, b in zip(written["walk.webp"], frames, strict=True))
    for height in (100, 512, True, "256"):
        with pytest.raises(ValueError, match="has no previews of"):
            folder.write(large, recipe, None, [7], 4, 20.0, ".webp", height=height)  # type: ignore[arg-type]


def test_a_sheet_of_previews_renders_no_full_picture(large: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    full = jobs.draw_sheet(large, [1], [2], 0.5)

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a full picture was rendered")

    monkeypatch.setattr(type(large.pipe), "__call__", lambda pipe, *args, **kwargs: refuse())
    draft = jobs.draw_sheet(large, [1], [2], 0.5, draft=True)
    assert json.loads(draft.info[RECIPE_KEY]) == json.loads(full.info[RECIPE_KEY])
    assert draft.width < full.width


def test_thumbnails_and_drafts_of_large_models_do_not_render_full_pictures(
    large: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = large.pipe.generator.synthesis.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        image = forward(*args, **kwargs)
        sizes.append(image.shape[-1])
        return image

    monkeypatch.setattr(large.pipe.generator.synthesis, "forward", watched)
    assert large.thumbnails([1, 2, 991])[0].width <= 128
    assert large.draft({"version": 1, "base": 5, "noise_mode": "random", "noise_seeds": [3]}).image.width == 256
    assert sizes == [64, 256]


def test_small_models_have_no_previews(models: list[Model]) -> None:
    picture = models[0].draft({"version": 1, "base": 5})
    assert models[0].preview is None and not picture.draft
    assert np.array_equal(pixels(picture.image), pixels(models[0].render({"version": 1, "base": 5}).image))


def opened(uri: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
