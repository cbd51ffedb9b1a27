"""How a training fits into memory: how many pictures at once, how large a pool, and where the pool lies.

Everything is planned before step 1 from a budget of bytes (`--memory_gib`), so that the same flags give the same
parts, and with them the same sums to the last bit, whatever else the machine is doing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger("stylefusion_hf")
GIB = 2**30
CPU_BUDGET = 8 * GIB
POOL_SHARE, STEP_SHARE, RENDER_SHARE = 0.25, 0.4, 0.15  # of the budget; the rest is weights and what libraries hold
POOL_MOST, POOL_LEAST = 3072, 8  # pictures


def memory_budget(device: torch.device, gib: float | None = None) -> int:
    """Bytes that a training may take: `gib`, else all of the device's own memory, or 8 GiB on a CPU.

    ValueError for less than half a GiB, which the libraries alone take.
    """
    if gib is not None:
        if not gib >= 0.5:
            raise ValueError(f"--memory_gib must be at least 0.5, got {gib}")
        return int(gib * GIB)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return CPU_BUDGET


def chunk_size(bytes_each: float, budget: float, most: int) -> int:
    """How many items of `bytes_each` fit into `budget`: at least 1, at most `most`."""
    return int(max(1, min(most, budget // max(1, bytes_each))))


def even_parts(count: int, most: int) -> list[int]:
    """Sizes of the fewest parts of `count` items that are no larger than `most`, as equal as can be."""
    parts = -(-count // most)
    return [count // parts + (i < count % parts) for i in range(parts)]


def forward_bytes(channels: dict[int, int], resolution: int) -> int:
    """What rendering a picture without gradients takes: all feature maps, and working copies of the largest.

    channels: {height: channels} of the generator's feature maps.
    """
    maps = [4 * c * h * h for h, c in channels.items() if h <= resolution]
    return sum(maps) + 6 * max(maps)


def pool_picture_bytes(resolution: int, regions: int) -> int:
    """A pool's picture: 8-bit colours, half-precision probabilities, 8-bit labels."""
    return resolution**2 * (3 + 2 * regions + 1)


def reference_bytes(resolution: int, regions: int) -> int:
    """Putting a sample's target picture together: a warped picture, its masks and sampling grids for each region."""
    return regions * resolution**2 * 4 * 24


class SavedBytes:
    """Context that counts the bytes which autograd keeps for a backward pass, each storage once; `known` not at all.

    Args:
        known: tensors that are there anyway, such as weights.
    """

    def __init__(self, known: Collection[Tensor] = ()):
        self.seen: dict[int, int] = {}
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.kept: list[Tensor] = []  # or a freed storage's address would be counted for another's
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda x: x)

    def _pack(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.seen[storage.data_ptr()] = storage.nbytes()
            self.kept.append(x)
        return x

    def __enter__(self) -> SavedBytes:
        self.hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self.hooks.__exit__(*error)
        self.kept = []

    @property
    def total(self) -> int:
        return sum(self.seen.values())


def backward_bytes(compute: Callable[[], Any], known: Collection[Tensor]) -> int:
    """What `compute` keeps for its backward pass, half as much again for the gradients on the way back."""
    with SavedBytes(known) as saved:
        compute()
    return saved.total * 3 // 2


@dataclass(frozen=True)
class MemoryPlan:
    """`pool_size` pictures on `pool_device`; `render`: pictures at once without gradients; `references`: samples whose
    references are made at once; `batch` samples of a step in parts of at most `chunk`. `step_bytes`, `pool_bytes`:
    what they take.
    """

    budget: int
    resolution: int
    pool_size: int
    pool_device: str
    pool_bytes: int
    render: int = 64
    references: int = 64
    batch: int = 0
    chunk: int = 2**31
    step_bytes: int = 0

    def describe(self) -> str:
        """The line that a training prints before step 1."""
        parts = "" if self.chunk >= self.batch else f" in parts of {self.chunk}"
        return (
            f"memory: {self.budget / GIB:.1f} GiB (--memory_gib). A step of {self.batch} samples at"
            f" {self.resolution} px{parts} takes about {self.step_bytes / GIB:.2f} GiB, the pool of {self.pool_size}"
            f" pictures {self.pool_bytes / GIB:.2f} GiB on the {self.pool_device}"
        )


def plan_pool(
    budget: int, device: str, resolution: int, regions: int, batch: int, forward: int, wanted: int | None = None
) -> MemoryPlan:
    """The plan before a step's needs are known.

    A pool that takes more of a GPU than its share lies in the host's memory, where `CPU_BUDGET` bounds it. A `wanted`
    number of pictures is kept, wherever they fit.

    Args:
        device: where the training runs: "cpu", "cuda", ...
        forward: bytes that rendering a picture takes.
        wanted: --pool_size.
    """
    picture, share = pool_picture_bytes(resolution, regions), int(budget * POOL_SHARE)
    most = wanted or POOL_MOST
    fits = most * picture <= share
    place = device if fits or device == "cpu" else "cpu"
    room = share if place == device else max(share, CPU_BUDGET // 2)
    size = wanted or max(POOL_LEAST, min(most, room // picture))
    render = chunk_size(forward, budget * RENDER_SHARE, 64)
    references = chunk_size(reference_bytes(resolution, regions), budget * RENDER_SHARE, 64)
    return MemoryPlan(budget, resolution, size, place, size * picture, render, references, batch)


def plan_step(plan: MemoryPlan, sample_bytes: int) -> MemoryPlan:
    """The plan with a step's parts, once it is known what a sample takes."""
    chunk = chunk_size(sample_bytes, plan.budget * STEP_SHARE, plan.batch)
    if sample_bytes > plan.budget * (1 - POOL_SHARE):
        logger.warning(
            "a single sample takes about %.1f GiB of --memory_gib %.1f: a smaller --train_resolution needs less",
            sample_bytes / GIB,
            plan.budget / GIB,
        )
    return replace(plan, chunk=chunk, step_bytes=min(chunk, plan.batch) * sample_bytes)
