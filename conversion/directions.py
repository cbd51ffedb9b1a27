"""Editing directions of other projects -> one safetensors file of named directions.

`core/edits.py` defines and writes that file. Shapes: (dim,) in z and w, (rows, dim) in w+, and (S,) or, for the
convolutions only, (S_conv,) in s. The scale is 1 except for principal components, where it is the standard deviation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import init_empty_weights

from stylefusion_hf.core.edits import MAX_DIRECTIONS, Direction
from stylefusion_hf.core.foreign_codes import looks_like_codes
from stylefusion_hf.core.json_files import read_object
from stylefusion_hf.core.untrusted.inert import ConversionError, LazyArray, Record
from stylefusion_hf.core.untrusted.safe_pickle import load
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator

SUFFIXES = (".npy", ".npz", ".pt", ".pth", ".pkl", ".safetensors")
LARGEST_LATENT = 2048  # longer vectors are taken for style codes


@dataclass
class Directions:
    """The contents of a file or folder: directions by name, names of other arrays, and notes for the user."""

    found: dict[str, Direction] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self, name: str, vector: torch.Tensor, space: str, scale: float, layers: list[int] | None, source: str
    ) -> None:
        name = re.sub(r"[^a-z0-9_+-]+", "_", name.lower()).strip("_")[:100] or "direction"
        if name in self.found:
            raise ConversionError(f"{source}: there are two directions {name!r}; rename a file or a key")
        if len(self.found) >= MAX_DIRECTIONS:
            raise ConversionError(f"{source}: holds more than {MAX_DIRECTIONS:,} directions")
        if not torch.isfinite(vector).all() or not math.isfinite(scale) or not vector.any():
            raise ConversionError(f"{source}: the direction {name!r} is zero, or not finite")
        rows = None if layers is None else tuple(layers)
        try:
            self.found[name] = Direction(name, space, vector, scale, rows, {"source": source})
        except ValueError as error:
            raise ConversionError(f"{source}: {error}") from None


def looks_like_directions(content: Any) -> bool:
    """Return whether a file contains arrays of a few dimensions rather than a network's weights."""
    if _array(content) is not None or isinstance(content, (list, tuple)):
        return isinstance(content, (list, tuple)) is False or _layers(content) is not None
    if not isinstance(content, Mapping) or not content:
        return False
    names = [str(key) for key in content]
    if {"lat_comp", "comp", "eigvec"} & set(names):
        return True
    if any(name.endswith((".weight", ".bias")) for name in names):
        return False
    values = [_array(value) for value in content.values()]
    return len(values) <= MAX_DIRECTIONS and all(value is not None and 1 <= value.ndim <= 3 for value in values)


def _looks_like_network(content: Any) -> bool:
    """Return whether a dictionary holds weights: it has names of layers, or dictionaries of tensors."""
    entries = content.items() if isinstance(content, Mapping) else ()
    return any(str(key).endswith((".weight", ".bias")) or _holds_tensors(value) for key, value in entries)


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(x, (torch.Tensor, np.ndarray, LazyArray)) for x in value.values()
    )


