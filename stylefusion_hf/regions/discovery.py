"""Regions found in a generator's own features, without a picture or a label.

    found = discover(generator)                 # found.tree, found.labeller, found.report

1. Features of many samples, several layers at every place, are clustered finely by spherical k-means (Dhillon and
   Modha, 2001), as Collins et al. (arXiv 2004.14367) do for one layer and few clusters.
2. Clusters are joined pairwise, the most similar first. Similarity adds the cosine of their centers, the agreement
   of their colors within a picture compared to between pictures, and how interchangeable they are: in the same place,
   but never in the same picture. Joining stops below ALIKE; clusters interchangeable beyond ALTERNATIVE are merged
   anyway.
3. The clustering is done again on resampled pictures. A candidate's stability is the mean Jaccard index with its best
   match there (Hennig, 2007, "Cluster-wise assessment of cluster stability"). Candidates less stable than STABLE, or
   too small, go to the most similar region.
4. Regions are joined into a binary tree, those first that touch and move together from sample to sample, since regions
   with a common parent share its code. The region at the picture's border is background and goes last.
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
    alternation,
    best_jaccard,
    colour_agreement,
    join_clusters,
    members_of,
    occupancy,
    spherical_kmeans,
)
from stylefusion_hf.regions.naming import named_tree
from stylefusion_hf.regions.working_size import working_size

STABLE = 0.6  # Hennig's bound, below which a cluster is not a pattern in the data
ALIKE = 0.8  # of 3: clusters more similar than this are one region
ALTERNATIVE = 0.5  # regions more interchangeable than this are one, however different they look
TEMPERATURE = 0.05  # of the labeller's cosines; the width of the border between two regions
GRID = 32  # side of the grid of places that are clustered
MOST_DIMENSIONS = 512  # longest features that are clustered without projection
KEPT_DIMENSIONS = 256  # length of projected features
Merge = Callable[[list[int]], list[list[int]]]  # nodes -> the nodes of each region


@dataclass(frozen=True)
class Discovery:
    """A tree of regions, their labeller, and {"stability": {region: Jaccard index}, "area": {region: share}, ...}."""

    tree: RegionTree
    labeller: FeatureLabeller
    report: dict[str, Any]


@dataclass(frozen=True)
class Places:
    """Features of N pictures at P places each, (N P, D), and the colors there, (N, P, channels).

    `grid`: rows and columns of the places. `basis`: orthonormal rows (D, full width) if the features are projections.
    """

    features: Tensor
    colours: Tensor
    grid: tuple[int, int]
    basis: Tensor | None = None

    @property
    def pictures(self) -> int:
        return len(self.colours)

    def of(self, chosen: Tensor) -> Tensor:
        """Features of some pictures (n,), (n P, D)."""
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
    """Find regions and their tree.

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
    layers = choose_layers(generator, resolutions)
    draw = torch.Generator().manual_seed(seed)
    size = working_size(generator, resolution, layers)
    places = describe_samples(generator, sample_codes(generator, samples, draw), layers, size)
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
    merge = merge_alternatives(*occupancy(mine.view(places.pictures, -1), clusters), nodes)
    picked = choose_regions(joins, stability, area >= min_area, num_regions, max_regions, merge)
    owner = assign_clusters(picked, nodes, similarity(places, mine, centres))
    labels = owner[mine].view(places.pictures, *places.grid)
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


def choose_layers(g: StyleGenerator, resolutions: Sequence[int] | None = None) -> list[int]:
    """Return the resolutions to read; by default `readable_layers`, since the largest only show colors and edges."""
    if resolutions is None:
        return readable_layers(g, 64 if g.config.resolution >= 256 else 32)
    known = list(g.feature_sizes)
    if missing := [r for r in resolutions if r not in known]:
        raise ValueError(f"the generator has no feature maps of {missing[0]} pixels; it has {known}")
    return list(resolutions)


@torch.no_grad()
def sample_codes(g: StyleGenerator, count: int, draw: torch.Generator) -> Tensor:
    """Draw style codes (count, S) like those that fusion nets are trained on: truncated by psi from 0.5 to 1."""
    return draw_codes(g, count, draw, 0.5, 0.0)


@torch.no_grad()
def describe_samples(g: StyleGenerator, codes: Tensor, layers: Sequence[int], size: int | None = None) -> Places:
    """Return the features and colors of style codes (N, S) on a grid of places, GRID or the layers' height high.

    Long features are projected to their principal directions: the time and memory of clustering are proportional to
    their length, and cosines hardly change.

    size: of the pictures; None for full ones.
    """
    size = size or g.config.resolution
    grid, basis = g.size_at(min(GRID, max(layers))), None
    width = sum(g.feature_sizes[layer] for layer in layers)
    # The maps of a picture, some megabytes each, matter as much as its pixels.
    most = chunk_size(size, 64) if width <= MOST_DIMENSIONS else chunk_size(size, 8)
    features, colours = [], []
    for s in codes.split(most):
        image, maps = g.synthesis(s, return_features=True, up_to=size)
        x = describe(maps, layers, grid[0]).flatten(2).transpose(1, 2).flatten(0, 1)
        if width > MOST_DIMENSIONS:
            # The first few pictures have thousands of places, enough for a basis.
            basis = principal_directions(x, KEPT_DIMENSIONS) if basis is None else basis
            x = x @ basis.t()
        features.append(x.cpu())
        pixels = F.adaptive_avg_pool2d(image.float().clamp(-1, 1), grid)
        colours.append(pixels.flatten(2).transpose(1, 2).cpu())
    return Places(torch.cat(features), torch.cat(colours), grid, None if basis is None else basis.cpu())


