"""NVIDIA's PyTorch code, stylegan2-ada-pytorch and stylegan3: tensor names and settings of its StyleGAN2 networks.

Snapshots store settings as attributes of the modules. A setting that this package's models do not support is an error,
never a silently different picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from stylefusion_hf.conversion import stylegan3
from stylefusion_hf.conversion.layouts import (
    Converted,
    LayoutError,
    Reader,
    Tensors,
    build_discriminator,
    build_generator,
)
from stylefusion_hf.conversion.modules import ModuleTable, is_plain
from stylefusion_hf.core.checks import listed, short
from stylefusion_hf.core.untrusted.inert import ConversionError

LR_MULTIPLIER = 0.01  # of the mapping's layers in this package's models
MAPPING = re.compile(r"mapping\.fc\d+")
WHOLE_BATCH = 2**20  # group size for minibatch standard deviation if the snapshot says None: the entire batch


def convert_generator(modules: ModuleTable, name: str, psi: float) -> Converted:
    """Convert `G_ema` of stylegan2-ada-pytorch or of stylegan3; the alias-free networks are left to `stylegan3.py`."""
    stylegan3.refuse_stylegan_xl(modules.tensors, modules.classes, name)
    _refuse_fork_arguments(modules, name, "generator")
    if stylegan3.looks_like_stylegan3(modules.tensors):
        _expect_layers(modules, name)
        return stylegan3.convert_generator(modules, name, psi)
    if not any(re.match(r"synthesis\.b\d+\.", n) for n in modules.tensors):
        raise ConversionError(
            f"{name}: its generator has neither 'synthesis.b4...' nor 'synthesis.L0...' tensors: it is neither a"
            " StyleGAN2 nor a StyleGAN3"
        )
    _expect(modules, "architecture", "skip", name, "generator")
    _expect_layers(modules, name)
    config = nvidia_generator(modules.tensors, clamp_of(modules, name), psi)
    z_dim = modules.attributes[""].get("z_dim")
    if z_dim is not None and z_dim != config.config["z_dim"]:
        raise ConversionError(f"{name}: the generator says z_dim {z_dim!r}, its tensors say {config.config['z_dim']}")
    config.notes += _fork_attributes(modules)
    return config


def convert_discriminator(modules: ModuleTable, name: str) -> Converted:
    """Convert `D` of such a snapshot; only the residual architecture is supported."""
    _refuse_fork_arguments(modules, name, "discriminator")
    _expect(modules, "architecture", "resnet", name, "discriminator")
    gains = {a["bias_gain"] for path, a in modules.attributes.items() if MAPPING.fullmatch(path) and _is_gain(a)}
    if len(gains) > 1:
        raise ConversionError(f"{name}: the layers of its mapping have different learning-rate multipliers")
    lr_multiplier = next(iter(gains), LR_MULTIPLIER)
    _expect_layers(modules, name, lr_multiplier)
    group = next(iter(modules.values("group_size")), 4)
    clamp = clamp_of(modules, name, skip=".skip")
    group = group if type(group) is int and group > 0 else WHOLE_BATCH
    return nvidia_discriminator(modules.tensors, clamp, group, lr_multiplier)


def _is_gain(attributes: Mapping[str, Any]) -> bool:
    gain = attributes.get("bias_gain")
    return isinstance(gain, (int, float)) and not isinstance(gain, bool) and 1e-6 <= gain <= 1e3


def clamp_of(modules: ModuleTable, name: str, skip: str = "\0") -> float | None:
    """Return the clamp on activations, which must be the same in all layers."""
    found = modules.values("conv_clamp", skip)
    if len(found) > 1 or any(x is not None and (type(x) not in (int, float) or not 0 < x < math.inf) for x in found):
        raise ConversionError(f"{name}: its layers have different conv_clamp values ({found[:4]}): not supported")
    return found[0] if found else None


# Constructor arguments of NVIDIA's classes: what they mean shows in the tensors, is checked here, or draws no picture.
KNOWN_ARGUMENTS = {
    *("z_dim", "c_dim", "w_dim", "num_ws", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs"),
    *("block_kwargs", "layer_kwargs", "epilogue_kwargs", "num_layers", "embed_features", "layer_features"),
    *("activation", "lr_multiplier", "w_avg_beta", "channel_base", "channel_max", "num_fp16_res", "architecture"),
    *("resample_filter", "conv_clamp", "use_fp16", "fp16_channels_last", "channels_last", "fused_modconv_default"),
    *("in_channels", "out_channels", "in_features", "out_features", "resolution", "is_last", "kernel_size", "up"),
    *("down", "use_noise", "bias", "bias_init", "trainable", "freeze_layers", "cmap_dim", "tmp_channels"),
    *("first_layer_idx", "mbstd_group_size", "mbstd_num_channels", "group_size", "num_channels", "init_res"),
    *("scale_type", "square", "verbose", "channels", "size", "sampling_rate", "bandwidth", "weight_init"),
    *("is_torgb", "is_critically_sampled", "in_size", "out_size", "in_sampling_rate", "out_sampling_rate"),
    *("in_cutoff", "out_cutoff", "in_half_width", "out_half_width", "conv_kernel", "filter_size"),
    *("lrelu_upsampling", "use_radial_filters", "magnitude_ema_beta", "num_critical", "first_cutoff"),
    *("first_stopband", "last_stopband_rel", "margin_size", "output_scale"),
}
# Arguments of forks that change nothing if they have this value (eps696's split frames).
FORK_ARGUMENTS = {"countHW": [1, 1], "splitfine": 0}
KNOWN_ATTRIBUTES = KNOWN_ARGUMENTS | {
    *("training", "act_gain", "bias_gain", "weight_gain", "padding", "img_resolution_log2", "block_resolutions"),
    *("num_conv", "num_torgb", "fmap_base", "output_shape", "res"),
}


def _refuse_fork_arguments(modules: ModuleTable, name: str, what: str) -> None:
    """ConversionError for constructor arguments that NVIDIA's code does not have: they may change the picture."""
    for path, arguments in modules.arguments.items():
        for key, value in arguments.items():
            known = key in KNOWN_ARGUMENTS and (key != "size" or path == "synthesis.input")  # elsewhere eps696's
            if not known and not _changes_nothing(key, value):
                raise ConversionError(
                    f"{name}: its {what} was built with {short(key, 80)}={short(value)}, an argument of a fork, which"
                    " may change the picture; only NVIDIA's own are supported"
                )


