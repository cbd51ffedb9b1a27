"""Baselines: gates without nets, derived from layers or from statistics of the style channels.

Statistics are taken from samples of `FITTING_SEED` when a method is first used. A region is a leaf of the tree that
the model's own segmenter knows. Every channel method crosses its choice of channels with the share of the way that the
chosen channels move (`AMOUNTS`), so that its strength can be set as finely as that of the nets.
"""

from __future__ import annotations

from functools import cached_property
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.evaluation.channels import (
    activation_energies,
    energy_shares,
    membership_statistics,
    shares_of_energy,
)
from stylefusion_hf.evaluation.methods import TENTHS, GateMethod, geometric, move, region_index
from stylefusion_hf.evaluation.pairs import Pairs, render

AMOUNTS = (0.25, 0.5, 0.75, 1.0)  # shares of the way from base to source that the chosen channels move

# --- Gates that ignore regions ---------------------------------------------------------------------------------------


class ConstantInterpolation(GateMethod):
    """The same share of every style channel: a method that ignores regions altogether."""

    name, strengths = "interpolation", TENTHS

    def gate(self, region: str, strength: float) -> Tensor:
        generator = self.pipe.generator
        return torch.full((generator.style_dim,), float(strength), device=generator.device)


class StyleMixing(GateMethod):
    """Adjacent rows of w+ from the source, the others from the base (Karras et al., arXiv 1812.04948).

    Convolution i is driven by row i, toRGB k by row 2k + 1. A strength is an index into `settings`: (first row, end,
    amount) with amounts .5 and 1, short ranges first; the last setting is the full code. Ranges of equal length have
    no natural order of strength, so the Pareto envelope has to choose among them.
    """

    name = "style mixing"

    def __init__(self, pipe):
        super().__init__(pipe)
        rows = pipe.generator.num_ws
        ranges = [(first, first + n) for n in range(1, rows + 1) for first in range(rows - n + 1)]
        self.settings = [(*some, amount) for some in ranges for amount in (0.5, 1.0)]
        self.strengths = tuple(map(float, range(len(self.settings))))

    def gate(self, region: str, strength: float) -> Tensor:
        first, end, amount = self.settings[round(strength)]
        rows = self.pipe.generator.style_rows
        return amount * ((rows >= first) & (rows < end)).float()


# --- Gates from statistics -------------------------------------------------------------------------------------------


class EditingInStyle(GateMethod):
    """Editing in Style (Collins et al., CVPR 2020, arXiv 2004.14367): channels selected by membership in the region.

    The sequential form takes, in every layer, channels in order of decreasing membership M, as long as the sum of
    1 - M stays below epsilon and M exceeds rho. The simultaneous form moves every channel by min(1, lambda M). The
    authors find regions by clustering; here they are the segmenter's.

    Args:
        form: "sequential" (strengths index `settings`, triples of rho, epsilon and amount) or "simultaneous"
            (strengths are lambda).
        samples: number of samples that memberships are computed from.
        floors: values of rho. Memberships of small regions are low throughout: with a floor above 0 they may get no
            channels at all.
        batch: batch size for fitting; None chooses one by picture size.
    """

    def __init__(
        self,
        pipe,
        form: str = "sequential",
        samples: int = 256,
        floors: tuple[float, ...] = (0.1, 0.0),
        batch: int | None = None,
    ):
        if form not in ("sequential", "simultaneous"):
            raise ValueError(f"unknown form {form!r} of Editing in Style: choose sequential or simultaneous")
        super().__init__(pipe)
        self.form, self.samples, self.batch = form, samples, batch
        widest = max(pipe.generator.style_sizes.values())
        # A shortfall is below 1, so that an epsilon of the layer's width takes every channel above the floor.
        self.settings = [
            (rho, epsilon, amount) for epsilon, rho, amount in product(geometric(0.25, widest, 10), floors, (0.5, 1.0))
        ]
        if form == "sequential":
            self.name, self.strengths = "editing in style", tuple(map(float, range(len(self.settings))))
        else:
            self.name, self.strengths = "editing in style, simultaneous", geometric(0.25, 256, 14)

    @cached_property
    def membership(self) -> Tensor:
        """Shares (R, S) of each channel's activation energy by region; columns sum to 1."""
        return membership_statistics(self.pipe, self.samples, self.batch)[0]

    def gate(self, region: str, strength: float) -> Tensor:
        own = self.membership[region_index(self.pipe, region)]
        if self.form == "simultaneous":
            return (strength * own).clamp_max(1)
        rho, epsilon, amount = self.settings[round(strength)]
        layers = []
        for m in own.split(list(self.pipe.generator.style_sizes.values())):
            high, order = m.sort(descending=True)
            chosen = ((1 - high).cumsum(0) < epsilon) & (high > rho)
            layers.append(torch.zeros_like(m).scatter(0, order, chosen.to(m.dtype)))
        return amount * torch.cat(layers)


