"""From pictures to codes: the objective of an inversion, its optimization, and pivotal tuning.

    objective = Objective(extractor(segmenter), targets)
    prior = CodePrior.of(generator)
    found = optimize(generator, start, "w+", objective, prior, steps=200)  # found.codes (B, num_ws, w_dim)
    tuned = tune(generator, generator.to_style(found.codes), objective, steps=100)

Each picture is optimized independently: its code, best step and stopping do not depend on the rest of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.sizes import size_at
from stylefusion_hf.imaging.features import map_distance
from stylefusion_hf.models.hooks import plain_copy, run_eagerly

if TYPE_CHECKING:
    from stylefusion_hf.models.style_generator import StyleGenerator

SPACES = ("w", "w+", "s")
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # fractions of the steps (Karras et al., arXiv 1912.04958, appendix D)


# --- Objective -------------------------------------------------------------------------------------------------------


class Objective:
    """Distance of pictures from their targets, in pixels and in features.

    Args:
        maps: images (B, 3, H, W) in [-1, 1] -> feature maps, as from `features.extractor`.
        targets: (B, 3, H, W) in [-1, 1].
        weight: pixel weights (B, H, W), not negative, normalized to mean 1; None for equal weights.
        pixel_weight: weight of the mean squared pixel error.
        feature_weight: weight of `map_distance`.

    Raises:
        ValueError: weights are negative, or all 0 for a picture.
    """

    def __init__(
        self,
        maps: Callable[[Tensor], list[Tensor]],
        targets: Tensor,
        weight: Tensor | None = None,
        pixel_weight: float = 1.0,
        feature_weight: float = 0.1,
    ):
        if pixel_weight < 0 or feature_weight < 0 or not pixel_weight + feature_weight > 0:
            raise ValueError(
                f"pixel_weight and feature_weight must not be negative and not both 0, got {pixel_weight} and"
                f" {feature_weight}"
            )
        self.maps, self.targets = maps, targets
        self.pixel_weight, self.feature_weight = pixel_weight, feature_weight
        with torch.no_grad():
            self.target_maps = [m.detach() for m in maps(targets)] if feature_weight else []
        self.weight = weight
        if weight is not None:
            if tuple(weight.shape) != (targets.shape[0], *targets.shape[2:]):
                expected = (targets.shape[0], *targets.shape[2:])
                raise ValueError(f"masks of these pictures must have the shape {expected}, got {tuple(weight.shape)}")
            total = weight.mean(dim=(1, 2), keepdim=True)
            if not (bool(weight.min() >= 0) and bool(total.min() > 0)):
                raise ValueError("masks must not be negative, and must be above 0 somewhere in every picture")
            self.weight = weight / total

    def __len__(self) -> int:
        return len(self.targets)

    def at_size(self, size: int) -> Objective:
        """Return this objective for pictures of a height of `size` px, to which targets and weights are averaged."""
        smaller = size_at(size, (self.targets.shape[-2], self.targets.shape[-1]))
        weight = None if self.weight is None else F.adaptive_avg_pool2d(self.weight, smaller)
        targets = F.adaptive_avg_pool2d(self.targets, smaller)
        return Objective(self.maps, targets, weight, self.pixel_weight, self.feature_weight)

    def __call__(self, images: Tensor, chosen: Tensor | slice = slice(None)) -> Tensor:
        """Return the losses (B,) of pictures against the `chosen` targets."""
        weight = None if self.weight is None else self.weight[chosen]
        error = (images - self.targets[chosen]).square().mean(dim=1)  # (B, H, W)
        loss = self.pixel_weight * (error if weight is None else error * weight).mean(dim=(1, 2))
        if self.feature_weight:
            distance = map_distance(self.maps(images), [m[chosen] for m in self.target_maps], weight)
            loss = loss + self.feature_weight * distance
        return loss


# --- Prior on codes --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CodePrior:
    """The distribution of a generator's codes.

    w is nearly normal after undoing the mapping's last leaky ReLU and decorrelating: the space P_N of Zhu et al.,
    arXiv 2012.09036. Style codes s are normalized per channel.

    Args:
        w_mean, w_std: (w_dim,), mean and standard deviation of w.
        s_mean, s_std: (S,), mean and standard deviation of s.
        center: (w_dim,), mean of the unfolded w.
        whiten: (w_dim, K), maps the centered unfolded w to uncorrelated numbers of standard deviation 1.
    """

    w_mean: Tensor
    w_std: Tensor
    s_mean: Tensor
    s_std: Tensor
    centre: Tensor
    whiten: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, generator: StyleGenerator, samples: int = 8192, seed: int = 0) -> CodePrior:
        """Measure the distribution on seeded samples, over all classes of a conditional generator."""
        draw, config = torch.Generator().manual_seed(seed), generator.config
        z = torch.randn(samples, config.z_dim, generator=draw, dtype=torch.float32)
        labels = None
        if config.label_dim:
            labels = F.one_hot(torch.randint(config.label_dim, (samples,), generator=draw), config.label_dim)
            labels = labels.to(generator.w_avg)
        with run_eagerly(generator):
            w = generator(z.to(generator.w_avg), labels, output="w", return_dict=False)[0]
        # s is affine in w, so its moments follow from those of w; the codes themselves would take hundreds of MB.
        affine = generator.affine_weight * generator.affine_gain
        s_mean = generator.to_style(w.mean(0, keepdim=True))[0]
        s_std = ((affine @ w.t().cov()) * affine).sum(dim=1).clamp_min(0).sqrt()
        unfolded = unfold(w)
        centre = unfolded.mean(dim=0)
        values, vectors = torch.linalg.eigh((unfolded - centre).t().cov().cpu().double())
        # Drop directions of nearly zero variance, along which any step would be prohibitive.
        kept = values > 1e-4 * values.max()
        whiten = (vectors[:, kept] / values[kept].sqrt()).to(w)
        return cls(w.mean(0), w.std(0).clamp_min(1e-6), s_mean, s_std.clamp_min(1e-6), centre, whiten)

    def distance(self, codes: Tensor, space: str) -> Tensor:
        """Return (B,): the mean square of normalized codes; about 1 for the generator's own codes."""
        if space == "s":
            return ((codes - self.s_mean) / self.s_std).square().mean(dim=1)
        return ((unfold(codes) - self.centre) @ self.whiten).square().flatten(1).mean(dim=1)

    def between(self, codes: Tensor, others: Tensor) -> Tensor:
        """Return (B,): the mean squared difference of normalized codes in w or w+; about 2 for unrelated codes."""
        return ((unfold(codes) - unfold(others)) @ self.whiten).square().flatten(1).mean(dim=1)

    def scale(self, space: str) -> tuple[Tensor, Tensor]:
        """Return the mean and standard deviation of codes in a space."""
        return (self.s_mean, self.s_std) if space == "s" else (self.w_mean, self.w_std)


