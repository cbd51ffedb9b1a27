"""Speed, against the published code's way, plain reference operations and what the machine could do at best.

    python -m benchmarks.speed [--only fusion,synthesis] [--device cuda] [--out speed]

Weights are random but for the embedded model's: time does not depend on them. What is compared takes turns in one
process, and medians count; a time of another day or machine is not comparable, a ratio is. (a) and (b) are the loops
of `benchmarks/loops.py`. The floor of a row is what the machine needs at least: every weight read once at the rate at
which it copies memory, or the multiplications at the rate of its own matrix product or of a 3 x 3 convolution of
that size and width, whichever is longer. Native operators are built first where they can be. Writes OUT.json, OUT.md
and, with matplotlib, OUT.png.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.loops import authors_fusion, nvidia_synthesis
from benchmarks.timing import Machine, medians
from stylefusion_hf import FusionHierarchy, RegionTree, StyleFusionPipeline, StyleGAN2Generator
from stylefusion_hf.models.layers import channel_schedule
from stylefusion_hf.ops import native

TREES = {"ffhq": 1024, "car": 512, "church": 256, "avatar": 64}  # and the sizes of their generators
BUDGET = 12.0  # seconds of rounds for a row


@dataclass
class Row:
    """Seconds a picture; `loop` is (a) or (b)."""

    section: str
    what: str
    seconds: float
    loop: float | None = None
    floor: float | None = None


# --- Models with random weights --------------------------------------------------------------------------------------


def style_sizes(channels: list[int]) -> tuple[list[int], list[int]]:
    """Widths of a StyleGAN2's conv and toRGB vectors."""
    convs = [channels[0], *(c for pair in pairwise(channels) for c in pair)]
    return convs, channels


def hierarchy(tree: str, resolution: int, device: torch.device) -> FusionHierarchy:
    """The authors' nets (2560 wide) for a tree, on NVIDIA's channel schedule."""
    torch.manual_seed(0)
    return FusionHierarchy(tree, *style_sizes(channel_schedule(resolution))).requires_grad_(False).to(device)


def generator(resolution: int, device: torch.device) -> StyleGAN2Generator:
    torch.manual_seed(0)
    return StyleGAN2Generator(resolution=resolution).requires_grad_(False).to(device)


def codes_for(fusion: FusionHierarchy, batch: int, device: torch.device) -> dict[str, Tensor]:
    return {node: torch.randn(batch, fusion.style_width, device=device) for node in fusion.tree.nodes}


# --- Floors ----------------------------------------------------------------------------------------------------------


def fusion_floor(fusion: FusionHierarchy, nodes: int, batch: int, machine: Machine) -> float:
    """Seconds a picture of `nodes` nets: their weights read once a batch, or their products."""
    net = next(iter(fusion.nets.values()))
    flops = sum(
        2 * layer.weight.numel() * len_rows
        for blender, len_rows in (
            (net.blender_segments, len(fusion.spec.sizes)),
            (net.blender_common, 2 * len(fusion.spec.common_rows)),
        )
        for layer in blender.layers
    )
    reading = sum(p.numel() * p.element_size() for p in net.parameters()) / machine.copy_rate
    return max(nodes * reading / batch, nodes * flops / machine.product_rate)


def synthesis_floor(g: StyleGAN2Generator, machine: Machine) -> float:
    """Seconds of a picture's convolutions. An upsampling one does its products at the lower resolution."""
    seconds = 0.0
    for conv in g.synthesis.convs:
        (c_out, c_in), size = conv.weight.shape[:2], conv.size[0] // conv.up
        seconds += 2 * 9 * c_in * c_out * size**2 / machine.conv_rate(c_in, c_out, size)
    return seconds


# --- Sections --------------------------------------------------------------------------------------------------------


