"""Find directions along which a generator's pictures change, and draw their effects.

    stylefusion directions discover --method sefa --count 10 --out directions.safetensors --sheet directions.png
    stylefusion directions discover --method regions --out regions.safetensors
    stylefusion directions sheet --file directions.safetensors --region hair --out hair.png

sefa uses the weights only, ganspace uses samples, and regions uses the model's segmenter on samples. Pick a direction
from the sheet and use it by its name: `stylefusion edit --edit hair=directions.safetensors:sefa-3=2.5`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from stylefusion_hf.cli.arguments import add_class_argument, add_model_arguments, number, positive, seed, seed_or_file
from stylefusion_hf.cli.checks import check_file
from stylefusion_hf.cli.loading import check_call, load_pipeline
from stylefusion_hf.cli.outputs import output_file, report_written, save_png

if TYPE_CHECKING:
    from stylefusion_hf import Direction, StyleFusionPipeline

STRENGTHS = (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    jobs = parser.add_subparsers(dest="job", metavar="JOB", required=True, parser_class=type(parser))
    discover = jobs.add_parser(
        "discover", help="find directions", description="Find directions of a generator.", allow_abbrev=False
    )
    discover.add_argument(
        "--method", choices=("sefa", "ganspace", "regions"), default="sefa", help="the method (default: sefa)"
    )
    discover.add_argument(
        "--count", type=positive, default=10, help="number of directions, the strongest first (default: 10)"
    )
    discover.add_argument(
        "--layers", type=_layers, metavar="0-3,7", help="sefa: rows of w+ that the directions change (default: all)"
    )
    discover.add_argument("--samples", type=positive, help="number of random codes (default: 10000; regions: 2000)")
    discover.add_argument("--seed", type=seed, default=0, help="seed of the random codes (default: 0)")
    discover.add_argument("--out", default="directions.safetensors", metavar="FILE", help="(default: %(default)s)")
    discover.add_argument("--sheet", metavar="PNG", help="also draw their effects")
    sheet = jobs.add_parser(
        "sheet",
        help="draw the directions of a file",
        description="Draw the effects of directions.",
        allow_abbrev=False,
    )
    sheet.add_argument("--file", required=True, metavar="FILE", help="a file of directions")
    sheet.add_argument("--out", default="directions.png", metavar="PNG", help="(default: directions.png)")
    for job in (discover, sheet):
        job.add_argument(
            "--base",
            type=seed_or_file,
            default=1,
            metavar="CODE",
            help="the sheet's picture, a seed or a file (default: 1)",
        )
        job.add_argument(
            "--region", default="all", metavar="NAME", help="the region that the sheet edits (default: everything)"
        )
        add_class_argument(job, "of the sheet's picture")
        job.add_argument("--psi", type=number, help="truncation of the sheet's pictures (default: the model's own)")
        add_model_arguments(job)


def run(args: argparse.Namespace) -> None:
    check_call(args)
    if args.job == "sheet":
        check_file(args.file, "--file")

        from stylefusion_hf.core.edits import load_directions

        out = output_file(args.out, [".png"])
        found = list(load_directions(args.file).values())
        _draw(load_pipeline(args), found, args, out)
        return
    if args.layers is not None and args.method != "sefa":
        raise ValueError(f"--layers goes with --method sefa, not with {args.method}")
    out = output_file(args.out, [".safetensors"])
    sheet = output_file(args.sheet, [".png"]) if args.sheet else None

    from stylefusion_hf.core.edits import save_directions

    pipe = load_pipeline(args)
    found = _discover(pipe, args)
    save_directions(out, found)
    report_written(out, f"{', '.join(direction.name for direction in found)}")
    if sheet is not None:
        _draw(pipe, found, args, sheet)


def _discover(pipe: StyleFusionPipeline, args: argparse.Namespace) -> list[Direction]:
    from stylefusion_hf.core.progress import tqdm
    from stylefusion_hf.editing import directions

    if args.method == "sefa":
        return directions.sefa(pipe.generator, args.count, args.layers, args.samples or 10_000, args.seed)
    if args.method == "ganspace":
        return directions.ganspace(pipe.generator, args.count, args.samples or 10_000, args.seed)
    if pipe.segmenter is None:
        raise ValueError("--method regions needs a segmenter, and this model has none: use sefa or ganspace")

    def progress(parts):
        return tqdm(parts, desc="pictures", unit="batch")

    measured = directions.measure_regions(pipe.generator, pipe.segmenter, args.samples or 2000, args.seed, progress)
    found = []
    for region, statistic in measured.values:
        try:
            found.append(
                directions.boundary_from_regions(pipe.generator, pipe.segmenter, region, statistic, measured=measured)
            )
        except ValueError:  # the region appears in too few pictures
            continue
    if not found:
        raise ValueError(f"too few of {len(measured.w)} pictures show any region: use more --samples")
    # A direction fitted to a statistic that codes hardly predict is of little use, so the best predicted come first.
    return sorted(found, key=lambda direction: -direction.provenance["r2"])[: args.count]


def _draw(pipe: StyleFusionPipeline, found: Sequence[Direction], args: argparse.Namespace, out) -> None:
    """Draw a sheet with one row per direction and one column per strength."""
    from stylefusion_hf.imaging.sheets import BASE, draw_sheet, to_cell

    rows, labels = [], []
    call = {"truncation_psi": args.psi, "class_labels": args.class_label}
    for direction in found:
        result = pipe(base=args.base, edits={args.region: direction(STRENGTHS)}, **call)
        rows.append([to_cell(image) for image in result.images])  # full pictures of many directions would pile up
        labels.append((direction.name, _describe(direction)))
    columns = [f"{strength:+g}" if strength else BASE for strength in STRENGTHS]
    where = "everything" if args.region in ("all", pipe.fusion.tree.root) else args.region
    sheet = draw_sheet(columns, labels, rows, brackets=(f"{where} edited, by strength",))
    save_png(sheet, out)
    report_written(out, f"{sheet.width} x {sheet.height} pixels")


def _describe(direction: Direction) -> str:
    """Return the second line of a row's label: the direction's r2, the file it came from, or its space."""
    about = direction.provenance
    if "r2" in about:
        return f"r2 {about['r2']:.2f}"
    return str(about.get("source") or "")[:24] or f"in {direction.space}"


def _layers(text: str) -> list[int]:
    """Convert an argument that is a list of rows: `0-3,7` -> [0, 1, 2, 3, 7]."""
    rows: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.strip().isdecimal() or (last and not last.strip().isdecimal()) or "-" in last:
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of rows such as 0-3,7")
        rows += range(int(first), min(int(last or first), 1023) + 1)
    if not rows:
        raise argparse.ArgumentTypeError(f"{text!r} names no row")
    return rows
