"""StyleGAN3's synthesis network: style codes to features and pictures, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from stylefusion_hf.models.layers import chunk_size
from stylefusion_hf.models.preview import PreviewSynthesis, Rendered, join_parts
from stylefusion_hf.models.style_generator import check_noise_mode, check_style
from stylefusion_hf.models.stylegan3_layers import AliasFreeLayer, FourierInput
from stylefusion_hf.models.stylegan3_plan import LayerPlan, SignalPlan
from stylefusion_hf.ops.wavelets import is_eager

BATCH = 16  # pictures at once without gradients, up to 128 px


class AliasFreeSynthesis(PreviewSynthesis):
    """s (B, S) -> images (B, img_channels, resolution, resolution).

    Attributes:
        sizes: widths of the style vectors: the input's, of 4, then those of all layers.
        heights: for each layer, the height of the part of its maps that the picture shows.
        details: for each layer, the height of the smallest picture that holds its frequencies.
        channels: {height: channels} of the features, the picture's height last.
    """

    layers: Any  # a ModuleList of `AliasFreeLayer`, the picture's last

    def __init__(
        self,
        plan: SignalPlan,
        layers: Sequence[LayerPlan],
        channels: Sequence[int],
        img_channels: int,
        conv_clamp: float | None,
        output_scale: float,
        previews: Sequence[int],
    ):
        super().__init__()
        self.input = FourierInput(channels[0], plan.sizes[0], plan.rates[0], plan.cutoffs[0])
        widths = zip(channels, [*channels[1:], img_channels], layers, strict=True)
        self.layers = nn.ModuleList(AliasFreeLayer(i, o, layer, plan, conv_clamp) for i, o, layer in widths)
        self.previews = nn.ModuleDict()
        self.img_channels, self.output_scale = img_channels, output_scale
        self.resolution, self.heights = plan.sizes[-1], plan.heights
        self.details = plan.details
        self.channels = dict(zip(plan.heights[:-1], channels[1:], strict=True))
        self.resolutions = [height for height in self.channels if height < self.resolution]
        self.sizes: list[int] = [4, *channels]
        for resolution in previews:
            self.add_preview(resolution)

    def forward(
        self,
        s: Tensor,
        noise_mode: str = "const",
        return_features: bool = False,
        generator: torch.Generator | None = None,
        up_to: int | None = None,
        impl: str = "fast",
    ):
        """Synthesize images from packed style codes.

        Args:
            s: style codes (B, S).
            noise_mode: one of `NOISE_MODES`; there are no noise inputs, so all give the same.
            return_features: also return {height: (B, C, height, height)}, the last feature map of each sampling rate,
                without its margin.
            generator: not used, as there is no noise.
            up_to: stop at this resolution. The images are then those of its preview head, of this size; without a
                head there are only features: (None, features).
            impl: `"fast"` or `"ref"`, of the layers.

        Returns:
            images (B, C, H, W), or (images, features).
        """
        check_noise_mode(noise_mode)
        check_style(s, sum(self.sizes))
        size = self.check_size(up_to, return_features)
        frugal = is_eager() and s.device.type == "cpu" and s.shape[0] > 0
        parts = s.split(chunk_size(self.resolution, BATCH)) if frugal else (s,)
        done = [self._render(part, return_features, size, impl) for part in parts]
        image, features = join_parts(done)
        return (image, features) if return_features else image

    def _render(self, s: Tensor, keep: bool, size: int, impl: str) -> Rendered:
        """Return the picture of `size` px, and the features by height if they are to be kept."""
        input_style, *styles = s.split(self.sizes, dim=1)
        x = self.input(input_style)
        features = {}
        last = len(self.layers) - 1
        for i, (layer, style) in enumerate(zip(self.layers, styles, strict=True)):
            if i == last or self.heights[i] > size:
                break
            x = layer(x, style, impl)
            if keep and (i + 1 == last or self.heights[i + 1] != self.heights[i]):
                features[self.heights[i]] = crop_margin(x, self.heights[i])
        if size == self.resolution:
            return (self.layers[last](x, styles[last], impl) * self.output_scale).contiguous(), features
        if str(size) not in self.previews:
            return None, features
        return self.previews[str(size)](crop_margin(x, size)), features


def crop_margin(x: Tensor, height: int) -> Tensor:
    """Crop maps (B, C, H, W) to their middle (B, C, height, height), which the picture shows."""
    margin = (x.shape[-1] - height) // 2
    return x[:, :, margin : margin + height, margin : margin + height]
