"""Regions learned from painted samples, and the page that they are painted on."""

import base64
import json
import shutil
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import StyleFusionPipeline
from stylefusion_hf.cli import main
from stylefusion_hf.evaluation.judges import load_judges
from stylefusion_hf.evaluation.pairs import style_codes
from stylefusion_hf.regions import label_page
from stylefusion_hf.regions.discovery import sample_codes
from stylefusion_hf.regions.few_shot import (
    UNPAINTED,
    PaintFolder,
    learn,
    painted_places,
    predict_labels,
    sample_images,
)
from stylefusion_hf.regions.folders import read_regions, write_found
from tests.tiny import tiny_generator

REGIONS = ["background", "skin", "clothes", "mouth", "eyes", "hair"]


@pytest.fixture(scope="module")
def generator():
    return StyleFusionPipeline.from_embedded().generator


@pytest.fixture(scope="module")
def painted(generator, tmp_path_factory) -> PaintFolder:
    """Four samples, a twentieth of whose pixels are painted as the judge sees them."""
    draw = np.random.RandomState(0)
    assert list(load_judges().segmenter.config.regions) == REGIONS
    paint = PaintFolder.create(tmp_path_factory.mktemp("paint") / "painted", generator, REGIONS, 4)
    truth = load_judges().segmenter.segment(sample_images(generator, paint.seeds)).argmax(1).numpy().astype(np.uint8)
    for seed, labels in zip(paint.seeds, truth, strict=True):
        paint.paint(seed, np.where(draw.rand(*labels.shape) < 0.05, labels, UNPAINTED).astype(np.uint8))
    return paint


def test_four_painted_samples_teach_the_rest(generator, painted):
    found = learn(generator, painted, progress=False)
    assert list(found.labeller.config.regions) == REGIONS and set(found.tree.leaves) == set(REGIONS)
    codes = sample_codes(generator, 32, torch.Generator().manual_seed(9))
    labels = predict_labels(generator, found.labeller, codes)
    with torch.no_grad():
        truth = load_judges().segmenter.segment(generator.synthesis(codes).clamp(-1, 1)).argmax(1)
    iou = [float(((labels == i) & (truth == i)).sum() / ((labels == i) | (truth == i)).sum()) for i in range(6)]
    assert np.mean(iou) > 0.55 and min(iou) > 0.3
    held = found.report["IoU on painted pictures left out"]
    assert set(held) == {*REGIONS, "mean"} and 0.4 < held["mean"] < 0.95
    again = learn(generator, painted, check=False, progress=False)
    assert again.tree == found.tree and set(again.report) < set(found.report)
    assert all(found.report[name] == value for name, value in again.report.items())
    assert torch.equal(again.labeller.layers[0].weight, found.labeller.layers[0].weight)


def test_painted_places_are_where_the_paint_is():
    g = tiny_generator()
    labels = np.full((32, 32), UNPAINTED, np.uint8)
    labels[3, 5], labels[20:22, 7] = 1, 0
    x, y, picture = painted_places(g, torch.randn(2, g.style_dim), [labels, labels], 2)
    assert x.shape == (6, 24) and y.tolist() == [1, 0, 0] * 2 and picture.tolist() == [0] * 3 + [1] * 3
    assert torch.allclose(x.norm(dim=1), torch.ones(6), atol=1e-5)


