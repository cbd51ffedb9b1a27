"""The layers of a StyleGAN3: their cutoffs, sampling rates, sizes and paddings (arXiv 2106.12423, section 4, app. C).

From layer to layer the cutoff frequency grows geometrically, and with it the sampling rate, a power of two. Maps
extend beyond the picture by a margin. Frequencies are in cycles per picture width, rates in samples per picture width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylefusion_hf.core.checks import check_count
from stylefusion_hf.ops.lowpass import design_lowpass

LARGEST = 2**14  # of the resolution
MARGIN = 2**12
LIMITS = {"conv_kernel": 31, "filter_size": 64, "lrelu_upsampling": 8}  # filters of 512 x 512 taps at most


@dataclass(frozen=True)
class SignalPlan:
    """Signals between the layers: entry 0 is that of the Fourier input and of layer 0, entry i that of layer i.

    Attributes:
        cutoffs: highest frequencies.
        half_widths: half the width of the filters' transition bands.
        rates: sampling rates.
        sizes: height and width of the maps, with their margins.
        heights: of the part of the maps that the picture shows.
    """

    cutoffs: list[float]
    half_widths: list[float]
    rates: list[int]
    sizes: list[int]
    heights: list[int]

    @property
    def details(self) -> list[int]:
        """The height, a power of two up to the picture's, of the smallest picture that holds the frequencies."""
        return [min(2 ** math.ceil(math.log2(max(2 * cutoff, 4)) - 1e-6), self.sizes[-1]) for cutoff in self.cutoffs]


def plan_signals(
    resolution: int,
    num_layers: int,
    num_critical: int,
    first_cutoff: float,
    first_stopband: float,
    last_stopband_rel: float,
    margin_size: int,
) -> SignalPlan:
    """Plan the signals of `num_layers` layers and the one that makes the picture.

    The last `num_critical` layers are critically sampled: their cutoff is half the sampling rate.

    Raises:
        ValueError: settings that give no network.
    """
    check_count("resolution", resolution, LARGEST, least=4)
    check_count("margin_size", margin_size, MARGIN, least=0)
    if not num_layers >= 1 or not 0 <= num_critical < num_layers:
        raise ValueError(
            f"a StyleGAN3 has at least 1 layer, and fewer critically sampled ones; got {num_layers=}, {num_critical=}"
        )
    last_cutoff = resolution / 2
    last_stopband = last_cutoff * last_stopband_rel
    if not 0 < first_cutoff <= last_cutoff or not 0.5 <= first_stopband <= last_stopband <= 2**20:
        raise ValueError(
            "frequencies must grow: cutoffs from first_cutoff to half the resolution, stopbands from first_stopband,"
            f" at least 0.5, to that times last_stopband_rel; got {first_cutoff=}, {first_stopband=},"
            f" {last_stopband_rel=} at {resolution} px"
        )
    # Geometric progressions of cutoffs and stopbands, then constant over the critically sampled layers.
    exponents = [min(i / (num_layers - num_critical), 1.0) for i in range(num_layers + 1)]
    cutoffs = [first_cutoff * (last_cutoff / first_cutoff) ** e for e in exponents]
    stopbands = [first_stopband * (last_stopband / first_stopband) ** e for e in exponents]
    rates = [2 ** math.ceil(math.log2(min(2 * f, resolution))) for f in stopbands]
    sizes = [rate + 2 * margin_size for rate in rates[:-2]] + [resolution] * 2
    if wrong := [i for i in range(num_layers + 1) if max(stopbands[i], rates[i] / 2) <= cutoffs[i]]:
        raise ValueError(f"layer {wrong[0]} has no transition band: first_stopband must lie above first_cutoff")
    return SignalPlan(
        cutoffs=cutoffs,
        half_widths=[max(f, rate / 2) - cutoff for f, rate, cutoff in zip(stopbands, rates, cutoffs, strict=True)],
        rates=rates,
        sizes=sizes,
        heights=[min(size, round(resolution * rate / rates[-1])) for rate, size in zip(rates, sizes, strict=True)],
    )


