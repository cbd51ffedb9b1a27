"""Exact resumption: find the newest complete checkpoint, compare its flags and inputs with this run's, load it."""

from __future__ import annotations

import argparse
import itertools
import logging
import os
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from stylefusion_hf.core.checks import short
from stylefusion_hf.core.files import remove_partials
from stylefusion_hf.core.processes import SAVING_ERRORS, on_main, one_line
from stylefusion_hf.training import states
from stylefusion_hf.training.checkpoints import OLDER, damage, flags_of, list_checkpoints, read_manifest, step_of
from stylefusion_hf.training.inputs import digests_of_inputs

logger = logging.getLogger("stylefusion_hf")
LOADING_ERRORS = (*SAVING_ERRORS, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError)

# Flags that may differ when a run continues: places, reports, duration, and the rates, since a run that diverged needs
# a lower one. All others decide what is trained.
RATES = {
    "learning_rate",
    "gate_learning_rate",
    "discriminator_learning_rate",
    "lr_scheduler",
    "lr_warmup_steps",
    "max_grad_norm",
    "max_train_steps",
}
REPORTS = {
    "report_to",
    "tracker_project_name",
    "logging_dir",
    "logging_steps",
    "validation_steps",
    "validation_pairs",
    "validation_judges",
    "validation_samples",
    "eval_avatars",
    "eval_data_dir",
    "input_rank",  # of the nets that are saved at the end, not of those that learn
    "output_rank",
    "judges",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
}
PLACES = {"output_dir", "cache_dir", "config", "dataloader_num_workers"}
CHECKPOINTS = {"checkpointing_steps", "checkpoints_total_limit", "resume_from_checkpoint"}
JOBS = {"command", "only", "segmenter_steps", "portrait_steps", "discriminator_steps"}  # of the judges' trainer
FREE = RATES | REPORTS | PLACES | CHECKPOINTS | JOBS
# Flags that name folders or files: two spellings of the same path are equal.
PATHS = {
    "pretrained_model_name_or_path",
    "encoder",
    "grow_from",
    "feature_network",
    "train_data_dir",
    "segmenter",
    "initial_fusion",
    "region_map",
    "regions",
}
BATCH = ("train_batch_size", "gradient_accumulation_steps")  # only the images per step over all processes matter


class State:
    """The state that accelerate does not manage: averaged weights, the path-length mean, the schedules.

    Args:
        parts: objects with `state_dict` and `load_state_dict`, or lists of them.
    """

    def __init__(self, **parts: Any):
        self.parts = parts

    def schedules(self) -> list[torch.optim.lr_scheduler.LambdaLR]:
        """Return the learning-rate schedules among the parts."""
        parts = [x for part in self.parts.values() for x in (part if isinstance(part, list) else [part])]
        return [x for x in parts if isinstance(x, torch.optim.lr_scheduler.LambdaLR)]

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


# --- Finding the checkpoint ------------------------------------------------------------------------------------------


def find_checkpoint(args: argparse.Namespace, processes: int) -> tuple[Path | None, list[str]]:
    """Return the checkpoint that `--resume_from_checkpoint` asks for, or None for a fresh start, and notes to log.

    `latest` is the newest complete one. Checkpoints of older versions, which contain pickles, are never used.

    Raises:
        ValueError: the folder has checkpoints but the flag is missing; the requested checkpoint is missing or damaged,
            or all are; or it was made with other flags.
    """
    output, wanted = Path(args.output_dir), args.resume_from_checkpoint
    found = list_checkpoints(output)
    if not wanted:
        if found:
            raise ValueError(
                f"{output} already holds checkpoints; continue with --resume_from_checkpoint latest, or"
                " choose another --output_dir"
            )
        return None, []
    notes = [f"{p} is skipped: the run ended while writing it" for p in output.glob(".partial-checkpoint-*")]
    if wanted == "latest":
        if not found:
            return None, [*notes, f"no checkpoint in {output} yet: starting from step 0"]
    else:
        path = output / Path(wanted).name
        if path not in found:
            names = ", ".join(p.name for p in found) or "none"
            raise ValueError(f"--resume_from_checkpoint {wanted!r} is not in {output}, which has {names}")
        found = [path]
    problems = {}
    for path in found[::-1]:
        problems[path] = damage(path)
        if problems[path] is None:
            break
    else:
        if set(problems.values()) == {OLDER}:
            raise ValueError(f"{path} cannot be continued: {OLDER}")
        listed = "; ".join(f"{p.name}: {problem}" for p, problem in problems.items())
        raise ValueError(
            f"no checkpoint in {output} is complete ({listed}): restore one from a copy, or start over with another"
            " --output_dir"
        )
    notes += [f"{p} is skipped: {problem}" for p, problem in problems.items() if problem is not None and p != path]
    return path, notes + check_flags(path, args, processes)


