"""What `stylefusion evaluate` measures of a model by itself: swaps, global control, walks, gates, diversity.

Each function takes a `Subject` and returns rows, {row: {figure: Estimate}}, and what else the report shows.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.baselines import StyleFusionSwap
from stylefusion_hf.evaluation.measuring import Columns, Subject, joined, measure_jobs
from stylefusion_hf.evaluation.pairs import TEST_SEED, render, style_codes
from stylefusion_hf.evaluation.ruler import HEADS, dilate, figures, transfer
from stylefusion_hf.evaluation.statistics import Estimate, ratio, resamples

Rows = dict[str, dict[str, Estimate]]
COLLAPSED = 0.1  # a swap that changes its region by less than this share of |Ib - I0| is a dead dial
GLOBAL_SEED = 4_000_000  # the third code of the global figures
STEPS = 16
SOURCES = 64


def estimates(draws: dict[str, Tensor], n: int) -> dict[str, Estimate]:
    """Figures of every resample as estimates."""
    return {name: Estimate.of(values, n) for name, values in draws.items()}


# --- One region swapped ----------------------------------------------------------------------------------------------


def swap_rows(subject: Subject, count: int) -> dict[str, Rows]:
    """The leaf's code alone, and the authors' wider expansion: {"leaf", "wider": {region: figures}}.

    `transfer q1` ... `q4`: by quartile of the pose gap. `dead`: share of pairs whose region answered by less than a
    tenth. `agree`, `agree_plain`: the two segmenters on fused and on plain pictures.
    """
    methods = {"leaf": StyleFusionSwap(subject.pipe), "wider": StyleFusionSwap(subject.pipe, wider=True)}
    jobs = [(m, leaf, 1.0) for m in methods for leaf in subject.leaves]
    measured = measure_jobs(subject, methods, jobs, count, thorough=True, progress="swaps")
    counts = resamples(count)
    out: dict[str, Rows] = {name: {} for name in methods}
    for (method, leaf, _), columns in measured.items():
        n = int(columns["counts"].sum())
        draws = figures(columns, counts, subject.heads[leaf])
        weights = counts * columns["counts"].double()
        dead = columns["inside"] < COLLAPSED * columns["inside_of"]
        for name, values in (("dead", dead), ("agree", columns["agree"]), ("agree_plain", columns["agree_plain"])):
            draws[name] = ratio(weights, values, torch.ones(count))
        out[method][leaf] = estimates(draws, n) | by_gap(columns, counts, subject.heads[leaf])
    return out


def by_gap(columns: Columns, counts: Tensor, heads: tuple[str, ...]) -> dict[str, Estimate]:
    """Transfer by quartile of the pose gap, `transfer q1` (nearly the same pose) to `transfer q4`."""
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


# --- Everything common from a third code -----------------------------------------------------------------------------


@torch.no_grad()
def global_rows(subject: Subject, count: int, first_seed: int = TEST_SEED) -> Rows:
    """How far pose follows the common codes, and how much of the looks stays.

    pose    G = sum |pose(I) - pose(Ic)| / sum |pose(I0) - pose(Ic)|       0: c's pose, 1: still a's
    REGION  1 - sum |f(I) - f(I0')| / sum |f(Ic') - f(I0')|, both in I's pose  1: a's look, 0: c's

    Beside the regions: their mean, and that of each head.

    Rows: every common code from c; the root's alone; and, for comparison, style mixing of the coarse layers: all style
    vectors up to 8, up to 16 pixels from c.
    """
    g, tree = subject.pipe.generator, subject.pipe.fusion.tree
    sizes, resolutions = list(g.style_sizes.values()), list(g.style_resolutions.values())
    layer = torch.tensor(resolutions).repeat_interleave(torch.tensor(sizes)).to(g.device)

    def fused(a: Tensor, c: Tensor, common: list[str]) -> Tensor:
        return subject.pipe.fusion.fuse({n: c if n in common else a for n in tree.nodes})

    ways = {
        "all common codes": lambda a, c: fused(a, c, list(tree.inner)),
        "the root's alone": lambda a, c: fused(a, c, [tree.root]),
        "layers to 8 px": lambda a, c: torch.where(layer <= 8, c, a),
        "layers to 16 px": lambda a, c: torch.where(layer <= 16, c, a),
    }
    parts: dict[tuple[str, str], list[Columns]] = {}
    done = 0
    with tqdm(total=count * len(ways), desc="global", unit="picture", leave=False) as bar:
        for pairs in subject.pairs(count, first_seed):
            first = subject.first(GLOBAL_SEED) + done
            c = style_codes(g, range(first, first + len(pairs)))
            at_c = subject.ruler.look(render(subject.pipe, c))
            at_a = subject.ruler.look(pairs.plain)
            for way, make in ways.items():
                seen = subject.ruler.look(render(subject.pipe, make(pairs.base, c)))
                # Looks are compared in I's own pose, whichever that became: pose has its own column.
                moved = subject.ruler.look(subject.ruler.compare(seen, at_c).moved.images)
                comparison = subject.ruler.compare(moved, at_a)
                pose = {
                    "pose": subject.ruler.pose_gap(seen, at_c).cpu(),
                    "pose_of": subject.ruler.pose_gap(at_a, at_c).cpu(),
                }
                known = pose["pose"].isfinite() & pose["pose_of"].isfinite()
                pose = {k: torch.where(known, v, 0) for k, v in pose.items()}
                for leaf in subject.leaves:
                    columns = subject.ruler.measure(comparison, leaf, seen, thorough=False)
                    parts.setdefault((way, leaf), []).append({**columns, **pose})
                bar.update(len(pairs))
            done += len(pairs)
    counts, rows = resamples(count), {}
    for way in ways:
        found = {leaf: joined(parts[way, leaf]) for leaf in subject.leaves}
        any_leaf = found[subject.leaves[0]]
        row = {"pose": Estimate.of(ratio(counts, any_leaf["pose"], any_leaf["pose_of"]), count)}
        kept = {leaf: figures(columns, counts, subject.heads[leaf]) for leaf, columns in found.items()}
        for key in ("transfer", *(f"transfer_{h}" for h in HEADS)):
            mean = torch.stack([draws[key] for draws in kept.values()]).nanmean(dim=0)
            row["looks kept" if key == "transfer" else key.removeprefix("transfer_")] = Estimate.of(mean, count)
        rows[way] = row | estimates({leaf: draws["transfer"] for leaf, draws in kept.items()}, count)
    return rows


# --- One region moved step by step -----------------------------------------------------------------------------------


@torch.no_grad()
def interpolation_rows(subject: Subject, count: int) -> Rows:
    """A region's code moved to the source's in 16 steps.

    outside: the O of each step, the largest of them; unevenness: the largest step inside the region over their mean.
    """
    method, counts, rows = StyleFusionSwap(subject.pipe), resamples(count), {}
    with tqdm(total=count * len(subject.leaves), desc="interpolation", unit="walk", leave=False) as bar:
        parts: dict[str, list[Columns]] = {leaf: [] for leaf in subject.leaves}
        for pairs in subject.pairs(count):
            comparison = subject.compare(pairs)
            for leaf in subject.leaves:
                r = subject.ruler.regions.index(leaf)
                last, steps, outside, outside_of = pairs.plain, [], [], []
                inside = (comparison.base.labels == r) | (comparison.source.labels == r)
                for step in range(1, STEPS + 1):
                    images = method.swap(pairs, leaf, step / STEPS)
                    after = subject.ruler.look(images)
                    columns = subject.ruler.measure(comparison, leaf, after, thorough=False)
                    outside.append(columns["outside"])
                    outside_of.append(columns["outside_of"])
                    steps.append(((images - last).abs().sum(dim=1) * inside).sum(dim=(1, 2)).cpu())
                    last = images
                moves = torch.stack(steps)
                own = {"counts": columns["counts"], "largest": moves.amax(dim=0), "mean": moves.mean(dim=0)}
                by_step = {"outside": torch.stack(outside, dim=1), "outside_of": torch.stack(outside_of, dim=1)}
                parts[leaf].append({**own, **by_step})
                bar.update(len(pairs))
    for leaf, found in parts.items():
        c = joined(found)
        w = counts * c["counts"].double()
        each = [ratio(w, c["outside"][:, k], c["outside_of"][:, k]) for k in range(STEPS)]
        draws = {"outside": torch.stack(each).amax(dim=0), "unevenness": ratio(w, c["largest"], c["mean"])}
        rows[leaf] = estimates(draws, int(c["counts"].sum()))
    return rows


@torch.no_grad()
def identity_error(subject: Subject, count: int = 64) -> float:
    """Largest difference between a code and what fusing it with itself gives, relative to its largest number."""
    worst = 0.0
    for pairs in subject.pairs(count):
        fused = subject.pipe.fusion.fuse(dict.fromkeys(subject.pipe.fusion.tree.nodes, pairs.base))
        worst = max(worst, float((fused - pairs.base).abs().max() / pairs.base.abs().max()))
    return worst


# --- Gates -----------------------------------------------------------------------------------------------------------


@torch.no_grad()
def gate_table(subject: Subject, count: int) -> dict[str, dict[str, dict[str, float]]]:
    """{node: {style vector: {"mean", "spread", "open"}}} of the segment gates when all leaves have different codes.

    A gate is (out - first) / (second - first): 0 keeps the first child, 1 takes the second. mean over channels and
    samples; spread: deviation over samples, averaged over channels (0: a constant gate); open: share between .05, .95.
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
    """Mean distance between the looks of a region over 64 sources, as a share of that of the plain sources' own looks.

    1: the dial shows as many looks as the generator knows; 0: always the same one. Averaged over the measurable heads;
    intervals are over the bases.
    """
    method = StyleFusionSwap(subject.pipe)
    sums: dict[str, dict[str, list[tuple[float, float]]]] = {leaf: {h: [] for h in HEADS} for leaf in subject.leaves}
    groups = replace(subject, batch=SOURCES).pairs(bases * SOURCES)
    for pairs in tqdm(groups, total=bases, desc="diversity", unit="base", leave=False):
        base = pairs.base[:1].expand(len(pairs), -1)
        plain = pairs.plain[:1].expand(len(pairs), -1, -1, -1)
        same = type(pairs)(base, pairs.source, plain, pairs.other, pairs.base_probs, pairs.source_probs)
        comparison = subject.compare(same)
        for leaf in subject.leaves:
            r = subject.ruler.regions.index(leaf)
            hidden, _, counts, _ = subject.ruler.described(comparison, leaf)
            if int(counts.sum()) < 8:
                continue
            after = subject.ruler.look(method.swap(same, leaf, 1.0))
            # The fused pictures share what the base puts in front; each source has its own.
            front = dilate(comparison.base.labels > r, 1)
            fused = subject.ruler.descriptors(after, r, front)
            own_looks = subject.ruler.descriptors(subject.ruler.in_pose(comparison, leaf), r, hidden)
            for head in subject.heads[leaf]:
                ours, theirs = (
                    float(torch.pdist(x[head][counts].float().cpu(), p=1).mean()) for x in (fused, own_looks)
                )
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
