"""MobileStyleGAN's synthesis network: style codes to features and pictures, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from stylefusion_hf.models.layers import chunk_size, to_fast_layout
from stylefusion_hf.models.mobile_layers import Block, Noise, NoisyActivation, StyledConv, ToImage
from stylefusion_hf.models.preview import PreviewSynthesis, Rendered, join_parts
from stylefusion_hf.models.style_generator import check_noise_mode, check_style
from stylefusion_hf.ops.separable import has_wavelet_block
from stylefusion_hf.ops.wavelets import inverse_haar, is_eager

BATCH = 16  # pictures at once without gradients, up to 128 px
STRIP = 2**24  # bytes of a strip of feature maps: larger tensors come fresh from the system each time


class MobileSynthesis(PreviewSynthesis):
    """s (B, S) -> images (B, img_channels, resolution, resolution)."""

    blocks: Any  # a ModuleList of `Block`

    def __init__(self, channels: Sequence[int], img_channels: int, use_noise: bool, previews: Sequence[int]):
        super().__init__()
        resolutions = [4 * 2**k for k in range(len(channels))]
        self.const = nn.Parameter(torch.randn(channels[0], 4, 4))
        self.conv = StyledConv(channels[0], channels[0], 4, use_noise)
        blocks = zip(channels, channels[1:], resolutions[1:], strict=False)
        self.blocks = nn.ModuleList(Block(i, o, r, use_noise) for i, o, r in blocks)
        self.to_image = ToImage(channels[-1], img_channels)
        self.previews = nn.ModuleDict()
        self.channels = dict(zip(resolutions, channels, strict=True))
        self.resolutions, self.resolution, self.img_channels = resolutions, 2 * resolutions[-1], img_channels
        for resolution in previews:
            self.add_preview(resolution)
        self.sizes: list[int] = [channels[0], *(size for block in self.blocks for size in block.sizes), channels[-1]]

    def forward(
        self,
        s: Tensor,
        noise_mode: str = "const",
        return_features: bool = False,
        generator: torch.Generator | None = None,
        up_to: int | None = None,
    ):
        """Images from packed style codes.

        Args:
            s: (B, S).
            noise_mode: `"const"` (the stored noise), `"random"` (drawn anew from `generator`) or `"none"`.
            return_features: also return {height: (B, C, height, height)}, each block's last feature map.
            up_to: stop at this resolution. The images are then those of its preview head, of this size; without a
                head there are only features: (None, features).

        Returns:
            images (B, C, H, W), or (images, features).
        """
        check_noise_mode(noise_mode)
        check_style(s, sum(self.sizes))
        size = self.check_size(up_to, return_features)
        frugal = is_eager() and s.device.type == "cpu" and s.shape[0] > 0
        parts = s.split(chunk_size(size, BATCH)) if frugal else (s,)
        done = [self._render(part, noise_mode, return_features, generator, size, frugal) for part in parts]
        image, features = join_parts(done)
        return (image, features) if return_features else image

    def _render(
        self, s: Tensor, mode: str, keep: bool, generator: torch.Generator | None, size: int, frugal: bool
    ) -> Rendered:
        """The picture of `size` px, and the features by height: the last alone unless all are to be kept."""
        styles = iter(s.split(self.sizes, dim=1))
        noises = iter(self._noises(s, mode, generator, size))
        x = to_fast_layout(self.const.to(s.dtype).expand(s.shape[0], -1, -1, -1))
        x = self.conv(x, next(styles), next(noises))
        features = {4: x}
        for block, resolution in zip(self.blocks, self.resolutions[1:], strict=True):
            if resolution > size:
                break
            step = partial(block, styles=[next(styles) for _ in range(3)])
            if resolution == self.resolutions[-1] < size and not keep:  # these features are not even made whole
                step = partial(step, to_image=self.to_image, image_style=next(styles))
            maps = [next(noises), next(noises)]
            if frugal and not has_wavelet_block(x):  # which goes in strips by itself
                row = 2 * 2 * x.shape[3] * s.shape[0] * self.channels[resolution] * x.element_size()
                x = in_strips(step, x, maps, max(2, STRIP // row))
            else:
                x = step(x, noises=maps)
            features = {**(features if keep else {}), x.shape[3]: x}
        if x.shape[3] == size:
            image = x if size not in self.channels else None
            if str(size) in self.previews:
                image = self.previews[str(size)](x)
        else:
            image = self.to_image(x, next(styles))
        return image, features

    def styled_inputs(self, s: Tensor) -> Iterator[Tensor]:
        """Yield what each vector of `sizes` scales, (B, C, height, height), in full pictures of style codes (B, S).

        One at a time, because those of 512 px are large; computed layer by layer, without the fused operators.
        """
        check_style(s, sum(self.sizes))
        styles, noises = iter(s.split(self.sizes, dim=1)), iter(self._noises(s, "const", None, self.resolution))
        x = self.const.to(s.dtype).expand(s.shape[0], -1, -1, -1)
        yield x
        x = self.conv(x, next(styles), next(noises))
        for block in self.blocks:
            yield x
            x = inverse_haar(x, next(styles))
            for conv in (block.conv1, block.conv2):
                yield x
                x = conv(x, next(styles) * conv.gain, next(noises))
        yield x

    def _noises(self, s: Tensor, mode: str, generator: torch.Generator | None, size: int) -> list[Noise | None]:
        """A map for each layer up to `size` px. Random ones are drawn sample by sample, as single runs would."""
        layers: list[NoisyActivation] = [self.conv]
        layers += [conv for block in self.blocks for conv in (block.conv1, block.conv2)]
        layers = [layer for layer in layers if layer.resolution <= size]
        if mode != "random":
            return [layer.noise(mode, generator, s) for layer in layers]
        draws = [[layer.noise(mode, generator, s) for layer in layers] for _ in range(max(s.shape[0], 1))]
        drawn = [[noise.drawn for noise in maps if noise is not None] for maps in zip(*draws, strict=True)]
        return [Noise(torch.cat(maps)) if maps else None for maps in drawn]


def in_strips(step: Callable, x: Tensor, noises: Sequence[Noise | None], rows: int) -> Tensor:
    """Compute a block, `rows` rows of `x` at a time: in little memory, which is reused and stays in the caches.

    A block's two 3 x 3 convolutions look two rows far at the doubled size, one row of `x`.
    """
    height, result = x.shape[2], None
    if rows >= height:
        return step(x, noises=noises)
    for top in range(0, height, rows):
        first, last = max(0, top - 1), min(height, top + rows + 1)
        inside = slice(2 * first, 2 * last)
        parts = [None if noise is None else noise._replace(rows=inside) for noise in noises]
        y = step(x[:, :, first:last], noises=parts)
        scale = y.shape[3] // x.shape[3]
        if result is None:
            layout = torch.channels_last if y.shape[1] > 4 else torch.contiguous_format  # features, or a picture
            shape = (*y.shape[:2], height * scale, y.shape[3])
            result = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=layout)
        skip, bottom = (top - first) * scale, min(height, top + rows)
        result[:, :, top * scale : bottom * scale] = y[:, :, skip : skip + (bottom - top) * scale]
    assert result is not None  # there is a row
    return result
