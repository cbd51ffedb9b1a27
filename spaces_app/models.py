"""The models of a Space: a pipeline with the operations that the page needs. Pictures are rendered one at a time."""

from __future__ import annotations

import hashlib
import json
import math
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from stylefusion_hf import StyleFusionInterpolationPipeline, StyleFusionPipeline
from stylefusion_hf.core.checks import short
from stylefusion_hf.core.edits import Direction
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.editing.directions import ganspace, sefa
from stylefusion_hf.imaging.alignment import static_regions
from stylefusion_hf.imaging.modes import check_viewable
from stylefusion_hf.inversion.previews import find_preview
from stylefusion_hf.pipelines.steps import synthesize
from stylefusion_hf.spaces_app.bounds import TooLarge, read_json
from stylefusion_hf.spaces_app.drawing import make_fuse, make_invert, make_segment
from stylefusion_hf.spaces_app.model_files import DIRECTIONS, find_file, read_directions
from stylefusion_hf.spaces_app.thumbnails import Thumbnails
from stylefusion_hf.spaces_app.turns import DIAL, PICTURE, ROW, Turns

SMALL = 128  # largest side in pixels of the previews that thumbnails are made from
MAP = 256  # approximate shorter side in pixels of the maps of larger pictures
KEPT_PIXELS = 2**24  # of full pictures in the cache: 16 of 1024 px, which take 64 MB with their maps of regions
MAX_KEPT = 64  # full pictures in the cache
MAX_REFINE_STEPS = 40  # a step takes about as long as a picture
MAX_WAITING = 32  # pictures waiting or being rendered; gradio has 40 threads
NO_REGION = 255  # label of pixels in no region that has a dial


@dataclass(frozen=True)
class Picture:
    """A rendered picture.

    Args:
        image: the picture.
        labels: index of each pixel's region in `Model.regions`, or NO_REGION; a fraction of a large picture's size.
            None without a segmenter.
        recipe: its recipe, in JSON form.
        draft: whether it is a preview, smaller than the recipe's picture and of slightly other colors.
    """

    image: Image.Image
    labels: Image.Image | None
    recipe: dict[str, Any]
    draft: bool = False


def plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe without a refinement, which previews and thumbnails do not wait for."""
    return {name: value for name, value in recipe.items() if name != "refine_steps"}


class Model:
    """A pipeline with the operations that the page needs.

    Args:
        pipe: with or without a segmenter and an encoder.
        directions: a file written by `stylefusion directions`; None takes the `directions.safetensors` in the model's
            folder, or finds directions when they are first needed.

    Raises:
        ValueError: a generator whose pictures cannot be images, or directions that do not fit it.
    """

    def __init__(self, pipe: StyleFusionPipeline, directions: str | None = None):
        check_viewable(pipe.generator.config.img_channels)
        self.pipe = pipe
        pipe.set_progress_bar_config(disable=True)
        self.tree = pipe.fusion.tree
        self.regions = self.tree.swappable
        self.has_common = bool(self.tree.fused)
        self.has_encoder = pipe.encoder is not None
        self.has_segmenter = pipe.segmenter is not None
        self.background = tuple(map(self.regions.index, static_regions(self.regions)))  # their numbers in a map
        self.resolution: int = pipe.generator.config.resolution
        self.size: tuple[int, int] = pipe.generator.picture_size  # height, width
        self.channels: int = pipe.generator.config.img_channels
        self.classes: int = pipe.generator.config.label_dim
        self.psi: float = pipe.generator.config.truncation_psi or 1.0
        self.name: str = pipe.model_identity()["name"] or "unnamed"
        file = directions or find_file(pipe, DIRECTIONS)
        self._directions = read_directions(file, pipe.generator) if file else None
        self._thumbnails = Thumbnails(self)
        self._pictures: OrderedDict[str, Picture] = OrderedDict()
        self._kept = min(MAX_KEPT, max(1, KEPT_PIXELS // math.prod(self.size)))
        self._turns = Turns(MAX_WAITING)
        self._refining = Turns(MAX_WAITING)  # one at a time, beside the dials, which it would keep waiting
        self._finding = threading.Lock()

        # Heights of the previews that are shown while a dial turns, and of thumbnails; None for full pictures.
        self.preview = find_preview(pipe.generator, noise_mode="const")
        self._small = find_preview(pipe.generator, noise_mode="const", most=SMALL)

        # Maps of regions are for outlines. At 1024 px, one of every pixel takes as long as half of the picture.
        factor = max(1, min(self.size) // MAP) if self.channels == 3 else 1

        self._fuse, self._invert = make_fuse(pipe, factor), make_invert(pipe)
        self._segment = make_segment(pipe, factor)

    # ------------------------------------------------------------------------------------------------
    # Pictures.

    def render(self, recipe: Mapping[str, Any], with_labels: bool = True, keep: bool = True) -> Picture:
        """Render a recipe of one picture; the most recent ones are kept. ValueError names what is wrong with it.

        Args:
            recipe: the recipe.
            with_labels: False does not wait for the map of regions; `add_labels` finds it later.
            keep: whether the picture may be shown again soon.
        """
        key = digest(recipe)
        if (found := self._pictures.get(key)) is not None:  # also what every visitor sees first
            return self.add_labels(found) if with_labels else found
        with self._turn_of(recipe):
            images, masks, made = self._fuse(dict(recipe), self.has_segmenter and with_labels, None)
            picture = Picture(images[0], self._first_labels(masks), made)
            if keep:
                self._keep_picture(key, picture)
        return picture

    def kept_picture(self, recipe: Mapping[str, Any]) -> Picture | None:
        """Return the picture that `render` kept for a recipe, or None if it kept none."""
        return self._pictures.get(digest(recipe))

    def add_labels(self, picture: Picture) -> Picture:
        """Return a full picture with its map of regions, if the model has a segmenter."""
        if picture.labels is not None or not self.has_segmenter:
            return picture
        with self.take_turn(PICTURE):
            labelled = replace(picture, labels=self._first_labels(self._segment([picture.image])))
        for key, kept in list(self._pictures.items()):
            if kept is picture:
                self._pictures[key] = labelled
        return labelled

    def _keep_picture(self, key: str, picture: Picture) -> None:
        self._pictures[key] = picture
        while len(self._pictures) > self._kept:
            self._pictures.popitem(last=False)

    def render_map(self, recipe: Mapping[str, Any]) -> Image.Image:
        """Return the map of regions of a recipe's picture with its every pixel; `has_segmenter` must be true."""
        with self._turn_of(recipe):
            _, masks, _ = self._fuse(dict(recipe), True, None, True)
        assert masks is not None  # asked for
        return self._labels({name: mask[0] for name, mask in masks.items()})

    def draft(self, recipe: Mapping[str, Any]) -> Picture:
        """Render a preview of a recipe's picture, without labels. A model without previews renders the picture itself.

        A refinement waits until the dials rest.
        """
        recipe = plain(recipe)
        if self.preview is None:
            return self.render(recipe)
        with self.take_turn(DIAL):
            images, _, made = self._fuse(dict(recipe), False, self.preview)
        return Picture(images[0], None, made, draft=True)

    def render_small(
        self, recipe: Mapping[str, Any], region: str | None = None, height: int | None = None
    ) -> tuple[list[Image.Image], np.ndarray | None]:
        """Render a batch of small pictures.

        Args:
            recipe: of any number of pictures.
            region: one of `regions`; None for no masks.
            height: of the pictures, one of `small_heights`; None for the smallest, or with masks for the largest,
                since segmenters miss small regions such as eyes in the smallest.

        Returns:
            The pictures, and the region's masks (B, H, W); None without a segmenter or a region.
        """
        wanted = region is not None and self.has_segmenter
        with self.take_turn():
            images, masks, _ = self._fuse(plain(recipe), wanted, height or self.small_heights[-1 if wanted else 0])
        if region is None or masks is None:
            return images, None
        own = [mask for leaf, mask in masks.items() if self._region_of(leaf) == region]
        return images, np.any(own, axis=0) if own else None

    def render_small_maps(self, recipe: Mapping[str, Any]) -> tuple[list[Image.Image], list[np.ndarray]]:
        """Render a batch of the largest small pictures, and the number of the region of each of their pixels.

        `has_segmenter` must be true. Numbers are indices in `regions`, or NO_REGION.
        """
        with self.take_turn():
            images, masks, _ = self._fuse(plain(recipe), True, self.small_heights[-1])
        assert masks is not None  # asked for
        each = ({name: mask[k] for name, mask in masks.items()} for k in range(len(images)))
        return images, [np.asarray(self._labels(one)) for one in each]

    @property
    def small_heights(self) -> list[int | None]:
        """Heights of the small pictures that the generator gives, in ascending order; None for full pictures."""
        known: list[int | None] = [*sorted({size for size in (self._small, self.preview) if size})]
        return known or [None]

    def _turn_of(self, recipe: Mapping[str, Any]) -> AbstractContextManager[None]:
        return self._refining.take() if recipe.get("refine_steps") else self.take_turn(PICTURE)

    def take_turn(self, patience: float = ROW) -> AbstractContextManager[None]:
        """Wait until no other picture is being rendered, which would only slow both down; see `Turns.take`."""
        return self._turns.take(patience)

    def check(self, recipe: Mapping[str, Any] | str) -> dict[str, Any]:
        """Check an untrusted recipe; return the complete recipe of its first picture.

        ValueError if it is not a recipe, or one of another model.
        """
        if isinstance(recipe, str):
            try:
                recipe = read_json(recipe)
            except ValueError as error:
                reason = str(error) if isinstance(error, TooLarge) else f"it is not JSON: {error}"
                raise ValueError(f"the recipe cannot be read: {reason}") from error
        found = Recipe.from_dict(recipe).select(0).to_dict()  # type: ignore[arg-type]
        if not self.wrote_recipe(found):
            name = (found.get("model") or {}).get("name")
            raise ValueError(
                f"the recipe was made with another model, {short(name, 80) if name else 'which it does not name'}"
            )
        if (steps := found.get("refine_steps", 0)) > MAX_REFINE_STEPS:
            raise ValueError(f"the recipe refines its picture in {steps} steps: this page takes {MAX_REFINE_STEPS}")
        if steps and not self.has_segmenter:
            raise ValueError("the recipe refines its picture, which needs a segmenter: this model has none")
        if found["truncation_psi"] is None:
            found["truncation_psi"] = self.psi
        return found

    def wrote_recipe(self, recipe: Mapping[str, Any]) -> bool:
        """Return whether a recipe was made with these weights; True if it does not name any."""
        hashes = (recipe.get("model") or {}).get("sha256") or {}
        mine = self.pipe.model_identity()["sha256"]
        return all(mine.get(name, digits) == digits for name, digits in hashes.items())

    def thumbnails(self, codes: Sequence[Any], label: Any = None, region: str | None = None) -> list[Image.Image]:
        """Render small pictures at the model's own truncation; see `Thumbnails.render`."""
        return self._thumbnails.render(codes, label, region)

    def _first_labels(self, masks: Mapping[str, np.ndarray] | None) -> Image.Image | None:
        return None if masks is None else self._labels({name: mask[0] for name, mask in masks.items()})

    def _labels(self, masks: Mapping[str, np.ndarray]) -> Image.Image:
        """Merge the masks of leaves into one map of the regions with a dial: the leaf itself or an ancestor."""
        labels = np.full(next(iter(masks.values())).shape, NO_REGION, dtype=np.uint8)
        for leaf, mask in masks.items():
            if leaf in self.tree.nodes:
                region = self._region_of(leaf)
                labels[mask] = NO_REGION if region is None else self.regions.index(region)
        return Image.fromarray(labels)

    def _region_of(self, leaf: str) -> str | None:
        """Return the region with a dial that a leaf belongs to: the leaf itself or an ancestor."""
        if leaf not in self.tree.nodes:
            return None
        return next((name for name in (leaf, *self.tree.ancestors(leaf)) if name in self.regions), None)

    # ------------------------------------------------------------------------------------------------
    # Long operations. They do not take turns, so that dials keep working in the meantime.

    def invert(
        self, images: Sequence[Image.Image], steps: int, report_step: Callable[[int], None] | None = None
    ) -> tuple[list[dict[str, Any]], list[Image.Image], list[float]]:
        """Invert pictures. Returns their codes in a recipe's JSON form, the reconstructions, and the MSEs.

        Args:
            images: checked, of any size; their middle is used.
            steps: optimization steps; 0 for the encoder's guess.
            report_step: called with the number of each step.
        """
        return self._invert(list(images), steps, report_step)

    def walk(self, call: Mapping[str, Any], height: int | None = None) -> Iterator[list[Image.Image]]:
        """Yield batches of frames; see `StyleFusionInterpolationPipeline.stream`.

        Args:
            call: arguments of the pipeline.
            height: of the frames, one of `small_heights`; None for full pictures.
        """
        pipe = StyleFusionInterpolationPipeline.from_pipe(self.pipe)
        if height is None:
            yield from pipe.stream(**call)
            return
        for style in pipe.stream(**call, output_type="latent"):
            with torch.no_grad():
                pictures = synthesize(pipe.generator, style, "const", None, up_to=height)
            yield pipe.image_processor.postprocess(pictures, output_type="pil")

    def directions(self) -> dict[str, Direction]:
        """Return {name: direction}: those of the file, else the strongest of SeFa and GANSpace, found only once."""
        with self._finding:
            if self._directions is None:
                count = min(6, self.pipe.generator.w_avg.shape[0])
                found = [*sefa(self.pipe.generator, count), *ganspace(self.pipe.generator, count, samples=4000)]
                self._directions = {direction.name: direction for direction in found}
            return self._directions


def digest(value: Mapping[str, Any]) -> str:
    """Return a digest of a recipe, or of a code in a recipe's JSON form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
