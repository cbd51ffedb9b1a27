"""From pictures to codes: what an inversion optimises, how it does so, and pivotal tuning.

    objective = Objective(extractor(segmenter), targets)
    prior = CodePrior.of(generator)
    found = optimise(generator, start, "w+", objective, prior, steps=200)     # found.codes (B, num_ws, w_dim)
    tuned = tune(generator, generator.to_style(found.codes), objective, steps=100)

Every picture is optimised as if it were alone: its code, its best step and its stop depend on no other of its batch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.imaging.features import map_distance

if TYPE_CHECKING:
    from stylefusion_hf.models.style_generator import StyleGenerator

SPACES = ("w", "w+", "s")
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps (Karras et al., arXiv 1912.04958, appendix D)


# --- What is asked of a picture --------------------------------------------------------------------------------------


class Objective:
    """How far pictures are from their targets, in pixels and in features.

    Args:
        maps: images (B, 3, H, W) in [-1, 1] -> feature maps, as `features.extractor` gives.
        targets: (B, 3, H, W) in [-1, 1].
        weight: (B, H, W), not negative: what counts how much; None for everything alike. Its mean is brought to 1.
        pixel_weight: of the mean squared error of pixels.
        feature_weight: of `map_distance`.

    Raises:
        ValueError: weights that are negative, or all 0 for a picture.
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
                f"pixel_weight and feature_weight are not negative and not both 0, got {pixel_weight} and"
                f" {feature_weight}"
            )
        self.maps, self.targets = maps, targets
        self.pixel_weight, self.feature_weight = pixel_weight, feature_weight
        with torch.no_grad():
            self.seen = [m.detach() for m in maps(targets)] if feature_weight else []
        self.weight = weight
        if weight is not None:
            if tuple(weight.shape) != (targets.shape[0], *targets.shape[2:]):
                expected = (targets.shape[0], *targets.shape[2:])
                raise ValueError(f"masks of these pictures have the shape {expected}, got {tuple(weight.shape)}")
            total = weight.mean(dim=(1, 2), keepdim=True)
            if not (bool(weight.min() >= 0) and bool(total.min() > 0)):
                raise ValueError("masks are not negative, and somewhere above 0 in every picture")
            self.weight = weight / total

    def __len__(self) -> int:
        return len(self.targets)

    def __call__(self, images: Tensor, chosen: Tensor | slice = slice(None)) -> Tensor:
        """(B,): the loss of pictures of the `chosen` targets."""
        weight = None if self.weight is None else self.weight[chosen]
        error = (images - self.targets[chosen]).square().mean(dim=1)  # (B, H, W)
        loss = self.pixel_weight * (error if weight is None else error * weight).mean(dim=(1, 2))
        if self.feature_weight:
            apart = map_distance(self.maps(images), [m[chosen] for m in self.seen], weight)
            loss = loss + self.feature_weight * apart
        return loss


# --- Where codes of the generator lie --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CodePrior:
    """The distribution of a generator's codes.

    w is nearly normal once the mapping's last leaky ReLU is undone and its correlations are taken out: the space P_N
    of Zhu et al., arXiv 2012.09036. Style codes s are taken number by number.

    Args:
        w_mean, w_std: (w_dim,), of w. s_mean, s_std: (S,), of s.
        centre: (w_dim,), of the unfolded w. whiten: (w_dim, K), to uncorrelated numbers of deviation 1.
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
        """Measured on a seeded draw; of a conditional generator over all its classes."""
        draw, config = torch.Generator().manual_seed(seed), generator.config
        z = torch.randn(samples, config.z_dim, generator=draw)
        labels = None
        if config.label_dim:
            labels = F.one_hot(torch.randint(config.label_dim, (samples,), generator=draw), config.label_dim)
            labels = labels.to(generator.w_avg)
        w = generator.mapping(z.to(generator.w_avg), labels)
        s = torch.cat([generator.to_style(part) for part in w.split(1024)])
        unfolded = unfold(w)
        centre = unfolded.mean(dim=0)
        values, vectors = torch.linalg.eigh((unfolded - centre).t().cov().cpu().double())
        # Directions that w hardly takes would be forbidden rather than unlikely.
        kept = values > 1e-4 * values.max()
        whiten = (vectors[:, kept] / values[kept].sqrt()).to(w)
        return cls(w.mean(0), w.std(0).clamp_min(1e-6), s.mean(0), s.std(0).clamp_min(1e-6), centre, whiten)

    def distance(self, codes: Tensor, space: str) -> Tensor:
        """(B,): the mean square of codes in units of the distribution; about 1 for the generator's own."""
        if space == "s":
            return ((codes - self.s_mean) / self.s_std).square().mean(dim=1)
        return ((unfold(codes) - self.centre) @ self.whiten).square().flatten(1).mean(dim=1)

    def between(self, codes: Tensor, others: Tensor) -> Tensor:
        """(B,): the mean squared difference of codes in w or w+, in the same units; about 2 for unrelated ones."""
        return ((unfold(codes) - unfold(others)) @ self.whiten).square().flatten(1).mean(dim=1)

    def scale(self, space: str) -> tuple[Tensor, Tensor]:
        """Mean and deviation that standardise codes of a space."""
        return (self.s_mean, self.s_std) if space == "s" else (self.w_mean, self.w_std)


