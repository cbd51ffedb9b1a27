"""Draw a contact sheet.

Rows are bases; the columns are the base, the source, the base with the source's code in one region at a time, and the
base with the source's code as the global one. Bases and sources are seeds, or files with a code or a picture each.

    stylefusion sheet --out sheet.png
    stylefusion sheet --bases 1,2,3 --sources 11,12,13 --psi 0.7 --out sheet.png
    stylefusion sheet --seed 5 --rows 6 --model user/repo --out sheet.png
    stylefusion sheet --model faces --refine 6 --out refined.png
"""

from __future__ import annotations

import argparse
import random
from typing import Any

from stylefusion_hf.cli.arguments import (
    add_class_argument,
    add_model_arguments,
    add_refinement,
    number,
    positive,
    seed,
    seeds_or_files,
)
from stylefusion_hf.cli.loading import check_call, load_pipeline
from stylefusion_hf.cli.outputs import output_file, report_written, save_png

BASES, SOURCES = [1, 4, 6, 11], [21, 24, 26, 31]  # rows that show the embedded model well


def add_arguments(parser: argparse.ArgumentParser) -> None:
    rows = parser.add_argument_group("rows")
    rows.add_argument(
        "--bases", type=seeds_or_files, metavar="CODES", help="one per row, such as 1,2,w.npz (default: 1,4,6,11)"
    )
    rows.add_argument(
        "--sources",
        type=seeds_or_files,
        metavar="CODES",
        help="as many as there are bases, or one for all (default: 21,24,26,31)",
    )
    rows.add_argument("--seed", type=seed, help="draw bases and sources from this seed instead")
    rows.add_argument("--rows", type=positive, help="number of rows to draw with --seed (default: 4)")
    add_class_argument(rows, "of all pictures, or one class per row", "CLASSES")
    parser.add_argument("--out", default="sheet.png", metavar="PNG", help="file to write (default: sheet.png)")
    parser.add_argument("--psi", type=number, help="truncation (default: the model's own)")
    add_refinement(parser)
    parser.add_argument("--noise-mode", choices=("const", "none"), default="const")
    parser.add_argument("--scale", type=positive, help="integer factor of enlargement (default: to about 128 pixels)")
    parser.add_argument("--batch-size", type=positive, default=64, help="pictures per batch (default: 64)")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    bases, sources = _rows(args)
    out = output_file(args.out, [".png"])
    check_call(args)

    pipe = load_pipeline(args, light=True)

    from stylefusion_hf.imaging.sheets import contact_sheet

    sheet = contact_sheet(
        pipe,
        bases,
        sources,
        truncation_psi=args.psi,
        noise_mode=args.noise_mode,
        scale=args.scale,
        max_batch=args.batch_size,
        progress=True,
        class_labels=args.class_label,
        refine_steps=args.refine or 0,
    )
    save_png(sheet, out)
    report_written(out, f"{sheet.width} x {sheet.height} pixels")


def _rows(args: argparse.Namespace) -> tuple[list[Any], list[Any]]:
    """Return the bases and sources that the arguments name, or draw them."""
    if args.seed is None:
        if args.rows is not None:
            raise ValueError("--rows goes with --seed; --bases and --sources determine the number of rows themselves")
        if args.bases is None and args.sources is None:
            return BASES, SOURCES
        if args.bases is None or args.sources is None:
            raise ValueError("--bases and --sources go together: give both, or --seed to draw them")
        return args.bases, args.sources
    if args.bases is not None or args.sources is not None:
        raise ValueError("--seed draws bases and sources: give either --seed or --bases and --sources")
    drawn = random.Random(args.seed).sample(range(10_000), 2 * (args.rows or 4))  # short numbers are easy to pass on
    return drawn[0::2], drawn[1::2]
