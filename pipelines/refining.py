"""The refinement of a call: `editing/refinement.py` on a pipeline's own models, in as many parts as memory needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from stylefusion_hf.core.checks import check_count
from stylefusion_hf.core.recipes import MAX_STEPS, Recipe
from stylefusion_hf.editing.refinement import SIZE, Networks, refine
from stylefusion_hf.inversion.previews import find_preview
from stylefusion_hf.models.hooks import run_eagerly
from stylefusion_hf.models.layers import chunk_size
from stylefusion_hf.pipelines import steps as _steps
from stylefusion_hf.pipelines.inversion_steps import in_place


def check_refinement(pipe: Any, steps: Any, has_swaps: bool) -> int:
    """Return `refine_steps` as an int; ValueError if it is not an integer from 0, or cannot have an effect.

    has_swaps: whether the call gives codes or edits of regions.
    """
    steps = check_count("refine_steps", steps, MAX_STEPS, least=0)
    if steps and pipe.segmenter is None:
        raise ValueError("refine_steps needs a segmenter, and this pipeline has none: load it with segmenter=...")
    if steps and not has_swaps:
        raise ValueError("refine_steps can have no effect: no region has a code of its own; give regions or edits")
    return steps


def fuse_and_refine(pipe: Any, recipe: Recipe, slice_size: int | None = None) -> torch.Tensor:
    """Return a recipe's fused style codes (num_images, S), refined where it says so, with a bar of the pipeline.

    slice_size: pictures to optimize at a time; None for what memory allows.
    """
    check_refinement(pipe, recipe.refine_steps, bool(recipe.regions or recipe.nodes or recipe.edits))
    device, batch = pipe._execution_device, recipe.num_images

    def refined(codes: dict[str, torch.Tensor], base: torch.Tensor) -> torch.Tensor:
        codes = {name: code.expand(batch, -1) for name, code in codes.items()}
        noise_mode = "none" if recipe.noise_mode == "random" else recipe.noise_mode
        return refine_codes(pipe, codes, base.expand(batch, -1), recipe.refine_steps, noise_mode, slice_size)

    return _steps.fuse_recipe(pipe.generator, pipe.fusion, recipe, device, refined if recipe.refine_steps else None)


def refine_codes(
    pipe: Any,
    codes: Mapping[str, torch.Tensor],
    base: torch.Tensor,
    steps: int,
    noise_mode: str = "const",
    slice_size: int | None = None,
) -> torch.Tensor:
    """Return refined fused codes (B, S) of {node: codes (B, S)} and the base's codes (B, S).

    Pictures are compared at the largest preview up to SIZE pixels that resembles the full picture, or at full size.
    """
    networks, height = frozen_networks(pipe, noise_mode)
    size = slice_size or chunk_size(height, 8)
    starts = range(0, len(base), size)
    with pipe.progress_bar(total=steps * len(starts)) as bar:
        parts = [
            refine(
                networks,
                {name: code[k : k + size] for name, code in codes.items()},
                base[k : k + size],
                steps=steps,
                on_step=lambda step, loss: bar.update(),
            )
            for k in starts
        ]
    return torch.cat(parts)


def frozen_networks(pipe: Any, noise_mode: str = "const") -> tuple[Networks, int]:
    """Return a pipeline's own networks for `editing.refinement`, and the height of the pictures that they draw."""
    # Optimization needs all weights in place, in float32.
    device = pipe._execution_device
    generator, segmenter = in_place(pipe.generator, device), in_place(pipe.segmenter, device)
    height = find_preview(generator, None, noise_mode, most=SIZE) or generator.config.resolution

    def draw(s: torch.Tensor) -> tuple[torch.Tensor, Mapping[int, torch.Tensor]]:
        with run_eagerly(generator):
            made = generator(
                s, latent_type="s", noise_mode=noise_mode, up_to=height, return_dict=False, return_features=True
            )
        return made[0], made[2]

    networks = Networks(
        fuse=lambda given: pipe.fusion(given, return_dict=False)[0],
        draw=draw,
        segment=lambda pictures: _steps.logits(segmenter, pictures),
        tree=pipe.fusion.tree,
        regions=list(segmenter.config.regions),
    )
    return networks, height
