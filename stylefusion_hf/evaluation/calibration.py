"""Calibration of the ruler on swaps whose exact result is known: the renderer draws a, b, and a with b's region.

A true swap must read specific transfer and transfer near 1 with no change outside, and must be recognized; recoloring
alone must read little transfer, and no change 0. True swaps fall short of 1 by the resampling error of small regions:
that is the ruler's own error and a ceiling for all methods. They are not always recognized, because some sources have
the same part in similar colors.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from stylefusion_hf.data.avatars import REGION_FIELDS, AvatarSpec, avatar_spec, render_avatar, swap_region
from stylefusion_hf.evaluation.figures import HEADS, figures, measurable_heads
from stylefusion_hf.evaluation.recognition import Gallery
from stylefusion_hf.evaluation.ruler import Ruler
from stylefusion_hf.evaluation.statistics import Estimate, resamples

CALIBRATION_SEED = 9  # a collection of avatars that no training draws


def recolour(a: AvatarSpec, b: AvatarSpec, region: str) -> AvatarSpec:
    """Return `a` with the colors, but not the parts, of `b` in `region`."""
    colours = [n for n in REGION_FIELDS[region] if "colour" in n or "trim" in n or n.startswith("background_")]
    return replace(a, **{name: getattr(b, name) for name in colours})


def draw_avatars(specs: list[AvatarSpec], size: int) -> Tensor:
    """Render avatars as images (N, 3, size, size) in [-1, 1]."""
    pictures = np.stack([render_avatar(spec, size)[0] for spec in specs])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def calibrate(ruler: Ruler, count: int = 64) -> dict[str, dict[str, dict[str, Estimate]]]:
    """Return {region: {"true swap", "recoloured", "unchanged", "random region": {figure: Estimate}}}.

    "unchanged" and "random region" ignore the source: their specific transfer is exactly 0, and they are recognized at
    chance level. The T of "random region" is the floor below which a T means little.

    Avatars are drawn at the ruler's measuring size.

    Raises:
        ValueError: the ruler has no measuring size, or its regions are not those of the avatars. ImportError: the
            extra `train` is not installed.
    """
    size = ruler.size
    if size is None:
        raise ValueError("calibration draws avatars at the measuring size: give the ruler one")
    if set(ruler.regions) != set(REGION_FIELDS):
        raise ValueError(f"only avatars can be drawn: their regions are {', '.join(REGION_FIELDS)}")
    a = [avatar_spec(2 * i, CALIBRATION_SEED) for i in range(count)]
    b = [avatar_spec(2 * i + 1, CALIBRATION_SEED) for i in range(count)]
    unrelated = [avatar_spec(2 * count + i, CALIBRATION_SEED) for i in range(count)]

    def look(specs: list[AvatarSpec]):
        return ruler.look(draw_avatars(specs, size).to(ruler.segmenter.device))

    pairs = ruler.compare(look(a), look(b))
    counts = resamples(count)
    plain = {region: ruler.measure(pairs, region, pairs.base, thorough=False) for region in ruler.regions}
    heads = {region: measurable_heads(columns) for region, columns in plain.items()}
    scales = {r: {h: max(float(c[f"{h}_raw"].sum() / c["seen"].sum().clamp_min(1)), 1e-6) for h in HEADS}
              for r, c in plain.items()}  # fmt: skip
    # The wrong candidates are avatars that no swap takes a region from.
    others = look([avatar_spec(3 * count + i, CALIBRATION_SEED) for i in range(count)])
    gallery = Gallery(ruler, others, heads, scales)
    wrong = gallery.candidates(pairs, ruler.regions, 0)
    out: dict[str, dict[str, dict[str, Estimate]]] = {}
    for region in ruler.regions:
        true, random, colours, other_colours = (
            look([make(x, y, region) for x, y in zip(a, sources, strict=True)])
            for make, sources in ((swap_region, b), (swap_region, unrelated), (recolour, b), (recolour, unrelated))
        )
        # Each swap beside the same swap with the unrelated source; the last two ignore the source.
        swaps = {
            "true swap": (true, random),
            "recoloured": (colours, other_colours),
            "unchanged": (pairs.base, pairs.base),
            "random region": (random, random),
        }
        out[region] = {}
        for name, (after, other) in swaps.items():
            columns = ruler.measure(pairs, region, after, thorough=False, unrelated=other)
            columns |= gallery.recognize(pairs, region, after, wrong[region])
            n = int(columns["counts"].sum())
            out[region][name] = {k: Estimate.of(v, n) for k, v in figures(columns, counts).items()}
    return out
