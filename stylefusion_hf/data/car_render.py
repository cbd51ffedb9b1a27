"""Rendering of a `CarSpec` to a picture and a label map, by SVG text of our own drawing."""

import math

import numpy as np

from stylefusion_hf.data.car_spec import REGIONS, CarSpec
from stylefusion_hf.data.raster import draw

FRAME = 100.0  # side of a picture in units
LENGTH = 0.9  # length of a car of scale 1, relative to the picture's width
AXLES = (24.0, 77.0)  # of a car 100 units long; the wheels' centers are at height 0, and up is negative

# Outline and windows of each body, facing right.
OUTLINES = {
    "sedan": (
        "M3 3V-9Q4-14 10-15L23-17Q33-29 42-30H60Q69-29 79-17L91-14Q97-12 97-5V3Z",
        "M27-17Q35-26 42-27H49V-17Z M52-27H60Q66-26 74-17H52Z",
    ),
    "hatchback": (
        "M7 3V-12Q8-22 16-30Q19-33 24-33H54Q62-32 73-19L88-15Q95-13 95-5V3Z",
        "M14-18Q16-25 21-30H36V-18Z M39-30H54Q60-29 68-18H39Z",
    ),
    "coupe": (
        "M2 3V-7Q3-12 12-14L24-17Q38-26 50-26Q62-26 76-15L92-11Q98-9 98-4V3Z",
        "M30-16Q40-23 50-23Q60-23 70-15Z",
    ),
    "suv": (
        "M4 3V-14L7-33Q8-37 14-37H60Q65-36 74-21L91-18Q97-16 97-8V3Z",
        "M11-21L13-33H33V-21Z M36-33H46V-21H36Z M49-33H59Q62-32 69-21H49Z",
    ),
    "pickup": (
        "M2 3V-17H42L45-34Q46-36 50-36H64Q69-35 77-20L92-17Q98-15 98-8V3Z",
        "M47-20L49-32H63Q67-31 73-20Z",
    ),
    "van": (
        "M3 3V-36Q3-42 9-42H66Q73-41 82-22L93-18Q98-16 98-8V3Z",
        "M54-22V-36H65Q70-35 77-22Z",
    ),
}


