"""Checkpoints in the layouts of the field, made of this package's models: conversion must give the same weights back.

The naming here is written down independently of `conversion/layouts.py`. The pickles are made by Python's own pickle,
from stand-ins of the classes that real files name.
"""

from __future__ import annotations

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stylefusion_hf import StyleGAN2Discriminator, StyleGAN2Generator

TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0])
FIR = torch.outer(TAPS, TAPS) / 64


def generator(seed: int = 0, **config: Any) -> StyleGAN2Generator:
    """Small, with every number drawn."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"resolution": 16, "channels": [6, 5, 4], "z_dim": 7, "w_dim": 9, "mapping_layers": 3}
    model = StyleGAN2Generator(**(sizes | config))
    for name, tensor in model.state_dict().items():
        tensor.normal_()
        if name.startswith("mapping.layers."):
            tensor.mul_(100)  # such layers are scaled by 0.01 when they are used: else all w are the same
    return model.eval()


def discriminator(seed: int = 1, **config: Any) -> StyleGAN2Discriminator:
    torch.manual_seed(seed)
    model = StyleGAN2Discriminator(**({"resolution": 16, "channels": [6, 5, 4]} | config))
    for tensor in model.state_dict().values():
        tensor.normal_()
    return model.eval()


def affine_parts(model: StyleGAN2Generator) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """conv0, ..., rgb0, ... -> (weight, bias) of the affine layer."""
    sizes = [*model.conv_sizes, *model.rgb_sizes]
    names = [f"conv{i}" for i in range(len(model.conv_sizes))] + [f"rgb{k}" for k in range(len(model.rgb_sizes))]
    state = model.state_dict()
    weights, biases = state["affine_weight"].split(sizes), state["affine_bias"].split(sizes)
    return {name: (w, b) for name, w, b in zip(names, weights, biases, strict=True)}


# ----------------------------------------------------------------------------------------------------
# rosinality


def rosinality_generator(model: StyleGAN2Generator) -> dict[str, torch.Tensor]:
    state, out = model.state_dict(), {}
    for j in range(model.config.mapping_layers):
        out[f"style.{j + 1}.weight"] = state[f"mapping.layers.{j}.weight"]
        out[f"style.{j + 1}.bias"] = state[f"mapping.layers.{j}.bias"]
    out["input.input"] = state["synthesis.const"][None]
    for name, (weight, bias) in affine_parts(model).items():
        i = int(name[4:] if name.startswith("conv") else name[3:])
        first, rest, list_name = (
            ("conv1", "convs", "convs") if name.startswith("conv") else ("to_rgb1", "to_rgbs", "rgbs")
        )
        prefix = first if i == 0 else f"{rest}.{i - 1}"
        out[f"{prefix}.conv.weight"] = state[f"synthesis.{list_name}.{i}.weight"][None]
        out[f"{prefix}.conv.modulation.weight"], out[f"{prefix}.conv.modulation.bias"] = weight, bias
        bias_name, b = f"synthesis.{list_name}.{i}.bias", f"{prefix}.bias"
        if name.startswith("conv"):
            out[f"{prefix}.activate.bias"] = state[bias_name]
            out[f"{prefix}.noise.weight"] = state[f"synthesis.convs.{i}.noise_strength"].reshape(1)
            out[f"noises.noise_{i}"] = state[f"synthesis.convs.{i}.noise_const"][None, None]
            if i % 2:
                out[f"{prefix}.conv.blur.kernel"] = FIR * 4
        else:
            out[b] = state[bias_name].reshape(1, -1, 1, 1)
            if i:
                out[f"{prefix}.upsample.kernel"] = FIR * 4
    return out


def rosinality_discriminator(model: StyleGAN2Discriminator) -> dict[str, torch.Tensor]:
    state, out = model.state_dict(), {}
    out["convs.0.0.weight"], out["convs.0.1.bias"] = state["fromrgb.weight"], state["fromrgb.bias"]
    for j in range(len(model.blocks)):
        ours, theirs = f"blocks.{j}", f"convs.{j + 1}"
        out[f"{theirs}.conv1.0.weight"] = state[f"{ours}.conv0.weight"]
        out[f"{theirs}.conv1.1.bias"] = state[f"{ours}.conv0.bias"]
        out[f"{theirs}.conv2.0.kernel"] = FIR
        out[f"{theirs}.conv2.1.weight"] = state[f"{ours}.conv1.weight"]
        out[f"{theirs}.conv2.2.bias"] = state[f"{ours}.conv1.bias"]
        out[f"{theirs}.skip.0.kernel"] = FIR
        out[f"{theirs}.skip.1.weight"] = state[f"{ours}.skip.weight"]
    for ours, weight, bias in (
        ("conv", "final_conv.0.weight", "final_conv.1.bias"),
        ("fc", "final_linear.0.weight", "final_linear.0.bias"),
        ("out", "final_linear.1.weight", "final_linear.1.bias"),
    ):
        out[weight], out[bias] = state[f"{ours}.weight"], state[f"{ours}.bias"]
    return out


# ----------------------------------------------------------------------------------------------------
# NVIDIA, PyTorch


def nvidia_generator(model: StyleGAN2Generator) -> dict[str, torch.Tensor]:
    state, affine, out = model.state_dict(), affine_parts(model), {}
    if model.config.label_dim:
        out["mapping.embed.weight"], out["mapping.embed.bias"] = (
            state["mapping.embed.weight"],
            state["mapping.embed.bias"],
        )
    for j in range(model.config.mapping_layers):
        out[f"mapping.fc{j}.weight"] = state[f"mapping.layers.{j}.weight"]
        out[f"mapping.fc{j}.bias"] = state[f"mapping.layers.{j}.bias"]
    out["mapping.w_avg"] = state["w_avg"]
    out["synthesis.b4.const"] = state["synthesis.const"]
    for k in range(len(model.config.channels)):
        block = f"synthesis.b{4 * 2**k}"
        out[f"{block}.resample_filter"] = FIR
        layers = [(2 * k, "conv1", f"conv{2 * k}")] + ([(2 * k - 1, "conv0", f"conv{2 * k - 1}")] if k else [])
        for i, theirs, vector in layers:
            for part in ("weight", "bias", "noise_strength", "noise_const"):
                if f"synthesis.convs.{i}.{part}" in state:
                    out[f"{block}.{theirs}.{part}"] = state[f"synthesis.convs.{i}.{part}"]
            out[f"{block}.{theirs}.resample_filter"] = FIR
            out[f"{block}.{theirs}.affine.weight"], out[f"{block}.{theirs}.affine.bias"] = affine[vector]
        for part in ("weight", "bias"):
            out[f"{block}.torgb.{part}"] = state[f"synthesis.rgbs.{k}.{part}"]
        out[f"{block}.torgb.affine.weight"], out[f"{block}.torgb.affine.bias"] = affine[f"rgb{k}"]
    return out


def nvidia_discriminator(model: StyleGAN2Discriminator) -> dict[str, torch.Tensor]:
    state, out = model.state_dict(), {}
    sizes = [4 * 2 ** (len(model.blocks) - j) for j in range(len(model.blocks))]  # in the names, also of rectangles
    out[f"b{sizes[0]}.fromrgb.weight"], out[f"b{sizes[0]}.fromrgb.bias"] = (
        state["fromrgb.weight"],
        state["fromrgb.bias"],
    )
    for j, size in enumerate(sizes):
        out[f"b{size}.resample_filter"] = FIR
        for part in ("conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias", "skip.weight"):
            out[f"b{size}.{part}"] = state[f"blocks.{j}.{part}"]
    for part in ("conv", "fc", "out"):
        out[f"b4.{part}.weight"], out[f"b4.{part}.bias"] = state[f"{part}.weight"], state[f"{part}.bias"]
    for name in state:
        if name.startswith("mapping."):
            out[name.replace("mapping.layers.", "mapping.fc")] = state[name]
    return out


class Persistent:
    """Pickles as NVIDIA's persistent objects do: a call of a function that this machine does not have."""

    def __init__(self, class_name: str, state: dict[str, Any]):
        self.meta = {
            "type": "class",
            "version": 6,
            "module_src": "import os; os._exit(3)  # never run",
            "class_name": class_name,
        }
        self.meta["state"] = state

    def __reduce__(self) -> Any:
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,)


