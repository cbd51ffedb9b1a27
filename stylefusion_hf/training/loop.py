"""The training loop: micro-batches, optimizer updates, reports, checkpoints.

Trainers bring models, data and losses: one `Phase` per optimizer. Most have one; a GAN has the generator's and the
discriminator's, which take turns within each step.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.training.batches import step_batches, step_generators
from stylefusion_hf.training.checkpoints import save_checkpoint
from stylefusion_hf.training.output_folder import keep_output
from stylefusion_hf.training.reports import Log
from stylefusion_hf.training.resuming import State, resume


@dataclass(frozen=True)
class MicroBatch:
    """The input of a loss.

    Attributes:
        step: counts from 0.
        draw: a random generator of its own, on the CPU.
        batch: its share of the data set's batch, on the device; empty without a data set. The phases of a step see the
            same dict, so a phase may leave tensors here for the next one.
        scale: factor of the loss, so that the gradients of a step's micro-batches average.
    """

    step: int
    draw: torch.Generator
    batch: dict[str, Tensor]
    scale: float


Loss = Callable[[nn.Module, MicroBatch], dict[str, Tensor]]
Hook = Callable[[int], None]
LogHook = Callable[[Log, int], None]


def do_nothing(*_: Any) -> None:
    """The default of every hook."""


@dataclass(frozen=True)
class Phase:
    """One optimizer's part of a step: every micro-batch adds gradients to the model, then the optimizer updates it.

    Attributes:
        model, optimizer: as `accelerator.prepare` returned them.
        schedule: of the learning rate, from `build_schedule`.
        loss: called as `loss(model, micro)`. It calls `accelerator.backward` with the loss times `micro.scale`, and
            returns the scalars to log.
        before_update: called with the step before gradients are clipped and applied, in every process.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Any
    loss: Loss
    before_update: Hook = do_nothing

    def run(
        self, accelerator: Accelerator, micro_batches: Sequence[MicroBatch], max_grad_norm: float, log: Log
    ) -> None:
        """Take one step of the optimizer and its schedule."""
        self.optimizer.zero_grad()
        for micro in micro_batches[:-1]:
            with accelerator.no_sync(self.model):
                log.add(**self.loss(self.model, micro))
        log.add(**self.loss(self.model, micro_batches[-1]))  # now processes exchange their gradients
        self.before_update(micro_batches[0].step)
        if max_grad_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), max_grad_norm)
        self.optimizer.step()
        self.schedule.step()


def fit(
    args: argparse.Namespace,
    accelerator: Accelerator,
    *phases: Phase,
    dataset: Any = None,
    state: dict[str, Any] | None = None,
    before_training: LogHook = do_nothing,
    after_update: Hook = do_nothing,
    before_report: LogHook = do_nothing,
    validate: LogHook = do_nothing,
    after_checkpoint: Hook = do_nothing,
) -> None:
    """Train to `max_train_steps`, starting from a checkpoint if the flags ask for it.

    Args:
        phases: run in this order in every step.
        dataset: yields dicts of tensors; None if samples are drawn instead.
        state: what checkpoints hold besides models, optimizers and schedules.
        before_training: called with the log and the first step, in the main process.
        after_update: called with the step after all phases, in every process; the place to average weights.
        before_report: called with the log and the number of steps done before each log entry, in every process.
        validate: called with the log and the number of steps done every `validation_steps`, in the main process.
        after_checkpoint: called with the number of steps done, in every process.
    """
    accelerator.register_for_checkpointing(State(**schedules_of(phases), **(state or {})))
    first, total, main = resume(accelerator, args), args.max_train_steps, accelerator.is_main_process
    batches = None if dataset is None else step_batches(dataset, args, accelerator, first)
    log = Log(accelerator, args)
    if main:
        before_training(log, first)
    with tqdm(total=total, initial=first, disable=not main, desc=Path(args.output_dir).name) as bar:
        for step in range(first, total):
            micro_batches = split_step(args, accelerator, step, batches)
            for phase in phases:
                phase.run(accelerator, micro_batches, args.max_grad_norm, log)
            after_update(step)
            keep_output(args.output_dir)  # until here an error is a refusal

            done = step + 1
            bar.update()
            if done % args.logging_steps == 0 or done == total:
                before_report(log, done)
                log.report(done, bar)
            if main and args.validation_steps and done % args.validation_steps == 0:
                validate(log, done)
            if done % args.checkpointing_steps == 0 or done == total:
                save_checkpoint(accelerator, args, done)
                after_checkpoint(done)


def schedules_of(phases: Sequence[Phase]) -> dict[str, Any]:
    """The learning-rate schedules, under the names that checkpoints have always had for one and for several."""
    schedules = [phase.schedule for phase in phases]
    return {"schedule": schedules[0]} if len(schedules) == 1 else {"schedules": schedules}


def split_step(
    args: argparse.Namespace, accelerator: Accelerator, step: int, batches: Iterator[dict[str, Tensor]] | None
) -> list[MicroBatch]:
    """The micro-batches of this process's step."""
    draws, n = step_generators(args, accelerator, step), args.gradient_accumulation_steps
    batch = {} if batches is None else next(batches)
    parts = {name: values.to(accelerator.device).chunk(n) for name, values in batch.items()}
    return [MicroBatch(step, draw, {k: v[i] for k, v in parts.items()}, 1 / n) for i, draw in enumerate(draws)]
