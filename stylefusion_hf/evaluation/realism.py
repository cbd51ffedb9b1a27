"""Realism and diversity of fused and plain pictures, compared with real pictures.

    excess = (KID(fused, real) - KID(plain, real)) / KID(plain, real)
    kinds  = exp of the entropy of the portrait judge's predicted classes, geometric mean over its attributes

Precision is 1 for a generator that repeats one plausible picture. Density and coverage (Naeem et al., arXiv
2002.09797), recall and the effective number of kinds expose it: it covers next to nothing and has 1 kind.

Inception features are made for photographs and need a download, so features come from the portrait judge (avatars) or
from the evaluation segmenter. Figures compare pictures of one domain with each other, not with published KIDs. Without
real pictures, a second set of plain samples replaces them and the difference in KID is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.core.sizes import describe_size, size_at
from stylefusion_hf.evaluation.judged import JudgedImages
from stylefusion_hf.evaluation.measurement import at_measuring_size
from stylefusion_hf.evaluation.measuring import Subject
from stylefusion_hf.evaluation.pairs import render, style_codes
from stylefusion_hf.evaluation.statistics import (
    Estimate,
    density_and_coverage,
    effective_number,
    kid_subsets,
    ratio,
    resamples,
    share_on_manifold,
)
from stylefusion_hf.models.style_generator import StyleGenerator

PLAIN_SEED, REAL_START, MAX_COUNT = 6_000_000, 2_000_000, 100_000
SECOND_DRAW = 60  # of plain samples, beyond those of all regions
LOW = 0.05  # pictures below this quantile of the plain pictures' logits count as implausible
HARDLY = 1e-3  # of the mean deviation: features that vary less over the real pictures say nothing


@dataclass
class Opinions:
    """Judgments of N pictures: `features` (N, D), `logits` (N,) of the discriminator or None, and in `kinds` the
    portrait judge's predicted class (N,) of each attribute.
    """

    features: Tensor
    logits: Tensor | None
    kinds: dict[str, Tensor]


@torch.no_grad()
def judge_pictures(subject: Subject, images: Callable[[range], Tensor], count: int, what: str) -> Opinions:
    """Judge `count` pictures, which `images` returns by ranges of numbers."""
    features, logits = [], []
    kinds: dict[str, list[Tensor]] = {}
    d = subject.judges.discriminator
    for start in tqdm(range(0, count, subject.batch), desc=what, unit="batch", leave=False):
        x = images(range(start, min(start + subject.batch, count))).to(subject.pipe.generator.device)
        judged: JudgedImages = subject.ruler.look(x)
        features.append(judged.features.float().cpu())
        for name, found in judged.logits.items():
            kinds.setdefault(name, []).append(found.argmax(dim=1).cpu())
        if d is not None:
            x = at_measuring_size(x, d.config.resolution)
            logits.append(d(x).logits[:, 0].float().cpu())
    joined_kinds = {name: torch.cat(found) for name, found in kinds.items()}
    return Opinions(torch.cat(features), torch.cat(logits) if logits else None, joined_kinds)


def number_of_kinds(kinds: dict[str, Tensor]) -> Estimate:
    """Return the effective number of kinds, geometric mean over attributes, with intervals over the pictures."""
    counts = resamples(len(next(iter(kinds.values()))))
    logs = [effective_number(classes, counts).log() for classes in kinds.values()]
    return Estimate.of(torch.stack(logs).mean(dim=0).exp(), counts.shape[1])


def real_pictures(source: str, size: tuple[int, int], channels: int, count: int) -> Callable[[range], Tensor]:
    """Return a function from numbers to pictures: rendered `"avatars"`, or a folder that `data.folders` can read.

    size: (height, width).

    Raises:
        ValueError: the folder holds fewer than `count` pictures, or avatars are to be other than color and square.
            ImportError: the extra `train` is not installed.
    """
    if source == "avatars":
        if size[0] != size[1] or channels != 3:
            raise ValueError(
                f"--real avatars are squares of 3 channels, this model's pictures {describe_size(size)} of {channels}:"
                " name a folder, or none"
            )
        from stylefusion_hf.data.avatars import render_arrays

        def draw(numbers: range) -> Tensor:
            start = REAL_START + numbers.start
            arrays, _ = render_arrays(len(numbers), size[0], start=start, workers=1, progress=False)
            return torch.from_numpy(arrays).permute(0, 3, 1, 2).float().div(127.5).sub(1)

        return draw
    from stylefusion_hf.data.folders import ImageFolder

    folder = ImageFolder(Path(source), size, channels=channels)
    if len(folder) < count:
        raise ValueError(f"--real {source} holds {len(folder)} pictures, fewer than --realism-count {count}")
    return lambda numbers: torch.stack([folder[i]["image"] for i in numbers])


def check_real(source: str, generator: StyleGenerator, count: int) -> None:
    """Raise the errors of `real_pictures` and `realism_rows` before long computations start."""
    if not 10 <= count <= MAX_COUNT:
        raise ValueError(f"realism needs 10 to {MAX_COUNT} pictures per set, got {count}")
    if source != "avatars":
        real_pictures(source, generator.picture_size, generator.config.img_channels, count)


@dataclass
class Normalization:
    """What rows are compared with.

    `reference`: standardized features (N, D) of the real pictures, with their `mean` and `std`. The row of plain
    samples sets the rest: KIDs of `subsets`, the error of their mean, and the discriminator's LOW quantile.
    """

    reference: Tensor
    mean: Tensor
    std: Tensor
    subsets: Tensor | None = None
    plain_error: float = 0.0
    low: Tensor | None = None


def normalization(real: Tensor) -> Normalization:
    """Return the scale of features by those of real pictures (N, D).

    Features that hardly vary over the real pictures (by less than a thousandth of the mean deviation), as some do in a
    small set, become 0 in all sets: in units of their deviation they would outweigh all others.
    """
    mean, std = real.mean(dim=0), real.std(dim=0)
    std = std.masked_fill(std <= HARDLY * std.mean(), math.inf)
    return Normalization((real - mean) / std, mean, std)


@torch.no_grad()
def realism_rows(subject: Subject, count: int, real: str | None) -> dict[str, Any]:
    """Return rows for one swapped region and for every region from another code, beside plain samples.

    Each set has `count` pictures. The error of KID is that of 100 subsets, scaled to `count`; shares are bootstrapped
    over the pictures.

    Raises:
        ValueError: fewer than 10 pictures, or more than 100 000.
    """
    generator = subject.pipe.generator
    size, channels = generator.picture_size, generator.config.img_channels
    check_real(real or "avatars", generator, count)
    rendered = real == "avatars"  # of which there is a second set: it shows what equal distributions read
    if rendered:  # no larger than the judges see them
        d = subject.judges.discriminator
        seen = max(subject.ruler.size or size[0], 0 if d is None else d.config.resolution)
        size = size_at(min(size[0], seen), size)
    sets = fused_sets(subject)
    pictures = real_pictures(real, size, channels, count * (1 + rendered)) if real else plain_set(subject, SECOND_DRAW)
    if rendered:
        sets["other real pictures"] = lambda numbers: pictures(range(count + numbers.start, count + numbers.stop))
    opinions = judge_pictures(subject, pictures, count, "real")
    scale = normalization(opinions.features)
    rows: dict[str, Any] = {}
    if opinions.kinds:
        rows["data" if real else "a second plain draw"] = {"kinds": number_of_kinds(opinions.kinds)}
    for name, make in sets.items():
        rows[name] = set_row(judge_pictures(subject, make, count, name), scale, bool(real))
    return {"real": real or "a second plain draw", "count": count, "rows": rows}


def sample_codes(subject: Subject, numbers: range, draw: int) -> Tensor:
    """Return the style codes (B, S) of these numbers of a draw; draws share no seeds."""
    first = subject.first(PLAIN_SEED) + draw * MAX_COUNT
    return style_codes(subject.pipe.generator, range(first + numbers.start, first + numbers.stop))


def plain_set(subject: Subject, draw: int) -> Callable[[range], Tensor]:
    """Return a function from numbers to plain samples of a draw."""
    return lambda numbers: render(subject.pipe, sample_codes(subject, numbers, draw))


def fused_sets(subject: Subject) -> dict[str, Callable[[range], Tensor]]:
    """Return {name: function from numbers to pictures} of plain and fused samples."""
    fusion, leaves = subject.pipe.fusion, subject.leaves
    codes = partial(sample_codes, subject)

    def one_region(numbers: range) -> Tensor:
        a, b = codes(numbers, 0), codes(numbers, 1)
        turn = torch.tensor([n % len(leaves) for n in numbers], device=a.device)[:, None]
        given = {n: torch.where(turn == leaves.index(n), b, a) if n in leaves else a for n in fusion.tree.nodes}
        return render(subject.pipe, fusion.fuse(given))

    def every_region(numbers: range) -> Tensor:
        base = codes(numbers, 0)
        given = {n: codes(numbers, 1 + leaves.index(n)) if n in leaves else base for n in fusion.tree.nodes}
        return render(subject.pipe, fusion.fuse(given))

    return {
        "plain samples": plain_set(subject, 0),
        "one region swapped": one_region,
        "every region another's": every_region,
    }


def set_row(opinions: Opinions, scale: Normalization, real: bool) -> dict[str, Any]:
    """Return the figures of one set of pictures; the first set, plain samples, completes `scale`."""
    count = len(opinions.features)
    features, logits = (opinions.features - scale.mean) / scale.std, opinions.logits
    # From the spread of subsets to that of all pictures; the subsets are drawn from a finite number of them.
    size = min(1000, max(2, count // 5))
    to_all = math.sqrt(size / count / (1 - size / count))
    found = kid_subsets(features, scale.reference, size=size)
    error = to_all * float(found.std())
    row: dict[str, Any] = {"KID x 1000": estimate_from_error(1000 * float(found.mean()), 1000 * error, count)}
    if scale.subsets is None:
        scale.subsets, scale.plain_error = found, error
    else:
        change = found - scale.subsets
        spread, base = to_all * float(change.std()), float(scale.subsets.mean())
        if not real:
            row["KID x 1000 - plain's"] = estimate_from_error(1000 * float(change.mean()), 1000 * spread, count)
        elif base > 2 * scale.plain_error:
            row["excess"] = estimate_from_error(float(change.mean()) / base, spread / base, count)
        else:  # plain and real pictures are indistinguishable: the ratio is undefined
            row["excess"] = Estimate(math.nan, math.nan, math.nan, count)
    some = slice(0, 2000)  # the cost of all pairwise distances is quadratic
    row["precision"] = share_on_manifold(scale.reference[some], features[some])
    row["recall"] = share_on_manifold(features[some], scale.reference[some])
    row["density"], row["coverage"] = density_and_coverage(scale.reference[some], features[some])
    if opinions.kinds:
        row["kinds"] = number_of_kinds(opinions.kinds)
    if logits is not None:
        scale.low = logits.quantile(LOW) if scale.low is None else scale.low
        rejected = ratio(resamples(count), logits < scale.low, torch.ones(count))
        row["below the 5th percentile"] = Estimate.of(rejected, count)
    return row


def estimate_from_error(value: float, error: float, n: int) -> Estimate:
    """Return an estimate with a normal interval from a standard error."""
    return Estimate(value, value - 1.96 * error, value + 1.96 * error, n)
