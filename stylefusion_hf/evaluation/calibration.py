"""The ruler held to swaps whose answer is known: the renderer draws a, b and a with b's region exactly.

A true swap must read as specific transfer and transfer near 1 without change outside, and be recognized; a mere
recoloring as little transfer, nothing as 0. What a true swap falls short of 1 by is the resampling of small regions:
the ruler's own error, and a ceiling for all methods. True swaps are recognized less often than always where two
sources have the same part in like colors.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stylefusion_hf.data.avatars import REGION_FIELDS, AvatarSpec, avatar_spec, render_avatar, swap_region
from stylefusion_hf.evaluation.figures import HEADS, figures, measurable
from stylefusion_hf.evaluation.recognition import Gallery
from stylefusion_hf.evaluation.ruler import Ruler
from stylefusion_hf.evaluation.statistics import Estimate, resamples

CALIBRATION_SEED = 9  # a collection of avatars that no training draws


def recolour(a: AvatarSpec, b: AvatarSpec, region: str) -> AvatarSpec:
    """`a` with the colors, but not the parts, of `b` in `region`."""
    colours = [n for n in REGION_FIELDS[region] if "colour" in n or "trim" in n or n.startswith("background_")]
    return replace(a, **{name: getattr(b, name) for name in colours})


def drawn(specs: list[AvatarSpec], size: int) -> Tensor:
    """Avatars as images (N, 3, size, size) in [-1, 1]."""
    pictures = np.stack([render_avatar(spec, size)[0] for spec in specs])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def calibrate(ruler: Ruler, count: int = 64, size: int = 64) -> dict[str, dict[str, dict[str, Estimate]]]:
    """{region: {"true swap", "recoloured", "unchanged", "a stranger's": {figure: Estimate}}} over pairs of avatars.

    "unchanged" and "a stranger's" ignore the source: they read exactly 0 specific transfer, and are recognized as
    often as by chance. What a stranger's region reads as T is the floor of T.

    Raises:
        ValueError: the ruler's regions are not the avatars'. ImportError: the extra `train` is not installed.
    """
    if set(ruler.regions) != set(REGION_FIELDS):
        raise ValueError(f"only avatars can be drawn: their regions are {', '.join(REGION_FIELDS)}")
    a = [avatar_spec(2 * i, CALIBRATION_SEED) for i in range(count)]
    b = [avatar_spec(2 * i + 1, CALIBRATION_SEED) for i in range(count)]
    strangers = [avatar_spec(2 * count + i, CALIBRATION_SEED) for i in range(count)]

    def look(specs: list[AvatarSpec]):
        return ruler.look(drawn(specs, size).to(ruler.segmenter.device))

    pairs = ruler.compare(look(a), look(b))
    counts = resamples(count)
    plain = {region: ruler.measure(pairs, region, pairs.base, thorough=False) for region in ruler.regions}
    heads = {region: measurable(columns) for region, columns in plain.items()}
    scales = {r: {h: max(float(c[f"{h}_raw"].sum() / c["seen"].sum().clamp_min(1)), 1e-6) for h in HEADS}
              for r, c in plain.items()}  # fmt: skip
    # The wrong sources: avatars that are no stranger of anybody, so that drawing a stranger's region is no answer.
    others = look([avatar_spec(3 * count + i, CALIBRATION_SEED) for i in range(count)])
    gallery = Gallery(ruler, others, heads, scales)
    wrong = gallery.candidates(pairs, ruler.regions, 0)
    out: dict[str, dict[str, dict[str, Estimate]]] = {}
    for region in ruler.regions:
        true, stranger, colours, other_colours = (
            look([make(x, y, region) for x, y in zip(a, sources, strict=True)])
            for make, sources in ((swap_region, b), (swap_region, strangers), (recolour, b), (recolour, strangers))
        )
        # Each swap with what the same method draws for a stranger; the last two ignore the source.
        swaps = {
            "true swap": (true, stranger),
            "recoloured": (colours, other_colours),
            "unchanged": (pairs.base, pairs.base),
            "a stranger's": (stranger, stranger),
        }
        out[region] = {}
        for name, (after, other) in swaps.items():
            columns = ruler.measure(pairs, region, after, thorough=False, stranger=other)
            columns |= gallery.recognize(pairs, region, after, wrong[region])
            n = int(columns["counts"].sum())
            out[region][name] = {k: Estimate.of(v, n) for k, v in figures(columns, counts).items()}
    return out
