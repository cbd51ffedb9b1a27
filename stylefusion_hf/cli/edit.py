"""Change one region of a picture along a direction, and leave the rest unchanged.

An edit is NAME=FILE:DIRECTION=STRENGTH: a region or another node of the tree (`all` edits everything), a file written
by `stylefusion directions` or `stylefusion convert`, a direction in it, and how far to go along it (default: 1).
--edit is repeatable. The other arguments are those of `stylefusion fuse`, which also accepts --edit.

    stylefusion edit --base 1 --edit hair=directions.safetensors:sefa-3=2.5 --out edited.png
    stylefusion edit --base 1 --edit face=older.safetensors:age=1.5 --edit all=older.safetensors:pose=-1
"""

from __future__ import annotations

import argparse

from stylefusion_hf.cli import fuse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    fuse.add_arguments(parser)
    parser.set_defaults(out="edited.png")


def run(args: argparse.Namespace) -> None:
    if not args.edit and not args.from_recipe:
        raise ValueError("give at least one --edit NAME=FILE:DIRECTION=STRENGTH; `stylefusion directions` makes files")
    fuse.run(args)
