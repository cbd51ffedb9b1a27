"""Building the native operators, and the cache of builds.

A build runs in a separate process with a time limit, in a temporary folder that is renamed into place after the
library has loaded and computed a test case. So the cache contains complete builds only. A file lock, which a crash
cannot leave behind, ensures that one process builds at a time. Only `native/__init__.py` calls this
module.

    $STYLEFUSION_CACHE (else $XDG_CACHE_HOME/stylefusion_hf, else ~/.cache/stylefusion_hf)
      ops/<key>/stylefusion_ops.so, info.json     a build; the key has torch's version, the device and a hash of inputs
      ops/<key>.failed                            why the last build failed, until one succeeds
      ops/<key>.lock                              lock file
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from filelock import FileLock, Timeout

from stylefusion_hf.cache import cache_folder

HERE = Path(__file__).parent
LIBRARY = "stylefusion_ops"
TIMEOUT = 300.0  # seconds; STYLEFUSION_OPS_TIMEOUT overrides it
# By PyTorch's name of the processor's capability, so that machines that share a home folder only use builds that run
# on them. With `-march=native` the capability would not be part of the key.
CPU_FLAGS = {
    "AVX2": ["-mavx2", "-mfma", "-mf16c"],
    "AVX512": ["-mavx512f", "-mavx512dq", "-mavx512vl", "-mavx512bw", "-mfma", "-mf16c"],
}


class NotAvailable(OSError):
    """Native operators are not available; the message says why, in one line."""


class NotBuilt(NotAvailable):
    """The cache has no build."""


@dataclass(frozen=True)
class Target:
    """The inputs of a build for one type of device."""

    device: str
    sources: tuple[str, ...]
    cflags: tuple[str, ...]
    cuda_cflags: tuple[str, ...]
    ldflags: tuple[str, ...]
    cuda_archs: str

    @property
    def key(self) -> str:
        """Folder name of this build: device and torch version, then a hash of everything that affects the library."""
        about: list[Any] = [asdict(self), torch.__version__, torch.version.git_version, torch.version.cuda]
        about += [platform.system(), platform.machine()]
        digest = hashlib.sha256(json.dumps(about).encode())
        for name in (*self.sources, "kernels.h", "compile.py", "registration.py"):
            digest.update((HERE / name).read_bytes())
        return f"{self.device}-torch{torch.__version__}-{digest.hexdigest()[:16]}"


def target(device: str) -> Target:
    """Return the build for `"cpu"` or `"cuda"` with this torch on this machine; NotAvailable if unsupported."""
    if os.name != "posix":
        raise NotAvailable("native operators support Linux and macOS only")
    omp = () if sys.platform == "darwin" else ("-fopenmp",)  # Apple's clang lacks OpenMP: single-threaded there
    if device == "cpu":
        vector = CPU_FLAGS.get(torch.backends.cpu.get_cpu_capability(), [])
        cflags = ("-O3", "-fno-math-errno", "-fno-trapping-math", *omp, *vector)
        return Target("cpu", ("glue.cpp", "kernels_cpu.cpp", "wavelets_cpu.cpp"), cflags, (), omp, "")
    if torch.version.cuda is None or not torch.cuda.is_available():
        raise NotAvailable("this torch sees no CUDA device")
    archs = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    names = ";".join(f"{major}.{minor}" for major, minor in sorted(archs))
    flags = ("-O3", "-DSTYLEFUSION_CUDA")
    return Target("cuda", ("glue.cpp", "kernels_cuda.cu"), flags, flags, (), names)


def builds_folder() -> Path:
    """Return the folder of builds; NotAvailable if there is no home folder."""
    try:
        return cache_folder() / "ops"
    except OSError as error:
        raise NotAvailable(str(error)) from None


# --- Cache -----------------------------------------------------------------------------------------------------------


def cached(wanted: Target) -> Path:
    """Return the library in the cache; NotBuilt if there is none, NotAvailable if it is damaged."""
    folder = builds_folder() / wanted.key
    library = folder / f"{LIBRARY}.so"
    try:
        info = json.loads((folder / "info.json").read_bytes())
        content = library.read_bytes()
    except FileNotFoundError:
        if folder.is_dir():
            raise NotAvailable(f"the build in {folder} is incomplete") from None
        raise NotBuilt("not built") from None
    except (OSError, ValueError) as error:
        raise NotAvailable(f"the build in {folder} cannot be read: {one_line(error)}") from None
    # Loading a truncated library can crash the process, so verify it first.
    if not isinstance(info, dict) or hashlib.sha256(content).hexdigest() != info.get("sha256"):
        raise NotAvailable(f"the build in {folder} is damaged")
    return library


def last_failure(wanted: Target) -> dict[str, Any] | None:
    """Return `reason` and `time` of the last build if it failed, else None."""
    try:
        note = json.loads((builds_folder() / f"{wanted.key}.failed").read_bytes())
        return note if {"reason", "time"} <= set(note) else None
    except (OSError, ValueError, TypeError):
        return None


# --- Building --------------------------------------------------------------------------------------------------------


def build(wanted: Target, repair: bool = False) -> Path:
    """Build unless another process has just done so, and return the library.

    Args:
        wanted: the build.
        repair: build even if the cache holds an undamaged library, because it does not load.

    Raises:
        NotAvailable: no compiler, no ninja, timeout, a compiler error, or a read-only cache; one line.
    """
    limit, began = time_limit(), time.time()
    try:
        root = builds_folder()
        root.mkdir(parents=True, exist_ok=True)
        with _lock(root / f"{wanted.key}.lock", limit):
            with contextlib.suppress(NotAvailable):
                library = cached(wanted)
                if not repair or library.stat().st_mtime >= began:
                    return library
            note = last_failure(wanted)
            if note and note["time"] >= began:  # the process that we waited for has failed
                raise NotAvailable(note["reason"])
            for leftover in root.glob(f"{wanted.key}.tmp*"):  # from killed processes, as we hold the lock
                shutil.rmtree(leftover, ignore_errors=True)
            try:
                library = _build(wanted, root, limit)
            except NotAvailable as error:
                _write(root / f"{wanted.key}.failed", {"reason": one_line(error), "time": time.time()})
                raise
            (root / f"{wanted.key}.failed").unlink(missing_ok=True)
            return library
    except NotAvailable:
        raise
    except OSError as error:
        raise NotAvailable(f"the cache cannot be written to: {one_line(error)}") from error


def time_limit() -> float:
    """Return the time limit of a build in seconds."""
    given = os.environ.get("STYLEFUSION_OPS_TIMEOUT")
    try:
        limit = float(given) if given else TIMEOUT
    except ValueError:
        limit = -1.0
    if not limit > 0:
        raise ValueError(f"STYLEFUSION_OPS_TIMEOUT must be a number of seconds above 0, got {given!r}")
    return limit


def _build(wanted: Target, root: Path, limit: float) -> Path:
    environment = tools(wanted)
    began = time.monotonic()
    work = Path(tempfile.mkdtemp(prefix=f"{wanted.key}.tmp", dir=root))
    try:
        spec = {**asdict(wanted), "sources": [str(HERE / name) for name in wanted.sources], "folder": str(work)}
        command = [sys.executable, "-P", str(HERE / "compile.py"), json.dumps(spec)]
        log = work / "build.log"
        with log.open("wb") as output:
            status = _run(command, environment, output, limit)
        if status is None:
            raise NotAvailable(f"it took longer than {limit:g} s (STYLEFUSION_OPS_TIMEOUT changes the limit)")
        if status != 0:
            raise NotAvailable(_first_error(log.read_text(encoding="utf-8", errors="replace"), status))
        made = work / f"{LIBRARY}.so"
        digest = hashlib.sha256(made.read_bytes()).hexdigest()
        _write(work / "info.json", {"sha256": digest, "seconds": round(time.monotonic() - began, 1), **asdict(wanted)})
        for other in work.glob("*.o"):
            other.unlink()
        place = root / wanted.key
        if place.exists():  # damaged, or does not load
            old = Path(tempfile.mkdtemp(prefix=f"{wanted.key}.tmp", dir=root))
            place.rename(old / "replaced")
            shutil.rmtree(old, ignore_errors=True)
        work.rename(place)
        return place / made.name
    finally:
        shutil.rmtree(work, ignore_errors=True)


def tools(wanted: Target) -> dict[str, str]:
    """Return the environment of a build, in which its tools are found; NotAvailable if one is missing."""
    # ninja is a Python package; its program is not on the PATH unless the environment has been activated.
    folders = [str(Path(sys.executable).parent)] if sys.executable else []
    with contextlib.suppress(ImportError, AttributeError):
        import ninja

        folders.append(ninja.BIN_DIR)
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *folders])
    compiler = os.environ.get("CXX") or "c++"
    if not sys.executable:
        raise NotAvailable("there is no Python interpreter to build with")
    if not shutil.which(shlex.split(compiler)[0], path=path):
        raise NotAvailable(f"no C++ compiler: {compiler!r} was not found (CXX names another)")
    if not shutil.which("ninja", path=path):
        raise NotAvailable("ninja was not found (pip install ninja)")
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if wanted.cuda_archs:
        environment["TORCH_CUDA_ARCH_LIST"] = wanted.cuda_archs
    return environment


def _run(command: list[str], environment: dict[str, str], output: Any, limit: float) -> int | None:
    """Run a command and return its exit status, or None if it timed out and was killed with all its children."""
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:  # also when interrupted: Ctrl-C in the terminal does not reach another session
        if process.poll() is None:
            _kill(psutil.Process(process.pid))
            process.wait()


def _kill(process: psutil.Process) -> None:
    """Kill a process and its descendants, stopped first so that none starts another meanwhile."""
    tree = [process]
    for member in tree:  # grows while it is walked
        with contextlib.suppress(psutil.Error):
            member.suspend()
            tree += member.children()
    for member in tree:
        with contextlib.suppress(psutil.Error):
            member.kill()


@contextlib.contextmanager
def _lock(path: Path, limit: float) -> Iterator[None]:
    """Hold an operating system lock on a file. It is released when the process ends, however it ends.

    Where the file system has no locks, builds may run in parallel, and the last one wins.
    """
    lock = FileLock(path, timeout=limit)
    try:
        lock.acquire()
    except Timeout:
        raise NotAvailable(f"another process has been building for {limit:g} s ({path})") from None
    except NotImplementedError:  # the file system has no locks
        pass
    try:
        yield
    finally:
        lock.release()


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write JSON atomically."""
    part = path.with_name(f"{path.name}.{os.getpid()}")
    part.write_text(json.dumps(content), encoding="utf-8")
    part.replace(path)


def _first_error(log: str, status: int) -> str:
    """Return the most informative line of a build's log."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    for mark in ("fatal error:", "error:", "Error:"):
        for line in lines:
            if mark in line:
                return one_line(line)
    last = one_line(lines[-1]) if lines else "no output"
    return f"the build process ended with status {status}: {last}"


def one_line(text: object, length: int = 300) -> str:
    """Return a text as one line of at most `length` characters."""
    line = " ".join(str(text).split())
    return line if len(line) <= length else line[: length - 3] + "..."
