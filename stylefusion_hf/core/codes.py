"""Codes: seeds, latents in any space, class labels, and the checks that they fit one batch and one generator."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

import numpy as np
import torch
import torch.nn.functional as F

from stylefusion_hf.core.checks import short
from stylefusion_hf.core.seeds import MAX_SEED

if TYPE_CHECKING:
    from stylefusion_hf.core.latent_spaces import LatentSpaces

LatentSpace: TypeAlias = Literal["z", "w", "w+", "s"]
NoiseMode: TypeAlias = Literal["const", "random", "none"]
LATENT_SPACES: tuple[str, ...] = get_args(LatentSpace)
NOISE_MODES: tuple[str, ...] = get_args(NoiseMode)
MAX_CODES = 2**16  # in one argument; a call takes 1024 (recipes.MAX_IMAGES), this only bounds the parsing
MAX_NESTING = 8  # levels of nested lists
LARGEST = 1e12  # absolute value in a code; beyond it float32 overflows when demodulation squares the styles


def seeds_to_z(seeds: Iterable[int], z_dim: int) -> torch.Tensor:
    """Return z (B, z_dim), float32 on the CPU: `numpy.random.RandomState(seed).randn(1, z_dim)` for each seed.

    This is NVIDIA's convention, so well-known seeds give their well-known pictures. A seed's z is the same on every
    device and at every position of a batch. ValueError for a seed that is not an integer from 0 to 2**32 - 1.
    """
    rows = []
    for seed in seeds:
        rows.append(np.random.RandomState(check_seed(seed)).randn(1, z_dim))
    if not rows:
        raise ValueError("expected at least one seed, got none")
    return torch.from_numpy(np.concatenate(rows)).float()


def check_seed(seed: Any, name: str = "a seed") -> int:
    """Return `seed` as an int, or raise a ValueError that begins with `name`."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= MAX_SEED:
        raise ValueError(f"{name} is an integer from 0 to {MAX_SEED}, got {short(seed)}")
    return int(seed)


def check_space(space: Any) -> str:
    """Return the name of a latent space, or raise a ValueError that lists them."""
    if not isinstance(space, str) or space not in LATENT_SPACES:
        raise ValueError(f"unknown latent space {short(space)}: choose from {', '.join(LATENT_SPACES)}")
    return space


@dataclass(frozen=True, eq=False)
class Code:
    """Latents together with the space they are from, so that one call can mix spaces.

    Args:
        tensor: z (B, z_dim), w (B, w_dim), w+ (B, num_ws, w_dim) or a packed style code s (B, S); the batch dimension
            of a single code is optional.
        space: "z", "w", "w+" or "s".

    Raises:
        ValueError: unknown space, not a dense floating-point tensor, wrong number of dimensions, empty batch, or
            numbers that are not finite or beyond 1e12, where float32 overflows.

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
        """Return its codes one by one, float32 on the CPU, as recipes keep them."""
        single = self.tensor.detach().to("cpu", torch.float32)
        return tuple(Code(row[None], self.space) for row in single)


Row: TypeAlias = int | Code  # one picture's code: a seed, or a `Code` of batch 1


def common_batch(lengths: Mapping[str, int]) -> int:
    """Return the batch size that arguments of these lengths broadcast to: the longest; 1 repeats.

    Raises:
        ValueError: two lengths above 1 differ; names both.

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
Label: TypeAlias = int | tuple[float, ...]  # a class, or a label vector (label_dim,) that is not one-hot


def parse_labels(class_labels: Any) -> tuple[Label, ...] | None:
    """Parse labels from an int, a list of ints or vectors, or a tensor: integers (B,) or vectors (B, label_dim)."""
    if class_labels is None:
        return None
    if isinstance(class_labels, torch.Tensor):
        if class_labels.layout is not torch.strided or class_labels.is_meta or class_labels.is_nested:
            raise ValueError("class_labels is a plain dense tensor, got a sparse, nested or meta one")
        if class_labels.dtype not in LABEL_DTYPES:
            raise ValueError(f"class_labels is a tensor of integers or floats, got {class_labels.dtype}")
    if hasattr(class_labels, "ndim") and class_labels.ndim and len(class_labels) > MAX_CODES:
        raise ValueError(f"class_labels has length {len(class_labels)}: give one label, or one per picture")
    if isinstance(class_labels, (torch.Tensor, np.ndarray)):
        class_labels = class_labels.tolist()
    items = class_labels if isinstance(class_labels, (list, tuple, range)) else [class_labels]
    if not items:
        raise ValueError("class_labels is an empty list: give at least one label, or None")
    if len(items) > MAX_CODES:
        raise ValueError(f"class_labels has length {len(items)}: give one label, or one per picture")
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
    """Return labels (B, label_dim), float32. ValueError for a class or vector that does not fit the model."""
    if not label_dim:
        raise ValueError("class_labels were given, but this model was trained without labels")
    rows = torch.zeros(len(labels), label_dim, dtype=torch.float32)
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
    """Draw the default class of each seed, uniform from 0 to `label_dim` - 1.

    The random stream differs from the one for z, so that a seed's class and its z are independent.

    Example:
        >>> from stylefusion_hf.core.codes import seed_classes
        >>> seed_classes([1, 2, 3], 10) == seed_classes([1, 2, 3], 10)
        True
    """
    return tuple(int(np.random.RandomState([check_seed(seed), 1]).randint(label_dim)) for seed in seeds)


def random_labels(label_dim: int, count: int, draw: torch.Generator) -> torch.Tensor | None:
    """Draw one-hot labels (count, label_dim), float32, uniform over the classes; None for an unconditional model."""
    if not label_dim:
        return None
    return F.one_hot(torch.randint(label_dim, (count,), generator=draw), label_dim).float()


def check_shapes(generator: LatentSpaces, groups: Mapping[str, Iterable[Row]]) -> None:
    """Raise ValueError, naming the group, for a code whose shape in its space does not fit this generator."""
    w_dim = generator.w_avg.shape[0]
    shapes = {"z": (generator.mapping.z_dim,), "w": (w_dim,), "w+": (generator.num_ws, w_dim)}
    shapes["s"] = (generator.style_dim,)
    for name, rows in groups.items():
        for row in rows:
            if isinstance(row, Code) and tuple(row.tensor.shape[1:]) != shapes[row.space]:
                expected = ", ".join(map(str, ("batch", *shapes[row.space])))
                given = ", ".join(map(str, ("batch", *row.tensor.shape[1:])))
                several = row.space == "w+" and row.tensor.shape[2] == w_dim
                raise ValueError(
                    f"{name} has the shape ({given}), but a code of this generator in {row.space} is ({expected})"
                    + ("; where a file holds several codes in w, name one: FILE:0" if several else "")
                )
