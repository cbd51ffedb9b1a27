"""StyleGAN3's generator (Karras et al., arXiv 2106.12423) as a diffusers model.

z --mapping--> w --affine--> s --synthesis--> image, as in StyleGAN2. Synthesis starts from Fourier features that a
style rotates and moves, and all later layers are alias-free, so that details follow the motion instead of sticking to
pixels. There are no noise inputs and no toRGB layers but the last. Outputs match NVIDIA's code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from stylefusion_hf.models.config_checks import checked_config, positive, register_to_config
from stylefusion_hf.models.layers import MappingNetwork
from stylefusion_hf.models.preview import PreviewMixin
from stylefusion_hf.models.style_generator import StyleGenerator, check_style
from stylefusion_hf.models.stylegan3_layers import move_input
from stylefusion_hf.models.stylegan3_plan import channel_counts, check_widths, plan_layers, plan_signals
from stylefusion_hf.models.stylegan3_synthesis import AliasFreeSynthesis


class StyleGAN3Generator(PreviewMixin, StyleGenerator):
    """StyleGAN3 generator of the configurations T (the defaults) and R, and others.

    `conv0` of a style code is the motion of the Fourier input, (cos, sin, x, y). One vector for each layer follows;
    `rgb0` belongs to the layer that makes the picture. Row i of w+ drives vector i.

    Args:
        resolution: height and width of the images.
        channels: the width of the input, then of each layer but the picture's, `num_layers + 1` counts; None for
            NVIDIA's schedule with `channel_base` 32768, at most 512 (R: 65536, at most 1024).
        z_dim, w_dim: sizes of the latent spaces.
        label_dim: size of the class-label vector; 0 for an unconditional model.
        mapping_layers, mapping_width: depth of the mapping MLP and width of its hidden layers (None: `w_dim`).
        img_channels: 3 for RGB.
        num_layers: number of layers, without the input and the picture's.
        num_critical: how many of them are critically sampled, at the end.
        first_cutoff, first_stopband: frequencies of the first layer, in cycles per picture width.
        last_stopband_rel: stopband of the last layer, relative to its cutoff.
        margin_size: by how many pixels of their own the maps extend beyond the picture.
        conv_kernel: size of the convolutions (R: 1).
        filter_size: length of the low-pass filters, in pixels of the lower rate.
        lrelu_upsampling: the factor by which nonlinearities are oversampled.
        use_radial_filters: make the filters that are not critically sampled rotationally symmetric (R: True).
        conv_clamp: clamp on activations, for half precision (NVIDIA: 256); None for no clamp.
        output_scale: factor of the picture.
        preview_resolutions: sizes that a preview head was fitted for (see `fit_preview`).
        truncation_psi: the model's default truncation, used by pipelines.

    Raises:
        ValueError: settings that give no network.

    Example:
        >>> import torch
        >>> from stylefusion_hf import StyleGAN3Generator
        >>> generator = StyleGAN3Generator(16, channels=[8] * 5, z_dim=16, w_dim=16, num_layers=4)
        >>> generator.num_ws, generator.style_sizes
        (6, {'conv0': 4, 'conv1': 8, 'conv2': 8, 'conv3': 8, 'conv4': 8, 'rgb0': 8})
        >>> s = generator.to_style(generator.mapping(torch.randn(1, 16)))
        >>> generator.synthesis(generator.move_style(s, translate=(0.25, 0), rotate=30)).shape
        torch.Size([1, 3, 16, 16])
    """

    synthesis: AliasFreeSynthesis

    @register_to_config
    @checked_config
    def __init__(
        self,
        resolution: int = 64,
        channels: Sequence[int] | None = None,
        z_dim: int = 512,
        w_dim: int = 512,
        label_dim: int = 0,
        mapping_layers: int = 2,
        mapping_width: int | None = None,
        img_channels: int = 3,
        num_layers: int = 14,
        num_critical: int = 2,
        first_cutoff: float = 2.0,
        first_stopband: float = 2**2.1,
        last_stopband_rel: float = 2**0.3,
        margin_size: int = 10,
        conv_kernel: int = 3,
        filter_size: int = 6,
        lrelu_upsampling: int = 2,
        use_radial_filters: bool = False,
        conv_clamp: float | None = 256.0,
        output_scale: float = 0.25,
        preview_resolutions: Sequence[int] = (),
        truncation_psi: float = 0.7,
    ):
        super().__init__()
        positive(z_dim=z_dim, img_channels=img_channels, conv_clamp=conv_clamp, mapping_width=mapping_width)
        plan = plan_signals(
            resolution, num_layers, num_critical, first_cutoff, first_stopband, last_stopband_rel, margin_size
        )
        layers = plan_layers(plan, num_critical, conv_kernel, filter_size, lrelu_upsampling, use_radial_filters)
        channels = channel_counts(plan) if channels is None else check_widths(channels, num_layers)
        sizes = sorted(set(preview_resolutions))
        below = sorted({height for height in plan.heights if height < resolution})
        if unknown := [size for size in sizes if size not in below]:
            raise ValueError(f"preview_resolutions must be among {below}, got {unknown[0]}")
        self.register_to_config(channels=channels, preview_resolutions=sizes)
        self.mapping = MappingNetwork(z_dim, label_dim, w_dim, mapping_layers, mapping_width)
        self.synthesis = AliasFreeSynthesis(plan, layers, channels, img_channels, conv_clamp, output_scale, sizes)
        self._add_affine(w_dim, gain=1 / math.sqrt(w_dim))
        with torch.no_grad():  # at first, every picture is in its place
            self.affine_weight[:4] = 0
            self.affine_bias[:4] = torch.tensor([1.0, 0.0, 0.0, 0.0])

    @property
    def conv_sizes(self) -> list[int]:
        """Widths of the style vectors of the input, which is 4, and of all layers but the picture's."""
        return self.synthesis.sizes[:-1]

    @property
    def rgb_sizes(self) -> list[int]:
        """Width of the style vector of the picture's layer."""
        return self.synthesis.sizes[-1:]

    # By the cutoffs, not by the sampling rates, which exceed what coarse layers hold.

    @property
    def conv_resolutions(self) -> list[int]:
        """For the input and each layer, the height of the smallest picture that holds its frequencies."""
        return [self.synthesis.details[0], *self.synthesis.details[:-1]]

    @property
    def rgb_resolutions(self) -> list[int]:
        return self.synthesis.details[-2:-1]

    @property
    def _conv_rows(self) -> list[int]:
        return list(range(len(self.conv_sizes)))

    @property
    def _rgb_rows(self) -> list[int]:
        return [len(self.conv_sizes)]

    @property
    def num_ws(self) -> int:
        """Rows of w+."""
        return len(self.conv_sizes) + 1

    @property
    def feature_sizes(self) -> dict[int, int]:
        """{height: channels} of the feature maps that `synthesis` returns: one for each sampling rate."""
        return dict(self.synthesis.channels)

    def move_style(self, s: Tensor, translate: Sequence[float] = (0.0, 0.0), rotate: float = 0.0) -> Tensor:
        """Return the style codes of pictures that are rotated about their middle, then moved; details move along.

        Args:
            s: style codes (B, S).
            translate: right and down, in fractions of the width.
            rotate: degrees, counterclockwise.
        """
        check_style(s, self.style_dim)
        # The input's coordinates measure the last sampling rate, which exceeds a resolution that is no power of two.
        synthesis = self.synthesis
        scale = synthesis.resolution / synthesis.layers[-1].layer.temporary_rate
        moved = move_input(s[:, :4], translate[0] * scale, translate[1] * scale, rotate)
        return torch.cat([moved, s[:, 4:]], dim=1)


# Saved pipelines then record the package, not this module, as the home of the class.
StyleGAN3Generator.__module__ = "stylefusion_hf"
