"""Atomic writing of files and folders, and locks on folders.

A file is written under a temporary name in its own folder, flushed to disk, and renamed over the old one, so that a
full disk or a crash never destroys existing data. Temporary names are unique: two writers never share one. Every file
gets the mode set by the process's umask, whatever mode the library that wrote it chose (safetensors uses 0600).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stylefusion_hf.core.checks import short

PARTIAL = ".partial-"  # prefix of temporary names
LOCK = ".writing"  # name of a folder's lock file
RECIPE_KEY = "stylefusion"  # the PNG text chunk that holds a picture's recipe

Name = str | os.PathLike[str]


# --- Files -----------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: Name, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path to write, which replaces `path` if the body raises nothing.

    A symbolic link at `path` is kept and its target replaced. A device or a pipe is written directly.

    Args:
        path: its folder must exist.
        sync: flush to disk before renaming; False for numerous files that are easy to regenerate.

    Raises:
        OSError: the file cannot be written; names `path`, not the temporary path.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "is a folder, expected the name of a file", os.fspath(path))
    if target.exists() and not target.is_file():
        yield target
        return
    part = _beside(target)
    try:
        mode = _touch(part)
        yield part
        os.chmod(part, mode)  # the writing library may have replaced the file
        if sync:
            flush(part)
        os.replace(part, target)
        if sync:
            flush(target.parent)
    except OSError as error:
        if error.filename in (None, os.fspath(part)):  # otherwise it is about another file
            raise error_about(error, path) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Name, content: bytes, sync: bool = True) -> None:
    """Write a file atomically; see `atomic_path`."""
    with atomic_path(path, sync) as part, part.open("wb") as file:
        file.write(content)


def write_text(path: Name, text: str, sync: bool = True) -> None:
    """Write text as UTF-8 atomically, without translating line endings."""
    write_bytes(path, text.encode("utf-8"), sync)


def write_json(path: Name, value: Any, indent: int | None = 1, sync: bool = True, **options: Any) -> None:
    """Write a value as JSON atomically; `options` are those of `json.dumps`."""
    write_text(path, json.dumps(value, indent=indent, **options) + "\n", sync)


def save_image(image: Any, path: Name, format: str = "PNG", sync: bool = True, **options: Any) -> None:
    """Write a PIL image atomically; `options` are those of `Image.save`."""
    with atomic_path(path, sync) as part:
        image.save(part, format=format, **options)


def error_about(error: OSError, path: Name) -> OSError:
    """Return the same error with `path` as its file name."""
    if error.errno is None:
        return OSError(f"{os.fspath(path)} could not be written: {error}")
    return OSError(error.errno, error.strerror or "could not be written", os.fspath(path))


def sha256_of(path: Name) -> str:
    """Return the hex digest of a file's content, which is read in parts."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- Folders ---------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_folder(folder: Name, tidy: Callable[[Path, set[str]], None] | None = None) -> Iterator[Path]:
    """Yield an empty folder to fill; its files are moved into `folder` if the body raises nothing.

    Other files of `folder` are kept. Files are renamed one by one after all are written, so a full disk changes
    nothing.

    Args:
        folder: created with its parents if needed.
        tidy: called with each folder that received files and the names of these files, to remove obsolete ones.

    Raises:
        ValueError: an empty name, which would stand for the working directory, or one that no system has.
        OSError: the folder cannot be written; names `folder`.
    """
    name = os.fspath(folder)
    if not name or "\0" in name:
        raise ValueError(f"expected the name of a folder, got {short(name)}")
    target = Path(os.path.realpath(folder))
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, "is a file, expected the name of a folder", os.fspath(folder))
    work = _beside(target)
    try:
        work.parent.mkdir(parents=True, exist_ok=True)
        work.mkdir()
        yield work
        set_modes(work)
        placed: dict[Path, set[str]] = {}
        for file in sorted(p for p in work.rglob("*") if not p.is_dir()):
            flush(file)
            place = target / file.relative_to(work)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
            placed.setdefault(place.parent, set()).add(place.name)
        target.mkdir(exist_ok=True)  # in case there were no files
        for where, names in placed.items():
            if tidy is not None:
                tidy(where, names)
            flush(where)
    except OSError as error:
        named = error.filename
        if named is None or (isinstance(named, (str, os.PathLike)) and os.fspath(named).startswith(os.fspath(work))):
            raise error_about(error, folder) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def set_modes(folder: Path) -> None:
    """Give every file below a folder the mode set by the umask."""
    probe = folder / f"{PARTIAL}{secrets.token_hex(4)}"
    try:
        mode = _touch(probe)
    finally:
        probe.unlink(missing_ok=True)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            os.chmod(file, mode)


def remove_partials(folder: Name) -> None:
    """Remove what killed writers left in a folder and its direct subfolders. The caller must hold its lock."""
    for pattern in (f"{PARTIAL}*", f"*/{PARTIAL}*"):
        for path in Path(folder).glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Flush a file, or a folder's list of names, to disk, so that it survives a power failure."""
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    fd = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(fd)
    except OSError:  # some file systems cannot flush folders
        if not path.is_dir():
            raise
    finally:
        os.close(fd)


def _beside(target: Path) -> Path:
    """Return an unused path in the same folder with the same suffix, short enough even if `target`'s name is long."""
    stem, suffix = target.name[: -len(target.suffix) or None][:30], target.suffix[:20]
    return target.with_name(f"{PARTIAL}{secrets.token_hex(4)}-{stem}{suffix}")


def _touch(path: Path) -> int:
    """Create an empty file and return its mode. Creating one is how to learn the umask without changing it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


# --- One writer per folder -------------------------------------------------------------------------------------------


class FolderLock:
    """A lock on a folder against other processes until `release()`. The system releases it if this process dies.

    Raises:
        OSError: another process holds the folder.
    """

    def __init__(self, folder: Name, what: str = "process"):
        self.path = Path(folder, LOCK)
        while True:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _lock(self.fd):
                    raise OSError(
                        f"{folder} is being written by another {what}: wait until it ends, or name another folder"
                    )
                if _is_same_file(self.fd, self.path):  # otherwise the previous holder just removed it: try again
                    return
            except BaseException:
                os.close(self.fd)
                raise
            os.close(self.fd)

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self.fd < 0:
            return
        with suppress(OSError):
            if os.name == "nt":  # Windows cannot remove an open file
                os.close(self.fd)
                self.fd = -1
            if self.fd < 0 or _is_same_file(self.fd, self.path):
                self.path.unlink()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextmanager
def locked(folder: Name, what: str = "process") -> Iterator[None]:
    """Hold a folder's lock during the body; see `FolderLock`."""
    lock = FolderLock(folder, what)
    try:
        yield
    finally:
        lock.release()


def _lock(fd: int) -> bool:
    """Try to lock a file and return whether it worked; always True on a file system without locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        import msvcrt

        try:
            msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError:
            return False
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def _is_same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
