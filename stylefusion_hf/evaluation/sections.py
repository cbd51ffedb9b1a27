"""Sections of `stylefusion evaluate` about the model alone: swaps, interpolation, gates, diversity.

Each function takes a `Subject` and returns rows {row: {figure: Estimate}} or what the report shows instead.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.figures import HEADS, figures, transfer
from stylefusion_hf.evaluation.fusion_swaps import REFINE_STEPS, StyleFusionSwap
from stylefusion_hf.evaluation.measuring import Columns, Subject, join_columns, measure_jobs
from stylefusion_hf.evaluation.pairs import TEST_SEED, Pairs, draw_pairs
from stylefusion_hf.evaluation.registry import build_methods
from stylefusion_hf.evaluation.statistics import Estimate, ratio, resamples

Rows = dict[str, dict[str, Estimate]]
COLLAPSED = 0.1  # a swap that changes its region by less than this share of |Ib - I0| counts as dead
STEPS = 16
SOURCES = 64  # per base, for diversity
LEAST_SOURCES = 8  # sources that must show the region for a base to count


def estimates(draws: dict[str, Tensor], n: int) -> dict[str, Estimate]:
    """Convert figures of all resamples to estimates."""
    return {name: Estimate.of(values, n) for name, values in draws.items()}


# --- One region swapped ----------------------------------------------------------------------------------------------


SWAP_ROWS = {  # and the registry's names of their methods
    "leaf": "stylefusion",
    "wider": "stylefusion-wider",
    "refined": "stylefusion-refined",
    "mean": "mean",
    "mean look": "mean-look",
    "random code": "random-code",
}
IGNORE_SOURCE = ("mean", "mean look", "random code")


def swap_rows(
    subject: Subject,
    count: int,
    thorough: bool = True,
    names: Iterable[str] = ("leaf", "wider", *IGNORE_SOURCE),
    refine_steps: int = REFINE_STEPS,
) -> dict[str, Rows]:
    """Return {name: {region: figures}} for some of `SWAP_ROWS`.

    "leaf" swaps the leaf code alone, "wider" adds the authors' expansion, "refined" is "leaf" with `refine_steps`. The
    others ignore the source: the mean code, the mean code's picture pasted, and an unrelated random code.

    `transfer q1` ... `q4`: by quartile of the pose gap. `dead`: share of pairs whose region changed by less than a
    tenth. `agree`, `agree_plain`: agreement of the two segmenters on fused and on plain pictures.
    """
    names = set(names)
    chosen = {row: method for row, method in SWAP_ROWS.items() if row in names}
    built = build_methods(subject.pipe, chosen.values(), subject.batch, refine_steps)
    methods = {row: built[method] for row, method in chosen.items()}
    jobs = [(name, leaf, 1.0) for name in methods for leaf in subject.leaves]
    main = [job for job in jobs if job[0] not in IGNORE_SOURCE]
    others = [job for job in jobs if job[0] in IGNORE_SOURCE]
    measured = measure_jobs(
        subject, methods, main, count, thorough=thorough, progress="swaps", specific=True, recognized=main
    )
    if others:
        measured |= measure_jobs(
            subject, methods, others, count, progress="swaps that ignore the source", specific=True, recognized=others
        )
    counts = resamples(count)
    out: dict[str, Rows] = {name: {} for name in methods}
    for (method, leaf, _), columns in measured.items():
        n = int(columns["counts"].sum())
        draws = figures(columns, counts, subject.heads[leaf])
        weights = counts * columns["counts"].double()
        draws["dead"] = ratio(weights, columns["inside"] < COLLAPSED * columns["inside_of"], torch.ones(count))
        draws |= {k: ratio(weights, columns[k], torch.ones(count)) for k in ("agree", "agree_plain") if k in columns}
        out[method][leaf] = estimates(draws, n)
        if "gap" in columns:
            out[method][leaf] |= by_gap(columns, counts, subject.heads[leaf])
    return out


def by_gap(columns: Columns, counts: Tensor, heads: tuple[str, ...]) -> dict[str, Estimate]:
    """Return transfer by quartile of the pose gap, from `transfer q1` (similar poses) to `transfer q4`."""
    out = {}
    known = columns["gap"].isfinite() & (columns["counts"] > 0)
    if int(known.sum()) < 8:
        return {}
    edges = columns["gap"][known].quantile(torch.tensor([0.25, 0.5, 0.75]))
    quartile = torch.bucketize(columns["gap"], edges)
    for q in range(4):
        mine = known & (quartile == q)
        part = {k: v[mine] for k, v in columns.items()}
        out[f"transfer q{q + 1}"] = Estimate.of(transfer(part, counts[:, mine], heads), int(mine.sum()))
    return out


# --- One region interpolated -----------------------------------------------------------------------------------------


@torch.no_grad()
def interpolation_rows(subject: Subject, count: int) -> Rows:
    """Interpolate a region's code to the source's in 16 steps.

    outside: the largest O of any step; unevenness: the largest step inside the region divided by the mean step.
    """
    method, counts, rows = StyleFusionSwap(subject.pipe), resamples(count), {}
    with tqdm(total=count * len(subject.leaves), desc="interpolation", unit="walk", leave=False) as bar:
        parts: dict[str, list[Columns]] = {leaf: [] for leaf in subject.leaves}
        for pairs in subject.pairs(count):
            judged = subject.compare(pairs)
            for leaf in subject.leaves:
                r = subject.ruler.regions.index(leaf)
                last, steps, outside, outside_of = judged.base.images, [], [], []
                inside = (judged.base.labels == r) | (judged.source.labels == r)
                for step in range(1, STEPS + 1):
                    after = subject.ruler.look(method.swap(pairs, leaf, step / STEPS))
                    columns = subject.ruler.measure(judged, leaf, after, thorough=False)
                    outside.append(columns["outside"])
                    outside_of.append(columns["outside_of"])
                    steps.append(((after.images - last).abs().sum(dim=1) * inside).sum(dim=(1, 2)).cpu())
                    last = after.images
                moves = torch.stack(steps)
                own = {"counts": columns["counts"], "largest": moves.amax(dim=0), "mean": moves.mean(dim=0)}
                by_step = {"outside": torch.stack(outside, dim=1), "outside_of": torch.stack(outside_of, dim=1)}
                parts[leaf].append({**own, **by_step})
                bar.update(len(pairs))
    for leaf, found in parts.items():
        c = join_columns(found)
        w = counts * c["counts"].double()
        each = [ratio(w, c["outside"][:, k], c["outside_of"][:, k]) for k in range(STEPS)]
        draws = {"outside": torch.stack(each).amax(dim=0), "unevenness": ratio(w, c["largest"], c["mean"])}
        rows[leaf] = estimates(draws, int(c["counts"].sum()))
    return rows


@torch.no_grad()
def identity_error(subject: Subject, count: int = 64) -> float:
    """Return the largest difference between a code and its fusion with itself, relative to its largest value."""
    worst = 0.0
    for pairs in subject.pairs(count):
        fused = subject.pipe.fusion.fuse(dict.fromkeys(subject.pipe.fusion.tree.nodes, pairs.base))
        worst = max(worst, float((fused - pairs.base).abs().max() / pairs.base.abs().max()))
    return worst


# --- Gates -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def gate_table(subject: Subject, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return {node: {style vector: {"mean", "spread", "open"}}} of the segment gates, all leaves having different
    codes.

    A gate is (out - first) / (second - first): 0 keeps the first child, 1 takes the second. mean: over channels and
    samples; spread: standard deviation over samples, averaged over channels (0: a constant gate); open: share of gates
    between .05 and .95.
    """
    pipe, found = subject.pipe, {}
    tree = pipe.fusion.tree
    sums: dict[str, list[Tensor]] = {}
    for pairs in subject.pairs(count):
        codes = {n: pairs.base.roll(i, dims=0) for i, n in enumerate(tree.nodes)}
        for node, gate in pipe.fusion.gates(codes).items():
            sums.setdefault(node, []).append(gate.float().cpu())
    for node, parts in sums.items():
        gates = torch.cat(parts)
        found[node] = {
            name: {
                "mean": float(g.mean()),
                "spread": float(g.std(dim=0).mean()) if len(g) > 1 else 0.0,
                "open": float(((g > 0.05) & (g < 0.95)).float().mean()),
            }
            for name, g in pipe.generator.split_style(gates).items()
        }
    return found


