"""The Animate tab, which walks a region from look to look, and the Compare tab, which draws contact sheets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from stylefusion_hf.spaces_app import jobs
from stylefusion_hf.spaces_app.edit import first_recipe, region_choices
from stylefusion_hf.spaces_app.edit_example import FIRST_SEED
from stylefusion_hf.spaces_app.errors import show_errors
from stylefusion_hf.spaces_app.mix import LONG
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.opening import open_when_seen
from stylefusion_hf.spaces_app.results import load_line

EVERYTHING = ""  # the dropdown's value if the base walks
FIRST_FRAMES = 24  # until a visitor chooses, and of the animation to open with: it is quickly there
KINDS = {".webp": "WebP, exact", ".gif": "GIF, 256 colors", ".mp4": "MP4"}


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
        start = gr.State(first_recipe(model))
        gr.Markdown(
            "One region walks through other looks and back again, in an endless loop; the rest keeps its code.",
            elem_classes="sf-lead",
        )
        with gr.Row(elem_classes="sf-compose"):
            with gr.Column(scale=5, min_width=280):
                with gr.Row(elem_classes="sf-from"):
                    seed = gr.Number(label="Picture (seed)", value=FIRST_SEED)
                    take = gr.Button("Take the one from Compose")
                region = gr.Dropdown(
                    walk_choices(model), value=model.regions[-1], label="What walks", elem_id="sf-walk-region"
                )
                through = gr.Textbox("31, 7, 24", label="Through these seeds", elem_id="sf-walk-seeds")
                frames = gr.Slider(
                    8, jobs.MAX_FRAMES, FIRST_FRAMES, step=1, label="Frames", elem_id="sf-walk-frames", buttons=[]
                )
                fps = gr.Slider(5, 50, 20, step=1, label="Frames per second", buttons=[])
                size = gr.Radio([], label="Size", elem_id="sf-walk-size")
                for name, content in size_choices(model).items():
                    setattr(size, name, content)
                kinds = [(KINDS[suffix], suffix) for suffix in jobs.animation_suffixes()]
                suffix = gr.Radio(kinds, value=kinds[0][1], label="File", elem_id="sf-walk-file")
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
                video = gr.Video(
                    label="The walk",
                    interactive=False,
                    autoplay=True,
                    loop=True,
                    buttons=[],
                    visible=False,
                    elem_id="sf-walk-video",
                )
                download = gr.DownloadButton("Download", interactive=False, elem_id="sf-walk-download")
                code = gr.Code(label="The same with Python", language="python", visible=False)

        def seed_recipe(index: int, value: int | None) -> dict[str, Any]:
            return jobs.start_recipe(models[index], value)

        seed.input(show_errors(seed_recipe), [chosen, seed], start, api_visibility="private", queue=False)
        fetch(take, start)
        inputs, outputs = [chosen, start, region, through, frames, fps, size, suffix], [film, video, download, code]
        make.click(show_errors(self._make), inputs, outputs, show_progress_on=[film], **LONG)

        def switch(index: int) -> list[Any]:
            model = models[index]
            choices = gr.update(choices=walk_choices(model), value=model.regions[-1])
            film = [gr.update(value=None, visible=True), gr.update(value=None, visible=False)]
            nothing = [*film, gr.update(interactive=False), gr.update(visible=False)]
            return [first_recipe(model), FIRST_SEED, choices, gr.update(**size_choices(model)), *nothing]

        open_when_seen(
            tab, chosen, self._make, inputs, outputs, switch, [start, seed, region, size, *outputs],
            show_progress_on=[film], **LONG,
        )  # fmt: skip

    def _make(
        self,
        index: int,
        start: dict[str, Any],
        region: str,
        through: str,
        frames: int,
        fps: float,
        size: int,
        suffix: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # required by gradio
    ) -> list[Any]:
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
            int(size) or None,
        )
        python = walk_snippet(model, start, region or None, path, int(frames), fps, suffix, int(size))
        moving = suffix == ".mp4"
        return [
            gr.update(value=None if moving else str(file), visible=not moving),
            gr.update(value=str(file) if moving else None, visible=moving),
            gr.update(value=str(file), interactive=True),
            gr.update(value=python, visible=True),
        ]


def size_choices(model: Model) -> dict[str, Any]:
    """Return the properties of the control of the frames' size: previews are quick, and 0 stands for full pictures."""
    sizes = [(f"{size} px, quick", size) for size in reversed(model.small_heights) if size]
    choices = [*sizes, (f"{model.resolution} px", 0)]
    return {"choices": choices, "value": choices[0][1], "visible": len(choices) > 1}


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
    size: int = 0,
) -> str:
    """Return Python code that makes the same animation; `size` is the height of previews, 0 for full pictures."""
    call = jobs.walk_arguments(model, recipe, region, through)
    default: dict[str, Any] = {"strength": 1.0, "translate": (0.0, 0.0), "rotate": 0.0}
    given = {name: value for name, value in call.items() if value not in (None, {}) and value != default.get(name)}
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
        *(['    output_type="latent",'] if size else []),
        ")",
    ]
    if size:  # previews: read off the generator's features of that size
        lines[:0] = ["import torch"]
        lines += [
            "with torch.no_grad():",
            f"    pictures = pipe.generator.synthesis(out.style_codes, up_to={size})",
            "frames = pipe.image_processor.postprocess(pictures)",
        ]
    lines.append(f'write_animation("walk{suffix}", {"frames" if size else "out.frames"}, fps={fps:g})')
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

        def draw(index: int, base: str, source: str, psi: float, draft: bool = False) -> tuple[Any, Any]:
            rows, others = jobs.parse_seeds(base, jobs.MAX_ROWS), jobs.parse_seeds(source, jobs.MAX_ROWS)
            image = jobs.draw_sheet(models[index], rows, others, psi, draft)
            return image, gr.update(value=sheet_snippet(models[index], rows, others, psi), visible=True)

        def draw_first(index: int, base: str, source: str, psi: float) -> tuple[Any, Any]:
            return draw(index, base, source, psi, draft=True)

        def switch(index: int) -> list[Any]:
            return [gr.update(value=models[index].psi), None, gr.update(visible=False)]

        inputs, outputs = [chosen, bases, sources, psi], [drawn, code]
        make.click(show_errors(draw), inputs, outputs, show_progress_on=[drawn], **LONG)
        open_when_seen(
            tab, chosen, draw_first, inputs, outputs, switch, [psi, *outputs], show_progress_on=[drawn], **LONG
        )


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
