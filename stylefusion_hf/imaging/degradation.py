"""Degraded pictures, so that networks trained on clean ones hold on fused and real ones."""

from __future__ import annotations

import io

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image


def degrade(x: torch.Tensor, draw: torch.Generator, strength: float = 1.0) -> torch.Tensor:
    """Images (B, 3, H, W) in [-1, 1] made soft, noisy and off in color, each to its own degree; labels stay valid."""
    b, _, h, w = x.shape

    def uniform(high: float, *shape: int) -> torch.Tensor:
        return (torch.rand(b, *(shape or (1, 1, 1)), generator=draw, dtype=torch.float32) * high * strength).to(x)

    def normal(scale: float, *shape: int) -> torch.Tensor:
        return (torch.randn(b, *shape, generator=draw, dtype=torch.float32) * scale * strength).to(x)

    # Softness: a blend with a 3 x 3 or 5 x 5 blur, beyond 0 toward sharpening.
    k = 3 + 2 * int(torch.randint(2, (1,), generator=draw))
    taps = torch.tensor([1.0, 2.0, 1.0] if k == 3 else [1.0, 4.0, 6.0, 4.0, 1.0]).to(x)
    taps = taps / taps.sum()
    soft = F.conv2d(F.pad(x, (k // 2,) * 4, mode="replicate"), torch.outer(taps, taps).expand(3, 1, k, k), groups=3)
    x = x + (soft - x) * (uniform(1.6) - 0.4 * strength)
    # Color: brightness, contrast and a smooth blotch of another shade.
    x = x * (1 + normal(0.1, 1, 1, 1)) + normal(0.08, 3, 1, 1)
    blotch = F.interpolate(normal(1.0, 3, 4, 4), size=(h, w), mode="bicubic", align_corners=False)
    x = x + blotch * uniform(0.12)
    # Grain: per pixel and in clumps of two pixels.
    x = x + normal(1.0, 3, h, w) * uniform(0.08)
    clumps = F.interpolate(normal(1.0, 3, -(-h // 2), -(-w // 2)), scale_factor=2, mode="bilinear")[..., :h, :w]
    return (x + clumps * uniform(0.08)).clamp(-1.2, 1.2)


def occlude(x: torch.Tensor, draw: torch.Generator, share: float = 0.5) -> torch.Tensor:
    """Hide a part of some images (B, C, H, W) in [-1, 1] behind an ellipse of one color; `share`: of the images."""
    b, c, h, w = x.shape

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return (torch.rand(b, *shape, generator=draw, dtype=torch.float32) * (high - low) + low).to(x)

    y, x_center = uniform(0, 1, 1, 1), uniform(0, 1, 1, 1)
    height, width = uniform(0.05, 0.3, 1, 1), uniform(0.05, 0.3, 1, 1)
    color, hit = uniform(-1, 1, c, 1, 1), uniform(0, 1, 1, 1, 1) < share
    rows, columns = (torch.arange(n).to(x).add(0.5).div(n) for n in (h, w))
    inside = ((rows[:, None] - y) / height).square() + ((columns - x_center) / width).square() < 1
    return torch.where(hit & inside[:, None], color, x)


def compress(x: torch.Tensor, draw: torch.Generator, share: float = 0.5) -> torch.Tensor:
    """Give some images (B, 3, H, W) in [-1, 1] the blocks and rings of a JPEG file of quality 15 to 80."""
    out, quality = x.clone(), torch.randint(15, 81, (len(x),), generator=draw).tolist()
    for k in (torch.rand(len(x), generator=draw, dtype=torch.float32) < share).nonzero()[:, 0].tolist():
        pixels = x[k].clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 0).cpu().numpy()
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=quality[k])
        out[k] = torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1).to(x).div(127.5).sub(1)
    return out
