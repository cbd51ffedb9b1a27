"""FusionHierarchy: all fusion nets of a region tree in one model.

A tree of fusion nets turns one style code per region, plus the codes that regions share, into a single style code
(StyleFusion, arXiv 2107.07437, section 3.3). The tree, and the widths of the generator's style vectors, are config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from diffusers import ConfigMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.models.config_checks import checked_config
from stylefusion_hf.models.fusion.net import FusionNet
from stylefusion_hf.models.fusion.open_rows import fuse_open_rows, values_are_final
from stylefusion_hf.models.fusion.style_rows import FusionSpec, StyleLayout
from stylefusion_hf.models.loading import StrictModelMixin
from stylefusion_hf.models.style_generator import StyleGenerator

NET_PREFIX = "net_"  # keeps legal region names such as "half" or "train" away from ModuleDict's own attributes


@dataclass
class FusionOutput(BaseOutput):
    """Output of `FusionHierarchy`.

    Args:
        style_codes: the fused style code, (B, S).
        gates: node -> gate of its segments blender, (B, S); where they were asked for.
    """

    style_codes: Tensor
    gates: dict[str, Tensor] | None = None


class FusionHierarchy(StrictModelMixin, ConfigMixin):
    r"""The fusion nets of a region tree. The defaults are the authors' configuration.

    Args:
        tree: the regions: the dict of `RegionTree.to_dict` (kept in the config), a tree, its text or a preset's name.
        conv_sizes: widths of the generator's style vectors of the convolutions ...
        rgb_sizes: ... and of the toRGB layers; a style code packs all of these, then all of those: S numbers.
        padded_width: width to which every vector is brought.
        hidden_width: width of the gating MLPs, which go in -> hidden_width x hidden_layers -> padded_width ->
            padded_width for each number that makes a logit (one, and one more for each of the switches below).
        hidden_layers: see hidden_width.
        num_indicators: length of the one-hot layer indicator.
        indicator_repeats: how often the indicator is tiled.
        shared_indicators: conv i and toRGB i share indicator i; if False each vector has its own.
        common_conv_layers: how many conv vectors, from the first, are aligned to the common code.
        common_rgb_layers: how many toRGB vectors, from the first, are aligned to the common code.
        lr_multiplier: of the equalised linear layers.
        pooling: the gate of a channel that spans several of the padded positions: their "max" (authors) or "mean".
        final_activation: before the sigmoid, "lrelu" (authors) or "linear".
        gate_bias: give each blender a learned logit per style vector and channel, and start the MLP's last layer at
            zero, so that untrained nets are constant gates (see `set_constant_gates`).
        gate_product: let a logit depend on the sign of its channel's difference (`fusion_net.signed`).
        gate_novelty: let it depend on which child differs from the common code there (`fusion_net.novelty`), and in
            alignment on whether the sibling does, too (`fusion_net.company`).
        standardise: show the MLPs every style channel as its deviation from its mean, in units of its standard
            deviation (see `set_statistics`); what is blended stays the code itself.
        adaptive_conv_layers: how many conv vectors, from the first, have gates that an MLP makes. Those of the others
            are constants, or follow novelty alone where `gate_novelty` is on; this needs `gate_bias`. None: all.
        adaptive_rgb_layers: the same of the toRGB vectors.

    Raises:
        ValueError: for shapes that do not fit together, or an invalid tree.

    Example:
        >>> import torch
        >>> from stylefusion_hf import FusionHierarchy
        >>> fusion = FusionHierarchy("all*(car, background)", [8, 8, 4], [8, 4], padded_width=8, hidden_width=16)
        >>> codes = {name: torch.randn(2, 32) for name in fusion.tree.nodes}
        >>> fusion.fuse(codes).shape
        torch.Size([2, 32])
    """

    _supports_gradient_checkpointing = False

    @register_to_config
    @checked_config
    def __init__(
        self,
        tree: Mapping[str, Any] | RegionTree | str,
        conv_sizes: Sequence[int],
        rgb_sizes: Sequence[int],
        padded_width: int = 512,
        hidden_width: int = 2560,
        hidden_layers: int = 3,
        num_indicators: int = 19,
        indicator_repeats: int = 10,
        shared_indicators: bool = True,
        common_conv_layers: int = 5,
        common_rgb_layers: int = 5,
        lr_multiplier: float = 0.01,
        pooling: str = "max",
        final_activation: str = "lrelu",
        gate_bias: bool = False,
        gate_product: bool = False,
        gate_novelty: bool = False,
        standardise: bool = False,
        adaptive_conv_layers: int | None = None,
        adaptive_rgb_layers: int | None = None,
    ):
        super().__init__()
        self.tree = RegionTree.of(tree)
        self.register_to_config(tree=self.tree.to_dict(), conv_sizes=list(conv_sizes), rgb_sizes=list(rgb_sizes))
        spec = FusionSpec(
            conv_sizes=tuple(conv_sizes),
            rgb_sizes=tuple(rgb_sizes),
            padded_width=padded_width,
            hidden_width=hidden_width,
            hidden_layers=hidden_layers,
            num_indicators=num_indicators,
            indicator_repeats=indicator_repeats,
            shared_indicators=shared_indicators,
            common_conv_layers=common_conv_layers,
            common_rgb_layers=common_rgb_layers,
            lr_multiplier=lr_multiplier,
            pooling=pooling,
            final_activation=final_activation,
            gate_bias=gate_bias,
            gate_product=gate_product,
            gate_novelty=gate_novelty,
            standardise=standardise,
            adaptive_conv_layers=adaptive_conv_layers,
            adaptive_rgb_layers=adaptive_rgb_layers,
        )
        self.layout = StyleLayout(spec)
        self.nets = nn.ModuleDict({NET_PREFIX + name: FusionNet(spec) for name in self.tree.fused})

    @classmethod
    def for_generator(
        cls, generator: StyleGenerator, tree: Mapping[str, Any] | RegionTree | str, **config: Any
    ) -> FusionHierarchy:
        """Untrained nets for a generator's style codes.

        Args:
            tree, config: see the class; what the style vectors determine (their sizes, `padded_width`,
                `num_indicators`) is taken from the generator where it is not given.
        """
        conv, rgb = generator.conv_sizes, generator.rgb_sizes
        count = max(len(conv), len(rgb)) + 1 if config.get("shared_indicators", True) else len(conv) + len(rgb)
        own = {"conv_sizes": conv, "rgb_sizes": rgb, "padded_width": max(conv + rgb), "num_indicators": count}
        return cls(tree, **(own | config))

    @property
    def spec(self) -> FusionSpec:
        """The shape that all nets share."""
        return self.layout.spec

    @property
    def style_width(self) -> int:
        """S, the numbers in a style code."""
        return self.spec.style_width

    def net(self, name: str) -> FusionNet:
        """The fusion net of a node."""
        if self.tree.resolve(name) not in self.tree.fused:
            raise ValueError(f"the node {name!r} has no fusion net; these have: {', '.join(self.tree.fused)}")
        return self.nets[NET_PREFIX + name]  # type: ignore[return-value]

    # ------------------------------------------------------------------------------------------------
    # Fusing.

    def forward(
        self, codes: Mapping[str, Tensor], output_gates: bool = False, return_dict: bool = True
    ) -> FusionOutput | tuple[Any, ...]:
        """As `fuse` (and `gates`, with `output_gates`), in an output class or a tuple."""
        fused, gates = self.fuse_with_gates(codes)
        output = FusionOutput(style_codes=fused, gates=gates if output_gates else None)
        return output if return_dict else output.to_tuple()

    def fuse(self, codes: Mapping[str, Tensor]) -> Tensor:
        """One style code from the codes of the tree's nodes.

        As in the authors' code, a node without a net, or one of whose two children is not among `codes`, gives its own
        code unchanged (what lies below it then plays no part). A node with a net and no code of its own is fused from
        its children without aligning them.

        Args:
            codes: node -> style codes (B, S); a batch of 1 repeats. They may be of another dtype than the weights.

        Returns:
            (B, S) in the codes' dtype. Equal codes give that code out exactly.

        Raises:
            ValueError: for unknown nodes, wrong shapes, mixed dtypes, devices or batch sizes, or a missing code.
        """
        checked = self._checked(codes)
        final = values_are_final(chain(self.parameters(), checked.values()))
        return self._evaluate(self.tree.root, checked, None if final else {}).clone()  # it may be a view of a code

    def gates(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """node -> gate of the node's segments blender, (B, S) in (0, 1): 0 keeps the first child, 1 takes the second.

        Only nodes whose net took part are listed.
        """
        return self.fuse_with_gates(codes)[1]

    def fuse_with_gates(self, codes: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """`fuse` and `gates` in one pass, for training and diagnostics."""
        gates: dict[str, Tensor] = {}
        return self._evaluate(self.tree.root, self._checked(codes), gates), gates

    def blend(self, name: str, s0: Tensor, s1: Tensor | None, common: Tensor | None) -> Tensor:
        """One net by itself, codes (B, S): children s0 and s1 and their common code.

        Without s1 the net only aligns s0 to the common code, without a common code it only fuses; these are the
        authors' "only common" and "only segments".
        """
        given = {"s0": s0, "s1": s1, "common": common}
        checked = self._broadcast({key: code for key, code in given.items() if code is not None})
        return self.net(name)(self.layout, checked["s0"], checked.get("s1"), checked.get("common"))[0]

    def _evaluate(self, name: str, codes: Mapping[str, Tensor], gates: dict[str, Tensor] | None) -> Tensor:
        """The code of a node. Without a dict for gates every net computes only what its inputs leave open."""
        own = codes.get(name)
        if name not in self.tree.fused:
            if own is None:
                raise ValueError(
                    f"no code for {name!r}, which has no fusion net; codes were given for {', '.join(codes)}"
                )
            return own
        first, second = self.tree.children(name)
        if own is not None and not (first in codes and second in codes):
            return own
        s0, s1 = self._evaluate(first, codes, gates), self._evaluate(second, codes, gates)
        net = self.net(name)
        if gates is None:
            return fuse_open_rows(net, self.layout, s0, s1, own)
        fused, gates[name] = net(self.layout, s0, s1, own)
        return fused

    def _checked(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not codes:
            raise ValueError(f"no codes were given; the tree's nodes are {', '.join(self.tree.nodes)}")
        for name in codes:
            self.tree.resolve(name)
        return self._broadcast(codes)

    def _broadcast(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The codes at one batch size, after a check of every one against the model and the first."""
        reference, (first, expected) = next(self.parameters(), None), next(iter(codes.items()))
        for name, code in codes.items():
            if code.ndim != 2 or code.shape[1] != self.style_width:
                raise ValueError(
                    f"the code of {name!r} has shape {tuple(code.shape)}; expected (batch, {self.style_width})"
                )
            if code.dtype != expected.dtype or code.device != expected.device:
                raise ValueError(
                    f"the code of {name!r} is {code.dtype} on {code.device}, that of {first!r} is {expected.dtype} on"
                    f" {expected.device}: give all codes in one dtype on one device"
                )
        if not expected.is_floating_point():
            raise ValueError(f"the code of {first!r} is {expected.dtype}; expected a floating-point dtype")
        if reference is not None and reference.device != expected.device:
            raise ValueError(f"the codes are on {expected.device}, the fusion nets on {reference.device}: move either")
        batch, longest = max([(code.shape[0], name) for name, code in codes.items()])
        for name, code in codes.items():
            if code.shape[0] not in (1, batch):
                raise ValueError(
                    f"the codes of {name!r} and {longest!r} have batch sizes {code.shape[0]} and {batch}: give one"
                    " size, or 1 to repeat"
                )
        return {name: code.expand(batch, -1) for name, code in codes.items()}

    # ------------------------------------------------------------------------------------------------
    # Constant gates: where training starts, and a baseline.

    @torch.no_grad()
    def set_statistics(self, codes: Tensor) -> None:
        """Takes mean and standard deviation of each style channel from samples (N, S); `standardise` must be on."""
        if self.layout.mean is None or self.layout.deviation is None:
            raise ValueError(f"{type(self).__name__} has standardise=False: there are no statistics to set")
        if codes.ndim != 2 or codes.shape[1] != self.style_width or len(codes) < 2:
            raise ValueError(f"expected two or more codes, (N, {self.style_width}); given: {tuple(codes.shape)}")
        self.layout.mean.copy_(codes.mean(dim=0))
        self.layout.deviation.copy_(codes.std(dim=0).clamp_min(1e-4))

    @torch.no_grad()
    def set_constant_gates(
        self, name: str, *, segments: float | Tensor | None = None, common: float | Tensor | None = None
    ) -> None:
        """Sets the learned logits of a node's blenders so that an untrained net gates by constants.

        Args:
            name: a node with a net; the hierarchy's `gate_bias` must be on.
            segments: gate in (0, 1) of the fusion, one number or (S,): 0 keeps the first child, 1 takes the second.
            common: gate in (0, 1) of the alignment: 0 keeps the child, 1 takes the common code.
        """
        net = self.net(name)
        for blender, rows, gate in (
            (net.blender_segments, self.layout.all, segments),
            (net.blender_common, self.layout.common, common),
        ):
            if gate is None:
                continue
            if blender.gate_bias is None:
                raise ValueError(f"{type(self).__name__} has gate_bias=False: constant gates need gate_bias=True")
            logits = torch.as_tensor(gate).to(blender.gate_bias).logit()
            if (
                logits.ndim not in (0, 1)
                or (logits.ndim == 1 and len(logits) != self.style_width)
                or not logits.isfinite().all()
            ):
                raise ValueError(
                    f"a constant gate is one number or ({self.style_width},), between 0 and 1 and neither of them;"
                    f" given: shape {tuple(logits.shape)}, {float(torch.as_tensor(gate).min())} and up"
                )
            blender.gate_bias.copy_(rows.expand(logits.expand(1, self.style_width))[0])

    @classmethod
    def _describe_missing(cls, model: Any, keys: Sequence[str]) -> str:
        if lost := [key for key in keys if key.startswith("layout.")]:
            return f"it standardises codes, but {', '.join(lost)} are missing"
        nets = dict.fromkeys(key.split(".")[1].removeprefix(NET_PREFIX) for key in keys if key.startswith("nets."))
        return f"its tree {model.tree} has fusion nets whose weights are missing or incomplete: {', '.join(nets)}"


# What save_pretrained records, so that moving this file breaks no checkpoint; the package exposes the name lazily.
FusionHierarchy.__module__ = "stylefusion_hf"
