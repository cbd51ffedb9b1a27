"""Access to the networks of a file whose kind is known, a function for each kind."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stylefusion_hf.conversion import nvidia, tensorflow
from stylefusion_hf.conversion.forks import Fork
from stylefusion_hf.conversion.layouts import Converted, LayoutError
from stylefusion_hf.conversion.modules import module_state, read_modules, tensor_names, without_wrappers
from stylefusion_hf.conversion.nvidia import nvidia_discriminator, nvidia_generator
from stylefusion_hf.conversion.rosinality import (
    read_latent_avg,
    rosinality_discriminator,
    rosinality_generator,
    with_noise,
    with_noise_const,
)
from stylefusion_hf.conversion.stylegan3 import looks_like_stylegan3, refuse_stylegan_xl, stylegan3_generator
from stylefusion_hf.core.untrusted.inert import ConversionError, LazyArray, Record

MAX_PREFIXES = 3

# Keys of generators in checkpoints, averaged ones first.
GENERATORS: tuple[str, ...] = ("g_ema", "G_ema", "Gs", "generator_ema", "generator_smooth", "params_ema")
GENERATORS += ("generator", "g", "G", "state_dict", "params")
AVERAGED = (*GENERATORS[:6], "")


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


def is_averaged(key: str) -> bool:
    return key in AVERAGED or re.search(r"ema|avg|averag|smooth|running", key.lower()) is not None


def without_prefix(tensors: Any) -> Any:
    """Strip what all names begin with: "generator.", "ema_model." and the like, and what wrappers of modules add.

    A network's own layers have more than one first name, and a part of a network keeps its name.
    """
    tensors = without_wrappers(tensors) if isinstance(tensors, Mapping) else tensors
    for _ in range(MAX_PREFIXES):
        if not isinstance(tensors, Mapping) or not tensors or not all(type(key) is str for key in tensors):
            break
        head, dot, _ = next(iter(tensors)).partition(".")
        if not dot or STRUCTURE.match(f"{head}.") or not all(key.startswith(f"{head}.") for key in tensors):
            break
        tensors = {key.removeprefix(f"{head}."): value for key, value in tensors.items()}
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


def nvidia_modules(content: Mapping[Any, Any], name: str) -> Source:
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


def nvidia_tensors(content: Mapping[Any, Any], key: str, tensors: Any, name: str, fork: Fork | None = None) -> Source:
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
        return convert_checked(nvidia_discriminator, name, check_tensors(without_prefix(own), name))

    unused = tensor_names({k: v for k, v in content.items() if k not in (key, "D" if own else key)})
    return Source("nvidia", generator, discriminator if own else None, unused, notes, tensor_names(own, "D"))


def tensorflow_networks(networks: Any, name: str) -> Source:
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


def rosinality_file(content: Mapping[Any, Any], key: str, tensors: Any, name: str, fork: Fork | None = None) -> Source:
    notes = _notes_on(fork) + ([] if is_averaged(key) else [f"there is no g_ema: the generator is {key!r}"])
    mean = read_latent_avg(content, name, notes)
    critic = without_prefix(content.get("d")) if isinstance(content.get("d"), Mapping) else None

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


def encoder_file(content: Mapping[Any, Any], inside: Mapping[Any, Any], name: str) -> Source:
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
