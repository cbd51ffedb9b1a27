"""StyleGAN2's generator (Karras et al., arXiv 1912.04958) as a diffusers model.

z --mapping--> w --affine--> s --synthesis--> image. All affine layers are one matrix, so a packed style code `s` of
shape (B, S) comes from one product; it holds the vectors of all convolutions (`conv0`, `conv1`, ...), then of all
toRGB layers (`rgb0`, ...). Architecture "skip", as in every published StyleGAN2; numbers agree with NVIDIA's and
rosinality's code.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import nn

from stylefusion_hf.models.config_checks import checked_config, positive
from stylefusion_hf.models.layers import (
    MappingNetwork,
    block_resolutions,
    channel_schedule,
    check_channels,
    register_fir,
    to_fast_layout,
)
from stylefusion_hf.models.loading import StrictModelMixin
from stylefusion_hf.ops import bias_act, modulated_conv2d, modulated_conv2d_act, upfirdn2d

NOISE_MODES = ("const", "random", "none")


@dataclass
class GeneratorOutput(BaseOutput):
    """`sample`: images (B, C, H, W), about [-1, 1]. `style_codes`: the packed codes (B, S) they were made from."""

    sample: torch.Tensor
    style_codes: torch.Tensor


# --- Synthesis layers ------------------------------------------------------------------------------------------------


class SynthesisConv(nn.Module):
    """Modulated 3 x 3 convolution, upsampling if `up` is 2, noise, bias, leaky ReLU: (B, in, ...) -> (B, out, ...)."""

    fir: torch.Tensor
    noise_const: torch.Tensor

    def __init__(self, in_channels, out_channels, resolution, up=1, use_noise=True, clamp=None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.use_noise, self.up, self.clamp, self.resolution = use_noise, up, clamp, resolution
        if use_noise:
            self.noise_strength = nn.Parameter(torch.zeros([]))
            self.register_buffer("noise_const", torch.randn(resolution, resolution))
        register_fir(self)

    def forward(self, x, style, noise_mode, generator=None):
        noise = None
        if self.use_noise and noise_mode != "none":
            noise = self.noise_const.expand(1, 1, -1, -1)
            if noise_mode == "random":
                shape = (x.shape[0], 1, self.resolution, self.resolution)
                device = x.device if generator is None else generator.device
                noise = torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(x.device)
            noise = noise.to(self.bias.dtype) * self.noise_strength
        return modulated_conv2d_act(x, self.weight, style, self.bias, noise, self.clamp, self.fir, self.up)


class ToRGB(nn.Module):
    """1 x 1 modulated convolution without demodulation: (B, in, H, W) -> (B, img_channels, H, W)."""

    def __init__(self, in_channels, img_channels, clamp=None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(img_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(img_channels))
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.clamp = clamp

    def forward(self, x, style):
        x, _ = modulated_conv2d(x, self.weight, style * self.weight_gain, demodulate=False)
        return bias_act(x, self.bias, "linear", clamp=self.clamp)


class SynthesisNetwork(nn.Module):
    """s (B, S) -> images (B, img_channels, resolution, resolution)."""

    fir: torch.Tensor

    def __init__(self, channels, img_channels, use_noise, conv_clamp):
        super().__init__()
        self.const = nn.Parameter(torch.randn(channels[0], 4, 4))
        self.convs, self.rgbs = nn.ModuleList(), nn.ModuleList()
        for k, c in enumerate(channels):
            if k > 0:
                self.convs.append(SynthesisConv(channels[k - 1], c, 4 * 2**k, 2, use_noise, conv_clamp))
            self.convs.append(SynthesisConv(c, c, 4 * 2**k, 1, use_noise, conv_clamp))
            self.rgbs.append(ToRGB(c, img_channels, conv_clamp))
        register_fir(self)
        self.sizes: list[int] = [layer.weight.shape[1] for layer in (*self.convs, *self.rgbs)]

    def forward(
        self,
        s: torch.Tensor,
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
            up_to: stop at this resolution; the images are then the sum of the toRGB layers so far, of this size.

        Returns:
            images (B, C, H, W), or (images, features).
        """
        if noise_mode not in NOISE_MODES:
            raise ValueError(f"unknown noise_mode {noise_mode!r}; choose from {', '.join(NOISE_MODES)}")
        if s.ndim != 2 or s.shape[1] != sum(self.sizes):
            raise ValueError(f"a style code of this generator is (batch, {sum(self.sizes)}), got {tuple(s.shape)}")
        sizes = [4 * 2**k for k in range(len(self.rgbs))]
        if up_to is not None and up_to not in sizes:
            raise ValueError(f"up_to is one of {', '.join(map(str, sizes))}, got {up_to!r}")
        styles = s.split(self.sizes, dim=1)
        conv_styles, rgb_styles = iter(styles[: len(self.convs)]), iter(styles[len(self.convs) :])
        convs = iter(self.convs)
        x = to_fast_layout(self.const.to(s.dtype).expand(s.shape[0], -1, -1, -1))
        image, features = None, {}
        for k, to_rgb in enumerate(self.rgbs):
            for _ in range(1 if k == 0 else 2):
                x = next(convs)(x, next(conv_styles), noise_mode, generator)
            rgb = to_rgb(x, next(rgb_styles))
            image = rgb if image is None else rgb + upfirdn2d(image, self.fir, up=2, padding=(2, 1, 2, 1), gain=4.0)
            features[x.shape[-1]] = x
            if x.shape[-1] == up_to:
                break
        assert image is not None  # every generator has a block of 4 pixels
        image = image.contiguous()  # features may be channels-last, pictures go to all sorts of readers
        return (image, features) if return_features else image