def _fork_attributes(modules: ModuleTable) -> list[str]:
    """Return a note about attributes of modules that NVIDIA's code does not have, if there are any."""
    found = {
        f"{key}={short(value)}"
        for attributes in modules.attributes.values()
        for key, value in attributes.items()
        if not key.startswith("_") and key not in KNOWN_ATTRIBUTES and not _changes_nothing(key, value)
    }
    if not found:
        return []
    return [f"settings that NVIDIA's code does not have: {listed(sorted(found))}; --reference shows if they matter"]


def _changes_nothing(key: str, value: Any) -> bool:
    value = list(value) if isinstance(value, tuple) else value
    return value is None or (key in FORK_ARGUMENTS and is_plain(value) and value == FORK_ARGUMENTS[key])


def _expect(modules: ModuleTable, key: str, wanted: Any, name: str, what: str) -> None:
    other = [value for value in modules.values(key) if value != wanted]
    if other:
        raise ConversionError(f"{name}: its {what} has {key} {str(other[0])[:80]!r}; only {wanted!r} is supported")


def _expect_layers(modules: ModuleTable, name: str, lr_multiplier: float = LR_MULTIPLIER) -> None:
    """Check the settings that are fixed in this package's models, and the mapping's learning-rate multiplier."""
    for path, attributes in modules.attributes.items():
        layer = path.rsplit(".", 1)[-1]
        activation = attributes.get("activation", "lrelu")
        if activation not in (("lrelu", "linear") if layer in ("affine", "embed", "skip", "out") else ("lrelu",)):
            raise ConversionError(
                f"{name}: {path[:200]} has the activation {str(activation)[:80]!r}; only 'lrelu' is supported"
            )
        gain = attributes.get("bias_gain")
        wanted = lr_multiplier if MAPPING.fullmatch(path) else 1
        if isinstance(gain, (int, float)) and not math.isclose(gain, wanted, rel_tol=1e-4):
            raise ConversionError(f"{name}: {path} has a learning-rate multiplier of {gain:g}, expected {wanted:g}")


