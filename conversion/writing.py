"""Writing of converted networks as folders for `from_pretrained`.

The weights are not copied in memory. The folder is written next to its final place, then renamed.
"""

from __future__ import annotations

import gc
import mmap
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError

from stylefusion_hf.conversion.layouts import Converted
from stylefusion_hf.conversion.rendering import LARGEST
from stylefusion_hf.core.files import flush, set_modes
from stylefusion_hf.core.tensor_files import write_tensors
from stylefusion_hf.core.untrusted.inert import ConversionError, MiB
from stylefusion_hf.models.style_generator import StyleGenerator

WEIGHTS = "diffusion_pytorch_model"
SMALL = 16 * MiB  # a file whose pages may stay in memory
HALF = "fp16"  # name of the variant in diffusers


def release(buffer: memoryview) -> None:
    """Drop a mapped file's pages from memory; they are read again when needed.

    Does nothing for small files, for which finding garbage would take longer than the conversion.
    """
    if len(buffer) < SMALL:
        return
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


def save_model(cls: Any, converted: Converted, folder: Path, what: str, half: bool, shard: int | str) -> list[str]:
    """Write config.json and float32 weights of a model, and its fp16 variant if `half`.

    The state must have exactly the parameters and buffers that the class saves.

    Args:
        cls: the model's class.
        converted: its config and state dict.
        folder: created if needed.
        what: what errors call the model.
        half: also write the fp16 variant.
        shard: size above which diffusers splits the weights into several files, such as "5GB", or in bytes.

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


def _save(model: Any, folder: Path, shard: int | str, **kwargs: Any) -> None:
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


# --- The destination -------------------------------------------------------------------------------------------------


def check_destination(target: Path, overwrite: bool, sources: Iterable[Path] = ()) -> Path:
    """Return the real path to write to.

    Raises:
        ConversionError: it is not a folder, is not empty without `overwrite`, or contains one of the sources.
    """
    if not str(target).isprintable():  # safetensors cannot open paths that are not UTF-8
        raise ConversionError(f"{str(target)!r}: is not a printable folder name; give another one")
    real = Path(os.path.realpath(target))
    if real.is_symlink():  # realpath resolves every link except loops
        raise ConversionError(f"{target}: is a symbolic link that leads nowhere; give another name")
    if real.exists() and not real.is_dir():
        raise ConversionError(f"{target}: is a file; give the name of a folder")
    if real.is_dir() and any(real.iterdir()):
        if not overwrite:
            raise ConversionError(
                f"{target}: exists and is not empty; give another name, or --overwrite to replace it"
            )
        for source in sources:
            read = Path(os.path.realpath(source))
            if real == read or real in read.parents:
                raise ConversionError(
                    f"{target}: {'is' if real == read else 'holds'} {source}, which --overwrite would remove; give"
                    " another name"
                )
    for above in real.parents:
        if above.exists():
            if not above.is_dir() or not os.access(above, os.W_OK):
                raise ConversionError(f"{target}: cannot be written, {above} is not a writable folder")
            break
    return real


@contextmanager
def replace_folder(target: Path, overwrite: bool, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a folder to fill, which replaces `target` if the body raises nothing.

    An existing `target` is kept until the new folder is complete, and stays unchanged if anything fails.
    """
    real = check_destination(target, overwrite, sources)
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        work = _beside(real, ".part")
    except OSError as error:
        raise ConversionError(f"{target}: cannot be written ({error.strerror or error})") from None
    try:
        yield work
        set_modes(work)
        for file in work.rglob("*"):
            flush(file)
        _swap(work, real)
        flush(real.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap(work: Path, real: Path) -> None:
    if not real.exists():
        os.rename(work, real)
        return
    if not any(real.iterdir()):
        real.rmdir()
        os.rename(work, real)
        return
    aside = _beside(real, ".old")
    old = aside / real.name
    os.rename(real, old)
    try:
        os.rename(work, real)
    except OSError:
        os.rename(old, real)
        raise
    finally:
        if real.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _beside(real: Path, suffix: str) -> Path:
    """Create a hidden folder on the same file system, with a legal name even if `real`'s has maximal length."""
    folder = real.parent / f".{real.name[:40]}.{secrets.token_hex(4)}{suffix}"
    folder.mkdir()  # has the umask's mode, unlike folders made by `tempfile`
    return folder
