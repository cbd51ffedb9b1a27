"""Finding directions: SeFa, GANSpace, linear boundaries and style channels. `core.edits` applies them.

No method needs training, and all need only a generator, except region boundaries, which also need its segmenter. A
direction has unit length; its scale is one standard deviation of the generator's w (without truncation) along it. If a
method leaves the sign open, the largest component is made positive, so that directions are the same on every machine.

A denotes the matrix of all affine layers: s = A w + b.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.checks import check_count
from stylefusion_hf.core.edits import Direction
from stylefusion_hf.imaging.features import pooled
from stylefusion_hf.models.hooks import execution_device, true_tensor
from stylefusion_hf.models.layers import chunk_size

if TYPE_CHECKING:
    from stylefusion_hf.models.segmenter import RegionSegmenter
    from stylefusion_hf.models.style_generator import StyleGenerator

EXACT = 4096  # samples or dimensions of principal components, whichever are fewer
FEATURE_BYTES = 2**32
BATCH = 64  # pictures per batch, up to 128 pixels
STATISTICS = ("area", "brightness", "saturation", "warmth", "height")
LEAST_AREA = 2e-3  # share of the picture below which a region counts as hidden (8 pixels of 64 x 64)


@torch.no_grad()
def sample_w(generator: StyleGenerator, samples: int, seed: int = 0) -> Tensor:
    """Sample w (samples, w_dim), float32 on the CPU, without truncation; with random classes if conditional."""
    check_count("samples", samples, 2**24, least=2)
    random, config = np.random.RandomState(seed), generator.config
    z = torch.from_numpy(random.randn(samples, config.z_dim)).float()
    labels = None
    if config.label_dim:
        labels = F.one_hot(torch.from_numpy(random.randint(config.label_dim, size=samples)), config.label_dim).float()
    parts = []
    for k in range(0, samples, 4096):
        part = None if labels is None else _on_device(generator, labels[k : k + 4096])
        w = generator(_on_device(generator, z[k : k + 4096]), part, output="w", return_dict=False)[0]
        parts.append(w.float().cpu())
    return torch.cat(parts)


# --- From the weights ------------------------------------------------------------------------------------------------


def sefa(
    generator: StyleGenerator,
    count: int,
    layers: Sequence[int] | None = None,
    samples: int = 2000,
    seed: int = 0,
) -> list[Direction]:
    """Closed-form factorization (Shen and Zhou, arXiv 2007.06600): the w that move the style code furthest.

    Eigenvectors of A^T A by decreasing eigenvalue, with the rows of A that `layers` drive. This follows the paper; its
    published code first scales the rows of A to unit length.

    Args:
        generator: only its affine layers are used.
        count: number of directions, 1 to w_dim; named sefa-0, sefa-1, ...
        layers: rows of w+ to which the directions apply; None for all.
        samples, seed: number and seed of the w on which the scale is measured.

    Raises:
        ValueError: the generator does not have that many directions or these rows.
    """
    check_count("count", count, generator.w_avg.shape[0])
    matrix = (true_tensor(generator, "affine_weight") * generator.affine_gain).cpu().double()
    rows = _rows(generator, layers)
    if rows is not None:
        matrix = matrix[torch.isin(generator.style_rows.cpu(), torch.tensor(rows))]
    values, vectors = torch.linalg.eigh(matrix.t() @ matrix)  # by increasing eigenvalue
    w = sample_w(generator, samples, seed)
    return [
        _direction(f"sefa-{k}", vectors[:, -1 - k], w, rows, method="sefa", eigenvalue=float(values[-1 - k]))
        for k in range(count)
    ]


@torch.no_grad()
def style_channel(generator: StyleGenerator, name: str, index: int, samples: int = 2000, seed: int = 0) -> Direction:
    """Return one channel of one layer's style vector (StyleSpace; Wu et al., arXiv 2011.12799) as a direction in s.

    Args:
        generator: the generator of the layer.
        name: the layer: conv0, conv1, ..., rgb0, ...
        index: the channel, from 0.
        samples, seed: number and seed of the codes whose standard deviation in this channel is the scale.

    Raises:
        ValueError: no such layer or channel.
    """
    names = generator.style_sizes
    if name not in names:
        raise ValueError(f"this generator has no layer {name!r}: it has {', '.join(names)}")
    check_count(f"index: a number of {name}", index, names[name] - 1, least=0)
    one_hot = torch.zeros(1, generator.style_dim, dtype=torch.float32)
    generator.split_style(one_hot)[name][0, index] = 1
    row = true_tensor(generator, "affine_weight").cpu()[one_hot[0] > 0].float() * generator.affine_gain
    scale = float((sample_w(generator, samples, seed) @ row[0]).std())
    about = {"method": "style channel", "layer": name, "index": index}
    return Direction(f"{name}-{index}", "s", one_hot[0], scale, provenance=about)


# --- From samples ----------------------------------------------------------------------------------------------------


def principal_components(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return unit directions (count, D) and standard deviations (count,) of samples (N, D), largest first, float64.

    Uses the smaller of the covariance (D, D) and the Gram matrix (N, N), so that samples can be whole feature maps.
    Above EXACT, where the eigenvectors would take minutes and gigabytes, a seeded randomized method in float32 (Halko
    et al., arXiv 0909.4061) finds the largest few.
    """
    n, d = x.shape
    check_count("count: as many components as samples of this size have", count, min(n - 1, d))
    if min(n, d) > max(EXACT, 4 * count):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, values, vectors = torch.pca_lowrank(x.float(), q=count + 20, niter=6)
        return vectors[:, :count].t().double(), values[:count].double() / (n - 1) ** 0.5
    x = x.double() - x.double().mean(dim=0)
    values, vectors = torch.linalg.eigh(x.t() @ x if d <= n else x @ x.t())
    values, vectors = values.flip(0)[:count].clamp_min(0), vectors.flip(1)[:, :count]
    if d > n:
        vectors = x.t() @ vectors / values.sqrt().clamp_min(1e-12)
    return vectors.t(), (values / (n - 1)).sqrt()


@torch.no_grad()
def ganspace(
    generator: StyleGenerator,
    count: int,
    samples: int = 10_000,
    seed: int = 0,
    space: str = "w",
    resolution: int = 8,
) -> list[Direction]:
    """Principal components (GANSpace; Haerkoenen et al., arXiv 2004.02546): the directions of largest variance.

    Args:
        generator: the generator to sample from, without truncation.
        count: number of components; named pc000, pc001, ... as in converted GANSpace files.
        samples, seed: number and seed of the w.
        space: "w" for components of w itself; "features" for components of a feature map, each mapped back to w by
            least squares, as the paper does for generators without a w.
        resolution: height of that feature map, in pixels.

    The scale of a component of w is its standard deviation; the scale of a component of features is the step in w for
    one standard deviation of its feature coordinate.

    Raises:
        ValueError: an unknown space or resolution, more components than samples or dimensions, or feature maps of more
            than 4 GiB.
    """
    if space == "features":
        _check_features(generator, samples, resolution)
    w = sample_w(generator, samples, seed)
    about = {"method": "ganspace", "samples": samples, "seed": seed, "of": space}
    if space == "w":
        vectors, deviations = principal_components(w, count)
    elif space == "features":
        maps = []
        for part in _on_device(generator, w).split(chunk_size(generator.mean_side, BATCH)):
            found = generator(part, latent_type="w", return_features=True, up_to=resolution)
            maps.append(found.features[resolution].flatten(1).float().cpu())
        x = torch.cat(maps)
        del maps
        basis, spreads = principal_components(x, count)
        # Coordinates of different components are uncorrelated, so each can be fitted on its own.
        mean = x.mean(dim=0, dtype=torch.float64)
        coordinates = torch.cat([(part.double() - mean) @ basis.t() for part in x.split(256)])
        found = coordinates.t() @ (w.double() - w.double().mean(dim=0)) / (len(w) - 1) / spreads[:, None]
        deviations = found.norm(dim=1)  # step in w for one standard deviation of the coordinate
        vectors, about = found / deviations[:, None], about | {"resolution": resolution}
    else:
        raise ValueError(f"unknown space {space!r}: GANSpace takes components of w or of features")
    return [
        Direction(f"pc{k:03d}", "w", _fix_sign(vector).float(), float(deviation), provenance=about)
        for k, (vector, deviation) in enumerate(zip(vectors, deviations, strict=True))
    ]


def _check_features(generator: StyleGenerator, samples: int, resolution: int) -> None:
    sizes = generator.feature_sizes
    if resolution not in sizes:
        raise ValueError(f"this generator has feature maps of {', '.join(map(str, sizes))} pixels, not {resolution}")
    size = 4 * sizes[resolution] * math.prod(generator.size_at(resolution))
    if samples * size > FEATURE_BYTES:
        raise ValueError(
            f"{samples} feature maps of {resolution} pixels take {samples * size / 2**30:.1f} GiB: use up to"
            f" {FEATURE_BYTES // size} samples, or a smaller resolution"
        )


def boundary_from_labels(
    codes: Tensor, labels: Any, name: str = "boundary", space: str = "w", ridge: float = 1e-3
) -> Direction:
    """Return the normal of the hyperplane that best separates the labels, in the least-squares sense.

    InterFaceGAN's idea (Shen et al., arXiv 1907.10786) with ridge regression instead of a support vector machine: for
    two labels the result is Fisher's linear discriminant, for continuous ones the gradient of the best linear
    prediction.

    Args:
        codes: (N, D) in the space "w" or "s", or (N, num_ws, w_dim) in "w+".
        labels: (N,), two values or continuous; the direction points to larger values.
        name, space: name and space of the direction.
        ridge: ridge penalty relative to the mean variance of the codes; above 0.

    Returns:
        A direction of unit length; strength 1 is one standard deviation of these codes along it. `provenance["r2"]` is
        the share of the labels' variance that the prediction explains (on these same codes).

    Raises:
        ValueError: shapes do not fit, fewer than two different labels, or numbers that are not finite.
    """
    y = torch.as_tensor(labels).detach().cpu().double()
    x = codes.detach().cpu().double().flatten(1)
    if y.shape != (len(x),) or len(x) < 2:
        raise ValueError(f"expected one label per code for {len(x)} codes (at least two), got labels {tuple(y.shape)}")
    if not ridge > 0 or not bool(x.isfinite().all() and y.isfinite().all()):
        raise ValueError(f"codes and labels must be finite and ridge must be above 0, got ridge={ridge}")
    x, y = x - x.mean(dim=0), y - y.mean()
    if float(y.square().mean()) < 1e-20:
        raise ValueError(f"{name}: all labels are the same, so there is no boundary between them")
    covariance = x.t() @ x / len(x)
    penalty = ridge * covariance.diagonal().mean().clamp_min(1e-12) * torch.eye(len(covariance), dtype=x.dtype)
    normal = torch.linalg.solve(covariance + penalty, x.t() @ y / len(x))
    along = x @ normal
    explained = 1 - float((y - along).square().mean() / y.square().mean())
    length = normal.norm()
    if not length > 1e-20:
        raise ValueError(f"{name}: the codes do not predict the labels at all")
    tensor = (normal / length).float().reshape(codes.shape[1:])
    return Direction(
        name, space, tensor, float((along / length).std()), provenance={"method": "boundary", "r2": explained}
    )


# --- From segmented pictures -----------------------------------------------------------------------------------------


class RegionSamples(NamedTuple):
    """Samples with the statistics of the regions in their pictures.

    `w`: (N, w_dim), truncated. `values`: {(region, statistic): (N,)}. `seen`: {region: (N,), whether it is visible}.
    """

    w: Tensor
    values: dict[tuple[str, str], Tensor]
    seen: dict[str, Tensor]


@torch.no_grad()
def measure_regions(
    generator: StyleGenerator,
    segmenter: RegionSegmenter,
    samples: int = 2000,
    seed: int = 0,
    progress: Callable[[Any], Any] = lambda parts: parts,
) -> RegionSamples:
    """Measure the statistics of all regions in samples of the generator at its default truncation.

    area: share of the picture; brightness, saturation (largest minus smallest channel), warmth (red minus blue): means
    over the region; height: of the region's center, pointing up. `progress` wraps the loop over batches.
    """
    regions = list(segmenter.config.regions)
    w = generator.truncate(_on_device(generator, sample_w(generator, samples, seed)), generator.config.truncation_psi)
    rows: dict[str, list[Tensor]] = {statistic: [] for statistic in STATISTICS}
    for part in progress(w.split(chunk_size(generator.mean_side, BATCH))):
        images = generator(part, latent_type="w", return_dict=False)[0].float().clamp(-1, 1)
        mask = segmenter.segment(images.to(segmenter.dtype)).float().softmax(dim=1)
        up = torch.linspace(1, -1, images.shape[2]).to(images)[:, None].expand(images.shape[2:])
        high, low = images.max(dim=1).values, images.min(dim=1).values
        maps = torch.stack([images.mean(dim=1), high - low, images[:, 0] - images[:, -1], up.expand_as(high)], dim=1)
        means = pooled(maps, mask).cpu()  # (B, R, 4)
        for statistic, values in zip(STATISTICS, (mask.mean(dim=(2, 3)).cpu(), *means.unbind(dim=2)), strict=True):
            rows[statistic].append(values)
    table = {statistic: torch.cat(parts) for statistic, parts in rows.items()}
    values = {(name, statistic): table[statistic][:, k] for k, name in enumerate(regions) for statistic in STATISTICS}
    seen = {name: values[name, "area"] > LEAST_AREA for name in regions}
    return RegionSamples(w.float().cpu(), values, seen)


def boundary_from_regions(
    generator: StyleGenerator,
    segmenter: RegionSegmenter,
    region: str,
    statistic: str = "area",
    samples: int = 2000,
    seed: int = 0,
    measured: RegionSamples | None = None,
) -> Direction:
    """Return the direction in w along which a region's statistic grows: `boundary_from_labels` of measured values.

    Args:
        generator, segmenter: components of one model.
        region: a region of the segmenter.
        statistic: "area", "brightness", "saturation", "warmth" or "height": see `measure_regions`.
        samples, seed: as in `measure_regions`.
        measured: result of `measure_regions`, to learn several directions from one set of pictures.

    Returns:
        A direction named region-statistic, in units of one standard deviation of untruncated w.

    Raises:
        ValueError: an unknown region or statistic, or a region visible in too few pictures.
    """
    for what, given, known in (
        ("region", region, tuple(segmenter.config.regions)),
        ("statistic", statistic, STATISTICS),
    ):
        if given not in known:
            raise ValueError(f"unknown {what} {given!r}: choose from {', '.join(known)}")
    found = measure_regions(generator, segmenter, samples, seed) if measured is None else measured
    chosen = found.seen[region] if statistic != "area" else torch.ones(len(found.w), dtype=torch.bool)
    if int(chosen.sum()) < 16:
        raise ValueError(f"{region!r} is visible in {int(chosen.sum())} of {len(found.w)} pictures: take more samples")
    values = found.values[region, statistic][chosen]
    fitted = boundary_from_labels(found.w[chosen], values, f"{region}-{statistic}")
    psi = generator.config.truncation_psi or 1.0  # convert from truncated to untruncated units
    about = {"method": "regions", "region": region, "statistic": statistic, "r2": fitted.provenance["r2"]}
    return Direction(fitted.name, "w", fitted.tensor, fitted.scale / psi, provenance=about)


# --- Helpers ---------------------------------------------------------------------------------------------------------


def _on_device(generator: StyleGenerator, w: Tensor) -> Tensor:
    """Move codes to the device and dtype in which the generator computes."""
    return w.to(execution_device(generator), generator.dtype)


def _rows(generator: StyleGenerator, layers: Sequence[int] | None) -> tuple[int, ...] | None:
    if layers is None:
        return None
    for row in layers:
        check_count("layers: a row of w+", row, generator.num_ws - 1, least=0)
    if not layers:
        raise ValueError("layers is empty: give rows of w+, or omit it for all")
    driving = sorted(set(generator.style_rows.tolist()))
    if not set(layers) & set(driving):
        raise ValueError(
            f"layers: the rows {', '.join(map(str, layers))} of w+ drive nothing in this generator, whose layers take"
            f" rows {driving[0]} to {driving[-1]}"
        )
    return tuple(layers)


def _fix_sign(vector: Tensor) -> Tensor:
    """Return the vector or its negative, so that the component of largest magnitude is positive."""
    return vector * torch.where(vector[vector.abs().argmax()] < 0, -1, 1)


def _direction(name: str, vector: Tensor, w: Tensor, rows: tuple[int, ...] | None, **about: Any) -> Direction:
    """Make a unit direction in w, scaled by the standard deviation of samples w (N, w_dim)."""
    vector = _fix_sign(vector / vector.norm()).float()
    return Direction(name, "w", vector, float((w @ vector).std()), rows, about)
