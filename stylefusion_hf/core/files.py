"""Files and folders that are whole or as they were before.

A file is written under a temporary name in its own folder, flushed to the disk, and renamed over the older one, so
that a full disk or a crash never costs what was there. Temporary names are unique: two writers never share one. Every
file gets the mode that the process's umask asks for, whatever the library that wrote it chose (safetensors: 0600).
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PARTIAL = ".partial-"  # how temporary names begin
LOCK = ".writing"  # the file by which a writer holds a folder
RECIPE_KEY = "stylefusion"  # the PNG text chunk that holds a picture's recipe

Name = str | os.PathLike[str]


# --- Files -----------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_path(path: Name, sync: bool = True) -> Iterator[Path]:
    """`with atomic_path(path) as part:` write `part`, which becomes `path` if nothing is raised.

    A symbolic link at `path` stays one: what it leads to is replaced. A device or a pipe is written directly.

    Args:
        path: its folder must exist.
        sync: flush to the disk before the renaming; False for files that come by the thousand and can be made again.

    Raises:
        OSError: the file cannot be written; names `path` rather than its temporary name.
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
        os.chmod(part, mode)  # a library may have put a file of its own there
        if sync:
            flush(part)
        os.replace(part, target)
        if sync:
            flush(target.parent)
    except OSError as error:
        if error.filename in (None, os.fspath(part)):  # else it is about another file
            raise naming(error, path) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def write_bytes(path: Name, content: bytes, sync: bool = True) -> None:
    """Write a file at once, as `atomic_path` does."""
    with atomic_path(path, sync) as part, part.open("wb") as file:
        file.write(content)


def write_text(path: Name, text: str, sync: bool = True) -> None:
    """Write a text as UTF-8, as `atomic_path` does; line ends stay as they are."""
    write_bytes(path, text.encode("utf-8"), sync)


def write_json(path: Name, value: Any, indent: int | None = 1, sync: bool = True, **options: Any) -> None:
    """Write a value as JSON, as `atomic_path` does; `options` are those of `json.dumps`."""
    write_text(path, json.dumps(value, indent=indent, **options) + "\n", sync)


def save_image(image: Any, path: Name, format: str = "PNG", sync: bool = True, **options: Any) -> None:
    """Write a PIL image, as `atomic_path` does; `options` are those of `Image.save`."""
    with atomic_path(path, sync) as part:
        image.save(part, format=format, **options)


def naming(error: OSError, path: Name) -> OSError:
    """The same error, about `path`."""
    if error.errno is None:
        return OSError(f"{os.fspath(path)} could not be written: {error}")
    return OSError(error.errno, error.strerror or "could not be written", os.fspath(path))


# --- Folders ---------------------------------------------------------------------------------------------------------


@contextmanager
def atomic_folder(folder: Name, tidy: Callable[[Path, set[str]], None] | None = None) -> Iterator[Path]:
    """`with atomic_folder(folder) as work:` fill `work`; its files then go into `folder`, if nothing is raised.

    Other files of `folder` stay. Files are renamed one by one when all are written, so a full disk changes nothing.

    Args:
        folder: made with its parents if need be.
        tidy: called with every folder that got files and their names, to remove what they make obsolete.

    Raises:
        OSError: it cannot be written; names `folder`.
    """
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
        target.mkdir(exist_ok=True)  # where there was nothing to place
        for where, names in placed.items():
            if tidy is not None:
                tidy(where, names)
            flush(where)
    except OSError as error:
        named = error.filename
        if named is None or (isinstance(named, (str, os.PathLike)) and os.fspath(named).startswith(os.fspath(work))):
            raise naming(error, folder) from error
        raise
    finally:
        shutil.rmtree(work, ignore_errors=True)


def set_modes(folder: Path) -> None:
    """Give every file below a folder the mode that the umask asks for."""
    probe = folder / f"{PARTIAL}{secrets.token_hex(4)}"
    try:
        mode = _touch(probe)
    finally:
        probe.unlink(missing_ok=True)
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and stat.S_IMODE(file.stat().st_mode) != mode:
            os.chmod(file, mode)


def remove_partials(folder: Name) -> None:
    """Remove what writers that were killed left in a folder and in those right below it. For who holds the folder."""
    for pattern in (f"{PARTIAL}*", f"*/{PARTIAL}*"):
        for path in Path(folder).glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk: what a power cut would take away."""
    if path.is_dir() and os.name == "nt":  # which opens no folders
        return
    fd = os.open(path, os.O_RDONLY if path.is_dir() or os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(fd)
    except OSError:  # some file systems refuse for folders
        if not path.is_dir():
            raise
    finally:
        os.close(fd)


def _beside(target: Path) -> Path:
    """A name in the same folder that nothing has, with the same suffix, and short enough where `target`'s is long."""
    stem, suffix = target.name[: -len(target.suffix) or None][:30], target.suffix[:20]
    return target.with_name(f"{PARTIAL}{secrets.token_hex(4)}-{stem}{suffix}")


def _touch(path: Path) -> int:
    """Make an empty file that was not there, and return its mode: the system applies the umask, nobody sets it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        return stat.S_IMODE(os.fstat(fd).st_mode)
    finally:
        os.close(fd)


# --- One writer per folder -------------------------------------------------------------------------------------------


class FolderLock:
    """Holds a folder against other processes until `release()`; the system releases it if this process dies.

    Raises:
        OSError: another writer holds the folder; says so in one line.
    """

    def __init__(self, folder: Name, what: str = "process"):
        self.path = Path(folder, LOCK)
        while True:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                if not _lock(self.fd):
                    raise OSError(
                        f"{folder} is being written by another {what}: wait for its end, or name another folder"
                    )
                if _same(self.fd, self.path):  # else the holder before removed it in between
                    return
            except BaseException:
                os.close(self.fd)
                raise
            os.close(self.fd)

    def release(self) -> None:
        """Let others write; a second call does nothing."""
        if self.fd < 0:
            return
        with suppress(OSError):
            if os.name == "nt":  # where an open file cannot be removed
                os.close(self.fd)
                self.fd = -1
            if self.fd < 0 or _same(self.fd, self.path):
                self.path.unlink()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


@contextmanager
def locked(folder: Name, what: str = "process") -> Iterator[None]:
    """Hold a folder for the body: see `FolderLock`."""
    lock = FolderLock(folder, what)
    try:
        yield
    finally:
        lock.release()


def _lock(fd: int) -> bool:
    """Whether this process got the file's lock; a file system without locks gives it to everybody."""
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


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False
