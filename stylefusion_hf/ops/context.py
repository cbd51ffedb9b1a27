"""Who else follows a computation, beside autograd's ordinary way backwards."""

import torch
from torch.autograd import forward_ad


def traced_or_transformed() -> bool:
    """Whether `torch.jit.trace` writes operations down, or `torch.func` or forward-mode differentiation changes them.

    Then what is done must not depend on values, nor go through operators without rules for it.
    """
    return (
        torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )
