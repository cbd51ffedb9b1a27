"""Errors as messages in the page: one line, no path of the server in it, and nothing that the page takes for HTML."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

USER_ERRORS = (ValueError, OSError, FloatingPointError)  # what bad input raises, as in cli.py
MAX_LENGTH, MAX_QUOTED = 400, 80  # characters of a message, and of one word in it that somebody sent
BETWEEN = re.compile(r"([\s'\",:;()]+)")  # what stands between words; each character is looked at once

logger = logging.getLogger(__name__)


class Refusal(gr.Error):
    """An error whose message is fit to be shown: gradio puts it into the page as HTML. `plain`: the same as text."""

    def __init__(self, message: str):
        self.plain = public(message)
        super().__init__(html.escape(self.plain, quote=False), print_exception=False)


def guarded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with every error turned into a `Refusal`; what is no visitor's mistake goes to the log as well."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Refusal:
            raise
        except gr.Error as error:
            raise page_error(error) from None
        except USER_ERRORS as error:
            raise Refusal(str(error)) from None
        except Exception:
            logger.exception("in %s", getattr(function, "__name__", "the Space"))
            raise Refusal("This did not work, and it is not your fault: try again") from None

    return call


def told(function: Callable[..., dict[Any, Any]], stage: Any) -> Callable[..., dict[Any, Any]]:
    """The function with every error as the stage's message, for events that do not go through gradio's queue."""
    call = guarded(function)

    @wraps(function)
    def quiet(*args: Any, **kwargs: Any) -> dict[Any, Any]:
        try:
            return call(*args, **kwargs)
        except Refusal as error:
            return {stage: gr.update(message=error.plain)}  # which stage.js puts in as text

    return quiet


def page_error(error: Exception) -> Refusal:
    """Any error of an event as one that may be shown. What gradio says of values that it does not take is not."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, gr.Error):
        return Refusal(str(error.message))
    if type(error) is ValueError and "\n" not in str(error)[:MAX_LENGTH]:
        return Refusal(str(error))
    return Refusal("This did not work: the request holds a value that its control does not take")


def public(message: str) -> str:
    """A message in one line of bounded length, a file's place reduced to its name."""
    line = " ".join(message[: 2 * MAX_LENGTH].split())  # before anything looks at it: strangers' texts have megabytes
    parts = BETWEEN.split("".join(c if c.isprintable() else " " for c in line))
    for i, part in enumerate(parts):
        if len(part) > MAX_QUOTED and i and parts[i - 1][-1] in "'\"":
            parts[i] = part[: MAX_QUOTED - 3] + "..."
        elif _is_path(part):
            parts[i] = re.split(r"[\\/]", part.rstrip("\\/"))[-1]
            if i > 1 and parts[i - 1] == ":" and len(parts[i - 2]) == 1:  # a drive's letter
                parts[i - 2] = parts[i - 1] = ""
    line = "".join(parts)
    if len(line) > MAX_LENGTH or len(message) > 2 * MAX_LENGTH:
        line = line[: MAX_LENGTH - 3] + "..."
    return line[:1].upper() + line[1:] or "This did not work"


def _is_path(word: str) -> bool:
    """A file's place, not "1/255" or "user/repo": two names, of which the first follows a slash or a drive."""
    return (word.startswith(("/", "~/", "\\")) and len(word) > 1) or word.count("/") + word.count("\\") > 1
