"""Codes: seeds, tensors of any latent space, and how they become one batch of style codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from stylefusion_hf.core.checks import short
from stylefusion_hf.imaging.images import to_tensor

if TYPE_CHECKING:
    from stylefusion_hf.models.stylegan2 import StyleGAN2Generator

LATENT_SPACES = ("z", "w", "w+", "s")
MAX_SEED = 2**32 - 1
MAX_CODES = 2**16  # of one argument; a call takes 1024 (recipes.py says so), this only bounds what is looked at
MAX_NESTING = 8  # lists in lists
LARGEST = 1e12  # of a number of a code; beyond it float32 overflows where styles are squared, and pictures are wrong


def seeds_to_z(seeds: Iterable[int], z_dim: int) -> torch.Tensor:
    """z (B, z_dim), float32 on the CPU: `numpy.random.RandomState(seed).randn(1, z_dim)` for each seed.

    NVIDIA's convention, so that seeds people know give the pictures they know; the same on every device and in every
    place of a batch. ValueError for a seed that is no integer from 0 to 2**32 - 1.
    """
    rows = []
    for seed in seeds:
        rows.append(np.random.RandomState(check_seed(seed)).randn(1, z_dim))
    if not rows:
        raise ValueError("expected at least one seed, got none")
    return torch.from_numpy(np.concatenate(rows)).float()


def check_seed(seed: Any, name: str = "a seed") -> int:
    """`seed` as an int, or a ValueError that begins with `name`."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{name} is an integer from 0 to {MAX_SEED}, got {short(seed)}")
    return int(seed)


def check_space(space: Any) -> str:
    """The name of a latent space, or a ValueError that lists them."""
    if not isinstance(space, str) or space not in LATENT_SPACES:
        raise ValueError(f"unknown latent space {short(space)}: choose from {', '.join(LATENT_SPACES)}")
    return space


@dataclass(frozen=True, eq=False)
class Code:
    """Latents together with the space they are from, so that one call can mix spaces.

    Args:
        tensor: z (B, z_dim), w (B, w_dim), w+ (B, num_ws, w_dim) or a packed style code s (B, S); a single code may
            come without its batch dimension.
        space: "z", "w", "w+" or "s".

    Raises:
        ValueError: an unknown space, not a plain floating-point tensor, the wrong number of dimensions, an empty
            batch, or numbers that are not finite or beyond 1e12, where float32 overflows.

    Example:
        >>> import torch
        >>> from stylefusion_hf import Code
        >>> code = Code(torch.zeros(3, 512), space="w")
        >>> len(code)
        3
    """

    tensor: torch.Tensor
    space: str

    def __post_init__(self) -> None:
        check_space(self.space)
        tensor, dims = self.tensor, 3 if self.space == "w+" else 2
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            given = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise ValueError(f"a code in {self.space} is a floating-point tensor, got {given}: seeds are ints")
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_meta:
            kind = "a meta tensor, which has no numbers" if tensor.is_meta else "a sparse or nested one"
            raise ValueError(f"a code in {self.space} is a plain dense tensor, got {kind}")
        if tensor.ndim == dims - 1:
            tensor = tensor[None]
            object.__setattr__(self, "tensor", tensor)
        if tensor.ndim != dims or not tensor.numel():
            expected = "(batch, num_ws, w_dim)" if dims == 3 else "(batch, numbers)"
            raise ValueError(f"a code in {self.space} has the shape {expected}, got {tuple(self.tensor.shape)}")
        if not (tensor.detach().float().abs() <= LARGEST).all():  # NaN fails the comparison
            raise ValueError(
                f"a code in {self.space} has numbers that are not finite (NaN, infinite) or beyond {LARGEST:g}"
            )

    def __len__(self) -> int:
        return self.tensor.shape[0]

    def rows(self) -> tuple[Code, ...]:
        """Its codes one by one, float32 on the CPU: what a recipe keeps."""
        single = self.tensor.detach().to("cpu", torch.float32)
        return tuple(Code(row[None], self.space) for row in single)


Row: TypeAlias = int | Code  # one picture's code: a seed, or a `Code` of batch 1
Given: TypeAlias = int | Code | Image.Image  # ... before images are encoded

# ----------------------------------------------------------------------------------------------------
# From what users hand in to rows.


def parse_code(value: Any, latent_type: str = "z", name: str = "a code", depth: int = 0) -> tuple[Given, ...]:
    """The rows of anything that stands for codes.

    Args:
        value: a seed, a PIL image, a tensor or float array of the space `latent_type`, a `Code`, or a list of any of
            these, nested or not, whose rows are put one after the other.
        latent_type: the space of bare tensors.
        name: what the value is called in errors.
        depth: how many lists it lies in.

    Returns:
        One seed, `Code` of batch 1 or image a row; at least one.

    Raises:
        ValueError: that begins with `name`.

    Example:
        >>> from stylefusion_hf.core.codes import parse_code
        >>> parse_code([1, [2, 3]])
        (1, 2, 3)
    """
    check_space(latent_type)
    if isinstance(value, np.ndarray):  # float arrays are latents, arrays of integers are seeds
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
            raise ValueError(f"{name}: {error} (bare tensors are in latent_type={latent_type!r})") from error
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


