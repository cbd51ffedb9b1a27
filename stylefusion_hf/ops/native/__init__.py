"""Native operators: the same numbers as the PyTorch code beside them, in fewer passes over memory.

`STYLEFUSION_OPS` says which are used: `reference` (PyTorch's), `native` (built at first use where needed), or `auto`,
the default: native ones if they have been built, by `stylefusion env --build-ops`. `auto` never starts a build, so
nobody's first picture waits for a compiler, and the choice is made once a process, so pictures do not change in
mid-session. Where native operators cannot be had, PyTorch's do the work; see docs/research/performance.md.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from stylefusion_hf.ops.context import traced_or_transformed
from stylefusion_hf.ops.native import build, registration

MODES = ("reference", "native", "auto")
# What the kernels take. Other devices and types go to PyTorch.
DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
HOW_TO_BUILD = "`stylefusion env --build-ops`"

logger = logging.getLogger("stylefusion_hf")
_is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)  # torch < 2.7 has none


class Choice(NamedTuple):
    """Whether native operators run on a device, and the library or the reason why not."""

    native: bool
    why: str

    def __str__(self) -> str:
        return f"{'native, ' if self.native else 'reference: '}{self.why}"


_guard = threading.RLock()
_mode: str | None = None  # set by `use`; None asks the environment
_choices: dict[str, Choice] = {}  # device type -> what was chosen, once
_loaded: dict[str, Path] = {}  # device type -> library; a library stays loaded
_failed: dict[str, str] = {}  # device type -> why this process could not build; it does not try again


# --- The switch ------------------------------------------------------------------------------------------------------


def mode() -> str:
    """`"reference"`, `"native"` or `"auto"`; ValueError if STYLEFUSION_OPS is anything else."""
    return _mode or _check(os.environ.get("STYLEFUSION_OPS") or "auto", "STYLEFUSION_OPS")


def _check(value: str, name: str) -> str:
    if value not in MODES:
        raise ValueError(f"{name} must be one of {', '.join(MODES)}; got {value!r}")
    return value


@contextlib.contextmanager
def use(mode: str) -> Iterator[None]:
    """Another mode within a `with` block, whatever STYLEFUSION_OPS says. It counts for all threads.

    What `torch.compile` has already compiled keeps the operators it was compiled with.
    """
    global _mode, _choices
    _check(mode, "the mode of the native operators")
    before = _mode, _choices
    _mode, _choices = mode, {}
    try:
        yield
    finally:
        _mode, _choices = before


def covers(x: torch.Tensor) -> bool:
    """Whether native operators are to be used on x.

    Not in programs that are exported, which must run where there are none, and not under forward-mode differentiation
    and the transforms of `torch.func`, for which they have no rules.
    """
    if x.dtype not in DTYPES.get(x.device.type, ()) or _is_exporting():
        return False
    return _enabled(x.device.type)


def _enabled(device: str) -> bool:
    if traced_or_transformed():
        return False
    choice = _choices.get(device)
    return (choice or choose(device)).native


# A compiled graph holds the answer, not files and locks. This is all that torch.compiler.assume_constant_result does,
# beside importing torch._dynamo, which takes as long as torch itself.
_enabled._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose(device: str) -> Choice:
    """Decide for a device type, once a process: load what is in the cache, and build it if the mode is `native`."""
    with _guard:
        if device not in _choices:
            _choices[device] = _choose(device, mode())
        return _choices[device]


def _choose(device: str, mode: str) -> Choice:
    if mode == "reference":
        return Choice(False, "STYLEFUSION_OPS=reference")
    if device in _failed:
        return Choice(False, f"last build failed: {_failed[device]}")
    try:
        return Choice(True, str(load(device)))
    except build.NotBuilt:
        if mode == "auto":
            return Choice(False, _why_not_built(device))
    except OSError as error:
        if mode == "auto":
            reason = f"{build.one_line(error)}; {HOW_TO_BUILD} repairs it"
            logger.warning("stylefusion: PyTorch operators instead of native ones: %s", reason)
            return Choice(False, reason)
    try:
        return Choice(True, str(build_and_load(device)))
    except OSError as error:
        reason = build.one_line(error)
        logger.warning("stylefusion: PyTorch operators, since native ones could not be built: %s", reason)
        return Choice(False, f"last build failed: {reason}")


def _why_not_built(device: str) -> str:
    failure = build.last_failure(build.target(device))
    return f"last build failed: {failure['reason']}" if failure else f"not built; {HOW_TO_BUILD} builds"


def devices() -> list[str]:
    """The device types of this machine that have native operators."""
    return ["cpu", "cuda"] if torch.version.cuda and torch.cuda.is_available() else ["cpu"]


def describe(device: str) -> str:
    """Which operators run on a device type and why, in one line. Builds nothing."""
    if mode() == "native" and device not in _choices and device not in _loaded:
        try:
            build.cached(build.target(device))
        except build.NotBuilt:
            return f"native, at first use: {_why_not_built(device)}"
        except build.NotAvailable as error:
            return f"native, at first use: {build.one_line(error)}"
    return str(choose(device))


# --- Libraries -------------------------------------------------------------------------------------------------------


def load(device: str) -> Path:
    """Load the library from the cache and return its path; NotAvailable (an OSError) says why not."""
    with _guard:
        if device not in _loaded:
            library = build.cached(build.target(device))
            registration.define()
            try:
                torch.ops.load_library(str(library))
            except OSError as error:
                raise build.NotAvailable(f"{library} does not load: {build.one_line(error)}") from error
            _loaded[device] = library
        return _loaded[device]


def build_and_load(device: str) -> Path:
    """Build the library unless one that loads is there; NotAvailable (an OSError) says why it cannot be done."""
    with _guard:
        try:
            repair = False
            try:
                return load(device)
            except build.NotBuilt:
                pass
            except build.NotAvailable:
                repair = True
            build.build(build.target(device), repair)
            library = load(device)
        except OSError as error:
            _failed[device] = build.one_line(error)
            raise
        _failed.pop(device, None)
        _choices.pop(device, None)
        return library


# --- The operators: callers have checked shapes and types ------------------------------------------------------------


def upfirdn2d(
    x: torch.Tensor, f: torch.Tensor, up: int, down: int, padding: Sequence[int], gain: float
) -> torch.Tensor:
    """As `ops.upfirdn2d`; differentiable in x as often as wanted. In the layout of x, like all of these."""
    return torch.ops.stylefusion.upfirdn2d(x, f, up, down, padding, gain, False)


def bias_act(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    noise: torch.Tensor | None,
    act: str,
    gain: float,
    clamp: float | None,
) -> torch.Tensor:
    """As `ops.bias_act`; differentiable in x, scale, bias and noise as often as wanted."""
    return torch.ops.stylefusion.bias_act(x, scale, bias, noise, act == "lrelu", gain, clamp)


def upfirdn2d_bias_act(
    x: torch.Tensor,
    f: torch.Tensor,
    up: int,
    down: int,
    padding: Sequence[int],
    fir_gain: float,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    noise: torch.Tensor | None,
    act: str,
    gain: float,
    clamp: float | None,
) -> torch.Tensor:
    """`upfirdn2d`, then `bias_act`, in one pass over the feature map; without gradients."""
    return torch.ops.stylefusion.upfirdn2d_bias_act(
        x, f, up, down, padding, fir_gain, scale, bias, noise, act == "lrelu", gain, clamp
    )
