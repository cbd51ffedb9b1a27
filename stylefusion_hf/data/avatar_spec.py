"""What one avatar is made of: its attributes, how they are drawn for an index, and how a region is swapped."""

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from typing import Any

import numpy as np

from stylefusion_hf.data.avatar_choices import (
    BACKGROUND_COLOURS,
    CLOTHES,
    CLOTHING_COLOURS,
    EYE_COLOURS,
    EYEBROWS,
    EYES,
    FACIAL_HAIR,
    FACIAL_HAIR_SHARE,
    FANCY_HAIR,
    GLASSES,
    GLASSES_COLOURS,
    GLASSES_SHARE,
    HAIR,
    HAT_SHARE,
    HATS,
    MOUTH_COLOURS,
    MOUTHS,
    NATURAL_HAIR,
    NOSES,
    SKIN_COLOURS,
    TONGUE_COLOURS,
    TRIM_COLOURS,
)

REGIONS = ("background", "skin", "clothes", "mouth", "eyes", "hair")
NONE = "none"


@dataclass(frozen=True)
class AvatarSpec:
    """Everything that decides an avatar's picture. Parts are python-avatars' file names, colours "#rrggbb".

    Pose: `rotation` in degrees (clockwise), `scale` (at 1 crown to chin is 0.7 of the picture's height), `shift_x`
    and `shift_y` in fractions of the picture's width (to the right, downwards). `background_angle` in degrees is the
    direction of the gradient (clockwise from the right). ValueError for a colour of another form or a scale that is
    not positive.
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
                raise ValueError(f"{item.name} must be a colour like #a55728, got {value!r}")
        if not self.scale > 0:
            raise ValueError(f"scale must be positive, got {self.scale}")

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "AvatarSpec":
        """The inverse of `to_dict`; ValueError for unknown or missing fields."""
        names = {item.name for item in fields(cls)}
        required = names - set(POSE)
        if set(values) - names or required - set(values):
            unknown, missing = sorted(set(values) - names), sorted(required - set(values))
            raise ValueError(f"not the fields of an AvatarSpec: unknown {unknown}, missing {missing}")
        return cls(**values)

    @property
    def attributes(self) -> dict[str, Any]:
        """The labels of a picture: all fields but the pose, and has_hat, has_glasses, has_facial_hair as booleans."""
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
# Which fields make a region's look. A nose is a shade on the skin; brows and glasses belong to the eyes, hats to the
# hair.
REGION_FIELDS: dict[str, tuple[str, ...]] = {
    "background": ("background_from", "background_to", "background_angle"),
    "skin": ("skin_colour", "nose"),
    "clothes": ("clothes", "clothes_colour", "clothes_trim"),
    "mouth": ("mouth", "mouth_colour", "tongue_colour", "facial_hair", "facial_hair_colour"),
    "eyes": ("eyes", "eye_colour", "eyebrows", "brow_colour", "glasses", "glasses_colour"),
    "hair": ("top", "hair_colour", "hat_colour", "hat_trim"),
}


def swap_region(a: AvatarSpec, b: AvatarSpec, region: str) -> AvatarSpec:
    """The true swap: `a` with the parts and colours of `b` in `region` (one of `REGIONS`), in a's pose.

    ValueError for an unknown region.
    """
    if region not in REGION_FIELDS:
        raise ValueError(f"unknown region {region!r}; the avatar's regions are {', '.join(REGIONS)}")
    return replace(a, **{name: getattr(b, name) for name in REGION_FIELDS[region]})


def avatar_spec(index: int, seed: int = 0) -> AvatarSpec:
    """The attributes of avatar `index` (0, 1, ...) of the collection `seed`, the same on any machine and in any order.

    ValueError for a negative index or seed.
    """
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed count from 0, got index={index} and seed={seed}")
    # RandomState, because numpy promises that its streams never change; SeedSequence mixes the pair into one key.
    rng = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, index])))

    has_hat, has_glasses, has_beard = rng.rand(3) < (HAT_SHARE, GLASSES_SHARE, FACIAL_HAIR_SHARE)
    top = _part(rng, HATS if has_hat else HAIR)
    has_beard = has_beard and top != "hat/hijab"
    skin = _colour(rng, SKIN_COLOURS, 5)
    hair = _apart(rng, NATURAL_HAIR if rng.rand() < 0.72 else FANCY_HAIR, skin)
    # A beard mostly matches the head's hair, and brows are hair in a darker tone, as on people.
    beard = hair if rng.rand() < 0.5 else _apart(rng, NATURAL_HAIR, skin)
    brows = _darker(hair if rng.rand() < 0.5 else _colour(rng, NATURAL_HAIR[:4]), 0.6)
    clothes = _apart(rng, CLOTHING_COLOURS, skin)
    hat = _apart(rng, CLOTHING_COLOURS, skin)
    behind = (hat if has_hat else hair, skin, clothes)
    background = _apart(rng, BACKGROUND_COLOURS, *behind), _apart(rng, BACKGROUND_COLOURS, *behind)
    return AvatarSpec(
        background_from=background[0],
        background_to=background[1],
        background_angle=round(float(rng.uniform(0, 360)), 2),
        skin_colour=skin,
        nose=_part(rng, NOSES),
        clothes=_part(rng, CLOTHES),
        clothes_colour=clothes,
        clothes_trim=_colour(rng, TRIM_COLOURS),
        mouth=_part(rng, MOUTHS),
        mouth_colour=_colour(rng, MOUTH_COLOURS, 5),
        tongue_colour=_colour(rng, TONGUE_COLOURS, 5),
        facial_hair=_part(rng, FACIAL_HAIR) if has_beard else NONE,
        facial_hair_colour=beard,
        eyes=_part(rng, EYES),
        eye_colour=_colour(rng, EYE_COLOURS, 5),
        eyebrows=_part(rng, EYEBROWS),
        brow_colour=brows,
        glasses=_part(rng, GLASSES) if has_glasses else NONE,
        glasses_colour=_colour(rng, GLASSES_COLOURS, 5),
        top=top,
        hair_colour=hair,
        hat_colour=hat,
        hat_trim=_apart(rng, TRIM_COLOURS, skin),
        rotation=round(float(rng.uniform(-14, 14)), 3),
        scale=round(float(rng.uniform(0.92, 1.1)), 4),
        shift_x=round(float(rng.uniform(-0.06, 0.06)), 4),
        shift_y=round(float(rng.uniform(-0.03, 0.03)), 4),
    )


def _part(rng: np.random.RandomState, weights: Mapping[str, float]) -> str:
    edges = list(accumulate(weights.values()))
    return list(weights)[bisect_right(edges, float(rng.rand()) * edges[-1])]


# Colours are plain floats here: for three numbers numpy's arrays take several times as long as the arithmetic.
def _colour(rng: np.random.RandomState, palette: Sequence[str], spread: float = 9) -> str:
    """A colour of the palette, made a little lighter or darker and a little off in hue (`spread` in levels of 255)."""
    rgb = _rgb(palette[rng.randint(len(palette))])
    lighter = float(rng.uniform(-2, 2)) * spread
    hue: list[float] = rng.uniform(-1, 1, 3).tolist()
    return _hex([level + lighter + shift * spread for level, shift in zip(rgb, hue, strict=True)])


def _apart(rng: np.random.RandomState, palette: Sequence[str], *others: str, gap: float = 80) -> str:
    """A colour of the palette at least `gap` (summed over channels) from the `others`, so that borders are seen."""
    for _ in range(12):
        colour = _colour(rng, palette)
        if all(_distance(colour, other) >= gap for other in others):
            break
    return colour


def _darker(colour: str, factor: float) -> str:
    return _hex([level * factor for level in _rgb(colour)])


def _distance(one: str, other: str) -> int:
    return sum(abs(a - b) for a, b in zip(_rgb(one), _rgb(other), strict=True))


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def _hex(rgb: Sequence[float]) -> str:
    return "#" + "".join(f"{round(min(max(level, 0), 255)):02x}" for level in rgb)
