"""StyleGAN2 under the names of other projects, as tables: each renames the tensors to rosinality's or NVIDIA's names.

BasicSR, mmgeneration, genforce and adriansahlman keep the architecture; their code was read to see which of their
tensors is which, and in which orientation they store the kernels of upsampling convolutions. What has another
architecture is refused by name (`refuse_other_architectures`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stylefusion_hf.conversion.layouts import Rule, Tensors, rename_tensors
from stylefusion_hf.conversion.modules import is_plain
from stylefusion_hf.core.checks import short
from stylefusion_hf.core.untrusted.inert import ConversionError


@dataclass(frozen=True)
class Fork:
    """A project's names.

    Attributes:
        name: the project.
        signs: tensors that every generator of this layout has.
        target: "rosinality" or "nvidia", whose names the rules give.
        rules: (pattern of a name, new name, change of the tensor); the first that fits counts.
        note: what users should know about such a file.
    """

    name: str
    signs: tuple[str, ...]
    target: str
    rules: Sequence[Rule]
    note: str = ""

    def rename(self, tensors: Tensors) -> tuple[dict[str, torch.Tensor], list[str]]:
        """Return the tensors under the target's names, and the names of those without a counterpart."""
        return rename_tensors(tensors.items(), self.rules, f"{self.name} generator")


def keep(x: torch.Tensor) -> torch.Tensor:
    return x


def _flip(x: torch.Tensor) -> torch.Tensor:
    return x.flip(2, 3)


def _add_one(x: torch.Tensor) -> torch.Tensor:
    return x + 1


