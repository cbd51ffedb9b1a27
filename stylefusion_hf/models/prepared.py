"""Values that depend on a parameter alone, made once for inference and again when the parameter changes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

PROBES = 16


class Prepared:
    """Keeps what `make(parameter)` gave, while the parameter stays as it is.

    It is made anew in every call where a gradient or a compiled graph wants to see how, and on devices other than the
    CPU, where reading the parameter again costs less than asking whether it has changed. A change is seen by the
    parameter's version, its address and sixteen of its numbers: `p.data.copy_(...)`, which diffusers' EMAModel uses,
    counts no version.
    """

    def __init__(self, make: Callable[[Tensor], Tensor]):
        self.make = make
        self.kept: tuple[Tensor, int, list[float], Tensor] | None = None

    def __call__(self, parameter: Tensor) -> Tensor:
        if (
            parameter.device.type != "cpu"
            or torch.compiler.is_compiling()
            or parameter.is_inference()
            or (torch.is_grad_enabled() and parameter.requires_grad)
        ):
            return self.make(parameter)
        kept, state = self.kept, parameter.detach()
        probes = state.flatten()[:: max(1, state.numel() // PROBES)].tolist()
        if kept is not None:
            before, version, seen, value = kept
            # `before` is kept so that no other tensor can be given its address.
            if before.data_ptr() == state.data_ptr() and version == parameter._version and seen == probes:
                return value
        value = self.make(state)
        self.kept = (state, parameter._version, probes, value)
        return value

    def __deepcopy__(self, memo: dict) -> Prepared:
        return Prepared(self.make)

    def __getstate__(self) -> dict:
        return {"make": self.make, "kept": None}
