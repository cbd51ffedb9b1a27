"""StyleFusion and what it is measured against: ways to take a region over from one picture into another.

Every class is a `methods.Method`. `METHODS` names them for `stylefusion evaluate --methods a,b,c`; what a method has
to learn from samples it learns when it is first used, from samples of `FITTING_SEED`. A region is a leaf of the tree
that the model's own segmenter knows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from stylefusion_hf.evaluation.channels import energy_shares, memberships
from stylefusion_hf.evaluation.methods import Method
from stylefusion_hf.evaluation.pairs import Pairs, render
from stylefusion_hf.evaluation.ruler import dilate
from stylefusion_hf.ops import upfirdn2d

# --- What all share --------------------------------------------------------------------------------------------------


def region_index(pipe, region: str) -> int:
    """The segmenter's channel of a region; ValueError that lists its regions."""
    names = list(pipe.segmenter.config.regions)
    if region not in names:
        raise ValueError(f"unknown region {region!r}: the segmenter knows {', '.join(names)}")
    return names.index(region)


def move(a: Tensor, b: Tensor, gate: float | Tensor) -> Tensor:
    """a + gate (b - a), and exactly b where the gate is 1: rounding must not pass for a change."""
    return torch.where(torch.as_tensor(gate, device=a.device) >= 1, b, a + gate * (b - a))


def geometric(first: float, last: float, count: int) -> tuple[float, ...]:
    """`count` numbers from `first` to `last`, each the same multiple of the one before."""
    return tuple(first * (last / first) ** (i / (count - 1)) for i in range(count))


class GateMethod:
    """A method that takes a share of each style channel: a + gate (b - a), the gate the same for all pairs."""

    name: str
    strengths: tuple[float, ...]

    def __init__(self, pipe):
        self.pipe = pipe

    def gate(self, region: str, strength: float) -> Tensor:
        """(S,), from 0 (the base's number) to 1 (the source's)."""
        raise NotImplementedError

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        region_index(self.pipe, region)
        return render(self.pipe, move(pairs.base, pairs.source, self.gate(region, strength)))


# --- StyleFusion -----------------------------------------------------------------------------------------------------


class StyleFusionSwap:
    """The pipeline's fusion nets (Kafri et al., arXiv 2107.07437): the source's leaf code, the base's for all else.

    Args:
        wider: set the common code of the leaf's parent too, unless that is the root. So do the controls that the
            authors have (hair: the leaf and bg_hair_clothes; eyes: the leaf and face).

    Strengths move the codes that are set from the base's to the source's, as the pipeline's `strength` does.
    """

    strengths = tuple(i / 10 for i in range(1, 11))

    def __init__(self, pipe, wider: bool = False):
        self.pipe, self.wider = pipe, wider
        self.name = "stylefusion, wider" if wider else "stylefusion"

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        tree = self.pipe.fusion.tree
        parent = tree.parent(tree.resolve(region))
        chosen = {region, parent} if self.wider and parent != tree.root else {region}
        moved = move(pairs.base, pairs.source, strength)
        return render(self.pipe, self.pipe.fusion.fuse({n: moved if n in chosen else pairs.base for n in tree.nodes}))


# --- Gates that know nothing of regions ------------------------------------------------------------------------------


class ConstantInterpolation(GateMethod):
    """The same share of every style channel: what a method that knows nothing of regions gets."""

    name, strengths = "interpolation", tuple(i / 10 for i in range(1, 11))

    def gate(self, region: str, strength: float) -> Tensor:
        generator = self.pipe.generator
        return torch.full((generator.style_dim,), float(strength), device=generator.device)


class StyleMixing(GateMethod):
    """Some neighbouring rows of w+ from the source, the others from the base (Karras et al., arXiv 1812.04948).

    Convolution i is driven by row i, toRGB k by row 2k + 1. A strength is an index into `ranges`, all (first, end)
    with first < end, short ones first; the last is the whole code. There is no natural order of strength among ranges
    of one length: a Pareto envelope has to pick.
    """

    name = "style mixing"

    def __init__(self, pipe):
        super().__init__(pipe)
        rows = pipe.generator.num_ws
        self.ranges = [(first, first + n) for n in range(1, rows + 1) for first in range(rows - n + 1)]
        self.strengths = tuple(map(float, range(len(self.ranges))))

    def gate(self, region: str, strength: float) -> Tensor:
        first, end = self.ranges[round(strength)]
        rows = self.pipe.generator.style_rows
        return ((rows >= first) & (rows < end)).float()


