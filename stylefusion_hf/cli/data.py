"""Make training data: avatars or cars with exact region maps, pose and attributes.

stylefusion data avatars --count 1000 --size 128 --out avatars
stylefusion data cars --count 1000 --out cars
"""

from __future__ import annotations

import argparse

from stylefusion_hf.cli.arguments import positive
from stylefusion_hf.cli.outputs import report_written

KINDS = {"avatars": "drawn portraits (needs the extra `train`)", "cars": "drawn cars (needs the extra `train`)"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=type(parser))
    for name, about in KINDS.items():
        kind = kinds.add_parser(name, help=about, description=f"Draw {name}.", allow_abbrev=False)
        kind.add_argument("--count", type=positive, required=True, help="number of pictures")
        kind.add_argument("--out", required=True, metavar="DIR", help="a new folder, or an unfinished one to continue")
        kind.add_argument("--size", type=positive, default=64, help="size in pixels (default: 64)")
        kind.add_argument("--seed", type=int, default=0, help="seed of the collection (default: 0)")
        kind.add_argument("--start", type=int, default=0, help="index of the first picture (default: 0)")
        kind.add_argument("--workers", type=positive, help="number of processes (default: one per core)")


def run(args: argparse.Namespace) -> None:
    if args.kind == "cars":
        from stylefusion_hf.data.cars import CARS as ART
    else:
        from stylefusion_hf.data.avatars import AVATARS as ART

    folder = ART.write_dataset(args.out, args.count, args.size, args.seed, args.start, args.workers)
    report_written(
        folder, f"{args.count} {args.kind} of {args.size} x {args.size} pixels, with region maps and labels"
    )
