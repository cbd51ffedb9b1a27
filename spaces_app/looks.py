"""Choosing by looking: a row of candidates for one dial, each rendered on the present picture.

A click on a candidate sets the dial to its seed. The row is rendered again when the rest of the picture has changed,
and only when the dials rest.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from stylefusion_hf.spaces_app import dials
from stylefusion_hf.spaces_app.changes import MAX_DRAWN_SEED, name_at, places
from stylefusion_hf.spaces_app.crops import crop, region_box, scale_box
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.results import view_uri
from stylefusion_hf.spaces_app.settings import BASE, COMMON, Dial, Settings, source, to_recipe

HERE = Path(__file__).parent
COUNT = 8  # candidates in a row
BATCH = 2  # a dial that is turned meanwhile waits for one batch, not for the row
MAX_PAGE = 1000  # rows of one dial
SHARP = 96  # pixels: smallest side of a candidate for which the smallest previews are large enough

# looks.js inserts all strings as text.
TEMPLATE = """
<section class="sf-looks" aria-label="Choose by looking">
  <div class="sf-places" role="group" aria-label="What to choose"></div>
  <p class="sf-looks-title" aria-live="polite"></p>
  <div class="sf-candidates"></div>
</section>
"""


@dataclass(frozen=True)
class Row:
    """Which candidates are shown.

    Args:
        place: number of their dial, as in `changes`.
        page: number of the row: "more" goes to the next.
        key: digest of everything else in the picture that they were rendered on; "" before they are rendered.
    """

    place: int
    page: int = 0
    key: str = ""


def looks(value: Any = None, picked: int | None = None, **settings: Any) -> gr.HTML:
    """Return the component that shows the dict of `render_row`; `picked` is the seed of the dial, if it has one."""
    script = (HERE / "looks.js").read_text(encoding="utf-8")
    return gr.HTML(
        value, html_template=TEMPLATE, js_on_load=script, apply_default_css=False, picked=picked, **settings
    )


def first_row(model: Model) -> Row:
    """Return the row that a page starts with: of the last region, or of the whole picture if that is all there is."""
    return Row(places(model)[-1])


def seeds_of(row: Row) -> list[int]:
    """Return the seeds of a row: for every dial and page others, and always the same."""
    return random.Random(f"{row.place} {row.page}").sample(range(MAX_DRAWN_SEED), COUNT)


def key_of(model: Model, settings: Settings, row: Row) -> str:
    """Return a digest of what a row shows, without the seed of its own dial."""
    recipe = candidate_recipe(model, settings, row.place, [0])
    locked = settings.dial(name_at(model, row.place), model.regions).locked
    text = json.dumps([model.name, row.place, row.page, locked, recipe], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def candidate_recipe(model: Model, settings: Settings, place: int, seeds: list[int]) -> dict[str, Any]:
    """Return the recipe of the present picture with each of these seeds for one dial: a batch."""
    name = name_at(model, place)
    dial = settings.dial(name, model.regions)
    strength = dial.strength if source(settings, name, dial) is not None else 1.0
    changed = settings.with_dial(name, model.regions, Dial(seeds[0], strength))
    recipe = to_recipe(changed, model.regions, model.tree.root)
    if name is BASE or name is COMMON:
        recipe[str(name)] = seeds
    else:
        recipe["regions"] = recipe["regions"] | {name: seeds}
    return recipe | {"num_images": len(seeds)}


def render_row(model: Model, settings: Settings, row: Row) -> tuple[Row, dict[str, Any]]:
    """Render a row of candidates, in batches that each take their turn.

    Returns:
        The row with its key, and the value of `looks`.
    """
    name, seeds = name_at(model, row.place), seeds_of(row)
    region = None if name is BASE or name is COMMON else name
    smallest, largest, box = model.small_heights[0], model.small_heights[-1], None
    height = smallest
    if region is not None and model.has_segmenter:
        recipe = to_recipe(settings, model.regions, model.tree.root)
        _, masks = model.render_small(recipe, region, largest)
        box = None if masks is None else region_box(masks[0])
        if box is not None and smallest and largest:
            shrunk = scale_box(box, smallest / largest)
            large_enough = shrunk[2] - shrunk[0] >= SHARP  # a small region needs larger previews
            height, box = (smallest, shrunk) if large_enough else (largest, box)
    images = []
    for at in range(0, COUNT, BATCH):
        recipe = candidate_recipe(model, settings, row.place, seeds[at : at + BATCH])
        images += model.render_small(recipe, None, height)[0]
    value = {
        "title": title(model, row.place),
        "place": row.place,
        "places": [[place, label(model, place)] for place in places(model)],
        "locked": settings.dial(name, model.regions).locked,
        "looks": [[seed, view_uri(model, crop(image, box))] for seed, image in zip(seeds, images, strict=True)],
    }
    return replace(row, key=key_of(model, settings, row)), value


def title(model: Model, place: int) -> str:
    """Return the sentence above a row."""
    name = name_at(model, place)
    if len(places(model)) == 1:
        return "Eight pictures: click one."
    if name is BASE:
        return "Base picture: eight, each with the present regions. Click one."
    return f"{label(model, place)}: eight looks on this picture. Click one."


def label(model: Model, place: int) -> str:
    """Return the name of a dial on the page."""
    return dials.display_name(name_at(model, place))


def picked_seed(model: Model, settings: Settings, row: Row) -> int | None:
    """Return the seed of the row's dial; None if it has none."""
    return settings.dial(name_at(model, row.place), model.regions).seed


def pick(model: Model, settings: Settings, place: Any, seed: Any) -> Settings:
    """Return the settings with a candidate's seed for its dial.

    Raises:
        ValueError: there is no such dial, it is locked, or it is not a seed of a candidate.
    """
    check_place(model, place)
    name = name_at(model, place)
    dial = settings.dial(name, model.regions)
    if type(seed) is not int or not 0 <= seed < MAX_DRAWN_SEED:
        raise ValueError("there is no such candidate")
    if dial.locked:
        raise ValueError(f"{label(model, place).lower()} is locked: take the tick off its Lock first")
    strength = dial.strength if source(settings, name, dial) is not None else 1.0
    return settings.with_dial(name, model.regions, Dial(seed, strength))


def check_place(model: Model, place: Any) -> int:
    """Return the number of a dial of this model, or raise a ValueError."""
    if type(place) is not int or place not in places(model):
        raise ValueError("this model has no such dial")
    return place


def fitted(model: Model, row: Row) -> Row:
    """Return the row, or the model's first one if the row's dial is another model's."""
    return row if row.place in places(model) else first_row(model)


def moved(model: Model, row: Row, asked: Any) -> Row:
    """Return the row that a click asks for: {"place": number} for another dial, {"more": true} for other seeds."""
    if "place" in asked:
        return Row(check_place(model, asked["place"]))
    return Row(row.place, (row.page + 1) % MAX_PAGE)
