"""Pictures as the judges see them, by themselves and as bases and sources of swaps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from stylefusion_hf.evaluation.measurement import most_probable


@dataclass
class JudgedImages:
    """B pictures as the judges see them: `images` (B, 3, H, W), `probs` (B, R, H, W), `points` (B, P, 2) or None.

    `logits`: {attribute: (B, classes)} of the portrait judge. `own_features`: (B, D), a judge's.
    """

    images: Tensor
    probs: Tensor
    own_features: Tensor
    points: Tensor | None = None
    logits: dict[str, Tensor] = field(default_factory=dict)
    backbone: Callable[[Tensor], Tensor] | None = None

    def __getitem__(self, index: Tensor | slice) -> JudgedImages:
        points = None if self.points is None else self.points[index]
        logits = {name: x[index] for name, x in self.logits.items()}
        parts = self.images[index], self.probs[index], self.own_features[index]
        return JudgedImages(*parts, points, logits, self.backbone)

    @cached_property
    def labels(self) -> Tensor:
        """(B, H, W), the most probable region of every pixel."""
        return most_probable(self.probs)

    @cached_property
    def kinds(self) -> dict[str, Tensor]:
        """{attribute: (B, classes)}, how probable the portrait judge finds each."""
        return {name: x.softmax(dim=1) for name, x in self.logits.items()}

    @cached_property
    def features(self) -> Tensor:
        """(B, D), the backbone's where there is one. Computed on first use: it takes longer than all else."""
        return self.own_features if self.backbone is None else self.backbone(self.images)


def joined_images(parts: Sequence[JudgedImages]) -> JudgedImages:
    """Consecutive batches as one."""
    first = parts[0]
    cat = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(first)[:3]}
    points = None if first.points is None else torch.cat([p.points for p in parts if p.points is not None])
    logits = {name: torch.cat([p.logits[name] for p in parts]) for name in first.logits}
    return JudgedImages(**cat, points=points, logits=logits, backbone=first.backbone)


@dataclass
class JudgedPairs:
    """B bases and sources, and what every swap between them is compared with."""

    base: JudgedImages
    source: JudgedImages
    theta: Tensor  # (B, 2, 3), samples the sources in the bases' pose
    moved: JudgedImages  # Ib', sources in the bases' pose; their probabilities moved along, not judged anew
    way_back: Tensor  # (B, 2, 3), samples Ib' in Ib's own pose
    back: JudgedImages  # the sources there and back again
    described: dict[str, Described] = field(default_factory=dict)


class Described(NamedTuple):
    """A region of judged pairs, once for all swaps.

    `hidden`: (B, H, W), where something lies in front of it. `counts`: (B,), large enough in I0 and in Ib. `seen`:
    (B,), and so is what is not hidden. `heads`: {head: f(I0), f(Ib'), noise (B,)}.
    """

    hidden: Tensor
    counts: Tensor
    seen: Tensor
    heads: dict[str, tuple[Tensor, Tensor, Tensor]]
