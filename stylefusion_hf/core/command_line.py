"""How every program of this package ends: bad input is one line on stderr and exit status 2."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

# What bad input raises, here and in the libraries below; anything else is a bug and keeps its traceback.
USER_ERRORS = (ValueError, OSError, ImportError, FloatingPointError)


def run(program: Callable[[], object]) -> int:
    """Run a program: 0, or 2 after one line for bad input, 130 where it was interrupted, 1 for a closed pipe.

    Other errors are raised; with STYLEFUSION_DEBUG=1 all of them are.
    """
    try:
        program()
        sys.stdout.flush()  # a closed pipe shows here rather than at exit
    except BrokenPipeError:  # `stylefusion env | head -1` reads one line
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
    """An error in one line, with escapes for what would act on a terminal."""
    from stylefusion_hf.core.checks import describe_error

    return describe_error(error, 2000)
