"""NVIDIA's TensorFlow snapshots (stylegan2, stylegan2-ada): a pickled tuple of `dnnlib.tflib.network.Network`s.

Their variables are renamed and transformed to those of NVIDIA's PyTorch code, which `nvidia.py` converts: dense
kernels are (in, out), convolution kernels (height, width, in, out) and rotated by 180 degrees after upsampling, and
style biases are stored without the added 1.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stylefusion_hf.conversion.layouts import Converted
from stylefusion_hf.conversion.modules import is_plain
from stylefusion_hf.conversion.nvidia import nvidia_discriminator, nvidia_generator
from stylefusion_hf.core.checks import short
from stylefusion_hf.core.untrusted.inert import ConversionError, LazyArray, Record

MIN_VERSION = 4  # the first version of StyleGAN2; StyleGAN and ProGAN wrote 2 and 3
LR_MULTIPLIER_D = 0.1  # default of the discriminator's mapping
MAX_COMPONENTS, MAX_DEPTH, MAX_VARIABLES = 8, 2, 10_000


def _transpose(x: torch.Tensor) -> torch.Tensor:
    return x.t()


def _permute_kernel(x: torch.Tensor) -> torch.Tensor:
    return x.permute(3, 2, 0, 1)


def _rotate_kernel(x: torch.Tensor) -> torch.Tensor:
    return _permute_kernel(x).contiguous().flip(2, 3)  # contiguous first, so that the result needs no second copy


def _keep(x: torch.Tensor) -> torch.Tensor:
    return x


def _add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def _noise(m: re.Match) -> str:
    i = int(m[1])
    return f"synthesis.b{4 * 2 ** ((i + 1) // 2)}.conv{0 if i % 2 else 1}.noise_const" if i < 32 else "\0"


def _conv_name(m: re.Match) -> str:
    return f"synthesis.b{m[1]}.{'conv0' if m[2] == '0_up' else 'conv1'}"


GENERATOR_RULES: list[tuple[str, Any, Any]] = [
    (r"dlatent_avg", "mapping.w_avg", _keep),
    (r"mapping/Dense(\d+)/weight", r"mapping.fc\1.weight", _transpose),
    (r"mapping/Dense(\d+)/bias", r"mapping.fc\1.bias", _keep),
    (r"mapping/LabelEmbed/weight", "mapping.embed.weight", _transpose),
    (r"mapping/LabelEmbed/bias", "mapping.embed.bias", _keep),
    (r"synthesis/4x4/Const/const", "synthesis.b4.const", _keep),
    (r"synthesis/noise(\d+)", _noise, _keep),
    (r"synthesis/(\d+)x\1/Conv(0_up)/weight", lambda m: f"{_conv_name(m)}.weight", _rotate_kernel),
    (r"synthesis/(\d+)x\1/Conv(1|)/weight", lambda m: f"{_conv_name(m)}.weight", _permute_kernel),
    (r"synthesis/(\d+)x\1/Conv(0_up|1|)/(bias|noise_strength)", lambda m: f"{_conv_name(m)}.{m[3]}", _keep),
    (r"synthesis/(\d+)x\1/Conv(0_up|1|)/mod_weight", lambda m: f"{_conv_name(m)}.affine.weight", _transpose),
    (r"synthesis/(\d+)x\1/Conv(0_up|1|)/mod_bias", lambda m: f"{_conv_name(m)}.affine.bias", _add_one),
    (r"synthesis/(\d+)x\1/ToRGB/weight", r"synthesis.b\1.torgb.weight", _permute_kernel),
    (r"synthesis/(\d+)x\1/ToRGB/bias", r"synthesis.b\1.torgb.bias", _keep),
    (r"synthesis/(\d+)x\1/ToRGB/mod_weight", r"synthesis.b\1.torgb.affine.weight", _transpose),
    (r"synthesis/(\d+)x\1/ToRGB/mod_bias", r"synthesis.b\1.torgb.affine.bias", _add_one),
    (r"synthesis/(\d+)x\1/Skip/weight", r"synthesis.b\1.skip.weight", _rotate_kernel),
]
DISCRIMINATOR_RULES: list[tuple[str, Any, Any]] = [
    (r"LabelEmbed/weight", "mapping.embed.weight", _transpose),
    (r"LabelEmbed/bias", "mapping.embed.bias", _keep),
    (r"Mapping(\d+)/weight", r"mapping.fc\1.weight", _transpose),
    (r"Mapping(\d+)/bias", r"mapping.fc\1.bias", _keep),
    (r"(\d+)x\1/FromRGB/weight", r"b\1.fromrgb.weight", _permute_kernel),
    (r"(\d+)x\1/FromRGB/bias", r"b\1.fromrgb.bias", _keep),
    (r"(\d+)x\1/Conv(0|1)(?:_down)?/weight", r"b\1.conv\2.weight", _permute_kernel),
    (r"(\d+)x\1/Conv(0|1)(?:_down)?/bias", r"b\1.conv\2.bias", _keep),
    (r"(\d+)x\1/Skip/weight", r"b\1.skip.weight", _permute_kernel),
    (r"4x4/Conv/weight", "b4.conv.weight", _permute_kernel),
    (r"4x4/Conv/bias", "b4.conv.bias", _keep),
    (r"4x4/Dense0/weight", "b4.fc.weight", _transpose),
    (r"4x4/Dense0/bias", "b4.fc.bias", _keep),
    (r"Output/weight", "b4.out.weight", _transpose),
    (r"Output/bias", "b4.out.bias", _keep),
]


def rename_variables(
    variables: Mapping[str, Any], rules: list, name: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return float32 tensors under NVIDIA's PyTorch names, and the names of variables without a counterpart.

    Arrays are decoded one by one, so that those stored as text are not all in memory twice.
    """
    tensors: dict[str, torch.Tensor] = {}
    left = []
    for variable, value in variables.items():
        rule = next((rule for rule in rules if re.fullmatch(rule[0], variable)), None)
        if rule is None:
            left.append(variable)
            continue
        pattern, target, change = rule
        new = re.sub(pattern, target, variable, count=1)  # the target is a template or a function of the match
        if not isinstance(value, (np.ndarray, LazyArray, int, float)) or new in tensors:
            raise ConversionError(
                f"{name}: its variable {variable[:80]!r} does not hold numbers, or duplicates another one"
            )
        array = np.asarray(value)
        tensor = torch.from_numpy(array.astype(np.float32, copy=array.dtype.byteorder not in "=|<"))
        try:
            tensors[new] = change(tensor)
        except (RuntimeError, IndexError):
            raise ConversionError(f"{name}: {variable[:80]!r} has the wrong shape, {tuple(tensor.shape)}") from None
    return tensors, left


