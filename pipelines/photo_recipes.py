"""Recipes of edited photographs: JSON that makes the same file again from the same photograph.

    {"version": 1, "photograph": {"size": [w, h], "sha256": "..."}, "landmarks": [[x, y], ...], "fusion": {...}}

`fusion` is a recipe of `StyleFusionPipeline` whose base is the photograph's code. Like it, this is untrusted input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stylefusion_hf.core.checks import check_count, short
from stylefusion_hf.core.json_files import parse_json
from stylefusion_hf.core.recipes import MAX_CHARACTERS, MAX_VALUES, PrintedAsJSON, Recipe
from stylefusion_hf.imaging.faces import check_landmarks
from stylefusion_hf.imaging.photographs import Photograph

VERSION = 1
FIELDS = {"version", "photograph", "landmarks", "fusion"}
SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class PhotoRecipe:
    """Everything that determines an edited photograph besides its pixels and the model's weights.

    Args:
        size: (width, height) of the upright photograph.
        sha256: of its pixels, as `Photograph.sha256` gives it.
        landmarks: (5, 2) or (68, 2), where its face is.
        fusion: of the face, one picture.

    Raises:
        ValueError: a fusion recipe of several pictures.
    """

    size: tuple[int, int]
    sha256: str
    landmarks: np.ndarray
    fusion: Recipe

    def __post_init__(self) -> None:
        if self.fusion.num_images != 1:
            raise ValueError(f"fusion: it makes {self.fusion.num_images} pictures, expected one")
        if self.fusion.noise_mode == "random":
            raise ValueError("fusion: noise_mode is none or const for a photograph, got 'random'")

    def check(self, photograph: Photograph, pixels: bool = True) -> None:
        """Raise ValueError unless this is the recipe's photograph: its size and, with `pixels`, every value."""
        if photograph.image.size != self.size:
            raise ValueError(
                f"the recipe is of a photograph of {self.size[0]} x {self.size[1]} pixels, and {photograph.name} has"
                f" {photograph.image.width} x {photograph.image.height}: give the one that was edited"
            )
        if pixels and photograph.sha256() != self.sha256:
            raise ValueError(
                f"{photograph.name} has other pixels than the photograph of this recipe: give the one that was edited,"
                " or pass check_photograph=False (--any-photograph)"
            )

    def to_dict(self) -> PrintedAsJSON:
        """Return a JSON-able dict that prints as JSON."""
        return PrintedAsJSON(
            {
                "version": VERSION,
                "photograph": {"size": list(self.size), "sha256": self.sha256},
                "landmarks": self.landmarks.tolist(),
                "fusion": self.fusion.to_dict(),
            }
        )

    @classmethod
    def from_dict(cls, data: Any) -> PhotoRecipe:
        """Read the dict of `to_dict`; ValueError names the field that is wrong."""
        if not isinstance(data, Mapping):
            raise ValueError(f"the recipe of a photograph is a JSON object, got {type(data).__name__}")
        if "fusion" not in data:
            raise ValueError("this is not the recipe of a photograph: it has no `fusion`")
        version = data.get("version")
        if type(version) is not int or version != VERSION:
            raise ValueError(f"version: this package reads photographs' recipes of version 1, got {short(version)}")
        if unknown := [name for name in data if name not in FIELDS]:
            raise ValueError(
                f"unknown field {short(unknown[0])}: a photograph's recipe has {', '.join(sorted(FIELDS))}"
            )
        about = data.get("photograph")
        size = about.get("size") if isinstance(about, Mapping) else None
        digits = about.get("sha256") if isinstance(about, Mapping) else None
        if not isinstance(size, list) or len(size) != 2 or not isinstance(digits, str) or not SHA256.fullmatch(digits):
            raise ValueError(
                f"photograph: expected size [width, height] and sha256 of 64 hexadecimal digits, got {short(about)}"
            )
        width, height = (check_count("photograph: a side in size", value, 2**20) for value in size)
        landmarks = check_landmarks(data.get("landmarks"), "landmarks: the points")
        try:
            fusion = Recipe.from_dict(data["fusion"])
        except ValueError as error:
            raise ValueError(f"fusion: {error}") from error
        return cls((width, height), digits, landmarks, fusion)

    @classmethod
    def from_json(cls, text: str | bytes) -> PhotoRecipe:
        """Parse JSON text. ValueError if it is not JSON, too long, or not such a recipe."""
        return cls.from_dict(parse_json(text, "the recipe", MAX_CHARACTERS, MAX_VALUES))
