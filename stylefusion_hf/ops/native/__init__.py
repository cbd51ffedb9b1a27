"""Native operators: the same results as the PyTorch implementations, in fewer passes over memory.

`STYLEFUSION_OPS` selects the implementation: `reference` (PyTorch), `native` (built at first use if necessary), or
`auto`, the default: native if built before by `stylefusion env --build-ops`. `auto` never starts a build, so the first
picture does not wait for a compiler. The choice is made once per process, so pictures do not change during a session.
If native operators are not available, PyTorch's are used. See docs/research/performance.md.

Read this module first, then `registration.py` (signatures and gradients), `build.py` and `compile.py` (compilation and
its cache), `glue.cpp` and `kernels.h`, `kernels_cpu.cpp`, `kernels_cuda.cu` (StyleGAN2's kernels), `wavelets_cpu.cpp`
(MobileStyleGAN's).
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

from stylefusion_hf.ops.context import exporting, traced_or_transformed
from stylefusion_hf.ops.native import build, registration

MODES = ("reference", "native", "auto")
# Types that the kernels support. Other devices and types use PyTorch.
DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}
HOW_TO_BUILD = "`stylefusion env --build-ops`"

logger = logging.getLogger("stylefusion_hf")


class Choice(NamedTuple):
    """Whether native operators are used on a device, and the library or the reason why not."""

    native: bool
    why: str

    def __str__(self) -> str:
        return f"{'native, ' if self.native else 'reference: '}{self.why}"


_guard = threading.RLock()
_mode: str | None = None  # set by `use`; None for the environment variable
_choices: dict[str, Choice] = {}  # device type -> choice, made once
_loaded: dict[str, Path] = {}  # device type -> library; libraries stay loaded
_failed: dict[str, str] = {}  # device type -> why the build failed; this process does not try again


# --- Choice of implementation ----------------------------------------------------------------------------------------


def mode() -> str:
    """Return `"reference"`, `"native"` or `"auto"`; ValueError if STYLEFUSION_OPS is anything else."""
    return _mode or _check(os.environ.get("STYLEFUSION_OPS") or "auto", "STYLEFUSION_OPS")


def _check(value: str, name: str) -> str:
    if value not in MODES:
        raise ValueError(f"{name} must be one of {', '.join(MODES)}; got {value!r}")
    return value


@contextlib.contextmanager
def use(mode: str) -> Iterator[None]:
    """Override STYLEFUSION_OPS within a `with` block, for all threads.

    Graphs that `torch.compile` has already compiled keep their operators.
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
    """Return whether to use native operators on x.

    They are not used in exported programs, which must run without them, nor under forward-mode differentiation and
    transforms of `torch.func`, for which they have no rules.
    """
    if x.dtype not in DTYPES.get(x.device.type, ()) or exporting():
        return False
    return _enabled(x.device.type)


def _enabled(device: str) -> bool:
    if traced_or_transformed():
        return False
    choice = _choices.get(device)
    return (choice or choose(device)).native


# Compiled graphs contain the result, not files and locks. torch.compiler.assume_constant_result does nothing else,
# except import torch._dynamo, which takes as long as torch itself.
_enabled._dynamo_marked_constant = True  # type: ignore[attr-defined]


def choose(device: str) -> Choice:
    """Choose the implementation for a device type, once per process. Load from the cache; build in mode `native`."""
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
    """Return the device types of this machine that support native operators."""
    return ["cpu", "cuda"] if torch.version.cuda and torch.cuda.is_available() else ["cpu"]


def describe(device: str) -> str:
    """Describe in one line which operators are used on a device type, and why. Builds nothing."""
    if mode() == "native" and device not in _choices and device not in _loaded:
        try:
            build.cached(build.target(device))
        except build.NotBuilt:
            return f"native, at first use: {_why_not_built(device)}"
        except build.NotAvailable as error:
            return f"native, at first use: {build.one_line(error)}"
    return str(choose(device))


def build_hint() -> str | None:
    """Return one line on what native operators would give where they could be built but have not been, else None."""
    try:
        wanted = build.target("cpu")
        if mode() != "auto" or build.last_failure(wanted):
            return None
        build.tools(wanted)  # a compiler and ninja are here
        build.cached(wanted)
    except build.NotBuilt:
        return f"Native operators draw faces of 1024 px in less than half the time: {HOW_TO_BUILD} builds them"
    except OSError:
        pass
    return None


# --- Libraries -------------------------------------------------------------------------------------------------------


def load(device: str) -> Path:
    """Load the library from the cache and return its path; NotAvailable (an OSError) if that is not possible."""
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
    """Load the library, building it if necessary; NotAvailable (an OSError) if that is not possible."""
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


# --- Operators. Callers check shapes and types -----------------------------------------------------------------------


def upfirdn2d(
    x: torch.Tensor, f: torch.Tensor, up: int, down: int, padding: Sequence[int], gain: float
) -> torch.Tensor:
    """Compute `ops.upfirdn2d`, any number of times differentiable in x. All results have the memory layout of x."""
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
    """Compute `ops.bias_act`, any number of times differentiable in x, scale, bias and noise."""
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
    """Compute `upfirdn2d`, then `bias_act`, in one pass over the feature map; without gradients."""
    return torch.ops.stylefusion.upfirdn2d_bias_act(
        x, f, up, down, padding, fir_gain, scale, bias, noise, act == "lrelu", gain, clamp
    )
