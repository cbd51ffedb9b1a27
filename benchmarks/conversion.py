"""Memory and time of `stylefusion convert` on checkpoints of the published size: 1024 px, with discriminator.

    python -m benchmarks.conversion

Run it in the root of the repository. It writes one checkpoint after the other into a temporary folder (two gigabytes,
removed at the end), converts each in a process of its own and prints a markdown table. The weights are random.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

MB = 10**6
CHANNELS = [512, 512, 512, 512, 512, 256, 128, 64, 32]  # of 4, 8, ..., 1024 px: NVIDIA's and rosinality's widths

KINDS = {
    "NVIDIA, PyTorch `.pkl` (G, D, G_ema)": "nvidia.pkl",
    "NVIDIA, TensorFlow `.pkl` (G, D, Gs)": "tensorflow.pkl",
    "the same, data as text (pickle protocol 2)": "tensorflow-text.pkl",
    "rosinality `.pt`, zip (g, d, g_ema)": "rosinality-zip.pt",
    "rosinality `.pt`, legacy (g, d, g_ema)": "rosinality-legacy.pt",
}


def write(path: Path, full: bool) -> None:
    """The checkpoint that the file's name stands for; of 32 px unless `full`."""
    import torch

    from stylefusion_hf import StyleGAN2Discriminator, StyleGAN2Generator
    from tests import checkpoints

    channels = CHANNELS if full else [8, 8, 8, 8]
    resolution = 2 ** (len(channels) + 1)
    torch.manual_seed(0)
    g = StyleGAN2Generator(resolution, channels).requires_grad_(False)
    d = StyleGAN2Discriminator(resolution, channels).requires_grad_(False)
    g.w_avg.normal_()
    if path.name == "nvidia.pkl":
        checkpoints.save_nvidia(path, g, d)
    elif path.name.startswith("tensorflow"):
        checkpoints.save_tensorflow(path, g, d, protocol=2 if "text" in path.name else 4)  # NVIDIA's own: 4
    else:
        weights = checkpoints.rosinality_generator(g)
        content = {"g_ema": weights, "g": {name: tensor + 1 for name, tensor in weights.items()}}
        content |= {"d": checkpoints.rosinality_discriminator(d), "latent_avg": g.w_avg}
        torch.save(content, path, _use_new_zipfile_serialization="zip" in path.name)


def measure(*command: str | Path) -> tuple[float, int]:
    """(seconds, peak bytes of resident memory, the mapped file included) of a Python process of its own."""
    start = time.monotonic()
    child = subprocess.Popen([sys.executable, *map(str, command)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed, see above")
    return time.monotonic() - start, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="32 px: whether the script works, no figures of use")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write(args.write, not args.small)
        return
    seconds, base = measure("-c", "import stylefusion_hf.conversion.convert")
    print(f"imports alone: {seconds:.0f} s, {base / MB:.0f} MB\n")
    print("| checkpoint | file | seconds | peak memory | peak / file |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, file in KINDS.items():
            path = Path(folder) / file
            # Written by a child too: a child's peak counts what its parent held when it was started.
            measure("-m", "benchmarks.conversion", "--write", path, *["--small"] * args.small)
            options = ("--with-discriminator", "--no-progress")
            seconds, peak = measure("-m", "stylefusion_hf.cli", "convert", path, f"{path}.out", *options)
            size = path.stat().st_size
            path.unlink()
            print(
                f"| {name} | {size / MB:.0f} MB | {seconds:.0f} | {peak / MB:.0f} MB | {peak / size:.2f} |", flush=True
            )


if __name__ == "__main__":
    main()
