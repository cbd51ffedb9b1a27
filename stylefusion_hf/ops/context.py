"""Detection of tracing, exporting and function transforms, and what has to be written with them in mind."""

import torch
from torch.autograd import forward_ad

KNOWS_EXPORTS = hasattr(torch.compiler, "is_exporting")  # from torch 2.7


def traced_or_transformed() -> bool:
    """Return whether `torch.jit.trace`, a `torch.func` transform or forward-mode differentiation is active.

    In these cases control flow must not depend on values, and operators without rules for them cannot be used.
    """
    return (
        torch.jit.is_tracing()  # type: ignore[attr-defined]
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def exporting() -> bool:
    """Return whether `torch.export` is tracing.

    Before torch 2.7 it is only seen with `strict=False`, which later versions have as the default.
    """
    if KNOWS_EXPORTS:
        return torch.compiler.is_exporting()
    return torch.compiler.is_compiling() and not torch.compiler.is_dynamo_compiling()


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or float64 for float64: `promote_types`, which torch 2.6 would export as an operator."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def scale_and_shift(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return x * scale + shift in one pass, but in two operators for exports.

    ONNX has no addcmul, and torch 2.6 cannot take it apart for a batch of any size.
    """
    return x * scale + shift if exporting() else torch.addcmul(shift, x, scale)
