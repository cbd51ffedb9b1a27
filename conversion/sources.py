"""Detection of a checkpoint's kind: what is in a file, under which names, however it is wrapped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from stylefusion_hf.conversion import tensorflow
from stylefusion_hf.conversion.forks import FORKS, find_fork, flatten_sahlman, refuse_other_architectures
from stylefusion_hf.conversion.modules import (
    BrokenModule,
    is_persistent,
    module_state,
    read_modules,
    tensor_names,
    without_wrappers,
)
from stylefusion_hf.conversion.networks import (
    GENERATORS,
    Source,
    encoder_file,
    is_averaged,
    looks_like_nvidia,
    looks_like_rosinality,
    looks_like_rosinality_discriminator,
    nvidia_modules,
    nvidia_tensors,
    rosinality_file,
    tensorflow_networks,
    without_prefix,
)
from stylefusion_hf.conversion.rosinality import check_settings
from stylefusion_hf.core.untrusted.inert import ConversionError, Record

KINDS = {
    "nvidia": "NVIDIA .pkl of stylegan2-ada-pytorch or stylegan3: StyleGAN2 and StyleGAN3",
    "tensorflow": "NVIDIA .pkl from the TensorFlow repositories: stylegan2, stylegan2-ada",
    "rosinality": "rosinality/stylegan2-pytorch .pt: g_ema, latent_avg, d",
    "e4e": "e4e, pSp, ReStyle or HyperStyle .pt: the generator as decoder.* under state_dict",
    "mobilestylegan": "MobileStyleGAN in OpenVINO's format: a wheel, a folder or an .xml with its .bin",
    "stylefusion": "the StyleFusion authors' JSON, node -> .pt, with --generator",
    "directions": "directions of InterFaceGAN, StyleCLIP, GANSpace: .npy, .npz, .pt, .pkl, or a folder of them",
}

MAX_WRAPPING, MAX_WRAPPERS = 3, 64  # search limits for dictionaries that wrap the checkpoint: depth and count


def read_source(content: Any, name: str, kind: str = "auto") -> Source:
    """Find the networks in an object returned by `safe_pickle.load`.

    Raises:
        ConversionError: no StyleGAN2 generator, another kind than requested, or a damaged file.
    """
    source = _recognize(content, name)
    if kind not in ("auto", source.kind):
        raise ConversionError(f"{name}: is of the kind {source.kind!r}, not {kind!r}; leave out --kind to detect it")
    return source


def _recognize(content: Any, name: str) -> Source:
    if isinstance(content, Record):
        content = content.items or content.entries() if module_state(content) is None else _whole_module(content, name)
    networks = [content] if tensorflow.is_network(content) else content
    if isinstance(networks, (tuple, list)) and networks and all(tensorflow.is_network(x) for x in networks):
        return tensorflow_networks(networks, name)
    if not isinstance(content, Mapping):
        raise ConversionError(f"{name}: holds a {_describe(content)}, not the networks of a StyleGAN2")
    refuse_other_architectures(tensor_names(content), name)  # parts of which look like a generator
    if (source := _search_dictionaries(content, name)) is not None:
        return source
    inside = content.get("state_dict")
    if any(str(key).startswith("blender_") for key in (inside if isinstance(inside, Mapping) else content)):
        raise ConversionError(f"{name}: is one fusion net; give the authors' JSON, node -> file, with --generator")
    known = f"NVIDIA's, rosinality's and the names of {', '.join(fork.name for fork in FORKS)} are known here"
    raise ConversionError(
        f"{name}: holds no StyleGAN2 generator that is known here; it has {_describe(content)}; {known}"
    )


def _search_dictionaries(content: Mapping[Any, Any], name: str) -> Source | None:
    """Find the networks in a dictionary, or in one nested inside it, as in {"model": {"g_ema": ...}}."""
    pending: list[tuple[Mapping[Any, Any], list[str]]] = [(content, [])]  # each with the keys that lead to it
    means: dict[int, Any] = {}  # of a dictionary: the mean of w that stands in one around it
    seen: set[int] = set()
    for inside, keys in pending:
        if id(inside) in seen:
            continue
        seen.add(id(inside))
        mean = means.get(id(inside))
        known = inside if mean is None else {"latent_avg": mean, **inside}
        if (source := _known_layout(known, name)) is not None:
            path = "".join(f"{key}/" for key in keys)
            source.unused = [f"{path}{n}" for n in source.unused]
            source.discriminator_tensors = [f"{path}{n}" for n in source.discriminator_tensors]
            around = [n for n in tensor_names(content) if not n.startswith(path)] if keys else []
            source.unused += [n for n in around if mean is None or n.split("/")[-1] != "latent_avg"]
            return source
        means |= {id(value): known.get("latent_avg") for value in inside.values() if isinstance(value, Mapping)}
        if len(keys) < MAX_WRAPPING:
            inner = [(value, [*keys, str(key)[:80]]) for key, value in inside.items() if isinstance(value, Mapping)]
            pending += inner[: max(0, MAX_WRAPPERS - len(pending))]  # a file may reference a dictionary many times
    return None


def _known_layout(content: Mapping[Any, Any], name: str) -> Source | None:
    content = {key: _plain(value, name) for key, value in without_wrappers(content).items()}
    if any(isinstance(content.get(key), Record) and module_state(content[key]) for key in ("G_ema", "G")):
        return nvidia_modules(content, name)
    states = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    inside = states.get("state_dict", content)
    if any(str(key).startswith("decoder.") for key in inside):
        return encoder_file(content, inside, name)
    for parts in (content, _by_prefix(content)):
        for key in _generator_names(parts):
            if (source := _known_tensors(parts, key, without_prefix(parts.get(key)), name)) is not None:
                return source
    flat = {key: value for key, value in content.items() if key != "latent_avg"}
    return _known_tensors({"": flat, "latent_avg": content.get("latent_avg")}, "", without_prefix(flat), name)


def _generator_names(parts: Mapping[Any, Any]) -> list[str]:
    """Return the names that a generator may have in a dictionary: averaged ones first, then those that are usual."""
    others = [key for key, value in parts.items() if type(key) is str and isinstance(value, Mapping)]
    return sorted([*GENERATORS, *(key for key in others if key not in GENERATORS)], key=lambda k: not is_averaged(k))


def _known_tensors(parts: Mapping[Any, Any], key: str, tensors: Any, name: str) -> Source | None:
    """Return the source if `tensors`, which `parts` has under `key`, are a generator's under names that are known."""
    if isinstance(tensors, Mapping) and (flat := flatten_sahlman(tensors, name)) is not None:
        tensors = flat
    fork = find_fork(tensors)
    if looks_like_rosinality(tensors) or (fork and fork.target == "rosinality"):
        return rosinality_file(parts, key, tensors, name, fork)
    if looks_like_nvidia(tensors) or fork:
        return nvidia_tensors(parts, key, tensors, name, fork)
    return None


