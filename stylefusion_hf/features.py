"""What a region looks like, as numbers: pooled colour, pooled texture and layout, and what drives them.

Everything here is batched and differentiable. `weight` is (B, H, W), not negative: a mask or a segmenter's
probabilities; a region without weight gives zeros. Colour, texture and layout are read off pictures alone, so that
pictures without a style code (drawings, pasted pixels, photographs) can be described as well; `PooledMaps` reads a
generator's own feature maps, which know more about its pictures but exist for no others.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

# --- Read off pictures -----------------------------------------------------------------------------------------------


def pooled(x: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean over the pixels: (B, C, H, W) and (B, H, W) -> (B, C)."""
    w = weight.to(x.dtype)
    return torch.einsum("bchw,bhw->bc", x, w) / w.sum(dim=(1, 2)).clamp_min(1e-6)[:, None]


def colour(images: Tensor, weight: Tensor) -> Tensor:
    """Mean and standard deviation of red, green and blue in the region, (B, 6), in units of the images' -1 to 1."""
    mean, square = pooled(images, weight), pooled(images.square(), weight)
    return torch.cat([mean, (square - mean.square()).clamp_min(1e-8).sqrt()], dim=1)


def texture(images: Tensor, weight: Tensor, floor: float = 0.02, smallest: int = 32) -> Tensor:
    """Where a region's edges lie and which way they run, whatever their colours: (B, 9 L), numbers of the order of 1.

    At each of L scales (full size, then halves down to `smallest` pixels; two at least) the gradient of the channel
    with the steepest one is taken, as histograms of oriented gradients do (Dalal and Triggs, 2005). Its strength,
    divided by the region's total, is pooled against the 2nd and 4th harmonics of its direction and the first two
    moments of its place in the region; the last number of a scale is its share of the total. A uniform change of
    contrast cancels; `floor` is the mean strength below which a region counts as flat.
    """
    parts, totals = [], []
    levels = max(2, (images.shape[-1] // smallest).bit_length())
    x, w = images, weight.to(images.dtype)[:, None]
    for level in range(levels):
        if level:
            x, w = F.avg_pool2d(x, 2), F.avg_pool2d(w, 2)
        padded = F.pad(x, (1, 1, 1, 1), mode="replicate")
        dx = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
        dy = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
        squared, steepest = (dx.square() + dy.square()).max(dim=1, keepdim=True)
        dx, dy = dx.gather(1, steepest), dy.gather(1, steepest)
        strength = (squared + 1e-8).sqrt() - 1e-4
        # cos and sin of twice and four times the gradient's angle
        c2, s2 = (dx.square() - dy.square()) / (squared + 1e-8), 2 * dx * dy / (squared + 1e-8)
        u, v = standard_places(w[:, 0])
        place = [u[:, None], v[:, None], u[:, None].square() - 1, v[:, None].square() - 1]
        harmonics = torch.cat([c2, s2, c2.square() - s2.square(), 2 * c2 * s2, *(0.5 * p for p in place)], dim=1)
        total = pooled(strength, w[:, 0])
        parts.append(pooled(strength * harmonics, w[:, 0]) / (total + floor))
        totals.append(total)
    total = torch.cat(totals, dim=1)
    return torch.cat([*parts, total / (total.sum(dim=1, keepdim=True) + floor)], dim=1)


def standard_places(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Pixel coordinates relative to the region's middle in units of its spread, clamped to 3: two (B, H, W)."""
    b, h, w = weight.shape
    ys, xs = (torch.linspace(-1, 1, n, device=weight.device, dtype=weight.dtype) for n in (h, w))
    grid = torch.stack([xs.expand(h, w), ys[:, None].expand(h, w)]).expand(b, -1, -1, -1)
    mean = pooled(grid, weight)[..., None, None]
    spread = pooled((grid - mean).square(), weight).clamp_min(1e-4).sqrt()[..., None, None]
    u, v = ((grid - mean) / spread).clamp(-3, 3).unbind(dim=1)
    return u, v


def layout(weight: Tensor, cells: int = 16) -> Tensor:
    """The region's share of each of `cells` x `cells` cells, (B, cells^2): its outline, but for a shift within a cell.

    Overlapping cells (each as wide as two) keep what a small shift changes small.
    """
    side = max(1, weight.shape[-1] // cells)
    soft = F.avg_pool2d(weight[:, None].float(), 2 * side, stride=side, padding=side // 2, count_include_pad=False)
    return soft.flatten(1)


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
        """(B, sum of channels): `maps` as above for B pictures, `weight` (B, H, W) of any size."""
        out = []
        for r in self.resolutions:
            w = F.interpolate(weight[:, None].to(maps[r].dtype), size=maps[r].shape[-2:], mode="area")[:, 0]
            present = (w.sum(dim=(1, 2)) > 0)[:, None]
            out.append((pooled(maps[r], w) - self.mean[r]) / self.std[r] * present)
        return torch.cat(out, dim=1)


# --- Which style channels drive a region -----------------------------------------------------------------------------


def channel_energies(synthesis, s: Tensor, labels: Tensor, num_regions: int, probes: int = 2, seed: int = 0) -> Tensor:
    """How strongly each style channel drives each region, (R, S), rows and columns in no particular unit.

    The expected squared change of a region's pixels when a channel varies as it does among samples: the squared
    Jacobian, by random projections, times the channel's variance. StyleSpace (Wu et al., arXiv 2011.12799) finds
    channels of a region likewise.

    Args:
        synthesis: style codes (B, S) -> images (B, 3, H, W).
        s: sampled style codes (B, S).
        labels: (B, H, W), the label maps of their images.
    """
    draw = torch.Generator().manual_seed(seed)
    codes = s.detach().requires_grad_()
    images = synthesis(codes)
    total = torch.zeros(num_regions, s.shape[1], device=s.device)
    for region in range(num_regions):
        mask = (labels == region)[:, None].to(images.dtype)
        share = mask.mean(dim=(0, 2, 3)).clamp_min(1e-6)
        for _ in range(probes):
            sign = torch.randint(0, 2, images.shape, generator=draw).to(images) * 2 - 1
            (g,) = torch.autograd.grad((images * mask * sign).sum(), codes, retain_graph=True)
            total[region] += (g.square().mean(0) / share).squeeze() / probes
    return total * s.var(dim=0)
