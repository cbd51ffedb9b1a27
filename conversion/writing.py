"""Writing of converted networks as folders for `from_pretrained`, without a second copy of the weights in memory."""

from __future__ import annotations

import gc
import mmap
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError

from stylefusion_hf.conversion.checks import is_too_large
from stylefusion_hf.conversion.inert import ConversionError
from stylefusion_hf.conversion.layouts import Converted
from stylefusion_hf.conversion.rendering import LARGEST
from stylefusion_hf.core.tensor_files import write_tensors
from stylefusion_hf.models.mobile_stylegan import MobileStyleGANGenerator
from stylefusion_hf.models.style_generator import StyleGenerator

PREVIEWS = (128, 256)  # sizes of the preview heads that a larger MobileStyleGAN gets
PREVIEW_SAMPLES = 32  # pictures of 1024 px that they are fitted to; fewer where pictures are larger
WEIGHTS = "diffusion_pytorch_model"
HALF = "fp16"  # name of the variant in diffusers


def release(buffer: memoryview) -> None:
    """Drop a mapped file's pages from memory; they are read again when needed."""
    gc.collect()
    if isinstance(buffer.obj, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        buffer.obj.madvise(mmap.MADV_DONTNEED)


def plain_weights(converted: Converted, what: str) -> dict[str, torch.Tensor]:
    """Return the state dict in contiguous float32. Tensors that already are stay views of the source file.

    Raises:
        ConversionError: weights that are not real numbers, or not finite; names them.
    """
    state, broken = {}, []
    for name, tensor in converted.state.items():
        if not tensor.is_floating_point():
            raise ConversionError(f"{what}: {name} holds {tensor.dtype}, expected real numbers")
        state[name] = converted.state[name] = tensor.detach().to(torch.float32).contiguous()  # frees the original
        # The sum is a cheap first test: it is finite only if all terms are. The second test rules out overflow.
        if not state[name].sum().isfinite() and not state[name].isfinite().all():
            broken.append(name)
    _untie(state)
    if broken:
        listed = ", ".join(broken[:4]) + (" and others" if len(broken) > 4 else "")
        raise ConversionError(f"{what}: {len(broken)} of its tensors hold inf or nan: {listed}")
    return state


def _untie(state: dict[str, torch.Tensor]) -> None:
    """Copy tensors that share memory (tied layers), which safetensors refuses to store."""
    end = 0
    for name, tensor in sorted(state.items(), key=lambda item: item[1].data_ptr()):
        if tensor.data_ptr() < end:
            state[name] = tensor.clone()
        end = max(end, tensor.data_ptr() + tensor.numel() * tensor.itemsize)


def save_model(cls: Any, converted: Converted, folder: Path, what: str, half: bool, shard: str) -> list[str]:
    """Write config.json and float32 weights of a model, and its fp16 variant if `half`.

    The state must have exactly the parameters and buffers that the class saves.

    Args:
        cls: the model's class.
        converted: its config and state dict.
        folder: created if needed.
        what: what errors call the model.
        half: also write the fp16 variant.
        shard: size above which diffusers splits the weights into several files, such as "5GB".

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
    _save(model.eval(), folder, shard)
    notes = []
    if half:
        small = {name: tensor.to(torch.float16) for name, tensor in state.items()}
        if overflowing := [name for name, tensor in small.items() if not tensor.isfinite().all()]:
            notes.append(f"too large for fp16, saved as inf there: {', '.join(overflowing)}; use the float32 files")
        model.load_state_dict(small, strict=True, assign=True)
        _save(model, folder, shard, variant=HALF)
    if not state:  # a region tree without nets: diffusers does not write the weights file that it requires
        for name in (WEIGHTS, f"{WEIGHTS}.{HALF}") if half else (WEIGHTS,):
            write_tensors(folder / f"{name}.safetensors", {}, {"format": "pt"})
    return notes


def _save(model: Any, folder: Path, shard: str, **kwargs: Any) -> None:
    try:
        model.save_pretrained(folder, safe_serialization=True, max_shard_size=shard, **kwargs)
    except SafetensorError as error:  # e.g. a full disk
        raise OSError(f"the weights cannot be written to {folder.name}: {error}") from error


@torch.no_grad()
def estimate_mean(cls: type[StyleGenerator], converted: Converted, name: str, samples: int) -> torch.Tensor:
    """Estimate the mean of w (w_dim,) from seeded samples, with equally many of each class if conditional."""
    labels, classes = None, converted.config["label_dim"]
    mapping = [tensor for key, tensor in converted.state.items() if key.startswith("mapping.")]
    widest = max([classes, *(size for tensor in mapping for size in tensor.shape)])
    if widest * samples > LARGEST:
        raise ConversionError(f"{name}: stores no mean of w, and its mapping network is too large to estimate it")
    if classes:
        labels = torch.nn.functional.one_hot(torch.arange(samples) % classes, classes).float()
    try:
        with init_empty_weights(include_buffers=False):
            generator = cls(**converted.config)
        state = {key: tensor.to(torch.float32) for key, tensor in converted.state.items()}
        generator.load_state_dict(state, strict=False, assign=True)
        return generator.estimate_w_avg(samples, seed=0, class_labels=labels)
    except (RuntimeError, ValueError, TypeError, NotImplementedError) as error:
        raise ConversionError(f"{name}: {' '.join(str(error).split())[:300]}") from None


def fit_previews(converted: Converted, what: str, asked: tuple[int, ...] | None) -> dict[int, float] | None:
    """Add preview heads to a MobileStyleGAN that is about to be saved.

    Args:
        asked: sizes; None for those of `PREVIEWS` that the model exceeds.

    Returns:
        The peak signal-to-noise ratio of each size's previews, in dB. None if the model is too large to be rendered.

    Raises:
        ConversionError: a size that the model has no features of, or weights that are broken.
    """
    resolution = converted.config["resolution"]
    sizes = [size for size in PREVIEWS if size < resolution] if asked is None else sorted(set(asked))
    known = [4 * 2**k for k in range(len(converted.config["channels"]))]
    if unknown := [size for size in sizes if size not in known]:
        listed = ", ".join(map(str, known))
        raise ConversionError(f"--previews {unknown[0]}: this generator of {resolution} px has features of {listed}")
    if not sizes:
        return {}
    state = plain_weights(converted, what)
    try:
        with init_empty_weights(include_buffers=False):
            generator = MobileStyleGANGenerator(**converted.config)
        generator.load_state_dict(state, strict=True, assign=True)
        if is_too_large(generator):
            return None
        samples = max(2, min(PREVIEW_SAMPLES, PREVIEW_SAMPLES * 1024**2 // resolution**2))
        found = generator.eval().requires_grad_(False).fit_previews(sizes, samples)
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(f"{what}: {' '.join(str(error).split())[:300]}") from None
    converted.config["preview_resolutions"] = sizes
    for name, tensor in generator.synthesis.previews.state_dict().items():
        converted.state[f"synthesis.previews.{name}"] = tensor.contiguous()
    return found
