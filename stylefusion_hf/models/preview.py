"""Small preview pictures from a generator's intermediate features, by a linear map of each pixel's channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

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
def fit_heads(
    heads: Mapping[int, PreviewHead],
    samples: Iterable[tuple[Mapping[int, Tensor], Tensor]],
    unseen: Iterable[tuple[Mapping[int, Tensor], Tensor]],
) -> dict[int, float]:
    """Fit heads of several sizes by least squares, each sample rendered once for all of them.

    Args:
        heads: {size: head}.
        samples: pairs of features {size: (B, C, size, size)} and full pictures (B, c, H, W) in [-1, 1] to fit to.
        unseen: held-out pairs to measure on.

    Returns:
        The peak signal-to-noise ratio on `unseen`, in dB, by size.
    """
    fits = {size: LeastSquares(head.weight.shape[1], len(head.bias)) for size, head in heads.items()}
    for features, pictures in samples:
        for size, fit in fits.items():
            fit.add(features[size], F.adaptive_avg_pool2d(pictures, size))
    for size, head in heads.items():
        weight, bias = fits[size].solve()
        head.weight.copy_(weight.t()[:, :, None, None])
        head.bias.copy_(bias)
    errors: dict[int, list[float]] = {size: [] for size in heads}
    for features, pictures in unseen:
        for size, head in heads.items():
            difference = head(features[size]) - F.adaptive_avg_pool2d(pictures, size)
            errors[size].append(difference.double().square().mean().item())
    return {size: 10 * math.log10(4 / max(sum(each) / len(each), 1e-12)) for size, each in errors.items()}


class LeastSquares:
    """Sums over pixels that determine the linear map from `inputs` channels, and a constant, to `outputs`."""

    def __init__(self, inputs: int, outputs: int):
        self.gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.target = torch.zeros(inputs + 1, outputs, dtype=torch.float64)

    def add(self, features: Tensor, pictures: Tensor) -> None:
        """Add the pixels of features (B, inputs, H, W) and pictures (B, outputs, H, W)."""
        x = F.pad(_pixels(features), (0, 1), value=1.0)
        self.gram += x.t() @ x
        self.target += x.t() @ _pixels(pictures)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return weight (inputs, outputs) and bias (outputs,)."""
        # Channels may be dead or identical: take the least-squares solution of minimum norm.
        solution = torch.linalg.pinv(self.gram, rtol=1e-10, hermitian=True) @ self.target
        return solution[:-1], solution[-1]


def _pixels(maps: Tensor) -> Tensor:
    """Reshape (B, C, H, W) to (B * H * W, C), in double precision on the CPU (some accelerators lack it)."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2).cpu().double()
