"""Refinement: gates optimized for one mix, so that each dial changes its own region and little else.

Fusion nets predict the gates of every mix in one pass. A refinement starts from their result and optimizes the gates
of the mix at hand, on the model's own generator and segmenter:

    s = fused + sum over the swapped regions r of (gate_r - the nets' gate_r) (code_r - base)

    O  the change outside the swapped regions, relative to taking the sources as a whole
    L  the same change, relative to what the sources change inside the regions
    T  how much of the sources' looks (color, feature maps, outline) has arrived inside

The loss is O + leak_weight L + transfer_weight (1 - T). O and T are those of the ruler's training score
(`evaluation/score.py`), for several regions at once. Steps are Adam's; one that makes a mix worse is taken back. All
gates stay between 0 and 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.core.sizes import nearest_heights
from stylefusion_hf.imaging.alignment import pose_between, pose_regions, static_regions, warp
from stylefusion_hf.imaging.features import colour, pooled
from stylefusion_hf.imaging.regions import (
    LEAST_DIFFERENCE,
    changed_area,
    distance,
    head_weights,
    in_front,
    is_counted,
    outline,
    squared_change,
)

SIZE = 128  # pixels of a side: gates of layers beyond it keep the nets' values
HEADS = ("outline", "colour", "maps")
REACH, LARGEST_RATE = 6.0, 1.5  # see `learning_rate_for`
LEAK_WEIGHT, TRANSFER_WEIGHT = 0.7, 1.0
# Adam moves all numbers alike, however little depends on them. Gradients well below this share of a swap's typical
# gradient move less, so that gates without influence stay as the nets have them: else noise adds up in the picture.
EPSILON = 0.2

Codes = Mapping[str, Tensor]
OnStep = Callable[[int, Tensor], Any]


@dataclass(frozen=True)
class Networks:
    """The frozen networks as functions, so that callers decide about hooks and precision.

    Attributes:
        fuse: {node: style codes (B, S)} -> fused codes (B, S), as `FusionHierarchy.fuse`.
        draw: style codes (B, S) -> pictures (B, C, H, W) in [-1, 1] and {height: feature maps (B, D, h, w)}.
        segment: pictures -> logits (B, R, H, W).
        tree: of the fusion nets.
        regions: the segmenter's regions, back to front; the tree's leaves are among them.
    """

    fuse: Callable[[Codes], Tensor]
    draw: Callable[[Tensor], tuple[Tensor, Mapping[int, Tensor]]]
    segment: Callable[[Tensor], Tensor]
    tree: RegionTree
    regions: Sequence[str]


@dataclass(frozen=True)
class Swaps:
    """B mixes of codes, seen as swaps of R regions into a picture without them.

    Attributes:
        names: the swapped nodes; a node that is not a leaf stands for the regions below it.
        fused: (B, S), the nets' result.
        reference: (B, S), their result without the swaps: every region has the base's code.
        owners: (B, R, S), the regions' own codes.
        difference: (B, R, S), these minus the base's.
        gates: (B, R, S), how far the nets move each channel when a region is swapped alone, 0 to 1.
        given: (B, R), which of the swaps a mix has.
    """

    names: list[str]
    fused: Tensor
    reference: Tensor
    owners: Tensor
    difference: Tensor
    gates: Tensor
    given: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, networks: Networks, codes: Codes, base: Tensor) -> Swaps | None:
        """Find the swaps among codes (B, S) of all active nodes; None if no region's code differs from the base's."""
        regions = networks.tree.swappable
        names = [name for name in regions if bool((codes[name] != base).any())]
        if not names:
            return None
        without = {**codes, **dict.fromkeys(regions, base)}
        reference = networks.fuse(without)
        alone = torch.stack([networks.fuse({**without, name: codes[name]}) for name in names], dim=1)
        owners = torch.stack([codes[name] for name in names], dim=1)
        difference = owners - base[:, None]
        largest = difference.abs().amax(dim=2, keepdim=True)
        moves = difference.abs() > 1e-3 * largest  # the others can move nothing
        gates = torch.where(moves, (alone - reference[:, None]) / difference, 0.5).clamp(0.01, 0.99)
        return cls(names, networks.fuse(codes), reference, owners, difference, gates, largest[..., 0] > 0)

    def codes(self, gates: Tensor) -> Tensor:
        """Return the fused codes (B, S) with other gates (B, R, S)."""
        return self.fused + ((gates - self.gates) * self.difference).sum(dim=1)


def refine(
    networks: Networks,
    codes: Codes,
    base: Tensor,
    *,
    steps: int,
    learning_rate: float | None = None,
    leak_weight: float = LEAK_WEIGHT,
    transfer_weight: float = TRANSFER_WEIGHT,
    on_step: OnStep | None = None,
) -> Tensor:
    """Return fused codes (B, S) whose gates were optimized for each mix: the best of all steps, the start included.

    Args:
        codes: style codes (B, S) of every active node.
        base: (B, S), the code of regions that were not swapped.
        steps: Adam steps; each draws and segments every picture once, forward and backward.
        learning_rate: of the gates' logits, at first; it falls to 0 along a cosine. By default `learning_rate_for`.
        on_step: called after each step with its number, from 1, and the losses (B,).

    Raises:
        FloatingPointError: the loss is not finite.
    """
    with torch.inference_mode(False):
        codes = {name: code.clone() for name, code in codes.items()}  # they may be inference tensors
        swaps = Swaps.of(networks, codes, base.clone())
        if swaps is None or steps < 1:
            return networks.fuse(codes)
        goal = SwapGoal(networks, swaps)
        logits = swaps.gates.logit().requires_grad_()
        rate = learning_rate_for(steps) if learning_rate is None else learning_rate
        optimizer = torch.optim.Adam([logits], lr=rate, eps=EPSILON)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        best, size = swaps.fused, swaps.fused.new_ones(())
        lowest = best.new_full((len(best),), torch.inf)
        best_logits, length = logits.detach().clone(), best.new_ones(len(best), 1, 1)
        for step in range(steps + 1):  # the last round only evaluates
            with torch.set_grad_enabled(step < steps):
                s = swaps.codes(logits.sigmoid())
                loss = goal(s, leak_weight, transfer_weight)
            if not bool(loss.isfinite().all()):
                raise FloatingPointError(f"the loss of the refinement is not finite after {step} steps")
            found = loss.detach()
            better = found < lowest
            best = torch.where(better[:, None], swaps.fused if step == 0 else s.detach(), best)
            best_logits = torch.where(better[:, None, None], logits.detach(), best_logits)
            length = torch.where(better[:, None, None], length, length / 2)
            lowest = torch.minimum(found, lowest)
            if on_step is not None and step:
                on_step(step, found)
            if step < steps:
                (gradient,) = torch.autograd.grad(loss.sum(), logits)  # the networks' weights get none
                if step == 0:  # of each swap
                    size = gradient.square().mean(dim=2, keepdim=True).sqrt().clamp_min(1e-12)
                logits.grad = gradient / size
                before = logits.detach().clone()
                optimizer.step()
                schedule.step()
                with torch.no_grad():  # a step that made a mix worse is taken back, and its next ones are half as long
                    logits.copy_(best_logits + length * (logits - before))
    return best


def learning_rate_for(steps: int) -> float:
    """Return the rate for a number of steps: the fewer, the larger, so that gates get as far in few steps as in many.

    Adam moves a logit by up to the rate in a step.
    """
    return min(LARGEST_RATE, REACH / steps)


class SwapGoal:
    """The loss of B mixes with R swapped regions.

    A region that the source lacks is asked for its outline alone, which is empty.
    """

    @torch.no_grad()
    def __init__(self, networks: Networks, swaps: Swaps):
        self.networks, self.given = networks, swaps.given
        channels, tree = list(networks.regions), networks.tree
        leaves = [[leaf for leaf in tree.subtree(name) if leaf in tree.leaves] for name in swaps.names]
        rows = [[channels.index(leaf) for leaf in below] for below in leaves]
        self.member = torch.stack([F.one_hot(torch.tensor(row), len(channels)).sum(dim=0) for row in rows])
        self.member = self.member.to(swaps.fused)
        # The pictures without the swaps and of the regions' own codes, described.
        self.plain, maps, probs = self._look(swaps.reference)
        self.before = self._masks(probs)
        others = [self._look(owner) for owner in swaps.owners.unbind(dim=1)]
        apart = torch.stack([(other[0] - self.plain).square().sum(dim=1) for other in others], dim=1)
        self.apart = apart * self.given[..., None, None]  # (B, R, H, W)
        self.deviation = {
            h: _deviation([maps[h], *(x[1][h] for x in others)]) for h in nearest_heights((16, 32), maps)
        }
        self.heads = HEADS if self.deviation else HEADS[:2]
        # What each region should look like: the outline in the pose of the picture without the swaps, unless the
        # region does not move with the pose, and only where nothing hides it.
        static = static_regions(channels)
        posing = [channels.index(name) for name in pose_regions(tree, static)]
        labels, visible, there = probs.argmax(dim=1), [], []
        wanted: dict[str, list[Tensor]] = {head: [] for head in self.heads}
        for i, (picture, own_maps, own) in enumerate(others):
            theta = pose_between(labels, own.argmax(dim=1), posing, len(channels))
            moved = own if all(leaf in static for leaf in leaves[i]) else warp(own, theta)
            visible.append(~in_front(max(rows[i]), labels, moved.argmax(dim=1)))
            wanted["outline"].append(outline(self._share(moved)[:, i], visible[i]))
            mask = self._masks(own)[:, i]
            wanted["colour"].append(colour(picture, mask))
            if self.deviation:
                wanted["maps"].append(self._pooled(own_maps, mask[:, None])[:, 0])
            there.append(is_counted(mask))
        self.wanted = {head: torch.stack(values, dim=1) for head, values in wanted.items()}
        self.visible = torch.stack(visible, dim=1)
        self.initial = self._distances(self.plain, maps, probs, self.before)
        # Heads in which a source hardly differs from the picture without it do not count.
        sizes = torch.stack([self.wanted[head].norm(dim=2) for head in self.heads], dim=2)
        least = sizes * sizes.new_tensor([LEAST_DIFFERENCE[head] for head in self.heads])
        self.by_mask = torch.tensor([head != "outline" for head in self.heads], device=least.device)
        counts = (self.initial > least) & (torch.stack(there, dim=1)[..., None] | ~self.by_mask)
        self.weights = head_weights(counts.unbind(dim=2)) * self.given[..., None]  # (B, R, heads)

    def __call__(self, codes: Tensor, leak_weight: float, transfer_weight: float) -> Tensor:
        """Return the losses (B,) of fused codes (B, S)."""
        found = self.terms(codes)
        return found["O"] + leak_weight * found["L"] + transfer_weight * (1 - found["T"])

    def terms(self, codes: Tensor) -> dict[str, Tensor]:
        """Return O, L and T of fused codes (B, S), (B,) each."""
        image, maps, probs = self._look(codes)
        now, given = self._masks(probs), self.given[..., None, None]
        swaps = self.given.sum(dim=1).clamp_min(1)
        # O and L: the change outside all swapped regions.
        area = changed_area((self.before & given).any(dim=1), (now & given).any(dim=1))
        change = squared_change(image, self.plain, ~area)
        outside = (self.apart * ~area[:, None]).sum(dim=(1, 2, 3)) / swaps
        inside = (self.apart * changed_area(self.before, now)).sum(dim=(1, 2, 3))
        # T. A region that vanished keeps its distance; only its outline can pull it back.
        left = self._distances(image, maps, probs, now)
        gone = ~is_counted(now)[..., None] & self.by_mask
        left = torch.where(gone, torch.maximum(self.initial, left.detach()), left)
        ratio = (self.weights * left / self.initial.clamp_min(1e-6)).sum(dim=2)
        return {
            "O": change / outside.clamp_min(1e-6),
            "L": change / inside.clamp_min(1e-6),
            "T": 1 - ratio.sum(dim=1) / swaps,
        }

    def _look(self, codes: Tensor) -> tuple[Tensor, Mapping[int, Tensor], Tensor]:
        """Return pictures, feature maps and probabilities."""
        picture, maps = self.networks.draw(codes)
        picture = picture.float().clamp(-1, 1)
        return picture, maps, self.networks.segment(picture).float().softmax(dim=1)

    def _share(self, probs: Tensor) -> Tensor:
        """Sum the probabilities of each node's regions: (B, R, H, W)."""
        return torch.einsum("rc,bchw->brhw", self.member, probs)

    def _masks(self, probs: Tensor) -> Tensor:
        """Return where the most probable region is one of each node's: (B, R, H, W)."""
        return self.member.bool()[:, probs.detach().argmax(dim=1)].transpose(0, 1)

    def _pooled(self, maps: Mapping[int, Tensor], masks: Tensor) -> Tensor:
        """Return the means of the maps over masks (B, R, H, W), in units of their deviations: (B, R, D)."""
        parts = []
        for h, deviation in self.deviation.items():
            weight = F.adaptive_avg_pool2d(masks.float(), (maps[h].shape[-2], maps[h].shape[-1]))
            parts.append(pooled(maps[h].float(), weight) / deviation)
        return torch.cat(parts, dim=2)

    def _distances(self, image: Tensor, maps: Mapping[int, Tensor], probs: Tensor, masks: Tensor) -> Tensor:
        """Return the distances (B, R, heads) of the regions' looks from the wanted ones."""
        looks = {"outline": outline(self._share(probs), self.visible), "colour": colour(image, masks)}
        looks |= {"maps": self._pooled(maps, masks)} if self.deviation else {}
        return torch.stack([distance(looks[head], self.wanted[head]) for head in self.heads], dim=2)


def _deviation(maps: Sequence[Tensor]) -> Tensor:
    """Return each channel's deviation over a mix's own maps, each (B, D, h, w): (B, 1, D)."""
    return torch.stack(list(maps), dim=2).float().flatten(2).std(dim=2).clamp_min(1e-6)[:, None]