def _plain(value: Any, name: str) -> Any:
    """Return a dictionary of tensors for a module that was pickled whole, NVIDIA's aside, and plain names for one."""
    if isinstance(value, Record) and module_state(value) is not None and not is_persistent(value):
        try:
            found = _whole_module(value, name)
        except BrokenModule:
            return value  # said where it is needed
        return value if "G_ema" in found else found
    return without_wrappers(value) if isinstance(value, Mapping) else value


def _whole_module(module: Record, name: str) -> Mapping[Any, Any]:
    """Return the state dict of rosinality's generator, or an encoder with one, that was pickled whole.

    Other modules are taken for NVIDIA's: they come back as {"G_ema": module}.
    """
    if is_persistent(module):
        return {"G_ema": module}
    table = read_modules(module, name)
    if looks_like_rosinality(table.tensors) or any(key.startswith("decoder.conv1.") for key in table.tensors):
        check_settings(table, name)
        mean = (module_state(module) or ("", {}))[1].get("latent_avg")
        return table.tensors | ({"latent_avg": mean} if isinstance(mean, torch.Tensor) else {})
    if looks_like_rosinality_discriminator(table.tensors) or find_fork(table.tensors) is not None:
        return table.tensors
    return {"G_ema": module}


def _by_prefix(content: Mapping[Any, Any]) -> dict[Any, Any]:
    """Group a flat dictionary of several networks by the part of each name before the first dot ("g_ema", "d")."""
    plain: dict[Any, Any] = {}
    groups: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        head, dot, rest = key.partition(".") if type(key) is str else ("", "", "")
        if dot and head not in content:
            groups.setdefault(head, {})[rest] = value
        else:
            plain[key] = value
    return plain | groups


def _describe(content: Any) -> str:
    if isinstance(content, Mapping):
        keys = ", ".join(repr(str(key)[:40]) for key in list(content)[:6])
        return f"a dictionary of {keys}{', ...' if len(content) > 6 else ''}" if content else "an empty dictionary"
    if isinstance(content, Record):
        return f"{content!r}"
    return type(content).__name__
