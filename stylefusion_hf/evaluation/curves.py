"""Methods compared at equal transfer: each one's strength is swept, and outside change is read off where they agree.

On validation pairs every strength of every method is measured and the Pareto envelopes kept, per region: of outside
change against specific transfer S and against transfer T. On test pairs only those strengths are measured again: what
was chosen is not judged on the pairs that it was chosen on. A rising curve is fitted to each method's points; a
transfer that a method never reaches is "not reached", never extrapolated. All methods see the same pairs, and the
intervals come from the same resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stylefusion_hf.evaluation.figures import figures
from stylefusion_hf.evaluation.measuring import Columns, Job, Subject, measure_jobs
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.pairs import TEST_SEED, VALIDATION_SEED
from stylefusion_hf.evaluation.registry import IGNORING
from stylefusion_hf.evaluation.statistics import Estimate, outside_at, pareto, resamples, value_at

OURS = "stylefusion"
LEVELS = (0.25, 0.5)  # transfers at which methods are compared, besides our own at full strength
KINDS = ("specific", "transfer")  # what "equal transfer" means: S first
TRACED = ("outside", "leak", *KINDS)
SLACK = 1.1  # a method is "as local as ours" up to this multiple of our outside change
ROUNDS = 400  # resamples: each fits every curve anew


@dataclass
class Curve:
    """One method and region: the kept strengths with O, leak, S and T of every resample, (ROUNDS + 1,) each."""

    strengths: list[float] = field(default_factory=list)
    outside: list[Tensor] = field(default_factory=list)
    leak: list[Tensor] = field(default_factory=list)
    specific: list[Tensor] = field(default_factory=list)
    transfer: list[Tensor] = field(default_factory=list)

    def add(self, strength: float, columns: Columns, counts: Tensor, heads: tuple[str, ...]) -> None:
        """A strength's points; S is undefined where no stranger was swapped in."""
        found = figures(columns, counts, heads)
        self.strengths.append(strength)
        for name in TRACED:
            undefined = torch.full((len(counts),), math.nan, dtype=torch.float64)
            getattr(self, name).append(found.get(name, undefined))

    def at(self, wanted: Tensor, by: str = "transfer") -> Tensor:
        """O at a transfer (`by`: one of `KINDS`), of every resample, (ROUNDS + 1,); NaN where that is not reached."""
        return self._read(outside_at, self.outside, wanted, by)

    def leak_at(self, wanted: Tensor, by: str = "transfer") -> Tensor:
        """The leak at a transfer, likewise."""
        return self._read(value_at, self.leak, wanted, by)

    def _read(self, read: Any, values: list[Tensor], wanted: Tensor, by: str) -> Tensor:
        if not self.strengths:
            return torch.full_like(wanted, math.nan)
        v, t = torch.stack(values, dim=1).numpy(), torch.stack(getattr(self, by), dim=1).numpy()
        rows = zip(v, t, wanted.tolist(), strict=True)
        return torch.tensor([read(a, b, level) for a, b, level in rows], dtype=torch.float64)

    def envelope(self, by: str = "transfer") -> Curve:
        """Without the settings that another one beats: as much transfer for less outside change."""
        kept = pareto([float(o[0]) for o in self.outside], [float(t[0]) for t in getattr(self, by)])
        return Curve([self.strengths[i] for i in kept], *([getattr(self, n)[i] for i in kept] for n in TRACED))

    def most_specific(self, outside: float) -> float:
        """The strength of the largest S among those whose O is at most `outside`; the smallest O where none is."""
        points = [(float(s[0]), float(o[0]), u) for s, o, u in
                  zip(self.specific, self.outside, self.strengths, strict=True)]  # fmt: skip
        local = [p for p in points if p[1] <= outside and math.isfinite(p[0])]
        return max(local)[2] if local else min((o, u) for _, o, u in points)[1]

    def points(self) -> list[dict[str, float]]:
        """For the plot and the JSON."""
        columns = {"strength": self.strengths} | {n: [float(x[0]) for x in getattr(self, n)] for n in TRACED}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def require_ours(methods: dict[str, Method]) -> dict[str, Method]:
    """The methods; ValueError if our own is not among them, since the others are compared with it."""
    if OURS not in methods:
        raise ValueError(f"the comparison needs the method {OURS!r}; given: {', '.join(methods)}")
    return methods


@dataclass
class Sweep:
    """All methods at all kept strengths, on the test pairs.

    `curves`: {method: {region: Curve}}. `chosen`: {method: {region: the strength at which it is as local as ours}}.
    `local`: {method: {region: {figure: (ROUNDS + 1,)}}}, all figures there. `kept`: the envelopes as text.
    """

    curves: dict[str, dict[str, Curve]]
    chosen: dict[str, dict[str, float]]
    local: dict[str, dict[str, dict[str, Tensor]]]
    kept: dict[str, list[str]]