def check_flags(path: Path, args: argparse.Namespace, processes: int) -> list[str]:
    """Compare the flags with those of a checkpoint: return notes on changed rates, ValueError if others changed."""
    given, about = flags_of(args), read_manifest(path)
    stored = about["flags"]
    if stored.get("trainer", given.get("trainer")) != given.get("trainer"):
        raise ValueError(
            f"{path} was made by `{shown(stored['trainer'])}`, and this is `{given.get('trainer')}`: choose another"
            " --output_dir"
        )
    names = [name for name in given if name in stored and stored[name] != given[name]]
    changed = [
        n for n in names if n not in FREE and n not in BATCH and not (n in PATHS and same_path(n, stored, given))
    ]
    images = [
        flags[BATCH[0]] * flags[BATCH[1]] * count
        for flags, count in ((stored, about["processes"]), (given, processes))
        if all(isinstance(flags.get(name), int) for name in BATCH)
    ]
    if len(set(images)) > 1:
        changed += [name for name in BATCH if name in names]
        if about["processes"] != processes:
            stored, given = stored | {"num_processes": about["processes"]}, given | {"num_processes": processes}
            changed.append("num_processes")
    if changed:
        differ = ", ".join(f"--{n} {shown(stored[n])} (now {shown(given[n])})" for n in changed)
        raise ValueError(
            f"{path} was made with {differ}: continue with the old value, or choose another --output_dir to start over"
        )
    check_inputs(path, args, about["inputs"])
    return [f"--{n} was {shown(stored[n])}, from now on it is {given[n]}" for n in names if n in RATES]


def check_inputs(path: Path, args: argparse.Namespace, stored: dict[str, Any]) -> None:
    """Raise a ValueError if an input file is not the one that the run started with."""
    given = digests_of_inputs(args)
    other = [name for name in given if name in stored and stored[name] != given[name]]
    other += sorted(given.keys() ^ stored.keys())
    if other:
        name = other[0]
        was, now = (shown(found.get(name, "none"))[:16] for found in (stored, given))
        raise ValueError(
            f"{path} was made with other weights: the sha256 of {shown(name)} was {was} and is now {now}; restore the"
            " old ones, or choose another --output_dir to start over"
        )


def shown(value: Any) -> str:
    """Return a value from a manifest as one short, printable line."""
    text = str(value) if isinstance(value, (bool, int, float, str)) else short(value)
    text = text if len(text) <= 80 else f"{text[:38]}...{text[-38:]}"
    return "".join(character if character.isprintable() else "?" for character in text)


def same_path(name: str, stored: dict, given: dict) -> bool:
    """Return whether the flag names a folder or file, and both values lead to the same one."""
    texts = (stored[name], given[name])
    sound = all(isinstance(text, str) and "\0" not in text for text in texts)
    return name in PATHS and sound and os.path.realpath(texts[0]) == os.path.realpath(texts[1])


# --- Loading it ------------------------------------------------------------------------------------------------------


def resume(accelerator: Accelerator, args: argparse.Namespace) -> int:
    """Load the checkpoint that `--resume_from_checkpoint` asks for and return its step, or 0 for a fresh start.

    `latest` without any checkpoint is a fresh start, so that the same command starts and restarts a run. Checkpoints
    later than the loaded one (damaged, or of an abandoned branch) are kept under another name.

    Raises:
        ValueError: as `find_checkpoint`, or a checkpoint that does not fit the networks.
    """
    path, notes = on_main(lambda: find_checkpoint(args, accelerator.num_processes))
    if accelerator.is_main_process:
        for note in notes:
            logger.info(note)
    if path is None:
        if accelerator.is_main_process:
            remove_partials(args.output_dir)
        return 0
    load_checkpoint(accelerator, path)
    if accelerator.is_main_process:
        for later in list_checkpoints(args.output_dir):
            if step_of(later) > step_of(path):
                names = (later.with_name(f"{later.name}.aside-{i}") for i in itertools.count(1))
                aside = next(p for p in names if not p.exists())
                os.replace(later, aside)
                logger.info("%s is kept as %s", later, aside.name)
        remove_partials(args.output_dir)  # of a run that was killed
        logger.info("resumed from %s", path)
    accelerator.wait_for_everyone()
    return step_of(path)


def load_checkpoint(accelerator: Accelerator, path: Path) -> None:
    """Restore everything from a checkpoint except the learning rates, which the flags set."""
    optimizers = accelerator._optimizers
    schedules = [s for thing in accelerator._custom_objects if isinstance(thing, State) for s in thing.schedules()]
    rates = [[group.get("initial_lr", group["lr"]) for group in o.param_groups] for o in optimizers]
    bases = [list(s.base_lrs) for s in schedules]
    try:
        states.restore(accelerator, path, read_manifest(path)["files"].keys())
    except LOADING_ERRORS as error:
        raise ValueError(
            f"{path} cannot be loaded: it is damaged, or its networks differ from those of these flags"
            f" ({one_line(error)})"
        ) from error
    for optimizer, values in zip(optimizers, rates, strict=True):
        for group, rate in zip(optimizer.param_groups, values, strict=True):
            group["initial_lr" if "initial_lr" in group else "lr"] = rate
    for schedule, base in zip(schedules, bases, strict=True):
        schedule.base_lrs = base
        schedule._last_lr = [b * f(schedule.last_epoch) for b, f in zip(base, schedule.lr_lambdas, strict=True)]
        for group, rate in zip(schedule.optimizer.param_groups, schedule._last_lr, strict=True):
            group["lr"] = rate
