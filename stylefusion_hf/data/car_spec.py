"""The attributes of a car, how they are drawn at random for an index, and how a region is swapped."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np

REGIONS = ("background_top", "background_bottom", "car_body", "wheels")

BODIES = ("sedan", "hatchback", "coupe", "suv", "pickup", "van")
PAINTS = (
    "#c8102e",
    "#0f4c81",
    "#f2f2f2",
    "#2b2d31",
    "#9aa0a6",
    "#1f7a4d",
    "#f5c518",
    "#e8762d",
    "#5ec2c2",
    "#6a3d9a",
    "#8a5a3b",
    "#f29cb7",
)
GLASS = ("#26343f", "#4f7186", "#9cc4d6")
RIMS = ("spokes", "disc", "ring", "cross")
RIM_COLORS = ("#d9dce0", "#8b9096", "#3a3d42", "#c9a227", "#f4f4f4", "#b3402e")
TIRES = ("#17181a", "#2a2622", "#3b3f45")
# Colors of the sky at the top and at the horizon.
SKIES = (
    ("#4a90d9", "#cfe6f7"),
    ("#2b5c9e", "#9cc3e6"),
    ("#f28c5b", "#fbe3a1"),
    ("#5b3a7a", "#f09a83"),
    ("#0d1633", "#33406b"),
    ("#9aa5b1", "#dde1e6"),
    ("#79c7c0", "#f3f7d9"),
)
SCENES = ("mountains", "city", "trees", "hills", "open")
SCENE_COLORS = ("#5d6d7e", "#35566b", "#2f5d3a", "#7b6a58", "#3a3550", "#8fa58a")
GROUNDS = ("road", "plain", "lanes", "paving")
GROUND_COLORS = ("#4c4f54", "#6d6f73", "#7a9a4a", "#d8c08a", "#e6ebf0", "#8b5e3c", "#39424e")
KERBS = ("#e8e4d8", "#b9b2a3", "#5f7f3a", "#c4a86a", "#2e3238")


@dataclass(frozen=True)
class CarSpec:
    """All attributes that determine a car's picture. Colors are "#rrggbb", lengths fractions of the picture's width.

    Pose: `facing` (1 right, -1 left), `scale` (at 1 the car takes 0.9 of the width), `shift_x` of its center, and
    `horizon` and `ground`, the heights (from the top) of the horizon and of the tires' lowest point. `scenery` seeds
    the outline of the scenery on the horizon; `sun` is its horizontal position (-1 for none).
    """

    sky_from: str
    sky_to: str
    sun: float
    scene: str
    scene_colour: str
    scenery: int
    ground_kind: str
    ground_colour: str
    kerb_colour: str
    body: str
    paint: str
    two_tone: bool
    glass: str
    rim: str
    rim_colour: str
    tyre_colour: str
    wheel_radius: float
    facing: int = 1
    scale: float = 1.0
    shift_x: float = 0.0
    horizon: float = 0.5
    ground: float = 0.75

    @property
    def pose(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in POSE}

    @property
    def attributes(self) -> dict[str, Any]:
        """All attributes except the pose."""
        return {name: value for name, value in asdict(self).items() if name not in POSE}


POSE = ("facing", "scale", "shift_x", "horizon", "ground")

# The attributes that determine each region's appearance.
REGION_FIELDS = {
    "background_top": ("sky_from", "sky_to", "sun", "scene", "scene_colour", "scenery"),
    "background_bottom": ("ground_kind", "ground_colour", "kerb_colour"),
    "car_body": ("body", "paint", "two_tone", "glass"),
    "wheels": ("rim", "rim_colour", "tyre_colour", "wheel_radius"),
}


def car_spec(index: int, seed: int = 0) -> CarSpec:
    """Draw car `index` of collection `seed`, the same on every machine. ValueError for a negative number."""
    if index < 0 or seed < 0:
        raise ValueError(f"index and seed must be at least 0, got {index} and {seed}")
    draw = np.random.RandomState([seed, index])

    def one_of(options: tuple[Any, ...]) -> Any:
        return options[draw.randint(len(options))]

    sky = one_of(SKIES)
    horizon = draw.uniform(0.42, 0.58)
    return CarSpec(
        sky_from=sky[0],
        sky_to=sky[1],
        sun=round(draw.uniform(0.1, 0.9), 4) if draw.uniform() < 0.5 else -1.0,
        scene=one_of(SCENES),
        scene_colour=one_of(SCENE_COLORS),
        scenery=int(draw.randint(2**16)),
        ground_kind=one_of(GROUNDS),
        ground_colour=one_of(GROUND_COLORS),
        kerb_colour=one_of(KERBS),
        body=one_of(BODIES),
        paint=one_of(PAINTS),
        two_tone=bool(draw.uniform() < 0.25),
        glass=one_of(GLASS),
        rim=one_of(RIMS),
        rim_colour=one_of(RIM_COLORS),
        tyre_colour=one_of(TIRES),
        wheel_radius=round(draw.uniform(9.5, 12.0), 4),
        facing=int(one_of((1, -1))),
        scale=round(draw.uniform(0.84, 1.04), 4),
        shift_x=round(draw.normal(0, 0.025), 4),
        horizon=round(horizon, 4),
        ground=round(horizon + draw.uniform(0.22, 0.3), 4),
    )


def swap_region(target: CarSpec, source: CarSpec, region: str) -> CarSpec:
    """Return `target` with `region` from `source`, in the target's pose. ValueError for an unknown region."""
    if region not in REGION_FIELDS:
        raise ValueError(f"unknown region {region!r}: choose from {', '.join(REGION_FIELDS)}")
    return replace(target, **{name: getattr(source, name) for name in REGION_FIELDS[region]})


assert {f.name for f in fields(CarSpec)} == {*POSE, *(n for names in REGION_FIELDS.values() for n in names)}