def fusion_rows(device: torch.device, machine: Machine) -> list[Row]:
    rows = []
    for tree, resolution in TREES.items():
        fusion = hierarchy(tree, resolution, device)
        nets = len(fusion.tree.fused)
        one = codes_for(fusion, 1, device)
        leaf = "hair" if "hair" in fusion.tree.leaves else fusion.tree.leaves[0]
        dial = dict.fromkeys(one, one[fusion.tree.root]) | {leaf: one[leaf]}
        turned = sum(node in fusion.tree.fused for node in fusion.tree.ancestors(leaf))
        jobs: dict[str, Callable[[], object]] = {
            "loop": lambda f=fusion, c=one: authors_fusion(f, c),
            "dial": lambda f=fusion, c=dial: f.fuse(c),
        }
        batches = {batch: codes_for(fusion, batch, device) for batch in (1, 8, 32)}
        jobs |= {str(batch): lambda f=fusion, c=c: f.fuse(c) for batch, c in batches.items()}
        found = medians(jobs, device, budget=BUDGET)
        for batch in batches:
            floor = fusion_floor(fusion, nets, batch, machine)
            rows.append(Row("fusion", f"{tree}, batch {batch}", found[str(batch)] / batch, found["loop"], floor))
        floor = fusion_floor(fusion, turned, 1, machine)
        rows.append(Row("fusion", f"{tree}, {leaf} alone", found["dial"], found["loop"], floor))
    return rows


def without_native(job: Callable[[], Tensor]) -> Tensor:
    with native.use("reference"):
        return job()


def synthesis_rows(device: torch.device, machine: Machine) -> list[Row]:
    rows = []
    for resolution, batches in ((64, (1, 8)), (256, (1, 8)), (512, (1, 2)), (1024, (1, 2))):
        g = generator(resolution, device)
        floor = synthesis_floor(g, machine)
        for batch in batches:
            s = torch.randn(batch, g.style_dim, device=device) + 1
            jobs = {"native": lambda g=g, s=s: g.synthesis(s), "loop": lambda g=g, s=s: nvidia_synthesis(g, s)}
            jobs["PyTorch"] = lambda g=g, s=s: without_native(lambda: g.synthesis(s))
            found = {name: seconds / batch for name, seconds in medians(jobs, device, budget=BUDGET).items()}
            for operators in ("native", "PyTorch"):
                what = f"{resolution} px, batch {batch}, {operators} operators"
                rows.append(Row("synthesis", what, found[operators], found["loop"], floor))
    return rows


def call_rows(device: torch.device, machine: Machine) -> list[Row]:
    """From codes to pixels, through the pipeline."""
    embedded = StyleFusionPipeline.from_embedded().to(device)
    wide = StyleFusionPipeline(generator(1024, device), hierarchy("ffhq", 1024, device))
    for pipe in (embedded, wide):
        pipe.set_progress_bar_config(disable=True)
    rows = []
    for name, pipe in (("embedded", embedded), ("ffhq, 1024 px", wide)):
        g, fusion = pipe.generator, pipe.fusion
        base = torch.randn(1, g.style_dim, device=device)
        hair = torch.randn(1, g.style_dim, device=device)
        dial = dict.fromkeys(fusion.tree.nodes, base) | {"hair": hair}
        every = codes_for(fusion, 1, device)
        jobs: dict[str, Callable[[], object]] = {
            "dial": lambda p=pipe, b=base, h=hair: p(b, {"hair": h}, latent_type="s"),
            "every": lambda p=pipe, c=every: p(nodes=c, base=c["all"], latent_type="s"),
        }
        if pipe is wide:  # the embedded nets have switches that the authors' have not
            jobs |= {
                "dial, loop": lambda g=g, f=fusion, c=dial: nvidia_synthesis(g, authors_fusion(f, c)),
                "every, loop": lambda g=g, f=fusion, c=every: nvidia_synthesis(g, authors_fusion(f, c)),
            }
        found = medians(jobs, device, budget=BUDGET)
        for job, text in (("dial", "one dial"), ("every", "every node")):
            rows.append(Row("call", f"{name}, {text}", found[job], found.get(f"{job}, loop")))
    return rows


