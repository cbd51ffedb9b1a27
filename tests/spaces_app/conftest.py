"""A browser for the tests of the Space: chromium, driven by playwright. Without either they are skipped."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from tests.browsing import PATIENCE


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("there is no chromium on the PATH: apt install chromium")
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
