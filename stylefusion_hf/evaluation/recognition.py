"""Recognition: how often, among 16 sources, is b's region the nearest to the region that a swap from b produced?

The other fifteen candidates come from a gallery of plain samples. Each is aligned with the base's pose, and the
swapped region is compared with it where neither base nor source occludes it; each head is in units of the mean
difference between two pictures. A method that ignores the source is right once in sixteen. Ties share the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylefusion_hf.evaluation import measurement as core
from stylefusion_hf.evaluation.judged import JudgedImages, JudgedPairs
from stylefusion_hf.evaluation.ruler import Ruler
from stylefusion_hf.imaging.alignment import inside, warp

SOURCES = 16


@dataclass
class Candidate:
    """One candidate source for each of B bases: `hidden` (B, H, W), `present` (B,), `looks` {head: (B, D)}."""

    hidden: Tensor
    present: Tensor
    looks: dict[str, Tensor]


class Gallery:
    """Wrong candidates for the recognition of regions.

    Args:
        ruler: describes regions.
        images: judged plain samples, none of them a base or source.
        heads, scales: {region: heads that count}, {region: {head: typical difference}}.
        sources: number of candidates, including the right one.
    """

    def __init__(
        self,
        ruler: Ruler,
        images: JudgedImages,
        heads: Mapping[str, Sequence[str]],
        scales: Mapping[str, Mapping[str, float]],
        sources: int = SOURCES,
    ):
        self.ruler, self.images, self.heads, self.scales = ruler, images, heads, scales
        self.wrong = min(sources - 1, len(images.images))
        if self.wrong < 1:
            raise ValueError("recognition needs pictures other than the source, but the gallery is empty")

    @torch.no_grad()
    def candidates(self, pairs: JudgedPairs, regions: Sequence[str], first: int) -> dict[str, list[Candidate]]:
        """Return {region: wrong candidates} of a batch of pairs that starts at pair number `first`."""
        out: dict[str, list[Candidate]] = {name: [] for name in regions}
        number = first + torch.arange(len(pairs.base.images))
        for k in range(self.wrong):
            index = (number * self.wrong + k) % len(self.images.images)
            other = self.images[index.to(pairs.base.images.device)]
            theta = self.ruler.similarity(pairs.base, other)
            moved = JudgedImages(warp(other.images, theta, "bicubic"), warp(other.probs, theta), other.own_features)
            for name in regions:
                static = name in self.ruler.static
                out[name].append(
                    self._candidate(name, pairs.base, other if static else moved, None if static else theta)
                )
        return out

    def _candidate(self, name: str, base: JudgedImages, goal: JudgedImages, theta: Tensor | None) -> Candidate:
        r = self.ruler.regions.index(name)
        hidden = self.ruler.occlusion(r, base.labels, goal.labels)
        if theta is not None:
            hidden |= ~inside(theta, *goal.labels.shape[1:])
        present = core.is_counted((goal.labels == r) & ~hidden)
        return Candidate(hidden, present, self.ruler.descriptors(goal, r, hidden, self.heads[name]))

    @torch.no_grad()
    def recognize(
        self, pairs: JudgedPairs, name: str, after: JudgedImages, wrong: Sequence[Candidate]
    ) -> dict[str, Tensor]:
        """Return columns (B,): `recognized` (1, 0, or a share of a tie) and `candidates`, the number of sources.

        Pairs whose own region is too small or occluded have no candidates.
        """
        r = self.ruler.regions.index(name)
        about = self.ruler.describe_region(pairs, name)
        right = Candidate(about.hidden, about.seen, {h: goal for h, (_, goal, _) in about.heads.items()})
        gaps = []
        for candidate in (right, *wrong):
            drawn = self.ruler.descriptors(after, r, candidate.hidden, self.heads[name])
            gap = torch.stack(
                [(drawn[h] - candidate.looks[h]).abs().sum(dim=1) / self.scales[name][h] for h in self.heads[name]]
            ).sum(dim=0) if self.heads[name] else torch.zeros_like(candidate.present, dtype=torch.float32)  # fmt: skip
            gaps.append(gap.masked_fill(~candidate.present, torch.inf))
        gap = torch.stack(gaps)
        nearest = gap <= gap.amin(dim=0) * (1 + 1e-6)
        drawn_at_all = (after.labels == r).flatten(1).any(dim=1)
        known = about.seen & bool(self.heads[name])
        share = nearest[0] / nearest.sum(dim=0).clamp_min(1) * known * drawn_at_all
        number = torch.stack([c.present for c in (right, *wrong)]).sum(dim=0) * known
        return {"recognized": share.float().cpu() * number.gt(1).cpu(), "candidates": number.float().cpu()}
