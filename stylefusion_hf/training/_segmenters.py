"""Load the segmenter of a training: the model's own, or one from the Hub."""

import argparse
import os
from pathlib import Path
from typing import Any

from stylefusion_hf.core.json_files import read_json
from stylefusion_hf.core.named_models import find_model
from stylefusion_hf.core.region_mapping import shipped
from stylefusion_hf.models.hub_segmenter import HubSegmenter
from stylefusion_hf.models.loading import StrictModelMixin
from stylefusion_hf.models.segmenter import RegionSegmenter

KINDS: dict[str, type[StrictModelMixin]] = {"RegionSegmenter": RegionSegmenter, "HubSegmenter": HubSegmenter}


def load_segmenter(args: argparse.Namespace) -> Any:
    """Return the segmenter that the flags choose, in evaluation mode on the CPU.

    Raises:
        ImportError: --segmenter needs transformers. OSError: it, or the model's segmenter/, is missing or damaged.
        ValueError: --segmenter and --region_map do not go together or do not fit; names both.
    """
    if args.segmenter is None:
        if args.region_map is not None or args.segmenter_revision is not None:
            flag = "--region_map" if args.region_map is not None else "--segmenter_revision"
            raise ValueError(f"{flag} belongs to --segmenter: name a Hub id or a folder there")
        where = {"revision": args.revision, "variant": args.variant}
        return own_segmenter(args.pretrained_model_name_or_path, "segmenter", **where)
    return chosen_segmenter(args.segmenter, args.region_map, args.segmenter_revision)


def chosen_segmenter(name: str, region_map: str | None, revision: str | None = None) -> Any:
    """Return a segmenter of this package, or a network of transformers with a region map."""
    if saved_class(name, None, revision) in KINDS:
        if region_map is not None:
            raise ValueError(f"--segmenter {name} has regions of its own: leave --region_map out")
        return own_segmenter(name, None, revision=revision)
    if region_map is None:
        raise ValueError(
            f"--segmenter {name} needs --region_map, the table of its classes: a JSON file, or one of"
            f" {', '.join(shipped())}"
        )
    return HubSegmenter.from_hub(name, region_map, revision=revision)


def own_segmenter(name: str, subfolder: str | None, **where: Any) -> Any:
    """Return a segmenter saved by this package, of any class. OSError and ValueError as for `from_pretrained`."""
    kind = KINDS.get(saved_class(name, subfolder, where.get("revision")) or "", RegionSegmenter)
    return kind.from_pretrained(name, subfolder=subfolder, **where)


def saved_class(name: str, subfolder: str | None, revision: str | None) -> str | None:
    """Return the class named in a model's config.json, or None if there is none; loading then explains it."""
    try:
        name = find_model(name)
        if os.path.isdir(name):
            config = read_json(Path(name, subfolder or "", "config.json"))
        else:
            config = RegionSegmenter.load_config(name, subfolder=subfolder, revision=revision)
    except (OSError, ValueError, RecursionError):
        return None
    found = config.get("_class_name") if isinstance(config, dict) else None
    return found if isinstance(found, str) else None
