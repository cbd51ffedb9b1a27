"""Checkpoints that are complete or absent; `resuming.py` finds and loads them.

A checkpoint is written under a temporary name, flushed to disk, given a manifest (sizes and digests of its files, the
flags of the run, digests of the input weights) and only then renamed. A run killed in between leaves the older
checkpoint in place, and the manifest exposes a folder whose files were damaged later (a power cut, a partial copy).

In a run of several processes only the main process reads and renames. It sends its findings to the others, so that
all load the same checkpoint or stop with the same error.

A training folder may be untrusted input: its files are safetensors and JSON (`states.py`), names and sizes are checked
before anything is opened, and nothing is ever unpickled.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState

from stylefusion_hf.core.checks import short
from stylefusion_hf.core.files import flush, remove_partials, sha256_of, write_json
from stylefusion_hf.core.processes import SAVING_ERRORS, one_line, run_everywhere
from stylefusion_hf.training import states
from stylefusion_hf.training.inputs import digests_of_inputs

MANIFEST, VERSION = "manifest.json", 2
LARGEST_MANIFEST = 2**22  # bytes
NO_MANIFEST = f"it has no {MANIFEST}"
NAME = re.compile(r"checkpoint-([0-9]{1,18})")
PICKLES = (".pkl", ".bin", ".pt", ".pth", ".distcp")
OLDER = (
    "it was written by an older version, as pickles, which can run code and are never opened: finish that run with the"
    " version that started it, or begin another one from its networks with --model"
)

# --- Reading ---------------------------------------------------------------------------------------------------------


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Return all checkpoints, oldest first; `damage` tells whether one is complete."""
    found = [p for p in Path(output_dir).glob("checkpoint-*") if NAME.fullmatch(p.name) and p.is_dir()]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    """Return the number of steps done before a checkpoint."""
    return int(path.name.removeprefix("checkpoint-"))


def flags_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags as they read back from JSON, without the token."""
    return json.loads(json.dumps({k: v for k, v in vars(args).items() if k != "hub_token" and k[0] != "_"}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint. ValueError if it is missing or malformed."""
    file = folder / MANIFEST
    try:
        about = os.lstat(file)
        if not stat.S_ISREG(about.st_mode) or about.st_size > LARGEST_MANIFEST:
            raise ValueError(f"it is not a regular file of at most {LARGEST_MANIFEST >> 20} MiB")
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        pickles = any(p.suffix in PICKLES or p.is_dir() for p in folder.iterdir())
        raise ValueError(OLDER if pickles else NO_MANIFEST) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"its {MANIFEST} cannot be read: {one_line(error)}") from None
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise ValueError(f"its {MANIFEST} is not that of a checkpoint")
    if found.get("version") == 1:
        raise ValueError(OLDER)
    if found.get("version") != VERSION:
        raise ValueError(
            f"its {MANIFEST} has the version {short(found.get('version'))}, and this package reads {VERSION}"
        )
    known = {"step": int, "processes": int, "flags": dict, "inputs": dict}
    if wrong := [name for name, kind in known.items() if type(found.get(name)) is not kind]:
        raise ValueError(f"its {MANIFEST} is not that of a checkpoint: {wrong[0]} is {short(found.get(wrong[0]))}")
    for name, entry in found["files"].items():
        if not states.FILE.fullmatch(name):
            raise ValueError(f"its {MANIFEST} lists {short(name)}, which is not a file of a checkpoint")
        sound = isinstance(entry, list) and len(entry) == 2 and type(entry[0]) is int and isinstance(entry[1], str)
        if not sound:
            raise ValueError(f"its {MANIFEST} lacks the size and the sha256 of {name}")
    return found


def damage(folder: Path) -> str | None:
    """Describe the first difference between a checkpoint and its manifest; None if it is complete."""
    try:
        files = read_manifest(folder)["files"]
        for name, (size, _) in files.items():
            try:
                about = os.lstat(folder / name)
            except FileNotFoundError:
                return f"{name} is missing"
            if not stat.S_ISREG(about.st_mode):
                return f"{name} is not a regular file"
            if about.st_size != size:
                return f"{name} has {about.st_size} bytes, not {size}"
        for name, (_, digest) in files.items():
            if sha256_of(folder / name) != digest:
                return f"the content of {name} has changed"
    except (ValueError, OSError) as error:
        return one_line(error)
    return None


