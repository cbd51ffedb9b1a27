"""Layout of a style code for fusion nets: the widths of its vectors, and their conversion to rows of one matrix.

The authors' code processes the vectors one by one (26 at 1024 x 1024); as rows they pass through a net together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from stylefusion_hf.models.hooks import compute_dtype

MAX_PADDED_WIDTH = 2**13  # StyleGAN2's widest vectors have 512 numbers


@dataclass(frozen=True)
class FusionSpec:
    """Configuration shared by all nets of a hierarchy. The defaults are the authors'."""

    conv_sizes: tuple[int, ...]  # widths of the convolutions' style vectors, which come first in a code
    rgb_sizes: tuple[int, ...]  # widths of the toRGB layers' style vectors, which follow them
    padded_width: int = 512  # P: width to which every vector is expanded
    hidden_width: int = 2560
    hidden_layers: int = 3
    num_indicators: int = 19  # N: length of the one-hot layer indicator
    indicator_repeats: int = 10  # how often the indicator is tiled
    shared_indicators: bool = True  # conv i and rgb i share indicator i; else rgb i has its own, after the conv ones
    common_conv_layers: int = 5  # number of first vectors of each list that are aligned to the common code
    common_rgb_layers: int = 5
    lr_multiplier: float = 0.01
    pooling: str = "max"  # how the P gates of a narrower vector are combined: "max" (authors) or "mean"
    final_activation: str = "lrelu"  # before the sigmoid: "lrelu" (authors) or "linear"
    gate_bias: bool = False  # a learned logit per row and channel; the MLP's last layer then starts at zero
    gate_product: bool = False  # let logits depend on the sign of b - a
    gate_novelty: bool = False  # let logits depend on which children differ from the common code
    standardise: bool = False  # show the MLPs each style channel minus its mean, divided by its standard deviation
    adaptive_conv_layers: int | None = None  # number of first vectors of each list whose gates come from an MLP; the
    adaptive_rgb_layers: int | None = None  # others use `gate_bias`, and `gate_novelty` if it is on; None: all
    input_rank: int | None = None  # rank of what the MLPs' first layer does to the codes, stored as two factors, and
    output_rank: int | None = None  # of their last layer; None: full, one matrix
    context_width: int | None = None  # how many numbers of each whole code the MLPs see beside its row; None: none

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
        counts = ("hidden_width", "hidden_layers", "indicator_repeats", "input_rank", "output_rank", "context_width")
        for name in counts:
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
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
        for name, bound in (("input_rank", "hidden_width"), ("output_rank", "padded_width")):
            if (getattr(self, name) or 0) > getattr(self, bound):
                raise ValueError(f"{name}={getattr(self, name)} must be at most {bound}={getattr(self, bound)}")
        if self.lr_multiplier <= 0:
            raise ValueError(f"lr_multiplier={self.lr_multiplier} must be positive")

    @property
    def sizes(self) -> tuple[int, ...]:
        """Widths of all vectors, in their order in a code."""
        return (*self.conv_sizes, *self.rgb_sizes)

    @property
    def style_width(self) -> int:
        """S, the length of a style code."""
        return sum(self.sizes)

    @property
    def heads(self) -> int:
        """Number of MLP outputs per gate."""
        return 1 + self.gate_product + self.gate_novelty

    @property
    def mlp_layers(self) -> int:
        """Number of a gating MLP's matrices; a factored layer counts twice."""
        return self.hidden_layers + 2 + bool(self.input_rank) + bool(self.output_rank)

    @property
    def common_rows(self) -> tuple[int, ...]:
        """The vectors that are aligned to the common code, as indices into `sizes`."""
        conv = range(min(self.common_conv_layers, len(self.conv_sizes)))
        rgb = range(min(self.common_rgb_layers, len(self.rgb_sizes)))
        return (*conv, *(len(self.conv_sizes) + k for k in rgb))

    @property
    def adaptive_rows(self) -> tuple[int, ...]:
        """The vectors whose gates come from an MLP, as indices into `sizes`."""
        conv, rgb = (
            range(len(sizes) if count is None else min(count, len(sizes)))
            for sizes, count in (
                (self.conv_sizes, self.adaptive_conv_layers),
                (self.rgb_sizes, self.adaptive_rgb_layers),
            )
        )
        return (*conv, *(len(self.conv_sizes) + k for k in rgb))

    def indicators(self, rows: Sequence[int], *, only_common: bool = False) -> Tensor:
        """Return the indicators (R, N), one row per vector, untiled; for a single child, toRGB rows also set the last
        number."""
        table = torch.zeros(len(rows), self.num_indicators)
        for r, v in enumerate(rows):
            k = v - len(self.conv_sizes)  # >= 0: the index within the toRGB list
            table[r, k if self.shared_indicators and k >= 0 else v] = 1
            if only_common and self.shared_indicators and k >= 0:
                table[r, -1] = 1
        return table


# ----------------------------------------------------------------------------------------------------
# Style vectors as rows of one matrix. Vectors are expanded to P by nearest neighbor: position i takes channel
# floor(i * width / P). On the way back we pool the GATE over a channel's positions. The authors max-pool the blended
# vector a + q (b - a); a and b are constant over these positions, so that selects the largest gate where b > a and
# the smallest elsewhere.


def index_tensor(values: Sequence) -> Tensor:
    """Return a tensor of indices; an empty list too, for which `torch.tensor` would choose floats."""
    return torch.tensor(values, dtype=torch.long)