def _plain_kernel(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(x.shape[-2:])


def _block(number: str) -> str:
    return f"synthesis.b{4 * 2 ** int(number)}" if len(number) < 3 else "\0"


def _layer(m: re.Match) -> str:
    """NVIDIA's name of the convolution m[1] of a network, counted from 0."""
    return f"{_block(str((int(m[1]) + 1) // 2))}.conv{0 if int(m[1]) % 2 else 1}" if len(m[1]) < 3 else "\0"


def _block_layer(m: re.Match) -> str:
    """NVIDIA's name of the convolution m[2] of block m[1]; the block of 4 px has one."""
    return f"{_block(m[1])}.conv{m[2] if int(m[1]) else 1 + int(m[2])}"


BASICSR = Fork(
    "BasicSR",
    ("style_conv1.modulated_conv.weight", "constant_input.weight"),
    "rosinality",
    [
        (r"style_mlp\.(\d+)\.(weight|bias)", r"style.\1.\2", keep),
        (r"constant_input\.weight", "input.input", keep),
        (r"style_conv(1|s\.\d+)\.modulated_conv\.((modulation\.)?(weight|bias))", r"conv\1.conv.\2", keep),
        (r"style_conv(1|s\.\d+)\.weight", r"conv\1.noise.weight", keep),
        (r"style_conv(1|s\.\d+)\.activate\.bias", r"conv\1.activate.bias", keep),
        (r"to_rgb(1|s\.\d+)\.modulated_conv\.((modulation\.)?(weight|bias))", r"to_rgb\1.conv.\2", keep),
        (r"to_rgb(1|s\.\d+)\.bias", r"to_rgb\1.bias", keep),
        (r"noises\.noise(\d+)", r"noises.noise_\1", keep),
    ],
    "BasicSR's StyleGAN2GeneratorBilinear has the same names and another upsampling: check with --reference",
)
MMGENERATION = Fork(
    "mmgeneration",
    ("conv1.conv.style_modulation.linear.weight_orig", "constant_input.input"),
    "rosinality",
    [
        (r"style_mapping\.(\d+)\.linear\.weight_orig", r"style.\1.weight", keep),
        (r"style_mapping\.(\d+)\.bias", r"style.\1.bias", keep),
        (r"constant_input\.input", "input.input", keep),
        (r"(conv1|convs\.\d+|to_rgb1|to_rgbs\.\d+)\.conv\.weight_orig", r"\1.conv.weight", keep),
        (
            r"(conv1|convs\.\d+|to_rgb1|to_rgbs\.\d+)\.conv\.style_modulation\.linear\.weight_orig",
            r"\1.conv.modulation.weight",
            keep,
        ),
        (
            r"(conv1|convs\.\d+|to_rgb1|to_rgbs\.\d+)\.conv\.style_modulation\.bias",
            r"\1.conv.modulation.bias",
            keep,
        ),
        (r"(conv1|convs\.\d+)\.noise_injector\.weight", r"\1.noise.weight", keep),
        (r"(conv1|convs\.\d+)\.activate\.bias|(to_rgb1|to_rgbs\.\d+)\.bias|.*\.kernel", r"\g<0>", keep),
        (r"injected_noise_(\d+)", r"noises.noise_\1", keep),
    ],
    "mmgeneration trains on BGR pictures unless its config says otherwise: check the colors",
)
GENFORCE = Fork(
    "genforce",
    ("synthesis.early_layer.const", "synthesis.layer0.style.weight"),
    "nvidia",
    [
        (r"mapping\.dense(\d+)\.(weight|bias)", r"mapping.fc\1.\2", keep),
        (r"truncation\.w_avg", "mapping.w_avg", keep),
        (r"synthesis\.early_layer\.const", "synthesis.b4.const", keep),
        (r"synthesis\.layer(\d*[13579])\.weight", lambda m: f"{_layer(m)}.weight", _flip),
        (r"synthesis\.layer(\d+)\.weight", lambda m: f"{_layer(m)}.weight", keep),
        (r"synthesis\.layer(\d+)\.(bias|noise_strength)", lambda m: f"{_layer(m)}.{m[2]}", keep),
        (r"synthesis\.layer(\d+)\.noise", lambda m: f"{_layer(m)}.noise_const", keep),
        (r"synthesis\.layer(\d+)\.style\.weight", lambda m: f"{_layer(m)}.affine.weight", keep),
        (r"synthesis\.layer(\d+)\.style\.bias", lambda m: f"{_layer(m)}.affine.bias", _add_one),
        (r"synthesis\.output(\d+)\.(weight|bias)", lambda m: f"{_block(m[1])}.torgb.{m[2]}", keep),
        (r"synthesis\.output(\d+)\.style\.weight", lambda m: f"{_block(m[1])}.torgb.affine.weight", keep),
        (r"synthesis\.output(\d+)\.style\.bias", lambda m: f"{_block(m[1])}.torgb.affine.bias", _add_one),
        (r"synthesis\.(layer\d+\.filter|upsample)\.kernel", r"\g<0>", _plain_kernel),
    ],
)
SAHLMAN = Fork(
    "adriansahlman/stylegan2_pytorch",
    ("mapping/main.0.layer.weight", "synthesis/const"),
    "nvidia",
    [
        (r"dlatent_avg", "mapping.w_avg", keep),
        (r"mapping/main\.(\d+)\.(?:layer\.)?(weight|bias)", r"mapping.fc\1.\2", keep),
        (r"synthesis/const", "synthesis.b4.const", keep),
        (r"synthesis/conv_blocks\.(\d+)\.conv_block\.([01])\.bias", lambda m: f"{_block_layer(m)}.bias", keep),
        (
            r"synthesis/conv_blocks\.(\d+)\.conv_block\.([01])\.layer\.weight",
            lambda m: f"{_block_layer(m)}.noise_strength",
            keep,
        ),
        (
            r"synthesis/conv_blocks\.(\d+)\.conv_block\.([01])\.layer\.layer\.weight",
            lambda m: f"{_block_layer(m)}.weight",
            keep,
        ),
        (
            r"synthesis/conv_blocks\.(\d+)\.conv_block\.([01])\.layer\.layer\.dense\.(?:layer\.)?(weight|bias)",
            lambda m: f"{_block_layer(m)}.affine.{m[3]}",
            keep,
        ),
        (
            r"synthesis/to_data_layers\.(\d+)\.(?:layer\.)?(weight|bias)",
            lambda m: f"{_block(m[1])}.torgb.{m[2]}",
            keep,
        ),
        (
            r"synthesis/to_data_layers\.(\d+)\.layer\.dense\.(?:layer\.)?(weight|bias)",
            lambda m: f"{_block(m[1])}.torgb.affine.{m[2]}",
            keep,
        ),
        (r"synthesis/(.*)\.filter_kernel", r"synthesis.\1.kernel", _plain_kernel),
        (r"synthesis/upsample\.weight", "upsample.weight", keep),  # a constant one
    ],
)
FORKS = (BASICSR, MMGENERATION, GENFORCE, SAHLMAN)


def find_fork(tensors: Any) -> Fork | None:
    """Return the project whose names a dictionary of tensors has."""
    known = isinstance(tensors, Mapping)
    return next((fork for fork in FORKS if known and all(sign in tensors for sign in fork.signs)), None)


# --- adriansahlman's files: each network with its arguments ---------------------------------------------------------

# The arguments that change pictures, with the values that are StyleGAN2's; others only give sizes, or steer training.
SAHLMAN_SETTINGS: dict[str, tuple[Any, ...]] = {
    "activation": ("lrelu:0.2", "leaky:0.2"),
    **dict.fromkeys(("weight_scale", "normalize_input", "skip", "demodulate", "modulate_data_out", "noise"), (True,)),
    **dict.fromkeys(("fused_resample", "pad_once"), (True,)),
    **dict.fromkeys(("conv_resample_mode", "skip_resample_mode"), ("FIR",)),
    **dict.fromkeys(("conv_filter", "skip_filter"), ([1, 3, 3, 1],)),
    **dict.fromkeys(("conv_pad_mode", "filter_pad_mode"), ("constant",)),
    **dict.fromkeys(("conv_pad_constant", "filter_pad_constant"), (0,)),
    "resnet": (False,),
    "lr_mul": (0.01, 1),
    "label_size": (0, None),
    "base_shape": ([4, 4],),
    "kernel_size": (3,),
    "conv_block_size": (2,),
    "eps": (1e-8,),
}
SAHLMAN_SIZES = {"latent_size", "out_size", "hidden", "num_layers", "channels", "data_channels", "dlatent_avg_beta"}


def flatten_sahlman(content: Mapping[Any, Any], where: str) -> dict[str, Any] | None:
    """Return the tensors of a file of `Generator.save()`, the networks' names before theirs; None for other content.

    ConversionError for arguments with which the pictures are not StyleGAN2's.
    """
    parts: dict[str, Any] = {"": content}
    parts |= {"mapping/": content.get("G_mapping"), "synthesis/": content.get("G_synthesis")}
    if not all(isinstance(part, Mapping) and isinstance(part.get("state_dict"), Mapping) for part in parts.values()):
        return None
    flat: dict[str, Any] = {}
    for prefix, part in parts.items():
        settings = part.get("kwargs")
        for key, value in settings.items() if isinstance(settings, Mapping) else ():
            value = list(value) if isinstance(value, tuple) else value
            known = is_plain(value) and value in SAHLMAN_SETTINGS.get(str(key), ())
            if key not in SAHLMAN_SIZES and not known:
                raise ConversionError(
                    f"{where}: was built with {short(key, 80)}={short(value)}, which is not supported"
                )
        flat |= {f"{prefix}{key}": value for key, value in part["state_dict"].items()}
    flat.pop("layer_psi", None)  # the truncation of each layer
    return flat


# --- Other architectures --------------------------------------------------------------------------------------------

OTHER_ARCHITECTURES = [
    (
        r"(.*/)?(G|GE|S|SE)\.(initial_block|to_initial_block\.weight|blocks\.0\.to_style1\.weight|net\.0\.weight)",
        "is a model of lucidrains/stylegan2-pytorch: without equalized learning rates and with bilinear upsampling its"
        " weights are not StyleGAN2's. Next step: draw pictures with it, and `stylefusion train generator` on them",
    ),
    (
        r"(.*/)?stylegan_decoder\..*",
        "is a GFPGAN, which restores faces: its decoder only works with what its encoder adds to the features. Next"
        " step: convert the StyleGAN2 that it was made from, StyleGAN2_512_Cmul1_FFHQ_B12G4_scratch_800k.pth",
    ),
    (
        r"(.*/)?mapping\.label_weight",
        "is conditional the way of the first StyleGAN2 in TensorFlow: z and label are normalized together, which this"
        " package's mapping network does not support",
    ),
]


def refuse_other_architectures(names: Sequence[str], where: str) -> None:
    """Raise ConversionError, with the next step, for a known project whose networks are not StyleGAN2's."""
    for pattern, problem in OTHER_ARCHITECTURES:
        if any(re.fullmatch(pattern, name) for name in names):
            raise ConversionError(f"{where}: {problem}")
