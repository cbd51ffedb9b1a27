"""Picture of discovered regions: samples, the same samples tinted by region, and the tree."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.imaging.modes import put_on_white
from stylefusion_hf.imaging.sheets import GAP, INK, LABEL_SIZE, LINE, MARGIN, PAPER, QUIET, RULE

CELL, COLUMNS = 96, 8  # the longer side of a picture in pixels, and pictures in a row
TINT = 0.62  # opacity of a region's color over the picture
INDENT = 26  # pixels between a node and its children


def region_colours(count: int) -> list[tuple[int, int, int]]:
    """Return easily distinguishable colors: hues spaced by the golden ratio, lightness in three steps."""
    found = []
    for i in range(count):
        r, g, b = colorsys.hls_to_rgb((0.58 + i * 0.61803) % 1, (0.5, 0.64, 0.38)[i % 3], 0.75)
        found.append((round(255 * r), round(255 * g), round(255 * b)))
    return found


def tinted(picture: Image.Image, labels: np.ndarray, colours: Sequence[tuple[int, int, int]]) -> Image.Image:
    """Tint a gray version of a picture with the colors of its regions: `labels` (H, W) index `colours`."""
    grey = np.asarray(put_on_white(picture).convert("L").convert("RGB"), np.float32)
    shade = Image.fromarray(np.array(colours, np.uint8)[labels]).resize(picture.size, Image.Resampling.NEAREST)
    return Image.fromarray((grey + TINT * (np.asarray(shade, np.float32) - grey)).astype(np.uint8))


def region_sheet(
    pictures: Sequence[Image.Image],
    labels: np.ndarray,
    regions: Sequence[str],
    tree: RegionTree,
    notes: Mapping[str, str] | None = None,
) -> Image.Image:
    """Draw pictures above their tinted copies, eight per row, and below them the tree with its leaves in color.

    Args:
        pictures: N pictures of one size.
        labels: (N, H, W), the region number of every pixel.
        regions: names of the regions by number; include the tree's leaves.
        tree: drawn as an outline, one line per node.
        notes: node -> text after its name.
    """
    notes = notes or {}
    colours = region_colours(len(regions))
    font = ImageFont.load_default(LABEL_SIZE)
    rows = -(-len(pictures) // COLUMNS)
    nodes = tree.nodes
    wide, tall = (max(1, round(CELL * side / max(pictures[0].size))) for side in pictures[0].size)
    top = MARGIN + rows * (2 * (tall + 2) + GAP)
    width = 2 * MARGIN + COLUMNS * (wide + GAP) - GAP
    sheet = Image.new("RGB", (width, top + len(nodes) * LINE + MARGIN), PAPER)
    draw = ImageDraw.Draw(sheet)
    for n, picture in enumerate(pictures):
        x, y = MARGIN + n % COLUMNS * (wide + GAP), MARGIN + n // COLUMNS * (2 * (tall + 2) + GAP)
        plain = put_on_white(picture)
        for part, at in ((plain, y), (tinted(plain, labels[n], colours), y + tall + 2)):
            small = part.width <= wide
            how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
            sheet.paste(part.resize((wide, tall), how), (x, at))
    depth = {tree.root: 0}
    for row, name in enumerate(nodes):
        above = tree.parent(name)
        if above is not None:
            depth[name] = depth[above] + 1
        x, y = MARGIN + depth[name] * INDENT, top + row * LINE + LINE // 2
        if above is not None:
            line = top + nodes.index(above) * LINE + LINE
            draw.line([(x - INDENT + 6, line), (x - INDENT + 6, y), (x - 4, y)], RULE)
        if name in regions:
            draw.rectangle([x, y - 6, x + 12, y + 6], colours[list(regions).index(name)])
        else:
            draw.ellipse([x + 2, y - 4, x + 10, y + 4], outline=QUIET)
        draw.text((x + 20, y), name, INK, font, anchor="lm")
        if name in notes:
            draw.text((x + 28 + font.getlength(name), y), notes[name], QUIET, font, anchor="lm")
    return sheet