# --- Gates from statistics -------------------------------------------------------------------------------------------


class EditingInStyle(GateMethod):
    """Editing in Style (Collins et al., CVPR 2020, arXiv 2004.14367): channels by their membership of the region.

    The sequential form takes, in every layer, the channels of the highest membership first, while the memberships'
    sum of shortfalls from 1 stays below epsilon and each exceeds rho. The simultaneous form takes the share
    min(1, lambda M) of every channel. The authors find their regions by clustering; here they are the segmenter's.

    Args:
        form: "sequential" (strengths index `settings`, pairs of rho and epsilon) or "simultaneous" (strengths are
            lambda).
        samples: pictures that memberships are taken from.
        floors: values of rho. Memberships of small regions are low throughout, so that only a floor of 0 lets them
            have channels at all.
    """

    def __init__(self, pipe, form: str = "sequential", samples: int = 256, floors: tuple[float, ...] = (0.1, 0.0)):
        if form not in ("sequential", "simultaneous"):
            raise ValueError(f"unknown form {form!r} of Editing in Style: choose sequential or simultaneous")
        super().__init__(pipe)
        self.form, self.samples = form, samples
        widest = max(pipe.generator.style_sizes.values())
        # A shortfall is below 1, so that an epsilon of the layer's width takes every channel above the floor.
        self.settings = [(rho, epsilon) for epsilon, rho in product(geometric(0.25, widest, 10), floors)]
        if form == "sequential":
            self.name, self.strengths = "editing in style", tuple(map(float, range(len(self.settings))))
        else:
            self.name, self.strengths = "editing in style, simultaneous", geometric(0.25, 256, 14)

    @cached_property
    def membership(self) -> Tensor:
        """(R, S): the share of each channel's activation energy that lies in each region; columns sum to 1."""
        return memberships(self.pipe, self.samples)

    def gate(self, region: str, strength: float) -> Tensor:
        own = self.membership[region_index(self.pipe, region)]
        if self.form == "simultaneous":
            return (strength * own).clamp_max(1)
        rho, epsilon = self.settings[round(strength)]
        layers = []
        for m in own.split(list(self.pipe.generator.style_sizes.values())):
            high, order = m.sort(descending=True)
            chosen = ((1 - high).cumsum(0) < epsilon) & (high > rho)
            layers.append(torch.zeros_like(m).scatter(0, order, chosen.to(m.dtype)))
        return torch.cat(layers)


class LocalChannels(GateMethod):
    """The style channels that drive the region and little else (StyleSpace: Wu et al., arXiv 2011.12799).

    Channels are sorted by the region's share of their `features.channel_energies`, which stand in for the paper's
    overlap of gradient maps with masks. A strength is the number of channels taken, from 1 to all.
    """

    name = "local channels"

    def __init__(self, pipe, samples: int = 64):
        super().__init__(pipe)
        self.samples = samples
        counts = (round(k) for k in geometric(1, pipe.generator.style_dim, 14))
        self.strengths = tuple(map(float, dict.fromkeys(counts)))

    @cached_property
    def shares(self) -> Tensor:
        """(R, S): each region's share of a channel's energy; columns sum to 1."""
        return energy_shares(self.pipe, self.samples)

    def gate(self, region: str, strength: float) -> Tensor:
        own = self.shares[region_index(self.pipe, region)]
        return torch.zeros_like(own).scatter(0, own.topk(round(strength)).indices, 1.0)


# --- Masks instead of codes ------------------------------------------------------------------------------------------


class FeatureBlending:
    """Both codes as far as a block; there maps and picture are blended by a mask, and the base's styles go on.

    The mask is where the model's segmenter sees the region in the base or in the source (Suzuki et al., arXiv
    1811.10153, collage feature maps likewise, by masks drawn by hand). A strength is an index into `settings`: (weight
    of the source under the mask, dilation as a share of the width, resolution of the block).
    """

    name = "feature blending"

    def __init__(self, pipe):
        self.pipe = pipe
        resolutions = list(pipe.generator.feature_sizes)
        self.settings = list(product((0.5, 1.0), (0.0, 1 / 32), resolutions))
        self.strengths = tuple(map(float, range(len(self.settings))))

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        r = region_index(self.pipe, region)
        weight, dilation, resolution = self.settings[round(strength)]
        mask = (pairs.base_probs.argmax(1) == r) | (pairs.source_probs.argmax(1) == r)
        if dilation:
            mask = dilate(mask, max(1, round(dilation * mask.shape[-1])))
        return blend_features(self.pipe, pairs.base, pairs.source, weight * mask.float(), resolution)


