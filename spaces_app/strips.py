"""Directions by looking: of each a strip of the present picture from -2 to +2, as its label on the tab Edit."""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.spaces_app.models import Model, digest
from stylefusion_hf.spaces_app.results import title, view_uri

HERE = Path(__file__).parent
STRENGTHS = (-2.0, -1.0, 0.0, 1.0, 2.0)  # standard deviations
MOST = 24  # directions that are drawn; the dropdown has all
KEPT = 8  # pictures whose strips are kept, of each model

FOUND = re.compile(r"(sefa-|pc)(\d+)")  # the names of directions that were found in a model and mean nothing yet
METHODS = {"sefa-": "SeFa", "pc": "PCA"}

# strips.js inserts all strings as text.
TEMPLATE = """
<section class="sf-strips" aria-label="Directions"></section>
"""

Strip = list[list[Any]]  # [strength, data URI], by ascending strength


def strips(value: Any = None, picked: str | None = None, **settings: Any) -> gr.HTML:
    """Return the component that shows the list of `StripDrawer.draw`; `picked` is the name of the chosen direction.

    A click fires `click` with {"direction": name, "strength": number}, without a strength if it came by keyboard.
    """
    script = (HERE / "strips.js").read_text(encoding="utf-8")
    return gr.HTML(
        value, html_template=TEMPLATE, js_on_load=script, apply_default_css=False, picked=picked, **settings
    )


class StripDrawer:
    """Draws the strips of a model's directions; those of the most recent pictures are kept."""

    def __init__(self, model: Model):
        self.model = model
        self._kept: OrderedDict[str, list[dict[str, Any]]] = OrderedDict()
        self._drawing = threading.Lock()

    def draw(self, start: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return [{"name", "label", "looks"}] of the directions: each moves the whole picture.

        The pictures of one direction are one batch at preview size, and each batch takes its turn, so that visitors
        who turn dials do not wait for all of them.

        Args:
            start: a checked recipe of one picture.
        """
        key = digest(start)
        with self._drawing:  # visitors who open the tab together get what the first of them waits for
            if key not in self._kept:
                self._kept[key] = self._render(start)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def _render(self, start: Mapping[str, Any]) -> list[dict[str, Any]]:
        model, read = self.model, Recipe.from_dict(start)
        others = {name: rows for name, rows in read.edits.items() if name != model.tree.root}
        (middle,), _ = model.render_small(replace(read, edits=others).to_dict())
        moved = [strength for strength in STRENGTHS if strength]
        found = []
        for name, direction in list(model.directions().items())[:MOST]:
            rows = direction(moved).displacement(model.pipe.generator).rows()
            recipe = replace(read, edits=others | {model.tree.root: rows}, num_images=len(moved))
            images = dict(zip(moved, model.render_small(recipe.to_dict())[0], strict=True)) | {0.0: middle}
            found.append({"name": name, "label": direction_name(name), "looks": self._looks(images)})
        return found

    def _looks(self, images: Mapping[float, Image.Image]) -> Strip:
        return [[strength, view_uri(self.model, images[strength])] for strength in STRENGTHS]


def direction_name(name: str) -> str:
    """Return the name under which the page shows a direction."""
    if found := FOUND.fullmatch(name):
        return f"{METHODS[found[1]]} {int(found[2])}"
    return title(name.replace("-", " "))
