"""One fusion net: two gating MLPs that blend style codes channel by channel.

A net takes the codes of two children and the code that they share, and returns one code (StyleFusion, arXiv
2107.07437, section 3). It computes the same as the authors' published inference code, but each MLP layer is a single
matrix product for all style vectors of the batch; `fuse_reference` is a plain implementation of the same computation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylefusion_hf.models.fusion.style_rows import FusionSpec, StyleLayout, StyleRows
from stylefusion_hf.models.hooks import compute_dtype

SLOPE = 0.2  # of the leaky ReLU
GAIN = math.sqrt(2)  # of the leaky ReLU

# ----------------------------------------------------------------------------------------------------
# The gating MLP.


class FoldedLinear(nn.Module):
    """Linear layer with equalized learning rate: stored as N(0, 1) / lr_multiplier, scaled in use (arXiv 1710.10196).

    These layers are large and their input is small, so the scale is folded into the product instead of a scaled copy.
    """

    def __init__(self, in_features: int, out_features: int, lr_multiplier: float, *, zero: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        nn.init.normal_(self.weight, std=0.0 if zero else 1 / lr_multiplier)
        nn.init.zeros_(self.bias)
        self.weight_gain = lr_multiplier / math.sqrt(in_features)
        self.bias_gain = lr_multiplier

    def forward(
        self, x: Tensor, gain: float = 1.0, indicators: Tensor | None = None, repeats: int = 1, batch: int = 1
    ) -> Tensor:
        """Return gain * (W x + b) for x (rows, C). Both gains are folded into the product.

        Computed as (W x^T)^T: with few rows, CPU libraries are about 20% faster with the large factor on the left.

        Args:
            indicators: (rows / batch, N), the last inputs, tiled `repeats` times: the same for all of the batch, so
                they are not part of `x` but a bias per row.
        """
        width = x.shape[1]
        y = torch.addmm(
            self.bias[:, None],
            self.weight[:, :width],
            x.t(),
            beta=self.bias_gain * gain,
            alpha=self.weight_gain * gain,
        ).t()
        if indicators is None:
            return y
        tiles = self.weight[:, width:]  # (hidden, N * repeats)
        if repeats > 1:
            tiles = tiles.unflatten(1, (repeats, -1)).sum(1)
        row_bias = indicators.to(tiles.dtype) @ tiles.t() * (self.weight_gain * gain)  # (rows / batch, hidden)
        return y + row_bias.repeat(batch, 1)


class Blender(nn.Module):
    """Gating MLP: computes the gate q in (0, 1) of a + q (b - a) for every channel of every row.

    Args:
        spec: the configuration of the nets.
        codes: number of input codes: a, b and, in the segments blender, extra.
        rows: the R style vectors that it serves, as indices into `spec.sizes`.
    """

    adaptive: Tensor | None

    def __init__(self, spec: FusionSpec, codes: int, rows: Sequence[int]):
        super().__init__()
        width, lr = spec.padded_width, spec.lr_multiplier
        # Of factored layers two stand for one, with nothing in between. The first layer also sees the indicators, as
        # the second of its factors does.
        seen = spec.input_rank or codes * width
        factor = [spec.output_rank] if spec.output_rank else []
        indicators = spec.num_indicators * spec.indicator_repeats
        widths = [seen + indicators, *[spec.hidden_width] * spec.hidden_layers, width, *factor, width * spec.heads]
        sizes = [*([(codes * width, seen)] if spec.input_rank else []), *pairwise(widths)]
        last = len(sizes) - 1
        self.layers = nn.ModuleList(
            FoldedLinear(a, b, lr, zero=spec.gate_bias and i == last) for i, (a, b) in enumerate(sizes)
        )
        self.gate_bias = nn.Parameter(torch.empty(len(rows), width)) if spec.gate_bias else None
        if self.gate_bias is not None:
            nn.init.zeros_(self.gate_bias)
        self.gate_novelty = nn.Parameter(torch.zeros(len(rows), width)) if spec.gate_novelty else None
        adaptive = torch.tensor([[float(v in spec.adaptive_rows)] for v in rows])  # (R, 1)
        self.register_buffer("adaptive", None if adaptive.all() else adaptive, persistent=False)
        # What the first layer makes of the codes' context; it starts at zero, so that nets can get one at any time.
        self.context = (
            FoldedLinear(codes * spec.context_width, spec.hidden_width, lr, zero=True) if spec.context_width else None
        )
        self.input_layers = 1 + bool(spec.input_rank)
        self.output_layers = 1 + len(factor)
        self.linear_end = spec.final_activation == "linear"
        self.product = spec.gate_product
        self.indicator_repeats = spec.indicator_repeats

    def forward(
        self,
        codes: Sequence[Tensor],
        indicators: Tensor,
        novelty: Tensor | None = None,
        context: Tensor | None = None,
    ) -> Tensor:
        """Codes (B, R, P) each, indicators (R, N), `novelty` (B, R, P), `context` (B, codes * context_width) ->
        (B, R, P), in the weights' dtype."""
        layers = cast("list[FoldedLinear]", list(self.layers))
        *start, first = layers[: self.input_layers]
        inner = layers[self.input_layers : -self.output_layers]
        *factors, last = layers[-self.output_layers :]
        dtype = compute_dtype(first)
        rows = torch.cat([code.to(dtype) for code in codes], -1)  # (B, R, C)
        # The gain is folded into the product: gain * lrelu(x) = lrelu(gain * x).
        batch, count, _ = rows.shape
        x = rows.flatten(0, 1)
        for layer in start:
            x = layer(x)
        x = first(x, GAIN, indicators, self.indicator_repeats, batch)
        if self.context is not None and context is not None:  # the same for all rows of a code
            x = x + self.context(context.to(dtype), GAIN).repeat_interleave(count, dim=0)
        x = F.leaky_relu_(x, SLOPE)
        for layer in inner:
            x = F.leaky_relu_(layer(x, GAIN), SLOPE)
        for layer in factors:
            x = layer(x)
        x = last(x) if self.linear_end else F.leaky_relu_(last(x, GAIN), SLOPE)

        # Logit terms, then the gate.
        x = x.unflatten(0, (batch, count))
        if self.adaptive is not None:  # the other rows only keep constants and novelty terms
            x = x * self.adaptive.to(x.dtype)
        logits, *rest = x.split(codes[0].shape[-1], dim=-1)
        terms = list(rest)  # the compiler of torch 2.6 has a tuple here
        if self.product:
            logits = logits + terms.pop(0) * signed(*codes[:2]).to(x.dtype)
        if self.gate_novelty is not None and novelty is not None:
            logits = logits + (self.gate_novelty + terms.pop(0)) * novelty.to(x.dtype)
        return torch.sigmoid(logits if self.gate_bias is None else logits + self.gate_bias)


