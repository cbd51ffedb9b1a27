"""The ruler: how much a swap of one region changes outside it, and how much of the source's look arrives inside.

For a base a, a source b, an unrelated code c and a region r: I0 and Ib are the plain pictures, I1 is the swap of r
from b, Ic the same swap from c, and M is the union of r in I0 and I1, dilated by 1/64 of the width.

    specific S = 1 - sum |f(I1) - f(Ib')| / sum |f(Ic) - f(Ib')|         0: ignores the source, 1: b's look
    transfer T = 1 - sum |f(I1) - f(Ib')| / sum |f(I0) - f(Ib')|         0: still a's look, 1: b's look
    outside  O = sum |(1 - M)(I1 - I0)|^2 / sum |(1 - M)(Ib - I0)|^2     0: no change, 1: as if everything were swapped
    leak       = sum |(1 - M)(I1 - I0)|^2 / sum |I1 - I0|^2              share of the swap's own change outside

T rises when a swap merely moves the region toward the mean; S is exactly 0 for any method whose result does not depend
on the source. Ib' is Ib in I0's pose; f are three heads of equal weight: color, color-free texture, aligned outline.
Pixels where something lies in front of r in I0 or Ib' are left out of all three, since a swap cannot show clothes
through hair. Noise is subtracted from both sums: the change in f from warping Ib into I0's pose and back, which is
large for a mouth of a few pixels. All masks come from the evaluation segmenter, whose regions are ordered back to
front.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stylefusion_hf.evaluation import measurement as core
from stylefusion_hf.evaluation import published
from stylefusion_hf.evaluation.figures import HEADS
from stylefusion_hf.evaluation.judged import JudgedImages, JudgedPairs, RegionDescription
from stylefusion_hf.evaluation.measurement import LEAST_DIFFERENCE, MIN_PIXELS, dilate
from stylefusion_hf.imaging.alignment import (
    aspect_of,
    fit_similarity,
    inside,
    region_axes,
    region_centroids,
    static_regions,
    warp,
)
from stylefusion_hf.imaging.features import colour, texture

__all__ = ["LEAST_DIFFERENCE", "MIN_PIXELS", "Ruler", "dilate"]  # re-exported


class Ruler:
    """Measures swaps with judges that no method has access to.

    Args:
        segmenter: the evaluation segmenter, with regions ordered back to front.
        portrait: the pose and attribute judge; without it, pose is estimated from the segmenter's masks.
        pose_regions: regions that pose is then estimated from, ideally similar in all pictures, such as eyes and
            mouth; None uses all moving regions.
        backbone: images (B, 3, H, W) -> features (B, D) for `noticed` and realism; None uses the portrait judge's
            features or, without one, the segmenter's.
        size: measuring size in pixels, to which larger pictures are downsampled; None keeps their size.

    Regions whose names start with bg or background do not move with the pose.
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

    # --- Judging ---

    @torch.no_grad()
    def look(self, images: Tensor) -> JudgedImages:
        """Judge images (B, 3, H, W) in [-1, 1] at the measuring size."""
        images = core.at_measuring_size(images, self.size)
        logits, maps = self.segmenter.segment(images, return_features=True)
        judged = JudgedImages(images, logits.softmax(dim=1), pooled_features(maps), backbone=self.backbone)
        if self.portrait is not None:
            seen = self.portrait.judge(images)
            judged.points, judged.own_features, judged.logits = seen.points, seen.features, dict(seen.attributes)
        return judged

    def pose_gap(self, one: JudgedImages, other: JudgedImages) -> Tensor:
        """Return the distance between two poses in picture widths, (B,); NaN where unknown.

        This is the mean distance of the judge's points or, without a judge, of the end points of the posing regions'
        major axes (which give position, tilt and size). Regions below a thousandth of the picture are left out.
        """
        if one.points is not None and other.points is not None:
            return self.picture_widths(one.points - other.points, one.images).mean(dim=1)
        ends = [region_axes(x.labels, len(self.regions))[:, self.posing] for x in (one, other)]
        areas = [region_centroids(x.labels, len(self.regions))[1][:, self.posing] for x in (one, other)]
        either = [self.picture_widths(ends[0] - e, one.labels).mean(dim=-1) for e in (ends[1], ends[1].flip(2))]
        gap = torch.minimum(*either)
        return gap.masked_fill(torch.minimum(*areas) <= 1e-3, torch.nan).nanmean(dim=1)

    @staticmethod
    def picture_widths(difference: Tensor, pictures: Tensor) -> Tensor:
        """Return the length of differences (..., 2) in `affine_grid`'s units as a share of the pictures' width."""
        return (difference / difference.new_tensor([1.0, aspect_of(pictures)])).norm(dim=-1) / 2

    @torch.no_grad()
    def compare(self, base: JudgedImages, source: JudgedImages) -> JudgedPairs:
        """Judge pairs: align the sources with the bases' poses, and back again for the noise."""
        theta = self.similarity(base, source)
        judged = self.look(warp(source.images, theta, "bicubic"))
        way_back = self.similarity(source, judged)  # the pose is judged again: its error is part of the noise
        back = self.look(warp(judged.images, way_back, "bicubic"))
        moved = replace(judged, probs=warp(source.probs, theta))
        return JudgedPairs(base, source, theta, moved, way_back, back)

    def similarity(self, target: JudgedImages, source: JudgedImages) -> Tensor:
        """Return the warps (B, 2, 3) that align the sources with the targets' poses."""
        if target.points is not None and source.points is not None:
            weight = torch.ones(target.points.shape[:2], device=target.points.device)
            wide = aspect_of(target.images)
            theta = fit_similarity(target.points, source.points, weight, scale_limit=1.5, aspect=wide)
        else:
            theta = core.poses_onto(target.labels, source.labels, self.posing, len(self.regions))
        return theta.to(target.images)

    # --- Describing regions ---

    def in_pose(self, pairs: JudgedPairs, name: str) -> JudgedImages:
        """Return Ib' for a region: the aligned sources, or the plain ones if the region is static."""
        return pairs.source if name in self.static else pairs.moved

    def occlusion(self, region: int, *labels: Tensor) -> Tensor:
        """Return where a region is occluded in any of these label maps, including the border of mixed colors."""
        return dilate(core.in_front(region, *labels), core.border_width(labels[0].shape[-1]))

    def descriptors(
        self, judged: JudgedImages, region: int, hidden: Tensor, heads: Collection[str] = HEADS
    ) -> dict[str, Tensor]:
        """Return the features (B, D) of these heads, from the visible part of a region."""
        mask = (judged.labels == region) & ~hidden
        read = {
            "colour": lambda: colour(judged.images, mask),
            "texture": lambda: texture(judged.images, mask),
            "outline": lambda: core.outline(judged.probs[:, region], ~hidden),
        }
        return {head: read[head]() for head in heads}

    def describe_region(self, pairs: JudgedPairs, name: str) -> RegionDescription:
        """Return what all swaps of a region between these pairs are compared with; computed once per region."""
        if name in pairs.described:
            return pairs.described[name]
        r = self.regions.index(name)
        goal = self.in_pose(pairs, name)
        hidden = self.occlusion(r, pairs.base.labels, goal.labels)
        if name not in self.static:
            hidden |= ~inside(pairs.theta, *goal.labels.shape[1:])
        counts = core.is_counted(pairs.base.labels == r) & core.is_counted(pairs.source.labels == r)
        seen = [core.is_counted((x.labels == r) & ~hidden) for x in (pairs.base, goal)]
        ours = self.descriptors(pairs.base, r, hidden)
        theirs = self.descriptors(goal, r, hidden)
        own = self.occlusion(r, pairs.source.labels, pairs.back.labels) | ~inside(
            pairs.way_back, *goal.labels.shape[1:]
        )
        there = self.descriptors(pairs.source, r, own)
        and_back = self.descriptors(pairs.back, r, own)
        moves = 0.0 if name in self.static else 1.0  # static regions are not warped and have no noise
        noise = {h: (there[h] - and_back[h]).abs().sum(dim=1) * moves for h in HEADS}
        heads = {h: (ours[h], theirs[h], noise[h]) for h in HEADS}
        pairs.described[name] = RegionDescription(hidden, counts, counts & seen[0] & seen[1], heads)
        return pairs.described[name]

    # --- Measuring ---

    @torch.no_grad()
    def measure(
        self,
        pairs: JudgedPairs,
        name: str,
        after: JudgedImages,
        thorough: bool = True,
        unrelated: JudgedImages | None = None,
        deviations: dict[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Return per-pair sums {column: (B,)} of one region's swap, from which `figures` computes ratios.

        Args:
            pairs: bases and sources.
            name: the region that was swapped.
            after: I1, judged.
            thorough: add `noticed` and the figures of other papers, which takes two more calls of `look`.
            unrelated: Ic, the same swap from an unrelated source, judged; needed for specific transfer.
            deviations: standard deviations of the attributes' logits, for StyleSpace's attribute dependency.
        """
        r = self.regions.index(name)
        _, counts, seen, _ = self.describe_region(pairs, name)
        i0, ib, i1 = pairs.base.images, pairs.source.images, after.images
        before_labels, after_labels = pairs.base.labels, after.labels
        mask = core.changed_area(before_labels == r, after_labels == r)
        m = mask[:, None].to(i0.dtype)
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
        unit = core.least_pixels(*before_labels.shape[1:]) / MIN_PIXELS  # one pixel at 64 x 64
        out["area"] = ((area + unit) / (wanted + unit)).log().abs()
        if thorough:
            leaked, replaced = (self.look(m * i0 + (1 - m) * x).features for x in (i1, ib))
            out["noticed"] = total((leaked - pairs.base.features).abs())
            out["noticed_of"] = total((replaced - pairs.base.features).abs())
            either = (before_labels == r) | (pairs.source.labels == r)
            out |= published.masked_errors(i1, i0, ib, either)
        out |= self._attribute_columns(pairs, name, after)
        if deviations and self.portrait is not None:
            regions = {a: about["region"] for a, about in self.portrait.config.attributes.items()}
            out |= published.attribute_change(pairs.base.logits, after.logits, deviations, regions, name)
        out["seen"] = seen.float()
        out |= self._head_columns(pairs, name, after, "")
        if unrelated is not None:
            out |= self._head_columns(pairs, name, unrelated, "_other")
        return {k: v.float().cpu() for k, v in out.items()}

    def _head_columns(self, pairs: JudgedPairs, name: str, judged: JudgedImages, suffix: str) -> dict[str, Tensor]:
        """Return the distances of each head before and after a swap, (B,) each, with and without the noise."""
        hidden, _, seen, heads = self.describe_region(pairs, name)
        r = self.regions.index(name)
        vanished = ((judged.labels == r) & ~hidden).sum(dim=(1, 2)) == 0
        found, out = self.descriptors(judged, r, hidden), {}
        for head in HEADS:
            start, goal, noise = heads[head]
            difference, rest = total((start - goal).abs()), total((found[head] - goal).abs()) * seen
            out[f"{head}_size"] = total((start.abs() + goal.abs()) / 2) * seen
            out[f"{head}_raw"] = difference * seen
            out[f"{head}_of"] = (difference - noise).clamp_min(0) * seen
            above = (rest - noise).clamp_min(0) * seen
            # A region that vanished transfers nothing.
            out[f"{head}{suffix}"] = torch.where(vanished, out[f"{head}_of"], above)
            out[f"{head}_rest{suffix}"] = torch.where(vanished, out[f"{head}_raw"], rest)
        return out

    def _attribute_columns(self, pairs: JudgedPairs, name: str, after: JudgedImages) -> dict[str, Tensor]:
        """Return columns on attributes that differ between a and b: the probability of b's class for the swapped
        region relative to its probability in b's picture (`became`), and likewise of a's classes elsewhere (`stayed`).
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


def total(x: Tensor) -> Tensor:
    """Sum over all but the first dimension: (B, ...) -> (B,)."""
    return x.flatten(1).sum(dim=1)


def pooled_features(features: Tensor) -> Tensor:
    """Return channel means and standard deviations of maps (B, C, h, w): (B, 2 C)."""
    return torch.cat([features.mean(dim=(2, 3)), features.std(dim=(2, 3))], dim=1)
