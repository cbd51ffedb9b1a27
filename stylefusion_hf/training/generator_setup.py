"""What a generator training starts from: networks, pictures, and the judge that watches it."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from accelerate import Accelerator

from stylefusion_hf.evaluation.judges import PortraitJudge
from stylefusion_hf.imaging.modes import check_viewable
from stylefusion_hf.models.config_checks import own_config
from stylefusion_hf.models.discriminator import ProjectedDiscriminator, StyleGAN2Discriminator
from stylefusion_hf.models.layers import check_channels
from stylefusion_hf.models.segmenter import RegionSegmenter
from stylefusion_hf.models.stylegan2 import StyleGAN2Generator
from stylefusion_hf.training.datasets import ArrayDataset, cache_folder, check_avatars_fit, load_avatars
from stylefusion_hf.training.gan_validation import REAL_START, SampleJudge
from stylefusion_hf.training.growing import grow_models, grow_one

# The embedded generator's channels at 4, 8, ..., 64 pixels; larger resolutions continue by halving.
SMALL_CHANNELS = (128, 128, 128, 64, 32)
Discriminator = StyleGAN2Discriminator | ProjectedDiscriminator

# --- Networks --------------------------------------------------------------------------------------------------------


def build_models(args: argparse.Namespace) -> tuple[StyleGAN2Generator, Discriminator]:
    """Return generator and discriminator: new ones, those in --model, or those in --grow_from with one more block.

    Raises:
        ValueError: flags that exclude each other, or networks that do not fit --resolution.
        OSError: a network is missing or damaged.
    """
    projected = args.discriminator == "projected"
    if projected == (args.feature_network is None):
        raise ValueError("--discriminator projected and --feature_network FOLDER go together: give both or neither")
    if projected and args.grow_from:
        raise ValueError("--grow_from grows the plain discriminator: leave --discriminator projected out")
    if args.pretrained_model_name_or_path and args.grow_from:
        raise ValueError(
            "--model starts from networks of this resolution, --grow_from of half of it: give one of them"
        )
    if args.pretrained_model_name_or_path:
        return load_models(args, projected)
    channels = given_channels(args)
    if args.grow_from:
        return grow_models(args.grow_from, args.resolution, channels)
    return new_models(args, channels or default_channels(args.resolution), projected)


def build_drawer(args: argparse.Namespace, w_dim: int) -> tuple[StyleGAN2Generator, bool]:
    """Return the generator of a regression, and whether its mapping is untrained.

    Args:
        w_dim: of the attributes that w stands for.

    Raises:
        ValueError: as of `build_models`, or a generator whose codes are not of these sizes. OSError: as there.
    """
    if args.pretrained_model_name_or_path and args.grow_from:
        raise ValueError(
            "--model starts from a generator of this resolution, --grow_from from one of half of it: give one of them"
        )
    channels = given_channels(args)
    if args.pretrained_model_name_or_path:
        g = load_generator(args)
    elif args.grow_from:
        g = grow_one(args.grow_from, args.resolution, channels)
    else:
        return new_generator(args, channels or default_channels(args.resolution), w_dim), True
    if (g.config.z_dim, g.config.w_dim) != (args.latent_dim, w_dim):
        raise ValueError(
            f"the generator in {args.pretrained_model_name_or_path or args.grow_from} has codes of other sizes (z"
            f" {g.config.z_dim}, w {g.config.w_dim}) than these avatars and --latent_dim (z {args.latent_dim}, w"
            f" {w_dim}): it must come from --loss regression with the same --avatars, --data_seed and --latent_dim"
        )
    return (with_new_mapping(args, g), True) if args.new_mapping else (g, False)


def with_new_mapping(args: argparse.Namespace, g: StyleGAN2Generator) -> StyleGAN2Generator:
    """Return the generator with an untrained mapping network of --mapping_layers and --mapping_width."""
    sizes = {"mapping_layers": args.mapping_layers, "mapping_width": args.mapping_width}
    new = StyleGAN2Generator(**(own_config(g) | sizes))
    kept = {name: value for name, value in g.state_dict().items() if not name.startswith("mapping.")}
    new.load_state_dict(kept, strict=False)
    return new


def given_channels(args: argparse.Namespace) -> list[int] | None:
    """Parse --channels; None without it."""
    if not args.channels:
        return None
    try:
        return check_channels([int(c) for c in args.channels.split(",")], args.resolution)
    except ValueError as error:
        raise ValueError(f"--channels {args.channels}: {error}") from None


def load_generator(args: argparse.Namespace) -> StyleGAN2Generator:
    """Return the generator in --model, from its folder generator/."""
    where = {"revision": args.revision, "variant": args.variant}
    g = StyleGAN2Generator.from_pretrained(args.pretrained_model_name_or_path, subfolder="generator", **where)
    if g.config.resolution != args.resolution:
        raise ValueError(
            f"--resolution is {args.resolution}, but the given generator makes {g.config.resolution} px images"
        )
    if g.config.label_dim:
        raise ValueError("this trainer is for unconditional models, but the given generator expects class labels")
    check_viewable(g.config.img_channels)  # training draws sheets
    return g


def load_models(args: argparse.Namespace, projected: bool) -> tuple[StyleGAN2Generator, Discriminator]:
    """Return the networks in --model, from its folders generator/ and discriminator/."""
    g = load_generator(args)
    kind = ProjectedDiscriminator if projected else StyleGAN2Discriminator
    where = {"revision": args.revision, "variant": args.variant}
    return g, kind.from_pretrained(args.pretrained_model_name_or_path, subfolder="discriminator", **where)


def new_generator(args: argparse.Namespace, channels: list[int], w_dim: int) -> StyleGAN2Generator:
    """Return an untrained generator."""
    return StyleGAN2Generator(
        resolution=args.resolution,
        channels=channels,
        z_dim=args.latent_dim,
        w_dim=w_dim,
        mapping_layers=args.mapping_layers,
        mapping_width=args.mapping_width,
        use_noise=args.use_noise,
    )


def new_models(
    args: argparse.Namespace, channels: list[int], projected: bool
) -> tuple[StyleGAN2Generator, Discriminator]:
    """Return untrained networks."""
    g = new_generator(args, channels, args.latent_dim)
    if not projected:
        return g, StyleGAN2Discriminator(resolution=args.resolution, channels=channels)
    network = RegionSegmenter.from_pretrained(args.feature_network, subfolder="segmenter")
    d = ProjectedDiscriminator(own_config(network), resolution=args.resolution)
    d.frozen.load_state_dict({k: v for k, v in network.state_dict().items() if k.startswith("down.")})
    return g, d


def default_channels(resolution: int) -> list[int]:
    """Return channels from 4 x 4 up to a resolution."""
    blocks = max(int(math.log2(max(resolution, 4))) - 1, 1)
    more = [max(SMALL_CHANNELS[-1] >> (k + 1), 8) for k in range(max(0, blocks - len(SMALL_CHANNELS)))]
    return [*SMALL_CHANNELS, *more][:blocks]


# --- Pictures --------------------------------------------------------------------------------------------------------


def build_dataset(args: argparse.Namespace, accelerator: Accelerator, g: StyleGAN2Generator) -> Any:
    """Return the pictures to train on: those of a folder, or avatars, which are rendered first if needed.

    They have the generator's size and channels. ValueError for avatars that cannot.
    """
    if args.train_data_dir:
        from stylefusion_hf.data.folders import ImageFolder

        return ImageFolder(args.train_data_dir, g.picture_size, channels=g.config.img_channels)
    check_avatars_fit(g)
    return ArrayDataset(load_avatars(args, accelerator, args.resolution)[0])


def build_judge(
    args: argparse.Namespace, portrait_judge: PortraitJudge | None, accelerator: Accelerator, dataset: Any
) -> SampleJudge | None:
    """Return the judge that `--validation_judges` asks for in the main process, None elsewhere.

    It compares with avatars that no training sees, or with the first pictures of `--train_data_dir`.
    """
    if not (portrait_judge and args.validation_steps and accelerator.is_main_process):
        return None
    if args.avatars:
        from stylefusion_hf.data.avatars import cached_arrays

        cache = cache_folder(args) / "validation"
        images, _ = cached_arrays(cache, args.validation_samples, args.resolution, args.data_seed, start=REAL_START)
        dataset = ArrayDataset(images)
    elif len(dataset) < args.validation_samples:
        raise ValueError(
            f"--train_data_dir {args.train_data_dir} holds {len(dataset)} pictures, fewer than --validation_samples"
            f" {args.validation_samples}"
        )

    def real(numbers: range) -> torch.Tensor:
        return torch.stack([dataset[i]["image"] for i in numbers])

    return SampleJudge(portrait_judge, real, args.validation_samples, accelerator.device)
