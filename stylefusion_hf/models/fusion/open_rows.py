"""Skipping the rows of a batch whose fused code is known without computation.

A net returns equal codes unchanged, so a row whose children and common code are equal needs no arithmetic; when only
one region's code is changed, that covers most of the tree. Duplicate rows (as in a sheet of hair by eyes) are computed
once. Both shortcuts are exact but depend on values, so training and compiled graphs compute every row.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from stylefusion_hf.models.fusion.net import FusionNet, where_different
from stylefusion_hf.models.fusion.style_rows import StyleLayout
from stylefusion_hf.ops.context import traced_or_transformed


def values_are_final(tensors: Iterable[Tensor]) -> bool:
    """Return whether only values matter: no tracing, transform or differentiation of results from these tensors."""
    if torch.compiler.is_compiling() or traced_or_transformed():
        return False
    return not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))


def fuse_open_rows(net: FusionNet, layout: StyleLayout, s0: Tensor, s1: Tensor, common: Tensor | None) -> Tensor:
    """Apply `net` to codes (B, S) without gradients, computing each distinct row with differing inputs once."""
    codes = [s0, s1] if common is None else [s0, s1, common]
    if all(len(c) == 1 or c.stride(0) == 0 for c in codes):  # one row, repeated
        fused = _fuse_distinct(net, layout, [c[:1] for c in codes])
        return fused.expand(len(s0), -1)
    rows, inverse = _find_distinct(codes)
    if len(rows) == len(s0):
        return _fuse_distinct(net, layout, codes)
    chosen = torch.tensor(rows, device=s0.device)
    fused = _fuse_distinct(net, layout, [c.index_select(0, chosen) for c in codes])
    return fused.index_select(0, torch.tensor(inverse, device=s0.device))


def _fuse_distinct(net: FusionNet, layout: StyleLayout, codes: list[Tensor]) -> Tensor:
    """Apply `net` to distinct rows, skipping those whose inputs are all equal."""

    def fuse(s0: Tensor, s1: Tensor, common: Tensor | None = None) -> Tensor:
        return net(layout, s0, s1, common, skip_equal=True)[0]

    return where_different(fuse, codes[0], codes[1:])


def _find_distinct(codes: list[Tensor]) -> tuple[list[int], list[int]]:
    """Return the first index of every distinct row of the concatenated codes, and for each row its position there."""
    if codes[0].device.type != "cpu":  # comparing on the device would cost more than the nets
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
