"""The one interface of everything that can take a region over from one picture into another."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from stylefusion_hf.evaluation.pairs import Pairs


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
