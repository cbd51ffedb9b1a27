"""Coordination between the processes of one run. A single process is the simplest case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError

SAVING_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch raises RuntimeError when the disk is full


def on_main(action: Callable[[], Any]) -> Any:
    """Run `action` in the main process and return its result, or raise its ValueError or OSError, in every process."""
    state, box = PartialState(), [None, None]
    if state.is_main_process:
        try:
            box[0] = action()
        except (ValueError, OSError) as error:
            box[1] = error  # type: ignore[call-overload]
    broadcast_object_list(box)
    if box[1] is not None:
        raise box[1]
    return box[0]


def run_everywhere(action: Callable[[], Any], errors: tuple[type[Exception], ...] = SAVING_ERRORS) -> str | None:
    """Run `action` in every process and wait for all. Return the first process's error as one line, or None."""
    problem = None
    try:
        action()
    except errors as error:
        problem = one_line(error)
    return next((found for found in gather_object([problem]) if found is not None), None)


def one_line(error: BaseException, most: int = 300) -> str:
    """Return an error's text in one line of at most `most` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most] + " ..."
