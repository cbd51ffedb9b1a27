"""Timing that a shared machine disturbs little: what is compared takes turns, and the machine is measured too."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(
    jobs: Mapping[str, Callable[[], object]], device: torch.device, rounds: int = 5, budget: float = 20.0
) -> dict[str, float]:
    """Median seconds of every job. One call each to warm up, then rounds in which every job has its turn.

    After `budget` seconds no further round begins: what takes seconds is measured less often.
    """
    for job in jobs.values():
        job()
    synchronise(device)
    times: dict[str, list[float]] = {name: [] for name in jobs}
    begun = time.perf_counter()
    for _ in range(rounds):
        for name, job in jobs.items():
            started = time.perf_counter()
            job()
            synchronise(device)
            times[name].append(time.perf_counter() - started)
        if time.perf_counter() - begun > budget:
            break
    return {name: statistics.median(seconds) for name, seconds in times.items()}


class Machine:
    """What this machine can do at best, in plain PyTorch: the floor that a measured time is held against."""

    def __init__(self, device: torch.device, dtype: torch.dtype = torch.float32):
        self.device, self.dtype = device, dtype
        x = torch.randn(2**26, device=device)  # 256 MiB, beyond any cache
        y = torch.empty_like(x)
        a, b = (torch.randn(2048, 2048, device=device, dtype=dtype) for _ in range(2))
        found = medians({"copy": lambda: y.copy_(x), "product": lambda: a @ b}, device)
        self.copy_rate = x.numel() * 4 / found["copy"]  # bytes copied a second: each is read once and written once
        self.product_rate = 2 * 2048**3 / found["product"]  # FLOP a second
        self._conv: dict[tuple[int, int, int], float] = {}

    def conv_rate(self, c_in: int, c_out: int, size: int) -> float:
        """FLOP a second of a 3 x 3 convolution of this shape, the faster of both memory layouts."""
        key = (c_in, c_out, size)
        if key not in self._conv:
            x = torch.randn(1, c_in, size, size, device=self.device, dtype=self.dtype)
            w = torch.randn(c_out, c_in, 3, 3, device=self.device, dtype=self.dtype)
            nhwc = x.contiguous(memory_format=torch.channels_last)
            jobs = {"nchw": lambda: F.conv2d(x, w, padding=1), "nhwc": lambda: F.conv2d(nhwc, w, padding=1)}
            seconds = min(medians(jobs, self.device, rounds=3, budget=3).values())
            self._conv[key] = 2 * 9 * c_in * c_out * size**2 / seconds
        return self._conv[key]
