"""Random generators that depend only on (seed, step, rank, purpose), so that resumed runs draw the same numbers."""

from __future__ import annotations

import numpy as np
import torch


def step_generator(seed: int, step: int, rank: int = 0, purpose: int = 0) -> torch.Generator:
    """Return a CPU generator for one step of one process, different for every combination of the arguments."""
    entropy = np.random.SeedSequence([seed & 0xFFFFFFFF, step, rank, purpose]).generate_state(2, np.uint64)
    return torch.Generator().manual_seed(int(entropy[0]) >> 1)  # numpy 1 cannot shift by an int