def principal_directions(x: Tensor, count: int) -> Tensor:
    """Return orthonormal rows (count, D): the directions of vectors (P, D) with the largest second moments."""
    _, vectors = torch.linalg.eigh(x.t() @ x)  # ascending
    return vectors[:, -count:].t().contiguous()


# --- Clusters --------------------------------------------------------------------------------------------------------


def cluster_and_join(places: Places, chosen: Tensor, k: int, draw: torch.Generator) -> tuple[Tensor, list[Join]]:
    """Cluster the places of some pictures; return the centers (k, D) and the joins of the clusters."""
    x = places.of(chosen)
    centres = spherical_kmeans(x[torch.randperm(len(x), generator=draw)[: 64 * 1024]], k, draw)
    nearest = (x @ centres.t()).argmax(1)
    some = Places(x, places.colours[chosen], places.grid)
    weight = torch.bincount(nearest, minlength=k).float()
    return centres, join_clusters(similarity(some, nearest, centres), weight)


def similarity(places: Places, nearest: Tensor, centres: Tensor) -> Tensor:
    """Return the similarity of clusters (K, K): cosine of centers, plus `colour_agreement`, plus `alternation`.

    Each of the three is at most 1.
    """
    by_picture = nearest.view(places.pictures, -1)
    colour = colour_agreement(places.colours, by_picture, len(centres))
    return centres @ centres.t() + colour + alternation(*occupancy(by_picture, len(centres)))


# --- Regions ---------------------------------------------------------------------------------------------------------


def choose_regions(
    joins: Sequence[Join], stability: Tensor, large: Tensor, number: int | None, most: int, merge: Merge
) -> list[list[int]]:
    """Return the nodes of each region: those that remain where joining stops, without small and unstable ones.

    Joining stops where the next similarity is below ALIKE, or, with `number`, where that many regions remain. `merge`
    groups nodes that are alternatives of one region.
    """
    k = len(joins) + 1
    good = (large & (stability >= STABLE)).tolist()

    def remaining(made: int) -> list[list[int]]:
        used = {child for join in joins[:made] for child in (join.a, join.b)}
        return merge([node for node in range(k + made) if node not in used and good[node]])

    def possible() -> str:
        """The numbers of regions that can be asked for, in words."""
        numbers = sorted({len(remaining(made)) for made in range(k)} - {0, 1})
        return f"{', '.join(map(str, numbers))} can be found" if numbers else "none can be found"

    if number is not None:
        for made in range(k - 1, -1, -1):
            if len(remaining(made)) == number:
                return remaining(made)
        raise ValueError(
            f"there are no {number} regions that are large enough and found again in other samples: ask for another"
            f" number ({possible()}), for more clusters, or allow a smaller min_area"
        )
    made = sum(join.similarity >= ALIKE for join in joins)
    while made < k - 1 and len(remaining(made)) > most:
        made += 1
    found = remaining(made)
    if len(found) < 2:
        raise ValueError(
            "nothing stable is found in this generator's features. Is it trained? Ask for a number of regions"
            f" ({possible()}), paint some samples (`stylefusion regions label`), or bring a segmenter"
        )
    return found


def merge_alternatives(places: Tensor, areas: Tensor, nodes: Tensor) -> Merge:
    """Return a function that groups nodes (2k - 1, k) whose `alternation` exceeds ALTERNATIVE.

    places, areas: `occupancy` of the clusters.
    """

    def merge(picked: list[int]) -> list[list[int]]:
        groups = [[node] for node in picked]
        while len(groups) > 1:
            members = torch.stack([nodes[group].any(0) for group in groups]).float().t()  # (k, G)
            found = alternation(places @ members, areas @ members).fill_diagonal_(0)
            if float(found.max()) <= ALTERNATIVE:
                break
            a, b = sorted(divmod(int(found.argmax()), len(groups)))
            groups[a] += groups.pop(b)
        return groups

    return merge


def assign_clusters(picked: Sequence[Sequence[int]], nodes: Tensor, affinity: Tensor) -> Tensor:
    """Return the region of each cluster (K,): the one that contains it, or else the most similar one."""
    inside = torch.stack([nodes[list(group)].any(0) for group in picked]).float()  # (R, K)
    mean = (affinity @ inside.t()) / inside.sum(1)
    return torch.where(inside.bool().any(0), inside.argmax(0), mean.argmax(1))


def cluster_labeller(
    centres: Tensor, owner: list[int], names: list[str], layers: Sequence[int], g: StyleGenerator
) -> FeatureLabeller:
    """Return a labeller whose probability of a region is the sum over its clusters."""
    labeller = FeatureLabeller.of(g, names, layers, classes=owner)
    layer: Any = labeller.layers[0]
    with torch.no_grad():
        layer.weight.copy_(centres[..., None] / TEMPERATURE)
        layer.bias.zero_()
    return labeller.eval().requires_grad_(False).to(g.device)
