"""What tabs and endpoints ask of a model beside one picture: edits, animations, sheets. No gradio."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from PIL import Image

from stylefusion_hf.core.checks import check_count, check_number, short
from stylefusion_hf.core.codes import check_seed
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.core.tensor_files import pick
from stylefusion_hf.imaging.animation import write_animation
from stylefusion_hf.imaging.sheets import contact_sheet
from stylefusion_hf.spaces_app.models import Model

MAX_KEYFRAMES, MAX_FRAMES, MAX_ROWS = 8, 120, 8
MAX_EDIT = 10.0  # standard deviations
MAX_TEXT = 1000
FILMS = (".webp", ".gif")
KEPT = 900  # seconds that an animation's file stays: the page has copied it by then


def seeds(text: str, most: int) -> list[int]:
    """The seeds in a text such as "7, 8, 9". ValueError names what is none."""
    found = []
    if len(text) > MAX_TEXT:
        raise ValueError(f"a list of seeds has at most {MAX_TEXT} characters")
    for part in text.replace(";", ",").replace(" ", ",").split(","):
        if part and not part.isdecimal():
            raise ValueError(
                f"{part[:40]!r} is no seed: write whole numbers with commas between them, such as 7, 8, 9"
            )
        if part:
            found.append(check_seed(int(part)))
    if not 0 < len(found) <= most:
        raise ValueError(f"1 to {most} seeds are taken here, got {len(found)}")
    return found


def edited(model: Model, recipe: Mapping[str, Any], node: str, direction: str, strength: float) -> dict[str, Any]:
    """A recipe with one more edit; one that the node had already is replaced.

    Args:
        model: whose directions.
        recipe: of one picture.
        node: of the tree; its root for the whole picture.
        direction: its name.
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


def mixed(codes: Sequence[Any], regions: Mapping[str, int], common: int | None, psi: float) -> dict[str, Any]:
    """The recipe of a picture with regions from several.

    Args:
        codes: of the pictures, in a recipe's JSON form; the first is the base.
        regions: region -> which picture it is from; those from the first may be left out.
        common: which picture says what the regions share; None for the first.
        psi: for seeds among the codes.
    """
    recipe: dict[str, Any] = {"version": 1, "num_images": 1, "base": codes[0], "truncation_psi": psi}
    taken = {name: codes[which] for name, which in regions.items() if which}
    if taken:
        recipe["regions"] = taken
    if common:
        recipe["global_code"] = codes[common]
    return recipe


class Films:
    """Animations as files in a temporary folder, which goes away with this object; old files go before that."""

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
        told: Any = None,
    ) -> Path:
        """A looping walk as a file.

        Args:
            model, recipe: what stays.
            region: what walks; None for the base, and with it all that has no code of its own.
            through: the keyframes' seeds, after what the recipe has there.
            frames: of the whole loop.
            fps: frames a second.
            suffix: one of FILMS; WebP is exact, GIF has 256 colours.
            told: is told how many frames there are so far.
        """
        check_count("frames", frames, MAX_FRAMES, least=2)
        if suffix not in FILMS:
            raise ValueError(f"an animation is {' or '.join(FILMS)}, got {short(suffix)}")
        stream = model.walk(walk_call(model, recipe, region, through) | {"frames": frames, "loop": True})

        def pictures() -> Iterator[Image.Image]:
            count = 0
            for batch in stream:
                yield from batch
                count += len(batch)
                if told is not None:
                    told(count)

        folder = Path(self._folder.name)
        for old in folder.iterdir():
            if time.time() - old.stat().st_mtime > KEPT:
                old.unlink(missing_ok=True)
        path = folder / f"stylefusion-{uuid4().hex[:12]}{suffix}"
        write_animation(path, pictures(), fps)
        return path


def walk_call(model: Model, recipe: Mapping[str, Any], region: str | None, through: Sequence[int]) -> dict[str, Any]:
    """The arguments of the interpolation pipeline. ValueError for edits, which it does not take."""
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
        "easing": "smooth",
    }
    if region is not None:
        call["regions"][region] = path
    return call


def sheet(model: Model, bases: Sequence[int], sources: Sequence[int], psi: float | None = None) -> Image.Image:
    """`stylefusion_hf.imaging.sheets.contact_sheet` of a few rows."""
    check_count("rows of the sheet", max(len(bases), len(sources)), MAX_ROWS)
    with model.turn():
        return contact_sheet(model.pipe, bases, sources, truncation_psi=psi, max_batch=16)
