"""A generator's picture in little memory: the last resolutions are rendered tile by tile.

A 1024 px picture needs about a gigabyte at once on a CPU, three times the checkpoint. Convolutions are local: a tile
with a border of a few pixels gives the same numbers.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from stylefusion_hf.models.layers import to_fast_layout
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator, SynthesisConv
from stylefusion_hf.ops import upfirdn2d

WHOLE = 128  # resolution up to which features are computed whole
TILE, BORDER = 24, 6  # in pixels of that resolution; what crosses a tile's edge reaches less than five of them
LARGEST = 2**27  # numbers: a tensor of half a gigabyte


def render_size(config: Any, tiled: bool = True) -> int:
    """Numbers of the largest tensor that `render` needs for one picture, in tiles or whole.

    A small file can describe features of any size: it must be known before they are made.
    """
    sizes = [config.img_channels * config.resolution**2]
    for k, channels in enumerate(config.channels):
        resolution = 4 * 2**k
        side = resolution if resolution <= WHOLE or not tiled else (TILE + 2 * BORDER) * resolution // WHOLE
        sizes.append(channels * side**2)
    return max(sizes)


@torch.inference_mode()
def render(
    generator: StyleGenerator, s: torch.Tensor, noise_mode: str = "const", whole: int = WHOLE, tile: int = TILE
) -> torch.Tensor:
    """What `generator.synthesis(s, noise_mode)` gives, (B, C, H, W), for `noise_mode` "const" or "none"."""
    resolution = generator.config.resolution
    if resolution <= whole or not isinstance(generator, StyleGAN2Generator):  # others need little memory as they are
        return generator.synthesis(s, noise_mode=noise_mode)
    return torch.cat([_tiled(generator.synthesis, row, noise_mode, whole, tile) for row in s.split(1)])


def _tiled(net: Any, s: torch.Tensor, noise_mode: str, whole: int, tile: int) -> torch.Tensor:
    styles = s.split(net.sizes, dim=1)
    convs = list(zip(net.convs, styles, strict=False))
    rgbs = list(zip(net.rgbs, styles[len(net.convs) :], strict=True))
    blocks = [(convs[max(0, 2 * k - 1) : 2 * k + 1], rgb) for k, rgb in enumerate(rgbs)]
    first = (whole // 4).bit_length()
    size, scale = 4 * 2 ** (first - 1), 2 ** (len(blocks) - first)
    x, image = _run(net, blocks[:first], to_fast_layout(net.const[None]), None, noise_mode, None)
    span = min(size, tile + 2 * BORDER)
    result = torch.empty(1, image.shape[1], size * scale, size * scale)
    for top in range(0, size, tile):
        for left in range(0, size, tile):
            # All windows have one size, so that memory is reused from tile to tile.
            y, z = (min(max(0, edge - BORDER), size - span) for edge in (top, left))
            window = (slice(y, y + span), slice(z, z + span))
            part = _run(net, blocks[first:], x[:, :, *window], image[:, :, *window], noise_mode, (*window, size))[1]
            down, right = (min(size, edge + tile) for edge in (top, left))
            result[:, :, top * scale : down * scale, left * scale : right * scale] = part[
                :, :, (top - y) * scale : (down - y) * scale, (left - z) * scale : (right - z) * scale
            ]
    return result


def _run(net: Any, blocks: list, x: torch.Tensor, image: Any, noise_mode: str, window: Any) -> tuple[Any, Any]:
    """Blocks on features x and the picture so far; `window` = (rows, columns, size) if these are a part."""
    for convs, (to_rgb, rgb_style) in blocks:
        for conv, style in convs:
            x = (conv if window is None else _part(conv, *window))(x, style, noise_mode)
        rgb = to_rgb(x, rgb_style)
        image = rgb if image is None else rgb + upfirdn2d(image, net.fir, up=2, padding=(2, 1, 2, 1), gain=4.0)
    return x, image


def _part(conv: SynthesisConv, rows: slice, columns: slice, size: int) -> SynthesisConv:
    """The convolution with the noise of a part of the picture; it shares the weights."""
    if not conv.use_noise:
        return conv
    part, scale = copy.copy(conv), conv.resolution // size
    part._buffers = dict(conv._buffers)
    rows, columns = (slice(edge.start * scale, edge.stop * scale) for edge in (rows, columns))
    part._buffers["noise_const"] = conv.get_buffer("noise_const")[rows, columns]
    return part