class RowExpansion(nn.Module):
    """Packed style codes (B, S) -> selected vectors as rows (B, R, P)."""

    index: Tensor | None

    def __init__(self, index: Sequence[int] | None, rows: int, width: int):
        super().__init__()
        self.rows, self.width = rows, width
        self.register_buffer("index", None if index is None else index_tensor(index), persistent=False)

    def forward(self, code: Tensor) -> Tensor:
        code = code if self.index is None else code.index_select(1, self.index)
        return code.unflatten(1, (self.rows, self.width))


class GatePooling(nn.Module):
    """Gates (B, R, P) -> one per channel (B, S), given b - a (B, S); 0 in vectors that are not selected."""

    channels: Tensor | None
    members: Tensor | None
    outside: Tensor
    counts: Tensor

    def __init__(self, pooling: str, channels: Sequence[int] | None, groups: Sequence[list[int]]):
        super().__init__()
        most = max(map(len, groups), default=1)
        members = [group + group[-1:] * (most - len(group)) for group in groups]
        inside = torch.tensor([[True] * len(group) + [False] * (most - len(group)) for group in groups])
        self.pooling = pooling
        self.register_buffer("channels", None if channels is None else index_tensor(channels), persistent=False)
        self.register_buffer("members", None if most == 1 else index_tensor(members), persistent=False)
        self.register_buffer("outside", ~inside.bool(), persistent=False)
        self.register_buffer("counts", inside.bool().sum(-1), persistent=False)

    def forward(self, gate: Tensor, difference: Tensor) -> Tensor:
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


class StyleRows(nn.Module):
    """Selected vectors of a packed style code (B, S): `expand` gives rows (B, R, P), `pool` gates (B, R, P) -> (B, S).

    Args:
        spec: the configuration of the nets.
        rows: the selected vectors, as indices into `spec.sizes`.
    """

    def __init__(self, spec: FusionSpec, rows: Sequence[int]):
        super().__init__()
        width = spec.padded_width
        starts = [0, *accumulate(spec.sizes)]
        up = [starts[v] + i * spec.sizes[v] // width for v in rows for i in range(width)]  # R*P, ascending
        channels = sorted(set(up))
        groups: dict[int, list[int]] = {channel: [] for channel in channels}
        for position, channel in enumerate(up):
            groups[channel].append(position)
        everything = len(channels) == spec.style_width
        as_it_is = everything and all(len(group) == 1 for group in groups.values())
        self.rows = len(rows)
        self.expand = RowExpansion(None if as_it_is else up, len(rows), width)
        self.pool = GatePooling(spec.pooling, None if everything else channels, list(groups.values()))


class CommonRowsOnly(nn.Module):
    """Rows (B, R, P) -> the same, zero in those that are not aligned to the common code."""

    is_common: Tensor

    def __init__(self, spec: FusionSpec):
        super().__init__()
        is_common = torch.tensor([[v in spec.common_rows] for v in range(len(spec.sizes))])  # (R, 1)
        self.register_buffer("is_common", is_common, persistent=False)

    def forward(self, rows: Tensor) -> Tensor:
        return torch.where(self.is_common, rows, torch.zeros_like(rows))


class CodeContext(nn.Module):
    """What the gating MLPs of every row see of a whole code: a few linear combinations of its numbers.

    The MLPs' first layer is shared by all rows, and rows are different linear maps of w. So no weights of that layer
    can read the same fact, such as the length of the hair, off every row; one that is read off the whole code can be.
    """

    def __init__(self, style_width: int, context_width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(context_width, style_width))
        nn.init.normal_(self.weight)
        self.gain = style_width**-0.5

    def forward(self, codes: Sequence[Tensor | None]) -> Tensor:
        """Codes (B, S), None for those that are not there -> (B, codes * context_width), in the weights' dtype."""
        dtype, weight = compute_dtype(self), self.weight.t()
        found = [None if code is None else code.to(dtype) @ weight * self.gain for code in codes]
        none = torch.zeros_like(next(part for part in found if part is not None))
        return torch.cat([none if part is None else part for part in found], dim=1)


class StyleLayout(nn.Module):
    """Index tables shared by all nets of a hierarchy, the statistics for standardizing style codes, and what their
    MLPs see of a whole code."""

    indicators: Tensor
    common_indicators: Tensor
    only_common_indicators: Tensor
    mean: Tensor | None
    deviation: Tensor | None

    def __init__(self, spec: FusionSpec):
        super().__init__()
        self.spec = spec
        rows = range(len(spec.sizes))
        self.all = StyleRows(spec, rows)
        self.common = StyleRows(spec, spec.common_rows)
        self.only_common = CommonRowsOnly(spec)
        # Blenders get these as arguments, which hooks move to their device.
        self.register_buffer("indicators", spec.indicators(rows), persistent=False)
        self.register_buffer("common_indicators", spec.indicators(spec.common_rows), persistent=False)
        only_common = spec.indicators(spec.common_rows, only_common=True)
        self.register_buffer("only_common_indicators", only_common, persistent=False)
        self.register_buffer("mean", torch.zeros(spec.style_width) if spec.standardise else None)
        self.register_buffer("deviation", torch.ones(spec.style_width) if spec.standardise else None)
        self.context = CodeContext(spec.style_width, spec.context_width) if spec.context_width else None

    def seen(self, code: Tensor) -> Tensor:
        """Return a code (B, S) as the MLPs see it, standardized if configured."""
        return code if self.mean is None else self(code)

    def summarize(self, *seen: Tensor | None) -> Tensor | None:
        """Return what the MLPs see of whole codes, None if not configured. seen: from `seen`, or None for "none"."""
        return None if self.context is None else self.context(seen)

    def forward(self, code: Tensor) -> Tensor:
        """`seen`, where there are statistics."""
        return (code - self.mean.to(code)) / self.deviation.to(code)  # type: ignore[union-attr]
