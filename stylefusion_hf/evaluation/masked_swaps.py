"""Swaps by masks instead of codes: feature blending and pixel pasting."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.evaluation.measurement import dilate
from stylefusion_hf.evaluation.methods import TENTHS, move, region_index
from stylefusion_hf.evaluation.pairs import Pairs, render
from stylefusion_hf.ops import upfirdn2d


class FeatureBlending:
    """Feature maps and picture of both codes blended by a mask after one block; the base's styles continue from there.

    The mask is the union of the region in the base and in the source, as the model's segmenter sees it. Suzuki et al.
    (arXiv 1811.10153) collage feature maps in the same way with hand-drawn masks. A strength is an index into
    `settings`: (weight of the source under the mask, dilation as a share of the width, resolution of the block).
    """

    name = "feature blending"

    def __init__(self, pipe):
        self.pipe = pipe
        resolutions = [r for r in pipe.generator.feature_sizes if r <= pipe.generator.config.resolution]
        self.settings = list(product((0.5, 1.0), (0.0, 1 / 32), resolutions))
        self.strengths = tuple(map(float, range(len(self.settings))))

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        r = region_index(self.pipe, region)
        weight, dilation, resolution = self.settings[round(strength)]
        mask = (pairs.base_probs.argmax(1) == r) | (pairs.source_probs.argmax(1) == r)
        if dilation:
            mask = dilate(mask, max(1, round(dilation * mask.shape[-1])))
        return blend_features(self.pipe, pairs.base, pairs.source, weight * mask.float(), resolution)


def blend_features(pipe, base: Tensor, source: Tensor, mask: Tensor, resolution: int) -> Tensor:
    """Render `base` with the source's feature maps and picture under the mask, blended at `resolution`: (B, 3, H, W).

    base, source: style codes (B, S); mask: (B, H, W) from 0 to 1. ValueError if no block has this resolution.
    """
    net, both = pipe.generator.synthesis, torch.cat([base, source])
    if not hasattr(net, "rgbs"):
        raise ValueError(
            f"feature blending needs StyleGAN2 blocks, which {type(pipe.generator).__name__} does not have"
        )
    heights = list(pipe.generator.feature_sizes)
    if resolution not in heights:
        sizes = ", ".join(map(str, heights))
        raise ValueError(f"no block of this generator has {resolution} pixels: choose from {sizes}")
    block = heights.index(resolution)
    m = F.interpolate(mask[:, None], size=pipe.generator.size_at(resolution), mode="area")
    skip: list[Tensor] = []  # accumulated pictures of bases and sources

    def blended(x: Tensor) -> Tensor:
        a, b = x.chunk(2)
        return torch.cat([move(a, b, m.to(x.dtype)), b])

    def picture(_module, _args, rgb: Tensor) -> Tensor:
        up = upfirdn2d(skip[-1], net.fir, up=2, padding=(2, 1, 2, 1), gain=4.0) if skip else torch.zeros_like(rgb)
        skip.append(rgb + up)
        # The network adds `up` itself.
        return rgb if len(skip) <= block else blended(skip[-1]) - up

    hooks = [layer.register_forward_hook(picture) for layer in net.rgbs[: block + 1]]
    # The block's toRGB must see unblended maps, since its output is blended as a picture.
    if block + 1 < len(net.rgbs):
        hooks.append(net.convs[2 * block + 1].register_forward_pre_hook(lambda _, args: (blended(args[0]), *args[1:])))
    try:
        return render(pipe, both).chunk(2)[0]
    finally:
        for hook in hooks:
            hook.remove()


class PixelPaste:
    """The source's pixels of the region pasted over the base, which stays where only the base has the region.

    This bounds locality: nothing outside changes, however implausible the result. Strength is opacity.
    """

    name, strengths = "pixel paste", TENTHS

    def __init__(self, pipe):
        self.pipe = pipe

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        mask = pairs.source_probs.argmax(dim=1) == region_index(self.pipe, region)
        return move(pairs.plain, pairs.other, strength * mask[:, None].float())
