"""Which style channels belong to which region: statistics of plain samples of seeds that no figure is taken on."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.pairs import FITTING_SEED, draw_pairs
from stylefusion_hf.imaging.features import channel_energies


def fitting_samples(pipe, count: int) -> tuple[Tensor, Tensor]:
    """Style codes (count, S) of seeds that no figure is taken on, and label maps (count, H, W) of their pictures."""
    pairs = draw_pairs(pipe, -(-count // 2), FITTING_SEED)
    codes, probs = torch.cat([pairs.base, pairs.source]), torch.cat([pairs.base_probs, pairs.source_probs])
    return codes[:count], probs[:count].argmax(dim=1)


@torch.no_grad()
def memberships(pipe, samples: int, batch: int = 32) -> Tensor:
    """(R, S): of each style channel's energy, the share in each region. A channel without energy belongs to all alike.

    Energy is the squared activation of the channel that the style scales (the input of its convolution or toRGB
    layer), in units of the channel's deviation from its mean over samples and pixels; masks are brought to its size.
    """
    net, regions = pipe.generator.synthesis, len(pipe.segmenter.config.regions)
    codes, labels = fitting_samples(pipe, samples)
    layers = [*net.convs, *net.rgbs]
    sums = [torch.zeros((), device=codes.device)] * len(layers)  # (R, C, 3): of x^2, x and 1 under the masks
    inputs: dict[int, Tensor] = {}

    def keep(i: int):
        return lambda _, args: inputs.update({i: args[0]})

    hooks = [layer.register_forward_pre_hook(keep(i)) for i, layer in enumerate(layers)]
    try:
        parts = zip(codes.split(batch), labels.split(batch), strict=True)
        for s, label in tqdm(parts, "memberships", -(-samples // batch), leave=False):
            net(s.to(pipe.generator.dtype))
            masks = F.one_hot(label, regions).movedim(-1, 1).float()
            for i, x in inputs.items():
                x, m = x.float(), F.interpolate(masks, size=x.shape[-2:], mode="area")
                powers = torch.stack([x.square(), x, torch.ones_like(x)], dim=-1)
                sums[i] = sums[i] + torch.einsum("bchwk,brhw->rck", powers, m)
    finally:
        for hook in hooks:
            hook.remove()
    square, linear, area = torch.cat(sums, dim=1).unbind(dim=-1)
    mean = linear.sum(0) / area.sum(0)
    energy = (square - 2 * mean * linear + mean.square() * area).clamp_min(0)
    total = energy.sum(0)
    return torch.where(total > 0, energy / total.clamp_min(1e-20), 1 / regions)


def energy_shares(pipe, samples: int = 64, batch: int = 32) -> Tensor:
    """(R, S): each region's share of a channel's energy; columns sum to 1."""
    codes, labels = fitting_samples(pipe, samples)
    synthesis, regions = pipe.generator.synthesis, len(pipe.segmenter.config.regions)
    with torch.enable_grad():
        parts = [
            channel_energies(synthesis, s, label, regions, seed=i)
            for i, (s, label) in enumerate(zip(codes.split(batch), labels.split(batch), strict=True))
        ]
    energy = torch.stack(parts).mean(0)
    total = energy.sum(0)
    return torch.where(total > 0, energy / total.clamp_min(1e-20), 1 / regions)
