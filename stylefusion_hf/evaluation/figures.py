"""Figures from the ruler's per-pair sums: ratios of sums, for all resamples at once."""

from __future__ import annotations

import torch
from torch import Tensor

from stylefusion_hf.evaluation import measurement as core
from stylefusion_hf.evaluation import published
from stylefusion_hf.evaluation.statistics import ratio

HEADS = ("colour", "texture", "outline")
DROPPED = 0.1  # share of pairs, those that differ least, left out of S and T: their ratio is mostly noise
LEAST_SIGNAL = 0.5  # a head counts if at least this share of its differences is above the noise


def measurable_heads(columns: dict[str, Tensor]) -> tuple[str, ...]:
    """Return the heads on which the region differs between pictures by more than noise.

    For example, the outline of the avatars' skin never changes: its measured differences are resampling errors.
    """
    sums = {k: {h: (columns["counts"] * columns[f"{h}_{k}"]).sum() for h in HEADS} for k in ("size", "raw", "of")}
    differs = core.differing_heads(sums["raw"], sums["size"])
    kept = []
    for head in HEADS:
        raw, above = float(sums["raw"][head]), float(sums["of"][head])
        if raw > 0 and bool(differs[head]) and above > LEAST_SIGNAL * raw:
            kept.append(head)
    return tuple(kept)


def transfer(
    columns: dict[str, Tensor], counts: Tensor, heads: tuple[str, ...], noisy: bool = False, specific: bool = False
) -> Tensor:
    """Return T (or S) of every resample, (rounds + 1,): the mean over the heads; NaN if there are none.

    Args:
        columns: from `Ruler.measure` over all pairs, (N,) each. For each head, the tenth of the pairs with the
            smallest distance between base and source is dropped.
        noisy: do not subtract the noise.
        specific: compare with the same swap from an unrelated source instead of with the base.
    """
    parts = []
    for head in heads:
        differs = columns[f"{head}_raw" if noisy else f"{head}_of"].double() * columns["counts"]
        above = columns[f"{head}_rest" if noisy else head]
        present = differs > 0
        if present.any():
            present &= differs >= differs[present].quantile(DROPPED)
        below = (
            columns[f"{head}_rest_other" if noisy else f"{head}_other"] * present if specific else differs * present
        )
        parts.append(1 - ratio(counts, above * present, below))
    return torch.stack(parts).mean(dim=0) if parts else torch.full((len(counts),), torch.nan, dtype=torch.float64)


def figures(columns: dict[str, Tensor], counts: Tensor, heads: tuple[str, ...] | None = None) -> dict[str, Tensor]:
    """Return {figure: (rounds + 1,)} of one region: `specific`, `transfer`, `outside`, `leak` and the minor figures.

    heads: of S and T; None selects the `measurable_heads` of these pairs.
    """
    c = columns
    heads = measurable_heads(c) if heads is None else heads
    w = counts * c["counts"].double()  # pairs that do not count have weight 0
    one = torch.ones_like(c["counts"])
    out: dict[str, Tensor] = {}
    if "colour_other" in c:
        out["specific"] = transfer(c, w, heads, specific=True)
    if "recognized" in c:
        out["recognition"] = ratio(w, c["recognized"], c["candidates"].gt(1).to(one))
        out["chance"] = ratio(w, c["candidates"].gt(1) / c["candidates"].clamp_min(1), c["candidates"].gt(1).to(one))
    out |= {
        "outside": ratio(w, c["outside"], c["outside_of"]),
        "leak": ratio(w, c["outside"], c["all"]),
        "transfer": transfer(c, w, heads),
        "transfer, noisy": transfer(c, w, heads, noisy=True),
        **{f"transfer_{h}": transfer(c, w, (h,) if h in heads else ()) for h in HEADS},
    }
    if "colour_other" in c:
        out |= {f"specific_{h}": transfer(c, w, (h,) if h in heads else (), specific=True) for h in HEADS}
    return out | {
        "flips": ratio(w, c["flips"], c["flips_of"]),
        **{k: ratio(w, c[k], c[f"{k}_of"]) for k in ("noticed", "became", "stayed", *published.FIGURES) if k in c},
        "area": ratio(w, c["area"], one),
        "response": ratio(w, c["inside"], c["inside_of"]),
        "pose": ratio(w, c["pose"], c["pose_known"]),
    }
