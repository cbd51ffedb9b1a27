"""Pictures with the judges' outputs, alone and as pairs of base and source."""

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
    """B pictures with the judges' outputs: `images` (B, 3, H, W), `probs` (B, R, H, W), `points` (B, P, 2) or None.

    `logits`: {attribute: (B, classes)} of the portrait judge. `own_features`: (B, D), from a judge.
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
        """Most probable region of every pixel, (B, H, W)."""
        return most_probable(self.probs)

    @cached_property
    def kinds(self) -> dict[str, Tensor]:
        """Class probabilities of the portrait judge, {attribute: (B, classes)}."""
        return {name: x.softmax(dim=1) for name, x in self.logits.items()}

    @cached_property
    def features(self) -> Tensor:
        """Features (B, D), from the backbone if there is one; computed on first use, since the backbone is slow."""
        return self.own_features if self.backbone is None else self.backbone(self.images)


def join_images(parts: Sequence[JudgedImages]) -> JudgedImages:
    """Concatenate consecutive batches."""
    first = parts[0]
    cat = {f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(first)[:3]}
    points = None if first.points is None else torch.cat([p.points for p in parts if p.points is not None])
    logits = {name: torch.cat([p.logits[name] for p in parts]) for name in first.logits}
    return JudgedImages(**cat, points=points, logits=logits, backbone=first.backbone)


@dataclass
class JudgedPairs:
    """B bases and sources, with everything that swaps between them are compared with."""

    base: JudgedImages
    source: JudgedImages
    theta: Tensor  # (B, 2, 3), warps the sources into the bases' pose
    moved: JudgedImages  # Ib', the sources in the bases' pose; probabilities are warped, not judged again
    way_back: Tensor  # (B, 2, 3), warps Ib' back into the pose of Ib
    back: JudgedImages  # the sources warped there and back
    described: dict[str, RegionDescription] = field(default_factory=dict)


class RegionDescription(NamedTuple):
    """One region of judged pairs, described once for all swaps.

    `hidden`: (B, H, W), where something occludes it. `counts`: (B,), whether it is large enough in I0 and in Ib.
    `seen`: (B,), whether its visible part is as well. `heads`: {head: f(I0), f(Ib'), noise (B,)}.
    """

    hidden: Tensor
    counts: Tensor
    seen: Tensor
    heads: dict[str, tuple[Tensor, Tensor, Tensor]]


def join_judged(parts: Sequence[JudgedPairs]) -> JudgedPairs:
    """Concatenate consecutive batches of pairs; regions are described again on first use."""

    def images(name: str) -> JudgedImages:
        return join_images([getattr(p, name) for p in parts])

    theta, way_back = torch.cat([p.theta for p in parts]), torch.cat([p.way_back for p in parts])
    return JudgedPairs(images("base"), images("source"), theta, images("moved"), way_back, images("back"))
