"""Which weights go into a training: the sha256 of their files, which checkpoints keep and resumption compares."""

import argparse
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from stylefusion_hf.core.files import sha256_of
from stylefusion_hf.core.hub_files import snapshot, weight_patterns
from stylefusion_hf.core.named_models import find_model

# What each trainer takes from --model.
COMPONENTS = {
    "generator": ("generator", "discriminator"),
    "segmenter": ("segmenter",),
    "fusion": ("generator", "discriminator", "segmenter"),
    "encoder": ("generator", "segmenter"),
    "judges": ("generator",),
}


def digests_of_inputs(args: argparse.Namespace) -> dict[str, str]:
    """Flag and file -> sha256, of the weights that --model, --segmenter and --regions name, and of --region_map.

    Computed once for an `args`, when the run begins (`forget_inputs`): what happens to the files later plays no part.
    Files below --output_dir are left out, since the run itself writes there. Weights that cannot be found are left
    out too: loading them explains why.
    """
    if getattr(args, "_inputs", None) is None:
        out = Path(os.path.realpath(args.output_dir))
        found = {name: Path(os.path.realpath(file)) for name, file in _files(args)}
        args._inputs = {name: sha256_of(file) for name, file in found.items() if out not in file.parents}
    return args._inputs


def forget_inputs(args: argparse.Namespace) -> None:
    """Have the next `digests_of_inputs` look at the files again."""
    args._inputs = None


def _files(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    given = vars(args)
    model, segmenter, regions = (given.get(name) for name in ("pretrained_model_name_or_path", "segmenter", "regions"))
    if model:
        parts = COMPONENTS.get(str(given.get("trainer", "")).split(" ")[-1], ())
        if segmenter or regions:
            parts = tuple(part for part in parts if part != "segmenter")
        if not given.get("realism_weight", 1):
            parts = tuple(part for part in parts if part != "discriminator")
        for part in parts:
            yield from _weights("--model", model, part, given.get("revision"), given.get("variant"))
    if segmenter:
        yield from _weights("--segmenter", segmenter, "", given.get("segmenter_revision"), None)
    if regions:
        yield from _weights("--regions", regions, "segmenter", None, None)
        if (tree := Path(regions, "tree.json")).is_file():
            yield "--regions tree.json", tree
    if given.get("region_map") and Path(given["region_map"]).is_file():
        yield "--region_map", Path(given["region_map"])


def _weights(flag: str, name: str, part: str, revision: str | None, variant: str | None) -> Iterator[tuple[str, Path]]:
    """The weight files of a component, of a folder or of the Hub's commit that is loaded."""
    with suppress(FileNotFoundError):
        name = find_model(name)
    folder, patterns = Path(name), weight_patterns(part, variant)
    if not os.path.exists(name):
        with (
            suppress(OSError, ValueError),
            snapshot(name, f"{part}/config.json".lstrip("/"), revision, {}) as (at, fetch),
        ):
            fetch(patterns)
            folder = at
    if folder.is_dir():
        for file in sorted({file for pattern in patterns for file in folder.glob(pattern) if file.is_file()}):
            yield f"{flag} {file.relative_to(folder).as_posix()}", file
