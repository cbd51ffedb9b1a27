"""Comparison of methods at equal transfer: sweep each method's strength and interpolate its outside change.

Every strength of every method is measured on validation pairs. Per region, the settings on the Pareto envelopes of
outside change against specific transfer S and against transfer T are kept, and only those are measured on the test
pairs, so that no setting is judged on the pairs it was chosen on. A monotone curve is fitted to each method's points;
a transfer that a method does not reach is reported as "not reached", never extrapolated. All methods share the same
pairs and the same bootstrap resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stylefusion_hf.evaluation.figures import figures
from stylefusion_hf.evaluation.measuring import Columns, Job, Subject, measure_jobs
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.pairs import TEST_SEED, VALIDATION_SEED
from stylefusion_hf.evaluation.registry import SOURCE_BLIND
from stylefusion_hf.evaluation.statistics import Estimate, outside_at, pareto, resamples, value_at

OURS = "stylefusion"
LEVELS = (0.25, 0.5)  # transfers at which methods are compared, besides ours at full strength
KINDS = ("specific", "transfer")  # both definitions of "equal transfer"
TRACED = ("outside", "leak", *KINDS)
SLACK = 1.1  # a method is "as local as ours" up to this multiple of our outside change
ROUNDS = 400  # bootstrap resamples; every curve is refitted in each


@dataclass
class Curve:
    """The kept strengths of one method and region, with O, leak, S and T of every resample, (ROUNDS + 1,) each."""

    strengths: list[float] = field(default_factory=list)
    outside: list[Tensor] = field(default_factory=list)
    leak: list[Tensor] = field(default_factory=list)
    specific: list[Tensor] = field(default_factory=list)
    transfer: list[Tensor] = field(default_factory=list)

    def add(self, strength: float, columns: Columns, counts: Tensor, heads: tuple[str, ...]) -> None:
        """Add the figures of a strength; S is undefined if no unrelated source was measured."""
        found = figures(columns, counts, heads)
        self.strengths.append(strength)
        for name in TRACED:
            undefined = torch.full((len(counts),), math.nan, dtype=torch.float64)
            getattr(self, name).append(found.get(name, undefined))

    def at(self, wanted: Tensor, by: str = "transfer") -> Tensor:
        """Return O at a transfer (`by`: one of `KINDS`) for every resample, (ROUNDS + 1,); NaN where not reached."""
        return self._read(outside_at, self.outside, wanted, by)

    def leak_at(self, wanted: Tensor, by: str = "transfer") -> Tensor:
        """Return the leak at a transfer, as `at` does."""
        return self._read(value_at, self.leak, wanted, by)

    def _read(self, read: Any, values: list[Tensor], wanted: Tensor, by: str) -> Tensor:
        if not self.strengths:
            return torch.full_like(wanted, math.nan)
        v, t = torch.stack(values, dim=1).numpy(), torch.stack(getattr(self, by), dim=1).numpy()
        rows = zip(v, t, wanted.tolist(), strict=True)
        return torch.tensor([read(a, b, level) for a, b, level in rows], dtype=torch.float64)

    def envelope(self, by: str = "transfer") -> Curve:
        """Return the Pareto envelope: no other setting has as much transfer for less outside change."""
        return self._settings(pareto([float(o[0]) for o in self.outside], [float(t[0]) for t in getattr(self, by)]))

    def only(self, strengths: Collection[float]) -> Curve:
        """Return the curve of some of the strengths."""
        return self._settings([i for i, strength in enumerate(self.strengths) if strength in strengths])

    def _settings(self, kept: Sequence[int]) -> Curve:
        """Return the curve of these settings, by index: several may have the same strength."""
        return Curve([self.strengths[i] for i in kept], *([getattr(self, n)[i] for i in kept] for n in TRACED))

    def most_specific(self, outside: float) -> float:
        """Return the strength of largest S with O of at most `outside`; if there is none, that of smallest O."""
        points = [(float(s[0]), float(o[0]), u) for s, o, u in
                  zip(self.specific, self.outside, self.strengths, strict=True)]  # fmt: skip
        local = [p for p in points if p[1] <= outside and math.isfinite(p[0])]
        return max(local)[2] if local else min((o, u) for _, o, u in points)[1]

    def points(self) -> list[dict[str, float]]:
        """Return one dict of strength and figures per setting, for the plot and the JSON."""
        columns = {"strength": self.strengths} | {n: [float(x[0]) for x in getattr(self, n)] for n in TRACED}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def require_ours(methods: dict[str, Method]) -> dict[str, Method]:
    """Return the methods; ValueError if ours, which the others are compared with, is not among them."""
    if OURS not in methods:
        raise ValueError(f"the comparison needs the method {OURS!r}; given: {', '.join(methods)}")
    return methods


@dataclass
class Sweep:
    """Results on the test pairs, all methods at all kept strengths.

    `curves`: {method: {region: Curve}}. `chosen`: {method: {region: strength at which it is as local as ours}}.
    `local`: {method: {region: {figure: (ROUNDS + 1,)}}} at those strengths. `kept`: the kept strengths as text.
    """

    curves: dict[str, dict[str, Curve]]
    chosen: dict[str, dict[str, float]]
    local: dict[str, dict[str, dict[str, Tensor]]]
    kept: dict[str, list[str]]


def sweep(
    subject: Subject,
    methods: Mapping[str, Method],
    validation: int,
    test: int,
    when_validated: Callable[[dict[str, dict[str, Curve]]], None] | None = None,
) -> Sweep:
    """Choose strengths on validation pairs and measure them on test pairs.

    Args:
        subject: the model with its judges.
        methods: ours among them.
        validation, test: numbers of pairs.
        when_validated: called with {method: {region: Curve of the chosen strengths on the validation pairs}}, before
            the test pairs, which take about as long.
    """
    everything = [(m, leaf, s) for m in methods for leaf in subject.leaves for s in methods[m].strengths]
    measured = measure_jobs(
        subject, methods, everything, validation, VALIDATION_SEED, progress="strengths, validation", specific=True
    )
    heads, counts = subject.heads, resamples(validation, ROUNDS)
    jobs: list[Job] = []
    chosen: dict[str, dict[str, float]] = {name: {} for name in methods}
    kept: dict[str, list[str]] = {name: [] for name in methods}
    validated: dict[str, dict[str, Curve]] = {name: {} for name in methods}
    swept = {(m, leaf): Curve() for m in methods for leaf in subject.leaves}
    for (name, leaf, strength), columns in measured.items():
        swept[name, leaf].add(strength, columns, counts, heads[leaf])
    for leaf in subject.leaves:
        ours = swept[OURS, leaf]
        limit = SLACK * float(ours.outside[ours.strengths.index(1.0)][0])
        for name, method in methods.items():
            curve = swept[name, leaf]
            full = method.strengths[-1] if name in (OURS, *SOURCE_BLIND) else curve.most_specific(limit)
            chosen[name][leaf] = full
            envelope = {s for by in KINDS for s in curve.envelope(by).strengths} | {full}
            jobs += [(name, leaf, s) for s in sorted(envelope)]
            validated[name][leaf] = curve.only(envelope)
            kept[name].append(f"{leaf}: {', '.join(f'{s:.3g}' for s in sorted(envelope))}")
    if when_validated:
        when_validated(validated)
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
    """Return {method: {figure: mean over regions}} at the strengths at which methods are as local as ours."""
    rows: dict[str, dict[str, Estimate]] = {}
    for name, by_leaf in found.local.items():
        rows[name] = {}
        for figure in ("specific", "recognition", "transfer", "outside", "leak"):
            draws = [draws[figure] for draws in by_leaf.values()]
            rows[name][figure] = Estimate.of(torch.stack(draws).nanmean(dim=0), test)
    return rows


def is_reached(outside: Tensor) -> bool:
    """Return whether a curve reaches a transfer: over all pairs, and in at least 97.5 % of the resamples."""
    return math.isfinite(float(outside[0])) and float(outside.isfinite().double().mean()) >= 0.975


def at_full_strength(ours: Mapping[str, Curve], by: str = "transfer") -> dict[str, Tensor]:
    """Return {region: our transfer at full strength, of every resample}."""
    return {leaf: getattr(curve, by)[curve.strengths.index(1.0)] for leaf, curve in ours.items()}


def compared_transfers(full: Mapping[str, Tensor], level: float | str) -> dict[str, Tensor]:
    """Return {region: transfer to compare at}: one of `LEVELS`, or with "ours" our own at full strength."""
    return {leaf: t if level == "ours" else torch.full_like(t, float(level)) for leaf, t in full.items()}


def compare(curves: Mapping[str, Mapping[str, Curve]], test: int, by: str = "transfer") -> dict[str, Any]:
    """Return O at equal transfer: {level: {method: {region: Estimate, "ratio", "leak", "regions"}}}.

    "ratio" is the geometric mean, over the regions in which both methods reach the transfer, of the method's O divided
    by ours in the same resample (a paired comparison); above 1, our model changes less outside. "regions" is their
    number and "leak" the method's mean leak over them. by: "specific" or "transfer".
    """
    leaves = list(curves[OURS])
    full = at_full_strength(curves[OURS], by)
    out: dict[str, Any] = {}
    for level in (*LEVELS, "ours"):
        wanted = compared_transfers(full, level)
        ours = {leaf: curves[OURS][leaf].at(wanted[leaf], by) for leaf in leaves}
        table: dict[str, Any] = {}
        for name, by_leaf in curves.items():
            theirs = {leaf: by_leaf[leaf].at(wanted[leaf], by) for leaf in leaves}
            row: dict[str, Any] = {leaf: Estimate.of(o, test) for leaf, o in theirs.items()}
            both = [leaf for leaf in leaves if is_reached(theirs[leaf]) and is_reached(ours[leaf])]
            logs = [(theirs[leaf].clamp_min(1e-6) / ours[leaf].clamp_min(1e-6)).log() for leaf in both]
            leaks = [by_leaf[leaf].leak_at(wanted[leaf], by) for leaf in both]
            nothing = torch.full((ROUNDS + 1,), math.nan)
            row["regions"] = len(both)
            # A few resamples of each region do not reach it: those of the others count there.
            row["ratio"] = Estimate.of(torch.stack(logs).nanmean(dim=0).exp() if both else nothing, test)
            row["leak"] = Estimate.of(torch.stack(leaks).nanmean(dim=0) if both else nothing, test)
            table[name] = row
        out[str(level)] = table
    out[f"{by}, ours"] = {leaf: Estimate.of(full[leaf], test) for leaf in leaves}
    return out
