"""The adversarial losses of the generator's trainer, and the penalties on the discriminator's gradient.

`logistic` is StyleGAN2's non-saturating loss. `relativistic` is R3GAN's (Huang et al., arXiv 2501.05441): the
discriminator ranks a real image above a generated one, pair by pair, and the generator reverses the order. A generator
that gives up a mode of the data then always has pairs that it loses, which is why it drops fewer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("logistic", "relativistic")


def generator_loss(kind: str, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """What the generator minimizes, from logits (B, 1) of generated and, for `relativistic`, of real images."""
    if kind == "logistic":
        return F.softplus(-fake).mean()
    if kind != "relativistic":
        raise ValueError(f"unknown loss {kind!r}; choose from {', '.join(LOSSES)}")
    if real is None:
        raise ValueError("the relativistic loss compares generated images with real ones: give the logits of both")
    return F.softplus(real - fake).mean()


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """What the discriminator minimizes, from logits (B, 1) of real and of generated images."""
    if kind == "logistic":
        return F.softplus(fake).mean() + F.softplus(-real).mean()
    if kind != "relativistic":
        raise ValueError(f"unknown loss {kind!r}; choose from {', '.join(LOSSES)}")
    return F.softplus(fake - real).mean()


def r1_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean squared norm of the gradient of the logits at `images` (Mescheder et al., arXiv 1801.04406).

    At real images this is R1, at generated ones R2.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()
