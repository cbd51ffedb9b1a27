"""How near inverted pictures come to real ones, and whether their regions stay dials.

    python -m benchmarks.inversion [--pictures 64] [--out inversion]          half an hour on one core
    python -m benchmarks.inversion --pictures 5 --figure docs/images/inversion.png   a picture of each stage, no table
    python -m benchmarks.inversion --pictures 8 --mix docs/images/mixing.png         pictures mixed two by two

The pictures are avatars that neither the generator nor the encoder was trained with (the trainers' held-out ones, from
index 1,000,000 on). For each: the encoder's guess; codes optimized from it, in w, w+ and s; the mean code optimized;
and the generator tuned at the codes in w+, four pictures at a time.

    prior 0.03 ten times the weight that holds codes near the generator's own
    MSE        mean squared error of pixels in [-1, 1]
    features   how unlike picture and reconstruction look to the evaluation's segmenter, which no model was trained
               with and nothing here optimizes: `features.map_distance` of its levels, 0 to 4
    parts      share of an avatar's parts (hair, eyes, mouth, clothes, ...) that the evaluation's portrait judge names
               alike in both
    seconds    a picture, as measured here, in batches of 16

Then the ruler's figures (docs/research/evaluation.md) of swaps between inverted pictures, two by two, beside those
between plain samples.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from stylefusion_hf import Code, StyleFusionInversionPipeline, StyleFusionPipeline
from stylefusion_hf.data.avatars import render_arrays
from stylefusion_hf.evaluation import sections
from stylefusion_hf.evaluation.evaluate import build_subject, measuring_size
from stylefusion_hf.evaluation.judges import Judges, load_judges
from stylefusion_hf.evaluation.measurement import at_measuring_size
from stylefusion_hf.evaluation.measuring import Subject
from stylefusion_hf.evaluation.pairs import FITTING_SEED, Pairs, render, segment
from stylefusion_hf.evaluation.report import table
from stylefusion_hf.evaluation.statistics import Estimate, ratio, resamples
from stylefusion_hf.imaging.features import map_distance
from stylefusion_hf.imaging.sheets import draw_sheet

FIRST = 1_000_000  # far behind any training index, as the trainers' own held-out pictures
GROUP = 4  # pictures that share a tuned generator, as those of one mix do
RULED = ("encoder", "+ optimization, w+", "+ optimization, w+, prior 0.03", "+ optimization, w")
SWAP_COLUMNS = ("outside", "transfer", "response", "dead")


@dataclass(frozen=True)
class Found:
    """A stage's result: codes in `space`, pictures (N, 3, H, W) in [-1, 1], seconds a picture."""

    codes: Tensor
    space: str
    images: Tensor
    seconds: float


def held_out(count: int, resolution: int) -> Tensor:
    """(N, 3, H, W) in [-1, 1]."""
    images, _ = render_arrays(count, resolution, 0, FIRST, workers=1, progress=False)
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1


class Bench:
    """Real pictures, inverted in several ways."""

    def __init__(self, pipe: StyleFusionPipeline, real: Tensor, steps: int, tuning: int):
        self.fuser, self.real, self.steps, self.tuning = pipe, real, steps, tuning
        self.pipe: Any = StyleFusionInversionPipeline.from_pipe(pipe)
        self.pipe.set_progress_bar_config(disable=True)
        self.kept: dict[str, Found] = {}

    def invert(self, name: str, **call: Any) -> Found:
        """All pictures, by one call."""
        started = time.monotonic()
        out = self.pipe((self.real + 1) / 2, output_type="pt", **call)
        seconds = (time.monotonic() - started) / len(self.real)
        self.kept[name] = Found(out.codes.tensor, out.codes.space, out.images * 2 - 1, seconds)
        return self.kept[name]

    def tune(self, name: str, base: Found) -> Found:
        """The generator tuned at the codes of `base`, for four pictures at a time."""
        started, parts = time.monotonic(), []
        for real, codes in zip(self.real.split(GROUP), base.codes.split(GROUP), strict=True):
            call: dict[str, Any] = {"latent_type": base.space, "start": Code(codes, base.space)}
            parts.append(self.pipe((real + 1) / 2, num_tuning_steps=self.tuning, output_type="pt", **call).images)
        seconds = base.seconds + (time.monotonic() - started) / len(self.real)
        self.kept[name] = Found(base.codes, base.space, torch.cat(parts) * 2 - 1, seconds)
        return self.kept[name]

    def run(self, only: Sequence[str] = ()) -> Iterator[tuple[str, Found]]:
        """Every stage, or those named, in the order of the table."""
        steps = {"num_inference_steps": self.steps}
        stages: dict[str, Callable[[], Found]] = {
            "encoder": lambda: self.invert("encoder"),
            "+ optimization, w+": lambda: self.invert("+ optimization, w+", **steps),
            "+ tuning": lambda: self.tune("+ tuning", self.kept["+ optimization, w+"]),
            "+ optimization, w+, prior 0.03": lambda: self.invert(
                "+ optimization, w+, prior 0.03", prior_weight=0.03, **steps
            ),
            "+ optimization, w": lambda: self.invert("+ optimization, w", latent_type="w", **steps),
            "+ optimization, s": lambda: self.invert("+ optimization, s", latent_type="s", **steps),
            "mean code + optimization, w+": lambda: self.invert("mean code + optimization, w+", start="mean", **steps),
        }
        if unknown := [name for name in only if name not in stages]:
            raise SystemExit(f"no stage {unknown[0]!r}: choose from {'; '.join(stages)}")
        for name, stage in stages.items():
            if not only or name in only:
                yield name, stage()