def module_tree(tensors: dict[str, torch.Tensor], settings: dict[str, dict[str, Any]], class_name: str) -> Persistent:
    """A tree of modules from names with dots; `settings`: path -> attributes ("*": of every module)."""

    def build(prefix: str, entries: dict[str, Any], name: str) -> Persistent:
        state: dict[str, Any] = {"training": False, "_parameters": OrderedDict(), "_buffers": OrderedDict()}
        state |= {"_modules": OrderedDict(), "_forward_hooks": OrderedDict(), "_non_persistent_buffers_set": set()}
        children: dict[str, dict[str, Any]] = {}
        for key, tensor in entries.items():
            head, _, rest = key.partition(".")
            if rest:
                children.setdefault(head, {})[rest] = tensor
            elif head in ("resample_filter", "noise_const", "w_avg"):
                state["_buffers"][head] = tensor.clone()
            else:
                state["_parameters"][head] = torch.nn.Parameter(tensor.clone(), tensor.is_floating_point())
        for path in settings:  # modules without tensors
            above, _, head = path.rpartition(".")
            if above == prefix and above:
                children.setdefault(head, {})
        for head, inner in children.items():
            state["_modules"][head] = build(f"{prefix}.{head}".lstrip("."), inner, head)
        state |= settings.get("*", {}) | settings.get(prefix, {})
        return Persistent(name, state)

    return build("", tensors, class_name)


