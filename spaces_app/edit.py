"""The Edit tab: the picture as it is, a direction applied to one region, and the same direction applied everywhere."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from stylefusion_hf.core.checks import check_number
from stylefusion_hf.spaces_app import dials
from stylefusion_hf.spaces_app.compose_values import event_data
from stylefusion_hf.spaces_app.edit_example import FIRST_SEED, Example, find_example
from stylefusion_hf.spaces_app.edit_responses import STRENGTH, ResponseMeter, explain, own_region
from stylefusion_hf.spaces_app.errors import show_errors
from stylefusion_hf.spaces_app.jobs import add_edit, start_recipe
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.opening import open_when_seen
from stylefusion_hf.spaces_app.results import result
from stylefusion_hf.spaces_app.stage import stage
from stylefusion_hf.spaces_app.strips import StripDrawer, direction_name, strips

MAX_STRENGTH = 5  # end of the slider, in standard deviations


class Edit:
    """The Edit tab; constructing it adds its controls to the current gradio context.

    Args:
        models, chosen, send: as in `Mix`.
        fetch: `fetch(button, outputs)` connects a button that copies the recipe of Compose.
        tab: the tab, which opens with an edit.
        quick: settings of events that answer immediately.
    """

    def __init__(
        self,
        models: Sequence[Model],
        chosen: gr.Dropdown,
        send: Callable[..., None],
        fetch: Callable[..., Any],
        tab: gr.Tab,
        quick: dict[str, Any],
    ):
        self.models = models
        self._examples: dict[int, Example] = {}
        self._finding = threading.Lock()
        self._drawers = [StripDrawer(model) for model in models]
        self._meters = [ResponseMeter(model) for model in models]
        model = models[0]
        start, recipe = gr.State(first_recipe(model)), gr.State(None)
        gr.Markdown(
            "A direction is one way in which the model's pictures differ. Beside the picture as it is, the second"
            " moves along the direction in the chosen region only; the third moves everywhere, as edits usually do.",
            elem_classes="sf-lead",
        )
        with gr.Row(elem_classes="sf-from"):
            seed = gr.Number(label="Picture (seed)", value=FIRST_SEED, elem_id="sf-edit-seed")
            take = gr.Button("Take the one from Compose", elem_id="sf-edit-take")
        with gr.Row():
            region = gr.Dropdown(
                edit_choices(model), value=model.regions[-1], label="Region", elem_id="sf-edit-region"
            )
            names = direction_choices(model)
            direction = gr.Dropdown(names, value=names[0][1], label="Direction", elem_id="sf-edit-direction")
            strength = gr.Slider(
                -MAX_STRENGTH,
                MAX_STRENGTH,
                STRENGTH,
                step=0.1,
                label="How far",
                elem_id="sf-edit-strength",
                buttons=[],
            )
        note = gr.HTML(
            elem_id="sf-edit-note", elem_classes="sf-note", apply_default_css=False, js_on_load=None, visible=False
        )
        gr.Markdown("#### Directions, from -2 to +2: click one", elem_classes="sf-heading")
        looks = strips(elem_id="sf-strips")
        with gr.Row(elem_classes="sf-pair"):
            with gr.Column(min_width=240):
                gr.Markdown("#### As it is")
                before = stage(elem_id="sf-edit-before")
            with gr.Column(min_width=240):
                gr.Markdown("#### Only this region")
                local = stage(elem_id="sf-edit-local")
                go = gr.Button("Go on in Compose")
            with gr.Column(min_width=240):
                gr.Markdown("#### The whole picture")
                everywhere = stage(elem_id="sf-edit-global")
        inputs, outputs = [chosen, start, region, direction, strength], [recipe, before, local, everywhere, note]
        edited = [recipe, local, everywhere, note]  # while the picture stays the same
        slow = quick | {"show_progress": "full", "show_progress_on": [looks]}

        def seed_recipe(index: int, value: Any) -> dict[str, Any]:
            return start_recipe(models[index], value)

        def draw_strips(index: int, start: dict[str, Any], name: str) -> Any:
            return gr.update(value=self._drawers[index].draw(start), picked=name)

        def draw_strips_after(event: Any) -> None:
            event.success(show_errors(draw_strips), [chosen, start, direction], looks, **slow)

        asked = seed.input(show_errors(seed_recipe), [chosen, seed], start, **quick)
        for event in (asked, fetch(take, start)):
            draw_strips_after(event.success(show_errors(self.render_all), inputs, outputs, **quick))
        for control in (region, strength):
            control.input(show_errors(self.render_edits), inputs, edited, **quick)
        direction.input(lambda name: gr.update(picked=name), direction, looks, api_visibility="private", queue=False)
        direction.input(show_errors(self._turn), inputs, [region, *edited], **quick)
        looks.click(show_errors(self._pick), inputs, [region, direction, strength, looks, *edited], **quick)
        send(go, recipe)

        def switch(index: int) -> list[Any]:
            model = models[index]
            names = direction_choices(model)
            return [
                first_recipe(model),
                FIRST_SEED,
                gr.update(choices=edit_choices(model), value=model.regions[-1]),
                gr.update(choices=names, value=names[0][1]),
                *[None] * 5,
                gr.update(visible=False),
            ]

        controls = [start, seed, region, direction, strength]
        switched = [start, seed, region, direction, looks, *outputs]
        for event in open_when_seen(
            tab, chosen, self._open, [chosen], [*controls, *outputs], switch, switched,
            **quick | {"show_progress": "full", "show_progress_on": [before, local, everywhere]},
        ):  # fmt: skip
            draw_strips_after(event)
        before.submit(show_errors(self.render_before), [chosen, start], before, **quick)
        local.submit(show_errors(partial(self.render_edits, draft=False)), inputs, edited, **quick)

    def _open(self, index: int) -> list[Any]:
        """Return the controls' values and the pictures of the edit to open with."""
        found = self.example(index)
        values = [found.recipe, found.recipe["base"], found.region, found.direction, found.strength]
        return [*values, *self.render_all(index, found.recipe, found.region, found.direction, found.strength)]

    def _turn(self, index: int, start: dict[str, Any], region: str, direction: str, strength: float) -> list[Any]:
        """Answer a choice of another direction: take the region in which it shows most, or everywhere, and edit it."""
        own = self.region_of(index, start, direction)
        return [own, *self.render_edits(index, start, own, direction, strength)]

    def _pick(
        self, event: gr.EventData, index: int, start: dict[str, Any], region: str, direction: str, strength: float
    ) -> list[Any]:
        """Answer a click on a strip: its direction, and the strength of the picture that was clicked."""
        asked = event_data(event)
        name, given = asked.get("direction"), asked.get("strength", strength)
        if not isinstance(name, str) or name not in self.models[index].directions():
            raise ValueError("this model has no such direction")
        check_number("the strength of an edit", given, -MAX_STRENGTH, MAX_STRENGTH)
        own = region if name == direction else self.region_of(index, start, name)
        return [own, name, given, gr.update(picked=name), *self.render_edits(index, start, own, name, given)]

    def region_of(self, index: int, start: dict[str, Any], direction: str) -> str:
        """Return the region in which a direction shows most in a picture, or the tree's root: everywhere."""
        if direction not in self.models[index].directions():
            raise ValueError("this model has no such direction")
        return own_region(self._meters[index].measure(start, direction)) or self.models[index].tree.root

    def prepare(self, index: int) -> None:
        """Find the edit to open with, and draw what is shown first: the tab then opens at once."""
        self._open(index)
        self._drawers[index].draw(self.example(index).recipe)

    def example(self, index: int) -> Example:
        """Return the edit to open with of a model; found when it is first needed."""
        with self._finding:
            if index not in self._examples:
                self._examples[index] = find_example(self._meters[index])
            return self._examples[index]

    def render_before(self, index: int, start: dict[str, Any], draft: bool = False) -> dict[str, Any]:
        """Render the picture without the edit; as a preview, if `draft` and there are any."""
        model = self.models[index]
        return result(model, model.draft(start) if draft else model.render(start), "as it is")

    def render_edits(
        self, index: int, start: dict[str, Any], region: str, direction: str, strength: float, draft: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], Any]:
        """Render the edit of a region and the same edit of the whole picture; as previews, if there are any.

        Returns:
            The recipe of the region's edit, the stage's value for it, the stage's value for the whole picture, and an
            update of the note on an edit that shows little.
        """
        model = self.models[index]
        shown = []
        for node in (region, model.tree.root):
            recipe = add_edit(model, start, node, direction, strength)
            picture = model.draft(recipe) if draft else model.render(recipe)
            where = "everything" if node == model.tree.root else dials.display_name(node).lower()
            shown.append(
                (picture.recipe, result(model, picture, f"{direction_name(direction)} by {strength:+g}: {where}"))
            )
        responses = self._meters[index].measure(start, direction)
        text = explain(responses, region, model.tree.root, direction_name(direction), strength)
        return shown[0][0], shown[0][1], shown[1][1], gr.update(value=escape(text), visible=bool(text))

    def render_all(
        self, index: int, start: dict[str, Any], region: str, direction: str, strength: float, draft: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any], Any]:
        """Render the picture without the edit, and as `render_edits`; its recipe comes first."""
        recipe, *edited = self.render_edits(index, start, region, direction, strength, draft)
        local, everywhere, note = edited
        return recipe, self.render_before(index, start, draft), local, everywhere, note


def region_choices(model: Model) -> list[tuple[str, str]]:
    """Return the regions as the choices of a dropdown."""
    return [(dials.display_name(name), name) for name in model.regions]


def edit_choices(model: Model) -> list[tuple[str, str]]:
    """Return the regions and everywhere, as the choices of a dropdown."""
    everywhere = [] if model.tree.root in model.regions else [("Everywhere", model.tree.root)]
    return [*region_choices(model), *everywhere]


def direction_choices(model: Model) -> list[tuple[str, str]]:
    """Return the directions as the choices of a dropdown."""
    return [(direction_name(name), name) for name in model.directions()]


def first_recipe(model: Model) -> dict[str, Any]:
    """Return the recipe of the picture that is edited at first."""
    return start_recipe(model, FIRST_SEED)
