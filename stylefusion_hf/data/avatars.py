"""Drawn portraits with exact region maps, on which the embedded models are trained and evaluated.

The drawings are "Avataaars" by Pablo Stanley (free for personal and commercial use), composed from python-avatars
(MIT) and rasterized with resvg. The extra `train` installs both packages: ``pip install '.[train]'`` in a checkout.

    image, labels = render_avatar(avatar_spec(7), size=128)
    other = render_avatar(swap_region(avatar_spec(7), avatar_spec(8), "hair"))[0]  # the ground-truth swap

`render_arrays`, `cached_arrays` and `write_dataset` are methods of `Artwork`.
"""

from importlib import metadata
from typing import Any

import torch
from torch.utils.data import Dataset

from stylefusion_hf.data.artwork import Artwork, check
from stylefusion_hf.data.avatar_parts import parts_folder
from stylefusion_hf.data.avatar_render import render_avatar
from stylefusion_hf.data.avatar_spec import REGION_FIELDS, REGIONS, AvatarSpec, avatar_spec, swap_region

__all__ = [
    "AVATARS",
    "REGIONS",
    "REGION_FIELDS",
    "AvatarDataset",
    "AvatarSpec",
    "avatar_spec",
    "cached_arrays",
    "render_arrays",
    "render_avatar",
    "swap_region",
    "write_dataset",
]


def _parts() -> str:
    parts_folder()  # ImportError, naming the extra, if a package is missing
    return f"python-avatars {metadata.version('python-avatars')}"


AVATARS = Artwork(
    name="avatar",
    regions=REGIONS,
    recipe=1,
    parts=_parts,
    credit="Avataaars by Pablo Stanley (free for personal and commercial use), packed by python-avatars (MIT)",
    spec=avatar_spec,
    render=render_avatar,
    palette=(40, 40, 40, 240, 190, 150, 60, 120, 220, 220, 40, 60, 40, 200, 80, 150, 80, 30),
)
render_arrays, cached_arrays, write_dataset = AVATARS.render_arrays, AVATARS.cached_arrays, AVATARS.write_dataset


class AvatarDataset(Dataset[dict[str, Any]]):
    """Avatars start .. start + count - 1 of a seed, drawn on access (about 15 ms each at 64 px).

    Items are {"image": float (3, size, size) in [-1, 1], "labels": long (size, size), "index": the avatar's index}.
    """

    def __init__(self, count: int, size: int = 64, seed: int = 0, start: int = 0) -> None:
        check(count, size, seed, start)
        self.count, self.size, self.seed, self.start = count, size, seed, start

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> dict[str, Any]:
        if not -self.count <= item < self.count:
            raise IndexError(f"item {item} of {self.count} avatars")
        index = self.start + item % self.count
        image, labels = render_avatar(avatar_spec(index, self.seed), self.size)
        return {
            "image": torch.from_numpy(image).permute(2, 0, 1).float() / 127.5 - 1,
            "labels": torch.from_numpy(labels).long(),
            "index": index,
        }
