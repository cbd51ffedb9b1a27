"""Directions in latent space, and edits: sums of directions with strengths that change a code.

    older = load_directions("directions.safetensors")["age"]
    edit = older(2.0) + smile(-1.0)                 # a direction called with a strength is an edit; edits add up
    code = edit(Code(w, "w"), generator)            # an edit is a function, code -> code
    pipe(base=1, edits={"hair": edit})              # in a pipeline: the code of that region only

A strength of 1 adds scale * tensor. Directions found by `stylefusion_hf.editing` are scaled to one standard deviation
of the generator's codes along them; directions of other projects keep the scale of their files.

In StyleGAN2 the map from w to s is affine, s = A w + b, so adding d to w adds A d to s, whatever the code. Hence an
edit in w applies to codes of any space but z, edits in different spaces add up, and a pipeline only needs to keep
their sum. z is the exception: its mapping is not linear, so directions in z apply to codes in z only.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from stylefusion_hf.core.checks import short
from stylefusion_hf.core.codes import Code, check_shapes, check_space, common_batch
from stylefusion_hf.core.tensor_files import read_tensors, write_tensors

if TYPE_CHECKING:
    from stylefusion_hf.core.latent_spaces import LatentSpaces

FORMAT, VERSION = "stylefusion-directions", "1"
MAX_DIRECTIONS = 10_000  # in one file
MAX_STRENGTH = 1e6
MAX_NESTING = 8  # levels of nested lists of edits
SPACES = ("w", "w+", "s")  # each contains the ones before it


@dataclass(frozen=True, eq=False)
class Direction:
    """One way to change a code; call it with a strength to get an `Edit`.

    Args:
        name: text of at most 100 characters without ":", "=" and spaces, which separate it on the command line.
        space: "w", "w+" or "s"; "z" for codes in z only.
        tensor: (dim,) in z and w, (num_ws, w_dim) in w+, (S,) in s, or only the convolutions' part of s (S_conv,).
        scale: a strength of 1 adds scale * tensor.
        layers: the rows of w+ it applies to (in s: the entries driven by these rows); None for all. Not in z.
        provenance: how it was made, JSON-able; `source` is the file of a converted direction.

    Raises:
        ValueError: names the direction and what is wrong with it.

    Example:
        >>> import torch
        >>> from stylefusion_hf import Direction
        >>> edit = Direction("older", "w", torch.ones(512), scale=0.5)(2.0)
        >>> edit.parts[0][1]
        (2.0,)
    """

    name: str
    space: str
    tensor: Tensor
    scale: float = 1.0
    layers: tuple[int, ...] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        name = self.name
        if not isinstance(name, str) or not 0 < len(name) <= 100 or any(c in ":=" or c.isspace() for c in name):
            raise ValueError(
                f"a direction's name is text of 1 to 100 characters without : = and spaces: {short(name)}"
            )
        check_space(self.space)
        tensor, dims = self.tensor, 2 if self.space == "w+" else 1
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.ndim != dims:
            given = tuple(tensor.shape) if isinstance(tensor, Tensor) else type(tensor).__name__
            expected = "(num_ws, w_dim)" if dims == 2 else "(numbers,)"
            raise ValueError(f"direction {name!r}: a direction in {self.space} is floats {expected}, got {given}")
        tensor = tensor.detach().to("cpu", torch.float32)
        if not tensor.isfinite().all() or not tensor.any():
            raise ValueError(f"direction {name!r} is zero, or has numbers that are not finite")
        if isinstance(self.scale, bool) or not isinstance(self.scale, (int, float)) or not math.isfinite(self.scale):
            raise ValueError(f"direction {name!r}: its scale is a finite number, got {short(self.scale)}")
        object.__setattr__(self, "tensor", tensor)
        if self.layers is not None:
            rows = self.layers
            most = len(tensor) if self.space == "w+" else 1024
            sound = isinstance(rows, Sequence) and all(type(row) is int and 0 <= row < most for row in rows)
            if not sound or not rows or self.space == "z":
                raise ValueError(f"direction {name!r}: its layers are rows of w+, in w, w+ or s; got {short(rows)}")
            object.__setattr__(self, "layers", tuple(rows))

    def __call__(self, strength: float | Sequence[float] = 1.0) -> Edit:
        """Return the edit of this strength; a list has one strength per picture."""
        return Edit(((self, _strengths(strength, self.name)),))

    def step(self, generator: LatentSpaces) -> Code:
        """Return what a strength of 1 adds to a code of this generator: a `Code` of batch 1 in the smallest space.

        ValueError if the direction's shape or its rows do not fit this generator.
        """
        tensor, space, rows = self.scale * self.tensor, self.space, generator.num_ws
        convolutions = sum(generator.conv_sizes)
        if space == "s" and len(tensor) == convolutions:  # StyleSpace and StyleCLIP do not edit toRGB
            tensor = torch.cat([tensor, tensor.new_zeros(generator.style_dim - convolutions)])
        check_shapes(generator, {f"direction {self.name!r}": [Code(tensor, space)]})
        if self.layers is not None:
            if max(self.layers) >= rows:
                raise ValueError(
                    f"direction {self.name!r} is for row {max(self.layers)} of w+: there are 0 to {rows - 1}"
                )
            if space == "s":
                tensor = tensor * torch.isin(generator.style_rows.cpu(), torch.tensor(self.layers))
            else:
                chosen = tensor.new_zeros(rows, 1).index_fill_(0, torch.tensor(self.layers), 1)
                tensor, space = tensor * chosen, "w+"
        return Code(tensor, space)


@dataclass(frozen=True, eq=False)
class Edit:
    """A sum of directions, each with its strengths: a function code -> code.

    Args:
        parts: (direction, strengths) pairs; one strength, or one per picture. A strength is a number up to 1e6.

    Edits add up: `a(2.0) + b(-1.0)` is one edit, in any order.
    """

    parts: tuple[tuple[Direction, tuple[float, ...]], ...]

    def __add__(self, other: Edit) -> Edit:
        return Edit(self.parts + other.parts) if isinstance(other, Edit) else NotImplemented

    def __bool__(self) -> bool:
        """Return whether any strength is nonzero."""
        return any(any(strengths) for _, strengths in self.parts)

    def displacement(self, generator: LatentSpaces) -> Code:
        """Return the sum that the edit adds, (1 or B, ...), in the smallest space that holds all its directions.

        ValueError for directions that do not fit the generator, lists of strengths of different lengths, or a mix of
        z with other spaces.
        """
        names = (f"the strengths of {d.name!r} (part {k + 1})" for k, (d, _) in enumerate(self.parts))
        lengths = [len(strengths) for _, strengths in self.parts]
        batch = common_batch(dict(zip(names, lengths, strict=True))) if lengths else 1
        total: Code | None = None
        for direction, strengths in self.parts:
            step = direction.step(generator)
            factors = torch.tensor(strengths, dtype=torch.float32).view(-1, *(1 for _ in step.tensor.shape[1:]))
            scaled = Code((factors * step.tensor).expand(batch, *step.tensor.shape[1:]), step.space)
            total = scaled if total is None else _sum(generator, total, scaled)
        if total is None:
            raise ValueError("an edit has at least one direction")
        return total

    def __call__(self, code: Code, generator: LatentSpaces) -> Code:
        """Apply the edit to a code.

        Args:
            code: in w, w+ or s; in z for directions in z.
            generator: the generator that the code belongs to.

        Returns:
            A `Code`, float32, with the longer batch of the two, in the smallest space that holds the code and the
            edit; `code` itself if all strengths are 0.

        Raises:
            ValueError: shapes or batches that do not match, or a code in z with directions of another space.
        """
        if not self:
            return code
        offset = self.displacement(generator)
        check_shapes(generator, {"the code": [code]})
        common_batch({"the code": len(code), "the edit": len(offset)})
        device = code.tensor.device
        code = Code(code.tensor.float(), code.space)
        if code.space != "z" and offset.space == "s":  # the code, unlike the offset, includes the affine layers' bias
            style = code.tensor if code.space == "s" else generator.to_style(_to_device_of(generator, code.tensor))
            return Code(style.float().to(device) + offset.tensor.to(device), "s")
        return _sum(generator, code, Code(offset.tensor.to(device), offset.space))

    @classmethod
    def of(cls, value: Any, name: str = "an edit", depth: int = 0) -> Edit:
        """Make an edit from a direction (strength 1), an edit, a (direction, strength) pair, or a list of these.

        ValueError, which begins with `name`, for anything else.
        """
        if isinstance(value, Edit):
            return value
        if isinstance(value, Direction):
            return value()
        if isinstance(value, (list, tuple)) and value and depth < MAX_NESTING:
            if len(value) == 2 and isinstance(value[0], Direction) and not _holds_directions(value[1]):
                return cls(((value[0], _strengths(value[1], value[0].name, f"{name}: ")),))
            return cls(tuple(part for item in value for part in cls.of(item, name, depth + 1).parts))
        raise ValueError(
            f"{name} is a Direction, an Edit (a direction called with a strength), a (Direction, strength) pair, or a"
            f" list of these; got {_kind(value)}"
        )


def _holds_directions(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (list, tuple)) and depth < MAX_NESTING:
        return any(_holds_directions(item, depth + 1) for item in value)
    return isinstance(value, (Direction, Edit))


def _kind(value: Any) -> str:
    """Describe the type of a value in an error."""
    empty = isinstance(value, (list, tuple)) and not value
    return f"{'an empty ' if empty else ''}{type(value).__name__}"


def _strengths(value: Any, name: str, where: str = "") -> tuple[float, ...]:
    values: Any = value
    if hasattr(value, "tolist"):  # tensors, arrays and scalars
        try:
            values = value.tolist()
        except RuntimeError:  # meta, sparse and other tensors that cannot be listed
            values = [value]
    values = list(values) if isinstance(values, (list, tuple, range)) else [values]
    for number in values:
        sound = isinstance(number, (int, float)) and not isinstance(number, bool)
        if not sound or not abs(number) <= MAX_STRENGTH:  # NaN fails the comparison
            raise ValueError(
                f"{where}the strength of {name!r} is a number up to {MAX_STRENGTH:g}, got {short(number)}"
            )
    if not values:
        raise ValueError(f"{where}the strength of {name!r} is an empty list: give one number, or one per picture")
    return tuple(map(float, values))


def _sum(generator: LatentSpaces, a: Code, b: Code) -> Code:
    """Add two displacements, or a code and a displacement of which neither is in s, in the larger of their spaces."""
    if a.space != b.space and "z" in (a.space, b.space):
        other = b.space if a.space == "z" else a.space
        raise ValueError(
            f"a code or direction in z cannot be added to one in {other}: map the code to w first, with"
            " generator.mapping, or add directions in z to codes in z"
        )
    space = a.space if a.space == b.space else max(a.space, b.space, key=SPACES.index)
    return Code(_lift(generator, a, space) + _lift(generator, b, space), space)


def _lift(generator: LatentSpaces, code: Code, space: str) -> Tensor:
    """Convert a displacement to a larger space; in s without the affine layers' bias."""
    if code.space == space:
        return code.tensor
    if space == "w+":
        return code.tensor[:, None].expand(-1, generator.num_ws, -1)
    return style_offsets(generator, [code], code.tensor.device)


