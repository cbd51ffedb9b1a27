"""Memory planning for training: chunk sizes, and the size and device of the pool of rendered pictures.

The plan is made before step 1 from a budget in bytes (`--memory_gib`), so that the same flags give the same chunks,
and hence bit-identical sums, whatever else runs on the machine.
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
POOL_SHARE, STEP_SHARE, RENDER_SHARE = 0.25, 0.4, 0.15  # of the budget; the rest is for weights and libraries
POOL_MOST, POOL_LEAST = 3072, 8  # pictures


def memory_budget(device: torch.device, gib: float | None = None) -> int:
    """Return the bytes that training may use: `gib`, else all of the device's memory, or 8 GiB on a CPU.

    ValueError for less than half a GiB, which the libraries alone need.
    """
    if gib is not None:
        if not gib >= 0.5:
            raise ValueError(f"--memory_gib must be at least 0.5, got {gib}")
        return int(gib * GIB)
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return CPU_BUDGET


def chunk_size(bytes_each: float, budget: float, most: int) -> int:
    """Return how many items of `bytes_each` fit into `budget`: at least 1, at most `most`."""
    return int(max(1, min(most, budget // max(1, bytes_each))))


def even_parts(count: int, most: int) -> list[int]:
    """Split `count` items into the fewest parts of at most `most`, as equal as possible; return their sizes."""
    parts = -(-count // most)
    return [count // parts + (i < count % parts) for i in range(parts)]


def forward_bytes(channels: dict[int, int], resolution: int, aspect: float = 1.0) -> int:
    """Estimate the bytes to render a picture without gradients: all feature maps, and copies of the largest.

    channels: {height: channels} of the generator's feature maps; aspect: their width divided by their height.
    """
    maps = [round(4 * c * h * h * aspect) for h, c in channels.items() if h <= resolution]
    return sum(maps) + 6 * max(maps)


def pool_picture_bytes(resolution: int, regions: int, aspect: float = 1.0) -> int:
    """Return the bytes of a picture in the pool: 8-bit colors, half-precision probabilities, 8-bit labels."""
    return round(resolution**2 * aspect) * (3 + 2 * regions + 1)


def reference_bytes(resolution: int, regions: int, aspect: float = 1.0) -> int:
    """Estimate the bytes to compose a sample's target: a warped picture, masks and sampling grids per region."""
    return regions * round(resolution**2 * aspect) * 4 * 24


class SavedBytes:
    """A context that counts the bytes that autograd saves for the backward pass, each storage once.

    Args:
        known: tensors that are not counted, such as weights.
    """

    def __init__(self, known: Collection[Tensor] = ()):
        self.seen: dict[int, int] = {}
        self.known = {t.untyped_storage().data_ptr() for t in known}
        self.kept: list[Tensor] = []  # keeps storages alive, so that no address is reused
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
    """Estimate the bytes of a backward pass: those that `compute` saves, and half as much again for gradients."""
    with SavedBytes(known) as saved:
        compute()
    return saved.total * 3 // 2


@dataclass(frozen=True)
class MemoryPlan:
    """The plan of a training.

    Attributes:
        budget: bytes.
        resolution: height of the training pictures.
        pool_size, pool_device, pool_bytes: number of pictures in the pool, their device, and their total size.
        render: pictures rendered together without gradients.
        references: samples whose references are composed together.
        batch, chunk: samples per step, processed in chunks of at most `chunk`.
        step_bytes: estimated bytes of a step.
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
        """Return the line that training prints before step 1."""
        parts = "" if self.chunk >= self.batch else f" in parts of {self.chunk}"
        return (
            f"memory: {self.budget / GIB:.1f} GiB (--memory_gib). A step of {self.batch} samples at"
            f" {self.resolution} px{parts} takes about {self.step_bytes / GIB:.2f} GiB, the pool of {self.pool_size}"
            f" pictures {self.pool_bytes / GIB:.2f} GiB on the {self.pool_device}"
        )


def plan_pool(
    budget: int,
    device: str,
    resolution: int,
    regions: int,
    batch: int,
    forward: int,
    wanted: int | None = None,
    aspect: float = 1.0,
) -> MemoryPlan:
    """Plan the pool, before the memory of a step is known.

    A pool larger than its share of a GPU is kept in host memory, where `CPU_BUDGET` bounds it. A size given by
    `wanted` is never reduced.

    Args:
        device: device of the training: "cpu", "cuda", ...
        forward: bytes to render a picture.
        wanted: --pool_size.
        aspect: the pictures' width divided by their height.
    """
    picture, share = pool_picture_bytes(resolution, regions, aspect), int(budget * POOL_SHARE)
    most = wanted or POOL_MOST
    fits = most * picture <= share
    place = device if fits or device == "cpu" else "cpu"
    room = share if place == device else max(share, CPU_BUDGET // 2)
    size = wanted or max(POOL_LEAST, min(most, room // picture))
    render = chunk_size(forward, budget * RENDER_SHARE, 64)
    references = chunk_size(reference_bytes(resolution, regions, aspect), budget * RENDER_SHARE, 64)
    return MemoryPlan(budget, resolution, size, place, size * picture, render, references, batch)


def plan_step(plan: MemoryPlan, sample_bytes: int) -> MemoryPlan:
    """Add the chunk size of a step to the plan, given the bytes of a sample."""
    chunk = chunk_size(sample_bytes, plan.budget * STEP_SHARE, plan.batch)
    if sample_bytes > plan.budget * (1 - POOL_SHARE):
        logger.warning(
            "a single sample takes about %.1f GiB of --memory_gib %.1f: a smaller --train_resolution needs less",
            sample_bytes / GIB,
            plan.budget / GIB,
        )
    return replace(plan, chunk=chunk, step_bytes=min(chunk, plan.batch) * sample_bytes)
