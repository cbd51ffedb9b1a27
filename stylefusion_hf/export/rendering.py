"""Rendering large data sets: recipes in, shards of pictures with their masks out.

    accelerate launch -m stylefusion_hf.cli render recipes.jsonl --out pictures

is `stylefusion render` on several processes or machines. Shard k has the pictures of lines k * S + 1 to (k + 1) * S
and is written by one process. Finished shards are kept, whatever the number of processes before and after; the recipe
file is streamed.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import gather_object
from PIL import Image

from stylefusion_hf.core.checks import short
from stylefusion_hf.core.codes import check_shapes, labels_to_tensor
from stylefusion_hf.core.files import LOCK, PARTIAL, FolderLock, remove_partials, write_json
from stylefusion_hf.core.json_files import read_object
from stylefusion_hf.core.processes import on_main, run_everywhere
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.export.recipe_sources import RandomRecipes, RecipeFile, Source
from stylefusion_hf.export.shards import check_format, shard_path, write_shard
from stylefusion_hf.imaging.modes import check_viewable
from stylefusion_hf.pipelines.steps import node_settings

if TYPE_CHECKING:
    from stylefusion_hf.pipelines.fuse import StyleFusionPipeline

__all__ = ["RandomRecipes", "RecipeFile", "Rendered", "Source", "render"]

NOTE = "dataset.json"
MAX_WAITING = 16  # batches of recipes that may wait to be grouped with others of their kind


# --- Recipes in batches ----------------------------------------------------------------------------------------------


def check_recipe(
    pipe: StyleFusionPipeline, recipe: Recipe, identity: Mapping[str, Any], any_model: bool, known: set[str]
) -> None:
    """Raise ValueError unless the pipeline can render the recipe. `known`: kinds whose names have been checked."""
    check_shapes(pipe.generator, recipe.groups())
    if (kind := kind_of(recipe)) not in known:
        node_settings(pipe.fusion.tree, recipe)
        known.add(kind)
    if recipe.class_labels is not None:
        labels_to_tensor(recipe.class_labels, pipe.generator.config.label_dim)
    written = {} if any_model else (recipe.model or {}).get("sha256", {})
    if other := [name for name, digits in written.items() if identity["sha256"].get(name, digits) != digits]:
        raise ValueError(
            f"written with other weights of {' and '.join(other)} than this model has: load that model, or give"
            " --any-model"
        )


@dataclass(frozen=True)
class Picture:
    """One picture to render."""

    line: int
    index: int  # among the pictures of its line
    recipe: Recipe

    @property
    def key(self) -> str:
        return f"{self.line:09d}-{self.index:04d}"


def kind_of(recipe: Recipe) -> str:
    """Return a key shared by recipes that can form one batch, because they differ in codes only."""
    r = recipe
    settings = (
        r.noise_mode,
        r.truncation_psi,
        r.truncation_cutoff,
        r.strength,
        r.global_code is None,
        r.translate,
        r.rotate,
    )
    names = [sorted(codes) for codes in (r.regions, r.nodes, r.edits)]
    return json.dumps([*settings, *names, r.class_labels is None], sort_keys=True)


def join(recipes: list[Recipe]) -> Recipe:
    """Join single-picture recipes of the same kind into one recipe."""

    def rows(name: str) -> Any:
        found = [getattr(r, name) for r in recipes]
        if found[0] is None:
            return None
        if isinstance(found[0], Mapping):
            return {node: tuple(row for codes in found for row in codes[node]) for node in found[0]}
        return tuple(row for codes in found for row in codes)

    lists = ("base", "regions", "nodes", "global_code", "class_labels", "noise_seeds", "edits")
    return replace(recipes[0], num_images=len(recipes), model=None, **{name: rows(name) for name in lists})


def batches(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    """Yield batches of up to `size` pictures of one kind; incomplete ones at the end, or when too many wait."""
    waiting: dict[str, list[Picture]] = {}
    for picture in pictures:
        group = waiting.setdefault(kind_of(picture.recipe), [])
        group.append(picture)
        if len(group) == size or sum(map(len, waiting.values())) >= MAX_WAITING * size:
            fullest = max(waiting, key=lambda kind: len(waiting[kind]))
            yield waiting.pop(fullest)
    yield from waiting.values()


# --- Pictures --------------------------------------------------------------------------------------------------------


def palette(count: int) -> list[int]:
    """Return r, g, b of `count` labels: hues spaced by the golden ratio, alternately light and dark."""
    colours: list[int] = []
    for i in range(count):
        hue, value = (i * 0.618034) % 1 * 6, (1.0, 0.6)[i % 2]
        colours += [round(255 * value * min(max(abs((hue - k) % 6 - 3) - 1, 0.15), 1)) for k in (0, 2, 4)]
    return colours


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1)  # higher levels would take longer than rendering
    return data.getvalue()


def render_batch(
    pipe: StyleFusionPipeline,
    pictures: list[Picture],
    masks: bool,
    identity: Mapping[str, Any],
    pool: ThreadPoolExecutor,
) -> Iterator[dict[str, Any]]:
    """Render pictures of one kind and yield their samples, in order."""
    output: Any = pipe.from_recipe(join([p.recipe for p in pictures]), check_model=False, output_masks=masks)
    maps: list[Image.Image | None] = [None] * len(pictures)
    if masks:
        labels = sum(mask.byte() * i for i, mask in enumerate(output.masks.values())).cpu().numpy()
        colours = palette(len(output.masks))
        for i, values in enumerate(labels):
            found = Image.fromarray(values, mode="P")
            found.putpalette(colours)
            maps[i] = found
    psi = output.recipe["truncation_psi"]
    encoded = zip(pool.map(png, output.images), pool.map(lambda m: m and png(m), maps), strict=True)
    for picture, (image, mask) in zip(pictures, encoded, strict=True):
        recipe = replace(picture.recipe, truncation_psi=psi, model=identity).to_json()
        yield {"key": picture.key, "line": picture.line, "picture": picture.index, "image": image} | {
            "mask": mask,
            "recipe": recipe,
        }


@dataclass(frozen=True)
class Rendered:
    """Result of a rendering: pictures made by all processes, shards in the folder, seconds of the slowest process."""

    pictures: int
    shards: int
    seconds: float

    @property
    def rate(self) -> float:
        """Pictures per second."""
        return self.pictures / self.seconds if self.seconds else 0.0


def render(
    pipe: StyleFusionPipeline,
    source: Source,
    out: str | Path,
    *,
    kind: str = "tar",
    shard_size: int = 1000,
    batch_size: int = 8,
    masks: bool = True,
    any_model: bool = False,
    process: int = 0,
    processes: int = 1,
) -> Rendered:
    """Render the shards that do not exist yet, as one of several processes.

    Args:
        pipe: the pipeline; masks need a segmenter.
        source: the recipes; all of this process's are checked before the first is rendered.
        out: the folder for shard-000000.tar ... and dataset.json, which names the regions of the masks.
        kind: "tar" (WebDataset) or "parquet".
        shard_size: recipes per shard.
        batch_size: pictures computed together.
        masks: also write a label map per picture: a palette PNG whose values index dataset.json's regions.
        any_model: also accept recipes that were written with other weights.
        process, processes: index of this process, and how many there are. All must share `out`.

    Raises:
        ValueError: a recipe that cannot be rendered (names its line), no recipe at all, no segmenter, or a folder with
            another data set.
        OSError: a file cannot be read or written.
    """
    check_format(kind)
    check_viewable(pipe.generator.config.img_channels)
    if masks and pipe.segmenter is None:
        raise ValueError("masks need a segmenter, and this model has none: skip them with --no-masks")
    out, identity = Path(out), pipe.model_identity()
    regions = list(pipe.segmenter.config.regions) if masks else []
    about = source.about() | {"format": kind, "shard_size": shard_size, "regions": regions, "model": identity}

    def prepare() -> None:
        out.mkdir(parents=True, exist_ok=True)
        lock = FolderLock(out, "rendering")
        stack.callback(lock.release)
        check_folder(out, about)
        remove_partials(out)  # left by a killed rendering
        write_json(out / NOTE, about)

    def own() -> Iterator[tuple[int, int, Callable[[], Recipe]]]:
        """Yield (shard, number, function that makes the recipe) for this process's remaining recipes."""
        for number, make in source:
            shard = (number - 1) // shard_size
            if shard % processes == process and not shard_path(out, shard, kind).exists():
                yield shard, number, make

    def check() -> None:
        known: set[str] = set()
        for _, number, make in own():
            try:
                recipe = make()
                check_recipe(pipe, recipe, identity, any_model, known)
            except ValueError as error:
                raise ValueError(f"{source.where(number)}: {error}") from error
            counted.append(recipe.num_images)

    def pictures(group: Iterator[tuple[int, int, Callable[[], Recipe]]]) -> Iterator[Picture]:
        for _, number, make in group:
            recipe = make()
            yield from (Picture(number, i, recipe.select(i)) for i in range(recipe.num_images))

    def work() -> None:
        with ThreadPoolExecutor() as pool, tqdm(total=sum(counted), desc="render", disable=process > 0) as bar:
            for shard, group in groupby(own(), key=lambda item: item[0]):
                with write_shard(shard_path(out, shard, kind), about) as write:
                    for batch in batches(pictures(group), batch_size):
                        for sample in render_batch(pipe, batch, masks, identity, pool):
                            write(sample)
                        bar.update(len(batch))

    counted: list[int] = []
    with ExitStack() as stack:
        on_main(prepare)
        problem = run_everywhere(check, (ValueError, OSError))
        if problem is not None:
            raise ValueError(problem)
        started = time.monotonic()
        problem = run_everywhere(work, (OSError,))
        if problem is not None:
            raise OSError(problem)
        results = gather_object([(sum(counted), time.monotonic() - started)])
        shards = len(list(out.glob(shard_path(out, 0, kind).name.replace("000000", "*"))))
        if not shards:
            raise ValueError(f"{source.where(1)}: there is no recipe")
        return Rendered(sum(n for n, _ in results), shards, max(seconds for _, seconds in results))


def check_folder(out: Path, about: Mapping[str, Any]) -> None:
    """Raise ValueError if a folder contains anything but a part of this data set."""
    note = out / NOTE
    if not note.exists():
        if any(p.name != LOCK and not p.name.startswith(PARTIAL) for p in out.iterdir()):
            raise ValueError(f"{out} is not empty and has no {NOTE}: choose another folder")
        return
    try:
        stored = read_object(note)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{note} cannot be read ({error}): choose another folder or delete it") from error
    if other := [name for name in {**stored, **about} if stored.get(name) != about.get(name)]:
        raise ValueError(
            f"{out} has pictures of another {' and '.join(other)} ({short(stored.get(other[0]))}, now"
            f" {short(about.get(other[0]))}): choose another folder"
        )
