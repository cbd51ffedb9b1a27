"""Editing directions of other projects -> one safetensors file of named directions.

`core/edits.py` defines and writes that file. Shapes: (dim,) in z and w, (rows, dim) in w+, and (S,) or, for the
convolutions only, (S_conv,) in s. The scale is 1 except for principal components, where it is the standard deviation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights

from stylefusion_hf.conversion.direction_files import (
    Directions,
    check_told,
    looks_like_network,
    read_arrays,
    refuse_codes,
)
from stylefusion_hf.core.json_files import read_object
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.core.untrusted.safe_pickle import load
from stylefusion_hf.models.style_generator import generator_class

SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".pkl", ".safetensors")
LARGEST_LATENT = 2048  # longer vectors are taken for style codes


def list_files(path: Path) -> list[Path]:
    """Return a file, or the files of a folder that can contain directions."""
    files = sorted(f for f in path.iterdir() if f.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
    if not files:
        raise ConversionError(f"{path}: holds none of {', '.join(SUFFIXES)}")
    return files


def read_directions(
    path: Path,
    space: str | None = None,
    layers: list[int] | None = None,
    sizes: Mapping[str, Any] | None = None,
    told: bool = False,
) -> Directions:
    """Read all directions of a file, or of all files in a folder.

    Args:
        space: space of all directions; None to infer it from names and shapes.
        layers: the rows of w+ that they apply to.
        sizes: `w_dim`, `num_ws`, `conv_sizes` and `rgb_sizes` of the generator that they must fit.
        told: the user says that these are directions; else what looks like a code is refused, and what may be one
            unless `space`, `layers` or `sizes` say more about it.

    Raises:
        ConversionError: no directions, or some that do not fit.
    """
    result = Directions()
    for file in list_files(path):
        content = load(file)
        if looks_like_network(content):
            raise ConversionError(f"{file}: holds a network's weights, not directions; convert it by itself")
        if not told:
            refuse_codes(content, file)
        before = set(result.found)
        for name, array, scale, known in read_arrays(content, file, result, sizes):
            chosen = space or known or _space_of(file, array, result, sizes)
            for label, part in _split(name, array, chosen, file):
                vector = _check_vector(part, chosen, file, sizes)
                result.add(label, vector, chosen, scale, layers, file.name)
        added = {name: d.tensor for name, d in result.found.items() if name not in before}
        if not added:
            raise ConversionError(f"{file}: holds no directions that are known here")
        if not (told or space or layers or sizes):
            check_told(content, file, added, path.name if path.is_dir() else "")
    return result


def generator_sizes(folder: Path | None) -> dict[str, Any] | None:
    """Return the sizes of the generator in a converted folder, from its config."""
    if folder is None:
        return None
    path = next((p for p in (folder / "generator" / "config.json", folder / "config.json") if p.is_file()), None)
    if path is None:
        raise ConversionError(f"{folder}: for directions, --generator is a folder that holds a converted generator")
    try:
        config = read_object(path, "its text")
        with init_empty_weights():
            generator = generator_class(config.get("_class_name"), "it").from_config(config)
    except (OSError, ValueError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ConversionError(f"{path}: is not a generator's config ({problem})") from None
    sizes = {key: generator.config[key] for key in ("z_dim", "w_dim")}
    return {**sizes, "num_ws": generator.num_ws, "conv_sizes": generator.conv_sizes, "rgb_sizes": generator.rgb_sizes}


# --- Spaces and shapes ------------------------------------------------------------------------------


def _space_of(file: Path, array: np.ndarray, result: Directions, sizes: Any) -> str:
    """Infer the space from the file's name (InterFaceGAN: `..._w_boundary`, `..._boundary` for z), or the shape."""
    shape = [n for n in array.shape if n != 1]
    if len(shape) == 1 and (shape[0] > LARGEST_LATENT or (sizes and shape[0] in style_lengths(sizes))):
        return "s"
    if len(shape) == 2:
        rows = {sizes["num_ws"]} if sizes else range(4, 21, 2)
        if shape[0] in rows:
            result.notes.append(f"{file.name}: {shape[0]} rows are assumed to be one direction in w+ (else --space w)")
            return "w+"
    if re.search(r"_w(_|$)", file.stem.lower()):
        return "w"
    if file.stem.lower().endswith("_boundary"):
        result.notes.append(
            f"{file.name}: assumed to be a direction in z, as InterFaceGAN names them (else --space w)"
        )
        return "z"
    return "w"


def style_lengths(sizes: Mapping[str, Any]) -> tuple[int, int]:
    """Return the lengths of a packed style code and of its convolutions' part, (S, S_conv)."""
    return sum(sizes["conv_sizes"]) + sum(sizes["rgb_sizes"]), sum(sizes["conv_sizes"])


def _split(name: str, array: np.ndarray, space: str, file: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield one direction, or each row of an array of several."""
    shape = [n for n in array.shape if n != 1]
    dims = 2 if space == "w+" else 1
    if len(shape) == 2 and shape[0] > LARGEST_LATENT // 4 and space != "w+":
        raise ConversionError(
            f"{file}: an array of {shape[0]} x {shape[1]} is not a list of directions; StyleCLIP's fs3.npy must be"
            " multiplied by the CLIP difference of two texts first: save that product"
        )
    if array.ndim and (len(shape) == dims or not shape):
        yield name, array.reshape(shape or [1])
    elif len(shape) == dims + 1:
        for i, row in enumerate(array.reshape(shape)):
            yield f"{name}_{i:03d}", row
    else:
        raise ConversionError(
            f"{file}: {name!r} of the shape {tuple(array.shape)} is not a direction in {space}; see --space"
        )


def _check_vector(array: np.ndarray, space: str, file: Path, sizes: Any) -> torch.Tensor:
    with np.errstate(over="ignore"):  # numbers that overflow become inf, which `Directions.add` rejects
        vector = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if sizes:
        shapes: dict[str, list[tuple[int, ...]]] = {
            "z": [(sizes["z_dim"],)],
            "w": [(sizes["w_dim"],)],
            "w+": [(sizes["num_ws"], sizes["w_dim"])],
            "s": [(n,) for n in style_lengths(sizes)],
        }
        wanted = shapes[space]
        if tuple(vector.shape) not in wanted:
            raise ConversionError(
                f"{file}: a direction in {space} of this generator has the shape {' or '.join(map(str, wanted))}, this"
                f" one {tuple(vector.shape)}"
            )
    if math.prod(vector.shape) > 2**24:
        raise ConversionError(f"{file}: a direction of {math.prod(vector.shape):,} numbers")
    return vector