def blend_features(pipe, base: Tensor, source: Tensor, mask: Tensor, resolution: int) -> Tensor:
    """Pictures (B, 3, H, W) of `base` whose maps and picture at `resolution` are the source's under the mask.

    base, source: style codes (B, S); mask: (B, H, W) from 0 to 1. ValueError for a size that no block has.
    """
    net, both = pipe.generator.synthesis, torch.cat([base, source])
    if not hasattr(net, "rgbs"):
        raise ValueError(f"feature blending is for StyleGAN2's blocks, not those of {type(pipe.generator).__name__}")
    block = resolution.bit_length() - 3  # 4 px is block 0
    if resolution != 4 * 2**block or not 0 <= block < len(net.rgbs):
        sizes = ", ".join(str(4 * 2**k) for k in range(len(net.rgbs)))
        raise ValueError(f"no block of this generator has {resolution} pixels; there are {sizes}")
    m = F.interpolate(mask[:, None], size=(resolution, resolution), mode="area")
    skip: list[Tensor] = []  # the picture so far, of bases and sources

    def blended(x: Tensor) -> Tensor:
        a, b = x.chunk(2)
        return torch.cat([move(a, b, m.to(x.dtype)), b])

    def picture(_module, _args, rgb: Tensor) -> Tensor:
        up = upfirdn2d(skip[-1], net.fir, up=2, padding=(2, 1, 2, 1), gain=4.0) if skip else torch.zeros_like(rgb)
        skip.append(rgb + up)
        # The network adds `up` itself.
        return rgb if len(skip) <= block else blended(skip[-1]) - up

    hooks = [layer.register_forward_hook(picture) for layer in net.rgbs[: block + 1]]
    # toRGB must see the maps as they were: its picture is blended once, as a picture.
    if block + 1 < len(net.rgbs):
        hooks.append(net.convs[2 * block + 1].register_forward_pre_hook(lambda _, args: (blended(args[0]), *args[1:])))
    try:
        return render(pipe, both).chunk(2)[0]
    finally:
        for hook in hooks:
            hook.remove()


class PixelPaste:
    """The source's pixels of the region over the base; where only the base has the region, the base stays.

    The limit of locality: nothing outside moves, whatever it looks like. Strength is opacity.
    """

    name, strengths = "pixel paste", tuple(i / 10 for i in range(1, 11))

    def __init__(self, pipe):
        self.pipe = pipe

    @torch.no_grad()
    def swap(self, pairs: Pairs, region: str, strength: float) -> Tensor:
        """See `Method.swap`."""
        mask = pairs.source_probs.argmax(dim=1) == region_index(self.pipe, region)
        return move(pairs.plain, pairs.other, strength * mask[:, None].float())


# --- By name ---------------------------------------------------------------------------------------------------------


def _static_gates(pipe) -> Method:
    from stylefusion_hf.evaluation.gates import LearnedGates  # which builds on this module

    return LearnedGates(pipe)


METHODS: dict[str, Callable[..., Method]] = {
    "stylefusion": StyleFusionSwap,
    "stylefusion-wider": lambda pipe: StyleFusionSwap(pipe, wider=True),
    "interpolation": ConstantInterpolation,
    "style-mixing": StyleMixing,
    "editing-in-style": EditingInStyle,
    "editing-in-style-simultaneous": lambda pipe: EditingInStyle(pipe, form="simultaneous"),
    "local-channels": LocalChannels,
    "static-gates": _static_gates,
    "feature-blending": FeatureBlending,
    "pixel-paste": PixelPaste,
}


def build_methods(pipe, names: Iterable[str] = METHODS) -> dict[str, Method]:
    """Methods of a pipeline by name, not fitted yet.

    Raises:
        ValueError: an unknown name (lists them), or a pipeline without a segmenter.
    """
    names = list(names)
    if unknown := [name for name in names if name not in METHODS]:
        raise ValueError(f"unknown method {unknown[0]!r}: choose from {', '.join(METHODS)}")
    if pipe.segmenter is None:
        raise ValueError("this model has no segmenter, so no method can tell where a region is")
    return {name: METHODS[name](pipe) for name in names}
