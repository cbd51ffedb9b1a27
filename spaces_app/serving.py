"""A Space's life: its own temporary folder, and an orderly end, whether by Ctrl-C, by SIGTERM or by an error."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

PREFIX = "stylefusion-space-"
LOCK = "in-use"  # a file that a living Space holds locked


@contextmanager
def own_folder() -> Iterator[Path]:
    """A temporary folder for all files of this Space, which gradio and `tempfile` are told to use; it goes at the end.

    It lies in GRADIO_TEMP_DIR, or where temporary files go. What Spaces left there that were killed is removed too.
    """
    given = os.environ.get("GRADIO_TEMP_DIR")
    above = Path(given or tempfile.gettempdir())
    above.mkdir(parents=True, exist_ok=True)
    remove_leftovers(above)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=above))
    with (folder / LOCK).open("w") as held:
        if fcntl is not None:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        (folder / "files").mkdir()
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "files")
        before, tempfile.tempdir = tempfile.tempdir, str(folder)
        try:
            yield folder
        finally:
            tempfile.tempdir = before
            if given is None:
                os.environ.pop("GRADIO_TEMP_DIR", None)
            else:
                os.environ["GRADIO_TEMP_DIR"] = given
            shutil.rmtree(folder, ignore_errors=True)


def remove_leftovers(above: Path) -> None:
    """Remove the folders of Spaces that no longer run: nobody holds their lock."""
    if fcntl is None:
        return
    for folder in above.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / LOCK).open("r+") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # in use, or not one of ours
            continue


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as an exception does, so that what it opened is closed; a second one is not heard."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, _: Any) -> None:
        signal.signal(number, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def wait(page: Any) -> None:
    """Return when the page's server has stopped, or by Ctrl-C."""
    try:
        while page.is_running:
            time.sleep(0.1)
    except KeyboardInterrupt:
        print("Stopping the Space.", flush=True)
