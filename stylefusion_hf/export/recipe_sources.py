"""Where the recipes of a data set come from: a file with one JSON recipe per line, or random draws."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.recipes import MAX_CHARACTERS, Recipe
from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.core.regular_files import open_regular


class Source(Protocol):
    """Numbered recipes that can be iterated more than once."""

    def __iter__(self) -> Iterator[tuple[int, Callable[[], Recipe]]]:
        """Yield (number from 1, function that makes the recipe); that function may raise ValueError."""
        ...

    def where(self, number: int) -> str:
        """Return the prefix of errors about this recipe."""
        ...

    def about(self) -> dict[str, Any]:
        """Return JSON-serializable facts that identify this source."""
        ...


@dataclass(frozen=True)
class RecipeFile:
    """A file with one JSON recipe per line; empty lines are numbered but skipped. OSError if it cannot be read."""

    path: Path

    def __iter__(self) -> Iterator[tuple[int, Callable[[], Recipe]]]:
        with open_regular(self.path) as file:
            lines = iter(partial(file.readline, MAX_CHARACTERS + 2), b"")  # longer lines are refused by Recipe
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield number, partial(Recipe.from_json, line)

    def check(self) -> None:
        """Raise ValueError for the first line that is not a recipe; nothing is checked against a model."""
        for number, make in self:
            try:
                make()
            except ValueError as error:
                raise ValueError(f"{self.where(number)}: {error}") from error

    def where(self, number: int) -> str:
        return f"{shown(str(self.path), 400)}, line {number}"

    def about(self) -> dict[str, Any]:
        digest = hashlib.sha256()
        with open_regular(self.path) as file:
            while part := file.read(2**20):
                digest.update(part)
        return {"recipes": digest.hexdigest()}


@dataclass(frozen=True)
class RandomRecipes:
    """`count` random recipes, each with a base seed and one seed per region that can have its own code."""

    count: int
    seed: int
    tree: RegionTree

    def __iter__(self) -> Iterator[tuple[int, Callable[[], Recipe]]]:
        return ((number, partial(self.make, number)) for number in range(1, self.count + 1))

    def make(self, number: int) -> Recipe:
        regions = self.tree.swappable
        drawn = np.random.SeedSequence([self.seed, number]).generate_state(len(regions) + 1).tolist()
        return Recipe(
            base=(drawn[0],), num_images=1, regions={n: (s,) for n, s in zip(regions, drawn[1:], strict=True)}
        )

    def where(self, number: int) -> str:
        return f"random recipe {number}"

    def about(self) -> dict[str, Any]:
        return {"random": self.count, "seed": self.seed, "tree": str(self.tree)}
