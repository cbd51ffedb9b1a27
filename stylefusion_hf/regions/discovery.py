"""Regions found in a generator's own features, without a picture or a label.

    found = discover(generator)                 # found.tree, found.labeller, found.report

1. Features of many samples, several layers at every place, are clustered finely by spherical k-means (Dhillon and
   Modha, 2001), as Collins et al. (arXiv 2004.14367) do for one layer and few clusters.
2. Clusters are joined pairwise, the most alike first: by the cosine of their centers, by how surely they have one
   color within a picture while it differs between pictures, and by how much one stands where the other would be.
   Joins stop below a likeness of ALIKE; what stands for each other by more than ALTERNATIVE is one region anyway.
3. The clustering is done again on resampled pictures. A candidate's stability is the mean Jaccard index with its best
   match there (Hennig, 2007, "Cluster-wise assessment of cluster stability"). What is less stable than STABLE, or too
   small, goes to the region that it is most alike.
4. Regions are joined into a binary tree, those first that touch and move together from sample to sample: what shares a
   parent shares its common code. What holds the picture's border is background and goes last.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.models.labeller import FeatureLabeller, describe, readable_layers
from stylefusion_hf.models.layers import chunk_size
from stylefusion_hf.models.sampling import draw_codes
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.regions.clustering import (
    Join,
    best_jaccard,
    colour_agreement,
    instead,
    join,
    members_of,
    occupancy,
    spherical_kmeans,
)
from stylefusion_hf.regions.naming import named_tree
from stylefusion_hf.regions.working_size import working_size

STABLE = 0.6  # Hennig's bound: below it a cluster is no pattern in the data
ALIKE = 0.8  # of 3: clusters more alike than this are one region
ALTERNATIVE = 0.5  # regions that stand for each other by more than this are one, however unlike they look
TEMPERATURE = 0.05  # of the labeller's cosines; the width of the border between two regions
GRID = 32  # places to a side that are clustered
MOST_DIMENSIONS = 512  # of described features that are clustered as they are
KEPT_DIMENSIONS = 256  # that longer ones are projected to
Same = Callable[[list[int]], list[list[int]]]  # nodes -> the nodes of each region


@dataclass(frozen=True)
class Discovery:
    """What was found. `report`: {"stability": {region: Jaccard index}, "area": {region: share}, ...}."""

    tree: RegionTree
    labeller: FeatureLabeller
    report: dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Described features of N pictures, (N G^2, D), and their colors (N, G^2, 3).

    `basis` (D, full width), orthonormal rows, where the features are projections.
    """

    features: Tensor
    colours: Tensor
    grid: int
    basis: Tensor | None = None

    @property
    def pictures(self) -> int:
        return len(self.colours)

    def of(self, chosen: Tensor) -> Tensor:
        """Features of some pictures (n,), (n G^2, D)."""
        return self.features.unflatten(0, (self.pictures, -1))[chosen].flatten(0, 1)


def discover(
    generator: StyleGenerator,
    samples: int = 160,
    clusters: int = 28,
    num_regions: int | None = None,
    min_area: float = 0.003,
    max_regions: int = 12,
    trials: int = 6,
    resolutions: Sequence[int] | None = None,
    seed: int = 0,
    progress: bool = True,
    resolution: int | None = None,
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
        resolution: size of the pictures whose colors are compared; see `working_size`.

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
    size = working_size(generator, resolution, layers)
    places = see(generator, sample_codes(generator, samples, draw), layers, size)
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
    same = one_instead_of_the_other(*occupancy(mine.view(places.pictures, -1), clusters), nodes)
    picked = choose(joins, stability, area >= min_area, num_regions, max_regions, same)
    owner = owners(picked, nodes, alike(places, mine, centres))
    labels = owner[mine].view(places.pictures, places.grid, places.grid)
    tree, names = named_tree(labels, len(picked))
    order = sorted(range(len(picked)), key=lambda i: tree.leaves.index(names[i]))
    rank = torch.tensor([order.index(i) for i in range(len(picked))])
    centres = centres if places.basis is None else centres @ places.basis
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
            "resolution": size,
            "num_regions": len(picked),
            "samples": places.pictures,
            "clusters": clusters,
            "trials": trials,
            "seed": seed,
        },
    )


# --- Features --------------------------------------------------------------------------------------------------------