@torch.no_grad()
def style_offsets(generator: LatentSpaces, displacements: Iterable[Code], device: Any) -> Tensor:
    """Convert displacements in w, w+ or s to offsets of style codes: (N, S), float32 on `device`, concatenated."""
    offsets = []
    for code in displacements:
        tensor = code.tensor.to(device, torch.float32)
        if code.space != "s":
            tensor = _to_device_of(generator, tensor)
            bias = generator.affine_bias
            if bias.is_meta:  # offloaded
                bias = generator.to_style(torch.zeros_like(generator.w_avg, device=tensor.device)[None])[0]
            tensor = generator.to_style(tensor).to(device) - bias.to(device, torch.float32)
        offsets.append(tensor)
    return torch.cat(offsets)


def _to_device_of(generator: LatentSpaces, tensor: Tensor) -> Tensor:
    """Move a tensor to a generator's device; one that is offloaded to meta fetches its inputs itself."""
    return tensor if torch.device(generator.device).type == "meta" else tensor.to(generator.device)


# ----------------------------------------------------------------------------------------------------
# Files, as `stylefusion convert` writes them (conversion/directions.py, docs/reference/convert.md).


def save_directions(path: str | os.PathLike[str], directions: Iterable[Direction]) -> None:
    """Write directions to a safetensors file that `load_directions` reads.

    ValueError for no directions, more than 10,000, or two with the same name.
    """
    found = list(directions)
    table = {}
    for direction in found:
        about = dict(direction.provenance)
        entry = {"space": direction.space, "layers": direction.layers, "scale": direction.scale}
        entry["source"] = str(about.pop("source", ""))
        table[direction.name] = entry | ({"provenance": about} if about else {})
    if len(table) != len(found) or not 0 < len(found) <= MAX_DIRECTIONS:
        raise ValueError(f"a file holds 1 to {MAX_DIRECTIONS} directions of different names, got {len(found)}")
    metadata = {"format": FORMAT, "version": VERSION, "directions": json.dumps(table, allow_nan=False)}
    write_tensors(path, {d.name: d.tensor.contiguous() for d in found}, metadata)


def load_directions(path: str | os.PathLike[str]) -> dict[str, Direction]:
    """Read directions by name, in the order in which they were written.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a direction file, or a damaged one; names the file and what is wrong. Nothing is unpickled.
    """
    path, hint = os.fspath(path), "`stylefusion convert` makes one of .npy, .npz, .pt and .pkl"
    tensors, table = read_tensors(path, FORMAT, VERSION, "directions", "directions", hint)
    if len(table) > MAX_DIRECTIONS:
        raise ValueError(f"{path}: a file holds at most {MAX_DIRECTIONS} directions, this one {len(table)}")
    found = {}
    for name, entry in table.items():
        if not isinstance(entry, dict) or not isinstance(entry.get("provenance") or {}, dict):
            raise ValueError(f"{path}: the table's entry for {short(name)} is not an object")
        about = {"source": str(entry["source"])} if entry.get("source") else {}
        about |= entry.get("provenance") or {}
        try:
            found[name] = Direction(
                name, entry.get("space", ""), tensors[name], entry.get("scale", 1.0), entry.get("layers"), about
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return found
