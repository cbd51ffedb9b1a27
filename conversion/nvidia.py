"""NVIDIA's PyTorch snapshots: settings stored as attributes of the modules, and rejection of other architectures.

A setting that this package's models do not support is an error, never a silently different picture.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from stylefusion_hf.conversion.inert import ConversionError
from stylefusion_hf.conversion.layouts import Converted, nvidia_discriminator, nvidia_generator
from stylefusion_hf.conversion.modules import ModuleTable

WHOLE_BATCH = 2**20  # group size for minibatch standard deviation if the snapshot says None: the entire batch


def convert_generator(modules: ModuleTable, name: str, psi: float) -> Converted:
    """Convert `G_ema` of stylegan2-ada-pytorch, or of stylegan3's StyleGAN2 configurations."""
    _refuse_other_generators(modules.tensors, name)
    _expect(modules, "architecture", "skip", name, "generator")
    _expect_layers(modules, name)
    config = nvidia_generator(modules.tensors, clamp_of(modules, name), psi)
    z_dim = modules.attributes[""].get("z_dim")
    if z_dim is not None and z_dim != config.config["z_dim"]:
        raise ConversionError(f"{name}: the generator says z_dim {z_dim!r}, its tensors say {config.config['z_dim']}")
    return config


def convert_discriminator(modules: ModuleTable, name: str) -> Converted:
    """Convert `D` of such a snapshot; only the residual architecture is supported."""
    _expect(modules, "architecture", "resnet", name, "discriminator")
    _expect_layers(modules, name)
    group = next(iter(modules.values("group_size")), 4)
    clamp = clamp_of(modules, name, skip=".skip")
    return nvidia_discriminator(modules.tensors, clamp, group if type(group) is int and group > 0 else WHOLE_BATCH)


def _refuse_other_generators(tensors: Mapping[str, Any], name: str) -> None:
    if any(n.startswith("synthesis.input.") or re.match(r"synthesis\.L\d+_", n) for n in tensors):
        raise ConversionError(
            f"{name}: is a generator of StyleGAN3's own alias-free architecture (stylegan3-t or -r), not a StyleGAN2;"
            " StyleFusion needs StyleGAN2's style space. Of stylegan3's models only stylegan2-* can be converted"
        )
    if not any(re.match(r"synthesis\.b\d+\.", n) for n in tensors):
        raise ConversionError(f"{name}: its generator has no 'synthesis.b4...' tensors: it is not a StyleGAN2")


def clamp_of(modules: ModuleTable, name: str, skip: str = "\0") -> float | None:
    """Return the clamp on activations, which must be the same in all layers."""
    found = modules.values("conv_clamp", skip)
    if len(found) > 1 or any(x is not None and (type(x) not in (int, float) or not 0 < x < math.inf) for x in found):
        raise ConversionError(f"{name}: its layers have different conv_clamp values ({found[:4]}): not supported")
    return found[0] if found else None


def _expect(modules: ModuleTable, key: str, wanted: Any, name: str, what: str) -> None:
    other = [value for value in modules.values(key) if value != wanted]
    if other:
        raise ConversionError(f"{name}: its {what} has {key} {str(other[0])[:80]!r}; only {wanted!r} is supported")


def _expect_layers(modules: ModuleTable, name: str) -> None:
    """Check the settings that are fixed in this package's models."""
    for path, attributes in modules.attributes.items():
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
