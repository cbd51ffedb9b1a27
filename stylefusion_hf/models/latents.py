"""Latent codes in any form (seeds, pictures, files, tensors of any latent space) to one batch of style codes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from stylefusion_hf.core.checks import describe_error, short, shown
from stylefusion_hf.core.code_arguments import names_codes
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
from stylefusion_hf.imaging.modes import MODES
from stylefusion_hf.imaging.squares import Size
from stylefusion_hf.models.hooks import bring_back, execution_device, run_eagerly, unwrap
from stylefusion_hf.models.loading import StrictModelMixin

if TYPE_CHECKING:
    from stylefusion_hf.models.style_generator import StyleGenerator

CodeInput: TypeAlias = Row | Image.Image  # one picture's code before images are encoded

# --- From arguments to rows ------------------------------------------------------------------------------------------


def parse_code(value: Any, latent_type: str = "z", name: str = "a code", depth: int = 0) -> tuple[CodeInput, ...]:
    """Parse any representation of codes into rows.

    Args:
        value: a seed, a picture, a tensor or float array in the space `latent_type`, a `Code`, or a list of any of
            these, possibly nested, whose rows are concatenated. A picture is a PIL image, the path of a picture file,
            or an array of one or more pictures: uint8 (H, W), (H, W, C) or (N, H, W, C) with 1 to 4 channels, or
            floats in [0, 1] in one of the last two shapes. A float array of three dimensions is a picture in every
            space except w+, whose codes have three dimensions too. The path of a file of codes is a code as well, with
            `:NAME` where it has several: safetensors that `stylefusion invert` wrote, and .npz, .npy, .pt and .pkl of
            other tools. Integers in a one-dimensional array are seeds.
        latent_type: the space of bare tensors.
        name: name of the value in errors.
        depth: nesting depth of the value in lists.

    Returns:
        One seed, `Code` of batch 1 or image per row; at least one.

    Raises:
        ValueError: the value is not a code; the message begins with `name`.
        OSError: a file cannot be read; likewise.

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
                f"{name}: an array of integers must be a one-dimensional list of seeds or a uint8 picture"
                f" (height, width, 3); got {value.shape} of {value.dtype}"
            )
        if np.issubdtype(value.dtype, np.floating):
            kind = np.float32 if value.dtype.itemsize <= 4 else np.float64  # torch lacks other sizes and byte orders
            value = torch.from_numpy(np.array(value, dtype=kind))
        elif value.size <= MAX_CODES:  # larger arrays are refused below
            value = value.tolist()
    if isinstance(value, (torch.Tensor, np.ndarray, list, tuple, range)):
        if isinstance(value, torch.Tensor) and value.is_nested:
            count = value.size(0)
        else:
            count = len(value) if not hasattr(value, "ndim") or value.ndim else 1
        if count > MAX_CODES or depth > MAX_NESTING:
            given = f"{count} codes" if count > MAX_CODES else f"more than {MAX_NESTING} nested lists"
            raise ValueError(f"{name} can have at most {MAX_CODES} codes in lists, got {given}")
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
    """Return whether an array means one or more pictures rather than seeds or latents."""
    if array.dtype == np.uint8:
        return array.ndim > 1
    channels = array.ndim in (3, 4) and array.shape[-1] in MODES
    return array.dtype.kind == "f" and (array.ndim == 4 or (channels and latent_type != "w+"))


