"""What all trainers share: flags, draws, data, averaged weights, reports; checkpoints are in
`checkpoints.py` and `resuming.py`.

Every random draw of a micro-batch comes from a generator seeded by (seed, step, place, purpose), where places count
the micro-batches of a step over all processes. A resumed run therefore repeats nothing and skips nothing, whatever
happened to the random state in between; no two processes draw the same latents; and two processes draw what one
process with twice the --gradient_accumulation_steps draws.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, ProjectConfiguration, gather_object
from diffusers.optimization import get_scheduler
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

from stylefusion_hf.core.files import write_json
from stylefusion_hf.core.processes import on_main, run_everywhere
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.training.checkpoints import (
    flags_of,
    hold,
    last_good,
    let_go,
    list_checkpoints,
    save_checkpoint,
    writing,
)
from stylefusion_hf.training.inputs import digests_of_inputs, forget_inputs
from stylefusion_hf.training.resuming import State, find_checkpoint, resume

__all__ = ["State", "list_checkpoints", "resume", "save_checkpoint"]  # made elsewhere, imported from here by trainers
logger = logging.getLogger("stylefusion_hf")
TRACKER_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "comet_ml": "comet_ml", "mlflow": "mlflow"}


# --- Flags -----------------------------------------------------------------------------------------------------------


def common_parser(prog: str, description: str, **defaults) -> argparse.ArgumentParser:
    """The flags that users of diffusers' training scripts expect; `defaults` overrides theirs by name."""
    p = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    p.add_argument("--pretrained_model_name_or_path", "--model", help="folder or Hub id of the model to start from")
    p.add_argument("--revision", help="revision of that model on the Hub")
    p.add_argument("--variant", help="weight variant of that model, such as fp16")
    p.add_argument("--output_dir", required=True, help="where checkpoints, samples and the trained model go")
    p.add_argument("--seed", type=int, default=0, help="of weights, data order and latents")
    p.add_argument("--resolution", type=int, default=64, help="pixels, a power of two")
    p.add_argument("--train_batch_size", type=int, default=16, help="per process")
    p.add_argument("--max_train_steps", type=int, default=10_000, help="optimizer steps in all, resumed ones included")
    p.add_argument("--gradient_accumulation_steps", type=int, default=1, help="micro-batches a step")
    p.add_argument("--learning_rate", type=float, default=2e-3)
    p.add_argument("--lr_scheduler", default="constant", help="linear, cosine, constant, constant_with_warmup, ...")
    p.add_argument("--lr_warmup_steps", type=int, default=0)
    p.add_argument("--max_grad_norm", type=float, default=0.0, help="clip gradients to this norm; 0 does not clip")
    p.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default="no")
    p.add_argument(
        "--allow_tf32",
        action="store_true",
        help="TF32 products (10 bits of mantissa) on Ampere and later GPUs, instead of float32",
    )
    p.add_argument(
        "--use_ema", action=argparse.BooleanOptionalAction, default=True, help="keep and save averaged weights"
    )
    p.add_argument("--checkpointing_steps", type=int, default=1000)
    p.add_argument("--checkpoints_total_limit", type=int, default=2, help="older checkpoints are removed; 0 keeps all")
    p.add_argument("--resume_from_checkpoint", metavar="latest|checkpoint-N", help="continue from that checkpoint")
    p.add_argument("--report_to", default="none", help=f"none or one of {', '.join(TRACKER_PACKAGES)}")
    p.add_argument("--tracker_project_name", default="stylefusion")
    p.add_argument("--logging_dir", default="logs", help="below --output_dir")
    p.add_argument(
        "--logging_steps", type=int, default=50, help="steps between two entries of log.jsonl and the tracker"
    )
    p.add_argument("--validation_steps", type=int, default=500, help="steps between two sample pictures; 0 for none")
    p.add_argument("--push_to_hub", action="store_true", help="upload the trained model when done")
    p.add_argument("--hub_model_id", help="repository for --push_to_hub; the output folder's name if left out")
    p.add_argument("--hub_token", help="token for --push_to_hub; the stored login if left out")
    p.set_defaults(trainer=prog, **defaults)  # checkpoints say whose they are
    return p


def check_arguments(args: argparse.Namespace, least_steps: int = 1) -> None:
    """SystemExit-free validation: ValueError naming the flag, what was given and what it wants."""
    positive = (
        "train_batch_size",
        "gradient_accumulation_steps",
        "checkpointing_steps",
        "logging_steps",
    )
    for name in positive:
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


