"""The Compose tab: a picture, a dial for each of its regions, and a dial for what the regions share."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr

from stylefusion_hf.spaces_app import dials, looks
from stylefusion_hf.spaces_app.changes import lock_dial, places, reset_dial, shuffle, surprise, unchanged
from stylefusion_hf.spaces_app.compose_values import (
    EXAMPLES_JS,
    event_data,
    example_buttons,
    fits_model,
    read_values,
    stage_value,
)
from stylefusion_hf.spaces_app.dials import Card
from stylefusion_hf.spaces_app.errors import show_errors, show_errors_on_stage
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.picture_files import picture_file
from stylefusion_hf.spaces_app.results import check_recipe_text, read_recipe
from stylefusion_hf.spaces_app.settings import (
    BASE,
    COMMON,
    History,
    Settings,
    from_recipe,
    to_recipe,
    with_class,
)
from stylefusion_hf.spaces_app.stage import stage
from stylefusion_hf.spaces_app.uploads import own_file

HISTORY_SECONDS = 6 * 3600  # seconds after which a session's history is dropped
LIMITS: dict[str, Any] = {"concurrency_id": "render", "concurrency_limit": 8}
QUICK: dict[str, Any] = LIMITS | {
    "trigger_mode": "always_last",  # render only the last event of a burst
    "show_progress": "hidden",
    "api_visibility": "private",
    "js": dials.EMPTY_TO_NONE,
}
# For dials that are being turned, and buttons that change them: gradio's queue would take as long as the picture
# itself. `Model.take_turn` limits how many events wait instead, and the stage shows errors, which gradio does only for
# events in its queue.
TURNING: dict[str, Any] = QUICK | {"queue": False, "concurrency_id": None, "concurrency_limit": "default"}
Change = Callable[[Model, Settings], Settings]


class Compose:
    """The Compose tab; constructing it adds its controls to the current gradio context.

    Args:
        models: the models of the Space.
        chosen: the index of the model in use.
        tabs: the page's tabs; this one has the id "compose".
    """

    def __init__(self, models: Sequence[Model], chosen: gr.Dropdown, tabs: gr.Tabs):
        self.models, self.chosen, self.tabs = models, chosen, tabs
        model, start = models[0], dials.example_settings(models[0], 0)
        self.history = gr.State(History([start]), time_to_live=HISTORY_SECONDS)
        with gr.Row(elem_classes="sf-compose"):
            with gr.Column(scale=5, min_width=280, elem_classes="sf-left"):
                self.stage = stage(stage_value(model, start), leads=True, elem_id="sf-compose-stage")
                with gr.Row(elem_classes="sf-bar"):
                    self.surprise = gr.Button(
                        "Surprise me", variant="primary", size="md", min_width=110, elem_id="sf-surprise"
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
                    example_buttons(model), elem_classes="sf-examples", apply_default_css=False, js_on_load=EXAMPLES_JS
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
                    common = Card("global", dials.display_name(COMMON), visible=model.has_common)
                    count = max(len(each.regions) for each in models)
                    regions = [Card(i, "", visible=False) for i in range(count)]
        self.cards = [base, common, *regions]
        self.values = [self.psi, *(control for card in self.cards for control in card.values)]
        self.page = [self.stage, self.history, self.undo, self.redo, self.examples, *self.values]
        self.page += [self.label, *(control for card in self.cards for control in card.others)]
        for control, properties in self._all_properties(model, start).items():  # the first view, without an event
            for name, content in properties.items():
                setattr(control, name, dials.EMPTY if content is None else content)
        self._connect()

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
        changed = dials.changed_properties(model, self.cards, was, settings)
        if was is None:
            changed |= self._all_properties(model, settings)
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
            return self.open_recipe(model, model.check(made), history, values) | {
                self.tabs: gr.update(selected="compose")
            }

        inputs = [recipe, self.chosen, self.history, *self.values]
        button.click(show_errors(step), inputs, [*self.page, self.tabs], **QUICK)

    def fetch(self, button: gr.Button, recipe: gr.State) -> Any:
        """Connect a button of another tab that copies the recipe of the picture shown here."""

        def taken(index: int, history: History) -> dict[str, Any]:
            model = self.models[index]
            return to_recipe(history.present, model.regions, model.tree.root)

        return button.click(show_errors(taken), [self.chosen, self.history], recipe, **QUICK)

    def arrive(self, request: gr.Request, index: int, history: History, *values: Any) -> Any:
        """Open the recipe in the link by which a visitor came, if it has one."""
        text = request.query_params.get("recipe")
        if not text:
            return gr.skip()
        name = request.query_params.get("model")
        at = next((i for i, model in enumerate(self.models) if model.name == name), index)
        return self._opened(text, at, index, history, values)

    def _all_properties(self, model: Model, settings: Settings) -> dict[Any, dict[str, Any]]:
        """Return {control: its properties} for everything that depends on the model and the settings."""
        made: dict[Any, dict[str, Any]] = dials.changed_properties(model, self.cards, None, settings)
        for control, value in zip(self.values, settings.values(), strict=False):
            made.setdefault(control, {})["value"] = value
        for i, card in enumerate(self.cards[2:]):
            has = i + 2 in places(model)
            made[card.group] = {"visible": has}
            if has:
                made[card.seed]["label"] = dials.display_name(model.regions[i])
        made[self.cards[1].group] = {"visible": model.has_common}
        made[self.label] = {
            "visible": model.classes > 0,
            "choices": dials.class_choices(model),
            "value": dials.class_of(settings),
        }
        return made

    # ------------------------------------------------------------------------------------------------
    # Events.

    def _connect(self) -> None:
        inputs = [self.chosen, self.history, *self.values]

        # Each event lists only the outputs that it can change: the browser processes every output of every event,
        # which is most of what turning a dial costs there.
        picture = [self.stage, self.history, self.undo, self.redo, self.cards[0].note]

        def connect(event: Callable[..., Any], change: Change, outputs: list[Any], control: str = "") -> None:
            """Connect an event; `control` names the dial that is turned, "" for a button."""

            def step(index: int, history: History, *values: Any) -> dict[Any, Any]:
                model = self.models[index]
                shown = read_values(model, values, history)
                following = history.push(change(model, shown), control, time.monotonic())
                updates = self.updates(model, following, history.present, values)
                return {component: update for component, update in updates.items() if component in outputs}

            event(show_errors_on_stage(step, self.stage), inputs, outputs, **TURNING)

        def move(by: int) -> Callable[..., Any]:
            def step(index: int, history: History, *values: Any) -> dict[Any, Any]:
                return self.updates(self.models[index], history.move(by), history.present, values)

            return show_errors_on_stage(step, self.stage)

        def bind(change: Callable[..., Settings], *arguments: Any) -> Change:
            return lambda model, settings: change(model, settings, *arguments)

        connect(self.psi.input, unchanged, picture, "psi")
        followers = [card.thumbnail for card in self.cards]  # these may show the base
        for place, card in enumerate(self.cards):
            own = [*picture, self.psi, *card.values, *card.others]
            reach = [*own, *followers[1:]] if place == 0 else own
            turned = [*picture, self.psi, card.thumbnail, *(c for c in (card.strength, card.reset) if c)]
            connect(card.seed.input, unchanged, [*turned, *followers[1:]] if place == 0 else turned, f"{place} seed")
            connect(card.lock.input, bind(lock_dial, place), own)
            connect(card.shuffle.click, bind(shuffle, [place]), reach)
            if card.strength is not None:
                connect(card.strength.input, unchanged, picture, f"{place} strength")
            if card.reset is not None:
                connect(card.reset.click, bind(reset_dial, place), own)

        def step(label: int, index: int, history: History, *values: Any) -> dict[Any, Any]:
            model = self.models[index]
            if label != dials.OWN and label not in range(model.classes):
                raise ValueError("this model has no such class")
            shown = read_values(model, values, history)
            changed = with_class(shown, None if label == dials.OWN else label)
            return self.updates(model, history.push(changed, "", time.monotonic()), history.present, values)

        self.label.input(show_errors_on_stage(step, self.stage), [self.label, *inputs], self.page, **TURNING)
        connect(self.surprise.click, surprise, self.page)
        connect(self.clear.click, lambda model, settings: dials.blank_settings(model, 1), self.page)
        self.undo.click(move(-1), inputs, self.page, **TURNING)
        self.redo.click(move(1), inputs, self.page, **TURNING)
        self.examples.click(show_errors_on_stage(self._example, self.stage), inputs, self.page, **TURNING)
        self.open.upload(show_errors(self._open), [self.open, *inputs], [*self.page, self.chosen], **QUICK)
        self.chosen.input(show_errors(self._switch), inputs, self.page, **QUICK)
        picked = [*self.page, self.looks, self.row]
        self.looks.click(show_errors_on_stage(self._look, self.stage), [self.row, *inputs], picked, **TURNING)
        self.stage.select(show_errors(self._look_again), [self.row, *inputs[:2]], [self.looks, self.row], **QUICK)
        self.stage.upload(show_errors(self._restore), inputs, [*self.page, self.chosen], **QUICK)
        self.stage.download(show_errors(self._file), [self.chosen, self.history], self.stage, **QUICK)
        self.stage.submit(show_errors(self.rest), [self.chosen, self.history], self.stage, **QUICK)

    def rest(self, index: int, history: History) -> dict[str, Any]:
        """Render the present settings at full size, after a draft."""
        return stage_value(self.models[index], history.present)

    def _look(self, event: gr.EventData, row: looks.Row, index: int, history: History, *values: Any) -> dict[Any, Any]:
        """Answer a click in the row of candidates: pick one, or show other ones."""
        model, asked = self.models[index], event_data(event)
        shown = read_values(model, values, history)
        if "seed" not in asked:
            return self._show_row(model, shown, looks.moved(model, looks.fitted(model, row), asked))
        following = history.push(looks.pick(model, shown, asked.get("place"), asked["seed"]), "", time.monotonic())
        return self.updates(model, following, history.present, values)

    def _look_again(self, row: looks.Row, index: int, history: History) -> dict[Any, Any]:
        """Render the candidates on a picture that has changed elsewhere than in their own dial."""
        model, settings = self.models[index], history.present
        row = looks.fitted(model, row)
        if looks.key_of(model, settings, row) != row.key:
            return self._show_row(model, settings, row)
        return {self.looks: gr.update(picked=looks.picked_seed(model, settings, row))}

    def _show_row(self, model: Model, settings: Settings, row: looks.Row) -> dict[Any, Any]:
        row, value = looks.render_row(model, settings, row)
        return {self.looks: gr.update(value=value, picked=looks.picked_seed(model, settings, row)), self.row: row}

    def _example(self, event: gr.EventData, index: int, history: History, *values: Any) -> dict[Any, Any]:
        number = event_data(event).get("example")
        if not isinstance(number, int) or number not in range(len(dials.EXAMPLES)):
            raise ValueError("there is no such example")
        model = self.models[index]
        following = history.push(dials.example_settings(model, number), "", time.monotonic())
        return self.updates(model, following, history.present, values)

    def _switch(self, index: int, history: History, *values: Any) -> dict[Any, Any]:
        model = self.models[index]
        first = History([dials.example_settings(model, 0)])
        return self.updates(model, first, None, values) | {self.examples: example_buttons(model)}

    def _open(self, path: str, index: int, history: History, *values: Any) -> dict[Any, Any]:
        """Open a downloaded recipe, with the model that made it if the Space has it, or another tool's code."""
        if not path:
            raise ValueError("no recipe was given: choose a .json or .png that was downloaded here, or a code's .npz")
        text = read_recipe(path)
        at = next((i for i in (index, *range(len(self.models))) if fits_model(self.models[i], text)), index)
        return self._opened(text, at, index, history, values)

    def _restore(self, event: gr.EventData, index: int, history: History, *values: Any) -> dict[Any, Any]:
        """Open the picture that the browser kept when the page was loaded again."""
        text, name = (event_data(event).get(name) for name in ("recipe", "model"))
        if not isinstance(text, str):
            raise ValueError("there is no picture to bring back")
        at = next((i for i, model in enumerate(self.models) if model.name == name), index)
        return self._opened(text, at, index, history, values)

    def _file(self, event: gr.EventData, index: int, history: History) -> dict[str, Any]:
        """Return the present picture as a file of another size or format, for the browser to save."""
        model = self.models[index]
        picture = model.render(to_recipe(history.present, model.regions, model.tree.root))
        return gr.update(file=picture_file(picture, event_data(event).get("kind")))

    def _opened(self, text: str, at: int, index: int, history: History, values: Sequence[Any]) -> dict[Any, Any]:
        """Return the updates from a page with model `index` to one with a recipe of model `at`."""
        model = self.models[at]
        recipe = model.check(check_recipe_text(text))
        if at == index:
            return self.open_recipe(model, recipe, history, values)
        first = History([from_recipe(recipe, model.regions, model.tree.root)])
        return self.updates(model, first, None, values) | {self.examples: example_buttons(model), self.chosen: at}
