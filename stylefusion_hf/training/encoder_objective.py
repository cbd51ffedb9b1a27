"""What an encoder is trained for: codes, pixels and features near those of the pictures that it sees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.imaging.features import map_distance
from stylefusion_hf.inversion.optimization import CodePrior
from stylefusion_hf.models.sampling import draw_rows
from stylefusion_hf.models.style_generator import StyleGenerator

Maps = Callable[[Tensor], list[Tensor]]  # images -> their feature maps
CodeDistance = Callable[[Tensor, Tensor], Tensor]  # codes and others (B, num_ws, w_dim) -> (B,)


def feature_distance(maps: Maps, images: Tensor, targets: Tensor) -> Tensor:
    """Return the distance (B,) between features of pictures (B, 3, H, W); gradients reach only `images`."""
    with torch.no_grad():
        wanted = maps(targets)
    return map_distance(maps(images), wanted)


def encoder_loss(
    g: StyleGenerator,
    maps: Maps,
    codes: Tensor,
    known: Tensor,
    images: Tensor,
    prior: CodePrior,
    weights: dict,
    *,
    distance: CodeDistance | None = None,
    compared: int | None = None,
    up_to: int | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of predicted codes.

    Args:
        codes: (B, num_ws, w_dim), predicted by the encoder from `images` (B, 3, H, W) or degraded copies.
        known: (K, num_ws, w_dim), the true codes of the first K images, which are samples.
        prior: of the generator's codes.
        weights: of the terms "code", "pixel", "feature" and "prior".
        distance: between codes; None for `prior.between`.
        compared: how many of the images, the last ones, are compared with the pictures of their codes; None for all.
        up_to: height of these pictures, that of `images`; None for the full size.

    Returns:
        The weighted sum, and each term.
    """
    zero, first = codes.new_zeros(()), 0 if compared is None else len(codes) - compared
    terms = {"pixel": zero, "feature": zero, "code": zero, "prior": prior.distance(codes, "w+").mean()}
    if first < len(codes):
        made = g.synthesis(g.to_style(codes[first:]), noise_mode="none", up_to=up_to)
        terms["pixel"] = (made - images[first:]).square().mean()
        if weights["feature"]:
            terms["feature"] = feature_distance(maps, made, images[first:]).mean()
    if len(known):
        terms["code"] = (distance or prior.between)(codes[: len(known)], known).mean()
    return sum((weights[k] * v for k, v in terms.items()), zero), terms


@dataclass(frozen=True, eq=False)
class PictureDistance:
    """Distance of codes by what their difference changes in pictures, in a linear approximation; about 2 for unrelated
    codes.

    Args:
        axes: (w_dim, w_dim), w's principal axes, each one standard deviation long, as in `ImageEncoder.w_axes`.
        importance: (num_ws, w_dim), the share of each row's axis in the change of a picture; the sum is 1.
    """

    axes: Tensor
    importance: Tensor

    @classmethod
    def measure(
        cls, g: StyleGenerator, axes: Tensor, up_to: int | None = None, samples: int = 48, seed: int = 0
    ) -> PictureDistance:
        """Measure the importance: the squared derivative of pictures by random projections, averaged over samples.

        up_to: height of the pictures; None for the full size.
        """
        total = torch.zeros(g.num_ws, axes.shape[0], device=axes.device)
        for k in range(samples):
            draw = step_generator(seed, k, purpose=8)
            code = draw_rows(g, 1, draw, 0.5, 0.0).requires_grad_()
            with torch.enable_grad():
                image = g.synthesis(g.to_style(code), noise_mode="none", up_to=up_to)
                signs = torch.randint(0, 2, image.shape, generator=draw).to(image) * 2 - 1
                (slope,) = torch.autograd.grad((image * signs).sum(), code)
            total += (slope[0] @ axes.t()).square()
        return cls(axes, total / total.sum())

    def __call__(self, codes: Tensor, others: Tensor) -> Tensor:
        """Return (B,) for codes (B, num_ws, w_dim)."""
        lengths = self.axes.square().sum(dim=1, keepdim=True).clamp_min(1e-12)
        steps = (codes - others) @ (self.axes / lengths).t()
        return (steps.square() * self.importance).sum(dim=(1, 2))
