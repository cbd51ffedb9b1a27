"""The flags of `stylefusion train judges`, and those of each judge's own run."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from stylefusion_hf.training.flags import add_data_arguments, common_parser

JUDGES = ("segmenter", "portrait", "discriminator")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; `command` is the command line again, for judges.json."""
    p = common_parser(
        "stylefusion train judges",
        "Train the networks that evaluation alone uses.",
        train_batch_size=24,
        max_train_steps=None,
        lr_scheduler="cosine",
        lr_warmup_steps=50,
        max_grad_norm=1.0,
        seed=11,
        use_ema=False,
    )
    add_data_arguments(p, "folder with images/, labels/ and dataset.json")
    p.set_defaults(data_seed=1)  # generators and fusion nets train on avatars of seed 0
    p.add_argument("--only", help=f"judges to train, from {','.join(JUDGES)}; by default all that can be trained")
    for name, steps in (("segmenter", 1600), ("portrait", 5000), ("discriminator", 1000)):
        p.add_argument(f"--{name}_steps", type=int, default=steps, help="optimizer steps without --max_train_steps")
    p.add_argument(
        "--segmenter_channels",
        help="widths of the U-Net's levels; by default 24,32,48,64,96 and another 96 for each doubling above 64 px",
    )
    p.add_argument("--discriminator_channels", help="channels from 4 x 4 up; by default 96,96,64,48,32 at 64 pixels")
    p.add_argument("--degrade", type=float, default=1.0, help="strength of the random degradation; 0 for none")
    p.add_argument("--dice_weight", type=float, default=0.0, help="of the segmenter, as in `train segmenter`")
    p.add_argument(
        "--augment", default="none", help="none, or some of color,translation,cutout (if the discriminator overfits)"
    )
    p.add_argument("--r1_gamma", type=float, default=0.5, help="weight of the discriminator's R1; 0 for none")
    p.add_argument("--r1_interval", type=int, default=16, help="steps between two R1 penalties")
    p.add_argument("--eval_avatars", type=int, default=512, help="number of held-out pictures for the figures")
    p.add_argument(
        "--eval_data_dir", help="folder like --train_data_dir with held-out pictures, for the segmenter's IoU"
    )
    args = p.parse_args(argv)
    given = {k: v for k, v in vars(args).items() if v != p.get_default(k) and k not in ("hub_token", "push_to_hub")}
    given = {"model" if k == "pretrained_model_name_or_path" else k: v for k, v in given.items()}
    args.command = "stylefusion train judges " + " ".join(
        f"--{k}" if v is True else f"--no-{k}" if v is False else f"--{k} {shlex.quote(str(v))}"
        for k, v in given.items()
    )
    return args


def reasons_to_skip(args: argparse.Namespace) -> dict[str, str | None]:
    """Return {judge: the reason why it is not trained, or None if it is}.

    ValueError for an impossible --only, and for flags out of range.
    """
    wanted = list(JUDGES) if args.only is None else [name.strip() for name in args.only.split(",")]
    unknown = [name for name in wanted if name not in JUDGES]
    if unknown:
        raise ValueError(f"--only {args.only}: there is no judge {unknown[0]!r}; choose some of {', '.join(JUDGES)}")
    for flag, least in (("r1_interval", 1), ("eval_avatars", 0), ("degrade", 0), ("dice_weight", 0), ("r1_gamma", 0)):
        if getattr(args, flag) < least:
            raise ValueError(f"--{flag} must be at least {least}, got {getattr(args, flag)}")
    reasons = {name: None if name in wanted else "--only names others" for name in JUDGES}
    missing = {}
    if not args.avatars:
        missing["portrait"] = "it learns from the avatars' labels (--avatars); without it, pose comes from the masks"
    if not args.pretrained_model_name_or_path:
        missing["discriminator"] = "it needs the generator whose pictures it separates from real ones (--model)"
    for name, reason in missing.items():
        if reasons[name] is None:
            if args.only is not None:
                raise ValueError(f"--only {args.only}: no {name} can be trained: {reason}")
            reasons[name] = reason
    return reasons


def arguments_of(args: argparse.Namespace, name: str) -> argparse.Namespace:
    """Return the flags of one judge's own run."""
    own = argparse.Namespace(**vars(args))
    own.output_dir = str(Path(args.output_dir) / "runs" / name)
    own.cache_dir = args.cache_dir or str(Path(args.output_dir) / "data")
    own.seed = args.seed + list(JUDGES).index(name)
    own.push_to_hub = False  # all judges are uploaded together
    if args.max_train_steps is None:
        own.max_train_steps = getattr(args, f"{name}_steps")
        if own.max_train_steps < 1:
            raise ValueError(f"--{name}_steps must be at least 1, got {own.max_train_steps}")
    return own
