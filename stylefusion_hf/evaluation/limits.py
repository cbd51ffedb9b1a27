"""Upper bounds: gates and codes optimized for the test pairs themselves, which no generalizing method can match.

There are three kinds, each with more freedom than the previous one: "static", one gate per region for all pairs;
"gate", a gate in (0, 1)^S per pair, which bounds every method that blends two codes; "code", a free style code per
pair, which bounds every method that feeds the generator a style code. All are optimized on the TRAINING score, i.e. on
the model's own networks; the ruler then judges the pictures with other networks. How tight the bounds are depends on
the number of Adam steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.channels import energy_shares
from stylefusion_hf.evaluation.gates import LearnedGates
from stylefusion_hf.evaluation.methods import move
from stylefusion_hf.evaluation.pairs import FITTING_SEED, Pairs, style_codes
from stylefusion_hf.evaluation.score import Scores, TrainingScore

KINDS = ("static", "gate", "code")
RATES = {"static": 0.1, "gate": 0.1, "code": 0.05}  # learning rates for logits and for standardized codes

Codes = dict[tuple[float, str], Tensor]


class LimitSearch:
    """Joint optimization over pairs, regions and trade-offs.

    Args:
        pipe: a pipeline with a segmenter.
        pairs: P pairs.
        regions: region names of the segmenter.
        lambdas: weights of transfer; the loss of each (lambda, region) is O + lambda (1 - T) over all pairs.
        score: the training score; None builds one.
        chunk: items rendered together.

    Raises:
        ValueError: an unknown region, or lambdas that are not positive.
    """

    def __init__(
        self,
        pipe,
        pairs: Pairs,
        regions: Sequence[str],
        lambdas: Sequence[float],
        score: TrainingScore | None = None,
        chunk: int = 32,
    ):
        self.score = score or TrainingScore(pipe, batch=chunk)
        if unknown := [name for name in regions if name not in self.score.regions]:
            raise ValueError(f"unknown region {unknown[0]!r}: the segmenter knows {', '.join(self.score.regions)}")
        if not lambdas or min(lambdas) <= 0:
            raise ValueError(f"lambdas must be positive, got {list(lambdas)}")
        self.pipe, self.pairs, self.chunk = pipe, pairs, chunk
        self.regions, self.lambdas = list(regions), [float(x) for x in lambdas]
        self.base, self.source = self.score.describe_pairs(pairs)
        device, g = pairs.base.device, pipe.generator
        self.channels = torch.tensor([self.score.regions.index(name) for name in regions], device=device)
        self.weights = torch.tensor(self.lambdas, device=device)
        with torch.no_grad():
            self.deviation = style_codes(g, range(FITTING_SEED, FITTING_SEED + 256)).std(dim=0)
        self.loss: dict[str, float] = {}  # per kind: final loss, averaged over lambdas and regions

    # Parameters are (L, R, P or 1, S); items are numbered in that order.

    @torch.enable_grad()
    def search(self, kind: str, steps: int = 150, start: Tensor | None = None) -> Tensor:
        """Optimize and return the parameters (L, R, P or 1, S): logits of gates, or style codes for "code".

        start: gates, or style codes for "code", that broadcast to that shape. None starts with each channel's gate at
            the region's share of its energy.
        """
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r} of limit: choose from {', '.join(KINDS)}")
        if steps < 1:
            raise ValueError(f"steps must be at least 1, got {steps}")
        values = self._start(kind, start)
        scale = self.deviation if kind == "code" else torch.ones_like(self.deviation)
        found = (values / scale).contiguous()  # standardized, since Adam moves all parameters at the same rate
        gradient = torch.zeros_like(found)
        found.grad = gradient
        optimizer = torch.optim.Adam([found], lr=RATES[kind])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        count = len(self.lambdas) * len(self.regions) * len(self.pairs)
        device = found.device
        items, sums = torch.arange(count, device=device), None
        bar = tqdm(range(steps), desc=f"limit, {kind}")
        for _ in bar:
            gradient.zero_()
            parts, total = [], 0.0
            if sums is None:  # the denominators require one pass over all pictures
                with torch.no_grad():
                    looks = [self._scores(kind, found * scale, part)[1] for part in items.split(self.chunk)]
                sums = self._group_sums(looks)
            for part in items.split(self.chunk):
                place = self._place(kind, part)
                chosen = found[place].requires_grad_()
                of_lambda, of_region, _ = self._split(part)
                _, scores = self._scores(kind, chosen * scale, part, picked=True)
                group = of_lambda * len(self.regions) + of_region
                loss = scores.loss(self.weights[of_lambda], scale=sums[group])
                (slope,) = torch.autograd.grad(loss, [chosen])
                gradient.index_put_(place, slope, accumulate=True)
                parts.append(scores)
                total += float(loss.detach())
            sums = self._group_sums(parts)
            optimizer.step()
            schedule.step()
            self.loss[kind] = total / (len(self.lambdas) * len(self.regions))
            bar.set_postfix(loss=f"{self.loss[kind]:.4f}")
        return (found.detach() * scale).detach()

    @torch.no_grad()
    def codes(self, kind: str, found: Tensor) -> Codes:
        """{(lambda, region): style codes (P, S)} of parameters that `search` found."""
        out = {}
        for i, weight in enumerate(self.lambdas):
            for j, region in enumerate(self.regions):
                own = found[i, j].expand(len(self.pairs), -1)
                out[weight, region] = (
                    own.clone() if kind == "code" else move(self.pairs.base, self.pairs.source, own.sigmoid())
                )
        return out

    @torch.no_grad()
    def measure(self, codes: Mapping[tuple[float, str], Tensor]) -> dict[tuple[float, str], tuple[float, float]]:
        """{(lambda, region): (O, T)} by the training score."""
        out = {}
        for (weight, region), s in codes.items():
            j = self.regions.index(region)
            parts = []
            for rows in torch.arange(len(s), device=s.device).split(self.chunk):
                targets = self.score.targets(self.base[rows], self.source[rows], self.channels[j].expand(len(rows)))
                parts.append(self.score(targets, s[rows]).sums())
            o, t = _add_scores(parts).ratios()
            out[weight, region] = (float(o), float(t))
        return out

    def _start(self, kind: str, start: Tensor | None) -> Tensor:
        pairs = 1 if kind == "static" else len(self.pairs)
        shape = (len(self.lambdas), len(self.regions), pairs, self.pairs.base.shape[1])
        if start is not None and kind == "code":
            return start.expand(shape).clone()
        if start is None:
            start = energy_shares(self.pipe, batch=self.chunk)[self.channels][None, :, None]
        logits = start.clamp(0.01, 0.99).logit().expand(shape).clone()
        return move(self.pairs.base, self.pairs.source, logits.sigmoid()) if kind == "code" else logits

    def _split(self, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        pairs, regions = len(self.pairs), len(self.regions)
        return items // (pairs * regions), items // pairs % regions, items % pairs

    def _place(self, kind: str, items: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        of_lambda, of_region, of_pair = self._split(items)
        return of_lambda, of_region, torch.zeros_like(of_pair) if kind == "static" else of_pair

    def _scores(self, kind: str, values: Tensor, items: Tensor, picked: bool = False) -> tuple[Tensor, Scores]:
        """Return fused codes (B, S) and scores of some items; `values` are all parameters or, if `picked`, theirs."""
        own = values if picked else values[self._place(kind, items)]
        _, of_region, of_pair = self._split(items)
        targets = self.score.targets(self.base[of_pair], self.source[of_pair], self.channels[of_region])
        fused = own if kind == "code" else move(targets.base, targets.source, own.sigmoid())
        return fused, self.score(targets, fused)

    def _group_sums(self, parts: Sequence[Scores]) -> Scores:
        """Return sums of all items' scores, given in order, by (lambda, region): (L R) rows."""
        every = Scores(*(torch.cat([getattr(p, f) for p in parts]).detach() for f in Scores.__dataclass_fields__))
        groups = torch.arange(len(every.outside), device=every.outside.device) // len(self.pairs)
        return every.sums(groups, len(self.lambdas) * len(self.regions))


