"""The authors' fusion nets -> `FusionHierarchy` weights, as pure renaming.

The authors publish one checkpoint per node (MIT licence, github.com/OmerKafri/StyleFusion); each holds the two
blenders of one net, under `blender_{segments,common}.disentangle_net.{0..4}.{weight,bias}`. Values stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from stylefusion_hf.models.fusion.hierarchy import NET_PREFIX

_PUBLISHED = re.compile(r"(blender_(?:segments|common))\.disentangle_net\.(\d+)\.(weight|bias)")


def rename_fusion_net(published: Mapping[str, Tensor], node: str) -> dict[str, Tensor]:
    """One published net's tensors under the names that `FusionHierarchy.state_dict()` gives the net of `node`.

    Args:
        published: the state dict, or the checkpoint that holds it as "state_dict".
        node: the region tree's name of the node that owns the net.

    Raises:
        ValueError: for a checkpoint that is not one fusion net.
    """
    state = published.get("state_dict", published)
    if not isinstance(state, Mapping):
        raise ValueError(f"the fusion net of {node!r} is no state dict: its 'state_dict' is {type(state).__name__}")
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
    """{node: published net} -> the state dict of the whole hierarchy."""
    return {name: tensor for node, net in published.items() for name, tensor in rename_fusion_net(net, node).items()}
