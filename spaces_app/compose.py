"""The tab "Compose": a portrait, a dial for each of its regions, and one for what they share."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from stylefusion_hf.spaces_app import dials
from stylefusion_hf.spaces_app.dials import Card
from stylefusion_hf.spaces_app.errors import guarded, told
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.results import data_uri, read_recipe, result
from stylefusion_hf.spaces_app.settings import (
    BASE,
    COMMON,
    Dial,
    History,
    Settings,
    from_recipe,
    of_class,
    source,
    to_recipe,
)
from stylefusion_hf.spaces_app.stage import stage
from stylefusion_hf.spaces_app.uploads import own_file

FORGOTTEN = 6 * 3600  # seconds after which a session's history is dropped
DRAWN = 10_000  # shuffled seeds are below: short numbers, good to pass on
LIMITS: dict[str, Any] = {"concurrency_id": "render", "concurrency_limit": 8}
QUICK: dict[str, Any] = LIMITS | {
    "trigger_mode": "always_last",  # of a burst, the last event alone is rendered
    "show_progress": "hidden",
    "api_visibility": "private",
    "js": dials.CLEAN,
}
# For dials that turn: gradio's queue takes as long as the picture. `Model.turn` bounds how many wait instead, and the
# stage has the message of an error, which gradio shows for events of its queue only.
TURNING: dict[str, Any] = QUICK | {"queue": False, "concurrency_id": None, "concurrency_limit": "default"}
Change = Callable[[Model, Settings], Settings]

EXAMPLES_JS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("click", { example: Number(button.dataset.example) });
});
"""