def limit_codes(
    pipe,
    pairs: Pairs,
    regions: Sequence[str],
    lambdas: Sequence[float],
    kind: str,
    steps: int = 150,
    gates: LearnedGates | None = None,
    score: TrainingScore | None = None,
    chunk: int = 32,
) -> Codes:
    """Return the style codes of one kind of limit, {(lambda, region): (P, S)}. Deterministic.

    Args:
        pipe, pairs, regions, lambdas, score, chunk: see `LimitSearch`.
        kind: "static", "gate" or "code".
        steps: number of Adam steps.
        gates: learned static gates to start from; None starts from each channel's share of energy.
    """
    search = LimitSearch(pipe, pairs, regions, lambdas, score, chunk)
    start = None if gates is None else start_gates(gates, search.regions, search.lambdas)
    if start is not None and kind == "code":
        start = move(pairs.base, pairs.source, start)
    return search.codes(kind, search.search(kind, steps, start))


def all_limits(
    pipe,
    pairs: Pairs,
    regions: Sequence[str],
    lambdas: Sequence[float],
    steps: int = 150,
    gates: LearnedGates | None = None,
    score: TrainingScore | None = None,
    chunk: int = 32,
) -> dict[str, Codes]:
    """Return all three kinds, each initialized from the previous one so that more freedom cannot hurt."""
    search = LimitSearch(pipe, pairs, regions, lambdas, score, chunk)
    start = None if gates is None else start_gates(gates, search.regions, search.lambdas)
    out = {}
    for kind in KINDS:
        found = search.search(kind, steps, start)
        out[kind] = search.codes(kind, found)
        start = found.sigmoid()
        if kind == "gate":
            start = move(pairs.base, pairs.source, start)
    return out


def start_gates(gates: LearnedGates, regions: Sequence[str], lambdas: Sequence[float]) -> Tensor:
    """Return learned gates at these lambdas, (L, R, 1, S), interpolated by the logarithm of lambda."""
    rows = [torch.stack([gates.gate(r, gates.strength_of(x)) for r in regions]) for x in lambdas]
    return torch.stack(rows)[:, :, None]


def _add_scores(parts: Sequence[Scores]) -> Scores:
    return Scores(*(torch.stack([getattr(p, f) for p in parts]).sum(0) for f in Scores.__dataclass_fields__))
