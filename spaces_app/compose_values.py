"""What the Compose tab shows and reads: the stage's value, example buttons, the values of its controls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from stylefusion_hf.spaces_app import dials
from stylefusion_hf.spaces_app.models import Model, digest
from stylefusion_hf.spaces_app.results import outline_uri, result, view_uri
from stylefusion_hf.spaces_app.settings import History, Settings, to_recipe

EXAMPLES_JS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("click", { example: Number(button.dataset.example) });
});
"""


def read_values(model: Model, values: Sequence[Any], history: History) -> Settings:
    """Return the settings that the controls show. ValueError names the dial whose value is not a seed."""
    return dials.check_seeds(model, Settings.from_values(values, len(model.regions), history.present.kept))


def event_data(event: gr.EventData) -> Mapping[str, Any]:
    """Return what a script sent with its event; nothing if it is not an object, since anybody may send events."""
    return event._data if isinstance(event._data, Mapping) else {}


def stage_value(model: Model, settings: Settings, draft: bool = False) -> dict[str, Any]:
    """Render the settings; return the value of the stage. `draft`: a preview, if the model has previews."""
    recipe = to_recipe(settings, model.regions, model.tree.root)
    # Where a draft came first, the picture does not wait for its map of regions either: see `outline_value`.
    picture = model.draft(recipe) if draft else model.render(recipe, with_labels=model.preview is None)
    return result(model, picture, dials.caption(model, settings))


def outline_value(model: Model, settings: Settings) -> dict[str, Any] | None:
    """Return the map of regions of a picture that was rendered without it, for a stage; None if nothing is missing."""
    recipe = to_recipe(settings, model.regions, model.tree.root)
    picture = model.kept_picture(recipe)
    if picture is None or not model.has_segmenter:
        return None
    labelled = model.add_labels(picture)
    return {"key": digest(labelled.recipe), "labels": outline_uri(labelled)}


def example_buttons(model: Model) -> str:
    """Return the HTML of the example pictures, as buttons."""
    buttons = []
    for number in range(len(dials.EXAMPLES)):
        settings = dials.example_settings(model, number)
        (image,), _ = model.render_small(to_recipe(settings, model.regions, model.tree.root))
        uri = view_uri(model, image)
        label = f"Example {number + 1}"
        buttons.append(
            f'<button type="button" data-example="{number}" aria-label="{label}"><img src="{uri}" alt=""></button>'
        )
    return "".join(buttons)


def fits_model(model: Model, text: str) -> bool:
    """Return whether a recipe is valid for this model."""
    try:
        model.check(text)
    except ValueError:
        return False
    return True