def start(args: argparse.Namespace, least_steps: int = 1) -> Accelerator:
    """Check the flags, and that a checkpoint to continue from fits them; make the output folder, start accelerate and
    the tracker. A run that is refused changes no file.

    Raises:
        ValueError: flags out of range, or as `resuming.find_checkpoint`.
        OSError: an output folder that cannot be written, or that not all processes see.
    """
    check_arguments(args, least_steps)
    if args.mixed_precision == "fp16" and PartialState().device.type == "cpu":
        raise ValueError(
            "--mixed_precision fp16 does not train on a CPU (accelerate would quietly use fp32); use bf16 or no"
        )
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    output = Path(args.output_dir)
    accelerator = Accelerator(
        mixed_precision=args.mixed_precision,
        log_with=None if args.report_to == "none" else args.report_to,
        # A broadcast in place between two forward passes would break the backward pass of the first.
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        project_config=ProjectConfiguration(str(output), logging_dir=str(output / args.logging_dir)),
    )
    # PyTorch's convolutions take TF32 unless told otherwise.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.allow_tf32
    flags = flags_of(args)

    def prepare() -> None:
        forget_inputs(args)
        digests_of_inputs(args)  # of the files as they are when the run begins
        find_checkpoint(args, accelerator.num_processes)  # `resume` loads it; here, what does not fit is refused
        output.mkdir(parents=True, exist_ok=True)
        hold(output)
        with writing(output / "arguments.json"):
            write_json(output / "arguments.json", flags, indent=2)

    on_main(prepare)
    problem = run_everywhere(lambda: check_shared(output, flags))
    if problem is not None:
        raise OSError(problem)
    if accelerator.is_main_process and args.report_to != "none":
        scalars = {k: v for k, v in flags.items() if isinstance(v, (int, float, str, bool))}
        accelerator.init_trackers(args.tracker_project_name, config=scalars)
    accelerator.wait_for_everyone()
    return accelerator


def check_shared(output: Path, flags: dict[str, Any], patience: float = 60.0) -> None:
    """OSError unless this process sees what the main process wrote: checkpoints are written once, for all machines."""

    def seen() -> bool:
        try:
            return json.loads((output / "arguments.json").read_text(encoding="utf-8")) == flags
        except (OSError, ValueError):
            return False

    until = time.monotonic() + patience  # network file systems may show new files late
    while not seen():
        if time.monotonic() > until:
            raise OSError(
                f"--output_dir {output} is not seen by process {PartialState().process_index} ({platform.node()}):"
                " it must be on a file system that all machines share"
            )
        time.sleep(0.2)


@contextlib.contextmanager
def one_process_first(accelerator: Accelerator) -> Iterator[None]:
    """The body runs in the main process, then in one process of every other machine, then in all others: for files
    that are made once, whether the machines share the disk or not.
    """
    with accelerator.main_process_first(), accelerator.local_main_process_first():
        yield


# --- Randomness and data ---------------------------------------------------------------------------------------------


def step_generators(args: argparse.Namespace, accelerator: Accelerator, step: int) -> list[torch.Generator]:
    """A generator for each micro-batch of this process's step."""
    n = args.gradient_accumulation_steps
    return [step_generator(args.seed, step, accelerator.process_index * n + i) for i in range(n)]


class StepSampler(Sampler):
    """Batches of indices, drawn with replacement, from the given step on; endless. `places`: of its micro-batches."""

    def __init__(self, length: int, batch_size: int, seed: int, places: range, first_step: int = 0):
        self.length, self.batch_size, self.seed, self.places, self.first_step = (
            length,
            batch_size,
            seed,
            places,
            first_step,
        )

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first_step
        while True:
            draws = [step_generator(self.seed, step, place, purpose=1) for place in self.places]
            yield [i for d in draws for i in torch.randint(self.length, (self.batch_size,), generator=d).tolist()]
            step += 1


def step_batches(dataset: Any, args: argparse.Namespace, accelerator: Accelerator, first_step: int, workers: int = 0):
    """Endless iterator over one batch a step: `train_batch_size * gradient_accumulation_steps` items."""
    n = args.gradient_accumulation_steps
    places = range(accelerator.process_index * n, (accelerator.process_index + 1) * n)
    sampler = StepSampler(len(dataset), args.train_batch_size, args.seed, places, first_step)
    return iter(DataLoader(dataset, batch_sampler=sampler, num_workers=workers))


class ArrayDataset(Dataset):
    """uint8 images (N, H, W, 3), with label maps (N, H, W) or without, held in memory."""

    def __init__(self, images: np.ndarray, labels: np.ndarray | None = None):
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        item = {"image": torch.from_numpy(self.images[i]).permute(2, 0, 1).float().div(127.5).sub(1)}
        if self.labels is not None:
            item["labels"] = torch.from_numpy(self.labels[i]).long()
        return item


def build_schedule(args: argparse.Namespace, optimizer: torch.optim.Optimizer):
    """The learning-rate schedule that the flags ask for, counted in optimizer steps."""
    return get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )


