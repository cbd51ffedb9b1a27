"""Train the fusion nets of a region tree for a frozen StyleGAN2, without a single training image.

    accelerate launch -m stylefusion_hf.training.fusion --model FOLDER --output_dir runs/fusion --tree avatar

FOLDER holds generator/ and segmenter/ (and, for the realism term, discriminator/). Without a segmenter, `--regions
auto` finds regions in the generator; `--segmenter ID_OR_FOLDER --region_map FILE` takes one of the Hub
(docs/guides/any-generator.md). Codes are sampled and a pool of their plain pictures is described once; each step mixes
codes of the pool by the tree and compares the fused pictures with the goal of `--objective`: `composed.py` (ours, used
for the shipped nets) or `contrastive.py` (the paper's description; its training code is not public). Pictures, masks
and losses have --train_resolution pixels. `--config FILE` reads flags from JSON.
With `--max_train_steps 0` nothing is trained: the gates are measured, see `measured.py`.
"""

import argparse
import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from stylefusion_hf.core.command_line import run
from stylefusion_hf.core.files import save_image, write_text
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.evaluation.brief import brief
from stylefusion_hf.imaging.sheets import image_grid
from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
from stylefusion_hf.models.fusion.low_rank import factor_layers
from stylefusion_hf.pipelines.fuse import StyleFusionPipeline
from stylefusion_hf.training._regions import take_regions
from stylefusion_hf.training.card import keep_source, model_card
from stylefusion_hf.training.collapse import CollapseGuard
from stylefusion_hf.training.common import build_schedule, ema_update, finishing, push_to_hub, save_model, start
from stylefusion_hf.training.context import add_context, set_context
from stylefusion_hf.training.criterion import Criterion
from stylefusion_hf.training.fusion_flags import check_objective, parse_args, shares_of
from stylefusion_hf.training.fusion_setup import (
    build_criterion,
    build_fusion,
    check_initial_fusion,
    check_judges,
    find_judges,
    fit_preview,
    load_frozen,
    load_initial_fusion,
    measure_step,
    set_start_gates,
)
from stylefusion_hf.training.fusion_step import Clock, Transfers, backward, discriminator_step
from stylefusion_hf.training.loop import MicroBatch, Phase, fit
from stylefusion_hf.training.measured import measure
from stylefusion_hf.training.region_flags import check_regions
from stylefusion_hf.training.reports import Log

__all__ = ["main", "parse_args", "train"]
logger = logging.getLogger("stylefusion_hf")
FACTORED_MIXES = 256  # mixes of codes that the layers of --input_rank and --output_rank are fitted to


def train(args: argparse.Namespace) -> Path:
    """Run the training and return the output folder: a pipeline that `from_pretrained` loads."""
    check_objective(args)
    check_regions(args)
    shares_of(args)
    accelerator, started = start(args, least_steps=0), time.monotonic()
    torch.manual_seed(args.seed)
    with finishing(accelerator):
        if args.max_train_steps == 0:
            return measure(args, accelerator, started)
        training = FusionTraining(args, accelerator)
        training.fit()
        if accelerator.is_main_process:
            training.finish(time.monotonic() - started)
    return training.folder


