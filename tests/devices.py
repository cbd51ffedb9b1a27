"""The device of the tests that compute: `STYLEFUSION_TEST_DEVICE`, such as cuda or mps, or the CPU.

`fake` is the make-believe accelerator of tests/fake_device.py, which is as strict about devices as CUDA. Results come
back to the CPU before they are compared.
"""

from __future__ import annotations

import os
from typing import Any

import torch

NAME = os.environ.get("STYLEFUSION_TEST_DEVICE", "cpu")
ROUNDING = 1e-3  # of other kernels than the CPU's, in units of pictures from 0 to 1


def computing_device() -> torch.device:
    if NAME == "fake" and torch._C._get_privateuse1_backend_name() != "fake":
        from tests.fake_device import install

        install()
    return torch.device(NAME)


def to_device(value: Any) -> Any:
    """Move a model or pipeline there in place, or return a tensor, also in dictionaries, that is there."""
    if isinstance(value, dict):
        return {key: to_device(part) for key, part in value.items()}
    return value.to(computing_device()) if hasattr(value, "to") else value


def from_device(value: Any) -> Any:
    return value.cpu() if isinstance(value, torch.Tensor) else value


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two results are equal, up to rounding where the kernels are not the CPU's."""
    return torch.equal(a, b) if NAME in ("cpu", "fake") else bool(torch.allclose(a, b, rtol=ROUNDING, atol=ROUNDING))
