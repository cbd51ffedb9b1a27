"""Global control: common codes taken from a third picture c, pose error against the share of the looks kept.

    pose   G = sum |pose(I) - pose(Ic)| / sum |pose(I0) - pose(Ic)|             0: c's pose, 1: still a's
    looks kept = 1 - sum |f(I) - f(I0')| / sum |f(Ic') - f(I0')|, in I's pose   1: a's look, 0: c's

Fusion nets and linear mixing of layers both trade one for the other, so each is swept over ten strengths, and pose
errors are compared at equal looks kept. A "way" is one method of taking over the pose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.figures import HEADS, figures
from stylefusion_hf.evaluation.measuring import Columns, Subject, join_columns
from stylefusion_hf.evaluation.methods import TENTHS, move
from stylefusion_hf.evaluation.pairs import TEST_SEED, render, style_codes
from stylefusion_hf.evaluation.statistics import Estimate, outside_at, ratio, resamples

GLOBAL_SEED = 4_000_000  # first seed of the third codes
ALL_CODES, ROOT = "all common codes", "root code only"
MIXED = (4, 8, 16)  # pixels up to which layers are mixed
LOOKS = (0.9, 0.75)  # looks kept at which pose errors are compared, besides the share that our codes keep
ROUNDS = 400  # bootstrap resamples; every curve is refitted in each

Way = Callable[[Tensor, Tensor, float], Tensor]  # bases (B, S), third codes (B, S), strength -> style codes (B, S)


def build_ways(subject: Subject) -> dict[str, Way]:
    """Return the compared ways: common codes from c, and linear mixing of all layers up to a resolution."""
    g, fusion = subject.pipe.generator, subject.pipe.fusion
    sizes, resolutions = list(g.style_sizes.values()), list(g.style_resolutions.values())
    layer = torch.tensor(resolutions).repeat_interleave(torch.tensor(sizes)).to(g.device)

    def fused(nodes: Collection[str]) -> Way:
        def fuse(a: Tensor, c: Tensor, strength: float) -> Tensor:
            moved = move(a, c, strength)
            return fusion.fuse({n: moved if n in nodes else a for n in fusion.tree.nodes})

        return fuse

    def mixed(size: int) -> Way:
        return lambda a, c, strength: torch.where(layer <= size, move(a, c, strength), a)

    ours = {ALL_CODES: fused(fusion.tree.inner), ROOT: fused([fusion.tree.root])}
    return ours | {f"layers to {size} px": mixed(size) for size in MIXED}


@dataclass
class PoseCurve:
    """Measurements of one way: {strength: {leaf: columns}}, including the pose columns."""

    columns: dict[float, dict[str, Columns]]
    heads: dict[str, tuple[str, ...]]

    def draws(self, strength: float, counts: Tensor) -> dict[str, Tensor]:
        """Return the figures of a strength, (rounds + 1,) each: `pose`, `looks kept`, per head and per leaf."""
        found = self.columns[strength]
        first = next(iter(found.values()))
        out = {"pose": ratio(counts, first["pose"], first["pose_of"])}
        kept = {leaf: figures(columns, counts, self.heads[leaf]) for leaf, columns in found.items()}
        for key in ("transfer", *(f"transfer_{h}" for h in HEADS)):
            name = "looks kept" if key == "transfer" else key.removeprefix("transfer_")
            out[name] = torch.stack([draws[key] for draws in kept.values()]).nanmean(dim=0)
        return out | {leaf: draws["transfer"] for leaf, draws in kept.items()}

    def pose_at(self, kept: Tensor, counts: Tensor) -> Tensor:
        """Return the pose error at looks kept (rounds + 1,); NaN if the curve does not go that low."""
        points = [self.draws(s, counts) for s in self.columns]
        gained = torch.stack([1 - p["pose"] for p in points], dim=1).numpy()
        lost = torch.stack([1 - p["looks kept"] for p in points], dim=1).numpy()
        # Gain rises with what is given up, from (0, 0): the same fit as outside change against transfer.
        read = [1 - outside_at(g, x, 1 - level) for g, x, level in zip(gained, lost, kept.tolist(), strict=True)]
        return torch.tensor(read, dtype=torch.float64)


@torch.no_grad()
def pose_curves(
    subject: Subject,
    count: int,
    first_seed: int = TEST_SEED,
    only: Collection[str] | None = None,
    strengths: tuple[float, ...] = TENTHS,
) -> dict[str, PoseCurve]:
    """Measure {way: PoseCurve} over `count` bases and third codes; `only` restricts the ways."""
    ways = {name: way for name, way in build_ways(subject).items() if only is None or name in only}
    parts: dict[tuple[str, float, str], list[Columns]] = {}
    ruler, done = subject.ruler, 0
    with tqdm(total=count * len(ways) * len(strengths), desc="global", unit="picture", leave=False) as bar:
        for pairs in subject.pairs(count, first_seed):
            first = subject.first(GLOBAL_SEED) + done
            c = style_codes(subject.pipe.generator, range(first, first + len(pairs)))
            at_c, at_a = ruler.look(render(subject.pipe, c)), ruler.look(pairs.plain)
            for name, way in ways.items():
                for strength in strengths:
                    seen = ruler.look(render(subject.pipe, way(pairs.base, c, strength)))
                    # Looks are compared in I's own pose, whatever it is: pose has its own column.
                    moved = ruler.look(ruler.compare(seen, at_c).moved.images)
                    judged = ruler.compare(moved, at_a)
                    pose = {"pose": ruler.pose_gap(seen, at_c).cpu(), "pose_of": ruler.pose_gap(at_a, at_c).cpu()}
                    known = pose["pose"].isfinite() & pose["pose_of"].isfinite()
                    pose = {k: torch.where(known, v, 0) for k, v in pose.items()}
                    for leaf in subject.leaves:
                        columns = ruler.measure(judged, leaf, seen, thorough=False)
                        parts.setdefault((name, strength, leaf), []).append({**columns, **pose})
                    bar.update(len(pairs))
            done += len(pairs)
    return {
        name: PoseCurve({s: {leaf: join_columns(parts[name, s, leaf]) for leaf in subject.leaves} for s in strengths},
                        subject.heads)
        for name in ways
    }  # fmt: skip


def full_strength_rows(curves: dict[str, PoseCurve], count: int) -> dict[str, dict[str, Estimate]]:
    """Return {way: {"pose", "looks kept", head, leaf: Estimate}} at full strength."""
    counts = resamples(count)
    rows = {}
    for name, curve in curves.items():
        draws = curve.draws(max(curve.columns), counts)
        rows[name] = {figure: Estimate.of(values, count) for figure, values in draws.items()}
    return rows


def at_equal_looks(curves: dict[str, PoseCurve], count: int) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return pose errors at equal looks: {looks kept: {way: {"looks kept", "pose", "minus ours"}}}.

    The looks kept are those of all our common codes at full strength ("ours") and the levels in `LOOKS`. The
    difference is paired; above 0, our common codes bring the pose closer for the same looks.
    """
    counts = resamples(count, ROUNDS)
    ours = curves[ALL_CODES]
    levels = {"ours": ours.draws(max(ours.columns), counts)["looks kept"]}
    levels |= {str(x): torch.full_like(levels["ours"], x) for x in LOOKS}
    out: dict[str, dict[str, dict[str, Estimate]]] = {}
    for level, kept in levels.items():
        pose = {name: curve.pose_at(kept, counts) for name, curve in curves.items()}
        out[level] = {
            name: {
                "looks kept": Estimate.of(kept, count),
                "pose": Estimate.of(found, count),
                "minus ours": Estimate.of(found - pose[ALL_CODES], count),
            }
            for name, found in pose.items()
        }
    return out


def curve_points(curves: dict[str, PoseCurve], count: int) -> dict[str, list[dict[str, float]]]:
    """Return {way: [{"strength", "pose", "looks kept"}]} for the JSON and the plot."""
    once = torch.ones(1, count, dtype=torch.float64)
    out: dict[str, list[dict[str, float]]] = {}
    for name, curve in curves.items():
        for strength in curve.columns:
            draws = curve.draws(strength, once)
            point: dict[str, Any] = {k: float(draws[k][0]) for k in ("pose", "looks kept")}
            out.setdefault(name, []).append({"strength": strength} | point)
    return {k: [p for p in v if math.isfinite(p["pose"])] for k, v in out.items()}


def global_rows(subject: Subject, count: int, first_seed: int = TEST_SEED, only: Collection[str] | None = None):
    """Measure full strength only and return its `full_strength_rows`."""
    return full_strength_rows(pose_curves(subject, count, first_seed, only, (1.0,)), count)
