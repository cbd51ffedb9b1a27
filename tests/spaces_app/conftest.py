"""A Space, and a browser that visits it: chromium, driven by playwright. Without either these tests are skipped."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browsing import PATIENCE, Visit
from tests.space_server import serving


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("chromium is not on the PATH: apt install chromium")
    api.expect.set_options(timeout=PATIENCE)
    with api.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def context(browser: Any) -> Any:
    """One for all, so that gradio's scripts are loaded once."""
    made = browser.new_context(viewport={"width": 1280, "height": 900}, accept_downloads=True)
    made.grant_permissions(["clipboard-read", "clipboard-write"])
    return made


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Space with the embedded model."""
    from stylefusion_hf import StyleFusionPipeline
    from stylefusion_hf.spaces_app.models import Model

    with serving([Model(StyleFusionPipeline.from_embedded())], tmp_path_factory.mktemp("gradio")) as address:
        yield address


@pytest.fixture
def visit(context: Any, url: str) -> Iterator[Visit]:
    visitor = Visit(context.new_page(), url)
    yield visitor
    assert visitor.troubles == []
    visitor.page.close()
