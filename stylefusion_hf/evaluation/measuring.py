"""Measure swaps by many methods at many strengths in one pass over the pairs, in constant memory."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.figures import HEADS, measurable_heads
from stylefusion_hf.evaluation.judged import JudgedPairs, join_images
from stylefusion_hf.evaluation.judges import Judges
from stylefusion_hf.evaluation.measurement import at_measuring_size
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.pairs import (
    FITTING_SEED,
    TEST_SEED,
    Pairs,
    draw_pairs,
    render,
    segment,
    style_codes,
    with_unrelated_sources,
)
from stylefusion_hf.evaluation.recognition import Gallery
from stylefusion_hf.evaluation.ruler import Ruler

Columns = dict[str, Tensor]
Job = tuple[str, str, float]  # method, region, strength
SEED_STRIDE = 20_000_000  # larger than any first seed plus count; 200 of them fit into 2^32
HEAD_PAIRS = 96
GALLERY_SEED, GALLERY_SIZE = 17_000_000, 64  # plain samples used as wrong candidates in recognition


@dataclass(frozen=True)
class Scales:
    """Normalization of the ruler, estimated once on fitting pairs, which no figure is computed from.

    `heads`: {leaf: heads used for S and T}. `differences`: {leaf: {head: mean difference between two pictures}}.
    `deviations`: {attribute: (classes,)}, standard deviations of the portrait judge's logits over plain samples.
    """

    heads: dict[str, tuple[str, ...]]
    differences: dict[str, dict[str, float]]
    deviations: dict[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """A pipeline under test with its judges and ruler. `seed` selects the pairs, `batch` is the batch size."""

    pipe: Any
    judges: Judges
    ruler: Ruler
    seed: int = 0
    batch: int = 32

    @property
    def leaves(self) -> list[str]:
        """Active leaves of the tree, in tree order."""
        tree = self.pipe.fusion.tree
        return [leaf for leaf in tree.leaves if leaf in tree.active]

    def pairs(self, count: int, first_seed: int = TEST_SEED) -> Iterable[Pairs]:
        """Yield `count` pairs in batches; the same pairs on every call."""
        for start in range(0, count, self.batch):
            n = min(self.batch, count - start)
            yield draw_pairs(self.pipe, n, self.first(first_seed) + 2 * start, self.batch)

    def first(self, seed: int) -> int:
        """Return the first seed of a purpose; runs with different `seed` share no seeds."""
        return seed + SEED_STRIDE * self.seed

    @cached_property
    def scales(self) -> Scales:
        """Normalization shared by all tables, estimated on fitting pairs."""
        parts: dict[str, list[Columns]] = {leaf: [] for leaf in self.leaves}
        logits: dict[str, list[Tensor]] = {}
        for pairs in self.pairs(HEAD_PAIRS, FITTING_SEED):
            judged = self.compare(pairs)
            for leaf in self.leaves:
                parts[leaf].append(self.ruler.measure(judged, leaf, judged.base, thorough=False))
            for name, x in judged.base.logits.items():
                logits.setdefault(name, []).extend((x, judged.source.logits[name]))
        columns = {leaf: join_columns(found) for leaf, found in parts.items()}
        heads = {leaf: measurable_heads(c) for leaf, c in columns.items()}
        differences = {
            leaf: {h: max(float(c[f"{h}_raw"].sum() / c["seen"].sum().clamp_min(1)), 1e-6) for h in HEADS}
            for leaf, c in columns.items()
        }
        return Scales(heads, differences, {name: torch.cat(x).std(dim=0) for name, x in logits.items()})

    @property
    def heads(self) -> dict[str, tuple[str, ...]]:
        """{leaf: heads used for its S and T}."""
        return self.scales.heads

    @cached_property
    def gallery(self) -> Gallery:
        """Wrong candidates for recognition: plain samples that are neither base nor source of any pair."""
        first, parts = self.first(GALLERY_SEED), []
        for start in range(0, GALLERY_SIZE, self.batch):
            seeds = range(first + start, first + min(start + self.batch, GALLERY_SIZE))
            with torch.no_grad():
                parts.append(self.ruler.look(render(self.pipe, style_codes(self.pipe.generator, seeds))))
        return Gallery(self.ruler, join_images(parts), self.scales.heads, self.scales.differences)

    def compare(self, pairs: Pairs) -> JudgedPairs:
        """Judge bases and sources."""
        return self.ruler.compare(self.ruler.look(pairs.plain), self.ruler.look(pairs.other))


def join_columns(parts: Sequence[Columns]) -> Columns:
    """Concatenate the columns of consecutive batches."""
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
    specific: bool = False,
    recognized: Collection[Job] = (),
) -> dict[Job, Columns]:
    """Return per-pair sums {column: (count,)} of every job, all on the same pairs.

    Args:
        thorough: add the pose gap of each pair (`gap`), how much of the outside change a judge notices, the figures of
            other papers, and the share of pixels on which the model's segmenter and the judge agree, on fused
            (`agree`) and on plain pictures (`agree_plain`).
        specific: repeat each swap with an unrelated source, for the specific transfer.
        recognized: jobs whose swapped regions are also compared with 16 sources.
    """
    parts: dict[Job, list[Columns]] = {job: [] for job in jobs}
    ruler, done = subject.ruler, 0
    deviations = subject.scales.deviations if thorough else None
    known = list(dict.fromkeys(region for _, region, _ in recognized))
    with tqdm(total=count * len(jobs), desc=progress, unit="swap", leave=False) as bar:
        for pairs in subject.pairs(count, first_seed):
            judged = subject.compare(pairs)
            others = with_unrelated_sources(subject.pipe, pairs) if specific else None
            wrong = subject.gallery.candidates(judged, known, done) if known else {}
            extra: Columns = {}
            if thorough:
                extra["gap"] = ruler.pose_gap(judged.base, judged.source).cpu()
                extra["agree_plain"] = agreement(subject, pairs.base_probs, judged.base.labels)
            for job in jobs:
                name, region, strength = job
                images = methods[name].swap(pairs, region, strength)
                after, unrelated = ruler.look(images), None
                if others is not None:
                    unrelated = ruler.look(methods[name].swap(others, region, strength))
                columns = ruler.measure(judged, region, after, thorough, unrelated, deviations)
                if thorough:
                    extra["agree"] = agreement(subject, segment(subject.pipe, images), after.labels)
                if job in recognized:
                    columns |= subject.gallery.recognize(judged, region, after, wrong[region])
                parts[job].append({**columns, **extra})
                bar.update(len(pairs))
            done += len(pairs)
    return {job: join_columns(found) for job, found in parts.items()}


def agreement(subject: Subject, own: Tensor, labels: Tensor) -> Tensor:
    """Return the share of pixels (B,) on which the model's segmenter (B, R, H, W) agrees with the judge's labels."""
    names = list(subject.pipe.segmenter.config.regions)
    order = [names.index(n) if n in names else -1 for n in subject.ruler.regions]
    judged = torch.tensor(order, device=labels.device)[labels]
    own = at_measuring_size(own, labels.shape[-2])
    return (own.argmax(dim=1) == judged).float().mean(dim=(1, 2)).cpu()