def training_rows(device: torch.device, machine: Machine) -> list[Row]:
    """A picture's share of a forward and backward pass at 64 px, batch 16; the loss is the pictures' mean square."""
    batch = 16
    g = StyleFusionPipeline.from_embedded().generator.to(device).float()
    fusion = FusionHierarchy("avatar", g.conv_sizes, g.rgb_sizes).to(device)
    codes = codes_for(fusion, batch, device)

    def ours() -> None:
        fusion.zero_grad()
        g.synthesis(fusion.fuse(codes)).square().mean().backward()

    def loop() -> None:
        fusion.zero_grad()
        for i in range(batch):
            own = {node: code[i : i + 1] for node, code in codes.items()}
            (nvidia_synthesis(g, authors_fusion(fusion, own)).square().mean() / batch).backward()

    g.requires_grad_(False)
    fused = medians({"ours": ours, "loop": loop}, device, rounds=3, budget=BUDGET)
    g.requires_grad_(True)
    s = codes["all"]

    def generator_step(synthesis: Callable[[Tensor], Tensor]) -> None:
        g.zero_grad()
        synthesis(s).square().mean().backward()

    plain = medians(
        {
            "ours": lambda: generator_step(g.synthesis),
            "loop": lambda: generator_step(lambda s: nvidia_synthesis(g, s)),
        },
        device,
        budget=BUDGET,
    )
    return [
        Row("training", f"{name}, batch {batch}", found["ours"] / batch, found["loop"] / batch)
        for name, found in (("fusion nets", fused), ("generator", plain))
    ]


# --- What a process of its own must tell -----------------------------------------------------------------------------

FIRST = """
import time; t = time.perf_counter()
from stylefusion_hf import StyleFusionPipeline
a = time.perf_counter(); pipe = StyleFusionPipeline.from_embedded()
b = time.perf_counter(); pipe(base=1, regions={"hair": 7})
c = time.perf_counter(); print(a - t, b - a, c - b)
"""
PEAK = """
import sys, torch
from benchmarks.loops import authors_fusion, nvidia_synthesis
from benchmarks.speed import codes_for, generator, hierarchy
torch.set_grad_enabled(False)
device, (what, who) = torch.device("cpu"), sys.argv[1:]
resolution = int(what)
g, fusion = generator(resolution, device), hierarchy("ffhq" if resolution == 1024 else "church", resolution, device)
codes = codes_for(fusion, 1, device)
kib = lambda name: next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith(name))
open("/proc/self/clear_refs", "w").write("5")  # the peak begins anew: making random weights has a larger one
before = kib("VmRSS")
nvidia_synthesis(g, authors_fusion(fusion, codes)) if who == "loop" else g.synthesis(fusion.fuse(codes))
print(before / 2**10, kib("VmHWM") / 2**10)
"""


def _tell(code: str, *args: str) -> list[float]:
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True, check=True)
    return [float(x) for x in done.stdout.split()]


def processes() -> dict[str, float]:
    """Seconds of a first call and, on Linux, MiB beyond the weights at the peak of a fused picture (church, ffhq)."""
    found = dict(zip(("import", "from_embedded", "first picture"), _tell(FIRST), strict=True))
    for size in ("256", "1024") if Path("/proc/self/clear_refs").exists() else ():
        for who in ("ours", "loop"):
            before, after = _tell(PEAK, size, who)
            found[f"peak {size} px, {who}"] = after - before
    return found


# --- Linear in batch, regions and pixels -----------------------------------------------------------------------------


def linearity(device: torch.device) -> dict[str, list[tuple[float, float]]]:
    """{axis: [(x, seconds)]}: fusion by batch, fusion by leaves, synthesis by pixels (64 channels everywhere)."""
    found: dict[str, list[tuple[float, float]]] = {"batch": [], "regions": [], "pixels": []}
    fusion = hierarchy("church", 256, device)
    for batch in (8, 16, 32, 64):
        codes = codes_for(fusion, batch, device)
        found["batch"].append((batch, medians({"x": lambda c=codes: fusion.fuse(c)}, device, 3, 5)["x"]))
    for leaves in (2, 5, 10, 20):
        tree: str = "r0"
        for i in range(1, leaves):
            tree = f"n{i}*({tree}, r{i})"
        sizes = style_sizes([64, 64, 64])
        nets = FusionHierarchy(RegionTree.of(tree), *sizes, padded_width=64, hidden_width=256).requires_grad_(False)
        nets, codes = nets.to(device), codes_for(nets, 8, device)
        found["regions"].append((leaves, medians({"x": lambda f=nets, c=codes: f.fuse(c)}, device, 5, 5)["x"]))
    for resolution in (128, 256, 512, 1024):
        channels = [64] * len(channel_schedule(resolution))
        g = StyleGAN2Generator(resolution, channels, w_dim=64, z_dim=64).requires_grad_(False).to(device)
        s = torch.randn(1, g.style_dim, device=device) + 1
        found["pixels"].append((resolution**2, medians({"x": lambda g=g, s=s: g.synthesis(s)}, device, 3, 6)["x"]))
    return found


