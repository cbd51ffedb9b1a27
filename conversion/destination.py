"""Atomic writing of the destination folder: it is written next to its final place, then renamed."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from stylefusion_hf.conversion.inert import ConversionError
from stylefusion_hf.core.files import flush, set_modes


def check_destination(target: Path, overwrite: bool, sources: Iterable[Path] = ()) -> Path:
    """Return the real path to write to.

    Raises:
        ConversionError: it is not a folder, is not empty without `overwrite`, or contains one of the sources.
    """
    if not str(target).isprintable():  # safetensors cannot open paths that are not UTF-8
        raise ConversionError(f"{str(target)!r}: is not a printable folder name; give another one")
    real = Path(os.path.realpath(target))
    if real.is_symlink():  # realpath resolves every link except loops
        raise ConversionError(f"{target}: is a symbolic link that leads nowhere; give another name")
    if real.exists() and not real.is_dir():
        raise ConversionError(f"{target}: is a file; give the name of a folder")
    if real.is_dir() and any(real.iterdir()):
        if not overwrite:
            raise ConversionError(
                f"{target}: exists and is not empty; give another name, or --overwrite to replace it"
            )
        for source in sources:
            read = Path(os.path.realpath(source))
            if real == read or real in read.parents:
                raise ConversionError(
                    f"{target}: {'is' if real == read else 'holds'} {source}, which --overwrite would remove; give"
                    " another name"
                )
    for above in real.parents:
        if above.exists():
            if not above.is_dir() or not os.access(above, os.W_OK):
                raise ConversionError(f"{target}: cannot be written, {above} is not a writable folder")
            break
    return real


@contextmanager
def replace_folder(target: Path, overwrite: bool, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """Yield a folder to fill, which replaces `target` if the body raises nothing.

    An existing `target` is kept until the new folder is complete, and stays unchanged if anything fails.
    """
    real = check_destination(target, overwrite, sources)
    try:
        real.parent.mkdir(parents=True, exist_ok=True)
        work = _beside(real, ".part")
    except OSError as error:
        raise ConversionError(f"{target}: cannot be written ({error.strerror or error})") from None
    try:
        yield work
        set_modes(work)
        for file in work.rglob("*"):
            flush(file)
        _swap(work, real)
        flush(real.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _swap(work: Path, real: Path) -> None:
    if not real.exists():
        os.rename(work, real)
        return
    if not any(real.iterdir()):
        real.rmdir()
        os.rename(work, real)
        return
    aside = _beside(real, ".old")
    old = aside / real.name
    os.rename(real, old)
    try:
        os.rename(work, real)
    except OSError:
        os.rename(old, real)
        raise
    finally:
        if real.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _beside(real: Path, suffix: str) -> Path:
    """Create a hidden folder on the same file system, with a legal name even if `real`'s has maximal length."""
    folder = real.parent / f".{real.name[:40]}.{secrets.token_hex(4)}{suffix}"
    folder.mkdir()  # has the umask's mode, unlike folders made by `tempfile`
    return folder
