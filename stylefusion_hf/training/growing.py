"""Grow a generator and a discriminator to twice the resolution without changing what they compute.

The generator's new block adds nothing to the upsampled picture at first, because its toRGB layer starts at zero. The
discriminator's new block adds nothing either, because its last layers start at zero, while the downsampled picture
keeps its own input (`input_skips`). Both networks continue where they were, so no fading-in is needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar, cast

import torch

from stylefusion_hf.models.config_checks import own_config
from stylefusion_hf.models.discriminator import DiscriminatorBlock, StyleGAN2Discriminator
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator, ToRGB


@torch.no_grad()
def grow_generator(old: StyleGAN2Generator, width: int) -> StyleGAN2Generator:
    """Return a generator with another block of `width` channels, whose pictures are the old ones, upsampled."""
    config = own_config(old)
    new = StyleGAN2Generator(
        **{**config, "resolution": 2 * config["resolution"], "channels": [*config["channels"], width]}
    )
    new.mapping.load_state_dict(old.mapping.state_dict())
    new.w_avg.copy_(old.w_avg)
    new.synthesis.const.copy_(old.synthesis.const)
    for layers, trained in ((new.synthesis.convs, old.synthesis.convs), (new.synthesis.rgbs, old.synthesis.rgbs)):
        for layer, source in zip(layers, trained, strict=False):
            layer.load_state_dict(source.state_dict())
    # The affine layers form one matrix, conv0, conv1, ..., rgb0, rgb1, ..., with rows of the new block in two places.
    convs, rgbs = sum(old.conv_sizes), sum(old.rgb_sizes)
    start = sum(new.conv_sizes)
    pairs = ((new.affine_weight, old.affine_weight), (new.affine_bias, old.affine_bias))
    for target, trained_rows in pairs:
        target[:convs] = trained_rows[:convs]
        target[start : start + rgbs] = trained_rows[convs:]
    cast(ToRGB, new.synthesis.rgbs[-1]).weight.zero_()
    return new


@torch.no_grad()
def grow_discriminator(old: StyleGAN2Discriminator, width: int) -> StyleGAN2Discriminator:
    """Return a discriminator with another block of `width` channels, whose logits are the old ones at half size."""
    config = own_config(old)
    new = StyleGAN2Discriminator(
        **{
            **config,
            "resolution": 2 * config["resolution"],
            "channels": [*config["channels"], width],
            "input_skips": config["input_skips"] + 1,
        }
    )
    state = {}
    for name, value in old.state_dict().items():
        part, _, rest = name.partition(".")
        if part == "fromrgb":
            name = f"skips.0.{rest}"
        elif part in ("skips", "blocks"):
            index, _, rest = rest.partition(".")
            name = f"{part}.{int(index) + 1}.{rest}"
        state[name] = value
    new.load_state_dict(state, strict=False)  # the new block and its fromRGB keep their random weights
    added = cast(DiscriminatorBlock, new.blocks[0])
    for layer in (added.conv1, added.skip):
        layer.weight.zero_()
    return new


def grow_models(
    folder: str | Path, resolution: int, channels: list[int] | None
) -> tuple[StyleGAN2Generator, StyleGAN2Discriminator]:
    """Return the networks in `folder` (generator/ and discriminator/), each with another block.

    Args:
        folder: written by a training at half of `resolution`.
        resolution: of the grown networks.
        channels: of the grown networks, from 4 x 4 up. All but the last must equal the trained ones. None gives the
            new block half the channels of the last one.

    Raises:
        ValueError: networks of another resolution, other channels, or class-conditional ones.
        OSError: a network is missing or damaged.
    """
    g, d = load_half(StyleGAN2Generator, folder, resolution), load_half(StyleGAN2Discriminator, folder, resolution)
    return grow_generator(g, new_width(g, folder, channels)), grow_discriminator(d, new_width(d, folder, channels))


def grow_one(folder: str | Path, resolution: int, channels: list[int] | None) -> StyleGAN2Generator:
    """Return the generator in `folder` with another block; arguments and errors as of `grow_models`."""
    g = load_half(StyleGAN2Generator, folder, resolution)
    return grow_generator(g, new_width(g, folder, channels))


Network = TypeVar("Network", StyleGAN2Generator, StyleGAN2Discriminator)


def load_half(kind: type[Network], folder: str | Path, resolution: int) -> Network:
    """Return the network of a kind in `folder`, which must be for half of `resolution`."""
    name = "generator" if kind is StyleGAN2Generator else "discriminator"
    model = kind.from_pretrained(folder, subfolder=name)
    if 2 * model.config.resolution != resolution:
        raise ValueError(
            f"--grow_from {folder} starts a training at twice its resolution: its {name} is for"
            f" {model.config.resolution} px, so --resolution must be {2 * model.config.resolution},"
            f" got {resolution}"
        )
    if model.config.label_dim:
        raise ValueError(f"this trainer is for unconditional models, but the {name} in {folder} expects class labels")
    return model


def new_width(
    model: StyleGAN2Generator | StyleGAN2Discriminator, folder: str | Path, channels: list[int] | None
) -> int:
    """Return the channels of the next block; ValueError unless `channels` continue the model's."""
    trained = list(model.config.channels)
    if channels is None:
        return max(trained[-1] // 2, 8)
    if list(channels[:-1]) != trained:
        raise ValueError(
            f"--channels {','.join(map(str, channels))} does not continue the networks in {folder}: its"
            f" {'generator' if isinstance(model, StyleGAN2Generator) else 'discriminator'} has"
            f" {','.join(map(str, trained))}"
        )
    return channels[-1]