def unfold(w: Tensor) -> Tensor:
    """Undo the mapping's last leaky ReLU (slope 0.2) on w, up to its gain."""
    return F.leaky_relu(w, 5.0)


# --- Optimization of codes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class OptimizationResult:
    """Best `codes` of each picture, shaped like the start; `loss` (B,) at these; `steps` (B,) that each took."""

    codes: Tensor
    loss: Tensor
    steps: Tensor


# step, codes of all pictures (B, ...), their losses (B,) -> codes to continue with, or None
OnStep = Callable[[int, Tensor, Tensor], Any]


class Interrupted(Exception):
    """Raised by an `OnStep` to stop; the best codes so far are kept."""


def optimize(
    generator: StyleGenerator,
    start: Tensor,
    space: str,
    objective: Objective,
    prior: CodePrior,
    *,
    steps: int,
    learning_rate: float = 0.2,
    prior_weight: float = 0.003,
    tolerance: float = 1e-3,
    patience: int = 25,
    noise_mode: str = "none",
    up_to: int | None = None,
    on_step: OnStep | None = None,
) -> OptimizationResult:
    """Optimize codes toward the objective's targets, by Adam with the schedule of Karras et al.

    Args:
        generator: in float32; not modified.
        start: (B, w_dim), (B, num_ws, w_dim) or (B, S).
        space: "w", "w+" or "s".
        steps: maximum number of steps.
        learning_rate: in units of the codes' standard deviation.
        prior_weight: weight of `CodePrior.distance`.
        tolerance: a step counts as progress if it lowers a picture's best loss by at least this fraction.
        patience: number of steps without progress after which a picture's optimization ends.
        noise_mode: of the synthesis; codes would try to fit random noise.
        up_to: height of the pictures to compare, one of `generator.picture_sizes`; the objective's targets have this
            size. None for the full size.
        on_step: called after each step.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    mean, deviation = prior.scale(space)
    best, best_loss = start.clone(), start.new_full((len(start),), torch.inf)
    progress, taken = best_loss.clone(), torch.zeros(len(start), dtype=torch.long, device=start.device)
    since = torch.zeros_like(taken)
    active = torch.arange(len(start), device=start.device)
    # Adam is written out here because finished pictures leave the batch, along with their moments.
    x = ((start - mean) / deviation).detach()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    latest, losses = start.clone(), best_loss.clone()
    for step in range(steps + 1):  # the last round only evaluates
        # Loss and gradient of the active pictures.
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            codes = mean + deviation * x
            with run_eagerly(generator):
                s = codes if space == "s" else generator.to_style(codes)
            images = generator(s, latent_type="s", noise_mode=noise_mode, up_to=up_to, return_dict=False)[0]
            loss = objective(images, active)
            loss = loss + prior_weight * prior.distance(codes, space)
            if not bool(loss.isfinite().all()):
                raise FloatingPointError(
                    f"the loss is not finite after {step} steps: lower the learning rate, {learning_rate}"
                )
            gradient = torch.autograd.grad(loss.sum(), x)[0] if step < steps else torch.zeros_like(x)
        # Keep the best codes; at step 0 the start itself, since normalizing and back is not bit-exact.
        x, loss, codes = x.detach(), loss.detach(), start if step == 0 else codes.detach()
        better = loss < best_loss[active]
        best[active[better]], best_loss[active[better]] = codes[better], loss[better]
        gained = loss < progress[active] * (1 - tolerance)
        progress[active[gained]] = loss[gained]
        since[active] = torch.where(gained, 0, since[active] + 1)
        latest[active], losses[active] = codes, loss
        if on_step is not None and step:
            try:
                replaced = on_step(step, latest, losses)
            except Interrupted:
                break
            if replaced is not None:
                x = (replaced.to(x)[active] - mean) / deviation
        # Drop finished pictures, then take an Adam step.
        go = since[active] < patience
        active, x, first, second, gradient = active[go], x[go], first[go], second[go], gradient[go]
        if step == steps or not len(active):
            break
        taken[active] += 1
        t = step + 1
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        rate = learning_rate * schedule(t / steps)
        x = x - rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.999**t)).sqrt() + 1e-8)
    return OptimizationResult(best, best_loss, taken)


def schedule(t: float) -> float:
    """Return the learning-rate factor at fraction t of the steps: linear warm-up, plateau, then cosine decay."""
    down = min(1.0, (1 - t) / RAMP_DOWN)
    fade = 0.5 - 0.5 * float(torch.cos(torch.tensor(down * torch.pi)))
    return max(fade, 0.02) * min(1.0, t / RAMP_UP)


# --- Pivotal tuning --------------------------------------------------------------------------------------------------


def tune(
    generator: StyleGenerator,
    pivots: Tensor,
    objective: Objective,
    *,
    steps: int,
    learning_rate: float = 1e-3,
    locality_weight: float = 0.1,
    batch_size: int = 4,
    noise_mode: str = "none",
    seed: int | Sequence[int] = 0,
    on_step: Callable[[int, Tensor], Any] | None = None,
) -> StyleGenerator:
    """Tune a copy of the generator so that its pictures at the pivots approach their targets: pivotal tuning (Roich et
    al., arXiv 2106.05744).

    All pivots share one copy. Only the synthesis network is tuned, so that w, s and the fusion nets' codes keep their
    meaning. To preserve the pictures of other codes, the copy is regularized toward the original at codes between a
    pivot and a random code, like those that fusion produces.

    Args:
        generator: in float32; not modified.
        pivots: style codes (B, S).
        objective: objective of the B pictures.
        steps: Adam steps, cycling through the pictures `batch_size` at a time.
        locality_weight: weight of the squared error and feature distance to the original's pictures.
        seed: seed of the random codes; a list has one per pivot, whose draws are then its own.
        on_step: called after each step with its losses.

    Raises:
        FloatingPointError: the loss is not finite.
    """

    def pictures(network: StyleGenerator, s: Tensor) -> Tensor:
        return network(s, latent_type="s", noise_mode=noise_mode, return_dict=False)[0]

    with torch.inference_mode(False), torch.enable_grad():
        tuned = plain_copy(generator).requires_grad_(False)
        tuned.synthesis.requires_grad_(True)
        optimizer = torch.optim.Adam(tuned.synthesis.parameters(), lr=learning_rate)
        count = len(pivots)
        shared = torch.Generator().manual_seed(seed) if isinstance(seed, int) else None
        own = [] if isinstance(seed, int) else [torch.Generator().manual_seed(each) for each in seed]
        pivots = pivots.clone()  # they may be inference tensors
        size = min(batch_size, count)
        for step in range(steps):
            chosen = (torch.arange(size) + step * size) % count
            chosen = chosen.to(pivots.device)
            loss = objective(pictures(tuned, pivots[chosen]), chosen)
            total = loss.mean()
            if locality_weight:
                draws = [own[k] for k in chosen.tolist()] if shared is None else shared
                others = interpolate_randomly(generator, pivots[chosen], draws)
                with torch.no_grad():
                    originals = pictures(generator, others)
                locality = Objective(objective.maps, originals, None, objective.pixel_weight, objective.feature_weight)
                total = total + locality_weight * locality(pictures(tuned, others)).mean()
            if not bool(total.isfinite()):
                raise FloatingPointError(
                    f"the loss is not finite after {step} steps of tuning: lower its learning rate, {learning_rate}"
                )
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            if on_step is not None:
                try:
                    on_step(step + 1, loss.detach())
                except Interrupted:
                    break
    return tuned.requires_grad_(True).train(generator.training)


@torch.no_grad()
def interpolate_randomly(
    generator: StyleGenerator, pivots: Tensor, draw: torch.Generator | Sequence[torch.Generator]
) -> Tensor:
    """Return style codes (B, S), each at a random position between a pivot and a random code.

    draw: draws for all of them, or one for each.
    """
    config, count = generator.config, len(pivots)
    sources = [(draw, count)] if isinstance(draw, torch.Generator) else [(each, 1) for each in draw]
    labels, zs, shares = [], [], []
    for source, n in sources:
        if config.label_dim:
            labels.append(torch.randint(config.label_dim, (n,), generator=source))
        zs.append(torch.randn(n, config.z_dim, generator=source, dtype=torch.float32))
        shares.append(torch.rand(n, 1, generator=source, dtype=torch.float32))
    classes = F.one_hot(torch.cat(labels), config.label_dim).to(pivots) if labels else None
    with run_eagerly(generator):
        z = torch.cat(zs).to(pivots)
        other = generator(z, classes, "z", config.truncation_psi, output="s", return_dict=False)[0]
    return pivots + torch.cat(shares).to(pivots) * (other - pivots)