@dataclass(frozen=True)
class LayerPlan:
    """One synthesis layer: what it resamples, from the signal of `previous` to that of `index`.

    Attributes:
        kernel: size of the convolution.
        up, down: factors before and after the activation.
        up_taps, down_taps: lengths of the filters; 1 for no filter.
        radial: whether the filter after the activation is rotationally symmetric.
        padding: of the upsampled maps, before and after.
        temporary_rate: the sampling rate that the activation works at.
    """

    index: int
    previous: int
    kernel: int
    up: int
    down: int
    up_taps: int
    down_taps: int
    radial: bool
    padding: tuple[int, int]
    temporary_rate: int

    def up_filter(self, plan: SignalPlan) -> Tensor | None:
        """Design the filter before the activation, (N,); None for no filter."""
        if self.up_taps == 1:
            return None
        cutoff, width = plan.cutoffs[self.previous], 2 * plan.half_widths[self.previous]
        return design_lowpass(self.up_taps, cutoff, width, self.temporary_rate)

    def down_filter(self, plan: SignalPlan) -> Tensor | None:
        """Design the filter after the activation, (N,), or (N, N) if radial; None for no filter."""
        if self.down_taps == 1:
            return None
        cutoff, width = plan.cutoffs[self.index], 2 * plan.half_widths[self.index]
        return design_lowpass(self.down_taps, cutoff, width, self.temporary_rate, self.radial)


def plan_layers(
    plan: SignalPlan,
    num_critical: int,
    conv_kernel: int,
    filter_size: int,
    lrelu_upsampling: int,
    use_radial_filters: bool,
) -> list[LayerPlan]:
    """Plan all layers, the picture's last: it convolves with one pixel and neither filters nor upsamples.

    Raises:
        ValueError: a size of 0 or above its limit, or sampling rates that do not divide each other.
    """
    sizes = {"conv_kernel": conv_kernel, "filter_size": filter_size, "lrelu_upsampling": lrelu_upsampling}
    for name, size in sizes.items():
        check_count(name, size, LIMITS[name])
    last = len(plan.rates) - 1
    layers = []
    for index in range(last + 1):
        previous, to_picture = max(index - 1, 0), index == last
        before, after = plan.rates[previous], plan.rates[index]
        rate = max(before, after) * (1 if to_picture else lrelu_upsampling)
        up, down = rate // before, rate // after
        if up * before != rate or down * after != rate:
            raise ValueError(f"layer {index} cannot resample from {before} over {rate} to {after} by whole factors")
        up_taps = filter_size * up if up > 1 and not to_picture else 1
        down_taps = filter_size * down if down > 1 and not to_picture else 1
        kernel = 1 if to_picture else conv_kernel
        # Size before downsampling, less the size after upsampling, plus what the filters take off.
        total = (plan.sizes[index] - 1) * down + 1 - (plan.sizes[previous] + kernel - 1) * up + up_taps + down_taps - 2
        before_first = (total + up) // 2  # samples stay where they are in the picture (appendix C.3)
        layers.append(
            LayerPlan(
                index=index,
                previous=previous,
                kernel=kernel,
                up=up,
                down=down,
                up_taps=up_taps,
                down_taps=down_taps,
                radial=use_radial_filters and index < last - num_critical,
                padding=(before_first, total - before_first),
                temporary_rate=rate,
            )
        )
    return layers


def channel_counts(plan: SignalPlan, channel_base: int = 32768, channel_max: int = 512) -> list[int]:
    """Return the widths of the input and of all layers but the picture's: inverse to the cutoff, up to a maximum."""
    widths = [max(1, round(min(channel_base / 2 / cutoff, channel_max))) for cutoff in plan.cutoffs[:-1]]
    return [widths[0], *widths]


def check_widths(channels: Sequence[int], num_layers: int) -> list[int]:
    """Return the widths as a list; ValueError unless there is one for the input and for every layer, all positive."""
    channels = list(channels)
    if len(channels) != num_layers + 1 or not all(count > 0 for count in channels):
        raise ValueError(
            f"a StyleGAN3 of {num_layers} layers needs {num_layers + 1} positive channel counts, the input's first;"
            f" got {channels}"
        )
    return channels


def draw_frequencies(channels: int, bandwidth: float) -> Tensor:
    """Draw (channels, 2) frequencies of the Fourier input from a disc of radius `bandwidth`."""
    freqs = torch.randn(channels, 2)
    radii = freqs.square().sum(dim=1, keepdim=True).sqrt()
    return freqs / (radii * radii.square().exp().pow(0.25)) * bandwidth
