"""Pictures to train on and to measure with: arrays in memory, and avatars rendered once per cache folder."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import Dataset

from stylefusion_hf.core.sizes import describe_size
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.training.common import one_process_first

FIRST_HELD_OUT = 1_000_000  # avatars from here on are far beyond any training index


class ArrayDataset(Dataset):
    """uint8 images (N, H, W, 3) in memory, optionally with label maps (N, H, W)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        """{"image": (3, H, W) in [-1, 1], "labels": (H, W) if there are any}."""
        item = {"image": torch.from_numpy(self.images[i]).permute(2, 0, 1).float().div(127.5).sub(1)}
        if self.labels is not None:
            item["labels"] = torch.from_numpy(self.labels[i]).long()
        return item


class DrawingDataset(ArrayDataset):
    """Items also have "number", the drawing's."""

    labels: np.ndarray

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {**super().__getitem__(i), "number": torch.tensor(i)}


def cache_folder(args: argparse.Namespace) -> Path:
    """Return the folder for rendered avatars."""
    return Path(args.cache_dir or Path(args.output_dir) / "data")


def load_avatars(args: argparse.Namespace, accelerator: Accelerator, resolution: int) -> tuple[np.ndarray, np.ndarray]:
    """Return images (N, H, W, 3) and label maps (N, H, W) of the first --avatars, which are rendered if needed."""
    from stylefusion_hf.data.avatars import cached_arrays

    with one_process_first(accelerator):
        return cached_arrays(cache_folder(args), args.avatars, resolution, args.data_seed)


def check_avatars_fit(g: StyleGenerator) -> None:
    """Raise ValueError unless the generator's pictures are like avatars: square, and of 3 channels."""
    height, width = g.picture_size
    if height != width or height & (height - 1) or g.config.img_channels != 3:
        raise ValueError(
            f"avatars are squares of 3 channels, the generator's pictures {describe_size((height, width))} of"
            f" {g.config.img_channels}: train on a folder of pictures, --train_data_dir"
        )


def held_out_avatars(count: int, resolution: int, data_seed: int) -> ArrayDataset:
    """Return avatars that no training sees, with label maps."""
    from stylefusion_hf.data.avatars import render_arrays

    return ArrayDataset(*render_arrays(count, resolution, data_seed, start=FIRST_HELD_OUT, workers=1, progress=False))