@contextmanager
def foreign_modules() -> Iterator[None]:
    """Stand-ins for the modules that real files name, there only while a file is written."""

    def function(module: str, name: str) -> None:
        def stand_in(*args: Any) -> None:
            raise AssertionError(f"{module}.{name} was called")

        stand_in.__module__, stand_in.__qualname__ = module, name
        setattr(sys.modules[module], name, stand_in)

    names = ["torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.tflib", "dnnlib.tflib.network"]
    try:
        for name in names:
            sys.modules[name] = types.ModuleType(name)
        function("torch_utils.persistence", "_reconstruct_persistent_obj")
        Network.__module__, Network.__qualname__ = "dnnlib.tflib.network", "Network"
        sys.modules["dnnlib.tflib.network"].Network = Network  # type: ignore[attr-defined]
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


def save_nvidia(
    path: Path, g: StyleGAN2Generator, d: StyleGAN2Discriminator | None = None, protocol: int = 4, **settings: Any
) -> None:
    """A snapshot of G_ema (and G, which is something else) and D."""
    clamp = {"*": {"conv_clamp": g.config.conv_clamp}}
    other = {name: tensor + 1 for name, tensor in nvidia_generator(g).items() if "resample_filter" not in name}
    content: dict[str, Any] = {"G": module_tree(other, clamp, "Generator"), "D": None}
    if d is not None:
        group = {"b4.mbstd": {"group_size": d.config.mbstd_group_size, "num_channels": d.config.mbstd_channels}}
        of_d = {"*": {"conv_clamp": d.config.conv_clamp}} | group
        content["D"] = module_tree(nvidia_discriminator(d), of_d, "Discriminator")
    content["G_ema"] = module_tree(nvidia_generator(g), clamp | settings, "Generator")
    content["training_set_kwargs"] = {"path": "x.zip"}
    dump_foreign(content, path, protocol)


def dump_foreign(content: Any, path: Path, protocol: int = 4) -> None:
    with foreign_modules(), path.open("wb") as file:
        pickle.dump(content, file, protocol=protocol)


# ----------------------------------------------------------------------------------------------------
# NVIDIA, TensorFlow


class Network:
    """dnnlib.tflib.network.Network, as far as its pickles go."""

    def __init__(self, **state: Any):
        self.__dict__.update(state)

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)


