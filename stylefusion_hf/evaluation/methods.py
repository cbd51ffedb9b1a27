"""The one interface of everything that takes a region from one picture into another, and what its makers share."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from stylefusion_hf.evaluation.pairs import Pairs, render


class Method(Protocol):
    """A way to swap a region.

    `name`: as the tables say it. `strengths`: ten or more settings, from the weakest to the strongest, at which the
    ruler draws the method's curve; the last is its full strength.
    """

    name: str
    strengths: tuple[float, ...]

    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """The bases with the sources' `region`, (B, 3, H, W) in [-1, 1], without gradient."""
        ...


TENTHS = tuple(i / 10 for i in range(1, 11))


def region_index(pipe, region: str) -> int:
    """The segmenter's channel of a region; ValueError that lists its regions."""
    names = list(pipe.segmenter.config.regions)
    if region not in names:
        raise ValueError(f"unknown region {region!r}: the segmenter knows {', '.join(names)}")
    return names.index(region)


def move(a: Tensor, b: Tensor, gate: float | Tensor) -> Tensor:
    """a + gate (b - a), and exactly b where the gate is 1: rounding must not pass for a change."""
    return torch.where(torch.as_tensor(gate, device=a.device) >= 1, b, a + gate * (b - a))


def geometric(first: float, last: float, count: int) -> tuple[float, ...]:
    """`count` numbers from `first` to `last`, each the same multiple of the one before."""
    return tuple(first * (last / first) ** (i / (count - 1)) for i in range(count))


class GateMethod:
    """A method that takes a share of each style channel: a + gate (b - a), the gate the same for all pairs."""

    name: str
    strengths: tuple[float, ...]

    def __init__(self, pipe):
        self.pipe = pipe

    def gate(self, region: str, strength: float) -> Tensor:
        """(S,), from 0 (the base's number) to 1 (the source's)."""
        raise NotImplementedError

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        region_index(self.pipe, region)
        return render(self.pipe, move(pairs.base, pairs.source, self.gate(region, strength)))
