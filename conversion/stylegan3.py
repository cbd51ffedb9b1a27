"""NVIDIA's StyleGAN3 (stylegan3-t, -r and relatives): tensor names and settings -> `StyleGAN3Generator`.

A snapshot stores what its constructor derived (sampling rates, half widths, paddings), not all of the arguments. The
arguments are recovered, the layers are planned from them, and every stored setting is held against the plan: a setting
that this package's model does not have is an error, never a silently different picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from stylefusion_hf.conversion.layouts import Converted, LayoutError, Reader, Tensors
from stylefusion_hf.conversion.modules import ModuleTable
from stylefusion_hf.core.checks import short
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.models.stylegan3_plan import LayerPlan, SignalPlan, plan_layers, plan_signals

LAYER = re.compile(r"synthesis\.(L(\d{1,4})_(\d{1,6})_(\d{1,6}))\.weight")
ARCHITECTURE = "stylegan3"
FIRST_STOPBAND, LAST_STOPBAND = 2**2.1, 2**0.3  # NVIDIA's defaults
FILTER_ERROR = 1e-3  # of filters, relative to their largest tap

Attributes = Mapping[str, Mapping[str, Any]]


def looks_like_stylegan3(tensors: Any) -> bool:
    """Return whether a dictionary has the names of an alias-free generator."""
    names = [str(name) for name in tensors] if isinstance(tensors, Mapping) else []
    return any(name.startswith("synthesis.input.") for name in names) or any(map(LAYER.match, names))


def refuse_stylegan_xl(tensors: Mapping[str, Any], classes: Mapping[str, str], name: str) -> None:
    """Raise ConversionError for a StyleGAN-XL: its mapping network embeds ImageNet's classes by another network."""
    mean = tensors.get("mapping.w_avg")
    known = any("superres" in kind.lower() for kind in classes.values())
    embeds = any(key.startswith(("mapping.embed_proj.", "mapping.embed.embed")) for key in tensors)
    if known or embeds or (isinstance(mean, torch.Tensor) and mean.ndim == 2):
        raise ConversionError(
            f"{name}: is a StyleGAN-XL, whose class embedding and stacked generators are not supported; of the"
            " StyleGAN3 family, give a stylegan3-t or stylegan3-r file"
        )


def convert_generator(modules: ModuleTable, name: str, psi: float) -> Converted:
    """Convert `G_ema` of a StyleGAN3 snapshot."""
    converted = stylegan3_generator(modules.tensors, psi, modules.attributes, name)
    z_dim = modules.attributes[""].get("z_dim")
    if z_dim is not None and z_dim != converted.config["z_dim"]:
        raise ConversionError(
            f"{name}: the generator says z_dim {z_dim!r}, its tensors say {converted.config['z_dim']}"
        )
    return converted


def stylegan3_generator(
    tensors: Tensors, psi: float = 0.7, attributes: Attributes | None = None, name: str = "StyleGAN3 generator"
) -> Converted:
    """Convert the tensors of `G_ema`.

    Args:
        psi: the model's default truncation.
        attributes: the modules' attributes, by path; without them, settings that no tensor shows are NVIDIA's
            defaults, and the filters must be those of these settings.
    """
    read = Reader(tensors, "StyleGAN3 generator")
    layers = _layer_names(tensors)
    channels = [read.take(f"synthesis.{layer}.weight", least=4).shape[-3] for layer in layers]
    settings = _settings(read, layers, attributes or {}, name)
    signals = _plan_signals(settings)
    plans = _plan_layers(signals, settings)
    if not attributes:
        _check_filters(tensors, layers, signals, plans)

    # Input and synthesis layers.
    state = {f"synthesis.input.{part}": read.take(f"synthesis.input.{part}") for part in ("weight", "freqs", "phases")}
    state["synthesis.input.transform"] = torch.eye(3)
    if read.has("synthesis.input.transform"):
        state["synthesis.input.transform"] = read.take("synthesis.input.transform", (3, 3))
    w_dim = read.take("synthesis.input.affine.weight", least=2).shape[-1]
    affine_w = [read.take("synthesis.input.affine.weight", (4, w_dim))]
    affine_b = [read.take("synthesis.input.affine.bias", (4,))]
    img_channels = read.take(f"synthesis.{layers[-1]}.weight").shape[-4]
    for i, (layer, plan) in enumerate(zip(layers, plans, strict=True)):
        source, ours = f"synthesis.{layer}.", f"synthesis.layers.{i}."
        out = [*channels[1:], img_channels][i]
        state[f"{ours}weight"] = read.take(f"{source}weight", (out, channels[i], plan.kernel, plan.kernel))
        state[f"{ours}bias"] = read.take(f"{source}bias", (out,))
        state[f"{ours}magnitude_ema"] = read.take(f"{source}magnitude_ema", ())
        for part, designed in (("up_filter", plan.up_filter(signals)), ("down_filter", plan.down_filter(signals))):
            if designed is not None:
                stored = read.has(source + part)
                state[ours + part] = read.take(source + part, tuple(designed.shape)) if stored else designed
        affine_w.append(read.take(f"{source}affine.weight", (channels[i], w_dim)))
        affine_b.append(read.take(f"{source}affine.bias", (channels[i],)))
    state["affine_weight"], state["affine_bias"] = torch.cat(affine_w), torch.cat(affine_b)

    mapping = _mapping(read, state, w_dim)
    config = settings | mapping | {"channels": channels, "w_dim": w_dim, "img_channels": img_channels}
    return Converted(config | {"truncation_psi": psi}, state, read.unused(), ARCHITECTURE)