@torch.no_grad()
def quality(found: Found, real: Tensor, judges: Judges) -> dict[str, Any]:
    """A row of the table."""
    counts, ones = resamples(len(real)), torch.ones(len(real))

    def mean(values: Tensor) -> Estimate:
        return Estimate.of(ratio(counts, values, ones), len(real))

    size = measuring_size(real.shape[-2], judges)
    maps = [judges.segmenter.feature_maps(at_measuring_size(x, size)) for x in (found.images, real)]
    row: dict[str, Any] = {
        "MSE": mean((found.images - real).square().mean(dim=(1, 2, 3))),
        "features": mean(map_distance(*maps)),
    }
    if judges.portrait is not None:
        ours, theirs = (judges.portrait.judge(x).attributes for x in (found.images, real))
        same = torch.stack([ours[k].argmax(1) == theirs[k].argmax(1) for k in theirs]).float().mean(dim=0)
        row["parts"] = mean(same)
    return row | {"seconds": f"{found.seconds:.2f}"}


# --- The ruler on inverted pictures ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class InvertedSubject(Subject):
    """A subject whose test pairs are inverted pictures, the first with the second, the third with the fourth, ..."""

    codes: Any = None  # style codes (N, S)

    def pairs(self, count: int, first_seed: int = 0) -> Iterator[Pairs]:
        """Inverted pairs; where heads of transfer are chosen, plain ones, so that both tables have the same heads."""
        if first_seed == FITTING_SEED:
            yield from super().pairs(count, first_seed)
            return
        for start in range(0, count, self.batch):
            end = min(start + self.batch, count)
            unrelated = self.codes.roll(-2, dims=0)  # of each pair the next one's source
            some = slice(2 * start + 1, 2 * end, 2)
            yield self._pairs(self.codes[2 * start : 2 * end : 2], self.codes[some], unrelated[some])

    @torch.no_grad()
    def _pairs(self, base: Tensor, source: Tensor, unrelated: Tensor) -> Pairs:
        images = [render(self.pipe, s) for s in (base, source)]
        return Pairs(base, source, *images, *(segment(self.pipe, x) for x in images), unrelated)


def swap_table(subjects: dict[str, Subject], count: int) -> str:
    """Each region's row of every subject."""
    rows = {}
    for name, subject in subjects.items():
        for leaf, row in sections.swap_rows(subject, count)["leaf"].items():
            rows[f"{leaf}, {name}"] = {k: row[k] for k in SWAP_COLUMNS if k in row}
    order = sorted(rows, key=lambda k: list(subjects.values())[0].leaves.index(k.split(",")[0]))
    return table("region, codes", {k: rows[k] for k in order}, SWAP_COLUMNS)


def inverted_subject(subject: Subject, codes: Tensor) -> InvertedSubject:
    """The same model and ruler, on other pairs."""
    return InvertedSubject(**{f.name: getattr(subject, f.name) for f in fields(Subject)}, codes=codes)


# --- The picture -----------------------------------------------------------------------------------------------------


