"""The ruler: what a swap of one region moved outside it, and how much of the source's look arrived inside.

For a base a, a source b and a region r: I0 and Ib are the plain pictures, I1 is the swapped one, M is where r is in I0
or in I1, widened by 1/64 of the width.

    outside  O = sum |(1 - M)(I1 - I0)|^2 / sum |(1 - M)(Ib - I0)|^2     0: nothing moved, 1: as if all were swapped
    transfer T = 1 - sum |f(I1) - f(Ib')| / sum |f(I0) - f(Ib')|         0: still a's look, 1: b's look

Ib' is Ib in I0's pose; f are three heads of equal weight: colour, colour-free texture, aligned outline. What lies in
front of r in I0 or Ib' hides it from all three: a swap cannot show clothes through hair. Differences count above the
noise: what bringing Ib into I0's pose and back again does to f (of a few pixels' mouth at 64 pixels, a good deal) is
taken off both. All masks come from the evaluation segmenter, whose regions are listed back to front.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.evaluation.statistics import ratio
from stylefusion_hf.imaging.alignment import (
    fit_similarity,
    inside,
    pose_between,
    region_axes,
    region_centroids,
    static_regions,
    warp,
)
from stylefusion_hf.imaging.features import colour, layout, texture

HEADS = ("colour", "texture", "outline")
MIN_PIXELS = 8  # of a region in I0 and in Ib, for a pair to count
DROPPED = 0.1  # share of pairs left out of T because they differ least: their ratio is mostly noise
# A head is left out for a region that hardly differs in it from picture to picture, such as the avatars' skin in its
# outline: where |f(I0) - f(Ib')| is less than this share of |f|, or less than half of it is above the noise.
LEAST_DIFFERENCE, LEAST_SIGNAL = {"colour": 0.05, "texture": 0.4, "outline": 0.1}, 0.5


@dataclass
class Scene:
    """B pictures as the judges see them: `images` (B, 3, H, W), `probs` (B, R, H, W), `points` (B, P, 2) or None.

    `kinds`: {attribute: (B, classes)}, how probable the portrait judge finds each. `own_features`: (B, D), a judge's.
    """

    images: Tensor
    probs: Tensor
    own_features: Tensor
    points: Tensor | None = None
    kinds: dict[str, Tensor] = field(default_factory=dict)
    backbone: Callable[[Tensor], Tensor] | None = None

    @cached_property
    def labels(self) -> Tensor:
        """(B, H, W), the most probable region of every pixel."""
        return most_probable(self.probs)

    @cached_property
    def features(self) -> Tensor:
        """(B, D), the backbone's where there is one. It takes longer than all else: it runs where it is used."""
        return self.own_features if self.backbone is None else self.backbone(self.images)


@dataclass
class Comparison:
    """B bases and sources, and what every swap between them is compared with."""

    base: Scene
    source: Scene
    theta: Tensor  # (B, 2, 3), samples the sources in the bases' pose
    moved: Scene  # Ib', sources in the bases' pose; their probabilities moved along, not judged anew
    way_back: Tensor  # (B, 2, 3), samples Ib' in Ib's own pose
    back: Scene  # the sources there and back again
    described: dict[str, Described] = field(default_factory=dict)


class Described(NamedTuple):
    """A region of the pairs of a comparison, once for all swaps.

    `hidden`: (B, H, W), where something lies in front of it. `counts`: (B,), 8 pixels or more in I0 and in Ib. `seen`:
    (B,), and as many that are not hidden. `heads`: {head: f(I0), f(Ib'), noise (B,)}.
    """

    hidden: Tensor
    counts: Tensor
    seen: Tensor
    heads: dict[str, tuple[Tensor, Tensor, Tensor]]


