"""Detection of a checkpoint's kind, and access to the networks it contains."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stylefusion_hf.conversion import nvidia, tensorflow
from stylefusion_hf.conversion.forks import (
    FORKS,
    Fork,
    find_fork,
    flatten_sahlman,
    refuse_other_architectures,
)
from stylefusion_hf.conversion.layouts import Converted, LayoutError
from stylefusion_hf.conversion.modules import (
    BrokenModule,
    is_persistent,
    module_state,
    read_modules,
    tensor_names,
    without_wrappers,
)
from stylefusion_hf.conversion.nvidia import nvidia_discriminator, nvidia_generator
from stylefusion_hf.conversion.rosinality import (
    check_settings,
    read_latent_avg,
    rosinality_discriminator,
    rosinality_generator,
    with_noise,
    with_noise_const,
)
from stylefusion_hf.conversion.stylegan3 import looks_like_stylegan3, refuse_stylegan_xl, stylegan3_generator
from stylefusion_hf.core.untrusted.inert import ConversionError, LazyArray, Record

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


@dataclass
class Source:
    """The networks of a checkpoint. Each is built only on request, so that no two are in memory at once.

    Attributes:
        kind: one of KINDS.
        generator: default truncation -> the generator's config and weights.
        discriminator: returns the discriminator's config and weights; None if the file has none.
        unused: names of all tensors that belong to neither.
        notes: messages for the user.
        discriminator_tensors: names of the discriminator's tensors.
    """

    kind: str
    generator: Callable[[float], Converted]
    discriminator: Callable[[], Converted] | None = None
    unused: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    discriminator_tensors: list[str] = field(default_factory=list)


def looks_like_rosinality(tensors: Any) -> bool:
    return isinstance(tensors, Mapping) and "conv1.conv.weight" in tensors and "to_rgb1.bias" in tensors


def looks_like_rosinality_discriminator(tensors: Any) -> bool:
    return isinstance(tensors, Mapping) and "convs.0.0.weight" in tensors and "final_linear.1.weight" in tensors


def looks_like_nvidia(tensors: Any) -> bool:
    stylegan2 = isinstance(tensors, Mapping) and any(str(n).startswith("synthesis.b4.conv1.") for n in tensors)
    return stylegan2 or looks_like_stylegan3(tensors)


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
        return _tensorflow(networks, name)
    if not isinstance(content, Mapping):
        raise ConversionError(f"{name}: holds a {_describe(content)}, not the networks of a StyleGAN2")
    if (source := _search_dictionaries(content, name)) is not None:
        return source
    inside = content.get("state_dict")
    if any(str(key).startswith("blender_") for key in (inside if isinstance(inside, Mapping) else content)):
        raise ConversionError(f"{name}: is one fusion net; give the authors' JSON, node -> file, with --generator")
    refuse_other_architectures(tensor_names(content), name)
    known = f"NVIDIA's, rosinality's and the names of {', '.join(fork.name for fork in FORKS)} are known here"
    raise ConversionError(
        f"{name}: holds no StyleGAN2 generator that is known here; it has {_describe(content)}; {known}"
    )


def _search_dictionaries(content: Mapping[Any, Any], name: str) -> Source | None:
    """Find the networks in a dictionary, or in one nested inside it, as in {"model": {"g_ema": ...}}."""
    pending: list[tuple[Mapping[Any, Any], list[str]]] = [(content, [])]  # each with the keys that lead to it
    seen: set[int] = set()
    for inside, keys in pending:
        if id(inside) in seen:
            continue
        seen.add(id(inside))
        if (source := _known_layout(inside, name)) is not None:
            path = "".join(f"{key}/" for key in keys)
            source.unused = [f"{path}{n}" for n in source.unused]
            source.discriminator_tensors = [f"{path}{n}" for n in source.discriminator_tensors]
            source.unused += [n for n in tensor_names(content) if not n.startswith(path)] if keys else []
            return source
        if len(keys) < MAX_WRAPPING:
            inner = [(value, [*keys, str(key)[:80]]) for key, value in inside.items() if isinstance(value, Mapping)]
            pending += inner[: max(0, MAX_WRAPPERS - len(pending))]  # a file may reference a dictionary many times
    return None


# Keys of generators in checkpoints, averaged ones first.
GENERATORS: tuple[str, ...] = ("g_ema", "G_ema", "Gs", "generator_ema", "generator_smooth", "params_ema")
GENERATORS += ("generator", "g", "G", "state_dict", "params")
AVERAGED = (*GENERATORS[:6], "")


def _known_layout(content: Mapping[Any, Any], name: str) -> Source | None:
    content = {key: _plain(value, name) for key, value in without_wrappers(content).items()}
    if any(isinstance(content.get(key), Record) and module_state(content[key]) for key in ("G_ema", "G")):
        return _nvidia(content, name)
    states = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    inside = states.get("state_dict", content)
    if any(str(key).startswith("decoder.") for key in inside):
        return _encoder(content, inside, name)
    for parts in (content, _by_prefix(content)):
        for key in GENERATORS:
            if (source := _known_tensors(parts, key, _without_prefix(parts.get(key)), name)) is not None:
                return source
    flat = {key: value for key, value in content.items() if key != "latent_avg"}
    return _known_tensors({"": flat, "latent_avg": content.get("latent_avg")}, "", _without_prefix(flat), name)


def _known_tensors(parts: Mapping[Any, Any], key: str, tensors: Any, name: str) -> Source | None:
    """Return the source if `tensors`, which `parts` has under `key`, are a generator's under names that are known."""
    if isinstance(tensors, Mapping) and (flat := flatten_sahlman(tensors, name)) is not None:
        tensors = flat
    fork = find_fork(tensors)
    if looks_like_rosinality(tensors) or (fork and fork.target == "rosinality"):
        return _rosinality(parts, key, tensors, name, fork)
    if looks_like_nvidia(tensors) or fork:
        return _nvidia_state(parts, key, tensors, name, fork)
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


