"""Make training data: avatars, with exact maps of their regions, their pose and their attributes.

stylefusion data avatars --count 1000 --size 128 --out avatars
"""

from __future__ import annotations

import argparse

from stylefusion_hf.commands._shared import positive, wrote


def add_arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True, parser_class=type(parser))
    avatars = kinds.add_parser(
        "avatars", help="drawn portraits (needs the extra `train`)", description="Draw avatars.", allow_abbrev=False
    )
    avatars.add_argument("--count", type=positive, required=True, help="how many")
    avatars.add_argument("--out", required=True, metavar="DIR", help="a new folder, or one to continue")
    avatars.add_argument("--size", type=positive, default=64, help="pixels (default: 64)")
    avatars.add_argument("--seed", type=int, default=0, help="of the collection (default: 0)")
    avatars.add_argument("--start", type=int, default=0, help="index of the first avatar (default: 0)")
    avatars.add_argument("--workers", type=positive, help="processes (default: one a core)")


def run(args: argparse.Namespace) -> None:
    from stylefusion_hf.data.avatars import write_dataset

    folder = write_dataset(args.out, args.count, args.size, args.seed, args.start, args.workers)
    wrote(folder, f"{args.count} avatars of {args.size} x {args.size} pixels, with region maps and labels")
