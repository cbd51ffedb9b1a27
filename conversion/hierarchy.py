"""The authors' fusion nets: their JSON of node -> .pt, the region tree it belongs to, and the shape of the nets."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from stylefusion_hf.conversion.fusion_nets import rename_fusion_net
from stylefusion_hf.conversion.inert import ConversionError, MiB
from stylefusion_hf.conversion.layouts import Converted
from stylefusion_hf.conversion.safe_pickle import load
from stylefusion_hf.core.checks import describe_error, shown
from stylefusion_hf.core.json_files import read_json as read_table
from stylefusion_hf.core.region_tree import PRESETS, RegionTree
from stylefusion_hf.models.fusion.hierarchy import NET_PREFIX

# Domain -> (the resolution of the authors' generator, their truncation).
DOMAINS = {"ffhq": (1024, 0.7), "car": (512, 0.5), "church": (256, 0.5)}
GENERATOR_KEYS = ("generator", "stylegan", "stylegan_weights")  # where a JSON of one's own may name the generator
AUTHORS_INDICATORS, AUTHORS_REPEATS = 19, 10
MAX_NETS, MAX_NAME = 64, 1024  # nodes in a JSON, characters in a name or path


@dataclass
class NetFiles:
    """What a JSON names: the net of each node, and perhaps the generator; all as existing paths."""

    nets: dict[str, Path]
    generator: Path | None


def read_json(path: Path) -> NetFiles:
    """The files that a JSON of node -> path names.

    The authors' paths are relative to their repository's root, one folder above the JSON: a relative path is looked
    for in the JSON's folder, then in the folders above it, then in the current one.

    Raises:
        ConversionError: no such JSON, or it names no files that exist; lists all that are missing.
    """
    try:
        table = read_table(path, "the table of nets", largest=MiB)
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path}: cannot be read as JSON ({describe_error(error, 200)})") from None
    names = [*table, *table.values()] if isinstance(table, dict) else [None]
    if not all(isinstance(name, str) and name.isprintable() and len(name) < MAX_NAME for name in names):
        raise ConversionError(f'{path}: expected node -> file, such as {{"all": "weights/church/all.pt"}}')
    if len(table) > MAX_NETS:
        raise ConversionError(f"{path}: names {len(table):,} nets, more than {MAX_NETS}")
    found = {node: _find(path, file) for node, file in table.items()}
    if missing := _listed(f"{node} ({table[node][:80]})" for node, file in found.items() if file is None):
        raise ConversionError(f"{path}: these files do not exist: {missing}; leave a net out to do without it")
    files = {node: file for node, file in found.items() if file is not None}
    generator = next((files.pop(key) for key in GENERATOR_KEYS if key in files), None)
    return NetFiles(files, generator)


def _find(json_path: Path, file: str) -> Path | None:
    for folder in (*json_path.absolute().parents, Path.cwd()):
        candidate = folder / os.path.expanduser(file)
        try:
            if candidate.is_file():
                return candidate
        except OSError:  # a name too long for the file system
            return None
    return None


def _listed(names: Iterable[str], most: int = 6) -> str:
    """Names for an error, which a hostile JSON must not fill at will."""
    parts = [shown(name, 120) for name in names]
    return ", ".join(parts[:most]) + (", ..." if len(parts) > most else "")


def choose_tree(
    nodes: Sequence[str], resolution: int, json_path: Path, asked: str | None = None
) -> tuple[str, RegionTree]:
    """(domain, tree) with exactly the given nodes fused.

    The domain is the one whose inner nodes the JSON names; where several fit (every tree's root is "all"), the one
    that the JSON's path names, else the one with the generator's resolution.

    Raises:
        ConversionError: nodes of no known tree, or of several; says what to give as `--tree`.
    """
    if asked is not None:
        try:
            tree = RegionTree.from_argument(asked)
        except (ValueError, OSError) as error:
            raise ConversionError(f"--tree: {error}") from None
        return asked if asked in DOMAINS else "custom", _fuse(tree, nodes, json_path)
    fitting = [domain for domain in DOMAINS if set(nodes) <= set(RegionTree.preset(domain).inner)]
    named = [d for d in fitting if re.search(rf"(^|[^a-z]){d}s?([^a-z]|$)", "/".join(json_path.parts[-3:]).lower())]
    sized = [domain for domain in fitting if DOMAINS[domain][0] == resolution]
    for choice in (fitting, named, sized):
        if len(choice) == 1:
            return choice[0], _fuse(RegionTree.preset(choice[0]), nodes, json_path)
    problem = f"fits the trees {', '.join(fitting)}" if fitting else "names nodes of no known tree"
    raise ConversionError(
        f"{json_path}: {problem} (nodes: {_listed(nodes) or 'none'}); say which with --tree, one of"
        f" {', '.join(PRESETS)}, or a tree's text such as 'all*(church, background)'"
    )


def _fuse(tree: RegionTree, nodes: Sequence[str], json_path: Path) -> RegionTree:
    try:
        return RegionTree(tree.root, tree.branches, tuple(nodes))
    except ValueError as error:
        raise ConversionError(f"{json_path}: {error}") from None


def load_net(path: Path, node: str) -> dict[str, torch.Tensor]:
    """One net's tensors under the hierarchy's names; plain, or under "state_dict"."""
    content = load(path)
    try:
        if not isinstance(content, Mapping):
            raise ValueError(f"the fusion net of {node!r} is no state dict")
        renamed = rename_fusion_net(content, node)
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{path}: {str(error)[:300]}") from None
    for name, tensor in renamed.items():
        if not isinstance(tensor, torch.Tensor):
            raise ConversionError(f"{path}: its {name.removeprefix('nets.' + NET_PREFIX)!r} is no tensor")
    return renamed


def convert_hierarchy(nets: Mapping[str, Path], tree: RegionTree, generator: Mapping[str, Any]) -> Converted:
    """All nets as one hierarchy's config and weights.

    Args:
        nets: node -> file.
        tree: whose fused nodes are those.
        generator: `conv_sizes` and `rgb_sizes` of the generator that the nets belong to.

    Raises:
        ConversionError: nets of different shapes, or of a shape that the generator does not fit.
    """
    state: dict[str, torch.Tensor] = {}
    shape: dict[str, int] = {}
    vectors = max(len(generator["conv_sizes"]), len(generator["rgb_sizes"])) + 1
    for node in tree.fused:
        tensors = load_net(nets[node], node)
        found = _shape_of(tensors, f"nets.{NET_PREFIX}{node}.", nets[node], vectors)
        if shape and found != shape:
            raise ConversionError(f"{nets[node]}: this net's shape is {found}, but the others' {shape}")
        shape = found
        state |= tensors
    if shape and max(*generator["conv_sizes"], *generator["rgb_sizes"]) > shape["padded_width"]:
        raise ConversionError(f"{nets[tree.fused[0]]}: nets of width {shape['padded_width']} for a wider generator")
    if not shape:  # no net at all: the widest vector's width, so that the hierarchy can be made
        shape = {"padded_width": max(*generator["conv_sizes"], *generator["rgb_sizes"]), "num_indicators": vectors}
    config = {"tree": tree.to_dict(), **generator, **shape}
    return Converted(config, state)


def _shape_of(tensors: Mapping[str, torch.Tensor], prefix: str, path: Path, vectors: int) -> dict[str, int]:
    """Widths, read off the weights: in -> hidden x n -> padded x 2, for three codes (segments) or two (common)."""
    rows: dict[str, list[tuple[int, int]]] = {}
    for blender in ("blender_segments", "blender_common"):
        rows[blender] = []
        while (weight := tensors.get(f"{prefix}{blender}.layers.{len(rows[blender])}.weight")) is not None:
            bias = tensors.get(f"{prefix}{blender}.layers.{len(rows[blender])}.bias")
            if weight.ndim != 2 or bias is None or bias.shape != weight.shape[:1]:
                raise ConversionError(f"{path}: layer {len(rows[blender])} of its {blender} is no linear layer")
            rows[blender].append((weight.shape[0], weight.shape[1]))
    segments, common = rows["blender_segments"], rows["blender_common"]
    count = sum(len(layers) for layers in rows.values())
    if len(segments) < 3 or len(common) != len(segments) or len(tensors) != 2 * count:
        raise ConversionError(f"{path}: its blenders have {len(segments)} and {len(common)} layers, not 3 or more")
    padded, hidden = segments[-1][0], segments[0][0]
    indicator = segments[0][1] - 3 * padded
    for layers, codes in ((segments, 3), (common, 2)):
        widths = [codes * padded + indicator, *[hidden] * (len(layers) - 2), padded, padded]
        if layers != [(b, a) for a, b in pairwise(widths)]:
            raise ConversionError(f"{path}: its layers are {[a for _, a in layers]} wide, not as in a fusion net")
    # Only the product of the indicator's length and its repeats shows in the weights. The authors' code varies the
    # repeats alone.
    choices = [(AUTHORS_INDICATORS, indicator / AUTHORS_INDICATORS), (indicator / AUTHORS_REPEATS, AUTHORS_REPEATS)]
    for numbers, repeats in choices:
        if int(numbers) == numbers >= vectors and int(repeats) == repeats >= 1:
            return {
                "padded_width": padded,
                "hidden_width": hidden,
                "hidden_layers": len(segments) - 2,
                "num_indicators": int(numbers),
                "indicator_repeats": int(repeats),
            }
    raise ConversionError(f"{path}: its layer indicator ({indicator} numbers) is too short for {vectors - 1} vectors")