# --- Diversity -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def diversity_rows(subject: Subject, bases: int) -> Rows:
    """Return the mean distance between a region's looks over 64 sources, relative to the sources' own looks.

    1: swaps are as diverse as plain samples; 0: always the same look. Averaged over the measurable heads; intervals
    are over the bases.
    """
    sums: dict[str, dict[str, list[tuple[float, float]]]] = {leaf: {h: [] for h in HEADS} for leaf in subject.leaves}
    for k in tqdm(range(bases), desc="diversity", unit="base", leave=False):
        parts = [looks_of_sources(subject, pairs) for pairs in sources_of_one_base(subject, k)]
        for leaf in subject.leaves:
            counts = torch.cat([part[leaf][0] for part in parts])
            if int(counts.sum()) < LEAST_SOURCES:
                continue
            for head in subject.heads[leaf]:
                fused = torch.cat([part[leaf][1][head] for part in parts])[counts]
                own = torch.cat([part[leaf][2][head] for part in parts])[counts]
                ours, theirs = (float(torch.pdist(x.float().cpu(), p=1).mean()) for x in (fused, own))
                sums[leaf][head].append((ours, theirs))
    rows: Rows = {}
    for leaf, found in sums.items():
        values = {h: torch.tensor(v) for h, v in found.items() if len(v) == bases}
        if not values:
            continue
        counts = resamples(bases)
        draws = {h: ratio(counts, v[:, 0], v[:, 1]) for h, v in values.items()}
        mean = {"diversity": torch.stack(list(draws.values())).mean(dim=0)}
        rows[leaf] = estimates(mean | draws, bases)
    return rows


