"""What axe-core, a checker of accessibility, finds in the Space's tabs; and ids, labels and sizes of targets."""

import re
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the Space needs the extra `space`")

from tests.browsing import PATIENCE

TABS = ("Compose", "Mix pictures", "Your photograph", "Edit", "Animate", "Compare", "About")
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]

# Elements that a pointer can use, as [description, width, height]; links within sentences are exempt (WCAG 2.5.8).
TARGETS = """() => [...document.querySelectorAll("button, input, select, a.sf-action, summary, [role=tab]")]
    .filter((at) => at.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }))
    .filter((at) => at.type !== "file" && !at.closest("footer"))
    .map((at) => {
        const label = at.matches("input[type=checkbox], input[type=radio]") ? at.closest("label") : null;
        const box = (label || at).getBoundingClientRect();
        return [(at.id || at.className || at.tagName) + " " + at.textContent.slice(0, 20), box.width, box.height];
    }).filter(([, width, height]) => width > 0 && height > 0 && Math.min(width, height) < 23.5)"""
IDS = """() => { const seen = [...document.querySelectorAll("[id]")].map((at) => at.id).filter(Boolean);
    return [...new Set(seen.filter((id, i) => seen.indexOf(id) !== i))]; }"""
UNNAMED = """() => [...document.querySelectorAll("input, button, select, textarea")]
    .filter((at) => at.checkVisibility() && at.type !== "hidden" && at.type !== "file")
    .filter((at) => !(at.labels?.length || at.getAttribute("aria-label") || at.getAttribute("aria-labelledby")
        || at.title || at.textContent.trim()))
    .map((at) => at.outerHTML.slice(0, 160))"""


def open_page(browser: Any, url: str, dark: bool, width: int = 1280) -> Any:
    context = browser.new_context(viewport={"width": width, "height": 900})
    page = context.new_page()
    page.set_default_timeout(PATIENCE)
    with page.expect_response(re.compile("queue/data")):
        page.goto(f"{url}/?__theme={'dark' if dark else 'light'}")
    page.wait_for_function("document.querySelector('#sf-compose-stage .sf-picture')?.src.startsWith('data:')")
    return page


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_nothing_serious(browser: Any, url: str, dark: bool, width: int) -> None:
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe-playwright-python is not installed: pip install it"
    ).Axe()
    page = open_page(browser, url, dark, width)
    options = {"resultTypes": ["violations"], "runOnly": {"type": "tag", "values": TAGS}}
    found = set()
    for tab in TABS:
        page.get_by_role("tab", name=tab).first.click()
        if tab == "Edit":
            page.wait_for_selector("#sf-strips .sf-strip")
        page.wait_for_function("!document.querySelector('.pending')")  # gradio dims what is being made
        page.wait_for_timeout(400)  # transitions of colors
        for violation in axe.run(page, options=options).response["violations"]:
            if violation["impact"] in ("serious", "critical"):
                for node in violation["nodes"]:
                    found.add((tab, violation["id"], node["html"][:200], node["failureSummary"][:200]))
    page.context.close()
    assert not found, "\n".join(map(str, sorted(found)))


@pytest.mark.parametrize("width", [1280, 390])
def test_ids_labels_and_targets(browser: Any, url: str, width: int) -> None:
    page = open_page(browser, url, dark=False, width=width)
    for tab in TABS:
        page.get_by_role("tab", name=tab).first.click()
        assert page.evaluate(IDS) == [], tab
        assert page.evaluate(UNNAMED) == [], tab
        assert page.evaluate(TARGETS) == [], tab
    page.context.close()


def test_the_focus_is_visible_on_sliders(browser: Any, url: str) -> None:
    page = open_page(browser, url, dark=False)
    page.keyboard.press("Tab")  # from now on the focus comes from the keyboard
    page.locator("#sf-psi input[type=range]").focus()
    width = "parseFloat(getComputedStyle(document.activeElement).outlineWidth)"
    style = "getComputedStyle(document.activeElement).outlineStyle"
    assert page.evaluate(width) >= 2 and page.evaluate(style) != "none"
    page.context.close()
