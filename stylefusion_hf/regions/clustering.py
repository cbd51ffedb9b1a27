"""Clusters of features, their similarity, and the agreement of two clusterings: the arithmetic of `discovery`.

Nothing here depends on a generator: P places belong to N pictures and to K clusters, and relations between clusters
are (K, K) matrices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# --- Clusters and their similarity -----------------------------------------------------------------------------------


def spherical_kmeans(x: Tensor, k: int, draw: torch.Generator, iterations: int = 20, restarts: int = 2) -> Tensor:
    """Find unit centers (k, D) of unit vectors (P, D) that maximize the sum of cosines, from k-means++ starts."""
    best, best_fit = None, float("-inf")
    for _ in range(restarts):
        centres = x[torch.randint(len(x), (1,), generator=draw)]
        far = 1 - x @ centres[0]
        for _ in range(k - 1):
            # inverse transform sampling, since multinomial is limited to 2^24 places
            total = far.clamp_min(0).double().cumsum(0)
            at = torch.rand(1, generator=draw, dtype=torch.float64) * total[-1]
            centres = torch.cat([centres, x[torch.searchsorted(total, at).clamp_max(len(x) - 1)]])
            far = torch.minimum(far, 1 - x @ centres[-1])
        for _ in range(iterations):
            nearest = (x @ centres.t()).argmax(1)
            sums = torch.zeros_like(centres).index_add_(0, nearest, x)
            centres = torch.where(sums.norm(dim=1, keepdim=True) > 0, F.normalize(sums, dim=1), centres)
        fit = float((x @ centres.t()).amax(1).mean())
        if fit > best_fit:
            best, best_fit = centres, fit
    assert best is not None
    return best


def occupancy(nearest: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Count, for clusters (N, P), how often each is at each place, (P, k), and its size in each picture, (N, k)."""
    member = F.one_hot(nearest, k).float()
    return member.sum(0), member.sum(1)


def alternation(places: Tensor, areas: Tensor) -> Tensor:
    """Return how interchangeable clusters are, (k, k): 1 for clusters in the same place but never in the same picture,
    such as a blue sky and a red sky. The cosine of their distributions over places, times one minus their overlap.

    Args:
        places, areas: counts of clusters as from `occupancy`, or of groups of them (sums of columns).
    """
    place = F.normalize(places, dim=0)
    together = torch.minimum(areas[:, :, None], areas[:, None, :]).sum(0)
    total = areas.sum(0)
    exclusive = 1 - together / torch.minimum(total[:, None], total[None, :]).clamp_min(1)
    return (place.t() @ place) * exclusive


def colour_agreement(colours: Tensor, nearest: Tensor, k: int, least: int = 4) -> Tensor:
    """Return how consistently two clusters share a color, (k, k): 1 if always the same color, 0 if only by chance.

    1 - E|a(n) - b(n)|^2 / E|a(n) - b(m)|^2 for mean colors a, b in pictures n and other pictures m: an intraclass
    correlation. Pictures in which a cluster has fewer than `least` places are ignored; clusters that never occur
    together get 0.

    Args:
        colors: (N, P, 3).
        nearest: (N, P), the clusters.
    """
    member = F.one_hot(nearest, k).to(colours)
    size = member.sum(1)  # (N, k)
    mean = torch.einsum("npk,npc->nkc", member, colours) / size.clamp_min(1)[..., None]
    present = (size >= least).to(colours)
    square = (mean.square().sum(2) * present).t() @ present  # (k, k): sum over n of |a|^2 where both are present
    cross = torch.einsum("nac,nbc->ab", mean * present[..., None], mean * present[..., None])
    both = present.t() @ present
    within = square + square.t() - 2 * cross
    # over all pairs n, m of pictures in which both are present
    sums = torch.einsum("nac,nb->abc", mean * present[..., None], present)
    products = (sums * sums.transpose(0, 1)).sum(2)
    across = both * (square + square.t()) - 2 * products - within
    pairs = (both * (both - 1)).clamp_min(1)
    found = 1 - (within / both.clamp_min(1)) / (across / pairs).clamp_min(1e-8)
    return torch.where(both >= 8, found.clamp(-1, 1), torch.zeros_like(found))


# --- Joins -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Join:
    """Merge of nodes a and b, with their similarity."""

    a: int
    b: int
    similarity: float


def join_clusters(affinity: Tensor, weight: Tensor) -> list[Join]:
    """Average linkage: affinity (K, K), weight (K,) -> K - 1 joins, most similar first; join i makes node K + i."""
    k = len(affinity)
    total = torch.full((2 * k - 1, 2 * k - 1), float("-inf"), dtype=torch.float64)
    total[:k, :k] = affinity.double().fill_diagonal_(float("-inf"))
    size = torch.zeros(2 * k - 1, dtype=torch.float64)
    size[:k] = weight.double().clamp_min(1)
    joins: list[Join] = []
    for new in range(k, 2 * k - 1):
        a, b = divmod(int(total.argmax()), 2 * k - 1)
        a, b = min(a, b), max(a, b)
        value = float(total[a, b])
        joined = (size[a] * total[a] + size[b] * total[b]) / (size[a] + size[b])
        joined[[a, b]] = float("-inf")
        total[new], total[:, new] = joined, joined
        total[[a, b]], total[:, [a, b]] = float("-inf"), float("-inf")
        size[new] = size[a] + size[b]
        joins.append(Join(a, b, value))
    return joins


def members_of(joins: Sequence[Join], k: int) -> Tensor:
    """Return (2k - 1, k), true where a cluster belongs to a node."""
    nodes = torch.eye(2 * k - 1, k, dtype=torch.bool)
    for i, pair in enumerate(joins):
        nodes[k + i] = nodes[pair.a] | nodes[pair.b]
    return nodes


# --- Agreement -------------------------------------------------------------------------------------------------------


def contingency(first: Tensor, second: Tensor, n: int, m: int) -> Tensor:
    """Count the places with each pair of labels, (n, m); labels are 0 to n - 1 and 0 to m - 1, of equal shape."""
    return torch.bincount((first * m + second).flatten(), minlength=n * m).view(n, m)


def jaccard(common: Tensor, first: Tensor | None = None, second: Tensor | None = None) -> Tensor:
    """Return the Jaccard index, or IoU, of every pair of sets: `common` (n, m) divided by the size of their union.

    first, second: sizes of the sets, (n,) and (m,); None if each place is in exactly one set of each side, as in a
    `contingency`, whose diagonal then gives the IoU per label.
    """
    first = common.sum(1) if first is None else first
    second = common.sum(0) if second is None else second
    return common / (first[:, None] + second - common).clamp_min(1)


def best_jaccard(nodes: Tensor, mine: Tensor, others: Tensor, theirs: Tensor) -> Tensor:
    """Return the Jaccard index of every node of one clustering with every node of another, (nodes, others); `mine` and
    `theirs` (P,) are the clusters of the same places.
    """
    k, m = nodes.shape[1], others.shape[1]
    counts = contingency(mine, theirs, k, m).double()
    common = nodes.double() @ counts @ others.double().t()
    return jaccard(common, nodes.double() @ counts.sum(1), others.double() @ counts.sum(0))
