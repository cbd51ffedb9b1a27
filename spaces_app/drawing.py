"""Drawing and inverting with a pipeline: functions that hold a GPU while they run.

Functions rather than methods: on ZeroGPU they run in another process, and their arguments are pickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from stylefusion_hf import StyleFusionInversionPipeline, StyleFusionPipeline
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.pipelines.steps import segment, synthesize
from stylefusion_hf.spaces_app.device import on_gpu

PRIOR_WEIGHT = 0.03  # ten times the library's default: codes near the generator's own mix better

Drawn = tuple[list[Image.Image], dict[str, np.ndarray] | None, dict[str, Any]]


def make_fuse(pipe: StyleFusionPipeline, factor: int) -> Callable[..., Drawn]:
    """Return the function that draws the pictures of recipes with a pipeline.

    Args:
        pipe: the pipeline.
        factor: by which full pictures are reduced for their maps of regions, unless an exact map is asked for.

    Returns:
        `fuse(recipe, masks, up_to, exact=False)`: the pictures, {leaf: its masks (B, H, W)} if `masks`, and the
        complete recipe. `up_to` is the height of previews; None for full pictures.
    """

    def fuse(recipe: dict[str, Any], masks: bool, up_to: int | None, exact: bool = False) -> Drawn:
        if up_to is not None:
            return preview(recipe, masks, up_to)
        whole = masks and (exact or factor == 1)
        out = pipe.from_recipe(recipe, check_model=False, output_masks=whole)
        found = segment_reduced(pipe, out.images, factor) if masks and not whole else out.masks
        return out.images, to_arrays(found), out.recipe

    def preview(recipe: dict[str, Any], masks: bool, up_to: int) -> Drawn:
        out = pipe.from_recipe(recipe, check_model=False, output_type="latent")
        made = Recipe.from_dict(out.recipe)
        with torch.no_grad():
            style: Any = out.style_codes
            pictures = synthesize(pipe.generator, style, made.noise_mode, made.noise_seeds, up_to=up_to)
            found = segment(pipe.segmenter, pictures) if masks else None
        return pipe.image_processor.postprocess(pictures, output_type="pil"), to_arrays(found), out.recipe

    drawing: Callable[..., Drawn] = on_gpu(fuse)
    return drawing


def make_segment(pipe: StyleFusionPipeline, factor: int) -> Callable[..., dict[str, np.ndarray] | None]:
    """Return the function that finds the regions of pictures that `make_fuse` drew without masks.

    Args:
        pipe: with a segmenter.
        factor: as in `make_fuse`.

    Returns:
        `find(images)`: {leaf: its masks (B, H, W)}.
    """

    def find(images: list[Image.Image]) -> dict[str, np.ndarray] | None:
        return to_arrays(segment_reduced(pipe, images, factor))

    finding: Callable[..., dict[str, np.ndarray] | None] = on_gpu(find)
    return finding


def segment_reduced(pipe: StyleFusionPipeline, images: Sequence[Image.Image], factor: int) -> dict[str, torch.Tensor]:
    """Return {leaf: masks (B, H, W)} of pictures, reduced by a factor."""
    small = pipe.image_processor.preprocess([image.reduce(factor) for image in images])
    with torch.no_grad():
        return segment(pipe.segmenter, small.to(pipe.device, pipe.segmenter.dtype))


def to_arrays(masks: Mapping[str, torch.Tensor] | None) -> dict[str, np.ndarray] | None:
    """Return masks as arrays; None for none."""
    return {name: mask.cpu().numpy() for name, mask in masks.items()} if masks else None


def make_invert(
    pipe: StyleFusionPipeline,
) -> Callable[..., tuple[list[dict[str, Any]], list[Image.Image], list[float]]]:
    """Return the function that inverts pictures with a pipeline: see `Model.invert`."""

    def invert(
        images: list[Image.Image], steps: int, report_step: Callable[[int], None] | None
    ) -> tuple[list[dict[str, Any]], list[Image.Image], list[float]]:
        inversion = StyleFusionInversionPipeline.from_pipe(pipe)  # one per call, since it holds state
        inversion.set_progress_bar_config(disable=True)
        out = inversion(
            images,
            num_inference_steps=steps,
            fit="crop",
            noise_mode="const",
            prior_weight=PRIOR_WEIGHT,
            callback_on_step_end=step_callback(report_step),
        )
        codes: Sequence[Any] = [Recipe(base=(row,), num_images=1).to_dict()["base"] for row in out.codes.rows()]
        return list(codes), out.images, out.mse.tolist()

    inverting: Callable[..., tuple[list[dict[str, Any]], list[Image.Image], list[float]]] = on_gpu(invert)
    return inverting


def step_callback(report_step: Callable[[int], None] | None) -> Callable[..., dict[str, Any]]:
    """Return a pipeline's callback that reports steps, counted from 1."""

    def on_step(_: Any, step: int, *rest: Any) -> dict[str, Any]:
        if report_step is not None:
            report_step(step + 1)
        return {}

    return on_step
