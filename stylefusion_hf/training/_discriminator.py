"""The judges' discriminator: its loss on real pictures and plain samples of a frozen generator, and its figures."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from stylefusion_hf.models.sampling import draw_w
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.training.augment import augment
from stylefusion_hf.training.gan_losses import gradient_penalty


def realness_loss(
    d: nn.Module, real: Tensor, fake: Tensor, policy: tuple[str, ...], r1_gamma: float, draw: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the logistic loss on real and generated images (B, 3, H, W), plus R1 unless its weight is 0.

    Both are augmented by `policy`. Returns the loss, and scalars to log.
    """
    real = real.requires_grad_(r1_gamma > 0)
    real_logits, fake_logits = (d(augment(x, policy, draw)).logits.float() for x in (real, fake))
    loss = F.softplus(fake_logits).mean() + F.softplus(-real_logits).mean()
    logged = {"real": real_logits.mean(), "fake": fake_logits.mean()}
    if not r1_gamma:
        return loss, logged
    penalty = gradient_penalty(real_logits, real)
    return loss + penalty * (r1_gamma / 2), {**logged, "r1": penalty}


def default_channels(resolution: int) -> list[int]:
    """Return 96, 96, 64, 48, 32 at 64 pixels; larger resolutions continue by halving, down to 8."""
    known = [96, 96, 64, 48, 32]
    blocks = max(resolution.bit_length() - 2, 1)
    return [known[k] if k < len(known) else max(known[-1] >> (k - len(known) + 1), 8) for k in range(blocks)]


@torch.no_grad()
def plain_samples(g: StyleGenerator, count: int, draw: torch.Generator, batch: int = 64) -> Tensor:
    """Return fresh samples (count, 3, H, W) in [-1, 1], each truncated by its own psi between 0.5 and 1."""
    if g.has_noise:  # noise inputs come from the global random state, which this seed ties to `draw`
        torch.manual_seed(int(torch.randint(2**62, (1,), generator=draw)))
    styles = g.to_style(draw_w(g, count, draw, min_psi=0.5))
    return torch.cat([g.synthesis(s, noise_mode="random").clamp(-1, 1) for s in styles.split(batch)])


@torch.no_grad()
def separation(d: StyleGAN2Discriminator, real: Tensor, fake: Tensor) -> dict[str, float]:
    """Measure how well real pictures rank above generated ones: "AUC" (0.5 is chance), mean logits, 5th percentile."""
    logits = [torch.cat([d(x.to(d.device)).logits[:, 0].cpu() for x in images.split(64)]) for images in (real, fake)]
    higher = (logits[0][:, None] > logits[1]).float().mean()
    return {
        "AUC": float(higher),
        "mean logit, real": float(logits[0].mean()),
        "mean logit, generated": float(logits[1].mean()),
        "5th percentile, generated": float(logits[1].quantile(0.05)),
    }
