"""The flags of `stylefusion train generator`."""

from __future__ import annotations

import argparse
import math

from stylefusion_hf.training.choices import LOSSES, parse_augmentations
from stylefusion_hf.training.flags import add_data_arguments, common_parser, shorten_help

LEAST_AVATARS = 16  # of a regression, whose attributes are brought to a deviation of 1
R1_GAMMA = 5.0  # docs/guides/train.md explains it
R1_INTERVAL = 16
MIXING_PROB = 0.9
SHORT = (  # what --help shows
    "help_all",
    "pretrained_model_name_or_path",
    "output_dir",
    "avatars",
    "train_data_dir",
    "mirror",
    "augment",
    "loss",
    "grow_from",
    "validation_judges",
    "resolution",
    "r1_gamma",
    "train_batch_size",
    "max_train_steps",
    "mixed_precision",
    "resume_from_checkpoint",
    "seed",
)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    p = common_parser("stylefusion train generator", "Train a StyleGAN2 generator and its discriminator.")
    add_data_arguments(p, "train on the pictures in this folder")
    p.add_argument("--mirror", action="store_true", help="also train on mirrored pictures")
    p.add_argument("--augment", default="none", help="none, or some of color,translation,cutout (for small data sets)")
    p.add_argument(
        "--grow_from",
        metavar="FOLDER",
        help="start from the trained generator/ and discriminator/ of half the --resolution, adding a block to each",
    )
    add_network_arguments(p)
    add_loss_arguments(p)
    p.add_argument(
        "--ema_kimg",
        type=float,
        help="half-life of the averaged weights in thousands of images; by default batch size / 3.2",
    )
    p.add_argument(
        "--ema_rampup",
        type=float,
        default=0.05,
        help="early in the run, limit the half-life to this share of the images seen; 0 for no limit",
    )
    p.add_argument(
        "--validation_judges",
        metavar="FOLDER",
        help="judges (such as stylefusion_hf/assets/evaluation) that measure variety and KID at every validation",
    )
    p.add_argument(
        "--validation_samples", type=int, default=1000, help="number of pictures that --validation_judges see"
    )
    shorten_help(p, SHORT)
    return p.parse_args(argv)


def add_network_arguments(p: argparse.ArgumentParser) -> None:
    """Add the flags that choose the networks."""
    p.add_argument(
        "--channels", help="comma-separated channels from 4 x 4 up; by default 128,128,128,64,32 at 64 pixels"
    )
    p.add_argument(
        "--latent_dim", type=int, default=128, help="dimension of z, and of w unless --loss regression determines it"
    )
    p.add_argument("--mapping_layers", type=int, default=4)
    p.add_argument(
        "--mapping_width", type=int, help="width of the mapping's hidden layers; by default the dimension of w"
    )
    p.add_argument("--use_noise", action="store_true", help="use noise inputs, which flat artwork is better without")
    p.add_argument(
        "--discriminator",
        choices=("stylegan2", "projected"),
        default="stylegan2",
        help="stylegan2 sees pixels, projected sees the features of --feature_network",
    )
    p.add_argument(
        "--feature_network", metavar="FOLDER", help="folder with the segmenter/ for --discriminator projected"
    )


def add_loss_arguments(p: argparse.ArgumentParser) -> None:
    """Add the flags of the adversarial loss and its regularization."""
    p.add_argument(
        "--loss",
        choices=(*LOSSES, "regression"),
        default="logistic",
        help="logistic: StyleGAN2; relativistic: R3GAN (with --r2_gamma); regression: without a discriminator, avatars"
        " are drawn from their attributes (with --learning_rate 0.02)",
    )
    p.add_argument(
        "--mapping_steps", type=int, default=1500, help="with --loss regression: first steps, of the mapping alone"
    )
    p.add_argument(
        "--new_mapping",
        action="store_true",
        help="with --loss regression and --model or --grow_from: do not keep its mapping, train another one first",
    )
    p.add_argument(
        "--adversarial_weight",
        type=float,
        default=0.0,
        help="with --loss regression: weight of a discriminator of details, which sharpens outlines; 0 for none",
    )
    p.add_argument(
        "--r1_gamma",
        type=float,
        default=R1_GAMMA,
        help="weight of R1; 0 for none (docs/guides/train.md explains the 5)",
    )
    p.add_argument(
        "--r2_gamma", type=float, default=0.0, help="weight of R2, the same penalty on generated images; 0 for none"
    )
    p.add_argument(
        "--r1_interval",
        type=int,
        default=R1_INTERVAL,
        help="steps between penalties (R1 and R2); 1 penalizes every step",
    )
    p.add_argument(
        "--path_length_weight", type=float, default=0.0, help="weight of path-length regularization (StyleGAN2: 2)"
    )
    p.add_argument("--path_length_interval", type=int, default=4, help="steps between path-length penalties")
    p.add_argument("--mixing_prob", type=float, default=MIXING_PROB, help="probability of style mixing per sample")


def check_flags(args: argparse.Namespace) -> None:
    """Raise a ValueError for flags out of range."""
    parse_augmentations(args.augment)
    for name in ("r1_gamma", "r2_gamma", "adversarial_weight"):
        if not 0 <= getattr(args, name) < math.inf:
            raise ValueError(f"--{name} must not be negative, got {getattr(args, name)}")
    for name in ("path_length_weight", "ema_kimg", "ema_rampup"):
        if (getattr(args, name) or 0) < 0:
            raise ValueError(f"--{name} must not be negative, got {getattr(args, name)}")
    if args.loss == "regression":
        check_regression(args)
    elif args.adversarial_weight:
        raise ValueError("--adversarial_weight has no meaning without --loss regression: leave it out")
    if args.new_mapping and (args.loss != "regression" or not (args.pretrained_model_name_or_path or args.grow_from)):
        raise ValueError("--new_mapping has no meaning without --loss regression and --model or --grow_from")
    if not 0 <= args.mixing_prob <= 1:
        raise ValueError(f"--mixing_prob must be from 0 to 1, got {args.mixing_prob}")
    for name in ("r1_interval", "path_length_interval"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")


def check_regression(args: argparse.Namespace) -> None:
    """Raise a ValueError for flags that a regression has no use for."""
    if args.avatars is None:
        raise ValueError("--loss regression needs pictures whose attributes are known: give --avatars")
    if args.avatars < LEAST_AVATARS:
        raise ValueError(f"--loss regression needs at least {LEAST_AVATARS} --avatars, got {args.avatars}")
    used = {
        "mirror": args.mirror,
        "augment": args.augment != "none",
        "use_noise": args.use_noise,
        "discriminator": args.discriminator != "stylegan2",
        "feature_network": args.feature_network,
        "path_length_weight": args.path_length_weight,
        "r1_gamma": args.r1_gamma != R1_GAMMA,
        "r2_gamma": args.r2_gamma,
        "r1_interval": args.r1_interval != R1_INTERVAL,
        "mixing_prob": args.mixing_prob != MIXING_PROB,
    }
    for name, given in used.items():
        if given:
            raise ValueError(f"--{name} has no meaning with --loss regression: leave it out")
    for name in ("mapping_steps", "mapping_layers", "latent_dim"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
