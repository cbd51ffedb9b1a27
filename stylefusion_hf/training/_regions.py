"""The regions of a fusion training: from a segmenter, found in the generator, or read from a folder."""

from __future__ import annotations

import argparse
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from stylefusion_hf.core.json_files import read_object
from stylefusion_hf.core.region_tree import PRESETS, RegionTree
from stylefusion_hf.models.hub_segmenter import HubSegmenter
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.training import _segmenters
from stylefusion_hf.training.common import one_process_first
from stylefusion_hf.training.region_flags import AUTO
from stylefusion_hf.training.roles import Roles

logger = logging.getLogger("stylefusion_hf")


@dataclass(frozen=True)
class Regions:
    """A tree, the segmenter of its regions, and the folder of their judges, if there is one."""

    tree: RegionTree
    segmenter: Any
    judges: Path | None = None


def take_regions(args: argparse.Namespace, accelerator: Accelerator, generator: StyleGenerator) -> Regions:
    """Return the regions that the flags choose; those to be found or distilled are made once per output folder."""
    folder = Path(args.output_dir, "regions") if args.regions in (None, AUTO) else Path(args.regions)
    tree = RegionTree.from_argument(args.tree) if args.tree else None
    if args.regions is None:
        segmenter = _segmenter(args).eval().requires_grad_(False).to(accelerator.device)
        if tree is not None:
            Roles.of(tree, list(segmenter.config.regions))  # refuses a tree that does not fit, before distilling
        if not (args.segmenter and isinstance(segmenter, HubSegmenter) and args.distil_segmenter):
            return Regions(tree or suitable_tree(generator, segmenter, args.seed), segmenter)
    from stylefusion_hf.regions.folders import find_regions, read_regions, write_regions

    with one_process_first(accelerator):
        if args.regions == AUTO and not found_before(folder, args):
            logger.info("finding regions in the generator: %s", folder)
            find_regions(folder, generator, seed=args.seed, num_regions=args.num_regions)
        elif args.regions is None and not found_before(folder, args):
            logger.info("distilling %s into a small segmenter: %s", args.segmenter, folder)
            write_regions(
                folder,
                generator,
                tree or suitable_tree(generator, segmenter, args.seed),
                lambda images, maps: segmenter.segment(images),
                list(segmenter.config.regions),
                {"segmenter": args.segmenter, "seed": args.seed},
                seed=args.seed,
            )
        found, small = read_regions(folder)
    logger.info("regions: %s (%s)", tree or found, folder / "regions.png")
    return Regions(tree or found, small.to(accelerator.device), folder / "judges")


def _segmenter(args: argparse.Namespace) -> Any:
    """Load the segmenter; an OSError for a missing one suggests where to get regions."""
    try:
        return _segmenters.load_segmenter(args)
    except OSError as error:
        if args.segmenter:
            raise
        raise OSError(
            f"{error} Without a segmenter, find regions in the generator with --regions auto, take a segmenter from"
            " the Hub with --segmenter, or train one (`stylefusion train segmenter`)"
        ) from error


def suitable_tree(generator: StyleGenerator, segmenter: Any, seed: int) -> RegionTree:
    """Return the preset whose leaves the segmenter knows, or build a tree from regions that move together."""
    from stylefusion_hf.regions.folders import tree_by_looking

    known = set(segmenter.config.regions)
    for name in PRESETS:
        if set(RegionTree.preset(name).leaves) <= known:
            return RegionTree.preset(name)
    return tree_by_looking(generator, segmenter, seed)


def found_before(folder: Path, args: argparse.Namespace) -> bool:
    """Return whether the folder holds the regions that these flags would find."""
    try:
        report = read_object(folder / "regions.json")
    except (OSError, ValueError):
        return False
    same = report.get("seed") == args.seed and report.get("segmenter") == args.segmenter
    return bool(same and args.num_regions in (None, report.get("num_regions")))
