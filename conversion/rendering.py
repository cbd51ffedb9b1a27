"""Rendering with little memory: the highest resolutions are computed tile by tile.

A 1024 px picture takes about a gigabyte on a CPU, three times the checkpoint. Convolutions are local, so a tile with a
border of a few pixels gives the same numbers.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch

from stylefusion_hf.models.layers import to_fast_layout
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator, SynthesisConv
from stylefusion_hf.models.stylegan3_plan import plan_signals
from stylefusion_hf.ops import upfirdn2d

WHOLE = 128  # longer side up to which features are computed without tiles
TILE, BORDER = 24, 6  # in pixels of that resolution; the receptive field beyond a tile is less than five of them
LARGEST = 2**27  # numbers: a tensor of half a gigabyte


def render_size(config: Any, tiled: bool = True) -> int:
    """Return the size of the largest tensor that `render` allocates for one picture, with or without tiles.

    A small file can describe features of any size, so check this before rendering.
    """
    base_size = config.get("base_size") or (4, 4)
    first = _whole_blocks(base_size, WHOLE)
    sizes = [config.img_channels * math.prod(side * config.resolution // base_size[0] for side in base_size)]
    if "margin_size" in config:  # a StyleGAN3, whose maps have a margin, and which has no tiles
        keys = signature(plan_signals).parameters
        plan = plan_signals(**{key: config[key] for key in keys})
        sides = [max(a, b) for a, b in zip(plan.sizes, [plan.sizes[0], *plan.sizes], strict=False)]
        maps = [width * (side + config.conv_kernel) ** 2 for width, side in zip(config.channels, sides, strict=True)]
        return max(sizes + maps)
    for k, channels in enumerate(config.channels):
        sides = [side * 2**k for side in base_size]
        if tiled and k >= first:
            sides = [min(side, (TILE + 2 * BORDER) * 2 ** (k - first + 1)) for side in sides]
        sizes.append(channels * math.prod(sides))
    return max(sizes)


def _whole_blocks(base_size: Sequence[int], whole: int) -> int:
    """Return the number of blocks that are computed without tiles: the first, and those of up to `whole` pixels."""
    return max(1, (whole // max(base_size)).bit_length())


@torch.inference_mode()
def render(
    generator: StyleGenerator, s: torch.Tensor, noise_mode: str = "const", whole: int = WHOLE, tile: int = TILE
) -> torch.Tensor:
    """Compute `generator.synthesis(s, noise_mode)`, (B, C, H, W), for `noise_mode` "const" or "none"."""
    small = max(generator.picture_size) <= whole
    if small or not isinstance(generator, StyleGAN2Generator):  # other generators need little memory
        return generator.synthesis(s, noise_mode=noise_mode)
    return torch.cat([_render_tiles(generator.synthesis, row, noise_mode, whole, tile) for row in s.split(1)])


def _render_tiles(net: Any, s: torch.Tensor, noise_mode: str, whole: int, tile: int) -> torch.Tensor:
    styles = s.split(net.sizes, dim=1)
    convs = list(zip(net.convs, styles, strict=False))
    rgbs = list(zip(net.rgbs, styles[len(net.convs) :], strict=True))
    blocks = [(convs[max(0, 2 * k - 1) : 2 * k + 1], rgb) for k, rgb in enumerate(rgbs)]

    # Low resolutions without tiles.
    first = _whole_blocks(net.const.shape[1:], whole)
    scale = 2 ** (len(blocks) - first)
    x, image = _run(net, blocks[:first], to_fast_layout(net.const[None]), None, noise_mode, None)

    # High resolutions, one tile with its border at a time.
    height, width = x.shape[2:]
    tall, wide = (min(side, tile + 2 * BORDER) for side in (height, width))
    result = torch.empty(1, image.shape[1], height * scale, width * scale)
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            # All windows have the same size, so that memory is reused from tile to tile.
            y, z = min(max(0, top - BORDER), height - tall), min(max(0, left - BORDER), width - wide)
            window = (slice(y, y + tall), slice(z, z + wide))
            part = _run(net, blocks[first:], x[:, :, *window], image[:, :, *window], noise_mode, (*window, height))[1]
            down, right = min(height, top + tile), min(width, left + tile)
            result[:, :, top * scale : down * scale, left * scale : right * scale] = part[
                :, :, (top - y) * scale : (down - y) * scale, (left - z) * scale : (right - z) * scale
            ]
    return result


def _run(net: Any, blocks: list, x: torch.Tensor, image: Any, noise_mode: str, window: Any) -> tuple[Any, Any]:
    """Apply blocks to features x and the picture so far. `window`: (rows, columns, height) if these are a tile."""
    for convs, (to_rgb, rgb_style) in blocks:
        for conv, style in convs:
            x = (conv if window is None else _part(conv, *window))(x, style, noise_mode)
        rgb = to_rgb(x, rgb_style)
        image = rgb if image is None else rgb + upfirdn2d(image, net.fir, up=2, padding=(2, 1, 2, 1), gain=4.0)
    return x, image


def _part(conv: SynthesisConv, rows: slice, columns: slice, height: int) -> SynthesisConv:
    """Return the convolution with noise cropped to a part of the picture; it shares the weights.

    height: of the picture that `rows` and `columns` are of.
    """
    if not conv.use_noise:
        return conv
    part, scale = copy.copy(conv), conv.size[0] // height
    part._buffers = dict(conv._buffers)
    rows, columns = (slice(edge.start * scale, edge.stop * scale) for edge in (rows, columns))
    part._buffers["noise_const"] = conv.get_buffer("noise_const")[rows, columns]
    return part
