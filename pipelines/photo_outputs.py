"""What an edited photograph's output is made of: which regions changed, and how near the model comes to a face."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image

from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.imaging.images import to_tensor
from stylefusion_hf.imaging.photographs import Photograph

FACE_RADIUS = 0.35  # of the disc in the middle of an aligned face over which `explained` is measured


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