def draw(curves: dict[str, list[tuple[float, float]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    titles = {"batch": "fusion, church nets", "regions": "fusion, batch 8", "pixels": "synthesis, 64 channels"}
    for axis, (name, points) in zip(axes, curves.items(), strict=True):
        xs, ys = zip(*points, strict=True)
        axis.plot(xs, [1e3 * y for y in ys], "o-", color="#3a5a98")
        axis.plot([0, xs[-1]], [0, 1e3 * ys[-1]], "--", color="#999999", linewidth=1, label="linear from 0")
        axis.set(title=titles[name], xlabel=name, ylabel="ms", xlim=(0, None), ylim=(0, None))
        axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


# --- Telling ---------------------------------------------------------------------------------------------------------


def table(rows: list[Row]) -> str:
    lines = ["| | ms a picture | the loop's | times faster | floor | of the floor |", "|---|---|---|---|---|---|"]
    for row in rows:
        loop = ("", "") if row.loop is None else (f"{row.loop * 1e3:.1f}", f"{row.loop / row.seconds:.1f}")
        floor = ("", "") if row.floor is None else (f"{row.floor * 1e3:.1f}", f"{row.seconds / row.floor:.2f}")
        lines.append(f"| {row.section}, {row.what} | {row.seconds * 1e3:.1f} | {' | '.join((*loop, *floor))} |")
    return "\n".join(lines)


SECTIONS = {"fusion": fusion_rows, "synthesis": synthesis_rows, "call": call_rows, "training": training_rows}
EVERYTHING = (*SECTIONS, "process", "linear")


def main() -> None:
    about = argparse.RawDescriptionHelpFormatter
    p = argparse.ArgumentParser("python -m benchmarks.speed", description=__doc__, formatter_class=about)
    p.add_argument("--only", default=",".join(EVERYTHING), help="comma-separated; default: all")
    p.add_argument("--device", default="cpu")
    p.add_argument("--out", default="speed", help="the files' name without its ending")
    args = p.parse_args()
    only = args.only.split(",")
    if unknown := [name for name in only if name not in EVERYTHING]:
        p.error(f"unknown section {unknown[0]!r}; choose from {', '.join(EVERYTHING)}")
    device, started = torch.device(args.device), time.monotonic()
    try:
        native.build_and_load(device.type)
    except OSError as error:
        print(f"no native operators: {error}", file=sys.stderr)
    machine = Machine(device)
    found: dict = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
            "operators": native.describe(device.type).split(",")[0].split(":")[0],
            "copy GB/s": machine.copy_rate / 1e9,
            "product GFLOP/s": machine.product_rate / 1e9,
        }
    }
    rows: list[Row] = []
    for name in SECTIONS:
        if name in only:
            print(f"{name} ...", file=sys.stderr)
            with torch.set_grad_enabled(name == "training"):
                rows += SECTIONS[name](device, machine)
    if "process" in only:
        found["process"] = processes()
    if "linear" in only:
        with torch.no_grad():
            found["linear"] = linearity(device)
        draw(found["linear"], Path(f"{args.out}.png"))
    found["rows"], found["minutes"] = [asdict(row) for row in rows], (time.monotonic() - started) / 60
    Path(f"{args.out}.json").write_text(json.dumps(found, indent=2) + "\n")
    notes = [f"{k}: {v:.3g}" if isinstance(v, float) else f"{k}: {v}" for k, v in found["machine"].items()]
    text = "\n\n".join([", ".join(notes) + f"; {found['minutes']:.1f} minutes.", table(rows)])
    if "process" in found:
        text += "\n\n" + ", ".join(f"{k}: {v:.3g}" for k, v in found["process"].items())
    Path(f"{args.out}.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