def _mapping(read: Reader, state: dict[str, torch.Tensor], w_dim: int) -> dict[str, Any]:
    """Add the mapping network to `state`; return its part of the config."""
    count = read.count("mapping.fc{}.weight")
    if not count:
        raise LayoutError(f"{read.what}: the checkpoint lacks the layers of the mapping network; it may be truncated")
    label_dim = embed_dim = 0
    if read.has("mapping.embed.weight"):
        embed_dim, label_dim = read.take("mapping.embed.weight", least=2).shape
        state["mapping.embed.weight"] = read.take("mapping.embed.weight")
        state["mapping.embed.bias"] = read.take("mapping.embed.bias", (embed_dim,))
    for j in range(count):
        state[f"mapping.layers.{j}.weight"] = read.take(f"mapping.fc{j}.weight", least=2)
        state[f"mapping.layers.{j}.bias"] = read.take(f"mapping.fc{j}.bias")
    if read.has("mapping.w_avg"):
        state["w_avg"] = read.take("mapping.w_avg", (w_dim,))
    width, inputs = state["mapping.layers.0.weight"].shape
    return {
        "z_dim": inputs - embed_dim,
        "label_dim": label_dim,
        "mapping_layers": count,
        "mapping_width": width if count > 1 else None,
    }


# --- Settings --------------------------------------------------------------------------------------------------------


def _layer_names(tensors: Tensors) -> list[str]:
    """Return the names of the layers in order, "L0_36_512", ..., the picture's last."""
    found = sorted((int(match[2]), match[1]) for key in tensors if (match := LAYER.fullmatch(key)))
    if len(found) < 2 or [index for index, _ in found] != list(range(len(found))):
        raise LayoutError(
            f"StyleGAN3 generator: its layers are {[layer for _, layer in found][:20]}, expected L0_..., L1_..., and"
            " so on; the checkpoint may be truncated"
        )
    return [layer for _, layer in found]


def _settings(read: Reader, layers: list[str], attributes: Attributes, name: str) -> dict[str, Any]:
    """Recover the arguments of the synthesis network."""
    network, source = attributes.get("synthesis", {}), attributes.get("synthesis.input", {})
    known = [attributes.get(f"synthesis.{layer}", {}) for layer in layers]
    first, last = known[0], known[-1]
    taps = [(layer.get("up_taps", 1), layer.get("up_factor", 1)) for layer in known]
    filtered = [(count, up) for count, up in taps if up > 1]
    rate = max(first.get("in_sampling_rate", 1), first.get("out_sampling_rate", 1))
    radial = [read.tensors.get(f"synthesis.{layer}.down_filter") for layer in layers]
    clamps = [layer["conv_clamp"] for layer in known if "conv_clamp" in layer]
    if any(clamp != clamps[0] for clamp in clamps):
        raise ConversionError(f"{name}: its layers have different conv_clamp values: not supported")
    stopband = LAST_STOPBAND
    if "out_half_width" in last and "out_cutoff" in last:
        stopband = (last["out_cutoff"] + last["out_half_width"]) / last["out_cutoff"]
    settings = {
        "resolution": network.get("img_resolution", int(layers[-1].split("_")[1])),
        "num_layers": len(layers) - 1,
        "num_critical": network.get("num_critical", 2),
        "first_cutoff": float(source.get("bandwidth", 2.0)),
        "first_stopband": FIRST_STOPBAND,
        "last_stopband_rel": LAST_STOPBAND if math.isclose(stopband, LAST_STOPBAND, rel_tol=1e-9) else stopband,
        "margin_size": network.get("margin_size", 10),
        "conv_kernel": read.take(f"synthesis.{layers[0]}.weight", least=4).shape[-1],
        "filter_size": filtered[0][0] // filtered[0][1] if filtered else 6,
        "lrelu_upsampling": first.get("tmp_sampling_rate", 2 * rate) // rate,
        "use_radial_filters": any(f is not None and f.ndim == 2 for f in radial),
        "conv_clamp": None if clamps and clamps[0] is None else float(clamps[0] if clamps else 256),
        "output_scale": float(network.get("output_scale", 0.25)),
    }
    problems: list[tuple[int, str]] = []
    for candidate in _candidates(settings, known):
        try:
            found = _difference(candidate, layers, known)
        except ValueError as error:
            found = (-1, str(error))
        if found is None:
            return candidate
        problems.append(found)
    problem = max(problems, key=lambda found: found[0])[1]  # of the settings that explain the most layers
    raise ConversionError(f"{name}: {problem}: a StyleGAN3 of other settings than are supported")


