"""Tuned generators, saved next to the recipes that need them in folders named by the SHA-256 of their weights.

folder = save_tuned(out.generator, "pictures")  # pictures/generator-0123456789abcdef
generator = find_tuned(recipe, "pictures")  # the generator of the recipe, or None
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stylefusion_hf.models.loading import weights_sha256
from stylefusion_hf.models.style_generator import StyleGenerator

DIGITS = 16  # of the sha256, in a folder's name


def save_tuned(generator: StyleGenerator, folder: str | os.PathLike[str]) -> Path:
    """Save a tuned generator below `folder` and return its folder; an existing one is written again."""
    path = Path(folder, f"generator-{weights_sha256(generator)[:DIGITS]}")
    generator.save_pretrained(path)
    return path


def find_tuned(recipe: Mapping[str, Any], folder: str | os.PathLike[str]) -> StyleGenerator | None:
    """Load the generator that a recipe was written with, or return None if it is not in `folder`.

    Args:
        recipe: a dict as from `Recipe.to_dict`.
        folder: the folder given to `save_tuned`.

    Raises:
        OSError: the generator's folder is damaged.
        ValueError: it holds other weights than its name says.
    """
    expected = ((recipe.get("model") or {}).get("sha256") or {}).get("generator")
    path = Path(folder, f"generator-{str(expected)[:DIGITS]}")
    if expected is None or not path.is_dir():
        return None
    generator = StyleGenerator.from_pretrained(path)
    if weights_sha256(generator) != expected:
        raise ValueError(f"{path} holds other weights than the recipe's generator: copy that folder again")
    return generator