def sources_of_one_base(subject: Subject, number: int) -> Iterable[Pairs]:
    """Yield base `number` paired with SOURCES sources, in batches."""
    first = subject.first(TEST_SEED) + 2 * number * SOURCES
    base: Pairs | None = None
    for start in range(0, SOURCES, subject.batch):
        n = min(subject.batch, SOURCES - start)
        pairs = draw_pairs(subject.pipe, n, first + 2 * start, subject.batch)
        base = pairs[:1] if base is None else base
        same = [x.expand(n, *x.shape[1:]) for x in (base.base, base.plain, base.base_probs)]
        yield Pairs(same[0], pairs.source, same[1], pairs.other, same[2], pairs.source_probs)


def looks_of_sources(subject: Subject, pairs: Pairs) -> dict[str, tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    """Return {leaf: (pairs that count, looks of the fused pictures, looks of the aligned sources)}."""
    judged, ruler, out = subject.compare(pairs), subject.ruler, {}
    for leaf in subject.leaves:
        r = ruler.regions.index(leaf)
        hidden, _, counts, _ = ruler.describe_region(judged, leaf)
        after = ruler.look(StyleFusionSwap(subject.pipe).swap(pairs, leaf, 1.0))
        # Occlusion in fused pictures comes from the base; each source has its own.
        fused = ruler.descriptors(after, r, ruler.occlusion(r, judged.base.labels))
        out[leaf] = (counts, fused, ruler.descriptors(ruler.in_pose(judged, leaf), r, hidden))
    return out