def _candidates(settings: dict[str, Any], known: list[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield settings with every first stopband that could have been given.

    It shows in the half widths of layers whose stopband exceeds half their rate, else only in the rates, which many
    stopbands share.
    """
    yield settings
    last = settings["resolution"] / 2 * settings["last_stopband_rel"]
    for i, layer in enumerate(known[: -1 - settings["num_critical"]]):
        if {"out_half_width", "out_cutoff", "out_sampling_rate"} <= layer.keys():
            stopband = layer["out_half_width"] + layer["out_cutoff"]
            share = 1 - i / (settings["num_layers"] - settings["num_critical"])
            if stopband > layer["out_sampling_rate"] / 2 * (1 + 1e-9):
                yield settings | {"first_stopband": (stopband / last ** (1 - share)) ** (1 / share)}
    octaves = math.log2(max(settings["resolution"] / settings["first_cutoff"], 2))
    for relative in dict.fromkeys((settings["last_stopband_rel"], LAST_STOPBAND)):
        for step in range(1, 401):
            stopband = settings["first_cutoff"] * 2 ** (octaves * step / 400)
            yield settings | {"first_stopband": stopband, "last_stopband_rel": relative}


def _plan_signals(settings: Mapping[str, Any]) -> SignalPlan:
    keys = ("resolution", "num_layers", "num_critical", "first_cutoff", "first_stopband", "last_stopband_rel")
    return plan_signals(**{key: settings[key] for key in (*keys, "margin_size")})


def _plan_layers(signals: SignalPlan, settings: Mapping[str, Any]) -> list[LayerPlan]:
    keys = ("num_critical", "conv_kernel", "filter_size", "lrelu_upsampling", "use_radial_filters")
    return plan_layers(signals, **{key: settings[key] for key in keys})


def _difference(settings: dict[str, Any], layers: list[str], known: list[Mapping[str, Any]]) -> tuple[int, str] | None:
    """Return the first stored setting that differs from the plan of `settings`: its layer, and a description."""
    signals = _plan_signals(settings)
    for layer, plan, stored in zip(layers, _plan_layers(signals, settings), known, strict=True):
        i, previous = plan.index, plan.previous
        if (size := int(layer.split("_")[1])) != signals.sizes[i]:
            return i, f"the maps of {layer} have {size} pixels where {signals.sizes[i]} follow from its settings"
        expected = {
            "in_cutoff": signals.cutoffs[previous],
            "out_cutoff": signals.cutoffs[i],
            "in_half_width": signals.half_widths[previous],
            "out_half_width": signals.half_widths[i],
            "in_sampling_rate": signals.rates[previous],
            "out_sampling_rate": signals.rates[i],
            "tmp_sampling_rate": plan.temporary_rate,
            "conv_kernel": plan.kernel,
            "up_factor": plan.up,
            "down_factor": plan.down,
            "up_taps": plan.up_taps,
            "down_taps": plan.down_taps,
            "down_radial": plan.radial,
            "is_torgb": i == len(layers) - 1,
            "padding": [*plan.padding, *plan.padding],
        }
        for key, value in expected.items():
            if key in stored and not _equal(stored[key], value):
                return i, f"{layer} has {key} {short(stored[key], 80)} where {value} follows from its settings"
    return None


def _equal(stored: Any, expected: Any) -> bool:
    if isinstance(expected, list):
        return list(stored) == expected if isinstance(stored, (list, tuple)) else False
    return isinstance(stored, (int, float)) and math.isclose(stored, expected, rel_tol=1e-6, abs_tol=1e-9)


def _differ(stored: torch.Tensor, designed: torch.Tensor) -> bool:
    return float((stored - designed).abs().max()) > FILTER_ERROR * float(designed.abs().max())


def _check_filters(tensors: Tensors, layers: list[str], signals: SignalPlan, plans: list[LayerPlan]) -> None:
    """Raise LayoutError for filters of other frequencies than those assumed, which only a snapshot states."""
    for layer, plan in zip(layers, plans, strict=True):
        for part, designed in (("up_filter", plan.up_filter(signals)), ("down_filter", plan.down_filter(signals))):
            stored = tensors.get(f"synthesis.{layer}.{part}")
            if stored is None:
                continue
            if designed is None or stored.shape != designed.shape or _differ(stored, designed):
                raise LayoutError(
                    f"StyleGAN3 generator: {layer}.{part} is not the filter of NVIDIA's default frequencies, and"
                    " plain tensors do not state others: convert the .pkl that they were saved from"
                )