# Two extra gate inputs that the authors' nets do not have (config: gate_product, gate_novelty).
#
# gate_product: to first order in d = b - a, the step that changes one region and no other is P d with a projection P,
# and the gate that makes it is (P d)_i / d_i. The logit must therefore depend on the sign of d_i, and a narrow MLP
# cannot form that many products.
#
# gate_novelty: a constant gate assigns each channel to a region once and for all. If it knows which child differs from
# the common code, it can give the channel to the child that contributes something new. Likewise in alignment: if only
# one child differs from the common code, a region was swapped and should keep its look; if both differ, the pose was
# changed.


def signed(a: Tensor, b: Tensor) -> Tensor:
    """Return d / sqrt(1 + d^2) in (-1, 1) for d = b - a, a smooth sign."""
    d = b - a
    wide = d if d.dtype == torch.float64 else d.float()  # half precision cannot square 256
    return (wide * (1 + wide.square()).rsqrt()).to(d.dtype)


def novelty(a: Tensor, b: Tensor, common: Tensor) -> Tensor:
    """Return -1 where only a differs from the common code, 1 where only b does, 0 where both or neither do."""
    da, db = (a - common).abs(), (b - common).abs()
    return (db - da) / (db + da + 1e-3)


def company(child: Tensor, sibling: Tensor, common: Tensor) -> Tensor:
    """Return 0 where only the child differs from the common code, 1 where only its sibling does, 1/2 for both."""
    return (1 - novelty(sibling, child, common)) / 2


# ----------------------------------------------------------------------------------------------------
# The net.


