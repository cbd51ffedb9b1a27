"""The output folder of a run: made and locked when the run starts, put back as it was if the run is refused."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stylefusion_hf.core.files import FolderLock, write_bytes, write_json
from stylefusion_hf.training.checkpoints import explain_write_errors

ARGUMENTS = "arguments.json"


@dataclass
class Before:
    """What a run found.

    Attributes:
        arguments: the content of arguments.json, None if there was none.
        made: the folders that the run made, outermost first.
        logs: the tracker's folder, None if it is elsewhere: other runs may write there.
        logged: the files in it.
    """

    arguments: bytes | None
    made: list[Path]
    logs: Path | None
    logged: set[Path]


# By output folder, of the runs in this process.
_locks: dict[str, FolderLock] = {}
_refusable: dict[str, Before] = {}  # of runs that have not done a step yet


def open_output(folder: Path, flags: dict[str, Any], logging_dir: str = "logs") -> None:
    """Make an output folder, lock it against other processes, and write the flags of the run there.

    OSError if another process trains into it, or it cannot be written.
    """
    place = os.path.realpath(folder)
    made = [path for path in (*reversed(folder.parents), folder) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if place not in _locks:
            _locks[place] = FolderLock(place, "training")
    except OSError:
        remove_empty(made)
        raise
    logs = Path(os.path.realpath(folder / logging_dir))
    own_logs = logs if Path(place) in logs.parents else None
    file = folder / ARGUMENTS
    old = file.read_bytes() if file.is_file() else None
    _refusable[place] = Before(old, made, own_logs, files_in(own_logs))
    try:
        with explain_write_errors(file):
            write_json(file, flags, indent=2)
    except OSError:
        close_output(folder, refused=True)
        raise


def keep_output(folder: str | Path) -> None:
    """Keep the folder whatever happens from now on: the run has something to show."""
    _refusable.pop(os.path.realpath(folder), None)


def close_output(folder: str | Path, refused: bool) -> None:
    """Unlock a folder. If the run was refused before `keep_output`, put back what it changed by starting.

    What took work (rendered pictures, regions found) stays for the corrected command.
    """
    place = os.path.realpath(folder)
    before = _refusable.pop(place, None)
    if refused and before is not None:
        file = Path(place, ARGUMENTS)
        with suppress(OSError):  # a full disk is no news here: the error that is being raised tells
            if before.arguments is None:
                file.unlink(missing_ok=True)
            else:
                write_bytes(file, before.arguments)
        for log in files_in(before.logs) - before.logged:
            log.unlink(missing_ok=True)
        if before.logs is not None:
            below = (path for path in before.logs.rglob("*") if path.is_dir())
            remove_empty([before.logs, *sorted(below)])
    if lock := _locks.pop(place, None):
        lock.release()
    if refused and before is not None:
        remove_empty(before.made)


def files_in(folder: Path | None) -> set[Path]:
    """Return all files below a folder, none for a folder that is not there."""
    return set() if folder is None else {path for path in folder.rglob("*") if not path.is_dir()}


def remove_empty(folders: list[Path]) -> None:
    """Remove those of some folders that are empty, the last one first."""
    for folder in reversed(folders):
        with suppress(OSError):
            folder.rmdir()
