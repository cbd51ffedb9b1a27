"""The constant gates that fusion nets start from: a style channel goes to the child whose regions it drives most."""

from __future__ import annotations

import torch
from torch import Tensor

from stylefusion_hf.imaging.features import channel_energies
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.training.networks import FrozenNetworks


def measure_energies(networks: FrozenNetworks, codes: Tensor, batch: int, full_batch: int, seed: int = 0) -> Tensor:
    """`channel_energies` (R, S) over pictures of style codes (N, S), whatever the batches.

    Channels that act up to the training resolution are measured on pictures of that size, those beyond it on full
    pictures.

    Args:
        batch, full_batch: pictures at once, of either size; with gradients.
    """
    g, resolution, regions = networks.generator, networks.resolution, len(networks.order)
    with torch.no_grad():
        labels = torch.cat([networks(s).probs.argmax(dim=1) for s in codes.split(networks.batch)])
    areas = torch.stack([(labels == r).float().mean() for r in range(regions)])
    variance = codes.var(dim=0)

    def measure(synthesis, most: int, probes: int) -> Tensor:
        total, start = torch.zeros(regions, codes.shape[1], device=codes.device), 0
        for part, own in zip(codes.split(most), labels.split(most), strict=True):
            each = channel_energies(synthesis, part, own, regions, probes, seed + start, variance, areas)
            total, start = total + each * len(part) / len(codes), start + len(part)
        return total

    found = measure(lambda s: g.synthesis(s, up_to=resolution), batch, 2)
    if resolution == networks.full_resolution:
        return found
    return torch.where(beyond(g, resolution), measure(g.synthesis, full_batch, 1), found)


@torch.enable_grad()
def driving_layers(generator, resolution: int) -> tuple[int, int]:
    """How many style vectors of convolutions, and of toRGB layers, drive the picture of a size; from the first on."""
    s = torch.ones(1, generator.style_dim, device=generator.device, requires_grad=True)
    picture = generator.synthesis(s, up_to=resolution)
    (gradient,) = torch.autograd.grad(
        (picture * torch.linspace(1, 2, picture.numel()).view_as(picture).to(s)).sum(), s
    )
    drives = [bool(part.any()) for part in generator.split_style(gradient).values()]
    convs = len(generator.conv_sizes)
    return sum(drives[:convs]), sum(drives[convs:])


def beyond(generator, resolution: int) -> Tensor:
    """(S,), true for style channels that drive only pictures larger than `resolution`."""
    convs, rgbs = driving_layers(generator, resolution)
    sizes = [*generator.conv_sizes, *generator.rgb_sizes]
    layers = [
        *(i >= convs for i in range(len(generator.conv_sizes))),
        *(k >= rgbs for k in range(len(generator.rgb_sizes))),
    ]
    return torch.tensor(layers).repeat_interleave(torch.tensor(sizes)).to(generator.device)


@torch.no_grad()
def start_gates(fusion: FusionHierarchy, energies: Tensor, regions: list[str], floor: float = 0.02) -> None:
    """Sets constant gates by energies (R, S), rows as `regions`.

    Alignment starts nearly closed: the coarse layers carry looks as well as pose, and what is half open loses looks
    before it finds the pose. Where gates know of novelty, it starts more open for a child in company, for then it is
    the pose that is common.
    """
    tree, row = fusion.tree, {name: i for i, name in enumerate(regions)}
    for name in tree.fused:
        first, second = (
            energies[[row[leaf] for leaf in tree.subtree(child) if leaf in row]].sum(0).sqrt()
            for child in tree.children(name)
        )
        gate = second / (first + second).clamp_min(1e-12)
        align = fusion.net(name).blender_common
        fusion.set_constant_gates(
            name, segments=gate.clamp(floor, 1 - floor), common=0.1 if align.gate_novelty is None else 0.02
        )
        if align.gate_novelty is not None:
            torch.nn.init.constant_(align.gate_novelty, 4.0)