# --- Networks -------------------------------------------------------------------------------------


def is_network(value: Any) -> bool:
    return isinstance(value, Record) and re.fullmatch(r"(.*\.)?tflib\.network\.Network", value.name) is not None


def variables_of(network: Record, name: str, depth: int = 0) -> dict[str, Any]:
    """Return the variables of a network and its components, `component/variable` -> array (not yet decoded)."""
    state = network.entries()
    variables: dict[str, Any] = {}
    version = state.get("version")
    if type(version) is not int or version < MIN_VERSION:
        shown = version if type(version) is int else "none"
        raise ConversionError(
            f"{name}: is a TensorFlow network of version {shown}; StyleGAN2's begin with {MIN_VERSION}"
        )
    listed = state.get("variables", [])
    if isinstance(listed, list) and len(listed) > MAX_VARIABLES:
        raise ConversionError(f"{name}: has more variables than any StyleGAN2; it is damaged")
    for entry in listed if isinstance(listed, list) else []:
        if type(entry) in (tuple, list) and len(entry) == 2 and type(entry[0]) is str:
            variables[entry[0]] = entry[1]
    for key, component in _components(network).items():
        if depth < MAX_DEPTH:
            inner = variables_of(component, name, depth + 1)
            variables.update((f"{key}/{variable}", value) for variable, value in inner.items())
    if len(variables) > MAX_VARIABLES:
        raise ConversionError(f"{name}: has more variables than any StyleGAN2; it is damaged")
    return variables


