"""The parity data: numbers that the reference implementations computed on weights that are drawn by a rule.

The rule stands in `README.md` beside the data and in `draw_weights`. The small files lie in `tests/data/parity`; the
large ones are read from the folder that STYLEFUSION_PARITY names: set but missing fails, unset skips.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

DATA = Path(__file__).parent / "data" / "parity"
VARIABLE = "STYLEFUSION_PARITY"


def parity_file(name: str) -> Path:
    """The path of a parity file, here or in the folder that STYLEFUSION_PARITY names."""
    if (DATA / name).is_file():
        return DATA / name
    folder = os.environ.get(VARIABLE)
    if not folder:
        pytest.skip(f"{name} is not among the small parity files, and {VARIABLE} is not set")
    path = Path(folder) / name
    if not path.is_file():
        pytest.fail(f"{VARIABLE} is set to {folder}, which has no {name}")
    return path


def case_file(case: str, name: str) -> Path:
    """The path of a file of `cases`, the folder beside the one that STYLEFUSION_PARITY names; skips without it."""
    folder = os.environ.get(VARIABLE)
    path = Path(folder or ".").resolve().parent / "cases" / case / name
    if not folder or not path.is_file():
        pytest.skip(f"{case}/{name} is not here: {VARIABLE} is not set, or has no folder `cases` beside it")
    return path


def load_case(name: str) -> dict[str, Tensor]:
    """The tensors of `{name}.safetensors`."""
    return load_file(parity_file(f"{name}.safetensors"))


@cache
def manifest(which: str) -> dict[str, Any]:
    """`manifest("stylefusion" | "nvidia-ada" | "nvidia-sg3")`: salt, cases, weights."""
    return json.loads(parity_file(f"manifest-{which}.json").read_text(encoding="utf-8"))


def draw_weights(which: str, case: str, keep: Callable[[str], bool] = lambda name: True) -> dict[str, Tensor]:
    """The weights of a case of a manifest, float32; `keep` chooses by name, so that nothing else need be drawn."""
    salt, weights = manifest(which)["salt"], manifest(which)["weights"][case]
    drawn = {}
    for name, (shape, scale, offset) in weights.items():
        if keep(name):
            random = np.random.RandomState(zlib.crc32(f"{salt}:{case}/{name}".encode()))
            numbers = np.asarray(random.standard_normal(shape))  # a number, where the shape is ()
            drawn[name] = torch.from_numpy(np.asarray(numbers * scale + offset, dtype=np.float32))
    return drawn


def style_vectors(tensors: dict[str, Tensor], prefix: str) -> tuple[list[Tensor], list[Tensor]]:
    """The conv and the toRGB vectors `{prefix}s.conv{i}`, `{prefix}s.rgb{i}` of a parity file, in order."""

    def listed(kind: str) -> list[Tensor]:
        found = (name for name in tensors if name.startswith(f"{prefix}s.{kind}"))
        return [tensors[name] for name in sorted(found, key=lambda name: int(name.rsplit(kind)[-1]))]

    return listed("conv"), listed("rgb")


def relative_error(given: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected number."""
    return float(((given - expected).abs().max() / expected.abs().max()).detach())


# ----------------------------------------------------------------------------------------------------
# Style codes of the rosinality layout in a few lines of plain torch, independent of the package.


class PlainStyles:
    """z -> packed style code, from the mapping network and the affine layers of a rosinality case.

    w+ rows: convolution i takes row i, toRGB k takes row 2k + 1; with one w for all rows the two are the same.
    """

    def __init__(self, case: str):
        self.weights = draw_weights(
            "stylefusion", case, lambda name: name.startswith("style.") or ".modulation." in name
        )
        count = 1 + sum(name.startswith("convs.") for name in self.weights) // 2
        rgbs = 1 + sum(name.startswith("to_rgbs.") for name in self.weights) // 2
        self.layers = ["conv1", *(f"convs.{i}" for i in range(count - 1))]
        self.layers += ["to_rgb1", *(f"to_rgbs.{k}" for k in range(rgbs - 1))]
        sizes = [self.weights[f"{layer}.conv.modulation.bias"].numel() for layer in self.layers]
        self.conv_sizes, self.rgb_sizes = sizes[:count], sizes[count:]

    def mapping(self, z: Tensor) -> Tensor:
        """(B, 512) -> w (B, 512)"""
        x = z * torch.rsqrt(z.square().mean(1, keepdim=True) + 1e-8)
        for i in range(1, 9):
            weight, bias = self.weights[f"style.{i}.weight"], self.weights[f"style.{i}.bias"]
            x = F.leaky_relu(x @ (weight * 0.01 / math.sqrt(512)).T + bias * 0.01, 0.2) * math.sqrt(2)
        return x

    def code(self, z: Tensor, mean: Tensor, psi: float) -> Tensor:
        """(B, 512) -> s (B, S)"""
        w = mean + psi * (self.mapping(z) - mean)
        parts = []
        for layer in self.layers:
            weight, bias = (self.weights[f"{layer}.conv.modulation.{part}"] for part in ("weight", "bias"))
            parts.append(w @ (weight / math.sqrt(512)).T + bias)
        return torch.cat(parts, 1)
