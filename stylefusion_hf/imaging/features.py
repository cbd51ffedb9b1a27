"""What a region looks like, as numbers: pooled color, pooled texture and layout, and what drives them.

Everything here is batched and differentiable. `weight` is (B, H, W), not negative: a mask or a segmenter's
probabilities; a region without weight gives zeros. Where said, it may be (B, R, H, W), for R regions at once. Color,
texture and layout are read off pictures alone, so that pictures without a style code (drawings, pasted pixels,
photographs) can be described as well; `PooledMaps` reads a generator's own feature maps, which know more about its
pictures but exist for no others.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# --- Read off pictures -----------------------------------------------------------------------------------------------


def pooled(x: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the pixels: (B, C, H, W) and (B, H, W) -> (B, C), or (B, R, H, W) -> (B, R, C)."""
    w = weight.to(x.dtype)
    return torch.einsum("bchw,b...hw->b...c", x, w) / w.sum(dim=(-2, -1)).clamp_min(1e-6)[..., None]


def core(weight: Tensor, power: int = 8) -> Tensor:
    """Weights that fade toward the region's border, where its colors mix with its neighbors'; shaped as `weight`.

    Each weight times the mean of its neighborhood to the given power: thin regions keep their middle line. The
    neighborhood reaches 1/64 of the width in every direction: 3 x 3 pixels at 64, 9 x 9 at 256.
    """
    w = weight if weight.is_floating_point() else weight.float()
    radius = max(1, w.shape[-1] // 64)
    near = F.avg_pool2d(w, (1, 2 * radius + 1), stride=1, padding=(0, radius), count_include_pad=False)
    near = F.avg_pool2d(near, (2 * radius + 1, 1), stride=1, padding=(radius, 0), count_include_pad=False)
    return w * near.clamp(0, 1) ** power


def colour(images: Tensor, weight: Tensor) -> Tensor:
    """Mean red, green and blue in the region's core, (B, 3) or (B, R, 3), in units of the images' -1 to 1."""
    return pooled(images, core(weight))


def texture(images: Tensor, weight: Tensor, cells: int = 8, floor: float = 0.05, smallest: int = 64) -> Tensor:
    """Where the edges inside a region lie, whatever their colors: (B, L cells^2), numbers of the order of 1.

    The region's core is put on its own mean color, which takes its neighbors' colors away, and smoothed a little;
    the gradient of the channel with the steepest one (as in histograms of oriented gradients, Dalal and Triggs, 2005),
    divided by its mean over the region, is averaged in overlapping cells of the picture. So a change of colors or of
    contrast cancels, and a shift within a cell changes little. At L scales, from full size down to `smallest` pixels.

    floor: the mean gradient below which a region counts as flat.
    """
    parts = []
    x, w = images, weight.to(images.dtype)[:, None]
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], device=x.device, dtype=x.dtype) / 16
    blur = torch.outer(taps, taps).expand(x.shape[1], 1, 5, 5)
    for level in range(max(1, (min(x.shape[-2:]) // smallest).bit_length())):
        if level:
            x, w = F.avg_pool2d(x, 2), F.avg_pool2d(w, 2)
        inner = core(w[:, 0])[:, None]
        own = pooled(x, inner[:, 0])[..., None, None]
        smooth = F.conv2d(F.pad(own + inner * (x - own), (3, 3, 3, 3), mode="replicate"), blur, groups=x.shape[1])
        dx = (smooth[..., 1:-1, 2:] - smooth[..., 1:-1, :-2]) / 2
        dy = (smooth[..., 2:, 1:-1] - smooth[..., :-2, 1:-1]) / 2
        steepness = ((dx.square() + dy.square()).amax(dim=1, keepdim=True) + 1e-8).sqrt() * w
        parts.append(layout((steepness / (pooled(steepness, w[:, 0])[..., None, None] + floor))[:, 0], cells))
    return torch.cat(parts, dim=1)


def layout(weight: Tensor, cells: int = 8) -> Tensor:
    """Means of (B, H, W) or (B, R, H, W) in `cells` x `cells` places, (B, cells^2) or (B, R, cells^2): a region's
    outline, but for a small shift.

    The cells are twice as wide as their distance, so that a small shift changes little.
    """
    down, across = (max(1, side // cells) for side in weight.shape[-2:])
    soft = F.avg_pool2d(
        weight.float(), (2 * down, 2 * across), (down, across), (down // 2, across // 2), count_include_pad=False
    )
    return soft.flatten(-2)


# --- A generator's own maps ------------------------------------------------------------------------------------------


class PooledMaps:
    """Region-pooled feature maps of a generator, each channel in units of its deviation over samples.

    Args:
        maps: {resolution: (N, C, h, h)}, the features that `generator.synthesis(..., return_features=True)` gives for
            some samples; they set each channel's mean and deviation.
        resolutions: which maps are used; those that the generator lacks are left out.
    """

    def __init__(self, maps: Mapping[int, Tensor], resolutions: Sequence[int] = (16, 32)):
        self.resolutions = [r for r in resolutions if r in maps]
        if not self.resolutions:
            raise ValueError(f"no feature maps of {list(resolutions)} pixels; there are {sorted(maps)}")
        self.mean = {r: maps[r].detach().mean(dim=(0, 2, 3)) for r in self.resolutions}
        self.std = {r: maps[r].detach().std(dim=(0, 2, 3)).clamp_min(1e-6) for r in self.resolutions}

    def __call__(self, maps: Mapping[int, Tensor], weight: Tensor) -> Tensor:
        """(B, D) or (B, R, D), D the sum of channels: `maps` as above for B pictures, `weight` of any size."""
        out = []
        for r in self.resolutions:
            w = F.adaptive_avg_pool2d(weight.to(maps[r].dtype), (maps[r].shape[-2], maps[r].shape[-1]))
            present = (w.sum(dim=(-2, -1)) > 0)[..., None]
            out.append((pooled(maps[r], w) - self.mean[r]) / self.std[r] * present)
        return torch.cat(out, dim=-1)

    def standardised(self, maps: Mapping[int, Tensor], resolution: int) -> Tensor:
        """One of the maps, (B, C, h, h), its channels in units of their deviation."""
        mean, std = (x[resolution][:, None, None] for x in (self.mean, self.std))
        return (maps[resolution] - mean) / std


# --- How far apart two pictures look ---------------------------------------------------------------------------------


def edge_maps(images: Tensor, scales: int = 4) -> list[Tensor]:
    """Differences to the right and lower neighbors of images (B, C, H, W), at full size, 1/2, 1/4, ...: features for
    pictures that no network here knows. [(B, 2 C, h_k, w_k)]; scales below 4 pixels are left out.
    """
    maps, x = [], images
    while True:
        padded = F.pad(x, (0, 1, 0, 1), mode="replicate")
        maps.append(torch.cat([padded[..., :-1, 1:] - x, padded[..., 1:, :-1] - x], dim=1))
        if len(maps) == scales or min(x.shape[-2:]) < 8:
            return maps
        x = F.avg_pool2d(x, 2)


def map_distance(maps: Sequence[Tensor], others: Sequence[Tensor], weight: Tensor | None = None) -> Tensor:
    """How far apart pictures look to a network, (B,): the squared difference of its maps, each place brought to unit
    length over the channels, averaged over the places and then over the maps; from 0 to 4.

    LPIPS (Zhang et al., arXiv 1801.03924) without its learned weights.

    Args:
        maps, others: of both pictures, [(B, C_k, h_k, w_k)], as from `RegionSegmenter.feature_maps` or `edge_maps`.
        weight: (B, H, W), not negative; what counts how much. It is averaged down to each map.
    """
    total: Tensor | float = 0.0
    for a, b in zip(maps, others, strict=True):
        apart = (unit_length(a) - unit_length(b)).square().sum(dim=1)  # (B, h, w)
        if weight is None:
            total = total + apart.mean(dim=(1, 2))
        else:
            w = F.adaptive_avg_pool2d(weight[:, None].to(apart), (apart.shape[1], apart.shape[2]))[:, 0]
            total = total + (apart * w).sum(dim=(1, 2)) / w.sum(dim=(1, 2)).clamp_min(1e-8)
    return total / len(maps)  # type: ignore[return-value]  # zip is strict, and there is a map


def extractor(segmenter: Any) -> Callable[[Tensor], list[Tensor]]:
    """Images -> feature maps for `map_distance`: what a segmenter's levels see, or `edge_maps` where there is none, or
    one that does not show them, as those of the Hub.
    """
    return getattr(segmenter, "feature_maps", edge_maps)


def unit_length(x: Tensor, floor: float = 1e-2) -> Tensor:
    """(B, C, h, w) with unit length over C; what is shorter than `floor` fades instead of being blown up."""
    return x * (x.square().sum(dim=1, keepdim=True) + floor**2).rsqrt()


# --- Which style channels drive a region -----------------------------------------------------------------------------


@torch.enable_grad()
def channel_energies(
    synthesis,
    s: Tensor,
    labels: Tensor,
    num_regions: int,
    probes: int = 2,
    seed: int = 0,
    variance: Tensor | None = None,
    areas: Tensor | None = None,
) -> Tensor:
    """How strongly each style channel drives each region, (R, S), rows and columns in no particular unit.

    The expected squared change of a region's pixels when a channel varies as it does among samples: the squared
    Jacobian, by random projections, times the channel's variance. StyleSpace (Wu et al., arXiv 2011.12799) finds
    channels of a region likewise.

    Args:
        synthesis: style codes (B, S) -> images (B, 3, H, W).
        s: sampled style codes (B, S).
        labels: (B, H, W), the label maps of their images, of any size.
        seed: of the projections; image i has those of seed + i, whatever its batch.
        variance: (S,), of each channel among samples; None takes it from `s`, which then needs two rows or more.
        areas: (R,), the regions' mean shares of a picture; None takes them from `labels`.
    """
    draws = [torch.Generator().manual_seed(seed + i) for i in range(len(s))]
    codes = s.detach().requires_grad_()
    images = synthesis(codes)
    total = s.new_zeros(num_regions, s.shape[1])
    for region in range(num_regions):
        mask = F.interpolate((labels == region)[:, None].to(images.dtype), size=images.shape[-2:])
        share = (mask.mean() if areas is None else areas[region]).clamp_min(1e-6)
        for _ in range(probes):
            sign = torch.stack([torch.randint(0, 2, images.shape[1:], generator=g) for g in draws]).to(images) * 2 - 1
            (g,) = torch.autograd.grad((images * mask * sign).sum(), codes, retain_graph=True)
            total[region] += g.square().mean(0) / share / probes
    return total * (s.var(dim=0) if variance is None else variance)
