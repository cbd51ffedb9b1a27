"""Train the fusion nets of a region tree for a frozen StyleGAN2, without a single training image.

    accelerate launch -m stylefusion_hf.training.fusion --model FOLDER --output_dir runs/fusion --tree avatar

FOLDER holds generator/ and segmenter/ (and, for the realism term, discriminator/). Without a segmenter, `--regions
auto` finds regions in the generator; `--segmenter ID_OR_FOLDER --region_map FILE` takes one of the Hub
(docs/guides/any-generator.md). Codes are sampled and a pool of their plain pictures is described once; each step mixes
codes of the pool by the tree and asks of the fused pictures what `--objective` says: `composed.py` (ours, which ships)
or `contrastive.py` (the paper's description; its training code is not public). Pictures, masks and losses are of
--train_resolution pixels. `--config FILE` reads flags from JSON.
"""

import argparse
import logging
import sys
import time
from pathlib import Path

import torch

from stylefusion_hf.evaluation.brief import brief
from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.judges import Judges, load_judges
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.pipelines.fuse import StyleFusionPipeline
from stylefusion_hf.training._regions import check_regions, take_regions
from stylefusion_hf.training.card import model_card
from stylefusion_hf.training.collapse import CollapseGuard
from stylefusion_hf.training.common import (
    Log,
    build_schedule,
    ema_update,
    export,
    finishing,
    image_grid,
    push_to_hub,
    start,
    step_generator,
)
from stylefusion_hf.training.criterion import Criterion
from stylefusion_hf.training.fusion_flags import check_objective, parse_args, shares_of
from stylefusion_hf.training.fusion_setup import (
    build_criterion,
    build_fusion,
    fit_preview,
    load_frozen,
    measure_step,
    set_start_gates,
)
from stylefusion_hf.training.fusion_step import Clock, Transfers, backward, discriminator_step
from stylefusion_hf.training.loop import MicroBatch, fit

__all__ = ["main", "parse_args", "train"]
logger = logging.getLogger("stylefusion_hf")


def train(args: argparse.Namespace) -> Path:
    """Run the training and return the output folder: a pipeline that `from_pretrained` loads."""
    check_objective(args)
    shares = shares_of(args)
    check_regions(args)
    accelerator, started = start(args), time.monotonic()
    torch.manual_seed(args.seed)

    # Models: a frozen generator and segmenter, new fusion nets and their average.
    g, discriminator = load_frozen(args, accelerator)
    fit_preview(args, g)
    regions = take_regions(args, accelerator, g)
    tree, segmenter = regions.tree, regions.segmenter
    fusion = build_fusion(args, tree, g).to(accelerator.device)
    ema = FusionHierarchy.from_config(fusion.config).to(accelerator.device).requires_grad_(False).eval()
    pipe = StyleFusionPipeline(g, ema, segmenter)
    judges = find_judges(args, pipe, regions.judges) if accelerator.is_main_process else None

    # Data: a pool of plain pictures, whose codes are mixed. Loss: the criterion's.
    def new_criterion(resolution: int | None = None) -> Criterion:
        made = build_criterion(args, tree, g, segmenter, discriminator, resolution, accelerator.autocast)
        measure_step(made, fusion, made.draw(1, step_generator(args.seed, 0, purpose=8), shares))
        if accelerator.is_main_process:
            logger.info(made.plan.describe())
        return made

    criterion = new_criterion()
    if args.standardise:
        fusion.set_statistics(criterion.pool.codes)
    set_start_gates(args, fusion, criterion)
    ema.load_state_dict(fusion.state_dict())
    guard = CollapseGuard(criterion)
    full: list[Criterion] = []  # of the last steps, made when they begin

    def criterion_at(step: int) -> Criterion:
        if step < args.max_train_steps - args.full_resolution_steps:
            return criterion
        if not full:
            full.append(new_criterion(g.config.resolution))
        return full[0]

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
    transfers = Transfers(len(criterion.roles.names), accelerator.device)
    clock, folder, tallies = Clock(accelerator.device), Path(args.output_dir), []
    figures: dict[str, float] = {}  # of the last step, for the model card

    def loss(model: torch.nn.Module, micro: MicroBatch) -> dict[str, torch.Tensor]:
        asks = criterion_at(micro.step)
        sample = asks.draw(args.train_batch_size, micro.draw, shares)
        losses, tally, images = backward(asks, model, ema, sample, transfers.mean, clock, accelerator, micro.scale)
        tallies.append(tally)
        if judge is not None:
            plain = asks.pool.pictures(sample.base)
            losses["discriminator"] = discriminator_step(judge, judge_optimizer, plain, images, accelerator)
        return losses

    def before_update(step: int) -> None:
        transfers.update(torch.stack(tallies).sum(0), accelerator)
        tallies.clear()
        if step < args.static_steps:
            for p in parameters_of(fusion)[1]:
                p.grad = None

    def after_update(step: int) -> None:
        ema_update(ema, fusion, min(args.ema_decay, (step + 1) / (step + 10)) if args.use_ema else 0.0)
        clock.steps += 1

    def before_report(log: Log, done: int) -> None:
        log.add(**{f"T {name}": float(t) for name, t in zip(criterion.roles.names, transfers.mean, strict=True)})
        log.add(**clock.read())

    def validate(log: Log, done: int) -> None:
        save_sheet(ema, criterion, folder / "samples" / f"{done:06d}.png")
        found = measure()
        log.note(done, found | guard.check(ema.fuse, done))
        figures.clear()
        if done == args.max_train_steps:
            figures.update(found)

    def measure() -> dict[str, float]:
        return {} if judges is None else brief(pipe, judges, args.validation_pairs)

    def after_checkpoint(done: int) -> None:
        if accelerator.is_main_process:
            export(ema, folder / "fusion")

    with finishing(accelerator):
        fit(
            args,
            accelerator,
            model,
            optimizer,
            schedule,
            loss,
            state={"ema": ema, "transfers": transfers},
            before_update=before_update,
            after_update=after_update,
            before_report=before_report,
            validate=validate,
            after_checkpoint=after_checkpoint,
        )
        if accelerator.is_main_process:
            guard.check(ema.fuse, args.max_train_steps)
            pipe.save_pretrained(folder)
            card = model_card(args, tree, figures or measure(), time.monotonic() - started, guard.dead)
            (folder / "README.md").write_text(card, encoding="utf-8")
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
    """Rows of the pool: base, source, one swapped leaf per column, and the base with all inner codes of the source."""
    tree, pool, networks = criterion.tree, criterion.pool, criterion.networks
    rows = min(rows, len(pool) // 2)
    base, source = pool.codes[:rows], pool.codes[rows : 2 * rows]
    nodes = [[name] for name in tree.leaves] + [list(tree.inner)]
    codes = {name: torch.cat([source if name in swapped else base for swapped in nodes]) for name in tree.nodes}
    every = torch.cat([base, source, fusion.fuse(codes)]).split(networks.batch)
    images = torch.cat([networks.render(s)[0] for s in every])
    columns = len(images) // rows
    images = images.unflatten(0, (columns, rows)).transpose(0, 1).flatten(0, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    image_grid(images, columns).save(path)


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
    from stylefusion_hf.cli import main as command_line  # which turns bad input into one line

    raise SystemExit(command_line(["train", "fusion", *sys.argv[1:]]))
