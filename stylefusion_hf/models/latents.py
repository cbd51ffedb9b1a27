"""From whatever stands for codes to one batch of style codes: seeds, pictures, files, tensors of any latent space."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from stylefusion_hf.core.checks import describe_error, short, shown
from stylefusion_hf.core.codes import (
    LARGEST,
    LATENT_SPACES,
    MAX_CODES,
    MAX_NESTING,
    Code,
    Row,
    check_seed,
    check_space,
    labels_to_tensor,
    seed_classes,
    seeds_to_z,
)
from stylefusion_hf.imaging.images import array_images, open_image, to_tensor

if TYPE_CHECKING:
    from stylefusion_hf.models.style_generator import StyleGenerator

Given: TypeAlias = Row | Image.Image  # one picture's code before images are encoded

# --- From arguments to rows ------------------------------------------------------------------------------------------


def parse_code(value: Any, latent_type: str = "z", name: str = "a code", depth: int = 0) -> tuple[Given, ...]:
    """The rows of anything that stands for codes.

    Args:
        value: a seed, a picture, a tensor or float array of the space `latent_type`, a `Code`, or a list of any of
            these, nested or not, whose rows are put one after the other. A picture is a PIL image, a picture file's
            path, or an array of one or several: uint8 (H, W), (H, W, C) or (N, H, W, C) with 1, 3 or 4 channels, or
            floating-point numbers from 0 to 1 in one of the last two shapes. (H, W, C) is a picture in any space but
            w+, whose codes have as many dimensions. `CODES.safetensors` or `CODES.safetensors:NAME`, as text, is a
            code from a file. Integers in an array of one dimension are seeds.
        latent_type: the space of bare tensors.
        name: what the value is called in errors.
        depth: how many lists it lies in.

    Returns:
        One seed, `Code` of batch 1 or image a row; at least one.

    Raises:
        ValueError: that begins with `name`. OSError: the same, of a file that cannot be read.

    Example:
        >>> from stylefusion_hf.models.latents import parse_code
        >>> parse_code([1, [2, 3]])
        (1, 2, 3)
    """
    check_space(latent_type)
    if isinstance(value, (str, os.PathLike)):
        return _read_file(value, name)
    if isinstance(value, np.ndarray) and _holds_pictures(value, latent_type):
        return tuple(array_images(value, name))
    if isinstance(value, np.ndarray):  # float arrays are latents, arrays of integers are seeds
        if value.ndim > 1 and value.dtype.kind in "iub":
            raise ValueError(
                f"{name}: an array of integers is a list of seeds, of one dimension, or a picture of uint8"
                f" (height, width, 3); got {value.shape} of {value.dtype}"
            )
        if np.issubdtype(value.dtype, np.floating):
            kind = np.float32 if value.dtype.itemsize <= 4 else np.float64  # torch has no other sizes and byte orders
            value = torch.from_numpy(np.array(value, dtype=kind))
        elif value.size <= MAX_CODES:  # else it is refused below
            value = value.tolist()
    if isinstance(value, (torch.Tensor, np.ndarray, list, tuple, range)):
        if isinstance(value, torch.Tensor) and value.is_nested:
            count = value.size(0)
        else:
            count = len(value) if not hasattr(value, "ndim") or value.ndim else 1
        if count > MAX_CODES or depth > MAX_NESTING:
            given = f"{count} codes" if count > MAX_CODES else f"more than {MAX_NESTING} lists in each other"
            raise ValueError(f"{name} is at most {MAX_CODES} codes in lists, got {given}")
    if isinstance(value, torch.Tensor):
        try:
            value = Code(value, latent_type)
        except ValueError as error:
            raise ValueError(
                f"{name}: {error} (bare tensors are in latent_type={latent_type!r}; a picture is a PIL image, a file,"
                " or an array (height, width, 3) of uint8, or of numbers from 0 to 1)"
            ) from error
    if isinstance(value, Code):
        return value.rows()
    if isinstance(value, Image.Image):
        return (value,)
    if isinstance(value, (list, tuple, range)):
        if not value:
            raise ValueError(f"{name} is an empty list: give at least one code")
        return tuple(row for item in value for row in parse_code(item, latent_type, name, depth + 1))
    if isinstance(value, (int, np.integer)):
        return (check_seed(value, f"{name}: a seed"),)
    raise ValueError(
        f"{name} is a seed (int), a PIL image, a tensor, a Code, or a list of these; got {type(value).__name__}"
    )


def _holds_pictures(array: np.ndarray, latent_type: str) -> bool:
    """Whether an array is meant as a picture or several rather than as seeds or latents."""
    if array.dtype == np.uint8:
        return array.ndim > 1
    channels = array.ndim in (3, 4) and array.shape[-1] in (1, 3, 4)
    return array.dtype.kind == "f" and (array.ndim == 4 or (channels and latent_type != "w+"))


def _read_file(path: str | os.PathLike[str], name: str) -> tuple[Given, ...]:
    """The picture of a file, or the code of `CODES.safetensors` or `CODES.safetensors:NAME`."""
    text = os.fspath(path)
    if not isinstance(text, str):
        raise ValueError(f"{name} is a file's path as text, got {short(text)}")
    try:
        if ".safetensors" in text[-4096:].lower():
            from stylefusion_hf.core.code_files import pick_code

            return pick_code(text).rows()
        if len(text) <= 4096 and os.path.exists(text):
            return (open_image(text, channels=4),)  # alpha is put on white where the model has none
    except OSError as error:
        raise type(error)(f"{name}: {describe_error(error)}") from error
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    seed = text.isascii() and text.isdecimal() and len(text) < 11
    hint = f": for a seed give the number {text}" if seed else ", which is not a file here"
    raise ValueError(
        f"{name} is a seed (int), a PIL image, a picture file, a tensor, a Code, or a list of these; got str"
        f" '{shown(text)}'{hint}"
    )


def encode_images(
    groups: Mapping[str, Sequence[Given]], encoder: Any, resolution: int, img_channels: int, device: Any = None
) -> dict[str, tuple[Row, ...]]:
    """`groups` with every image replaced by its w+ code; all different images pass the encoder as one batch.

    Images are square; they are checked and brought to the generator's size by `images.to_tensor`.

    Raises:
        ValueError: there are images and no encoder; names the first group that has one. Or an image is not square, too
            small, animated ...; names its group.
        OSError: an image that cannot be decoded to its end.
    """
    images = {id(row): (name, row) for name, rows in groups.items() for row in rows if isinstance(row, Image.Image)}
    if not images:
        return {name: tuple(rows) for name, rows in groups.items()}  # type: ignore[arg-type]  # no image among them
    if encoder is None:
        name = next(iter(images.values()))[0]
        raise ValueError(
            f"{name} is an image, and this pipeline has no encoder to turn images into codes: give a seed or a Code,"
            " or load the pipeline with encoder=..."
        )
    names, pictures = zip(*images.values(), strict=True)
    pixels = to_tensor(pictures, resolution, img_channels, names=names)
    encoded = encoder.encode(pixels.to(device, getattr(encoder, "dtype", torch.float32)))
    codes = dict(zip(images, Code(encoded, "w+").rows(), strict=True))
    return {
        name: tuple(codes[id(row)] if isinstance(row, Image.Image) else row for row in rows)
        for name, rows in groups.items()
    }


# --- From rows to style codes ----------------------------------------------------------------------------------------


def codes_to_style(
    generator: StyleGenerator,
    rows: Sequence[Row],
    class_labels: torch.Tensor | None = None,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
    device: Any = None,
) -> torch.Tensor:
    """Style codes (N, S), float32, of N rows of any spaces: one mapping batch, one affine batch for each of w and w+.

    Args:
        rows: seeds and codes of batch 1.
        class_labels: (N, label_dim), for seeds and z; None of a conditional generator: each seed's own class
            (`seed_classes`).
        truncation_psi, truncation_cutoff: for seeds and z only; other codes enter as they are.
        device: where to compute; None for the generator's.

    Codes stay in float32 under half-precision weights: they are few numbers, and everything downstream hangs on them.

    Raises:
        ValueError: a z, which is nobody's seed, without a class; or style codes that are not finite.
    """
    device = generator.device if device is None else torch.device(device)
    z_dim = generator.mapping.z_dim
    by_space: dict[str, list[int]] = {space: [] for space in LATENT_SPACES}
    tensors: list[torch.Tensor] = []
    for index, row in enumerate(rows):
        by_space[row.space if isinstance(row, Code) else "z"].append(index)
        tensors.append(row.tensor.float() if isinstance(row, Code) else seeds_to_z([row], z_dim))
    style = torch.empty(len(rows), generator.style_dim, device=device)

    def gather(space: str) -> torch.Tensor:
        return torch.cat([tensors[index] for index in by_space[space]]).to(device)

    ws: dict[str, list[tuple[list[int], torch.Tensor]]] = {"w": [], "w+": []}
    if chosen := by_space["z"]:
        labels = own_labels(generator, [rows[i] for i in chosen]) if class_labels is None else class_labels[chosen]
        w = generator.mapping(gather("z"), None if labels is None else labels.to(device))
        if truncation_psi != 1.0:
            w = generator.truncate(w, truncation_psi, truncation_cutoff)
        ws["w" if w.ndim == 2 else "w+"].append((chosen, w))
    for space in ("w", "w+"):
        if by_space[space]:
            ws[space].append((by_space[space], gather(space)))
        if ws[space]:
            indices = [index for chosen, _ in ws[space] for index in chosen]
            style[indices] = generator.to_style(torch.cat([w for _, w in ws[space]])).to(style)
    if by_space["s"]:
        style[by_space["s"]] = gather("s")
    return check_style(style)


def own_labels(generator: StyleGenerator, rows: Sequence[Row]) -> torch.Tensor | None:
    """(N, label_dim), the own class of each of N seeds; None of a model without classes.

    ValueError for a z of a conditional model, since nothing says its class.
    """
    classes = generator.config.label_dim
    if not classes:
        return None
    seeds = [row for row in rows if isinstance(row, int)]
    if len(seeds) < len(rows):
        raise ValueError(
            f"this model is class-conditional, and a code in z says nothing of its class: give class_labels, 0 to"
            f" {classes - 1} (a seed has a class of its own)"
        )
    return labels_to_tensor(seed_classes(seeds, classes), classes)


def check_style(style: torch.Tensor) -> torch.Tensor:
    """Style codes as they are; ValueError for numbers from which a picture would come out wrong without a word."""
    if not bool((style.abs() <= 1e3 * LARGEST).all()):  # NaN fails the comparison
        raise ValueError(
            "the style codes of this call are not finite or far too large: give codes, truncation_psi, class_labels"
            " and edits of ordinary size, and check that the generator's weights are finite"
        )
    return style
