"""The objective of fusion nets: what each sample should look like, and the weighted sum of `objectives.py`'s terms.

A sample assigns codes to the nodes of the tree. Its FRAME is the plain picture of the root's code: where things should
be. Each leaf has an OWNER, the picture of its own code: what the region should look like. A sample whose inner codes
are all the base's has the base's picture as its REFERENCE, a twin has its partner's: what must not change outside the
regions that differ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.evaluation import ruler, score
from stylefusion_hf.evaluation.ruler import MIN_PIXELS, dilate
from stylefusion_hf.evaluation.score import distance
from stylefusion_hf.imaging.alignment import inside, warp
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.training import objectives as obj
from stylefusion_hf.training.roles import Roles
from stylefusion_hf.training.sampling import Shares, codes_of, draw_assignment
from stylefusion_hf.training.views import Eye, Pool, Views, moved, outlines

TERMS = ("outside", "looks", "locality", "transfer", "regions", "pooled", "spatial", "pose", "layout", "realism")
COMPOSED = ("locality", "transfer", "regions")  # terms that need a whole picture put together from the owners
REFERENCES = ("warped", "aligned", "unaligned")
# As in the training score and the ruler, a head counts for nothing for a region that hardly differs in it.
LEAST_DIFFERENCE = dict(zip(("colour", "maps", "outline"), score.LEAST_DIFFERENCE, strict=True))
LEAST_DIFFERENCE["texture"] = ruler.LEAST_DIFFERENCE["texture"]


@dataclass(frozen=True)
class Sample:
    """B samples: the pool's numbers of every node's code, (B, nodes), and of the base, (B,); what should come of them.

    `counted` (B, R): regions whose looks count. `changed` (B, R): regions that may differ from the reference, all
    false where there is none. `twin` (B,): the row that is this one's reference, or -1: then the base is.
    """

    nodes: Tensor
    base: Tensor
    frame: Tensor
    owners: Tensor
    counted: Tensor
    changed: Tensor
    single: Tensor
    twin: Tensor


@dataclass
class Targets:
    """What the regions of B samples should look like; no gradient.

    `looks`: {head: (B, R, D)}; `outline` (B, R, cells^2) where `visible` (B, R, H, W); `masks` (B, R, H, W), the
    regions in their references; `maps` {resolution: (B, R, C, h, h)} if they are needed. So are `picture` (B, 3, H,
    W), put together from the references, `region` and `colour_of` (B, H, W), what `objectives.compose` returns.
    """

    looks: dict[str, Tensor]
    outline: Tensor
    visible: Tensor
    masks: Tensor
    maps: dict[int, Tensor]
    picture: Tensor | None = None
    region: Tensor | None = None
    colour_of: Tensor | None = None


def mean_where(x: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen numbers; 0, with a gradient of 0, where there are none."""
    return (x * chosen).sum() / chosen.sum().clamp_min(1)