class Compose:
    """Builds the tab where it is made.

    Args:
        models: of the Space.
        chosen: which of them is in use, by its place.
        tabs: of the page; this one is called "compose".
    """

    def __init__(self, models: Sequence[Model], chosen: gr.Dropdown, tabs: gr.Tabs):
        self.models, self.chosen, self.tabs = models, chosen, tabs
        model, start = models[0], dials.example(models[0], 0)
        self.history = gr.State(History([start]), time_to_live=FORGOTTEN)
        with gr.Row(elem_classes="sf-compose"):
            with gr.Column(scale=5, min_width=280, elem_classes="sf-left"):
                self.stage = stage(show(model, start), leads=True, elem_id="sf-compose-stage")
                with gr.Row(elem_classes="sf-bar"):
                    self.surprise = gr.Button(
                        "Surprise me", variant="primary", size="md", min_width=110, elem_id="sf-surprise"
                    )
                    self.undo = gr.Button("Undo", size="md", min_width=60, interactive=False, elem_id="sf-undo")
                    self.redo = gr.Button("Redo", size="md", min_width=60, interactive=False, elem_id="sf-redo")
                    self.clear = gr.Button("Start over", size="md", min_width=80, elem_id="sf-clear")
                    self.open = gr.UploadButton(
                        "Open recipe", file_types=[".json", ".png"], size="md", min_width=80, elem_id="sf-open"
                    )
                    self.open.preprocess = guarded(own_file)  # type: ignore[method-assign]
                gr.Markdown("#### Start from an example", elem_classes="sf-heading")
                self.examples = gr.HTML(
                    examples(model), elem_classes="sf-examples", apply_default_css=False, js_on_load=EXAMPLES_JS
                )
            with gr.Column(scale=7, min_width=280, elem_classes="sf-right"):
                self.psi = gr.Slider(
                    0,
                    1.5,
                    start.psi,
                    step=0.01,
                    label="Variety",
                    info="How far from the average portrait (truncation psi); the thumbnails keep the model's own",
                    elem_id="sf-psi",
                    buttons=[],
                )
                self.label = gr.Dropdown(
                    dials.classes(model),
                    value=dials.OWN,
                    label="Class",
                    info="Of every seed; each one's own lets regions mix classes",
                    visible=model.classes > 0,
                    elem_id="sf-class",
                )
                with gr.Row(elem_classes="sf-dials"):
                    base = Card("base", dials.named(BASE), most=False)
                    common = Card("global", dials.named(COMMON), visible=model.has_common)
                    count = max(len(each.regions) for each in models)
                    regions = [Card(i, "", visible=False) for i in range(count)]
        self.cards = [base, common, *regions]
        self.values = [self.psi, *(control for card in self.cards for control in card.values)]
        self.page = [self.stage, self.history, self.undo, self.redo, self.examples, *self.values]
        self.page += [self.label, *(control for card in self.cards for control in card.others)]
        for control, properties in self._everything(model, start).items():  # the first view, without an event
            for name, content in properties.items():
                setattr(control, name, dials.EMPTY if content is None else content)
        self._connect()

    # ------------------------------------------------------------------------------------------------
    # What the page shows.

    def turn(self, model: Model, history: History, was: Settings | None, values: Sequence[Any]) -> dict[Any, Any]:
        """component -> its update, from settings `was` (None: another page) and these values to the present ones."""
        settings = history.present
        shown = show(model, settings)
        changed = dials.looks(model, self.cards, was, settings)
        if was is None:
            changed |= self._everything(model, settings)
        elif dials.class_of(was) != dials.class_of(settings):
            changed[self.label] = {"value": dials.class_of(settings)}
        for control, old, new in zip(self.values, values, settings.values(), strict=False):
            if old != new:
                changed.setdefault(control, {})["value"] = new
        updates: dict[Any, Any] = {control: gr.update(**properties) for control, properties in changed.items()}
        return updates | {
            self.stage: gr.update(value=shown, message=""),
            self.history: history,
            self.undo: gr.update(interactive=history.at > 0),
            self.redo: gr.update(interactive=history.at < len(history.steps) - 1),
        }

    def open_recipe(self, model: Model, recipe: Mapping[str, Any], history: History, values: Sequence[Any]) -> Any:
        """`turn` to a checked recipe."""
        settings = from_recipe(recipe, model.regions, model.tree.root)
        return self.turn(model, history.push(settings, "", time.monotonic()), history.present, values)

    def send(self, button: gr.Button, recipe: gr.State) -> None:
        """Connects a button of another tab: what it made goes on here."""

        def step(made: dict[str, Any] | None, index: int, history: History, *values: Any) -> dict[Any, Any]:
            if made is None:
                raise ValueError("there is no picture yet")
            model = self.models[index]
            return self.open_recipe(model, model.check(made), history, values) | {
                self.tabs: gr.update(selected="compose")
            }

        inputs = [recipe, self.chosen, self.history, *self.values]
        button.click(guarded(step), inputs, [*self.page, self.tabs], **QUICK)

    def fetch(self, button: gr.Button, recipe: gr.State) -> Any:
        """Connects a button of another tab: it takes the recipe of the picture here."""

        def taken(index: int, history: History) -> dict[str, Any]:
            model = self.models[index]
            return to_recipe(history.present, model.regions, model.tree.root)

        return button.click(guarded(taken), [self.chosen, self.history], recipe, **QUICK)

    def arrive(self, request: gr.Request, index: int, history: History, *values: Any) -> Any:
        """A visitor who comes by a link: the recipe in it."""
        text = request.query_params.get("recipe")
        if not text:
            return gr.skip()
        name = request.query_params.get("model")
        at = next((i for i, model in enumerate(self.models) if model.name == name), index)
        return self._opened(text, at, index, history, values)

    def _everything(self, model: Model, settings: Settings) -> dict[Any, dict[str, Any]]:
        """All that depends on the model and its settings: control -> its properties."""
        made: dict[Any, dict[str, Any]] = dials.looks(model, self.cards, None, settings)
        for control, value in zip(self.values, settings.values(), strict=False):
            made.setdefault(control, {})["value"] = value
        for i, card in enumerate(self.cards[2:]):
            has = i < len(model.regions)
            made[card.group] = {"visible": has}
            if has:
                made[card.seed]["label"] = dials.named(model.regions[i])
        made[self.cards[1].group] = {"visible": model.has_common}
        made[self.label] = {
            "visible": model.classes > 0,
            "choices": dials.classes(model),
            "value": dials.class_of(settings),
        }
        return made

    # ------------------------------------------------------------------------------------------------
    # Events.

    def _connect(self) -> None:
        inputs = [self.chosen, self.history, *self.values]

        # What an event may change is all that it lists: the page looks after every output of every event, which is
        # most of what a dial's turn costs there.
        picture = [self.stage, self.history, self.undo, self.redo]

        def on(event: Callable[..., Any], change: Change, outputs: list[Any], control: str = "") -> None:
            """Connects an event; `control` is the dial that turns, "" for a button."""

            def step(index: int, history: History, *values: Any) -> dict[Any, Any]:
                model = self.models[index]
                shown = Settings.from_values(values, len(model.regions), history.present.kept)
                following = history.push(change(model, shown), control, time.monotonic())
                updates = self.turn(model, following, history.present, values)
                return {component: update for component, update in updates.items() if component in outputs}

            if control:
                event(told(step, self.stage), inputs, outputs, **TURNING)
            else:
                event(guarded(step), inputs, outputs, **QUICK)

        def move(by: int) -> Callable[..., Any]:
            def step(index: int, history: History, *values: Any) -> dict[Any, Any]:
                return self.turn(self.models[index], history.move(by), history.present, values)

            return guarded(step)

        def at(change: Callable[..., Settings], *arguments: Any) -> Change:
            return lambda model, settings: change(model, settings, *arguments)

        on(self.psi.input, as_shown, picture, "psi")
        followers = [card.thumbnail for card in self.cards]  # of the base
        for place, card in enumerate(self.cards):
            own = [*picture, *card.values, *card.others]
            reach = [*own, *followers[1:]] if place == 0 else own
            turned = [*picture, card.thumbnail, *(c for c in (card.strength, card.reset) if c)]
            on(card.seed.input, as_shown, [*turned, *followers[1:]] if place == 0 else turned, f"{place} seed")
            on(card.lock.input, at(locked, place), own)
            on(card.shuffle.click, at(shuffled, [place]), reach)
            if card.strength is not None:
                on(card.strength.input, as_shown, picture, f"{place} strength")
            if card.reset is not None:
                on(card.reset.click, at(reset, place), own)

        def step(label: int, index: int, history: History, *values: Any) -> dict[Any, Any]:
            model = self.models[index]
            if label != dials.OWN and label not in range(model.classes):
                raise ValueError("this model has no such class")
            shown = Settings.from_values(values, len(model.regions), history.present.kept)
            changed = of_class(shown, None if label == dials.OWN else label)
            return self.turn(model, history.push(changed, "", time.monotonic()), history.present, values)

        self.label.input(guarded(step), [self.label, *inputs], self.page, **QUICK)
        on(self.surprise.click, surprised, self.page)
        on(self.clear.click, lambda model, settings: dials.blank(model, 1), self.page)
        self.undo.click(move(-1), inputs, self.page, **QUICK)
        self.redo.click(move(1), inputs, self.page, **QUICK)
        self.examples.click(guarded(self._example), inputs, self.page, **QUICK)
        self.open.upload(guarded(self._open), [self.open, *inputs], [*self.page, self.chosen], **QUICK)
        self.chosen.input(guarded(self._switch), inputs, self.page, **QUICK)

    def _example(self, event: gr.EventData, index: int, history: History, *values: Any) -> dict[Any, Any]:
        number = event._data.get("example")
        if number not in range(len(dials.EXAMPLES)):
            raise ValueError("there is no such example")
        model = self.models[index]
        following = history.push(dials.example(model, number), "", time.monotonic())
        return self.turn(model, following, history.present, values)

    def _switch(self, index: int, history: History, *values: Any) -> dict[Any, Any]:
        model = self.models[index]
        first = History([dials.example(model, 0)])
        return self.turn(model, first, None, values) | {self.examples: examples(model)}

    def _open(self, path: str, index: int, history: History, *values: Any) -> dict[Any, Any]:
        """A recipe that was downloaded, with the model that made it, where the Space has that."""
        if not path:
            raise ValueError("there is no recipe: choose a .json or .png that was downloaded here")
        text = read_recipe(path)
        at = next((i for i in (index, *range(len(self.models))) if fits(self.models[i], text)), index)
        return self._opened(text, at, index, history, values)

    def _opened(self, text: str, at: int, index: int, history: History, values: Sequence[Any]) -> dict[Any, Any]:
        """The page with a recipe of the model at `at`, from that with the model at `index`."""
        model = self.models[at]
        recipe = model.check(text)
        if at == index:
            return self.open_recipe(model, recipe, history, values)
        first = History([from_recipe(recipe, model.regions, model.tree.root)])
        return self.turn(model, first, None, values) | {self.examples: examples(model), self.chosen: at}


