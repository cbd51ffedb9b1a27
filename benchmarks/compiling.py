"""What torch.compile gives on this machine: processor time of a pipeline call, plain and compiled, taking turns.

    python -m benchmarks.compiling [--model embedded] [--model faces] [--rounds 20]

Each model is loaded twice, and `torch.compile(..., fullgraph=True)` is put around one pipeline's generator and fusion
nets, as the guides say. Prints the rows of the table in docs/research/performance.md. Compiling needs a C++ compiler;
its cost is the processor time of the first call, that compiler's included.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile

import torch

from stylefusion_hf import StyleFusionPipeline

CALL = {"base": 1, "regions": {"hair": 7}, "output_type": "pt"}
HEADER = "| model | picture | plain, CPU-ms | compiled | ratio | first compiled call, CPU-s | largest difference |"


def processor_seconds() -> float:
    """Processor time of this process and of those that it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def measure(model: str, rounds: int) -> str:
    """One row of the table."""
    plain, compiled = (StyleFusionPipeline.from_pretrained(model) for _ in range(2))
    compiled.generator = torch.compile(compiled.generator, fullgraph=True)
    compiled.fusion = torch.compile(compiled.fusion, fullgraph=True)
    expected = plain(**CALL).images
    started = processor_seconds()
    difference = float((compiled(**CALL).images - expected).abs().max())
    first = processor_seconds() - started
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for pipe, seconds in zip((plain, compiled), times, strict=True):
            started = processor_seconds()
            pipe(**CALL)
            seconds.append(processor_seconds() - started)
    before, after = (statistics.median(seconds) * 1e3 for seconds in times)
    height, width = plain.generator.picture_size
    figures = f"{before:.1f} | {after:.1f} | {after / before:.2f} | {first:.0f} | {difference:.1e}"
    return f"| {os.path.basename(model)} | {height} x {width} | {figures} |"


def main() -> None:
    about = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m benchmarks.compiling", description=__doc__, formatter_class=about)
    parser.add_argument("--model", action="append", help="a name, folder or Hub id with a region `hair`; repeatable")
    parser.add_argument("--rounds", type=int, default=20)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:  # no cache of an earlier run, so that the first call compiles
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", folder)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n\n{HEADER}\n{'|---' * 7}|")
        for model in args.model or ["embedded"]:
            print(measure(model, args.rounds), flush=True)


if __name__ == "__main__":
    main()
