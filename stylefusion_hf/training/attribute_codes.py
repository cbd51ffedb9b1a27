"""Codes for drawings whose attributes are known: z that a normal distribution draws, and the w that they stand for.

A drawing is determined by its specification: kinds (a hair cut), colors, quantities (a scale) and directions. An
`AttributeTable` writes it as a row of numbers, which `--loss regression` uses as w. An `AttributeCodes` orders the
drawings along axes of z: if z is standard normal, the rows that it stands for are distributed like the drawings', each
attribute by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.models.layers import EqualizedLinear, MappingNetwork, normalize_2nd_moment

LEAST_DEVIATION = 0.2  # rows are divided by their deviation, or by this where kinds are rare
CUTS = 12  # an attribute's drawings are halved so many times at most
DISTILLATION_BATCH = 1024


class AttributeTable:
    """The attributes of drawings as rows of numbers.

    Args:
        specs: one dict of attributes per drawing, as `AvatarSpec.to_dict` returns. Colors are "#rrggbb", directions
            are degrees under a name that ends in `angle`, other text is a kind, other numbers are quantities.

    Attributes:
        columns: name -> columns of the attribute.
        kinds: the names of the attributes that are kinds.
        rows: (N, dim), of mean 0; the deviation is 1, or less for kinds that are rare.
    """

    def __init__(self, specs: Sequence[Mapping[str, Any]]):
        self.columns: dict[str, slice] = {}
        self.kinds: list[str] = []
        parts: list[Tensor] = []
        at = 0
        for name, first in specs[0].items():
            values = [spec[name] for spec in specs]
            if isinstance(first, str) and first.startswith("#"):
                part = torch.tensor([list(bytes.fromhex(value[1:])) for value in values]) / 255
            elif isinstance(first, str):
                part = F.one_hot(torch.tensor(_numbered(values))).float()
                self.kinds.append(name)
            elif name.endswith("angle"):
                angles = torch.tensor(values, dtype=torch.float64).deg2rad()
                part = torch.stack([angles.cos(), angles.sin()], dim=1).float() / 2
            else:
                part = torch.tensor(values, dtype=torch.float64)[:, None]
                part = ((part - part.mean()) / part.std().clamp_min(1e-8)).float()
            parts.append(part)
            self.columns[name] = slice(at, at + part.shape[1])
            at += part.shape[1]
        rows = torch.cat(parts, dim=1)
        self.rows = (rows - rows.mean(dim=0)) / rows.std(dim=0).clamp_min(LEAST_DEVIATION)

    @property
    def dim(self) -> int:
        """Numbers per row."""
        return self.rows.shape[1]


def _numbered(values: Sequence[str]) -> list[int]:
    number = {name: i for i, name in enumerate(sorted(set(values)))}
    return [number[value] for value in values]


class AttributeCodes:
    """Relates drawings to codes z (B, z_dim) of mean square 1, to which mapping networks scale any z.

    Every attribute owns axes of z: one per number, and for kinds as many as their count has binary digits. The
    drawings are halved along the axes in turn, each part at its own median, as in a k-d tree. The normal distribution
    is halved in the same way, so that every cell of z stands for as many drawings as any other. The axes that no
    attribute owns are free.

    Args:
        table: of the drawings.
        z_dim: must exceed the number of owned axes, else ValueError; by a third or more, or some codes of drawings
            have a larger mean square and stand for other drawings.
    """

    def __init__(self, table: AttributeTable, z_dim: int):
        self.z_dim = z_dim
        self.axes: dict[str, slice] = {}
        self.cells: dict[str, Tensor] = {}  # (N,): the cell of each drawing
        self.values: dict[str, Tensor] = {}  # (cells, columns): what each cell stands for
        self.depth = min(CUTS, int(math.log2(len(table.rows))))
        at = 0
        for name, columns in table.columns.items():
            rows = table.rows[:, columns]
            kind = rows.argmax(dim=1) if name in table.kinds else None
            places = _principal_axes(rows) if kind is None else _scattered(kind)
            cells = _halve(places, self.depth)
            self.axes[name], self.cells[name] = slice(at, at + places.shape[1]), cells
            self.values[name] = _means(rows, cells) if kind is None else _commonest(rows, kind, cells)
            at += places.shape[1]
        if at >= z_dim:
            raise ValueError(f"these drawings' attributes need --latent_dim above {at}, got {z_dim}")
        self.owned = at

    def rows(self, z: Tensor) -> Tensor:
        """Return the rows (B, dim) of the table that z (B, z_dim) stands for, of drawings that need not exist."""
        u = torch.special.ndtr(normalize_2nd_moment(z))
        return torch.cat([self.values[name][_cell_of(u[:, axes], self.depth)] for name, axes in self.axes.items()], 1)

    def draw_z(self, drawings: Tensor, draw: torch.Generator) -> Tensor:
        """Draw a z (B, z_dim) for each of the drawings (B,), given by number."""
        z = torch.randn(len(drawings), self.z_dim, generator=draw)
        for name, axes in self.axes.items():
            inside = torch.rand(len(drawings), axes.stop - axes.start, generator=draw)
            u = _place_in(self.cells[name][drawings], self.depth, inside)
            z[:, axes] = torch.special.ndtri(u.clamp(1e-5, 1 - 1e-5))
        # The free axes take up what is missing to a mean square of 1, so that normalizing leaves the owned ones alone.
        owned, free = z.split([self.owned, self.z_dim - self.owned], dim=1)
        missing = (self.z_dim - owned.square().sum(dim=1, keepdim=True)).clamp_min(0)
        return torch.cat([owned, free * (missing / free.square().sum(dim=1, keepdim=True)).sqrt()], dim=1)


def _scattered(kind: Tensor) -> Tensor:
    """Places (N, axes) of drawings by kind: a random one for each kind."""
    count = int(kind.max()) + 1
    axes = max(1, math.ceil(math.log2(count)))
    return torch.randn(count, axes, generator=torch.Generator().manual_seed(count))[kind]


def _principal_axes(rows: Tensor) -> Tensor:
    """Rows (N, axes) in the coordinates of their principal components."""
    return rows @ torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False).Vh.T


def _halve(places: Tensor, depth: int) -> Tensor:
    """Halve the parts of places (N, axes) along one axis after the other; return each place's part (N,)."""
    part = torch.zeros(len(places), dtype=torch.long)
    for level in range(depth):
        order = places[:, level % places.shape[1]].argsort(stable=True)
        order = order[part[order].argsort(stable=True)]
        size = torch.bincount(part, minlength=2**level)
        rank = torch.arange(len(places)) - (size.cumsum(0) - size)[part[order]]
        part[order] = 2 * part[order] + (2 * rank >= size[part[order]])
    return part


