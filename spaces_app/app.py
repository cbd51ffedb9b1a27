"""StyleFusion as a Gradio Space.

Started by `python app.py`, by `stylefusion space`, or by Hugging Face. STYLEFUSION_MODEL names models, folders or Hub
ids, with commas between them (default: the embedded one), STYLEFUSION_DIRECTIONS a file of directions for the first.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stylefusion_hf.spaces_app import device  # noqa: F401  # on ZeroGPU before torch

import gradio as gr  # isort: skip
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware

from stylefusion_hf import spaces_app
from stylefusion_hf.cli._shared import load_pipeline
from stylefusion_hf.spaces_app.compose import QUICK, Compose
from stylefusion_hf.spaces_app.edit import Edit
from stylefusion_hf.spaces_app.endpoints import Endpoints
from stylefusion_hf.spaces_app.errors import guarded
from stylefusion_hf.spaces_app.guard import Guard, Page, refused
from stylefusion_hf.spaces_app.jobs import Films
from stylefusion_hf.spaces_app.mix import Mix
from stylefusion_hf.spaces_app.models import EMBEDDED, Model
from stylefusion_hf.spaces_app.serving import own_folder, stopped_by_sigterm, wait
from stylefusion_hf.spaces_app.uploads import MAX_FILE
from stylefusion_hf.spaces_app.walk import Grid, Walk

HERE = Path(str(spaces_app.__file__)).parent  # the package's: a Space's folder has this file alone, beside the wheel
SESSIONS = 500  # whose settings are remembered; who was away longest is forgotten first
MAX_WAITING = 100  # events in the queue, which the endpoints and long work go through; who comes later is told so
CLEAN = (600, 3600)  # seconds: how often files of the page are removed, and which age they have then


def load_models(sources: Sequence[str], place: str | None = None, directions: str | None = None) -> list[Model]:
    """The models of a Space.

    Args:
        sources: folders or Hub ids; "embedded" for the one that comes with the package.
        place: the device; None for cuda where there is one.
        directions: a file for the first of them.

    Raises:
        ValueError, OSError: as in `StyleFusionPipeline.from_pretrained`.
    """
    models: list[Model] = []
    for source in sources:
        model = None if source == EMBEDDED else source
        pipe = load_pipeline(argparse.Namespace(model=model, generator=None, device=place))
        models.append(Model(pipe, None if models else directions))
    return models


def build(models: Sequence[Model]) -> gr.Blocks:
    """The page.

    Raises:
        ValueError: two models of one name, or none.
    """
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a Space has models of different names, one or more; got {', '.join(names) or 'none'}")
    with Page(title="StyleFusion", analytics_enabled=False, delete_cache=CLEAN, fill_width=True) as page:
        with gr.Row(elem_classes="sf-head"):
            gr.Markdown("# StyleFusion\nOne dial for every region of a portrait, fused into one picture.")
            chosen = gr.Dropdown(
                [(model.name, i) for i, model in enumerate(models)],
                value=0,
                label="Model",
                visible=len(models) > 1,
                elem_id="sf-model",
            )
        films = Films()
        with gr.Tabs(overflow_behavior="wrap") as tabs:  # a phone shows them all
            with gr.Tab("Compose", id="compose"):
                compose = Compose(models, chosen, tabs)
            with gr.Tab("Mix pictures", id="mix"):
                Mix(models, chosen, compose.send, QUICK)
            with gr.Tab("Edit", id="edit"):
                Edit(models, chosen, compose.send, compose.fetch, QUICK)
            with gr.Tab("Animate", id="animate"):
                Walk(models, chosen, compose.fetch, films)
            with gr.Tab("Compare", id="compare"):
                Grid(models, chosen)
            with gr.Tab("About", id="about"):
                gr.Markdown((HERE / "about.md").read_text(encoding="utf-8"), elem_classes="sf-about")
        Endpoints(models, films)
        inputs = [chosen, compose.history, *compose.values]
        page.load(guarded(compose.arrive), inputs, [*compose.page, chosen], **QUICK)
    return page


def queued(page: gr.Blocks) -> gr.Blocks:
    """The page with a queue of bounded length."""
    # After every event, gradio sums up the last 10,000 of them with pandas, for a monitoring page that is off here.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000")
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    return page.queue(max_size=MAX_WAITING)


def launch_settings() -> dict[str, Any]:
    """What `build`'s page is launched with."""
    return {
        "theme": theme(),
        "css_paths": [HERE / "style.css"],
        "max_file_size": MAX_FILE,
        "show_error": False,
        "state_session_capacity": SESSIONS,
        "app_kwargs": {
            "middleware": [Middleware(Guard)],
            "exception_handlers": {RequestValidationError: refused},
        },
        "num_workers": 0,  # gradio's own for uploads and files would pass Guard by
        "footer_links": ["api", "gradio"],
        "enable_monitoring": False,
        "ssr_mode": False,
        "run_history": False,
    }


def theme() -> gr.themes.Base:
    """Violet on paper; fonts that every system has, so that nothing is fetched from elsewhere."""
    return gr.themes.Soft(
        primary_hue="violet",
        neutral_hue="slate",
        radius_size="lg",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        block_title_background_fill="none",
        block_title_padding="0",
        block_title_text_color="*body_text_color",
        block_title_text_weight="600",
        block_shadow="none",
        block_border_width="1px",
    )


def main(sources: Sequence[str], place: str | None = None, directions: str | None = None, **launch: Any) -> None:
    """Load, build, serve; returns when the server is stopped, and leaves no file behind."""
    models = load_models(sources, place, directions)
    with stopped_by_sigterm(), own_folder():
        page = build(models)
        try:
            queued(page).launch(**(launch_settings() | {"prevent_thread_lock": True} | launch))
            wait(page)
        finally:
            page.close(verbose=False)


if __name__ == "__main__":
    named = [name.strip() for name in os.environ.get("STYLEFUSION_MODEL", EMBEDDED).split(",")]
    main([name for name in named if name], directions=os.environ.get("STYLEFUSION_DIRECTIONS"))
