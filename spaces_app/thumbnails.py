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
SHADE = (226, 232, 240)  # what surrounds a region fades to: a light gray that is the page's own
FADE = 0.6  # how far
SOFTNESS = 1 / 48  # standard deviation of the fading edge, as a share of the picture's longer side


class Thumbnails:
    """Thumbnails of a model's codes, the most recent of which are kept."""

    def __init__(self, model: Model):
        self.model = model
        self._kept: OrderedDict[str, Image.Image] = OrderedDict()

    def render(self, codes: Sequence[Any], label: Any = None, region: str | None = None) -> list[Image.Image]:
        """Render small pictures at the model's own truncation.

        Args:
            codes: seeds, or codes in a recipe's JSON form.
            label: the class of all seeds, in a recipe's JSON form; None for each seed's own.
            region: one of the model's regions: the pictures are cropped to it where it is small, and fade around it;
                None for whole pictures.
        """
        keys = [self._key(code, label, region) for code in codes]
        missing = {key: code for key, code in zip(keys, codes, strict=True) if key not in self._kept}
        made = {}
        if missing:
            recipe = {"version": 1, "base": list(missing.values()), "truncation_psi": self.model.psi}
            recipe |= {} if label is None else {"class_labels": label}
            images, masks = self.model.render_small(recipe, region)
            shown = images if masks is None else [focus(*pair) for pair in zip(images, masks, strict=True)]
            made = {key: _shrink(image) for key, image in zip(missing, shown, strict=True)}
        found = [made[key] if key in made else self._kept[key] for key in keys]
        self._kept.update(made)
        while len(self._kept) > MOST:
            self._kept.popitem(last=False)
        return found

    def _key(self, code: Any, label: Any, region: str | None) -> str:
        text = json.dumps([code, label, region], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


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
