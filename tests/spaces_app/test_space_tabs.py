"""The tabs Mix pictures, Edit, Animate and Compare in a real browser, with the embedded model."""

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the Space needs the extra `space`")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from stylefusion_hf import StyleFusionPipeline  # noqa: E402
from stylefusion_hf.spaces_app.mix import SAMPLES  # noqa: E402
from tests.browsing import Visit  # noqa: E402


@pytest.fixture(scope="module")
def pipe() -> StyleFusionPipeline:
    return StyleFusionPipeline.from_embedded()


KEEP_TEXTS = """() => {
  window.said = [];
  const at = document.querySelector("#sf-steps");
  new MutationObserver(() => window.said.push(at.textContent))
    .observe(at, { childList: true, subtree: true, characterData: true });
}"""


def test_pictures_are_mixed_and_go_on(visit: Visit, pipe: StyleFusionPipeline) -> None:
    page = visit.page
    visit.open("Mix pictures")
    page.locator("#sf-picture-a input[type=file]").set_input_files(SAMPLES[0])
    page.locator("button[data-sample='1']").click()
    api.expect(page.locator("#sf-picture-b img")).to_be_visible()
    page.locator("#sf-steps input[type=range]").fill("10")
    page.evaluate(KEEP_TEXTS)
    page.locator("#sf-read").click()
    stage = page.locator("#sf-mix-stage")
    api.expect(stage.locator(".sf-caption")).to_have_text("Picture A as the model sees it")
    said = page.evaluate("window.said")  # how far it was, if only for a moment
    assert any(re.search("Reading the pictures|Step", text) for text in said), said
    page.locator("#sf-take-5").get_by_label("B").check()
    api.expect(stage.locator(".sf-caption")).to_have_text("Picture A with hair from B")
    api.expect(stage.locator(".sf-wipe")).to_be_visible()
    before = np.array(Image.open(io.BytesIO(base64.b64decode(
        stage.locator(".sf-before").get_attribute("src").split(",")[1]))))  # fmt: skip
    assert np.array_equal(before, np.array(Image.open(SAMPLES[0]).convert("RGB")))
    assert stage.get_by_role("button", name="Copy link").is_disabled()

    mixed = stage.locator(".sf-picture").get_attribute("src")
    visit.turn(lambda: page.locator("#sf-mix-go").click())
    api.expect(page.locator("#sf-compose-stage")).to_be_visible()
    assert visit.source == mixed
    visit.turn(lambda: visit.seed("eyes").fill("3"))  # the photographs stay where no seed is given
    assert isinstance(visit.recipe["base"], dict)
    assert set(visit.recipe["regions"]) == {"hair", "eyes"}
    assert np.array_equal(visit.pixels, np.array(pipe.from_recipe(visit.recipe).images[0]))


def test_a_bad_upload_is_a_message(visit: Visit, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("#!/bin/sh")
    visit.open("Mix pictures")
    visit.page.locator("#sf-picture-a input[type=file]").set_input_files(tmp_path / "text.png")
    visit.page.locator("#sf-read").click()
    api.expect(visit.page.get_by_text("Cannot read picture A")).to_be_visible()
    assert str(tmp_path.name) not in visit.page.content()


def test_edit_animate_and_compare(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    visit.open("Edit")
    api.expect(page.locator("#sf-edit-before .sf-caption")).to_have_text("as it is")
    direction = page.locator("#sf-edit-direction input").input_value()
    local, everywhere = page.locator("#sf-edit-local .sf-picture"), page.locator("#sf-edit-global .sf-picture")
    before = local.get_attribute("src"), everywhere.get_attribute("src")
    assert before[0] != before[1]
    page.locator("#sf-edit-strength input[type=range]").fill("-3")
    api.expect(page.locator("#sf-edit-global .sf-caption")).to_have_text(f"{direction} by -3: everything")
    api.expect(local).not_to_have_attribute("src", before[0])

    strips = page.locator("#sf-strips .sf-strip")
    api.expect(strips).to_have_count(12)  # six of SeFa, six of GANSpace
    api.expect(page.locator("#sf-strips .sf-strip[aria-pressed=true]")).to_contain_text(direction)
    strips.nth(7).locator("img").nth(4).click()
    name = strips.nth(7).locator(".sf-strip-name").inner_text()
    api.expect(page.locator("#sf-edit-direction input")).to_have_value(name)
    api.expect(page.locator("#sf-edit-strength input[type=range]")).to_have_value("2")
    api.expect(page.locator("#sf-edit-global .sf-caption")).to_have_text(f"{name} by +2: everything")
    api.expect(strips.nth(7)).to_have_attribute("aria-pressed", "true")
    drawn = strips.nth(7).locator("img").nth(2).get_attribute("src")
    page.locator("#sf-edit-seed input").fill("6")
    api.expect(strips.nth(7).locator("img").nth(2)).not_to_have_attribute("src", drawn)  # of the picture at hand

    visit.open("Animate")
    api.expect(page.locator("#sf-walk-film img")).to_be_visible()  # it opens with an animation
    api.expect(page.locator("#sf-walk-download")).to_be_enabled()
    opening = page.locator("#sf-walk-film img").get_attribute("src")
    with Image.open(io.BytesIO(page.request.get(opening).body())) as film:
        api.expect(page.locator("#sf-walk-frames input[type=range]")).to_have_value(str(film.n_frames))
    page.locator("#sf-walk-seeds textarea, #sf-walk-seeds input").first.fill("7")
    page.locator("#sf-walk-make").click()
    api.expect(page.locator("#sf-walk-film img")).not_to_have_attribute("src", opening)
    with page.expect_download() as download:
        page.locator("#sf-walk-download").click()
    download.value.save_as(tmp_path / "walk.webp")
    with Image.open(tmp_path / "walk.webp") as film:
        assert (film.n_frames, film.size) == (24, (128, 128))
    assert page.locator("#sf-walk-film img").bounding_box()["width"] > 300

    visit.open("Compare")  # it opens with a sheet
    api.expect(page.locator("#sf-grid-sheet img")).to_be_visible()
    api.expect(page.locator("#sf-grid-code")).to_contain_text("contact_sheet(pipe, [1, 4, 6], [21, 24, 26]")
