"""Adversarial losses, the gradient penalties R1 and R2, and the path length.

`logistic` is StyleGAN2's non-saturating loss. `relativistic` is R3GAN's (Huang et al., arXiv 2501.05441): the
discriminator learns to rank a real image above a generated one, pair by pair, and the generator to reverse the order.
A generator that drops a mode of the data then always loses some pairs, which is why it drops fewer.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.training.choices import LOSSES


def generator_loss(kind: str, fake: Tensor, real: Tensor | None = None) -> Tensor:
    """Return the generator's loss from logits (B, 1) of generated and, for `relativistic`, real images."""
    if kind == "logistic":
        return F.softplus(-fake).mean()
    if kind != "relativistic":
        raise ValueError(f"unknown loss {kind!r}; choose from {', '.join(LOSSES)}")
    if real is None:
        raise ValueError("the relativistic loss compares generated with real images: give the logits of both")
    return F.softplus(real - fake).mean()


def discriminator_loss(kind: str, real: Tensor, fake: Tensor) -> Tensor:
    """Return the discriminator's loss from logits (B, 1) of real and generated images."""
    if kind == "logistic":
        return F.softplus(fake).mean() + F.softplus(-real).mean()
    if kind != "relativistic":
        raise ValueError(f"unknown loss {kind!r}; choose from {', '.join(LOSSES)}")
    return F.softplus(fake - real).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Return the mean squared norm of the logits' gradient at `images` (Mescheder et al., arXiv 1801.04406).

    At real images this is R1, at generated ones R2.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_length(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Return |J^T y| per sample, (B,): arXiv 1912.04958, section 3.2.

    Args:
        images: (B, C, H, W).
        ws: the w+ (B, num_ws, w_dim) that they were made from.
        noise: standard normal, of the images' shape; divided by sqrt(H W) it is y.
    """
    y = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * y).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()
