"""Smaller fusion nets: the output layers of trained gating MLPs as two factors of low rank.

Most numbers of a small net are in that layer, padded_width x (heads x padded_width), while what it sees has passed
through `hidden_width` numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.fusion.net import Blender, FoldedLinear


@torch.no_grad()
def factor_outputs(fusion: FusionHierarchy, codes: Mapping[str, Tensor], rank: int) -> FusionHierarchy:
    """Return nets whose output layers have that rank, the best in the mean square over the logits of given mixes.

    Args:
        fusion: trained nets with full output layers.
        codes: {node: style codes (B, S)}, representative mixes; some hundreds.
        rank: at most `padded_width`.

    Raises:
        ValueError: nets that are factored already, or an impossible rank.
    """
    if fusion.spec.output_rank:
        raise ValueError(f"these nets have output_rank={fusion.spec.output_rank} already")
    config = {k: v for k, v in fusion.config.items() if not k.startswith("_")}
    smaller = FusionHierarchy(**(config | {"output_rank": rank}))
    torch.nn.Module.to(smaller, fusion.device, fusion.dtype)  # the model's own warns of what it keeps in float32: none
    moments = _second_moments(fusion, codes)
    state = fusion.state_dict()
    for name, moment in moments.items():
        number = fusion.spec.hidden_layers + 1
        last = output_layer(fusion, name, number)
        down, up = (output_layer(smaller, name, number + k) for k in (0, 1))
        # The projection onto the `rank` directions in which the logits W x vary most: W = U S V', from W E[x x'] W'.
        weight = last.weight.double() * last.weight_gain
        directions = torch.linalg.svd(weight @ _root(moment), full_matrices=False).U[:, :rank]
        state[f"{name}.layers.{number}.weight"] = (directions.t() @ weight / down.weight_gain).to(last.weight)
        state[f"{name}.layers.{number}.bias"] = torch.zeros_like(down.bias)
        state[f"{name}.layers.{number + 1}.weight"] = (directions / up.weight_gain).to(last.weight)
        state[f"{name}.layers.{number + 1}.bias"] = last.bias.detach().clone()
    smaller.load_state_dict(state)
    return smaller.train(fusion.training)


def output_layer(fusion: FusionHierarchy, blender: str, number: int) -> FoldedLinear:
    """Return a layer of a gating MLP by the blender's module name."""
    return cast(FoldedLinear, fusion.get_submodule(f"{blender}.layers.{number}"))


def _root(moment: Tensor) -> Tensor:
    """Return the symmetric root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp_min(0).sqrt() @ vectors.t()


def _second_moments(fusion: FusionHierarchy, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return {blender: E[x x'], float64} of what the output layers see in adaptive rows while the codes are fused."""
    found: dict[str, Tensor] = {}

    def record(name: str, adaptive: Tensor | None, _: Any, args: tuple[Any, ...]) -> None:
        rows = args[0].double()
        if adaptive is not None:
            rows = rows.unflatten(0, (-1, len(adaptive)))[:, adaptive.flatten() > 0].flatten(0, 1)
        found[name] = found.get(name, 0) + rows.t() @ rows

    hooks = [
        module.layers[-1].register_forward_pre_hook(partial(record, name, module.adaptive))
        for name, module in fusion.named_modules()
        if isinstance(module, Blender)
    ]
    try:
        fusion.fuse(codes)
    finally:
        for hook in hooks:
            hook.remove()
    return found
