"""Contact sheets: the effect of each region's code on a picture, side by side."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image, ImageDraw, ImageFont

from stylefusion_hf.core.memory import chunk_size
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.core.region_names import spell_out
from stylefusion_hf.imaging.modes import put_on_white, to_picture

if TYPE_CHECKING:
    from stylefusion_hf.core.region_tree import RegionTree

CELL = 128  # approximate pixels; smaller pictures are enlarged, those of at least twice the size reduced, by integers
BASE, SOURCE, GLOBAL = "base", "source", "global"  # columns that are not regions
BRACKETS = (
    "the base, with one region from the source",
    "one region swapped",
    "swapped",
)  # captions above the region columns; the first that fits is used

INK, QUIET, PAPER, RULE = "#1c2024", "#6b7280", "#ffffff", "#d3d7de"
TITLE_SIZE, LABEL_SIZE = 15, 13
MARGIN, GAP, GROUP_GAP, LINE = 16, 6, 20, 18  # GROUP_GAP: between base and source, the regions, and the global column
# All of these are for cells up to LARGE pixels; text and gaps grow with larger ones, to be read beside them.
LARGE = 2 * CELL


def contact_sheet(
    pipe: Any,
    bases: Sequence[Any],
    sources: Sequence[Any],
    truncation_psi: float | None = None,
    noise_mode: str = "const",
    scale: int | None = None,
    max_batch: int = 64,
    progress: bool = False,
    class_labels: int | Sequence[int] | None = None,
    refine_steps: int = 0,
) -> Image.Image:
    """Draw a row per base: base, source, the base with the source's code in one region at a time, then as global code.

    Args:
        pipe: the pipeline; its region tree determines the columns.
        bases: seeds or other single codes that the pipeline takes, one per row; a single one is repeated.
        sources: likewise, as many as bases, or a single one.
        truncation_psi: None for the model's default.
        noise_mode: as in the pipeline.
        scale: integer factor by which pictures are enlarged; None scales them to about 128 pixels.
        max_batch: maximum number of pictures per call of the pipeline, up to 128 pixels; fewer of larger ones.
        progress: show a progress bar if there is more than one call.
        class_labels: for a conditional generator: the class of all pictures, or one per row; None: each seed's own.
        refine_steps: as in the pipeline, for each picture of a region.

    Raises:
        ValueError: different numbers of bases and sources (or none), classes for another number of rows, a scale or
            batch below 1, or arguments that the pipeline refuses.
    """
    bases, sources = list(bases), list(sources)
    count = max(len(bases), len(sources))
    if not bases or not sources or not {len(bases), len(sources)} <= {1, count}:
        raise ValueError(
            f"a sheet needs as many bases as sources, or a single one of either: got {len(bases)} and {len(sources)}"
        )
    if max_batch < 1 or (scale is not None and scale < 1):
        raise ValueError(f"max_batch and scale must be at least 1, got {max_batch} and {scale}")
    bases, sources = bases * (count // len(bases)), sources * (count // len(sources))
    given = [class_labels] if class_labels is None or isinstance(class_labels, int) else class_labels
    classes: list[int | None] = list(given)
    if len(classes) not in (1, count):
        raise ValueError(f"a sheet needs one class, or one per row: got {len(classes)} for {count} rows")
    classes *= count // len(classes)

    tree = pipe.fusion.tree
    columns = sheet_columns(tree)
    places = range(len(columns))  # not names: a region may be called "source"
    cells = [(place, *row) for row in zip(bases, sources, classes, strict=True) for place in places]
    pixels = math.prod(pipe.generator.picture_size)
    most = chunk_size(pixels, max_batch * 128**2, max_batch)
    slices = [cells[at : at + most] for at in range(0, len(cells), most)]
    pictures: list[Image.Image] = []
    for part in tqdm(slices, desc="sheet", unit="batch", disable=not progress or len(slices) == 1):
        found = _fused(
            pipe, tree, part, truncation_psi=truncation_psi, noise_mode=noise_mode, refine_steps=refine_steps
        )
        pictures += found if scale else [to_cell(picture) for picture in found]  # full pictures would pile up
    remaining = iter(pictures)
    rows = [list(islice(remaining, len(columns))) for _ in range(count)]
    labels = [(_label(BASE, base), _label(SOURCE, source)) for base, source in zip(bases, sources, strict=True)]
    regions = range(2, len(columns) - bool(tree.fused))
    return draw_sheet(columns, labels, rows, scale, regions=regions)


def sheet_columns(tree: RegionTree) -> list[str]:
    """Return the columns: base, source, the regions that can be swapped, and global if any node is fused."""
    return [BASE, SOURCE, *tree.swappable, *([GLOBAL] if tree.fused else [])]


def _label(kind: str, code: Any) -> str:
    """Return a row's label: the seed, where the code is one."""
    return f"{kind} {code}" if isinstance(code, int) else kind


