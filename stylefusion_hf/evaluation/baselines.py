"""What StyleFusion is measured against: gates without nets, from layers or from statistics of the style channels.

What a method has to learn from samples it learns when it is first used, from samples of `FITTING_SEED`. A region is a
leaf of the tree that the model's own segmenter knows. Every channel method crosses its choice of channels with how
far the chosen ones move (`AMOUNTS`), so that its strength is as fine as that of the nets.
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

AMOUNTS = (0.25, 0.5, 0.75, 1.0)  # how far chosen channels move from the base to the source

# --- Gates that know nothing of regions ------------------------------------------------------------------------------


class ConstantInterpolation(GateMethod):
    """The same share of every style channel: what a method that knows nothing of regions gets."""

    name, strengths = "interpolation", TENTHS

    def gate(self, region: str, strength: float) -> Tensor:
        generator = self.pipe.generator
        return torch.full((generator.style_dim,), float(strength), device=generator.device)


class StyleMixing(GateMethod):
    """Some neighboring rows of w+ from the source, the others from the base (Karras et al., arXiv 1812.04948).

    Convolution i is driven by row i, toRGB k by row 2k + 1. A strength is an index into `settings`: (first row, end,
    amount), half and whole amounts, short ranges first; the last is the whole code. There is no natural order of
    strength among ranges of one length: a Pareto envelope has to pick.
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
    """Editing in Style (Collins et al., CVPR 2020, arXiv 2004.14367): channels by their membership of the region.

    The sequential form takes, in every layer, the channels of the highest membership first, while the memberships'
    sum of shortfalls from 1 stays below epsilon and each exceeds rho. The simultaneous form takes the share
    min(1, lambda M) of every channel. The authors find their regions by clustering; here they are the segmenter's.

    Args:
        form: "sequential" (strengths index `settings`, triples of rho, epsilon and amount) or "simultaneous"
            (strengths are lambda).
        samples: pictures that memberships are taken from.
        floors: values of rho. Memberships of small regions are low throughout, so that only a floor of 0 lets them
            have channels at all.
        batch: pictures rendered at once while fitting; None: what their size allows.
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
        """(R, S): the share of each channel's activation energy that lies in each region; columns sum to 1."""
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
    """Retrieve in Style (Chong et al., ICCV 2021, arXiv 2107.06256): Editing in Style with gates of each image's own.

    A channel's membership is taken in the very picture, of base and source; the larger one counts, and a softmax over
    the regions at temperature tau makes it a gate. The authors cluster activations, and treat hair and pose apart;
    here the regions are the segmenter's, each treated alike.

    Strengths index `settings`: (tau, amount).
    """

    name = "retrieve in style"

    def __init__(self, pipe, samples: int = 256, batch: int | None = None):
        self.pipe, self.samples, self.batch = pipe, samples, batch
        self.settings = list(product((0.3, 0.1, 0.03), AMOUNTS))
        self.strengths = tuple(map(float, range(len(self.settings))))
        self._recent: list[tuple[Pairs, Tensor]] = []  # the gates of a batch serve all its regions and strengths

    @cached_property
    def mean(self) -> Tensor:
        """(S,), each channel's mean activation over samples: energies are about it."""
        return membership_statistics(self.pipe, self.samples, self.batch)[1]

    @torch.no_grad()
    def memberships(self, codes: Tensor, probs: Tensor) -> Tensor:
        """(B, R, S) of style codes (B, S) and the segmenter's probabilities of their pictures (B, R, H, W)."""
        masks = F.one_hot(probs.argmax(dim=1), probs.shape[1]).movedim(-1, 1).float()
        sums = torch.cat(activation_energies(self.pipe, codes, masks), dim=2)
        return shares_of_energy(sums, self.mean)

    @torch.no_grad()
    def gates(self, pairs: Pairs) -> Tensor:
        """The larger membership of base and source, (B, R, S)."""
        for known, found in self._recent:
            if known is pairs:
                return found
        found = torch.maximum(
            self.memberships(pairs.base, pairs.base_probs), self.memberships(pairs.source, pairs.source_probs)
        )
        self._recent = [(pairs, found), *self._recent[:1]]  # swaps with sources and with strangers take turns
        return found

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        r, (tau, amount) = region_index(self.pipe, region), self.settings[round(strength)]
        gate = amount * (self.gates(pairs) / tau).softmax(dim=1)[:, r]
        return render(self.pipe, move(pairs.base, pairs.source, gate))


class LocalChannels(GateMethod):
    """The style channels that drive the region and little else (StyleSpace: Wu et al., arXiv 2011.12799).

    Channels are sorted by the region's share of their `features.channel_energies`, which stand in for the paper's
    overlap of gradient maps with masks. Strengths index `settings`: (how many channels, from 1 to all; amount).
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
        """(R, S): each region's share of a channel's energy; columns sum to 1."""
        return energy_shares(self.pipe, self.samples, self.batch)

    def gate(self, region: str, strength: float) -> Tensor:
        own = self.shares[region_index(self.pipe, region)]
        count, amount = self.settings[round(strength)]
        return torch.zeros_like(own).scatter(0, own.topk(count).indices, amount)
