"""From photographs to the codes of the faces in them: what a photograph pipeline does before anything changes."""

from __future__ import annotations

from threading import get_ident
from typing import Any

from PIL import Image

from stylefusion_hf.core.codes import Code
from stylefusion_hf.imaging.landmarks import find_landmarks
from stylefusion_hf.imaging.photographs import read_photograph
from stylefusion_hf.inversion.previews import find_preview
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.pipelines.inversion_steps import in_place
from stylefusion_hf.pipelines.invert import StyleFusionInversionPipeline
from stylefusion_hf.pipelines.photo_inputs import align_face, find_detector

FROM_ENCODER, FROM_MEAN = 50, 100  # default steps of the search, by what it starts from
PREVIEW = 128  # pixels of the previews that the search compares, where the generator has any


def default_steps(has_encoder: bool) -> int:
    """Return how many steps a search takes by default, from an encoder's guess or else from the mean face."""
    return FROM_ENCODER if has_encoder else FROM_MEAN


def check_generator(generator: StyleGenerator) -> None:
    """Raise ValueError unless a generator draws square pictures in RGB, as aligned faces are."""
    if generator.config.img_channels != 3:
        raise ValueError(
            f"photographs need a generator of 3 channels (RGB), this one has {generator.config.img_channels}"
        )
    height, width = generator.picture_size
    if height != width:
        raise ValueError(f"faces are aligned as squares, this generator's pictures are of {width} x {height} pixels")


def align_faces(
    items: list[Any], landmarks: list[Any], resolution: int, detector: Any, face: int | None
) -> list[Image.Image]:
    """Return the aligned face of each photograph.

    Args:
        items: photographs, as from `list_sources`.
        landmarks: one entry per photograph, as from `list_landmarks`. Those that are None are detected, and filled in.
        resolution: side of the aligned faces in pixels.
        detector: a name or a callable.
        face: which of several faces; None refuses to choose.

    Raises:
        ValueError, OSError, ImportError: as in `read_photograph`, `find_landmarks` and `align_face`.
    """
    squares = []
    for k, item in enumerate(items):
        photograph = read_photograph(item, "image" if len(items) == 1 else f"image[{k}]")
        picture, name = photograph.rgb(), photograph.name
        if landmarks[k] is None:
            landmarks[k] = find_landmarks(picture, find_detector(detector), name, face)
        squares.append(align_face(picture, landmarks[k], resolution, name))
    return squares


def search_codes(
    pipe: Any, squares: list[Image.Image], others: list[Image.Image], callback: Any, **settings: Any
) -> Any:
    """Search the codes of aligned faces, in one call of the inversion pipeline.

    Args:
        pipe: the `StyleFusionPhotoPipeline` that searches. Its `interrupt` reaches the search.
        squares: the faces of the photographs.
        others: those of pictures that stand for codes, which come after them.
        callback: called with `pipe`, or None.
        **settings: arguments of the inversion. `num_inference_steps` and `preview_resolution` may be None for those
            that suit the start and the generator.

    Returns:
        The inversion's output.
    """
    start = settings["start"]
    if isinstance(start, Code) and others:
        raise ValueError("start: codes are for photographs alone; give codes in regions instead of pictures, too")
    if settings["num_inference_steps"] is None:
        from_mean = start == "mean" or (start is None and pipe.encoder is None)
        settings["num_inference_steps"] = default_steps(not from_mean)
    inverter = StyleFusionInversionPipeline.from_pipe(pipe)
    inverter._progress_bar_config = getattr(pipe, "_progress_bar_config", {})
    if settings["preview_resolution"] is None and settings["num_inference_steps"]:
        generator = in_place(pipe.generator, pipe._execution_device)
        settings["preview_resolution"] = find_preview(generator, None, settings["noise_mode"], most=PREVIEW)

    def forward(_: Any, step: int, timestep: int, tensors: dict[str, Any]) -> Any:
        return callback(pipe, step, timestep, tensors)

    pipe._searching[get_ident()] = inverter
    pipe._num_timesteps = settings["num_inference_steps"] + settings["num_tuning_steps"]
    try:
        return inverter(squares + others, callback_on_step_end=forward if callback else None, **settings)
    finally:
        pipe._searching.pop(get_ident(), None)
