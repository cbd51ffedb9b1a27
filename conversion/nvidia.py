"""NVIDIA's PyTorch snapshots: what their networks' attributes say beside the tensors, and which are no StyleGAN2.

A setting that this package's models do not have is an error here and never a silently different picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from stylefusion_hf.conversion.inert import ConversionError
from stylefusion_hf.conversion.layouts import Converted, nvidia_discriminator, nvidia_generator
from stylefusion_hf.conversion.modules import Taken

WHOLE_BATCH = 2**20  # a minibatch-deviation group of "None": all samples of a batch


def convert_generator(taken: Taken, name: str, psi: float) -> Converted:
    """`G_ema` of stylegan2-ada-pytorch, or of stylegan3's StyleGAN2 configurations."""
    _refuse_other_generators(taken.tensors, name)
    _expect(taken, "architecture", "skip", name, "generator")
    _expect_layers(taken, name)
    config = nvidia_generator(taken.tensors, clamp_of(taken, name), psi)
    z_dim = taken.attributes[""].get("z_dim")
    if z_dim is not None and z_dim != config.config["z_dim"]:
        raise ConversionError(f"{name}: the generator says z_dim {z_dim!r}, its tensors say {config.config['z_dim']}")
    return config


def convert_discriminator(taken: Taken, name: str) -> Converted:
    """`D` of the same; only the residual architecture."""
    _expect(taken, "architecture", "resnet", name, "discriminator")
    _expect_layers(taken, name)
    group = next(iter(taken.values("group_size")), 4)
    clamp = clamp_of(taken, name, skip=".skip")
    return nvidia_discriminator(taken.tensors, clamp, group if type(group) is int and group > 0 else WHOLE_BATCH)


def _refuse_other_generators(tensors: Mapping[str, Any], name: str) -> None:
    if any(n.startswith("synthesis.input.") or re.match(r"synthesis\.L\d+_", n) for n in tensors):
        raise ConversionError(
            f"{name}: is a generator of StyleGAN3's own alias-free architecture (stylegan3-t or -r), not a StyleGAN2;"
            " StyleFusion needs StyleGAN2's style space. Of stylegan3's models the stylegan2-* ones can be converted"
        )
    if not any(re.match(r"synthesis\.b\d+\.", n) for n in tensors):
        raise ConversionError(f"{name}: its generator has no 'synthesis.b4...' tensors: it is no StyleGAN2")


def clamp_of(taken: Taken, name: str, skip: str = "\0") -> float | None:
    """The limit of activations, the same in all layers."""
    found = taken.values("conv_clamp", skip)
    if len(found) > 1 or any(x is not None and (type(x) not in (int, float) or not 0 < x < math.inf) for x in found):
        raise ConversionError(f"{name}: its layers have different conv_clamp values ({found[:4]}): not supported")
    return found[0] if found else None


def _expect(taken: Taken, key: str, wanted: Any, name: str, what: str) -> None:
    other = [value for value in taken.values(key) if value != wanted]
    if other:
        raise ConversionError(f"{name}: its {what} has {key} {str(other[0])[:80]!r}; only {wanted!r} is supported")


def _expect_layers(taken: Taken, name: str) -> None:
    """The settings that this package's models take for granted."""
    for path, attributes in taken.attributes.items():
        layer = path.rsplit(".", 1)[-1]
        activation = attributes.get("activation", "lrelu")
        if activation not in (("lrelu", "linear") if layer in ("affine", "embed", "skip", "out") else ("lrelu",)):
            raise ConversionError(
                f"{name}: {path[:200]} has the activation {str(activation)[:80]!r}; only 'lrelu' is supported"
            )
        gain = attributes.get("bias_gain")
        wanted = 0.01 if re.fullmatch(r"mapping\.fc\d+", path) else 1
        if isinstance(gain, (int, float)) and not math.isclose(gain, wanted, rel_tol=1e-4):
            raise ConversionError(f"{name}: {path} has a learning-rate multiplier of {gain:g}, expected {wanted:g}")
