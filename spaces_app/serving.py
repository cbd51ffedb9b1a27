"""Life cycle of a Space: its own temporary folder, and a clean exit on Ctrl-C, SIGTERM or an error."""

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
LOCK = "in-use"  # a file that a running Space keeps locked


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Make gradio and `tempfile` use a temporary folder of this Space, which is removed at the end.

    The folder is created in GRADIO_TEMP_DIR, or in the system's temporary folder. Folders that killed Spaces left
    there are removed too.
    """
    given = os.environ.get("GRADIO_TEMP_DIR")
    above = Path(given or tempfile.gettempdir())
    above.mkdir(parents=True, exist_ok=True)
    remove_leftovers(above)
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=above))
    with (folder / LOCK).open("wb") as held:
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
    """Remove the folders of Spaces that no longer run, whose lock is therefore free."""
    if fcntl is None:
        return
    for folder in above.glob(f"{PREFIX}*"):
        try:
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / LOCK).open("r+b") as held:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # still in use, or not a folder of a Space
            continue


@contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into SystemExit within the block, so that resources are closed; a second SIGTERM is ignored."""
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


def wait_until_stopped(page: Any) -> None:
    """Return when the page's server has stopped, or on Ctrl-C."""
    try:
        while page.is_running:
            time.sleep(0.1)
    except KeyboardInterrupt:
        print("Stopping the Space.", flush=True)
