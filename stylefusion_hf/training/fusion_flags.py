"""The flags of `stylefusion train fusion`: the dozen that users turn, and switches for research (`--help-all`)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stylefusion_hf.core.json_files import read_json
from stylefusion_hf.training import composed, contrastive
from stylefusion_hf.training._regions import add_region_arguments
from stylefusion_hf.training.criterion import TERMS
from stylefusion_hf.training.flags import common_parser
from stylefusion_hf.training.networks import FEATURES
from stylefusion_hf.training.references import REFERENCES
from stylefusion_hf.training.sampling import Shares

SHORT = (  # what --help shows
    "help",
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
    "standardise": "show the MLPs codes in units of each channel's deviation",
    "gate_product": "let a gate depend on the sign of its channel's difference",
    "gate_novelty": "let a gate depend on which child differs from the common code",
    "rgb_indicators": "toRGB vectors have indicators of their own, instead of their convolution's",
}
# What --objective and --gates stand for: flags that the command line or --config may still set by themselves.
SHARES = Shares()
OBJECTIVES: dict[str, dict[str, Any]] = {
    "composed": {
        **{f"{name}_weight": composed.WEIGHTS.get(name, 0.0) for name in TERMS},
        "single_share": SHARES.single,
        "inner_shares": list(SHARES.inner),
        "deficit": 1.0,
    },
    "contrastive": {
        **{f"{name}_weight": contrastive.WEIGHTS.get(name, 0.0) for name in TERMS},
        **contrastive.SHARES,
    },
}
GATES: dict[str, dict[str, Any]] = {
    "ours": {**dict.fromkeys(SWITCHES, True), "pooling": "mean", "final_activation": "linear"},
    "plain": {**dict.fromkeys(SWITCHES, False), "pooling": "max", "final_activation": "lrelu"},
}
# Of the gating MLPs and of validation: with training, and without (--max_train_steps 0), where no MLP takes part.
TRAINED: dict[str, Any] = {"hidden_width": 192, "hidden_layers": 2, "validation_pairs": 32}
MEASURED: dict[str, Any] = {"hidden_width": 1, "hidden_layers": 1, "validation_pairs": 0, "gate_product": False}


class HelpAll(argparse.Action):
    """--help-all: the help with every flag."""

    def __init__(self, option_strings: Sequence[str], dest: str, **settings: Any):
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **settings)

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        build_parser(full=True).print_help()
        parser.exit()


def build_parser(full: bool = False) -> argparse.ArgumentParser:
    """The parser. `full`: whose help shows the switches for research, too."""
    p = common_parser(
        "stylefusion train fusion",
        "Train fusion nets for a frozen generator.",
        learning_rate=1e-2,
        train_batch_size=16,
        max_train_steps=3000,
        lr_scheduler="cosine",
        lr_warmup_steps=20,
        max_grad_norm=1.0,
        validation_steps=250,
    )
    p.add_argument(
        "--help-all", "--help_all", action=HelpAll, help="show every flag, those for research too, and exit"
    )
    p.add_argument("--config", metavar="FILE", help="JSON of flags; what the command line says goes before it")
    add_region_arguments(p)
    size = p.add_argument_group("size and memory (see docs/guides/train.md)")
    size.add_argument(
        "--train_resolution",
        type=int,
        metavar="R",
        help="pixels of the pictures that the nets are trained on; the largest power of two up to 256 if left out",
    )
    size.add_argument(
        "--full_resolution_steps",
        type=int,
        default=0,
        help="how many of the last steps see full pictures, to train the gates of layers beyond --train_resolution",
    )
    size.add_argument(
        "--segmenter_resolution",
        type=int,
        metavar="R",
        help="pixels at which the segmenter sees training pictures; measured if left out",
    )
    size.add_argument(
        "--memory_gib",
        type=float,
        metavar="GIB",
        help="what the training may take; the device's own memory, or 8 on a CPU, if left out",
    )
    size.add_argument("--start_pictures", type=int, default=64, help="that the start gates are measured on")
    what = p.add_argument_group("objective (see docs/research/objective.md)")
    what.add_argument(
        "--objective",
        choices=tuple(OBJECTIVES),
        default="composed",
        help="composed: ours, which ships; contrastive: the paper's description",
    )
    for name in TERMS:
        what.add_argument(f"--{name}_weight", type=float, help="by --objective if left out")
    what.add_argument("--features", default="maps", help=f"looks besides color: {', '.join(FEATURES)}, or both")
    what.add_argument(
        "--reference", choices=REFERENCES, default="warped", help="whose picture a region should be like"
    )
    what.add_argument("--outside_power", type=float, default=2.0, help="of the differences outside the region, 1 or 2")
    what.add_argument("--temperature", type=float, default=0.1, help="of the contrasts")
    what.add_argument(
        "--deficit", type=float, help="exponent of the weights by lacking transfer; by --objective if left out"
    )
    what.add_argument(
        "--discriminator_learning_rate",
        type=float,
        default=0.0,
        help="fine-tune the discriminator on fused against plain pictures; 0 leaves it as it is",
    )
    what.add_argument(
        "--pose_regions", help="regions whose places tell the pose; the leaves of the root's first child if left out"
    )
    what.add_argument(
        "--static_regions",
        help="regions that do not move with the pose; those named bg... or background... if left out",
    )
    nets = p.add_argument_group("nets")
    nets.add_argument(
        "--gates",
        choices=tuple(GATES),
        default="ours",
        help="ours: with every switch below; plain: the authors', which see the codes alone",
    )
    for name, about in SWITCHES.items():
        nets.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, help=f"{about}; by --gates if left out")
    nets.add_argument("--pooling", choices=("mean", "max"), help="of narrow vectors' gates; by --gates if left out")
    nets.add_argument(
        "--final_activation", choices=("linear", "lrelu"), help="before the sigmoid; by --gates if left out"
    )
    nets.add_argument("--hidden_width", type=int, help="of the gating MLPs; 192 if left out")
    nets.add_argument("--hidden_layers", type=int, help="of the gating MLPs; 2 if left out")
    nets.add_argument(
        "--common_resolution",
        type=int,
        default=16,
        help="layers up to this many pixels are aligned to the common code",
    )
    how = p.add_argument_group("samples and schedule")
    how.add_argument("--pool_size", type=int, help="plain pictures that are mixed; what memory allows if left out")
    how.add_argument("--min_psi", type=float, default=0.5, help="codes are truncated by a random psi from this to 1")
    how.add_argument("--mixed_share", type=float, default=0.2, help="of codes: style-mixed or jittered ones")
    how.add_argument(
        "--code_shares", type=float, nargs=4, default=SHARES.codes, help="samples with 1, 2, 3, one-per-leaf codes"
    )
    how.add_argument(
        "--single_share",
        type=float,
        help="of those with 2: one leaf from elsewhere, no more; by --objective if left out",
    )
    how.add_argument(
        "--inner_shares",
        type=float,
        nargs=4,
        help="samples whose inner codes are the base's, one fresh code, a fresh code each, the leaves'; by --objective"
        " if left out",
    )
    how.add_argument("--twin_share", type=float, default=SHARES.twin, help="mixes that come with a near twin")
    how.add_argument("--static_steps", type=int, default=100, help="first steps, in which no MLP learns")
    how.add_argument("--gate_learning_rate", type=float, default=0.1, help="of the constant part of the gates")
    how.add_argument("--ema_decay", type=float, default=0.995)
    how.add_argument(
        "--validation_pairs",
        type=int,
        help="for the ruler's figures, 0 for none; 32 if left out, none with --max_train_steps 0",
    )
    how.add_argument("--judges", help="folder of the ruler's judges; the embedded ones where they fit if left out")
    if not full:
        for action in p._actions:
            if action.dest not in SHORT:
                action.help = argparse.SUPPRESS
        p.epilog = "These are the flags that users turn. The others, with their defaults: --help-all"
    return p


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """The flags of the command line, over those of --config, over what --objective and --gates stand for."""
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = build_parser()
    config = config_of(argv)
    args = parser.parse_args([*read_config(Path(config), parser), *argv] if config else argv)
    size = TRAINED if args.max_train_steps else MEASURED
    for preset in (size, OBJECTIVES[args.objective], GATES[args.gates]):
        for name, value in preset.items():
            if getattr(args, name) is None:
                setattr(args, name, value)
    return args


def config_of(argv: Sequence[str]) -> str | None:
    """The last value of --config, which has to be known before the rest is parsed."""
    found = None
    for i, word in enumerate(argv):
        if word == "--config":
            found = argv[i + 1] if i + 1 < len(argv) else None
        elif word.startswith("--config="):
            found = word.split("=", 1)[1]
    return found


def read_config(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a JSON file as on a command line: numbers, texts, lists, true and false. Names that begin with #
    are notes. ValueError for a flag that does not exist, or for another value.
    """
    known = {flag.removeprefix("--") for flag in parser._option_string_actions} - {"help", "-h", "config", "help-all"}
    try:
        given = read_json(path, "the file")
    except (OSError, ValueError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"--config {path} must hold a JSON object of flags, not {type(given).__name__}")
    words = []
    for name, value in given.items():
        if name.startswith("#"):
            continue
        if name not in known:
            raise ValueError(f"--config {path}: there is no flag --{name[:80]}; the flags are listed by --help-all")
        values = value if isinstance(value, list) else [value]
        if any(not isinstance(x, (str, int, float)) for x in values):
            raise ValueError(
                f"--config {path}: {name} is {value!r}, not a number, a text, a list of these, true or false"
            )
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, values)]
    return words


