"""Reading the inputs of photograph edits: photographs, the faces in them, and other photographs given as codes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from stylefusion_hf.core.checks import check_count, short
from stylefusion_hf.imaging.faces import align, check_landmarks, face_square
from stylefusion_hf.imaging.images import MAX_UPSCALING, MIN_SIDE
from stylefusion_hf.imaging.landmarks import Detector, find_landmarks, load_detector
from stylefusion_hf.imaging.photographs import Photograph
from stylefusion_hf.models.latents import parse_code

MAX_PHOTOGRAPHS = 1024
SMALLEST = MAX_UPSCALING**2  # the least side of a face's square, as a fraction of the model's


def list_sources(image: Any) -> list[Any]:
    """Return a call's photographs as a list of files, PIL images, arrays or `Photograph`s; ValueError for none."""
    kinds = (str, os.PathLike, Image.Image, np.ndarray, Photograph)
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    check_count("the number of photographs", len(items), MAX_PHOTOGRAPHS)
    for item in items:
        if not isinstance(item, kinds) or (isinstance(item, str) and not item):
            raise ValueError(f"image must be a file, a PIL image, an array or a list of these; got {short(item)}")
    return items


def list_landmarks(landmarks: Any, count: int) -> list[np.ndarray | None]:
    """Return each photograph's landmarks, None where they must be detected.

    Args:
        landmarks: (68, 2) or (5, 2) for a single photograph, a list of these, one per photograph, or None.

    Raises:
        ValueError: not landmarks, or another number of them than photographs.
    """
    if landmarks is None:
        return [None] * count
    try:
        single = np.ndim(landmarks) == 2 and np.shape(landmarks) in ((68, 2), (5, 2))
    except ValueError:  # a ragged list
        single = False
    groups = [landmarks] if single else list(landmarks) if isinstance(landmarks, (list, tuple, np.ndarray)) else None
    if groups is None or len(groups) != count:
        given = "something else" if groups is None else f"{len(groups)} entries"
        raise ValueError(f"landmarks: expected one array (68, 2) or (5, 2) per photograph, {count}; got {given}")
    return [None if points is None else check_landmarks(points, f"landmarks[{k}]") for k, points in enumerate(groups)]


def check_face(name: str, value: Any) -> int | None:
    """Return the number of a face, or None; ValueError names the argument."""
    return None if value is None else check_count(name, value, 10**6, least=0)


def find_detector(detector: Any) -> Detector:
    """Return a detector given by name or as a callable; raises as `landmarks.load_detector`."""
    if isinstance(detector, str):
        return load_detector(detector)
    if not callable(detector):
        raise ValueError(f"detector must be a name, module:callable or a callable, got {short(detector)}")
    return detector


def align_face(picture: Image.Image, landmarks: np.ndarray, resolution: int, name: str) -> Image.Image:
    """Return the aligned face of a photograph, mode RGB, at the model's resolution.

    A face too small for `faces.align` at that resolution is aligned at a smaller one and enlarged.

    Raises:
        ValueError: the square around the face has less than a sixteenth of the resolution, or as in `faces.align`.
    """
    corners = face_square(landmarks)
    side = float(np.hypot(*(corners[3] - corners[0])))
    least = max(MIN_SIDE, resolution / SMALLEST)
    if side < least:
        raise ValueError(
            f"{name}: the square around the face has a side of {side:.0f} pixels, too small for a model of"
            f" {resolution}: it needs at least {least:.0f}"
        )
    size = min(resolution, int(side * MAX_UPSCALING))
    square = align(picture, landmarks, size, name=name)
    return square if size == resolution else square.resize((resolution, resolution), Image.Resampling.BICUBIC)


class Sources:
    """Codes of a call in which pictures stand for the faces in them.

    Args:
        regions, nodes, global_code: as in `StyleFusionPipeline`; a picture is a file, a PIL image or an array.
        latent_type: the space of bare tensors.

    `pictures` has the distinct pictures by their name in errors; `replaced` returns the arguments with codes instead.
    """

    def __init__(self, regions: Any, nodes: Any, global_code: Any, latent_type: str):
        self.rows: dict[tuple[str, str], tuple[Any, ...]] = {}
        for argument, codes in (("regions", regions), ("nodes", nodes)):
            if codes is not None and not isinstance(codes, Mapping):
                raise ValueError(f"{argument} must be a dict, node -> code, not {type(codes).__name__}")
            for node, code in (codes or {}).items():
                self.rows[argument, node] = parse_code(code, latent_type, f"{argument}[{node!r}]")
        if global_code is not None:
            self.rows["global_code", ""] = parse_code(global_code, latent_type, "global_code")
        self.pictures: dict[int, tuple[str, Image.Image]] = {}
        for (argument, node), group in self.rows.items():
            for row in group:
                if isinstance(row, Image.Image):
                    name = f"{argument}[{node!r}]" if node else argument
                    self.pictures.setdefault(id(row), (name, row))

    def align(self, detector: Any, face: int | None, resolution: int) -> list[Image.Image]:
        """Return the aligned face of each picture; raises as `find_landmarks` and `align_face`."""
        found = []
        for name, picture in self.pictures.values():
            where = f"the picture of {name}"
            points = find_landmarks(picture, find_detector(detector), where, face)
            found.append(align_face(picture, points, resolution, where))
        return found

    def replaced(self, codes: Sequence[Any]) -> dict[str, Any]:
        """Return `regions`, `nodes` and `global_code` with the pictures' codes, one per picture, in their place."""
        known = dict(zip(self.pictures, codes, strict=True))
        call: dict[str, Any] = {"regions": {}, "nodes": {}, "global_code": None}
        for (argument, node), group in self.rows.items():
            rows = [known.get(id(row), row) for row in group]
            if node:
                call[argument][node] = rows
            else:
                call[argument] = rows
        return call
