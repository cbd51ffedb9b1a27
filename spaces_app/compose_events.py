"""The events of the Compose tab: dials that are turned, buttons, candidates, examples, files and changes of models."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import gradio as gr

from stylefusion_hf.spaces_app import dials, looks
from stylefusion_hf.spaces_app.changes import lock_dial, refine, reset_dial, shuffle, surprise, unchanged
from stylefusion_hf.spaces_app.compose_values import event_data, fits_model, outline_value, read_values, stage_value
from stylefusion_hf.spaces_app.errors import show_errors, show_errors_on_stage
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.picture_files import picture_file
from stylefusion_hf.spaces_app.results import read_recipe
from stylefusion_hf.spaces_app.settings import History, Settings, to_recipe, unrefined, with_class

if TYPE_CHECKING:
    from stylefusion_hf.spaces_app.compose import Compose

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
# Says at once, before the server answers, what a change of models waits for.
LOADING_JS = """(index) => {
  const text = `Drawing the first picture of ${%s[index]} ...`;
  return { __type__: "update", props: { busy: { text, at: Date.now() } } };
}"""
REFINING_JS = """() => ({
  __type__: "update", props: { busy: { text: "Refining the gates of this picture ...", at: Date.now() } } })"""
Change = Callable[[Model, Settings], Settings]


class ComposeEvents:
    """What happens on the Compose tab.

    Args:
        tab: its controls, and what they show for given settings.
    """

    def __init__(self, tab: Compose):
        self.tab = tab
        self._picture: list[Any] = [tab.stage, tab.history, tab.undo, tab.redo, tab.cards[0].note]

    def connect(self) -> None:
        """Connect the controls' events."""
        tab = self.tab
        inputs = [tab.chosen, tab.history, *tab.values]

        # Each event lists only the outputs that it can change: the browser processes every output of every event,
        # which is most of what turning a dial costs there.
        picture = self._picture

        def connect(
            event: Callable[..., Any], change: Change, outputs: list[Any], control: str = "", keep: bool = False
        ) -> None:
            """Connect an event; `control` names the dial that is turned, "" for a button.

            keep: whether a refinement stays, since the picture does.
            """

            def step(index: int, history: History, *values: Any) -> dict[Any, Any]:
                model = tab.models[index]
                shown = read_values(model, values, history)
                changed = change(model, shown if keep else unrefined(shown))
                following = history.push(changed, control, time.monotonic())
                updates = tab.updates(model, following, history.present, values)
                return {component: update for component, update in updates.items() if component in outputs}

            event(show_errors_on_stage(step, tab.stage), inputs, outputs, **TURNING)

        def move(by: int) -> Callable[..., Any]:
            def step(index: int, history: History, *values: Any) -> dict[Any, Any]:
                return tab.updates(tab.models[index], history.move(by), history.present, values)

            return show_errors_on_stage(step, tab.stage)

        def bind(change: Callable[..., Settings], *arguments: Any) -> Change:
            return lambda model, settings: change(model, settings, *arguments)

        connect(tab.psi.input, unchanged, picture, "psi")
        followers = [card.thumbnail for card in tab.cards]  # these may show the base
        for place, card in enumerate(tab.cards):
            own = [*picture, tab.psi, *card.values, *card.others]
            reach = [*own, *followers[1:]] if place == 0 else own
            turned = [*picture, tab.psi, card.thumbnail, *(c for c in (card.strength, card.reset) if c)]
            connect(card.seed.input, unchanged, [*turned, *followers[1:]] if place == 0 else turned, f"{place} seed")
            connect(card.lock.input, bind(lock_dial, place), own, keep=True)
            connect(card.shuffle.click, bind(shuffle, [place]), reach)
            if card.strength is not None:
                connect(card.strength.input, unchanged, picture, f"{place} strength")
            if card.reset is not None:
                connect(card.reset.click, bind(reset_dial, place), own)

        def step(label: int, index: int, history: History, *values: Any) -> dict[Any, Any]:
            model = tab.models[index]
            if label != dials.OWN and label not in range(model.classes):
                raise ValueError("this model has no such class")
            shown = unrefined(read_values(model, values, history))
            changed = with_class(shown, None if label == dials.OWN else label)
            return tab.updates(model, history.push(changed, "", time.monotonic()), history.present, values)

        tab.label.input(show_errors_on_stage(step, tab.stage), [tab.label, *inputs], tab.page, **TURNING)
        connect(tab.surprise.click, surprise, tab.page)
        tab.refine.click(None, None, tab.stage, js=REFINING_JS, api_visibility="private")
        tab.refine.click(show_errors_on_stage(self._refine, tab.stage), inputs, picture, **TURNING)
        connect(tab.clear.click, lambda model, settings: dials.blank_settings(model, 1), tab.page)
        tab.undo.click(move(-1), inputs, tab.page, **TURNING)
        tab.redo.click(move(1), inputs, tab.page, **TURNING)
        tab.examples.click(show_errors_on_stage(self._example, tab.stage), inputs, tab.page, **TURNING)
        tab.open.upload(show_errors(self._open), [tab.open, *inputs], [*tab.page, tab.chosen], **QUICK)
        names = json.dumps([model.name for model in tab.models])
        tab.chosen.input(None, tab.chosen, tab.stage, js=LOADING_JS % names, api_visibility="private")
        tab.chosen.input(show_errors_on_stage(self.switch, tab.stage), inputs, tab.page, **TURNING)
        picked = [*tab.page, tab.looks, tab.row]
        tab.looks.click(show_errors_on_stage(self._look, tab.stage), [tab.row, *inputs], picked, **TURNING)
        resting = [tab.looks, tab.row, *followers]
        tab.stage.select(show_errors(self._look_again), [tab.row, *inputs[:2]], resting, **QUICK)
        tab.stage.upload(show_errors(self._restore), inputs, [*tab.page, tab.chosen], **QUICK)
        tab.stage.download(show_errors(self._file), [tab.chosen, tab.history], tab.stage, **QUICK)
        shown = [tab.chosen, tab.history]
        full = tab.stage.submit(show_errors_on_stage(self.rest, tab.stage), shown, tab.stage, **TURNING)
        full.then(show_errors_on_stage(self._outline, tab.stage), shown, tab.stage, **TURNING)

    def rest(self, index: int, history: History) -> dict[str, Any]:
        """Render the present settings at full size, after a draft."""
        return stage_value(self.tab.models[index], history.present)

    def _outline(self, index: int, history: History) -> dict[str, Any]:
        """Find the map of regions of the picture that `rest` has just shown; outlines are drawn by it."""
        outline = outline_value(self.tab.models[index], history.present)
        return gr.skip() if outline is None else gr.update(outline=outline)

    def _refine(self, index: int, history: History, *values: Any) -> dict[Any, Any]:
        """Show the refined picture, at full size: a preview would not show it."""
        tab, model = self.tab, self.tab.models[index]
        refined = refine(model, read_values(model, values, history))
        updates = tab.updates(model, history.push(refined, "", time.monotonic()), history.present, values)
        updates[tab.stage] = gr.update(value=stage_value(model, refined), message="")
        return {control: update for control, update in updates.items() if control in self._picture}

    def _look(self, event: gr.EventData, row: looks.Row, index: int, history: History, *values: Any) -> dict[Any, Any]:
        """Answer a click in the row of candidates: pick one, or show other ones."""
        model, asked = self.tab.models[index], event_data(event)
        shown = read_values(model, values, history)
        if "seed" not in asked:
            return self._show_row(model, shown, looks.moved(model, looks.fitted(model, row), asked))
        picked = looks.pick(model, unrefined(shown), asked.get("place"), asked["seed"])
        following = history.push(picked, "", time.monotonic())
        return self.tab.updates(model, following, history.present, values)

    def _look_again(self, row: looks.Row, index: int, history: History) -> dict[Any, Any]:
        """Render what waits until the dials rest: thumbnails, and candidates where the rest of the picture changed."""
        model, settings = self.tab.models[index], history.present
        row = looks.fitted(model, row)
        late = {} if model.preview is None else dials.thumbnail_values(model, self.tab.cards, settings)
        if looks.key_of(model, settings, row) != row.key:
            return late | self._show_row(model, settings, row)
        return late | {self.tab.looks: gr.update(picked=looks.picked_seed(model, settings, row))}

    def _show_row(self, model: Model, settings: Settings, row: looks.Row) -> dict[Any, Any]:
        row, value = looks.render_row(model, settings, row)
        return {
            self.tab.looks: gr.update(value=value, picked=looks.picked_seed(model, settings, row)),
            self.tab.row: row,
        }

    def _example(self, event: gr.EventData, index: int, history: History, *values: Any) -> dict[Any, Any]:
        number = event_data(event).get("example")
        if not isinstance(number, int) or number not in range(len(dials.EXAMPLES)):
            raise ValueError("there is no such example")
        model = self.tab.models[index]
        following = history.push(dials.example_settings(model, number), "", time.monotonic())
        return self.tab.updates(model, following, history.present, values)

    def switch(self, index: int, history: History, *values: Any) -> dict[Any, Any]:
        """Show another model's example, with that model's dials."""
        model = self.tab.models[index]
        first = History([dials.example_settings(model, 0)])
        return self.tab.updates(model, first, None, values) | {self.tab.examples: self.tab.example_buttons(index)}

    def _open(self, path: str, index: int, history: History, *values: Any) -> dict[Any, Any]:
        """Open a downloaded recipe, with the model that made it if the Space has it, or another tool's code."""
        if not path:
            raise ValueError("no recipe was given: choose a .json or .png that was downloaded here, or a code's .npz")
        text = read_recipe(path)
        at = next((i for i in (index, *range(len(self.tab.models))) if fits_model(self.tab.models[i], text)), index)
        return self.tab.opened(text, at, index, history, values)

    def _restore(self, event: gr.EventData, index: int, history: History, *values: Any) -> dict[Any, Any]:
        """Open the picture that the browser kept when the page was loaded again."""
        text, name = (event_data(event).get(name) for name in ("recipe", "model"))
        if not isinstance(text, str):
            raise ValueError("there is no picture to bring back")
        at = next((i for i, model in enumerate(self.tab.models) if model.name == name), index)
        return self.tab.opened(text, at, index, history, values)

    def _file(self, event: gr.EventData, index: int, history: History) -> dict[str, Any]:
        """Return the present picture as a file of another size or format, for the browser to save."""
        model = self.tab.models[index]
        picture = model.render(to_recipe(history.present, model.regions, model.tree.root))
        asked = event_data(event)
        file = picture_file(model, picture, asked.get("kind"), asked.get("transparent") is True)
        return gr.update(file=file | {"number": time.monotonic_ns()})  # else the same file could not be saved again
