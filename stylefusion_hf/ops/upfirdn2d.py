"""Resampling with a small low-pass filter (FIR), which StyleGAN2 applies at every change of resolution.

`upfirdn2d` has the same contract as NVIDIA's operator (Karras et al., arXiv 1912.04958;
`torch_utils/ops/upfirdn2d.py` in stylegan3): insert zeros, pad, filter, keep every n-th pixel. `impl="fast"` does not
materialize the inserted zeros: it uses the native operator if enabled (see `native/__init__.py`), else PyTorch's
convolutions, transposed and grouped for upsampling, strided for downsampling. `impl="ref"` follows the definition.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from stylefusion_hf.ops import native

IMPLEMENTATIONS = ("fast", "ref")


def setup_filter(taps) -> torch.Tensor:
    """Return normalized one-dimensional float32 taps, (N,). The 2-D filter is their outer product."""
    f = torch.as_tensor(taps, dtype=torch.float32)
    if f.ndim != 1 or f.numel() == 0 or float(f.sum()) == 0.0:
        raise ValueError(
            f"a resampling filter is a flat list of taps with a non-zero sum, such as [1, 3, 3, 1]; got {taps!r}"
        )
    return f / f.sum()


def check_impl(impl: str) -> None:
    if impl not in IMPLEMENTATIONS:
        raise ValueError(f"unknown implementation {impl!r}; choose from {', '.join(IMPLEMENTATIONS)}")


def check_fir(x: torch.Tensor, f: torch.Tensor, up: int, down: int, padding: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the result of [`upfirdn2d`], or raise ValueError."""
    if x.ndim != 4 or f.ndim != 1:
        raise ValueError(
            f"expected images (B, C, H, W) and taps (N,); got shapes {tuple(x.shape)} and {tuple(f.shape)}"
        )
    if up < 1 or down < 1 or len(padding) != 4:
        raise ValueError(
            f"expected up and down of at least 1 and a padding of 4 numbers; got {up=}, {down=}, {padding=}"
        )
    left, right, top, bottom = padding
    n, h, w = f.shape[0], x.shape[2] * up + top + bottom, x.shape[3] * up + left + right
    if n > h or n > w:
        raise ValueError(f"{n} taps do not fit on images {tuple(x.shape)} with {up=} and padding {tuple(padding)}")
    return x.shape[0], x.shape[1], (h - n) // down + 1, (w - n) // down + 1


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor,
    up: int = 1,
    down: int = 1,
    padding: tuple[int, int, int, int] = (0, 0, 0, 0),
    gain: float = 1.0,
    impl: str = "fast",
) -> torch.Tensor:
    """Upsample by zero insertion, pad, convolve with a separable filter, downsample.

    Args:
        x: images or features, (B, C, H, W).
        f: one-dimensional taps, (N,), see [`setup_filter`]; applied along both axes.
        up, down: integer factors, >= 1.
        padding: pixels added (or, if negative, cropped) at left, right, top, bottom of the upsampled image.
        gain: scales the result; `up * up` preserves brightness when upsampling.
        impl: `"fast"` or `"ref"`; the results agree within float tolerance.

    Returns:
        (B, C, (H * up + top + bottom - N) // down + 1, likewise for W).

    Raises:
        ValueError: invalid shapes or factors, or fewer padded pixels than taps.
    """
    check_impl(impl)
    check_fir(x, f, up, down, padding)
    if impl == "fast" and not f.requires_grad and native.covers(x):
        return native.upfirdn2d(x, f.to(x.device), up, down, padding, float(gain))
    # Each axis gets the square root of the gain. F.conv2d correlates, so flip the taps for a true convolution.
    taps = (f.flip(0) * gain**0.5).to(dtype=x.dtype, device=x.device)
    if impl == "ref":
        return _filter_reference(x, taps, up, down, padding)
    if up > 1 and down == 1:
        return _upsample(x, taps, up, padding)
    left, right, top, bottom = padding
    if up > 1 or min(padding) < 0 or left != right or top != bottom:
        x, top, left = F.pad(_insert_zeros(x, up), padding), 0, 0
    return _separable(x, taps, down, top, left)


def _insert_zeros(x: torch.Tensor, up: int) -> torch.Tensor:
    if up == 1:
        return x
    b, c, h, w = x.shape
    x = F.pad(x.reshape(b, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1))
    return x.reshape(b, c, h * up, w * up)


def _filter_reference(x: torch.Tensor, taps: torch.Tensor, up: int, down: int, padding: tuple) -> torch.Tensor:
    x = F.pad(_insert_zeros(x, up), padding)
    kernel = torch.outer(taps, taps).expand(x.shape[1], 1, -1, -1)
    return F.conv2d(x, kernel, groups=x.shape[1])[:, :, ::down, ::down]


def _separable(x: torch.Tensor, taps: torch.Tensor, down: int, pad_y: int, pad_x: int) -> torch.Tensor:
    """Filter in two one-dimensional depthwise passes: N + N instead of N * N multiplications per pixel."""
    c, n = x.shape[1], taps.numel()
    x = F.conv2d(x, taps.view(1, 1, n, 1).expand(c, 1, n, 1), stride=(down, 1), padding=(pad_y, 0), groups=c)
    return F.conv2d(x, taps.view(1, 1, 1, n).expand(c, 1, 1, n), stride=(1, down), padding=(0, pad_x), groups=c)


def _upsample(x: torch.Tensor, taps: torch.Tensor, up: int, padding: tuple) -> torch.Tensor:
    """Insert zeros and filter in one transposed convolution, then crop to `padding`."""
    c, n = x.shape[1], taps.numel()
    left, right, top, bottom = padding
    kernel = torch.outer(taps.flip(0), taps.flip(0)).expand(c, 1, n, n)
    y = F.conv_transpose2d(x, kernel, stride=up, groups=c)  # pads by n - 1 before and n - up after
    front, back = n - 1, n - up
    return F.pad(y, (left - front, right - back, top - front, bottom - back))
