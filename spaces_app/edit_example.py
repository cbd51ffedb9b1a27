"""The edit with which the tab Edit opens: one that changes its region visibly, and little else. Imports no gradio."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any

from stylefusion_hf.spaces_app.edit_responses import STRENGTH, ResponseMeter

FIRST_SEED = 1
MAX_DIRECTIONS = 6  # that are tried
LEAK_WEIGHT = 4.0  # a change outside of the region counts as much more than one within


@dataclass(frozen=True)
class Example:
    """An edit to open with: a recipe of one picture, a region, the name of a direction and its strength."""

    recipe: dict[str, Any]
    region: str
    direction: str
    strength: float = STRENGTH


def find_example(meter: ResponseMeter, seed: int = FIRST_SEED) -> Example:
    """Return the edit of this seed's picture that changes a region most, compared with what it changes elsewhere."""
    model = meter.model
    start = {"version": 1, "num_images": 1, "base": seed, "truncation_psi": model.psi}
    names = list(islice(model.directions(), MAX_DIRECTIONS))
    scores = {
        (region, name): response.inside - LEAK_WEIGHT * response.outside
        for name in names
        for region, response in meter.measure(start, name).items()
    }
    region, name = max(scores, key=lambda pair: scores[pair], default=(model.regions[-1], names[0]))
    return Example(start, region, name)
