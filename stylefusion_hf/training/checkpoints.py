"""Checkpoints that are whole or absent; `resuming.py` finds and loads them.

A checkpoint is written under another name, flushed to the disk, given a manifest (sizes and digests of its files, the
flags of its run) and only then renamed. Whatever kills the run in between leaves the older checkpoint in place, and a
folder whose files do not agree with its manifest (a power cut, a copy that broke off) is told from a whole one.

In a run of several processes the main process alone reads and renames; what it finds is sent to the others, so that
all load the same checkpoint or stop with the same error.
"""

import argparse
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError

MANIFEST = "manifest.json"
NO_MANIFEST = f"it has no {MANIFEST}"
SAVING_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch says RuntimeError where a disk is full

# --- Agreement between processes -------------------------------------------------------------------------------------


def on_main(action: Callable[[], Any]) -> Any:
    """What `action` returns in the main process, in every process; its ValueError or OSError too."""
    state, box = PartialState(), [None, None]
    if state.is_main_process:
        try:
            box[0] = action()
        except (ValueError, OSError) as error:
            box[1] = error  # type: ignore[call-overload]
    broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def everywhere(action: Callable[[], Any], errors: tuple[type[Exception], ...] = SAVING_ERRORS) -> str | None:
    """Run `action` in every process and wait for all: what went wrong in the first that failed, or None."""
    problem = None
    try:
        action()
    except errors as error:
        problem = one_line(error)
    return next((said for said in gather_object([problem]) if said is not None), None)


def one_line(error: BaseException, most: int = 300) -> str:
    """An error's text in one line, cut where it is very long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most] + " ..."


# --- What was written ------------------------------------------------------------------------------------------------


def list_checkpoints(output_dir: str | Path) -> list[Path]:
    """Checkpoints under their final name, oldest first; `damage` tells whether one is whole."""
    found = [
        p for p in Path(output_dir).glob("checkpoint-*") if p.name.removeprefix("checkpoint-").isdigit() and p.is_dir()
    ]
    return sorted(found, key=step_of)


def step_of(path: Path) -> int:
    return int(path.name.removeprefix("checkpoint-"))


def flags_of(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as JSON gives them back, without the token."""
    return json.loads(json.dumps({k: v for k, v in vars(args).items() if k != "hub_token"}))


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint; ValueError that says what is wrong with it."""
    try:
        found = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(NO_MANIFEST) from None
    except (OSError, ValueError) as error:
        raise ValueError(f"its {MANIFEST} cannot be read: {one_line(error)}") from None
    if not isinstance(found, dict) or not isinstance(found.get("files"), dict):
        raise ValueError(f"its {MANIFEST} is not one of a checkpoint")
    return found


def damage(folder: Path) -> str | None:
    """What a checkpoint lacks, in words; None where its files are those that its manifest lists."""
    try:
        files = read_manifest(folder)["files"]
        for name, (size, digest) in files.items():
            file = folder / name
            if not file.is_file():
                return f"{name} is missing"
            if file.stat().st_size != size:
                return f"{name} has {file.stat().st_size} bytes, not {size}"
            if digest_of(file) != digest:
                return f"the content of {name} has changed"
    except (ValueError, OSError) as error:
        return one_line(error)
    return None


def digest_of(file: Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def last_good(output_dir: str | Path) -> str:
    """Where to go on after an error, as the end of its message."""
    for path in list_checkpoints(output_dir)[::-1]:
        if damage(path) is None:
            return f"the last good checkpoint is {path}: continue from it with --resume_from_checkpoint latest"
    return f"{output_dir} has no good checkpoint yet: start again"


# --- Writing ---------------------------------------------------------------------------------------------------------


def write_text(path: Path, text: str) -> None:
    """Atomic: the file is either the old one or the whole new one."""
    part = path.with_name(f".partial-{path.name}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """What fails in the body is one OSError that names the file or folder `path` of an output folder."""
    try:
        yield
    except SAVING_ERRORS as error:
        raise OSError(f"{path} could not be written ({one_line(error)}); {last_good(path.parent)}") from error


def flush(path: Path) -> None:
    """To the disk, a file or a folder's list of names: what a power cut would take away."""
    if path.is_dir() and os.name == "nt":  # which opens no folders
        return
    fd = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(fd)
    except OSError:  # some file systems refuse for folders
        if not path.is_dir():
            raise
    finally:
        os.close(fd)


