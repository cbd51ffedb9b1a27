"""The constant gates that fusion nets start from: a style channel goes to the child whose regions it drives most."""

from __future__ import annotations

import torch
from torch import Tensor

from stylefusion_hf.core.memory import RENDER_SHARE, chunk_size, forward_bytes
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.imaging.features import channel_energies
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.training.networks import FrozenNetworks

LARGE = 256  # pixels: above it, a full picture takes a core ten seconds to differentiate, so few of them are
FULL_PICTURES = 3


def measure_energies(
    networks: FrozenNetworks, codes: Tensor, batch: int, full_batch: int, seed: int = 0, progress: bool = False
) -> Tensor:
    """Return `channel_energies` (R, S) over pictures of style codes (N, S); batch sizes do not change it.

    Channels that act up to the training resolution are measured on pictures of that size, those beyond it on full
    pictures: on all of them, or, above `LARGE` px, on `FULL_PICTURES` that show the regions well.

    Args:
        batch, full_batch: how many pictures of the training size, and how many full ones, are differentiated at once.
    """
    g, resolution, regions = networks.generator, networks.resolution, len(networks.order)
    with torch.no_grad():
        labels = torch.cat([networks(s).probs.argmax(dim=1) for s in codes.split(networks.batch)])
    shares = torch.stack([(labels == r).float().mean(dim=(1, 2)) for r in range(regions)], dim=1)  # (N, R)
    variance = codes.var(dim=0)

    def measure(synthesis, chosen: Tensor, most: int, probes: int) -> Tensor:
        total, start, areas = torch.zeros(regions, codes.shape[1], device=codes.device), 0, shares[chosen].mean(0)
        parts = list(zip(codes[chosen].split(most), labels[chosen].split(most), strict=True))
        for part, own in tqdm(parts, desc="measuring gates", disable=not progress, leave=False):
            each = channel_energies(synthesis, part, own, regions, probes, seed + start, variance, areas)
            total, start = total + each * len(part) / len(chosen), start + len(part)
        return total

    every = torch.arange(len(codes), device=codes.device)
    large = networks.full_resolution > LARGE
    found = measure(lambda s: g.synthesis(s, up_to=resolution), every, batch, 1 if large else 2)
    if resolution == networks.full_resolution:
        return found
    few = showing_all(shares)[:FULL_PICTURES] if large else every
    return torch.where(beyond(g, resolution), measure(g.synthesis, few, full_batch, 1), found)


def showing_all(shares: Tensor) -> Tensor:
    """Order pictures by how well they show every region: by the smallest of their regions' shares (N, R), each in
    units of the region's mean share.
    """
    relative = shares / shares.mean(dim=0).clamp_min(1e-6)
    return relative.amin(dim=1).argsort(descending=True, stable=True)


@torch.enable_grad()
def driving_layers(generator, resolution: int) -> tuple[int, int]:
    """Return how many of the first convolutions, and of the first toRGB layers, drive the picture of a size."""
    s = torch.ones(1, generator.style_dim, device=generator.device, requires_grad=True)
    picture = generator.synthesis(s, up_to=resolution)
    (gradient,) = torch.autograd.grad(
        (picture * torch.linspace(1, 2, picture.numel()).view_as(picture).to(s)).sum(), s
    )
    drives = [bool(part.any()) for part in generator.split_style(gradient).values()]
    convs = len(generator.conv_sizes)
    return sum(drives[:convs]), sum(drives[convs:])


def beyond(generator, resolution: int) -> Tensor:
    """Return a mask (S,) of the style channels that drive only pictures larger than `resolution`."""
    convs, rgbs = driving_layers(generator, resolution)
    sizes = [*generator.conv_sizes, *generator.rgb_sizes]
    layers = [
        *(i >= convs for i in range(len(generator.conv_sizes))),
        *(k >= rgbs for k in range(len(generator.rgb_sizes))),
    ]
    return torch.tensor(layers).repeat_interleave(torch.tensor(sizes)).to(generator.device)


def gradient_batches(generator: StyleGenerator, size: int, budget: float) -> tuple[int, int]:
    """Return how many pictures of `size` px, and how many full ones, are differentiated at once in `budget` bytes."""
    # Gradients keep every map and its copies: about four times the memory of rendering.
    small, full = (
        chunk_size(4 * forward_bytes(generator.feature_sizes, r, generator.aspect), budget * RENDER_SHARE, 64)
        for r in (size, generator.config.resolution)
    )
    return small, full


@torch.no_grad()
def start_gates(
    fusion: FusionHierarchy,
    energies: Tensor,
    regions: list[str],
    floor: float = 0.02,
    novelty: float | None = None,
    company: float = 4.0,
    power: float = 1.0,
) -> None:
    """Set constant gates from energies (R, S), with rows as in `regions`.

    Alignment starts nearly closed: the coarse layers carry looks as well as pose, and a half-open gate loses looks
    before it finds the pose. Gates with `gate_novelty` start more open for a child whose sibling alone differs from
    the common code, since then the pose is the common one.

    Args:
        energies: (R, S), as from `measure_energies`; a channel that drives no region is shared equally.
        floor: the smallest gate, and one minus the largest.
        novelty: added to a gate's logit where the second child alone differs from the common code, and subtracted
            where the first does: a channel of several regions then follows the one that was changed, also through
            several levels. None leaves the nets' values.
        company: added to the logit of a child's alignment where its sibling alone differs from the common code.
        power: exponent of the energies; larger ones push gates toward 0 and 1.
    """
    tree, row = fusion.tree, {name: i for i, name in enumerate(regions)}
    if power != 1.0:
        energies = (energies / energies.sum(dim=0).clamp_min(1e-30)) ** power
    for name in tree.fused:
        first, second = (
            energies[[row[leaf] for leaf in tree.subtree(child) if leaf in row]].sum(0).sqrt()
            for child in tree.children(name)
        )
        gate = torch.where(first + second > 1e-12, second / (first + second).clamp_min(1e-12), 0.5)
        align = fusion.net(name).blender_common
        fusion.set_constant_gates(
            name, segments=gate.clamp(floor, 1 - floor), common=0.1 if align.gate_novelty is None else 0.02
        )
        if align.gate_novelty is not None:
            torch.nn.init.constant_(align.gate_novelty, company)
        lean = fusion.net(name).blender_segments.gate_novelty
        if novelty is not None and lean is not None:
            torch.nn.init.constant_(lean, novelty)
