"""MobileStyleGAN's generator (Belousov, arXiv 2104.04767) as a diffusers model.

StyleGAN2's mapping network and style space with a synthesis network of a seventh of its cost: feature maps grow by
inverse Haar wavelets instead of upsampling convolutions, 3 x 3 convolutions are depthwise ones before 1 x 1 ones,
styles scale the inputs of layers without demodulation, and one layer makes the picture, at the end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from stylefusion_hf.models.config_checks import checked_config, positive, register_to_config
from stylefusion_hf.models.layers import MappingNetwork, block_resolutions, channel_schedule, check_channels
from stylefusion_hf.models.mobile_synthesis import MobileSynthesis
from stylefusion_hf.models.preview import PreviewMixin
from stylefusion_hf.models.style_generator import StyleGenerator


class MobileStyleGANGenerator(PreviewMixin, StyleGenerator):
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


# Saved pipelines then record the package, not this file, as the class's home (see stylefusion_hf/__init__.py).
MobileStyleGANGenerator.__module__ = "stylefusion_hf"