def render_car(spec: CarSpec, size: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Render the picture (size, size, 3) and its label map (size, size), both uint8; label i is `REGIONS[i]`.

    ValueError for a size under 16.
    """
    if size < 16:
        raise ValueError(f"a car's size must be at least 16 pixels, got {size}")
    picture, labels = car_svg(spec)
    return draw(picture, labels, lambda size: _sky(spec, size), len(REGIONS), size)


def _sky(spec: CarSpec, size: int) -> np.ndarray:
    """Return the sky (size, 1, 3), float in 0..255, a gradient from the picture's top to the horizon."""
    ends = [np.array([int(c[i : i + 2], 16) for i in (1, 3, 5)], np.float32) for c in (spec.sky_from, spec.sky_to)]
    height = ((np.arange(size, dtype=np.float32) + 0.5) / size / spec.horizon).clip(0, 1)
    sky: np.ndarray = ends[0] + height[:, None, None] * (ends[1] - ends[0])
    return sky


def car_svg(spec: CarSpec) -> tuple[str, str]:
    """Return the picture (with a transparent sky) and the label map as SVG text."""
    unit = LENGTH * spec.scale * FRAME / 100
    middle = FRAME * (0.5 + spec.shift_x)
    axle = FRAME * spec.ground - spec.wheel_radius * unit
    pose = f"translate({middle:.4f} {axle:.4f}) scale({spec.facing * unit:.5f} {unit:.5f}) translate(-50 0)"
    shadow = (
        f'<ellipse cx="{middle:.3f}" cy="{FRAME * spec.ground:.3f}" rx="{52 * unit:.3f}" ry="{3.2 * unit:.3f}" '
        f'fill="#000" fill-opacity=".35"/>'
    )
    image = _scenery(spec) + _ground(spec) + shadow
    image += f'<g transform="{pose}">{_body(spec)}{_wheels(spec)}</g>'
    horizon = FRAME * spec.horizon
    top, bottom, body, wheels = (f'fill="#{i:02x}{i:02x}{i:02x}"' for i in range(len(REGIONS)))
    # The same shapes as in the picture, to the digit, so that they cover the same samples.
    circle = f'<circle r="{spec.wheel_radius:.2f}" {wheels}/>'
    circles = "".join(f'<g transform="translate({x} 0)">{circle}</g>' for x in AXLES)
    ground = f'<rect x="0" y="{horizon}" width="{FRAME}" height="{FRAME - horizon}" {bottom}/>'
    labels = (
        f'<rect x="0" y="0" width="{FRAME}" height="{FRAME}" {top}/>{ground}'
        f'<g transform="{pose}"><path d="{OUTLINES[spec.body][0]}" {body}/>{circles}</g>'
    )
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{FRAME}" height="{FRAME}" viewBox="0 0 {FRAME} {FRAME}">'
    return f"{head}{image}</svg>", f"{head}{labels}</svg>"


def _mix(colour: str, other: str, share: float) -> str:
    pairs = ((int(colour[i : i + 2], 16), int(other[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in pairs)


def _scenery(spec: CarSpec) -> str:
    """Draw the sun and the scenery, all above the horizon."""
    draw, base = np.random.RandomState(spec.scenery), FRAME * spec.horizon
    parts = []
    if spec.sun >= 0:
        light = _mix(spec.sky_to, "#ffffff", 0.7)
        parts.append(f'<circle cx="{spec.sun * FRAME:.3f}" cy="{0.32 * base:.3f}" r="6" fill="{light}"/>')
    if spec.scene == "open":
        return "".join(parts)
    far, near = _mix(spec.scene_colour, spec.sky_to, 0.35), spec.scene_colour
    if spec.scene == "mountains":
        for colour, height in ((far, 24), (near, 15)):
            peaks = [(x + draw.uniform(-6, 6), base - height * draw.uniform(0.6, 1.1)) for x in range(10, 110, 27)]
            path = "".join(f"L{x - 16:.2f} {base - 3:.2f}L{x:.2f} {y:.2f}" for x, y in peaks)
            parts.append(f'<path d="M-10 {base}{path}L115 {base}Z" fill="{colour}"/>')
    elif spec.scene == "city":
        for colour, height in ((far, 30), (near, 20)):
            x = -2.0
            while x < FRAME:
                width, tall = draw.uniform(8, 15), height * draw.uniform(0.45, 1)
                box = f'x="{x:.2f}" y="{base - tall:.2f}" width="{width:.2f}" height="{tall:.2f}"'
                parts.append(f'<rect {box} fill="{colour}"/>')
                x += width
    elif spec.scene == "trees":
        for x in range(4, 104, 13):
            r, up = draw.uniform(5, 8), draw.uniform(5, 10)
            parts.append(f'<circle cx="{x + draw.uniform(-3, 3):.2f}" cy="{base - up:.2f}" r="{r:.2f}" fill="{far}"/>')
        parts.append(f'<rect x="0" y="{base - 5}" width="{FRAME}" height="5" fill="{near}"/>')
    else:
        for colour, height in ((far, 13), (near, 8)):
            rise = [draw.uniform(0.4, 1) * height for _ in range(3)]
            curve = f"Q16 {base - 2 * rise[0]:.2f} 33 {base - 3:.2f}Q50 {base - 2 * rise[1]:.2f} 66 {base - 4:.2f}"
            curve += f"Q84 {base - 2 * rise[2]:.2f} 100 {base - 3:.2f}"
            parts.append(f'<path d="M0 {base}L0 {base - 3:.2f}{curve}L100 {base}Z" fill="{colour}"/>')
    below = f'<clipPath id="sky"><rect x="0" y="0" width="{FRAME}" height="{base}"/></clipPath>'
    return f'{below}<g clip-path="url(#sky)">{"".join(parts)}</g>'


def _ground(spec: CarSpec) -> str:
    """Draw everything below the horizon: a verge, then the ground."""
    base, light = FRAME * spec.horizon, _mix(spec.ground_colour, "#ffffff", 0.55)
    verge = 5.0
    parts = [
        f'<rect x="0" y="{base}" width="{FRAME}" height="{FRAME - base}" fill="{spec.ground_colour}"/>',
        f'<rect x="0" y="{base}" width="{FRAME}" height="{verge}" fill="{spec.kerb_colour}"/>',
    ]
    low = FRAME * spec.ground
    if spec.ground_kind == "road":
        dashes = "".join(f"M{x} {low + 9:.2f}h14v2.6h-14z" for x in range(-4, 100, 24))
        parts.append(f'<path d="{dashes}" fill="{light}"/>')
    elif spec.ground_kind == "lanes":
        parts.append(f'<path d="M0 {low + 6:.2f}h100v2h-100zM0 {low + 11:.2f}h100v2h-100z" fill="{light}"/>')
    elif spec.ground_kind == "paving":
        dark = _mix(spec.ground_colour, "#000000", 0.3)
        rows = "".join(f"M0 {y:.2f}h100v1h-100z" for y in np.arange(base + verge + 6, FRAME, 9))
        slants = "".join(f"M{50 + (x - 50) * 0.75:.2f} {base + verge}L{x} 100h1.4z" for x in range(-20, 130, 20))
        parts.append(f'<path d="{rows}{slants}" fill="{dark}"/>')
    return "".join(parts)


def _body(spec: CarSpec) -> str:
    outline, windows = OUTLINES[spec.body]
    dark, r = _mix(spec.paint, "#000000", 0.55), spec.wheel_radius + 1.8
    low = _mix(spec.paint, "#ffffff", 0.75) if spec.two_tone else _mix(spec.paint, "#000000", 0.25)
    arches = "".join(f'<circle cx="{x}" cy="0" r="{r:.2f}" fill="{dark}"/>' for x in AXLES)
    return (
        f'<clipPath id="body"><path d="{outline}"/></clipPath><g clip-path="url(#body)">'
        f'<path d="{outline}" fill="{spec.paint}"/><rect x="0" y="-8" width="100" height="12" fill="{low}"/>{arches}'
        f'<path d="{windows}" fill="{spec.glass}"/>'
        '<rect x="92" y="-13" width="7" height="4.5" fill="#fff6c9"/><rect x="1" y="-13" width="5" height="5" '
        'fill="#d8232a"/></g>'
    )


def _wheels(spec: CarSpec) -> str:
    r, rim, dark = spec.wheel_radius, 0.62 * spec.wheel_radius, _mix(spec.rim_colour, "#000000", 0.6)
    if spec.rim == "disc":
        face = f'<circle r="{rim:.2f}" fill="{spec.rim_colour}"/><circle r="{rim / 3:.2f}" fill="{dark}"/>'
    elif spec.rim == "ring":
        face = (
            f'<circle r="{rim:.2f}" fill="{spec.rim_colour}"/><circle r="{rim * 0.62:.2f}" fill="{spec.tyre_colour}"/>'
        )
    else:
        spokes = {"spokes": 5, "cross": 4}[spec.rim]
        ends = [(rim * math.sin(a), -rim * math.cos(a)) for a in (2 * math.pi * k / spokes for k in range(spokes))]
        lines = "".join(f"M0 0L{x:.3f} {y:.3f}" for x, y in ends)
        face = (
            f'<circle r="{rim:.2f}" fill="{dark}"/>'
            f'<path d="{lines}" stroke="{spec.rim_colour}" stroke-width="{r * 0.22:.2f}"/>'
        )
    wheel = f'<circle r="{r:.2f}" fill="{spec.tyre_colour}"/>{face}'
    return "".join(f'<g transform="translate({x} 0)">{wheel}</g>' for x in AXLES)
