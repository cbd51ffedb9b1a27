"""Uploads: which session a file belongs to, and how it is opened. No other file that a visitor names is ever read.

A session is the cookie of a browser or client (`guard.py` sets it). Gradio stores uploads by the hash of their content
in one folder for all sessions, so a path does not tell who may use the file; `Uploads` keeps track of that.
"""

from __future__ import annotations

import os
import stat
import threading
import time
from collections import OrderedDict
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from gradio.processing_utils import save_file_to_cache
from gradio.utils import get_upload_folder

MAX_FILE = 10 * 2**20  # bytes
MAX_FILES = 32  # per session; another upload deletes the oldest
MAX_SESSIONS = 5000
MAX_STORED = 2**30  # bytes of all uploads together; those of the oldest session are deleted first
MAX_PATH = 1024  # characters
STALE_SECONDS = 600  # age at which an incomplete upload is removed

NOT_YOURS = "a picture must be a file that was uploaded in this session: upload it here"


class Uploads:
    """The files of each session. Thread-safe."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()  # session -> path -> bytes
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, session: str, path: str) -> None:
        """Record that `path`, which the server wrote, belongs to this session; other sessions may own it too."""
        key = _real_path(path)
        if key is None or not os.path.isfile(key):
            return
        with self._lock:
            files = self._files.setdefault(session, OrderedDict())
            self._files.move_to_end(session)
            self._bytes += os.path.getsize(key) - files.pop(key, 0)
            files[key] = os.path.getsize(key)
            while len(files) > MAX_FILES:
                self._forget(session, next(iter(files)))
            while len(self._files) > MAX_SESSIONS or (self._bytes > MAX_STORED and len(self._files) > 1):
                oldest = next(iter(self._files))
                self._forget(oldest, next(iter(self._files[oldest])))

    def owns(self, session: str, path: str) -> bool:
        """Return whether this session uploaded the file."""
        key = _real_path(path)
        with self._lock:
            return key in self._files.get(session, ())

    def is_known(self, path: str) -> bool:
        """Return whether any session uploaded the file."""
        key = _real_path(path)
        with self._lock:
            return any(key in files for files in self._files.values())

    def check(self, session: str, path: Any) -> str:
        """Return the real path of a regular file that this session uploaded; ValueError for anything else."""
        if not isinstance(path, str) or not self.owns(session, path):
            raise ValueError(NOT_YOURS)
        place = _real_path(path) or ""
        try:
            found = os.lstat(place)
        except OSError:
            raise ValueError("this file is no longer here: upload it again") from None
        if not stat.S_ISREG(found.st_mode) or not Path(place).is_relative_to(upload_folder()):
            raise ValueError(NOT_YOURS)
        return place

    def close(self) -> None:
        """Remove every upload."""
        with self._lock:
            for session in list(self._files):
                for path in list(self._files[session]):
                    self._forget(session, path)

    def _forget(self, session: str, path: str) -> None:
        files = self._files[session]
        self._bytes -= files.pop(path)
        if not files:
            del self._files[session]
        if not any(path in others for others in self._files.values()):
            Path(path).unlink(missing_ok=True)


VISITOR: ContextVar[tuple[Uploads, str] | None] = ContextVar("visitor", default=None)  # of the current event


def own_file(payload: Any) -> str | None:
    """Return the path of an uploaded file; use as the `preprocess` of a component.

    ValueError for a file that the visitor of the current event did not upload.
    """
    visitor = VISITOR.get()
    if payload is None:
        return None
    if visitor is None:
        raise ValueError(NOT_YOURS)
    uploads, session = visitor
    return uploads.check(session, getattr(payload, "path", None))


def lend_file(path: Path) -> str:
    """Copy a file of the Space into the upload folder as an upload of the current visitor; returns its path."""
    visitor = VISITOR.get()
    if visitor is None:
        raise ValueError(NOT_YOURS)
    uploads, session = visitor
    copy = save_file_to_cache(path, upload_folder())
    uploads.add(session, copy)
    return copy


def check_files(value: Any, uploads: Uploads, session: str) -> None:
    """Raise ValueError if a request's data names a file that is not an upload of this session."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, list):
            left += item
        elif isinstance(item, dict):
            left += item.values()
            if names_file(item):
                url = item.get("url")
                if item.get("meta") != {"_type": "gradio.FileData"} or item.get("is_stream"):
                    raise ValueError(NOT_YOURS)
                if not (url is None or (isinstance(url, str) and "/file=" in url and not url.startswith("data:"))):
                    raise ValueError(NOT_YOURS)
                uploads.check(session, item.get("path"))


def names_file(item: dict[str, Any]) -> bool:
    """Return whether gradio or a component may take an object for a file: by a path, a URL, or data in a URL."""
    return isinstance(item.get("path"), str) or isinstance(item.get("url"), str) or "meta" in item


def read_file(path: str | os.PathLike[str], most: int = MAX_FILE) -> bytes:
    """Read a regular file of at most `most` bytes; does not follow links or block on pipes.

    Raises:
        ValueError: it is not a regular file, or larger. OSError: it cannot be opened.
    """
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY", "O_NOCTTY"):
        flags |= getattr(os, name, 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ValueError("this is not a file")
        data = file.read(most + 1)
    if len(data) > most:
        raise ValueError(f"this file has more than {most / 2**20:.0f} MB")
    return data


def upload_folder() -> str:
    """Return the real path of gradio's upload folder."""
    return os.path.realpath(get_upload_folder())


def remove_unfinished() -> None:
    """Remove incomplete uploads, which gradio leaves next to its folders when a connection breaks."""
    try:
        entries = list(os.scandir(upload_folder()))
    except OSError:
        return
    for entry in entries:
        try:
            old = time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE_SECONDS
            if old and entry.name.startswith("tmp") and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
        except OSError:
            continue


def _real_path(path: str) -> str | None:
    """Resolve a path; None if it is too long or invalid."""
    try:
        return os.path.realpath(path) if len(path) <= MAX_PATH else None
    except (OSError, ValueError):
        return None
