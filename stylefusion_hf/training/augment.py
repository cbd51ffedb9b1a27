"""Differentiable augmentation of what the discriminator sees, for small data sets.

The lighter choice documented in docs/guides/train.md instead of the adaptive pipeline of StyleGAN2-ADA: fixed random
brightness, saturation, contrast, translation and cutout, as proposed by Zhao et al., arXiv 2006.10738. Applied to real
and generated images alike, so that the generator does not learn it.
"""

import torch
import torch.nn.functional as F

POLICIES = ("color", "translation", "cutout")


def parse_policy(text: str) -> tuple[str, ...]:
    """`"none"` or a comma-separated choice of color, translation, cutout."""
    names = () if text in ("", "none") else tuple(part.strip() for part in text.split(","))
    unknown = [n for n in names if n not in POLICIES]
    if unknown:
        raise ValueError(f"unknown augmentation {unknown[0]!r}; choose none or some of {', '.join(POLICIES)}")
    return names


def augment(x: torch.Tensor, policy: tuple[str, ...], generator: torch.Generator | None = None) -> torch.Tensor:
    """Images (B, C, H, W) in [-1, 1], each changed in its own way; differentiable."""
    b, _, h, w = x.shape

    def uniform(low: float, high: float) -> torch.Tensor:
        return (torch.rand(b, 1, 1, 1, generator=generator) * (high - low) + low).to(x)

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
        # Index 0 of the padded image is black (zero), as is everything shifted in.
        iy, ix = (ys + dy + 1).clamp(0, h + 1), (xs + dx + 1).clamp(0, w + 1)
        x = (
            F.pad(x, (1, 1, 1, 1))
            .gather(2, iy.expand(b, x.shape[1], h, w + 2))
            .gather(3, ix.expand(b, x.shape[1], h, w))
        )
    if "cutout" in policy:
        cy, cx = uniform(0, h), uniform(0, w)
        hole = ((ys - cy).abs() < h / 4) & ((xs - cx).abs() < w / 4)
        x = x * ~hole
    return x
