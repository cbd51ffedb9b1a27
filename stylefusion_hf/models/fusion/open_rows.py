"""Which rows of a batch a fusion net has to compute: those that nothing decides beforehand.

A net gives equal codes out as they are, so a row whose children and common code are the same needs no arithmetic; with
one dial turned, that is most of the tree. Rows that occur twice (a sheet of hair by eyes) are computed once. Both are
exact, and both look at values: training and compiled graphs go through every row instead.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from stylefusion_hf.models.fusion.net import FusionNet, where_different
from stylefusion_hf.models.fusion.style_rows import StyleLayout
from stylefusion_hf.ops.context import traced_or_transformed


def values_are_final(tensors: Iterable[Tensor]) -> bool:
    """Whether values alone decide: nobody traces, transforms or differentiates what is computed from these tensors."""
    if torch.compiler.is_compiling() or traced_or_transformed():
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def fuse_open_rows(net: FusionNet, layout: StyleLayout, s0: Tensor, s1: Tensor, common: Tensor | None) -> Tensor:
    """What `net` gives for codes (B, S), without gradients; only different inputs are computed, and each once."""
    codes = [s0, s1] if common is None else [s0, s1, common]
    if all(len(c) == 1 or c.stride(0) == 0 for c in codes):  # one row, repeated
        fused = _fuse_few(net, layout, [c[:1] for c in codes])
        return fused.expand(len(s0), -1)
    rows, inverse = _distinct(codes)
    if len(rows) == len(s0):
        return _fuse_few(net, layout, codes)
    chosen = torch.tensor(rows, device=s0.device)
    fused = _fuse_few(net, layout, [c.index_select(0, chosen) for c in codes])
    return fused.index_select(0, torch.tensor(inverse, device=s0.device))


def _fuse_few(net: FusionNet, layout: StyleLayout, codes: list[Tensor]) -> Tensor:
    """The same for rows that differ from each other."""

    def fuse(s0: Tensor, s1: Tensor, common: Tensor | None = None) -> Tensor:
        return net(layout, s0, s1, common, skip_equal=True)[0]

    return where_different(fuse, codes[0], codes[1:])


def _distinct(codes: list[Tensor]) -> tuple[list[int], list[int]]:
    """The first occurrence of every different row of several codes side by side, and which of these each row is."""
    if codes[0].device.type != "cpu":  # to compare on the device would cost more than the nets
        return list(range(len(codes[0]))), []
    seen: dict[bytes, int] = {}
    rows: list[int] = []
    inverse: list[int] = []
    raw = [c.contiguous().view(torch.uint8).numpy() for c in codes]
    for i, parts in enumerate(zip(*raw, strict=True)):
        key = b"".join(part.tobytes() for part in parts)
        if key not in seen:
            seen[key] = len(rows)
            rows.append(i)
        inverse.append(seen[key])
    return rows, inverse
