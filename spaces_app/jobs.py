"""Edits, mixtures, animations and sheets, shared by the tabs and the endpoints. Does not import gradio."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from PIL import Image

from stylefusion_hf.core.checks import check_count, check_number, short
from stylefusion_hf.core.codes import check_seed
from stylefusion_hf.core.files import RECIPE_KEY
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.core.tensor_files import pick
from stylefusion_hf.imaging.animation import write_animation
from stylefusion_hf.imaging.sheets import contact_sheet
from stylefusion_hf.spaces_app.film_recipes import add_to_film, keyframe_recipe, sheet_recipe
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.settings import read_seed

MAX_KEYFRAMES, MAX_FRAMES, MAX_ROWS = 8, 120, 8
MAX_EDIT = 10.0  # standard deviations
MAX_TEXT = 1000
ANIMATION_SUFFIXES = (".webp", ".gif", ".mp4")
KEEP_SECONDS = 900  # lifetime of an animation's file; the page has copied it by then


def parse_seeds(text: str, most: int) -> list[int]:
    """Parse a list of seeds such as "7, 8, 9". ValueError names what is not a seed."""
    found = []
    if len(text) > MAX_TEXT:
        raise ValueError(f"a list of seeds has at most {MAX_TEXT} characters")
    for part in text.replace(";", ",").replace(" ", ",").split(","):
        if part and not part.isdecimal():
            raise ValueError(
                f"{part[:40]!r} is not a seed: write whole numbers with commas between them, such as 7, 8, 9"
            )
        if part:
            found.append(check_seed(int(part)))
    if not 0 < len(found) <= most:
        raise ValueError(f"give 1 to {most} seeds here, got {len(found)}")
    return found


def start_recipe(model: Model, seed: Any) -> dict[str, Any]:
    """Return the recipe of a picture from one seed, which a visitor typed. ValueError if it is not a seed."""
    if seed is None:
        raise ValueError("the picture needs a seed: type a number")
    base = read_seed(seed, "the picture")
    return {"version": 1, "num_images": 1, "base": base, "truncation_psi": model.psi}


def add_edit(model: Model, recipe: Mapping[str, Any], node: str, direction: str, strength: float) -> dict[str, Any]:
    """Return a recipe with an edit added; it replaces any edit of the same node.

    Args:
        model: the model with the direction.
        recipe: recipe of one picture.
        node: a node of the tree; its root for the whole picture.
        direction: name of the direction.
        strength: in standard deviations.
    """
    model.tree.resolve(node)
    check_number("the strength of an edit", strength, -MAX_EDIT, MAX_EDIT)
    edit = pick(model.directions(), direction, "this model")(strength)
    read = Recipe.from_dict(recipe)
    others = {name: rows for name, rows in read.edits.items() if name != node}
    if edit:
        others[node] = edit.displacement(model.pipe.generator).rows()
    return replace(read, edits=others).to_dict()


def mix_codes(codes: Sequence[Any], regions: Mapping[str, int], common: int | None, psi: float) -> dict[str, Any]:
    """Return the recipe of a picture that takes its regions from several pictures.

    Args:
        codes: codes of the pictures, in a recipe's JSON form; the first is the base.
        regions: region -> index of its picture; regions from the first picture may be left out.
        common: index of the picture that gives what the regions share; None for the first.
        psi: truncation of seeds among the codes.
    """
    recipe: dict[str, Any] = {"version": 1, "num_images": 1, "base": codes[0], "truncation_psi": psi}
    taken = {name: codes[which] for name, which in regions.items() if which}
    if taken:
        recipe["regions"] = taken
    if common:
        recipe["global_code"] = codes[common]
    return recipe


def animation_suffixes() -> tuple[str, ...]:
    """Return the kinds of animations that this Space can write: MP4 needs imageio-ffmpeg (extra `video`)."""
    has_ffmpeg = importlib.util.find_spec("imageio_ffmpeg") is not None
    return tuple(suffix for suffix in ANIMATION_SUFFIXES if suffix != ".mp4" or has_ffmpeg)


class AnimationFolder:
    """A temporary folder for animations. It is removed with this object, and old files in it earlier."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="stylefusion-films-")

    def write(
        self,
        model: Model,
        recipe: Mapping[str, Any],
        region: str | None,
        through: Sequence[int],
        frames: int,
        fps: float,
        suffix: str = ".webp",
        on_frames: Any = None,
        height: int | None = None,
    ) -> Path:
        """Write a looping walk to a file; returns its path.

        Args:
            model, recipe: the picture to start from; what does not walk stays as it is.
            region: the region that walks; None for the base, and with it everything without a code of its own.
            through: seeds of the keyframes after the first, which is the recipe's own code.
            frames: number of frames in the whole loop.
            fps: frames per second.
            suffix: one of `animation_suffixes()`; WebP is exact, GIF has 256 colors.
            on_frames: called with the number of frames rendered so far.
            height: of previews to use as frames, one of `model.small_heights`; None for full pictures.

        Raises:
            ValueError: says what is wrong.
        """
        check_count("frames", frames, MAX_FRAMES, least=2)
        if suffix not in (known := animation_suffixes()):
            reason = " (MP4 needs imageio-ffmpeg, which this Space does not have)" if suffix == ".mp4" else ""
            raise ValueError(f"the suffix of an animation must be {' or '.join(known)}, got {short(suffix)}{reason}")
        if height is not None and height not in model.small_heights:
            raise ValueError(f"this model has no previews of {short(height)} px")
        call = walk_arguments(model, recipe, region, through)
        stream = model.walk(call | {"frames": frames, "loop": True}, height)

        def pictures() -> Iterator[Image.Image]:
            count = 0
            for batch in stream:
                yield from batch
                count += len(batch)
                if on_frames is not None:
                    on_frames(count)

        folder = Path(self._folder.name)
        for old in folder.iterdir():
            if time.time() - old.stat().st_mtime > KEEP_SECONDS:
                old.unlink(missing_ok=True)
        path = folder / f"stylefusion-{uuid4().hex[:12]}{suffix}"
        write_animation(path, pictures(), fps)
        add_to_film(path, keyframe_recipe(call) | {"model": model.pipe.model_identity()})
        return path


