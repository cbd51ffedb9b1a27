"""The ruler held to swaps whose answer is known: the renderer draws a, b and a with b's region exactly.

A true swap must read as transfer near 1 without change outside, a mere recolouring as little transfer, nothing as 0.
What a true swap falls short of 1 by is the resampling of small regions: the ruler's own error, and a ceiling for all
methods.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stylefusion_hf.data.avatars import REGION_FIELDS, AvatarSpec, avatar_spec, render_avatar, swap_region
from stylefusion_hf.evaluation.ruler import Ruler, figures
from stylefusion_hf.evaluation.statistics import Estimate, resamples

CALIBRATION_SEED = 9  # a collection of avatars that no training draws


def recolour(a: AvatarSpec, b: AvatarSpec, region: str) -> AvatarSpec:
    """`a` with the colours, but not the parts, of `b` in `region`."""
    colours = [n for n in REGION_FIELDS[region] if "colour" in n or "trim" in n or n.startswith("background_")]
    return replace(a, **{name: getattr(b, name) for name in colours})


def drawn(specs: list[AvatarSpec], size: int) -> Tensor:
    """Avatars as images (N, 3, size, size) in [-1, 1]."""
    pictures = np.stack([render_avatar(spec, size)[0] for spec in specs])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def calibrate(ruler: Ruler, count: int = 64, size: int = 64) -> dict[str, dict[str, dict[str, Estimate]]]:
    """{region: {"true swap", "recoloured", "unchanged", "a stranger's": {figure: Estimate}}} over pairs of avatars.

    A stranger's region, neither a's nor b's, should read as no transfer: what it reads is T's floor.

    Raises:
        ValueError: the ruler's regions are not the avatars'. ImportError: the extra `train` is not installed.
    """
    if set(ruler.regions) != set(REGION_FIELDS):
        raise ValueError(f"only avatars can be drawn: their regions are {', '.join(REGION_FIELDS)}")
    a = [avatar_spec(2 * i, CALIBRATION_SEED) for i in range(count)]
    b = [avatar_spec(2 * i + 1, CALIBRATION_SEED) for i in range(count)]
    strangers = [avatar_spec(2 * count + i, CALIBRATION_SEED) for i in range(count)]
    device = ruler.segmenter.device
    comparison = ruler.compare(*(ruler.look(drawn(specs, size).to(device)) for specs in (a, b)))
    counts = resamples(count)
    out: dict[str, dict[str, dict[str, Estimate]]] = {}
    for region in ruler.regions:
        swaps = {
            "true swap": [swap_region(x, y, region) for x, y in zip(a, b, strict=True)],
            "recoloured": [recolour(x, y, region) for x, y in zip(a, b, strict=True)],
            "unchanged": a,
            "a stranger's": [swap_region(x, y, region) for x, y in zip(a, strangers, strict=True)],
        }
        out[region] = {}
        for name, specs in swaps.items():
            after = ruler.look(drawn(specs, size).to(device))
            columns = ruler.measure(comparison, region, after, thorough=False)
            n = int(columns["counts"].sum())
            out[region][name] = {k: Estimate.of(v, n) for k, v in figures(columns, counts).items()}
    return out
