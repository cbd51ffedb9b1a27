"""What trainers share around the loop: start and finish, averaged weights, schedules, saving, uploading."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, ProjectConfiguration
from diffusers.optimization import SchedulerType, get_scheduler
from torch import nn

from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.processes import on_main, run_everywhere
from stylefusion_hf.models.config_checks import own_config
from stylefusion_hf.training.checkpoints import explain_write_errors, flags_of
from stylefusion_hf.training.flags import check_arguments
from stylefusion_hf.training.inputs import digests_of_inputs, forget_inputs
from stylefusion_hf.training.output_folder import ARGUMENTS, close_output, open_output
from stylefusion_hf.training.resuming import find_checkpoint

logger = logging.getLogger("stylefusion_hf")

# --- Start and finish ------------------------------------------------------------------------------------------------


def start(args: argparse.Namespace, least_steps: int = 1) -> Accelerator:
    """Prepare a run: check the flags and the checkpoint to continue from, make the output folder, start accelerate and
    the tracker. A refused run changes no file.

    Raises:
        ValueError: flags out of range, or as `resuming.find_checkpoint`.
        OSError: the output folder cannot be written, or some process does not see it.
    """
    check_arguments(args, least_steps)
    check_schedule(args)
    if args.mixed_precision == "fp16" and PartialState().device.type == "cpu":
        raise ValueError(
            "--mixed_precision fp16 does not train on a CPU (accelerate would quietly use fp32); use bf16 or no"
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        # Broadcasting buffers in place between two forward passes would break the backward pass of the first.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        project_config=ProjectConfiguration(str(output), logging_dir=str(output / args.logging_dir)),
    )
    # By default PyTorch's convolutions use TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32
    flags = flags_of(args)

    def prepare() -> None:
        forget_inputs(args)
        digests_of_inputs(args)  # of the files as they are when the run begins
        find_checkpoint(args, accelerator.num_processes)  # refuses what does not fit; `resume` loads it later
        open_output(output, flags, args.logging_dir)

    on_main(prepare)
    try:
        problem = run_everywhere(lambda: check_shared(output, flags))
        if problem is not None:
            raise OSError(problem)
        if accelerator.is_main_process and args.report_to != "none":
            scalars = {k: v for k, v in flags.items() if isinstance(v, (int, float, str, bool))}
            accelerator.init_trackers(args.tracker_project_name, config=scalars)
    except Exception:
        close_output(output, refused=True)
        raise
    accelerator.wait_for_everyone()
    return accelerator


def check_shared(output: Path, flags: dict[str, Any], patience: float = 60.0) -> None:
    """Raise an OSError unless this process sees what the main process wrote: all machines share one checkpoint."""

    def is_visible() -> bool:
        try:
            return json.loads((output / ARGUMENTS).read_text(encoding="utf-8")) == flags
        except (OSError, ValueError):
            return False

    deadline = time.monotonic() + patience  # network file systems may show new files late
    while not is_visible():
        if time.monotonic() > deadline:
            raise OSError(
                f"--output_dir {output} is not seen by process {PartialState().process_index} ({platform.node()}):"
                " it must be on a file system that all machines share"
            )
        time.sleep(0.2)


@contextlib.contextmanager
def finishing(accelerator: Accelerator, end_processes: bool = True) -> Iterator[None]:
    """Close the trackers and unlock the output folder on exit, also after an error.

    An error before the first step is over leaves the folder as it was before `start`, see `output_folder.py`.

    end_processes: also destroy the process group, after which no other run can start in this process.
    """
    refused = False
    try:
        yield
    except Exception:
        refused = True
        raise
    finally:
        try:
            if end_processes:
                accelerator.end_training()
            else:
                for tracker in accelerator.trackers:
                    tracker.finish()
        finally:
            close_output(accelerator.project_dir, refused)


@contextlib.contextmanager
def one_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Run the body in the main process, then in one process of every other machine, then in all others.

    For files that are made once, whether or not the machines share a disk.
    """
    with accelerator.main_process_first(), accelerator.local_main_process_first():
        yield


# --- Schedules and averaged weights ----------------------------------------------------------------------------------


def build_schedule(args: argparse.Namespace, optimizer: torch.optim.Optimizer) -> Any:
    """Return the learning-rate schedule that the flags ask for, counted in optimizer steps."""
    return get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )


def check_schedule(args: argparse.Namespace) -> None:
    """Raise a ValueError for a schedule that is unknown or needs arguments of its own."""
    try:
        build_schedule(args, torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate))
    except (ValueError, AttributeError) as error:
        known = [k.value for k in SchedulerType if k is not SchedulerType.PIECEWISE_CONSTANT]
        raise ValueError(f"--lr_scheduler {shown(args.lr_scheduler)}: choose one of {', '.join(known)}") from error


@torch.no_grad()
def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """Set average <- decay * average + (1 - decay) * model for parameters, in a few fused calls, and copy buffers.

    The average is complete in every process, even if the model's weights are sharded (FSDP).
    """
    targets: list[torch.Tensor] = list(average.parameters())
    complete = (p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters())
    sources = [p.detach().to(q) for p, q in zip(complete, targets, strict=True)]
    torch._foreach_lerp_(targets, sources, 1 - decay)
    for b, source in zip(average.buffers(), model.buffers(), strict=True):
        b.copy_(source)


def gathered(accelerator: Accelerator, model: nn.Module) -> Any:
    """Return the unwrapped model; under FSDP, a copy with all weights, complete in the main process.

    Every process must call it.
    """
    plain = accelerator.unwrap_model(model)
    if accelerator.distributed_type != DistributedType.FSDP:
        return plain
    state = accelerator.get_state_dict(model)
    kind: Any = next(c for c in type(plain).__mro__ if not c.__name__.startswith("FSDP"))  # the class FSDP subclassed
    copy = kind(**own_config(plain)).to(accelerator.device)
    if accelerator.is_main_process:
        copy.load_state_dict(state)
    return copy


# --- Results ---------------------------------------------------------------------------------------------------------


def save_model(model: Any, folder: Path) -> None:
    """Call `model.save_pretrained(folder)`; an OSError also says which checkpoint to continue from."""
    with explain_write_errors(folder):
        model.save_pretrained(folder)


def push_to_hub(args: argparse.Namespace, folder: Path) -> None:
    """Upload a finished model folder if `--push_to_hub` is given: a pipeline with its card, or single models."""
    if not args.push_to_hub:
        return
    from stylefusion_hf.hub.collecting import INDEX
    from stylefusion_hf.hub.publishing import publish, publish_models

    send = publish if (folder / INDEX).is_file() else publish_models
    repo = args.hub_model_id or Path(args.output_dir).resolve().name
    logger.info("uploaded: %s", send(folder, repo, token=args.hub_token))