def figure(bench: Bench) -> Image.Image:
    """A row a picture: the real one and what each stage makes of it."""
    stages = dict(bench.run(["encoder", "+ optimization, w+", "+ tuning"]))
    columns = [bench.real, *(found.images for found in stages.values())]
    rows = [[as_image(column[i]) for column in columns] for i in range(len(bench.real))]
    titles = ["base", "encoder", "+_optimization", "+_tuning"]
    mse = [(found.images - bench.real).square().mean(dim=(1, 2, 3)) for found in stages.values()]
    labels = [(f"avatar {FIRST + i}", "MSE " + ", ".join(f"{float(m[i]):.3f}" for m in mse)) for i in range(len(rows))]
    return draw_sheet(titles, labels, rows, brackets=("inverted",))


def mix(bench: Bench) -> Image.Image:
    """A row for two pictures: the first with the second's hair and the clothes of seed 7, by each stage's codes."""
    stages: list[dict[str, Any]] = [{}, {"num_inference_steps": bench.steps}]
    stages.append(stages[1] | {"num_tuning_steps": bench.tuning})
    rows = []
    for pair in bench.real.split(2):
        row = [as_image(x) for x in pair]
        for call in stages:
            out = bench.pipe((pair + 1) / 2, **call)
            swapped = {} if out.generator is None else {"generator": out.generator}
            fuser = StyleFusionPipeline.from_pipe(bench.fuser, **swapped)
            base, other = out.codes.rows()
            made = fuser(base=base, regions={"hair": other, "clothes": 7}, noise_mode="none")
            row.append(made.images[0])
        rows.append(row)
    labels = [(f"avatar {FIRST + 2 * i}", f"hair of {FIRST + 2 * i + 1}") for i in range(len(rows))]
    titles = ["base", "source", "encoder", "+_optimization", "+_tuning"]
    return draw_sheet(titles, labels, rows, brackets=("mixed",))


def as_image(x: Tensor) -> Image.Image:
    """(3, H, W) in [-1, 1]."""
    return Image.fromarray(x.clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy())


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a pipeline folder or Hub id (default: the embedded model)")
    parser.add_argument("--pictures", type=int, default=64, help="an even number (default: 64)")
    parser.add_argument("--steps", type=int, default=200, help="of optimization (default: 200)")
    parser.add_argument("--tune", type=int, default=200, help="steps of tuning (default: 200)")
    parser.add_argument("--stages", nargs="+", default=(), metavar="STAGE", help="only these, named as in the table")
    parser.add_argument("--out", help="also write the tables to OUT.md")
    parser.add_argument("--figure", help="draw this PNG instead: each stage's reconstructions")
    parser.add_argument("--mix", help="draw this PNG instead: pictures mixed two by two")
    args = parser.parse_args(argv)
    pipe = StyleFusionPipeline.from_pretrained(args.model) if args.model else StyleFusionPipeline.from_embedded()
    if pipe.encoder is None:
        raise SystemExit("this model has no encoder: train one with `stylefusion train encoder`")
    bench = Bench(pipe, held_out(args.pictures, pipe.generator.config.resolution), args.steps, args.tune)
    if args.figure:
        figure(bench).save(args.figure)
        return
    if args.pictures < 2 or args.pictures % 2:
        raise SystemExit("pictures are taken two by two: give an even number")
    if args.mix:
        mix(bench).save(args.mix)
        return
    judges, rows = load_judges(), {}
    for name, found in bench.run(args.stages):
        rows[name] = quality(found, bench.real, judges)
        print(f"{name}: {rows[name]}", flush=True)
    text = [f"{args.pictures} pictures, {args.steps} steps of optimization, {args.tune} of tuning.", ""]
    text += [table("stage", rows), ""]
    subject = build_subject(pipe, judges)
    ruled = [n for n in bench.kept if n in RULED]
    with torch.no_grad():
        styles = {n: pipe.generator.to_style(bench.kept[n].codes) for n in ruled}
    subjects = {"samples": subject} | {n: inverted_subject(subject, s) for n, s in styles.items()}
    text += [f"Swaps, {args.pictures // 2} pairs.", "", swap_table(subjects, args.pictures // 2)]
    print("\n".join(text))
    if args.out:
        Path(args.out).with_suffix(".md").write_text("\n".join(text) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
