"""What several processes of one run agree on; one process is the simplest case."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors import SafetensorError

SAVING_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch says RuntimeError where a disk is full


def on_main(action: Callable[[], Any]) -> Any:
    """What `action` returns in the main process, in every process; its ValueError or OSError too."""
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


def everywhere(action: Callable[[], Any], errors: tuple[type[Exception], ...] = SAVING_ERRORS) -> str | None:
    """Run `action` in every process and wait for all: what went wrong in the first that failed, or None."""
    problem = None
    try:
        action()
    except errors as error:
        problem = one_line(error)
    return next((said for said in gather_object([problem]) if said is not None), None)


def one_line(error: BaseException, most: int = 300) -> str:
    """An error's text in one line, cut where it is very long."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[:most] + " ..."