def refuse_codes(content: Any, file: Path) -> None:
    """Raise ConversionError for a file of codes, such as NVIDIA's projected_w.npz: it is not a direction."""
    if looks_like_codes(content, file.stem):
        raise ConversionError(
            f"{file}: holds codes, which are used as they are: --base {file.name} or --region NAME={file.name}; if"
            " these are directions, --kind directions converts them"
        )


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
    with_codes: bool = False,
) -> Directions:
    """Read all directions of a file, or of all files in a folder.

    Args:
        space: space of all directions; None to infer it from names and shapes.
        layers: the rows of w+ that they apply to.
        sizes: `w_dim`, `num_ws`, `conv_sizes` and `rgb_sizes` of the generator that they must fit.
        with_codes: also take what looks like a code.

    Raises:
        ConversionError: no directions, or some that do not fit.
    """
    result = Directions()
    for file in list_files(path):
        content = load(file)
        if _looks_like_network(content):
            raise ConversionError(f"{file}: holds a network's weights, not directions; convert it by itself")
        if not with_codes:
            refuse_codes(content, file)
        before = len(result.found)
        for name, array, scale, known in _unpack(content, file, result, sizes):
            chosen = space or known or _space_of(file, array, result, sizes)
            for label, part in _split(name, array, chosen, file):
                vector = _check_vector(part, chosen, file, sizes)
                result.add(label, vector, chosen, scale, layers, file.name)
        if len(result.found) == before:
            raise ConversionError(f"{file}: holds no directions that are known here")
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
            generator = StyleGAN2Generator.from_config(config)
    except (OSError, ValueError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise ConversionError(f"{path}: is not a generator's config ({problem})") from None
    sizes = {key: generator.config[key] for key in ("z_dim", "w_dim")}
    return {**sizes, "num_ws": generator.num_ws, "conv_sizes": generator.conv_sizes, "rgb_sizes": generator.rgb_sizes}


# --- Contents of a file -----------------------------------------------------------------------------


def _array(value: Any) -> np.ndarray | None:
    if isinstance(value, torch.Tensor):
        value = value.detach().float().numpy() if value.is_floating_point() else value.numpy()
    if isinstance(value, (np.ndarray, LazyArray)):
        array = np.asarray(value)
        return array if array.dtype.kind in "fiu" else None
    return None


def _layers(content: Any) -> list[np.ndarray] | None:
    """Return a style code as a list of vectors, one per layer; None if `content` is not such a list."""
    arrays = [_array(x) for x in content] if 2 <= len(content) <= 64 else []
    flat = [a.reshape(-1) for a in arrays if a is not None and a.size == max(a.shape, default=0)]
    return flat if flat and len(flat) == len(content) else None


def _unpack(
    content: Any, file: Path, result: Directions, sizes: Any
) -> Iterator[tuple[str, np.ndarray, float, str | None]]:
    """Yield (name, array, scale, space or None if ambiguous) of every direction in a file."""
    stem = re.sub(r"^(pggan|stylegan\d?)_[a-z0-9]+_|(_[wz])?_boundary$", "", file.stem.lower())
    content = content.entries() if isinstance(content, Record) else content
    if (array := _array(content)) is not None:
        yield stem, array, 1.0, None
    elif isinstance(content, (list, tuple)):
        if (vectors := _layers(content)) is None:
            raise ConversionError(f"{file}: is a list, but not of one style vector per layer")
        yield stem, _pack(vectors, file, sizes), 1.0, "s"
    elif isinstance(content, Mapping):
        keys = {str(key): value for key, value in content.items()}
        component = next((key for key in ("lat_comp", "comp") if key in keys), None)
        if component is not None:
            yield from _components(keys, component, file, result)
        elif "eigvec" in keys:
            yield from _factors(keys, file, result)
        elif keys and all(re.fullmatch(r"(conv|rgb)\d{1,3}", key) for key in keys):
            ordered = sorted(keys, key=lambda k: (k[0], int(re.sub(r"\D", "", k))))
            arrays = [array.reshape(-1) for key in ordered if (array := _array(keys[key])) is not None]
            if len(arrays) != len(keys):
                raise ConversionError(f"{file}: some of its {len(keys)} style vectors are not arrays of numbers")
            yield stem, np.concatenate(arrays), 1.0, "s"
        else:
            for key, value in keys.items():
                if (array := _array(value)) is not None and 1 <= array.ndim <= 3:
                    yield (stem if key in ("boundary", "direction") else key), array, 1.0, None
                elif isinstance(value, (list, tuple)) and (vectors := _layers(value)) is not None:
                    yield key, _pack(vectors, file, sizes), 1.0, "s"
                else:
                    result.unused.append(f"{file.name}/{key[:80]}")


def _components(keys: Mapping[str, Any], component: str, file: Path, result: Directions) -> Iterator[tuple]:
    """Yield GANSpace's principal components of w with their standard deviations as scales."""
    array = _array(keys[component])
    deviation = _array(keys.get("lat_stdev" if component == "lat_comp" else "std"))
    if array is None or array.ndim < 2 or not array.size or array.size != len(array) * array.shape[-1]:
        raise ConversionError(f"{file}: its {component!r} is not a list of components")
    scales = np.ones(len(array)) if deviation is None or deviation.size != len(array) else deviation.reshape(-1)
    for i, row in enumerate(array.reshape(len(array), -1)):
        yield f"pc{i:03d}", row, float(scales[i]), None
    result.unused += [f"{file.name}/{key}" for key in keys if key not in (component, "lat_stdev", "std")]
    result.notes.append("principal components are assumed to be in w, as with GANSpace's --use_w (else --space z)")


def _factors(keys: Mapping[str, Any], file: Path, result: Directions) -> Iterator[tuple]:
    """Yield the columns of rosinality's factor.pt (closed-form factorization), as its apply_factor.py takes them."""
    array = _array(keys["eigvec"])
    if array is None or array.ndim != 2:
        raise ConversionError(f"{file}: its 'eigvec' is not a matrix of directions")
    for i in range(array.shape[1]):
        yield f"factor{i:03d}", array[:, i], 1.0, "w"
    result.unused += [f"{file.name}/{key}" for key in keys if key not in ("eigvec", "ckpt")]
    result.notes.append("the columns of eigvec are directions in w, those with the largest effect first")


def _pack(vectors: list[np.ndarray], file: Path, sizes: Any) -> np.ndarray:
    """Pack one vector per layer into a style code: all convolutions, then all toRGB layers.

    Other projects list the layers in network order (conv, rgb, then conv, conv, rgb for each further block), or only
    the convolutions.
    """
    n, widths = len(vectors), [len(v) for v in vectors]
    rgb = range(1, n, 3)
    orders = []
    if n % 3 == 2 and all(widths[i - 1] == widths[i] == (widths[i + 1 : i + 2] or [widths[i]])[0] for i in rgb):
        orders.append([i for i in range(n) if i not in rgb] + list(rgb))
    if n % 2 == 1:
        orders.append(list(range(n)))
    if sizes:
        expected = [*sizes["conv_sizes"], *sizes["rgb_sizes"]]
        orders = [order for order in orders if [widths[i] for i in order] in (expected, list(sizes["conv_sizes"]))]
    if len(orders) != 1:
        problem = "may or may not include toRGB layers: give --generator" if orders else "match no known layer order"
        raise ConversionError(f"{file}: its {n} style vectors (of lengths {widths}) {problem}")
    return np.concatenate([vectors[i] for i in orders[0]])


# --- Spaces and shapes ------------------------------------------------------------------------------


def _space_of(file: Path, array: np.ndarray, result: Directions, sizes: Any) -> str:
    """Infer the space from the file's name (InterFaceGAN: `..._w_boundary`, `..._boundary` for z), or the shape."""
    shape = [n for n in array.shape if n != 1]
    if len(shape) == 1 and (shape[0] > LARGEST_LATENT or (sizes and shape[0] in style_lengths(sizes))):
        return "s"
    if len(shape) == 2:
        rows = {sizes["num_ws"]} if sizes else range(4, 21, 2)
        if shape[0] in rows:
            result.notes.append(
                f"{file.name}: {shape[0]} rows are assumed to be one direction in w+ (else --space"
                " w; a code needs no conversion: --base takes the file)"
            )
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