class RetrieveInStyle:
    """Retrieve in Style (Chong et al., ICCV 2021, arXiv 2107.06256): Editing in Style with gates per image pair.

    Memberships are computed in the base and in the source picture; the gate is a softmax, over the regions, of the
    larger of the two at temperature tau. The authors cluster activations and treat hair and pose separately; here the
    regions are the segmenter's, all treated the same way.

    Strengths index `settings`: (tau, amount).
    """

    name = "retrieve in style"

    def __init__(self, pipe, samples: int = 256, batch: int | None = None):
        self.pipe, self.samples, self.batch = pipe, samples, batch
        self.settings = list(product((0.3, 0.1, 0.03), AMOUNTS))
        self.strengths = tuple(map(float, range(len(self.settings))))
        self._recent: list[tuple[Pairs, Tensor]] = []  # gates of a batch, reused for all regions and strengths

    @cached_property
    def mean(self) -> Tensor:
        """Mean activation of each channel over samples, (S,); energies are taken about it."""
        return membership_statistics(self.pipe, self.samples, self.batch)[1]

    @torch.no_grad()
    def memberships(self, codes: Tensor, probs: Tensor) -> Tensor:
        """Return memberships (B, R, S), given style codes (B, S) and segmentation probabilities (B, R, H, W)."""
        masks = F.one_hot(probs.argmax(dim=1), probs.shape[1]).movedim(-1, 1).float()
        sums = torch.cat(activation_energies(self.pipe, codes, masks), dim=2)
        return shares_of_energy(sums, self.mean)

    @torch.no_grad()
    def gates(self, pairs: Pairs) -> Tensor:
        """Return the larger membership of base and source, (B, R, S)."""
        for known, gates in self._recent:
            if known is pairs:
                return gates
        gates = torch.maximum(
            self.memberships(pairs.base, pairs.base_probs), self.memberships(pairs.source, pairs.source_probs)
        )
        self._recent = [(pairs, gates), *self._recent[:1]]  # swaps with sources and with unrelated codes alternate
        return gates

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        r, (tau, amount) = region_index(self.pipe, region), self.settings[round(strength)]
        gate = amount * (self.gates(pairs) / tau).softmax(dim=1)[:, r]
        return render(self.pipe, move(pairs.base, pairs.source, gate))


class LocalChannels(GateMethod):
    """The style channels that affect the region and little else (StyleSpace: Wu et al., arXiv 2011.12799).

    Channels are sorted by the region's share of their `features.channel_energies`, used in place of the paper's
    overlap between gradient maps and masks. Strengths index `settings`: (number of channels, from 1 to all; amount).
    """

    name = "local channels"

    def __init__(self, pipe, samples: int = 64, batch: int | None = None):
        super().__init__(pipe)
        self.samples, self.batch = samples, batch
        counts = dict.fromkeys(round(k) for k in geometric(1, pipe.generator.style_dim, 14))
        self.settings = list(product(counts, AMOUNTS))
        self.strengths = tuple(map(float, range(len(self.settings))))

    @cached_property
    def shares(self) -> Tensor:
        """Shares (R, S) of each channel's energy by region; columns sum to 1."""
        return energy_shares(self.pipe, self.samples, self.batch)

    def gate(self, region: str, strength: float) -> Tensor:
        own = self.shares[region_index(self.pipe, region)]
        count, amount = self.settings[round(strength)]
        return torch.zeros_like(own).scatter(0, own.topk(count).indices, amount)
