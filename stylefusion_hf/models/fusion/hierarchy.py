"""FusionHierarchy: all fusion nets of a region tree in one model.

A tree of fusion nets turns one style code per region, plus the codes that regions share, into a single style code
(StyleFusion, arXiv 2107.07437, section 3.3). The tree and the widths of the generator's style vectors are config.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from diffusers import ConfigMixin
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.models.config_checks import checked_config, register_to_config
from stylefusion_hf.models.fusion.net import FusionNet
from stylefusion_hf.models.fusion.open_rows import fuse_open_rows, values_are_final
from stylefusion_hf.models.fusion.style_rows import FusionSpec, StyleLayout
from stylefusion_hf.models.hooks import has_hooks
from stylefusion_hf.models.layers import check_real
from stylefusion_hf.models.loading import StrictModelMixin
from stylefusion_hf.models.style_generator import StyleGenerator

NET_PREFIX = "net_"  # keeps region names such as "half" or "train" from clashing with ModuleDict's attributes


@dataclass
class FusionOutput(BaseOutput):
    """Output of `FusionHierarchy`.

    Args:
        style_codes: the fused style code, (B, S).
        gates: node -> gate of its segments blender, (B, S); None unless requested.
    """

    style_codes: Tensor
    gates: dict[str, Tensor] | None = None


class FusionHierarchy(StrictModelMixin, ConfigMixin):
    r"""The fusion nets of a region tree. The defaults are the authors' configuration.

    Args:
        tree: the region tree: the dict of `RegionTree.to_dict` (stored in the config), a tree, its text or the name of
            a preset.
        conv_sizes: widths of the style vectors of the generator's convolutions.
        rgb_sizes: widths of the style vectors of its toRGB layers; a style code packs the vectors of all convolutions,
            then those of all toRGB layers, S numbers in total.
        padded_width: width to which every vector is expanded.
        hidden_width: width of the hidden layers of the gating MLPs, which map the input -> hidden_width, hidden_layers
            times -> padded_width -> padded_width per logit term (one, plus one for each of gate_product and
            gate_novelty).
        hidden_layers: number of hidden layers of the gating MLPs.
        num_indicators: length of the one-hot layer indicator.
        indicator_repeats: how often the indicator is tiled.
        shared_indicators: conv i and toRGB i share indicator i; if False, each vector has its own.
        common_conv_layers: number of conv vectors, from the first, that are aligned to the common code.
        common_rgb_layers: number of toRGB vectors, from the first, that are aligned to the common code.
        lr_multiplier: learning-rate multiplier of the equalized linear layers.
        pooling: how the gates of the padded positions of a channel are combined: "max" (authors) or "mean".
        final_activation: activation before the sigmoid, "lrelu" (authors) or "linear".
        gate_bias: give each blender a learned logit per style vector and channel, and initialize the MLP's last layer
            to zero, so that untrained nets have constant gates (see `set_constant_gates`).
        gate_product: let a logit depend on the sign of its channel's difference (`net.signed`).
        gate_novelty: let a logit depend on which child differs from the common code (`net.novelty`) and, in alignment,
            on whether the sibling differs too (`net.company`).
        standardize: show the MLPs each style channel as its deviation from its mean, in units of its standard
            deviation (see `set_statistics`); the blended codes are not standardized.
        adaptive_conv_layers: number of conv vectors, from the first, whose gates come from an MLP. The others have
            constant gates, or gates that only depend on novelty if `gate_novelty` is on; needs `gate_bias`. None: all.
        adaptive_rgb_layers: the same for toRGB vectors.
        input_rank: rank of what the gating MLPs' first layer does to the codes, which is then stored as two factors
            (see `low_rank.factor_layers`); at most `hidden_width`. None: a full matrix.
        output_rank: the same for the gating MLPs' last layer; at most `padded_width`.
        context_width: how many learned linear combinations of each whole code, the same for all vectors and nets, the
            gating MLPs see beside the vector at hand (see `style_rows.CodeContext`). None: they see that vector alone,
            as the authors' do.

    Raises:
        ValueError: the shapes do not fit together, or the tree is invalid.

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
        input_rank: int | None = None,
        output_rank: int | None = None,
        context_width: int | None = None,
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
            input_rank=input_rank,
            output_rank=output_rank,
            context_width=context_width,
        )
        self.layout = StyleLayout(spec)
        self.nets = nn.ModuleDict({NET_PREFIX + name: FusionNet(spec) for name in self.tree.fused})

    @classmethod
    def for_generator(
        cls, generator: StyleGenerator, tree: Mapping[str, Any] | RegionTree | str, **config: Any
    ) -> FusionHierarchy:
        """Create untrained nets for a generator's style codes.

        Args:
            tree, config: see the class. Settings that follow from the style vectors (their sizes, `padded_width`,
                `num_indicators`) are taken from the generator unless given.
        """
        conv, rgb = generator.conv_sizes, generator.rgb_sizes
        count = max(len(conv), len(rgb)) + 1 if config.get("shared_indicators", True) else len(conv) + len(rgb)
        own: dict[str, Any] = {
            "conv_sizes": conv,
            "rgb_sizes": rgb,
            "padded_width": max(conv + rgb),
            "num_indicators": count,
        }
        return cls(tree, **(own | config))

    @property
    def spec(self) -> FusionSpec:
        """Configuration shared by all nets."""
        return self.layout.spec

    @property
    def style_width(self) -> int:
        """S, the length of a style code."""
        return self.spec.style_width

    def net(self, name: str) -> FusionNet:
        """Return the fusion net of a node; ValueError if it has none."""
        if self.tree.resolve(name) not in self.tree.fused:
            raise ValueError(f"the node {name!r} has no fusion net; nodes with a net: {', '.join(self.tree.fused)}")
        return self.nets[NET_PREFIX + name]  # type: ignore[return-value]

    # ------------------------------------------------------------------------------------------------
    # Fusing.

    def forward(
        self, codes: Mapping[str, Tensor], output_gates: bool = False, return_dict: bool = True, *, net: str = ""
    ) -> FusionOutput | tuple[Any, ...]:
        """Return `fuse` (and `gates`, with `output_gates`) as an output class or a tuple.

        Every use of the weights passes through this call, that of the other methods too: offloading, layerwise casting
        and torch.compile act on calls.

        Args:
            net: a node whose net alone is applied to the codes "s0" and, if given, "s1" and "common": see `blend`.
        """
        gates: dict[str, Tensor] | None = {} if output_gates else None
        if net:
            checked = self._broadcast(codes)
            fused = self.net(net)(self.layout, checked["s0"], checked.get("s1"), checked.get("common"))[0]
        else:
            checked = self._check_codes(codes)
            if gates is None and not values_are_final(chain(self.parameters(), checked.values())):
                gates = {}  # compute every row
            fused = self._evaluate(self.tree.root, checked, gates)
            if not output_gates:
                fused = fused.clone()  # it may be a view of a code
        if not return_dict:
            return (fused, gates) if output_gates else (fused,)
        return FusionOutput(style_codes=fused, gates=gates if output_gates else None)

    def fuse(self, codes: Mapping[str, Tensor]) -> Tensor:
        """Fuse the codes of the tree's nodes into one style code.

        As in the authors' code, a node returns its own code unchanged if it has no net or if either of its children is
        missing from `codes` (nodes below it then have no effect). A node with a net but without its own code is fused
        from its children without aligning them.

        Args:
            codes: node -> style codes (B, S); a batch of 1 repeats. Their dtype may differ from the weights'.

        Returns:
            (B, S) in the codes' dtype. Equal codes return exactly that code.

        Raises:
            ValueError: unknown nodes, wrong shapes, mixed dtypes, devices or batch sizes, or a missing code.
        """
        return self(codes, return_dict=False)[0]

    def gates(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return node -> gate of its segments blender, (B, S) in (0, 1): 0 keeps the first child, 1 the second.

        Only nodes whose net was used are listed.
        """
        return self.fuse_with_gates(codes)[1]

    def fuse_with_gates(self, codes: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return `fuse` and `gates` in one pass, for training and diagnostics."""
        return self(codes, output_gates=True, return_dict=False)

    def blend(self, name: str, s0: Tensor, s1: Tensor | None, common: Tensor | None) -> Tensor:
        """Apply a single net to codes (B, S): children s0 and s1 and their common code.

        Without s1 the net only aligns s0 to the common code; without a common code it only fuses. These are the
        authors' "only common" and "only segments".
        """
        given = {"s0": s0, "s1": s1, "common": common}
        return self({key: code for key, code in given.items() if code is not None}, return_dict=False, net=name)[0]

    def _evaluate(self, name: str, codes: Mapping[str, Tensor], gates: dict[str, Tensor] | None) -> Tensor:
        """Return the code of a node. Without a dict for gates, rows with a known result are not computed."""
        own = codes.get(name)
        if name not in self.tree.fused:
            if own is None:
                raise ValueError(
                    f"no code for {name!r}, which has no fusion net; codes are given for {', '.join(codes)}"
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

    def _check_codes(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not codes:
            raise ValueError(f"no codes were given; the tree's nodes are {', '.join(self.tree.nodes)}")
        for name in codes:
            self.tree.resolve(name)
        return self._broadcast(codes)

    def _broadcast(self, codes: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Check every code against the model and the first code, and expand all to one batch size."""
        first, expected = next(iter(codes.items()))
        for name, code in codes.items():
            check_real(f"the code of {name!r}", code)
            if code.ndim != 2 or code.shape[1] != self.style_width:
                raise ValueError(
                    f"the code of {name!r} has shape {tuple(code.shape)}; expected (batch, {self.style_width})"
                )
            if code.dtype != expected.dtype or code.device != expected.device:
                raise ValueError(
                    f"the code of {name!r} is {code.dtype} on {code.device}, that of {first!r} is {expected.dtype} on"
                    f" {expected.device}: give all codes with the same dtype and device"
                )
        if not torch.compiler.is_compiling() and self.tree.fused:
            here = next(iter(self.nets.parameters())).device
            if here != expected.device and not has_hooks(self):  # these move codes and nets
                raise ValueError(f"the codes are on {expected.device}, the fusion nets on {here}: move one of them")
        batch, longest = expected.shape[0], first
        for name, code in codes.items():  # not max(), which torch.compile does not trace for sizes that vary
            if code.shape[0] > batch or (code.shape[0] == batch and name > longest):
                batch, longest = code.shape[0], name
        for name, code in codes.items():
            if code.shape[0] not in (1, batch):
                raise ValueError(
                    f"the codes of {name!r} and {longest!r} have batch sizes {code.shape[0]} and {batch}: give one"
                    " size, or 1 to repeat"
                )
        return {name: code.expand(batch, -1) for name, code in codes.items()}

    # ------------------------------------------------------------------------------------------------
    # Statistics and constant gates: the initialization of training, and a baseline.

    @torch.no_grad()
    def set_statistics(self, codes: Tensor) -> None:
        """Set mean and standard deviation of each style channel from samples (N, S); `standardise` must be on."""
        if self.layout.mean is None or self.layout.deviation is None:
            raise ValueError(f"{type(self).__name__} has standardise=False: there are no statistics to set")
        if codes.ndim != 2 or codes.shape[1] != self.style_width or len(codes) < 2:
            raise ValueError(f"expected at least two codes, (N, {self.style_width}), got {tuple(codes.shape)}")
        self.layout.mean.copy_(codes.mean(dim=0))
        self.layout.deviation.copy_(codes.std(dim=0).clamp_min(1e-4))

    @torch.no_grad()
    def set_constant_gates(
        self, name: str, *, segments: float | Tensor | None = None, common: float | Tensor | None = None
    ) -> None:
        """Set the learned logits of a node's blenders so that an untrained net has constant gates.

        Args:
            name: a node with a net; the hierarchy's `gate_bias` must be on.
            segments: gate of the fusion in (0, 1), one number or (S,): 0 keeps the first child, 1 takes the second.
            common: gate of the alignment in (0, 1): 0 keeps the child, 1 takes the common code.
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
                    f"a constant gate must be one number or ({self.style_width},), strictly between 0 and 1; got shape"
                    f" {tuple(logits.shape)} with minimum {float(torch.as_tensor(gate).min())}"
                )
            blender.gate_bias.copy_(rows.expand(logits.expand(1, self.style_width))[0])

    @classmethod
    def _describe_missing(cls, model: Any, keys: Sequence[str]) -> str:
        if lost := [key for key in keys if key.startswith("layout.")]:
            return f"its gates depend on {', '.join(lost)}, which are missing"
        nets = dict.fromkeys(key.split(".")[1].removeprefix(NET_PREFIX) for key in keys if key.startswith("nets."))
        return f"its tree {model.tree} has fusion nets whose weights are missing or incomplete: {', '.join(nets)}"


# save_pretrained records this, so moving the file breaks no checkpoint; the package exposes the name lazily.
FusionHierarchy.__module__ = "stylefusion_hf"
