"""The distances between unrelated pictures, per region, head and generator: the units of the objective's terms."""

from __future__ import annotations

import torch
from torch import Tensor

from stylefusion_hf.core.memory import even_parts
from stylefusion_hf.evaluation.measurement import changed_area, differing_heads, distance, head_weights, outline
from stylefusion_hf.training.composed import offsets, pose_error
from stylefusion_hf.training.references import ReferenceMaker
from stylefusion_hf.training.roles import Roles
from stylefusion_hf.training.samples import SampleSource
from stylefusion_hf.training.sampling import count_codes

PAIRS = 512


class UnrelatedScales:
    """Mean distances between random pairs of the pool.

    Attributes:
        heads: names of the looks.
        whole: (R, heads), the distances between looks.
        head_weights: (R, heads), rows sum to 1, or to 0.
        outside, inside: (R,), the change outside and inside each region when the entire picture is swapped.
        pose: a number.
        layout: (groups,), or None if there are no groups.
    """

    @torch.no_grad()
    def __init__(
        self,
        source: SampleSource,
        references: ReferenceMaker,
        roles: Roles,
        power: float,
        chunk: int,
    ):
        pool, self.roles, self._pool = source.pool, roles, source.pool
        count = min(PAIRS, 8 * len(pool))
        draw = torch.Generator().manual_seed(0)
        index = torch.randint(len(pool), (count, count_codes(source.tree)), generator=draw).to(pool.codes.device)
        numbers = torch.zeros(count, len(source.tree.nodes), dtype=torch.long, device=index.device)
        numbers[:, source.leaf_columns] = 1  # every leaf from the other picture, the frame from the base
        sums: dict[str, list[Tensor]] = {}
        for rows in torch.arange(count, device=index.device).split(even_parts(count, chunk)):
            sample = source.sample(index[rows], numbers[rows], torch.full_like(rows, -1))
            wanted, base, other = references(sample), sample.base, sample.owners[:, 0]
            looks = {h: pool.looks[h][base] for h in pool.looks}
            looks["outline"] = outline(pool.probabilities(base[:, None], source.ids).float(), wanted.visible)
            goals = {**wanted.looks, "outline": wanted.outline}
            for h, x in looks.items():
                size = torch.where(sample.counted, goals[h].norm(dim=-1), torch.nan)
                sums.setdefault(f"size {h}", []).append(size)
                sums.setdefault(h, []).append(torch.where(sample.counted, distance(x, goals[h]), torch.nan))
            change = (pool.pictures(other) - pool.pictures(base)).abs().pow(power).sum(dim=1)
            masks = [pool.label_maps(i)[:, None] == source.ids[:, None, None] for i in (base, other)]
            area, shown = changed_area(*masks), (masks[0] | masks[1]).any(dim=(2, 3))
            outside, inside = (torch.einsum("brhw,bhw->br", x.float(), change) for x in (~area, area))
            sums.setdefault("outside", []).append(outside)
            sums.setdefault("inside", []).append(torch.where(shown, inside, torch.nan))
            near, far = (pool.centers[i][:, roles.pose] for i in (base, other))
            sums.setdefault("pose", []).append(pose_error(near, far, self.pose_weight(base))[:, None])
            if roles.groups:
                shift = distance(self.offsets(pool.centers[base]), self.offsets(pool.centers[other]))
                sums.setdefault("layout", []).append(shift)
        found = {name: torch.cat(parts) for name, parts in sums.items()}
        mean = {name: x.nanmean(dim=0).nan_to_num(1.0).clamp_min(1e-6) for name, x in found.items()}
        self.heads = [*pool.looks, "outline"]
        self.whole = torch.stack([mean[h] for h in self.heads], dim=1)
        typical = {h: found[h].nanmedian(dim=0).values for h in self.heads}
        sizes = {h: mean[f"size {h}"] for h in self.heads}
        self.head_weights = head_weights(differing_heads(typical, sizes).values())
        self.outside, self.inside = mean["outside"], mean["inside"]
        self.pose, self.layout = mean["pose"], mean.get("layout")

    def pose_weight(self, index: Tensor) -> Tensor:
        """Return the weights (B, P) of pose regions, higher for small ones: occlusion shifts a large one's center."""
        area = self._pool.areas[index][:, self.roles.pose]
        return (area > 1e-3) / area.clamp_min(1e-3)

    def offsets(self, centers: Tensor) -> Tensor:
        """Return `composed.offsets` of the tree's groups, (B, groups, 2)."""
        return offsets(centers, [(a, b) for _, a, b in self.roles.groups])
