"""What files of other projects hold: directions by name, or what could as well be codes.

`directions.py` makes directions of it. A code that were taken for a direction would edit without an error, so what
neither its form nor its name nor its numbers tell is refused until the user says what it is.
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

from stylefusion_hf.core.checks import short
from stylefusion_hf.core.edits import MAX_DIRECTIONS, Direction
from stylefusion_hf.core.foreign_codes import DIRECTION_NAMES, TELLING, looks_like_codes
from stylefusion_hf.core.untrusted.inert import ConversionError, LazyArray, Record


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
        rows: Any = tuple(layers) if isinstance(layers, list) else layers
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


def looks_like_network(content: Any) -> bool:
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


# --- Told from codes --------------------------------------------------------------------------------


def check_told(content: Any, file: Path, found: Mapping[str, torch.Tensor], folder: str = "") -> None:
    """Raise ConversionError if something in a file may be a direction or a code.

    Args:
        found: its arrays by name.
        folder: name of the folder that was given in place of the file.
    """
    if TELLING.search(file.stem.lower()) or TELLING.fullmatch(folder.lower()):
        return
    if isinstance(content, Mapping) and DIRECTION_NAMES & {str(key) for key in content}:
        return
    for name, vector in found.items():
        if not (TELLING.search(name.lower()) or _has_direction_norm(vector)):
            raise ConversionError(
                f"{file}: {short(name)} {tuple(vector.shape)} may be a direction or a code, and nothing tells which:"
                f" --kind directions converts it as a direction; as a code --base {file.name} takes it as it is"
            )


def _has_direction_norm(vector: torch.Tensor) -> bool:
    """Return whether a vector, or each row that is not zero, is of norm 1, as InterFaceGAN's are and no code is."""
    norms = vector.double().reshape(-1, vector.shape[-1]).norm(dim=1)
    unit = (norms - 1).abs() < 2e-3
    return bool((unit | (norms == 0)).all() or abs(float(norms.norm()) - 1) < 2e-3)


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


def read_arrays(
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
