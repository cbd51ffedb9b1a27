"""Sampled codes of a generator, for whatever is trained or found without pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from stylefusion_hf.core.codes import random_labels
from stylefusion_hf.models.style_generator import StyleGenerator


def draw_w(g: StyleGenerator, count: int, draw: torch.Generator, min_psi: float) -> Tensor:
    """w (count, w_dim) of normal z, each truncated by its own psi, uniform between `min_psi` and 1.

    A conditional generator draws a random class for each, and truncates toward the mean over all classes as NVIDIA's
    code does.
    """
    z = torch.randn(count, g.config.z_dim, generator=draw, dtype=torch.float32)
    labels = random_labels(g.config.label_dim, count, draw)
    w = g.mapping(z.to(g.w_avg), None if labels is None else labels.to(g.w_avg))
    psi = (torch.rand(count, 1, generator=draw, dtype=torch.float32) * (1 - min_psi) + min_psi).to(w)
    return g.w_avg + psi * (w - g.w_avg)


@torch.no_grad()
def draw_rows(g: StyleGenerator, count: int, draw: torch.Generator, min_psi: float, mixed_share: float) -> Tensor:
    """w+ (count, num_ws, w_dim) of `draw_w`.

    `mixed_share` of them do not come from a single w: half are style-mixed (from a random layer on, the rows come from
    another w), half have every row jittered by a tenth of w's deviation. Codes of inverted pictures lie off W, too.
    """
    w, other = (draw_w(g, count, draw, min_psi) for _ in range(2))
    kind = torch.rand(count, generator=draw, dtype=torch.float32)
    crossing = torch.randint(1, g.num_ws, (count, 1), generator=draw)
    takes = ((kind[:, None] < mixed_share / 2) & (torch.arange(g.num_ws) >= crossing)).to(w.device)
    jitter = torch.randn(count, g.num_ws, w.shape[1], generator=draw, dtype=torch.float32).to(w)
    jitter = jitter * (0.1 * w.std(dim=0) if count > 1 else 0)
    jittered = ((kind >= mixed_share / 2) & (kind < mixed_share)).to(w)
    return torch.where(takes[..., None], other[:, None], w[:, None]) + jittered[:, None, None] * jitter


@torch.no_grad()
def draw_codes(
    g: StyleGenerator, count: int, draw: torch.Generator, min_psi: float, mixed_share: float, batch: int = 64
) -> Tensor:
    """Style codes (count, S) of `draw_rows`, drawn `batch` at a time."""
    sizes = [min(batch, count - first) for first in range(0, count, batch)]
    return torch.cat([g.to_style(draw_rows(g, n, draw, min_psi, mixed_share)) for n in sizes])
