"""CPU-seconds of the command line, from the shell to its end: help, an argument error, one picture.

    python benchmarks/startup.py [--repeats 3] [--model FOLDER]

Of several runs the least is shown (others are what the machine did beside it), and torch's own import for comparison.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLI = ["-m", "stylefusion_hf.cli"]


def cpu_seconds(argv: list[str], folder: str, threads: str | None) -> tuple[float, int]:
    """User and system time of a Python process and its exit status."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    env.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        env["OMP_NUM_THREADS"] = threads
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, *argv], cwd=folder, env=env, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", help="a folder (default: the embedded model)")
    args = parser.parse_args()
    model = ["--model", os.path.abspath(args.model)] if args.model else []
    cases = {
        "import torch": (["-c", "import torch"], 0),
        "stylefusion fuse --help": ([*CLI, "fuse", "--help"], 0),
        "stylefusion fuse, a typing error": ([*CLI, "fuse", "--region", "nose_=7", *model], 2),
        "stylefusion fuse, one picture": ([*CLI, "fuse", "--base", "1", "--out", "fused.png", *model], 0),
    }
    print(f"{'':<34} {'1 thread':>9} {'default':>9}")
    with tempfile.TemporaryDirectory() as folder:
        for name, (argv, expected) in cases.items():
            least = []
            for threads in ("1", None):
                runs = [cpu_seconds(argv, folder, threads) for _ in range(args.repeats)]
                if any(status != expected for _, status in runs):
                    raise SystemExit(f"{name}: it ended with {runs[0][1]}, expected {expected}")
                least.append(min(seconds for seconds, _ in runs))
            print(f"{name:<34} {least[0]:>8.2f}s {least[1]:>8.2f}s")


if __name__ == "__main__":
    main()
