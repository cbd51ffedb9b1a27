"""Exit handling for every program of this package: bad input prints one line on stderr and exits with status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

# What bad input raises, here and in the libraries we call. Anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


def run(program: Callable[[], object]) -> int:
    """Run a program and return its exit status.

    0 for success, 2 after one line on stderr for bad input, 130 if interrupted, 1 for a closed pipe. Other errors
    propagate; with STYLEFUSION_DEBUG=1 all of them do.
    """
    try:
        program()
        sys.stdout.flush()  # fail on a closed pipe here rather than at interpreter exit
    except BrokenPipeError:  # e.g. `stylefusion env | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        print("\nstylefusion: interrupted", file=sys.stderr)
        return 130
    except USER_ERRORS as error:
        if os.environ.get("STYLEFUSION_DEBUG", "0") not in ("", "0"):
            raise
        print(f"stylefusion: error: {describe(error)}", file=sys.stderr)
        return 2
    return 0


def describe(error: BaseException) -> str:
    """Return an error as one line, with terminal control characters escaped."""
    from stylefusion_hf.core.checks import describe_error

    return describe_error(error, 2000)
