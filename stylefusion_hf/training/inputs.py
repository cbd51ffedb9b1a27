"""The sha256 of the weights that go into a training, stored in checkpoints and compared on resumption."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from stylefusion_hf.core.files import sha256_of
from stylefusion_hf.core.hub_files import snapshot, weight_patterns
from stylefusion_hf.core.named_models import find_model

# The components of --model that each trainer uses.
COMPONENTS = {
    "generator": ("generator", "discriminator"),
    "segmenter": ("segmenter",),
    "fusion": ("generator", "discriminator", "segmenter"),
    "encoder": ("generator", "segmenter"),
    "judges": ("generator",),
}


def digests_of_inputs(args: argparse.Namespace) -> dict[str, str]:
    """Return {flag and file: sha256} of the weights named by --model, --segmenter, --encoder and --regions, and of
    --region_map.

    Computed once per `args`, when the run begins (`forget_inputs`), so later changes of the files do not matter. Files
    inside --output_dir are left out, since the run itself writes there, and so are missing weights: loading them
    explains the problem.
    """
    if getattr(args, "_inputs", None) is None:
        out = Path(os.path.realpath(args.output_dir))
        found = {name: Path(os.path.realpath(file)) for name, file in _files(args)}
        args._inputs = {name: sha256_of(file) for name, file in found.items() if out not in file.parents}
    return args._inputs


def forget_inputs(args: argparse.Namespace) -> None:
    """Make the next `digests_of_inputs` read the files again."""
    args._inputs = None


def _files(args: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    """Yield (flag and name, path) of every input file."""
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
    if given.get("initial_fusion"):
        yield from _weights("--initial_fusion", given["initial_fusion"], "fusion", None, None)
    if regions:
        yield from _weights("--regions", regions, "segmenter", None, None)
        if (tree := Path(regions, "tree.json")).is_file():
            yield "--regions tree.json", tree
    if given.get("encoder"):
        yield from _weights("--encoder", given["encoder"], "", None, None)
    if given.get("region_map") and Path(given["region_map"]).is_file():
        yield "--region_map", Path(given["region_map"])


def _weights(flag: str, name: str, part: str, revision: str | None, variant: str | None) -> Iterator[tuple[str, Path]]:
    """Yield the weight files of a component, from a folder or from the Hub's commit that is loaded."""
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
