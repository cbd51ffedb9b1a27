"""The authors' fusion nets: the JSON that lists their files, its region tree, the nets' sizes and tensor names.

The authors publish one checkpoint per node (MIT license, github.com/OmerKafri/StyleFusion); each contains the two
blenders of one net as `blender_{segments,common}.disentangle_net.{0..4}.{weight,bias}`. Values do not change.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stylefusion_hf.conversion.layouts import Converted
from stylefusion_hf.core.checks import describe_error, shown
from stylefusion_hf.core.json_files import read_json as read_table
from stylefusion_hf.core.region_tree import PRESETS, RegionTree
from stylefusion_hf.core.untrusted.inert import ConversionError, MiB
from stylefusion_hf.core.untrusted.safe_pickle import load
from stylefusion_hf.models.fusion.hierarchy import NET_PREFIX

# Domain -> (the resolution of the authors' generator, their truncation).
DOMAINS = {"ffhq": (1024, 0.7), "car": (512, 0.5), "church": (256, 0.5)}
GENERATOR_KEYS = ("generator", "stylegan", "stylegan_weights")  # keys under which a JSON may name the generator
AUTHORS_INDICATORS, AUTHORS_REPEATS = 19, 10
_PUBLISHED = re.compile(r"(blender_(?:segments|common))\.disentangle_net\.(\d+)\.(weight|bias)")
MAX_NETS, MAX_NAME = 64, 1024  # nodes in a JSON, characters in a name or path


@dataclass
class NetFiles:
    """The files named in a JSON: the net of each node, and optionally the generator. All paths exist."""

    nets: dict[str, Path]
    generator: Path | None


def read_json(path: Path) -> NetFiles:
    """Read a JSON of node -> path.

    The authors' paths are relative to their repository's root, one folder above the JSON. We search relative paths in
    the JSON's folder, then in the folders above it, then in the current folder.

    Raises:
        ConversionError: no such JSON, or files in it that do not exist; lists the missing ones.
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
        raise ConversionError(f"{path}: these files do not exist: {missing}; remove a net from it to do without")
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
    """Join names for an error, bounded even for a hostile JSON."""
    parts = [shown(name, 120) for name in names]
    return ", ".join(parts[:most]) + (", ..." if len(parts) > most else "")


def choose_tree(
    nodes: Sequence[str], resolution: int, json_path: Path, asked: str | None = None
) -> tuple[str, RegionTree]:
    """Choose (domain, tree), with exactly the given nodes fused.

    The domain is the one that has these inner nodes. If there are several (every tree's root is "all"), the JSON's
    path decides, then the generator's resolution.

    Raises:
        ConversionError: the nodes match no known tree, or several; suggests `--tree`.
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
    """Load one net's tensors under the hierarchy's names, from a state dict or a checkpoint with "state_dict"."""
    content = load(path)
    try:
        if not isinstance(content, Mapping):
            raise ValueError(f"the fusion net of {node!r} is not a state dict")
        renamed = rename_fusion_net(content, node)
    except (ValueError, TypeError) as error:
        raise ConversionError(f"{path}: {str(error)[:300]}") from None
    for name, tensor in renamed.items():
        if not isinstance(tensor, torch.Tensor):
            raise ConversionError(f"{path}: its {name.removeprefix('nets.' + NET_PREFIX)!r} is not a tensor")
    return renamed


def convert_hierarchy(nets: Mapping[str, Path], tree: RegionTree, generator: Mapping[str, Any]) -> Converted:
    """Convert all nets to one hierarchy's config and weights.

    Args:
        nets: node -> file.
        tree: its fused nodes are the keys of `nets`.
        generator: `conv_sizes` and `rgb_sizes` of the generator that the nets belong to.

    Raises:
        ConversionError: the nets' sizes differ, or do not fit the generator.
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
    if not shape:  # no nets: any valid size does
        shape = {"padded_width": max(*generator["conv_sizes"], *generator["rgb_sizes"]), "num_indicators": vectors}
    config = {"tree": tree.to_dict(), **generator, **shape}
    return Converted(config, state)


def _shape_of(tensors: Mapping[str, torch.Tensor], prefix: str, path: Path, vectors: int) -> dict[str, int]:
    """Derive the net's sizes from its weights: in -> hidden x n -> padded x 2, for three (segments) or two codes."""
    rows: dict[str, list[tuple[int, int]]] = {}
    for blender in ("blender_segments", "blender_common"):
        rows[blender] = []
        while (weight := tensors.get(f"{prefix}{blender}.layers.{len(rows[blender])}.weight")) is not None:
            bias = tensors.get(f"{prefix}{blender}.layers.{len(rows[blender])}.bias")
            if weight.ndim != 2 or bias is None or bias.shape != weight.shape[:1]:
                raise ConversionError(f"{path}: layer {len(rows[blender])} of its {blender} is not a linear layer")
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
    # The weights only determine the product of the indicator's length and its repeats. The authors' code varies only
    # the repeats.
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


def rename_fusion_net(published: Mapping[str, Tensor], node: str) -> dict[str, Tensor]:
    """Rename one published net's tensors to those of node `node` in `FusionHierarchy.state_dict()`.

    Args:
        published: the state dict, or a checkpoint that contains it as "state_dict".
        node: the name of the region tree's node that owns the net.

    Raises:
        ValueError: the checkpoint is not one fusion net.
    """
    state = published.get("state_dict", published)
    if not isinstance(state, Mapping):
        raise ValueError(f"the fusion net of {node!r} is not a state dict: its 'state_dict' is {type(state).__name__}")
    renamed = {}
    for name, tensor in state.items():
        match = _PUBLISHED.fullmatch(name)
        if match is None:
            raise ValueError(
                f"the fusion net of {node!r} has an unknown tensor {name!r}; expected names like"
                " 'blender_segments.disentangle_net.0.weight'"
            )
        blender, layer, kind = match.groups()
        renamed[f"nets.{NET_PREFIX}{node}.{blender}.layers.{layer}.{kind}"] = tensor
    for blender in ("blender_segments", "blender_common"):
        if not any(f".{blender}." in name for name in renamed):
            raise ValueError(
                f"the fusion net of {node!r} has no {blender}: it is not a StyleFusion checkpoint, or only part of one"
            )
    return renamed
