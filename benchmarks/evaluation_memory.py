"""Peak memory and CPU time of the ruler's stages at any resolution, on random weights.

    python -m benchmarks.evaluation_memory --resolution 1024                  # config-f widths
    python -m benchmarks.evaluation_memory --resolution 1024 --channels 8     # narrow layers
    python -m benchmarks.evaluation_memory --stages swaps,static-gates

Every stage runs on one or two pictures. Batches hold a single picture at 1024 pixels, so that more pictures take more
time but no more memory. The last line gives the size of the pool of samples, which does grow.
"""

from __future__ import annotations

import argparse
import resource
from collections.abc import Callable
from pathlib import Path

import torch

from stylefusion_hf import FusionHierarchy, RegionSegmenter, StyleFusionPipeline, StyleGAN2Generator
from stylefusion_hf.evaluation import global_control, measuring
from stylefusion_hf.evaluation.baselines import EditingInStyle, LocalChannels, RetrieveInStyle
from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.fusion_swaps import StyleFusionSwap
from stylefusion_hf.evaluation.gates import LearnedGates
from stylefusion_hf.evaluation.judges import Judges
from stylefusion_hf.evaluation.limits import LimitSearch
from stylefusion_hf.evaluation.masked_swaps import FeatureBlending
from stylefusion_hf.evaluation.measurement import LARGEST_SIZE
from stylefusion_hf.evaluation.measuring import Subject, measure_jobs
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.pairs import draw_pairs
from stylefusion_hf.evaluation.score import TrainingScore
from stylefusion_hf.models.layers import chunk_size
from stylefusion_hf.models.segmenter import segmenter_channels

TREE = "all*(face*(skin_mouth*(mouth, skin), eyes), bg_hair*(background, hair))"
REGIONS = ["background", "skin", "mouth", "eyes", "hair"]
REGION = "hair"


def build(resolution: int, channels: int | None) -> Subject:
    """Return an untrained model with its judges; `channels` makes every layer that narrow."""
    torch.manual_seed(0)
    widths = {} if channels is None else {"channels": [channels] * (resolution.bit_length() - 2)}
    generator = StyleGAN2Generator(resolution, **widths)
    fusion = FusionHierarchy.for_generator(generator, TREE)
    own, judge = (
        RegionSegmenter(regions=REGIONS, channels=segmenter_channels(size))
        for size in (resolution, min(resolution, LARGEST_SIZE))
    )
    for network in (generator, fusion, own, judge):
        network.eval().requires_grad_(False)
    pipe = StyleFusionPipeline(generator, fusion, own)
    return build_subject(pipe, Judges(judge, None, None, Path("random")), batch=chunk_size(resolution, 32))


def stages(subject: Subject) -> dict[str, Callable[[], object]]:
    """Return {stage: function that runs it once}."""
    pipe, batch = subject.pipe, subject.batch

    def swap(method: Method, specific: bool = False) -> None:
        job = [("method", REGION, method.strengths[-1])]
        measure_jobs(subject, {"method": method}, job, 1, specific=specific, recognized=job if specific else ())

    def fit_gates() -> None:
        score = TrainingScore(pipe, samples=2, batch=batch)
        swap(LearnedGates(pipe, (1.0,), steps=1, batch=2, pool=2, score=score, chunk_size=batch))

    def search_limit() -> None:
        score = TrainingScore(pipe, samples=2, batch=batch)
        LimitSearch(pipe, draw_pairs(pipe, 1, batch=batch), [REGION], [1.0], score, batch).search("code", steps=1)

    return {
        "scales and gallery": lambda: (subject.scales, subject.gallery),
        "swaps": lambda: swap(StyleFusionSwap(pipe), specific=True),
        "global": lambda: global_control.pose_curves(subject, 1, only=[global_control.ROOT], strengths=(1.0,)),
        "feature-blending": lambda: swap(FeatureBlending(pipe)),
        "editing-in-style": lambda: swap(EditingInStyle(pipe, samples=2, batch=batch)),
        "retrieve-in-style": lambda: swap(RetrieveInStyle(pipe, samples=2, batch=batch)),
        "local-channels": lambda: swap(LocalChannels(pipe, samples=2, batch=batch)),
        "static-gates": fit_gates,
        "limits": search_limit,
    }


def pool_gib(size: int, regions: int, count: int) -> float:
    """Return the memory of `count` described samples: picture, probabilities and 64-bit labels at measuring size."""
    return count * size**2 * (4 * 3 + 4 * regions + 8) / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--resolution", type=int, default=1024)
    parser.add_argument("--channels", type=int, help="width of every layer (default: config-f)")
    parser.add_argument("--stages", metavar="A,B", help="only these (default: all)")
    args = parser.parse_args()
    measuring.HEAD_PAIRS, measuring.GALLERY_SIZE = 1, 2
    subject = build(args.resolution, args.channels)
    found = stages(subject)
    print("| stage | peak so far, GiB | CPU seconds |\n|---|---|---|")
    last = 0.0
    for name in args.stages.split(",") if args.stages else found:
        found[name]()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        spent = usage.ru_utime + usage.ru_stime
        print(f"| {name} | {usage.ru_maxrss / 2**20:.2f} | {spent - last:.0f} |", flush=True)
        last = spent
    size = subject.ruler.size or args.resolution
    few, many = (pool_gib(size, regions, 256) for regions in (5, 19))
    print(f"| pool of 256 samples, 5 (19) regions | {few:.2f} ({many:.2f}) more | |")


if __name__ == "__main__":
    main()
