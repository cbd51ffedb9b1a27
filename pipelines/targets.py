"""Reading the inputs of an inversion: pictures in any form, and masks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from stylefusion_hf.core.checks import short
from stylefusion_hf.imaging.images import Fit, array_images, open_image, picture_files, picture_name, to_tensor
from stylefusion_hf.imaging.modes import MODES
from stylefusion_hf.models.style_generator import StyleGenerator


def read_targets(image: Any, generator: StyleGenerator, fit: Fit) -> torch.Tensor:
    """Read pictures in any form into a tensor (B, C, H, W) of the generator's size, in [-1, 1].

    Args:
        image: a PIL image, a file, a folder, an array (H, W, C) or (B, H, W, C) of uint8 or in [0, 1], a tensor
            (B, C, H, W) in [0, 1] of the model's size, or a list of these.
        generator: tells the size and the channels.
        fit: how to handle pictures of another aspect ratio, for most generators those that are not square.

    Raises:
        ValueError: names what was given.
        OSError: a file cannot be read.
    """
    size, channels = generator.picture_size, generator.config.img_channels
    items = list(image) if isinstance(image, (list, tuple)) else [image]
    if not items or any(isinstance(item, str) and not item for item in items):  # "" would mean the working folder
        raise ValueError(f"image is an empty {'list' if not items else 'text'}: give at least one picture")
    parts = []
    for item in items:
        if isinstance(item, (str, os.PathLike)):
            for path in _files(item):
                opened, name = open_image(path, channels), picture_name(path)
                parts.append(to_tensor([opened], size, channels, fit, [name]))
        elif isinstance(item, Image.Image):
            parts.append(to_tensor([item], size, channels, fit, ["image"]))
        elif isinstance(item, np.ndarray) and (item.dtype == np.uint8 or _other_size(item, size)):
            pictures = array_images(item, "image")
            parts.append(to_tensor(pictures, size, channels, fit, ["image"] * len(pictures)))
        elif isinstance(item, (np.ndarray, torch.Tensor)):  # already the model's size: keep full precision
            parts.append(_from_array(item, (channels, *size)))
        else:
            kind = type(item).__name__
            raise ValueError(
                f"image must be a PIL image, a file, a folder, an array, a tensor or a list of these; got {kind}"
            )
    return torch.cat(parts)


def _other_size(item: np.ndarray, size: tuple[int, int]) -> bool:
    """Return whether the array holds float pictures of another size than the model's."""
    pictures = item.dtype.kind == "f" and item.ndim in (3, 4) and item.shape[-1] in MODES and item.size > 0
    return pictures and item.shape[-3:-1] != size


def _files(item: str | os.PathLike[str]) -> list[Path]:
    """Return the file of that name, or the pictures in the folder of that name."""
    try:
        return picture_files(item) if Path(item).is_dir() else [Path(item)]
    except OSError as error:  # a name that the file system rejects
        raise OSError(f"image: {short(os.fspath(item))} cannot be read: {error.strerror or error}") from None


def plain_tensor(value: Any, name: str) -> torch.Tensor:
    """Return a tensor of real numbers or bools from a tensor, an array, numbers or lists of them.

    Anything else raises a ValueError that begins with `name`.
    """
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided or value.is_nested or value.is_meta or value.is_quantized:
            raise ValueError(f"{name} must be a plain dense tensor, got a sparse, nested, quantized or meta one")
        if value.is_complex():
            raise ValueError(f"{name}: expected real numbers, got {value.dtype}")
        return value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, OverflowError, MemoryError, RuntimeError):  # ragged, or nested too deeply
        array = np.empty(0, dtype=object)
    if array.dtype.kind not in "biuf" or not array.size:
        raise ValueError(f"{name} must be a tensor or an array of numbers, got {short(value)}")
    if array.dtype.kind == "f":
        array = array.astype(np.float32 if array.dtype.itemsize <= 4 else np.float64)
    elif array.dtype.kind in "iu":
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))


def _from_array(item: np.ndarray | torch.Tensor, size: tuple[int, int, int]) -> torch.Tensor:
    """Convert an array (B, H, W, C) or tensor (B, C, H, W) in [0, 1], B optional, to a tensor in [-1, 1]."""
    is_tensor = isinstance(item, torch.Tensor)
    tensor = plain_tensor(item, "image")
    tensor = tensor[None] if tensor.ndim == 3 else tensor
    if not is_tensor and tensor.ndim == 4:
        tensor = tensor.permute(0, 3, 1, 2)
    if tensor.ndim != 4 or tuple(tensor.shape[1:]) != size or not len(tensor) or not tensor.is_floating_point():
        kind = "a tensor (batch, {}, {}, {})" if is_tensor else "an array (batch, {1}, {2}, {0})"
        raise ValueError(
            f"image: expected {kind.format(*size)} of floating-point numbers in [0, 1], got {tuple(item.shape)} of"
            f" {item.dtype}; only PIL images are resized"
        )
    tensor = tensor.detach().float()
    if not bool(((tensor >= 0) & (tensor <= 1)).all()):  # NaN fails too
        raise ValueError(
            f"image: numbers must be in [0, 1], got {tensor.min():.3g} to {tensor.max():.3g}: convert [-1, 1] with"
            " (x + 1) / 2, bytes with x / 255"
        )
    return tensor * 2 - 1


def read_masks(masks: Any, targets: torch.Tensor) -> torch.Tensor:
    """Read masks from a tensor or an array (H, W), (1, H, W) or (B, H, W).

    Returns:
        (B, H, W), with the dtype and device of `targets`.
    """
    weight = plain_tensor(masks, "masks").to(targets)
    weight = weight[None] if weight.ndim == 2 else weight
    if tuple(weight.shape[1:]) != tuple(targets.shape[2:]) or len(weight) not in (1, len(targets)):
        expected = (len(targets), *targets.shape[2:])
        raise ValueError(f"masks must have the shape {expected}, got {tuple(weight.shape)}")
    if not bool((weight >= 0).all() and weight.isfinite().all()):
        raise ValueError("masks must be finite and not negative")
    return weight.expand(len(targets), -1, -1)
