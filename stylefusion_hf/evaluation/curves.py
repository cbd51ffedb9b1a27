"""Methods compared at equal transfer: each one's strength is swept, and outside change is read off where T agrees.

On validation pairs every strength of every method is measured and the Pareto envelope kept, per region. On test pairs
only those strengths are measured again: what was chosen is not judged on the pairs that it was chosen on. A rising
curve O(T) is fitted to each method's points; a transfer that a method never reaches is "not reached", never
extrapolated. All methods see the same pairs, and the intervals come from the same resamples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.gates import LearnedGates
from stylefusion_hf.evaluation.limits import all_limits
from stylefusion_hf.evaluation.measuring import Columns, Job, Subject, measure_jobs
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.pairs import TEST_SEED, VALIDATION_SEED, draw_pairs, render
from stylefusion_hf.evaluation.ruler import transfer
from stylefusion_hf.evaluation.statistics import Estimate, outside_at, pareto, ratio, resamples

OURS, BASELINE = "stylefusion", "editing-in-style-simultaneous"
LIMITS = {"static": "limit: one gate a region", "gate": "limit: a gate a pair", "code": "limit: a free code a pair"}
LEVELS = (0.25, 0.5)  # transfers at which methods are compared, besides our own at full strength
SHARES = (0.25, 0.4, 0.6, 0.8, 1.0)
ROUNDS = 400  # resamples: each fits every curve anew


@dataclass
class Curve:
    """One method and region: the kept strengths with O and T of every resample on the test pairs."""

    strengths: list[float] = field(default_factory=list)
    outside: list[Tensor] = field(default_factory=list)  # (ROUNDS + 1,) each
    transfer: list[Tensor] = field(default_factory=list)

    def add(self, strength: float, columns: Columns, counts: Tensor, heads: tuple[str, ...]) -> None:
        """A strength's points."""
        w = counts * columns["counts"].double()
        self.strengths.append(strength)
        self.outside.append(ratio(w, columns["outside"], columns["outside_of"]))
        self.transfer.append(transfer(columns, w, heads))

    def at(self, wanted: Tensor) -> Tensor:
        """O at a transfer, of every resample, (ROUNDS + 1,); NaN where that is not reached."""
        if not self.strengths:
            return torch.full_like(wanted, math.nan)
        o, t = torch.stack(self.outside, dim=1).numpy(), torch.stack(self.transfer, dim=1).numpy()
        rows = zip(o, t, wanted.tolist(), strict=True)
        return torch.tensor([outside_at(a, b, level) for a, b, level in rows], dtype=torch.float64)

    def envelope(self) -> Curve:
        """Without the settings that another beats: of codes optimised for these very pairs, the best are the limit."""
        kept = pareto([float(o[0]) for o in self.outside], [float(t[0]) for t in self.transfer])
        return Curve(
            [self.strengths[i] for i in kept], [self.outside[i] for i in kept], [self.transfer[i] for i in kept]
        )

    def points(self) -> list[dict[str, float]]:
        """For the plot and the JSON."""
        rows = zip(self.strengths, self.outside, self.transfer, strict=True)
        return [{"strength": s, "outside": float(o[0]), "transfer": float(t[0])} for s, o, t in rows]


def checked(methods: dict[str, Method]) -> dict[str, Method]:
    """The methods; ValueError if our own is not among them, since the others are compared with it."""
    if OURS not in methods:
        raise ValueError(f"the comparison needs the method {OURS!r}; given: {', '.join(methods)}")
    return methods


def sweep(
    subject: Subject, methods: Mapping[str, Method], validation: int, test: int
) -> tuple[dict[str, dict[str, Curve]], dict[str, list[str]]]:
    """{method: {region: Curve}} on the test pairs, and the validation pairs' envelopes as text for the report."""
    everything = [(m, leaf, s) for m in methods for leaf in subject.leaves for s in methods[m].strengths]
    measured = measure_jobs(
        subject, methods, everything, validation, VALIDATION_SEED, progress="strengths, validation"
    )
    heads, ones = subject.heads, torch.ones(1, validation, dtype=torch.float64)
    kept: list[Job] = []
    chosen: dict[str, list[str]] = {}
    for name, method in methods.items():
        for leaf in subject.leaves:
            curve = Curve()
            for s in method.strengths:
                curve.add(s, measured[name, leaf, s], ones, heads[leaf])
            envelope = curve.envelope().strengths
            if name == OURS and 1.0 not in envelope:
                envelope.append(1.0)  # the model as it is used
            kept += [(name, leaf, s) for s in envelope]
            chosen.setdefault(name, []).append(f"{leaf}: {', '.join(f'{s:.3g}' for s in envelope)}")
    measured = measure_jobs(subject, methods, kept, test, TEST_SEED, progress="strengths, test")
    counts = resamples(test, ROUNDS)
    curves = {name: {leaf: Curve() for leaf in subject.leaves} for name in methods}
    for (name, leaf, strength), columns in measured.items():
        curves[name][leaf].add(strength, columns, counts, heads[leaf])
    return curves, chosen


def reached(outside: Tensor) -> bool:
    """Whether a curve gets to a transfer, in all pairs together and in nearly every resample."""
    return math.isfinite(float(outside[0])) and float(outside.isfinite().double().mean()) >= 0.975


