"""Converted networks -> the folders that `from_pretrained` loads, without a second copy of the weights in memory."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file

from stylefusion_hf.conversion.inert import ConversionError
from stylefusion_hf.conversion.layouts import Converted

WEIGHTS = "diffusion_pytorch_model"
HALF = "fp16"  # the variant's name, as in diffusers


def release(buffer: memoryview) -> None:
    """Drop the mapped file's pages from memory; they are read again when a tensor needs them."""
    gc.collect()
    if isinstance(buffer.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        buffer.obj.madvise(mmap.MADV_DONTNEED)


def plain_weights(converted: Converted, what: str) -> dict[str, torch.Tensor]:
    """The state in contiguous float32. Tensors that are so already stay views of the source file.

    Raises:
        ConversionError: weights that are no real numbers, or not finite; names them.
    """
    state, broken = {}, []
    for name, tensor in converted.state.items():
        if not tensor.is_floating_point():
            raise ConversionError(f"{what}: {name} holds {tensor.dtype}, expected real numbers")
        state[name] = tensor.detach().to(torch.float32).contiguous()
        # One number decides: a sum is finite only if no term is inf or nan (or it overflows, which the second look
        # settles).
        if not state[name].sum().isfinite() and not state[name].isfinite().all():
            broken.append(name)
    if broken:
        listed = ", ".join(broken[:4]) + (" and others" if len(broken) > 4 else "")
        raise ConversionError(f"{what}: {len(broken)} of its tensors hold inf or nan: {listed}")
    return state


def save_model(cls: Any, converted: Converted, folder: Path, what: str, half: bool, shard: str) -> list[str]:
    """Write config.json and weights of a model class, float32, and beside them the fp16 variant if `half`.

    Every parameter and buffer that the class saves must be in the state, and nothing else.

    Args:
        what: how errors name it.
        shard: size from which diffusers splits the weights into several files, such as "5GB".

    Returns:
        Notes for the user.

    Raises:
        ConversionError: weights and config do not fit together, or the weights are not finite.
    """
    state = plain_weights(converted, what)
    try:
        with init_empty_weights(include_buffers=False):
            model = cls(**converted.config)
        model.load_state_dict(state, strict=True, assign=True)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(f"{what}: {' '.join(str(error).split())[:300]}") from None
    model.eval().save_pretrained(folder, safe_serialization=True, max_shard_size=shard)
    notes = []
    if half:
        small = {name: tensor.to(torch.float16) for name, tensor in state.items()}
        if overflowing := [name for name, tensor in small.items() if not tensor.isfinite().all()]:
            notes.append(f"too large for fp16, saved as inf there: {', '.join(overflowing)}; use the float32 files")
        model.load_state_dict(small, strict=True, assign=True)
        model.save_pretrained(folder, safe_serialization=True, max_shard_size=shard, variant=HALF)
    if not state:  # a region tree without any net: diffusers writes no file, and then misses it
        for name in (WEIGHTS, f"{WEIGHTS}.{HALF}") if half else (WEIGHTS,):
            save_file({}, folder / f"{name}.safetensors", metadata={"format": "pt"})
    return notes