def tensorflow_generator(model: StyleGAN2Generator) -> tuple[list, list, list]:
    """(own variables, mapping's, synthesis') as (name, array)."""
    state, affine = model.state_dict(), affine_parts(model)
    mapping: list = []
    if model.config.label_dim:
        mapping += [
            ("LabelEmbed/weight", state["mapping.embed.weight"].t()),
            ("LabelEmbed/bias", state["mapping.embed.bias"]),
        ]
    for j in range(model.config.mapping_layers):
        mapping.append((f"Dense{j}/weight", state[f"mapping.layers.{j}.weight"].t()))
        mapping.append((f"Dense{j}/bias", state[f"mapping.layers.{j}.bias"]))
    synthesis = [("4x4/Const/const", state["synthesis.const"][None])]
    for i in range(len(model.conv_sizes)):
        size = 4 * 2 ** ((i + 1) // 2)
        prefix = f"{size}x{size}/" + ("Conv" if i == 0 else "Conv0_up" if i % 2 else "Conv1")
        weight = state[f"synthesis.convs.{i}.weight"]
        weight = weight.flip(2, 3) if i % 2 else weight
        synthesis.append((f"{prefix}/weight", weight.permute(2, 3, 1, 0)))
        synthesis.append((f"{prefix}/bias", state[f"synthesis.convs.{i}.bias"]))
        synthesis.append((f"{prefix}/mod_weight", affine[f"conv{i}"][0].t()))
        synthesis.append((f"{prefix}/mod_bias", affine[f"conv{i}"][1] - 1))
        if f"synthesis.convs.{i}.noise_strength" in state:
            synthesis.append((f"{prefix}/noise_strength", state[f"synthesis.convs.{i}.noise_strength"]))
            synthesis.append((f"noise{i}", state[f"synthesis.convs.{i}.noise_const"][None, None]))
    for k in range(len(model.rgb_sizes)):
        prefix = f"{4 * 2**k}x{4 * 2**k}/ToRGB"
        synthesis.append((f"{prefix}/weight", state[f"synthesis.rgbs.{k}.weight"].permute(2, 3, 1, 0)))
        synthesis.append((f"{prefix}/bias", state[f"synthesis.rgbs.{k}.bias"]))
        synthesis.append((f"{prefix}/mod_weight", affine[f"rgb{k}"][0].t()))
        synthesis.append((f"{prefix}/mod_bias", affine[f"rgb{k}"][1] - 1))
    return [("lod", torch.tensor(0.0)), ("dlatent_avg", state["w_avg"])], mapping, synthesis


def tensorflow_discriminator(model: StyleGAN2Discriminator) -> list:
    state, out = model.state_dict(), []
    r = 4 * 2 ** len(model.blocks)
    out += [
        (f"{r}x{r}/FromRGB/weight", state["fromrgb.weight"].permute(2, 3, 1, 0)),
        (f"{r}x{r}/FromRGB/bias", state["fromrgb.bias"]),
    ]
    for j in range(len(model.blocks)):
        size = f"{r // 2**j}x{r // 2**j}"
        for ours, theirs in (("conv0", "Conv0"), ("conv1", "Conv1_down")):
            out.append((f"{size}/{theirs}/weight", state[f"blocks.{j}.{ours}.weight"].permute(2, 3, 1, 0)))
            out.append((f"{size}/{theirs}/bias", state[f"blocks.{j}.{ours}.bias"]))
        out.append((f"{size}/Skip/weight", state[f"blocks.{j}.skip.weight"].permute(2, 3, 1, 0)))
    out += [("4x4/Conv/weight", state["conv.weight"].permute(2, 3, 1, 0)), ("4x4/Conv/bias", state["conv.bias"])]
    out += [("4x4/Dense0/weight", state["fc.weight"].t()), ("4x4/Dense0/bias", state["fc.bias"])]
    out += [("Output/weight", state["out.weight"].t()), ("Output/bias", state["out.bias"])]
    for name in state:
        if name.startswith("mapping.embed."):
            out.append((name.replace("mapping.embed.", "LabelEmbed/"), state[name].t()))
        elif name.startswith("mapping.layers."):
            out.append((name.replace("mapping.layers.", "Mapping").replace(".", "/"), state[name].t()))
    return out


def save_tensorflow(
    path: Path, g: StyleGAN2Generator, d: StyleGAN2Discriminator | None = None, protocol: int = 2, **kwargs: Any
) -> None:
    """(G, D, Gs), of which G is something else."""

    def arrays(pairs: list) -> list:
        return [(name, np.ascontiguousarray(tensor.numpy())) for name, tensor in pairs]

    def network(pairs: list, components: dict | None = None, **static: Any) -> Network:
        state: dict[str, Any] = {
            "version": kwargs.get("version", 4),
            "name": "Gs",
            "static_kwargs": static | kwargs.get("static", {}),
        }
        state |= {"components": components or {}, "build_module_src": "raise SystemExit(3)", "build_func_name": "x"}
        return Network(**state, variables=arrays(pairs))

    own, mapping, synthesis = tensorflow_generator(g)
    other, other_mapping, other_synthesis = ([(n, t + 1) for n, t in pairs] for pairs in (own, mapping, synthesis))
    clamp = {} if g.config.conv_clamp is None else {"conv_clamp": g.config.conv_clamp}
    parts = {"mapping": network(mapping), "synthesis": network(synthesis, **clamp)}
    of_d = {"mapping_lrmul": 0.01} | kwargs.get("judge_static", {})  # 0.1 where it is not said
    judge = (
        network(tensorflow_discriminator(d), mbstd_group_size=d.config.mbstd_group_size, **of_d)
        if d is not None
        else None
    )
    others = {"mapping": network(other_mapping), "synthesis": network(other_synthesis)}
    content = [network(other, others), *([judge] if judge else []), network(own, parts)]
    dump_foreign(tuple(content), path, protocol)


# ----------------------------------------------------------------------------------------------------
# The authors' fusion nets


def fusion_net(model: Any, node: str) -> dict[str, torch.Tensor]:
    """One net of a hierarchy, as the authors publish it."""
    prefix = f"nets.net_{node}."
    return {
        name.removeprefix(prefix).replace(".layers.", ".disentangle_net."): tensor
        for name, tensor in model.state_dict().items()
        if name.startswith(prefix)
    }


# ----------------------------------------------------------------------------------------------------
# Other projects' names of a StyleGAN2.


def _vector(name: str) -> tuple[str, int]:
    """conv3 -> ("conv", 3)"""
    kind = name.rstrip("0123456789")
    return kind, int(name[len(kind) :])


def basicsr_generator(model: StyleGAN2Generator) -> dict[str, torch.Tensor]:
    out = {}
    for name, tensor in rosinality_generator(model).items():
        if name.endswith(".kernel"):  # no buffer there
            continue
        parts = name.split(".")
        if parts[0] == "style":
            parts[0] = "style_mlp"
        elif parts[0] == "input":
            parts = ["constant_input", "weight"]
        elif parts[0] == "noises":
            parts[1] = parts[1].replace("_", "")
        elif "noise" in parts:
            parts.remove("noise")
        if parts[0] in ("conv1", "convs"):
            parts[0] = "style_" + parts[0]
        out[".".join("modulated_conv" if part == "conv" else part for part in parts)] = tensor
    return out


def mmgeneration_generator(model: StyleGAN2Generator) -> dict[str, torch.Tensor]:
    out = {}
    for name, tensor in rosinality_generator(model).items():
        layer, _, part = name.rpartition(".")
        if layer.startswith("style."):
            new = f"style_mapping.{layer[6:]}." + ("linear.weight_orig" if part == "weight" else "bias")
        elif name == "input.input":
            new = "constant_input.input"
        elif layer == "noises":
            new = f"injected_{part}"
        elif layer.endswith(".modulation"):
            base = layer.removesuffix("modulation") + "style_modulation."
            new = base + ("linear.weight_orig" if part == "weight" else "bias")
        elif layer.endswith(".noise"):
            new = layer.removesuffix("noise") + "noise_injector.weight"
        elif layer.endswith(".conv"):
            new = f"{layer}.weight_orig"
        else:
            new = name
        out[new] = tensor
    return out


def genforce_generator(model: StyleGAN2Generator) -> dict[str, torch.Tensor]:
    state = model.state_dict()
    out = {"synthesis.early_layer.const": state["synthesis.const"][None], "truncation.w_avg": state["w_avg"]}
    for j in range(model.config.mapping_layers):
        for part in ("weight", "bias"):
            out[f"mapping.dense{j}.{part}"] = state[f"mapping.layers.{j}.{part}"]
    for name, (weight, bias) in affine_parts(model).items():
        kind, i = _vector(name)
        theirs = f"synthesis.{'layer' if kind == 'conv' else 'output'}{i}"
        ours = f"synthesis.{kind}s.{i}"
        up = kind == "conv" and i % 2
        out[f"{theirs}.weight"] = state[f"{ours}.weight"].flip(2, 3) if up else state[f"{ours}.weight"]
        out[f"{theirs}.bias"] = state[f"{ours}.bias"]
        out[f"{theirs}.style.weight"], out[f"{theirs}.style.bias"] = weight, bias - 1
        if kind == "conv":
            out[f"{theirs}.noise_strength"] = state[f"{ours}.noise_strength"]
            out[f"{theirs}.noise"] = state[f"{ours}.noise_const"][None, None]
        if up:
            out[f"{theirs}.filter.kernel"] = FIR[None, None] * 4
    return out | {"synthesis.upsample.kernel": FIR[None, None] * 4}


def sahlman_file(model: StyleGAN2Generator, **settings: Any) -> dict[str, Any]:
    """What `Generator.save()` of adriansahlman/stylegan2_pytorch writes; it leaves the noise images out."""
    state = model.state_dict()
    mapping = {}
    for j in range(model.config.mapping_layers):
        mapping[f"main.{j}.layer.weight"] = state[f"mapping.layers.{j}.weight"]
        mapping[f"main.{j}.bias"] = state[f"mapping.layers.{j}.bias"]
    synthesis = {"const": state["synthesis.const"], "upsample.weight": torch.ones(1, 1, 1, 1)}
    synthesis["upsample.filter.filter_kernel"] = FIR[None, None] * 4
    for name, (weight, bias) in affine_parts(model).items():
        kind, i = _vector(name)
        block, layer = ((i + 1) // 2, 0 if i % 2 or not i else 1) if kind == "conv" else (i, 0)
        theirs = f"conv_blocks.{block}.conv_block.{layer}" if kind == "conv" else f"to_data_layers.{block}"
        inner = f"{theirs}.layer.layer" if kind == "conv" else f"{theirs}.layer"
        synthesis[f"{theirs}.bias"] = state[f"synthesis.{kind}s.{i}.bias"]
        synthesis[f"{inner}.weight"] = state[f"synthesis.{kind}s.{i}.weight"]
        synthesis[f"{inner}.dense.layer.weight"], synthesis[f"{inner}.dense.bias"] = weight, bias
        if kind == "conv":
            synthesis[f"{theirs}.layer.weight"] = state[f"synthesis.convs.{i}.noise_strength"].reshape(1)
        if kind == "conv" and i % 2:
            synthesis[f"{inner}.filter.filter_kernel"] = FIR[None, None] * 4
    kwargs = {"latent_size": model.config.w_dim, "channels": list(model.config.channels)[::-1]}
    parts = {"G_mapping": ("GeneratorMapping", mapping, {"normalize_input": True, "activation": "leaky:0.2"})}
    parts["G_synthesis"] = ("GeneratorSynthesis", synthesis, kwargs | {"skip": True, "resnet": False} | settings)
    own = {"name": "Generator", "kwargs": {"dlatent_avg_beta": 0.995}, "state_dict": {"dlatent_avg": state["w_avg"]}}
    return own | {key: {"name": n, "state_dict": s, "kwargs": k} for key, (n, s, k) in parts.items()}


# ----------------------------------------------------------------------------------------------------
# Whole modules, as torch.save(model) pickles them.


class Layer(torch.nn.Module):
    """A layer of rosinality's model.py."""


def as_module(tensors: dict[str, torch.Tensor], settings: dict[str, dict[str, Any]] | None = None) -> torch.nn.Module:
    """A tree of modules with these tensors; `settings`: path -> attributes of the module there."""
    root = Layer()
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, Layer())
            module = module._modules[part]
        if last == "kernel" or "noises" in path:
            module.register_buffer(last, tensor.clone())
        else:
            module.register_parameter(last, torch.nn.Parameter(tensor.clone()))
    for path, attributes in (settings or {}).items():
        vars(root.get_submodule(path)).update(attributes)
    return root


@contextmanager
def rosinality_code() -> Iterator[None]:
    """The class is called `model.Layer` while a file is written, as of a model.py that this machine does not have."""
    before = Layer.__module__
    sys.modules["model"] = types.ModuleType("model")
    sys.modules["model"].Layer = Layer  # type: ignore[attr-defined]
    Layer.__module__ = "model"
    try:
        yield
    finally:
        Layer.__module__ = before
        sys.modules.pop("model")
