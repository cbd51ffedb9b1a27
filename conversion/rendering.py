"""Rendering with little memory: the highest resolutions are computed tile by tile.

A 1024 px picture takes about a gigabyte on a CPU, three times the checkpoint. Convolutions are local, so a tile with a
border of a few pixels gives the same numbers.
"""

from __future__ import annotations

import copy
from inspect import signature
from typing import Any

import torch

from stylefusion_hf.models.layers import to_fast_layout
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator, SynthesisConv
from stylefusion_hf.models.stylegan3_plan import plan_signals
from stylefusion_hf.ops import upfirdn2d

WHOLE = 128  # resolution up to which features are computed without tiles
TILE, BORDER = 24, 6  # in pixels of that resolution; the receptive field beyond a tile is less than five of them
LARGEST = 2**27  # numbers: a tensor of half a gigabyte


def render_size(config: Any, tiled: bool = True) -> int:
    """Return the size of the largest tensor that `render` allocates for one picture, with or without tiles.

    A small file can describe features of any size, so check this before rendering.
    """
    sizes = [config.img_channels * config.resolution**2]
    if "margin_size" in config:  # a StyleGAN3, whose maps have a margin, and which has no tiles
        keys = signature(plan_signals).parameters
        plan = plan_signals(**{key: config[key] for key in keys})
        sides = [max(a, b) for a, b in zip(plan.sizes, [plan.sizes[0], *plan.sizes], strict=False)]
        maps = [width * (side + config.conv_kernel) ** 2 for width, side in zip(config.channels, sides, strict=True)]
        return max(sizes + maps)
    for k, channels in enumerate(config.channels):
        resolution = 4 * 2**k
        side = resolution if resolution <= WHOLE or not tiled else (TILE + 2 * BORDER) * resolution // WHOLE
        sizes.append(channels * side**2)
    return max(sizes)


@torch.inference_mode()
def render(
    generator: StyleGenerator, s: torch.Tensor, noise_mode: str = "const", whole: int = WHOLE, tile: int = TILE
) -> torch.Tensor:
    """Compute `generator.synthesis(s, noise_mode)`, (B, C, H, W), for `noise_mode` "const" or "none"."""
    resolution = generator.config.resolution
    if resolution <= whole or not isinstance(generator, StyleGAN2Generator):  # other generators need little memory
        return generator.synthesis(s, noise_mode=noise_mode)
    return torch.cat([_render_tiles(generator.synthesis, row, noise_mode, whole, tile) for row in s.split(1)])


def _render_tiles(net: Any, s: torch.Tensor, noise_mode: str, whole: int, tile: int) -> torch.Tensor:
    styles = s.split(net.sizes, dim=1)
    convs = list(zip(net.convs, styles, strict=False))
    rgbs = list(zip(net.rgbs, styles[len(net.convs) :], strict=True))
    blocks = [(convs[max(0, 2 * k - 1) : 2 * k + 1], rgb) for k, rgb in enumerate(rgbs)]

    # Low resolutions without tiles.
    first = (whole // 4).bit_length()
    size, scale = 4 * 2 ** (first - 1), 2 ** (len(blocks) - first)
    x, image = _run(net, blocks[:first], to_fast_layout(net.const[None]), None, noise_mode, None)

    # High resolutions, one tile with its border at a time.
    span = min(size, tile + 2 * BORDER)
    result = torch.empty(1, image.shape[1], size * scale, size * scale)
    for top in range(0, size, tile):
        for left in range(0, size, tile):
            # All windows have the same size, so that memory is reused from tile to tile.
            y, z = (min(max(0, edge - BORDER), size - span) for edge in (top, left))
            window = (slice(y, y + span), slice(z, z + span))
            part = _run(net, blocks[first:], x[:, :, *window], image[:, :, *window], noise_mode, (*window, size))[1]
            down, right = (min(size, edge + tile) for edge in (top, left))
            result[:, :, top * scale : down * scale, left * scale : right * scale] = part[
                :, :, (top - y) * scale : (down - y) * scale, (left - z) * scale : (right - z) * scale
            ]
    return result


def _run(net: Any, blocks: list, x: torch.Tensor, image: Any, noise_mode: str, window: Any) -> tuple[Any, Any]:
    """Apply blocks to features x and the picture so far. `window` is (rows, columns, size) if these are a tile."""
    for convs, (to_rgb, rgb_style) in blocks:
        for conv, style in convs:
            x = (conv if window is None else _part(conv, *window))(x, style, noise_mode)
        rgb = to_rgb(x, rgb_style)
        image = rgb if image is None else rgb + upfirdn2d(image, net.fir, up=2, padding=(2, 1, 2, 1), gain=4.0)
    return x, image


def _part(conv: SynthesisConv, rows: slice, columns: slice, size: int) -> SynthesisConv:
    """Return the convolution with noise cropped to a part of the picture; it shares the weights."""
    if not conv.use_noise:
        return conv
    part, scale = copy.copy(conv), conv.resolution // size
    part._buffers = dict(conv._buffers)
    rows, columns = (slice(edge.start * scale, edge.stop * scale) for edge in (rows, columns))
    part._buffers["noise_const"] = conv.get_buffer("noise_const")[rows, columns]
    return part
