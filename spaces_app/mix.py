"""The "Mix pictures" tab: uploaded pictures become codes, and each region is taken from one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from stylefusion_hf.imaging.images import fit_picture
from stylefusion_hf.imaging.modes import keep_transparency
from stylefusion_hf.spaces_app import EMBEDDED, dials
from stylefusion_hf.spaces_app.errors import show_errors
from stylefusion_hf.spaces_app.jobs import mix_codes
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.pictures import open_picture
from stylefusion_hf.spaces_app.results import data_uri, result
from stylefusion_hf.spaces_app.settings import COMMON
from stylefusion_hf.spaces_app.stage import stage
from stylefusion_hf.spaces_app.uploads import lend_file, own_file

SLOTS = ("A", "B", "C")
MAX_STEPS = 200
WITH_ENCODER, WITHOUT_ENCODER = 40, 80  # default steps, starting from the encoder's guess or the mean picture
LARGE = 256  # pixels: reading takes seconds up to this size
SAMPLES = sorted((Path(__file__).parent / "samples").glob("*.png"))
LONG: dict[str, Any] = {
    "trigger_mode": "once",
    "concurrency_id": "long",
    "concurrency_limit": 1,
    "api_visibility": "private",
}
PICK_JS = """
element.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button) trigger("click", { sample: Number(button.dataset.sample) });
});
"""


class Mix:
    """The Mix tab; constructing it adds its controls to the current gradio context.

    Args:
        models: the models of the Space.
        chosen: the index of the model in use.
        send: `send(button, recipe)` connects a button that opens the recipe in Compose.
        quick: settings of events that answer immediately.
    """

    def __init__(self, models: Sequence[Model], chosen: gr.Dropdown, send: Callable[..., None], quick: dict[str, Any]):
        self.models = models
        model = models[0]
        codes = gr.State([None] * len(SLOTS))  # codes of the pictures, in a recipe's JSON form
        recipe = gr.State(None)
        gr.Markdown(
            "Upload two or three pictures of the kind that the model draws, let it read them, then say which picture"
            " each region comes from.",
            elem_classes="sf-lead",
        )
        with gr.Row(elem_classes="sf-slots"):
            pictures, seen = [], []
            for slot in SLOTS:
                with gr.Column(min_width=150):
                    pictures.append(
                        upload_component(
                            f"Picture {slot}",
                            height=230,
                            elem_id=f"sf-picture-{slot.lower()}",
                            elem_classes="sf-crisp",
                        )
                    )
                    seen.append(gr.HTML(elem_classes="sf-seen", apply_default_css=False, js_on_load=None))
        with gr.Column(visible=has_samples(model)) as samples:
            gr.Markdown("#### Or pick some", elem_classes="sf-heading")
            picks = gr.HTML(sample_buttons(), elem_classes="sf-examples", apply_default_css=False, js_on_load=PICK_JS)
            picks.click(show_errors(self._pick), pictures, pictures, api_visibility="private", queue=False)
        with gr.Row(elem_classes="sf-compose"):
            with gr.Column(scale=5, min_width=280):
                note = gr.Markdown(describe_reading(model), elem_classes="sf-lead")
                steps = gr.Slider(
                    0,
                    MAX_STEPS,
                    WITH_ENCODER if model.has_encoder else WITHOUT_ENCODER,
                    step=10,
                    label="Extra care (optimization steps)",
                    info="More steps bring the picture closer to yours, and take longer",
                    elem_id="sf-steps",
                    buttons=[],
                )
                read = gr.Button("Read the pictures", variant="primary", elem_id="sf-read")
                most = max(len(each.regions) for each in models)
                gr.Markdown("#### Take from", elem_classes="sf-heading")
                with gr.Row(elem_classes="sf-radios"):
                    common = gr.Radio(
                        list(SLOTS), value=SLOTS[0], label=dials.display_name(COMMON), visible=model.has_common
                    )
                    radios = [
                        gr.Radio(
                            list(SLOTS),
                            value=SLOTS[0],
                            label=dials.display_name(model.regions[i]) if i < len(model.regions) else "",
                            visible=i < len(model.regions),
                            elem_id=f"sf-take-{i}",
                        )
                        for i in range(most)
                    ]
            with gr.Column(scale=5, min_width=280):
                gr.Markdown(
                    "#### Your picture, and the mix\nShown here once the pictures are read. A slider then wipes from"
                    " picture A to the mix.",
                    elem_classes="sf-lead",
                )
                mixture = stage(elem_id="sf-mix-stage", visible=False)
                go = gr.Button("Go on in Compose", interactive=False, elem_id="sf-mix-go")

        outputs = [recipe, mixture, go]
        take = [chosen, codes, pictures[0], common, *radios]
        read.click(
            show_errors(self._read),
            [chosen, *pictures, steps],
            [codes, *seen],
            show_progress="full",
            show_progress_on=[steps],  # the button is too small for it
            **LONG,
        ).success(show_errors(self._mix), take, outputs, **quick)
        for radio in (common, *radios):
            radio.input(show_errors(self._mix), take, outputs, **quick)
        send(go, recipe)

        def switch(index: int) -> list[Any]:
            model = models[index]
            names = [dials.display_name(name) for name in model.regions]
            updates: list[Any] = [gr.update(visible=model.has_common, value=SLOTS[0])]
            for i in range(most):
                shown = {"label": names[i], "visible": True} if i < len(names) else {"visible": False}
                updates.append(gr.update(value=SLOTS[0], **shown))
            care = WITH_ENCODER if model.has_encoder else WITHOUT_ENCODER
            nothing = [None] * len(SLOTS)
            picks, hidden = gr.update(visible=has_samples(model)), gr.update(visible=False)
            return [picks, describe_reading(model), care, *updates, list(nothing), *nothing, None, hidden]

        others = [samples, note, steps, common, *radios, codes, *seen, recipe, mixture]
        chosen.change(show_errors(switch), chosen, others, api_visibility="private")

    def _pick(self, event: gr.EventData, *paths: str | None) -> list[Any]:
        number = event._data.get("sample")
        if number not in range(len(SAMPLES)):
            raise ValueError("there is no such sample picture")
        free = next((i for i, path in enumerate(paths) if path is None), len(paths) - 1)
        sample = lend_file(SAMPLES[number])
        # Return the other paths rather than `gr.skip`, for which gradio recreates components without our `preprocess`
        return [sample if i == free else paths[i] for i in range(len(paths))]

    def _read(
        self,
        index: int,
        first: str | None,
        second: str | None,
        third: str | None,
        steps: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # required by gradio
    ) -> list[Any]:
        model, paths, steps = self.models[index], (first, second, third), int(steps)
        given = [i for i, path in enumerate(paths) if path is not None]
        if not given:
            raise ValueError("there is no picture yet: upload one, or pick one below")
        images = [open_picture(str(paths[i]), f"picture {SLOTS[i]}", model.size, model.channels) for i in given]
        if not model.has_encoder and not steps:
            raise ValueError("this model has no encoder, so a picture needs some steps: move the slider")
        progress(0, desc="Reading the pictures")
        found, shown, errors = model.invert(
            images, steps, lambda step: progress((step, steps), desc=f"Step {step} of {steps}")
        )
        codes: list[Any] = [None] * len(paths)
        seen: list[Any] = [None] * len(paths)
        for i, code, image, error in zip(given, found, shown, errors, strict=True):
            codes[i] = code
            seen[i] = f'<img src="{data_uri(image)}" alt=""><span>as the model sees it, error {error:.3f}</span>'
        return [codes, *seen]

    def _mix(self, index: int, codes: list[Any], first: str | None, *taken: str) -> list[Any]:
        model = self.models[index]
        if codes[0] is None or first is None:
            raise ValueError("the mix starts from picture A: upload it and press Read the pictures")
        common, *which = [SLOTS.index(slot) for slot in taken]
        for slot in {common, *which[: len(model.regions)]}:
            if codes[slot] is None:
                raise ValueError(f"there is no picture {SLOTS[slot]} yet: upload it, and press Read the pictures")
        regions = dict(zip(model.regions, which, strict=False))
        recipe = mix_codes(codes, regions, common, model.psi)
        picture = model.render(recipe)
        before = fit_picture(open_picture(first, "picture A", model.size, model.channels), model.size, "crop")
        parts = [f"{dials.display_name(name).lower()} from {SLOTS[slot]}" for name, slot in regions.items() if slot]
        parts += [f"{dials.display_name(COMMON).lower()} from {SLOTS[common]}"] if common else []
        text = "Picture A" + (" with " + ", ".join(parts) if parts else " as the model sees it")
        shown = result(model, picture, text) | {"before": data_uri(before)}
        return [picture.recipe, gr.update(value=shown, visible=True), gr.update(interactive=True)]


def upload_component(label: str, **settings: Any) -> gr.Image:
    """Return an image component that passes uploaded files on unopened; `open_picture` opens them with more checks.

    `preprocess` is set on the instance because gradio writes a file next to the source of a component class.
    """
    picture = gr.Image(
        label=label, type="filepath", image_mode=None, format="png", sources=["upload", "clipboard"],
        buttons=[], **settings,
    )  # fmt: skip

    picture.preprocess = show_errors(own_file)  # type: ignore[method-assign]
    return picture


def has_samples(model: Model) -> bool:
    """Return whether the sample pictures are of the kind that a model draws: they are the embedded model's."""
    return bool(SAMPLES) and model.name == EMBEDDED


def describe_reading(model: Model) -> str:
    """Describe for visitors how the model reads pictures."""
    time = "a minute or more" if model.resolution > LARGE else "a few seconds"
    if model.has_encoder:
        return (
            "This model's encoder reads a picture instantly; optimization improves the match, and takes"
            f" {time} per picture."
        )
    return (
        "This model has no encoder: reading starts from its average picture and takes some optimization steps, "
        f"{time} per picture."
    )


def sample_buttons() -> str:
    """Return the HTML of the sample pictures, as buttons."""
    parts = []
    for number, path in enumerate(SAMPLES):
        with Image.open(path) as picture:
            uri = data_uri(keep_transparency(picture))
        label = f"Sample {number + 1}"
        parts.append(
            f'<button type="button" data-sample="{number}" aria-label="{label}"><img src="{uri}" alt=""></button>'
        )
    return "".join(parts)
