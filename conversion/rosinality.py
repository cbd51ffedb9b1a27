"""rosinality/stylegan2-pytorch, which the StyleFusion authors, e4e, pSp and HyperStyle use."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from stylefusion_hf.conversion.layouts import (
    Converted,
    LayoutError,
    Reader,
    Tensors,
    build_discriminator,
    build_generator,
)
from stylefusion_hf.conversion.modules import ModuleTable
from stylefusion_hf.core.checks import short
from stylefusion_hf.core.untrusted.inert import ConversionError, LazyArray

DRAWN = "the checkpoint stores no noise images: they were drawn from seed 0"


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
    _refuse_labels(read)
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


def _refuse_labels(read: Reader) -> None:
    """LayoutError for a conditional model that was exported to this layout, which has no place for its classes."""
    embed = next((name for name in read.tensors if re.search(r"(^|\.|_)(label_?)?embed(ding)?s?(\.|_|$)", name)), None)
    found = (read.tensors.get(name) for name in ("style.1.weight", "conv1.conv.modulation.weight"))
    inputs, w_dim = (0 if tensor is None or tensor.ndim != 2 else tensor.shape[1] for tensor in found)
    if embed is not None or inputs > w_dim > 0:
        sign = f"it has {embed[:80]!r}" if embed else f"'style.1.weight' takes {inputs} numbers for codes of {w_dim}"
        raise LayoutError(
            f"{read.what}: {sign}: it was exported from a class-conditional model, whose classes this layout does not"
            " hold; convert the .pkl that it was made from"
        )


# Attributes of modules that were pickled whole: (path, attribute, the value that StyleGAN2 has).
SETTINGS = [
    (r"style\.\d+", "lr_mul", 0.01),
    (r"style\.\d+", "activation", "fused_lrelu"),
    (r".*\.modulation", "lr_mul", 1),
    (r"(conv1|convs\.\d+)\.conv", "demodulate", True),
    (r"to_rgb(1|s\.\d+)\.conv", "demodulate", False),
    (r"(conv1|convs\.\d+)\.activate", "negative_slope", 0.2),
    (r"(conv1|convs\.\d+)\.activate", "scale", 2**0.5),
]


def check_settings(modules: ModuleTable, name: str) -> None:
    """ConversionError for a pickled module with settings that this package's models do not have."""
    for path, attributes in modules.attributes.items():
        for pattern, key, wanted in SETTINGS:
            given = attributes.get(key, wanted)
            if not re.fullmatch(rf"(decoder\.)?{pattern}", path):
                continue
            same = (
                math.isclose(given, wanted, rel_tol=1e-4) if type(given) is type(wanted) is float else given == wanted
            )
            if not same:
                raise ConversionError(f"{name}: {path[:80]} has {key} {short(given)}; only {wanted!r} is supported")


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


def with_noise(tensors: Tensors, notes: list[str]) -> Tensors:
    """Draw the noise images that early rosinality checkpoints do not store, from a fixed seed, and add a note."""
    layers = [n for n in tensors if re.fullmatch(r"(conv1|convs\.\d+)\.noise\.weight", n)]
    if not layers or any(n.startswith("noises.") for n in tensors):
        return tensors
    notes.append(DRAWN)
    return dict(tensors) | {
        f"noises.noise_{i}": image for i, image in enumerate(_draw_noise(tensors.get("input.input"), len(layers)))
    }


def with_noise_const(tensors: Tensors, notes: list[str]) -> Tensors:
    """The same for tensors with NVIDIA's names."""
    layers = [n for n in tensors if n.endswith(".noise_strength")]
    if not layers or any(n.endswith(".noise_const") for n in tensors):
        return tensors
    notes.append(DRAWN)
    drawn = {
        f"synthesis.b{4 * 2 ** ((i + 1) // 2)}.conv{0 if i % 2 else 1}.noise_const": image
        for i, image in enumerate(_draw_noise(tensors.get("synthesis.b4.const"), len(layers)))
    }
    return dict(tensors) | drawn


def _draw_noise(const: torch.Tensor | None, layers: int) -> Iterator[torch.Tensor]:
    """Draw a noise image per convolution of a network whose smallest features have the size of `const`."""
    random = torch.Generator().manual_seed(0)
    base = const.shape[-2:] if const is not None and const.ndim >= 2 else (4, 4)
    for i in range(min(layers, 19)):
        yield torch.randn([side * 2 ** ((i + 1) // 2) for side in base], generator=random, dtype=torch.float32)
