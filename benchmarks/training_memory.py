"""What a step of the fusion trainer takes at 1024 pixels: peak memory and CPU time, with random config-f weights.

    python -m benchmarks.training_memory [--train_resolution 256] [--batch 4] [--steps 3] [--memory_gib 8]

A generator of StyleGAN2's config-f (30 million weights) and a U-Net as deep as the size asks for, both untrained; the
pool and the pictures for the start gates are few, since their number takes time and not memory (pools are planned).
The segmenter sees pictures at the training resolution, as a trained one would if it agrees with itself there. Prints a
row of docs/guides/train.md's table. Random weights say nothing of quality.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from stylefusion_hf import RegionSegmenter, RegionTree, StyleGAN2Generator
from stylefusion_hf.models.segmenter import segmenter_channels
from stylefusion_hf.training import fusion


def save_models(folder: Path, resolution: int, tree: str) -> None:
    """Untrained networks."""
    torch.manual_seed(0)
    StyleGAN2Generator(resolution=resolution).save_pretrained(folder / "generator")
    leaves = list(RegionTree.of(tree).leaves)
    RegionSegmenter(regions=leaves, channels=segmenter_channels(resolution)).save_pretrained(folder / "segmenter")


def main() -> None:
    about = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser("python -m benchmarks.training_memory", description=__doc__, formatter_class=about)
    p.add_argument("--resolution", type=int, default=1024)
    p.add_argument("--train_resolution", type=int, default=256)
    p.add_argument("--batch", type=int, default=4)
    p.add_argument("--steps", type=int, default=3)
    p.add_argument("--memory_gib", type=float, default=8.0)
    p.add_argument("--pool_size", type=int, default=16)
    p.add_argument("--start_pictures", type=int, default=2)
    p.add_argument("--flags", nargs=argparse.REMAINDER, default=[], help="further ones of the trainer; must come last")
    args = p.parse_args()
    seconds: list[float] = []
    step = fusion.backward

    def timed(*given: Any) -> Any:
        started = time.process_time()
        found = step(*given)
        seconds.append(time.process_time() - started)
        return found

    fusion.backward = timed
    with tempfile.TemporaryDirectory() as folder:
        save_models(Path(folder), args.resolution, "avatar")
        flags = {
            "model": folder,
            "output_dir": Path(folder, "run"),
            "train_resolution": args.train_resolution,
            "segmenter_resolution": args.train_resolution,
            "train_batch_size": args.batch,
            "max_train_steps": args.steps,
            "static_steps": 0,
            "pool_size": args.pool_size,
            "start_pictures": args.start_pictures,
            "memory_gib": args.memory_gib,
            "validation_steps": 0,
            "validation_pairs": 0,
            "logging_steps": 1,
        }
        words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
        started = time.process_time()
        fusion.train(fusion.parse_args([*words, *args.flags]))
        total = time.process_time() - started
        parts = [json.loads(line) for line in Path(folder, "run", "log.jsonl").read_text().splitlines()][-1]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print({name: round(value, 2) for name, value in parts.items() if name.startswith("s ")})
    print(f"| {args.resolution} | {args.train_resolution} | {args.batch} | {peak:.2f} GiB | {min(seconds):.1f} s |")
    print(f"whole run: {total:.0f} CPU-seconds; steps: {', '.join(f'{s:.1f}' for s in seconds)}")


if __name__ == "__main__":
    main()
