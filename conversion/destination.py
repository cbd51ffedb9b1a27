"""A folder that appears whole or not at all: written beside its place, then renamed into it."""

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
    """The real path to write to.

    Raises:
        ConversionError: it exists and `overwrite` is not given, is no folder, or holds what is to be read.
    """
    if not str(target).isprintable():  # safetensors opens no path that is not UTF-8
        raise ConversionError(
            f"{str(target)!r}: is no name for a folder that every program can show; give another one"
        )
    real = Path(os.path.realpath(target))
    if real.is_symlink():  # realpath follows every link but those that lead to themselves
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
                raise ConversionError(f"{target}: cannot be written, {above} is no folder that may be written to")
            break
    return real


@contextmanager
def whole_folder(target: Path, overwrite: bool, sources: Iterable[Path] = ()) -> Iterator[Path]:
    """`with whole_folder(target, ...) as work:` fills `work`, which becomes `target` if nothing is raised.

    What stood at `target` stays until the new folder is complete, and stays for good if anything fails.
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
    """A new hidden folder on the same file system; its name stays legal where `real`'s is as long as can be."""
    folder = real.parent / f".{real.name[:40]}.{secrets.token_hex(4)}{suffix}"
    folder.mkdir()  # with the umask's mode, which a folder of `tempfile` does not have
    return folder
