"""StyleFusion as a Gradio Space.

Start it with `python app.py`, with `stylefusion space`, or as a Space on Hugging Face. STYLEFUSION_MODEL is a
comma-separated list of folders or Hub ids (default: the embedded model), STYLEFUSION_DIRECTIONS a directions file for
the first of them.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from stylefusion_hf.spaces_app import EMBEDDED, device  # noqa: F401  # ZeroGPU must be set up before torch is imported

import gradio as gr  # isort: skip
from fastapi.exceptions import RequestValidationError
from starlette.middleware import Middleware

from stylefusion_hf import spaces_app
from stylefusion_hf.cli.loading import load_pipeline
from stylefusion_hf.core.checks import shown
from stylefusion_hf.ops import native
from stylefusion_hf.spaces_app.compose import Compose
from stylefusion_hf.spaces_app.compose_events import QUICK
from stylefusion_hf.spaces_app.edit import Edit
from stylefusion_hf.spaces_app.endpoints import Endpoints
from stylefusion_hf.spaces_app.errors import show_errors
from stylefusion_hf.spaces_app.guard import Guard, Page, refuse_fields
from stylefusion_hf.spaces_app.jobs import AnimationFolder
from stylefusion_hf.spaces_app.mix import Mix
from stylefusion_hf.spaces_app.model_text import describe_model
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.photo import Photo
from stylefusion_hf.spaces_app.serving import stop_on_sigterm, temporary_folder, wait_until_stopped
from stylefusion_hf.spaces_app.uploads import MAX_FILE
from stylefusion_hf.spaces_app.walk import Grid, Walk

logger = logging.getLogger(__name__)

HERE = Path(str(spaces_app.__file__)).parent  # of the package: app.py may be copied elsewhere, next to the wheel
SESSIONS = 500  # sessions whose settings are kept; the least recently used is dropped first
MAX_WAITING = 100  # events in the queue of endpoints and long jobs; further ones get an error
QUEUE_SECONDS = 0.02  # between looks at an empty queue: gradio's thousand a second take a tenth of a core
STOP_SECONDS = 10  # that a stopped Space waits for the pictures that it prepares
CLEANUP = (600, 3600)  # seconds: interval between cleanups, and the age at which a file of the page is deleted


def load_models(sources: Sequence[str], place: str | None = None, directions: str | None = None) -> list[Model]:
    """Load the models of a Space.

    Args:
        sources: folders or Hub ids; "embedded" for the model that comes with the package.
        place: the device; None for cuda if available, else the CPU.
        directions: a directions file for the first model.

    Raises:
        ValueError, OSError: as in `StyleFusionPipeline.from_pretrained`.
    """
    models: list[Model] = []
    for source in sources:
        tell(f"Loading the model {shown(source)}")
        model = None if source == EMBEDDED else source
        pipe = load_pipeline(argparse.Namespace(model=model, generator=None, device=place))
        models.append(Model(pipe, None if models else directions))
    return models


def build(models: Sequence[Model]) -> Page:
    """Build the page.

    Raises:
        ValueError: there is no model, or two models have the same name.
    """
    names = [model.name for model in models]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"a Space needs one or more models with different names; got {', '.join(names) or 'none'}")
    with Page(title="StyleFusion", analytics_enabled=False, delete_cache=CLEANUP, fill_width=True) as page:
        with gr.Row(elem_classes="sf-head"):
            gr.Markdown(
                "# StyleFusion\nOne dial for every region of a picture. License and limits of the model: *About*."
            )
            chosen = gr.Dropdown(
                [(model.name, i) for i, model in enumerate(models)],
                value=0,
                label="Model",
                visible=len(models) > 1,
                elem_id="sf-model",
            )
        films = AnimationFolder()
        with gr.Tabs(overflow_behavior="wrap"):  # wrapped, so that all are visible on a phone
            with gr.Tab("Compose", id="compose"):
                compose = Compose(models, chosen)
            with gr.Tab("Mix pictures", id="mix"):
                Mix(models, chosen, compose.send, QUICK)
            with gr.Tab("Your photograph", id="photo"):
                Photo(models, chosen, QUICK)
            with gr.Tab("Edit", id="edit") as tab:
                edit = Edit(models, chosen, compose.send, compose.fetch, tab, QUICK)
            with gr.Tab("Animate", id="animate") as tab:
                Walk(models, chosen, compose.fetch, films, tab)
            with gr.Tab("Compare", id="compare") as tab:
                Grid(models, chosen, tab)
            with gr.Tab("About", id="about"):
                described = [describe_model(model) for model in models]
                card = gr.HTML(described[0], elem_id="sf-card", elem_classes="sf-about")

                def describe(index: int) -> str:
                    return described[index]

                chosen.change(show_errors(describe), chosen, card, api_visibility="private", queue=False)
                gr.Markdown((HERE / "about.md").read_text(encoding="utf-8"), elem_classes="sf-about")
        Endpoints(models, films)
        inputs = [chosen, compose.history, *compose.values]
        page.load(show_errors(compose.arrive), inputs, [*compose.page, chosen], **QUICK)
        # In the order in which visitors come to them; edits last, since finding an example takes longest.
        page.preparations += [partial(compose.prepare, index) for index in range(len(models))]
        page.preparations += [partial(edit.prepare, index) for index in range(len(models))]
    return page


def queued(page: gr.Blocks) -> gr.Blocks:
    """Return the page with a queue of bounded length."""
    # After every event, gradio summarizes the last 10,000 with pandas for a monitoring page, which is disabled here.
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "1000000")
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    page.queue(max_size=MAX_WAITING)
    page._queue.sleep_when_free = QUEUE_SECONDS
    return page


def launch_settings() -> dict[str, Any]:
    """Return the arguments with which the page of `build` is launched."""
    return {
        "theme": theme(),
        "css_paths": [HERE / "style.css"],
        "head": FAST_COPIES,
        "max_file_size": MAX_FILE,
        "show_error": False,
        "state_session_capacity": SESSIONS,
        "app_kwargs": {
            "middleware": [Middleware(Guard)],
            "exception_handlers": {RequestValidationError: refuse_fields},
        },
        "num_workers": 0,  # gradio's own workers for uploads and files would bypass Guard
        "footer_links": ["api", "gradio"],
        "enable_monitoring": False,
        "ssr_mode": False,
        "run_history": False,
    }


# Gradio copies the properties of every control before and after each event, leaf by leaf: six thousand calls for a
# turn of a dial. Strings, numbers and the like are their own copies.
FAST_COPIES = """<script>{
  const copy = window.structuredClone;
  const plain = new Set(["string", "number", "boolean", "undefined", "bigint"]);
  const is_plain = (value) => value === null || plain.has(typeof value);
  window.structuredClone = (value, ...rest) => (is_plain(value) ? value : copy(value, ...rest));
}</script>"""
# Tailwind's violet, with a darker middle: white on it, and it on white, have a contrast of 4.5 and more (WCAG AA).
VIOLET = gr.themes.Color(
    name="violet",
    c50="#f5f3ff",
    c100="#ede9fe",
    c200="#ddd6fe",
    c300="#c4b5fd",
    c400="#a78bfa",
    c500="#7c3aed",
    c600="#6d28d9",
    c700="#5b21b6",
    c800="#4c1d95",
    c900="#3b1578",
    c950="#2e1065",
)


def theme() -> gr.themes.Base:
    """Return the page's theme. It uses system fonts, so that nothing is fetched from other sites."""
    return gr.themes.Soft(
        primary_hue=VIOLET,
        neutral_hue="slate",
        radius_size="lg",
        font=["ui-sans-serif", "system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    ).set(
        block_title_background_fill="none",
        block_title_padding="0",
        block_title_text_color="*body_text_color",
        block_title_text_weight="600",
        body_text_color_subdued="*neutral_600",  # contrast of 4.5 and more with every background (WCAG AA)
        body_text_color_subdued_dark="*neutral_300",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
        input_placeholder_color="*neutral_600",
        input_placeholder_color_dark="*neutral_300",
        block_shadow="none",
        block_border_width="1px",
    )


def main(sources: Sequence[str], place: str | None = None, directions: str | None = None, **launch: Any) -> None:
    """Load the models and serve the page until the server is stopped; leaves no files behind."""
    models = load_models(sources, place, directions)
    with stop_on_sigterm(), temporary_folder():
        tell("Drawing the first pictures")
        page = build(models)
        preparing = threading.Thread(target=prepare, args=[page], daemon=True)
        try:
            serve(page, **launch)
            if hint := native.build_hint():
                print(hint, flush=True)
            preparing.start()
            wait_until_stopped(page)
        finally:
            page.close(verbose=False)
            if preparing.is_alive():
                preparing.join(STOP_SECONDS)


def serve(page: gr.Blocks, **launch: Any) -> None:
    """Start the server, and say where it is.

    Raises:
        OSError: no port is free.
    """
    try:
        queued(page).launch(**(launch_settings() | {"prevent_thread_lock": True, "quiet": True} | launch))
    except OSError as error:
        if "port" not in str(error):  # gradio's message names its own variables and functions
            raise
        port = launch.get("server_port") or os.environ.get("GRADIO_SERVER_PORT")
        taken = f"port {port} is taken" if port else "ports 7860 to 7959 are taken"
        raise OSError(f"{taken}: name a free one with --port, such as --port 8000") from None
    if page.is_running:
        print(f"Ready: {page.local_url} (Ctrl-C stops it)", flush=True)


def prepare(page: Page) -> None:
    """Make what visitors see first in each tab and of each model, while the server runs."""
    for make in page.preparations:
        if not page.is_running:
            return
        try:
            make()
        except Exception:  # whoever opens that tab is told
            logger.exception("while preparing the page")


def tell(what: str) -> None:
    """Say on the console what a start is busy with."""
    print(f"{what} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    named = [name.strip() for name in os.environ.get("STYLEFUSION_MODEL", EMBEDDED).split(",")]
    main([name for name in named if name], directions=os.environ.get("STYLEFUSION_DIRECTIONS"))