class Criterion:
    """The loss of fused codes.

    Args:
        tree, roles: the regions.
        eye: frozen networks.
        pool: plain pictures.
        weights: of `TERMS`. Terms of weight 0 are not computed, but for the looks, which are watched anyway, and for
            those that one of `COMPOSED` brings along.
        reference: what owns a region's look: "unaligned", the plain picture of its code; "warped", that picture in
            the frame's pose by a similarity; "aligned", the picture that the nets themselves make when every leaf
            holds that code.
        deficit: exponent of the weights by lacking transfer (0: all regions alike).
        temperature: of the contrasts.
        discriminator: for realism.
        negatives: how many pictures of the pool the pooled contrast sets against the owner.
        power: of the differences that make the change outside.
    """

    def __init__(
        self,
        tree: RegionTree,
        roles: Roles,
        eye: Eye,
        pool: Pool,
        weights: Mapping[str, float],
        reference: str = "warped",
        deficit: float = 1.0,
        temperature: float = 0.1,
        discriminator: StyleGAN2Discriminator | None = None,
        negatives: int = 512,
        power: float = 2,
    ):
        if reference not in REFERENCES:
            raise ValueError(f"unknown reference {reference!r}: choose from {', '.join(REFERENCES)}")
        if unknown := [name for name in weights if name not in TERMS]:
            raise ValueError(f"unknown term {unknown[0]!r}: choose from {', '.join(TERMS)}")
        self.tree, self.roles, self.eye, self.pool = tree, roles, eye, pool
        self.weights = {name: float(weights.get(name, 0)) for name in TERMS}
        self.composes = any(self.weights[name] for name in COMPOSED)
        self.reference, self.deficit, self.temperature = reference, deficit, temperature
        self.discriminator, self.negatives, self.power = discriminator, negatives, power
        device = pool.codes.device
        columns = {name: i for i, name in enumerate(tree.nodes)}
        self.leaf_columns = torch.tensor([columns[n] for n in roles.names], device=device)
        self.inner_columns = torch.tensor([columns[n] for n in tree.inner], device=device)
        self.root_column = columns[tree.root]
        self.group_columns = torch.tensor([columns[n] for n, _, _ in roles.groups], device=device, dtype=torch.long)
        self.ids = torch.arange(len(roles.names), device=device)
        self.is_static = torch.tensor([r in roles.static for r in range(len(roles.names))], device=device)
        self.radius = max(1, pool.images.shape[-1] // 64)
        self._measure_strangers(min(512, 8 * len(pool)))

    # --- Samples ---

    def draw(self, batch: int, draw: torch.Generator, shares: Shares) -> Sample:
        """A batch of samples."""
        device, tree = self.pool.codes.device, self.tree
        assigned = draw_assignment(tree, batch, draw, shares)
        index = torch.randint(len(self.pool), (batch, codes_of(tree)), generator=draw)
        twins = assigned.twin >= 0
        index[twins] = index[assigned.twin[twins]]  # a twin's codes are its partner's but for one
        numbers, twin = assigned.nodes.to(device), assigned.twin.to(device)
        return self.sample(index.to(device), numbers, twin)

    def sample(self, index: Tensor, numbers: Tensor, twin: Tensor) -> Sample:
        """From the pool's numbers of each code (B, codes), which node takes which (B, nodes), and the twins (B,)."""
        nodes = index.gather(1, numbers)
        leaves = numbers[:, self.leaf_columns]
        pure = (numbers[:, self.inner_columns] == 0).all(dim=1) & (twin < 0)
        changed = (leaves != 0) & pure[:, None]
        partner = leaves[twin.clamp_min(0)]
        changed = torch.where((twin >= 0)[:, None], leaves != partner, changed)
        owners, frame = nodes[:, self.leaf_columns], nodes[:, self.root_column]
        enough = MIN_PIXELS / self.pool.labels[0].numel()
        areas = torch.minimum(self.pool.areas[owners, self.ids], self.pool.areas[frame])
        counted = (areas >= enough) & (changed | ~pure[:, None])
        single = pure & (changed.sum(dim=1) == 1)
        return Sample(nodes, index[:, 0], frame, owners, counted, changed, single, twin)

    def codes(self, sample: Sample) -> dict[str, Tensor]:
        """{node: style codes (B, S)}."""
        return {name: self.pool.codes[sample.nodes[:, i]] for i, name in enumerate(self.tree.nodes)}

    # --- Targets ---

    @torch.no_grad()
    def targets(self, sample: Sample, fuse: Callable[[dict[str, Tensor]], Tensor] | None = None) -> Targets:
        """What the samples should look like; `fuse` makes the aligned references."""
        pool, own, rows = self.pool, sample.owners, self.ids
        still = own == sample.frame[:, None]
        wants_maps = self.weights["spatial"] > 0
        in_front = pool.labels[sample.frame][:, None] <= rows[:, None, None]
        if self.reference == "aligned" and fuse is not None:
            view, place = self._aligned(sample, fuse)
            labels = view.probs.argmax(dim=1)
            visible = in_front & (labels[place] <= rows[:, None, None])
            probs = view.probs[place, rows]
            looks = {h: x[place, rows] for h, x in view.looks.items()}
            masks = labels[place] == rows[:, None, None]
            maps = {r: x[place] for r, x in view.maps.items()} if wants_maps else {}
            t = Targets(looks, outlines(probs, visible), visible, masks, maps)
            if self.composes:
                self._compose(t, sample, view.images[place], labels[place], torch.ones_like(masks))
            return t
        identity = torch.eye(2, 3, device=own.device)
        theta = pool.poses(sample.frame[:, None].expand_as(own), own, self.roles.pose)
        stays = still | self.is_static | (self.reference == "unaligned")
        theta = torch.where(stays[..., None, None], identity, theta)
        front = pool.labels[own] <= rows[:, None, None]
        planes = moved(torch.stack([pool.probs[own, rows], front.half()], dim=2), theta)
        visible = in_front & (planes[:, :, 1] > 0.5)
        looks = {h: x[own, rows] for h, x in pool.looks.items()}
        maps = {r: moved(x[own], theta) for r, x in pool.maps.items()} if wants_maps else {}
        masks = planes[:, :, 0] > 0.5
        t = Targets(looks, outlines(planes[:, :, 0], visible), visible, masks, maps)
        if self.composes:
            labels = warp(pool.labels[own].flatten(0, 1)[:, None].float(), theta.flatten(0, 1), "nearest")
            within = inside(theta.flatten(0, 1), *labels.shape[-2:]).view_as(masks)
            self._compose(t, sample, moved(pool.pictures(own), theta), labels.view_as(masks).long(), within)
        return t

    def _compose(self, t: Targets, s: Sample, images: Tensor, labels: Tensor, within: Tensor) -> None:
        """Gives the targets a whole picture: each region from its reference's image (B, R, 3, H, W) and labels."""
        depth = self.ids[:, None, None]
        claims = (labels == depth) & within
        hidden = (self.pool.labels[s.frame][:, None] == depth) & ((labels > depth) | ~within)
        t.region, t.colour_of = obj.compose(claims, hidden)
        place = t.colour_of.clamp_min(0)[:, None, None].expand(-1, 1, images.shape[2], -1, -1)
        t.picture = images.gather(1, place)[:, 0]

    def _aligned(self, sample: Sample, fuse: Callable) -> tuple[Views, Tensor]:
        """Pictures of each sample's distinct owners under its common codes, and each region's among them, (B, R)."""
        own = sample.owners
        keys = torch.arange(len(own), device=own.device)[:, None] * len(self.pool) + own
        distinct, place = keys.unique(return_inverse=True)
        row, code = distinct // len(self.pool), self.pool.codes[distinct % len(self.pool)]
        inner = {n: self.pool.codes[sample.nodes[row, self.tree.nodes.index(n)]] for n in self.tree.inner}
        return self.eye(fuse({**dict.fromkeys(self.tree.leaves, code), **inner})), place

    # --- Scales: what two strangers' distance is ---

    @torch.no_grad()
    def _measure_strangers(self, count: int) -> None:
        draw = torch.Generator().manual_seed(0)
        pool = self.pool
        index = torch.randint(len(pool), (count, codes_of(self.tree)), generator=draw).to(pool.codes.device)
        numbers = torch.zeros(count, len(self.tree.nodes), dtype=torch.long, device=index.device)
        numbers[:, self.leaf_columns] = 1  # every leaf another's, the frame the base's
        sums: dict[str, list[Tensor]] = {}
        for rows in torch.arange(count, device=index.device).split(64):
            sample = self.sample(index[rows], numbers[rows], torch.full_like(rows, -1))
            t, base, source = self.targets(sample), sample.base, sample.owners[:, 0]
            valid = sample.counted
            found = {h: pool.looks[h][base] for h in pool.looks}
            found["outline"] = outlines(pool.probs[base].float(), t.visible)
            wanted = {**t.looks, "outline": t.outline}
            for h, x in found.items():
                sums.setdefault(f"size {h}", []).append(torch.where(valid, wanted[h].norm(dim=-1), torch.nan))
                sums.setdefault(h, []).append(torch.where(valid, distance(x, wanted[h]), torch.nan))
            plain, other = pool.pictures(base), pool.pictures(source)
            either = [pool.labels[i][:, None] == self.ids[:, None, None] for i in (base, source)]
            out = (~dilate(either[0] | either[1], self.radius)).float()
            sums.setdefault("outside", []).append(
                torch.einsum("brhw,bhw->br", out, (other - plain).abs().pow(self.power).sum(dim=1))
            )
            pose = self.roles.pose
            apart = obj.pose_error(pool.middles[base][:, pose], pool.middles[source][:, pose], self._pose_weight(base))
            sums.setdefault("pose", []).append(apart[:, None])
            if self.roles.groups:
                near, far = (self._offsets(pool.middles[i]) for i in (base, source))
                sums.setdefault("layout", []).append(distance(near, far))
        found = {name: torch.cat(parts) for name, parts in sums.items()}
        mean = {name: x.nanmean(dim=0).nan_to_num(1.0).clamp_min(1e-6) for name, x in found.items()}
        self.heads = [*pool.looks, "outline"]
        self.whole = torch.stack([mean[h] for h in self.heads], dim=1)  # (R, heads)
        differs = torch.stack(
            [found[h].nanmedian(dim=0).values >= LEAST_DIFFERENCE[h] * mean[f"size {h}"] for h in self.heads], dim=1
        ).float()
        self.head_weights = differs / differs.sum(dim=1, keepdim=True).clamp_min(1)
        self.outside_whole = mean["outside"]
        self.pose_whole, self.layout_whole = mean["pose"], mean.get("layout")

    def _pose_weight(self, index: Tensor) -> Tensor:
        """(B, P): a small region's middle says where it is, a large one's also what hides part of it."""
        area = self.pool.areas[index][:, self.roles.pose]
        return (area > 1e-3) / area.clamp_min(1e-3)

    def _offsets(self, middles: Tensor) -> Tensor:
        return obj.offsets(middles, [(a, b) for _, a, b in self.roles.groups])

    # --- The terms ---

    def __call__(
        self, sample: Sample, targets: Targets, view: Views, transfer: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Mean losses by term, and what is left of each region's distance where it alone was swapped.

        Args:
            transfer: (R,), how much of each region's look has been carried over of late, for the deficit's weights.

        Returns:
            {term: number}; (2, R): the sum of (1 - T) over single swaps, and their number.
        """
        s, t, masks = sample, targets, view.masks
        counted = s.counted.float()
        weight = torch.ones(len(self.ids), device=counted.device)
        if transfer is not None and self.deficit:
            weight = obj.deficit_weights(transfer, self.deficit)
        share = counted * weight / counted.sum(dim=1, keepdim=True).clamp_min(1)  # of a sample's regions
        found = {**view.looks, "outline": outlines(view.probs, t.visible)}
        wanted = {**t.looks, "outline": t.outline}
        left = torch.stack([distance(found[h], wanted[h]) for h in self.heads], dim=2) / self.whole
        gone = (masks.sum(dim=(2, 3)) < MIN_PIXELS)[..., None]
        not_outline = torch.tensor([h != "outline" for h in self.heads], device=gone.device)
        left = torch.where(gone & not_outline, left.detach().clamp_min(1), left)  # its outline pulls it back
        left = (left * self.head_weights).sum(dim=2)
        if not self.weights["looks"]:
            left = left.detach()  # watched all the same: it says in one number how the training goes
        out = {"looks": (share * left).sum(dim=1).mean()}
        lacking = left  # (1 - T): of looks, unless another transfer is asked for
        if self.weights["outside"]:
            out["outside"] = self._outside(s, view, masks)
        if t.picture is not None and t.region is not None and t.colour_of is not None:
            frame = self.pool.pictures(s.frame)
            foreign = s.owners != s.frame[:, None]
            stranger = self.pool.pictures(torch.where(foreign, s.owners, -1).amax(dim=1).clamp_min(0))
            swapped = foreign.gather(1, t.colour_of.clamp_min(0).flatten(1)).view_as(t.colour_of)
            known = t.colour_of >= 0
            out["locality"] = obj.relative_distance(view.images, t.picture, stranger, known & ~swapped).mean()
            carried = obj.relative_distance(view.images, t.picture, frame, known & swapped)
            mean_weight = (foreign * weight).sum(dim=1) / foreign.sum(dim=1).clamp_min(1)
            out["transfer"] = (carried * mean_weight).mean()
            if self.weights["transfer"]:
                lacking = carried[:, None]
            labels = self.pool.labels[s.frame].long()
            out["regions"] = obj.segmentation_loss(view.probs, t.region, labels).mean()
        if self.weights["pooled"]:
            some = torch.arange(min(self.negatives, len(self.pool)), device=self.ids.device)
            pick = (s.base[0] + some) % len(self.pool)
            each = [
                obj.pooled_contrast(view.looks[h], t.looks[h], self.pool.looks[h][pick], self.temperature)
                for h in view.looks
            ]
            out["pooled"] = (share * torch.stack(each).mean(dim=0)).sum(dim=1).mean()
        if t.maps:
            both = ~dilate(~(masks & t.masks), 1)  # eroded
            each = []
            for r, refs in t.maps.items():
                inner = F.adaptive_avg_pool2d(both.float(), r) > 0.99
                each.append(obj.spatial_contrast(view.maps[r], refs, inner.float(), self.temperature))
            out["spatial"] = torch.stack(each).mean()
        if self.weights["pose"]:
            p = self.roles.pose
            off = obj.pose_error(view.middles[:, p], self.pool.middles[s.frame][:, p], self._pose_weight(s.frame))
            out["pose"] = mean_where(off / self.pose_whole, s.frame != s.base)
        if self.weights["layout"] and self.layout_whole is not None:
            owners = s.nodes[:, self.group_columns]  # (B, groups)
            each_group = torch.arange(owners.shape[1], device=owners.device)
            goal = self._offsets(self.pool.middles[owners.flatten()]).view(*owners.shape, -1, 2)
            goal = goal[:, each_group, each_group]
            off = distance(self._offsets(view.middles), goal) / self.layout_whole
            out["layout"] = mean_where(off, owners != s.base[:, None])
        if self.weights["realism"] and self.discriminator is not None:
            out["realism"] = obj.implausibility(self.discriminator(view.images).logits).mean()
        alone = counted * s.single[:, None]
        return out, torch.stack([(lacking.detach() * alone).sum(dim=0), alone.sum(dim=0)])

    def _outside(self, s: Sample, view: Views, masks: Tensor) -> Tensor:
        """Change outside the regions that differ from the reference, 0 where there is none."""
        is_twin = s.twin >= 0
        rows = torch.arange(len(s.base), device=s.base.device)
        partner = torch.where(is_twin, s.twin, rows)
        reference = torch.where(is_twin[:, None, None, None], view.images[partner], self.pool.pictures(s.base))
        before = self.pool.labels[s.base][:, None] == self.ids[:, None, None]
        before = torch.where(is_twin[:, None, None, None], masks[partner], before)
        either = ((before | masks) & s.changed[..., None, None]).any(dim=1)
        change = obj.outside_change(view.images, reference, dilate(either, self.radius), self.power)
        count = s.changed.sum(dim=1)
        whole = (s.changed * self.outside_whole).sum(dim=1) / count.clamp_min(1)
        return mean_where(change / whole.clamp_min(1e-6), count > 0)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """The weighted sum."""
        return torch.stack([self.weights[name] * value for name, value in losses.items() if self.weights[name]]).sum()
