"""Steps of an inversion: models whose weights are in place, the weight of each pixel, and what was reached."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from threading import get_ident
from typing import Any, TypeVar

import torch
from torch import nn

from stylefusion_hf.core.checks import check_number, short
from stylefusion_hf.imaging.features import map_distance
from stylefusion_hf.models.hooks import has_hooks, plain_copy
from stylefusion_hf.pipelines import steps as _steps
from stylefusion_hf.pipelines.targets import read_masks

F = TypeVar("F", bound=Callable[..., Any])


def leave_inference_mode(function: F) -> F:
    """Run a method outside inference mode, whose tensors optimization could not differentiate."""

    @wraps(function)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            with torch.inference_mode(False), torch.no_grad():
                return function(self, *args, **kwargs)
        finally:
            self._stopped.pop(get_ident(), None)  # the call is over, nothing left to interrupt

    return wrapper  # type: ignore[return-value]


def in_place(model: Any, device: torch.device) -> Any:
    """Return a model whose weights are all on `device` in float32, as optimization needs them: itself, or a copy if it
    is offloaded, cast layer by layer, or in half precision, which is too coarse."""
    if not isinstance(model, nn.Module):
        return model
    half = getattr(model, "dtype", torch.float32) != torch.float32
    return plain_copy(model, device, torch.float32) if half or has_hooks(model) else model


def pixel_weights(
    masks: Any, region_weights: Any, targets: torch.Tensor, segmenter: Any, batch: int
) -> torch.Tensor | None:
    """Return the pixel weights (B, H, W), or None if all pixels count equally."""
    weight = None
    if masks is not None:
        weight = read_masks(masks, targets)
    if not (region_weights is None or isinstance(region_weights, Mapping)):
        raise ValueError(f"region_weights must be a dict, region -> number, got {short(region_weights)}")
    if region_weights:
        if segmenter is None:
            raise ValueError("region_weights need a segmenter, and this pipeline has none: give masks=")
        known = list(segmenter.config.regions)
        for name, value in region_weights.items():
            if name not in known:
                listed = ", ".join(known)
                raise ValueError(f"region_weights: no region {short(name)}; the segmenter knows {listed}")
            check_number(f"region_weights[{name!r}]", value, 0, 1e6)
        factors = targets.new_tensor([float(region_weights.get(name, 1.0)) for name in known])
        found = _steps.segment(segmenter, targets, batch)
        by_region = torch.einsum("rbhw,r->bhw", torch.stack([found[n] for n in known]).to(targets), factors)
        weight = by_region if weight is None else weight * by_region
    return weight


def measure(
    network: Any, style: torch.Tensor, targets: torch.Tensor, maps: Any, noise_mode: str, batch: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return reconstructions (B, C, H, W), mean squared errors (B,) and feature distances (B,)."""
    made, mse, distances = [], [], []
    for s, target in zip(style.split(batch), targets.split(batch), strict=True):
        image = network(s, latent_type="s", noise_mode=noise_mode, return_dict=False)[0].clamp(-1, 1)
        made.append(image)
        mse.append((image - target).square().mean(dim=(1, 2, 3)))
        distances.append(map_distance(maps(image), maps(target)))
    return torch.cat(made), torch.cat(mse).cpu(), torch.cat(distances).cpu()
