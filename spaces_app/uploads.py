"""Uploads: which session a file belongs to, and how it is opened. Nothing else that a visitor names is ever read.

A session is a browser's, or a client's, cookie (`guard.py` sets it). Gradio keeps uploads by the hash of their
content, in one folder for everybody, so that a file's place does not say who may use it: that is what `Uploads` knows.
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
MAX_FILES = 32  # of one session; its oldest goes when another comes
MAX_SESSIONS = 5000
MAX_STORED = 2**30  # bytes of all uploads together; the oldest session's go first
MAX_PATH = 1024  # characters
STALE = 600  # seconds after which a file that was never completed is removed

NOT_YOURS = "a picture comes as a file that was uploaded in this session: upload it here"


class Uploads:
    """The files of each session. Safe to use from several threads."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, OrderedDict[str, int]] = OrderedDict()  # session -> path -> bytes
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, session: str, path: str) -> None:
        """`path`, which the server wrote, belongs to this session (as well)."""
        key = _key(path)
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
        """Whether this session uploaded the file."""
        key = _key(path)
        with self._lock:
            return key in self._files.get(session, ())

    def known(self, path: str) -> bool:
        """Whether it is somebody's upload."""
        key = _key(path)
        with self._lock:
            return any(key in files for files in self._files.values())

    def check(self, session: str, path: Any) -> str:
        """Where a regular file in the upload folder is that this session uploaded; ValueError for all else."""
        if not isinstance(path, str) or not self.owns(session, path):
            raise ValueError(NOT_YOURS)
        place = _key(path) or ""
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


VISITOR: ContextVar[tuple[Uploads, str] | None] = ContextVar("visitor", default=None)  # while an event is handled


def own_file(payload: Any) -> str | None:
    """A component's `preprocess`: where the file is, if the visitor whose event is handled uploaded it.

    ValueError for every other file.
    """
    visitor = VISITOR.get()
    if payload is None:
        return None
    if visitor is None:
        raise ValueError(NOT_YOURS)
    uploads, session = visitor
    return uploads.check(session, getattr(payload, "path", None))


def lend(path: Path) -> str:
    """A copy of a file of ours in the upload folder, which the visitor may use as if it were uploaded."""
    visitor = VISITOR.get()
    if visitor is None:
        raise ValueError(NOT_YOURS)
    uploads, session = visitor
    copy = save_file_to_cache(path, upload_folder())
    uploads.add(session, copy)
    return copy


def check_files(value: Any, uploads: Uploads, session: str) -> None:
    """ValueError where a request's data names a file in any other way than as this session's upload."""
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
    """Whether gradio, or a component, may take an object for a file: by a path, an address, or data in one."""
    return isinstance(item.get("path"), str) or isinstance(item.get("url"), str) or "meta" in item


def read_file(path: str | os.PathLike[str], most: int = MAX_FILE) -> bytes:
    """A file's content, if it is a regular one of at most `most` bytes: no link is followed, no pipe is waited for.

    Raises:
        ValueError: it is something else, or larger. OSError: it cannot be opened.
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
    """Where gradio keeps uploads."""
    return os.path.realpath(get_upload_folder())


def remove_unfinished() -> None:
    """Remove uploads that broke off: gradio writes beside its folders first, and keeps what came of it."""
    try:
        entries = list(os.scandir(upload_folder()))
    except OSError:
        return
    for entry in entries:
        try:
            old = time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE
            if old and entry.name.startswith("tmp") and entry.is_file(follow_symlinks=False):
                os.unlink(entry.path)
        except OSError:
            continue


def _key(path: str) -> str | None:
    """A file's one true place; None for what cannot be one."""
    try:
        return os.path.realpath(path) if len(path) <= MAX_PATH else None
    except (OSError, ValueError):
        return None
