"""Tensors of a StyleGAN2 under any names -> config and state dict of this package's models.

`nvidia.py` and `rosinality.py` say which names. Sizes are derived from the tensors, and unused tensors are reported by
name. Reading files safely is the job of `safe_pickle.py`.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

Tensors = Mapping[str, torch.Tensor]
# (pattern of a whole name, the new name: a template or a function of the match, the change of the tensor)
Rule = tuple[str, Any, Callable[[torch.Tensor], torch.Tensor]]

# FIR kernels, which the architecture determines. They are checked, not stored.
FIXED = re.compile(r"(^|\.)(resample_filter|kernel)$")


class LayoutError(ValueError):
    """The tensors do not match the expected layout."""


@dataclass
class Converted:
    """A converted model: its config and state dict, the names of unused tensors of the source, notes for the user.

    `architecture`: of a generator, "stylegan2", "mobilestylegan" or "stylegan3".
    """

    config: dict
    state: dict[str, torch.Tensor]
    unused: list[str] = field(default_factory=list)
    architecture: str = "stylegan2"
    notes: list[str] = field(default_factory=list)


def rename_tensors(
    tensors: Iterable[tuple[str, torch.Tensor]], rules: Sequence[Rule], where: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the tensors under new names, and the names of those that no rule fits.

    LayoutError for two tensors of one name, or a shape that a rule cannot change.
    """
    renamed: dict[str, torch.Tensor] = {}
    left = []
    for name, tensor in tensors:
        rule = next((rule for rule in rules if re.fullmatch(rule[0], name)), None)
        match = rule and re.fullmatch(rule[0], name)
        if not rule or not match:
            left.append(name)
            continue
        _, target, change = rule
        new = target(match) if callable(target) else match.expand(target)
        if new in renamed:
            raise LayoutError(f"{where}: {name[:80]!r} duplicates another tensor")
        try:
            renamed[new] = change(tensor)
        except (RuntimeError, IndexError):
            raise LayoutError(f"{where}: {name[:80]!r} has the wrong shape, {tuple(tensor.shape)}") from None
    return renamed, left


class Reader:
    """A dictionary of tensors that tracks which were used; errors name a tensor that is missing or misshapen."""

    def __init__(self, tensors: Tensors, what: str):
        self.tensors, self.what = tensors, what
        self.taken: set[str] = set()

    def has(self, name: str) -> bool:
        return name in self.tensors

    def take(self, name: str, shape: tuple[int, ...] | None = None, least: int = 0) -> torch.Tensor:
        """Return a tensor of at least `least` dimensions, reshaped to `shape` up to dimensions of size one."""
        if name not in self.tensors:
            raise LayoutError(f"{self.what}: the checkpoint lacks {name!r}; it may be truncated or of another kind")
        self.taken.add(name)
        x = self.tensors[name]
        if x.ndim < least:
            raise LayoutError(f"{self.what}: {name!r} has shape {tuple(x.shape)}, expected {least} dimensions")
        if shape is None:
            return x
        if [n for n in x.shape if n != 1] != [n for n in shape if n != 1]:
            raise LayoutError(f"{self.what}: {name!r} has shape {tuple(x.shape)}, expected {tuple(shape)}")
        return x.reshape(shape)

    def count(self, pattern: str) -> int:
        """Count the consecutive tensors `pattern.format(0)`, `pattern.format(1)`, ..."""
        n = 0
        while pattern.format(n) in self.tensors:
            n += 1
        return n

    def unused(self) -> list[str]:
        """Return the names of unused tensors, in order. LayoutError for a FIR kernel other than [1, 3, 3, 1]."""
        left = [name for name in self.tensors if name not in self.taken]
        for name in left:
            if FIXED.search(name) and not _is_standard_fir(self.tensors[name]):
                raise LayoutError(
                    f"{self.what}: {name!r} is not the filter [1, 3, 3, 1]; other filters are not supported"
                )
        return [name for name in left if not FIXED.search(name)]


def _is_standard_fir(kernel: torch.Tensor) -> bool:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    outer = torch.outer(taps, taps)
    kernel = kernel.float()
    if kernel.shape not in (outer.shape, taps.shape):
        return False
    wanted = outer if kernel.ndim == 2 else taps
    # Normalize first: upsampling layers fold a gain into the kernel.
    return torch.allclose(kernel / kernel.sum(), wanted / wanted.sum(), atol=1e-4)


