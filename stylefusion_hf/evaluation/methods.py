"""Interface of the methods that swap a region between pictures, and helpers that they share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from stylefusion_hf.evaluation.pairs import Pairs, render


class Method(Protocol):
    """A method that swaps a region.

    `name`: name in tables. `strengths`: ten or more settings, from weakest to strongest, at which the method's curve
    is measured; the last is full strength.
    """

    name: str
    strengths: tuple[float, ...]

    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """Return the bases with the sources' `region`, (B, 3, H, W) in [-1, 1], without gradient."""
        ...


TENTHS = tuple(i / 10 for i in range(1, 11))


def region_index(pipe, region: str) -> int:
    """Return the segmenter's channel of a region; ValueError if it is unknown."""
    names = list(pipe.segmenter.config.regions)
    if region not in names:
        raise ValueError(f"unknown region {region!r}: the segmenter knows {', '.join(names)}")
    return names.index(region)


def move(a: Tensor, b: Tensor, gate: float | Tensor) -> Tensor:
    """Return a + gate (b - a), exactly b where the gate is 1, so that rounding does not read as a change."""
    return torch.where(torch.as_tensor(gate, device=a.device) >= 1, b, a + gate * (b - a))


def geometric(first: float, last: float, count: int) -> tuple[float, ...]:
    """Return `count` numbers in geometric progression from `first` to `last`."""
    return tuple(first * (last / first) ** (i / (count - 1)) for i in range(count))


class GateMethod:
    """Base class of methods that blend style channels, a + gate (b - a), with one gate for all pairs."""

    name: str
    strengths: tuple[float, ...]

    def __init__(self, pipe):
        self.pipe = pipe

    def gate(self, region: str, strength: float) -> Tensor:
        """Return the gate (S,), from 0 (base) to 1 (source)."""
        raise NotImplementedError

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        region_index(self.pipe, region)
        return render(self.pipe, move(pairs.base, pairs.source, self.gate(region, strength)))
