"""The flags that say where regions come from: tree, segmenter, or found in the generator."""

from __future__ import annotations

import argparse
from pathlib import Path

from stylefusion_hf.core.region_mapping import shipped
from stylefusion_hf.core.region_tree import RegionTree

AUTO = "auto"


def add_region_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose tree, regions and segmenter."""
    group = parser.add_argument_group("regions (see docs/guides/any-generator.md)")
    group.add_argument(
        "--tree",
        help="a preset (avatar, ffhq, car, church), text such as 'all*(face*(mouth, skin), hair)', or a .json file; by"
        " default the tree of --regions, the preset with the segmenter's regions, or one built for them",
    )
    group.add_argument(
        "--regions",
        metavar="auto|DIR",
        help="auto finds regions and a tree in the generator (saved in OUTPUT_DIR/regions), DIR is a folder written by"
        " `stylefusion regions`; by default the segmenter's regions",
    )
    group.add_argument(
        "--num_regions", type=int, help="number of regions for --regions auto; by default as many as are stable"
    )
    add_segmenter_arguments(group)
    group.add_argument(
        "--distil_segmenter",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="first distill a --segmenter from the Hub into a small one (in OUTPUT_DIR/regions), for speed",
    )


def check_regions(args: argparse.Namespace) -> None:
    """Raise a ValueError for flags that exclude each other, before anything is computed."""
    if args.num_regions is not None and args.regions != AUTO:
        raise ValueError("--num_regions goes with --regions auto")
    if args.regions and args.segmenter:
        raise ValueError("--regions and --segmenter both say where regions come from: give one of the two")
    if args.regions == AUTO and args.tree:
        raise ValueError(
            "--regions auto makes a tree of its own: leave --tree out, or find regions first (`stylefusion regions"
            " discover`) and name their folder"
        )
    if args.tree:
        RegionTree.from_argument(args.tree)
    if args.regions not in (None, AUTO) and not Path(args.regions, "regions.json").is_file():
        raise ValueError(
            f"--regions {args.regions} holds no regions: name auto, or a folder written by `stylefusion regions"
            " discover` or `label`"
        )


def add_segmenter_arguments(group: argparse._ActionsContainer) -> None:
    """Add the flags that choose a segmenter."""
    group.add_argument(
        "--segmenter",
        metavar="ID_OR_FOLDER",
        help="a semantic-segmentation model of transformers, or a segmenter saved by this package; by default the one"
        " in --model",
    )
    group.add_argument(
        "--region_map",
        "--region-map",
        metavar="FILE",
        help=f"the region of each of its classes: a JSON file, or one of {', '.join(shipped())}",
    )
    group.add_argument(
        "--segmenter_revision", "--segmenter-revision", metavar="REV", help="revision of --segmenter on the Hub"
    )
