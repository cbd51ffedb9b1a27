"""Train the fusion nets of a region tree for a frozen StyleGAN2, without a single training image.

    accelerate launch -m stylefusion_hf.training.fusion --model FOLDER --output_dir runs/fusion --tree avatar

FOLDER holds generator/ and segmenter/ (and, for the realism term, discriminator/). Without a segmenter, `--regions
auto` finds regions in the generator; `--segmenter ID_OR_FOLDER --region_map FILE` takes one of the Hub
(docs/guides/any-generator.md). Codes are sampled and a pool of their plain pictures is described once; each step mixes
codes of the pool by the tree and asks of the fused pictures what `criterion.py` says. The authors published no
training code: the objective is a reconstruction, found by measurement (docs/research/objective.md). `--config FILE`
reads flags from JSON, as the rows of that page do.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

import torch

from stylefusion_hf.core.command_line import run
from stylefusion_hf.core.files import save_image, write_text
from stylefusion_hf.core.json_files import read_json
from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.evaluation.brief import brief
from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.judges import Judges, load_judges
from stylefusion_hf.imaging.features import channel_energies
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.pipelines.fuse import StyleFusionPipeline
from stylefusion_hf.training._fusion_parts import (
    build_criterion,
    build_fusion,
    check_objective,
    load_frozen,
    start_gates,
)
from stylefusion_hf.training._fusion_step import Clock, Transfers, backward, discriminator_step
from stylefusion_hf.training._regions import add_region_arguments, check_regions, take_regions
from stylefusion_hf.training.card import model_card
from stylefusion_hf.training.common import (
    Log,
    State,
    build_schedule,
    common_parser,
    ema_update,
    export,
    finishing,
    image_grid,
    push_to_hub,
    resume,
    save_checkpoint,
    start,
    step_generators,
    sync_when,
)
from stylefusion_hf.training.criterion import REFERENCES, TERMS, Criterion
from stylefusion_hf.training.sampling import Shares
from stylefusion_hf.training.views import FEATURES

logger = logging.getLogger("stylefusion_hf")
WEIGHTS = {"locality": 1.0, "transfer": 1.5, "regions": 0.3, "pose": 0.5, "layout": 0.05}  # of the other terms 0
SWITCHES = {
    "standardise": "show the MLPs codes in units of each channel's deviation",
    "gate_product": "let a gate depend on the sign of its channel's difference",
    "gate_novelty": "let a gate depend on which child differs from the common code",
    "rgb_indicators": "toRGB vectors have indicators of their own, instead of their convolution's",
}


def build_parser() -> argparse.ArgumentParser:
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
    p.add_argument("--config", metavar="FILE", help="JSON of flags; what the command line says goes before it")
    add_region_arguments(p)
    nets = p.add_argument_group("nets")
    nets.add_argument("--hidden_width", type=int, default=192, help="of the gating MLPs")
    nets.add_argument("--hidden_layers", type=int, default=2, help="of the gating MLPs")
    nets.add_argument(
        "--common_resolution",
        type=int,
        default=16,
        help="layers up to this many pixels are aligned to the common code",
    )
    for name, about in SWITCHES.items():
        nets.add_argument(f"--{name}", action=argparse.BooleanOptionalAction, default=True, help=about)
    what = p.add_argument_group("objective (see docs/research/objective.md)")
    for name in TERMS:
        what.add_argument(f"--{name}_weight", type=float, default=WEIGHTS.get(name, 0.0))
    what.add_argument("--features", default="maps", help=f"looks besides colour: {', '.join(FEATURES)}, or both")
    what.add_argument(
        "--reference", choices=REFERENCES, default="warped", help="whose picture a region should be like"
    )
    what.add_argument("--outside_power", type=float, default=2.0, help="of the differences outside the region, 1 or 2")
    what.add_argument("--temperature", type=float, default=0.1, help="of the contrasts")
    what.add_argument("--deficit", type=float, default=1.0, help="exponent of the weights by lacking transfer")
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
    how = p.add_argument_group("samples and schedule")
    how.add_argument(
        "--pool_size",
        type=int,
        help="plain pictures that are drawn once and mixed ever after; 3072, or what 8 GiB hold, if left out",
    )
    how.add_argument("--min_psi", type=float, default=0.5, help="codes are truncated by a random psi from this to 1")
    how.add_argument("--mixed_share", type=float, default=0.2, help="of codes: style-mixed or jittered ones")
    shares = Shares()
    how.add_argument(
        "--code_shares", type=float, nargs=4, default=shares.codes, help="samples with 1, 2, 3, one-a-leaf codes"
    )
    how.add_argument(
        "--single_share", type=float, default=shares.single, help="of those with 2: one leaf from elsewhere, no more"
    )
    how.add_argument("--twin_share", type=float, default=shares.twin, help="mixes that come with a near twin")
    how.add_argument("--static_steps", type=int, default=100, help="first steps, in which no MLP learns")
    how.add_argument("--gate_learning_rate", type=float, default=0.1, help="of the constant part of the gates")
    how.add_argument("--ema_decay", type=float, default=0.995)
    how.add_argument("--validation_pairs", type=int, default=32, help="for the ruler's figures; 0 for none")
    how.add_argument("--judges", help="folder of the ruler's judges; the embedded ones where they fit if left out")
    return p


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = build_parser()
    argv = sys.argv[1:] if argv is None else argv
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    config = first.parse_known_args(argv)[0].config
    return parser.parse_args([*read_config(Path(config), parser), *argv] if config else argv)


def read_config(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """The flags of a JSON file as on a command line: numbers, texts, lists, true and false. Names that begin with #
    are notes. ValueError for a flag that does not exist, or for something else than that.
    """
    known = {flag.removeprefix("--") for flag in parser._option_string_actions} - {"help", "-h", "config"}
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
            raise ValueError(f"--config {path}: there is no flag --{name}; the flags are listed by --help")
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


def train(args: argparse.Namespace) -> Path:
    """Run the training and return the output folder: a pipeline that `from_pretrained` loads."""
    check_objective(args)
    shares = Shares(codes=tuple(args.code_shares), single=args.single_share, twin=args.twin_share)
    check_regions(args)
    accelerator = start(args)
    torch.manual_seed(args.seed)
    g, discriminator = load_frozen(args, accelerator)
    regions = take_regions(args, accelerator, g)
    tree, segmenter = regions.tree, regions.segmenter
    fusion = build_fusion(args, tree, g).to(accelerator.device)
    ema = FusionHierarchy.from_config(fusion.config).to(accelerator.device).requires_grad_(False).eval()
    pipe = StyleFusionPipeline(g, ema, segmenter)
    judges = find_judges(args, pipe, regions.judges) if accelerator.is_main_process else None
    criterion = build_criterion(args, tree, g, segmenter, discriminator)
    pool, roles = criterion.pool, criterion.roles
    if args.standardise:
        fusion.set_statistics(pool.codes)
    probe = slice(0, min(criterion.eye.batch, len(pool)))
    energies = channel_energies(g.synthesis, pool.codes[probe], pool.labels[probe], len(roles.names), seed=args.seed)
    start_gates(fusion, energies, roles.names)
    ema.load_state_dict(fusion.state_dict())
    constant, learned = parameters_of(fusion)
    optimizer = torch.optim.Adam(
        [{"params": learned}, {"params": constant, "lr": args.gate_learning_rate}],
        lr=args.learning_rate,
        betas=(0.9, 0.99),
    )
    schedule = build_schedule(args, optimizer)
    model, optimizer = accelerator.prepare(fusion, optimizer)
    judge, judge_optimizer = None, None
    if discriminator is not None and args.discriminator_learning_rate:
        adam = torch.optim.Adam(
            discriminator.requires_grad_(True).parameters(), lr=args.discriminator_learning_rate, betas=(0.0, 0.99)
        )
        judge, judge_optimizer = accelerator.prepare(discriminator, adam)
        discriminator.requires_grad_(False)
    transfers = Transfers(len(roles.names), accelerator.device)
    accelerator.register_for_checkpointing(State(ema=ema, schedule=schedule, transfers=transfers))
    first, started = resume(accelerator, args), time.monotonic()

    def validate() -> dict[str, float]:
        return {} if judges is None else brief(pipe, judges, args.validation_pairs)

    figures: dict[str, float] = {}  # of the step at hand; the last step's go into the model card
    log, folder, clock = Log(accelerator, args), Path(args.output_dir), Clock(accelerator.device)
    with (
        finishing(accelerator),
        tqdm(total=args.max_train_steps, initial=first, disable=not accelerator.is_main_process, desc="fusion") as bar,
    ):
        for step in range(first, args.max_train_steps):
            optimizer.zero_grad()
            figures = {}
            draws, tallies = step_generators(args, accelerator, step), []
            for i, draw in enumerate(draws):
                sample = criterion.draw(args.train_batch_size, draw, shares)
                with sync_when(accelerator, model, i == len(draws) - 1):
                    losses, tally, images = backward(
                        criterion, model, ema, sample, transfers.mean, clock, accelerator, 1 / len(draws)
                    )
                tallies.append(tally)
                log.add(**losses)
                if judge is not None:
                    plain = pool.pictures(sample.base)
                    log.add(discriminator=discriminator_step(judge, judge_optimizer, plain, images, accelerator))
            transfers.update(torch.stack(tallies).sum(0), accelerator)
            if step < args.static_steps:
                for p in parameters_of(fusion)[1]:
                    p.grad = None
            if args.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            schedule.step()
            ema_update(ema, fusion, min(args.ema_decay, (step + 1) / (step + 10)) if args.use_ema else 0.0)
            done = step + 1
            clock.steps += 1
            bar.update()
            if done % args.logging_steps == 0 or done == args.max_train_steps:
                carried = {f"T {name}": float(t) for name, t in zip(roles.names, transfers.mean, strict=True)}
                log.add(**carried, **clock.read())
                log.report(done, bar)
            if args.validation_steps and done % args.validation_steps == 0 and accelerator.is_main_process:
                save_sheet(ema, criterion, folder / "samples" / f"{done:06d}.png")
                figures = validate()
                log.note(done, figures)
            if done % args.checkpointing_steps == 0 or done == args.max_train_steps:
                save_checkpoint(accelerator, args, done)
                if accelerator.is_main_process:
                    export(ema, folder / "fusion")
        if accelerator.is_main_process:
            pipe.save_pretrained(folder)
            card = model_card(args, tree, figures or validate(), time.monotonic() - started)
            write_text(folder / "README.md", card)
            push_to_hub(args, folder)
    return folder


def parameters_of(fusion: FusionHierarchy) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Those of the constant part of the gates, and those of the MLPs; FSDP puts others in their place."""
    parts: tuple[list, list] = ([], [])
    for name, parameter in fusion.named_parameters():
        parts[not name.endswith(("gate_bias", "gate_novelty"))].append(parameter)
    return parts