def common_batch(lengths: Mapping[str, int]) -> int:
    """The batch that arguments of these lengths broadcast to: the longest; 1 repeats.

    Raises:
        ValueError: two lengths above 1 that differ; names both.

    Example:
        >>> from stylefusion_hf.core.codes import common_batch
        >>> common_batch({"base": 1, "regions['hair']": 3})
        3
    """
    longest = max(lengths, key=lambda name: lengths[name])
    for name, length in lengths.items():
        if length not in (1, lengths[longest]):
            raise ValueError(
                f"{name} has length {length} and {longest} length {lengths[longest]}: give one length, or 1 to repeat"
            )
    return lengths[longest]


# ----------------------------------------------------------------------------------------------------
# Class labels.

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LABEL_DTYPES = (*INTEGERS, torch.float16, torch.bfloat16, torch.float32, torch.float64)
Label: TypeAlias = int | tuple[float, ...]  # a class, or a whole label vector (label_dim,) that is not one-hot


def parse_labels(class_labels: Any) -> tuple[Label, ...] | None:
    """Labels from an int, a list of ints or vectors, or a tensor: integers (B,) or vectors (B, label_dim)."""
    if class_labels is None:
        return None
    if isinstance(class_labels, torch.Tensor):
        if class_labels.layout is not torch.strided or class_labels.is_meta or class_labels.is_nested:
            raise ValueError("class_labels is a plain dense tensor, got a sparse, nested or meta one")
        if class_labels.dtype not in LABEL_DTYPES:
            raise ValueError(f"class_labels is a tensor of integers or floats, got {class_labels.dtype}")
    if hasattr(class_labels, "ndim") and class_labels.ndim and len(class_labels) > MAX_CODES:
        raise ValueError(f"class_labels has length {len(class_labels)}: give one label, or one a picture")
    if isinstance(class_labels, (torch.Tensor, np.ndarray)):
        class_labels = class_labels.tolist()
    items = class_labels if isinstance(class_labels, (list, tuple, range)) else [class_labels]
    if not items:
        raise ValueError("class_labels is an empty list: give at least one label, or None")
    if len(items) > MAX_CODES:
        raise ValueError(f"class_labels has length {len(items)}: give one label, or one a picture")
    return tuple(map(_parse_label, items))


def _parse_label(item: Any) -> Label:
    if isinstance(item, (list, tuple)):
        numbers = [x for x in item if isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < 1e30]
        if len(numbers) == len(item) > 0:
            vector = tuple(torch.tensor(numbers, dtype=torch.float32).tolist())
            one_hot = sorted(vector) == [0.0] * (len(vector) - 1) + [1.0]
            return vector.index(1.0) if one_hot else vector
    elif isinstance(item, (int, np.integer)) and not isinstance(item, bool) and item >= 0:
        return int(item)
    raise ValueError(
        f"class_labels are classes (ints from 0) or vectors (batch, label_dim) of numbers, got {short(item)}"
    )


def labels_to_tensor(labels: Sequence[Label], label_dim: int) -> torch.Tensor:
    """(B, label_dim) float32; ValueError for a class or a vector that the model does not have."""
    if not label_dim:
        raise ValueError("class_labels were given, but this model was trained without labels")
    rows = torch.zeros(len(labels), label_dim)
    for row, label in zip(rows, labels, strict=True):
        if isinstance(label, int):
            if label >= label_dim:
                raise ValueError(f"class_labels: this model has the classes 0 to {label_dim - 1}, got {short(label)}")
            row[label] = 1
        elif len(label) != label_dim:
            raise ValueError(f"class_labels: a vector of this model has {label_dim} numbers, got {len(label)}")
        else:
            row.copy_(torch.tensor(label))
    return rows


def seed_classes(seeds: Iterable[int], label_dim: int) -> tuple[int, ...]:
    """The class that each seed stands for where none is named, from 0 to `label_dim` - 1, uniform over them.

    Drawn from a stream that no z comes from, so that a seed's class says nothing of its z.

    Example:
        >>> from stylefusion_hf.core.codes import seed_classes
        >>> seed_classes([1, 2, 3], 10) == seed_classes([1, 2, 3], 10)
        True
    """
    return tuple(int(np.random.RandomState([check_seed(seed), 1]).randint(label_dim)) for seed in seeds)


def random_labels(label_dim: int, count: int, draw: torch.Generator) -> torch.Tensor | None:
    """One-hot labels (count, label_dim), float32, uniform over the classes; None of a model that has none."""
    if not label_dim:
        return None
    return F.one_hot(torch.randint(label_dim, (count,), generator=draw), label_dim).float()


# ----------------------------------------------------------------------------------------------------
# From any space to style codes.


def check_shapes(generator: StyleGAN2Generator, groups: Mapping[str, Iterable[Row]]) -> None:
    """ValueError for a code that is not of this generator's shape in its space; names the group."""
    w_dim = generator.w_avg.shape[0]
    shapes = {"z": (generator.mapping.z_dim,), "w": (w_dim,), "w+": (generator.num_ws, w_dim)}
    shapes["s"] = (generator.style_dim,)
    for name, rows in groups.items():
        for row in rows:
            if isinstance(row, Code) and tuple(row.tensor.shape[1:]) != shapes[row.space]:
                expected = ", ".join(map(str, ("batch", *shapes[row.space])))
                given = ", ".join(map(str, ("batch", *row.tensor.shape[1:])))
                raise ValueError(
                    f"{name} has the shape ({given}), but a code of this generator in {row.space} is ({expected})"
                )


def codes_to_style(
    generator: StyleGAN2Generator,
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


def own_labels(generator: StyleGAN2Generator, rows: Sequence[Row]) -> torch.Tensor | None:
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
