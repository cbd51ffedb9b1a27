"""Files of a picture beside the exact PNG: enlarged PNGs, and WebP. They carry the picture's recipe too."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

from PIL import Image

from stylefusion_hf.core.checks import short
from stylefusion_hf.spaces_app.film_recipes import exif_comment
from stylefusion_hf.spaces_app.models import Picture
from stylefusion_hf.spaces_app.results import data_uri

SCALES = {"2x": 2, "4x": 4}
LARGEST = 4096  # pixels of a side
EFFORT = 0  # of the lossless compression: more takes seconds of a large picture, and saves a tenth


def picture_file(picture: Picture, kind: Any) -> dict[str, str]:
    """Return {"name", "uri"} of a picture as a file.

    Args:
        picture: a full picture.
        kind: "2x" or "4x", enlarged with Lanczos' filter; "webp", the exact pixels as lossless WebP.

    Raises:
        ValueError: no such kind, or an enlarged picture of more than LARGEST pixels.
    """
    if kind == "webp":
        return {"name": "stylefusion.webp", "uri": _webp_uri(picture)}
    if kind not in SCALES:
        raise ValueError(f"pictures are saved as {', '.join(SCALES)} or webp, got {short(kind)}")
    width, height = (side * SCALES[kind] for side in picture.image.size)
    if max(width, height) > LARGEST:
        raise ValueError(f"a picture is enlarged to at most {LARGEST} pixels, not to {max(width, height)}")
    enlarged = picture.image.resize((width, height), Image.Resampling.LANCZOS)
    return {"name": f"stylefusion-{kind}.png", "uri": data_uri(enlarged, picture.recipe)}


def _webp_uri(picture: Picture) -> str:
    exif, buffer = exif_comment(json.dumps(picture.recipe).encode("ascii")), io.BytesIO()
    picture.image.save(buffer, format="WEBP", lossless=True, quality=EFFORT, method=EFFORT, exif=exif, exact=True)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
