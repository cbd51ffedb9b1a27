"""What gates know of whole codes (--context_width): the combinations of their numbers to start from."""

from __future__ import annotations

import torch
from torch import Tensor

from stylefusion_hf.models.config_checks import own_config
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.training.pool import RenderedPool

RIDGE = 0.01  # of the codes' largest squared singular value


def add_context(fusion: FusionHierarchy, width: int) -> FusionHierarchy:
    """Return the nets with a context of `width` numbers, which changes no gate before it has learned."""
    larger = FusionHierarchy(**(own_config(fusion) | {"context_width": width}))
    larger.load_state_dict(larger.state_dict() | fusion.state_dict())
    return larger


@torch.no_grad()
def set_context(fusion: FusionHierarchy, pool: RenderedPool) -> None:
    """Let the context start as what best predicts the looks, sizes and places of the pool's regions."""
    context = fusion.layout.context
    if context is None:
        raise ValueError("these nets have no context: give context_width")
    heads = [*pool.looks.values(), pool.areas[..., None], pool.centroids]
    features = torch.cat([_standardized(x.float().flatten(1)) for x in heads], dim=1)
    found = reduced_rank(fusion.layout.seen(pool.codes).float(), features, len(context.weight))
    context.weight.copy_(found / context.gain)


def reduced_rank(x: Tensor, y: Tensor, rank: int) -> Tensor:
    """Return the combinations (rank, S) of x (N, S) that best predict y (N, F), each of deviation 1.

    This is reduced-rank ridge regression (Mukherjee and Zhu, 2011): the principal directions of what ridge regression
    predicts. If the predictions have fewer directions than `rank`, the rest are random.
    """
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    left, size, right = torch.linalg.svd(x, full_matrices=False)
    shrink = size / (size.square() + RIDGE * size[0].square())  # of ridge regression
    coefficients = (shrink[:, None] * (left.t() @ y)).t() @ right  # (F, S)
    directions = torch.linalg.svd(x @ coefficients.t(), full_matrices=False).Vh[:rank]
    found = directions @ coefficients
    found = found / (x @ found.t()).std(dim=0).clamp_min(1e-6)[:, None]
    extra = torch.randn(rank - len(found), x.shape[1]) / x.shape[1] ** 0.5
    return torch.cat([found, extra.to(found)])


def _standardized(features: Tensor) -> Tensor:
    """Scale features (N, F) of one kind to a deviation of 1 / sqrt(F): a long kind weighs no more than a short one."""
    deviation = features.std(dim=0)
    return torch.where(deviation > 1e-6, (features - features.mean(dim=0)) / deviation, 0) / features.shape[1] ** 0.5
