"""The inverse Haar wavelet transform, which doubles the resolution of feature maps.

The reference is one transposed convolution. The fast path is the native operator on CPUs if enabled (see
`native/__init__.py`), else additions; both write channels-last results.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stylefusion_hf.ops import native

# Rows: the four bands. Columns: the four pixels of a 2 x 2 cell, row by row. The matrix is orthonormal.
HAAR = ((0.5, 0.5, 0.5, 0.5), (0.5, 0.5, -0.5, -0.5), (0.5, -0.5, 0.5, -0.5), (0.5, -0.5, -0.5, 0.5))


def is_native(x: Tensor) -> bool:
    """Return whether to use MobileStyleGAN's native operators on x: there are none for CUDA."""
    return x.device.type == "cpu" and native.covers(x)


def is_eager() -> bool:
    """Return whether nothing is recorded: no gradients, and no graph, which would keep what depends on the batch."""
    return not torch.is_grad_enabled() and not torch.compiler.is_compiling()


def inverse_haar_ref(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """Compute `inverse_haar` by a transposed convolution of stride 2."""
    channels = x.shape[1] // 4
    if scale is not None:
        x = x * scale[:, :, None, None].to(x.dtype)
    low, details = x[:, :channels, None], x[:, channels:].unflatten(1, (channels, 3))
    bands = torch.cat([low, details], dim=2).flatten(1, 2)  # (B, 4 C, H, W), the four bands of a channel adjacent
    kernel = torch.tensor(HAAR, dtype=x.dtype, device=x.device).view(1, 4, 2, 2).repeat(channels, 1, 1, 1)
    return torch.nn.functional.conv_transpose2d(bands, kernel.view(-1, 1, 2, 2), stride=2, groups=channels)


def inverse_haar(x: Tensor, scale: Tensor | None = None) -> Tensor:
    """Transform (B, 4 C, H, W) to (B, C, 2 H, 2 W), channels-last.

    Args:
        x: the first C channels are the low-pass band, followed by three detail bands per channel: vertical, horizontal
            and diagonal differences, in MobileStyleGAN's order, reshape(B, C, 3, H, W).
        scale: (B, 4 C), factors for the channels of `x`.
    """
    if is_native(x):
        return torch.ops.stylefusion.inverse_haar(x, scale)
    batch, channels, height, width = x.shape[0], x.shape[1] // 4, x.shape[2], x.shape[3]
    x = x * (0.5 if scale is None else scale[:, :, None, None].to(x.dtype) * 0.5)

    # Sums and differences of the bands, in channels-last order.
    x = x.permute(0, 2, 3, 1)
    low, details = x[..., :channels], x[..., channels:].unflatten(3, (channels, 3))
    vertical, horizontal, diagonal = details.unbind(-1)
    above, below = low + vertical, low - vertical
    slope_above, slope_below = horizontal + diagonal, horizontal - diagonal

    # Interleave the four pixels of each 2 x 2 cell.
    if is_eager():  # write into the result directly, which saves a pass over memory
        y = x.new_empty(batch, height, 2, width, 2, channels)
        torch.add(above, slope_above, out=y[:, :, 0, :, 0])
        torch.sub(above, slope_above, out=y[:, :, 0, :, 1])
        torch.add(below, slope_below, out=y[:, :, 1, :, 0])
        torch.sub(below, slope_below, out=y[:, :, 1, :, 1])
    else:
        rows = [
            torch.stack([above + slope_above, above - slope_above], 3),
            torch.stack([below + slope_below, below - slope_below], 3),
        ]
        y = torch.stack(rows, 2)
    return y.reshape(batch, 2 * height, 2 * width, channels).permute(0, 3, 1, 2)