def _without_prefix(tensors: Any) -> Any:
    """Strip prefixes that all names share: "generator." and the like, and what wrappers of modules add."""
    tensors = without_wrappers(tensors) if isinstance(tensors, Mapping) else tensors
    for _ in range(MAX_WRAPPING):
        if not isinstance(tensors, Mapping) or not tensors or not all(type(key) is str for key in tensors):
            break
        shared = [p for p in ("generator.", "G_ema.", "g_ema.") if all(key.startswith(p) for key in tensors)]
        if not shared:
            break
        tensors = {key.removeprefix(shared[0]): value for key, value in tensors.items()}
    return tensors


def check_tensors(tensors: Mapping[Any, Any], name: str) -> dict[str, torch.Tensor]:
    """Return a flat dictionary of tensors; ConversionError names an entry that is not a tensor."""
    result: dict[str, torch.Tensor] = {}
    for key, value in tensors.items():
        if isinstance(value, (np.ndarray, LazyArray)):
            value = torch.from_numpy(np.array(value))
        if not isinstance(value, torch.Tensor) or type(key) is not str:
            raise ConversionError(f"{name}: its entry {str(key)[:80]!r} is not a tensor; damaged, or of another kind")
        result[key] = value
    return result


# Names of the network's own layers. If one of them is unused, other tensors of its layer are missing, and the network
# would silently be converted as a smaller one.
STRUCTURE = re.compile(
    r"(synthesis|mapping|style|conv1|convs|to_rgb1|to_rgbs|noises|final_conv|final_linear|b\d+)\.|(mapping|synthesis)/"
    r"|(\d+)x\d+/|Mapping\d+/|Output/"
)


