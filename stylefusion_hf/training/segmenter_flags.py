"""The flags of `stylefusion train segmenter`."""

from __future__ import annotations

import argparse

from stylefusion_hf.training.flags import add_data_arguments, common_parser


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    p = common_parser(
        "stylefusion train segmenter",
        "Train a region segmenter.",
        learning_rate=2e-3,
        train_batch_size=32,
        max_train_steps=2000,
        lr_scheduler="cosine",
        lr_warmup_steps=50,
        max_grad_norm=1.0,
        use_ema=False,
    )
    add_data_arguments(p, "folder with images/, labels/ and dataset.json")
    p.add_argument("--channels", help="widths of the U-Net's levels, comma-separated; by default from the resolution")
    p.add_argument("--degrade", type=float, default=1.0, help="strength of the random degradation; 0 for none")
    p.add_argument(
        "--dice_weight",
        type=float,
        default=0.0,
        help="weight of a soft Dice loss, in which small regions count as much as large ones (default: %(default)s)",
    )
    p.add_argument("--eval_avatars", type=int, default=512, help="number of held-out avatars for the reported IoU")
    p.add_argument(
        "--eval_data_dir", help="folder like --train_data_dir with held-out pictures, for the reported IoU (iou.json)"
    )
    return p.parse_args(argv)


def check_flags(args: argparse.Namespace) -> None:
    """Raise a ValueError for flags out of range."""
    for name in ("degrade", "dice_weight", "eval_avatars"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} must not be negative, got {getattr(args, name)}")
