"""Regions found in a generator's own features, without a picture or a label.

    found = discover(generator)                 # found.tree, found.labeller, found.report

1. Features of many samples, several layers at every place, are clustered finely by spherical k-means (Dhillon and
   Modha, 2001), as Collins et al. (arXiv 2004.14367) do for one layer and few clusters.
2. Clusters are joined pairwise, the most alike first: by the cosine of their centres, by how surely they have one
   colour within a picture while it differs between pictures, and by how much one stands where the other would be.
   Joins stop below a likeness of ALIKE; what stands for each other by more than ALTERNATIVE is one region anyway.
3. The clustering is done again on resampled pictures. A candidate's stability is the mean Jaccard index with its best
   match there (Hennig, 2007, "Cluster-wise assessment of cluster stability"). What is less stable than STABLE, or too
   small, goes to the region that it is most alike.
4. Regions are joined into a binary tree, those first that touch and move together from sample to sample: what shares a
   parent shares its common code. What holds the picture's border is background and goes last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from stylefusion_hf.models.generator import StyleGAN2Generator
from stylefusion_hf.models.labeller import FeatureLabeller, describe
from stylefusion_hf.models.layers import at_once
from stylefusion_hf.region_naming import named_tree
from stylefusion_hf.regions import RegionTree

STABLE = 0.6  # Hennig's bound: below it a cluster is no pattern in the data
ALIKE = 0.8  # of 3: clusters more alike than this are one region
ALTERNATIVE = 0.5  # regions that stand for each other by more than this are one, however unlike they look
TEMPERATURE = 0.05  # of the labeller's cosines; the width of the border between two regions
GRID = 32  # places to a side that are clustered
Same = Callable[[list[int]], list[list[int]]]  # nodes -> the nodes of each region


@dataclass(frozen=True)
class Discovery:
    """What was found. `report`: {"stability": {region: Jaccard index}, "area": {region: share}, ...}."""

    tree: RegionTree
    labeller: FeatureLabeller
    report: dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Described features of N pictures, (N G^2, D), and their colours (N, G^2, 3)."""

    features: Tensor
    colours: Tensor
    grid: int

    @property
    def pictures(self) -> int:
        return len(self.colours)

    def of(self, chosen: Tensor) -> Tensor:
        """Features of some pictures (n,), (n G^2, D)."""
        return self.features.unflatten(0, (self.pictures, -1))[chosen].flatten(0, 1)


