"""Which regions a fusion training is for: of the model's own segmenter, found in its generator, or in a folder."""

from __future__ import annotations

import argparse
import json
import logging
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator

from stylefusion_hf.models.generator import StyleGAN2Generator
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.regions import RegionTree
from stylefusion_hf.training.common import one_process_first

logger = logging.getLogger("stylefusion_hf")
AUTO = "auto"


@dataclass(frozen=True)
class Regions:
    """A tree, and where --regions names some, their segmenter and the folder of their judges."""

    tree: RegionTree
    segmenter: RegionSegmenter | None = None
    judges: Path | None = None


def add_region_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("regions")
    group.add_argument(
        "--tree",
        help="a preset (avatar, ffhq, car, church), text such as 'all*(face*(mouth, skin), hair)', or a .json file;"
        " avatar, or the tree of --regions, if left out",
    )
    group.add_argument(
        "--regions",
        metavar="auto|DIR",
        help="auto finds regions and a tree in the generator (in OUTPUT_DIR/regions), DIR is what"
        " `stylefusion regions` wrote; the model's segmenter/ if left out",
    )
    group.add_argument("--num_regions", type=int, help="of --regions auto; as many as are stable if left out")


def check_regions(args: argparse.Namespace) -> None:
    """ValueError for flags that do not go together, before anything is computed."""
    if args.num_regions is not None and args.regions != AUTO:
        raise ValueError("--num_regions goes with --regions auto")
    if args.regions == AUTO and args.tree:
        raise ValueError(
            "--regions auto makes a tree of its own: leave --tree out, or find regions first (`stylefusion regions"
            " discover`) and name their folder"
        )
    if args.tree:
        RegionTree.from_argument(args.tree)
    elif args.regions not in (None, AUTO) and not Path(args.regions, "regions.json").is_file():
        raise ValueError(
            f"--regions {args.regions} holds no regions: name auto, or a folder that `stylefusion regions discover` or"
            " `label` wrote"
        )


def take_regions(args: argparse.Namespace, accelerator: Accelerator, generator: StyleGAN2Generator) -> Regions:
    """What --tree and --regions say; finds regions where they are to be found, and not twice."""
    if args.regions is None:
        return Regions(RegionTree.from_argument(args.tree or "avatar"))
    from stylefusion_hf.region_folders import find_regions, read_regions

    folder = Path(args.output_dir, "regions") if args.regions == AUTO else Path(args.regions)
    with one_process_first(accelerator):
        if args.regions == AUTO and not found_before(folder, args):
            logger.info("finding regions in the generator: %s", folder)
            find_regions(folder, generator, seed=args.seed, num_regions=args.num_regions)
        tree, segmenter = read_regions(folder)
    tree = RegionTree.from_argument(args.tree) if args.tree else tree
    logger.info("regions: %s (%s)", tree, folder / "regions.png")
    return Regions(tree, segmenter.to(accelerator.device), folder / "judges")


def found_before(folder: Path, args: argparse.Namespace) -> bool:
    """Whether the folder holds what these flags would find."""
    try:
        report = json.loads((folder / "regions.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(report.get("seed") == args.seed and args.num_regions in (None, report.get("num_regions")))
