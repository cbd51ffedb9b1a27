"""Small preview pictures from a generator's intermediate features, by a linear map of each pixel's channels."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PreviewHead(nn.Module):
    """1 x 1 convolution from a block's features to the picture, downsampled to their size; fitted, not trained."""

    weight: Tensor
    bias: Tensor

    def __init__(self, in_channels: int, img_channels: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(img_channels, in_channels, 1, 1))
        self.register_buffer("bias", torch.zeros(img_channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype)).contiguous()


@torch.no_grad()
def fit_head(
    head: PreviewHead, samples: Iterable[tuple[Tensor, Tensor]], unseen: Iterable[tuple[Tensor, Tensor]]
) -> float:
    """Fit a head by least squares.

    Args:
        samples: pairs of features (B, C, H, W) and pictures (B, c, H, W) in [-1, 1] to fit to.
        unseen: held-out pairs to measure on.

    Returns:
        The peak signal-to-noise ratio on `unseen`, in dB.
    """
    width = head.weight.shape[1] + 1
    gram = torch.zeros(width, width, dtype=torch.float64)
    target = torch.zeros(width, len(head.bias), dtype=torch.float64)
    for features, pictures in samples:
        x = F.pad(_pixels(features), (0, 1), value=1.0)
        gram += x.t() @ x
        target += x.t() @ _pixels(pictures)
    # Channels may be dead or identical: take the least-squares solution of minimum norm.
    solution = torch.linalg.pinv(gram, rtol=1e-10, hermitian=True) @ target
    head.weight.copy_(solution[:-1].t()[:, :, None, None])
    head.bias.copy_(solution[-1])
    errors = [(head(features) - pictures).double().square().mean().item() for features, pictures in unseen]
    return 10 * math.log10(4 / max(sum(errors) / len(errors), 1e-12))


def _pixels(maps: Tensor) -> Tensor:
    """Reshape (B, C, H, W) to (B * H * W, C), in double precision on the CPU (some accelerators lack it)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2).cpu().double()