def discover(
    generator: StyleGAN2Generator,
    samples: int = 160,
    clusters: int = 28,
    num_regions: int | None = None,
    min_area: float = 0.003,
    max_regions: int = 12,
    trials: int = 6,
    resolutions: Sequence[int] | None = None,
    seed: int = 0,
    codes: Tensor | None = None,
    progress: bool = True,
) -> Discovery:
    """Find regions, and the tree that they make.

    Args:
        generator: in eval mode; its features are read, nothing is trained.
        samples: pictures that are clustered.
        clusters: fine clusters before joining.
        num_regions: how many regions, from 2; None takes those that are stable.
        min_area: of a region, as a share of all pixels.
        max_regions: at most, where num_regions is None.
        trials: clusterings of resampled pictures that stability is judged by.
        resolutions: feature maps that are read; None: from 8 pixels to 32, or to 64 from 256 pixels on.
        seed: of samples and clusterings.
        codes: style codes (samples, S) to use instead of sampled ones.

    Raises:
        ValueError: arguments out of range, a generator without such feature maps, or one in whose features nothing
            stable is found.
    """
    if not 2 <= (num_regions or 2) <= clusters or max_regions < 2 or not 4 <= clusters <= 256:
        raise ValueError(
            f"num_regions (or max_regions) is from 2 to the number of clusters, clusters from 4 to 256; got"
            f" num_regions={num_regions}, max_regions={max_regions}, clusters={clusters}"
        )
    if samples < 8 or trials < 2:
        raise ValueError(f"stability needs 8 samples and 2 trials or more, got {samples} and {trials}")
    layers = chosen_layers(generator, resolutions)
    draw = torch.Generator().manual_seed(seed)
    if codes is None:
        codes = sample_codes(generator, samples, draw)
    places = see(generator, codes, layers)
    steps = tqdm(total=trials + 1, desc="clustering", disable=not progress)
    centres, joins = cluster_and_join(places, torch.arange(places.pictures), clusters, draw)
    steps.update()
    nodes = members_of(joins, clusters)
    mine = (places.features @ centres.t()).argmax(1)
    matches = []
    for _ in range(trials):
        chosen = torch.randint(places.pictures, (places.pictures,), generator=draw).unique()
        others, their_joins = cluster_and_join(places, chosen, clusters, draw)
        theirs = (places.features @ others.t()).argmax(1)
        matches.append(best_jaccard(nodes, mine, members_of(their_joins, clusters), theirs).amax(1))
        steps.update()
    steps.close()
    stability = torch.stack(matches).mean(0)
    area = nodes.float() @ torch.bincount(mine, minlength=clusters).float() / len(mine)
    same = one_instead_of_the_other(mine.view(places.pictures, -1), nodes)
    picked = choose(joins, stability, area >= min_area, num_regions, max_regions, same)
    owner = owners(picked, nodes, alike(places, mine, centres))
    labels = owner[mine].view(places.pictures, places.grid, places.grid)
    tree, names = named_tree(labels, len(picked))
    order = sorted(range(len(picked)), key=lambda i: tree.leaves.index(names[i]))
    rank = torch.tensor([order.index(i) for i in range(len(picked))])
    labeller = cluster_labeller(centres, rank[owner].tolist(), [names[i] for i in order], layers, generator)
    share = torch.bincount(owner[mine], minlength=len(picked)).float() / len(mine)
    return Discovery(
        tree,
        labeller,
        {
            "tree": str(tree),
            "stability": {names[i]: round(float(stability[picked[i]].min()), 3) for i in order},
            "area": {names[i]: round(float(share[i]), 4) for i in order},
            "layers": layers,
            "num_regions": len(picked),
            "samples": places.pictures,
            "clusters": clusters,
            "trials": trials,
            "seed": seed,
        },
    )


# --- Features --------------------------------------------------------------------------------------------------------


def chosen_layers(g: StyleGAN2Generator, resolutions: Sequence[int] | None = None) -> list[int]:
    """The feature maps to read: below 8 pixels they know no parts, and the last ones know colours and edges only."""
    there = [4 * 2**k for k in range(len(g.rgb_sizes))]
    if resolutions is not None:
        if missing := [r for r in resolutions if r not in there]:
            raise ValueError(f"the generator has no feature maps of {missing[0]} pixels; it has {there}")
        return list(resolutions)
    last = 64 if g.config.resolution >= 256 else 32
    return [r for r in there if 8 <= r <= last] or there[-1:]


@torch.no_grad()
def sample_codes(g: StyleGAN2Generator, count: int, draw: torch.Generator) -> Tensor:
    """Style codes (count, S) as fusion nets are trained on: truncated by psi from 0.5 to 1."""
    from stylefusion_hf.training.sampling import draw_codes  # training imports discovery

    return draw_codes(g, count, draw, 0.5, 0.0)


@torch.no_grad()
def see(g: StyleGAN2Generator, codes: Tensor, layers: Sequence[int]) -> Places:
    """Described features and colours of style codes (N, S) at GRID places to a side, or as many as the layers have."""
    grid = min(GRID, max(layers))
    features, colours = [], []
    for s in codes.split(at_once(g.config.resolution, 64)):
        image, maps = g.synthesis(s, return_features=True)
        x = describe(maps, layers, grid)
        features.append(x.flatten(2).transpose(1, 2).flatten(0, 1).cpu())
        pixels = F.adaptive_avg_pool2d(image.float().clamp(-1, 1), min(grid, image.shape[-1]))
        colours.append(pixels.flatten(2).transpose(1, 2).cpu())
    return Places(torch.cat(features), torch.cat(colours), grid)


# --- Clusters --------------------------------------------------------------------------------------------------------


def spherical_kmeans(x: Tensor, k: int, draw: torch.Generator, iterations: int = 20, restarts: int = 2) -> Tensor:
    """Unit centres (k, D) of unit vectors (P, D) that maximise the sum of cosines, from k-means++ starts."""
    best, best_fit = None, float("-inf")
    for _ in range(restarts):
        centres = x[torch.randint(len(x), (1,), generator=draw)]
        far = 1 - x @ centres[0]
        for _ in range(k - 1):
            # inverse transform sampling: multinomial takes 2^24 places at most
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


