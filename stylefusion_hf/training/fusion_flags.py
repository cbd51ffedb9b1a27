"""The flags of `stylefusion train fusion`: a dozen for users, and switches for research (`--help-all`)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from stylefusion_hf.core.checks import short
from stylefusion_hf.training.choices import (
    COMPOSED_WEIGHTS,
    CONTRASTIVE_SHARES,
    CONTRASTIVE_WEIGHTS,
    FEATURES,
    REFERENCES,
    TERMS,
    Shares,
)
from stylefusion_hf.training.config_files import config_of, read_config
from stylefusion_hf.training.flags import common_parser, shorten_help
from stylefusion_hf.training.region_flags import add_region_arguments

SHORT = (  # what --help shows
    "help_all",
    "pretrained_model_name_or_path",
    "output_dir",
    "tree",
    "regions",
    "segmenter",
    "region_map",
    "objective",
    "gates",
    "train_resolution",
    "memory_gib",
    "train_batch_size",
    "max_train_steps",
    "mixed_precision",
    "resume_from_checkpoint",
    "seed",
)
SWITCHES = {
    "standardise": "give the MLPs codes in units of each channel's deviation",
    "gate_product": "let a gate depend on the sign of its channel's difference",
    "gate_novelty": "let a gate depend on which child differs from the common code",
    "rgb_indicators": "give toRGB vectors their own indicators, instead of their convolution's",
}
# Defaults that --objective and --gates set; the command line and --config override each of them.
SHARES = Shares()
OBJECTIVES: dict[str, dict[str, Any]] = {
    "composed": {
        **{f"{name}_weight": COMPOSED_WEIGHTS.get(name, 0.0) for name in TERMS},
        "single_share": SHARES.single,
        "inner_shares": list(SHARES.inner),
        "deficit": 1.0,
    },
    "contrastive": {
        **{f"{name}_weight": CONTRASTIVE_WEIGHTS.get(name, 0.0) for name in TERMS},
        **CONTRASTIVE_SHARES,
    },
}
GATES: dict[str, dict[str, Any]] = {
    "ours": {**dict.fromkeys(SWITCHES, True), "pooling": "mean", "final_activation": "linear"},
    "plain": {**dict.fromkeys(SWITCHES, False), "pooling": "max", "final_activation": "lrelu"},
}
# Of the gating MLPs and of validation: with training, and without (--max_train_steps 0), where no MLP takes part.
STATIC_STEPS = 100
TRAINED: dict[str, Any] = {"hidden_width": 192, "hidden_layers": 2, "validation_pairs": 32}
MEASURED: dict[str, Any] = {"hidden_width": 1, "hidden_layers": 1, "validation_pairs": 0, "gate_product": False}


def build_parser() -> argparse.ArgumentParser:
    """Return the parser."""
    p = common_parser(
        "stylefusion train fusion",
        "Train fusion nets for a frozen generator, or measure constant gates for it (--max_train_steps 0).",
        learning_rate=1e-2,
        train_batch_size=16,
        max_train_steps=3000,
        lr_scheduler="cosine",
        lr_warmup_steps=20,
        max_grad_norm=1.0,
        validation_steps=250,
    )
    p.add_argument("--config", metavar="FILE", help="JSON file of flags, which the command line overrides")
    add_region_arguments(p)
    add_size_arguments(p)
    add_objective_arguments(p)
    add_net_arguments(p)
    add_sample_arguments(p)
    shorten_help(p, SHORT)
    return p


def add_size_arguments(p: argparse.ArgumentParser) -> None:
    """Add the flags of resolutions and memory."""
    size = p.add_argument_group("size and memory (see docs/guides/train.md)")
    size.add_argument(
        "--train_resolution",
        type=int,
        metavar="R",
        help="height in pixels of the training pictures; by default the generator's largest up to 256",
    )
    size.add_argument(
        "--full_resolution_steps",
        type=int,
        default=0,
        help="number of last steps on full pictures, to train the gates of layers beyond --train_resolution",
    )
    size.add_argument(
        "--segmenter_resolution",
        type=int,
        metavar="R",
        help="height in pixels at which the segmenter sees training pictures; by default measured",
    )
    size.add_argument(
        "--memory_gib",
        type=float,
        metavar="GIB",
        help="memory limit of the training; by default the device's memory, or 8 on a CPU",
    )
    size.add_argument(
        "--start_pictures", type=int, default=64, help="number of pictures to measure the start gates on"
    )


def add_objective_arguments(p: argparse.ArgumentParser) -> None:
    """Add the flags of the objective and its terms."""
    what = p.add_argument_group("objective (see docs/research/objective.md)")
    what.add_argument(
        "--objective",
        choices=tuple(OBJECTIVES),
        default="composed",
        help="composed: ours, used for the shipped nets; contrastive: as the paper describes",
    )
    for name in TERMS:
        what.add_argument(
            f"--{name}_weight", type=float, help=f"weight of the term {name}; by default from --objective"
        )
    what.add_argument("--features", default="maps", help=f"looks besides color: {', '.join(FEATURES)}, or both")
    what.add_argument(
        "--reference", choices=REFERENCES, default="warped", help="which picture a region should resemble"
    )
    what.add_argument(
        "--outside_power", type=float, default=2.0, help="power of the differences outside the region, 1 or 2"
    )
    what.add_argument("--temperature", type=float, default=0.1, help="temperature of the contrasts")
    what.add_argument(
        "--deficit",
        type=float,
        help="exponent of the regions' weights by missing transfer; by default from --objective",
    )
    what.add_argument(
        "--discriminator_learning_rate",
        type=float,
        default=0.0,
        help="rate at which to fine-tune the discriminator on fused against plain pictures; 0 keeps it frozen",
    )
    what.add_argument(
        "--pose_regions", help="regions whose positions give the pose; by default the leaves of the root's first child"
    )
    what.add_argument(
        "--static_regions",
        help="regions that do not move with the pose; by default those named bg... or background...",
    )


def add_net_arguments(p: argparse.ArgumentParser) -> None:
    """Add the flags of the fusion nets."""
    nets = p.add_argument_group("nets")
    nets.add_argument(
        "--gates",
        choices=tuple(GATES),
        default="ours",
        help="ours: all switches on; plain: the authors', which see nothing but the codes",
    )
    for name, about in SWITCHES.items():
        nets.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=f"{about}; by default from --gates")
    nets.add_argument(
        "--pooling", choices=("mean", "max"), help="pooling of narrow vectors' gates; by default from --gates"
    )
    nets.add_argument(
        "--final_activation",
        choices=("linear", "lrelu"),
        help="activation before the sigmoid; by default from --gates",
    )
    nets.add_argument("--hidden_width", type=int, help="width of the gating MLPs; by default 192")
    nets.add_argument("--hidden_layers", type=int, help="hidden layers of the gating MLPs; by default 2")
    nets.add_argument(
        "--initial_fusion",
        metavar="ID_OR_FOLDER",
        help="model whose fusion nets to start from, of the same tree and layers, instead of new ones",
    )
    nets.add_argument(
        "--input_rank",
        type=int,
        metavar="R",
        help="when done, store the gating MLPs' first layers as two factors of this rank, at most --hidden_width: half"
        " of it saves a fifth of a small net's numbers and changes little",
    )
    nets.add_argument(
        "--output_rank",
        type=int,
        metavar="R",
        help="when done, store the gating MLPs' output layers as two factors of this rank: 32 halves the file",
    )
    nets.add_argument(
        "--context_width",
        type=int,
        metavar="K",
        help="let every gate depend on K numbers of each whole code beside its own layer's part; they start as those"
        " that best predict the regions' looks and places",
    )
    nets.add_argument(
        "--common_resolution",
        type=int,
        default=16,
        help="layers up to this size in pixels are aligned to the common code",
    )


def add_sample_arguments(p: argparse.ArgumentParser) -> None:
    """Add the flags of samples, schedule and validation."""
    how = p.add_argument_group("samples and schedule")
    how.add_argument(
        "--pool_size", type=int, help="number of plain pictures to mix; by default as many as memory allows"
    )
    how.add_argument("--min_psi", type=float, default=0.5, help="truncate codes by a random psi from this to 1")
    how.add_argument("--mixed_share", type=float, default=0.2, help="share of style-mixed or jittered codes")
    how.add_argument(
        "--code_shares",
        type=float,
        nargs=4,
        default=SHARES.codes,
        help="shares of samples with 1, 2, 3 and one-per-leaf codes",
    )
    how.add_argument(
        "--single_share",
        type=float,
        help="share of those with 2 codes in which a single leaf differs; by default from --objective",
    )
    how.add_argument(
        "--inner_shares",
        type=float,
        nargs=4,
        help="shares of samples whose inner codes are the base's, one fresh code, a fresh code each, the leaves'; by"
        " default from --objective",
    )
    how.add_argument(
        "--twin_share",
        type=float,
        default=SHARES.twin,
        help="share of mixes followed by a twin that differs in one leaf",
    )
    how.add_argument(
        "--static_steps",
        type=int,
        help="number of first steps in which no MLP learns; by default 100, or 0 with --initial_fusion",
    )
    how.add_argument("--gate_learning_rate", type=float, default=0.1, help="rate of the constant part of the gates")
    how.add_argument("--ema_decay", type=float, default=0.995)
    how.add_argument(
        "--validation_pairs",
        type=int,
        help="number of pairs for the ruler's figures, 0 for none; by default 32, or 0 with --max_train_steps 0",
    )
    how.add_argument("--judges", help="folder of the ruler's judges; by default the embedded ones, if they fit")


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line, which overrides --config, which overrides the defaults of --objective and --gates."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser()
    config = config_of(argv)
    args = parser.parse_args([*read_config(Path(config), parser), *argv] if config else argv)
    size = TRAINED if args.max_train_steps else MEASURED
    for preset in (size, OBJECTIVES[args.objective], GATES[args.gates]):
        for name, value in preset.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    if args.static_steps is None:
        args.static_steps = 0 if args.initial_fusion else STATIC_STEPS
    if args.config != config:  # argparse accepts abbreviations, `config_of` does not
        parser.error("write --config in full")
    return args


def shares_of(args: argparse.Namespace) -> Shares:
    """Return the shares of samples that the flags set. ValueError for shares out of range."""
    return Shares(
        codes=tuple(args.code_shares), single=args.single_share, inner=tuple(args.inner_shares), twin=args.twin_share
    )


def features_of(args: argparse.Namespace) -> list[str]:
    """Return the names in --features."""
    return [name.strip() for name in args.features.split(",") if name.strip()]


def check_objective(args: argparse.Namespace) -> None:
    """Raise a ValueError for flags out of range or that exclude each other, before anything is computed."""
    weights = {name: getattr(args, f"{name}_weight") for name in TERMS}
    if not any(weights.values()):
        raise ValueError("every term's weight is 0: there is nothing to train for")
    if bad := [name for name, w in weights.items() if w < 0]:
        raise ValueError(f"--{bad[0]}_weight must not be negative, got {weights[bad[0]]}")
    if not 0 <= args.min_psi <= 1 or not 0 <= args.mixed_share <= 1:
        raise ValueError(f"--min_psi and --mixed_share are from 0 to 1, got {args.min_psi} and {args.mixed_share}")
    if args.pool_size is not None and args.pool_size < 8:
        raise ValueError(f"--pool_size must be at least 8, got {args.pool_size}")
    if args.common_resolution < 4:
        raise ValueError(f"--common_resolution must be at least 4, the smallest layer, got {args.common_resolution}")
    if args.deficit < 0:
        raise ValueError(f"--deficit must not be negative, got {args.deficit}: it would favor what lacks least")
    for name, least in (("hidden_width", 1), ("hidden_layers", 1), ("static_steps", 0), ("validation_pairs", 0)):
        if getattr(args, name) < least:
            raise ValueError(f"--{name} must be at least {least}, got {getattr(args, name)}")
    if unknown := [name for name in features_of(args) if name not in FEATURES]:
        raise ValueError(f"--features: unknown features {short(unknown[0])}: choose from {', '.join(FEATURES)}")
    if args.segmenter_resolution is not None and args.segmenter_resolution < 16:
        raise ValueError(f"--segmenter_resolution must be at least 16, got {args.segmenter_resolution}")
    for name in ("input_rank", "output_rank", "context_width"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
    for name in ("gate_learning_rate", "discriminator_learning_rate"):
        if getattr(args, name) < 0:
            raise ValueError(f"--{name} must not be negative, got {getattr(args, name)}")
    if not 0 <= args.ema_decay < 1:
        raise ValueError(f"--ema_decay must be at least 0 and below 1, got {args.ema_decay}")
    if args.discriminator_learning_rate and not args.realism_weight:
        raise ValueError("--discriminator_learning_rate fine-tunes the realism term: give --realism_weight too")
    if args.outside_power < 1:
        raise ValueError(f"--outside_power must be at least 1, got {args.outside_power}")
    if args.temperature <= 0:
        raise ValueError(f"--temperature must be positive, got {args.temperature}")
    if args.start_pictures < 2:
        raise ValueError(f"--start_pictures must be at least 2, got {args.start_pictures}")
    for name in ("initial_fusion", "input_rank", "output_rank", "context_width"):
        if args.max_train_steps == 0 and getattr(args, name):
            raise ValueError(f"--max_train_steps 0 measures constant gates: leave --{name} out")
    if args.max_train_steps == 0 and args.resume_from_checkpoint:
        raise ValueError("--max_train_steps 0 trains nothing: leave --resume_from_checkpoint out")
    if not 0 <= args.full_resolution_steps <= max(0, args.max_train_steps):
        raise ValueError(
            f"--full_resolution_steps is from 0 to --max_train_steps ({args.max_train_steps}), got"
            f" {args.full_resolution_steps}"
        )
