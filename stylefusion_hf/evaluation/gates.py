"""Learned static gates: one constant gate over the style channels for each region and each trade-off."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from stylefusion_hf.core.json_files import parse_json
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.core.tensor_files import write_tensors
from stylefusion_hf.evaluation.channels import energy_shares, rendered_at_once
from stylefusion_hf.evaluation.methods import GateMethod, move
from stylefusion_hf.evaluation.score import Scores, TrainingScore


class LearnedGates(GateMethod):
    """A constant gate for each region and trade-off, learned on the training score: a strong baseline.

    Sigmoids of logits, Adam, loss O + lambda (1 - T) over random pairs of plain samples. There are gates for each of
    `lambdas` (L of them, ascending); strength u goes on between and beyond them: from 0 to 1 that share of the
    weakest gate, from 1 to L interpolated logits, from L to L + 1 from the strongest gate to the whole source.

    Args:
        lambdas: weights of transfer.
        steps: for each lambda; every step's batch holds all regions and lambdas in turn.
        batch: items per step.
        pool: plain samples that pairs are made from.
        score: None builds one.
        at_once: items rendered at once, with gradients; None: what their size allows. A step's gradients add up.
    """

    name = "static gates"

    def __init__(
        self,
        pipe,
        lambdas: Sequence[float] = (0.25, 0.7, 2.0, 6.0),
        steps: int = 100,
        batch: int = 16,
        pool: int = 256,
        seed: int = 0,
        learning_rate: float = 0.1,
        score: TrainingScore | None = None,
        at_once: int | None = None,
    ):
        super().__init__(pipe)
        self.at_once = at_once
        if not lambdas or sorted(lambdas) != list(lambdas) or lambdas[0] <= 0:
            raise ValueError(f"lambdas must be positive and ascending, got {list(lambdas)}")
        self.lambdas, self.steps, self.batch = tuple(map(float, lambdas)), steps, batch
        self.pool, self.seed, self.learning_rate, self.score = pool, seed, learning_rate, score
        self.regions = [name for name in pipe.segmenter.config.regions if name in pipe.fusion.tree.leaves]
        self.logits: Tensor | None = None  # (L, R, S)
        self.history: list[float] = []  # loss per item, step by step
        count = len(lambdas)
        inner = [1 + i / 2 for i in range(2 * count - 1)]
        beyond = max(3, 9 - len(inner))
        self.strengths = (0.5, *inner, *(count + (i + 1) / beyond for i in range(beyond)))

    @torch.enable_grad()  # a method may be fitted on first use, in the middle of measuring
    def fit(self) -> LearnedGates:
        """Learn the gates (anew), with a progress bar."""
        score = self.score = self.score or TrainingScore(self.pipe, batch=self.at_once)
        looks = score.pool(self.pool)
        device, regions, lambdas = looks.codes.device, len(self.regions), len(self.lambdas)
        channel = torch.tensor([score.regions.index(name) for name in self.regions], device=device)
        weights = torch.tensor(self.lambdas, device=device)
        start = energy_shares(self.pipe, min(64, self.pool), self.at_once)[channel].clamp(0.02, 0.98).logit()
        logits = start.expand(lambdas, -1, -1).clone().requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=self.learning_rate)
        total = self.steps * lambdas
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        draw = torch.Generator().manual_seed(self.seed)
        chunk, decay = rendered_at_once(self.pipe, self.batch, self.at_once), 0.98
        mean: Scores | None = None  # of what divides the loss, by region: a batch alone is too few
        self.history = []
        bar = tqdm(range(total), desc="static gates")
        for step in bar:
            a, b = torch.randint(len(looks.codes), (2, self.batch), generator=draw).to(device)
            which = torch.arange(step * self.batch, (step + 1) * self.batch, device=device) % (regions * lambdas)
            of_lambda, of_region = which // regions, which % regions
            total_loss, gradient = 0.0, torch.zeros_like(logits)
            for part in torch.arange(self.batch, device=device).split(chunk):
                own = of_region[part]
                targets = score.targets(looks[a[part]], looks[b[part]], channel[own])
                gate = logits[of_lambda[part], own].sigmoid()
                scores = score(targets, move(targets.base, targets.source, gate))
                mean = running_mean(mean, scores, own, regions, targets.valid, decay ** (len(part) / self.batch))
                loss = scores.loss(weights[of_lambda[part]], scale=mean[own]) / self.batch
                # Of the gates alone: the frozen networks may want gradients too.
                gradient += torch.autograd.grad(loss, logits)[0]
                total_loss += float(loss.detach())
            logits.grad = gradient
            optimizer.step()
            schedule.step()
            self.history.append(total_loss)
            if step % 10 == 0:
                bar.set_postfix(loss=f"{sum(self.history[-50:]) / len(self.history[-50:]):.3f}")
        self.logits = logits.detach()
        return self

    def gate(self, region: str, strength: float) -> Tensor:
        if self.logits is None:
            self.fit()
        assert self.logits is not None
        if region not in self.regions:
            raise ValueError(f"there are no gates for {region!r}, only for {', '.join(self.regions)}")
        own, last = self.logits[:, self.regions.index(region)], len(self.lambdas)
        if strength <= 1:
            return strength * own[0].sigmoid()
        if strength >= last:
            gate = own[-1].sigmoid()
            return move(gate, torch.ones_like(gate), strength - last)
        i = int(strength) - 1
        return move(own[i], own[i + 1], strength - 1 - i).sigmoid()

    def strength_of(self, weight: float) -> float:
        """The strength at which the gates are those of a lambda, by its logarithm; the nearest one beyond the ends."""
        if weight <= self.lambdas[0]:
            return 1.0
        for i, (low, high) in enumerate(pairwise(self.lambdas)):
            if weight <= high:
                return 1 + i + math.log(weight / low) / math.log(high / low)
        return float(len(self.lambdas))

    def save(self, path: str | Path) -> None:
        """Write the gates as safetensors; ValueError before they are fitted."""
        if self.logits is None:
            raise ValueError("these gates are not fitted yet: call fit() before save()")
        about = {"lambdas": json.dumps(self.lambdas), "regions": json.dumps(self.regions)}
        write_tensors(path, {"logits": self.logits.cpu().contiguous()}, about)

    @classmethod
    def load(cls, pipe, path: str | Path) -> LearnedGates:
        """Gates that `save` wrote; ValueError if they are of another generator's size or other regions."""
        with safe_open(path, framework="pt") as file:
            about, logits = file.metadata(), file.get_tensor("logits")
        gates = cls(pipe, lambdas=parse_json(about["lambdas"], "the gates' lambdas"))
        regions = parse_json(about["regions"], "the gates' regions")
        if regions != gates.regions or logits.shape[-1] != pipe.generator.style_dim:
            raise ValueError(
                f"{path} has gates of {logits.shape[-1]} style channels for {', '.join(regions)}; this model has"
                f" {pipe.generator.style_dim} and {', '.join(gates.regions)}"
            )
        gates.logits = logits.to(pipe.generator.device)
        return gates


def running_mean(
    mean: Scores | None, scores: Scores, groups: Tensor, count: int, valid: Tensor, decay: float
) -> Scores:
    """Means over valid items by group, (count) rows: the batch's where there are no older ones, else decaying."""
    sums = scores.sums(groups, count)
    number = torch.zeros(count, device=valid.device).index_add(0, groups, valid)

    def merged(old: Tensor | None, total: Tensor) -> Tensor:
        new = total.detach() / number.clamp_min(1).view(-1, *[1] * (total.ndim - 1))
        if old is None:
            return new
        return torch.where(new == 0, old, torch.where(old == 0, new, decay * old + (1 - decay) * new))

    return Scores(
        *(merged(None if mean is None else getattr(mean, f.name), getattr(sums, f.name)) for f in fields(sums))
    )
