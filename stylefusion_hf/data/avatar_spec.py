"""The attributes of an avatar, how they are drawn at random for an index, and how a region is swapped."""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from typing import Any

import numpy as np

from stylefusion_hf.data.avatar_choices import (
    BACKGROUND_COLORS,
    CLOTHES,
    CLOTHING_COLORS,
    EYE_COLORS,
    EYEBROWS,
    EYES,
    FACIAL_HAIR,
    FACIAL_HAIR_SHARE,
    FANCY_HAIR,
    GLASSES,
    GLASSES_COLORS,
    GLASSES_SHARE,
    HAIR,
    HAT_SHARE,
    HATS,
    MOUTH_COLORS,
    MOUTHS,
    NATURAL_HAIR,
    NOSES,
    SKIN_COLORS,
    TONGUE_COLORS,
    TRIM_COLORS,
)

REGIONS = ("background", "skin", "clothes", "mouth", "eyes", "hair")
NONE = "none"


@dataclass(frozen=True)
class AvatarSpec:
    """All attributes that determine an avatar's picture. Parts are file names of python-avatars, colors "#rrggbb".

    Pose: `rotation` in degrees (clockwise), `scale` (at 1, crown to chin is 0.7 of the picture's height), `shift_x`
    and `shift_y` in fractions of the picture's width (rightward, downward). `background_angle` is the direction of the
    gradient in degrees (clockwise from the right). ValueError for a malformed color or a scale that is not positive.
    """

    background_from: str
    background_to: str
    background_angle: float
    skin_colour: str
    nose: str
    clothes: str
    clothes_colour: str
    clothes_trim: str
    mouth: str
    mouth_colour: str
    tongue_colour: str
    facial_hair: str
    facial_hair_colour: str
    eyes: str
    eye_colour: str
    eyebrows: str
    brow_colour: str
    glasses: str
    glasses_colour: str
    top: str
    hair_colour: str
    hat_colour: str
    hat_trim: str
    rotation: float = 0.0
    scale: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            is_colour = "colour" in item.name or item.name in (
                "background_from",
                "background_to",
                "clothes_trim",
                "hat_trim",
            )
            if is_colour and not re.fullmatch("#[0-9a-fA-F]{6}", value):
                raise ValueError(f"{item.name} must be a color like #a55728, got {value!r}")
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AvatarSpec":
        """Make a specification from the dict of `to_dict`; ValueError for unknown or missing fields."""
        names = {item.name for item in fields(cls)}
        required = names - set(POSE)
        if set(values) - names or required - set(values):
            unknown, missing = sorted(set(values) - names), sorted(required - set(values))
            raise ValueError(f"not the fields of an AvatarSpec: unknown {unknown}, missing {missing}")
        return cls(**values)

    @property
    def attributes(self) -> dict[str, Any]:
        """All fields except the pose, and has_hat, has_glasses, has_facial_hair as booleans: a picture's labels."""
        values = {name: value for name, value in asdict(self).items() if name not in POSE}
        values["has_hat"] = self.top.startswith("hat/")
        values["has_glasses"] = self.glasses != NONE
        values["has_facial_hair"] = self.facial_hair != NONE
        return values

    @property
    def pose(self) -> dict[str, float]:
        """rotation (degrees), scale, shift_x, shift_y (fractions of the width)."""
        return {name: getattr(self, name) for name in POSE}


POSE = ("rotation", "scale", "shift_x", "shift_y")
# The fields that determine each region's appearance. The nose is a shade on the skin; brows and glasses belong to the
# eyes, hats to the hair.
REGION_FIELDS: dict[str, tuple[str, ...]] = {
    "background": ("background_from", "background_to", "background_angle"),
    "skin": ("skin_colour", "nose"),
    "clothes": ("clothes", "clothes_colour", "clothes_trim"),
    "mouth": ("mouth", "mouth_colour", "tongue_colour", "facial_hair", "facial_hair_colour"),
    "eyes": ("eyes", "eye_colour", "eyebrows", "brow_colour", "glasses", "glasses_colour"),
    "hair": ("top", "hair_colour", "hat_colour", "hat_trim"),
}


def swap_region(a: AvatarSpec, b: AvatarSpec, region: str) -> AvatarSpec:
    """Return the ground-truth swap: `a` with the parts and colors of `b` in `region`, in a's pose.

    ValueError for an unknown region.
    """
    if region not in REGION_FIELDS:
        raise ValueError(f"unknown region {region!r}; the avatar's regions are {', '.join(REGIONS)}")
    return replace(a, **{name: getattr(b, name) for name in REGION_FIELDS[region]})


