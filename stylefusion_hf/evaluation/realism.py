"""How plausible and how various fused pictures are beside plain ones, against real pictures.

    excess = (KID(fused, real) - KID(plain, real)) / KID(plain, real)
    kinds  = exp of the entropy of the classes that the portrait judge names: geometric mean over its attributes

Precision is 1 for one plausible picture drawn again and again; density and coverage (Naeem et al., arXiv 2002.09797),
recall and the effective number of kinds are not: such a generator covers next to nothing and has 1 kind.

The usual Inception features know photographs and cannot be had without a download, so the features are the portrait
judge's (avatars) or the evaluation segmenter's: figures compare pictures of one domain with one another, not with
published KIDs. Without real pictures a second plain draw takes their place, and the plain difference is given.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
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

PLAIN_SEED, REAL_START, MAX_COUNT = 6_000_000, 2_000_000, 100_000
LOW = 0.05  # the quantile of the plain pictures' logits below which a picture counts as implausible


@dataclass
class Opinions:
    """What the judges say of N pictures: `features` (N, D), `logits` (N,) of the discriminator or None, and the class
    (N,) that the portrait judge names for each attribute in `kinds`.
    """

    features: Tensor
    logits: Tensor | None
    kinds: dict[str, Tensor]


@torch.no_grad()
def judge(subject: Subject, images: Callable[[range], Tensor], count: int, what: str) -> Opinions:
    """Opinions on `count` pictures that `images` makes of consecutive numbers."""
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
    """The effective number of kinds, geometric mean over attributes; intervals are over the pictures."""
    counts = resamples(len(next(iter(kinds.values()))))
    logs = [effective_number(classes, counts).log() for classes in kinds.values()]
    return Estimate.of(torch.stack(logs).mean(dim=0).exp(), counts.shape[1])


def real_pictures(source: str, size: int, count: int) -> Callable[[range], Tensor]:
    """Pictures by number: `"avatars"` are drawn, anything else is a folder as `data.folders` reads it.

    Raises:
        ValueError: the folder holds fewer than `count` pictures. ImportError: the extra `train` is missing.
    """
    if source == "avatars":
        from stylefusion_hf.data.avatars import render_arrays

        arrays, _ = render_arrays(count, size, start=REAL_START)
        return lambda numbers: torch.from_numpy(arrays[list(numbers)]).permute(0, 3, 1, 2).float().div(127.5).sub(1)
    from stylefusion_hf.data.folders import ImageFolder

    folder = ImageFolder(Path(source), size)
    if len(folder) < count:
        raise ValueError(f"--real {source} holds {len(folder)} pictures, fewer than --realism-count {count}")
    return lambda numbers: torch.stack([folder[i]["image"] for i in numbers])


def check_real(source: str, size: int, count: int) -> None:
    """The errors of `real_pictures` and `realism_rows` ahead of long work."""
    if not 10 <= count <= MAX_COUNT:
        raise ValueError(f"realism needs 10 to {MAX_COUNT} pictures a side, got {count}")
    if source != "avatars":
        real_pictures(source, size, count)


@torch.no_grad()
def realism_rows(subject: Subject, count: int, real: str | None) -> dict[str, Any]:
    """Rows for one swapped region and for every region from another code, beside plain samples.

    `count` pictures on each side. Intervals: KID's error is that of 100 subsets, scaled to `count`; shares are
    bootstrapped over the pictures.

    Raises:
        ValueError: fewer than 10 pictures, or more than 100 000.
    """
    g, fusion, size = subject.pipe.generator, subject.pipe.fusion, subject.pipe.generator.config.resolution
    check_real(real or "avatars", size, count)
    if real == "avatars":  # all of them are kept
        size = min(size, subject.ruler.size or size)
    leaves = subject.leaves

    def codes(numbers: range, draw: int) -> Tensor:
        first = subject.first(PLAIN_SEED) + draw * MAX_COUNT
        return style_codes(g, range(first + numbers.start, first + numbers.stop))

    def plain(numbers: range, draw: int = 0) -> Tensor:
        return render(subject.pipe, codes(numbers, draw))

    def one_region(numbers: range) -> Tensor:
        a, b = codes(numbers, 0), codes(numbers, 1)
        turn = torch.tensor([n % len(leaves) for n in numbers], device=a.device)[:, None]
        given = {n: torch.where(turn == leaves.index(n), b, a) if n in leaves else a for n in fusion.tree.nodes}
        return render(subject.pipe, fusion.fuse(given))

    def every_region(numbers: range) -> Tensor:
        base = codes(numbers, 0)
        given = {n: codes(numbers, 1 + leaves.index(n)) if n in leaves else base for n in fusion.tree.nodes}
        return render(subject.pipe, fusion.fuse(given))

    drawn = real == "avatars"  # of which there are as many as one likes: a second draw shows what equality reads as
    pictures = real_pictures(real, size, count * (1 + drawn)) if real else lambda n: plain(n, 60)
    opinions = judge(subject, pictures, count, "real")
    reference = opinions.features
    mean, std = reference.mean(dim=0), reference.std(dim=0).clamp_min(1e-6)
    reference = (reference - mean) / std
    kinds = {"plain samples": plain, "one region swapped": one_region, "every region another's": every_region}
    if drawn:
        kinds["other real pictures"] = lambda numbers: pictures(range(count + numbers.start, count + numbers.stop))
    counts = resamples(count)
    rows: dict[str, Any] = {}
    if opinions.kinds:
        rows["data" if real else "a second plain draw"] = {"kinds": number_of_kinds(opinions.kinds)}
    # From the spread of subsets to that of all pictures; the subsets are drawn from a finite number of them.
    size = min(1000, max(2, count // 5))
    scale = math.sqrt(size / count / (1 - size / count))
    low = subsets = None
    for name, make in kinds.items():
        opinions = judge(subject, make, count, name)
        features, logits = (opinions.features - mean) / std, opinions.logits
        found = kid_subsets(features, reference, size=size)
        error = scale * float(found.std())
        row: dict[str, Any] = {"KID x 1000": from_error(1000 * float(found.mean()), 1000 * error, count)}
        if subsets is None:
            subsets, plain_error = found, error
        else:
            change = found - subsets
            spread = scale * float(change.std())
            base = float(subsets.mean())
            if real is None:
                row["KID x 1000 - plain's"] = from_error(1000 * float(change.mean()), 1000 * spread, count)
            elif base > 2 * plain_error:
                row["excess"] = from_error(float(change.mean()) / base, spread / base, count)
            else:  # plain pictures cannot be told from real ones: a ratio to nothing
                row["excess"] = Estimate(math.nan, math.nan, math.nan, count)
        some = slice(0, 2000)  # distances between all pictures: the square of their number
        row["precision"] = share_on_manifold(reference[some], features[some])
        row["recall"] = share_on_manifold(features[some], reference[some])
        row["density"], row["coverage"] = density_and_coverage(reference[some], features[some])
        if opinions.kinds:
            row["kinds"] = number_of_kinds(opinions.kinds)
        if logits is not None:
            low = logits.quantile(LOW) if low is None else low
            row["below the 5th percentile"] = Estimate.of(ratio(counts, logits < low, torch.ones(count)), count)
        rows[name] = row
    return {"real": real or "a second plain draw", "count": count, "rows": rows}


def from_error(value: float, error: float, n: int) -> Estimate:
    """An estimate from a standard error."""
    return Estimate(value, value - 1.96 * error, value + 1.96 * error, n)
