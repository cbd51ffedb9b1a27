"""Opening untrusted files for reading: regular files only, so that no read blocks or runs forever."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

from stylefusion_hf.core.checks import shown

MODEL_FILES = (".json", ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".txt", ".py")  # suffixes that loaders open
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def check_regular(path: str | os.PathLike[str]) -> None:
    """Raise OSError, naming the file and its kind, unless `path` is a regular file. Links are followed.

    FileNotFoundError and PermissionError are raised as the system reports them.
    """
    try:
        _check_mode(path, os.stat(path).st_mode)
    except ValueError as error:  # a NUL in the name
        raise OSError(f"{shown(os.fspath(path))} is not the name of a file") from error


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a regular file for reading bytes, without ever blocking. Raises OSError as `check_regular` does."""
    check_regular(path)  # before opening: opening a device can have side effects
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    file = os.fdopen(descriptor, "rb")
    try:
        _check_mode(path, os.fstat(descriptor).st_mode)  # again: it may have been replaced in between
    except OSError:
        file.close()
        raise
    return file


def check_model_folder(folder: str | os.PathLike[str], *subfolders: str) -> None:
    """Raise OSError for a pipe, device or socket among a model's files: a loader would wait on it forever.

    Args:
        folder: the model's folder; skipped if missing.
        subfolders: component folders below it, checked as well.
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