def avatar_spec(index: int, seed: int = 0) -> AvatarSpec:
    """Draw the attributes of avatar `index` (0, 1, ...) in collection `seed`, independent of machine and order.

    ValueError for a negative index or seed.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed count from 0, got index={index} and seed={seed}")
    # numpy guarantees that RandomState's streams never change. SeedSequence combines seed and index into one key.
    rng = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, index])))

    has_hat, has_glasses, has_beard = rng.rand(3) < (HAT_SHARE, GLASSES_SHARE, FACIAL_HAIR_SHARE)
    top = _draw_part(rng, HATS if has_hat else HAIR)
    has_beard = has_beard and top != "hat/hijab"
    skin = _draw_color(rng, SKIN_COLORS, 5)
    hair = _draw_distinct_color(rng, NATURAL_HAIR if rng.rand() < 0.72 else FANCY_HAIR, skin)
    # As on people, a beard often matches the hair, and brows are a darker tone of a hair color.
    beard = hair if rng.rand() < 0.5 else _draw_distinct_color(rng, NATURAL_HAIR, skin)
    brows = _darken(hair if rng.rand() < 0.5 else _draw_color(rng, NATURAL_HAIR[:4]), 0.6)
    clothes = _draw_distinct_color(rng, CLOTHING_COLORS, skin)
    hat = _draw_distinct_color(rng, CLOTHING_COLORS, skin)
    behind = (hat if has_hat else hair, skin, clothes)
    background = (
        _draw_distinct_color(rng, BACKGROUND_COLORS, *behind),
        _draw_distinct_color(rng, BACKGROUND_COLORS, *behind),
    )
    return AvatarSpec(
        background_from=background[0],
        background_to=background[1],
        background_angle=round(float(rng.uniform(0, 360)), 2),
        skin_colour=skin,
        nose=_draw_part(rng, NOSES),
        clothes=_draw_part(rng, CLOTHES),
        clothes_colour=clothes,
        clothes_trim=_draw_color(rng, TRIM_COLORS),
        mouth=_draw_part(rng, MOUTHS),
        mouth_colour=_draw_color(rng, MOUTH_COLORS, 5),
        tongue_colour=_draw_color(rng, TONGUE_COLORS, 5),
        facial_hair=_draw_part(rng, FACIAL_HAIR) if has_beard else NONE,
        facial_hair_colour=beard,
        eyes=_draw_part(rng, EYES),
        eye_colour=_draw_color(rng, EYE_COLORS, 5),
        eyebrows=_draw_part(rng, EYEBROWS),
        brow_colour=brows,
        glasses=_draw_part(rng, GLASSES) if has_glasses else NONE,
        glasses_colour=_draw_color(rng, GLASSES_COLORS, 5),
        top=top,
        hair_colour=hair,
        hat_colour=hat,
        hat_trim=_draw_distinct_color(rng, TRIM_COLORS, skin),
        rotation=round(float(rng.uniform(-14, 14)), 3),
        scale=round(float(rng.uniform(0.92, 1.1)), 4),
        shift_x=round(float(rng.uniform(-0.06, 0.06)), 4),
        shift_y=round(float(rng.uniform(-0.03, 0.03)), 4),
    )


def _draw_part(rng: np.random.RandomState, weights: Mapping[str, float]) -> str:
    edges = list(accumulate(weights.values()))
    return list(weights)[bisect_right(edges, float(rng.rand()) * edges[-1])]


# Colors are plain floats here: for three numbers, numpy arrays are several times slower.
def _draw_color(rng: np.random.RandomState, palette: Sequence[str], spread: float = 9) -> str:
    """Draw a color of the palette, slightly varied in lightness and hue (`spread` in levels of 255)."""
    rgb = _rgb(palette[rng.randint(len(palette))])
    lighter = float(rng.uniform(-2, 2)) * spread
    hue: list[float] = rng.uniform(-1, 1, 3).tolist()
    return _hex([level + lighter + shift * spread for level, shift in zip(rgb, hue, strict=True)])


def _draw_distinct_color(rng: np.random.RandomState, palette: Sequence[str], *others: str, gap: float = 80) -> str:
    """Draw a color that differs from `others` by at least `gap`, summed over channels, in up to 12 tries."""
    for _ in range(12):
        colour = _draw_color(rng, palette)
        if all(_distance(colour, other) >= gap for other in others):
            break
    return colour


def _darken(colour: str, factor: float) -> str:
    return _hex([level * factor for level in _rgb(colour)])


def _distance(one: str, other: str) -> int:
    return sum(abs(a - b) for a, b in zip(_rgb(one), _rgb(other), strict=True))


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _hex(rgb: Sequence[float]) -> str:
    return "#" + "".join(f"{round(min(max(level, 0), 255)):02x}" for level in rgb)