@torch.no_grad()
def save_sheet(fusion: FusionHierarchy, criterion: Criterion, path: Path, rows: int = 6) -> None:
    """Rows of the pool: base, source, one swapped leaf a column, and the base with all inner codes of the source."""
    tree, pool = criterion.tree, criterion.pool
    rows = min(rows, len(pool) // 2)
    base, source = pool.codes[:rows], pool.codes[rows : 2 * rows]
    nodes = [[name] for name in tree.leaves] + [list(tree.inner)]
    codes = {name: torch.cat([source if name in swapped else base for swapped in nodes]) for name in tree.nodes}
    fused = fusion.fuse(codes)
    every = torch.cat([base, source, fused]).split(criterion.eye.batch)
    images = torch.cat([criterion.eye.g.synthesis(s) for s in every])
    columns = len(images) // rows
    images = images.unflatten(0, (columns, rows)).transpose(0, 1).flatten(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_image(image_grid(images, columns), path)


def find_judges(args: argparse.Namespace, pipe: StyleFusionPipeline, found: Path | None = None) -> Judges | None:
    """The ruler's judges, which watch and never teach: those of --judges, those `found` with the regions, or the
    embedded ones; None, with a line that says why, where none fit.

    ValueError or FileNotFoundError for a folder that was named and does not do.
    """
    if not args.validation_pairs:
        return None
    try:
        judges = load_judges(args.judges or found, pipe.generator.device)
        build_subject(pipe, judges)
    except (ValueError, FileNotFoundError) as error:
        if args.judges:
            raise
        logger.info("no ruler's figures in this training: %s", error)
        return None
    return judges


def main(argv: list[str] | None = None) -> None:
    print(f"wrote {train(parse_args(argv))}")


if __name__ == "__main__":
    raise SystemExit(run(main))
