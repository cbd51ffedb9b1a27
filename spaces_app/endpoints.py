"""The API for `gradio_client` and HTTP: named endpoints for what the page does.

Their components are hidden; they only give the API page its types and defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gradio as gr
from gradio.processing_utils import save_bytes_to_cache

from stylefusion_hf.core.checks import short
from stylefusion_hf.spaces_app import jobs
from stylefusion_hf.spaces_app.compose_events import LIMITS
from stylefusion_hf.spaces_app.errors import show_errors
from stylefusion_hf.spaces_app.mix import LONG, MAX_STEPS, upload_component
from stylefusion_hf.spaces_app.models import Model, Picture
from stylefusion_hf.spaces_app.pictures import open_picture
from stylefusion_hf.spaces_app.results import encode_png


class Endpoints:
    """The endpoints of a page; constructing it registers them in the current gradio context.

    Args:
        models: the models of the Space.
        films: where animations are written.
    """

    def __init__(self, models: Sequence[Model], films: jobs.AnimationFolder):
        self.models, self.films = {model.name: model for model in reversed(models)}, films
        first = models[0]
        with gr.Column(visible=False):
            name = gr.Textbox(first.name, label="model")
            base = gr.Number(1, label="base", precision=0)  # an integer in the API's types
            base.preprocess = _to_int  # type: ignore[method-assign,assignment]  # gradio would round 1.5 to 2
            shared = gr.Textbox("", label="global_code")
            regions, strength = gr.JSON({}, label="regions"), gr.JSON({}, label="strength")
            psi = gr.Number(first.psi, label="psi")
            recipe, start = gr.JSON(None, label="recipe"), gr.JSON({}, label="recipe")
            picture = upload_component("picture")
            steps = gr.Number(0, label="steps", precision=0)
            region = gr.Textbox(first.regions[-1], label="region")
            direction = gr.Textbox(next(iter(first.directions())), label="direction")
            amount = gr.Number(2.5, label="amount")
            seeds = gr.Textbox("7, 8, 9", label="seeds")
            bases, sources = gr.Textbox("1, 4", label="bases"), gr.Textbox("21, 24", label="sources")
            frames, fps = gr.Number(24, label="frames", precision=0), gr.Number(20, label="fps")
            suffix = gr.Textbox(".webp", label="suffix")
            image, made = gr.Image(label="picture", format="png"), gr.JSON(label="recipe")
            self._cache = image.GRADIO_CACHE  # the folder of the files that gradio hands out
            sheet, film = gr.Image(label="sheet", format="png"), gr.File(label="film")
            facts = gr.JSON(label="facts")
            button = gr.Button()

        def add(function: Callable[..., Any], inputs: list[Any], outputs: list[Any], long: bool = False) -> None:
            settings: dict[str, Any] = dict(LONG if long else LIMITS) | {"api_visibility": "public"}
            button.click(show_errors(function), inputs, outputs, api_name=function.__name__, **settings)

        add(self.about, [name], [facts])
        add(self.compose, [base, regions, shared, strength, psi, name], [image, made])
        add(self.from_recipe, [recipe, name], [image, made])
        add(self.edit, [base, region, direction, amount, start, name], [image, made])
        add(self.invert, [picture, steps, name], [image, made], long=True)
        add(self.mix, [base, start, regions, psi, name], [image, made])
        add(self.interpolate, [base, region, seeds, frames, fps, suffix, name], [film], long=True)
        add(self.sheet, [bases, sources, psi, name], [sheet], long=True)

    def about(self, model: str) -> dict[str, Any]:
        """Describe a model: its regions, their tree, its size and directions, and the names of all models.

        Args:
            model: name of the model; the default is the first.
        """
        found = self._model(model)
        return {
            "models": list(self.models)[::-1],
            "regions": list(found.regions),
            "tree": str(found.tree),
            "resolution": found.resolution,
            "picture_size": list(found.size),
            "classes": found.classes,
            "truncation_psi": found.psi,
            "encoder": found.has_encoder,
            "directions": list(found.directions()),
        }

    def compose(
        self,
        base: int,
        regions: dict[str, int],
        global_code: str,
        strength: dict[str, float],
        psi: float,
        model: str,
    ) -> tuple[Any, dict[str, Any]]:
        """Fuse one picture from seeds; returns it with its recipe, which the PNG contains too.

        Args:
            base: seed of everything that is not set otherwise.
            regions: region -> seed.
            global_code: seed of what the regions share; "" for the base's.
            strength: region -> 0 to 1, how far to go from the base to the region's code.
            psi: truncation.
            model: name of the model.
        """
        recipe = {"version": 1, "num_images": 1, "base": _to_int(base), "regions": regions or {}}
        if global_code:
            (recipe["global_code"],) = jobs.parse_seeds(global_code, 1)
        return self._render(model, recipe | {"strength": strength or {}, "truncation_psi": psi})

    def from_recipe(self, recipe: dict[str, Any], model: str) -> tuple[Any, dict[str, Any]]:
        """Render a recipe; on the same machine, exactly the picture that it came from.

        Args:
            recipe: as returned by another endpoint, or `pipe(...).recipe`.
            model: name of the model.
        """
        return self._render(model, recipe)

    def edit(
        self, base: int, region: str, direction: str, amount: float, recipe: dict[str, Any] | None, model: str
    ) -> tuple[Any, dict[str, Any]]:
        """Move one region of a picture along a direction.

        Args:
            base: seed of the picture; ignored if a recipe is given.
            region: a node of the tree; its root for the whole picture.
            direction: name of a direction that `about` lists.
            amount: strength in standard deviations, -10 to 10.
            recipe: recipe of the picture to edit, or {}.
            model: name of the model.
        """
        found = self._model(model)
        start = found.check(recipe or {"version": 1, "base": _to_int(base)})
        return self._render(model, jobs.add_edit(found, start, region, direction, amount))

    def invert(
        self,
        picture: str | None,
        steps: int,
        model: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008
    ) -> tuple[Any, dict[str, Any]]:
        """Reconstruct a picture with the model; the recipe's `base` is the picture's code.

        Args:
            picture: a file with a picture of the kind that the model draws; its middle is used.
            steps: optimization steps, at most 200; 0 for the encoder's guess.
            model: name of the model.
        """
        found = self._model(model)
        if picture is None:
            raise ValueError("picture: no file was given")
        if not 0 <= steps <= MAX_STEPS:
            raise ValueError(f"steps must be 0 to {MAX_STEPS}, got {steps}")
        if not steps and not found.has_encoder:
            raise ValueError("this model has no encoder, so that a picture needs some steps of optimization")
        opened = open_picture(picture, "the picture", found.size, found.channels)
        codes, _, _ = found.invert([opened], int(steps), lambda step: progress((step, steps)))
        return self._render(model, jobs.mix_codes(codes, {}, None, found.psi))

    def mix(
        self, base: int, recipe: dict[str, Any] | None, regions: dict[str, Any], psi: float, model: str
    ) -> tuple[Any, dict[str, Any]]:
        """Combine regions of several pictures: call `invert` on each, and pass the bases of their recipes.

        Args:
            base: seed of the picture that everything else comes from; ignored if a recipe is given.
            recipe: recipe of that picture, or {}.
            regions: region -> a seed, or a recipe whose base is used.
            psi: truncation of seeds.
            model: name of the model.
        """
        found = self._model(model)
        start = found.check(recipe or {"version": 1, "base": _to_int(base), "truncation_psi": psi})
        taken = {
            name: found.check(given)["base"] if isinstance(given, Mapping) and "base" in given else given
            for name, given in (regions or {}).items()
        }
        return self._render(model, start | {"regions": start.get("regions", {}) | taken})

    def interpolate(self, base: int, region: str, seeds: str, frames: int, fps: float, suffix: str, model: str) -> str:
        """Make a looping animation in which one region changes and the rest stays.

        Args:
            base: seed of what stays.
            region: a region of the tree; "" for everything.
            seeds: keyframes, such as "7, 8, 9".
            frames: 2 to 120.
            fps: frames per second.
            suffix: ".webp" (exact), ".gif", or ".mp4" where the Space has imageio-ffmpeg.
            model: name of the model.
        """
        found = self._model(model)
        recipe = {"version": 1, "num_images": 1, "base": _to_int(base), "truncation_psi": found.psi}
        path = jobs.parse_seeds(seeds, jobs.MAX_KEYFRAMES)
        return str(self.films.write(found, recipe, region or None, path, int(frames), fps, suffix))

    def sheet(self, bases: str, sources: str, psi: float, model: str) -> Any:
        """Draw a contact sheet: each region of the bases replaced by that of the sources.

        Args:
            bases: seeds, such as "1, 4": one per row.
            sources: the same number of seeds.
            psi: truncation.
            model: name of the model.
        """
        rows, others = jobs.parse_seeds(bases, jobs.MAX_ROWS), jobs.parse_seeds(sources, jobs.MAX_ROWS)
        return jobs.draw_sheet(self._model(model), rows, others, psi)

    # ------------------------------------------------------------------------------------------------

    def _model(self, name: str) -> Model:
        if name not in self.models:
            raise ValueError(f"there is no model {short(name)} here; the models are {', '.join(self.models)}")
        return self.models[name]

    def _render(self, name: str, recipe: Any) -> tuple[Any, dict[str, Any]]:
        model = self._model(name)
        picture: Picture = model.render(model.check(recipe), with_labels=False, keep=False)
        # A file of our own encoding: gradio's of 1024 px takes longer than drawing the picture.
        data = encode_png(picture.image, picture.recipe)
        return save_bytes_to_cache(data, "image.png", self._cache), picture.recipe


def _to_int(value: Any) -> Any:
    """Convert a whole float, such as JSON's 1.0, to the integer that a seed must be."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
