"""Fusion nets as fixed arithmetic, tensors in and tensors out: what `stylefusion export` traces.

As in static.py, gains are in the weights; so are the layer indicators, which are the same in every call. The formulas,
and why they are so, stand in fusion_net.py and style_rows.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylefusion_hf.models.fusion import FusionHierarchy
from stylefusion_hf.models.fusion_net import GAIN, SLOPE, Blender, FoldedLinear, FusionNet, company, novelty
from stylefusion_hf.models.static import StaticLinear
from stylefusion_hf.models.style_rows import FusionSpec, StyleLayout


class StaticRows(nn.Module):
    """Some style vectors of a code (B, S) as rows (B, R, P), and gates (B, R, P) as one a channel (B, S) again."""

    up: Tensor
    members: Tensor
    share: Tensor | None

    def __init__(self, spec: FusionSpec, rows: Sequence[int]):
        super().__init__()
        width, starts = spec.padded_width, [0, *accumulate(spec.sizes)]
        up = [starts[v] + i * spec.sizes[v] // width for v in rows for i in range(width)]
        groups: list[list[int]] = [[] for _ in range(spec.style_width)]  # channel -> its positions among R * P
        for position, channel in enumerate(up):
            groups[channel].append(position)
        self.everything = all(groups)
        groups = [group or [len(up)] for group in groups]  # channels of other vectors read a zero behind the last one
        most = max(map(len, groups))
        members = [group + group[-1:] * (most - len(group)) for group in groups]  # a maximum may see a number twice
        self.shape, self.groups, self.mean = (len(rows), width), (spec.style_width, most), spec.pooling == "mean"
        self.register_buffer("up", torch.tensor(up, dtype=torch.long))
        self.register_buffer("members", torch.tensor(members, dtype=torch.long).flatten())
        share = [[(i < len(group)) / len(group) for i in range(most)] for group in groups]
        self.register_buffer("share", torch.tensor(share) if self.mean else None)

    def expand(self, code: Tensor) -> Tensor:
        """(B, S) -> (B, R, P)"""
        return code.index_select(1, self.up).unflatten(1, self.shape)

    def pool(self, gate: Tensor, difference: Tensor) -> Tensor:
        """Gates (B, R, P), and b - a (B, S), to (B, S): 0 in vectors that were not chosen."""
        flat = gate.flatten(1) if self.everything else F.pad(gate.flatten(1), (0, 1))
        groups = flat.index_select(1, self.members).unflatten(1, self.groups)  # (B, S, G)
        if self.groups[1] == 1:
            return groups.squeeze(2)
        if self.share is not None:
            return (groups * self.share).sum(dim=2)
        return torch.where(difference >= 0, groups.amax(dim=2), groups.amin(dim=2))


class StaticBlender(nn.Module):
    """`Blender` for given indicators (R, N): their share of the first layer is a bias of each row, (R, hidden)."""

    first_weight: Tensor
    first_bias: Tensor
    gate_bias: Tensor | None
    gate_novelty: Tensor | None

    def __init__(self, blender: Blender, indicators: Tensor):
        super().__init__()
        first, *inner, last = cast("list[FoldedLinear]", list(blender.layers))
        tiles = indicators.to(first.weight).repeat(1, blender.indicator_repeats)  # (R, N * repeats)
        codes, tiled = first.weight.detach().split([first.weight.shape[1] - tiles.shape[1], tiles.shape[1]], dim=1)
        self.register_buffer("first_weight", codes * (first.weight_gain * GAIN))
        bias = F.linear(tiles, tiled * first.weight_gain, first.bias.detach() * first.bias_gain) * GAIN
        self.register_buffer("first_bias", bias)
        self.layers = nn.ModuleList([StaticLinear(layer, activated=True) for layer in inner])
        self.layers.append(StaticLinear(last, activated=not blender.linear_end))
        self.product = blender.product
        for name in ("gate_bias", "gate_novelty"):
            values = getattr(blender, name)
            self.register_buffer(name, None if values is None else values.detach().clone())

    def forward(self, codes: Sequence[Tensor], new: Tensor | None) -> Tensor:
        """Codes (B, R, P) each, `new` (B, R, P) -> gates (B, R, P)."""
        rows = codes[0].shape[1]
        x = F.linear(torch.cat([*codes], dim=-1).flatten(0, 1), self.first_weight)  # (B * R, ...): one Gemm
        x = F.leaky_relu(x.unflatten(0, (-1, rows)) + self.first_bias, SLOPE).flatten(0, 1)
        for layer in self.layers:
            x = layer(x)
        x = x.unflatten(0, (-1, rows))
        logits, *factors = x.split(codes[0].shape[-1], dim=-1)
        if self.product:
            d = codes[1] - codes[0]
            logits = logits + factors.pop(0) * d * (1 + d * d).rsqrt()  # `signed`; ONNX has no hypot
        if self.gate_novelty is not None and new is not None:
            logits = logits + (self.gate_novelty + factors.pop(0)) * new
        return torch.sigmoid(logits if self.gate_bias is None else logits + self.gate_bias)


class StaticTables(nn.Module):
    """What all nets share: index tables, and the units in which the MLPs see a code."""

    is_common: Tensor
    mean: Tensor | None
    deviation: Tensor | None

    def __init__(self, layout: StyleLayout):
        super().__init__()
        self.all = StaticRows(layout.spec, range(len(layout.spec.sizes)))
        self.common = StaticRows(layout.spec, layout.spec.common_rows)
        for name in ("is_common", "mean", "deviation"):
            values = getattr(layout, name)
            self.register_buffer(name, None if values is None else values.detach().clone())

    def seen(self, code: Tensor) -> Tensor:
        """A code (B, S) as the MLPs see it."""
        return code if self.mean is None or self.deviation is None else (code - self.mean) / self.deviation


class StaticNet(nn.Module):
    """`FusionNet` of two children and their common code: codes (B, S) each -> (B, S)."""

    def __init__(self, net: FusionNet, layout: StyleLayout):
        super().__init__()
        self.segments = StaticBlender(net.blender_segments, layout.indicators)
        aligns = len(layout.common_indicators) > 0
        self.common = StaticBlender(net.blender_common, layout.common_indicators) if aligns else None

    def forward(self, tables: StaticTables, s0: Tensor, s1: Tensor, shared: Tensor) -> Tensor:
        if self.common is not None:
            s0, s1 = self._aligned(tables, self.common, s0, s1, shared)
        a, b, c = (tables.all.expand(tables.seen(s)) for s in (s0, s1, shared))
        new = None if self.segments.gate_novelty is None else novelty(a, b, c)
        gate = self.segments([a, b, torch.where(tables.is_common, c, 0.0)], new)
        difference = s1 - s0
        return s0 + tables.all.pool(gate, difference) * difference

    def _aligned(
        self, tables: StaticTables, blender: StaticBlender, s0: Tensor, s1: Tensor, shared: Tensor
    ) -> Sequence[Tensor]:
        """Both children, aligned to what they share as one batch of twice the size."""
        code, common = torch.cat([s0, s1]), torch.cat([shared, shared])
        a, b = (tables.common.expand(tables.seen(s)) for s in (code, common))
        new = None
        if blender.gate_novelty is not None:
            new = company(a, tables.common.expand(tables.seen(torch.cat([s1, s0]))), b)
        difference = common - code
        aligned = code + tables.common.pool(blender([a, b], new), difference) * difference
        return aligned.unflatten(0, (2, -1)).unbind(0)  # not `chunk`, which would fix the batch of the graph


class StaticFusion(nn.Module):
    """Codes (B, N, S) of all nodes, in the order of `tree.nodes` -> the fused code (B, S).

    `FusionHierarchy.fuse` of all nodes, with every net evaluated, whatever the codes: nothing depends on their values.
    A node without a net gives its own code, and what lies below it plays no part.
    """

    def __init__(self, fusion: FusionHierarchy):
        super().__init__()
        self.tree, self.tables = fusion.tree, StaticTables(fusion.layout)
        # A list, not a dict of modules: names of regions may be no names of modules. Nets that never run are left out.
        used = [name for name in self.tree.fused if name in self.tree.active]
        self.index = {name: i for i, name in enumerate(used)}
        self.nets = nn.ModuleList(StaticNet(fusion.net(name), fusion.layout) for name in used)

    def forward(self, codes: Tensor) -> Tensor:
        return self._fused(self.tree.root, codes).clone()  # of a tree without nets it would be a view of the input

    def _fused(self, name: str, codes: Tensor) -> Tensor:
        own = codes[:, self.tree.nodes.index(name)]
        if name not in self.index:
            return own
        first, second = (self._fused(child, codes) for child in self.tree.children(name))
        return self.nets[self.index[name]](self.tables, first, second, own)
