"""The samples of a step: which code of the pool each node of the tree takes, and what that implies for the picture."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from stylefusion_hf.core.memory import even_parts
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.evaluation.measurement import MIN_AREA
from stylefusion_hf.training.choices import Shares
from stylefusion_hf.training.pool import RenderedPool
from stylefusion_hf.training.roles import Roles
from stylefusion_hf.training.sampling import count_codes, draw_assignment


@dataclass(frozen=True)
class Sample:
    """B mixes of the pool's codes, by index.

    Attributes:
        nodes: (B, nodes), the code of every node.
        base, frame: (B,), the base's and the root's code.
        owners: (B, R), the leaves' codes.
        counted: (B, R), regions whose looks count.
        changed: (B, R), regions that may differ from the reference; all false if there is none.
        single: (B,), true if exactly one region differs from the base.
        twin: (B,), the row that is the reference, or -1 if the base is.
        first: the base of the batch's first mix, also in later parts of the batch.
    """

    nodes: Tensor
    base: Tensor
    frame: Tensor
    owners: Tensor
    counted: Tensor
    changed: Tensor
    single: Tensor
    twin: Tensor
    first: Tensor

    def __len__(self) -> int:
        return len(self.base)

    def rows(self, start: int, stop: int) -> Sample:
        """Return some of the mixes; a twin's partner must be among them."""
        part = {f.name: getattr(self, f.name)[start:stop] for f in fields(self) if f.name != "first"}
        part["twin"] = torch.where(part["twin"] >= 0, part["twin"] - start, part["twin"])
        return replace(self, **part)

    def parts(self, most: int) -> Iterator[Sample]:
        """Yield the mixes in parts of at most `most`, except that a twin stays together with its partner."""
        if most >= len(self):
            yield self
            return
        follows = (self.twin >= 0).tolist()  # the row above is the partner
        start, size = 0, max(even_parts(len(self), most))
        while start < len(self):
            stop = min(start + size, len(self))
            if stop < len(self) and follows[stop]:
                stop += 1 if stop - start == 1 else -1
            yield self.rows(start, stop)
            start = stop


class SampleSource:
    """Draws samples of a pool for a tree."""

    def __init__(self, tree: RegionTree, roles: Roles, pool: RenderedPool):
        self.tree, self.pool = tree, pool
        device = pool.codes.device
        columns = {name: i for i, name in enumerate(tree.nodes)}
        self.leaf_columns = torch.tensor([columns[n] for n in roles.names], device=device)
        self.inner_columns = torch.tensor([columns[n] for n in tree.inner], device=device)
        self.root_column = columns[tree.root]
        self.ids = torch.arange(len(roles.names), device=device)

    def draw(self, batch: int, draw: torch.Generator, shares: Shares) -> Sample:
        """Draw a batch of samples."""
        device = self.pool.codes.device
        assigned = draw_assignment(self.tree, batch, draw, shares)
        index = torch.randint(len(self.pool), (batch, count_codes(self.tree)), generator=draw)
        twins = assigned.twin >= 0
        index[twins] = index[assigned.twin[twins]]  # a twin shares all codes but one with its partner
        return self.sample(index.to(device), assigned.nodes.to(device), assigned.twin.to(device))

    def sample(self, index: Tensor, numbers: Tensor, twin: Tensor) -> Sample:
        """Return the sample of given codes.

        Args:
            index: (B, codes), the pool's index of each code.
            numbers: (B, nodes), which of these codes each node takes.
            twin: (B,), the row that each row differs from in one leaf, or -1.
        """
        nodes = index.gather(1, numbers)
        leaves = numbers[:, self.leaf_columns]
        pure = (numbers[:, self.inner_columns] == 0).all(dim=1) & (twin < 0)
        changed = (leaves != 0) & pure[:, None]
        partner = leaves[twin.clamp_min(0)]
        changed = torch.where((twin >= 0)[:, None], leaves != partner, changed)
        owners, frame = nodes[:, self.leaf_columns], nodes[:, self.root_column]
        areas = torch.minimum(self.pool.areas[owners, self.ids], self.pool.areas[frame])
        counted = (areas >= MIN_AREA) & (changed | ~pure[:, None])
        single = pure & (changed.sum(dim=1) == 1)
        return Sample(nodes, index[:, 0], frame, owners, counted, changed, single, twin, index[0, 0])

    def codes(self, sample: Sample) -> dict[str, Tensor]:
        """Return {node: style codes (B, S)}."""
        return {name: self.pool.codes[sample.nodes[:, i]] for i, name in enumerate(self.tree.nodes)}
