"""The training loop: micro-batches, optimizer steps, reports, checkpoints. Trainers bring models, data and loss."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from stylefusion_hf.core.progress import tqdm
from stylefusion_hf.training.common import (
    Log,
    State,
    resume,
    save_checkpoint,
    step_batches,
    step_generators,
    sync_when,
)


@dataclass(frozen=True)
class MicroBatch:
    """What the loss of a micro-batch is computed from.

    `step` counts from 0; `draw`: its own random numbers; `batch`: its share of the data set's batch, empty without a
    data set; `scale`: of its gradients, so that those of a step's micro-batches average.
    """

    step: int
    draw: torch.Generator
    batch: dict[str, Tensor]
    scale: float


Loss = Callable[[nn.Module, MicroBatch], dict[str, Tensor]]  # computes gradients; what is logged
Hook = Callable[[int], None]


def nothing(step: int) -> None:
    """A hook that does nothing."""


def fit(
    args: argparse.Namespace,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Any,
    loss: Loss,
    *,
    dataset: Any = None,
    state: dict[str, Any] | None = None,
    before_update: Hook = nothing,
    after_update: Hook = nothing,
    before_report: Callable[[Log, int], None] | None = None,
    validate: Callable[[Log, int], None] | None = None,
    after_checkpoint: Hook = nothing,
) -> int:
    """Train to `max_train_steps`, from a checkpoint where the flags ask for it. The step that it started from.

    Args:
        model, optimizer: as `accelerator.prepare` gave them.
        schedule: of the learning rate, as `build_schedule` makes it.
        loss: calls `accelerator.backward` with the loss times `micro.scale`.
        dataset: of dicts of tensors; None where samples are drawn.
        state: what checkpoints hold beside models, optimizers and the schedule.
        before_update: called with the step before gradients are clipped and applied, in every process.
        after_update: ... after that; the averaged weights' place.
        before_report: called with the log and the number of steps done, before an entry of the log; in every process.
        validate: called with the log and the number of steps done, every `validation_steps`, in the main process.
        after_checkpoint: called with the number of steps done, in every process.
    """
    accelerator.register_for_checkpointing(State(schedule=schedule, **(state or {})))
    first, total, n = resume(accelerator, args), args.max_train_steps, args.gradient_accumulation_steps
    batches: Iterator[dict[str, Tensor]] | None = None
    if dataset is not None:
        batches = step_batches(dataset, args, accelerator, first, getattr(args, "dataloader_num_workers", 0))
    log, main = Log(accelerator, args), accelerator.is_main_process
    with tqdm(total=total, initial=first, disable=not main, desc=Path(args.output_dir).name) as bar:
        for step in range(first, total):
            parts = {} if batches is None else {k: v.to(accelerator.device).chunk(n) for k, v in next(batches).items()}
            optimizer.zero_grad()
            for i, draw in enumerate(step_generators(args, accelerator, step)):
                micro = MicroBatch(step, draw, {k: v[i] for k, v in parts.items()}, 1 / n)
                with sync_when(accelerator, model, i == n - 1):
                    log.add(**loss(model, micro))
            before_update(step)
            if args.max_grad_norm:
                accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            optimizer.step()
            schedule.step()
            after_update(step)
            done = step + 1
            bar.update()
            if done % args.logging_steps == 0 or done == total:
                if before_report is not None:
                    before_report(log, done)
                log.report(done, bar)
            if validate is not None and main and args.validation_steps and done % args.validation_steps == 0:
                validate(log, done)
            if done % args.checkpointing_steps == 0 or done == total:
                save_checkpoint(accelerator, args, done)
                after_checkpoint(done)
    return first
