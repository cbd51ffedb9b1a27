"""Progress bars for terminals and notebooks. Nothing is drawn when stderr is a file or a pipe."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from logging import LogRecord
from typing import Any

from tqdm.auto import tqdm as _tqdm

NOTEBOOK = _tqdm.__module__ == "tqdm.auto"  # in notebooks tqdm.auto defines its own class, which draws into the page


class tqdm(_tqdm):
    """tqdm's progress bar, silent unless its file (stderr by default) is a terminal."""

    def __init__(self, *args: Any, disable: bool | None = False, **kwargs: Any):
        super().__init__(*args, disable=disable or (False if NOTEBOOK else None), **kwargs)


def is_redirected() -> bool:
    """Return whether a progress bar would go to a file or a pipe."""
    return not NOTEBOOK and not (sys.stderr is not None and sys.stderr.isatty())


def _is_not_raised(record: LogRecord) -> bool:
    return not record.getMessage().startswith("An error occurred while trying to fetch")


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Hide what diffusers prints about an error that it also raises, and, if they would go to a file or a pipe, its
    progress bars for components and shards."""
    from diffusers.utils import logging

    quiet = is_redirected() and logging.is_progress_bar_enabled()
    if quiet:
        logging.disable_progress_bar()
    logger = logging.get_logger("diffusers.models.modeling_utils")
    logger.addFilter(_is_not_raised)
    try:
        yield
    finally:
        logger.removeFilter(_is_not_raised)
        if quiet:
            logging.enable_progress_bar()