# --- The model -------------------------------------------------------------------------------------------------------


class StyleGAN2Generator(StrictModelMixin, ConfigMixin):
    """StyleGAN2 generator of any power-of-two resolution, channel schedule, mapping depth and label size.

    Args:
        resolution: height and width of the images, a power of two from 4.
        channels: one count per block, from 4 x 4 up; None takes NVIDIA's schedule of `channel_base` 32768, at most
        512.
        z_dim, w_dim: sizes of the latent spaces.
        label_dim: size of the class-label vector; 0 for an unconditional model.
        mapping_layers, mapping_width: depth of the mapping MLP and width of its hidden layers (None: `w_dim`).
        img_channels: 3 for RGB.
        use_noise: whether convolutions have noise inputs. Flat artwork wants none.
        conv_clamp: limit of activations, for half precision (NVIDIA: 256); None for no limit.
        truncation_psi: the model's own default truncation, used by pipelines.

    Raises:
        ValueError: a resolution that is no power of two, or channels that do not fit it.
    """

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
        conv_clamp: float | None = None,
        truncation_psi: float = 0.7,
    ):
        super().__init__()
        block_resolutions(resolution)
        channels = check_channels(channel_schedule(resolution) if channels is None else channels, resolution)
        self.register_to_config(channels=channels)
        positive(z_dim=z_dim, img_channels=img_channels, conv_clamp=conv_clamp, mapping_width=mapping_width)
        self.mapping = MappingNetwork(z_dim, label_dim, w_dim, mapping_layers, mapping_width)
        self.synthesis = SynthesisNetwork(channels, img_channels, use_noise, conv_clamp)
        self.register_buffer("w_avg", torch.zeros(w_dim))
        # All affine layers w -> s in one matrix; the bias starts at one, so that a style starts as "leave as it is".
        self.affine_weight = nn.Parameter(torch.randn(self.style_dim, w_dim))
        self.affine_bias = nn.Parameter(torch.ones(self.style_dim))
        self.affine_gain = 1 / math.sqrt(w_dim)
        # Convolution i is driven by row i of w+, toRGB k by row 2k + 1 (as the authors' and NVIDIA's synthesis do).
        rows = [*range(len(self.conv_sizes)), *(2 * k + 1 for k in range(len(self.rgb_sizes)))]
        sizes = torch.tensor(self.synthesis.sizes)
        self.register_buffer("style_rows", torch.tensor(rows).repeat_interleave(sizes), persistent=False)

    # --- shapes ---

    @property
    def conv_sizes(self) -> list[int]:
        """Widths of the convolutions' style vectors."""
        return self.synthesis.sizes[: len(self.synthesis.convs)]

    @property
    def rgb_sizes(self) -> list[int]:
        """Widths of the toRGB layers' style vectors."""
        return self.synthesis.sizes[len(self.synthesis.convs) :]

    @property
    def conv_resolutions(self) -> list[int]:
        """For each convolution, the height of what it gives."""
        return [4 * 2 ** ((i + 1) // 2) for i in range(len(self.conv_sizes))]

    @property
    def rgb_resolutions(self) -> list[int]:
        """For each toRGB layer, the height of the features that it reads."""
        return [4 * 2**k for k in range(len(self.rgb_sizes))]

    @property
    def picture_sizes(self) -> list[int]:
        """The heights that `synthesis(s, up_to=height)` gives a picture of, the full size last."""
        return self.rgb_resolutions

    @property
    def feature_sizes(self) -> dict[int, int]:
        """{height: channels} of the feature maps that `synthesis` returns."""
        return {4 * 2**k: width for k, width in enumerate(self.config.channels)}

    @property
    def style_sizes(self) -> dict[str, int]:
        """Widths of all style vectors by name, in the order in which a code packs them: conv0, ..., rgb0, ..."""
        names = [f"conv{i}" for i in range(len(self.conv_sizes))] + [f"rgb{k}" for k in range(len(self.rgb_sizes))]
        return dict(zip(names, self.synthesis.sizes, strict=True))

    @property
    def style_dim(self) -> int:
        """S, the length of a packed style code."""
        return sum(self.synthesis.sizes)

    @property
    def num_ws(self) -> int:
        """Rows of w+."""
        return len(self.synthesis.convs) + 1

    # --- from space to space ---

    def truncate(self, w: torch.Tensor, psi: float | torch.Tensor, cutoff: int | None = None) -> torch.Tensor:
        """Move w towards the mean: mean + psi * (w - mean).

        Args:
            w: (B, w_dim) or w+ (B, num_ws, w_dim).
            psi: 1 leaves w alone, 0 gives the mean; a number, or a tensor of one.
            cutoff: truncate only the first so many rows; the result is then always w+.
        """
        self._check_w(w)
        mean = self.w_avg.to(w)
        if cutoff is None:
            return mean + psi * (w - mean)
        if not 0 <= cutoff <= self.num_ws:
            raise ValueError(f"truncation cutoff must be between 0 and {self.num_ws} (the rows of w+), got {cutoff}")
        rows = w.unsqueeze(1).expand(-1, self.num_ws, -1) if w.ndim == 2 else w
        return torch.cat([mean + psi * (rows[:, :cutoff] - mean), rows[:, cutoff:]], dim=1)

    def to_style(self, w: torch.Tensor) -> torch.Tensor:
        """w (B, w_dim) or w+ (B, num_ws, w_dim) -> packed style codes (B, S)."""
        self._check_w(w)
        weight, bias = (self.affine_weight * self.affine_gain).to(w.dtype), self.affine_bias.to(w.dtype)
        if w.ndim == 2:
            return torch.addmm(bias, w, weight.t())
        every = torch.matmul(w, weight.t())  # (B, num_ws, S): one product; each number is then taken from its own row
        return every.gather(1, self.style_rows.expand(w.shape[0], 1, -1)).squeeze(1) + bias

    def split_style(self, s: torch.Tensor) -> dict[str, torch.Tensor]:
        """Packed codes (B, S) -> {"conv0": (B, c), ..., "rgb0": (B, c), ...}, views of the same memory."""
        if s.ndim != 2 or s.shape[1] != self.style_dim:
            raise ValueError(f"a style code of this generator is (batch, {self.style_dim}), got {tuple(s.shape)}")
        return dict(zip(self.style_sizes, s.split(self.synthesis.sizes, dim=1), strict=True))

    def _check_w(self, w: torch.Tensor) -> None:
        d, n = self.w_avg.shape[0], self.num_ws
        if not ((w.ndim == 2 and w.shape[1] == d) or (w.ndim == 3 and tuple(w.shape[1:]) == (n, d))):
            raise ValueError(
                f"expected w of shape (batch, {d}) or w+ of shape (batch, {n}, {d}), got {tuple(w.shape)}"
            )

    @torch.no_grad()
    def estimate_w_avg(
        self, num_samples: int = 4096, seed: int = 0, class_labels: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Set and return the mean of w over a seeded draw of z: for checkpoints that do not store one."""
        z = torch.randn(num_samples, self.config.z_dim, generator=torch.Generator().manual_seed(seed))
        w = self.mapping(z.to(self.affine_weight), class_labels)
        self.w_avg.copy_(w.float().mean(dim=0))
        return self.w_avg

    def forward(
        self,
        latents: torch.Tensor,
        class_labels: torch.Tensor | None = None,
        latent_type: str = "z",
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        noise_mode: str = "const",
        return_dict: bool = True,
    ) -> GeneratorOutput | tuple:
        """Images from latents of any space: z (B, z_dim), w (B, w_dim), w+ (B, num_ws, w_dim) or s (B, S).

        Truncation applies to z only. ValueError for an unknown `latent_type` or a wrong shape.
        """
        if latent_type not in ("z", "w", "w+", "s"):
            raise ValueError(f"unknown latent_type {latent_type!r}; choose from z, w, w+, s")
        s = latents
        if latent_type == "z":
            s = self.mapping(latents, class_labels)
            if truncation_psi != 1.0:
                s = self.truncate(s, truncation_psi, truncation_cutoff)
        if latent_type != "s":
            s = self.to_style(s)
        image = self.synthesis(s, noise_mode=noise_mode)
        return GeneratorOutput(sample=image, style_codes=s) if return_dict else (image, s)


# Saved pipelines then record the package, not this file, as the class's home (see hub.py).
StyleGAN2Generator.__module__ = "stylefusion_hf"
