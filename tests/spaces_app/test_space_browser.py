"""The tab Compose in a real browser, with the embedded model."""

import base64
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the Space needs the extra `space`")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from stylefusion_hf import StyleFusionPipeline  # noqa: E402
from stylefusion_hf.core.files import RECIPE_KEY  # noqa: E402
from tests.browsing import PATIENCE, REGIONS, Visit  # noqa: E402


@pytest.fixture(scope="module")
def pipe() -> StyleFusionPipeline:
    return StyleFusionPipeline.from_embedded()


def test_a_dial_changes_its_region(visit: Visit, pipe: StyleFusionPipeline) -> None:
    before, recipe = visit.pixels, visit.recipe
    masks = pipe.from_recipe(recipe, output_masks=True).masks
    visit.turn(lambda: visit.seed("eyes").fill("3"))
    after = visit.pixels
    recipe["regions"]["eyes"] = 3
    assert visit.recipe == recipe
    assert np.array_equal(after, np.array(pipe.from_recipe(recipe).images[0]))

    new = pipe.from_recipe(recipe, output_masks=True).masks
    inside = (masks["eyes"] | new["eyes"])[0].numpy()
    moved = np.square(after - before).sum(axis=2)
    assert moved[inside].mean() > 20 * moved[~inside].mean()
    api.expect(visit.dial("eyes").locator("img.sf-own")).to_have_count(
        1
    )  # the thumbnail is the seed's, no longer the base's


def test_strength_shuffle_reset_undo_and_redo(visit: Visit) -> None:
    page, start = visit.page, visit.source
    api.expect(page.locator("#sf-undo")).to_be_disabled()
    visit.turn(lambda: visit.dial("hair").locator("input[type=range]").fill("0.4"))
    assert visit.recipe["strength"] == {"hair": 0.4}
    visit.turn(lambda: visit.dial("clothes").get_by_role("button", name="Shuffle").click())
    drawn = visit.recipe["regions"]["clothes"]
    api.expect(visit.seed("clothes")).to_have_value(str(drawn))
    visit.turn(lambda: visit.dial("clothes").get_by_role("button", name="Reset").click())
    assert "clothes" not in visit.recipe["regions"]
    api.expect(visit.seed("clothes")).to_have_value("")
    visit.turn(lambda: page.locator("#sf-undo").click())
    api.expect(visit.seed("clothes")).to_have_value(str(drawn))
    for _ in range(2):
        visit.turn(lambda: page.locator("#sf-undo").click())
    assert visit.source == start
    api.expect(page.locator("#sf-undo")).to_be_disabled()
    api.expect(visit.dial("hair").locator("input[type=range]")).to_have_value("1")
    visit.turn(lambda: page.locator("#sf-redo").click())
    assert visit.recipe["strength"] == {"hair": 0.4}


def test_a_lock_holds(visit: Visit) -> None:
    seed = visit.seed("hair").input_value()
    visit.dial("hair").get_by_label("Lock").check()
    api.expect(visit.seed("hair")).to_be_disabled()
    before = visit.recipe
    visit.turn(lambda: visit.page.locator("#sf-surprise").click())
    after = visit.recipe
    assert after["regions"]["hair"] == before["regions"]["hair"] == int(seed)
    assert after["base"] != before["base"]
    assert 2 <= len(after["regions"]) <= 3  # hair, and one or two others


def test_of_a_burst_the_last_is_shown(visit: Visit) -> None:
    slider = visit.dial("skin").locator("input[type=range]")
    slider.evaluate("""slider => {
        for (let step = 1; step < 30; step++) {
            slider.value = step / 100;
            slider.dispatchEvent(new Event("input", { bubbles: true }));
        }
    }""")
    api.expect(visit.page.locator("#sf-compose-stage .sf-code")).to_contain_text("'skin': 0.29")
    assert visit.recipe["strength"] == {"skin": 0.29}
    visit.turn(lambda: visit.page.locator("#sf-undo").click())  # a burst is one step
    assert "strength" not in visit.recipe