def at_full_strength(ours: Mapping[str, Curve]) -> dict[str, Tensor]:
    """{region: our transfer as the model is used, of every resample}."""
    return {leaf: curve.transfer[curve.strengths.index(1.0)] for leaf, curve in ours.items()}


def transfers(full: Mapping[str, Tensor], level: float | str) -> dict[str, Tensor]:
    """{region: the transfer to compare at}: a number of `LEVELS`, or "ours" for what we reach at full strength."""
    return {leaf: t if level == "ours" else torch.full_like(t, float(level)) for leaf, t in full.items()}


def compare(curves: Mapping[str, Mapping[str, Curve]], test: int) -> dict[str, Any]:
    """O of every method at equal transfer: {level: {method: {region: Estimate, "ratio": Estimate, "regions": n}}}.

    "ratio" is the geometric mean over regions of the method's O divided by ours at the same transfer, in the same
    resample (a paired comparison), over the "regions" that both reach; above 1 we move less outside.
    """
    leaves = list(curves[OURS])
    full = at_full_strength(curves[OURS])
    out: dict[str, Any] = {}
    for level in (*LEVELS, "ours"):
        wanted = transfers(full, level)
        ours = {leaf: curves[OURS][leaf].at(wanted[leaf]) for leaf in leaves}
        table: dict[str, Any] = {}
        for name, by_leaf in curves.items():
            theirs = {leaf: by_leaf[leaf].at(wanted[leaf]) for leaf in leaves}
            row: dict[str, Any] = {leaf: Estimate.of(o, test) for leaf, o in theirs.items()}
            both = [leaf for leaf in leaves if reached(theirs[leaf]) and reached(ours[leaf])]
            logs = [(theirs[leaf].clamp_min(1e-6) / ours[leaf].clamp_min(1e-6)).log() for leaf in both]
            row["regions"] = len(both)
            mean = torch.stack(logs).mean(dim=0).exp() if both else torch.full((ROUNDS + 1,), math.nan)
            row["ratio"] = Estimate.of(mean, test)
            table[name] = row
        out[str(level)] = table
    out["transfer, ours"] = {leaf: Estimate.of(full[leaf], test) for leaf in leaves}
    return out


# --- The limit of S --------------------------------------------------------------------------------------------------


def limits(
    subject: Subject,
    methods: Mapping[str, Method],
    kept: Mapping[str, Mapping[str, Curve]],
    count: int,
    lambdas: Sequence[float] = (0.25, 1.0, 4.0),
    steps: int = 150,
) -> dict[str, dict[str, Curve]]:
    """Curves of the three limits (see `evaluation.limits`) and of the methods' kept strengths, on the same few pairs.

    The limits are optimised on the model's own features and masks and scored here by the judges, each code also at
    SHARES of its way from the base: a line from nothing to the weakest trade-off would be no limit below it.
    """
    pairs = draw_pairs(subject.pipe, count, subject.first(TEST_SEED), subject.batch)
    gates = methods.get("static-gates")
    start = gates if isinstance(gates, LearnedGates) else None
    score = start.score if start else None
    found = all_limits(subject.pipe, pairs, subject.leaves, lambdas, steps, start, score, chunk=subject.batch)
    jobs = [(m, leaf, s) for m in kept for leaf in subject.leaves for s in kept[m][leaf].strengths]
    measured = [(*job, c) for job, c in measure_jobs(subject, methods, jobs, count, progress="limit pairs").items()]
    comparison = subject.compare(pairs)
    for kind, codes in found.items():
        for (weight, leaf), s in tqdm(codes.items(), desc=f"judging {kind}", leave=False):
            for share in SHARES:
                parts = (pairs.base + share * (s - pairs.base)).split(subject.batch)
                with torch.no_grad():
                    after = subject.ruler.look(torch.cat([render(subject.pipe, x) for x in parts]))
                    columns = subject.ruler.measure(comparison, leaf, after, thorough=False)
                measured.append((LIMITS[kind], leaf, weight, columns))
    counts = resamples(count, ROUNDS)
    curves: dict[str, dict[str, Curve]] = {}
    for name, leaf, strength, columns in measured:
        by_leaf = curves.setdefault(name, {leaf: Curve() for leaf in subject.leaves})
        by_leaf[leaf].add(strength, columns, counts, subject.heads[leaf])
    for name in LIMITS.values():
        curves[name] = {leaf: curve.envelope() for leaf, curve in curves[name].items()}
    return curves


def shares(curves: Mapping[str, Mapping[str, Curve]], count: int) -> dict[str, dict[str, Any]]:
    """How much of what a gate per pair could gain over Editing in Style each method gains, by level and method.

    (O_EiS - O) / (O_EiS - O_limit) at equal transfer, each O a geometric mean over the regions in which all three
    reach that transfer. Empty without Editing in Style.
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
                wanted = transfers(full, level)[leaf]
                three = [c[leaf].at(wanted) for c in (curves[LIMITS["gate"]], curves[BASELINE], by_leaf)]
                if all(reached(x) for x in three):
                    for key, x in zip(logs, three, strict=True):
                        logs[key].append(x.clamp_min(1e-6).log())
            if not logs["own"]:
                continue
            low, high, own = (torch.stack(x).mean(dim=0).exp() for x in logs.values())
            gained = torch.where(high > low, (high - own) / (high - low), math.nan)
            table[name] = {"share": Estimate.of(gained, count), "regions": len(logs["own"])}
        out[str(level)] = table
    return out
