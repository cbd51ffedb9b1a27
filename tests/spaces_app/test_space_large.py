"""A large model beside a small one in a real browser: when previews are drawn, and when full pictures."""

import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the Space needs the extra `space`")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from stylefusion_hf import StyleFusionPipeline  # noqa: E402
from stylefusion_hf.spaces_app.models import Model  # noqa: E402
from tests.browsing import PATIENCE  # noqa: E402
from tests.space_server import serving  # noqa: E402
from tests.spaces_app.test_space import make_large  # noqa: E402

PICTURE = "document.querySelector('#sf-compose-stage .sf-picture')?.src"


def test_a_large_model_shows_previews_and_says_what_it_draws(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = make_large()
    drawn: list[str] = []  # "draft" and "full", in the order in which they begin
    for name, label, seconds in (("draft", "draft", 0.7), ("render", "full", 0.0)):
        method = getattr(large, name)

        def slow(recipe: Any, method: Any = method, label: str = label, seconds: float = seconds, **how: Any) -> Any:
            drawn.append(label)
            time.sleep(seconds)
            return method(recipe, **how)

        monkeypatch.setattr(large, name, slow)
    with serving([Model(StyleFusionPipeline.from_embedded()), large], tmp_path / "gradio") as url:
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE)
        page.goto(url)
        page.wait_for_function(f"{PICTURE}?.startsWith('data:image/png')")
        busy = page.locator("#sf-compose-stage .sf-busy")
        api.expect(busy).to_be_hidden()
        page.locator("#sf-model input").click()
        page.get_by_role("option", name="large").click()
        api.expect(busy).to_have_text("Drawing the first picture of test/large ...")
        page.wait_for_function(f"{PICTURE}.startsWith('data:image/webp')")
        api.expect(busy).to_be_hidden()
        page.wait_for_function(f"{PICTURE}.startsWith('data:image/png')")

        # A dial that is turned, and buttons that are clicked, every quarter of a second for longer than a dial's rest:
        # previews only, then one full picture.
        turn_dial = """
            const slider = document.querySelector("#sf-psi input[type=range]");
            slider.value = 0.3 + i / 50;
            slider.dispatchEvent(new Event("input", { bubbles: true }));"""
        for step in (turn_dial, "document.getElementById('sf-surprise').click();"):
            drawn.clear()
            page.evaluate(f"""async () => {{
                for (let i = 0; i < 12; i++) {{
                    {step}
                    await new Promise(done => setTimeout(done, 250));
                }}
            }}""")
            assert "full" not in drawn and drawn.count("draft") > 1
            page.wait_for_function(f"{PICTURE}.startsWith('data:image/webp')")
            page.wait_for_function(f"{PICTURE}.startsWith('data:image/png')")
            assert drawn.count("full") == 1 and drawn[-1] == "full"
        page.close()
