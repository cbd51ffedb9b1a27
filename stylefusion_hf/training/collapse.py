"""The guard against collapse: every dial of the tree is turned by itself, and must still move its part of the picture.

A gate that ignores one of its inputs is a minimum that fusion nets fall into: the fused picture stays plausible, the
losses of the other regions improve, and the dial is dead. Nothing in a contrast over whole mixes says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from stylefusion_hf.training.criterion import Criterion

logger = logging.getLogger("stylefusion_hf")
DEAD_LEAF, DEAD_COMMON = 0.02, 0.002  # of what taking the whole other picture changes there


class CollapseGuard:
    """Watches the dials of fusion nets during a training.

    Args:
        criterion: for its pool, tree and networks.
        pairs: plain pictures that are paired with as many others.

    Attributes:
        dead: the nodes whose dial did nothing at the last check.
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
        """{node: how much its dial changes, relative to taking the whole other picture}.

        Measured where the node's regions are in either picture. NaN for a region that none of the pairs shows.
        """
        plain, other = self._pictures(self.base), self._pictures(self.source)
        whole = (other - plain).abs().sum(dim=1)  # (N, H, W)
        found = {}
        for node in self.tree.active:
            codes = dict.fromkeys(self.tree.nodes, self.base) | {node: self.source}
            change = (self._pictures(fuse(codes)) - plain).abs().sum(dim=1)
            rows = [self.names.index(leaf) for leaf in self.tree.subtree(node) if leaf in self.names]
            mask = self.masks[:, rows].amax(dim=1)
            total = (whole * mask).sum()
            found[node] = float((change * mask).sum() / total) if total > 0 else float("nan")
        return found

    def check(self, fuse: Callable[[dict[str, Tensor]], Tensor], step: int) -> dict[str, float]:
        """{"dial NODE": response} for the log; warns of every dial that does nothing now."""
        if self._last is not None and self._last[0] == step:
            return self._last[1]
        found, before = self.responses(fuse), self.dead
        least = {node: DEAD_LEAF if node in self.tree.leaves else DEAD_COMMON for node in found}
        self.dead = [node for node, value in found.items() if value < least[node]]
        for node in self.dead:
            net = node if node in self.tree.fused else self.tree.parent(node)
            logger.warning(
                "collapse: at step %d the dial of %s does nothing (net %s): it changes %.2f %% of what another picture"
                " changes there. Lower --learning_rate or raise --static_steps; --objective composed asks for each"
                " region by itself",
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
