"""What all trainers share: flags, checkpoints that are whole or absent, exact resumption, trackers, EMA.

Every random draw of a step comes from a generator seeded by (seed, step, process, purpose). A resumed run therefore
repeats nothing and skips nothing, whatever happened to the random state in between, and no two processes draw the same
latents.
"""

import argparse
import contextlib
import importlib.util
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from diffusers.optimization import get_scheduler
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler

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
    p.add_argument("--max_train_steps", type=int, default=10_000, help="optimiser steps in all, resumed ones included")
    p.add_argument("--gradient_accumulation_steps", type=int, default=1, help="micro-batches a step")
    p.add_argument("--learning_rate", type=float, default=2e-3)
    p.add_argument("--lr_scheduler", default="constant", help="linear, cosine, constant, constant_with_warmup, ...")
    p.add_argument("--lr_warmup_steps", type=int, default=0)
    p.add_argument("--max_grad_norm", type=float, default=0.0, help="clip gradients to this norm; 0 does not clip")
    p.add_argument("--mixed_precision", choices=("no", "fp16", "bf16"), default="no")
    p.add_argument("--allow_tf32", action="store_true", help="TF32 matrix products on Ampere and later GPUs")
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
    p.set_defaults(**defaults)
    return p


def check_arguments(args: argparse.Namespace) -> None:
    """SystemExit-free validation: ValueError naming the flag, what was given and what it wants."""
    positive = (
        "train_batch_size",
        "max_train_steps",
        "gradient_accumulation_steps",
        "checkpointing_steps",
        "logging_steps",
    )
    for name in positive:
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(args, name)}")
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


def start(args: argparse.Namespace) -> Accelerator:
    """Check the flags, make the output folder, start accelerate and the tracker."""
    check_arguments(args)
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
    if args.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        flags = {k: v for k, v in vars(args).items() if k != "hub_token"}
        (output / "arguments.json").write_text(json.dumps(flags, indent=2) + "\n")
        if args.report_to != "none":
            scalars = {k: v for k, v in flags.items() if isinstance(v, (int, float, str, bool))}
            accelerator.init_trackers(args.tracker_project_name, config=scalars)
    accelerator.wait_for_everyone()
    return accelerator


# --- Randomness and data ---------------------------------------------------------------------------------------------


def step_generator(seed: int, step: int, rank: int = 0, purpose: int = 0) -> torch.Generator:
    """A CPU generator for one step of one process; different for every combination of the arguments."""
    entropy = np.random.SeedSequence([seed & 0xFFFFFFFF, step, rank, purpose]).generate_state(2, np.uint64)
    return torch.Generator().manual_seed(int(entropy[0] >> 1))


class StepSampler(Sampler):
    """Batches of indices, drawn with replacement, from the given step on; endless."""

    def __init__(self, length: int, batch_size: int, seed: int, rank: int, first_step: int = 0):
        self.length, self.batch_size, self.seed, self.rank, self.first_step = (
            length,
            batch_size,
            seed,
            rank,
            first_step,
        )

    def __iter__(self) -> Iterator[list[int]]:
        step = self.first_step
        while True:
            draw = step_generator(self.seed, step, self.rank, purpose=1)
            yield torch.randint(self.length, (self.batch_size,), generator=draw).tolist()
            step += 1


def step_batches(dataset: Any, args: argparse.Namespace, accelerator: Accelerator, first_step: int, workers: int = 0):
    """Endless iterator over one batch a step: `train_batch_size * gradient_accumulation_steps` items."""
    size = args.train_batch_size * args.gradient_accumulation_steps
    sampler = StepSampler(len(dataset), size, args.seed, accelerator.process_index, first_step)
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
    """The learning-rate schedule that the flags ask for, counted in optimiser steps."""
    return get_scheduler(
        args.lr_scheduler, optimizer, num_warmup_steps=args.lr_warmup_steps, num_training_steps=args.max_train_steps
    )


# --- Averaged weights ------------------------------------------------------------------------------------------------


@torch.no_grad()
def ema_update(average: nn.Module, model: nn.Module, decay: float) -> None:
    """average <- decay * average + (1 - decay) * model, parameters in a few fused calls; buffers are copied."""
    targets: list[torch.Tensor] = list(average.parameters())
    sources = [p.detach().to(q) for p, q in zip(model.parameters(), targets, strict=True)]
    torch._foreach_lerp_(targets, sources, 1 - decay)
    for b, source in zip(average.buffers(), model.buffers(), strict=True):
        b.copy_(source)