def test_paint_is_a_folder_of_files(tmp_path):
    g = tiny_generator()
    paint = PaintFolder.create(tmp_path / "p", g, ["a", "b"], 2)
    assert paint.painted() == [] and Image.open(paint.image_file(1)).size == (32, 32)
    labels = np.full((32, 32), UNPAINTED, np.uint8)
    labels[0, 0] = 1
    paint.paint(1, labels)
    again = PaintFolder.create(tmp_path / "p", g, ["a", "b"], 2)  # as it is
    assert again.painted() == [1] and np.array_equal(again.labels(1), labels)
    with pytest.raises(ValueError, match="has 2 samples of the regions a, b"):
        PaintFolder.create(tmp_path / "p", g, ["a", "c"], 2)
    with pytest.raises(ValueError, match="nothing is painted for a yet"):
        learn(g, again, progress=False)
    labels[5, 5] = 7
    paint.paint(0, labels)
    with pytest.raises(ValueError, match="has the value 7: expected 0 to 1 for a, b, or 255"):
        learn(g, again, progress=False)
    paint.paint(0, np.zeros((16, 16), np.uint8))
    with pytest.raises(ValueError, match="is 16 x 16, its sample 32 x 32"):
        learn(g, again, progress=False)
    Image.new("RGB", (32, 32)).save(paint.label_file(0))
    with pytest.raises(ValueError, match="has mode RGB"):
        again.labels(0)
    paint.label_file(0).write_bytes(b"not a picture")
    with pytest.raises(ValueError, match="cannot be read"):
        again.labels(0)
    for text in ("{}", "not json", '{"regions": ["a"], "seeds": [0]}'):
        (tmp_path / "p" / "dataset.json").write_text(text)
        with pytest.raises(ValueError, match="has no samples to paint|expected 2 to 20 distinct"):
            PaintFolder(tmp_path / "p")


def test_grey_pictures_and_classes(tmp_path):
    g = tiny_generator(use_noise=False, img_channels=1, label_dim=3)
    paint = PaintFolder.create(tmp_path / "p", g, ["a", "b"], 3)
    assert Image.open(paint.image_file(0)).mode == "L"
    assert torch.allclose(style_codes(g, [2]), style_codes(g, [0, 1, 2])[2:], atol=1e-5)  # whoever stands beside it
    labels = np.full((32, 32), UNPAINTED, np.uint8)
    labels[:8], labels[24:] = 0, 1
    paint.paint(2, labels)
    folder = write_found(tmp_path / "out", g, learn(g, paint, progress=False), 16, 2, progress=False)
    tree, segmenter = read_regions(folder)
    assert set(tree.leaves) == {"a", "b"} and segmenter.config.img_channels == 1
    assert Image.open(folder / "regions.png").size[0] > 700


def test_the_command_without_a_page(tmp_path, capsys):
    tiny_generator(use_noise=False).save_pretrained(tmp_path / "model" / "generator")
    base = ["regions", "label", "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out")]
    assert main([*base, "--only-samples"]) == 2
    assert "name the regions to paint" in capsys.readouterr().err
    assert main([*base, "--only-samples", "--region", "a", "--region", "b", "--device", "nowhere"]) == 2
    assert "--device nowhere: " in capsys.readouterr().err
    assert main([*base, "--learn"]) == 2
    assert "has no samples to paint" in capsys.readouterr().err
    assert main([*base, "--only-samples", "--region", "sky", "--region", "car", "--count", "3"]) == 0
    assert "3 samples; in labels/ paint 0 to 1, then --learn" in capsys.readouterr().out
    paint = PaintFolder(tmp_path / "out" / "painted")
    for seed in paint.seeds[:2]:
        labels = np.full((32, 32), UNPAINTED, np.uint8)
        labels[:8], labels[24:] = 0, 1
        paint.paint(seed, labels)
    assert main([*base, "--learn", "--samples", "16", "--steps", "2"]) == 0
    tree, segmenter = read_regions(tmp_path / "out")
    assert set(tree.leaves) == {"sky", "car"} == set(segmenter.config.regions)
    assert json.loads((tmp_path / "out" / "regions.json").read_text())["painted"] == [0, 1]


