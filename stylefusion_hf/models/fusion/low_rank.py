"""Smaller fusion nets: the first and last layers of trained gating MLPs as two factors of low rank each, and back.

Most numbers of a small net are in these layers: the first sees two or three codes, the last gives padded_width times
heads logits, while everything passes through `hidden_width` numbers in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from stylefusion_hf.models.config_checks import own_config
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.fusion.net import Blender, FoldedLinear


@torch.no_grad()
def factor_layers(
    fusion: FusionHierarchy,
    codes: Mapping[str, Tensor],
    *,
    input_rank: int | None = None,
    output_rank: int | None = None,
) -> FusionHierarchy:
    """Return nets whose first and last layers have the given ranks, the best in the mean square over given mixes.

    Without a rank that is `fusion` itself; else a copy, and `fusion` stays as it is.

    Args:
        fusion: trained nets.
        codes: {node: style codes (B, S)}, representative mixes; some hundreds.
        input_rank: of what the first layers do to the codes, at most `hidden_width`. None leaves them as they are.
        output_rank: of the last layers, at most `padded_width`. None leaves them as they are.

    Raises:
        ValueError: layers that are factored already, or an impossible rank.
    """
    ranks = {"input_rank": input_rank, "output_rank": output_rank}
    for name, rank in ranks.items():
        if rank is not None and fusion.config.get(name):
            raise ValueError(f"these nets have {name}={fusion.config[name]} already")
        if rank is not None:  # outputs last, to fit them to what the factored inputs give
            fusion = _factor(fusion, codes, name, rank)
    return fusion


def _factor(fusion: FusionHierarchy, codes: Mapping[str, Tensor], what: str, rank: int) -> FusionHierarchy:
    """Return nets with `what`, "input_rank" or "output_rank", in place of full layers."""
    smaller = FusionHierarchy(**(own_config(fusion) | {what: rank}))
    torch.nn.Module.to(smaller, fusion.device, fusion.dtype)  # the model's own warns of what it keeps in float32: none
    inputs = what == "input_rank"
    # The layers' numbers are the same in all blenders. A factored first layer moves the others on by one.
    at = 0 if inputs else fusion.spec.mlp_layers - 1
    state = {}
    for name, value in fusion.state_dict().items():
        blender, _, tensor = name.partition(".layers.")
        if tensor and inputs:
            number, _, kind = tensor.partition(".")
            name = f"{blender}.layers.{int(number) + 1}.{kind}"
        state[name] = value
    for blender, moment in _second_moments(fusion, codes, at).items():
        layer = _layer(fusion, blender, at)
        down, up = _layer(smaller, blender, at), _layer(smaller, blender, at + 1)
        weight = layer.weight.double() * layer.weight_gain
        weight, indicators = weight.split([len(moment), weight.shape[1] - len(moment)], dim=1)
        # The projection onto the `rank` directions in which the results W x vary most: W = U S V', from W E[x x'] W'.
        directions = torch.linalg.svd(weight @ _root(moment)).U[:, :rank]
        factors = directions.t() @ weight / down.weight_gain, torch.cat([directions, indicators], 1) / up.weight_gain
        for k, factor in enumerate(factors, at):
            state[f"{blender}.layers.{k}.weight"] = factor.to(layer.weight)
        state[f"{blender}.layers.{at}.bias"] = torch.zeros_like(down.bias)
        state[f"{blender}.layers.{at + 1}.bias"] = layer.bias.detach().clone()
    smaller.load_state_dict(state)
    return smaller.train(fusion.training)


@torch.no_grad()
def merge_layers(fusion: FusionHierarchy) -> FusionHierarchy:
    """Return nets with every pair of factors multiplied out, which compute the same; `fusion` if it has no factors.

    Nets that go on learning need all directions of their first and last layers.
    """
    ranks = {"input_rank": fusion.spec.input_rank, "output_rank": fusion.spec.output_rank}
    if not any(ranks.values()):
        return fusion
    larger = FusionHierarchy(**(own_config(fusion) | dict.fromkeys(ranks)))
    torch.nn.Module.to(larger, fusion.device, fusion.dtype)
    state = {k: v for k, v in fusion.state_dict().items() if ".layers." not in k}
    for name, module in fusion.named_modules():
        if not isinstance(module, Blender):
            continue
        whole = cast(Blender, larger.get_submodule(name))
        factors = cast("list[FoldedLinear]", list(module.layers))
        layers = [[layer] for layer in factors]
        if ranks["output_rank"]:
            layers[-2:] = [factors[-2:]]
        if ranks["input_rank"]:
            layers[:2] = [factors[:2]]
        for k, (parts, layer) in enumerate(zip(layers, whole.layers, strict=True)):
            weight, bias = _product(parts)
            state[f"{name}.layers.{k}.weight"] = (weight / cast(FoldedLinear, layer).weight_gain).to(fusion.dtype)
            state[f"{name}.layers.{k}.bias"] = bias.to(fusion.dtype)
    larger.load_state_dict(state)
    return larger.train(fusion.training)


def _product(layers: list[FoldedLinear]) -> tuple[Tensor, Tensor]:
    """Return what one or two layers multiply by, with its gain, and the bias that they add, without it; float64."""
    first = layers[0]
    weight, bias = first.weight.double() * first.weight_gain, first.bias.double()
    for layer in layers[1:]:
        seen, indicators = (layer.weight.double() * layer.weight_gain).tensor_split([len(weight)], dim=1)
        weight, bias = torch.cat([seen @ weight, indicators], dim=1), seen @ bias + layer.bias.double()
    return weight, bias


def _layer(fusion: FusionHierarchy, blender: str, number: int) -> FoldedLinear:
    """Return a layer of a gating MLP by the blender's module name."""
    return cast(FoldedLinear, fusion.get_submodule(f"{blender}.layers.{number}"))


def _root(moment: Tensor) -> Tensor:
    """Return the symmetric root of a positive semidefinite matrix."""
    values, vectors = torch.linalg.eigh(moment)
    return vectors * values.clamp_min(0).sqrt() @ vectors.t()


def _second_moments(fusion: FusionHierarchy, codes: Mapping[str, Tensor], number: int) -> dict[str, Tensor]:
    """Return {blender: E[x x'], float64} of what layer `number` sees in adaptive rows while the codes are fused."""
    found: dict[str, Tensor] = {}

    def record(name: str, adaptive: Tensor | None, _: Any, args: tuple[Any, ...]) -> None:
        rows = args[0].double()
        if adaptive is not None:
            rows = rows.unflatten(0, (-1, len(adaptive)))[:, adaptive.flatten() > 0].flatten(0, 1)
        found[name] = found.get(name, 0) + rows.t() @ rows

    hooks = [
        module.layers[number].register_forward_pre_hook(partial(record, name, module.adaptive))
        for name, module in fusion.named_modules()
        if isinstance(module, Blender)
    ]
    try:
        fusion.fuse(codes)
    finally:
        for hook in hooks:
            hook.remove()
    return found
