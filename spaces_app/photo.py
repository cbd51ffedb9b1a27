"""The "Your photograph" tab: a face in a photograph is found and read, and its regions change in the photograph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np

from stylefusion_hf.pipelines.photo_search import default_steps
from stylefusion_hf.spaces_app import dials
from stylefusion_hf.spaces_app.errors import show_errors
from stylefusion_hf.spaces_app.mix import LONG, MAX_STEPS, upload_component
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.photo_editor import (
    NO_DETECTOR,
    PhotoEditor,
    PhotoFolder,
    Reading,
    can_find_faces,
    check_steps,
    mark_faces,
    reduce_for_page,
)
from stylefusion_hf.spaces_app.photo_view import photo_view
from stylefusion_hf.spaces_app.results import data_uri


class Photo:
    """The tab; constructing it adds its controls to the current gradio context.

    Args:
        models: the models of the Space.
        chosen: the index of the model in use.
        quick: settings of events that answer immediately.
        detector: finds faces, as in `landmarks.load_detector`.
    """

    def __init__(self, models: Sequence[Model], chosen: gr.Dropdown, quick: dict[str, Any], detector: Any = "mtcnn"):
        self.models, self.folder = models, PhotoFolder()
        self.editors = [PhotoEditor(model, detector) for model in models]
        model, most = models[0], max(len(each.regions) for each in models)
        faces, reading = gr.State([]), gr.State(None)  # landmarks of the faces; the `Reading` of the chosen one
        gr.Markdown(
            "A photograph with a face, of any size. The face is found, the model looks for the picture of its own that"
            " comes nearest, and each region can take another look. Everything else in the photograph stays as it is.",
            elem_classes="sf-lead",
        )
        if not can_find_faces(detector):
            gr.Markdown(f"{NO_DETECTOR[:1].upper()}{NO_DETECTOR[1:]}.", elem_id="sf-photo-missing")
        with gr.Row(elem_classes="sf-compose"):
            with gr.Column(scale=5, min_width=280):
                picture = upload_component("Photograph", height=300, elem_id="sf-photo-upload")
                marked = gr.Image(
                    label="Faces", visible=False, interactive=False, buttons=[], elem_id="sf-photo-faces"
                )
                face = gr.Radio([], label="Face", visible=False, elem_id="sf-photo-face")
                note = gr.Markdown(visible=False, elem_id="sf-photo-note")
                steps = gr.Slider(
                    0,
                    MAX_STEPS,
                    default_steps(model.has_encoder),
                    step=10,
                    label="Extra care (search steps)",
                    info="More steps bring the model's picture closer to the face, and take longer",
                    elem_id="sf-photo-steps",
                    buttons=[],
                )
                read = gr.Button("Read the face", variant="primary", interactive=False, elem_id="sf-photo-read")
                seen = gr.HTML(elem_id="sf-photo-seen", apply_default_css=False, js_on_load=None)
            with gr.Column(scale=5, min_width=280):
                gr.Markdown("#### Another look for", elem_classes="sf-heading")
                with gr.Row(elem_classes="sf-radios"):
                    seeds = [
                        gr.Number(
                            value=None,
                            label=dials.display_name(model.regions[i]) if i < len(model.regions) else "",
                            placeholder="as it is",
                            visible=has_dial(model, i),
                            elem_id=f"sf-photo-seed-{i}",
                        )
                        for i in range(most)
                    ]
                for seed in seeds:
                    seed.value = dials.EMPTY  # gradio would show None as 0
                strength = gr.Slider(0, 1, 1, step=0.05, label="How far", elem_id="sf-photo-strength", buttons=[])
                change = gr.Button("Change the photograph", interactive=False, elem_id="sf-photo-change")
                view = photo_view(visible=False, elem_id="sf-photo-view")
                files = gr.File(
                    label="The whole photograph, and its recipe",
                    file_count="multiple",
                    interactive=False,
                    visible=False,
                    elem_id="sf-photo-files",
                )

        # A new photograph, face or model closes what followed from the one before.
        results = [reading, seen, change, view, files]
        closed = [None, None, gr.update(interactive=False), *[gr.update(value=None, visible=False)] * 2]
        found = [faces, marked, face, note, read]

        def close() -> list[Any]:  # first, since finding may end in an error
            return [*self._find(0, None), *closed]

        picture.change(close, None, [*found, *results], **quick).then(
            show_errors(self._find), [chosen, picture], found, **quick
        )
        face.input(lambda: closed, None, results, **quick)
        read.click(
            show_errors(self._read),
            [chosen, picture, faces, face, steps],
            results,
            show_progress="full",
            show_progress_on=[steps],
            **LONG,
        )
        change.click(
            show_errors(self._change),
            [chosen, picture, reading, strength, *seeds],
            [view, files],
            **quick | {"show_progress": "full"},
        )

        def switch(index: int) -> list[Any]:
            model = models[index]
            names = [dials.display_name(name) for name in model.regions]
            shown = [
                gr.update(value=dials.EMPTY, label=names[i], visible=True)
                if has_dial(model, i)
                else gr.update(value=dials.EMPTY, visible=False)
                for i in range(most)
            ]
            return [default_steps(model.has_encoder), *shown, *closed]

        chosen.change(show_errors(switch), chosen, [steps, *seeds, *results], api_visibility="private")

    def _find(self, index: int, path: str | None) -> list[Any]:
        """Return the faces of an upload, the picture with their squares, the choice among them, a note, the button."""
        hidden = gr.update(visible=False)
        if path is None:
            return [[], hidden, gr.update(choices=[], value=None, visible=False), hidden, gr.update(interactive=False)]
        editor = self.editors[index]
        photograph = editor.open(path)
        faces = editor.find(photograph)
        several = len(faces) > 1
        numbers = [(str(k + 1), k) for k in range(len(faces))]
        size = f"{photograph.image.width} x {photograph.image.height} pixels"
        said = f"{len(faces)} faces, numbered by size, in {size}" if several else f"One face in {size}"
        return [
            [points.tolist() for points in faces],
            gr.update(value=mark_faces(photograph.rgb(), faces), visible=several),
            gr.update(choices=numbers, value=0, visible=several),
            gr.update(value=f"{said}. The photograph is not cropped.", visible=True),
            gr.update(interactive=True),
        ]

    def _read(
        self,
        index: int,
        path: str | None,
        faces: list[Any],
        face: int | None,
        steps: int,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # required by gradio
    ) -> list[Any]:
        editor, steps = self.editors[index], check_steps(steps, MAX_STEPS)
        if path is None or not faces:
            raise ValueError("there is no face yet: upload a photograph")
        number = face or 0
        if number not in range(len(faces)):
            raise ValueError(f"the photograph has {len(faces)} faces: choose one of them")
        if not editor.model.has_encoder and not steps:
            raise ValueError("this model has no encoder, so a face needs some steps: move the slider")
        progress(0, desc="Reading the face")
        reading = editor.read(
            editor.open(path),
            np.array(faces[number]),
            steps,
            lambda step: progress((step, steps), desc=f"Step {step} of {steps}"),
        )
        hidden = gr.update(value=None, visible=False)
        return [reading, compare(reading), gr.update(interactive=True), hidden, hidden]

    def _change(
        self, index: int, path: str | None, reading: Reading | None, strength: float, *seeds: Any
    ) -> list[Any]:
        editor = self.editors[index]
        if path is None or reading is None:
            raise ValueError("the face has not been read yet: press Read the face")
        regions = {
            name: seed for name, seed in zip(editor.model.regions, seeds, strict=False) if seed not in (None, "")
        }
        photograph = editor.open(path)
        edited, recipe = editor.change(photograph, reading, regions, strength)
        pictures = [reduce_for_page(each.image) for each in (photograph, edited)]
        size = edited.image.size
        parts = ", ".join(f"{dials.display_name(name).lower()} {int(seed)}" for name, seed in regions.items())
        text = f"{parts[:1].upper()}{parts[1:]}: left the photograph, right the change"
        if pictures[0].size != size:
            text += f" (shown smaller; the file has all {size[0]} x {size[1]} pixels)"
        if reading.is_foreign:
            text += f". Remember: {reading.describe()}"
        shown = {"before": data_uri(pictures[0]), "after": data_uri(pictures[1]), "caption": text}
        written = [str(file) for file in self.folder.write(edited, recipe, path)]
        return [gr.update(value=shown, visible=True), gr.update(value=written, visible=True)]


def has_dial(model: Model, number: int) -> bool:
    """Return whether the tab has a dial for a region.

    The background has none: the model's reaches only as far as the square around the face, whose edge would show.
    """
    return number < len(model.regions) and number not in model.background


def compare(reading: Reading) -> str:
    """Return the HTML of a face beside its reconstruction, with the likeness."""
    said = reading.describe()
    pictures = "".join(
        f'<figure><img src="{data_uri(reduce_for_page(image, 320))}" alt=""><figcaption>{label}</figcaption></figure>'
        for image, label in ((reading.face, "the face"), (reading.reconstruction, "as the model draws it"))
    )
    warned = " sf-photo-warned" if reading.is_foreign else ""
    text = f'<p class="sf-photo-said{warned}">{said[:1].upper()}{said[1:]}.</p>'
    return f'<div class="sf-photo-pair">{pictures}</div>{text}'
