"""Files of a picture beside the exact PNG: enlarged PNGs, WebP, and both without the background.

They carry the picture's recipe too.
"""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from stylefusion_hf.core.checks import short
from stylefusion_hf.spaces_app.film_recipes import exif_comment
from stylefusion_hf.spaces_app.models import Model, Picture
from stylefusion_hf.spaces_app.results import data_uri

SCALES = {"1x": 1, "2x": 2, "4x": 4}
KINDS = (*SCALES, "webp")
LARGEST = 4096  # pixels of a side
EFFORT = 0  # of the lossless compression: more takes seconds of a large picture, and saves a tenth
SOFT = 256  # pixels: the edge of a cutout from a larger picture is soft, that of a smaller one follows its pixels


def picture_file(model: Model, picture: Picture, kind: Any, transparent: Any = False) -> dict[str, str]:
    """Return {"name", "uri"} of a picture as a file.

    Args:
        model: the model that drew it.
        picture: a full picture.
        kind: "1x", "2x" or "4x" for a PNG, enlarged with Lanczos' filter; "webp" for a lossless WebP.
        transparent: whether to leave out the background.

    Raises:
        ValueError: no such kind, an enlarged picture of more than LARGEST pixels, or no background to leave out.
    """
    if kind not in KINDS:
        raise ValueError(f"pictures are saved as {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {short(kind)}")
    scale = SCALES.get(kind, 1)
    width, height = (side * scale for side in picture.image.size)
    if max(width, height) > LARGEST:
        raise ValueError(f"a picture is enlarged to at most {LARGEST} pixels, not to {max(width, height)}")
    image = cut_out(model, picture) if transparent else picture.image
    name = "stylefusion-transparent" if transparent else "stylefusion"
    if kind == "webp":
        return {"name": f"{name}.webp", "uri": _webp_uri(image, picture)}
    name += "" if scale == 1 else f"-{kind}"
    enlarged = image if scale == 1 else image.resize((width, height), Image.Resampling.LANCZOS)
    return {"name": f"{name}.png", "uri": data_uri(enlarged, picture.recipe)}


def cut_out(model: Model, picture: Picture) -> Image.Image:
    """Return a picture as RGBA whose background, by the segmenter's map, is transparent; its colors stay.

    Raises:
        ValueError: the model has no segmenter, or no region of its tree is a background.
    """
    if picture.labels is None or not model.background:
        raise ValueError("this model's regions have no background that could be left out")
    labels = picture.labels if picture.labels.size == picture.image.size else model.render_map(picture.recipe)
    inside = Image.fromarray(~np.isin(np.asarray(labels), model.background)).convert("L")
    if max(inside.size) > SOFT:  # half a pixel of the map inward, so that no rim of the background stays
        radius = max(inside.size) / SOFT / 2
        inside = inside.filter(ImageFilter.GaussianBlur(radius)).point(lambda level: max(0, 2 * level - 255))
    image = picture.image.convert("RGBA")
    image.putalpha(ImageChops.darker(image.getchannel("A"), inside))
    return image


def _webp_uri(image: Image.Image, picture: Picture) -> str:
    exif, buffer = exif_comment(json.dumps(picture.recipe).encode("ascii")), io.BytesIO()
    image.save(buffer, format="WEBP", lossless=True, quality=EFFORT, method=EFFORT, exif=exif, exact=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
