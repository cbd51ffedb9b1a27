"""The Compose tab: a picture, a dial for each of its regions, and a dial for what the regions share."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from stylefusion_hf.spaces_app import dials, looks
from stylefusion_hf.spaces_app.changes import places
from stylefusion_hf.spaces_app.compose_events import QUICK, ComposeEvents
from stylefusion_hf.spaces_app.compose_values import (
    EXAMPLES_JS,
    example_buttons,
    stage_value,
)
from stylefusion_hf.spaces_app.dials import Card
from stylefusion_hf.spaces_app.errors import show_errors
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.results import check_recipe_text
from stylefusion_hf.spaces_app.settings import (
    BASE,
    COMMON,
    History,
    Settings,
    from_recipe,
    to_recipe,
    unrefined,
)
from stylefusion_hf.spaces_app.stage import stage
from stylefusion_hf.spaces_app.uploads import own_file

# Not by an update of gradio's Tabs: the browser looks after all that is in an output, at every later event too.
SHOW_TAB_JS = """() => {
  [...document.querySelectorAll("[role=tab]")].find((tab) => tab.textContent.trim() === "Compose")?.click();
}"""
HISTORY_SECONDS = 6 * 3600  # seconds after which a session's history is dropped


class Compose:
    """The Compose tab; constructing it adds its controls to the current gradio context.

    Args:
        models: the models of the Space.
        chosen: the index of the model in use.
    """

    def __init__(self, models: Sequence[Model], chosen: gr.Dropdown):
        self.models, self.chosen = models, chosen
        self._examples: dict[int, str] = {}
        self._drawing_examples = threading.Lock()
        model, start = models[0], dials.example_settings(models[0], 0)
        self.history = gr.State(History([start]), time_to_live=HISTORY_SECONDS)
        with gr.Row(elem_classes="sf-compose"):
            with gr.Column(scale=5, min_width=280, elem_classes="sf-left"):
                self.stage = stage(stage_value(model, start, draft=True), leads=True, elem_id="sf-compose-stage")
                with gr.Row(elem_classes="sf-bar"):
                    self.surprise = gr.Button(
                        "Surprise me", variant="primary", size="md", min_width=110, elem_id="sf-surprise"
                    )
                    self.refine = gr.Button(
                        "Refine", size="md", min_width=70, visible=model.has_segmenter, elem_id="sf-refine"
                    )
                    self.undo = gr.Button("Undo", size="md", min_width=60, interactive=False, elem_id="sf-undo")
                    self.redo = gr.Button("Redo", size="md", min_width=60, interactive=False, elem_id="sf-redo")
                    self.clear = gr.Button("Start over", size="md", min_width=80, elem_id="sf-clear")
                    self.open = gr.UploadButton(
                        "Open recipe or code",
                        file_types=[".json", ".png", ".npz", ".npy", ".pt", ".pth", ".pkl"],
                        size="md",
                        min_width=80,
                        elem_id="sf-open",
                    )
                    self.open.preprocess = show_errors(own_file)  # type: ignore[method-assign]
                gr.Markdown("#### Start from an example", elem_classes="sf-heading")
                self.examples = gr.HTML(
                    self.example_buttons(0),
                    elem_classes="sf-examples",
                    apply_default_css=False,
                    js_on_load=EXAMPLES_JS,
                )
            with gr.Column(scale=7, min_width=280, elem_classes="sf-right"):
                row, shown = looks.render_row(model, start, looks.first_row(model))
                self.row = gr.State(row, time_to_live=HISTORY_SECONDS)
                self.looks = looks.looks(shown, looks.picked_seed(model, start, row), elem_id="sf-looks")
                self.psi = gr.Slider(
                    0,
                    1.5,
                    start.psi,
                    step=0.01,
                    label="Variety",
                    info=dials.explain_psi(start),
                    elem_id="sf-psi",
                    buttons=[],
                )
                self.label = gr.Dropdown(
                    dials.class_choices(model),
                    value=dials.OWN,
                    label="Class",
                    info="Class of every seed; with each seed's own, regions can mix classes",
                    visible=model.classes > 0,
                    elem_id="sf-class",
                )
                with gr.Row(elem_classes="sf-dials"):
                    base = Card("base", dials.display_name(BASE), full=False)
                    common = Card("global", dials.display_name(COMMON))
                    count = max(len(each.regions) for each in models)
                    regions = [Card(i, "") for i in range(count)]
        self.cards = [base, common, *regions]
        self.values = [self.psi, *(control for card in self.cards for control in card.values)]
        self.page = [self.stage, self.history, self.refine, self.undo, self.redo, self.examples, *self.values]
        self.page += [self.label, *(control for card in self.cards for control in card.others)]
        for control, properties in self._all_properties(model, start).items():  # the first view, without an event
            for name, content in properties.items():
                setattr(control, name, dials.EMPTY if content is None else content)
        self.events = ComposeEvents(self)
        self.events.connect()

    # ------------------------------------------------------------------------------------------------
    # What the page shows.

    def updates(self, model: Model, history: History, was: Settings | None, values: Sequence[Any]) -> dict[Any, Any]:
        """Return {component: its update} for the present settings of a history.

        Args:
            model: the model in use.
            history: its present settings are to be shown.
            was: the settings shown so far; None to update everything, such as after a change of models.
            values: what the controls show so far.
        """
        settings = history.present
        shown = stage_value(model, settings, draft=True)
        quick = model.preview is None  # else thumbnails take longer than the preview, and come after the full picture
        changed = dials.changed_properties(model, self.cards, was, settings, quick)
        if was is None:
            changed |= self._all_properties(model, settings, quick)
        elif dials.class_of(was) != dials.class_of(settings):
            changed[self.label] = {"value": dials.class_of(settings)}
        for control, old, new in zip(self.values, values, settings.values(), strict=False):
            if old != new:
                changed.setdefault(control, {})["value"] = new
        if was is None or dials.explain_psi(was) != dials.explain_psi(settings):
            changed.setdefault(self.psi, {})["info"] = dials.explain_psi(settings)
        updates: dict[Any, Any] = {control: gr.update(**properties) for control, properties in changed.items()}
        return updates | {
            self.stage: gr.update(value=shown, message=""),
            self.history: history,
            self.undo: gr.update(interactive=history.at > 0),
            self.redo: gr.update(interactive=history.at < len(history.steps) - 1),
        }

    def open_recipe(self, model: Model, recipe: Mapping[str, Any], history: History, values: Sequence[Any]) -> Any:
        """Return the updates that show a checked recipe."""
        settings = from_recipe(recipe, model.regions, model.tree.root)
        return self.updates(model, history.push(settings, "", time.monotonic()), history.present, values)

    def send(self, button: gr.Button, recipe: gr.State) -> None:
        """Connect a button of another tab that opens that tab's picture here."""

        def step(made: dict[str, Any] | None, index: int, history: History, *values: Any) -> dict[Any, Any]:
            if made is None:
                raise ValueError("there is no picture yet")
            model = self.models[index]
            return self.open_recipe(model, model.check(made), history, values)

        inputs = [recipe, self.chosen, self.history, *self.values]
        opened = button.click(show_errors(step), inputs, self.page, **QUICK)
        opened.success(None, None, None, js=SHOW_TAB_JS, api_visibility="private")

    def fetch(self, button: gr.Button, recipe: gr.State) -> Any:
        """Connect a button of another tab that copies the recipe of the picture shown here."""

        def taken(index: int, history: History) -> dict[str, Any]:
            model = self.models[index]
            return to_recipe(unrefined(history.present), model.regions, model.tree.root)

        return button.click(show_errors(taken), [self.chosen, self.history], recipe, **QUICK)

    def prepare(self, index: int) -> None:
        """Draw what the tab shows first of a model: its picture, its examples and its dials' thumbnails."""
        model = self.models[index]
        start = dials.example_settings(model, 0)
        stage_value(model, start)
        self.example_buttons(index)
        dials.thumbnail_values(model, self.cards, start)

    def example_buttons(self, index: int) -> str:
        """Return the HTML of a model's example pictures, which are drawn once."""
        with self._drawing_examples:
            if index not in self._examples:
                self._examples[index] = example_buttons(self.models[index])
            return self._examples[index]

    def arrive(self, request: gr.Request, index: int, history: History, *values: Any) -> Any:
        """Open the recipe in the link by which a visitor came, if it has one."""
        text = request.query_params.get("recipe")
        if not text:
            return gr.skip()
        name = request.query_params.get("model")
        at = next((i for i, model in enumerate(self.models) if model.name == name), index)
        return self.opened(text, at, index, history, values)

    def _all_properties(self, model: Model, settings: Settings, thumbnails: bool = True) -> dict[Any, dict[str, Any]]:
        """Return {control: its properties} for everything that depends on the model and the settings."""
        made: dict[Any, dict[str, Any]] = dials.changed_properties(model, self.cards, None, settings, thumbnails)
        for control, value in zip(self.values, settings.values(), strict=False):
            made.setdefault(control, {})["value"] = value
        for i, card in enumerate(self.cards[2:]):
            if i + 2 in places(model):
                made[card.seed]["label"] = dials.display_name(model.regions[i])
        made[self.refine] = {"visible": model.has_segmenter}
        made[self.label] = {
            "visible": model.classes > 0,
            "choices": dials.class_choices(model),
            "value": dials.class_of(settings),
        }
        return made

    def opened(self, text: str, at: int, index: int, history: History, values: Sequence[Any]) -> dict[Any, Any]:
        """Return the updates from a page with model `index` to one with a recipe of model `at`."""
        model = self.models[at]
        recipe = model.check(check_recipe_text(text))
        if at == index:
            return self.open_recipe(model, recipe, history, values)
        first = History([from_recipe(recipe, model.regions, model.tree.root)])
        updates = self.updates(model, first, None, values)
        return updates | {self.examples: self.example_buttons(at), self.chosen: at}
