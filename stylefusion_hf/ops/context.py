"""Detection of tracing and function transforms."""

import torch
from torch.autograd import forward_ad


def traced_or_transformed() -> bool:
    """Return whether `torch.jit.trace`, a `torch.func` transform or forward-mode differentiation is active.

    In these cases control flow must not depend on values, and operators without rules for them cannot be used.
    """
    return (
        torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
