"""Folders of the user's own pictures as datasets."""

import os
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from stylefusion_hf.core.checks import listed
from stylefusion_hf.core.json_files import read_json
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.imaging.images import (
    image_size,
    open_image,
    open_labels,
    picture_files,
    pixels_to_tensor,
    resize_middle,
)
from stylefusion_hf.imaging.modes import MODES
from stylefusion_hf.imaging.squares import Size, as_size


class ImageFolder(Dataset[dict[str, torch.Tensor]]):
    """All pictures below a folder, sorted by path, as tensors of one size.

    Items are {"image": float (channels, height, width) in [-1, 1]}. If the folder has the layout of
    `write_dataset` (``images/`` and ``labels/`` with .png files of the same names), items also have {"labels": long
    (height, width)}, resized by nearest neighbor.

    The constructor reads sizes from the files' headers, so that a picture of a wrong size is an error before training
    starts. A picture that is truncated further down is an OSError that names it when its item is read.

    Args:
        root: the folder, searched recursively; hidden files and folders are skipped.
        resolution: side of the items in pixels, or (height, width).
        crop: "center" crops the largest centered box of that aspect ratio; "none" accepts such pictures only.
        channels: 3 for color, 1 for gray, 4 or 2 with transparency, without which pictures are put on white.
        mirror: add the mirror image of every picture: item i + n/2 mirrors item i.
        upscale: accept pictures smaller than `resolution`.
        skip_broken: skip unusable pictures (`skipped` lists them) instead of raising; reads all pictures once.
        progress: show a progress bar while doing so.

    Raises:
        OSError: the folder is missing, or a picture is unusable according to `images.check_image`, e.g. animated.
        ValueError: a bad argument, an empty folder, or pictures of a wrong size.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        resolution: Size,
        crop: Literal["center", "none"] = "center",
        channels: int = 3,
        mirror: bool = False,
        upscale: bool = False,
        skip_broken: bool = False,
        progress: bool = True,
    ) -> None:
        if min(as_size(resolution)) < 1:
            raise ValueError(f"resolution must be at least 1, got {resolution}")
        if crop not in ("center", "none"):
            raise ValueError(f'crop must be "center" or "none", got {crop!r}')
        if channels not in MODES:
            raise ValueError(
                f"channels must be 3 (color), 1 (gray), 4 (color and alpha) or 2 (gray and alpha), got {channels}"
            )
        self.root = Path(root)
        self.size, self.crop, self.channels, self.mirror = as_size(resolution), crop, channels, mirror
        has_labels = (self.root / "images").is_dir() and (self.root / "labels").is_dir()
        pictures = self.root / "images" if has_labels else self.root
        self.paths = picture_files(pictures)
        self.label_paths: list[Path] | None = None
        self.skipped: list[Path] = []
        if skip_broken:
            self.skipped = [path for path in tqdm(self.paths, desc="reading", disable=not progress) if _broken(path)]
            broken = set(self.skipped)
            self.paths = [path for path in self.paths if path not in broken]
            if not self.paths:
                raise ValueError(f"none of the {len(self.skipped)} pictures in {pictures} can be read")
        self._check_sizes(upscale)
        if has_labels:
            maps = self.root / "labels"
            self.label_paths = [maps / path.relative_to(pictures).with_suffix(".png") for path in self.paths]
            missing = [path for path in self.label_paths if not path.is_file()]
            if missing:
                raise ValueError(f"{len(missing)} of {len(self.paths)} pictures have no label map, first {missing[0]}")
        self.regions = _regions(self.root)

    def __len__(self) -> int:
        return len(self.paths) * (2 if self.mirror else 1)

    def __getitem__(self, item: int) -> dict[str, torch.Tensor]:
        if not -len(self) <= item < len(self):
            raise IndexError(f"item {item} of {len(self)}")
        item %= len(self)
        number, flip = item % len(self.paths), item >= len(self.paths)
        picture = _read(self.paths[number], self.channels)
        image = pixels_to_tensor(resize_middle(picture, self.size, Image.Resampling.LANCZOS))
        result = {"image": (image.flip(-1) if flip else image).contiguous()}
        if self.label_paths is not None:
            labels = self._labels(number)
            result["labels"] = labels.flip(-1) if flip else labels
        return result

    def _labels(self, number: int) -> torch.Tensor:
        assert self.label_paths is not None
        path = self.label_paths[number]
        found, size = open_labels(path), image_size(self.paths[number], upright=True)
        if found.shape != size[::-1]:
            height, width = found.shape
            raise ValueError(f"{path} is {width} x {height}, its picture {size[0]} x {size[1]}")
        labels = resize_middle(Image.fromarray(found), self.size, Image.Resampling.NEAREST)
        ids = np.array(labels, dtype=np.int64)
        if self.regions is not None and ids.max() >= len(self.regions):
            raise ValueError(f"{path} has label {ids.max()}, but the dataset's regions are {listed(self.regions)}")
        return torch.from_numpy(ids)

    def _check_sizes(self, upscale: bool) -> None:
        small, oblong, (tall, wide) = [], [], self.size
        for path in self.paths:
            width, height = _size(path)
            if width < wide or height < tall:
                small.append(f"{path} ({width} x {height})")
            if width * tall != height * wide:
                oblong.append(f"{path} ({width} x {height})")
        least = f"{tall}" if tall == wide else f"{wide} x {tall}"
        if small and not upscale:
            raise ValueError(
                f"{len(small)} of {len(self.paths)} pictures are smaller than {least} pixels, first "
                f"{small[0]}: leave them out, lower the resolution, or allow upscale=True"
            )
        if oblong and self.crop == "none":
            shape = "square" if tall == wide else f"of the shape of {least}"
            raise ValueError(
                f'{len(oblong)} of {len(self.paths)} pictures are not {shape}, first {oblong[0]}: use crop="center"'
            )


def _regions(root: Path) -> tuple[str, ...] | None:
    try:
        names = read_json(root / "dataset.json")["regions"]
        return tuple(str(name) for name in names)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _size(path: Path) -> tuple[int, int]:
    try:
        return image_size(path)
    except (OSError, ValueError) as error:
        raise _unusable(error) from error


def _broken(path: Path) -> bool:
    try:
        _read(path, 3)
    except OSError:
        return True
    return False


def _read(path: Path, channels: int) -> Image.Image:
    """Open a picture, upright, in mode RGB or L. OSError, naming it, if it cannot be used."""
    try:
        return open_image(path, channels)
    except (OSError, ValueError) as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> OSError:
    return OSError(f"{error}; remove it, or skip such files with skip_broken=True")