# --- Checkpoints -----------------------------------------------------------------------------------------------------


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Finished checkpoints, oldest first. One that was being written when the run died has another name."""
    found = [
        p for p in Path(output_dir).glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit() and p.is_dir()
    ]
    return sorted(found, key=lambda p: int(p.name.removeprefix("checkpoint-")))


def save_checkpoint(accelerator: Accelerator, args: argparse.Namespace, step: int) -> Path:
    """Write `checkpoint-{step}` under another name, then rename it: a checkpoint is whole or not there.

    Older ones than `--checkpoints_total_limit` allows go last, so that at no moment there is none.
    """
    output = Path(args.output_dir)
    path, partial = output / f"checkpoint-{step}", output / f".partial-checkpoint-{step}"
    if accelerator.is_main_process:
        for old in output.glob(".partial-checkpoint-*"):
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
        others = [c for c in list_checkpoints(output) if c != path]
        if args.checkpoints_total_limit:
            for old in others[: max(0, len(others) + 1 - args.checkpoints_total_limit)]:
                shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return path


def resume(accelerator: Accelerator, args: argparse.Namespace) -> int:
    """Load the checkpoint that `--resume_from_checkpoint` asks for and return its step; 0 when starting anew.

    `latest` without any checkpoint starts anew, so that one command line serves the first start and every restart.
    """
    wanted = args.resume_from_checkpoint
    if not wanted:
        if list_checkpoints(args.output_dir):
            raise ValueError(
                f"{args.output_dir} already holds checkpoints; continue with --resume_from_checkpoint latest, or"
                " choose another --output_dir"
            )
        return 0
    found = list_checkpoints(args.output_dir)
    if wanted == "latest":
        if not found:
            logger.info("no checkpoint in %s yet: starting from step 0", args.output_dir)
            return 0
        path = found[-1]
    else:
        path = Path(args.output_dir) / Path(wanted).name
        if path not in found:
            names = ", ".join(p.name for p in found) or "none"
            raise ValueError(f"--resume_from_checkpoint {wanted!r} is not in {args.output_dir}; there: {names}")
    accelerator.load_state(str(path))
    step = int(path.name.removeprefix("checkpoint-"))
    logger.info("resumed from %s", path)
    return step


class State:
    """What accelerate does not know of: averaged weights, the path-length mean, the schedules."""

    def __init__(self, **parts):
        self.parts = parts

    def state_dict(self) -> dict:
        return {
            name: [p.state_dict() for p in part] if isinstance(part, list) else part.state_dict()
            for name, part in self.parts.items()
        }

    def load_state_dict(self, state: dict) -> None:
        for name, part in self.parts.items():
            targets, sources = (part, state[name]) if isinstance(part, list) else ([part], [state[name]])
            for target, source in zip(targets, sources, strict=True):
                target.load_state_dict(source)


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
            with open(self.path, "a") as f:
                f.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in values.items()}}) + "\n")

    def report(self, step: int, bar=None) -> dict[str, float]:
        means = {name: float(total) / n for name, (total, n) in self.sums.items()}
        self.sums = {}
        self.accelerator.log(means, step=step)
        if self.accelerator.is_main_process:
            with open(self.path, "a") as f:
                f.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in means.items()}}) + "\n")
            if bar is not None:
                bar.set_postfix({k: f"{v:.3g}" for k, v in list(means.items())[:4]})
        bad = [k for k, v in means.items() if not np.isfinite(v)]
        if bad:
            raise FloatingPointError(
                f"{', '.join(bad)} is not finite at step {step}; resume from the last checkpoint with a lower"
                " --learning_rate"
            )
        return means


def image_grid(images: torch.Tensor, columns: int) -> Image.Image:
    """(N, 3, H, W) in [-1, 1] -> one picture, row by row."""
    n, c, h, w = images.shape
    rows = -(-n // columns)
    canvas = torch.ones(rows * columns, c, h, w)
    canvas[:n] = images.detach().float().cpu()
    canvas = canvas.view(rows, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    return Image.fromarray(canvas.add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).numpy())


def push_to_hub(args: argparse.Namespace, folder: Path) -> None:
    """Upload a finished model folder when `--push_to_hub` asks for it: a pipeline with its card, or models alone."""
    if not args.push_to_hub:
        return
    from stylefusion_hf.publication import INDEX
    from stylefusion_hf.publishing import publish, publish_models

    send = publish if (folder / INDEX).is_file() else publish_models
    repo = args.hub_model_id or Path(args.output_dir).resolve().name
    logger.info("uploaded: %s", send(folder, repo, token=args.hub_token))


@contextlib.contextmanager
def finishing(accelerator: Accelerator):
    """Close the tracker on the way out, also after an error."""
    try:
        yield
    finally:
        accelerator.end_training()
