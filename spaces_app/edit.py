"""The Edit tab: a direction applied to one region, next to the same direction applied to the whole picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import gradio as gr

from stylefusion_hf.core.seeds import MAX_SEED
from stylefusion_hf.spaces_app import dials
from stylefusion_hf.spaces_app.errors import show_errors
from stylefusion_hf.spaces_app.jobs import add_edit
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
        model = models[0]
        start = gr.State({"version": 1, "num_images": 1, "base": 1, "truncation_psi": model.psi})
        recipe = gr.State(None)
        gr.Markdown(
            "A direction is one way in which the model's pictures differ. The first picture moves along it in the"
            " chosen region only; the second moves everywhere, as edits usually do.",
            elem_classes="sf-lead",
        )
        with gr.Row(elem_classes="sf-from"):
            seed = gr.Number(label="Picture (seed)", value=1, precision=0, minimum=0, maximum=MAX_SEED)
            take = gr.Button("Take the one from Compose", elem_id="sf-edit-take")
        with gr.Row():
            region = gr.Dropdown(
                region_choices(model), value=model.regions[-1], label="Region", elem_id="sf-edit-region"
            )
            names = list(model.directions())
            direction = gr.Dropdown(names, value=names[0], label="Direction", elem_id="sf-edit-direction")
            strength = gr.Slider(
                -MAX_STRENGTH, MAX_STRENGTH, 2.5, step=0.1, label="How far", elem_id="sf-edit-strength", buttons=[]
            )
        with gr.Row(elem_classes="sf-pair"):
            with gr.Column(min_width=260):
                gr.Markdown("#### Only this region")
                local = stage(elem_id="sf-edit-local")
                go = gr.Button("Go on in Compose")
            with gr.Column(min_width=260):
                gr.Markdown("#### The whole picture")
                everywhere = stage(elem_id="sf-edit-global")
        inputs, outputs = [chosen, start, region, direction, strength], [recipe, local, everywhere]

        def seed_recipe(index: int, value: int | None) -> dict[str, Any]:
            if value is None:
                raise ValueError("the picture needs a seed: type a number")
            return {"version": 1, "num_images": 1, "base": int(value), "truncation_psi": models[index].psi}

        seed.input(show_errors(seed_recipe), [chosen, seed], start, **quick).success(
            show_errors(self.render_both), inputs, outputs, **quick
        )
        fetch(take, start).success(show_errors(self.render_both), inputs, outputs, **quick)
        for control in (region, direction, strength):
            control.input(show_errors(self.render_both), inputs, outputs, **quick)
        send(go, recipe)

        def switch(index: int) -> list[Any]:
            model = models[index]
            names = list(model.directions())
            return [
                {"version": 1, "num_images": 1, "base": 1, "truncation_psi": model.psi},
                gr.update(choices=region_choices(model), value=model.regions[-1]),
                gr.update(choices=names, value=names[0]),
            ]

        chosen.change(show_errors(switch), chosen, [start, region, direction], api_visibility="private").success(
            show_errors(self.render_both), inputs, outputs, **quick
        )
        local.submit(show_errors(partial(self.render_both, draft=False)), inputs, outputs, **quick)
        first = (0, start.value, region.value, names[0], strength.value)
        _, local.value, everywhere.value = self.render_both(*first, draft=False)

    def render_both(
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


def region_choices(model: Model) -> list[tuple[str, str]]:
    """Return the regions as the choices of a dropdown."""
    return [(dials.display_name(name), name) for name in model.regions]
