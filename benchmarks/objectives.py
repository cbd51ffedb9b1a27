"""The ablation table of docs/research/objective.md: one short training for each config, all read by the same ruler.

    python -m benchmarks.objectives --model FOLDER --output_dir runs [--rows A,B] [--flags --max_train_steps 100]
    python -m benchmarks.objectives --model FOLDER --output_dir runs --configs two_by_two --no-gains

FOLDER holds generator/, segmenter/ and, for the realism term, discriminator/. Every JSON file of benchmarks/objective
(or of its folder --configs) is a row: flags of `stylefusion train fusion` over base.json's, which is none itself. A
row that is there already is not trained again, and one that was interrupted goes on, so several processes may share
the work by --rows; what is there is printed as a markdown table.

The figures: S, O and T are means over regions, O's geometric, of single swaps on validation pairs, with 95 % intervals
by resampling these pairs where they are shown alone; "gain" is
the median over regions of the outside change of learned static gates at the row's own transfers, divided by the row's
(a mean would follow the one region whose T comes near these gates' ceiling): above 1 the row is more local than these
gates at equal transfer; "worst" is the smallest of these ratios. G and "kept" are pose error and looks kept
under all common codes from a third picture; "implausible" is the share of fully mixed pictures that the unseen
discriminator finds worse than 95 % of plain samples; "minutes" are of one training on whatever ran it.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import torch

from stylefusion_hf import StyleFusionPipeline
from stylefusion_hf.evaluation.brief import brief, brief_figures
from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.figures import figures
from stylefusion_hf.evaluation.fusion_swaps import StyleFusionSwap
from stylefusion_hf.evaluation.gates import LearnedGates
from stylefusion_hf.evaluation.judges import Judges, load_judges
from stylefusion_hf.evaluation.measuring import measure_jobs
from stylefusion_hf.evaluation.pairs import VALIDATION_SEED, render, style_codes
from stylefusion_hf.evaluation.statistics import outside_at
from stylefusion_hf.training import fusion

ROWS = Path(__file__).parent / "objective"


def row_flags(configs: Path, name: str) -> dict:
    """Flags of a row: its own over those that all share."""
    return json.loads((configs / "base.json").read_text()) | json.loads((configs / f"{name}.json").read_text())


def train(name: str, args: argparse.Namespace) -> Path:
    """Train a row, unless it is there; its folder."""
    out = Path(args.output_dir) / name
    if not (out / "minutes.json").is_file():  # written last
        out.mkdir(parents=True, exist_ok=True)
        config = out / "config.json"
        config.write_text(json.dumps(row_flags(ROWS / args.configs, name), indent=2))
        started = time.monotonic()
        command = ["--model", args.model, "--output_dir", str(out), "--config", str(config), *args.flags]
        fusion.train(fusion.parse_args([*command, "--resume_from_checkpoint", "latest"]))
        (out / "minutes.json").write_text(json.dumps((time.monotonic() - started) / 60))
    return out


def gate_curves(folder: Path, pairs: int, judges: Judges, cache: Path) -> dict[str, list[tuple[float, float]]]:
    """{region: (O, T) of learned static gates at every strength} on the validation pairs; made once a generator.

    folder: any row, for its generator and segmenter.
    """
    if not cache.is_file():
        pipe = StyleFusionPipeline.from_pretrained(folder)
        subject = build_subject(pipe, judges)
        path = cache.with_name("gates.safetensors")
        if not path.is_file():
            LearnedGates(pipe).fit().save(path)
        method = LearnedGates.load(pipe, path)
        jobs = [("gates", leaf, s) for leaf in subject.leaves for s in method.strengths]
        found: dict[str, list[tuple[float, float]]] = {leaf: [] for leaf in subject.leaves}
        for (_, leaf, _), row in brief_figures(subject, {"gates": method}, jobs, pairs).items():
            found[leaf].append((row["outside"], row["transfer"]))
        cache.write_text(json.dumps(found))
    return json.loads(cache.read_text())


@torch.no_grad()
def implausible(pipe: StyleFusionPipeline, judges: Judges, count: int = 256) -> float:
    """Share of pictures with every leaf another's that are below the plain samples' 5th percentile."""
    if judges.discriminator is None:
        return math.nan
    g, tree = pipe.generator, pipe.fusion.tree
    base = style_codes(g, range(VALIDATION_SEED, VALIDATION_SEED + count))
    codes = {n: base.roll(tree.leaves.index(n) + 1, 0) if n in tree.leaves else base for n in tree.nodes}
    plain, mixed = (
        torch.cat([judges.discriminator(render(pipe, x)).logits[:, 0] for x in s.split(64)])
        for s in (base, pipe.fusion.fuse(codes))
    )
    return float((mixed < plain.quantile(0.05)).float().mean())


def measure(folder: Path, pairs: int, judges: Judges) -> dict[str, float]:
    """The figures of a trained row, region by region."""
    pipe = StyleFusionPipeline.from_pretrained(folder)
    return brief(pipe, judges, pairs) | {"implausible": implausible(pipe, judges)} | intervals(pipe, judges, pairs)


def intervals(pipe: StyleFusionPipeline, judges: Judges, pairs: int, count: int = 400) -> dict[str, float]:
    """{"S low", "S high", "O low", ...}: 95 % of the means over regions when the pairs are resampled."""
    subject = build_subject(pipe, judges)
    picked = torch.randint(pairs, (count, pairs), generator=torch.Generator().manual_seed(0))
    counts = torch.nn.functional.one_hot(picked, pairs).sum(dim=1).double()
    jobs = [("stylefusion", leaf, 1.0) for leaf in subject.leaves]
    swaps = {"stylefusion": StyleFusionSwap(pipe)}
    rows = [
        figures(columns, counts, subject.heads[leaf])
        for (_, leaf, _), columns in measure_jobs(subject, swaps, jobs, pairs, VALIDATION_SEED, specific=True).items()
    ]
    found = {}
    for name, figure in (("S", "specific"), ("O", "outside"), ("T", "transfer")):
        each = torch.stack([row[figure].double() for row in rows])
        mean = each.clamp_min(1e-6).log().mean(dim=0).exp() if name == "O" else each.nanmean(dim=0)
        low, high = mean.quantile(torch.tensor([0.025, 0.975], dtype=mean.dtype)).tolist()
        found |= {f"{name} low": low, f"{name} high": high}
    return found


def summary(found: dict[str, float], curves: dict[str, list[tuple[float, float]]] | None) -> dict[str, float]:
    """S, O and T over the regions, and gain where there are curves."""
    leaves = [name.removeprefix("T ") for name in found if name.startswith("T ") and name not in ("T low", "T high")]
    s, o, t = ([found[f"{figure} {leaf}"] for leaf in leaves] for figure in "SOT")
    means = {
        "S": sum(s) / len(s),
        "O": math.exp(sum(math.log(max(x, 1e-6)) for x in o) / len(o)),
        "T": sum(t) / len(t),
    }
    if curves is None:
        return means
    o, t = ([found[f"{figure} {leaf}"] for leaf in curves] for figure in "OT")
    theirs = [outside_at(*zip(*points, strict=True), at) for points, at in zip(curves.values(), t, strict=True)]
    # Where these gates never reach the row's T, the row is better by any factor.
    gains = [x / max(own, 1e-6) if x == x else math.inf for x, own in zip(theirs, o, strict=True)]
    return means | {"gain": statistics.median(gains), "worst": min(gains)}


def main() -> None:
    about = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser("python -m benchmarks.objectives", description=__doc__, formatter_class=about)
    p.add_argument("--model", required=True)
    p.add_argument("--output_dir", required=True)
    p.add_argument("--configs", default=".", help="folder of rows in benchmarks/objective")
    p.add_argument("--gains", action=argparse.BooleanOptionalAction, default=True, help="against learned static gates")
    p.add_argument("--rows", help="comma-separated; all if left out")
    p.add_argument("--pairs", type=int, default=96)
    p.add_argument("--judges")
    p.add_argument("--also", metavar="FOLDER", help="a pipeline folder to read beside the rows")
    p.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="for every training; must come last")
    args = p.parse_args()
    every = sorted(path.stem for path in (ROWS / args.configs).glob("*.json") if path.stem != "base")
    rows = args.rows.split(",") if args.rows else every
    if unknown := [name for name in rows if name not in every]:
        p.error(f"no row {unknown[0]!r}; there are {', '.join(every)}")
    judges = load_judges(args.judges)
    for name in rows:
        folder = train(name, args)
        figures = folder / f"figures{args.pairs}.json"
        if not figures.is_file():
            figures.write_text(json.dumps(measure(folder, args.pairs, judges), indent=2))
    out = Path(args.output_dir)
    curves = gate_curves(out / rows[0], args.pairs, judges, out / f"gates{args.pairs}.json") if args.gains else None
    columns = ("S", "O", "T", *(("gain", "worst") if args.gains else ()), "G", "kept", "implausible")

    def show(name: str, found: dict[str, float], minutes: str) -> None:
        found = found | summary(found, curves)
        texts = [f"{found[c]:.3f}" for c in columns]
        for i, c in enumerate(() if args.gains else columns[:3]):
            texts[i] += f" [{found[f'{c} low']:.3f}, {found[f'{c} high']:.3f}]"
        print(f"| {name} | {' | '.join(texts)} | {minutes} |")

    print(f"| row | {' | '.join(columns)} | minutes |\n|{'---|' * (len(columns) + 2)}")
    for name in rows:
        found, minutes = (
            json.loads((out / name / f"{x}.json").read_text()) for x in (f"figures{args.pairs}", "minutes")
        )
        show(name, found, f"{minutes:.1f}")
    if args.also:
        show(args.also, measure(Path(args.also), args.pairs, judges), "")


if __name__ == "__main__":
    main()
