"""StyleGAN3 step by step in plain torch and scipy, as its authors describe it, independent of the package.

Weights are drawn, and tensors and attributes have the names under which NVIDIA's code stores them.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import signal, special
from torch import Tensor


def lowpass(taps: int, cutoff: float, width: float, rate: float, radial: bool = False) -> Tensor | None:
    if taps == 1:
        return None
    if not radial:
        return torch.as_tensor(signal.firwin(taps, cutoff, width=width, fs=rate), dtype=torch.float32)
    x = (np.arange(taps) - (taps - 1) / 2) / rate
    r = np.hypot(*np.meshgrid(x, x))
    window = np.kaiser(taps, signal.kaiser_beta(signal.kaiser_atten(taps, width / (rate / 2))))
    f = special.j1(2 * cutoff * np.pi * r) / (np.pi * r) * np.outer(window, window)
    return torch.as_tensor(f / f.sum(), dtype=torch.float32)


def resample(
    x: Tensor, f: Tensor | None, up: int = 1, down: int = 1, padding: Any = (0, 0), gain: float = 1
) -> Tensor:
    """Insert zeros, pad or crop, filter, keep every n-th pixel."""
    batch, channels, height, width = x.shape
    stuffed = x.new_zeros(batch, channels, height * up, width * up)
    stuffed[:, :, ::up, ::up] = x
    f = torch.ones(1, 1) if f is None else torch.outer(f, f) if f.ndim == 1 else f
    stuffed = F.pad(stuffed, (*padding, *padding))
    return F.conv2d(stuffed, f.flip(0, 1).expand(channels, 1, -1, -1) * gain, groups=channels)[:, :, ::down, ::down]


def normal(x: Tensor) -> Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()


class PlainStyleGAN3:
    """A network with drawn weights; the arguments are those of NVIDIA's `Generator`, by their names.

    Attributes:
        tensors: {name: tensor}, as in `G_ema.state_dict()`.
        attributes: {module: {name: value}}, what the modules store besides.
    """

    def __init__(self, seed: int = 0, **changes: Any):
        settings: dict[str, Any] = {
            "z_dim": 12, "c_dim": 0, "w_dim": 16, "img_resolution": 32, "img_channels": 3, "map_layers": 2,
            "channel_base": 512, "channel_max": 16, "num_layers": 6, "num_critical": 2, "first_cutoff": 2,
            "first_stopband": 2**2.1, "last_stopband_rel": 2**0.3, "margin_size": 10, "output_scale": 0.25,
            "conv_kernel": 3, "filter_size": 6, "lrelu_upsampling": 2, "use_radial_filters": False, "conv_clamp": 256,
        }  # fmt: skip
        self.c = c = settings | changes
        self.draw = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}
        self.attributes: dict[str, dict[str, Any]] = {"": {"z_dim": c["z_dim"]}}
        self._mapping()

        # The signals of all layers.
        n, last = c["num_layers"], c["img_resolution"] / 2
        stop = last * c["last_stopband_rel"]
        exponents = np.minimum(np.arange(n + 1) / (n - c["num_critical"]), 1)
        cutoffs = c["first_cutoff"] * (last / c["first_cutoff"]) ** exponents
        stopbands = c["first_stopband"] * (stop / c["first_stopband"]) ** exponents
        rates = np.exp2(np.ceil(np.log2(np.minimum(stopbands * 2, c["img_resolution"]))))
        half_widths = np.maximum(stopbands, rates / 2) - cutoffs
        sizes = rates + 2 * c["margin_size"]
        sizes[-2:] = c["img_resolution"]
        channels = np.rint(np.minimum((c["channel_base"] / 2) / cutoffs, c["channel_max"]))
        channels[-1] = c["img_channels"]

        names = ("num_layers", "num_critical", "margin_size", "output_scale", "img_resolution")
        self.attributes["synthesis"] = {name: c[name] for name in names}
        self.attributes["synthesis.input"] = {"sampling_rate": rates[0].item(), "bandwidth": cutoffs[0].item()}
        self.size, self.rate, self.bandwidth = int(sizes[0]), rates[0], cutoffs[0]
        width = int(channels[0])
        self._add("synthesis.input.weight", width, width)
        self._add("synthesis.input.freqs", width, 2, scale=self.bandwidth / 2)
        self._add("synthesis.input.phases", width, scale=0.3)
        self.tensors["synthesis.input.transform"] = torch.eye(3)
        self._affine("synthesis.input", 4)
        self.layers = []
        for i in range(n + 1):
            before = max(i - 1, 0)
            self._layer(i, before, [cutoffs, half_widths, rates, sizes, channels])

    def _add(self, name: str, *shape: int, scale: float = 1.0, offset: float = 0.0) -> None:
        self.tensors[name] = torch.randn(shape, generator=self.draw) * scale + offset

    def _affine(self, name: str, width: int) -> None:
        self._add(f"{name}.affine.weight", width, self.c["w_dim"])
        self._add(f"{name}.affine.bias", width, offset=0.7)

    def _mapping(self) -> None:
        c = self.c
        inputs = c["z_dim"] + (c["w_dim"] if c["c_dim"] else 0)
        for i in range(c["map_layers"]):
            self._add(f"mapping.fc{i}.weight", c["w_dim"], inputs if i == 0 else c["w_dim"], scale=100)
            self._add(f"mapping.fc{i}.bias", c["w_dim"], scale=10)
        if c["c_dim"]:
            self._add("mapping.embed.weight", c["w_dim"], c["c_dim"])
            self._add("mapping.embed.bias", c["w_dim"])
        self._add("mapping.w_avg", c["w_dim"])

    def _layer(self, i: int, before: int, signals: list[np.ndarray]) -> None:
        c, rgb = self.c, i == self.c["num_layers"]
        (cut_in, cut), (wide_in, wide), (rate_in, rate), (size_in, size), (in_channels, out) = (
            (x[before].item(), x[i].item()) for x in signals
        )
        in_channels, out = int(in_channels), int(out)
        temporary = max(rate_in, rate) * (1 if rgb else c["lrelu_upsampling"])
        up, down = round(temporary / rate_in), round(temporary / rate)
        up_taps = c["filter_size"] * up if up > 1 and not rgb else 1
        down_taps = c["filter_size"] * down if down > 1 and not rgb else 1
        radial = c["use_radial_filters"] and i < c["num_layers"] - c["num_critical"]
        kernel = 1 if rgb else c["conv_kernel"]
        total = (size - 1) * down + 1 - (size_in + kernel - 1) * up + up_taps + down_taps - 2
        low = int((total + up) // 2)
        padding = [low, int(total) - low]

        name = f"synthesis.L{i}_{int(size)}_{out}"
        self._add(f"{name}.weight", out, in_channels, kernel, kernel)
        self._add(f"{name}.bias", out, scale=0.3)
        self.tensors[f"{name}.magnitude_ema"] = torch.rand([], generator=self.draw) + 0.5
        for part, f in (
            ("up", lowpass(up_taps, cut_in, 2 * wide_in, temporary)),
            ("down", lowpass(down_taps, cut, 2 * wide, temporary, radial)),
        ):
            if f is not None:
                self.tensors[f"{name}.{part}_filter"] = f
        self._affine(name, in_channels)
        self.attributes[name] = {
            "in_cutoff": cut_in, "out_cutoff": cut, "in_half_width": wide_in, "out_half_width": wide,
            "in_sampling_rate": int(rate_in), "out_sampling_rate": int(rate), "tmp_sampling_rate": int(temporary),
            "conv_kernel": kernel, "conv_clamp": c["conv_clamp"], "up_factor": up, "down_factor": down,
            "up_taps": up_taps, "down_taps": down_taps, "down_radial": radial, "padding": [*padding, *padding],
            "is_torgb": rgb, "use_fp16": True, "is_critically_sampled": i >= c["num_layers"] - c["num_critical"],
        }  # fmt: skip
        self.layers.append((name, up, down, padding, rgb))

    # --- Running it --------------------------------------------------------------------------------------------------

    def affine(self, name: str, w: Tensor) -> Tensor:
        weight, bias = self.tensors[f"{name}.affine.weight"], self.tensors[f"{name}.affine.bias"]
        return w @ (weight / math.sqrt(weight.shape[1])).T + bias

    def mapping(self, z: Tensor, labels: Tensor | None = None) -> Tensor:
        t, x = self.tensors, normal(z)
        if labels is not None:
            embedded = labels @ (t["mapping.embed.weight"] / math.sqrt(labels.shape[1])).T + t["mapping.embed.bias"]
            x = torch.cat([x, normal(embedded)], 1)
        for i in range(self.c["map_layers"]):
            weight = t[f"mapping.fc{i}.weight"] * 0.01 / math.sqrt(x.shape[1])
            x = F.leaky_relu(x @ weight.T + t[f"mapping.fc{i}.bias"] * 0.01, 0.2) * math.sqrt(2)
        return x

    def input(self, w: Tensor) -> Tensor:
        t, prefix = self.tensors, "synthesis.input."
        motion = self.affine("synthesis.input", w)
        motion = motion / motion[:, :2].norm(dim=1, keepdim=True)
        turn, shift = torch.eye(3).repeat(len(w), 1, 1), torch.eye(3).repeat(len(w), 1, 1)
        turn[:, 0, 0], turn[:, 0, 1], turn[:, 1, 0], turn[:, 1, 1] = (
            motion[:, 0], -motion[:, 1], motion[:, 1], motion[:, 0],
        )  # fmt: skip
        shift[:, :2, 2] = -motion[:, 2:]
        matrix = turn @ shift @ t[f"{prefix}transform"]
        phases = t[f"{prefix}phases"] + (t[f"{prefix}freqs"] @ matrix[:, :2, 2:]).squeeze(2)
        freqs = t[f"{prefix}freqs"] @ matrix[:, :2, :2]
        amplitudes = (1 - (freqs.norm(dim=2) - self.bandwidth) / (self.rate / 2 - self.bandwidth)).clamp(0, 1)
        theta = torch.eye(2, 3) * (0.5 * self.size / self.rate)
        grid = F.affine_grid(theta[None], [1, 1, self.size, self.size], align_corners=False)
        x = torch.einsum("ijk,bck->bijc", grid[0], freqs.float()) + phases[:, None, None]
        x = torch.sin(x * 2 * math.pi) * amplitudes[:, None, None].float()
        weight = t[f"{prefix}weight"]
        return (x @ weight.T / math.sqrt(len(weight))).permute(0, 3, 1, 2)

    def synthesis(self, ws: Tensor) -> Tensor:
        """w+ (B, num_layers + 2, w_dim) -> pictures."""
        x = self.input(ws[:, 0])
        for i, (name, up, down, padding, rgb) in enumerate(self.layers):
            t, s = self.tensors, self.affine(name, ws[:, i + 1])
            weight = t[f"{name}.weight"]
            if rgb:
                own = weight * (s / math.sqrt(weight.shape[1]))[:, None, :, None, None]
            else:
                weight = weight * weight.square().mean((1, 2, 3), keepdim=True).rsqrt()
                own = weight * (s * s.square().mean().rsqrt())[:, None, :, None, None]
                own = own * (own.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
            own = own * t[f"{name}.magnitude_ema"].rsqrt()
            x = F.conv2d(x.reshape(1, -1, *x.shape[2:]), own.flatten(0, 1), padding=own.shape[-1] - 1, groups=len(s))
            x = x.reshape(len(s), -1, *x.shape[2:]) + t[f"{name}.bias"][:, None, None]
            x = resample(x, t.get(f"{name}.up_filter"), up, 1, padding, up**2)
            x = x if rgb else F.leaky_relu(x, 0.2) * math.sqrt(2)
            clamp = self.c["conv_clamp"]
            x = x if clamp is None else x.clamp(-clamp, clamp)
            x = resample(x, t.get(f"{name}.down_filter"), 1, down)
        return x * self.c["output_scale"]
