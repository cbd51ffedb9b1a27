"""Swaps by fusion nets: the model's own, the two that ignore the source, and nets of constant gates beside them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from stylefusion_hf.evaluation.methods import TENTHS, move, region_index
from stylefusion_hf.evaluation.pairs import Pairs, render, segment
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.fusion.net import Blender


class StyleFusionSwap:
    """The pipeline's fusion nets (Kafri et al., arXiv 2107.07437): the source's leaf code, the base's for all else.

    Args:
        wider: set the common code of the leaf's parent too, unless that is the root. So do the controls that the
            authors have (hair: the leaf and bg_hair_clothes; eyes: the leaf and face).

    Strengths move the codes that are set from the base's to the source's, as the pipeline's `strength` does.
    """

    strengths = TENTHS

    def __init__(self, pipe, wider: bool = False):
        self.pipe, self.wider = pipe, wider
        self.name = "stylefusion, wider" if wider else "stylefusion"

    @property
    def fusion(self) -> FusionHierarchy:
        """The nets that fuse."""
        return self.pipe.fusion

    def source(self, pairs: Pairs) -> Tensor:
        """The code (B, S) that the region is set to at full strength."""
        return pairs.source

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        tree = self.fusion.tree
        parent = tree.parent(tree.resolve(region))
        chosen = {region, parent} if self.wider and parent != tree.root else {region}
        moved = move(pairs.base, self.source(pairs), strength)
        return render(self.pipe, self.fusion.fuse({n: moved if n in chosen else pairs.base for n in tree.nodes}))


class MeanCode(StyleFusionSwap):
    """The same nets, given the mean code whatever the source is: what mere movement toward the mean reads."""

    def __init__(self, pipe):
        super().__init__(pipe)
        self.name = "mean"

    def source(self, pairs: Pairs) -> Tensor:
        return mean_code(self.pipe).expand_as(pairs.source)


class StrangerCode(StyleFusionSwap):
    """The same nets, given a stranger's code whatever the source is."""

    def __init__(self, pipe):
        super().__init__(pipe)
        self.name = "stranger"

    def source(self, pairs: Pairs) -> Tensor:
        if pairs.stranger is None:
            raise ValueError("these pairs have no strangers: draw them with draw_pairs")
        return pairs.stranger


class MeanLook:
    """The region of the mean code's picture, pasted over the base: the mean look, whatever the source. Strength is
    opacity.
    """

    name, strengths = "mean look", TENTHS

    def __init__(self, pipe):
        self.pipe = pipe

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        picture = render(self.pipe, mean_code(self.pipe))
        mask = segment(self.pipe, picture).argmax(dim=1) == region_index(self.pipe, region)
        return move(pairs.plain, picture.expand_as(pairs.plain), strength * mask[:, None].float())


class StaticGates(StyleFusionSwap):
    """Nets of constant gates, trained on the same objective, pool and steps as the model's nets: what is left of the
    lead over them is the nets' own, not the objective's.

    Args:
        fusion: nets whose MLPs add nothing to their constant logits, for the pipeline's tree and style channels.

    Raises:
        ValueError: the nets are not constant, or of another tree or generator.
    """

    def __init__(self, pipe, fusion: FusionHierarchy):
        super().__init__(pipe)
        if not is_constant(fusion):
            raise ValueError(
                "these nets' gates depend on the codes: train constant ones with `stylefusion train fusion"
                " --static_steps N`, N at least --max_train_steps, and the other flags as for the model"
            )
        if str(fusion.tree) != str(pipe.fusion.tree) or fusion.style_width != pipe.generator.style_dim:
            raise ValueError(
                f"the static gates are for {fusion.style_width} style channels and the tree {fusion.tree}; this model"
                f" has {pipe.generator.style_dim} and {pipe.fusion.tree}"
            )
        self.constant, self.name = fusion, "static gates, trained alike"

    @property
    def fusion(self) -> FusionHierarchy:
        return self.constant

    @classmethod
    def load(cls, pipe, folder: str | Path) -> StaticGates:
        """From an output folder of `stylefusion train fusion`, or from the fusion/ in it."""
        folder = Path(folder)
        where = folder / "fusion" if (folder / "fusion").is_dir() else folder
        fusion = FusionHierarchy.from_pretrained(where, torch_dtype=torch.float32)
        return cls(pipe, fusion.eval().requires_grad_(False).to(pipe.generator.device))


def mean_code(pipe) -> Tensor:
    """The style code (1, S) of the generator's mean w."""
    return pipe.generator.to_style(pipe.generator.w_avg[None])


def is_constant(fusion: FusionHierarchy) -> bool:
    """Whether every gate is a constant logit: one that does not depend on the codes, but for which child is new."""

    def blenders() -> Iterator[Blender]:
        for name in fusion.tree.fused:
            net = fusion.net(name)
            yield from (net.blender_segments, net.blender_common)

    return all(b.gate_bias is not None and not any(p.any() for p in b.layers[-1].parameters()) for b in blenders())
