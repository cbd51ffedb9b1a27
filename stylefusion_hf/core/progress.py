"""Progress bars, which are for terminals and notebooks: where stderr is a file or a pipe, nothing is drawn."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm as _tqdm

NOTEBOOK = _tqdm.__module__ == "tqdm.auto"  # where it is a class of its own, which draws into the page


class tqdm(_tqdm):  # type: ignore[misc]  # the name that everybody knows
    """tqdm's bar; it stays quiet where its file, stderr by default, is not a terminal."""

    def __init__(self, *args: Any, disable: bool | None = False, **kwargs: Any):
        super().__init__(*args, disable=disable or (False if NOTEBOOK else None), **kwargs)


def nobody_watches() -> bool:
    """Whether a bar would go to a file or a pipe."""
    return not NOTEBOOK and not (sys.stderr is not None and sys.stderr.isatty())


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without diffusers' bars of components and shards where nobody watches."""
    from diffusers.utils import logging

    quiet = nobody_watches() and logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if quiet:
            logging.enable_progress_bar()
