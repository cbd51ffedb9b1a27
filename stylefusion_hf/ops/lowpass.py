"""Low-pass filters of StyleGAN3: Kaiser-windowed sinc and jinc (Karras et al., arXiv 2106.12423, appendix C.1).

Designed in double precision. The separable ones equal `scipy.signal.firwin(taps, cutoff, width=width, fs=rate)`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def design_lowpass(taps: int, cutoff: float, width: float, rate: float, radial: bool = False) -> Tensor:
    """Return a filter of unit gain at frequency zero, float32: (taps,), or (taps, taps) if radial.

    Args:
        taps: length, at least 2.
        cutoff: of the pass band, between 0 and half the rate.
        width: of the transition band, in the same unit.
        rate: sampling rate.
        radial: make it rotationally symmetric, by a jinc instead of a sinc; it is then not separable.

    Raises:
        ValueError: a cutoff outside that range, or fewer than 2 taps.
    """
    if taps < 2 or not 0 < cutoff < rate / 2:
        raise ValueError(
            f"a low-pass filter has at least 2 taps and a cutoff between 0 and half the sampling rate; got {taps}"
            f" taps, a cutoff of {cutoff:g} and a rate of {rate:g}"
        )
    window = _kaiser_window(taps, width / (rate / 2))
    offsets = torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2
    if not radial:
        f = torch.sinc(2 * cutoff / rate * offsets) * window
    else:
        x = offsets / rate
        angle = math.pi * torch.hypot(x[:, None], x[None, :])
        # At the middle of an odd filter, the quotient has the limit `cutoff`.
        jinc = torch.special.bessel_j1(2 * cutoff * angle) / angle.clamp_min(1e-300)
        f = torch.where(angle == 0, cutoff, jinc) * torch.outer(window, window)
    return (f / f.sum()).float()


def _kaiser_window(taps: int, width: float) -> Tensor:
    """Return the Kaiser window (taps,), float64, for a transition band of `width`, relative to half the rate."""
    attenuation = 2.285 * (taps - 1) * math.pi * width + 7.95  # in dB: Kaiser's formulas
    if attenuation > 50:
        beta = 0.1102 * (attenuation - 8.7)
    elif attenuation > 21:
        beta = 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    else:
        beta = 0.0
    x = torch.linspace(-1, 1, taps, dtype=torch.float64)
    scale = torch.special.i0(torch.tensor(beta, dtype=torch.float64))
    return torch.special.i0(beta * (1 - x.square()).clamp_min(0).sqrt()) / scale