def walk_arguments(
    model: Model, recipe: Mapping[str, Any], region: str | None, through: Sequence[int]
) -> dict[str, Any]:
    """Return the arguments of the interpolation pipeline. ValueError for edits, which it does not support."""
    if not 0 < len(through) <= MAX_KEYFRAMES:
        raise ValueError(f"a walk goes through 1 to {MAX_KEYFRAMES} seeds, got {len(through)}")
    read = Recipe.from_dict(recipe)
    if read.edits:
        raise ValueError("a picture with edits cannot walk: take it without them")
    start = read.base if region is None else read.regions.get(model.tree.resolve(region), read.base)
    path = [*start, *through]
    call: dict[str, Any] = {
        "base": list(read.base) if region is not None else path,
        "regions": {name: list(rows) for name, rows in read.regions.items()},
        "nodes": {name: list(rows) for name, rows in read.nodes.items()},
        "global_code": None if read.global_code is None else list(read.global_code),
        "class_labels": None if read.class_labels is None else list(read.class_labels),
        "strength": read.strength,
        "truncation_psi": read.truncation_psi,
        "truncation_cutoff": read.truncation_cutoff,
        "translate": read.translate,
        "rotate": read.rotate,
        "easing": "smooth",
    }
    if region is not None:
        call["regions"][region] = path
    return call


class SheetPreviews:
    """Stands in for a model's pipeline in `contact_sheet`; its pictures are the model's smallest previews."""

    def __init__(self, model: Model):
        self.model, self.fusion, self.generator = model, model.pipe.fusion, model.pipe.generator

    def __call__(self, base: Sequence[int], regions: Mapping[str, Sequence[int]], **call: Any) -> SimpleNamespace:
        rows: dict[str, Any] = {
            name: tuple(codes) if isinstance(codes, list) else codes for name, codes in call.items()
        }
        swapped = {name: tuple(codes) for name, codes in regions.items()}
        recipe = Recipe(base=tuple(base), num_images=len(base), regions=swapped, **rows)
        return SimpleNamespace(images=self.model.render_small(recipe.to_dict())[0])


def draw_sheet(
    model: Model, bases: Sequence[int], sources: Sequence[int], psi: float | None = None, draft: bool = False
) -> Image.Image:
    """Draw a contact sheet of a few rows, with a recipe in its `info`; see `imaging.sheets.contact_sheet`.

    Args:
        model: the model.
        bases, sources: seeds, one per row.
        psi: truncation; None for the model's own.
        draft: of previews, if the model has any: one row takes a turn at a time.
    """
    check_count("rows of the sheet", max(len(bases), len(sources)), MAX_ROWS)
    pipe: Any = SheetPreviews(model) if draft and model.preview else model.pipe
    with nullcontext() if draft else model.take_turn():
        sheet = contact_sheet(pipe, bases, sources, truncation_psi=psi, max_batch=16)
    recipe = sheet_recipe(model.regions, bases, sources, psi) | {"model": model.pipe.model_identity()}
    sheet.info[RECIPE_KEY] = json.dumps(recipe)  # gradio writes it into the PNG
    return sheet
