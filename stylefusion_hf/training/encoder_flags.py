"""The flags of `stylefusion train encoder`."""

from __future__ import annotations

import argparse

from stylefusion_hf.training.flags import add_data_arguments, common_parser

TERMS = ("code", "pixel", "feature", "prior")  # of the loss


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    p = common_parser(
        "stylefusion train encoder",
        "Train an image encoder for a frozen generator.",
        learning_rate=1e-3,
        train_batch_size=16,
        max_train_steps=10_000,
        lr_scheduler="cosine",
        lr_warmup_steps=100,
        max_grad_norm=1.0,
    )
    add_data_arguments(p, "folder of real pictures, framed as the generator's", required=False)
    p.set_defaults(resolution=None, avatars=0)  # the generator's resolution
    p.add_argument("--encoder", help="folder of an encoder to train further; by default a new one is trained")
    p.add_argument("--channels", help="widths of the encoder, comma-separated; by default from the resolution")
    p.add_argument("--features", type=int, default=256, help="width of the encoder's last layer but one")
    p.add_argument(
        "--row_axes",
        type=int,
        help="how many of w's principal axes the rows of w+ may differ along; all by default, in a larger file",
    )
    p.add_argument(
        "--train_resolution",
        type=int,
        help="size of the pictures that are encoded and compared, one of the generator's; its full size by default",
    )
    p.add_argument(
        "--pool_size",
        type=int,
        default=0,
        help="number of samples to render once, into --output_dir/pool; 0 renders new ones in every step",
    )
    p.add_argument(
        "--sample_dir",
        action="append",
        metavar="FOLDER",
        help="samples drawn before: pictures, and codes.safetensors with each one's code by its name; may be repeated",
    )
    p.add_argument(
        "--picture_batch",
        type=int,
        help="how many of a batch's codes are rendered and compared with their pictures; by default all",
    )
    p.add_argument(
        "--degrade",
        type=float,
        default=0.0,
        help="strength of blur, noise, color casts, occlusions and JPEG artifacts in what the encoder sees",
    )
    p.add_argument(
        "--real_share", type=float, default=0.5, help="share of real pictures in a batch, where there are any"
    )
    p.add_argument("--min_psi", type=float, default=0.7, help="truncate samples by a random psi from this to 1")
    p.add_argument(
        "--mixed_share", type=float, default=0.5, help="share of samples whose w+ is mixed or jittered, not a single w"
    )
    p.add_argument(
        "--code_weight",
        type=float,
        default=0.1,
        help="weight of the squared error of a sample's code, about 2 for unrelated codes",
    )
    p.add_argument(
        "--code_metric",
        choices=("spread", "pictures"),
        default="spread",
        help="count the errors of codes in units of the generator's own spread, or by what they change in pictures",
    )
    p.add_argument("--pixel_weight", type=float, default=10.0, help="weight of the squared error of pixels")
    p.add_argument("--feature_weight", type=float, default=1.0, help="weight of the distance between features")
    p.add_argument(
        "--prior_weight", type=float, default=0.03, help="weight of the codes' distance from the generator's own codes"
    )
    p.add_argument("--ema_decay", type=float, default=0.998, help="decay of --use_ema")
    p.add_argument("--eval_images", type=int, default=256, help="number of held-out pictures for the report")
    return p.parse_args(argv)


def weights_of(args: argparse.Namespace) -> dict[str, float]:
    """Return the weight of each term."""
    return {name: getattr(args, f"{name}_weight") for name in TERMS}


def check_flags(args: argparse.Namespace) -> None:
    """Raise a ValueError for flags out of range."""
    if not 0 <= args.real_share <= 1:
        raise ValueError(f"--real_share must be from 0 to 1, got {args.real_share}")
    if not 0 <= args.min_psi <= 1 or not 0 <= args.mixed_share <= 1:
        raise ValueError(f"--min_psi and --mixed_share must be from 0 to 1, got {args.min_psi} and {args.mixed_share}")
    weights = weights_of(args)
    if bad := [name for name, weight in weights.items() if weight < 0]:
        raise ValueError(f"--{bad[0]}_weight must not be negative, got {weights[bad[0]]}")
    if not any(weights[name] for name in ("code", "pixel", "feature")):
        raise ValueError("--code_weight, --pixel_weight and --feature_weight are all 0: nothing to train for")
    if not 0 <= args.ema_decay < 1:
        raise ValueError(f"--ema_decay must be at least 0 and below 1, got {args.ema_decay}")
    if args.pool_size < 0 or args.degrade < 0:
        raise ValueError("--pool_size and --degrade must not be negative")
    if args.picture_batch is not None and not 0 <= args.picture_batch <= args.train_batch_size:
        raise ValueError(
            f"--picture_batch must be from 0 to --train_batch_size, {args.train_batch_size}, got {args.picture_batch}"
        )
    if args.features < 1 or (args.row_axes is not None and args.row_axes < 1):
        raise ValueError("--features and --row_axes must be at least 1")
    if args.encoder and (args.channels or args.row_axes):
        raise ValueError("--encoder has its own sizes: leave --channels and --row_axes out")
    if args.avatars < 0 or args.eval_images < 0:
        raise ValueError("--avatars and --eval_images must not be negative")
