"""Optimization of codes on previews: small pictures that cost a fraction of the full ones.

preview = find_preview(generator)  # a height, or None
found = optimize_on_previews(generator, start, "w+", objective, prior, steps=200, preview=preview)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.inversion.optimization import (
    CodePrior,
    Interrupted,
    Objective,
    OnStep,
    OptimizationResult,
    optimize,
)

if TYPE_CHECKING:
    from stylefusion_hf.models.style_generator import StyleGenerator

PREVIEW, SMALLEST = 256, 64  # pixels of a side: the largest preview that is looked for, and the smallest
FINAL_RATE = 0.1  # of the learning rate, for full pictures after previews
RESEMBLES = 0.25  # a preview's largest squared error, as a fraction of the full picture's variance


@torch.no_grad()
def find_preview(
    generator: StyleGenerator, given: int | None = None, noise_mode: str = "none", most: int | None = None
) -> int | None:
    """Return the height of previews that can stand for a generator's full pictures, or None if there are none.

    Args:
        given: one of `generator.picture_sizes`; None looks for the largest up to `most` pixels, in generators of more
            than that, whose picture of the mean code resembles the full one: sums of a StyleGAN2's first toRGB layers
            need not.
        noise_mode: of the synthesis.
        most: largest height that is looked for; None for PREVIEW.
    """
    full = generator.config.resolution
    if given is not None:
        return None if given == full else given
    most = most or PREVIEW
    sizes = [size for size in generator.picture_sizes if SMALLEST <= size <= most]
    if not sizes or full <= most:
        return None
    s = generator.to_style(generator.w_avg[None]).to(generator.dtype)

    def draw(size: int | None = None) -> Tensor:
        return generator(s, latent_type="s", noise_mode=noise_mode, up_to=size, return_dict=False)[0].float()

    picture = draw()
    for size in sorted(sizes, reverse=True):
        target = F.adaptive_avg_pool2d(picture, generator.size_at(size))
        error = (draw(size) - target).square().mean()
        if error <= RESEMBLES * target.var():
            return size
    return None


def optimize_on_previews(
    generator: StyleGenerator,
    start: Tensor,
    space: str,
    objective: Objective,
    prior: CodePrior,
    *,
    steps: int,
    preview: int | None,
    final_steps: int = 10,
    learning_rate: float = 0.2,
    on_step: OnStep | None = None,
    **settings: Any,
) -> OptimizationResult:
    """`optimize` on small pictures, which cost a fraction of full ones, and at the end on full pictures.

    Args:
        objective: of full pictures.
        steps: of both together.
        preview: height of the small pictures, one of `generator.picture_sizes`; None for full pictures only.
        final_steps: how many of the steps compare full pictures, at a tenth of the learning rate. With no more steps
            than these, all compare full pictures, at the whole rate.
        settings: arguments of `optimize`. The others are as there.

    Returns:
        Codes whose full pictures are no farther from their targets than those of the start; `steps` of both.
    """
    settings["on_step"] = on_step
    if preview is None or steps <= final_steps:
        return optimize(
            generator, start, space, objective, prior, steps=steps, learning_rate=learning_rate, **settings
        )
    interrupted = False

    def watch(step: int, codes: Tensor, losses: Tensor) -> Any:
        nonlocal interrupted
        try:
            return on_step(step, codes, losses) if on_step else None
        except Interrupted:
            interrupted = True
            raise

    first = steps - final_steps
    small = objective.at_size(preview)
    rough = optimize(
        generator, start, space, small, prior, steps=first, learning_rate=learning_rate, up_to=preview,
        **settings | {"on_step": watch},
    )  # fmt: skip
    # A preview differs from its picture: what improved the one may have made the other worse.
    before, after = (full_loss(generator, codes, space, objective, **settings) for codes in (start, rough.codes))
    better = (after <= before).view(-1, *(1 for _ in start.shape[1:]))
    codes, loss = torch.where(better, rough.codes, start), torch.minimum(before, after)
    if interrupted or steps == first:
        return OptimizationResult(codes, loss, rough.steps)
    found = optimize(
        generator, codes, space, objective, prior, steps=steps - first, learning_rate=learning_rate * FINAL_RATE,
        **settings | {"on_step": lambda step, *rest: on_step(first + step, *rest) if on_step else None},
    )  # fmt: skip
    return OptimizationResult(found.codes, found.loss, rough.steps + found.steps)


@torch.no_grad()
def full_loss(
    generator: StyleGenerator, codes: Tensor, space: str, objective: Objective, noise_mode: str = "none", **_: Any
) -> Tensor:
    """Return the objective (B,) of the codes' full pictures, made one at a time."""
    style = codes if space == "s" else generator.to_style(codes)
    images = (generator(s, latent_type="s", noise_mode=noise_mode, return_dict=False)[0] for s in style.split(1))
    return torch.cat([objective(image, slice(k, k + 1)) for k, image in enumerate(images)])