# --- Averaged weights ------------------------------------------------------------------------------------------------


@torch.no_grad()
def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, parameters in a few fused calls; buffers are copied.

    The average is whole in every process, also where the model's weights are shared out (FSDP).
    """
    targets: list[torch.Tensor] = list(average.parameters())
    whole = (p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters())
    sources = [p.detach().to(q) for p, q in zip(whole, targets, strict=True)]
    torch._foreach_lerp_(targets, sources, 1 - decay)
    for b, source in zip(average.buffers(), model.buffers(), strict=True):
        b.copy_(source)


def gathered(accelerator: Accelerator, model: nn.Module) -> Any:
    """The model as one process would have it: itself, or a copy with all weights where they are shared out (FSDP).

    Every process must call it; the copy is complete in the main process.
    """
    plain = accelerator.unwrap_model(model)
    if accelerator.distributed_type != DistributedType.FSDP:
        return plain
    state = accelerator.get_state_dict(model)
    kind: Any = next(c for c in type(plain).__mro__ if not c.__name__.startswith("FSDP"))  # which FSDP made a subclass
    copy = kind(**{k: v for k, v in plain.config.items() if not k.startswith("_")}).to(accelerator.device)
    if accelerator.is_main_process:
        copy.load_state_dict(state)
    return copy


@torch.no_grad()
def export(model: Any, folder: Path) -> None:
    """`model.save_pretrained(folder)`, each file whole or as it was; OSError where it cannot be written."""
    with writing(folder):
        model.save_pretrained(folder)


# --- Processes -------------------------------------------------------------------------------------------------------


def sync_when(accelerator: Accelerator, model: nn.Module, last: bool) -> contextlib.AbstractContextManager:
    """Exchange gradients between processes only with the last micro-batch of a step."""
    return contextlib.nullcontext() if last else accelerator.no_sync(model)


# --- Reports ---------------------------------------------------------------------------------------------------------


class Log:
    """Averages of scalars between two reports: to `log.jsonl`, to the tracker, to the progress bar."""

    def __init__(self, accelerator: Accelerator, args: argparse.Namespace):
        self.accelerator, self.path = accelerator, Path(args.output_dir) / "log.jsonl"
        self.sums: dict[str, tuple[Any, int]] = {}

    def add(self, **values: torch.Tensor | float) -> None:
        for name, value in values.items():
            value = value.detach().float() if isinstance(value, torch.Tensor) else float(value)
            total, n = self.sums.get(name, (0.0, 0))
            self.sums[name] = (total + value, n + 1)

    def note(self, step: int, values: dict[str, float]) -> None:
        """An entry of its own, of figures that are not averaged; the main process's. Undefined ones are left out."""
        values = {k: v for k, v in values.items() if np.isfinite(v)}
        if values:
            self.accelerator.log(values, step=step)
            self._append(step, {k: round(v, 6) for k, v in values.items()})

    def _append(self, step: int, values: dict[str, float | None]) -> None:
        with writing(self.path), open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps({"step": step, **values}) + "\n")

    def report(self, step: int, bar=None) -> dict[str, float]:
        """The means since the last report, of this process; every process must call it.

        FloatingPointError where any process has one that is not finite: says where the last good checkpoint is.
        """
        means = {name: float(total) / n for name, (total, n) in self.sums.items()}
        self.sums = {}
        self.accelerator.log(means, step=step)
        if self.accelerator.is_main_process:
            self._append(step, {k: round(v, 6) if np.isfinite(v) else None for k, v in means.items()})
            if bar is not None:
                bar.set_postfix({k: f"{v:.3g}" for k, v in list(means.items())[:4]})
        bad = ", ".join(k for k, v in means.items() if not np.isfinite(v))
        bad = next((names for names in gather_object([bad]) if names), "")
        if bad:
            raise FloatingPointError(
                f"{bad} is not finite at step {step}; {last_good(self.path.parent)} and a lower --learning_rate"
            )
        return means


def push_to_hub(args: argparse.Namespace, folder: Path) -> None:
    """Upload a finished model folder when `--push_to_hub` asks for it: a pipeline with its card, or models alone."""
    if not args.push_to_hub:
        return
    from stylefusion_hf.hub.collecting import INDEX
    from stylefusion_hf.hub.publishing import publish, publish_models

    send = publish if (folder / INDEX).is_file() else publish_models
    repo = args.hub_model_id or Path(args.output_dir).resolve().name
    logger.info("uploaded: %s", send(folder, repo, token=args.hub_token))


@contextlib.contextmanager
def finishing(accelerator: Accelerator):
    """Close the tracker on the way out, also after an error."""
    try:
        yield
    finally:
        let_go(accelerator.project_dir)
        accelerator.end_training()
