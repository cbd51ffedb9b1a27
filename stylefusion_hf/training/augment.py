"""Random changes of training pictures: mirroring, and differentiable augmentation for small data sets.

The augmentation is a lighter alternative to the adaptive pipeline of StyleGAN2-ADA (docs/guides/train.md): random
brightness, saturation, contrast, translation and cutout of fixed strength, as proposed by Zhao et al., arXiv
2006.10738. The discriminator sees real and generated images augmented alike, so the generator does not learn it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def mirror(draw: torch.Generator, *batches: Tensor) -> list[Tensor]:
    """Mirror pictures or maps (B, ..., W) left to right, each sample with probability 1/2, the same in all batches."""
    chosen = torch.rand(len(batches[0]), generator=draw, dtype=torch.float32).to(batches[0].device) < 0.5
    return [torch.where(chosen.view(-1, *[1] * (x.dim() - 1)), x.flip(-1), x) for x in batches]


def augment(x: Tensor, policy: tuple[str, ...], generator: torch.Generator | None = None) -> Tensor:
    """Augment images (B, C, H, W) in [-1, 1], each with its own random values; differentiable."""
    b, c, h, w = x.shape

    def uniform(low: float, high: float) -> Tensor:
        return (torch.rand(b, 1, 1, 1, generator=generator, dtype=torch.float32) * (high - low) + low).to(x)

    if "color" in policy:
        x = x + uniform(-0.5, 0.5)  # brightness
        mean = x.mean(dim=1, keepdim=True)
        x = mean + (x - mean) * uniform(0.0, 2.0)  # saturation
        mean = x.mean(dim=(1, 2, 3), keepdim=True)
        x = mean + (x - mean) * uniform(0.5, 1.5)  # contrast
    ys = torch.arange(h, device=x.device).view(1, 1, h, 1)
    xs = torch.arange(w, device=x.device).view(1, 1, 1, w)
    if "translation" in policy:
        dy = uniform(-h / 8, h / 8).round().long()
        dx = uniform(-w / 8, w / 8).round().long()
        # Row and column 0 of the padded image are black; everything shifted in is read from them.
        iy, ix = (ys + dy + 1).clamp(0, h + 1), (xs + dx + 1).clamp(0, w + 1)
        padded = F.pad(x, (1, 1, 1, 1))
        x = padded.gather(2, iy.expand(b, c, h, w + 2)).gather(3, ix.expand(b, c, h, w))
    if "cutout" in policy:
        cy, cx = uniform(0, h), uniform(0, w)
        hole = ((ys - cy).abs() < h / 4) & ((xs - cx).abs() < w / 4)
        x = x * ~hole
    return x
