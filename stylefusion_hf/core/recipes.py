"""Recipes: JSON that reproduces a batch of pictures. One schema for pipelines, command line and Space.

    {"version": 1, "num_images": 1, "base": 1, "regions": {"hair": 7, "eyes": [3, 4]}, "global_code": 5, ...}

A code is a seed, or an object with `space`, `shape` and `data`: base64 of little-endian float32 numbers. A list has
one entry per picture; a single entry, without a list, applies to all of them. Recipes are untrusted input (from a URL
or a file): reading one checks every field, bounds every size, and unpickles nothing.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from stylefusion_hf.core.checks import check_choice, check_count, check_number, short
from stylefusion_hf.core.codes import (
    NOISE_MODES,
    Code,
    Label,
    Row,
    check_seed,
    check_space,
    common_batch,
    parse_labels,
)
from stylefusion_hf.core.json_files import parse_json

VERSION = 1
MAX_IMAGES = 1024  # pictures in one recipe
MAX_NUMBERS = 2**18  # in one code; w+ at 1024 x 1024 has 9216
MAX_CHARACTERS = 2**26  # in a recipe's JSON
MAX_VALUES = 2**21  # in a recipe's JSON: lists of seeds, and vector class labels
MAX_NAME = 100  # characters of a region's name, as in a tree
MAX_STEPS = 10_000  # of a refinement
MAX_TRANSLATION, MAX_DEGREES = 1000, 360_000  # either way
DIMS = {"z": 2, "w": 2, "w+": 3, "s": 2}


class PrintedAsJSON(dict[str, Any]):
    """A dict that prints as JSON, so that the output of `print(out.recipe)` can be pasted into a file or a link."""

    def __str__(self) -> str:
        return json.dumps(self)


@dataclass(frozen=True)
class Recipe:
    """Everything that determines a batch of pictures besides the weights. Codes have length 1 or `num_images`.

    Args:
        base: the default code.
        num_images: batch size.
        regions, nodes: node -> codes, as in the pipeline.
        global_code: the code of all inner nodes together.
        class_labels: for seeds and z.
        truncation_psi: None for the model's default.
        truncation_cutoff: None for all rows of w+.
        strength: 0 to 1, for all nodes or per node.
        noise_mode: "const", "random" or "none".
        noise_seeds: one seed per picture if the noise is random.
        translate, rotate: the motion of the whole picture, in fractions of the width and in degrees (StyleGAN3 only).
        edits: node -> offsets added to the codes of its subtree, in w, w+ or s; offsets of several nodes add up.
        refine_steps: steps of optimizing the gates of these pictures (`editing/refinement.py`); 0 for none.
        model: {"name": text or None, "sha256": {component: hex digits}}, or None.

    Raises:
        ValueError: an invalid field; names it.

    Example:
        >>> from stylefusion_hf.core.recipes import Recipe
        >>> recipe = Recipe.from_dict({"version": 1, "base": [1, 2], "regions": {"hair": 7}})
        >>> recipe.num_images, recipe.regions
        (2, {'hair': (7,)})
    """

    base: tuple[Row, ...]
    num_images: int
    regions: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    nodes: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    global_code: tuple[Row, ...] | None = None
    class_labels: tuple[Label, ...] | None = None
    truncation_psi: float | None = None
    truncation_cutoff: int | None = None
    strength: float | Mapping[str, float] = 1.0
    noise_mode: str = "const"
    noise_seeds: tuple[int, ...] | None = None
    edits: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)
    translate: tuple[float, float] = (0.0, 0.0)
    rotate: float = 0.0
    refine_steps: int = 0
    model: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_images", check_count("num_images", self.num_images, MAX_IMAGES))
        check_choice("noise_mode", self.noise_mode, NOISE_MODES)
        if (self.noise_seeds is not None) != (self.noise_mode == "random"):
            raise ValueError(f"noise_seeds go with noise_mode 'random' and only with it, got {self.noise_mode!r}")
        if self.truncation_psi is not None:
            object.__setattr__(self, "truncation_psi", check_number("truncation_psi", self.truncation_psi))
        if self.truncation_cutoff is not None:
            cutoff = check_count("truncation_cutoff", self.truncation_cutoff, 1024, least=0)
            object.__setattr__(self, "truncation_cutoff", cutoff)
        if isinstance(self.strength, Mapping):
            strength: Any = {n: check_number(f"strength[{n!r}]", x, 0, 1) for n, x in self.strength.items()}
        else:
            strength = check_number("strength", self.strength, 0, 1)
        object.__setattr__(self, "strength", strength)
        object.__setattr__(self, "translate", check_translation(self.translate))
        object.__setattr__(self, "rotate", check_number("rotate", self.rotate, -MAX_DEGREES, MAX_DEGREES))
        object.__setattr__(self, "refine_steps", check_count("refine_steps", self.refine_steps, MAX_STEPS, least=0))
        for name, rows in self.edits.items():
            if any(not isinstance(row, Code) or row.space == "z" for row in rows):
                raise ValueError(f"edits[{name!r}] is an offset to a code in w, w+ or s: not a seed, and not in z")
        lengths = self.lengths()
        common_batch(lengths)
        for name, length in lengths.items():
            if length not in (1, self.num_images):
                raise ValueError(f"{name} has length {length} and num_images is {self.num_images}: give as many, or 1")

    @property
    def moves(self) -> bool:
        """Whether the picture is moved or rotated."""
        return any(self.translate) or self.rotate != 0

    def groups(self) -> dict[str, tuple[Row, ...]]:
        """Return all codes under the names used in errors: "base", "global_code", "regions['hair']", ..."""
        groups = {"base": self.base}
        if self.global_code is not None:
            groups["global_code"] = self.global_code
        for argument, codes in (("regions", self.regions), ("nodes", self.nodes), ("edits", self.edits)):
            groups |= {f"{argument}[{name!r}]": rows for name, rows in codes.items()}
        return groups

    def lengths(self) -> dict[str, int]:
        """Return the length of every list: 1 or `num_images`."""
        lengths = {name: len(rows) for name, rows in self.groups().items()}
        for name in ("class_labels", "noise_seeds"):
            if getattr(self, name) is not None:
                lengths[name] = len(getattr(self, name))
        return lengths

    def select(self, index: int) -> Recipe:
        """Return the recipe of picture `index` alone."""
        if not 0 <= index < self.num_images:
            raise ValueError(f"this recipe makes pictures 0 to {self.num_images - 1}, there is no {index}")

        def one(rows: Any) -> Any:
            return rows if rows is None or len(rows) == 1 else rows[index : index + 1]

        return replace(
            self,
            num_images=1,
            base=one(self.base),
            regions={name: one(rows) for name, rows in self.regions.items()},
            nodes={name: one(rows) for name, rows in self.nodes.items()},
            global_code=one(self.global_code),
            class_labels=one(self.class_labels),
            noise_seeds=one(self.noise_seeds),
            edits={name: one(rows) for name, rows in self.edits.items()},
        )

    # ------------------------------------------------------------------------------------------------
    # JSON.

    def to_dict(self) -> PrintedAsJSON:
        """Return a JSON-able dict that prints as JSON.

        Most defaults are left out, so that a recipe of seeds is short enough for a URL.
        """
        data = PrintedAsJSON({"version": VERSION, "num_images": self.num_images, "base": _write(self.base)})
        for argument in ("regions", "nodes", "edits"):
            if codes := getattr(self, argument):
                data[argument] = {name: _write(rows) for name, rows in codes.items()}
        if self.global_code is not None:
            data["global_code"] = _write(self.global_code)
        if self.class_labels is not None:
            labels = [label if isinstance(label, int) else list(label) for label in self.class_labels]
            data["class_labels"] = labels
        data["truncation_psi"] = self.truncation_psi
        if self.truncation_cutoff is not None:
            data["truncation_cutoff"] = self.truncation_cutoff
        if self.strength != 1.0:
            data["strength"] = dict(self.strength) if isinstance(self.strength, Mapping) else self.strength
        if self.moves:
            data |= {"translate": list(self.translate), "rotate": self.rotate}
        if self.refine_steps:
            data["refine_steps"] = self.refine_steps
        data["noise_mode"] = self.noise_mode
        if self.noise_seeds is not None:
            data["noise_seeds"] = list(self.noise_seeds)
        if self.model is not None:
            data["model"] = {"name": self.model.get("name"), "sha256": dict(self.model.get("sha256") or {})}
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Recipe:
        """Make a recipe from the dict of `to_dict`; only `version` and `base` are required."""
        if not isinstance(data, Mapping):
            raise ValueError(f"a recipe is a JSON object, got {type(data).__name__}")
        version = data.get("version")
        if type(version) is not int or version != VERSION:
            raise ValueError(f"version: this package reads recipes of version {VERSION}, got {short(version)}")
        if unknown := [name for name in data if name not in FIELDS]:
            raise ValueError(f"unknown field {short(unknown[0])} in the recipe: it has {', '.join(FIELDS)}")
        given = {name: value for name, value in data.items() if value is not None and name != "version"}
        if "base" not in given:
            raise ValueError("base: the recipe has no base code")
        for name in ("base", "global_code"):
            if name in given:
                given[name] = _read(given[name], name)
        for name in ("regions", "nodes", "edits"):
            if name in given:
                codes = _check_mapping(given[name], name)
                given[name] = {node: _read(code, f"{name}[{node!r}]") for node, code in codes.items()}
        if "class_labels" in given:
            given["class_labels"] = parse_labels(given["class_labels"])
        if "noise_seeds" in given:
            seeds = given["noise_seeds"]
            if not isinstance(seeds, list) or not 0 < len(seeds) <= MAX_IMAGES:
                raise ValueError(f"noise_seeds is a list of 1 to {MAX_IMAGES} seeds, got {short(seeds)}")
            given["noise_seeds"] = tuple(check_seed(seed, "noise_seeds: a seed") for seed in seeds)
        if isinstance(given.get("strength"), Mapping):
            given["strength"] = dict(_check_mapping(given["strength"], "strength"))
        if "translate" in given:
            given["translate"] = check_translation(given["translate"])
        if "model" in given:
            given["model"] = _read_model(given["model"])
        if "num_images" not in given:
            lists = [given["base"], given.get("global_code"), given.get("class_labels"), given.get("noise_seeds")]
            lists += [rows for name in ("regions", "nodes", "edits") for rows in given.get(name, {}).values()]
            given["num_images"] = max(len(rows) for rows in lists if rows)
        return cls(**given)

    def to_json(self, indent: int | None = None) -> str:
        """Return `to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Recipe:
        """Parse the text of `to_json`. ValueError if it is not JSON, too long, or not a recipe."""
        return cls.from_dict(parse_json(text, "the recipe", MAX_CHARACTERS, MAX_VALUES))


SHA256 = re.compile("[0-9a-f]{64}")
FIELDS = ("version", *Recipe.__dataclass_fields__)


def check_translation(value: Any) -> tuple[float, float]:
    """Return (right, down) in fractions of the width; ValueError for anything but two numbers."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise ValueError(f"translate is two numbers, right and down in fractions of the width, got {short(value)}")
    right, down = (check_number("translate: each of the two", x, -MAX_TRANSLATION, MAX_TRANSLATION) for x in value)
    return right, down


# ----------------------------------------------------------------------------------------------------
# Codes as JSON.


def _write(rows: Sequence[Row]) -> Any:
    entries = [_write_code(row) if isinstance(row, Code) else row for row in rows]
    return entries[0] if len(entries) == 1 else entries


def _write_code(code: Code) -> dict[str, Any]:
    numbers = code.tensor.detach().to("cpu", torch.float32).numpy().astype("<f4")
    return {
        "space": code.space,
        "shape": list(numbers.shape),
        "data": base64.b64encode(numbers.tobytes()).decode("ascii"),
    }


def _read(entry: Any, name: str) -> tuple[Row, ...]:
    entries = entry if isinstance(entry, list) else [entry]
    check_count(f"{name}: the number of codes", len(entries), MAX_IMAGES)
    return tuple(_read_code(item, name) for item in entries)


def _read_code(entry: Any, name: str) -> Row:
    if not isinstance(entry, Mapping):
        return check_seed(entry, f"{name}: a seed")
    if set(entry) != {"space", "shape", "data"}:
        raise ValueError(f"{name}: a code is a seed or an object with space, shape and data, got {short(entry)}")
    try:
        space, shape, data = check_space(entry["space"]), entry["shape"], entry["data"]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    if not isinstance(shape, list) or len(shape) != DIMS[space] or shape[0] != 1:
        raise ValueError(
            f"{name}: the shape of a code in {space} is a list of {DIMS[space]}, from 1; got {short(shape)}"
        )
    for size in shape:
        check_count(f"{name}: a size in shape", size, MAX_NUMBERS)
    count = math.prod(shape)
    check_count(f"{name}: the count of numbers", count, MAX_NUMBERS)
    characters = (count * 4 + 2) // 3 * 4  # base64 writes 3 bytes as 4 characters
    if not isinstance(data, str) or len(data) != characters:
        given = f"{len(data)} characters" if isinstance(data, str) else type(data).__name__
        raise ValueError(f"{name}: data of the shape {shape} is text of {characters} characters, got {given}")
    try:
        numbers = np.frombuffer(base64.b64decode(data, validate=True), "<f4").astype(np.float32)
        return Code(torch.from_numpy(numbers.reshape(shape)), space)
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"{name}: data is not the base64 text of finite float32 numbers ({error})") from error


def _read_model(entry: Any) -> dict[str, Any]:
    model = _check_mapping(entry, "model")
    hashes = _check_mapping(model.get("sha256") or {}, "model: sha256")
    name = model.get("name")
    if set(model) - {"name", "sha256"} or not (name is None or (isinstance(name, str) and len(name) <= 256)):
        raise ValueError(f"model has a name (text of at most 256 characters) and sha256, got {short(entry)}")
    for component, digits in hashes.items():
        if not isinstance(digits, str) or not SHA256.fullmatch(digits):
            raise ValueError(f"model: the sha256 of {short(component)} is 64 hexadecimal digits, got {short(digits)}")
    return {"name": name, "sha256": dict(hashes)}


def _check_mapping(entry: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping) or len(entry) > MAX_IMAGES or not all(isinstance(key, str) for key in entry):
        raise ValueError(f"{name} is an object of at most {MAX_IMAGES} names, got {short(entry)}")
    for key in entry:
        if not 0 < len(key) <= MAX_NAME or not key.isprintable():
            raise ValueError(f"{name}: a name is printable text of 1 to {MAX_NAME} characters, got {short(key)}")
    return entry
