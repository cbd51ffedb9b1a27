"""Rendering of an `AvatarSpec` to a picture and a label map. Does not import torch, so that workers start fast."""

import re
from functools import lru_cache

import numpy as np

from stylefusion_hf.data.avatar_parts import load_part
from stylefusion_hf.data.avatar_spec import NONE, REGIONS, AvatarSpec
from stylefusion_hf.data.raster import draw

# The picture's frame in units of the 264 x 280 canvas: a square of FRAME units around (CENTER_X, CENTER_Y). Crown to
# chin is 150 units, centered at (132, 111), and brows to chin 85. A larger frame, with the head at half of its height,
# would be wider than the canvas and leave half of the mouths and eyes below 1 % of a 64 px picture.
FRAME, CENTER_X, CENTER_Y = 216.0, 132.0, 125.0

# Features are enlarged about their centers, so that they are recognizable at 64 px, small mouths the most. At 1.2 the
# eyes are centered in the lenses of glasses.
MOUTH_SCALE = {
    "concerned": 1.2,
    "default": 1.45,
    "disbelief": 1.45,
    "grimace": 0.85,
    "sad": 1.65,
    "smile": 1.2,
    "twinkle": 1.7,
}
CONTENTS = ("clothes", "mouth", "nose", "eyes", "eyebrows", "glasses", "facial_hair")
FEATURES = {"mouth": (1.0, 54, 20), "eyes": (1.2, 56, 22), "eyebrows": (1.1, 56, 14)}


def render_avatar(spec: AvatarSpec, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Render the picture (size, size, 3) and its label map (size, size), both uint8; label i is `REGIONS[i]`.

    ValueError for a size under 16 or an unknown part, ImportError without python-avatars and resvg-py.
    """
    if size < 16:
        raise ValueError(f"an avatar's size must be at least 16 pixels, got {size}")
    picture, labels = avatar_svg(spec)
    return draw(picture, labels, lambda size: _gradient(spec, size), len(REGIONS), size)


def _gradient(spec: AvatarSpec, size: int) -> np.ndarray:
    """Return the background (size, size, 3), float in 0..255."""
    angle = np.deg2rad(np.float64(spec.background_angle))
    ends = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in (spec.background_from, spec.background_to)]
    first, last = np.array(ends, np.float32)
    across = (np.arange(size, dtype=np.float32) + 0.5) / size - 0.5
    # 0 at one corner of the picture and 1 at the opposite one, for any angle
    reach = abs(np.cos(angle)) + abs(np.sin(angle))
    position = (across[None, :] * np.cos(angle) + across[:, None] * np.sin(angle)) / reach + 0.5
    gradient: np.ndarray = first + position.astype(np.float32)[..., None] * (last - first)
    return gradient


def avatar_svg(spec: AvatarSpec) -> tuple[str, str]:
    """Return the picture (with a transparent background) and the label map as SVG text, FRAME units wide."""
    colours = {
        "skin": spec.skin_colour,
        "fabric": spec.clothes_colour,
        "clothes_trim": spec.clothes_trim,
        "mouth": spec.mouth_colour,
        "tongue": spec.tongue_colour,
        "facial_hair": spec.facial_hair_colour,
        "eyes": spec.eye_colour,
        "brows": spec.brow_colour,
        "glasses": spec.glasses_colour,
        "hair": spec.hair_colour,
        "hat": spec.hat_colour,
        "trim": spec.hat_trim,
    }
    image, labels = _assemble(spec.top, *(getattr(spec, slot) for slot in CONTENTS))
    image = re.sub(r"\{(\w+)\}", lambda match: colours[match.group(1)], image)
    middle = FRAME / 2
    pose = (
        f"translate({middle + spec.shift_x * FRAME:.4f} {middle + spec.shift_y * FRAME:.4f}) "
        f"rotate({spec.rotation:.4f}) scale({spec.scale:.5f}) translate({-CENTER_X} {-CENTER_Y})"
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{FRAME}" height="{FRAME}" viewBox="0 0 {FRAME} {FRAME}">'
    return f'{head}<g transform="{pose}">{image}</g></svg>', f'{head}<g transform="{pose}">{labels}</g></svg>'


@lru_cache(maxsize=4096)
def _assemble(top: str, *names: str) -> tuple[str, str]:
    """Insert `top` and `names` (in the order of CONTENTS) into their slots; return (image, labels) without pose."""
    canvas, cover = load_part("style", "transparent"), load_part("top", top)
    texts = []
    for kind in ("image", "labels"):
        top_text: str = getattr(cover, kind).replace("{fabric}", "{hat}" if top.startswith("hat/") else "{trim}")
        # Tops without a slot for a beard cover the chin (the hijab), so the beard goes below them. Glasses go on top.
        if "facial_hair" not in cover.slots:
            top_text = f'<g transform="translate(49 72)">{{slot:facial_hair}}</g>{top_text}'
        if "glasses" not in cover.slots:
            top_text += '<g transform="translate(62 85)">{slot:glasses}</g>'
        text: str = getattr(canvas, kind).replace("{slot:top}", top_text)
        for slot, name in zip(CONTENTS, names, strict=True):
            text = text.replace(f"{{slot:{slot}}}", "" if name == NONE else _feature(slot, name, kind))
        texts.append(text)
    return texts[0], texts[1]


def _feature(slot: str, name: str, kind: str) -> str:
    text: str = getattr(load_part(slot, name), kind)
    if slot not in FEATURES:
        return text
    scale, x, y = FEATURES[slot]
    if slot == "mouth":
        scale = MOUTH_SCALE.get(name, scale)
    return f'<g transform="translate({x} {y}) scale({scale}) translate({-x} {-y})">{text}</g>'
