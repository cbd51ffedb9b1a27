"""Walks between codes: the timeline of frames, the codes at each frame, and the fused result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from stylefusion_hf.core.checks import check_choice, check_count, short
from stylefusion_hf.core.codes import LATENT_SPACES, Code, Row, check_shapes, labels_to_tensor, seeds_to_z
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.models import latents
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.pipelines import steps as _steps

BASE = ""  # the base's key among node names; no node has an empty name
MAX_FRAMES = 10**6
DEFAULT_STEPS = 30

# space of a walk -> spaces of the keyframe codes it accepts (a seed is a z)
SPACES = {"w": ("z", "w", "w+"), "s": LATENT_SPACES, "z": ("z",)}

# easing -> map from elapsed time between two keyframes to fraction of the path, both 0 to 1
EASINGS: dict[str, Callable[[float], float]] = {
    "linear": lambda t: t,
    "smooth": lambda t: t * t * (3 - 2 * t),  # at rest at every keyframe
}


# ----------------------------------------------------------------------------------------------------
# Time.


@dataclass(frozen=True)
class Position:
    """Position of a frame: the fraction `t` in [0, 1) of the path from keyframe `start` to keyframe `end`."""

    start: int
    end: int
    t: float


@dataclass(frozen=True)
class Timeline:
    """The frames of a walk through keyframes: one frame on every keyframe, the others evenly spaced between them.

    Args:
        keyframes: number of keyframes, at least 2.
        frames: number of frames of the whole walk; the count between two keyframes may differ by one.
        loop: continue from the last keyframe to the first, which is not repeated at the end.
        easing: a name of EASINGS.
    """

    keyframes: int
    frames: int
    loop: bool = False
    easing: str = "linear"

    def marks(self) -> list[int]:
        """Return the frame index of each keyframe."""
        return self._marks()[: self.keyframes]

    def positions(self) -> Iterator[Position]:
        """Yield one position per frame, in order."""
        marks, ease = self._marks(), EASINGS[self.easing]
        for k, (first, after) in enumerate(pairwise(marks)):
            for frame in range(first, after):
                yield Position(k, (k + 1) % self.keyframes, ease((frame - first) / (after - first)))
        if not self.loop:
            yield Position(self.keyframes - 1, self.keyframes - 1, 0.0)

    def _marks(self) -> list[int]:  # including the end of the last segment
        segments = self.keyframes - (not self.loop)
        intervals = self.frames - (not self.loop)
        return [(2 * k * intervals + segments) // (2 * segments) for k in range(segments + 1)]  # rounded


def make_timeline(keyframes: int, frames: int | None, steps: int | None, loop: bool, easing: str) -> Timeline:
    """Make a timeline of `frames` in total, or of `steps` per keyframe; ValueError if that is impossible."""
    if keyframes < 2:
        raise ValueError(
            "every code is a single one, so nothing moves: give base, a region or a node a list of at least two codes"
        )
    check_choice("easing", easing, EASINGS)
    if frames is not None and steps is not None:
        raise ValueError(
            f"frames={short(frames)} and steps={short(steps)} both set the length of the walk: give one of them"
        )
    if frames is None:
        steps = DEFAULT_STEPS if steps is None else steps
        steps = check_count("steps", steps, MAX_FRAMES)
        frames = steps * keyframes if loop else steps * (keyframes - 1) + 1
    frames = check_count("frames", frames, MAX_FRAMES)
    if frames < keyframes:
        raise ValueError(f"frames is {frames}, fewer than the {keyframes} keyframes, each of which needs a frame")
    return Timeline(keyframes, frames, bool(loop), easing)


# ----------------------------------------------------------------------------------------------------
# Codes.


def slerp(a: torch.Tensor, b: torch.Tensor, t: float) -> torch.Tensor:
    """Interpolate from a to b (each (1, D)) along the great circle, with linearly interpolated length.

        sin((1 - t) angle) / sin(angle) a/|a| + sin(t angle) / sin(angle) b/|b|

    (Shoemake, Animating Rotation with Quaternion Curves, SIGGRAPH 1985; White, arXiv 1609.04468, for latents), in the
    equivalent form cos(t angle) u + sin(t angle) v, where u = a/|a| and v is the unit vector orthogonal to u toward
    b. It avoids dividing by a small sine when a and b are nearly parallel. Opposite vectors have no unique shortest
    path: the path turns through the axis of a's smallest component, which is deterministic. A zero vector has no
    direction: the path from or to it is straight.

    Computed in float64 on the CPU; returned in a's dtype and on its device.
    """
    x, y = a.detach().to("cpu", torch.float64), b.detach().to("cpu", torch.float64)
    long_x, long_y = x.norm(), y.norm()
    if long_x == 0 or long_y == 0:
        return (x + t * (y - x)).to(a)
    u, target = x / long_x, y / long_y
    cosine = (u * target).sum()
    across = target - cosine * u
    sine = across.norm()
    if sine < 1e-9 and cosine < 0:  # opposite
        across = torch.zeros_like(u)
        across[0, u.abs().argmin()] = 1.0
        across = across - (across * u).sum() * u
    angle = torch.atan2(sine, cosine)
    v = across / across.norm().clamp_min(1e-300)
    return ((torch.cos(t * angle) * u + torch.sin(t * angle) * v) * (long_x + t * (long_y - long_x))).to(a)


def check_recipe(recipe: Recipe, space: str) -> None:
    """Raise ValueError, naming the code, if a keyframe's space or label does not allow a walk through `space`."""
    for name, rows in recipe.groups().items():
        for row in rows if len(rows) > 1 else ():
            given = row.space if isinstance(row, Code) else "z"
            if given not in SPACES[space]:
                reason = {
                    "z": "only seeds and z lie on its sphere (an image is encoded to w+, which has no z)",
                    "w": "a style code does not come from a single w",
                }[space]
                fitting = [other for other, taken in SPACES.items() if given in taken]
                raise ValueError(
                    f"{name} has a keyframe in {given}, and the walk goes through {space}: {reason}. Choose"
                    f" space={' or '.join(map(repr, fitting))}"
                )
    if space == "z" and recipe.class_labels is not None and len(recipe.class_labels) > 1:
        raise ValueError("class_labels are mapped together with z and cannot be interpolated: choose space='w'")


