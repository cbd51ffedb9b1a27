"""The models of a Space: one pipeline each, with what the page asks of it. Visitors' pictures take turns."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from stylefusion_hf import StyleFusionInterpolationPipeline, StyleFusionInversionPipeline, StyleFusionPipeline
from stylefusion_hf.core.checks import short
from stylefusion_hf.core.edits import Direction, load_directions
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.editing.directions import ganspace, sefa
from stylefusion_hf.spaces_app.bounds import TooLarge, read_json
from stylefusion_hf.spaces_app.device import on_gpu

EMBEDDED = "embedded"
THUMBNAIL = 64  # pixels, about
MAX_THUMBNAILS = 512  # remembered: some 6 kB each
MAX_WAITING = 32  # pictures, the one being drawn among them; gradio has 40 threads
PRIOR = 0.03  # ten times the library's default: codes near the generator's own mix better
NONE = 255  # in a map of regions: none that has a dial


@dataclass(frozen=True)
class Picture:
    """`image`; `labels`: (H, W) with each pixel's region, an index into the model's regions, where there is a
    segmenter; `recipe`: JSON-able."""

    image: Image.Image
    labels: Image.Image | None
    recipe: dict[str, Any]


class Model:
    """A pipeline and what the page needs of it.

    Args:
        pipe: with or without segmenter and encoder.
        directions: a file of `stylefusion directions`; None finds some when they are first asked for.
    """

    def __init__(self, pipe: StyleFusionPipeline, directions: str | None = None):
        self.pipe = pipe
        pipe.set_progress_bar_config(disable=True)
        self.tree = pipe.fusion.tree
        self.regions = tuple(name for name in self.tree.active if name not in self.tree.fused)
        self.has_common = bool(self.tree.fused)
        self.has_encoder = pipe.encoder is not None
        self.has_segmenter = pipe.segmenter is not None
        self.resolution: int = pipe.generator.config.resolution
        self.classes: int = pipe.generator.config.label_dim
        self.psi: float = pipe.generator.config.truncation_psi or 1.0
        self.name: str = pipe.model_identity()["name"] or "unnamed"
        self._directions = load_directions(directions) if directions else None
        self._thumbnails: OrderedDict[str, Image.Image] = OrderedDict()
        self._drawing, self._waiting = threading.Lock(), threading.Semaphore(MAX_WAITING)
        self._finding = threading.Lock()

        # Functions, not methods: on ZeroGPU they run in another process, to which their arguments are sent.
        def fuse(recipe: dict[str, Any], masks: bool) -> tuple[Any, Any, dict[str, Any]]:
            out = pipe.from_recipe(recipe, check_model=False, output_masks=masks)
            found = {name: mask[0].cpu().numpy() for name, mask in out.masks.items()} if out.masks else None
            return out.images, found, out.recipe

        def invert(images: list[Image.Image], steps: int, told: Callable[[int], None] | None) -> tuple[Any, Any, Any]:
            def on_step(_: Any, step: int, *rest: Any) -> dict[str, Any]:
                if told is not None:
                    told(step)
                return {}

            inversion = StyleFusionInversionPipeline.from_pipe(pipe)  # one a call, since it can be interrupted
            inversion.set_progress_bar_config(disable=True)
            out = inversion(
                images,
                num_inference_steps=steps,
                fit="crop",
                noise_mode="const",
                prior_weight=PRIOR,
                callback_on_step_end=on_step,
            )
            codes = [Recipe(base=(row,), num_images=1).to_dict()["base"] for row in out.codes.rows()]
            return codes, out.images, out.mse.tolist()

        self._fuse, self._invert = on_gpu(fuse), on_gpu(invert)

    # ------------------------------------------------------------------------------------------------
    # Pictures.

    def render(self, recipe: Mapping[str, Any]) -> Picture:
        """The picture of a recipe of one picture. ValueError names what is wrong with it."""
        with self.turn():
            images, masks, made = self._fuse(dict(recipe), self.has_segmenter)
        return Picture(images[0], None if masks is None else self._labels(masks), made)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One picture at a time, since two would only make each other slower. ValueError where too many wait."""
        if not self._waiting.acquire(blocking=False):
            raise ValueError("many people are turning dials just now: try again in a moment")
        try:
            with self._drawing:
                yield
        finally:
            self._waiting.release()

    def check(self, recipe: Mapping[str, Any] | str) -> dict[str, Any]:
        """A stranger's recipe as that of its first picture, complete. ValueError where it is not one of this model."""
        if isinstance(recipe, str):
            try:
                recipe = read_json(recipe)
            except ValueError as error:
                reason = str(error) if isinstance(error, TooLarge) else f"it is not JSON: {error}"
                raise ValueError(f"the recipe is not read: {reason}") from error
        found = Recipe.from_dict(recipe).select(0).to_dict()  # type: ignore[arg-type]
        if not self.made(found):
            name = (found.get("model") or {}).get("name")
            raise ValueError(
                f"the recipe was made with another model, {short(name, 80) if name else 'which it does not name'}"
            )
        if found["truncation_psi"] is None:
            found["truncation_psi"] = self.psi
        return found

    def made(self, recipe: Mapping[str, Any]) -> bool:
        """Whether a recipe was written with these weights, as far as it says."""
        hashes = (recipe.get("model") or {}).get("sha256") or {}
        mine = self.pipe.model_identity()["sha256"]
        return all(mine.get(name, digits) == digits for name, digits in hashes.items())

    def thumbnails(self, codes: Sequence[Any], label: Any = None) -> list[Image.Image]:
        """Small pictures of codes (seeds, or in a recipe's JSON form), at the model's own truncation.

        label: the class of all seeds, in a recipe's JSON form; None for their own.
        """
        keys = [str(code) if isinstance(code, int) else _digest(code) for code in codes]
        keys = keys if label is None else [f"{key} {label}" for key in keys]
        missing = {key: code for key, code in zip(keys, codes, strict=True) if key not in self._thumbnails}
        made = {}
        if missing:
            with self.turn():
                recipe = {"version": 1, "base": list(missing.values()), "truncation_psi": self.psi}
                recipe |= {} if label is None else {"class_labels": label}
                images = self._fuse(recipe, False)[0]
            made = {key: _small(image) for key, image in zip(missing, images, strict=True)}
        found = [made[key] if key in made else self._thumbnails[key] for key in keys]
        self._thumbnails.update(made)
        while len(self._thumbnails) > MAX_THUMBNAILS:
            self._thumbnails.popitem(last=False)
        return found

    def _labels(self, masks: Mapping[str, np.ndarray]) -> Image.Image:
        """Masks of leaves as one map of the regions that have a dial: a leaf's own, or the one it lies below."""
        labels = np.full((self.resolution, self.resolution), NONE, dtype=np.uint8)
        for leaf, mask in masks.items():
            if leaf not in self.tree.nodes:
                continue
            above = (leaf, *self.tree.ancestors(leaf))
            labels[mask] = next((self.regions.index(name) for name in above if name in self.regions), NONE)
        return Image.fromarray(labels)

    # ------------------------------------------------------------------------------------------------
    # What takes longer: it does not wait for its turn, so that dials go on turning beside it.

    def invert(
        self, images: Sequence[Image.Image], steps: int, told: Callable[[int], None] | None = None
    ) -> tuple[list[dict[str, Any]], list[Image.Image], list[float]]:
        """Codes of pictures in a recipe's JSON form, what they show, and the mean squared errors.

        Args:
            images: checked, of any size; their middle squares are taken.
            steps: of optimisation; 0 for the encoder's guess.
            told: is told each step.
        """
        return self._invert(list(images), steps, told)

    def walk(self, call: Mapping[str, Any]) -> Any:
        """A stream of frames: `StyleFusionInterpolationPipeline.stream`."""
        return StyleFusionInterpolationPipeline.from_pipe(self.pipe).stream(**call)

    def directions(self) -> dict[str, Direction]:
        """name -> direction: those of the file, else the first of SeFa and GANSpace, found once."""
        with self._finding:
            if self._directions is None:
                count = min(6, self.pipe.generator.w_avg.shape[0])
                found = [*sefa(self.pipe.generator, count), *ganspace(self.pipe.generator, count, samples=4000)]
                self._directions = {direction.name: direction for direction in found}
            return self._directions


def _digest(code: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()


def _small(image: Image.Image) -> Image.Image:
    return image.reduce(factor) if (factor := image.width // THUMBNAIL) > 1 else image