def _cell_of(u: Tensor, depth: int) -> Tensor:
    """The part (B,) in which u (B, axes) from 0 to 1 lies, if every axis is halved `_halve`'s way."""
    cell = torch.zeros(len(u), dtype=torch.long)
    for level in range(depth):
        round_, axis = divmod(level, u.shape[1])
        cell = 2 * cell + (u[:, axis].double() * 2 ** (round_ + 1)).long() % 2
    return cell


def _place_in(cell: Tensor, depth: int, inside: Tensor) -> Tensor:
    """The inverse of `_cell_of`: a u (B, axes) in each cell (B,), `inside` (B, axes) of the way through it."""
    u, width = torch.zeros_like(inside), torch.ones(inside.shape[1])
    for level in range(depth):
        axis = level % inside.shape[1]
        width[axis] /= 2
        u[:, axis] += width[axis] * (cell >> (depth - 1 - level) & 1)
    return u + width * inside


def _means(rows: Tensor, cells: Tensor) -> Tensor:
    sums = torch.zeros(int(cells.max()) + 1, rows.shape[1]).index_add_(0, cells, rows)
    return sums / torch.bincount(cells)[:, None]


def _commonest(rows: Tensor, kind: Tensor, cells: Tensor) -> Tensor:
    votes = torch.zeros(int(cells.max()) + 1, int(kind.max()) + 1)
    votes.index_put_((cells, kind), torch.ones(len(kind)), accumulate=True)
    row_of_kind = torch.zeros(votes.shape[1], rows.shape[1]).index_copy_(0, kind, rows)
    return row_of_kind[votes.argmax(dim=1)]


# --- Distillation ----------------------------------------------------------------------------------------------------


def distill(
    mapping: MappingNetwork, codes: AttributeCodes, steps: int, rate: float, draw: torch.Generator, progress: bool
) -> float:
    """Train an untrained mapping network to return `codes.rows(z)`; return the last steps' mean squared error.

    A row's deviation is 1, so an error of 1 is what a network without layers would make. ValueError if its hidden
    layers are too narrow for so many attributes.
    """
    device = next(mapping.parameters()).device
    weights = [cast(EqualizedLinear, layer).weight for layer in mapping.layers]
    masks = [mask.to(device) for mask in _blocks([len(weight) for weight in weights], codes)]
    for weight, mask in zip(weights, masks, strict=True):
        weight.data.mul_(mask * (mask.shape[1] / mask.sum(1, keepdim=True)).sqrt())
    optimizer = torch.optim.Adam(mapping.parameters(), lr=rate, betas=(0.9, 0.99))
    recent = 1.0
    for step in tqdm(range(steps), desc="mapping", disable=not progress):
        for group in optimizer.param_groups:
            group["lr"] = rate * (0.02 + 0.98 * (1 + math.cos(math.pi * step / steps)) / 2)
        z = torch.randn(DISTILLATION_BATCH, codes.z_dim, generator=draw)
        loss = F.mse_loss(mapping(z.to(device)), codes.rows(z).to(device))
        optimizer.zero_grad()
        loss.backward()
        for weight, mask in zip(weights, masks, strict=True):
            cast(Tensor, weight.grad).mul_(mask)
        optimizer.step()
        recent = 0.98 * recent + 0.02 * loss.item()
    return recent


def _blocks(widths: Sequence[int], codes: AttributeCodes) -> list[Tensor]:
    """The weights (out, in) through which an attribute's axes reach its columns, as 0 and 1, of layers of some widths.

    Attributes do not depend on each other, which a network learns far faster if each has hidden units of its own.
    """
    owner = torch.full((codes.z_dim,), -1)
    columns = []
    for number, (name, axes) in enumerate(codes.axes.items()):
        owner[axes] = number
        columns += [number] * codes.values[name].shape[1]
    needs = [max(3.0 * (axes.stop - axes.start), 2.0 * codes.values[n].shape[1]) for n, axes in codes.axes.items()]
    ends = torch.tensor(needs).cumsum(0) / sum(needs)
    masks = []
    for number, width in enumerate(widths):
        last = number == len(widths) - 1
        units = torch.tensor(columns) if last else torch.bucketize((torch.arange(width) + 0.5) / width, ends)
        mask = units[:, None] == owner[None]
        if not mask.any(dim=1).all():
            raise ValueError(
                f"--mapping_width {min(widths)} has no room for some of {len(needs)} attributes: give at least"
                f" {math.ceil(sum(needs) / min(needs))}"
            )
        masks.append(mask.float())
        owner = units
    return masks
