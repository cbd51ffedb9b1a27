"""Where a direction shows: how much an edit of each region changes that region, and the rest. Imports no gradio.

A direction that was found for a smile shows in the mouth; pulled through the hair, it changes little that anybody
would call a smile. The tab Edit therefore chooses the region with the direction, and says where an edit does next to
nothing.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.core.region_names import spell_out
from stylefusion_hf.spaces_app.models import Model, digest

STRENGTH = 2.5  # standard deviations, at which responses are measured
SEEN = 2.0  # of 255 levels, on average over a region: less is next to nothing
AHEAD = 1.5  # times the response of any other region: then a direction belongs to the first
FAINT = 1 / 3  # of the response of the direction's own region: the edit is then said to show more there
KEPT = 64  # measurements of each model

Responses = Mapping[str, "Response"]


@dataclass(frozen=True)
class Response:
    """What an edit of one region changes: the mean of |difference| in levels, inside of the region and outside."""

    inside: float
    outside: float


class ResponseMeter:
    """Measures the responses of a model's regions to directions; the most recent measurements are kept."""

    def __init__(self, model: Model):
        self.model = model
        self._kept: OrderedDict[tuple[str, str], dict[str, Response]] = OrderedDict()
        self._masks: OrderedDict[str, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._measuring = threading.Lock()

    def measure(self, start: Mapping[str, Any], direction: str) -> dict[str, Response]:
        """Return {region: response} of the regions that are in a picture; {} without a segmenter.

        Args:
            start: a checked recipe of one picture.
            direction: name of a direction of the model.
        """
        if not self.model.has_segmenter or len(self.model.regions) < 2:
            return {}
        key = digest(start), direction
        with self._measuring:
            if key not in self._kept:
                self._kept[key] = self._measure(start, direction)
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def _measure(self, start: Mapping[str, Any], direction: str) -> dict[str, Response]:
        """Edit one region in each picture of a batch of small ones."""
        model, read = self.model, Recipe.from_dict(start)
        before, labels = self._before(start)
        numbers = [i for i in range(len(model.regions)) if (labels == i).any() and (labels != i).any()]
        if not numbers:
            return {}
        edits = dict(read.edits)
        for at, number in enumerate(numbers):
            strengths = [STRENGTH * (k == at) for k in range(len(numbers))]
            edits[model.regions[number]] = (
                model.directions()[direction](strengths).displacement(model.pipe.generator).rows()
            )
        recipe = replace(read, edits=edits, num_images=len(numbers))
        found = {}
        for number, image in zip(numbers, model.render_small(recipe.to_dict())[0], strict=True):
            changed, inside = np.abs(to_levels(image) - before).mean(axis=-1), labels == number
            found[model.regions[number]] = Response(float(changed[inside].mean()), float(changed[~inside].mean()))
        return found

    def _before(self, start: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        """Return the small picture without the edit, (H, W, 3), and the number of the region of each of its pixels."""
        key = digest(start)
        if key not in self._masks:
            (image,), _ = self.model.render_small(start)
            (labels,) = self.model.render_small_maps(start)[1]
            shrunk = Image.fromarray(labels).resize(image.size, Image.Resampling.NEAREST)
            self._masks[key] = to_levels(image), np.asarray(shrunk)
            while len(self._masks) > KEPT:
                self._masks.popitem(last=False)
        return self._masks[key]


def own_region(responses: Responses) -> str | None:
    """Return the region in which a direction shows most; None if no region is clearly ahead of the others."""
    by_size = sorted(responses, key=lambda name: -responses[name].inside)
    if not by_size or responses[by_size[0]].inside < SEEN:
        return None
    others = responses[by_size[1]].inside if len(by_size) > 1 else 0.0
    return by_size[0] if responses[by_size[0]].inside >= AHEAD * others else None


def explain(responses: Responses, region: str, root: str, direction: str, strength: float) -> str:
    """Say why an edit of a region shows little, and where the direction shows more; "" if it shows.

    Args:
        responses: of the regions that are in the picture; empty if none were measured.
        region: a region, or `root`.
        root: the root of the tree, for the whole picture.
        direction: the direction's name on the page.
        strength: in standard deviations.
    """
    if not strength:
        return "Nothing changes at 0: move How far."
    if not responses:
        return ""
    own, where = own_region(responses), spell_out(region)
    if region == root:
        return "" if own else f"{direction} shows in no region alone, so that both pictures change everywhere."
    if region not in responses:
        return f"There is no {where} in this picture, so that nothing shows: choose another region."
    most = f" It shows most in: {spell_out(own)}." if own not in (None, region) and own is not None else ""
    if responses[region].inside < SEEN:
        return f"{direction} changes next to nothing here in: {where}.{most or ' Choose Everywhere.'}"
    faint = own is not None and responses[region].inside < FAINT * responses[own].inside
    return f"{direction} changes little here in: {where}.{most}" if faint else ""


def to_levels(image: Image.Image) -> np.ndarray:
    """Return a picture of any mode as (H, W, 3), float, 0 to 255."""
    return np.asarray(image.convert("RGB"), dtype=float)
