"""How well regions are found without labels, and learned from a few painted samples, where the exact ones are known.

    python -m benchmarks.regions
    python -m benchmarks.regions --regions runs/avatars/regions --artwork avatars
    python -m benchmarks.regions --model runs/cars --judge runs/cars-judge --regions runs/cars-fusion/regions \
        --artwork cars
    python -m benchmarks.regions --model faces --judge stylefusion_hf/assets/faces/evaluation --regions regions \
        --artwork samples --seeds 0 --painted

The truth on samples is a judge segmenter, trained on drawn pictures with exact maps (the embedded judges, or --judge).
Found regions have no names: each exact region is compared with the one found region that overlaps it most, one to one.
With --regions, that folder's segmenters are held against the exact maps of drawn pictures that nothing was trained on.
Where no pictures can be drawn, --artwork samples compares its segmenter with the judge on the samples. Generators
above 256 px are compared on their 256 px previews.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf import RegionSegmenter, StyleFusionPipeline, StyleGenerator
from stylefusion_hf.evaluation.evaluate import measuring_size
from stylefusion_hf.evaluation.judges import load_judges
from stylefusion_hf.evaluation.measurement import at_measuring_size
from stylefusion_hf.evaluation.report import table
from stylefusion_hf.regions.clustering import contingency, jaccard
from stylefusion_hf.regions.discovery import discover, sample_codes
from stylefusion_hf.regions.few_shot import UNPAINTED, PaintFolder, learn, predict_labels, sample_images

SAMPLES = 128  # on which labels are compared
LARGE = 256  # px, the height of the largest pictures that are compared
HELD_OUT = 1_000_000  # index of the first drawn picture, far behind any training's


def matched(labels: Tensor, truth: Tensor, regions: int) -> Tensor:
    """(regions,), the IoU of each region of `truth` with its own one of `labels`; the best pairs are matched first."""
    found = int(labels.max()) + 1
    iou = jaccard(contingency(labels, truth, found, regions))
    result = torch.zeros(regions)
    for _ in range(min(found, regions)):
        i, j = divmod(int(iou.argmax()), regions)
        result[j] = iou[i, j]
        iou[i], iou[:, j] = -1, -1
    return result


@torch.no_grad()
def segmented(segmenter: RegionSegmenter, g: StyleGenerator, codes: Tensor, seen: int | None = None) -> Tensor:
    """(N, H, W), the labels that a segmenter gives the pictures of style codes (N, S); it sees them at a size."""
    size = max((height for height in g.picture_sizes if height <= LARGE), default=None)
    parts = codes.split(32)
    return torch.cat([labels_of(segmenter, g.synthesis(s, up_to=size).clamp(-1, 1), seen) for s in parts])


@torch.no_grad()
def labels_of(segmenter: RegionSegmenter, images: Tensor, seen: int | None) -> Tensor:
    """(N, H, W), the labels of images (N, 3, H, W), which the segmenter sees at a size (None: as they are)."""
    labels = segmenter.segment(at_measuring_size(images, seen)).argmax(1)
    return F.interpolate(labels[:, None].float(), size=images.shape[-2:], mode="nearest")[:, 0].long()


def hold_against_samples(folder: str, g: StyleGenerator, codes: Tensor, truth: Tensor, names: list[str]) -> None:
    """Print how a folder's segmenter agrees with the judge's maps of the samples, each found region with one."""
    network = RegionSegmenter.from_pretrained(Path(folder, "segmenter")).eval()
    iou = matched(segmented(network, g, codes), truth, len(names))
    found = len(network.config.regions)
    best = iou.sort(descending=True).values[:found]
    row = {"regions": found, "mean of these": float(best.mean())} | dict(zip(names, iou.tolist(), strict=True))
    print(f"## {folder} on {len(codes)} samples: IoU with the judge\n\n{table('', {'segmenter': row})}")


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", help="a folder with generator/ (default: the embedded model)")
    p.add_argument("--judge", help="a folder with segmenter/ (default: the embedded judges)")
    p.add_argument("--seeds", type=int, default=5, help="clusterings")
    p.add_argument("--painted", type=int, nargs="*", default=[2, 4, 8], help="painted samples")
    p.add_argument("--share", type=float, default=0.03, help="of a sample's pixels that are painted")
    p.add_argument("--regions", help="a folder of `stylefusion regions`, to hold against drawn pictures")
    p.add_argument(
        "--artwork", choices=("avatars", "cars", "samples"), default="avatars", help="what --regions is held against"
    )
    args = p.parse_args()
    own = None
    if args.model:
        g = StyleGenerator.from_pretrained(args.model, subfolder="generator").eval().requires_grad_(False)
    else:
        pipe = StyleFusionPipeline.from_embedded()
        g, own = pipe.generator, pipe.segmenter
    judges = load_judges(args.judge)
    judge, seen = judges.segmenter, measuring_size(g.config.resolution, judges)
    names = list(judge.config.regions)
    codes = sample_codes(g, SAMPLES, torch.Generator().manual_seed(999))
    truth = segmented(judge, g, codes, seen)

    rows, maps = {}, []
    if own is not None:  # trained on exact maps, as the judge was: what agreement there is to be had
        labels = segmented(own, g, codes)
        iou = matched(labels, truth, len(names))
        row = {"regions": len(own.config.regions), "seconds": float("nan"), "mean": float(iou.mean())}
        rows["the model's own segmenter"] = row | dict(zip(names, iou.tolist(), strict=True))
    for seed in range(args.seeds):
        started = time.monotonic()
        found = discover(g, seed=seed, progress=False)
        seconds = time.monotonic() - started
        maps.append(predict_labels(g, found.labeller, codes))
        iou = matched(maps[-1], truth, len(names))
        row = {"regions": len(found.tree.leaves), "seconds": seconds, "mean": float(iou.mean())}
        rows[f"seed {seed}"] = row | dict(zip(names, iou.tolist(), strict=True))
        print(f"seed {seed}: {found.tree}", flush=True)
    again = [
        float(matched(a, b, int(b.max()) + 1).mean()) for a, b in itertools.permutations(maps, 2) if args.seeds > 1
    ]
    if rows:
        print(f"\n## Found without labels: IoU with the exact regions\n\n{table('', rows)}\n")
    if again:
        print(f"Found again with another seed: mean matched IoU {np.mean(again):.2f}.\n")

    rows = {}
    for count in args.painted:
        with tempfile.TemporaryDirectory() as folder:
            paint, draw = PaintFolder.create(Path(folder, "p"), g, names, count), np.random.RandomState(0)
            known = labels_of(judge, sample_images(g, paint.seeds), seen).numpy().astype(np.uint8)
            for seed, labels in zip(paint.seeds, known, strict=True):
                chosen = draw.rand(*labels.shape) < args.share
                paint.paint(seed, np.where(chosen, labels, UNPAINTED).astype(np.uint8))
            started = time.monotonic()
            found = learn(g, paint, check=False, progress=False)
            seconds = time.monotonic() - started
            labels = predict_labels(g, found.labeller, codes)
        iou = jaccard(contingency(labels, truth, len(names), len(names))).diag()
        row = {"seconds": seconds, "mean": float(iou.mean())}
        rows[f"{count} samples"] = row | dict(zip(names, iou.tolist(), strict=True))
    if rows:
        print(f"## Learned from painted samples ({args.share:.0%} of their pixels)\n\n{table('', rows)}\n")

    if args.regions and args.artwork == "samples":
        hold_against_samples(args.regions, g, codes, truth, names)
    elif args.regions:
        if args.artwork == "cars":
            from stylefusion_hf.data.cars import CARS as ART
        else:
            from stylefusion_hf.data.avatars import AVATARS as ART
        pixels, exact = ART.render_arrays(512, g.config.resolution, start=HELD_OUT, workers=1, progress=False)
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        rows = {}
        for part in ("segmenter", "judges/segmenter"):
            network = RegionSegmenter.from_pretrained(Path(args.regions, part)).eval()
            with torch.no_grad():
                labels = torch.cat([network.segment(x).argmax(1) for x in images.split(64)])
            iou = matched(labels, torch.from_numpy(exact).long(), len(ART.regions))
            rows[part] = {"mean": float(iou.mean())} | dict(zip(ART.regions, iou.tolist(), strict=True))
        print(f"## {args.regions} on 512 drawn pictures: IoU with the exact maps\n\n{table('', rows)}")


if __name__ == "__main__":
    main()