class FusionTraining:
    """Models, data and loss of a fusion training, and what happens between its steps.

    Raises:
        ValueError: flags that do not fit the model. OSError: a model is missing.
    """

    def __init__(self, args: argparse.Namespace, accelerator: Accelerator):
        self.args, self.accelerator, self.folder = args, accelerator, Path(args.output_dir)
        self.shares, device = shares_of(args), accelerator.device

        # Models: a frozen generator and segmenter, new fusion nets and their average.
        self.generator, self.discriminator = load_frozen(args, accelerator)
        initial = load_initial_fusion(args)
        check_judges(args)
        fit_preview(args, self.generator)
        regions = take_regions(args, accelerator, self.generator)
        self.tree, self.segmenter = regions.tree, regions.segmenter
        self.fusion = build_fusion(args, self.tree, self.generator)
        # An impossible rank is refused now, not when the training is over.
        replace(self.fusion.spec, input_rank=args.input_rank, output_rank=args.output_rank)
        new_context = bool(args.context_width) and (initial is None or not initial.spec.context_width)
        if initial is not None:
            initial = add_context(initial, args.context_width) if new_context else initial
            check_initial_fusion(args, initial, self.fusion)
            self.fusion = initial
        self.fusion.to(device).train().requires_grad_(True)
        self.average = FusionHierarchy.from_config(self.fusion.config).to(device).requires_grad_(False).eval()
        self.pipe = StyleFusionPipeline(self.generator, self.average, self.segmenter)
        self.judges = find_judges(args, self.pipe, regions.judges) if accelerator.is_main_process else None

        # Data: a pool of plain pictures, whose codes are mixed. Loss: the criterion of these mixes.
        self.criterion = self.new_criterion()
        self.full_criterion: Criterion | None = None  # of the last steps, made when they begin
        if args.standardise and not args.initial_fusion:
            self.fusion.set_statistics(self.criterion.pool.codes)
        if new_context:
            set_context(self.fusion, self.criterion.pool)
        if not args.initial_fusion:
            set_start_gates(args, self.fusion, self.criterion)
        self.average.load_state_dict(self.fusion.state_dict())
        self.guard = CollapseGuard(self.criterion)

        # Optimizers: the constant part of the gates learns faster than the MLPs.
        constant, learned = parameters_of(self.fusion)
        optimizer = torch.optim.Adam(
            [{"params": learned}, {"params": constant, "lr": args.gate_learning_rate}],
            lr=args.learning_rate,
            betas=(0.9, 0.99),
        )
        self.schedule = build_schedule(args, optimizer)
        self.model, self.optimizer = accelerator.prepare(self.fusion, optimizer)
        self.judge, self.judge_optimizer = None, None
        if self.discriminator is not None and args.discriminator_learning_rate:
            adam = torch.optim.Adam(
                self.discriminator.requires_grad_(True).parameters(),
                lr=args.discriminator_learning_rate,
                betas=(0.0, 0.99),
            )
            self.judge, self.judge_optimizer = accelerator.prepare(self.discriminator, adam)
            self.discriminator.requires_grad_(False)

        # Monitoring.
        self.transfers, self.clock = Transfers(len(self.criterion.roles.names), device), Clock(device)
        self.tallies: list[torch.Tensor] = []
        self.figures: dict[str, float] = {}  # of the last step, for the model card

    def new_criterion(self, resolution: int | None = None) -> Criterion:
        """Return a criterion with its pool, at a resolution or by default --train_resolution; logs their memory."""
        found = build_criterion(
            self.args,
            self.tree,
            self.generator,
            self.segmenter,
            self.discriminator,
            resolution,
            self.accelerator.autocast,
            torch.bfloat16 if self.accelerator.mixed_precision == "bf16" else None,
        )
        measure_step(found, self.fusion, found.draw(1, step_generator(self.args.seed, 0, purpose=8), self.shares))
        if self.accelerator.is_main_process:
            logger.info(found.plan.describe())
        return found

    def criterion_at(self, step: int) -> Criterion:
        """Return the criterion of a step, which counts from 0."""
        if step < self.args.max_train_steps - self.args.full_resolution_steps:
            return self.criterion
        if self.full_criterion is None:
            self.full_criterion = self.new_criterion(self.generator.config.resolution)
        return self.full_criterion

    # --- A step ---

    def loss(self, model: torch.nn.Module, micro: MicroBatch) -> dict[str, torch.Tensor]:
        """Compute the gradients of a micro-batch; return scalars to log."""
        criterion = self.criterion_at(micro.step)
        sample = criterion.draw(self.args.train_batch_size, micro.draw, self.shares)
        losses, tally, images = backward(
            criterion, model, self.average, sample, self.transfers.mean, self.clock, self.accelerator, micro.scale
        )
        self.tallies.append(tally)
        if self.judge is not None:
            plain = criterion.pool.pictures(sample.base)
            losses["discriminator"] = discriminator_step(
                self.judge, self.judge_optimizer, plain, images, self.accelerator
            )
        return losses

    def before_update(self, step: int) -> None:
        self.transfers.update(torch.stack(self.tallies).sum(0), self.accelerator)
        self.tallies.clear()
        if step < self.args.static_steps:
            for p in parameters_of(self.fusion)[1]:
                p.grad = None

    def after_update(self, step: int) -> None:
        decay = min(self.args.ema_decay, (step + 1) / (step + 10)) if self.args.use_ema else 0.0
        ema_update(self.average, self.fusion, decay)
        self.clock.steps += 1

    # --- Between steps ---

    def before_report(self, log: Log, done: int) -> None:
        names = self.criterion.roles.names
        log.add(**{f"T {name}": float(t) for name, t in zip(names, self.transfers.mean, strict=True)})
        log.add(**self.clock.read())

    def validate(self, log: Log, done: int) -> None:
        save_sheet(self.average, self.criterion, self.folder / "samples" / f"{done:06d}.png")
        found = self.measure()
        log.note(done, found | self.guard.check(self.average.fuse, done))
        self.figures = found if done == self.args.max_train_steps else {}

    def measure(self) -> dict[str, float]:
        """Return the ruler's figures of the averaged nets."""
        return {} if self.judges is None else brief(self.pipe, self.judges, self.args.validation_pairs)

    def after_checkpoint(self, done: int) -> None:
        if self.accelerator.is_main_process:
            save_model(self.average, self.folder / "fusion")

    # --- The run ---

    def fit(self) -> None:
        fit(
            self.args,
            self.accelerator,
            Phase(self.model, self.optimizer, self.schedule, self.loss, self.before_update),
            state={"ema": self.average, "transfers": self.transfers},
            after_update=self.after_update,
            before_report=self.before_report,
            validate=self.validate,
            after_checkpoint=self.after_checkpoint,
        )

    def finish(self, seconds: float) -> None:
        """Save the pipeline and its card, and upload them if that is asked for."""
        if self.args.input_rank or self.args.output_rank:
            self.factor_layers(self.args.input_rank, self.args.output_rank)
        self.guard.check(self.average.fuse, self.args.max_train_steps)
        self.pipe.save_pretrained(self.folder)
        card = model_card(self.args, self.tree, self.figures or self.measure(), seconds, self.guard.dead)
        write_text(self.folder / "README.md", card)
        keep_source(self.args.pretrained_model_name_or_path, self.folder)
        push_to_hub(self.args, self.folder)

    @torch.no_grad()
    def factor_layers(self, input_rank: int | None, output_rank: int | None) -> None:
        """Replace the averaged nets by smaller ones, whose layers have these ranks on mixes of the pool."""
        draw = step_generator(self.args.seed, 0, purpose=10)
        parts = [self.criterion.codes(self.criterion.draw(FACTORED_MIXES, draw, self.shares)) for _ in range(2)]
        before = self.average
        smaller = factor_layers(before, parts[0], input_rank=input_rank, output_rank=output_rank)
        whole = before.fuse(parts[1])
        error = (smaller.fuse(parts[1]) - whole).square().mean() / (whole - parts[1][self.tree.root]).square().mean()
        logger.info(
            "nets of %.1f million numbers, for %.1f, change fused codes by %.1f %% of what fusing does",
            smaller.num_parameters() / 1e6,
            before.num_parameters() / 1e6,
            100 * error**0.5,
        )
        self.average, self.figures = smaller.requires_grad_(False).eval(), {}
        self.pipe.register_modules(fusion=self.average)


def parameters_of(fusion: FusionHierarchy) -> tuple[list[torch.nn.Parameter], list[torch.nn.Parameter]]:
    """Return the parameters of the gates' constant part, and those of the MLPs; FSDP replaces both."""
    parts: tuple[list, list] = ([], [])
    for name, parameter in fusion.named_parameters():
        parts[not name.endswith(("gate_bias", "gate_novelty"))].append(parameter)
    return parts


@torch.no_grad()
def save_sheet(fusion: FusionHierarchy, criterion: Criterion, path: Path, rows: int = 6) -> None:
    """Save rows of base, source, one swapped leaf per column, and the base with the source's inner codes."""
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
    save_image(image_grid(images, columns), path)


def main(argv: list[str] | None = None) -> None:
    print(f"wrote {train(parse_args(argv))}")


if __name__ == "__main__":
    raise SystemExit(run(main))
