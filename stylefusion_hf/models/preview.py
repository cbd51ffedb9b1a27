"""Small preview pictures from a generator's intermediate features, by a linear map of each pixel's channels.

For generators that make one picture, at the end, such as MobileStyleGAN and StyleGAN3.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylefusion_hf.core.checks import check_count
from stylefusion_hf.models.style_generator import check_up_to

Rendered = tuple[Tensor | None, dict[int, Tensor]]  # pictures, if there are any, and features by height


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


class PreviewSynthesis(nn.Module):
    """What synthesis networks with preview heads share.

    Attributes:
        previews: {str(size): `PreviewHead`}.
        resolution: of the pictures.
        resolutions: heights of features below the picture's, in ascending order.
        channels: {height: channels} of the features.
    """

    previews: nn.ModuleDict
    img_channels: int
    resolution: int
    resolutions: list[int]
    channels: dict[int, int]

    def add_preview(self, resolution: int) -> PreviewHead:
        """Add a head for the features of that resolution, which gives black pictures until it is fitted."""
        head = PreviewHead(self.channels[resolution], self.img_channels)
        self.previews[str(resolution)] = head.to(next(self.parameters()))
        return head

    @property
    def preview_resolutions(self) -> list[int]:
        return sorted(map(int, self.previews))

    def check_size(self, up_to: int | None, return_features: bool) -> int:
        """Return the resolution to stop at. ValueError for one of which there are neither features nor a picture."""
        size = check_up_to(up_to, [*self.resolutions, self.resolution])
        if size < self.resolution and not return_features and str(size) not in self.previews:
            sizes = ", ".join(map(str, [*self.preview_resolutions, self.resolution]))
            raise ValueError(
                f"this generator has no preview head of {size} px, only pictures of {sizes}: fit one with"
                f" generator.fit_preview({size}), or take the features with return_features=True"
            )
        return size


def join_parts(done: Sequence[Rendered]) -> Rendered:
    """Concatenate what consecutive parts of a batch gave."""
    image, features = done[0]
    if len(done) > 1:
        image = None if image is None else torch.cat([part for part, _ in done if part is not None])
        features = {height: torch.cat([maps[height] for _, maps in done]) for height in features}
    return image, features


class PreviewMixin:
    """What a `StyleGenerator` with preview heads shares; its `synthesis` is a `PreviewSynthesis`."""

    config: Any
    synthesis: Any
    mapping: Any
    truncate: Any
    to_style: Any
    affine_weight: Tensor
    register_to_config: Any

    @property
    def picture_sizes(self) -> list[int]:
        return [*self.synthesis.preview_resolutions, self.config.resolution]

    @torch.no_grad()
    def fit_preview(self, resolution: int, samples: int = 32, seed: int = 0) -> float:
        """Fit a head that gives a picture from the features of `resolution` px, which is then saved with the model.

        A 1 x 1 convolution, by least squares, to full pictures averaged to that size. It shows the same content as the
        full picture, in slightly other colors, at a fraction of its cost.

        Args:
            resolution: one of `feature_sizes`.
            samples: how many pictures to fit; a quarter as many more are drawn to measure.
            seed: of their z. They are truncated by `truncation_psi`; of a conditional model, classes take turns.

        Returns:
            The peak signal-to-noise ratio of further samples' previews, in dB.
        """
        return self.fit_previews([resolution], samples, seed)[resolution]

    @torch.no_grad()
    def fit_previews(self, resolutions: Sequence[int], samples: int = 32, seed: int = 0) -> dict[int, float]:
        """`fit_preview` for several sizes at once, of the same pictures: {resolution: peak signal-to-noise ratio}."""
        for resolution in resolutions:
            check_up_to(resolution, self.synthesis.resolutions, "resolution")
        check_count("samples", samples, 2**16)
        count = samples + max(1, samples // 4)
        z = torch.randn(
            count, self.config.z_dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float32
        ).to(self.affine_weight)
        labels = None
        if self.config.label_dim:
            labels = F.one_hot(torch.arange(count, device=z.device) % self.config.label_dim, self.config.label_dim)
        s = self.to_style(self.truncate(self.mapping(z, labels), self.config.truncation_psi))

        def pairs(codes: Tensor) -> Iterator[tuple[dict[int, Tensor], Tensor]]:
            for one in codes.split(1):
                picture, features = self.synthesis(one, return_features=True)
                yield features, picture

        heads = {resolution: self.synthesis.add_preview(resolution) for resolution in resolutions}
        quality = fit_heads(heads, pairs(s[:samples]), pairs(s[samples:]))
        self.register_to_config(preview_resolutions=self.synthesis.preview_resolutions)
        return quality


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