class FusionNet(nn.Module):
    """Fusion net: `blender_common` aligns the children to their common code, `blender_segments` fuses them."""

    def __init__(self, spec: FusionSpec):
        super().__init__()
        self.blender_segments = Blender(spec, codes=3, rows=range(len(spec.sizes)))
        self.blender_common = Blender(spec, codes=2, rows=spec.common_rows)

    def forward(
        self, layout: StyleLayout, s0: Tensor, s1: Tensor | None, sc: Tensor | None, skip_equal: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Fuse style codes (B, S).

        Args:
            layout: index tables of the hierarchy.
            s0, s1: codes of the children; without s1 the net only aligns s0 to sc.
            sc: the children's common code; without it the net only fuses s0 and s1.
            skip_equal: skip the alignment of children equal to their common code. Depends on values: not for training.

        Returns:
            The fused code and its gate between the two (aligned) children, or between s0 and sc if there is no s1;
            both (B, S).
        """
        if s1 is None:
            if sc is None:
                raise ValueError("a fusion net needs a second child's code, a common code, or both")
            return self._align(layout, s0, sc, layout.only_common_indicators)
        new = common = None
        if sc is None:
            extra = torch.zeros_like(layout.all.expand(s0))  # zero stands for "none"
        else:
            # Align both children to the common code, as one batch.
            both, siblings, twice = torch.cat([s0, s1]), torch.cat([s1, s0]), torch.cat([sc, sc])

            def align(child: Tensor, shared: Tensor, sibling: Tensor) -> Tensor:
                return self._align(layout, child, shared, layout.common_indicators, sibling)[0]

            both = where_different(align, both, [twice], siblings) if skip_equal else align(both, twice, siblings)
            s0, s1 = both[: s0.shape[0]], both[s0.shape[0] :]
            # The segments blender sees the common code in the aligned rows only.
            common = layout.seen(sc)
            shared = layout.all.expand(common)
            extra = layout.only_common(shared)
        # Fuse the aligned children.
        children = [layout.seen(s) for s in (s0, s1)]
        a, b = (layout.all.expand(seen) for seen in children)
        if sc is not None and self.blender_segments.gate_novelty is not None:
            new = novelty(a, b, shared)
        gate = self.blender_segments([a, b, extra], layout.indicators, new, layout.summarize(*children, common))
        return _blend(layout.all, s0, s1, gate)

    def _align(
        self, layout: StyleLayout, code: Tensor, shared: Tensor, indicators: Tensor, sibling: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        rows = layout.common
        if not rows.rows:
            return code, torch.zeros_like(code)
        whole = [layout.seen(s) for s in (code, shared)]
        both, new = [rows.expand(seen) for seen in whole], None
        if self.blender_common.gate_novelty is not None:  # an only child counts as its own sibling: both differ
            other = both[0] if sibling is None else rows.expand(layout.seen(sibling))
            new = company(both[0], other, both[1])
        return _blend(rows, code, shared, self.blender_common(both, indicators, new, layout.summarize(*whole)))


def where_different(compute: Callable[..., Tensor], code: Tensor, others: Sequence[Tensor], *along: Tensor) -> Tensor:
    """Apply `compute(code, *others, *along)`, all (B, S), to the rows in which `code` differs from any of `others`.

    The other rows of `code` are returned unchanged. Depends on values: not for training.
    """
    rows = torch.stack([(code != other).any(dim=1) for other in others]).any(dim=0).nonzero().flatten()
    given = (code, *others, *along)
    if len(rows) == len(code):
        return compute(*given)
    if not len(rows):
        return code
    return code.index_copy(0, rows, compute(*(x.index_select(0, rows) for x in given)))


def _blend(rows: StyleRows, a: Tensor, b: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
    """Return a + q (b - a) and q; equal codes return exactly that code, in any dtype."""
    difference = b - a
    gate = rows.pool(gate.to(a.dtype), difference)
    return a + gate * difference, gate


# ----------------------------------------------------------------------------------------------------
# Plain reference: one style vector at a time, as in the authors' code.


def fuse_reference(
    net: FusionNet,
    spec: FusionSpec,
    s0: Tensor,
    s1: Tensor | None,
    sc: Tensor | None,
    statistics: tuple[Tensor, Tensor] | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """Compute `FusionNet.forward` one style vector at a time; slow, for tests. Codes (B, S) -> (B, S).

    Args:
        statistics: mean and standard deviation (S,) of each channel, if the spec standardizes.
        context: the weights (K, S) of `CodeContext`, if the spec has one.
    """
    width, fused = spec.padded_width, []
    mean, deviation = statistics or (torch.zeros(spec.style_width), torch.ones(spec.style_width))

    def up(x: Tensor) -> Tensor:  # (B, w) -> (B, P)
        return x[:, [i * x.shape[1] // width for i in range(width)]]

    def pool(x: Tensor, size: int) -> Tensor:  # (B, P) -> (B, w)
        groups = [[i for i in range(width) if i * size // width == j] for j in range(size)]
        columns = [x[:, group].amax(1) if spec.pooling == "max" else x[:, group].mean(1) for group in groups]
        return torch.stack(columns, 1)

    def seen(x: Tensor, vector: int) -> Tensor:
        return (x - mean.split(spec.sizes)[vector]) / deviation.split(spec.sizes)[vector]

    def blend(
        blender: Blender,
        row: int,
        codes: list[Tensor],
        extra: Tensor | None,
        indicator: Tensor,
        new: Tensor | None = None,
        whole: Sequence[Tensor | None] = (),
    ) -> Tensor:
        tiled = indicator.repeat(spec.indicator_repeats).expand(len(codes[0]), -1)
        inputs = [seen(x, v) for x in codes] + ([] if extra is None else [extra])
        x = torch.cat([up(code) for code in inputs], 1)

        def apply(layer: nn.Module, x: Tensor) -> Tensor:
            folded = cast(FoldedLinear, layer)
            return F.linear(x, folded.weight * folded.weight_gain, folded.bias * folded.bias_gain)

        *hidden, last = blender.layers
        if spec.input_rank:
            x = apply(hidden.pop(0), x)
        x = torch.cat([x, tiled], 1)
        for i, layer in enumerate(hidden):
            x = apply(layer, x)
            if i == 0 and context is not None:
                known = [
                    torch.zeros_like(codes[0][:, :1]).expand(-1, len(context))
                    if code is None
                    else (code - mean) / deviation @ context.t() / math.sqrt(len(mean))
                    for code in whole
                ]
                x = x + apply(cast(nn.Module, blender.context), torch.cat(known, 1))
            if not spec.output_rank or i < len(hidden) - 1:
                x = F.leaky_relu(x, SLOPE) * GAIN
        x = apply(last, x)
        if spec.final_activation == "lrelu":
            x = F.leaky_relu(x, SLOPE) * GAIN
        if blender.adaptive is not None:
            x = x * blender.adaptive[row]
        first, second = up(inputs[0]), up(inputs[1])
        logits = x[:, :width]
        if spec.gate_product:
            logits = logits + x[:, width : 2 * width] * signed(first, second)
        if blender.gate_novelty is not None and new is not None:
            logits = logits + (blender.gate_novelty[row] + x[:, -width:]) * new
        x = logits
        q = torch.sigmoid(x if blender.gate_bias is None else x + blender.gate_bias[row])
        return pool(up(codes[0]) + q * (up(codes[1]) - up(codes[0])), codes[0].shape[1])

    # Align both children, vector by vector.
    vectors = [None if s is None else s.split(spec.sizes, 1) for s in (s0, s1, sc)]
    aligned = []
    for v in range(len(spec.sizes)):
        a, b, c = (None if s is None else s[v] for s in vectors)
        assert a is not None
        pair = [a, a if b is None else b]
        if v in spec.common_rows and c is not None:
            indicator = spec.indicators([v], only_common=b is None)[0].to(a)
            news = [company(*(up(seen(x, v)) for x in (child, other, c))) for child, other in (pair, pair[::-1])]
            row, wholes = spec.common_rows.index(v), ([s0, sc], [s0 if s1 is None else s1, sc])
            pair = [
                blend(net.blender_common, row, [child, c], None, indicator, new, whole)
                for child, new, whole in zip(pair, news, wholes, strict=True)
            ]
        aligned.append(pair)
    first, second = (torch.cat([pair[i] for pair in aligned], 1) for i in range(2))
    if s1 is None:
        return first
    # Fuse them.
    for v, pair in enumerate(aligned):
        c = None if sc is None else vectors[2][v]  # type: ignore[index]
        indicator = spec.indicators([v])[0].to(first)
        extra = torch.zeros_like(pair[0]) if v not in spec.common_rows or c is None else seen(c, v)
        new = None if c is None else novelty(*(up(seen(x, v)) for x in (*pair, c)))
        fused.append(blend(net.blender_segments, v, pair, extra, indicator, new, [first, second, sc]))
    return torch.cat(fused, 1)
