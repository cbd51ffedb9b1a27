"""Collapse detection: each dial of the tree, turned alone, must still change its part of the picture.

A gate that ignores one of its inputs is a common local minimum of fusion nets: the fused picture stays plausible, the
losses of the other regions improve, and the dial is dead. A contrast over complete mixes does not show it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from stylefusion_hf.training.criterion import Criterion

logger = logging.getLogger("stylefusion_hf")
DEAD_LEAF, DEAD_COMMON = 0.02, 0.002  # thresholds of `CollapseGuard.responses`


class CollapseGuard:
    """Watches the dials of fusion nets during a training.

    Args:
        criterion: for its pool, tree and networks.
        pairs: number of pairs of plain pictures to test on.

    Attributes:
        dead: nodes whose dial did nothing at the last check.
    """

    def __init__(self, criterion: Criterion, pairs: int = 8):
        self.tree, self.networks = criterion.tree, criterion.networks
        self.names = criterion.roles.names
        self.dead: list[str] = []
        self._last: tuple[int, dict[str, float]] | None = None
        pool = criterion.pool
        count = min(pairs, len(pool) // 2)
        index = torch.arange(2 * count, device=pool.codes.device)
        self.base, self.source = pool.codes[index[:count]], pool.codes[index[count:]]
        labels = pool.label_maps(index)
        ids = torch.arange(len(self.names), device=labels.device)[:, None, None]
        masks = labels[:, None] == ids  # (2 N, R, H, W)
        self.masks = (masks[:count] | masks[count:]).float()

    @torch.no_grad()
    def responses(self, fuse: Callable[[dict[str, Tensor]], Tensor]) -> dict[str, float]:
        """Return {node: the change by its dial, relative to that of taking the other picture entirely}.

        Measured where the node's regions are in either picture. NaN for a region that no pair shows.
        """
        plain, other = self._pictures(self.base), self._pictures(self.source)
        largest = (other - plain).abs().sum(dim=1)  # (N, H, W)
        found = {}
        for node in self.tree.active:
            codes = dict.fromkeys(self.tree.nodes, self.base) | {node: self.source}
            change = (self._pictures(fuse(codes)) - plain).abs().sum(dim=1)
            rows = [self.names.index(leaf) for leaf in self.tree.subtree(node) if leaf in self.names]
            mask = self.masks[:, rows].amax(dim=1)
            total = (largest * mask).sum()
            found[node] = float((change * mask).sum() / total) if total > 0 else float("nan")
        return found

    def check(self, fuse: Callable[[dict[str, Tensor]], Tensor], step: int) -> dict[str, float]:
        """Return {"dial NODE": response} to log, and warn of every dial that does nothing."""
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        found, before = self.responses(fuse), self.dead
        least = {node: DEAD_LEAF if node in self.tree.leaves else DEAD_COMMON for node in found}
        self.dead = [node for node, value in found.items() if value < least[node]]
        for node in self.dead:
            net = node if node in self.tree.fused else self.tree.parent(node)
            logger.warning(
                "collapse: at step %d the dial of %s does nothing (net %s): it changes %.2f %% of what another picture"
                " changes there. Lower --learning_rate or raise --static_steps; --objective composed has a loss for"
                " each region",
                step,
                node,
                net,
                100 * found[node],
            )
        for node in set(before) - set(self.dead):
            logger.info("the dial of %s works again at step %d", node, step)
        self._last = step, {f"dial {node}": value for node, value in found.items()}
        return self._last[1]

    def _pictures(self, codes: Tensor) -> Tensor:
        return torch.cat([self.networks.render(s)[0] for s in codes.split(self.networks.batch)])