def convert_checked(make: Callable[..., Converted], name: str, *args: Any) -> Converted:
    """Call `make(*args)` and turn any error into a ConversionError that names the file."""
    try:
        converted = make(*args)
        if loose := [key for key in converted.unused if STRUCTURE.match(key)]:
            shown = ", ".join(repr(key[:80]) for key in loose[:4]) + (", ..." if len(loose) > 4 else "")
            raise LayoutError(f"{len(loose)} tensors belong to no complete layer ({shown}): truncated or damaged")
        return converted
    except ConversionError:
        raise
    except (LayoutError, RuntimeError, LookupError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        raise ConversionError(f"{name}: {' '.join(str(error).split())[:300]}") from None


# --- One function per kind --------------------------------------------------------------------------


def _nvidia(content: Mapping[Any, Any], name: str) -> Source:
    key = "G_ema" if isinstance(content.get("G_ema"), Record) else "G"
    notes = [] if key == "G_ema" else ["there is no G_ema: the generator is G, whose weights are not averaged"]

    def generator(psi: float) -> Converted:
        return convert_checked(nvidia.convert_generator, name, read_modules(content[key], name), name, psi)

    def discriminator() -> Converted:
        return convert_checked(nvidia.convert_discriminator, name, read_modules(content["D"], name), name)

    taken = (key, "D") if module_state(content.get("D")) else (key,)
    unused = tensor_names({k: v for k, v in content.items() if k not in taken})
    names = tensor_names(content["D"], "D") if "D" in taken else []
    return Source("nvidia", generator, discriminator if names else None, unused, notes, names)


def _nvidia_state(content: Mapping[Any, Any], key: str, tensors: Any, name: str, fork: Fork | None = None) -> Source:
    """Read a plain dictionary of tensors with NVIDIA's names, as some ports save them, or those of a fork."""
    own = content.get("D") if isinstance(content.get("D"), Mapping) and fork is None else None
    unknown = "output_scale and conv_clamp: NVIDIA's are assumed" if looks_like_stylegan3(tensors) else ""
    notes = _notes_on(fork) or [f"a plain dictionary of tensors does not say {unknown or 'conv_clamp: none is set'}"]

    def generator(psi: float) -> Converted:
        def make(given: Mapping[str, torch.Tensor]) -> Converted:
            if looks_like_stylegan3(given):
                return stylegan3_generator(given, psi)
            renamed, left = fork.rename(given) if fork else (given, [])
            converted = nvidia_generator(with_noise_const(renamed, notes) if fork else renamed, None, psi)
            converted.unused += left
            return converted

        found = check_tensors(tensors, name)
        refuse_stylegan_xl(found, {}, name)
        return convert_checked(make, name, found)

    def discriminator() -> Converted:
        return convert_checked(nvidia_discriminator, name, check_tensors(_without_prefix(own), name))

    unused = tensor_names({k: v for k, v in content.items() if k not in (key, "D" if own else key)})
    return Source("nvidia", generator, discriminator if own else None, unused, notes, tensor_names(own, "D"))


def _tensorflow(networks: Any, name: str) -> Source:
    """Read (G, D, Gs) or some of them, identified by their variables, as their names are free text."""
    variables = [tensorflow.variables_of(network, name) for network in networks]
    generators = [i for i, found in enumerate(variables) if any(v.startswith("synthesis/") for v in found)]
    discriminators = [i for i, found in enumerate(variables) if any(re.match(r"\d+x\d+/", v) for v in found)]
    if not generators:
        raise ConversionError(f"{name}: none of its {len(networks)} TensorFlow networks is a StyleGAN2 generator")
    chosen = generators[-1]  # (G, D, Gs): the averaged one comes last

    def generator(psi: float) -> Converted:
        return convert_checked(tensorflow.convert_generator, name, networks[chosen], name, psi)

    def discriminator() -> Converted:
        return convert_checked(tensorflow.convert_discriminator, name, networks[discriminators[0]], name)

    names = [[f"network {i}/{variable}" for variable in found] for i, found in enumerate(variables)]
    unused = [n for i, listed in enumerate(names) if i not in (chosen, *discriminators[:1]) for n in listed]
    converted = names[discriminators[0]] if discriminators else []
    return Source("tensorflow", generator, discriminator if discriminators else None, unused, [], converted)


def _notes_on(fork: Fork | None) -> list[str]:
    if fork is None:
        return []
    return [f"the tensors have {fork.name}'s names: they were renamed to {fork.target}'s", *filter(None, [fork.note])]


def _rosinality(content: Mapping[Any, Any], key: str, tensors: Any, name: str, fork: Fork | None = None) -> Source:
    notes = _notes_on(fork) + ([] if key in AVERAGED else [f"there is no g_ema: the generator is {key!r}"])
    mean = read_latent_avg(content, name, notes)
    critic = _without_prefix(content.get("d")) if isinstance(content.get("d"), Mapping) else None

    def generator(psi: float) -> Converted:
        def make(given: Mapping[str, torch.Tensor]) -> Converted:
            renamed, left = fork.rename(given) if fork else (given, [])
            converted = rosinality_generator(with_noise(renamed, notes), mean, psi)
            converted.unused += left
            return converted

        return convert_checked(make, name, check_tensors(tensors, name))

    def discriminator() -> Converted:
        return convert_checked(rosinality_discriminator, name, check_tensors(critic or {}, name))

    used = {key, "latent_avg", *(["d"] if critic else [])}
    unused = tensor_names({k: v for k, v in content.items() if k not in used})
    return Source("rosinality", generator, discriminator if critic else None, unused, notes, tensor_names(critic, "d"))


def _encoder(content: Mapping[Any, Any], inside: Mapping[Any, Any], name: str) -> Source:
    decoder = {str(k).removeprefix("decoder."): v for k, v in inside.items() if str(k).startswith("decoder.")}
    if not looks_like_rosinality(decoder):
        raise ConversionError(f"{name}: its decoder.* is not a StyleGAN2 generator in rosinality's layout")
    notes = ["the encoder itself is not converted: codes that it computed can be used as they are, in w+"]
    mean = read_latent_avg(content, name, notes)

    def generator(psi: float) -> Converted:
        return convert_checked(rosinality_generator, name, with_noise(check_tensors(decoder, name), notes), mean, psi)

    others = {k: v for k, v in inside.items() if not str(k).startswith("decoder.")}
    unused = tensor_names(others)
    if inside is not content:
        unused += tensor_names({k: v for k, v in content.items() if k != "latent_avg" and v is not inside})
    else:
        unused = [key for key in unused if key != "latent_avg"]
    return Source("e4e", generator, None, unused, notes)
