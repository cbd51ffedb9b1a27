"""Statistics that assign style channels to regions, from plain samples whose seeds no figure is measured on."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.measurement import LARGEST_SIZE, at_measuring_size
from stylefusion_hf.evaluation.pairs import FITTING_SEED, draw_pairs
from stylefusion_hf.imaging.features import channel_energies
from stylefusion_hf.models.layers import chunk_size


def fitting_batch(pipe, most: int, batch: int | None) -> int:
    """Return the batch size for fitting: `batch` if given, else what `chunk_size` allows; never above `most`."""
    size = getattr(pipe.generator, "mean_side", 128)
    return min(most, chunk_size(size, most) if batch is None else batch)


def fitting_samples(pipe, count: int, batch: int | None = None) -> tuple[Tensor, Tensor]:
    """Return style codes (count, S) of fitting seeds and the label maps (count, h, w) of their pictures.

    The maps have at most 256 pixels; larger ones are downsampled. Bases of pairs come first, then their sources.
    """
    pairs, batch = -(-count // 2), fitting_batch(pipe, 64, batch)
    codes: tuple[list[Tensor], list[Tensor]] = ([], [])
    labels: tuple[list[Tensor], list[Tensor]] = ([], [])
    for start in range(0, pairs, batch):
        part = draw_pairs(pipe, min(batch, pairs - start), FITTING_SEED + 2 * start, batch)
        for k, (s, probs) in enumerate(((part.base, part.base_probs), (part.source, part.source_probs))):
            codes[k].append(s)
            labels[k].append(at_measuring_size(probs, LARGEST_SIZE).argmax(dim=1))
    return torch.cat([*codes[0], *codes[1]])[:count], torch.cat([*labels[0], *labels[1]])[:count]


def activation_energies(pipe, s: Tensor, masks: Tensor) -> list[Tensor]:
    """Return sums of x^2, x and 1 under the masks by image, region and channel: one (B, R, C, 3) per style vector.

    x is the activation that the style scales: the input of its convolution or toRGB layer. s: style codes (B, S);
    masks: (B, R, H, W), resized to each layer.
    """
    sums = []
    for x in styled_inputs(pipe.generator, s.to(pipe.generator.dtype)):
        x = x.float().expand(len(s), -1, -1, -1)
        m = F.interpolate(masks, size=x.shape[-2:], mode="area").flatten(2)
        x = x.flatten(2)
        linear, square = m @ x.mT, m @ x.square().mT
        area = m.sum(dim=2, keepdim=True).expand_as(linear)
        sums.append(torch.stack([square, linear, area], dim=-1))
    return sums


def styled_inputs(generator, s: Tensor) -> Iterator[Tensor]:
    """Yield what each style vector scales, (B or 1, C, h, w), in full pictures, even if smaller ones are measured.

    ValueError for a network that does not scale its layers' inputs by style vectors.
    """
    if not hasattr(generator.synthesis, "styled_inputs"):
        raise ValueError(
            "memberships are read from the layers of StyleGAN2 and MobileStyleGAN, not from those of"
            f" {type(generator).__name__}: leave editing-in-style and retrieve-in-style out of --methods"
        )
    yield from generator.synthesis.styled_inputs(s)


def shares_of_energy(sums: Tensor, mean: Tensor) -> Tensor:
    """Return each region's share (..., R, C) of a channel's energy about its mean (C,), from sums (..., R, C, 3).

    A channel without energy is shared equally by all regions.
    """
    square, linear, area = sums.unbind(dim=-1)
    energy = (square - 2 * mean * linear + mean.square() * area).clamp_min(0)
    total = energy.sum(dim=-2, keepdim=True)
    return torch.where(total > 0, energy / total.clamp_min(1e-20), 1 / sums.shape[-3])


@torch.no_grad()
def membership_statistics(pipe, samples: int, batch: int | None = None) -> tuple[Tensor, Tensor]:
    """Return memberships (R, S) and channel means (S,) over samples and pixels.

    A membership is the region's share of a style channel's energy, the squared deviation of its activation from the
    channel's mean.
    """
    regions, batch = len(pipe.segmenter.config.regions), fitting_batch(pipe, 32, batch)
    codes, labels = fitting_samples(pipe, samples, batch)
    sums: Tensor | float = 0.0
    parts = zip(codes.split(batch), labels.split(batch), strict=True)
    for s, label in tqdm(parts, "memberships", -(-samples // batch), leave=False):
        masks = F.one_hot(label, regions).movedim(-1, 1).float()
        sums = sums + torch.cat([x.sum(dim=0) for x in activation_energies(pipe, s, masks)], dim=1)
    assert isinstance(sums, Tensor)
    mean = sums[..., 1].sum(0) / sums[..., 2].sum(0)
    return shares_of_energy(sums, mean), mean


def memberships(pipe, samples: int, batch: int | None = None) -> Tensor:
    """Return the share of each channel's energy that lies in each region, (R, S)."""
    return membership_statistics(pipe, samples, batch)[0]


def energy_shares(pipe, samples: int = 64, batch: int | None = None) -> Tensor:
    """Return each region's share of a channel's `features.channel_energies`, (R, S); columns sum to 1.

    The result does not depend on the batch size.
    """
    batch = fitting_batch(pipe, 32, batch)
    codes, labels = fitting_samples(pipe, samples, batch)
    synthesis, regions = pipe.generator.synthesis, len(pipe.segmenter.config.regions)
    variance = codes.var(dim=0)
    areas = torch.bincount(labels.flatten(), minlength=regions).float() / labels.numel()
    energy = torch.zeros(regions, codes.shape[1], device=codes.device)
    for start in range(0, len(codes), batch):
        s, label = codes[start : start + batch], labels[start : start + batch]
        mean = channel_energies(synthesis, s, label, regions, seed=start, variance=variance, areas=areas)
        energy += mean * len(s)
    total = energy.sum(0)
    return torch.where(total > 0, energy / total.clamp_min(1e-20), 1 / regions)
