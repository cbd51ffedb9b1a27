"""The Animate tab, which walks a region from look to look, and the Compare tab, which draws contact sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from stylefusion_hf.spaces_app import jobs
from stylefusion_hf.spaces_app.edit import region_choices
from stylefusion_hf.spaces_app.errors import show_errors
from stylefusion_hf.spaces_app.mix import LONG
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.results import load_line

EVERYTHING = ""  # the dropdown's value if the base walks
LARGE, FIRST_FRAMES = 256, (24, 12)  # frames of the animation to open with, and of models of more pixels than LARGE


class Walk:
    """The Animate tab; arguments as for `Edit`, the folder for its files, and the tab: it opens with an animation."""

    def __init__(
        self,
        models: Sequence[Model],
        chosen: gr.Dropdown,
        fetch: Callable[..., Any],
        films: jobs.AnimationFolder,
        tab: gr.Tab,
    ):
        self.models, self.films = models, films
        model = models[0]
        start = gr.State({"version": 1, "num_images": 1, "base": 1, "truncation_psi": model.psi})
        gr.Markdown(
            "One region walks through other looks and back again, in an endless loop; the rest keeps its code.",
            elem_classes="sf-lead",
        )
        with gr.Row(elem_classes="sf-compose"):
            with gr.Column(scale=5, min_width=280):
                with gr.Row(elem_classes="sf-from"):
                    seed = gr.Number(label="Picture (seed)", value=1)
                    take = gr.Button("Take the one from Compose")
                region = gr.Dropdown(
                    walk_choices(model), value=model.regions[-1], label="What walks", elem_id="sf-walk-region"
                )
                through = gr.Textbox("31, 7, 24", label="Through these seeds", elem_id="sf-walk-seeds")
                frames = gr.Slider(8, jobs.MAX_FRAMES, 48, step=1, label="Frames", buttons=[])
                fps = gr.Slider(5, 50, 20, step=1, label="Frames per second", buttons=[])
                suffix = gr.Radio([("WebP, exact", ".webp"), ("GIF, 256 colors", ".gif")], value=".webp", label="File")
                make = gr.Button("Make the animation", variant="primary", elem_id="sf-walk-make")
            with gr.Column(scale=5, min_width=280):
                film = gr.Image(
                    label="The walk",
                    type="filepath",
                    interactive=False,
                    buttons=[],
                    elem_id="sf-walk-film",
                    elem_classes="sf-crisp sf-film",
                )
                download = gr.DownloadButton("Download", interactive=False, elem_id="sf-walk-download")
                code = gr.Code(label="The same with Python", language="python", visible=False)

        def seed_recipe(index: int, value: int | None) -> dict[str, Any]:
            return jobs.start_recipe(models[index], value)

        seed.input(show_errors(seed_recipe), [chosen, seed], start, api_visibility="private", queue=False)
        fetch(take, start)
        inputs, outputs = [chosen, start, region, through, frames, fps, suffix], [film, download, code]
        make.click(show_errors(self._make), inputs, outputs, show_progress_on=[film], **LONG)
        opened = gr.State(False)  # whether there is an animation of this model
        tab.select(show_errors(self._open), [opened, *inputs], [opened, *outputs], show_progress_on=[film], **LONG)

        def switch(index: int) -> list[Any]:
            model = models[index]
            fresh = {"version": 1, "num_images": 1, "base": 1, "truncation_psi": model.psi}
            choices = gr.update(choices=walk_choices(model), value=model.regions[-1])
            return [fresh, choices, False, None, gr.update(interactive=False), gr.update(visible=False)]

        chosen.change(show_errors(switch), chosen, [start, region, opened, *outputs], api_visibility="private")

    def _open(self, opened: bool, index: int, start: dict[str, Any], *others: Any) -> Any:
        """Make a short animation when the tab is opened for the first time."""
        if opened:
            return gr.skip()
        region, through, _, *rest = others
        frames = FIRST_FRAMES[self.models[index].resolution > LARGE]
        return True, *self._make(index, start, region, through, frames, *rest)

    def _make(
        self,
        index: int,
        start: dict[str, Any],
        region: str,
        through: str,
        frames: int,
        fps: float,
        suffix: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # required by gradio
    ) -> tuple[str, Any, Any]:
        model = self.models[index]
        path = jobs.parse_seeds(through, jobs.MAX_KEYFRAMES)
        file = self.films.write(
            model,
            start,
            region or None,
            path,
            int(frames),
            float(fps),
            suffix,
            lambda count: progress((count, int(frames)), desc="Drawing frames"),
        )
        return (
            str(file),
            gr.update(value=str(file), interactive=True),
            gr.update(value=walk_snippet(model, start, region or None, path, int(frames), fps, suffix), visible=True),
        )


def walk_choices(model: Model) -> list[tuple[str, str]]:
    """Return the choices of what walks: the regions, and everything."""
    return [*region_choices(model), ("Everything", EVERYTHING)]


def walk_snippet(
    model: Model,
    recipe: dict[str, Any],
    region: str | None,
    through: Sequence[int],
    frames: int,
    fps: float,
    suffix: str,
) -> str:
    """Return Python code that makes the same animation."""
    call = jobs.walk_arguments(model, recipe, region, through)
    given = {name: value for name, value in call.items() if value not in (None, {}, 1.0)}
    given = {name: value[0] if isinstance(value, list) and len(value) == 1 else value for name, value in given.items()}
    if "regions" in given:
        given["regions"] = {k: v[0] if len(v) == 1 else v for k, v in given["regions"].items()}
    if "Code(" in repr(given):
        return "# This walk starts from a photograph's code: download the recipe in Compose and use its codes."
    lines = [
        "from stylefusion_hf import StyleFusionInterpolationPipeline",
        "from stylefusion_hf.imaging.animation import write_animation",
        "",
        load_line(model, "StyleFusionInterpolationPipeline"),
        "out = pipe(",
        *(f"    {name}={value!r}," for name, value in given.items()),
        f"    frames={frames},",
        "    loop=True,",
        ")",
        f'write_animation("walk{suffix}", out.frames, fps={fps:g})',
    ]
    return "\n".join(lines)


class Grid:
    """The Compare tab; constructing it adds its controls to the current gradio context.

    Args:
        models, chosen: as in `Mix`.
        tab: the tab, which opens with a sheet.
    """

    def __init__(self, models: Sequence[Model], chosen: gr.Dropdown, tab: gr.Tab):
        gr.Markdown(
            "Each row is a picture and a source. From left to right, one region at a time is taken from the source.",
            elem_classes="sf-lead",
        )
        with gr.Row():
            bases = gr.Textbox("1, 4, 6", label="Pictures (seeds)", elem_id="sf-grid-bases")
            sources = gr.Textbox("21, 24, 26", label="Sources (seeds)", elem_id="sf-grid-sources")
            psi = gr.Slider(0, 1.5, models[0].psi, step=0.01, label="Variety", buttons=[])
        make = gr.Button("Draw the sheet", variant="primary", elem_id="sf-grid-make")
        drawn = gr.Image(
            label="Sheet", show_label=False, format="png", type="pil", interactive=False,
            buttons=["download", "fullscreen"], elem_id="sf-grid-sheet",
        )  # fmt: skip
        code = gr.Code(label="The same with Python", language="python", visible=False, elem_id="sf-grid-code")

        def draw(index: int, base: str, source: str, psi: float) -> tuple[Any, Any]:
            rows, others = jobs.parse_seeds(base, jobs.MAX_ROWS), jobs.parse_seeds(source, jobs.MAX_ROWS)
            image = jobs.draw_sheet(models[index], rows, others, psi)
            return image, gr.update(value=sheet_snippet(models[index], rows, others, psi), visible=True)

        def draw_first(opened: bool, index: int, base: str, source: str, psi: float) -> Any:
            return gr.skip() if opened else (True, *draw(index, base, source, psi))

        def switch(index: int) -> list[Any]:
            return [False, gr.update(value=models[index].psi), None, gr.update(visible=False)]

        inputs, opened = [chosen, bases, sources, psi], gr.State(False)
        make.click(show_errors(draw), inputs, [drawn, code], show_progress_on=[drawn], **LONG)
        first = [opened, drawn, code]
        tab.select(show_errors(draw_first), [opened, *inputs], first, show_progress_on=[drawn], **LONG)
        chosen.change(show_errors(switch), chosen, [opened, psi, drawn, code], api_visibility="private")


def sheet_snippet(model: Model, bases: Sequence[int], sources: Sequence[int], psi: float) -> str:
    """Return Python code that makes the same sheet."""
    lines = [
        "from stylefusion_hf import StyleFusionPipeline",
        "from stylefusion_hf.imaging.sheets import contact_sheet",
        "",
        load_line(model),
        f'contact_sheet(pipe, {list(bases)}, {list(sources)}, truncation_psi={psi!r}).save("sheet.png")',
    ]
    return "\n".join(lines)