def _read_file(path: str | os.PathLike[str], name: str) -> tuple[CodeInput, ...]:
    """Read a picture file, or a code in a file: `FILE` or `FILE:NAME`, as `code_files.pick_code` takes it."""
    text = os.fspath(path)
    if not isinstance(text, str):
        raise ValueError(f"{name} must be a file path as a string, got {short(text)}")
    try:
        if names_codes(text):
            from stylefusion_hf.core.code_files import pick_code

            return pick_code(text).rows()
        if len(text) <= 4096 and os.path.exists(text):
            return (open_image(text, channels=4),)  # models without alpha get it composited on white
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
    groups: Mapping[str, Sequence[CodeInput]], encoder: Any, resolution: Size, img_channels: int, device: Any = None
) -> dict[str, tuple[Row, ...]]:
    """Replace every image in `groups` by its w+ code; all distinct images are encoded in one batch.

    Images have the aspect ratio of `resolution`, the side of a square or (height, width); `images.to_tensor` checks
    them and resizes them to the generator's size.

    Raises:
        ValueError: there are images but no encoder (names the first group with an image), or an image has another
            aspect ratio, is too small, animated ... (names its group).
        OSError: an image cannot be decoded completely.
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
    encoded = encode(encoder, pixels.to(device, getattr(encoder, "dtype", torch.float32)))
    codes = dict(zip(images, Code(encoded, "w+").rows(), strict=True))
    return {
        name: tuple(codes[id(row)] if isinstance(row, Image.Image) else row for row in rows)
        for name, rows in groups.items()
    }


def encode(encoder: Any, images: torch.Tensor) -> torch.Tensor:
    """Return w+ codes (B, num_ws, w_dim) for images (B, C, H, W) in [-1, 1], through the encoder's own call.

    An encoder that is not of this package has only its method `encode`, which hooks do not see.
    """
    if isinstance(unwrap(encoder), StrictModelMixin):
        return encoder(images, return_dict=False)[0]
    bring_back(encoder)
    return encoder.encode(images)


# --- From rows to style codes ----------------------------------------------------------------------------------------


def codes_to_style(
    generator: StyleGenerator,
    rows: Sequence[Row],
    class_labels: torch.Tensor | None = None,
    truncation_psi: float = 1.0,
    truncation_cutoff: int | None = None,
    device: Any = None,
) -> torch.Tensor:
    """Map N rows of any spaces to style codes (N, S), float32, with one mapping batch and one affine batch per space.

    Args:
        rows: seeds and codes of batch 1.
        class_labels: (N, label_dim), for seeds and z; None for a conditional generator means each seed's own class
            (`seed_classes`).
        truncation_psi, truncation_cutoff: apply to seeds and z only; other codes are used as given.
        device: device to compute on; None for the generator's.

    Codes stay in float32 even with half-precision weights: they are small, and all later steps depend on them.

    Raises:
        ValueError: a z without a seed needs a class and has none, or style codes are not finite.
    """
    device = execution_device(generator) if device is None else torch.device(device)
    z_dim = generator.config.z_dim
    by_space: dict[str, list[int]] = {space: [] for space in LATENT_SPACES}
    tensors: list[torch.Tensor] = []
    for index, row in enumerate(rows):
        by_space[row.space if isinstance(row, Code) else "z"].append(index)
        tensors.append(row.tensor.float() if isinstance(row, Code) else seeds_to_z([row], z_dim))
    style = torch.empty(len(rows), generator.style_dim, dtype=torch.float32, device=device)

    def gather(space: str) -> torch.Tensor:
        return torch.cat([tensors[index] for index in by_space[space]]).to(device)

    # A compiled graph for each of these small steps would cost more than it saves.
    with run_eagerly(generator):
        ws: dict[str, list[tuple[list[int], torch.Tensor]]] = {"w": [], "w+": []}
        if chosen := by_space["z"]:
            labels = own_labels(generator, [rows[i] for i in chosen]) if class_labels is None else class_labels[chosen]
            labels = None if labels is None else labels.to(device)
            psi, cutoff = truncation_psi, truncation_cutoff
            w = generator(gather("z"), labels, "z", psi, cutoff, output="w", return_dict=False)[0]
            ws["w" if w.ndim == 2 else "w+"].append((chosen, w))
        for space in ("w", "w+"):
            if by_space[space]:
                ws[space].append((by_space[space], gather(space)))
            if ws[space]:
                indices = [index for chosen, _ in ws[space] for index in chosen]
                w = torch.cat([w for _, w in ws[space]])
                style[indices] = generator(w, latent_type=space, output="s", return_dict=False)[0].to(style)
    if by_space["s"]:
        style[by_space["s"]] = gather("s")
    return check_style(style)


def own_labels(generator: StyleGenerator, rows: Sequence[Row]) -> torch.Tensor | None:
    """Return (N, label_dim), each seed's own class, or None for an unconditional model.

    ValueError for a z of a conditional model, whose class is unknown.
    """
    classes = generator.config.label_dim
    if not classes:
        return None
    seeds = [row for row in rows if isinstance(row, int)]
    if len(seeds) < len(rows):
        raise ValueError(
            f"this model is class-conditional, and a code in z does not determine its class: give class_labels, 0 to"
            f" {classes - 1} (a seed has its own class)"
        )
    return labels_to_tensor(seed_classes(seeds, classes), classes)


def check_style(style: torch.Tensor) -> torch.Tensor:
    """Return the style codes unchanged; ValueError for values that would silently give a broken picture."""
    if not bool((style.abs() <= 1e3 * LARGEST).all()):  # NaN fails the comparison
        raise ValueError(
            "the style codes of this call are not finite or far too large: give codes, truncation_psi, class_labels"
            " and edits of ordinary size, and check that the generator's weights are finite"
        )
    return style
