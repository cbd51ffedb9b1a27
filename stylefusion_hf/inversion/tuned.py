"""Generators that pivotal tuning made, in folders named by the sha256 of their weights, beside recipes that need them.

folder = save_tuned(out.generator, "pictures")               # pictures/generator-0123456789abcdef
generator = find_tuned(recipe, "pictures")                    # the one that a recipe was written with, or None
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
    """Save a tuned generator below `folder` and return its own folder; written again where it is there already."""
    path = Path(folder, f"generator-{weights_sha256(generator)[:DIGITS]}")
    generator.save_pretrained(path)  # type: ignore[call-arg, arg-type]  # mypy does not see through its wraps
    return path


def find_tuned(recipe: Mapping[str, Any], folder: str | os.PathLike[str]) -> StyleGenerator | None:
    """The generator that a recipe was written with, where it lies below `folder`.

    Args:
        recipe: as `Recipe.to_dict` gives.
        folder: where `save_tuned` was told to put it.

    Raises:
        OSError: a folder of that name is damaged. ValueError: it holds other weights than its name says.
    """
    expected = ((recipe.get("model") or {}).get("sha256") or {}).get("generator")
    path = Path(folder, f"generator-{str(expected)[:DIGITS]}")
    if expected is None or not path.is_dir():
        return None
    generator = StyleGenerator.from_pretrained(path)
    if weights_sha256(generator) != expected:
        raise ValueError(f"{path} holds other weights than the recipe's generator: copy that folder again")
    return generator
