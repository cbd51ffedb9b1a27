"""Small pictures of codes, for the dials: of a region's code, the region on the picture that it came with."""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFilter

from stylefusion_hf.spaces_app.crops import crop, region_box

if TYPE_CHECKING:
    from stylefusion_hf.spaces_app.models import Model

SIDE = 64  # approximate pixels
MOST = 512  # size of the cache; some 6 kB each
MOST_SOURCES = 24  # pictures with maps that thumbnails of several regions are cut from: some 250 kB each
SHADE = (226, 232, 240)  # what surrounds a region fades to: a light gray that is the page's own
FADE = 0.6  # how far
SOFTNESS = 1 / 48  # standard deviation of the fading edge, as a share of the picture's longer side


Source = tuple[Image.Image, np.ndarray | None]  # a small picture, and the numbers of its pixels' regions


class Thumbnails:
    """Thumbnails of a model's codes, the most recent of which are kept.

    Those of several regions that follow one code, as most dials follow the base, are cut from one picture.
    """

    def __init__(self, model: Model):
        self.model = model
        self._kept: OrderedDict[str, Image.Image] = OrderedDict()
        self._sources: OrderedDict[str, Source] = OrderedDict()

    def render(self, codes: Sequence[Any], label: Any = None, region: str | None = None) -> list[Image.Image]:
        """Render small pictures at the model's own truncation.

        Args:
            codes: seeds, or codes in a recipe's JSON form.
            label: the class of all seeds, in a recipe's JSON form; None for each seed's own.
            region: one of the model's regions: the pictures are cropped to it where it is small, and fade around it;
                None for whole pictures.
        """
        keys = [self._key(code, label, region) for code in codes]
        known = _known(self._kept, keys)
        missing = {key: code for key, code in zip(keys, codes, strict=True) if key not in known}
        sources = self._find_sources(list(missing.values()), label)
        made = {key: _shrink(self._show(*pair, region)) for key, pair in zip(missing, sources, strict=True)}
        _keep(self._kept, made, MOST)
        return [(known | made)[key] for key in keys]

    def _find_sources(self, codes: Sequence[Any], label: Any) -> list[Source]:
        """Return the pictures that codes came with, rendering those that are not kept in one batch."""
        keys = [self._key(code, label) for code in codes]
        known = _known(self._sources, keys)
        missing = {key: code for key, code in zip(keys, codes, strict=True) if key not in known}
        made: dict[str, Source] = {}
        if missing:
            recipe: dict[str, Any] = {"version": 1, "base": list(missing.values())}
            recipe |= {"truncation_psi": self.model.psi} | ({} if label is None else {"class_labels": label})
            made = dict(zip(missing, self._draw(recipe), strict=True))
        _keep(self._sources, made, MOST_SOURCES)
        return [(known | made)[key] for key in keys]

    def _draw(self, recipe: dict[str, Any]) -> list[Source]:
        if self.model.has_segmenter and len(self.model.regions) > 1:
            return list(zip(*self.model.render_small_maps(recipe), strict=True))
        return [(image, None) for image in self.model.render_small(recipe)[0]]

    def _show(self, image: Image.Image, labels: np.ndarray | None, region: str | None) -> Image.Image:
        if region is None or labels is None:
            return image
        return focus(image, labels == self.model.regions.index(region))

    def _key(self, code: Any, label: Any, region: str | None = None) -> str:
        text = json.dumps([code, label, region], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def _known(kept: OrderedDict[str, Any], keys: Sequence[str]) -> dict[str, Any]:
    """Return what a cache has of these keys."""
    return {key: found for key in keys if (found := kept.get(key)) is not None}


def _keep(kept: OrderedDict[str, Any], made: dict[str, Any], most: int) -> None:
    """Add what was made to a cache, and drop the oldest beyond `most`."""
    kept.update(made)
    while len(kept) > most:
        kept.popitem(last=False)


def focus(image: Image.Image, mask: np.ndarray) -> Image.Image:
    """Return a picture cropped to a region where that is small, whose surroundings fade to gray.

    Args:
        image: a picture of any mode.
        mask: (H, W), bool: the region. Where it is empty, the picture stays as it is.
    """
    if not mask.any():
        return image
    box, inside = region_box(mask), Image.fromarray(mask)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    shown, shade = image.convert(mode), Image.new(mode, image.size, SHADE)
    soft = inside.convert("L").filter(ImageFilter.GaussianBlur(SOFTNESS * max(image.size)))
    return crop(Image.composite(shown, Image.blend(shown, shade, FADE), soft), box)


def _shrink(image: Image.Image) -> Image.Image:
    return image.reduce(factor) if (factor := max(image.size) // SIDE) > 1 else image
