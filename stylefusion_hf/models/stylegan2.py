"""StyleGAN2's generator (Karras et al., arXiv 1912.04958) as a diffusers model.

z --mapping--> w --affine--> s --synthesis--> image. All affine layers form one matrix, so one product gives the packed
style code `s` of shape (B, S): the vectors of all convolutions (`conv0`, `conv1`, ...), then of all toRGB layers
(`rgb0`, ...). The architecture is "skip", as in every published StyleGAN2; outputs match NVIDIA's and rosinality's
code.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from stylefusion_hf.core.codes import NOISE_MODES
from stylefusion_hf.models.config_checks import checked_config, drop_empty, positive, register_to_config
from stylefusion_hf.models.layers import (
    MappingNetwork,
    channel_schedule,
    check_channels,
    register_fir,
    to_fast_layout,
)
from stylefusion_hf.models.style_generator import (
    GeneratorOutput,
    StyleGenerator,
    check_noise_mode,
    check_style,
    check_up_to,
    draw_noise,
)
from stylefusion_hf.ops import bias_act, modulated_conv2d, modulated_conv2d_act, upfirdn2d

__all__ = ["NOISE_MODES", "GeneratorOutput", "StyleGAN2Generator"]

# --- Synthesis layers ------------------------------------------------------------------------------------------------


class SynthesisConv(nn.Module):
    """Modulated 3 x 3 convolution, upsampling if `up` is 2, noise, bias, leaky ReLU: (B, in, ...) -> (B, out, ...)."""

    fir: torch.Tensor
    noise_const: torch.Tensor

    def __init__(self, in_channels, out_channels, size, up=1, use_noise=True, clamp=None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.use_noise, self.up, self.clamp, self.size = use_noise, up, clamp, size  # (height, width) of what it gives
        if use_noise:
            self.noise_strength = nn.Parameter(torch.zeros([]))
            self.register_buffer("noise_const", torch.randn(*size))
        register_fir(self)

    def forward(self, x, style, noise_mode, generator=None):
        noise = None
        if self.use_noise and noise_mode != "none":
            noise = self.noise_const.expand(1, 1, -1, -1)
            if noise_mode == "random":
                noise = draw_noise(self.size, x.shape[0], x, generator)
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
    """s (B, S) -> images (B, img_channels, H, W); `base_size` is the (height, width) of the constant."""

    fir: torch.Tensor

    def __init__(self, channels, img_channels, use_noise, conv_clamp, base_size=(4, 4)):
        super().__init__()
        self.const = nn.Parameter(torch.randn(channels[0], *base_size))
        self.convs, self.rgbs = nn.ModuleList(), nn.ModuleList()
        self.heights: list[int] = [base_size[0] * 2**k for k in range(len(channels))]
        for k, c in enumerate(channels):
            size = (self.heights[k], base_size[1] * 2**k)
            if k > 0:
                self.convs.append(SynthesisConv(channels[k - 1], c, size, 2, use_noise, conv_clamp))
            self.convs.append(SynthesisConv(c, c, size, 1, use_noise, conv_clamp))
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
        """Synthesize images from packed style codes.

        Args:
            s: style codes (B, S).
            noise_mode: `"const"` (the stored noise), `"random"` (drawn from `generator`) or `"none"`.
            return_features: also return {height: (B, C, height, width)}, the last feature map of each block.
            up_to: stop at this height; the images then have it and sum the toRGB layers so far.

        Returns:
            images (B, C, H, W), or (images, features).
        """
        check_noise_mode(noise_mode)
        check_style(s, sum(self.sizes))
        up_to = check_up_to(up_to, self.heights)
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
            features[self.heights[k]] = x
            if self.heights[k] == up_to:
                break
        assert image is not None  # every generator has a block
        image = image.contiguous()  # features may be channels-last; callers get images in the default layout
        return (image, features) if return_features else image

    def styled_inputs(self, s: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the input of each layer, (B or 1, C, h, w), which its style vector scales, in the order of `sizes`."""
        layers, inputs = [*self.convs, *self.rgbs], {}

        def keep(number: int):
            return lambda _, args: inputs.update({number: args[0]})

        hooks = [layer.register_forward_pre_hook(keep(number)) for number, layer in enumerate(layers)]
        try:
            self(s, up_to=None)
        finally:
            for hook in hooks:
                hook.remove()
        for number in range(len(layers)):
            yield inputs.pop(number)