def remove(path: Path) -> None:
    """Renamed first, so that a removal that is cut short leaves no checkpoint with files missing."""
    gone = path.with_name(f".partial-removed-{path.name}")
    shutil.rmtree(gone, ignore_errors=True)
    os.replace(path, gone)
    shutil.rmtree(gone)


def save_checkpoint(accelerator: Accelerator, args: argparse.Namespace, step: int) -> Path:
    """Write `checkpoint-{step}` under another name, then rename it: a checkpoint is whole or not there.

    Older ones than `--checkpoints_total_limit` allows go last, so that at no moment there is none.

    Raises:
        FloatingPointError: weights that are not finite, of which nothing is written.
        OSError: it cannot be written (a full disk); what was there before is untouched.
    """
    output = Path(args.output_dir)
    path, partial = output / f"checkpoint-{step}", output / f".partial-checkpoint-{step}"
    check_finite(accelerator, output, step)
    if accelerator.is_main_process:
        for old in [*output.glob(".partial-checkpoint-*"), *output.glob(".partial-removed-*")]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    problem = everywhere(lambda: accelerator.save_state(str(partial)))
    if problem is None:
        problem = everywhere(lambda: finish(args, partial, path, step) if accelerator.is_main_process else None)
    if problem is not None:
        if accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)  # gives the room back
        accelerator.wait_for_everyone()
        room = shutil.disk_usage(output).free / 2**20
        raise OSError(
            f"{path} could not be written ({problem}): make room ({room:,.0f} MiB are free without it);"
            f" {last_good(output)}"
        )
    return path


def finish(args: argparse.Namespace, partial: Path, path: Path, step: int) -> None:
    """Flush what all processes wrote, add the manifest, rename, and let go of old checkpoints."""
    files = {}
    for file in sorted(p for p in partial.rglob("*") if p.is_file()):
        flush(file)
        files[file.relative_to(partial).as_posix()] = [file.stat().st_size, digest_of(file)]
    about = {"version": 1, "step": step, "processes": PartialState().num_processes, "flags": flags_of(args)}
    write_text(partial / MANIFEST, json.dumps({**about, "files": files}, indent=1) + "\n")
    flush(partial / MANIFEST)
    for folder in {partial, *(p for p in partial.rglob("*") if p.is_dir())}:
        flush(folder)
    if path.exists():  # this step was done before, by a run that went on from an older checkpoint
        remove(path)
    os.replace(partial, path)
    flush(path.parent)
    others = [c for c in list_checkpoints(path.parent) if c != path]
    if args.checkpoints_total_limit:
        for old in others[: max(0, len(others) + 1 - args.checkpoints_total_limit)]:
            remove(old)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """All floating-point tensors of nested dicts and lists, of sharded ones the part that is here."""
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
    """FloatingPointError where anything that a checkpoint keeps is not finite, in any process."""
    parts = {
        "weights": accelerator._models,
        "optimiser": accelerator._optimizers,
        "state": accelerator._custom_objects,
    }

    def check() -> None:
        for name, objects in parts.items():
            finite = [x.isfinite().all() for x in tensors_in([thing.state_dict() for thing in objects])]
            if not all(flag.item() for flag in finite):
                raise RuntimeError(name)

    bad = everywhere(check)
    if bad is not None:
        raise FloatingPointError(
            f"the {bad} has numbers that are not finite at step {step}, nothing was written; {last_good(output)} and a"
            " lower --learning_rate"
        )
