"""Portraits with an exact map of their regions: the artwork that the embedded models are trained and judged on.

The drawings are "Avataaars" by Pablo Stanley (free for personal and commercial use), composed from python-avatars
(MIT) and rasterised with resvg. Both packages are the extra `train`: ``pip install stylefusion-hf[train]``.

    image, labels = render_avatar(avatar_spec(7), size=128)
    other = render_avatar(swap_region(avatar_spec(7), avatar_spec(8), "hair"))[0]  # the true swap

Avatar i of a seed is the same picture on any machine with the same package versions, alone or in any batch. The
functions with `workers` start processes by "spawn": a script that calls them needs the usual ``if __name__ ==
"__main__":``.
"""

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from importlib import metadata
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from stylefusion_hf.data._avatar_parts import parts_folder
from stylefusion_hf.data._avatar_render import render_avatar, render_range, write_range
from stylefusion_hf.data._avatar_spec import REGION_FIELDS, REGIONS, AvatarSpec, avatar_spec, swap_region

__all__ = [
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

CREDIT = "Avataaars by Pablo Stanley (free for personal and commercial use), packed by python-avatars (MIT)"
# Goes up whenever the same (index, seed, size) gives another picture: caches of an older recipe are drawn again.
RECIPE = 1
CHUNK = 64  # avatars a task of a worker: about a second's work


class AvatarDataset(Dataset[dict[str, Any]]):
    """Avatars start .. start + count - 1 of a seed, drawn when asked for (about 15 ms each at 64 px).

    Items: {"image": float (3, size, size) in [-1, 1], "labels": long (size, size), "index": the avatar's index}.
    """

    def __init__(self, count: int, size: int = 64, seed: int = 0, start: int = 0) -> None:
        _check(count, size, seed, start)
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


def render_arrays(
    count: int, size: int = 64, seed: int = 0, start: int = 0, workers: int | None = None, progress: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Avatars start .. start + count - 1: images (count, size, size, 3) and labels (count, size, size), both uint8.

    `workers` processes share the work (None: one a core). ValueError for bad arguments.
    """
    _check(count, size, seed, start, workers)
    images = np.empty((count, size, size, 3), np.uint8)
    labels = np.empty((count, size, size), np.uint8)
    _render_into(images, labels, seed, start, workers, progress)
    return images, labels


def cached_arrays(
    path: str | os.PathLike[str],
    count: int,
    size: int = 64,
    seed: int = 0,
    start: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> tuple[np.ndarray, np.ndarray]:
    """`render_arrays`, kept in the folder `path` (images.npy, labels.npy, arrays.json) and reused while it fits.

    A cache of more avatars than asked for serves its first `count`. The arrays are memory-mapped, copy-on-write: they
    take memory only as they are read, and writing to them does not reach the file.
    """
    _check(count, size, seed, start, workers)
    folder = Path(path)
    files = {name: folder / f"{name}.npy" for name in ("images", "labels")}
    key = _about(size, seed, start)
    try:
        stored = json.loads((folder / "arrays.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        stored = {}
    if stored.pop("count", 0) < count or stored != key:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "arrays.json").unlink(missing_ok=True)  # nothing is valid from here until it is written again
        shapes = {"images": (count, size, size, 3), "labels": (count, size, size)}
        parts = {name: folder / f"{name}.{os.getpid()}.part" for name in files}
        maps = {name: np.lib.format.open_memmap(parts[name], "w+", np.uint8, shapes[name]) for name in files}
        try:
            _render_into(maps["images"], maps["labels"], seed, start, workers, progress)
            for name in files:
                maps[name].flush()
                os.replace(parts[name], files[name])
        finally:
            for part in parts.values():
                part.unlink(missing_ok=True)
        _write_json(folder / "arrays.json", {**key, "count": count})
    images, labels = (np.load(file, mmap_mode="c")[:count] for file in files.values())
    return images, labels


def write_dataset(
    out: str | os.PathLike[str],
    count: int,
    size: int = 64,
    seed: int = 0,
    start: int = 0,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Write avatars start .. start + count - 1 as files, and return the folder.

    images/000000.png (RGB), labels/000000.png (palette PNG whose values are label ids), avatars.jsonl (one line an
    avatar: file, index, pose, attributes), dataset.json (regions, size, seed, start, count, credit). Files are
    numbered from 0. An interrupted run goes on where it stopped, and a larger `count` adds to what is there.
    ValueError for bad arguments, or where `out` holds other files or a dataset of other arguments.
    """
    _check(count, size, seed, start, workers)
    folder = Path(out)
    about = _about(size, seed, start)
    _check_folder(folder, about, count)
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    _write_json(folder / "dataset.json", {**about, "count": count, "credit": CREDIT})
    tasks = [(str(folder), offset, min(CHUNK, count - offset), size, seed, start) for offset in range(0, count, CHUNK)]
    for _ in _parallel(write_range, tasks, workers, progress, count, lambda written: written):
        pass
    lines = []
    for offset in range(count):
        spec = avatar_spec(start + offset, seed)
        entry = {"file": f"{offset:06d}.png", "index": start + offset}
        lines.append(json.dumps({**entry, "pose": spec.pose, "attributes": spec.attributes}))
    _write_text(folder / "avatars.jsonl", "\n".join(lines) + "\n")
    return folder


def _render_into(
    images: np.ndarray, labels: np.ndarray, seed: int, start: int, workers: int | None, progress: bool
) -> None:
    count, size = labels.shape[:2]
    tasks = [(start + offset, min(CHUNK, count - offset), size, seed) for offset in range(0, count, CHUNK)]
    for chunk in _parallel(render_range, tasks, workers, progress, count, lambda done: len(done["images"])):
        at = slice(chunk["start"] - start, chunk["start"] - start + len(chunk["images"]))
        images[at], labels[at] = chunk["images"], chunk["labels"]


def _parallel(
    function: Callable[..., Any],
    tasks: list[tuple[Any, ...]],
    workers: int | None,
    progress: bool,
    total: int,
    size_of: Callable[[Any], int],
) -> Iterator[Any]:
    """Results of function(*task) in order, from `workers` spawned processes, or from this one where that is enough."""
    parts_folder()  # a missing package is an error here rather than in a worker's traceback
    workers = min(workers or os.cpu_count() or 1, len(tasks))
    with tqdm(total=total, unit="avatar", disable=not progress) as bar:
        if workers == 1:
            for task in tasks:
                result = function(*task)
                bar.update(size_of(result))
                yield result
            return
        # spawn, not fork: the parent has torch's threads, and a fork may copy one of their locks while it is held
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            for result in pool.map(function, *zip(*tasks, strict=True)):
                bar.update(size_of(result))
                yield result


def _check(count: int, size: int, seed: int, start: int, workers: int | None = None) -> None:
    for name, value, least in (("count", count, 1), ("size", size, 16), ("seed", seed, 0), ("start", start, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1 (or None for one a core), got {workers}")


def _about(size: int, seed: int, start: int) -> dict[str, Any]:
    """What decides the pictures besides their number; stored beside them, and compared before they are reused."""
    parts_folder()  # raises the ImportError that names the extra
    parts = f"python-avatars {metadata.version('python-avatars')}"
    return {"recipe": RECIPE, "parts": parts, "regions": list(REGIONS), "size": size, "seed": seed, "start": start}


def _check_folder(folder: Path, about: dict[str, Any], count: int) -> None:
    """ValueError unless a dataset `about` may be written, or continued, in `folder`."""
    note = folder / "dataset.json"
    if not note.exists():
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"{folder} is not empty and holds no dataset.json: choose another folder")
        return
    try:
        stored = dict(json.loads(note.read_text(encoding="utf-8")))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{note} cannot be read ({error}): choose another folder or delete it") from error
    other = {name: stored.get(name) for name in about if stored.get(name) != about[name]}
    if other:
        wanted = {name: about[name] for name in other}
        raise ValueError(f"{folder} holds a dataset with {other}, not {wanted}: choose another folder or delete it")
    if stored.get("count", 0) > count:
        raise ValueError(f"{folder} already holds a dataset of {stored['count']} avatars, more than count={count}")


def _write_json(path: Path, value: Any) -> None:
    _write_text(path, json.dumps(value, indent=1) + "\n")


def _write_text(path: Path, text: str) -> None:
    """Atomic: the file is either the old one or the whole new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)