def test_an_error_of_a_dial_is_told_and_goes_away(visit: Visit) -> None:
    message = visit.page.locator("#sf-compose-stage .sf-message")
    before = visit.source
    visit.page.locator("#sf-dial-base .sf-seed input").fill("")
    api.expect(message).to_have_text("The base picture needs a seed: type a number, or press Shuffle")
    assert visit.source == before
    visit.page.locator("#sf-dial-base .sf-seed input").fill("99999999999")
    api.expect(message).to_have_text("Base picture: '99999999999' is not a seed: give an integer from 0 to 4294967295")
    visit.seed("hair").fill("1.5")
    visit.page.locator("#sf-dial-base .sf-seed input").fill("5")
    api.expect(message).to_have_text("Hair: '1.5' is not a seed: give an integer from 0 to 4294967295")
    visit.turn(lambda: visit.seed("hair").fill("5"))
    api.expect(message).to_be_hidden()


def test_pointing_at_the_picture(visit: Visit, pipe: StyleFusionPipeline) -> None:
    masks = pipe.from_recipe(visit.recipe, output_masks=True).masks
    frame = visit.page.locator("#sf-compose-stage .sf-frame")
    side = frame.bounding_box()["width"]
    for region in ("skin", "background"):
        y, x = np.argwhere(masks[region][0].numpy())[len(np.argwhere(masks[region][0].numpy())) // 2]
        place = {"x": float(x + 0.5) * side / 128, "y": float(y + 0.5) * side / 128}
        frame.hover(position=place)
        api.expect(visit.page.locator("#sf-compose-stage .sf-tip")).to_have_text(region.capitalize())
        frame.click(position=place)
        api.expect(visit.dial(region)).to_have_class(re.compile("sf-chosen"))
    visit.seed("eyes").focus()
    drawn = "() => [...document.querySelector('#sf-compose-stage .sf-outline').getContext('2d')"
    drawn += ".getImageData(0, 0, 768, 768).data].filter((level, i) => i % 4 === 3 && level).length"
    visit.page.mouse.move(2, 2)
    assert visit.page.evaluate(drawn) > 1000


def test_export_and_import(visit: Visit, tmp_path: Path) -> None:
    page = visit.page

    def choose(file: Path) -> None:
        with page.expect_file_chooser() as chooser:
            page.locator("#sf-open").click()
        chooser.value.set_files(file)

    visit.turn(lambda: page.locator("#sf-surprise").click())
    visit.turn(lambda: page.locator("#sf-psi input[type=range]").fill("0.5"))
    source, recipe = visit.source, visit.recipe
    for link, name in (("png", "a.png"), ("json", "a.json")):
        with page.expect_download() as download:
            page.locator(f"#sf-compose-stage .sf-{link}").click()
        download.value.save_as(tmp_path / name)
    assert json.loads((tmp_path / "a.json").read_text()) == recipe
    assert (tmp_path / "a.png").read_bytes() == base64.b64decode(source.split(",")[1])
    for name in ("a.png", "a.json"):
        visit.turn(lambda: page.locator("#sf-clear").click())
        assert visit.recipe["base"] == 1
        visit.turn(lambda name=name: choose(tmp_path / name))
        assert visit.source == source
        for region, seed in recipe["regions"].items():
            api.expect(visit.seed(region)).to_have_value(str(seed))

    (tmp_path / "no.json").write_text("[]")
    choose(tmp_path / "no.json")
    api.expect(page.get_by_text("This is not a recipe of this app")).to_be_visible()


def test_a_link_brings_the_picture(visit: Visit, context: Any) -> None:
    visit.turn(lambda: visit.page.locator("#sf-surprise").click())
    visit.page.get_by_role("button", name="Copy link").first.click()
    link = visit.page.locator("#sf-compose-stage .sf-link").input_value()
    assert visit.page.evaluate("navigator.clipboard.readText()") == link
    page = context.new_page()
    other = Visit(page, link)
    page.wait_for_function("src => document.querySelector('#sf-compose-stage .sf-picture').src === src",
                           arg=visit.source)  # fmt: skip
    api.expect(other.seed("mouth")).to_have_value(visit.seed("mouth").input_value())
    page.close()


def test_a_link_brings_no_html(context: Any, url: str) -> None:
    page, asked = context.new_page(), []
    page.set_default_timeout(PATIENCE)
    page.on("request", lambda request: asked.append(request.url))
    hostile = '<a id="evil" href="http://evil.example/">x</a><img id="evil" src="http://evil.example/x">'
    recipe = json.dumps({"version": 1, "base": 1, "regions": {hostile: 1}})
    page.goto(f"{url}/?{urlencode({'recipe': recipe})}")
    message = page.get_by_test_id("toast-text").first
    api.expect(message).to_contain_text("<a")
    assert page.locator("#evil").count() == message.locator("a, img").count() == 0
    assert not [each for each in asked if "evil" in each and not each.startswith(url)]
    page.close()


def test_examples_and_python(visit: Visit) -> None:
    visit.turn(lambda: visit.page.locator("button[data-example='2']").click())
    assert visit.recipe["base"] == 6
    visit.page.get_by_role("button", name="Copy Python").first.click()
    assert "StyleFusionPipeline.from_embedded()" in visit.page.evaluate("navigator.clipboard.readText()")


def test_choosing_by_looking(visit: Visit, pipe: StyleFusionPipeline) -> None:
    page, rows = visit.page, visit.page.locator("#sf-looks .sf-candidate")
    api.expect(rows).to_have_count(8)
    page.locator("#sf-looks .sf-place", has_text="Eyes").click()
    api.expect(page.locator("#sf-looks .sf-looks-title")).to_have_text("Eyes: eight looks on this picture. Click one.")
    seed = int(rows.nth(2).get_attribute("data-seed"))
    recipe = visit.recipe
    visit.turn(lambda: rows.nth(2).click())
    recipe["regions"]["eyes"] = seed
    assert visit.recipe == recipe
    api.expect(visit.seed("eyes")).to_have_value(str(seed))
    api.expect(rows.nth(2)).to_have_attribute("aria-pressed", "true")
    assert np.array_equal(visit.pixels, np.array(pipe.from_recipe(recipe).images[0]))

    pictures = rows.first.locator("img")
    before = pictures.get_attribute("src")
    page.locator("#sf-looks .sf-more").click()
    api.expect(pictures).not_to_have_attribute("src", before)
    assert int(rows.nth(2).get_attribute("data-seed")) != seed
    before = pictures.get_attribute("src")
    visit.turn(lambda: visit.seed("hair").fill("9"))  # the candidates follow the rest of the picture
    api.expect(pictures).not_to_have_attribute("src", before)
    visit.dial("hair").locator(".sf-thumbnail img").click()
    api.expect(page.locator("#sf-looks .sf-looks-title")).to_contain_text("Hair: ")


def test_undo_by_keyboard_and_a_reload(visit: Visit) -> None:
    page, start = visit.page, visit.recipe
    visit.turn(lambda: visit.seed("hair").fill("77"))
    changed = visit.source
    api.expect(page.locator("#sf-undo")).to_be_enabled()
    visit.turn(lambda: page.keyboard.press("Control+z"))
    assert visit.recipe == start
    api.expect(page.locator("#sf-redo")).to_be_enabled()
    visit.turn(lambda: page.keyboard.press("Control+Shift+Z"))
    assert visit.source == changed
    page.reload()
    same = "src => document.querySelector('#sf-compose-stage .sf-picture')?.src === src"
    page.wait_for_function(same, arg=changed)
    api.expect(visit.seed("hair")).to_have_value("77")

    visit.open("Edit")  # codes that are no seeds do not fit into the address: the browser keeps them
    api.expect(page.locator("#sf-edit-local .sf-caption")).to_contain_text(" by +")
    visit.turn(lambda: page.get_by_role("button", name="Go on in Compose").last.click())
    api.expect(page.locator("#sf-compose-stage")).to_be_visible()
    edited = visit.source
    assert visit.recipe["edits"]
    assert "recipe=" not in page.url
    page.reload()
    page.wait_for_function(same, arg=edited)


def test_pixels_and_larger_files(visit: Visit, tmp_path: Path) -> None:
    page, toggle = visit.page, visit.page.locator("#sf-compose-stage .sf-pixels")
    rendering = "getComputedStyle(document.querySelector('#sf-compose-stage .sf-picture')).imageRendering"
    assert page.evaluate(rendering) == "auto"
    toggle.click()
    assert page.evaluate(rendering) == "pixelated"
    toggle.click()
    assert page.evaluate(rendering) == "auto"
    with page.expect_download() as download:
        page.get_by_role("button", name="4x").first.click()
    download.value.save_as(tmp_path / "4x.png")
    page.get_by_role("button", name="No background").first.click()
    for name in ("1x", "again"):
        with page.expect_download() as download:
            page.locator("#sf-compose-stage .sf-png").click()
        download.value.save_as(tmp_path / f"{name}.png")
        with Image.open(tmp_path / f"{name}.png") as image:
            assert (image.size, image.mode) == ((128, 128), "RGBA")
            assert image.getchannel("A").getextrema() == (0, 255)
    with Image.open(tmp_path / "4x.png") as image:
        assert image.size == (512, 512)
        assert json.loads(image.info[RECIPE_KEY]) == visit.recipe


def test_a_phone_shows_all_without_scrolling_sideways(browser: Any, url: str) -> None:
    context = browser.new_context(viewport={"width": 375, "height": 740}, has_touch=True, is_mobile=True)
    visit = Visit(context.new_page(), url)
    for tab in ("Compose", "Mix pictures"):
        visit.page.get_by_role("tab", name=tab).first.click(force=True)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= 375
    assert visit.page.get_by_role("tab", name="About").first.is_visible()  # none hides in a menu
    visit.page.get_by_role("tab", name="Compose").first.click(force=True)
    visit.dial("hair").scroll_into_view_if_needed()
    box = visit.page.locator("#sf-compose-stage .sf-frame").bounding_box()
    assert 0 <= box["y"] < 100  # the picture stays in sight beside the last dial
    assert box["width"] > 120
    middle = [box["x"] + box["width"] / 2, box["y"] + box["height"] / 2]
    for step in range(8):  # and nothing that scrolls below it shines through
        visit.page.mouse.wheel(0, -40)
        top = visit.page.evaluate("([x, y]) => Boolean(document.elementFromPoint(x, y)?.closest('.sf-frame'))", middle)
        assert top, step
    visit.turn(lambda: visit.seed("hair").fill("8"))
    assert visit.troubles == []
    context.close()


def test_the_keyboard_reaches_everything(visit: Visit) -> None:
    reached = set()
    visit.page.locator("#sf-compose-stage .sf-png").focus()
    for _ in range(150):
        reached.add(visit.page.evaluate(
            "() => { const at = document.activeElement; const card = at.closest('[id^=sf-dial-]');"
            " return (card ? card.id + ' ' : '') + (at.type || at.tagName) + ' ' + at.textContent.trim(); }"
        ))  # fmt: skip
        visit.page.keyboard.press("Tab")
    for number in range(len(REGIONS)):
        for control in ("number", "submit Shuffle", "checkbox"):
            assert any(f"sf-dial-{number} {control}" in name for name in reached), (number, control, sorted(reached))
    before = visit.recipe["regions"]["hair"]
    visit.seed("hair").focus()
    visit.turn(lambda: visit.page.keyboard.press("ArrowUp"))
    assert visit.recipe["regions"]["hair"] == before + 1