def show(model: Model, settings: Settings) -> dict[str, Any]:
    """The stage's value."""
    picture = model.render(to_recipe(settings, model.regions, model.tree.root))
    return result(model, picture, dials.caption(model, settings))


def examples(model: Model) -> str:
    """The examples as buttons."""
    buttons = []
    for number in range(len(dials.EXAMPLES)):
        settings = dials.example(model, number)
        uri = data_uri(model.render(to_recipe(settings, model.regions, model.tree.root)).image)
        label = f"Example {number + 1}"
        buttons.append(
            f'<button type="button" data-example="{number}" aria-label="{label}"><img src="{uri}" alt=""></button>'
        )
    return "".join(buttons)


def fits(model: Model, text: str) -> bool:
    """Whether a recipe is one of this model."""
    try:
        model.check(text)
    except ValueError:
        return False
    return True


# ----------------------------------------------------------------------------------------------------
# Changes of settings. A place is 0 for the base, 1 for what is shared, from 2 on the model's regions.


def name_at(model: Model, place: int) -> str:
    """The name of a dial's field, or of its region."""
    return (BASE, COMMON, *model.regions)[place]


def as_shown(model: Model, settings: Settings) -> Settings:
    """What the controls say."""
    return settings


def shuffled(model: Model, settings: Settings, places: Sequence[int]) -> Settings:
    """With new seeds in these places."""
    for place in places:
        name = name_at(model, place)
        dial = settings.dial(name, model.regions)
        settings = settings.turned(name, model.regions, replace(dial, seed=random.randrange(DRAWN)))
    return settings


def surprised(model: Model, settings: Settings) -> Settings:
    """With new seeds wherever there is no lock."""
    there = [0, *([1] if model.has_common else []), *range(2, 2 + len(model.regions))]
    free = [place for place in there if not settings.dial(name_at(model, place), model.regions).locked]
    return shuffled(model, settings, free)


def reset(model: Model, settings: Settings, place: int) -> Settings:
    """With this dial following the base again."""
    return settings.turned(name_at(model, place), model.regions, Dial())


def locked(model: Model, settings: Settings, place: int) -> Settings:
    """A locked dial keeps its look when the base changes: what it took from the base becomes its own."""
    name = name_at(model, place)
    dial = settings.dial(name, model.regions)
    if not dial.locked or source(settings, name, dial) is not None:
        return settings
    code = source(settings, BASE, settings.base)
    if isinstance(code, int):
        return settings.turned(name, model.regions, replace(dial, seed=code))
    return settings.turned(name, model.regions, dial, code)
