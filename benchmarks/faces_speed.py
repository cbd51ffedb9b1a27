"""Speed and memory of the faces generator, against OpenVINO's runtime on the graph that it was converted from.

    python -m benchmarks.faces_speed --model .cache/faces [--ir .cache/random_face-2021.7.21.1-py3-none-any.whl]

Each row is a process of its own: OpenVINO (where it can be imported and `--ir` is given; in float32), PyTorch's
operators, and the native ones, which are built first. The floor is the time of the multiplications at the rate of a
2048 x 2048 matrix product plus that of reading and writing each block's maps once at the rate of a large copy. Times
are the least of some rounds: of the wall, and of CPU-seconds, which other work on the machine disturbs less. Prints a
table.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

ROUNDS = 5


def measure(job: Callable[[], object], rounds: int = ROUNDS) -> dict[str, float]:
    """Return the least wall and CPU-seconds of some rounds, and MiB at the peak of the first beyond those before."""
    before = _kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    job()
    found = {"peak": (_kib("VmHWM") - before) / 2**10, "process": _kib("VmHWM") / 2**10}
    times = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        job()
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return found | {"wall": min(t[0] for t in times), "cpu": min(t[1] for t in times)}


def _kib(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


# --- What is measured, each in a process of its own ------------------------------------------------------------------


def measure_torch(model: str, job: str) -> dict[str, float]:
    from stylefusion_hf import StyleGenerator

    g = StyleGenerator.from_pretrained(model, subfolder="generator").requires_grad_(False)
    half, count = 128 if 128 in g.feature_sizes else max(g.feature_sizes), 16 if job == "sixteen" else 1
    with torch.no_grad():
        s = g.to_style(g.truncate(g.mapping(torch.randn(count, g.config.z_dim)), 0.7))
    if job == "gradients":
        s.requires_grad_()
        # A gradient that comes from outside: a loss on all features would itself cost several passes over them.
        grad = torch.randn_like(g.synthesis(s, return_features=True, up_to=half)[1][half].detach())

        def step() -> None:
            _, features = g.synthesis(s, return_features=True, up_to=half)
            torch.autograd.grad(features[half], s, grad)

        return measure(step)
    with torch.no_grad():
        if job == "features":
            return measure(lambda: g.synthesis(s, return_features=True, up_to=half))
        return measure(lambda: g.synthesis(s), 1 if job == "sixteen" else ROUNDS)


def measure_openvino(ir: str, threads: int) -> dict[str, float]:
    import numpy as np
    import openvino

    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(ir) as archive:
        for name in archive.namelist():
            if Path(name).name in ("SynthesisNetwork.xml", "SynthesisNetwork.bin"):
                Path(folder, Path(name).name).write_bytes(archive.read(name))
        settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(str(Path(folder, "SynthesisNetwork.xml")), "CPU", settings)
    random = np.random.RandomState(0)
    inputs = [random.randn(*port.shape).astype(np.float32) for port in compiled.inputs]
    request = compiled.create_infer_request()
    return measure(lambda: request.infer(inputs))


def measure_floor(model: str, job: str) -> dict[str, float]:
    """The floor of a picture, or of features; with gradients every product is done twice."""
    from stylefusion_hf import StyleGenerator

    net = StyleGenerator.from_pretrained(model, subfolder="generator").synthesis
    products, numbers = 2.0 * net.conv.weight.numel() * 16, 2 * net.channels[4] * 16
    for block, size in zip(net.blocks, net.resolutions[1:], strict=True):
        if job == "picture" or size <= 128:
            weights = sum(p.numel() for name, p in block.named_parameters() if name.endswith("wise"))
            products += 2 * weights * size**2
            numbers += (net.channels[size // 2] * (size // 2) ** 2) + net.channels[size] * size**2
    if job == "picture":
        products += 2 * net.to_image.weight.numel() * size**2
        numbers += net.channels[size] * size**2 + net.img_channels * 4 * size**2
    a, b = torch.randn(2, 2048, 2048)
    x, y = torch.empty(2, 2**25).fill_(1.0)
    product, copy = measure(lambda: a @ b), measure(lambda: y.copy_(x))
    passes = 2 if job == "gradients" else 1

    def total(clock: str) -> float:
        return passes * (products / (2 * 2048**3) * product[clock] + numbers / (2 * x.numel()) * copy[clock])

    return {"wall": total("wall"), "cpu": total("cpu")}


# --- The table -------------------------------------------------------------------------------------------------------

JOBS = {
    "picture": "a picture of {size} px, {threads} threads",
    "features": "features to 128 px, {threads} threads",
    "gradients": "forward and backward to 128 px, 1 thread",
    "sixteen": "16 pictures in one call, {threads} threads",
}


def rows(args: argparse.Namespace) -> list[str]:
    lines = ["| | wall s | CPU-s | MiB beyond the weights | MiB of the process |", "|---|---|---|---|---|"]
    size = json.loads(Path(args.model, "generator", "config.json").read_text())["resolution"]
    for job, title in JOBS.items():
        threads = 1 if job == "gradients" else args.threads
        lines.append(f"| **{title.format(size=size, threads=threads)}** | | | | |")
        for who, name in (
            ("openvino", "OpenVINO"),
            ("reference", "PyTorch"),
            ("native", "native"),
            ("floor", "floor"),
        ):
            if who == "openvino" and (job != "picture" or not args.ir or not importlib.util.find_spec("openvino")):
                continue
            if who == "floor" and job == "sixteen":
                continue
            found = run(args, who, job, threads)
            cells = [f"{found[key]:.{3 if key in ('wall', 'cpu') else 0}f}" if key in found else ""
                     for key in ("wall", "cpu", "peak", "process")]  # fmt: skip
            lines.append(f"| {name} | {' | '.join(cells)} |")
            print(lines[-1], file=sys.stderr)
    return lines


def run(args: argparse.Namespace, who: str, job: str, threads: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.faces_speed", "--model", args.model, "--one", who, job]
    command += ["--threads", str(threads), *(["--ir", args.ir] if args.ir else [])]
    operators = "reference" if who == "reference" else "native"
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "STYLEFUSION_OPS": operators}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a converted MobileStyleGAN")
    parser.add_argument("--ir", help="the wheel that it was converted from, for OpenVINO")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--one", nargs=2, metavar=("WHO", "JOB"), help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if not args.one:
        print("\n".join(rows(args)))
        return
    who, job = args.one
    torch.set_num_threads(args.threads)
    if who == "openvino":
        found = measure_openvino(args.ir, args.threads)
    else:
        found = measure_floor(args.model, job) if who == "floor" else measure_torch(args.model, job)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