def shares_of(args: argparse.Namespace) -> Shares:
    """What the flags say of samples; ValueError for shares that are none."""
    return Shares(
        codes=tuple(args.code_shares), single=args.single_share, inner=tuple(args.inner_shares), twin=args.twin_share
    )


def check_objective(args: argparse.Namespace) -> None:
    """ValueError for flags that make no sense, before anything is computed."""
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
    if args.discriminator_learning_rate and not args.realism_weight:
        raise ValueError("--discriminator_learning_rate fine-tunes the realism term: give --realism_weight too")
    if args.outside_power < 1:
        raise ValueError(f"--outside_power must be at least 1, got {args.outside_power}")
    if args.temperature <= 0:
        raise ValueError(f"--temperature must be positive, got {args.temperature}")
    if args.start_pictures < 2:
        raise ValueError(f"--start_pictures must be at least 2, got {args.start_pictures}")
    if args.max_train_steps == 0 and args.resume_from_checkpoint:
        raise ValueError("--max_train_steps 0 trains nothing: leave --resume_from_checkpoint out")
    if not 0 <= args.full_resolution_steps <= max(0, args.max_train_steps):
        raise ValueError(
            f"--full_resolution_steps is from 0 to --max_train_steps ({args.max_train_steps}), got"
            f" {args.full_resolution_steps}"
        )
