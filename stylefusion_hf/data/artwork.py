"""Collections of drawn pictures with exact region maps, as arrays, caches and folders.

Picture i of a seed is the same on any machine with the same package versions, alone or in any batch. Methods with an
argument `workers` start processes by "spawn", so scripts that call them need ``if __name__ == "__main__":``. This
module does not import torch, so that workers start fast.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stylefusion_hf.core.files import atomic_path, save_image, write_json, write_text
from stylefusion_hf.core.progress import tqdm

CHUNK = 64  # pictures per task: about a second of work


@dataclass(frozen=True)
class Artwork:
    """One kind of drawn picture.

    Args:
        name: singular; datasets list attributes in `{name}s.jsonl`.
        regions: names of the regions; label i is regions[i].
        recipe: version of the drawing code. Increased when the same (index, seed, size) gives another picture, so that
            older caches are drawn again.
        parts: returns the version of the package that pictures depend on; ImportError if it is not installed.
        credit: the artwork's author and license.
        spec: (index, seed) -> specification of picture `index`, with JSON-able `pose` and `attributes`.
        render: (spec, size) -> picture (size, size, 3) and label map (size, size), both uint8.
        palette: colors of the label PNGs for viewing, three numbers per region. The pixel values are label ids.
    """

    name: str
    regions: tuple[str, ...]
    recipe: int
    parts: Callable[[], str]
    credit: str
    spec: Callable[[int, int], Any]
    render: Callable[[Any, int], tuple[np.ndarray, np.ndarray]]
    palette: tuple[int, ...]

    def render_arrays(
        self,
        count: int,
        size: int = 64,
        seed: int = 0,
        start: int = 0,
        workers: int | None = None,
        progress: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Render pictures start .. start + count - 1: images (count, size, size, 3), labels (count, size, size).

        Both are uint8.

        `workers` processes share the work (None: one per core). ValueError for bad arguments.
        """
        check(count, size, seed, start, workers)
        images = np.empty((count, size, size, 3), np.uint8)
        labels = np.empty((count, size, size), np.uint8)
        self._render_into(images, labels, seed, start, workers, progress)
        return images, labels

    def cached_arrays(
        self,
        path: str | os.PathLike[str],
        count: int,
        size: int = 64,
        seed: int = 0,
        start: int = 0,
        workers: int | None = None,
        progress: bool = True,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Render arrays once and cache them in the folder `path` (images.npy, labels.npy, arrays.json).

        A cache of more pictures is used for its first `count`. The arrays are memory-mapped copy-on-write: they take
        memory only as they are read, and writing to them does not change the file.
        """
        check(count, size, seed, start, workers)
        folder = Path(path)
        files = {name: folder / f"{name}.npy" for name in ("images", "labels")}
        key = self._about(size, seed, start)
        try:
            stored = json.loads((folder / "arrays.json").read_text(encoding="utf-8"))
        except (OSError, json.JSONDecodeError):
            stored = {}
        if stored.pop("count", 0) < count or stored != key:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "arrays.json").unlink(missing_ok=True)  # the cache is invalid until this is written again
            shapes = {"images": (count, size, size, 3), "labels": (count, size, size)}
            with ExitStack() as stack:
                parts = {name: stack.enter_context(atomic_path(file)) for name, file in files.items()}
                maps = {name: np.lib.format.open_memmap(parts[name], "w+", np.uint8, shapes[name]) for name in files}
                self._render_into(maps["images"], maps["labels"], seed, start, workers, progress)
                for name in files:
                    maps[name].flush()
            write_json(folder / "arrays.json", {**key, "count": count})
        images, labels = (np.load(file, mmap_mode="c")[:count] for file in files.values())
        return images, labels

    def write_dataset(
        self,
        out: str | os.PathLike[str],
        count: int,
        size: int = 64,
        seed: int = 0,
        start: int = 0,
        workers: int | None = None,
        progress: bool = True,
    ) -> Path:
        """Write pictures start .. start + count - 1 as files, and return the folder.

        The files are images/000000.png (RGB), labels/000000.png (palette PNG whose values are label ids),
        {name}s.jsonl (one line per picture: file, index, pose, attributes) and dataset.json (regions, size, seed,
        start, count, credit). They are numbered from 0. An interrupted run continues where it stopped, and a larger
        `count` extends an existing dataset. ValueError for bad arguments, or if `out` has other files or a different
        dataset.
        """
        check(count, size, seed, start, workers)
        folder = Path(out)
        about = self._about(size, seed, start)
        self._check_folder(folder, about, count)
        for name in ("images", "labels"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        write_json(folder / "dataset.json", {**about, "count": count, "credit": self.credit})
        tasks = [
            (self, str(folder), offset, min(CHUNK, count - offset), size, seed, start)
            for offset in range(0, count, CHUNK)
        ]
        for _ in self._parallel(_write_range, tasks, workers, progress, count, lambda written: written):
            pass
        lines = []
        for offset in range(count):
            spec = self.spec(start + offset, seed)
            entry = {"file": f"{offset:06d}.png", "index": start + offset}
            lines.append(json.dumps({**entry, "pose": spec.pose, "attributes": spec.attributes}))
        write_text(folder / f"{self.name}s.jsonl", "\n".join(lines) + "\n")
        return folder

    def _render_into(
        self, images: np.ndarray, labels: np.ndarray, seed: int, start: int, workers: int | None, progress: bool
    ) -> None:
        count, size = labels.shape[:2]
        tasks = [(self, start + offset, min(CHUNK, count - offset), size, seed) for offset in range(0, count, CHUNK)]
        found = self._parallel(_render_range, tasks, workers, progress, count, lambda done: len(done["images"]))
        for chunk in found:
            at = slice(chunk["start"] - start, chunk["start"] - start + len(chunk["images"]))
            images[at], labels[at] = chunk["images"], chunk["labels"]

    def _parallel(
        self,
        function: Callable[..., Any],
        tasks: list[tuple[Any, ...]],
        workers: int | None,
        progress: bool,
        total: int,
        size_of: Callable[[Any], int],
    ) -> Iterator[Any]:
        """Yield the results of function(*task) in order, from `workers` processes, or from this one if that is 1."""
        self.parts()  # report a missing package here rather than in a worker's traceback
        workers = min(workers or os.cpu_count() or 1, len(tasks))
        with tqdm(total=total, unit=self.name, disable=not progress) as bar:
            if workers == 1:
                for task in tasks:
                    result = function(*task)
                    bar.update(size_of(result))
                    yield result
                return
            # spawn, not fork: the parent has torch's threads, and a fork could copy a lock that one of them holds
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                for result in pool.map(function, *zip(*tasks, strict=True)):
                    bar.update(size_of(result))
                    yield result

    def _about(self, size: int, seed: int, start: int) -> dict[str, Any]:
        """Return what the pictures depend on except their number, stored to decide whether they can be reused."""
        about = {"recipe": self.recipe, "parts": self.parts(), "regions": list(self.regions)}
        return about | {"size": size, "seed": seed, "start": start}

    def _check_folder(self, folder: Path, about: dict[str, Any], count: int) -> None:
        """Raise ValueError unless a dataset described by `about` may be written, or continued, in `folder`."""
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
            raise ValueError(
                f"{folder} holds a dataset with {other}, not {wanted}: choose another folder or delete it"
            )
        if stored.get("count", 0) > count:
            raise ValueError(
                f"{folder} already holds a dataset of {stored['count']} {self.name}s, more than count={count}"
            )


def check(count: int, size: int, seed: int, start: int, workers: int | None = None) -> None:
    """Raise ValueError for a number that is too small."""
    for name, value, least in (("count", count, 1), ("size", size, 16), ("seed", seed, 0), ("start", start, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1 (or None for one per core), got {workers}")


# --- Worker tasks ----------------------------------------------------------------------------------------------------


def _render_range(art: Artwork, start: int, count: int, size: int, seed: int) -> dict[str, Any]:
    """Render pictures from `start` on: {"start", "images" (count, size, size, 3), "labels" (count, size, size)}."""
    images = np.empty((count, size, size, 3), np.uint8)
    labels = np.empty((count, size, size), np.uint8)
    for offset in range(count):
        images[offset], labels[offset] = art.render(art.spec(start + offset, seed), size)
    return {"start": start, "images": images, "labels": labels}


def _write_range(art: Artwork, folder: str, offset: int, count: int, size: int, seed: int, start: int) -> int:
    """Write files offset .. offset + count - 1 of a dataset that begins at picture `start`; keep existing ones."""
    for number in range(offset, offset + count):
        paths = [Path(folder, name, f"{number:06d}.png") for name in ("images", "labels")]
        if all(path.exists() for path in paths):
            continue
        image, labels = art.render(art.spec(start + number, seed), size)
        label_image = Image.fromarray(labels)
        label_image.putpalette(list(art.palette))
        for path, picture in zip(paths, (Image.fromarray(image), label_image), strict=True):
            save_image(picture, path, sync=False)  # atomic, since a continued run keeps existing files
    return count
