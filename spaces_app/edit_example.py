"""The edit with which the tab Edit opens: one that changes its region visibly, and little else. Imports no gradio."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.spaces_app.models import Model

FIRST_SEED = 1
STRENGTH = 2.5  # standard deviations
MAX_DIRECTIONS, MAX_REGIONS = 6, 8  # that are tried
LEAK_WEIGHT = 4.0  # a change outside of the region counts as much more than one within


@dataclass(frozen=True)
class Example:
    """An edit to open with: a recipe of one picture, a region, the name of a direction and its strength."""

    recipe: dict[str, Any]
    region: str
    direction: str
    strength: float = STRENGTH


def find_example(model: Model, seed: int = FIRST_SEED) -> Example:
    """Return the edit of this seed's picture that changes a region most, compared with what it changes elsewhere."""
    start = {"version": 1, "num_images": 1, "base": seed, "truncation_psi": model.psi}
    directions = dict(islice(model.directions().items(), MAX_DIRECTIONS))
    best = Example(start, model.regions[-1], next(iter(directions)))
    if not model.has_segmenter or len(model.regions) == 1:
        return best
    most = -np.inf
    edits = [direction(STRENGTH).displacement(model.pipe.generator).rows() for direction in directions.values()]
    rows = tuple(row for edit in edits for row in edit)
    (before,), _ = model.render_small(start)
    for region in model.regions[:MAX_REGIONS]:
        _, masks = model.render_small(start, region)
        recipe = replace(Recipe.from_dict(start), edits={region: rows}, num_images=len(rows)).to_dict()
        if masks is None or not masks[0].any() or masks[0].all():
            continue
        after, _ = model.render_small(recipe)
        inside = np.asarray(Image.fromarray(masks[0]).resize(before.size, Image.Resampling.NEAREST))
        if not inside.any() or inside.all():
            continue
        for name, image in zip(directions, after, strict=True):
            changed = np.abs(_levels(image) - _levels(before)).mean(axis=-1)
            score = changed[inside].mean() - LEAK_WEIGHT * changed[~inside].mean()
            if score > most:
                most, best = score, Example(start, region, name)
    return best


def _levels(image: Image.Image) -> np.ndarray:
    """Return a picture of any mode as (H, W, 3), float."""
    return np.asarray(image.convert("RGB"), dtype=float)