def square_names(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the scopes of a rectangular network, `5x3/...`, `10x6/...`, as those of squares: `4x4/...`, `8x8/...`.

    The constant's shape says the height and the width. Scopes that do not double from one to the next are kept.
    """
    scope = re.compile(r"(^|/)(\d{1,5})x(\d{1,5})(?=/)")
    found = {(int(m[2]), int(m[3])) for name in variables if (m := scope.search(name))}
    sizes = sorted(found, key=math.prod)
    doubled = [(sizes[0][0] * 2**k, sizes[0][1] * 2**k) for k in range(len(sizes))] if sizes else []
    if sizes != doubled or all(height == width for height, width in sizes):
        return dict(variables)
    names = {size: f"{4 * 2**k}x{4 * 2**k}" for k, size in enumerate(sizes)}
    return {scope.sub(lambda m: m[1] + names[int(m[2]), int(m[3])], name): x for name, x in variables.items()}


def _components(network: Record) -> dict[Any, Record]:
    """Return a network's components. Real networks have two; a hostile file could list one any number of times."""
    parts = {k: v for k, v in _entries(network.entries().get("components")).items() if is_network(v)}
    return parts if len(parts) <= MAX_COMPONENTS else {}


def settings_of(network: Record) -> dict[str, Any]:
    """Return the arguments that the network and its components were built with."""
    settings: dict[str, Any] = {}
    for part in (*_components(network).values(), network):
        settings.update(_entries(part.entries().get("static_kwargs")))
    return settings


def _entries(value: Any) -> dict[Any, Any]:
    """Return a dictionary, or the entries of a pickled subclass (EasyDict); {} for anything else."""
    value = value.entries() if isinstance(value, Record) else value
    return value if isinstance(value, dict) else {}


# Arguments of NVIDIA's functions: what they mean shows in the variables, is checked here, or draws no picture.
KNOWN_ARGUMENTS = {
    *("is_training", "is_validation", "return_dlatents", "is_template_graph", "components", "mapping_func"),
    *("synthesis_func", "func_name", "truncation_psi", "truncation_cutoff", "truncation_psi_val"),
    *("truncation_cutoff_val", "dlatent_avg_beta", "style_mixing_prob", "latent_size", "label_size"),
    *("dlatent_size", "dlatent_broadcast", "mapping_layers", "mapping_fmaps", "mapping_lrmul"),
    *("mapping_nonlinearity", "normalize_latents", "label_fmaps", "dtype", "num_channels", "resolution"),
    *("fmap_base", "fmap_decay", "fmap_min", "fmap_max", "fmap_const", "use_noise", "randomize_noise"),
    *("architecture", "nonlinearity", "act", "num_fp16_res", "conv_clamp", "resample_kernel", "fused_modconv"),
    *("demodulate", "force_clean_graph", "mbstd_group_size", "mbstd_num_features", "structure", "lod_in"),
    *("init_res", "augment_strength", "use_pagan", "pagan_num", "pagan_fade", "score_size", "score_max"),
    *("use_spectral_norm", "adaptive_dropout", "freeze_layers", "verbose"),
}


def _check(settings: Mapping[str, Any], variables: Mapping[str, Any], name: str, any_rate: bool = False) -> None:
    wanted = {"nonlinearity": "lrelu", "act": "lrelu", "mapping_nonlinearity": "lrelu", "mapping_lrmul": 0.01}
    wanted |= {"resample_kernel": [1, 3, 3, 1], "normalize_latents": True, "demodulate": True}
    if any_rate:
        del wanted["mapping_lrmul"]
    for key, value in wanted.items():
        given = settings.get(key, value)
        given = list(given) if type(given) is tuple else given
        if is_plain(given) and given is not None and given != value:
            shown = given[:80] if isinstance(given, str) else given
            raise ConversionError(f"{name}: its networks were built with {key}={shown!r}; only {value!r} is supported")
    for key, given in settings.items():
        if key not in KNOWN_ARGUMENTS and given is not None:
            raise ConversionError(
                f"{name}: its networks were built with {short(key, 80)}={short(given)}, an argument of a fork that may"
                " change the picture; only NVIDIA's own are supported"
            )
    for key in variables:
        if re.search(r"(To|From)RGB_lod\d", key):
            raise ConversionError(f"{name}: is a StyleGAN or ProGAN snapshot ({key[:80]!r}), not a StyleGAN2")
        if "LabelConcat" in key:
            raise ConversionError(
                f"{name}: is conditional the way of the first StyleGAN2 in TensorFlow ({key[:60]!r}): z and label"
                " are normalized together, which this package's mapping network does not support; stylegan2-ada's"
                " conditional models can be converted"
            )


def convert_generator(network: Record, name: str, psi: float) -> Converted:
    """Convert `Gs`. ConversionError unless it is a StyleGAN2 of configuration e or f."""
    variables, settings = square_names(variables_of(network, name)), settings_of(network)
    _check(settings, variables, name)
    tensors, left = rename_variables(variables, GENERATOR_RULES, name)
    own_psi = _number(settings.get("truncation_psi"))
    converted = nvidia_generator(tensors, _number(settings.get("conv_clamp")), min(own_psi, 1.0) if own_psi else psi)
    converted.unused += left
    return converted


def convert_discriminator(network: Record, name: str) -> Converted:
    """Convert `D`; only the residual architecture is supported."""
    variables, settings = square_names(variables_of(network, name)), settings_of(network)
    _check(settings, variables, name, any_rate=True)
    sizes = {match[1] for key in variables if (match := re.match(r"(\d+)x\1/FromRGB/", key))}
    if len(sizes) != 1 or not any(key.endswith("/Skip/weight") for key in variables):
        raise ConversionError(f"{name}: its discriminator is not of the 'resnet' architecture; only that is supported")
    tensors, left = rename_variables(variables, DISCRIMINATOR_RULES, name)
    outputs = variables.get("Output/bias")
    if "mapping.embed.weight" not in tensors and getattr(outputs, "shape", (1,)) not in ((1,), (1, 1)):
        raise ConversionError(
            f"{name}: its discriminator has one output per class, as in the first StyleGAN2's code; convert without it"
        )
    group = settings.get("mbstd_group_size", 4)
    group = group if type(group) is int and group > 0 else 4
    rate = _number(settings.get("mapping_lrmul")) or LR_MULTIPLIER_D
    converted = nvidia_discriminator(tensors, _number(settings.get("conv_clamp")), group, rate)
    converted.unused += left
    return converted


def _number(value: Any) -> float | None:
    return value if type(value) in (int, float) and value > 0 else None
