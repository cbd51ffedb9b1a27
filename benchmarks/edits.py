"""What an edit moves outside its region: applied to the whole code, against applied to the region's code only.

    python -m benchmarks.edits [--seeds 64] [--strength 1] [--out edits]      five minutes on one core
    python -m benchmarks.edits --low-rank                                     and LowRankGAN beside it
    python -m benchmarks.edits --seeds 16 --sheet docs/images/edits.png       a picture of four cells, no table

For a direction d, a region r and a seed: I0 is the plain picture, Ig the one with d added to the whole code, Ic the
one with a * d added to the code of r alone. M is where r is in I0, Ig or Ic (by the evaluation segmenter, which no
model was trained with), widened by 1/64 of the width as for the ruler's O. With sums over seeds,

    inside(a)  = sum |M (Ic - I0)|^2 / sum |M (Ig - I0)|^2            1: as much change where it is wanted
    ratio      = sum |(1-M)(Ig - I0)|^2 / sum |(1-M)(Ic - I0)|^2      where inside(a) = 1

so that an edit that is merely weaker gains nothing. Both pictures are read in the same mask. a is raised or lowered by
steps until inside has passed 1; the ratio is read between the two nearest (logarithms, linearly), in every bootstrap
resample of the seeds anew. What does not reach 1 at the largest a is marked, and left out of the means.

`--low-rank` keeps the edit inside the region in another way, LowRankGAN's (Zhu et al., arXiv 2106.04488): d is
projected, picture by picture, off the directions that change what lies outside r most, the principal subspace of the
outside pixels' Jacobian. Channels are in units of their deviation; the subspace is sketched by random projections of
the Jacobian. Its rank is chosen once for all regions and directions, on 16 seeds of their own.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from stylefusion_hf import Direction, StyleFusionPipeline
from stylefusion_hf.core.edits import style_offsets
from stylefusion_hf.editing.directions import boundary_from_regions, ganspace, measure_regions, sefa
from stylefusion_hf.evaluation.evaluate import measuring_size
from stylefusion_hf.evaluation.judges import load_judges
from stylefusion_hf.evaluation.measurement import at_measuring_size, changed_area, most_probable
from stylefusion_hf.evaluation.pairs import FITTING_SEED, TEST_SEED, VALIDATION_SEED, render, style_codes
from stylefusion_hf.evaluation.statistics import Estimate, resamples
from stylefusion_hf.imaging.sheets import BASE, draw_sheet
from stylefusion_hf.models.layers import chunk_size

RANKS, TUNING_SEEDS = (16, 32, 64), 16
FACTOR, LEAST_A, MOST_A = 1.7, 0.3, 5.0  # a is tried at 1 and at this factor's powers up or down, within bounds


SHOWN = (
    (1, "hair-warmth", "hair"),
    (1, "pc000", "skin"),
    (11, "background-brightness", "background"),
    (6, "pc001", "mouth"),
)


@dataclass(frozen=True)
class Cell:
    """A direction in a region: the ratio, and the strength that equals the inside (NaN where none does).

    `reached`: the largest inside(a) of all strengths. `draws`: log ratios of all resamples.
    """

    direction: str
    region: str
    ratio: Estimate
    strength: float
    reached: float
    draws: Tensor

    def text(self) -> str:
        """The table's entry."""
        if math.isnan(self.ratio.value):
            return f"not reached ({self.reached:.2f})"
        return f"{self.ratio.value:.1f} [{self.ratio.low:.1f}, {self.ratio.high:.1f}]"


def chosen(pipe: StyleFusionPipeline) -> list[Direction]:
    """Return ten directions: three of SeFa, three of GANSpace, and four from statistics of regions."""
    measured = measure_regions(pipe.generator, pipe.segmenter, 500)
    kinds = (("hair", "warmth"), ("background", "brightness"), ("clothes", "brightness"), ("eyes", "area"))
    regions = [boundary_from_regions(pipe.generator, pipe.segmenter, *kind, measured=measured) for kind in kinds]
    return [*sefa(pipe.generator, 3), *ganspace(pipe.generator, 3), *regions]