def cluster_and_join(places: Places, chosen: Tensor, k: int, draw: torch.Generator) -> tuple[Tensor, list[Join]]:
    """Centres (k, D) of some pictures' places, and the clusters' joins."""
    x = places.of(chosen)
    centres = spherical_kmeans(x[torch.randperm(len(x), generator=draw)[: 64 * 1024]], k, draw)
    nearest = (x @ centres.t()).argmax(1)
    some = Places(x, places.colours[chosen], places.grid)
    weight = torch.bincount(nearest, minlength=k).float()
    return centres, join(alike(some, nearest, centres), weight)


def alike(places: Places, nearest: Tensor, centres: Tensor) -> Tensor:
    """How alike clusters are, (K, K): the sum of the cosine of their centres, the agreement of their colours, and how
    much they stand for each other, each at most 1.
    """
    by_picture = nearest.view(places.pictures, -1)
    colour = colour_agreement(places.colours, by_picture, len(centres))
    return centres @ centres.t() + colour + instead(by_picture, len(centres))


def instead(nearest: Tensor, k: int, groups: Tensor | None = None) -> Tensor:
    """How much clusters (N, P) stand for each other, (k, k): 1 where they have the same place, but never in one
    picture, as a blue sky and a red one. The cosine of their shares by place, times what is not there together.

    groups: (G, k), true where a cluster belongs to a group; then it is groups that are compared, (G, G).
    """
    member = F.one_hot(nearest, k).float()
    places, areas = member.sum(0), member.sum(1)
    if groups is not None:
        places, areas = places @ groups.float().t(), areas @ groups.float().t()
    place, area = F.normalize(places, dim=0), areas  # (P, k) and (N, k)
    together = torch.minimum(area[:, :, None], area[:, None, :]).sum(0)
    total = area.sum(0)
    apart = 1 - together / torch.minimum(total[:, None], total[None, :]).clamp_min(1)
    return (place.t() @ place) * apart


def colour_agreement(colours: Tensor, nearest: Tensor, k: int, least: int = 4) -> Tensor:
    """How surely two clusters have one colour, (k, k): 1 if always the same one, 0 if no more than by chance.

    1 - E|a(n) - b(n)|^2 / E|a(n) - b(m)|^2 for mean colours a, b in pictures n and others m: an intraclass
    correlation. Pictures in which a cluster has fewer than `least` places do not count; clusters that never meet
    get 0.

    Args:
        colours: (N, P, 3).
        nearest: (N, P), the clusters.
    """
    member = F.one_hot(nearest, k).to(colours)
    size = member.sum(1)  # (N, k)
    mean = torch.einsum("npk,npc->nkc", member, colours) / size.clamp_min(1)[..., None]
    there = (size >= least).to(colours)
    square = (mean.square().sum(2) * there).t() @ there  # (k, k): sum over n of |a|^2 where both are there
    cross = torch.einsum("nac,nbc->ab", mean * there[..., None], mean * there[..., None])
    both = there.t() @ there
    together = square + square.t() - 2 * cross
    # over all pairs n, m of pictures in which both are there
    sums = torch.einsum("nac,nb->abc", mean * there[..., None], there)
    products = (sums * sums.transpose(0, 1)).sum(2)
    apart = both * (square + square.t()) - 2 * products - together
    pairs = (both * (both - 1)).clamp_min(1)
    found = 1 - (together / both.clamp_min(1)) / (apart / pairs).clamp_min(1e-8)
    return torch.where(both >= 8, found.clamp(-1, 1), torch.zeros_like(found))


@dataclass(frozen=True)
class Join:
    """Nodes a and b become one, being so much alike."""

    a: int
    b: int
    alike: float


def join(affinity: Tensor, weight: Tensor) -> list[Join]:
    """Average linkage, (K, K) and (K,) -> K - 1 joins, the most alike first; join i makes node K + i."""
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
    """(2k - 1, k), true where a cluster belongs to a node."""
    nodes = torch.eye(2 * k - 1, k, dtype=torch.bool)
    for i, pair in enumerate(joins):
        nodes[k + i] = nodes[pair.a] | nodes[pair.b]
    return nodes


