"""Choice of the compute device: one check for every command and the Space."""

from __future__ import annotations

import re
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path

from stylefusion_hf.core.checks import short, shown

NAME = re.compile(r"(cpu|cuda|mps|xpu|hpu|npu|mtia|xla)(?::(\d{1,3}))?")


def check_device_name(name: str) -> str:
    """Return a plausible device name, checked without importing torch, which takes seconds.

    Raises:
        ValueError: not a device name, or a kind of device that this machine or this build of torch does not have.
    """
    match = NAME.fullmatch(name.strip()) if isinstance(name, str) else None
    if match is None:
        given = shown(name) if isinstance(name, str) else short(name)
        raise ValueError(f"{given}: not a device to compute on; give cpu, cuda, cuda:1, mps ...")
    kind = match[1]
    if kind == "cpu" and match[2] not in (None, "0"):
        raise ValueError(f"{name}: there is only one cpu; give cpu")
    if kind == "mps" and sys.platform != "darwin":
        raise ValueError(f"{name}: MPS needs a Mac, and this is not one; give cpu or cuda")
    if kind == "cuda" and not _built_for_gpus():
        raise ValueError(f"{name}: this torch is built without CUDA; give cpu, or install a build with CUDA")
    return name.strip()


def check_device(name: str | None) -> str:
    """Return the name of a device that torch can compute on here.

    Args:
        name: None for cuda if available, else cpu.

    Raises:
        ValueError: the device cannot be used; names it and says why.
    """
    if name is not None:
        name = check_device_name(name)
    import torch

    device = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=device).add_(1).cpu()  # some kinds fail only when they compute something
    except Exception as error:  # torch and third-party device plug-ins raise many types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise ValueError(
            f"{device}: it cannot be used here: {shown(reason, 200)}; give cpu, or leave it out"
        ) from error
    return device


def _built_for_gpus() -> bool:
    """Return whether torch is built for CUDA or ROCm, from its version.py; True if that cannot be determined."""
    if "torch" in sys.modules:
        version = vars(sys.modules["torch"].version)
    else:
        found = find_spec("torch")
        file = Path(found.origin).with_name("version.py") if found is not None and found.origin else None
        if file is None or not file.is_file():
            return True
        version = runpy.run_path(str(file))
    return bool(version.get("cuda", True) or version.get("hip", None))