class Bench:
    """Plain pictures of some seeds, and what edits change in them."""

    def __init__(
        self, pipe: StyleFusionPipeline, seeds: int, strength: float, first: int = TEST_SEED, rank: int | None = None
    ):
        """rank: of LowRankGAN's projection, instead of the fusion nets."""
        self.pipe, self.strength, self.batch = pipe, strength, chunk_size(pipe.generator.config.resolution, 64)
        self.rank = rank
        self.spans: dict[str, Tensor] = {}
        judges = load_judges()
        self.size = measuring_size(pipe.generator.config.resolution, judges)
        self.segmenter = judges.segmenter
        self.regions = list(self.segmenter.config.regions)
        self.base = style_codes(pipe.generator, range(first, first + seeds))
        self.deviation = style_codes(pipe.generator, range(FITTING_SEED, FITTING_SEED + 256)).std(dim=0)
        self.plain = self.pictures(self.base)
        self.labels = self.seen(self.plain)
        self.counts = resamples(seeds)

    def pictures(self, style: Tensor) -> Tensor:
        """(B, 3, h, w), of the size that the judges know."""
        return torch.cat([at_measuring_size(render(self.pipe, part), self.size) for part in style.split(self.batch)])

    def seen(self, images: Tensor) -> Tensor:
        """(B, H, W), the region of every pixel."""
        return torch.cat([most_probable(self.segmenter.segment(part)) for part in images.split(self.batch)])

    def sums(self, region: str, edited: Tensor, whole: Tensor, masks: list[Tensor]) -> Tensor:
        """(4, N): squared change inside and outside, by the region's edit, then by the whole edit, in one mask."""
        r = self.regions.index(region)
        first, *others = [labels == r for labels in masks]
        m = changed_area(first, torch.stack(others).any(dim=0))[:, None].float()
        changes = [(images - self.plain).square() for images in (edited, whole)]
        parts = [x.flatten(1).sum(dim=1).double() for c in changes for x in (m * c, (1 - m) * c)]
        return torch.stack(parts)

    def run(self, direction: Direction, regions: Sequence[str] | None = None) -> list[Cell]:
        """The direction in these regions, or in every leaf."""
        step = direction(self.strength).displacement(self.pipe.generator)
        offset = style_offsets(self.pipe.generator, [step], self.base.device)  # (1, S)
        whole = self.pictures(self.base + offset)
        labels = self.seen(whole)
        names = self.pipe.fusion.tree.leaves if regions is None else regions
        return [self.cell(direction, region, offset, whole, labels) for region in names]

    def edited(self, region: str, offset: Tensor) -> Tensor:
        """Style codes (N, S) with an offset (1, S) in one region: by the fusion nets, or projected."""
        if self.rank is None:
            codes = dict.fromkeys(self.pipe.fusion.tree.active, self.base)
            return self.pipe.fusion.fuse(codes | {region: self.base + offset})
        if region not in self.spans:
            self.spans[region] = self.span_of_outside(region)
        basis = self.spans[region][..., : self.rank]  # (N, S, rank)
        step = (offset / self.deviation).expand_as(self.base)[..., None]
        return self.base + (step - basis @ (basis.transpose(1, 2) @ step))[..., 0] * self.deviation

    @torch.enable_grad()
    def span_of_outside(self, region: str, rank: int = max(RANKS)) -> Tensor:
        """(N, S, rank), orthonormal: the directions, in units of deviations, that change the outside most, first."""
        draw = torch.Generator().manual_seed(0)
        inside, parts = self.labels == self.regions.index(region), []
        m = ~changed_area(inside, inside)
        for s, outside in zip(self.base.split(self.batch), m.split(self.batch), strict=True):
            x = (s / self.deviation).requires_grad_()
            pictures = self.pipe.generator.synthesis(x * self.deviation) * outside[:, None]
            rows = []
            for _ in range(2 * rank):
                sign = torch.randint(0, 2, pictures.shape, generator=draw).to(pictures) * 2 - 1
                rows.append(torch.autograd.grad((pictures * sign).sum(), x, retain_graph=True)[0])
            parts.append(torch.linalg.svd(torch.stack(rows, dim=2), full_matrices=False).U[..., :rank])
        return torch.cat(parts)

    def cell(self, direction: Direction, region: str, offset: Tensor, whole: Tensor, labels: Tensor) -> Cell:
        tried: dict[float, Tensor] = {}  # a -> sums
        a = 1.0
        while LEAST_A <= a <= MOST_A:
            edited = self.pictures(self.edited(region, a * offset))
            tried[a] = self.sums(region, edited, whole, [self.labels, labels, self.seen(edited)])
            passed = [inside(row) >= 1 for row in tried.values()]
            if any(passed) and not all(passed):
                break
            a *= 1 / FACTOR if passed[-1] else FACTOR
        draws = torch.full((2, len(self.counts)), torch.nan, dtype=torch.float64)
        if any(passed) and not all(passed):
            draws = at_equal(self.counts, list(tried.values())[-2:], list(tried)[-2:])
        ratio = Estimate.of(draws[0].exp(), len(self.base))
        return Cell(
            direction.name,
            region,
            ratio,
            float(draws[1, 0].exp()) * self.strength,
            max(map(inside, tried.values())),
            draws[0],
        )


def inside(sums: Tensor) -> float:
    """inside(a) of `Bench.sums`."""
    return float(sums[0].sum() / sums[2].sum())


def at_equal(counts: Tensor, sums: list[Tensor], strengths: list[float]) -> Tensor:
    """(2, rounds + 1): log ratio and log a where inside(a) is 1, on the line through two strengths (in logarithms)."""
    (in0, out0), (in1, out1) = (
        ((x[0] / x[2]).log(), (x[3] / x[1]).log()) for x in (row.double() @ counts.t() for row in sums)
    )
    t = -in0 / (in1 - in0)
    a0, a1 = math.log(strengths[0]), math.log(strengths[1])
    return torch.stack([out0 + t * (out1 - out0), a0 + t * (a1 - a0)])