def best_jaccard(nodes: Tensor, mine: Tensor, others: Tensor, theirs: Tensor) -> Tensor:
    """Jaccard index of every node of one clustering with every one of another, (nodes, others); `mine` and `theirs`
    (P,) are the clusters of the same places.
    """
    k, m = nodes.shape[1], others.shape[1]
    counts = torch.bincount(mine * m + theirs, minlength=k * m).view(k, m).double()
    common = nodes.double() @ counts @ others.double().t()
    first, second = nodes.double() @ counts.sum(1), others.double() @ counts.sum(0)
    return common / (first[:, None] + second - common).clamp_min(1)


# --- Regions ---------------------------------------------------------------------------------------------------------


def choose(
    joins: Sequence[Join], stability: Tensor, large: Tensor, number: int | None, most: int, same: Same
) -> list[list[int]]:
    """The nodes that make each region: what is left apart where joins stop, without the small and the unstable.

    Joins stop where the next one would be of less than ALIKE; with `number`, where that many regions are left. `same`
    puts nodes together that are one region all the same.
    """
    k = len(joins) + 1
    good = (large & (stability >= STABLE)).tolist()

    def left(made: int) -> list[list[int]]:
        used = {child for join in joins[:made] for child in (join.a, join.b)}
        return same([node for node in range(k + made) if node not in used and good[node]])

    if number is not None:
        for made in range(k - 1, -1, -1):
            if len(left(made)) == number:
                return left(made)
        raise ValueError(
            f"there are no {number} regions that are large enough and found again in other samples: ask for another"
            " number, for more clusters, or allow a smaller min_area"
        )
    made = sum(join.alike >= ALIKE for join in joins)
    while made < k - 1 and len(left(made)) > most:
        made += 1
    found = left(made)
    if len(found) < 2:
        raise ValueError(
            "nothing stable is found in this generator's features. Is it trained? Ask for a number of regions to take"
            " what there is, paint some samples (`stylefusion regions label`), or bring a segmenter"
        )
    return found


def one_instead_of_the_other(nearest: Tensor, nodes: Tensor) -> Same:
    """Groups nodes (2k - 1, k) that stand for each other by more than ALTERNATIVE: `nearest` (N, P) are clusters."""

    def same(picked: list[int]) -> list[list[int]]:
        groups = [[node] for node in picked]
        while len(groups) > 1:
            members = torch.stack([nodes[group].any(0) for group in groups])
            found = instead(nearest, nodes.shape[1], members).fill_diagonal_(0)
            if float(found.max()) <= ALTERNATIVE:
                break
            a, b = sorted(divmod(int(found.argmax()), len(groups)))
            groups[a] += groups.pop(b)
        return groups

    return same


def owners(picked: Sequence[Sequence[int]], nodes: Tensor, affinity: Tensor) -> Tensor:
    """(K,), the region of each cluster: its own, or the one it is most alike."""
    inside = torch.stack([nodes[list(group)].any(0) for group in picked]).float()  # (R, K)
    mean = (affinity @ inside.t()) / inside.sum(1)
    return torch.where(inside.bool().any(0), inside.argmax(0), mean.argmax(1))


def cluster_labeller(
    centres: Tensor, owner: list[int], names: list[str], layers: Sequence[int], g: StyleGAN2Generator
) -> FeatureLabeller:
    """The clusters as a labeller whose probabilities add up over a region's clusters."""
    widths = {4 * 2**k: c for k, c in enumerate(g.config.channels)}
    labeller = FeatureLabeller(
        regions=names, resolutions=list(layers), channels=[widths[r] for r in layers], classes=owner
    )
    with torch.no_grad():
        labeller.layers[0].weight.copy_(centres[..., None] / TEMPERATURE)
        labeller.layers[0].bias.zero_()
    return labeller.eval().requires_grad_(False).to(g.device)


def rename(labeller: FeatureLabeller, names: Mapping[str, str]) -> FeatureLabeller:
    """The same labeller with other names for its regions."""
    config = {key: value for key, value in labeller.config.items() if not key.startswith("_")}
    renamed = FeatureLabeller(**config | {"regions": [names.get(n, n) for n in labeller.config.regions]})
    renamed.load_state_dict(labeller.state_dict())
    return renamed.eval().requires_grad_(False)