def sweep(subject: Subject, methods: Mapping[str, Method], validation: int, test: int) -> Sweep:
    """Choose strengths on validation pairs, measure those on test pairs."""
    everything = [(m, leaf, s) for m in methods for leaf in subject.leaves for s in methods[m].strengths]
    measured = measure_jobs(
        subject, methods, everything, validation, VALIDATION_SEED, progress="strengths, validation", specific=True
    )
    heads, ones = subject.heads, torch.ones(1, validation, dtype=torch.float64)
    jobs: list[Job] = []
    chosen: dict[str, dict[str, float]] = {name: {} for name in methods}
    kept: dict[str, list[str]] = {name: [] for name in methods}
    swept = {(m, leaf): Curve() for m in methods for leaf in subject.leaves}
    for (name, leaf, strength), columns in measured.items():
        swept[name, leaf].add(strength, columns, ones, heads[leaf])
    for leaf in subject.leaves:
        ours = swept[OURS, leaf]
        limit = SLACK * float(ours.outside[ours.strengths.index(1.0)][0])
        for name, method in methods.items():
            curve = swept[name, leaf]
            full = method.strengths[-1] if name in (OURS, *IGNORING) else curve.most_specific(limit)
            chosen[name][leaf] = full
            envelope = {s for by in KINDS for s in curve.envelope(by).strengths} | {full}
            jobs += [(name, leaf, s) for s in sorted(envelope)]
            kept[name].append(f"{leaf}: {', '.join(f'{s:.3g}' for s in sorted(envelope))}")
    recognized = {(name, leaf, s) for name, by_leaf in chosen.items() for leaf, s in by_leaf.items()}
    measured = measure_jobs(
        subject, methods, jobs, test, TEST_SEED, progress="strengths, test", specific=True, recognized=recognized
    )
    counts = resamples(test, ROUNDS)
    curves = {name: {leaf: Curve() for leaf in subject.leaves} for name in methods}
    local: dict[str, dict[str, dict[str, Tensor]]] = {name: {} for name in methods}
    for (name, leaf, strength), columns in measured.items():
        curves[name][leaf].add(strength, columns, counts, heads[leaf])
        if strength == chosen[name][leaf]:
            local[name][leaf] = figures(columns, counts, heads[leaf])
    return Sweep(curves, chosen, local, kept)


def local_rows(found: Sweep, test: int) -> dict[str, dict[str, Estimate]]:
    """{method: {figure: its mean over regions}} at the strengths that are as local as ours."""
    rows: dict[str, dict[str, Estimate]] = {}
    for name, by_leaf in found.local.items():
        rows[name] = {}
        for figure in ("specific", "recognition", "transfer", "outside", "leak"):
            draws = [draws[figure] for draws in by_leaf.values()]
            rows[name][figure] = Estimate.of(torch.stack(draws).nanmean(dim=0), test)
    return rows


def reached(outside: Tensor) -> bool:
    """Whether a curve gets to a transfer, in all pairs together and in nearly every resample."""
    return math.isfinite(float(outside[0])) and float(outside.isfinite().double().mean()) >= 0.975


def at_full_strength(ours: Mapping[str, Curve], by: str = "transfer") -> dict[str, Tensor]:
    """{region: our transfer as the model is used, of every resample}."""
    return {leaf: getattr(curve, by)[curve.strengths.index(1.0)] for leaf, curve in ours.items()}


def transfers(full: Mapping[str, Tensor], level: float | str) -> dict[str, Tensor]:
    """{region: the transfer to compare at}: a number of `LEVELS`, or "ours" for what we reach at full strength."""
    return {leaf: t if level == "ours" else torch.full_like(t, float(level)) for leaf, t in full.items()}


def compare(curves: Mapping[str, Mapping[str, Curve]], test: int, by: str = "transfer") -> dict[str, Any]:
    """O of every method at equal transfer: {level: {method: {region: Estimate, "ratio", "leak", "regions"}}}.

    "ratio" is the geometric mean over regions of the method's O divided by ours at the same transfer, in the same
    resample (a paired comparison), over the "regions" that both reach; above 1 we move less outside. "leak" is the
    method's mean leak over them. by: "specific" or "transfer".
    """
    leaves = list(curves[OURS])
    full = at_full_strength(curves[OURS], by)
    out: dict[str, Any] = {}
    for level in (*LEVELS, "ours"):
        wanted = transfers(full, level)
        ours = {leaf: curves[OURS][leaf].at(wanted[leaf], by) for leaf in leaves}
        table: dict[str, Any] = {}
        for name, by_leaf in curves.items():
            theirs = {leaf: by_leaf[leaf].at(wanted[leaf], by) for leaf in leaves}
            row: dict[str, Any] = {leaf: Estimate.of(o, test) for leaf, o in theirs.items()}
            both = [leaf for leaf in leaves if reached(theirs[leaf]) and reached(ours[leaf])]
            logs = [(theirs[leaf].clamp_min(1e-6) / ours[leaf].clamp_min(1e-6)).log() for leaf in both]
            leaks = [by_leaf[leaf].leak_at(wanted[leaf], by) for leaf in both]
            nothing = torch.full((ROUNDS + 1,), math.nan)
            row["regions"] = len(both)
            row["ratio"] = Estimate.of(torch.stack(logs).mean(dim=0).exp() if both else nothing, test)
            row["leak"] = Estimate.of(torch.stack(leaks).mean(dim=0) if both else nothing, test)
            table[name] = row
        out[str(level)] = table
    out[f"{by}, ours"] = {leaf: Estimate.of(full[leaf], test) for leaf in leaves}
    return out