def unfold(w: Tensor) -> Tensor:
    """w before the mapping's last leaky ReLU (of slope 0.2), up to its gain."""
    return F.leaky_relu(w, 5.0)


# --- Codes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Optimised:
    """`codes` as the start, the best of each picture; `loss` (B,) at these; `steps` (B,) that each picture took."""

    codes: Tensor
    loss: Tensor
    steps: Tensor


# Step, codes of all pictures (B, ...), their losses (B,) -> codes to go on with, or None.
OnStep = Callable[[int, Tensor, Tensor], Any]


class Interrupted(Exception):
    """Raised by an `OnStep` to stop; what was found so far is kept."""


def optimise(
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
    on_step: OnStep | None = None,
) -> Optimised:
    """Codes whose pictures come near the objective's targets, by Adam with Karras et al.'s schedule.

    Args:
        generator: float32, not changed.
        start: (B, w_dim), (B, num_ws, w_dim) or (B, S).
        space: "w", "w+" or "s".
        steps: at most so many.
        learning_rate: in units of the codes' deviation.
        prior_weight: of `CodePrior.distance`.
        tolerance: a step that lowers a picture's best loss by a smaller share than this does not count as progress.
        patience: so many steps without progress end a picture's optimisation.
        noise_mode: of the synthesis; random noise would be chased.
        on_step: called after each step.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    mean, deviation = prior.scale(space)
    best, best_loss = start.clone(), torch.full((len(start),), torch.inf, device=start.device)
    progress, taken = best_loss.clone(), torch.zeros(len(start), dtype=torch.long, device=start.device)
    since = torch.zeros_like(taken)
    active = torch.arange(len(start), device=start.device)
    # Adam's moments are kept here, since pictures leave the batch when they are done.
    x = ((start - mean) / deviation).detach()
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    latest, losses = start.clone(), best_loss.clone()
    for step in range(steps + 1):  # the last round only looks
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_()
            codes = mean + deviation * x
            s = codes if space == "s" else generator.to_style(codes)
            loss = objective(generator.synthesis(s, noise_mode=noise_mode), active)
            loss = loss + prior_weight * prior.distance(codes, space)
            if not bool(loss.isfinite().all()):
                raise FloatingPointError(
                    f"the loss is not finite after {step} steps: lower the learning rate, {learning_rate}"
                )
            gradient = torch.autograd.grad(loss.sum(), x)[0] if step < steps else torch.zeros_like(x)
        # To the bit, which standardising and back is not.
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
    return Optimised(best, best_loss, taken)


def schedule(t: float) -> float:
    """The learning rate's factor at a share t of the steps: a linear rise, then a plateau, then half a cosine down."""
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
    seed: int = 0,
    on_step: Callable[[int, Tensor], Any] | None = None,
) -> StyleGenerator:
    """A copy of the generator whose pictures at the pivots come nearer to their targets: pivotal tuning, Roich et al.,
    arXiv 2106.05744.

    All pivots share one copy. Only the synthesis is tuned, so that w, s and the fusion nets' codes keep their meaning.
    So that other codes keep their pictures, the copy is held to the original at codes between a pivot and a random
    one: those that fusion makes.

    Args:
        generator: float32, not changed.
        pivots: style codes (B, S).
        objective: of the B pictures.
        steps: of Adam, each on `batch_size` pictures in turn.
        locality_weight: of the squared error and the feature distance to the original's pictures.
        seed: of the random codes.
        on_step: called after each step with its losses.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    with torch.inference_mode(False), torch.enable_grad():
        tuned = copy.deepcopy(generator).requires_grad_(False)
        tuned.synthesis.requires_grad_(True)
        optimizer = torch.optim.Adam(tuned.synthesis.parameters(), lr=learning_rate)
        draw, count = torch.Generator().manual_seed(seed), len(pivots)
        pivots = pivots.clone()  # may come from inference mode
        size = min(batch_size, count)
        for step in range(steps):
            chosen = (torch.arange(size) + step * size) % count
            chosen = chosen.to(pivots.device)
            loss = objective(tuned.synthesis(pivots[chosen], noise_mode=noise_mode), chosen)
            total = loss.mean()
            if locality_weight:
                others = between(generator, pivots[chosen], draw)
                with torch.no_grad():
                    kept = generator.synthesis(others, noise_mode=noise_mode)
                held = Objective(objective.maps, kept, None, objective.pixel_weight, objective.feature_weight)
                total = total + locality_weight * held(tuned.synthesis(others, noise_mode=noise_mode)).mean()
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
def between(generator: StyleGenerator, pivots: Tensor, draw: torch.Generator) -> Tensor:
    """Style codes (B, S), each at a random place between a pivot and a random code."""
    config, count = generator.config, len(pivots)
    labels = None
    if config.label_dim:
        labels = F.one_hot(torch.randint(config.label_dim, (count,), generator=draw), config.label_dim).to(pivots)
    z = torch.randn(count, config.z_dim, generator=draw).to(pivots)
    other = generator.to_style(generator.truncate(generator.mapping(z, labels), config.truncation_psi))
    share = torch.rand(count, 1, generator=draw).to(pivots)
    return pivots + share * (other - pivots)