def chosen_layers(g: StyleGenerator, resolutions: Sequence[int] | None = None) -> list[int]:
    """The feature maps to read: of `readable_layers`, not the last, which know colors and edges only."""
    if resolutions is None:
        return readable_layers(g, 64 if g.config.resolution >= 256 else 32)
    there = list(g.feature_sizes)
    if missing := [r for r in resolutions if r not in there]:
        raise ValueError(f"the generator has no feature maps of {missing[0]} pixels; it has {there}")
    return list(resolutions)


@torch.no_grad()
def sample_codes(g: StyleGenerator, count: int, draw: torch.Generator) -> Tensor:
    """Style codes (count, S) as fusion nets are trained on: truncated by psi from 0.5 to 1."""
    return draw_codes(g, count, draw, 0.5, 0.0)


@torch.no_grad()
def see(g: StyleGenerator, codes: Tensor, layers: Sequence[int], size: int | None = None) -> Places:
    """Described features and colors of style codes (N, S) at GRID places to a side, or as many as the layers have.

    Long features are projected to the directions that they vary most in: clustering takes time and memory in
    proportion to their length, and cosines hardly change.

    size: of the pictures; None for full ones.
    """
    size = size or g.config.resolution
    grid, basis = min(GRID, max(layers)), None
    width = sum(g.feature_sizes[layer] for layer in layers)
    # The maps of a picture, some megabytes each, matter as much as its pixels.
    most = chunk_size(size, 64) if width <= MOST_DIMENSIONS else chunk_size(size, 8)
    features, colours = [], []
    for s in codes.split(most):
        image, maps = g.synthesis(s, return_features=True, up_to=size)
        x = describe(maps, layers, grid).flatten(2).transpose(1, 2).flatten(0, 1)
        if width > MOST_DIMENSIONS:
            # of the first few pictures, which have thousands of places
            basis = principal_directions(x, KEPT_DIMENSIONS) if basis is None else basis
            x = x @ basis.t()
        features.append(x.cpu())
        pixels = F.adaptive_avg_pool2d(image.float().clamp(-1, 1), min(grid, image.shape[-1]))
        colours.append(pixels.flatten(2).transpose(1, 2).cpu())
    return Places(torch.cat(features), torch.cat(colours), grid, None if basis is None else basis.cpu())


def principal_directions(x: Tensor, count: int) -> Tensor:
    """Return orthonormal rows (count, D): the directions of vectors (P, D) with the largest second moments."""
    _, vectors = torch.linalg.eigh(x.t() @ x)  # ascending
    return vectors[:, -count:].t().contiguous()


# --- Clusters --------------------------------------------------------------------------------------------------------


def cluster_and_join(places: Places, chosen: Tensor, k: int, draw: torch.Generator) -> tuple[Tensor, list[Join]]:
    """Centers (k, D) of some pictures' places, and the clusters' joins."""
    x = places.of(chosen)
    centres = spherical_kmeans(x[torch.randperm(len(x), generator=draw)[: 64 * 1024]], k, draw)
    nearest = (x @ centres.t()).argmax(1)
    some = Places(x, places.colours[chosen], places.grid)
    weight = torch.bincount(nearest, minlength=k).float()
    return centres, join(alike(some, nearest, centres), weight)


def alike(places: Places, nearest: Tensor, centres: Tensor) -> Tensor:
    """How alike clusters are, (K, K): the sum of the cosine of their centers, the agreement of their colors, and how
    much they stand for each other, each at most 1.
    """
    by_picture = nearest.view(places.pictures, -1)
    colour = colour_agreement(places.colours, by_picture, len(centres))
    return centres @ centres.t() + colour + instead(*occupancy(by_picture, len(centres)))


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


def one_instead_of_the_other(places: Tensor, areas: Tensor, nodes: Tensor) -> Same:
    """Groups nodes (2k - 1, k) that stand for each other by more than ALTERNATIVE; `occupancy` is the clusters'."""

    def same(picked: list[int]) -> list[list[int]]:
        groups = [[node] for node in picked]
        while len(groups) > 1:
            members = torch.stack([nodes[group].any(0) for group in groups]).float().t()  # (k, G)
            found = instead(places @ members, areas @ members).fill_diagonal_(0)
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
    centres: Tensor, owner: list[int], names: list[str], layers: Sequence[int], g: StyleGenerator
) -> FeatureLabeller:
    """The clusters as a labeller whose probabilities add up over a region's clusters."""
    labeller = FeatureLabeller.of(g, names, layers, classes=owner)
    with torch.no_grad():
        labeller.layers[0].weight.copy_(centres[..., None] / TEMPERATURE)
        labeller.layers[0].bias.zero_()
    return labeller.eval().requires_grad_(False).to(g.device)
