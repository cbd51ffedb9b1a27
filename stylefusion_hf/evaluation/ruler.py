"""The ruler: what a swap of one region changed outside it, and how much of the source's look arrived inside.

For a base a, a source b, a stranger c and a region r: I0 and Ib are the plain pictures, I1 is the swap of r with b, Ic
the same swap with c instead, M is where r is in I0 or in I1, widened by 1/64 of the width.

    specific S = 1 - sum |f(I1) - f(Ib')| / sum |f(Ic) - f(Ib')|         0: ignores the source, 1: b's look
    transfer T = 1 - sum |f(I1) - f(Ib')| / sum |f(I0) - f(Ib')|         0: still a's look, 1: b's look
    outside  O = sum |(1 - M)(I1 - I0)|^2 / sum |(1 - M)(Ib - I0)|^2     0: nothing moved, 1: as if all were swapped
    leak       = sum |(1 - M)(I1 - I0)|^2 / sum |I1 - I0|^2              the share of its own change that lies outside

T rises when a swap merely moves the region toward the mean; S is exactly 0 for whatever draws the same for b and c.
Ib' is Ib in I0's pose; f are three heads of equal weight: color, color-free texture, aligned outline. What lies in
front of r in I0 or Ib' hides it from all three: a swap cannot show clothes through hair. Differences count above the
noise: what bringing Ib into I0's pose and back again does to f (of a few pixels' mouth at 64 pixels, a good deal) is
taken off both. All masks come from the evaluation segmenter, whose regions are listed back to front.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stylefusion_hf.evaluation import measurement as core
from stylefusion_hf.evaluation import published
from stylefusion_hf.evaluation.figures import HEADS
from stylefusion_hf.evaluation.judged import Described, JudgedImages, JudgedPairs
from stylefusion_hf.evaluation.measurement import LEAST_DIFFERENCE, MIN_PIXELS, dilate
from stylefusion_hf.imaging.alignment import (
    fit_similarity,
    inside,
    region_axes,
    region_centroids,
    static_regions,
    warp,
)
from stylefusion_hf.imaging.features import colour, texture

__all__ = ["LEAST_DIFFERENCE", "MIN_PIXELS", "Ruler", "dilate"]  # the core's names are also read from here


class Ruler:
    """Scores swaps by judges that no method has seen.

    Args:
        segmenter: the evaluation segmenter; its regions are listed back to front.
        portrait: the pose and attribute judge; without it pose is read from the segmenter's masks.
        pose_regions: regions whose middles then tell the pose: those that are much alike in all pictures, such as eyes
            and mouth. All that move if left out.
        backbone: images (B, 3, H, W) -> features (B, D), for what is noticed and for realism; the portrait judge's,
            or else the segmenter's, if left out.
        size: pixels at which everything is measured; larger pictures are averaged down first. None: as they come.

    Regions named bg... or background... do not move with the pose.
    """

    def __init__(
        self,
        segmenter,
        portrait=None,
        pose_regions: Sequence[str] | None = None,
        backbone: Callable[[Tensor], Tensor] | None = None,
        size: int | None = None,
    ):
        self.segmenter, self.portrait, self.backbone, self.size = segmenter, portrait, backbone, size
        self.regions = list(segmenter.config.regions)
        self.static = static_regions(self.regions)
        moving = [n for n in self.regions if n not in self.static]
        posing = [n for n in pose_regions or () if n in moving] or moving
        self.posing = [self.regions.index(n) for n in posing]

    # --- judging ---

    @torch.no_grad()
    def look(self, images: Tensor) -> JudgedImages:
        """Images (B, 3, H, W) in [-1, 1] as the judges see them, at the measuring size."""
        images = core.at_measuring_size(images, self.size)
        logits, maps = self.segmenter.segment(images, return_features=True)
        judged = JudgedImages(images, logits.softmax(dim=1), pooled_features(maps), backbone=self.backbone)
        if self.portrait is not None:
            seen = self.portrait.judge(images)
            judged.points, judged.own_features, judged.logits = seen.points, seen.features, dict(seen.attributes)
        return judged

    def pose_gap(self, one: JudgedImages, other: JudgedImages) -> Tensor:
        """(B,), how far apart two poses are, in picture widths; NaN where unknown.

        Mean distance of the judge's points; without a judge, of the ends of the posing regions' major axes (which tell
        place, lean and size), regions under a thousandth of the picture left out.
        """
        if one.points is not None and other.points is not None:
            return (one.points - other.points).norm(dim=-1).mean(dim=1) / 2
        ends = [region_axes(x.labels, len(self.regions))[:, self.posing] for x in (one, other)]
        areas = [region_centroids(x.labels, len(self.regions))[1][:, self.posing] for x in (one, other)]
        either = [(ends[0] - e).norm(dim=-1).mean(dim=-1) for e in (ends[1], ends[1].flip(2))]
        gap = torch.minimum(*either) / 2
        return gap.masked_fill(torch.minimum(*areas) <= 1e-3, torch.nan).nanmean(dim=1)

    @torch.no_grad()
    def compare(self, base: JudgedImages, source: JudgedImages) -> JudgedPairs:
        """Sources brought into the bases' poses."""
        theta = self.similarity(base, source)
        judged = self.look(warp(source.images, theta, "bicubic"))
        way_back = self.similarity(source, judged)  # judged anew: the error of judging is part of the noise
        back = self.look(warp(judged.images, way_back, "bicubic"))
        moved = replace(judged, probs=warp(source.probs, theta))
        return JudgedPairs(base, source, theta, moved, way_back, back)

    def similarity(self, target: JudgedImages, source: JudgedImages) -> Tensor:
        """(B, 2, 3), how to sample the sources in the targets' poses."""
        if target.points is not None and source.points is not None:
            weight = torch.ones(target.points.shape[:2], device=target.points.device)
            theta = fit_similarity(target.points, source.points, weight, scale_limit=1.5)
        else:
            theta = core.poses_onto(target.labels, source.labels, self.posing, len(self.regions))
        return theta.to(target.images)

    # --- describing ---

    def in_pose(self, pairs: JudgedPairs, name: str) -> JudgedImages:
        """Ib' for a region: the sources in the bases' poses, or as they are."""
        return pairs.source if name in self.static else pairs.moved

    def hidden(self, region: int, *labels: Tensor) -> Tensor:
        """Where something lies in front of a region in any of these label maps, with the border where colors mix."""
        return dilate(core.in_front(region, *labels), core.border_width(labels[0].shape[-1]))

    def descriptors(
        self, judged: JudgedImages, region: int, hidden: Tensor, heads: Collection[str] = HEADS
    ) -> dict[str, Tensor]:
        """These heads' features, each (B, D), of a region where nothing hides it."""
        mask = (judged.labels == region) & ~hidden
        read = {
            "colour": lambda: colour(judged.images, mask),
            "texture": lambda: texture(judged.images, mask),
            "outline": lambda: core.outline(judged.probs[:, region], ~hidden),
        }
        return {head: read[head]() for head in heads}

    def described(self, pairs: JudgedPairs, name: str) -> Described:
        """What every swap of a region between these pairs is compared with; computed once."""
        if name in pairs.described:
            return pairs.described[name]
        r = self.regions.index(name)
        goal = self.in_pose(pairs, name)
        hidden = self.hidden(r, pairs.base.labels, goal.labels)
        if name not in self.static:
            hidden |= ~inside(pairs.theta, *goal.labels.shape[1:])
        counts = core.is_counted(pairs.base.labels == r) & core.is_counted(pairs.source.labels == r)
        seen = [core.is_counted((x.labels == r) & ~hidden) for x in (pairs.base, goal)]
        ours = self.descriptors(pairs.base, r, hidden)
        theirs = self.descriptors(goal, r, hidden)
        own = self.hidden(r, pairs.source.labels, pairs.back.labels) | ~inside(pairs.way_back, *goal.labels.shape[1:])
        there = self.descriptors(pairs.source, r, own)
        and_back = self.descriptors(pairs.back, r, own)
        moves = 0.0 if name in self.static else 1.0  # what is not brought into pose has no noise of it
        noise = {h: (there[h] - and_back[h]).abs().sum(dim=1) * moves for h in HEADS}
        heads = {h: (ours[h], theirs[h], noise[h]) for h in HEADS}
        pairs.described[name] = Described(hidden, counts, counts & seen[0] & seen[1], heads)
        return pairs.described[name]

    # --- measuring ---

    @torch.no_grad()
    def measure(
        self,
        pairs: JudgedPairs,
        name: str,
        after: JudgedImages,
        thorough: bool = True,
        stranger: JudgedImages | None = None,
        deviations: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Per-pair sums of one region's swap, {column: (B,)}; `figures` makes figures of them.

        Args:
            pairs: bases and sources.
            name: the region that was swapped.
            after: I1 as `look` sees it.
            thorough: also how much of the change outside a judge notices, which takes two more looks.
            stranger: Ic, the same swap with another source; without it there is no specific transfer.
            deviations: of the attributes' logits, for StyleSpace's attribute dependency.
        """
        r = self.regions.index(name)
        hidden, counts, seen, heads = self.described(pairs, name)
        i0, ib, i1 = pairs.base.images, pairs.source.images, after.images
        before_labels, after_labels = pairs.base.labels, after.labels
        mask = core.changed_area(before_labels == r, after_labels == r)
        m = mask[:, None].to(i0.dtype)

        def total(x: Tensor) -> Tensor:
            return x.flatten(1).sum(dim=1)

        by_swap, by_source = i1 - i0, ib - i0
        out = {
            "counts": counts.float(),
            "outside": total((1 - m) * by_swap.square()),
            "outside_of": total((1 - m) * by_source.square()),
            "all": total(by_swap.square()),
            "inside": total(m * by_swap.abs()),
            "inside_of": total(m * by_source.abs()),
            "flips": total(((after_labels != before_labels) & ~mask).float()),
            "flips_of": total((~mask).float()),
        }
        gap = self.pose_gap(after, pairs.base)
        out["pose"], out["pose_known"] = gap.nan_to_num(), gap.isfinite().float()
        area, wanted = (total((x == r).float()) for x in (after_labels, pairs.source.labels))
        whole = core.least_pixels(*before_labels.shape[1:]) / MIN_PIXELS  # a pixel at 64 x 64
        out["area"] = ((area + whole) / (wanted + whole)).log().abs()
        if thorough:
            leaked, replaced = (self.look(m * i0 + (1 - m) * x).features for x in (i1, ib))
            out["noticed"] = total((leaked - pairs.base.features).abs())
            out["noticed_of"] = total((replaced - pairs.base.features).abs())
            either = (before_labels == r) | (pairs.source.labels == r)
            out |= published.masked_errors(i1, i0, ib, either)
        out |= self._kinds(pairs, name, after)
        if deviations and self.portrait is not None:
            regions = {a: about["region"] for a, about in self.portrait.config.attributes.items()}
            out |= published.attribute_change(pairs.base.logits, after.logits, deviations, regions, name)
        out["seen"] = seen.float()
        for column, judged in (("", after), ("_other", stranger)):
            if judged is None:
                continue
            vanished = ((judged.labels == r) & ~hidden).sum(dim=(1, 2)) == 0
            found = self.descriptors(judged, r, hidden)
            for head in HEADS:
                start, goal, noise = heads[head]
                out[f"{head}_size"] = total((start.abs() + goal.abs()) / 2) * seen
                out[f"{head}_raw"] = total((start - goal).abs()) * seen
                out[f"{head}_of"] = (total((start - goal).abs()) - noise).clamp_min(0) * seen
                rest = total((found[head] - goal).abs()) * seen
                above = (rest - noise).clamp_min(0) * seen
                out[f"{head}{column}"] = torch.where(vanished, out[f"{head}_of"], above)
                out[f"{head}_rest{column}"] = torch.where(vanished, out[f"{head}_raw"], rest)
        return {k: v.float().cpu() for k, v in out.items()}

    def _kinds(self, pairs: JudgedPairs, name: str, after: JudgedImages) -> dict[str, Tensor]:
        """Is it b's hair, on a's head? Where a and b are taken for different kinds: how probable b's kind has become,
        in units of how probable it is in b's own picture, and how probable a's other kinds still are.
        """
        if self.portrait is None:
            return {}
        zero = torch.zeros(len(after.images), device=after.images.device)
        out = {"became": zero, "became_of": zero, "stayed": zero, "stayed_of": zero}
        for attribute, about in self.portrait.config.attributes.items():
            before, wanted, now = (x.kinds[attribute] for x in (pairs.base, pairs.source, after))
            own, other = before.max(dim=1), wanted.max(dim=1)
            differs = own.indices != other.indices
            key, target = ("became", other) if about["region"] == name else ("stayed", own)
            found = now.gather(1, target.indices[:, None])[:, 0]
            out[key], out[f"{key}_of"] = out[key] + found * differs, out[f"{key}_of"] + target.values * differs
        return out


def pooled_features(features: Tensor) -> Tensor:
    """Channel means and deviations of maps (B, C, h, w): (B, 2 C)."""
    return torch.cat([features.mean(dim=(2, 3)), features.std(dim=(2, 3))], dim=1)
