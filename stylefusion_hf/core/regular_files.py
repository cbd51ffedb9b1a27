"""Files from outside that are opened for reading: regular files only, so that nothing blocks and everything ends."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from stylefusion_hf.core.checks import shown

MODEL_FILES = (".json", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".txt", ".py")  # what loaders look for
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: str | os.PathLike[str]) -> None:
    """OSError that names the file and what it is unless `path` is a regular file; links are followed.

    FileNotFoundError and PermissionError as the system raises them.
    """
    try:
        _check_mode(path, os.stat(path).st_mode)
    except ValueError as error:  # a NUL in the name
        raise OSError(f"{shown(os.fspath(path))} is not the name of a file") from error


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file, opened for reading bytes; never blocks. OSError as from `check_regular`."""
    check_regular(path)  # before it is opened: opening a device can have effects
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)  # it may have been replaced in between
    except OSError:
        file.close()
        raise
    return file


def check_model_folder(folder: str | os.PathLike[str], *subfolders: str) -> None:
    """OSError for a pipe, device or socket where a model's files are expected: a loader would wait for it for ever.

    Args:
        folder: looked at itself; a missing one is passed over.
        subfolders: components below it, looked at as well.
    """
    for where in (Path(folder), *(Path(folder, name) for name in subfolders)):
        if not where.is_dir():
            continue
        for path in where.iterdir():
            if path.suffix.lower() in MODEL_FILES and path.exists() and not path.is_dir():
                check_regular(path)


def _check_mode(path: str | os.PathLike[str], mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        raise OSError(f"{shown(os.fspath(path), 400)} is {kind}, not a regular file: give a file, or save it to one")
