"""MobileStyleGAN's generator (Belousov, arXiv 2104.04767) as a diffusers model.

StyleGAN2's mapping network and style space with a synthesis network of a seventh of its cost: feature maps grow by
inverse Haar wavelets instead of upsampling convolutions, 3 x 3 convolutions are depthwise ones before 1 x 1 ones,
styles scale the inputs of layers without demodulation, and one layer makes the picture, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from stylefusion_hf.core.checks import check_count
from stylefusion_hf.models.config_checks import checked_config, positive
from stylefusion_hf.models.layers import (
    MappingNetwork,
    at_once,
    block_resolutions,
    channel_schedule,
    check_channels,
    to_fast_layout,
)
from stylefusion_hf.models.preview import PreviewHead, fit_heads
from stylefusion_hf.models.style_generator import (
    StyleGenerator,
    check_noise_mode,
    check_style,
    check_up_to,
    draw_noise,
)
from stylefusion_hf.ops.wavelets import HAAR, inverse_haar

SLOPE = 0.2  # of leaky ReLUs, which have no gain here
BATCH = 16  # pictures at once without gradients, up to 128 px
STRIP = 2**24  # bytes of a strip of feature maps: larger tensors come fresh from the system each time


def is_eager() -> bool:
    """Without gradients and not in a graph, which would keep what depends on the batch's size."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


# --- Layers ----------------------------------------------------------------------------------------------------------


class NoisyActivation(nn.Module):
    """Noise, bias, leaky ReLU, in place: the end of every convolution."""

    noise_const: Tensor

    def __init__(self, channels: int, resolution: int, use_noise: bool):
        super().__init__()
        self.resolution, self.use_noise = resolution, use_noise
        self.bias = nn.Parameter(torch.zeros(channels))
        if use_noise:
            self.noise_strength = nn.Parameter(torch.zeros([]))
            self.register_buffer("noise_const", torch.randn(resolution, resolution))

    def noise(self, mode: str, generator: torch.Generator | None) -> Tensor | None:
        """(1, 1, resolution, resolution), or None."""
        if not self.use_noise or mode == "none":
            return None
        drawn = self.noise_const[None, None]
        if mode == "random":
            drawn = draw_noise(self.resolution, 1, self.bias, generator)
        return drawn.to(self.bias.dtype) * self.noise_strength

    def activate(self, x: Tensor, noise: Tensor | None) -> Tensor:
        """(B, C, H, W), which already has the bias."""
        if noise is not None:
            x = x.add_(noise.to(x.dtype))
        return F.leaky_relu_(x, SLOPE)


class StyledConv(NoisyActivation):
    """3 x 3 convolution of the styled input, noise, bias, leaky ReLU: (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int, use_noise: bool):
        super().__init__(out_channels, resolution, use_noise)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.gain = 1 / math.sqrt(9 * in_channels)

    def forward(self, x: Tensor, style: Tensor, noise: Tensor | None) -> Tensor:
        x = x * (style * self.gain)[:, :, None, None]
        return self.activate(F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=1), noise)


class SeparableConv(NoisyActivation):
    """Depthwise 3 x 3 and 1 x 1 convolution of the styled input, noise, bias, leaky ReLU."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int, use_noise: bool):
        super().__init__(out_channels, resolution, use_noise)
        self.gain = 1 / math.sqrt(9 * in_channels)
        self.depthwise = nn.Parameter(torch.randn(in_channels, 1, 3, 3) * math.sqrt(in_channels))
        self.pointwise = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1) / math.sqrt(in_channels))

    def forward(self, x: Tensor, style: Tensor | None, noise: Tensor | None) -> Tensor:
        """`style` (B, in), or None where the input is scaled by style and gain already."""
        weight: Tensor = self.depthwise
        if style is not None:
            style = (style * self.gain)[:, :, None, None]
            if is_eager() and x.shape[0] == 1:
                weight = weight * style.transpose(0, 1)  # a pass over the kernel instead of one over the maps
            else:
                x = x * style
        x = F.conv2d(x, weight.to(x.dtype), padding=1, groups=x.shape[1])
        return self.activate(F.conv2d(x, self.pointwise.to(x.dtype), self.bias.to(x.dtype)), noise)