class Ruler:
    """Scores swaps by judges that no method has seen.

    Args:
        segmenter: the evaluation segmenter; its regions are listed back to front.
        portrait: the pose and attribute judge; without it pose is read from the segmenter's masks.
        pose_regions: regions whose middles then tell the pose: those that are much alike in all pictures, such as eyes
            and mouth. All that move if left out.
        backbone: images (B, 3, H, W) -> features (B, D), for what is noticed and for realism; the portrait judge's,
            or else the segmenter's, if left out.

    Regions named bg... or background... do not move with the pose.
    """

    def __init__(
        self,
        segmenter,
        portrait=None,
        pose_regions: Sequence[str] | None = None,
        backbone: Callable[[Tensor], Tensor] | None = None,
    ):
        self.segmenter, self.portrait, self.backbone = segmenter, portrait, backbone
        self.regions = list(segmenter.config.regions)
        self.static = static_regions(self.regions)
        moving = [n for n in self.regions if n not in self.static]
        posing = [n for n in pose_regions or () if n in moving] or moving
        self.posing = [self.regions.index(n) for n in posing]

    # --- seeing ---

    @torch.no_grad()
    def look(self, images: Tensor) -> Scene:
        """Images (B, 3, H, W) in [-1, 1] as the judges see them."""
        logits, maps = self.segmenter.segment(images, return_features=True)
        scene = Scene(images, logits.softmax(dim=1), pooled_features(maps), backbone=self.backbone)
        if self.portrait is not None:
            seen = self.portrait.judge(images)
            scene.points, scene.own_features = seen.points, seen.features
            scene.kinds = {name: x.softmax(dim=1) for name, x in seen.attributes.items()}
        return scene

    def pose_gap(self, one: Scene, other: Scene) -> Tensor:
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
    def compare(self, base: Scene, source: Scene) -> Comparison:
        """Sources brought into the bases' poses."""
        theta = self._similarity(base, source)
        judged = self.look(warp(source.images, theta, "bicubic"))
        way_back = self._similarity(source, judged)  # judged anew: the error of judging is part of the noise
        back = self.look(warp(judged.images, way_back, "bicubic"))
        moved = replace(judged, probs=warp(source.probs, theta))
        return Comparison(base, source, theta, moved, way_back, back)

    def _similarity(self, target: Scene, source: Scene) -> Tensor:
        """(B, 2, 3), how to sample the sources in the targets' poses."""
        if target.points is not None and source.points is not None:
            weight = torch.ones(target.points.shape[:2], device=target.points.device)
            theta = fit_similarity(target.points, source.points, weight, scale_limit=1.5)
        else:
            theta = pose_between(target.labels, source.labels, self.posing, len(self.regions))
        return theta.to(target.images)

    def in_pose(self, c: Comparison, name: str) -> Scene:
        """Ib' for a region: the sources in the bases' poses, or as they are."""
        return c.source if name in self.static else c.moved

    # --- describing ---

    def descriptors(self, scene: Scene, region: int, hidden: Tensor) -> dict[str, Tensor]:
        """The heads' features, each (B, D), of a region where nothing hides it."""
        mask = (scene.labels == region) & ~hidden
        return {
            "colour": colour(scene.images, mask),
            "texture": texture(scene.images, mask),
            "outline": layout(scene.probs[:, region] * ~hidden),
        }

    def described(self, c: Comparison, name: str) -> Described:
        """What every swap of a region between these pairs is compared with; computed once."""
        if name in c.described:
            return c.described[name]
        r = self.regions.index(name)
        goal = self.in_pose(c, name)
        base_labels, labels = c.base.labels, goal.labels
        hidden = dilate((base_labels > r) | (labels > r), 1)  # with the border, where colours and probabilities mix
        if name not in self.static:
            hidden |= ~inside(c.theta, *labels.shape[1:])
        in_base, in_source = ((x == r).sum(dim=(1, 2)) for x in (base_labels, c.source.labels))
        counts = (in_base >= MIN_PIXELS) & (in_source >= MIN_PIXELS)
        seen = [((x == r) & ~hidden).sum(dim=(1, 2)) >= MIN_PIXELS for x in (base_labels, labels)]
        ours = self.descriptors(c.base, r, hidden)
        theirs = self.descriptors(goal, r, hidden)
        own = dilate((c.source.labels > r) | (c.back.labels > r), 1) | ~inside(c.way_back, *labels.shape[1:])
        there = self.descriptors(c.source, r, own)
        and_back = self.descriptors(c.back, r, own)
        moves = 0.0 if name in self.static else 1.0  # what is not brought into pose has no noise of it
        noise = {h: (there[h] - and_back[h]).abs().sum(dim=1) * moves for h in HEADS}
        heads = {h: (ours[h], theirs[h], noise[h]) for h in HEADS}
        c.described[name] = Described(hidden, counts, counts & seen[0] & seen[1], heads)
        return c.described[name]

    # --- measuring ---

    @torch.no_grad()
    def measure(self, c: Comparison, name: str, after: Scene, thorough: bool = True) -> dict[str, Tensor]:
        """Per-pair sums of one region's swap, {column: (B,)}; `figures` makes figures of them.

        Args:
            c: bases and sources.
            name: the region that was swapped.
            after: I1 as `look` sees it.
            thorough: also how much of the change outside a judge notices, which takes two more looks.
        """
        r = self.regions.index(name)
        hidden, counts, seen, heads = self.described(c, name)
        i0, ib, i1 = c.base.images, c.source.images, after.images
        before_labels, after_labels = c.base.labels, after.labels
        mask = dilate((before_labels == r) | (after_labels == r), max(1, i0.shape[-1] // 64))
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
        gap = self.pose_gap(after, c.base)
        out["pose"], out["pose_known"] = gap.nan_to_num(), gap.isfinite().float()
        area, wanted = (total((x == r).float()) for x in (after_labels, c.source.labels))
        out["area"] = ((area + 1) / (wanted + 1)).log().abs()
        if thorough:
            leaked, replaced = (self.look(m * i0 + (1 - m) * x).features for x in (i1, ib))
            out["noticed"] = total((leaked - c.base.features).abs())
            out["noticed_of"] = total((replaced - c.base.features).abs())
        out |= self._kinds(c, name, after)
        # Transfer
        out["seen"] = seen.float()
        vanished = ((after_labels == r) & ~hidden).sum(dim=(1, 2)) == 0
        mine = self.descriptors(after, r, hidden)
        for head in HEADS:
            start, goal, noise = heads[head]
            out[f"{head}_size"] = total((start.abs() + goal.abs()) / 2) * seen
            out[f"{head}_raw"] = total((start - goal).abs()) * seen
            out[f"{head}_of"] = (total((start - goal).abs()) - noise).clamp_min(0) * seen
            rest = total((mine[head] - goal).abs()) * seen
            out[head] = torch.where(vanished, out[f"{head}_of"], (rest - noise).clamp_min(0) * seen)
            out[f"{head}_rest"] = torch.where(vanished, out[f"{head}_raw"], rest)
        return {k: v.float().cpu() for k, v in out.items()}

    def _kinds(self, c: Comparison, name: str, after: Scene) -> dict[str, Tensor]:
        """Is it b's hair, on a's head? Where a and b are taken for different kinds: how probable b's kind has become,
        in units of how probable it is in b's own picture, and how probable a's other kinds still are.
        """
        if self.portrait is None:
            return {}
        zero = torch.zeros(len(after.images), device=after.images.device)
        out = {"became": zero, "became_of": zero, "stayed": zero, "stayed_of": zero}
        for attribute, about in self.portrait.config.attributes.items():
            before, wanted, now = (x.kinds[attribute] for x in (c.base, c.source, after))
            own, other = before.max(dim=1), wanted.max(dim=1)
            differs = own.indices != other.indices
            key, target = ("became", other) if about["region"] == name else ("stayed", own)
            found = now.gather(1, target.indices[:, None])[:, 0]
            out[key], out[f"{key}_of"] = out[key] + found * differs, out[f"{key}_of"] + target.values * differs
        return out


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Masks (B, H, W) or (B, R, H, W), widened by `radius` pixels in every direction; each by itself."""
    return F.max_pool2d(mask.float(), 2 * radius + 1, stride=1, padding=radius) > 0


def most_probable(probs: Tensor) -> Tensor:
    """Labels (B, H, W) of probabilities (B, R, H, W); `max` is several times faster here than `argmax`."""
    return probs.max(dim=1).indices


def pooled_features(features: Tensor) -> Tensor:
    """Channel means and deviations of maps (B, C, h, w): (B, 2 C)."""
    return torch.cat([features.mean(dim=(2, 3)), features.std(dim=(2, 3))], dim=1)


# --- From sums to figures --------------------------------------------------------------------------------------------


def measurable(columns: dict[str, Tensor]) -> tuple[str, ...]:
    """The heads on which the region differs from picture to picture by more than noise.

    The outline of the avatars' skin is always the same: what it seems to differ by is the resampling.
    """
    kept = []
    for head, least in LEAST_DIFFERENCE.items():
        size, raw, above = (float((columns["counts"] * columns[f"{head}_{k}"]).sum()) for k in ("size", "raw", "of"))
        if raw > least * size and above > LEAST_SIGNAL * raw:
            kept.append(head)
    return tuple(kept)


def transfer(columns: dict[str, Tensor], counts: Tensor, heads: tuple[str, ...], noisy: bool = False) -> Tensor:
    """T of every resample, (rounds + 1,): the mean over the heads; NaN without any.

    columns: from `Ruler.measure` over all pairs, (N,) each. A head's lowest tenth of denominators is dropped. `noisy`:
    without taking the noise off.
    """
    parts = []
    for head in heads:
        below = columns[f"{head}_raw" if noisy else f"{head}_of"].double() * columns["counts"]
        above = columns[f"{head}_rest" if noisy else head]
        present = below > 0
        if present.any():
            present &= below >= below[present].quantile(DROPPED)
        parts.append(1 - ratio(counts, above * present, below * present))
    return torch.stack(parts).mean(dim=0) if parts else torch.full((len(counts),), torch.nan, dtype=torch.float64)


def figures(columns: dict[str, Tensor], counts: Tensor, heads: tuple[str, ...] | None = None) -> dict[str, Tensor]:
    """{figure: (rounds + 1,)} of one region: `outside`, `transfer`, each head's part, and what stands beside them.

    heads: of `transfer`; those that are `measurable` on these pairs if left out.
    """
    c = columns
    heads = measurable(c) if heads is None else heads
    w = counts * c["counts"].double()  # pairs that do not count weigh nothing
    one = torch.ones_like(c["counts"])
    return {
        "outside": ratio(w, c["outside"], c["outside_of"]),
        "transfer": transfer(c, w, heads),
        "transfer, noisy": transfer(c, w, heads, noisy=True),
        **{f"transfer_{h}": transfer(c, w, (h,) if h in heads else ()) for h in HEADS},
        "leak": ratio(w, c["outside"], c["all"]),
        "flips": ratio(w, c["flips"], c["flips_of"]),
        **{k: ratio(w, c[k], c[f"{k}_of"]) for k in ("noticed", "became", "stayed") if k in c},
        "area": ratio(w, c["area"], one),
        "response": ratio(w, c["inside"], c["inside_of"]),
        "pose": ratio(w, c["pose"], c["pose_known"]),
    }
