"""Names and a tree for unnamed regions, from their position, their neighbors and the regions they move with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from itertools import chain, count

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.imaging.alignment import region_centroids

LARGE = 0.1  # minimum share of the picture for background, which also covers more of the border than of the picture
ROWS, COLUMNS = ("top", "", "bottom"), ("left", "", "right")


def named_tree(labels: Tensor, count: int, names: Sequence[str] | None = None) -> tuple[RegionTree, list[str]]:
    """Return a binary tree of all regions in label maps (N, H, W), with every inner node fused, and the names of the
    regions: the given ones, or new ones.

    Regions are joined by average linkage, starting with those that touch most and move together. Background comes
    last, since the root's first child determines the pose. Inner nodes are named group_1, ..., the root all, and a
    node of only background regions background.
    """
    if count < 2:
        raise ValueError(f"a tree needs at least two regions, got {count}")
    border = border_share(labels, count)
    area = torch.bincount(labels.flatten(), minlength=count).float() / labels.numel()
    behind = (area >= LARGE) & (border > area)
    if bool(behind.all()):
        behind = torch.zeros_like(behind)  # nothing is in front of it
    names = list(names) if names else region_names(labels, count, behind)
    near = touching(labels, count) + moving_together(labels, count)
    # Join background and foreground last, if there are both.
    near = near - 10.0 * (behind[:, None] != behind[None, :])

    def in_front(group: list[int]) -> tuple[bool, float]:
        """Sort key: foreground before background, then by decreasing share of the border."""
        return not all(bool(behind[i]) for i in group), -float(border[group].sum())

    groups: dict[int, list[int]] = {i: [i] for i in range(count)}
    texts = dict(enumerate(names))
    made, taken = 0, set(names)
    while len(groups) > 1:
        pairs = [(a, b) for a in groups for b in groups if a < b]
        a, b = max(pairs, key=lambda p: float(near[groups[p[0]]][:, groups[p[1]]].mean()))
        if in_front(groups[a]) < in_front(groups[b]):
            a, b = b, a
        members = groups.pop(a) + groups.pop(b)
        stem = "all" if not groups else "background" if all(bool(behind[i]) for i in members) else "group"
        made += stem == "group"
        name = _unused(f"group_{made}" if stem == "group" else stem, taken)
        taken.add(name)
        new = max(texts) + 1
        groups[new], texts[new] = members, f"{name}*({texts[a]}, {texts[b]})"
    return RegionTree.parse(texts[next(iter(groups))]), names


def _unused(name: str, taken: Collection[str]) -> str:
    """Return `name`, with a number appended if it is taken."""
    numbered = (f"{name}_{k}" for k in count(2))
    return next(n for n in chain((name,), numbered) if n not in taken)


def border_share(labels: Tensor, count: int) -> Tensor:
    """Return (R,), the average share of the picture's border that each region covers."""
    edge = torch.cat([labels[:, 0], labels[:, -1], labels[:, 1:-1, 0], labels[:, 1:-1, -1]], dim=1)
    return F.one_hot(edge, count).float().mean(dim=(0, 1))


def region_names(labels: Tensor, count: int, behind: Tensor) -> list[str]:
    """Name regions by position: background (with its position, if there are several), top_left, center, ...; equal
    names are numbered.
    """
    centre, area = region_centroids(labels, count)
    weight = (area / area.sum(0).clamp_min(1e-8))[..., None]
    x, y = (centre * weight).sum(0).unbind(1)

    def place(i: int) -> str:
        row = ROWS[int((y[i] > -1 / 3).int() + (y[i] > 1 / 3).int())]
        column = COLUMNS[int((x[i] > -1 / 3).int() + (x[i] > 1 / 3).int())]
        return "_".join(word for word in (row, column) if word) or "centre"

    several = int(behind.sum()) > 1
    names = []
    for i in range(count):
        if behind[i]:
            names.append(f"background_{place(i)}" if several else "background")
        else:
            names.append(place(i))
    total, seen = Counter(names), Counter[str]()
    for i in sorted(range(count), key=lambda i: -float(area[:, i].mean())):  # the largest is number 1
        if total[names[i]] > 1:
            seen[names[i]] += 1
            names[i] = f"{names[i]}_{seen[names[i]]}"
    return names


def touching(labels: Tensor, count: int) -> Tensor:
    """Return (R, R): the length of the border between two regions, as a share of the shorter region's outline."""
    pairs = torch.zeros(count * count)
    for a, b in ((labels[:, :-1], labels[:, 1:]), (labels[:, :, :-1], labels[:, :, 1:])):
        pairs += torch.bincount((a * count + b).flatten(), minlength=count * count).float()
    borders = pairs.view(count, count)
    borders = (borders + borders.t()).fill_diagonal_(0)
    length = borders.sum(1)
    return borders / torch.minimum(length[:, None], length[None, :]).clamp_min(1)


def moving_together(labels: Tensor, count: int) -> Tensor:
    """Return (R, R) in [-1, 1]: the correlation of two regions' positions over pictures (mean over x and y)."""
    centre, area = region_centroids(labels, count)
    present = area > 0
    result = torch.zeros(count, count)
    for axis in range(2):
        at = torch.where(present, centre[..., axis], torch.nan)
        at = (at - at.nanmean(0)).nan_to_num(0)
        products = at.t() @ at
        square = (at.square().t() @ present.float()).clamp_min(1e-12)
        result += products / (square * square.t()).sqrt() / 2
    return result