class Block(nn.Module):
    """(B, in, H, W) -> (B, out, 2 H, 2 W): inverse Haar transform and two separable convolutions, each styled."""

    def __init__(self, in_channels: int, out_channels: int, resolution: int, use_noise: bool):
        super().__init__()
        self.conv1 = SeparableConv(in_channels // 4, out_channels, resolution, use_noise)
        self.conv2 = SeparableConv(out_channels, out_channels, resolution, use_noise)
        self.sizes = [in_channels, in_channels // 4, out_channels]

    def forward(self, x: Tensor, styles: Sequence[Tensor], noises: Sequence[Tensor | None]) -> Tensor:
        up, first, second = styles
        # The first convolution's style scales what the transform gives: it can as well scale the bands that it takes.
        first = first * self.conv1.gain
        up = up * torch.cat([first, first.repeat_interleave(3, dim=1)], dim=1)
        x = self.conv1(inverse_haar(x, up), None, noises[0])
        return self.conv2(x, second, noises[1])


class ToImage(nn.Module):
    """Styled 1 x 1 convolution and inverse Haar transform: (B, in, H, W) -> (B, img_channels, 2 H, 2 W)."""

    def __init__(self, in_channels: int, img_channels: int):
        super().__init__()
        self.gain = 1 / math.sqrt(in_channels)
        self.weight = nn.Parameter(torch.randn(4 * img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(4 * img_channels))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        # The transform mixes the four bands of a pixel, so that it is folded into the convolution's weights.
        weight, bias = self._to_pixels(self.weight.flatten(1)), self._to_pixels(self.bias[:, None])[:, 0]
        weight, style = weight[:, :, None, None], (style * self.gain)[:, :, None, None]
        if is_eager() and x.shape[0] == 1:
            weight = weight * style
        else:
            x = x * style
        x = F.conv2d(x, weight.to(x.dtype), bias.to(x.dtype))
        return F.pixel_shuffle(x.contiguous(), 2)

    def _to_pixels(self, bands: Tensor) -> Tensor:
        """(4 C, n), low bands and then three details for each channel -> (4 C, n), four pixels for each channel."""
        channels = len(bands) // 4
        sorted_bands = torch.cat([bands[:channels, None], bands[channels:].unflatten(0, (channels, 3))], dim=1)
        haar = torch.tensor(HAAR, dtype=bands.dtype, device=bands.device)
        return torch.einsum("bp,cbn->cpn", haar, sorted_bands).flatten(0, 1)


# --- Synthesis -------------------------------------------------------------------------------------------------------


class MobileSynthesis(nn.Module):
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
        self.resolutions, self.img_channels = resolutions, img_channels
        for resolution in previews:
            self.add_preview(resolution)
        self.sizes: list[int] = [channels[0], *(size for block in self.blocks for size in block.sizes), channels[-1]]

    def add_preview(self, resolution: int) -> PreviewHead:
        """A head for the features of that resolution, which gives black pictures until it is fitted."""
        head = PreviewHead(self.channels[resolution], self.img_channels)
        self.previews[str(resolution)] = head.to(self.const.device, self.const.dtype)
        return head

    @property
    def preview_resolutions(self) -> list[int]:
        return sorted(map(int, self.previews))

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
        size = check_up_to(up_to, [*self.resolutions, 2 * self.resolutions[-1]])
        if size in self.channels and not return_features and str(size) not in self.previews:
            sizes = ", ".join(map(str, [*self.preview_resolutions, 2 * self.resolutions[-1]]))
            raise ValueError(
                f"this generator has no preview head of {size} px, only pictures of {sizes}: fit one with"
                f" generator.fit_preview({size}), or take the features with return_features=True"
            )
        frugal = is_eager() and s.device.type == "cpu"
        parts = s.split(at_once(size, BATCH)) if frugal and s.shape[0] else (s,)
        done = [self._render(part, noise_mode, return_features, generator, size, frugal) for part in parts]
        image, features = done[0]
        if len(done) > 1:
            image = None if image is None else torch.cat([part for part, _ in done if part is not None])
            features = {height: torch.cat([maps[height] for _, maps in done]) for height in features}
        return (image, features) if return_features else image

    def _render(
        self, s: Tensor, mode: str, keep: bool, generator: torch.Generator | None, size: int, frugal: bool
    ) -> tuple[Tensor | None, dict[int, Tensor]]:
        """The picture of `size` px, and the features by height: the last alone unless all are to be kept."""
        styles = iter(s.split(self.sizes, dim=1))
        noises = iter(self._noises(s.shape[0], mode, generator, size))
        x = to_fast_layout(self.const.to(s.dtype).expand(s.shape[0], -1, -1, -1))
        x = self.conv(x, next(styles), next(noises))
        features = {4: x}
        for block, resolution in zip(self.blocks, self.resolutions[1:], strict=True):
            if resolution > size:
                break
            steps: list[Callable] = [partial(block, styles=[next(styles) for _ in range(3)])]
            if resolution == self.resolutions[-1] < size and not keep:  # these features are not even made whole
                steps.append(partial(self.to_image, style=next(styles)))
            maps = [next(noises), next(noises)]
            row = 2 * 2 * x.shape[3] * s.shape[0] * self.channels[resolution] * x.element_size()
            x = in_strips(steps, x, maps, max(2, STRIP // row)) if frugal else chain(steps, x, maps)
            features = {**(features if keep else {}), x.shape[3]: x}
        if x.shape[3] == size:
            image = x if size not in self.channels else None
            if str(size) in self.previews:
                image = self.previews[str(size)](x)
        else:
            image = self.to_image(x, next(styles))
        return image, features

    def _noises(self, batch: int, mode: str, generator: torch.Generator | None, size: int) -> list[Tensor | None]:
        """A map for each layer up to `size` px. Random ones are drawn sample by sample, as single runs would."""
        layers: list[NoisyActivation] = [self.conv]
        layers += [conv for block in self.blocks for conv in (block.conv1, block.conv2)]
        layers = [layer for layer in layers if layer.resolution <= size]
        count = max(batch, 1) if mode == "random" else 1
        draws = [[layer.noise(mode, generator) for layer in layers] for _ in range(count)]
        return [None if maps[0] is None else torch.cat(maps) for maps in zip(*draws, strict=True)]


def chain(steps: Sequence[Callable], x: Tensor, noises: Sequence[Tensor | None]) -> Tensor:
    """A block, and perhaps a pointwise step, on feature maps."""
    x = steps[0](x, noises=noises)
    for step in steps[1:]:
        x = step(x)
    return x


def in_strips(steps: Sequence[Callable], x: Tensor, noises: Sequence[Tensor | None], rows: int) -> Tensor:
    """As `chain`, so many rows of `x` at a time: in little memory, which is reused and stays in the caches.

    A block's two 3 x 3 convolutions look two rows far at the doubled size, one row of `x`.
    """
    height, result = x.shape[2], None
    if rows >= height:
        return chain(steps, x, noises)
    for top in range(0, height, rows):
        first, last = max(0, top - 1), min(height, top + rows + 1)
        parts = [None if noise is None else noise[:, :, 2 * first : 2 * last] for noise in noises]
        y = chain(steps, x[:, :, first:last], parts)
        scale = y.shape[3] // x.shape[3]
        if result is None:
            layout = torch.channels_last if y.shape[1] > 4 else torch.contiguous_format  # features, or a picture
            shape = (*y.shape[:2], height * scale, y.shape[3])
            result = torch.empty(shape, dtype=y.dtype, device=y.device, memory_format=layout)
        skip, bottom = (top - first) * scale, min(height, top + rows)
        result[:, :, top * scale : bottom * scale] = y[:, :, skip : skip + (bottom - top) * scale]
    assert result is not None  # there is a row
    return result


# --- The model -------------------------------------------------------------------------------------------------------


class MobileStyleGANGenerator(StyleGenerator):
    """MobileStyleGAN generator of any power-of-two resolution and channel schedule.

    w+ has as many rows as a StyleGAN2's of the same resolution, so that the codes and directions of the model that it
    was distilled from serve as they are. Rows go to layers by resolution: the layers of 4 px take row 0; of the three
    styled layers of a block of 4 * 2**k px, the wavelet transform and the first convolution take row 2k - 1 (there the
    upsampling convolution's), the second convolution takes row 2k; the picture's layer takes row 2k + 1 of the last
    block (that resolution's toRGB). At 1024 px these are rows 0 to 15 of 18; the last two rows, of the block of the
    full size in a StyleGAN2, drive nothing here.

    Args:
        resolution: height and width of the images, a power of two from 8.
        channels: one count per block, from 4 x 4 up to half the resolution; all but the last are multiples of 4. None
            takes those of the published model: 512 up to 64 px, then half as many with each doubling.
        z_dim, w_dim: sizes of the latent spaces.
        label_dim: size of the class-label vector; 0 for an unconditional model.
        mapping_layers, mapping_width: depth of the mapping MLP and width of its hidden layers (None: `w_dim`).
        img_channels: 3 for RGB.
        use_noise: whether convolutions have noise inputs.
        preview_resolutions: sizes that a preview head was fitted for (see `fit_preview`).
        truncation_psi: the model's own default truncation, used by pipelines.

    Raises:
        ValueError: a resolution that is no power of two, or channels that do not fit it.

    Example:
        >>> import torch
        >>> from stylefusion_hf import MobileStyleGANGenerator
        >>> generator = MobileStyleGANGenerator(32, channels=[16, 16, 8], z_dim=16, w_dim=16, mapping_layers=2)
        >>> generator.style_sizes
        {'conv0': 16, 'conv1': 16, 'conv2': 4, 'conv3': 16, 'conv4': 16, 'conv5': 4, 'conv6': 8, 'rgb0': 8}
        >>> s = generator.to_style(generator.mapping(torch.randn(1, 16)))
        >>> generator.synthesis(s).shape
        torch.Size([1, 3, 32, 32])
    """

    synthesis: MobileSynthesis

    @register_to_config
    @checked_config
    def __init__(
        self,
        resolution: int = 64,
        channels: Sequence[int] | None = None,
        z_dim: int = 512,
        w_dim: int = 512,
        label_dim: int = 0,
        mapping_layers: int = 8,
        mapping_width: int | None = None,
        img_channels: int = 3,
        use_noise: bool = True,
        preview_resolutions: Sequence[int] = (),
        truncation_psi: float = 0.7,
    ):
        super().__init__()
        if block_resolutions(resolution)[-1] < 8:
            raise ValueError(f"resolution must be a power of two between 8 and 16384, got {resolution}")
        half = resolution // 2
        channels = check_channels(channel_schedule(half) if channels is None else channels, half)
        if odd := [c for c in channels[:-1] if c % 4]:
            raise ValueError(f"all channel counts but the last must be multiples of 4, got {odd[0]} in {channels}")
        sizes = sorted(set(preview_resolutions))
        if unknown := [size for size in sizes if size not in block_resolutions(half)]:
            raise ValueError(f"preview_resolutions must be among {block_resolutions(half)}, got {unknown[0]}")
        self.register_to_config(channels=channels, preview_resolutions=sizes)
        positive(z_dim=z_dim, img_channels=img_channels, mapping_width=mapping_width)
        self.mapping = MappingNetwork(z_dim, label_dim, w_dim, mapping_layers, mapping_width, equalized=False)
        self.synthesis = MobileSynthesis(channels, img_channels, use_noise, sizes)
        self._add_affine(w_dim, spread=1 / math.sqrt(w_dim))

    @property
    def conv_sizes(self) -> list[int]:
        return self.synthesis.sizes[:-1]

    @property
    def rgb_sizes(self) -> list[int]:
        return self.synthesis.sizes[-1:]

    @property
    def conv_resolutions(self) -> list[int]:
        return [4, *(resolution for resolution in self.synthesis.resolutions[1:] for _ in range(3))]

    @property
    def rgb_resolutions(self) -> list[int]:
        return self.synthesis.resolutions[-1:]

    @property
    def _conv_rows(self) -> list[int]:
        return [0, *(row for k in range(1, len(self.synthesis.resolutions)) for row in (2 * k - 1, 2 * k - 1, 2 * k))]

    @property
    def _rgb_rows(self) -> list[int]:
        return [2 * len(self.synthesis.resolutions) - 1]

    @property
    def num_ws(self) -> int:
        """Rows of w+: as many as StyleGAN2 has at this resolution."""
        return 2 * len(self.synthesis.resolutions) + 2

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
            check_up_to(resolution, self.synthesis.resolutions)
        check_count("samples", samples, 2**16)
        count = samples + max(1, samples // 4)
        z = torch.randn(count, self.config.z_dim, generator=torch.Generator().manual_seed(seed)).to(self.affine_weight)
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


# Saved pipelines then record the package, not this file, as the class's home (see stylefusion_hf/__init__.py).
MobileStyleGANGenerator.__module__ = "stylefusion_hf"
