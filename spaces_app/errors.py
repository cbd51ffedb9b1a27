"""Errors as messages in the page: one line, and no path of the server in it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

USER_ERRORS = (ValueError, OSError, FloatingPointError)  # what bad input raises, as in cli.py
MAX_LENGTH = 400
# Two names after a slash, or a drive's letter: a file's place, not "1/255" or "user/repo"
PATH = re.compile(r"(?:[A-Za-z]:\\|~/|/)[^\s:'\"]*[\\/][^\s:'\",;)]+")

logger = logging.getLogger(__name__)


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every error turned into a `gr.Error`; what is no visitor's mistake goes to the log as well."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except gr.Error:
            raise
        except USER_ERRORS as error:
            raise gr.Error(public(str(error)), print_exception=False) from None
        except Exception:
            logger.exception("in %s", getattr(function, "__name__", "the Space"))
            raise gr.Error("This did not work, and it is not your fault: try again", print_exception=False) from None

    return call


def told(function: Callable[..., dict[Any, Any]], stage: Any) -> Callable[..., dict[Any, Any]]:
    """The function with every error as the stage's message, for events that do not go through gradio's queue."""
    call = guarded(function)

    @wraps(function)
    def quiet(*args: Any, **kwargs: Any) -> dict[Any, Any]:
        try:
            return call(*args, **kwargs)
        except gr.Error as error:
            return {stage: gr.update(message=error.message)}

    return quiet


def public(message: str) -> str:
    """A message in one line of bounded length, a file's place reduced to its name."""
    line = PATH.sub(lambda found: re.split(r"[\\/]", found[0])[-1], " ".join(message.split()))
    line = line if len(line) <= MAX_LENGTH else line[: MAX_LENGTH - 3] + "..."
    return line[:1].upper() + line[1:] or "This did not work"
