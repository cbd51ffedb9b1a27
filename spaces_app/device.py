"""ZeroGPU, where a Space has it: functions that get a GPU for as long as they run. Imported before torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

SECONDS = 60  # that the longest of them, an inversion, may hold the GPU

try:
    import spaces
except ImportError:  # elsewhere
    spaces = None


def on_gpu(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with a GPU on ZeroGPU; the function itself elsewhere."""
    if spaces is None:
        return function
    wrapped: Callable[..., Any] = spaces.GPU(duration=SECONDS)(function)
    return wrapped
