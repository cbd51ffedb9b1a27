"""Swaps by fusion nets: the model's own, two controls that ignore the source, and nets of constant gates."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from stylefusion_hf.evaluation.methods import TENTHS, move, region_index
from stylefusion_hf.evaluation.pairs import Pairs, render, segment
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.fusion.net import Blender, FoldedLinear
from stylefusion_hf.pipelines.refining import refine_codes

REFINE_STEPS = 20


class StyleFusionSwap:
    """The pipeline's fusion nets (Kafri et al., arXiv 2107.07437): leaf code from the source, all others from the
    base.

    Args:
        wider: also take the common code of the leaf's parent from the source, unless the parent is the root. The
            authors' controls do so (hair: the leaf and bg_hair_clothes; eyes: the leaf and face).

    The strength interpolates these codes from the base's to the source's, as the pipeline's `strength` does.
    """

    strengths = TENTHS

    def __init__(self, pipe, wider: bool = False):
        self.pipe, self.wider = pipe, wider
        self.name = "stylefusion, wider" if wider else "stylefusion"

    @property
    def fusion(self) -> FusionHierarchy:
        """The nets that this method fuses with."""
        return self.pipe.fusion

    def source(self, pairs: Pairs) -> Tensor:
        """Return the codes (B, S) that the region takes at full strength."""
        return pairs.source

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        tree = self.fusion.tree
        parent = tree.parent(tree.resolve(region))
        chosen = {region, parent} if self.wider and parent != tree.root else {region}
        moved = move(pairs.base, self.source(pairs), strength)
        codes = {name: moved if name in chosen else pairs.base for name in tree.nodes}
        return render(self.pipe, self.fuse(codes, pairs))

    def fuse(self, codes: dict[str, Tensor], pairs: Pairs) -> Tensor:
        """Return the fused codes (B, S) of {node: codes (B, S)}."""
        return self.fusion.fuse(codes)


class RefinedSwap(StyleFusionSwap):
    """The same nets, whose gates are then optimized for each pair: the pipeline's `refine_steps`.

    The refinement sees the model's own generator and segmenter, never the judges.
    """

    def __init__(self, pipe, steps: int = REFINE_STEPS):
        super().__init__(pipe)
        self.name, self.steps = "stylefusion, refined", steps

    def fuse(self, codes: dict[str, Tensor], pairs: Pairs) -> Tensor:
        return refine_codes(self.pipe, codes, pairs.base, self.steps)


class MeanCode(StyleFusionSwap):
    """The same nets with the mean code as every source: measures mere movement toward the mean."""

    def __init__(self, pipe):
        super().__init__(pipe)
        self.name = "mean"

    def source(self, pairs: Pairs) -> Tensor:
        return mean_code(self.pipe).expand_as(pairs.source)


class RandomCode(StyleFusionSwap):
    """The same nets with an unrelated random code in place of the source."""

    def __init__(self, pipe):
        super().__init__(pipe)
        self.name = "random code"

    def source(self, pairs: Pairs) -> Tensor:
        if pairs.unrelated is None:
            raise ValueError("these pairs have no unrelated codes: draw them with draw_pairs")
        return pairs.unrelated


class MeanLook:
    """The region of the mean code's picture pasted over the base, whatever the source. Strength is opacity."""

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
    """Nets of constant gates, trained on the same objective, pool and steps as the model's nets.

    A lead over them is due to gates that depend on the codes, not to the objective.

    Args:
        fusion: nets whose MLPs add nothing to the constant logits, for the pipeline's tree and style channels.

    Raises:
        ValueError: the gates are not constant, or the nets belong to another tree or generator.
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
        self.constant, self.name = fusion, "static gates, same objective"

    @property
    def fusion(self) -> FusionHierarchy:
        return self.constant

    @classmethod
    def load(cls, pipe, folder: str | Path) -> StaticGates:
        """Load from an output folder of `stylefusion train fusion`, or from the fusion/ in it."""
        folder = Path(folder)
        where = folder / "fusion" if (folder / "fusion").is_dir() else folder
        fusion = FusionHierarchy.from_pretrained(where, torch_dtype=torch.float32)
        return cls(pipe, fusion.eval().requires_grad_(False).to(pipe.generator.device))


def mean_code(pipe) -> Tensor:
    """Return the style code (1, S) of the generator's mean w."""
    return pipe.generator.to_style(pipe.generator.w_avg[None])


def is_constant(fusion: FusionHierarchy) -> bool:
    """Return whether no gate depends on the codes (it may depend on which child was replaced)."""

    def blenders() -> Iterator[Blender]:
        for name in fusion.tree.fused:
            net = fusion.net(name)
            yield from (net.blender_segments, net.blender_common)

    def adds_nothing(blender: Blender) -> bool:
        layers = cast("list[FoldedLinear]", list(blender.layers)[-blender.output_layers :])
        return not layers[-1].bias.any() and any(not layer.weight.any() for layer in layers)

    return all(b.gate_bias is not None and adds_nothing(b) for b in blenders())