def best_rank(pipe: StyleFusionPipeline, directions: Sequence[Direction], strength: float) -> int:
    """The rank of the largest mean log ratio on seeds of their own; a cell that is not reached counts as no gain."""
    bench, means = Bench(pipe, TUNING_SEEDS, strength, VALIDATION_SEED), {}
    for rank in RANKS:
        bench.rank = rank
        ratios = [cell.ratio.value for direction in directions for cell in bench.run(direction)]
        means[rank] = sum(0.0 if math.isnan(x) else math.log(x) for x in ratios) / len(ratios)
    return max(means, key=means.__getitem__)


def table(cells: list[Cell], regions: tuple[str, ...], seeds: int) -> str:
    """The markdown table: a row for each direction, a column for each region; geometric means at the edges."""

    def mean(chosen: list[Cell]) -> str:
        reached = [cell for cell in chosen if not math.isnan(cell.ratio.value)]
        if not reached:
            return ""
        estimate = Estimate.of(torch.stack([cell.draws for cell in reached]).nanmean(dim=0).exp(), seeds)
        return f"{estimate.value:.1f} [{estimate.low:.1f}, {estimate.high:.1f}] ({len(reached)} of {len(chosen)})"

    names = list(dict.fromkeys(cell.direction for cell in cells))
    at = {(cell.direction, cell.region): cell for cell in cells}
    lines = [f"| direction | {' | '.join(regions)} | mean |", "|---" * (len(regions) + 2) + "|"]
    for name in names:
        row = [at[name, region] for region in regions]
        lines.append(f"| {name} | {' | '.join(cell.text() for cell in row)} | {mean(row)} |")
    columns = [mean([at[name, region] for name in names]) for region in regions]
    lines.append(f"| mean | {' | '.join(columns)} | {mean(cells)} |")
    return "\n".join(lines)


def sheet(bench: Bench) -> Image.Image:
    """Four cells of the table, each on a seed of its own, with the region's edit as strong as the table has it."""
    rows, labels = [], []
    directions = {direction.name: direction for direction in chosen(bench.pipe)}
    for seed, name, region in SHOWN:
        direction = directions[name]
        strength = bench.run(direction, [region])[0].strength
        edits = {"all": direction([0, bench.strength, 0]), region: direction([0, 0, strength])}
        pictures = bench.pipe(base=seed, edits=edits, output_type="pt").images
        change = (pictures[1:] - pictures[:1]).abs().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
        shown = torch.cat([pictures, 1 - (2 * change).clamp(0, 1)]).permute(0, 2, 3, 1)
        rows.append([Image.fromarray(x.mul(255).round().byte().numpy()) for x in shown])
        labels.append((f"{name}, {region}", f"{bench.strength:g} all over, {strength:.1f} there"))
    columns = [BASE, "everything edited", "the region edited", "change everywhere", "change, region edited"]
    return draw_sheet(
        [c.replace(" ", "_") for c in columns], labels, rows, brackets=("equal change inside the region",)
    )


@torch.no_grad()
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline folder or Hub id (default: the embedded model)")
    parser.add_argument("--seeds", type=int, default=64, help="pictures behind each figure (default: 64)")
    parser.add_argument("--strength", type=float, default=1.0, help="of the whole edit, in deviations (default: 1)")
    parser.add_argument("--low-rank", action="store_true", help="a second table, of LowRankGAN's projection")
    parser.add_argument("--out", help="also write the table to OUT.md")
    parser.add_argument("--sheet", help="draw this PNG instead")
    args = parser.parse_args(argv)
    started = time.monotonic()
    pipe = StyleFusionPipeline.from_pretrained(args.model) if args.model else StyleFusionPipeline.from_embedded()
    pipe.set_progress_bar_config(disable=True)
    bench = Bench(pipe, args.seeds, args.strength)
    if args.sheet:
        sheet(bench).save(args.sheet)
        return
    directions, texts = chosen(pipe), []
    ranks = [None, best_rank(pipe, directions, args.strength)] if args.low_rank else [None]
    for rank in ranks:
        bench.rank, cells = rank, []
        for direction in directions:
            cells += bench.run(direction)
            print(f"{time.monotonic() - started:5.0f} s  {direction.name}", flush=True)
        name = "The region's code" if rank is None else f"LowRankGAN, rank {rank}"
        strengths = [cell.strength for cell in cells if not math.isnan(cell.strength)]
        median = f"{statistics.median(strengths):.2f}" if strengths else "undefined"
        texts.append(
            f"{name}:\n\n{table(cells, pipe.fusion.tree.leaves, args.seeds)}\n\nStrength of the whole edit:"
            f" {args.strength:g}; of the region's, in the median: {median}."
        )
    text = "\n\n".join(texts)
    print(f"\n{text}")
    if args.out:
        Path(args.out).with_suffix(".md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
