"""What fusion nets know about a style code: the widths of its vectors, and how these become rows of one matrix.

The authors' code visits the vectors one by one (26 at 1024 x 1024); as rows they pass through a net together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

MAX_PADDED_WIDTH = 2**13  # StyleGAN2's widest vectors have 512 numbers


@dataclass(frozen=True)
class FusionSpec:
    """The shape of every net of a hierarchy. The defaults are the authors'."""

    conv_sizes: tuple[int, ...]  # widths of the style vectors of the convolutions ...
    rgb_sizes: tuple[int, ...]  # ... and of the toRGB layers: a code packs all of these, then all of those
    padded_width: int = 512  # P: every vector is brought to this width
    hidden_width: int = 2560
    hidden_layers: int = 3
    num_indicators: int = 19  # N: length of the one-hot layer indicator
    indicator_repeats: int = 10  # the indicator is tiled this often
    shared_indicators: bool = True  # conv i and rgb i share indicator i; else rgb i has its own, after the conv ones
    common_conv_layers: int = 5  # only the first vectors of either list are aligned to the common code
    common_rgb_layers: int = 5
    lr_multiplier: float = 0.01
    pooling: str = "max"  # how the gate of a narrow vector comes from P numbers: "max" (authors) or "mean"
    final_activation: str = "lrelu"  # before the sigmoid: "lrelu" (authors) or "linear"
    gate_bias: bool = False  # a learned logit per row and channel; the MLP's last layer then starts at zero
    gate_product: bool = False  # let logits depend on the sign of b - a ...
    gate_novelty: bool = False  # ... and on which of a net's children differ from the common code
    standardise: bool = False  # the MLPs see codes in units of each style channel's deviation from its mean
    adaptive_conv_layers: int | None = None  # only the first vectors of either list have gates that an MLP makes; the
    adaptive_rgb_layers: int | None = None  # others' are `gate_bias`, and `gate_novelty` if it is on; None: all

    def __post_init__(self) -> None:
        sizes = (*self.conv_sizes, *self.rgb_sizes)
        conv, rgb = len(self.conv_sizes), len(self.rgb_sizes)
        needed = max(conv, rgb) + 1 if self.shared_indicators else conv + rgb
        if not sizes or min(sizes) < 1 or max(sizes) > self.padded_width:
            raise ValueError(
                f"conv_sizes {list(self.conv_sizes)} and rgb_sizes {list(self.rgb_sizes)} must be widths from 1 to"
                f" padded_width={self.padded_width}: raise padded_width or take the sizes from the generator's config"
            )
        if self.padded_width > MAX_PADDED_WIDTH:
            raise ValueError(f"padded_width={self.padded_width} must be at most {MAX_PADDED_WIDTH}")
        if self.num_indicators < needed:
            raise ValueError(
                f"num_indicators={self.num_indicators} is too small for {conv} conv and {rgb} rgb vectors with"
                f" shared_indicators={self.shared_indicators}: give at least {needed}"
            )
        for name, least in (("hidden_width", 1), ("hidden_layers", 1), ("indicator_repeats", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)} must be at least {least}")
        for name in ("common_conv_layers", "common_rgb_layers", "adaptive_conv_layers", "adaptive_rgb_layers"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not self.gate_bias and len(self.adaptive_rows) < len(sizes):
            raise ValueError(
                "adaptive_conv_layers and adaptive_rgb_layers leave out vectors: these need gate_bias=True"
            )
        for name, choices in (("pooling", ("max", "mean")), ("final_activation", ("lrelu", "linear"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r} must be one of {', '.join(choices)}")
        if self.lr_multiplier <= 0:
            raise ValueError(f"lr_multiplier={self.lr_multiplier} must be positive")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of all vectors, in the order in which a code packs them."""
        return (*self.conv_sizes, *self.rgb_sizes)

    @property
    def style_width(self) -> int:
        """S, the numbers in a style code."""
        return sum(self.sizes)

    @property
    def heads(self) -> int:
        """Numbers that an MLP gives for each gate."""
        return 1 + self.gate_product + self.gate_novelty

    @property
    def common_rows(self) -> tuple[int, ...]:
        """The vectors that are aligned to the common code, as indices into `sizes`."""
        conv = range(min(self.common_conv_layers, len(self.conv_sizes)))
        rgb = range(min(self.common_rgb_layers, len(self.rgb_sizes)))
        return (*conv, *(len(self.conv_sizes) + k for k in rgb))

    @property
    def adaptive_rows(self) -> tuple[int, ...]:
        """The vectors whose gates an MLP makes, as indices into `sizes`."""
        conv, rgb = (
            range(len(sizes) if count is None else min(count, len(sizes)))
            for sizes, count in (
                (self.conv_sizes, self.adaptive_conv_layers),
                (self.rgb_sizes, self.adaptive_rgb_layers),
            )
        )
        return (*conv, *(len(self.conv_sizes) + k for k in rgb))

    def indicators(self, rows: Sequence[int], *, only_common: bool = False) -> Tensor:
        """(R, N), one row a vector, not yet tiled; with one child alone, toRGB rows set the last number too."""
        table = torch.zeros(len(rows), self.num_indicators)
        for r, v in enumerate(rows):
            k = v - len(self.conv_sizes)  # >= 0: the index within the toRGB list
            table[r, k if self.shared_indicators and k >= 0 else v] = 1
            if only_common and self.shared_indicators and k >= 0:
                table[r, -1] = 1
        return table


# ----------------------------------------------------------------------------------------------------
# Style vectors as rows of one matrix. Up to P by nearest neighbour: position i takes channel floor(i * width / P).
# Back by pooling the GATE over a channel's positions. The authors pool the blended vector, a + q (b - a), by its
# maximum; a and b are constant over these positions, so that is the largest gate where b > a, else the smallest.


def integers(values: Sequence) -> Tensor:
    """A table of indices; of none, too, which `torch.tensor` would take for numbers."""
    return torch.tensor(values, dtype=torch.long)


class StyleRows(nn.Module):
    """Some vectors of a packed style code (B, S) as rows (B, R, P), and gates (B, R, P) as (B, S) again.

    Args:
        spec: the shapes.
        rows: the chosen vectors, as indices into `spec.sizes`.
    """

    up: Tensor | None
    channels: Tensor | None
    members: Tensor | None
    outside: Tensor
    counts: Tensor

    def __init__(self, spec: FusionSpec, rows: Sequence[int]):
        super().__init__()
        width = spec.padded_width
        starts = [0, *accumulate(spec.sizes)]
        up = [starts[v] + i * spec.sizes[v] // width for v in rows for i in range(width)]  # R*P, ascending
        channels = sorted(set(up))
        groups: dict[int, list[int]] = {channel: [] for channel in channels}
        for position, channel in enumerate(up):
            groups[channel].append(position)
        most = max(map(len, groups.values()), default=1)
        members = [group + group[-1:] * (most - len(group)) for group in groups.values()]
        inside = [[True] * len(group) + [False] * (most - len(group)) for group in groups.values()]
        everything = len(channels) == spec.style_width
        self.pooling, self.rows, self.width = spec.pooling, len(rows), width
        self.register_buffer("up", None if everything and most == 1 else integers(up), persistent=False)
        self.register_buffer("channels", None if everything else integers(channels), persistent=False)
        self.register_buffer("members", None if most == 1 else integers(members), persistent=False)
        self.register_buffer("outside", ~torch.tensor(inside, dtype=torch.bool), persistent=False)
        self.register_buffer("counts", torch.tensor(inside, dtype=torch.bool).sum(-1), persistent=False)

    def expand(self, code: Tensor) -> Tensor:
        """(B, S) -> (B, R, P)"""
        code = code if self.up is None else code.index_select(1, self.up)
        return code.unflatten(1, (self.rows, self.width))

    def pool(self, gate: Tensor, difference: Tensor) -> Tensor:
        """Gates (B, R, P), and b - a (B, S), to one gate a channel (B, S): 0 in vectors that were not chosen."""
        gate = gate.flatten(1)
        if self.members is not None:
            groups = gate.index_select(1, self.members.flatten()).unflatten(1, self.members.shape)  # (B, channels, G)
            if self.pooling == "mean":
                gate = groups.masked_fill(self.outside, 0).sum(-1) / self.counts
            else:
                chosen = difference if self.channels is None else difference.index_select(1, self.channels)
                gate = torch.where(chosen >= 0, groups.amax(-1), groups.amin(-1))
        if self.channels is None:
            return gate
        return gate.new_zeros(difference.shape).index_copy(1, self.channels, gate)


class StyleLayout(nn.Module):
    """Index tables that all nets of a hierarchy share, and the statistics of a style code where it is standardised."""

    indicators: Tensor
    common_indicators: Tensor
    only_common_indicators: Tensor
    is_common: Tensor
    mean: Tensor | None
    deviation: Tensor | None

    def __init__(self, spec: FusionSpec):
        super().__init__()
        self.spec = spec
        rows = range(len(spec.sizes))
        self.all = StyleRows(spec, rows)
        self.common = StyleRows(spec, spec.common_rows)
        self.register_buffer("indicators", spec.indicators(rows), persistent=False)
        self.register_buffer("common_indicators", spec.indicators(spec.common_rows), persistent=False)
        only_common = spec.indicators(spec.common_rows, only_common=True)
        self.register_buffer("only_common_indicators", only_common, persistent=False)
        is_common = torch.tensor([[v in spec.common_rows] for v in rows])  # (R, 1)
        self.register_buffer("is_common", is_common, persistent=False)
        self.register_buffer("mean", torch.zeros(spec.style_width) if spec.standardise else None)
        self.register_buffer("deviation", torch.ones(spec.style_width) if spec.standardise else None)

    def seen(self, code: Tensor) -> Tensor:
        """A code (B, S) as the MLPs see it."""
        return code if self.mean is None else (code - self.mean.to(code)) / self.deviation.to(code)  # type: ignore[union-attr]