def build_generator(
    read: Reader,
    *,
    const: str,
    conv: Callable[[int, str], str],
    rgb: Callable[[int, str], str],
    num_blocks: int,
    mapping: list[str],
    embed: str | None,
    w_avg: torch.Tensor | None,
    noise: Callable[[int], str],
    strength: Callable[[int], str],
    conv_clamp: float | None,
    psi: float,
) -> Converted:
    """Build a generator's config and state dict.

    `conv(i, part)` and `rgb(k, part)` return the source's name of a layer's weight, bias, affine.weight or
    affine.bias; `noise(i)` and `strength(i)` those of its noise.
    """
    num_convs = 2 * num_blocks - 1
    base = read.take(const, least=3).shape[-3:]
    channels4, (base_height, base_width) = base[0], base[1:]
    if not mapping:
        raise LayoutError(f"{read.what}: the checkpoint lacks the layers of the mapping network; it may be truncated")

    # Convolutions and noise.
    state = {"synthesis.const": read.take(const, tuple(base))}
    channels, affine_w, affine_b = [], [], []
    w_dim = read.take(conv(0, "affine.weight"), least=2).shape[-1]
    use_noise = read.has(strength(0))
    width = channels4
    for i in range(num_convs):
        out = read.take(conv(i, "weight"), least=4).shape[-4]
        doublings = 2 ** ((i + 1) // 2)
        state[f"synthesis.convs.{i}.weight"] = read.take(conv(i, "weight"), (out, width, 3, 3))
        state[f"synthesis.convs.{i}.bias"] = read.take(conv(i, "bias"), (out,))
        if use_noise:
            state[f"synthesis.convs.{i}.noise_strength"] = read.take(strength(i), ())
            state[f"synthesis.convs.{i}.noise_const"] = read.take(
                noise(i), (base_height * doublings, base_width * doublings)
            )
        affine_w.append(read.take(conv(i, "affine.weight"), (width, w_dim)))
        affine_b.append(read.take(conv(i, "affine.bias"), (width,)))
        width = out
        if i % 2 == 0:
            channels.append(out)

    # toRGB layers. A style code packs all convolutions' styles, then all toRGB layers'.
    img_channels = read.take(rgb(0, "weight"), least=4).shape[-4]
    for k, c in enumerate(channels):
        state[f"synthesis.rgbs.{k}.weight"] = read.take(rgb(k, "weight"), (img_channels, c, 1, 1))
        state[f"synthesis.rgbs.{k}.bias"] = read.take(rgb(k, "bias"), (img_channels,))
        affine_w.append(read.take(rgb(k, "affine.weight"), (c, w_dim)))
        affine_b.append(read.take(rgb(k, "affine.bias"), (c,)))
    state["affine_weight"], state["affine_bias"] = torch.cat(affine_w), torch.cat(affine_b)

    # Mapping network.
    label_dim = embed_dim = 0
    if embed is not None:
        embed_dim, label_dim = read.take(f"{embed}.weight").shape
        state["mapping.embed.weight"] = read.take(f"{embed}.weight")
        state["mapping.embed.bias"] = read.take(f"{embed}.bias", (embed_dim,))
    for j, name in enumerate(mapping):
        state[f"mapping.layers.{j}.weight"] = read.take(f"{name}.weight")
        state[f"mapping.layers.{j}.bias"] = read.take(f"{name}.bias")
    z_dim = state["mapping.layers.0.weight"].shape[1] - embed_dim
    if w_avg is not None:
        if w_avg.numel() != w_dim:
            raise LayoutError(f"{read.what}: the stored mean of w has {w_avg.numel()} numbers, w has {w_dim}")
        state["w_avg"] = w_avg.reshape(w_dim)
    config = {
        "resolution": base_height * 2 ** (num_blocks - 1),
        "channels": channels,
        "z_dim": z_dim,
        "w_dim": w_dim,
        "label_dim": label_dim,
        "mapping_layers": len(mapping),
        "mapping_width": state["mapping.layers.0.weight"].shape[0] if len(mapping) > 1 else None,
        "img_channels": img_channels,
        "use_noise": use_noise,
        "conv_clamp": conv_clamp,
        "truncation_psi": psi,
        "label_embed_dim": embed_dim if embed_dim not in (0, w_dim) else None,
    }
    if (base_height, base_width) != (4, 4):  # rectangular pictures, or squares of another size than a power of two
        config["base_size"] = [base_height, base_width]
    return Converted(config, state, read.unused())


def build_discriminator(
    read: Reader,
    names: Mapping[str, tuple[str, str]],
    blocks: list[list[str]],
    mapping: list[str],
    embed: str | None,
    conv_clamp: float | None,
    mbstd_group_size: int,
) -> Converted:
    """Build a discriminator's config and state dict from the source's names of its layers."""
    state = {}
    for ours, (weight, bias) in names.items():
        w = read.take(weight, least=2)
        state[f"{ours}.weight"], state[f"{ours}.bias"] = w, read.take(bias, (w.shape[0],))
    channels = [state["fromrgb.weight"].shape[0]]
    for j, block in enumerate(blocks):
        c, out = channels[-1], read.take(block[2], least=4).shape[0]
        shapes = [(c, c, 3, 3), (c,), (out, c, 3, 3), (out,), (out, c, 1, 1)]
        parts = ("conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias", "skip.weight")
        for part, name, shape in zip(parts, block, shapes, strict=True):
            state[f"blocks.{j}.{part}"] = read.take(name, shape)
        channels.append(out)
    label_dim, layers = 0, 8
    if embed is not None:
        label_dim, layers = read.take(f"{embed}.weight", least=2).shape[1], len(mapping)
        state["mapping.embed.weight"], state["mapping.embed.bias"] = (
            read.take(f"{embed}.weight"),
            read.take(f"{embed}.bias"),
        )
        for j, name in enumerate(mapping):
            state[f"mapping.layers.{j}.weight"] = read.take(f"{name}.weight")
            state[f"mapping.layers.{j}.bias"] = read.take(f"{name}.bias")
    projection = state["out.weight"].shape[0] if label_dim else None
    widths = {}
    if label_dim:
        hidden = state["mapping.layers.0.weight"].shape[0] if layers > 1 else projection
        widths = {"mapping_width": hidden, "mapping_embed_dim": state["mapping.embed.weight"].shape[0]}
    config = {
        "resolution": 4 * 2 ** len(blocks),
        "channels": channels[::-1],
        "label_dim": label_dim,
        "mapping_layers": layers,
        "label_embed_dim": projection,
        **{key: width if width != projection else None for key, width in widths.items()},
        "img_channels": state["fromrgb.weight"].shape[1],
        "mbstd_group_size": mbstd_group_size,
        "mbstd_channels": state["conv.weight"].shape[1] - channels[-1],
        "conv_clamp": conv_clamp,
    }
    return Converted(config, state, read.unused())
