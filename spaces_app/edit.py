"""The Edit tab: the picture as it is, a direction applied to one region, and the same direction applied everywhere."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gradio as gr

from stylefusion_hf.spaces_app import dials
from stylefusion_hf.spaces_app.edit_example import Example, find_example
from stylefusion_hf.spaces_app.errors import show_errors
from stylefusion_hf.spaces_app.jobs import add_edit, start_recipe
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.results import result
from stylefusion_hf.spaces_app.stage import stage

MAX_STRENGTH = 5  # end of the slider, in standard deviations


class Edit:
    """The Edit tab; constructing it adds its controls to the current gradio context.

    Args:
        models, chosen, send: as in `Mix`.
        fetch: `fetch(button, outputs)` connects a button that copies the recipe of Compose.
        quick: settings of events that answer immediately.
    """

    def __init__(
        self,
        models: Sequence[Model],
        chosen: gr.Dropdown,
        send: Callable[..., None],
        fetch: Callable[..., Any],
        quick: dict[str, Any],
    ):
        self.models = models
        self._examples: dict[int, Example] = {}
        model, example = models[0], self.example(0)
        start, recipe = gr.State(example.recipe), gr.State(None)
        gr.Markdown(
            "A direction is one way in which the model's pictures differ. Beside the picture as it is, the second"
            " moves along the direction in the chosen region only; the third moves everywhere, as edits usually do.",
            elem_classes="sf-lead",
        )
        with gr.Row(elem_classes="sf-from"):
            seed = gr.Number(label="Picture (seed)", value=example.recipe["base"])
            take = gr.Button("Take the one from Compose", elem_id="sf-edit-take")
        with gr.Row():
            region = gr.Dropdown(region_choices(model), value=example.region, label="Region", elem_id="sf-edit-region")
            names = list(model.directions())
            direction = gr.Dropdown(names, value=example.direction, label="Direction", elem_id="sf-edit-direction")
            strength = gr.Slider(
                -MAX_STRENGTH,
                MAX_STRENGTH,
                example.strength,
                step=0.1,
                label="How far",
                elem_id="sf-edit-strength",
                buttons=[],
            )
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
        inputs, outputs = [chosen, start, region, direction, strength], [recipe, before, local, everywhere]
        edited = [recipe, local, everywhere]  # while the picture stays the same

        def seed_recipe(index: int, value: Any) -> dict[str, Any]:
            return start_recipe(models[index], value)

        seed.input(show_errors(seed_recipe), [chosen, seed], start, **quick).success(
            show_errors(self.render_all), inputs, outputs, **quick
        )
        fetch(take, start).success(show_errors(self.render_all), inputs, outputs, **quick)
        for control in (region, direction, strength):
            control.input(show_errors(self.render_edits), inputs, edited, **quick)
        send(go, recipe)

        def switch(index: int) -> list[Any]:
            model, example = models[index], self.example(index)
            return [
                example.recipe,
                example.recipe["base"],
                gr.update(choices=region_choices(model), value=example.region),
                gr.update(choices=list(model.directions()), value=example.direction),
                example.strength,
            ]

        controls = [start, seed, region, direction, strength]
        chosen.change(show_errors(switch), chosen, controls, api_visibility="private").success(
            show_errors(self.render_all), inputs, outputs, **quick
        )
        before.submit(show_errors(self.render_before), [chosen, start], before, **quick)
        local.submit(show_errors(partial(self.render_edits, draft=False)), inputs, edited, **quick)
        first = (0, example.recipe, example.region, example.direction, example.strength)
        recipe.value, before.value, local.value, everywhere.value = self.render_all(*first, draft=False)

    def example(self, index: int) -> Example:
        """Return the edit to open with of a model; found when it is first needed."""
        if index not in self._examples:
            self._examples[index] = find_example(self.models[index])
        return self._examples[index]

    def render_before(self, index: int, start: dict[str, Any], draft: bool = False) -> dict[str, Any]:
        """Render the picture without the edit; as a preview, if `draft` and there are any."""
        model = self.models[index]
        return result(model, model.draft(start) if draft else model.render(start), "as it is")

    def render_edits(
        self, index: int, start: dict[str, Any], region: str, direction: str, strength: float, draft: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Render the edit of a region and the same edit of the whole picture; as previews, if there are any.

        Returns:
            The recipe of the region's edit, the stage's value for it, and the stage's value for the whole picture.
        """
        model = self.models[index]
        shown = []
        for node in (region, model.tree.root):
            recipe = add_edit(model, start, node, direction, strength)
            picture = model.draft(recipe) if draft else model.render(recipe)
            where = dials.display_name(node).lower() if node == region else "everything"
            shown.append((picture.recipe, result(model, picture, f"{direction} by {strength:+g}: {where}")))
        return shown[0][0], shown[0][1], shown[1][1]

    def render_all(
        self, index: int, start: dict[str, Any], region: str, direction: str, strength: float, draft: bool = True
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Render the picture without the edit, and as `render_edits`; its recipe comes first."""
        recipe, local, everywhere = self.render_edits(index, start, region, direction, strength, draft)
        return recipe, self.render_before(index, start, draft), local, everywhere


def region_choices(model: Model) -> list[tuple[str, str]]:
    """Return the regions as the choices of a dropdown."""
    return [(dials.display_name(name), name) for name in model.regions]
