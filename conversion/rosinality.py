"""rosinality/stylegan2-pytorch, which the StyleFusion authors, e4e, pSp and HyperStyle use."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stylefusion_hf.conversion.inert import ConversionError, LazyArray
from stylefusion_hf.conversion.layouts import Converted, Reader, Tensors, build_discriminator, build_generator


def rosinality_generator(tensors: Tensors, latent_avg: torch.Tensor | None = None, psi: float = 0.7) -> Converted:
    """Convert the tensors of `g_ema`, or of a `decoder` without its prefix.

    Args:
        latent_avg: the checkpoint's mean of w, (w_dim,) or (rows, w_dim).
        psi: the model's default truncation.
    """
    read = Reader(tensors, "rosinality generator")

    def conv(i: int, part: str) -> str:
        layer = "conv1" if i == 0 else f"convs.{i - 1}"
        part = {"bias": "activate.bias"}.get(part, "conv." + part.replace("affine", "modulation"))
        return f"{layer}.{part}"

    def rgb(k: int, part: str) -> str:
        layer = "to_rgb1" if k == 0 else f"to_rgbs.{k - 1}"
        return f"{layer}.{part}" if part == "bias" else f"{layer}.conv.{part.replace('affine', 'modulation')}"

    depth = 0
    while read.has(f"style.{depth + 1}.weight"):  # style.0 normalizes z and has no tensors
        depth += 1
    if latent_avg is not None and latent_avg.ndim == 2:
        latent_avg = latent_avg[0]
    return build_generator(
        read,
        const="input.input",
        conv=conv,
        rgb=rgb,
        num_blocks=1 + read.count("to_rgbs.{}.bias"),
        mapping=[f"style.{j + 1}" for j in range(depth)],
        embed=None,
        w_avg=latent_avg,
        noise=lambda i: f"noises.noise_{i}",
        strength=lambda i: ("conv1" if i == 0 else f"convs.{i - 1}") + ".noise.weight",
        conv_clamp=None,
        psi=psi,
    )


def rosinality_discriminator(tensors: Tensors) -> Converted:
    """Convert the tensors of `d`."""
    read = Reader(tensors, "rosinality discriminator")
    blocks = [
        [
            f"convs.{j}.{part}"
            for part in ("conv1.0.weight", "conv1.1.bias", "conv2.1.weight", "conv2.2.bias", "skip.1.weight")
        ]
        for j in range(1, 1 + sum(read.has(f"convs.{j}.skip.1.weight") for j in range(1, 16)))
    ]
    names = {
        "fromrgb": ("convs.0.0.weight", "convs.0.1.bias"),
        "conv": ("final_conv.0.weight", "final_conv.1.bias"),
        "fc": ("final_linear.0.weight", "final_linear.0.bias"),
        "out": ("final_linear.1.weight", "final_linear.1.bias"),
    }
    return build_discriminator(read, names, blocks, [], None, None, 4)


def read_latent_avg(content: Mapping[Any, Any], name: str, notes: list[str]) -> torch.Tensor | None:
    """Return the mean of w (w_dim,) from the checkpoint's latent_avg: (w_dim,), (1, w_dim) or one row per layer."""
    mean = content.get("latent_avg")
    mean = torch.from_numpy(np.array(mean)) if isinstance(mean, (np.ndarray, LazyArray)) else mean
    if mean is None:
        return None
    if (
        not isinstance(mean, torch.Tensor)
        or not mean.numel()
        or not 1 <= mean.ndim <= 3
        or not mean.is_floating_point()
    ):
        raise ConversionError(f"{name}: its latent_avg is not a vector")
    rows = mean.reshape(-1, mean.shape[-1])
    if len(rows) > 1 and not torch.equal(rows, rows[:1].expand_as(rows)):
        spread = float((rows - rows[:1]).abs().max())
        notes.append(f"the rows of latent_avg differ by up to {spread:.2g}: the first one is kept as the mean")
    return rows[0]


def with_noise(tensors: dict[str, torch.Tensor], notes: list[str]) -> dict[str, torch.Tensor]:
    """Draw the noise images that early rosinality checkpoints do not store, from a fixed seed, and add a note."""
    layers = [n for n in tensors if re.fullmatch(r"(conv1|convs\.\d+)\.noise\.weight", n)]
    if not layers or any(n.startswith("noises.") for n in tensors):
        return tensors
    notes.append("the checkpoint stores no noise images: they were drawn from seed 0")
    random, tensors = torch.Generator().manual_seed(0), dict(tensors)
    const = tensors.get("input.input")
    base = const.shape[-2:] if const is not None and const.ndim >= 2 else (4, 4)
    for i in range(min(len(layers), 19)):
        size = [side * 2 ** ((i + 1) // 2) for side in base]
        tensors[f"noises.noise_{i}"] = torch.randn(size, generator=random)
    return tensors