# --- The model -------------------------------------------------------------------------------------------------------


class StyleGAN2Generator(StyleGenerator):
    """StyleGAN2 generator of any power-of-two resolution, channel schedule, mapping depth and label size.

    Args:
        resolution: height of the images, and their width unless `base_size` says otherwise; a power of two from 4.
        channels: one count per block, from 4 x 4 up; None for NVIDIA's schedule with `channel_base` 32768, at most
            512.
        z_dim, w_dim: sizes of the latent spaces.
        label_dim: size of the class-label vector; 0 for an unconditional model.
        mapping_layers, mapping_width: depth of the mapping MLP and width of its hidden layers (None: `w_dim`).
        img_channels: 3 for RGB.
        use_noise: whether convolutions have noise inputs; flat artwork is better without.
        conv_clamp: clamp on activations, for half precision (NVIDIA: 256); None for no clamp.
        truncation_psi: the model's default truncation, used by pipelines.
        label_embed_dim: width of the embedding of labels; None for `w_dim`.
        base_size: (height, width) of the smallest features, which every block doubles. None for 4 x 4, and pictures
            that are squares; [4, 6] with a resolution of 32 makes pictures of 32 x 48 pixels, height x width. The
            resolution is then `base_size[0]` times a power of two. Only configs of such models have this entry.

    Raises:
        ValueError: the resolution is not a power of two (times the base's height), or the channels do not fit it.

    Example:
        >>> from stylefusion_hf import StyleGAN2Generator
        >>> wide = StyleGAN2Generator(resolution=32, channels=[8, 8, 8, 8], base_size=[4, 6], z_dim=8, w_dim=8)
        >>> wide.picture_size, wide.picture_sizes
        ((32, 48), [4, 8, 16, 32])
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
        label_embed_dim: int | None = None,
        base_size: Sequence[int] | None = None,
    ):
        super().__init__()
        base_size = None if list(base_size or ()) == [4, 4] else base_size
        schedule = channel_schedule(resolution, base_size=base_size) if channels is None else channels
        channels = check_channels(schedule, resolution, base_size)
        self.register_to_config(channels=channels, base_size=base_size)
        drop_empty(self, "base_size")  # so that configs of squares stay as they were
        positive(z_dim=z_dim, img_channels=img_channels, conv_clamp=conv_clamp, mapping_width=mapping_width)
        positive(label_embed_dim=label_embed_dim)
        self.mapping = MappingNetwork(z_dim, label_dim, w_dim, mapping_layers, mapping_width, label_embed_dim)
        self.synthesis = SynthesisNetwork(channels, img_channels, use_noise, conv_clamp, self.base_size)
        self._add_affine(w_dim, gain=1 / math.sqrt(w_dim))

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
        return [self.synthesis.heights[(i + 1) // 2] for i in range(len(self.synthesis.convs))]

    @property
    def rgb_resolutions(self) -> list[int]:
        return list(self.synthesis.heights)

    # Row i of w+ drives convolution i, row 2k + 1 drives toRGB k (as in the authors' and NVIDIA's synthesis).

    @property
    def _conv_rows(self) -> list[int]:
        return list(range(len(self.synthesis.convs)))

    @property
    def _rgb_rows(self) -> list[int]:
        return [2 * k + 1 for k in range(len(self.synthesis.rgbs))]

    @property
    def num_ws(self) -> int:
        """Rows of w+."""
        return len(self.synthesis.convs) + 1

    @property
    def picture_sizes(self) -> list[int]:
        return self.rgb_resolutions


# Saved pipelines then record the package, not this module, as the home of the class.
StyleGAN2Generator.__module__ = "stylefusion_hf"
