"""What an edited photograph's output is made of: the change put back, and how near the model comes to a face."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from stylefusion_hf.core.codes import Code
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.imaging import compositing
from stylefusion_hf.imaging.faces import face_square
from stylefusion_hf.imaging.images import to_tensor
from stylefusion_hf.imaging.photographs import Photograph
from stylefusion_hf.pipelines import steps as _steps
from stylefusion_hf.pipelines.fuse import StyleFusionPipeline
from stylefusion_hf.pipelines.photo_recipes import PhotoRecipe

RESEMBLES = 0.8  # `explained` below which the model does not draw such a picture, once a search was long enough
FACE_RADIUS = 0.35  # of the disc in the middle of an aligned face over which `explained` is measured


def edit_face(
    fuser: StyleFusionPipeline,
    photograph: Photograph,
    recipe: PhotoRecipe,
    square: Image.Image,
    check_model: bool = True,
) -> tuple[Image.Image, Image.Image]:
    """Return a photograph with its recipe's changes, and how much of each pixel was replaced (mode L).

    Args:
        fuser: has the components of the photograph pipeline, with the generator that the codes are for.
        square: the aligned face.
        check_model: refuse a recipe that was written with other weights.
    """
    before, after = draw_change(fuser, recipe.fusion, check_model)
    original = to_tensor([square], before.shape[-1], names=[photograph.name])[0].to(before)
    regions = stays = None
    if fuser.segmenter is not None:
        found = _steps.segment(fuser.segmenter, torch.stack([original, after]))
        leaves = changed_leaves(fuser.fusion.tree, recipe.fusion)
        regions = torch.stack([found[leaf] for leaf in leaves]).flatten(0, 1).any(dim=0).float()
        same = torch.stack([masks.all(dim=0) for masks in found.values()]).any(dim=0)
        stays = (same & (regions == 0)).float()
    corners = face_square(recipe.landmarks)
    return compositing.blend_change(photograph.image, corners, original, before, after, regions, stays)


def draw_change(
    fuser: StyleFusionPipeline, recipe: Recipe, check_model: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the face without and with a recipe's changes, (3, n, n) each in [-1, 1].

    Faces are drawn one by one, so that a recipe gives the same bits as the call that wrote it.
    """
    fused: Any = fuser.from_recipe(recipe, check_model=check_model, output_type="pt")
    plain = replace(
        Recipe.from_dict(fused.recipe),
        regions={}, nodes={}, global_code=None, edits={}, strength=1.0, refine_steps=0,
    )  # fmt: skip
    style = _steps.fuse_recipe(fuser.generator, fuser.fusion, plain, fuser._execution_device)
    before = _steps.synthesize(fuser.generator, style, plain.noise_mode)[0]
    return before, fused.images[0].to(before) * 2 - 1


def changed_leaves(tree: RegionTree, recipe: Recipe) -> list[str]:
    """Return the leaves below all nodes for which a recipe has codes or edits."""
    named = [tree.resolve(node) for node in (*recipe.regions, *recipe.nodes, *recipe.edits)]
    named += [tree.root] if recipe.global_code is not None else []
    below = {name for node in named for name in tree.subtree(node)}
    return [leaf for leaf in tree.leaves if leaf in below]


def explained_share(face: Image.Image, made: Image.Image) -> torch.Tensor:
    """Return the share of the variance of an aligned face that a reconstruction explains, in the middle disc."""
    target, found = (to_tensor([picture], picture.width)[0] for picture in (face, made))
    places = (torch.arange(target.shape[-1]) + 0.5) / target.shape[-1] - 0.5
    disc = (places[:, None].square() + places.square() < FACE_RADIUS**2).float()
    spread = (target - (target * disc).sum(dim=(1, 2), keepdim=True) / disc.sum()).square()
    error = (found - target).square()
    return 1 - (error * disc).sum() / (spread * disc).sum().clamp_min(1e-6)


def describe_likeness(explained: float, steps: int, enough: int) -> str:
    """Return a sentence on how much of a face a reconstruction explains, with a warning if that is little.

    Args:
        explained: as from `explained_share`.
        steps: of the search. A shorter one leaves faces below `RESEMBLES`, too (docs/guides/photos.md).
        enough: the steps after which `RESEMBLES` tells faces from other pictures: `photo_search.default_steps`.
    """
    said = f"the model explains {max(0.0, explained):.0%} of this face"
    if explained >= RESEMBLES:
        return said
    if steps < enough:
        plural = "" if steps == 1 else "s"
        return f"{said} after {steps} step{plural}, too few to tell whether it draws such a picture: take {enough}"
    return f"{said}; it does not draw such a picture: what changes will not fit the rest"


def describe_faces(squares: list[Image.Image], landmarks: list[Any], inverted: Any) -> dict[str, Any]:
    """Return what an output says about the faces in photographs: the first of an inversion's pictures."""
    count, found = len(squares), inverted.images[: len(squares)]
    return {
        "reconstructions": found,
        "codes": Code(inverted.codes.tensor[:count], inverted.codes.space),
        "mse": inverted.mse[:count],
        "feature_distance": inverted.feature_distance[:count],
        "explained": torch.stack([explained_share(a, b) for a, b in zip(squares, found, strict=True)]),
        "landmarks": landmarks,
        "generator": inverted.generator,
    }


def to_output_type(edited: list[Photograph], output_type: str) -> Any:
    """Return the pictures as PIL images, or stacked; ValueError if they differ in size or mode and cannot be."""
    images = [photograph.image for photograph in edited]
    if output_type == "pil":
        return images
    if len(shapes := {(image.mode, image.size) for image in images}) > 1:
        raise ValueError(f'photographs of {len(shapes)} sizes or modes cannot be stacked: take output_type="pil"')
    stacked = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
    stacked = stacked[..., None] if stacked.ndim == 3 else stacked
    return stacked if output_type == "np" else torch.from_numpy(stacked).permute(0, 3, 1, 2)