# --- Tensor names ----------------------------------------------------------------------------------------------------


def nvidia_generator(tensors: Tensors, conv_clamp: float | None = None, psi: float = 0.7) -> Converted:
    """Convert the tensors of `G_ema`. `conv_clamp` comes from the snapshot's arguments, as it is not a tensor."""
    read = Reader(tensors, "NVIDIA generator")
    num_blocks = 0
    while read.has(f"synthesis.b{4 * 2**num_blocks}.conv1.weight"):
        num_blocks += 1
    if num_blocks == 0:
        raise LayoutError("NVIDIA generator: it lacks 'synthesis.b4.conv1.weight'; it is not a StyleGAN2 generator")
    if read.has("synthesis.b8.skip.weight") or not read.has("synthesis.b4.torgb.weight"):
        raise LayoutError(
            "NVIDIA generator: only the 'skip' architecture is supported (the one of all published StyleGAN2 models)"
        )

    def conv(i: int, part: str) -> str:
        return f"synthesis.b{4 * 2 ** ((i + 1) // 2)}.conv{0 if i % 2 else 1}.{part}"

    def rgb(k: int, part: str) -> str:
        return f"synthesis.b{4 * 2**k}.torgb.{part}"

    return build_generator(
        read,
        const="synthesis.b4.const",
        conv=conv,
        rgb=rgb,
        num_blocks=num_blocks,
        mapping=[f"mapping.fc{j}" for j in range(read.count("mapping.fc{}.weight"))],
        embed="mapping.embed" if read.has("mapping.embed.weight") else None,
        w_avg=read.take("mapping.w_avg") if read.has("mapping.w_avg") else None,
        noise=lambda i: conv(i, "noise_const"),
        strength=lambda i: conv(i, "noise_strength"),
        conv_clamp=conv_clamp,
        psi=psi,
    )


def nvidia_discriminator(
    tensors: Tensors,
    conv_clamp: float | None = None,
    mbstd_group_size: int = 4,
    lr_multiplier: float = LR_MULTIPLIER,
) -> Converted:
    """Convert the tensors of `D` (residual architecture). The other arguments come from the snapshot's."""
    read = Reader(tensors, "NVIDIA discriminator")
    sizes = sorted({int(m[1]) for n in tensors if (m := re.match(r"b(\d+)\.conv1\.weight$", n))}, reverse=True)
    if not sizes or sizes != [2**i for i in range(int(math.log2(sizes[0])), 2, -1)]:
        raise LayoutError(f"NVIDIA discriminator: its blocks are {sizes}, expected every power of two from 8 up")
    blocks = [
        [f"b{r}.{part}" for part in ("conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias", "skip.weight")]
        for r in sizes
    ]
    labels = read.has("mapping.embed.weight")
    mapping = [f"mapping.fc{j}" for j in range(read.count("mapping.fc{}.weight"))]
    names = {
        "fromrgb": (f"b{sizes[0]}.fromrgb.weight", f"b{sizes[0]}.fromrgb.bias"),
        "conv": ("b4.conv.weight", "b4.conv.bias"),
        "fc": ("b4.fc.weight", "b4.fc.bias"),
        "out": ("b4.out.weight", "b4.out.bias"),
    }
    converted = build_discriminator(
        read, names, blocks, mapping, "mapping.embed" if labels else None, conv_clamp, mbstd_group_size
    )
    if lr_multiplier != LR_MULTIPLIER:  # it scales weights and biases when they are used: other numbers, same function
        for key in [key for key in converted.state if key.startswith("mapping.layers.")]:
            converted.state[key] = converted.state[key] * (lr_multiplier / LR_MULTIPLIER)
    return converted