# --- The page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path) -> Iterator[label_page.Server]:
    g = tiny_generator(use_noise=False)
    paint = PaintFolder.create(tmp_path / "out" / "painted", g, ["sky", "<car>"], 3)
    work = label_page.PaintSession(g, paint, tmp_path / "out", samples=16, steps=2, seed=0)
    with label_page.Server("127.0.0.1", 0, work) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def ask(server: Any, path: str, body: bytes | None = None, header: str = "label") -> tuple[int, Any]:
    request = urllib.request.Request(f"http://127.0.0.1:{server.server_address[1]}{path}", data=body)
    if body is not None:
        request.add_header("X-Stylefusion", header)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            text, status = answer.read(), answer.status
    except HTTPError as error:
        text, status = error.read(), error.code
    return status, json.loads(text) if text.startswith(b"{") else text


def test_the_page_paints_learns_and_saves(server):
    status, page = ask(server, "/")
    assert status == 200 and b"<!doctype html>" in page
    _, about = ask(server, "/about")
    assert about["regions"] == ["sky", "<car>"] and about["size"] == 32 and len(about["samples"]) == 3
    assert base64.b64decode(about["samples"][0]["labels"]) == bytes([UNPAINTED]) * 1024
    assert ask(server, "/learn", b"") == (422, {"said": "nothing is painted for sky, <car> yet: a stroke in one or two"
                                                " samples will do"})  # fmt: skip
    for seed in (0, 1, 2):
        labels = np.full((32, 32), UNPAINTED, np.uint8)
        labels[:8], labels[24:] = 0, 1
        assert ask(server, f"/paint/{seed}", labels.tobytes())[0] == 200
    status, learnt = ask(server, "/learn", b"")
    assert status == 200 and len(learnt["pictures"]) == 3 and "IoU" in learnt["said"]
    status, saved = ask(server, "/save", b"")
    assert status == 200 and "The tree: all*(" in saved["said"]
    assert set(read_regions(server.work.out)[0].leaves) == {"sky", "<car>"}


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/paint/9", bytes(1024), 422),
        ("/paint/0", bytes(10), 422),
        ("/paint/0", bytes([7]) * 1024, 422),
        ("/paint/0", bytes(2000), 400),
        ("/paint/../x", b"", 404),
        ("/elsewhere", None, 404),
        ("/../../etc/passwd", None, 404),
    ],
)
def test_the_page_refuses(server, path, body, status):
    assert ask(server, path, body)[0] == status
    assert server.work.paint.painted() == []


def test_other_pages_cannot_paint(server):
    assert ask(server, "/paint/0", bytes(1024), header="")[0] == 400
    assert server.work.paint.painted() == []


def test_a_taken_port_is_one_line(server, tmp_path):
    port = server.server_address[1]
    with pytest.raises(OSError, match=f"--port {port} of 127.0.0.1 is not available"):
        label_page.label(tiny_generator(), ["a", "b"], 2, tmp_path / "new", 8, 2, 0, port=port, open_browser=False)


def test_strokes_in_a_browser(server):
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("there is no chromium on the PATH")
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page, troubles = started.new_page(viewport={"width": 390, "height": 800}), []
        page.set_default_timeout(90_000)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.server_address[1]}")
        page.click('#regions button:has-text("<car>")')
        box = page.locator("#canvas").bounding_box()
        assert box["width"] <= 390
        page.mouse.move(box["x"] + box["width"] / 4, box["y"] + box["height"] / 2)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 3 / 4, box["y"] + box["height"] / 2, steps=5)
        with page.expect_response("**/paint/0"):
            page.mouse.up()
        painted = PaintFolder(server.work.paint.root).labels(0)
        assert (painted[16, 9:23] == 1).all() and (painted != UNPAINTED).sum() < 64
        with page.expect_response("**/paint/0"):
            page.click("#undo")
        assert PaintFolder(server.work.paint.root).painted() == []
        page.click("#learn")
        page.wait_for_function("document.getElementById('said').classList.contains('bad')")
        assert "nothing is painted for sky" in page.inner_text("#said")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390 and troubles == []
        started.close()


def test_the_wheel_has_the_page():
    assert label_page.PAGE.is_file()
    text = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert f'"regions/{label_page.PAGE.name}"' in text
