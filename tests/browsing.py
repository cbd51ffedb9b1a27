"""What a visitor of the Space sees and does, for tests that drive a browser."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from stylefusion_hf.core.files import RECIPE_KEY

PATIENCE = 90_000  # ms; a machine with much other work takes minutes where an idle one takes seconds
REGIONS = ["mouth", "skin", "eyes", "clothes", "background", "hair"]


class Visit:
    """A page, and what a visitor sees in the tab Compose."""

    def __init__(self, page: Any, url: str):
        self.page, self.troubles = page, []
        page.set_default_timeout(PATIENCE)
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        with page.expect_response(re.compile("queue/data")):  # the answer to the page's first event
            page.goto(url)
        page.wait_for_function("document.querySelector('#sf-compose-stage .sf-picture')?.src.startsWith('data:')")

    @property
    def source(self) -> str:
        return self.page.locator("#sf-compose-stage .sf-picture").get_attribute("src")

    @property
    def image(self) -> Image.Image:
        return Image.open(io.BytesIO(base64.b64decode(self.source.split(",")[1])))

    @property
    def pixels(self) -> np.ndarray:
        return np.array(self.image, dtype=float)

    @property
    def recipe(self) -> dict[str, Any]:
        return json.loads(self.image.info[RECIPE_KEY])

    def dial(self, region: str) -> Any:
        return self.page.locator(f"#sf-dial-{REGIONS.index(region)}").first

    def seed(self, region: str) -> Any:
        return self.dial(region).locator(".sf-seed input")

    def turn(self, action: Callable[[], Any]) -> None:
        """An action, and the picture that follows it."""
        before = self.source
        action()
        self.page.wait_for_function(
            "before => document.querySelector('#sf-compose-stage .sf-picture').src !== before", arg=before
        )

    def open(self, tab: str) -> None:
        self.page.get_by_role("tab", name=tab).click()