@dataclass(frozen=True, eq=False)
class Track:
    """The path of one code through the keyframes.

    Args:
        keys: its style codes at the keyframes, (K, S).
        zs: the z (1, z_dim) they were mapped from, for walks along the sphere of z; otherwise None.
    """

    keys: torch.Tensor
    zs: tuple[torch.Tensor, ...] | None = None

    @property
    def moves(self) -> bool:
        return bool((self.keys != self.keys[:1]).any())

    def at(
        self, positions: Sequence[Position], to_style: Callable[[list[Row]], torch.Tensor] | None = None
    ) -> torch.Tensor:
        """Return the style codes (B, S) at `positions`, or (1, S) for a code that does not move.

        On a keyframe they are exactly the keyframe's. Style codes (and truncation) are affine in w, so a line in w is
        a line in s, and both are computed in s. Walks along z need `to_style`.
        """
        if not self.moves:
            return self.keys[:1]
        start, end = self.keys[[p.start for p in positions]], self.keys[[p.end for p in positions]]
        if self.zs is None or to_style is None:
            return start + start.new_tensor([[p.t] for p in positions]) * (end - start)
        ends = [(self.zs[p.start], self.zs[p.end], p.t) for p in positions]
        between = [i for i, (a, b, t) in enumerate(ends) if t > 0 and not torch.equal(a, b)]
        if between:
            start[between] = to_style([Code(slerp(*ends[i]), "z") for i in between])
        return start


@dataclass(frozen=True, eq=False)
class Walk:
    """A walk with mapped keyframes: everything needed to make its frames.

    Args:
        recipe: recipe of the keyframes.
        timeline: positions of the frames.
        nodes: node -> its track; nodes with the same keyframes share one.
        strengths: node -> how far it moves from the base to its code.
        base: the base's track, if a strength needs it.
    """

    recipe: Recipe
    timeline: Timeline
    nodes: dict[str, Track]
    strengths: dict[str, float]
    base: Track | None


def plan_walk(
    generator: StyleGenerator,
    fusion: FusionHierarchy,
    recipe: Recipe,
    timeline: Timeline,
    space: str,
    device: Any,
) -> Walk:
    """Map every keyframe on its own, as the fuse pipeline does, so that the numbers are identical.

    ValueError for names, shapes and labels that do not fit the models.
    """
    check_shapes(generator, recipe.groups())
    _steps.check_cutoff(generator, recipe)
    moves = any(len(rows) > 1 for rows in recipe.groups().values())
    if space == "z" and moves and generator.config.label_dim and recipe.class_labels is None:
        raise ValueError(
            "each seed has its own class, which is mapped together with z and cannot be interpolated: give one class"
            " in class_labels, or choose space='w'"
        )
    settings = _steps.node_settings(fusion.tree, recipe)
    keyframes: list[dict[str, torch.Tensor]] = []
    for k in range(recipe.num_images):
        one = recipe.select(k)
        codes, at, base = _steps.style_codes(generator, one, _steps.node_settings(fusion.tree, one), device)
        places = {**at, BASE: base} if base else at
        keyframes.append({node: codes[place] for node, place in places.items()})
    tracks: dict[int, Track] = {}

    def track(node: str, rows: tuple[Row, ...]) -> Track:
        if id(rows) not in tracks:
            zs = None
            if space == "z" and len(rows) > 1:
                z_dim = generator.config.z_dim
                zs = tuple(row.tensor if isinstance(row, Code) else seeds_to_z([row], z_dim) for row in rows)
            tracks[id(rows)] = Track(torch.cat([keyframe[node] for keyframe in keyframes]), zs)
        return tracks[id(rows)]

    return Walk(
        recipe=recipe,
        timeline=timeline,
        nodes={node: track(node, setting.rows) for node, setting in settings.items()},
        strengths={node: setting.strength for node, setting in settings.items()},
        base=track(BASE, recipe.base) if BASE in keyframes[0] else None,
    )


def fuse_positions(
    generator: StyleGenerator, fusion: FusionHierarchy, walk: Walk, positions: Sequence[Position], device: Any
) -> torch.Tensor:
    """Return the fused style codes (B, S) at `positions`, float32."""
    labels, psi = walk.recipe.class_labels, walk.recipe.truncation_psi

    def to_style(rows: list[Row]) -> torch.Tensor:  # maps z between keyframes
        table = None
        if labels is not None:
            table = labels_to_tensor(labels, generator.config.label_dim).expand(len(rows), -1)
        cutoff = walk.recipe.truncation_cutoff
        return latents.codes_to_style(generator, rows, table, 1.0 if psi is None else psi, cutoff, device)

    tracks = {id(track): track for track in (*walk.nodes.values(), walk.base) if track is not None}
    codes = {key: track.at(positions, to_style) for key, track in tracks.items()}
    if len(codes) == 1:
        return next(iter(codes.values())).expand(len(positions), -1).clone()  # fusing equal codes gives that code
    base = None if walk.base is None else codes[id(walk.base)]
    given = {
        node: _steps.apply_strength(codes[id(track)], base, walk.strengths[node]) for node, track in walk.nodes.items()
    }
    return fusion(given, return_dict=False)[0].expand(len(positions), -1).contiguous()