def _fused(
    pipe: Any,
    tree: RegionTree,
    cells: Sequence[tuple[int, Any, Any, int | None]],
    **call: Any,
) -> list[Image.Image]:
    """Make the pictures of cells (column index, base, source, class) in one call; they differ in codes only."""

    def codes(*swapped: int) -> list[Any]:
        """Return one code per cell: the source's in the columns `swapped`, the base's elsewhere."""
        return [source if place in swapped else base for place, base, source, _ in cells]

    names = sheet_columns(tree)
    source = names.index(SOURCE)  # the second: no region stands before it
    count = len(names) - bool(tree.fused)
    regions = {name: codes(source, place) for place, name in enumerate(names[2:count], 2)}
    global_code = codes(source, count) if tree.fused else None
    labels = None if cells[0][-1] is None else [label for *_, label in cells]
    out = pipe(base=codes(source), regions=regions, global_code=global_code, class_labels=labels, **call)
    return list(out.images)


# --- Drawing ----------------------------------------------------------------------------------------


def draw_sheet(
    columns: Sequence[str],
    labels: Sequence[tuple[str, str]],
    rows: Sequence[Sequence[Image.Image]],
    scale: int | None = None,
    brackets: Sequence[str] = BRACKETS,
    regions: Collection[int] | None = None,
) -> Image.Image:
    """Draw pictures of one size in a labeled grid.

    Args:
        columns: title of every column.
        labels: two lines of text for every row.
        rows: the pictures, one per column in every row.
        scale: as in `contact_sheet`.
        brackets: captions for the columns in `regions`; the first that fits is used.
        regions: indices of adjacent columns to group; None for all not named base, source or global.
    """
    if regions is None:
        regions = [i for i, title in enumerate(columns) if title not in (BASE, SOURCE, GLOBAL)]
    rows = [[to_cell(picture, scale) for picture in row] for row in rows]
    width, height = rows[0][0].size
    unit = max(1, round(1.25 * min(width, height) / LARGE))
    margin, gap, leading = MARGIN * unit, GAP * unit, LINE * unit
    small, large = ImageFont.load_default(LABEL_SIZE * unit), ImageFont.load_default(TITLE_SIZE * unit)
    titles = [_wrap(title, large, width) for title in columns]
    left = margin + round(max(small.getlength(line) for label in labels for line in label)) + margin
    header = margin + leading + gap + leading * max(len(lines) for lines in titles) + gap
    lefts = list(_lefts(len(columns), regions, left, width, unit))

    size = (lefts[-1] + width + margin, header + len(rows) * (height + gap) - gap + margin)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if together := [lefts[i] for i in regions]:  # a bracket over them
        first, last = together[0], together[-1] + width
        captions = (text for text in brackets if small.getlength(text) <= last - first)
        draw.text(((first + last) / 2, margin), next(captions, ""), QUIET, small, anchor="ma")
        draw.line([(first, margin + leading), (last, margin + leading)], RULE, unit)
    for lines, x in zip(titles, lefts, strict=True):
        for lines_below, line in enumerate(reversed(lines)):
            draw.text((x + width / 2, header - gap - lines_below * leading), line, INK, large, anchor="md")
    for index, (label, row) in enumerate(zip(labels, rows, strict=True)):
        y = header + index * (height + gap)
        for offset, text in zip((-leading / 2, leading / 2), label, strict=True):
            draw.text((left - margin, y + height / 2 + offset), text, INK, small, anchor="rm")
        for x, picture in zip(lefts, row, strict=True):
            sheet.paste(picture, (x, y))
    return sheet


def _lefts(count: int, regions: Collection[int], left: int, width: int, unit: int) -> Iterator[int]:
    """Yield the left edge of every column, with a wider gap on either side of the regions."""
    for index in range(count):
        if index:
            left += width + unit * (GROUP_GAP if (index in regions) != (index - 1 in regions) else GAP)
        yield left


def to_cell(picture: Image.Image, scale: int | None = None) -> Image.Image:
    """Enlarge a picture by `scale`, or bring it to about CELL pixels by an integer factor, which keeps it sharp."""
    picture = put_on_white(picture)
    if scale is None:
        if (factor := max(picture.size) // (2 * CELL)) > 1:
            return picture.reduce(factor)
        scale = max(1, round(CELL / max(picture.size)))
    return picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)


def _wrap(title: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Wrap a region's name, in words, to lines no wider than its column, if its words allow."""
    lines: list[str] = []
    for word in spell_out(title).split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def image_grid(images: torch.Tensor, columns: int) -> Image.Image:
    """(N, C, H, W), of 1 to 4 channels, in [-1, 1] -> one picture, row by row."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = torch.ones(rows * columns, c, h, w, dtype=torch.float32)
    canvas[:n] = images.detach().float().cpu()
    canvas = canvas.view(rows, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    pixels = canvas.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).numpy()
    return to_picture(pixels)
