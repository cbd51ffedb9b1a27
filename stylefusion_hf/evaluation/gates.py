"""Learned static gates: one constant gate over the style channels per region and trade-off."""

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
from stylefusion_hf.evaluation.channels import energy_shares, fitting_batch
from stylefusion_hf.evaluation.methods import GateMethod, move
from stylefusion_hf.evaluation.score import Scores, TrainingScore


class LearnedGates(GateMethod):
    """A constant gate per region and trade-off, learned on the training score: a strong baseline.

    Gates are sigmoids of logits, optimized with Adam on O + lambda (1 - T) over random pairs of plain samples. There
    is one set of gates for each of the L `lambdas`. A strength u selects between them: for u <= 1, u times the weakest
    gate; from 1 to L, interpolated logits; from L to L + 1, from the strongest gate to the full source.

    Args:
        lambdas: weights of transfer, ascending.
        steps: optimization steps per lambda; batches cycle through all regions and lambdas.
        batch: items per step.
        pool: number of plain samples that pairs are drawn from.
        score: the training score; None builds one.
        chunk_size: items rendered together, with gradients, which are accumulated over a step; None chooses by
            picture size.
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
        chunk_size: int | None = None,
    ):
        super().__init__(pipe)
        self.chunk_size = chunk_size
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

    @torch.enable_grad()  # fitted on first use, which may be inside no_grad
    def fit(self) -> LearnedGates:
        """Learn the gates from scratch, with a progress bar."""
        score = self.score = self.score or TrainingScore(self.pipe, batch=self.chunk_size)
        looks = score.pool(self.pool)
        device, regions, lambdas = looks.codes.device, len(self.regions), len(self.lambdas)
        channel = torch.tensor([score.regions.index(name) for name in self.regions], device=device)
        weights = torch.tensor(self.lambdas, device=device)
        start = energy_shares(self.pipe, min(64, self.pool), self.chunk_size)[channel].clamp(0.02, 0.98).logit()
        logits = start.expand(lambdas, -1, -1).clone().requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=self.learning_rate)
        total = self.steps * lambdas
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
        draw = torch.Generator().manual_seed(self.seed)
        chunk, decay = fitting_batch(self.pipe, self.batch, self.chunk_size), 0.98
        mean: Scores | None = None  # of the loss's denominators by region, since a batch has few pairs
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
                # For the gates only: parameters of the frozen networks may require gradients as well.
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
        """Return the strength that gives the gates of a lambda, log-interpolated and clamped to the trained range."""
        if weight <= self.lambdas[0]:
            return 1.0
        for i, (low, high) in enumerate(pairwise(self.lambdas)):
            if weight <= high:
                return 1 + i + math.log(weight / low) / math.log(high / low)
        return float(len(self.lambdas))

    def save(self, path: str | Path) -> None:
        """Write the gates as safetensors; ValueError if they are not fitted yet."""
        if self.logits is None:
            raise ValueError("these gates are not fitted yet: call fit() before save()")
        about = {"lambdas": json.dumps(self.lambdas), "regions": json.dumps(self.regions)}
        write_tensors(path, {"logits": self.logits.cpu().contiguous()}, about)

    @classmethod
    def load(cls, pipe, path: str | Path) -> LearnedGates:
        """Load gates written by `save`; ValueError if they do not fit the generator or its regions."""
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
    """Return exponentially decaying means over valid items by group, (count) rows, starting with the first batch's."""
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