def describe_last_good(output_dir: str | Path) -> str:
    """Return the end of an error message: which checkpoint to continue from."""
    for path in list_checkpoints(output_dir)[::-1]:
        if damage(path) is None:
            return f"the last good checkpoint is {path}: continue from it with --resume_from_checkpoint latest"
    return f"{output_dir} has no good checkpoint yet: start again"


# --- Writing ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def explain_write_errors(path: Path) -> Iterator[None]:
    """Turn errors of writing `path`, in the output folder, into one OSError that says where to continue."""
    try:
        yield
    except SAVING_ERRORS as error:
        raise OSError(f"{path} could not be written ({one_line(error)}); {describe_last_good(path.parent)}") from error


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint. It is renamed first, so that an interrupted removal leaves no incomplete checkpoint."""
    gone = path.with_name(f".partial-removed-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
    if gone.is_symlink():
        gone.unlink()
    else:
        shutil.rmtree(gone)


def save_checkpoint(accelerator: Accelerator, args: argparse.Namespace, step: int) -> Path:
    """Write `checkpoint-{step}` under a temporary name, then rename it; every process must call it.

    Checkpoints beyond `--checkpoints_total_limit` are removed last, so that there is always one.

    Raises:
        FloatingPointError: something in it is not finite; nothing is written.
        OSError: it cannot be written (a full disk); existing checkpoints are untouched.
    """
    output = Path(args.output_dir)
    path, partial = output / f"checkpoint-{step}", output / f".partial-checkpoint-{step}"
    check_finite(accelerator, output, step)
    if accelerator.is_main_process:
        remove_partials(output)
    accelerator.wait_for_everyone()
    found = states.collect(accelerator)
    problem = run_everywhere(lambda: states.write(partial, found))
    if problem is None:
        problem = run_everywhere(lambda: complete(args, partial, path, step) if accelerator.is_main_process else None)
    if problem is not None:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)  # frees the disk space
        accelerator.wait_for_everyone()
        free = shutil.disk_usage(output).free / 2**20
        raise OSError(
            f"{path} could not be written ({problem}): make room ({free:,.0f} MiB are free without it);"
            f" {describe_last_good(output)}"
        )
    return path


def complete(args: argparse.Namespace, partial: Path, path: Path, step: int) -> None:
    """Add the manifest to the files of all processes, rename the folder, and remove old checkpoints."""
    files = {}
    for file in sorted(p for p in partial.rglob("*") if p.is_file()):
        files[file.relative_to(partial).as_posix()] = [file.stat().st_size, sha256_of(file)]
    about = {"version": VERSION, "step": step, "processes": PartialState().num_processes, "flags": flags_of(args)}
    write_json(partial / MANIFEST, {**about, "inputs": digests_of_inputs(args), "files": files})
    if path.exists():  # of an earlier run, before it was continued from an older checkpoint
        remove_checkpoint(path)
    os.replace(partial, path)
    flush(path.parent)
    others = [c for c in list_checkpoints(path.parent) if c != path]
    if args.checkpoints_total_limit:
        for old in others[: max(0, len(others) + 1 - args.checkpoints_total_limit)]:
            remove_checkpoint(old)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield the floating-point tensors in nested dicts and lists; of sharded tensors, this process's shard."""
    if isinstance(value, torch.Tensor):
        if value.is_floating_point() and value.numel():
            yield value.to_local() if hasattr(value, "to_local") else value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def check_finite(accelerator: Accelerator, output: Path, step: int) -> None:
    """Raise a FloatingPointError if anything to be saved is not finite in any process."""
    parts = {
        "weights": accelerator._models,
        "optimizer": accelerator._optimizers,
        "state": accelerator._custom_objects,
    }

    def check() -> None:
        for name, objects in parts.items():
            finite = [x.isfinite().all() for x in tensors_in([thing.state_dict() for thing in objects])]
            if not all(flag.item() for flag in finite):
                raise RuntimeError(name)

    bad = run_everywhere(check)
    if bad is not None:
        raise FloatingPointError(
            f"the {bad} has numbers that are not finite at step {step}, nothing was written;"
            f" {describe_last_good(output)}, and lower --learning_rate"
        )
