"""Errors as messages for the page: one line, without paths of the server and without HTML."""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

import gradio as gr

USER_ERRORS = (ValueError, OSError, FloatingPointError)  # raised for bad input, as on the command line
MAX_LENGTH, MAX_QUOTED = 400, 80  # characters of a message, and of one quoted word in it
SEPARATORS = re.compile(r"([\s'\",:;()]+)")  # between words; matches in linear time

logger = logging.getLogger(__name__)


class Refusal(gr.Error):
    """An error whose message may be shown: escaped, since gradio inserts it as HTML. `plain` is the unescaped text."""

    def __init__(self, message: str):
        self.plain = public_message(message)
        super().__init__(html.escape(self.plain, quote=False), print_exception=False)


def show_errors(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function to raise every error as a `Refusal`; errors that bad input did not cause are logged too."""

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Refusal:
            raise
        except gr.Error as error:
            raise to_refusal(error) from None
        except USER_ERRORS as error:
            raise Refusal(str(error)) from None
        except Exception:
            logger.exception("in %s", getattr(function, "__name__", "the Space"))
            raise Refusal("This did not work, and it is not your fault: try again") from None

    return call


def show_errors_on_stage(function: Callable[..., dict[Any, Any]], stage: Any) -> Callable[..., dict[Any, Any]]:
    """Wrap a function to return errors as the stage's message, for events outside gradio's queue."""
    call = show_errors(function)

    @wraps(function)
    def quiet(*args: Any, **kwargs: Any) -> dict[Any, Any]:
        try:
            return call(*args, **kwargs)
        except Refusal as error:
            return {stage: gr.update(message=error.plain)}  # stage.js inserts it as text

    return quiet


def to_refusal(error: Exception) -> Refusal:
    """Convert any error of an event to a `Refusal`; gradio's own messages about invalid values are replaced."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, gr.Error):
        return Refusal(str(error.message))
    if type(error) is ValueError and "\n" not in str(error)[:MAX_LENGTH]:
        return Refusal(str(error))
    return Refusal("This did not work: the request has a value that its control does not accept")


def public_message(message: str) -> str:
    """Shorten a message to one line of bounded length, and paths in it to file names."""
    line = " ".join(message[: 2 * MAX_LENGTH].split())  # cut first, since untrusted text may have megabytes
    parts = SEPARATORS.split("".join(c if c.isprintable() else " " for c in line))
    for i, part in enumerate(parts):
        if len(part) > MAX_QUOTED and i and parts[i - 1][-1] in "'\"":
            parts[i] = part[: MAX_QUOTED - 3] + "..."
        elif _is_path(part):
            parts[i] = re.split(r"[\\/]", part.rstrip("\\/"))[-1]
            if i > 1 and parts[i - 1] == ":" and len(parts[i - 2]) == 1:  # a drive letter
                parts[i - 2] = parts[i - 1] = ""
    line = "".join(parts)
    if len(line) > MAX_LENGTH or len(message) > 2 * MAX_LENGTH:
        line = line[: MAX_LENGTH - 3] + "..."
    return line[:1].upper() + line[1:] or "This did not work"


def _is_path(word: str) -> bool:
    """Return whether a word is a path, as opposed to "1/255" or "user/repo"."""
    return (word.startswith(("/", "~/", "\\")) and len(word) > 1) or word.count("/") + word.count("\\") > 1
