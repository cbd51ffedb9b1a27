"""The flags that all trainers share, named as in diffusers' training scripts, and a --help that fits on a screen."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Collection
from typing import Any

TRACKER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet_ml", "mlflow": "mlflow"}


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults of flags that have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        plain = action.default is None or action.default is False  # not 0, which equals False
        return action.help if plain else super()._get_help_string(action)


def common_parser(prog: str, description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser with the shared flags; `defaults` overrides their defaults by name."""
    p = argparse.ArgumentParser(prog=prog, description=description, formatter_class=HelpFormatter)
    p.add_argument("--pretrained_model_name_or_path", "--model", help="folder or Hub id of the model to start from")
    p.add_argument("--revision", help="revision of that model on the Hub")
    p.add_argument("--variant", help="weight variant of that model, such as fp16")
    p.add_argument("--output_dir", required=True, help="folder for checkpoints, samples and the trained model")
    p.add_argument("--seed", type=int, default=0, help="seed for weight initialization, data order and latents")
    p.add_argument("--resolution", type=int, default=64, help="image size in pixels, a power of two")
    p.add_argument("--train_batch_size", type=int, default=16, help="micro-batch size per process")
    p.add_argument("--max_train_steps", type=int, default=10_000, help="total optimizer steps, including resumed ones")
    p.add_argument("--gradient_accumulation_steps", type=int, default=1, help="micro-batches per step")
    p.add_argument("--learning_rate", type=float, default=2e-3)
    p.add_argument("--lr_scheduler", default="constant", help="linear, cosine, constant, constant_with_warmup, ...")
    p.add_argument("--lr_warmup_steps", type=int, default=0)
    p.add_argument("--max_grad_norm", type=float, default=0.0, help="clip gradients to this norm; 0 disables clipping")
    p.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default="no")
    p.add_argument(
        "--allow_tf32",
        action="store_true",
        help="multiply in TF32 (10-bit mantissa) instead of float32 on Ampere and later GPUs",
    )
    p.add_argument(
        "--use_ema", action=argparse.BooleanOptionalAction, default=True, help="keep and save averaged weights"
    )
    p.add_argument("--checkpointing_steps", type=int, default=1000, help="steps between checkpoints")
    p.add_argument(
        "--checkpoints_total_limit", type=int, default=2, help="number of newest checkpoints to keep; 0 keeps all"
    )
    p.add_argument("--resume_from_checkpoint", metavar="latest|checkpoint-N", help="checkpoint to continue from")
    p.add_argument("--report_to", default="none", help=f"none or one of {', '.join(TRACKER_PACKAGES)}")
    p.add_argument("--tracker_project_name", default="stylefusion")
    p.add_argument("--logging_dir", default="logs", help="folder for the tracker's files, inside --output_dir")
    p.add_argument("--logging_steps", type=int, default=50, help="steps between entries of log.jsonl and the tracker")
    p.add_argument("--validation_steps", type=int, default=500, help="steps between sample pictures; 0 for none")
    p.add_argument("--push_to_hub", action="store_true", help="upload the trained model when done")
    p.add_argument("--hub_model_id", help="repository for --push_to_hub; by default named after the output folder")
    p.add_argument("--hub_token", help="token for --push_to_hub; by default the stored login")
    p.set_defaults(trainer=prog, **defaults)  # checkpoints record which trainer wrote them
    return p


def add_data_arguments(p: argparse.ArgumentParser, folder: str, required: bool = True) -> None:
    """Add the flags that choose the training pictures; `folder` describes --train_data_dir."""
    source = p.add_mutually_exclusive_group(required=required)
    source.add_argument("--avatars", type=int, metavar="N", help="train on the first N avatars, which are rendered")
    source.add_argument("--train_data_dir", help=folder)
    p.add_argument("--data_seed", type=int, default=0, help="seed of the avatars")
    p.add_argument("--cache_dir", help="folder for rendered avatars; by default --output_dir/data")
    p.add_argument("--dataloader_num_workers", type=int, default=0, help="processes that load pictures")


class HelpAll(argparse.Action):
    """--help-all: print the help of every flag, then exit."""

    def __init__(
        self, option_strings: list[str], dest: str, hidden: dict[argparse.Action, str | None], **settings: Any
    ):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **settings)
        self.hidden = hidden

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        for action, text in self.hidden.items():
            action.help = text
        parser.epilog = None
        parser.print_help()
        parser.exit()


def shorten_help(parser: argparse.ArgumentParser, shown: Collection[str]) -> None:
    """Reduce --help to the flags `shown` (names of their values), and add --help-all, which shows all flags."""
    hidden: dict[argparse.Action, str | None] = {}
    for action in parser._actions:
        if action.dest not in (*shown, "help"):
            hidden[action], action.help = action.help, argparse.SUPPRESS
    parser.add_argument("--help-all", "--help_all", action=HelpAll, hidden=hidden, help="show every flag and exit")
    parser.epilog = "These are the flags most users need. --help-all lists the others."


def check_arguments(args: argparse.Namespace, least_steps: int = 1) -> None:
    """Raise a ValueError that names the flag, its value and what it accepts, if a shared flag is out of range.

    Numbers of all flags must be finite.
    """
    for name, value in vars(args).items():
        for number in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"--{name} must be finite, got {number}")
    for name in ("train_batch_size", "gradient_accumulation_steps", "checkpointing_steps", "logging_steps"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.max_train_steps < least_steps:
        raise ValueError(f"--max_train_steps must be at least {least_steps}, got {args.max_train_steps}")
    for name in ("checkpoints_total_limit", "validation_steps", "lr_warmup_steps", "max_grad_norm"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} must not be negative, got {getattr(args, name)}")
    if args.learning_rate <= 0:
        raise ValueError(f"--learning_rate must be positive, got {args.learning_rate}")
    if args.report_to != "none":
        # accelerate silently ignores a tracker whose package is missing.
        if args.report_to not in TRACKER_PACKAGES:
            raise ValueError(
                f"--report_to {args.report_to!r} is unknown; choose none or one of {', '.join(TRACKER_PACKAGES)}"
            )
        if importlib.util.find_spec(TRACKER_PACKAGES[args.report_to]) is None:
            raise ValueError(
                f"--report_to {args.report_to} needs its package: pip install {TRACKER_PACKAGES[args.report_to]}"
            )
