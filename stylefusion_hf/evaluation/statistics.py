"""Ratios of sums with bootstrap intervals, kernel distances, and curves compared at equal transfer.

A figure is a function of per-pair sums. Its 95 % interval is a percentile bootstrap over the pairs (Efron 1979):
`resamples` returns how often each pair is drawn, and figures are computed from `counts @ sums` for all resamples at
once. Row 0 counts every pair once and gives the figure itself. Methods measured on the same pairs share the counts,
so that their comparison is paired.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS = 1000


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, based on `n` pairs (or images); NaN if undefined."""

    value: float
    low: float
    high: float
    n: int

    @classmethod
    def of(cls, draws: Tensor, n: int) -> Estimate:
        """Summarize the figure of every resample, (rounds + 1,); the first entry is that of all pairs."""
        finite = draws[1:][draws[1:].isfinite()].double()
        # If more than 2.5 % of the resamples are undefined, an end of the interval is unknown.
        if not math.isfinite(float(draws[0])) or len(finite) < 0.975 * len(draws[1:]):
            return cls(math.nan, math.nan, math.nan, n)
        low, high = finite.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64, device=finite.device)).tolist()
        return cls(float(draws[0]), low, high, n)

    def to_json(self) -> dict[str, float | int | None]:
        """Return plain numbers, with null for undefined ones (JSON has no NaN)."""
        numbers = {"value": self.value, "low": self.low, "high": self.high}
        return {**{k: v if math.isfinite(v) else None for k, v in numbers.items()}, "n": self.n}


def resamples(n: int, rounds: int = ROUNDS, seed: int = 0) -> Tensor:
    """Return how often each of n pairs is drawn in each resample, (rounds + 1, n) float64; row 0 is all ones."""
    drawn = np.random.RandomState(seed).multinomial(n, np.full(n, 1 / n), size=rounds)
    return torch.cat([torch.ones(1, n, dtype=torch.float64), torch.from_numpy(drawn).double()])


def ratio(counts: Tensor, numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return sum(numerator) / sum(denominator) of every resample: (rounds + 1, n), (n,), (n,) -> (rounds + 1,)."""
    below = counts @ denominator.cpu().double()
    return torch.where(below > 0, (counts @ numerator.cpu().double()) / below.clamp_min(1e-300), math.nan)


# --- Feature distributions -------------------------------------------------------------------------------------------


def kid(x: Tensor, y: Tensor) -> float:
    """Return the unbiased squared MMD of features (N, D) with kernel (x.y / D + 1)^3 (Binkowski et al., arXiv
    1801.01401); it may be slightly negative for equal distributions.
    """
    d = x.shape[1]
    kxx, kyy, kxy = ((a @ b.t() / d + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    n, m = len(x), len(y)
    own_x, own_y = (kxx.sum() - kxx.diag().sum()) / (n * (n - 1)), (kyy.sum() - kyy.diag().sum()) / (m * (m - 1))
    return float(own_x + own_y - 2 * kxy.mean())


def kid_subsets(x: Tensor, y: Tensor, size: int, subsets: int = 100, seed: int = 0) -> Tensor:
    """Return `kid` of random subsets, (subsets,), for the paper's error estimate. Equal shapes give equal draws."""
    draw = torch.Generator().manual_seed(seed)

    def draw_subset(features: Tensor) -> Tensor:
        return features[torch.randperm(len(features), generator=draw)[:size]]

    return torch.tensor([kid(draw_subset(x), draw_subset(y)) for _ in range(subsets)])


def share_on_manifold(support: Tensor, points: Tensor, k: int = 3) -> float:
    """Return the share of `points` within the k-th nearest-neighbor distance of some point of `support`.

    `share_on_manifold(real, fake)` is precision, `share_on_manifold(fake, real)` recall (Kynkaanniemi et al., arXiv
    1904.06991). Precision says nothing about diversity: it is 1 for one plausible picture repeated.
    """
    return float((torch.cdist(points, support) <= neighbor_distance(support, k)).any(dim=1).float().mean())


def density_and_coverage(real: Tensor, fake: Tensor, k: int = 5) -> tuple[float, float]:
    """Return density and coverage (Naeem et al., arXiv 2002.09797).

    Each real picture has a ball that reaches to its k-th nearest real neighbor. Density is the mean number of balls
    that contain a fake picture, divided by k (1 for equal distributions, unbounded). Coverage is the share of balls
    that contain a fake picture: near 0 for a generator of a single picture.
    """
    within = torch.cdist(fake, real) <= neighbor_distance(real, k)
    return float(within.sum(dim=1).float().mean() / k), float(within.any(dim=0).float().mean())


def neighbor_distance(points: Tensor, k: int) -> Tensor:
    """Return the distance of each point to its k-th nearest neighbor, (N,), or to the farthest of fewer points."""
    k = min(k, len(points) - 1)
    return torch.cdist(points, points).kthvalue(k + 1, dim=1).values  # the first is the point itself


def effective_number(classes: Tensor, counts: Tensor | None = None) -> Tensor:
    """Return exp of the entropy of class indices (N,), the equivalent number of equally frequent classes.

    counts: (rounds + 1, N) from `resamples`; the result is then (rounds + 1,), otherwise a scalar.
    """
    counts = torch.ones(1, len(classes), dtype=torch.float64) if counts is None else counts
    share = counts @ F.one_hot(classes.long()).double()
    share = share / share.sum(dim=1, keepdim=True).clamp_min(1)
    return (-(share * share.clamp_min(1e-300).log()).sum(dim=1)).exp().squeeze(0)


# --- Curves of outside change against transfer -----------------------------------------------------------------------


def pareto(outside: Sequence[float], transfer: Sequence[float]) -> list[int]:
    """Return indices of the Pareto-optimal settings (much transfer, little outside change), by rising transfer."""
    best, kept = math.inf, []
    for i in sorted(range(len(transfer)), key=lambda i: (-transfer[i], outside[i])):
        if outside[i] < best and transfer[i] > 0:
            best = outside[i]
            kept.append(i)
    return kept[::-1]


def outside_at(outside: Sequence[float], transfer: Sequence[float], wanted: float) -> float:
    """Return the outside change at a wanted transfer from a piecewise linear isotonic fit through (0, 0).

    NaN if no setting reaches the transfer: nothing is extrapolated.
    """
    from scipy.optimize import isotonic_regression

    o, t = np.asarray(outside, dtype=float), np.asarray(transfer, dtype=float)
    known = np.isfinite(o) & (t > 0)  # settings with transfer below 0 are worse than no swap
    o, t = o[known], t[known]
    order = np.argsort(t)
    o, t = np.concatenate([[0.0], o[order]]), np.concatenate([[0.0], t[order]])
    if not np.isfinite(wanted) or wanted > t.max():
        return math.nan
    # (0, 0) is exact: its weight pins the fit there.
    fitted = isotonic_regression(o, weights=np.concatenate([[1e6], np.ones(len(o) - 1)])).x
    return float(np.interp(wanted, t, fitted))


def value_at(values: Sequence[float], transfer: Sequence[float], wanted: float) -> float:
    """Return any figure at a wanted transfer, interpolated linearly; below the weakest setting, that setting's figure.

    NaN if no setting reaches the transfer.
    """
    v, t = np.asarray(values, dtype=float), np.asarray(transfer, dtype=float)
    known = np.isfinite(v) & (t > 0)
    v, t = v[known], t[known]
    if not len(t) or not np.isfinite(wanted) or wanted > t.max():
        return math.nan
    order = np.argsort(t)
    return float(np.interp(wanted, t[order], v[order]))
