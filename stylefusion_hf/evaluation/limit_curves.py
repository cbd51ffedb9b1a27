"""Upper bounds beside the methods on the same few pairs: curves, and the share of the possible gain of each method."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.curves import (
    LEVELS,
    OURS,
    ROUNDS,
    Curve,
    at_full_strength,
    compared_transfers,
    is_reached,
)
from stylefusion_hf.evaluation.gates import LearnedGates
from stylefusion_hf.evaluation.judged import JudgedPairs, join_images, join_judged
from stylefusion_hf.evaluation.limits import all_limits
from stylefusion_hf.evaluation.measurement import LARGEST_SIZE
from stylefusion_hf.evaluation.measuring import Subject, measure_jobs
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.pairs import Pairs, downsample, join_pairs, render
from stylefusion_hf.evaluation.statistics import Estimate, resamples

BASELINE = "editing-in-style-simultaneous"
LIMITS = {
    "static": "limit: one gate per region",
    "gate": "limit: a gate per pair",
    "code": "limit: a free code per pair",
}
SHARES = (0.25, 0.4, 0.6, 0.8, 1.0)


def limits(
    subject: Subject,
    methods: Mapping[str, Method],
    kept: Mapping[str, Mapping[str, Curve]],
    count: int,
    lambdas: Sequence[float] = (0.25, 1.0, 4.0),
    steps: int = 150,
) -> dict[str, dict[str, Curve]]:
    """Return curves of the three limits (see `evaluation.limits`) and of the methods' kept strengths.

    All are measured on the same few pairs. The limits are optimized on the model's own features and masks and scored
    here by the judges. Each optimized code is also scored at SHARES of the way from the base, since below the weakest
    trade-off a line from (0, 0) would not be a lower bound.
    """
    pairs, judged = draw_small_pairs(subject, count)
    gates = methods.get("static-gates")
    start = gates if isinstance(gates, LearnedGates) else None
    score = start.score if start else None
    found = all_limits(subject.pipe, pairs, subject.leaves, lambdas, steps, start, score, chunk=subject.batch)
    jobs = [(m, leaf, s) for m in kept for leaf in subject.leaves for s in kept[m][leaf].strengths]
    measured = [(*job, c) for job, c in measure_jobs(subject, methods, jobs, count, progress="limit pairs").items()]
    for kind, codes in found.items():
        for (weight, leaf), s in tqdm(codes.items(), desc=f"judging {kind}", leave=False):
            for share in SHARES:
                parts = (pairs.base + share * (s - pairs.base)).split(subject.batch)
                with torch.no_grad():
                    after = join_images([subject.ruler.look(render(subject.pipe, x)) for x in parts])
                    columns = subject.ruler.measure(judged, leaf, after, thorough=False)
                measured.append((LIMITS[kind], leaf, weight, columns))
    counts = resamples(count, ROUNDS)
    curves: dict[str, dict[str, Curve]] = {}
    for name, leaf, strength, columns in measured:
        by_leaf = curves.setdefault(name, {leaf: Curve() for leaf in subject.leaves})
        by_leaf[leaf].add(strength, columns, counts, subject.heads[leaf])
    for name in LIMITS.values():
        curves[name] = {leaf: curve.envelope() for leaf, curve in curves[name].items()}
    return curves


def draw_small_pairs(subject: Subject, count: int) -> tuple[Pairs, JudgedPairs]:
    """Draw and judge test pairs a batch at a time; of their pictures and masks, keep those of the measuring size."""
    small, judged = [], []
    for pairs in subject.pairs(count):
        judged.append(subject.compare(pairs))
        small.append(downsample(pairs, LARGEST_SIZE))
    return join_pairs(small), join_judged(judged)


def shares(curves: Mapping[str, Mapping[str, Curve]], count: int) -> dict[str, dict[str, Any]]:
    """Return each method's share of the gain of a gate per pair over Editing in Style, by level and method.

    (O_EiS - O) / (O_EiS - O_limit) at equal transfer, where each O is a geometric mean over the regions in which all
    three reach that transfer. Empty without Editing in Style.
    """
    if BASELINE not in curves:
        return {}
    leaves, out = list(curves[OURS]), {}
    full = at_full_strength(curves[OURS])
    for level in (*LEVELS, "ours"):
        table: dict[str, Any] = {}
        for name, by_leaf in curves.items():
            logs: dict[str, list[Tensor]] = {"low": [], "high": [], "own": []}
            for leaf in leaves:
                wanted = compared_transfers(full, level)[leaf]
                three = [c[leaf].at(wanted) for c in (curves[LIMITS["gate"]], curves[BASELINE], by_leaf)]
                if all(is_reached(x) for x in three):
                    undefined = torch.stack(three).isnan().any(dim=0)  # a few resamples, where other regions count
                    for key, x in zip(logs, three, strict=True):
                        logs[key].append(x.clamp_min(1e-6).log().masked_fill(undefined, math.nan))
            if not logs["own"]:
                continue
            low, high, own = (torch.stack(x).nanmean(dim=0).exp() for x in logs.values())
            gained = torch.where(high > low, (high - own) / (high - low), math.nan)
            table[name] = {"share": Estimate.of(gained, count), "regions": len(logs["own"])}
        out[str(level)] = table
    return out
