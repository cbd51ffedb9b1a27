"""The authors' fusion nets -> `FusionHierarchy` weights, by renaming only.

The authors publish one checkpoint per node (MIT license, github.com/OmerKafri/StyleFusion); each contains the two
blenders of one net as `blender_{segments,common}.disentangle_net.{0..4}.{weight,bias}`. Values do not change.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from stylefusion_hf.models.fusion.hierarchy import NET_PREFIX

_PUBLISHED = re.compile(r"(blender_(?:segments|common))\.disentangle_net\.(\d+)\.(weight|bias)")


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


def rename_fusion_nets(published: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Rename {node: published net} to the state dict of the entire hierarchy."""
    return {name: tensor for node, net in published.items() for name, tensor in rename_fusion_net(net, node).items()}
