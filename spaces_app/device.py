"""ZeroGPU support: functions that hold a GPU while they run. Must be imported before torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SECONDS = 60  # limit for one call; the longest is an inversion

try:
    import spaces
except ImportError:  # not on ZeroGPU
    spaces = None


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function to run on a GPU on ZeroGPU; elsewhere return the function itself."""
    if spaces is None:
        return function
    wrapped: Callable[..., Any] = spaces.GPU(duration=SECONDS)(function)
    return wrapped
