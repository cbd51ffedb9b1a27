"""The data of a fusion training: which node of the tree takes which random code. No pictures are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.training.choices import Shares

# --- Assignments -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Assignment:
    """The code of each node in B samples, by number; 0 is the base, all others differ from it.

    Attributes:
        nodes: (B, nodes), in the order of `tree.nodes`.
        twin: (B,), the row that this one differs from in a single leaf, or -1.
    """

    nodes: Tensor
    twin: Tensor


def count_codes(tree: RegionTree) -> int:
    """Return how many codes an `Assignment` may number: each node may have one of its own."""
    return 2 * len(tree.nodes) + 1


def draw_assignment(tree: RegionTree, batch: int, draw: torch.Generator, shares: Shares) -> Assignment:
    """Draw the assignments of a batch. Their numbers stand for codes that the caller draws."""
    column = {name: i for i, name in enumerate(tree.nodes)}
    leaves = list(tree.leaves)
    parts = [n for n in tree.nodes if n != tree.root]
    fresh = len(tree.nodes)  # numbers from here on are codes that no leaf has
    nodes = torch.zeros(batch, len(column), dtype=torch.long)
    twin = torch.full((batch,), -1)

    def chance() -> float:
        return float(torch.rand((), generator=draw, dtype=torch.float32))

    def pick(options: Sequence[str]) -> str:
        return options[int(torch.randint(len(options), (), generator=draw))]

    def choose(weights: Sequence[float]) -> int:
        return int(torch.multinomial(torch.tensor(weights, dtype=torch.float), 1, generator=draw))

    row = 0
    while row < batch:
        own = nodes[row]
        kind = choose(shares.codes)
        single = kind == 1 and chance() < shares.single
        if single:
            own[column[pick(leaves)]] = 1
        elif kind in (1, 2) and chance() < shares.subtree:
            for code in range(1, kind + 1):
                for name in tree.subtree(pick(parts)):
                    own[column[name]] = code
        elif kind:
            order = torch.randperm(len(leaves), generator=draw).tolist()
            for place, leaf in enumerate(order):  # every code is some leaf's
                codes = len(leaves) if kind == 3 else kind + 1
                code = place if place < codes else int(torch.randint(codes, (), generator=draw))
                own[column[leaves[leaf]]] = code
        if not single:
            _draw_inner(tree, own, column, shares, fresh, bare=kind == 0, chance=chance, choose=choose)
        row += 1
        if not single and row < batch and chance() < shares.twin:
            nodes[row] = own
            nodes[row, column[pick(leaves)]] = 2 * len(tree.nodes)  # a number that no other node has
            twin[row] = row - 1
            row += 1
    return Assignment(nodes, twin)


def _draw_inner(tree: RegionTree, own: Tensor, column, shares: Shares, fresh: int, bare: bool, chance, choose) -> None:
    """Set the inner codes of one row. `bare`: all leaves hold the base."""
    if bare and chance() < shares.root:
        own[column[tree.root]] = fresh
        return
    kind = choose((0.0, shares.inner[1], shares.inner[2], 0.0) if bare else shares.inner)
    if kind == 1:
        for name in tree.inner:
            own[column[name]] = fresh
    elif kind == 2:
        for i, name in enumerate(tree.inner):
            own[column[name]] = fresh + i
    elif kind == 3:
        for leaf in tree.leaves:
            parent = tree.parent(leaf)
            if own[column[leaf]] and parent != tree.root:
                own[column[parent]] = own[column[leaf]]
