"""Memory over many calls: `python -m tests.endurance --calls 1000` prints what the process holds while all three
pipelines make pictures, and fails if it grows.
tests/repository/test_threads_and_memory.py runs it with fewer calls, and with a leak.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from stylefusion_hf import StyleFusionInterpolationPipeline, StyleFusionInversionPipeline, StyleFusionPipeline
from tests.tiny import RESOLUTION, tiny_encoder, tiny_fusion, tiny_generator, tiny_segmenter

WARM_UP = 0.25  # share of the calls after which caches and the allocator have what they need
ALLOWED = 2 * 2**20  # bytes that the rest may add: the allocator's own noise


def pipelines() -> tuple[Any, Any, Any]:
    """The three, around the same tiny models."""
    generator = tiny_generator()
    parts = (generator, tiny_fusion(generator), tiny_segmenter(), tiny_encoder())
    made = (
        StyleFusionPipeline(*parts),
        StyleFusionInterpolationPipeline(*parts),
        StyleFusionInversionPipeline(*parts),
    )
    for pipe in made:
        pipe.set_progress_bar_config(disable=True)
    return made


def one_call(pipes: tuple[Any, Any, Any], k: int) -> Any:
    """A call of all three pipelines; what it returns is to be dropped."""
    fuse, walk, invert = pipes
    out = fuse(base=[k, k + 1], regions={"hair": k + 2}, global_code=k, strength=0.5, output_masks=True)
    fuse.from_recipe(out.recipe)
    walk(base=[k, k + 1], regions={"eyes": k}, frames=4, output_type="pt")
    image = torch.full((1, 3, RESOLUTION, RESOLUTION), (k % 10) / 10)
    return invert(image, num_inference_steps=2, num_tuning_steps=1, output_type="pt")


def resident() -> int:
    """Bytes of memory that this process holds now, without what it keeps for later."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * 4096


def growth(call: Callable[[int], Any], calls: int, say: Callable[[str], Any] = lambda line: None) -> int:
    """Bytes by which `calls` calls grow the process once it is warm."""
    start = 0
    for k in range(calls):
        call(k)
        if k + 1 == int(calls * WARM_UP):
            start = resident()
        if (k + 1) % max(1, calls // 10) == 0:
            say(f"{k + 1:6d} calls: {resident() / 2**20:8.1f} MiB")
    return resident() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--leak", type=int, default=0, metavar="BYTES", help="keep this much of every call")
    args = parser.parse_args()
    calls, pipes, kept = args.calls, pipelines(), []

    def call(k: int) -> None:
        one_call(pipes, k)
        kept.append(b"x" * args.leak)

    grown = growth(call, calls, print)
    print(f"{grown / 2**10:+.0f} KiB over the last {calls - int(calls * WARM_UP)} calls of each pipeline")
    return int(grown > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
