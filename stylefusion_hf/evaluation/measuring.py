"""Swaps by many methods at many strengths, measured in one pass over the pairs and in constant memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.judges import Judges
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.pairs import FITTING_SEED, TEST_SEED, Pairs, draw_pairs
from stylefusion_hf.evaluation.ruler import Comparison, Ruler, measurable

Columns = dict[str, Tensor]
Job = tuple[str, str, float]  # method, region, strength
SEED_STRIDE = 20_000_000  # above all first seeds and counts; 2^32 holds 200 of them
HEAD_PAIRS = 96


@dataclass(frozen=True)
class Subject:
    """What is measured, by whom: a pipeline, the ruler, its judges. `seed` chooses other pairs; `batch` at once."""

    pipe: Any
    judges: Judges
    ruler: Ruler
    seed: int = 0
    batch: int = 32

    @property
    def leaves(self) -> list[str]:
        """The tree's leaves that play a part, in the order of the tree."""
        tree = self.pipe.fusion.tree
        return [leaf for leaf in tree.leaves if leaf in tree.active]

    def pairs(self, count: int, first_seed: int = TEST_SEED) -> Iterable[Pairs]:
        """`count` pairs in batches; the same pairs every time."""
        for start in range(0, count, self.batch):
            n = min(self.batch, count - start)
            yield draw_pairs(self.pipe, n, self.first(first_seed) + 2 * start, self.batch)

    def first(self, seed: int) -> int:
        """The first of the seeds of one purpose; runs of different `seed` share none."""
        return seed + SEED_STRIDE * self.seed

    @cached_property
    def heads(self) -> dict[str, tuple[str, ...]]:
        """{leaf: the heads that make its transfer}, decided once, for all tables, on pairs that none is made of."""
        parts: dict[str, list[Columns]] = {leaf: [] for leaf in self.leaves}
        for pairs in self.pairs(HEAD_PAIRS, FITTING_SEED):
            comparison = self.compare(pairs)
            for leaf in self.leaves:
                parts[leaf].append(self.ruler.measure(comparison, leaf, comparison.base, thorough=False))
        return {leaf: measurable(joined(found)) for leaf, found in parts.items()}

    def compare(self, pairs: Pairs) -> Comparison:
        """Base and source as the ruler sees them."""
        return self.ruler.compare(self.ruler.look(pairs.plain), self.ruler.look(pairs.other))


def joined(parts: Sequence[Columns]) -> Columns:
    """Columns of consecutive batches as one."""
    return {k: torch.cat([p[k] for p in parts]) for k in parts[0]}


@torch.no_grad()
def measure_jobs(
    subject: Subject,
    methods: Mapping[str, Method],
    jobs: Sequence[Job],
    count: int,
    first_seed: int = TEST_SEED,
    thorough: bool = False,
    progress: str = "swaps",
) -> dict[Job, Columns]:
    """Per-pair sums, {column: (count,)}, of every job on the same pairs.

    With `thorough` also the pose gap of each pair (`gap`), how much of the change outside a judge notices, and on how
    many pixels the model's own segmenter and the evaluation's agree, on fused (`agree`) and plain pictures
    (`agree_plain`).
    """
    parts: dict[Job, list[Columns]] = {job: [] for job in jobs}
    with tqdm(total=count * len(jobs), desc=progress, unit="swap", leave=False) as bar:
        for pairs in subject.pairs(count, first_seed):
            comparison = subject.compare(pairs)
            extra: Columns = {}
            if thorough:
                extra["gap"] = subject.ruler.pose_gap(comparison.base, comparison.source).cpu()
                extra["agree_plain"] = agreement(subject, pairs.base_probs, comparison.base.labels)
            for job in jobs:
                name, region, strength = job
                after = subject.ruler.look(methods[name].swap(pairs, region, strength))
                columns = subject.ruler.measure(comparison, region, after, thorough)
                if thorough:
                    own = subject.pipe.segmenter
                    probs = own.segment(after.images.to(getattr(own, "dtype", torch.float32)))
                    extra["agree"] = agreement(subject, probs, after.labels)
                parts[job].append({**columns, **extra})
                bar.update(len(pairs))
    return {job: joined(found) for job, found in parts.items()}


def agreement(subject: Subject, own: Tensor, labels: Tensor) -> Tensor:
    """Share of pixels (B,) on which the model's segmenter, (B, R, H, W), says what the judge's labels say."""
    names = list(subject.pipe.segmenter.config.regions)
    order = [names.index(n) if n in names else -1 for n in subject.ruler.regions]
    judged = torch.tensor(order, device=labels.device)[labels]
    return (own.argmax(dim=1) == judged).float().mean(dim=(1, 2)).cpu()
