"""How native operators are built, kept and chosen, and that PyTorch's do the work wherever that fails.

Builds here are real up to the compiler, which is a script that copies a library built before.
"""

import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from stylefusion_hf.cli import main
from stylefusion_hf.ops import native, setup_filter, upfirdn2d
from stylefusion_hf.ops.native import build
from tests.command_line import fails

ROOT = Path(__file__).resolve().parents[2]
CPU = build.target("cpu")
# Keeps a list of what it was called with. Depending on its name, it is slow, fails, or makes files.
COMPILER = """#!/bin/sh
echo "$$ $*" >> {folder}/calls
case "$*" in *-dumpversion*) echo 12.2.0; exit;; *" -o "*) ;; *) exit 0;; esac
{action}
while [ $# -gt 1 ]; do
    [ "$1" = -o ] && out=$2
    shift
done
case "$out" in *.so) cp {library} "$out";; *) : > "$out";; esac
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a module that remembers nothing; what this process has loaded stays loaded."""
    monkeypatch.setenv("STYLEFUSION_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("STYLEFUSION_OPS", raising=False)
    for name in ("_choices", "_loaded", "_failed"):
        monkeypatch.setattr(native, name, {})
    return tmp_path / "cache" / "ops"


@pytest.fixture
def compiler(built_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes $CXX a script that does `action` before it "compiles"."""

    def use(action: str = ":") -> Path:
        script = tmp_path / "c++"
        script.write_text(COMPILER.format(folder=tmp_path, action=action, library=built_library))
        script.chmod(0o755)
        monkeypatch.setenv("CXX", str(script))
        return tmp_path / "calls"

    return use


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """torch loads nothing, but says what it was asked to load: a process takes one library of these operators."""
    asked: list[str] = []
    monkeypatch.setattr(torch.ops, "load_library", asked.append)
    return asked


def put(built_library: Path, cache: Path) -> Path:
    """The library as a build of this cache."""
    folder = cache / CPU.key
    folder.mkdir(parents=True)
    for name in (built_library.name, "info.json"):
        (folder / name).write_bytes((built_library.parent / name).read_bytes())
    return folder / built_library.name


def links(calls: Path) -> int:
    """How many libraries the compiler was asked for."""
    return sum("-shared" in line for line in calls.read_text().splitlines())


def works() -> bool:
    return upfirdn2d(torch.ones(1, 1, 4, 4), setup_filter([1, 3, 3, 1])).item() == pytest.approx(1.0)


def python(program: str, **environment: str) -> subprocess.Popen:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", program], text=True, env=env, **pipes)


# --- The switch ------------------------------------------------------------------------------------------------------


def test_an_unknown_mode_names_the_known_ones(monkeypatch, capsys):
    with pytest.raises(ValueError, match="one of reference, native, auto; got 'cuda'"), native.use("cuda"):
        pass
    monkeypatch.setenv("STYLEFUSION_OPS", "fast")
    with pytest.raises(ValueError, match="STYLEFUSION_OPS must be one of reference, native, auto; got 'fast'"):
        works()
    assert "STYLEFUSION_OPS must be one of" in fails(capsys, "env")


def test_reference_and_auto_build_nothing_and_say_nothing(monkeypatch, caplog, cache, loads):
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("a build was started"))
    for mode, why in (("reference", "reference: STYLEFUSION_OPS=reference"), ("auto", "reference: not built; ")):
        monkeypatch.setenv("STYLEFUSION_OPS", mode)
        monkeypatch.setattr(native, "_choices", {})
        assert works()
        assert native.describe("cpu").startswith(why)
    assert not caplog.records and not cache.exists() and not loads


def test_auto_takes_a_build_of_the_cache_and_asks_once(built_library, cache, loads, monkeypatch):
    library = put(built_library, cache)
    assert works()
    assert loads == [str(library)]
    assert native.describe("cpu") == f"native, {library}"
    monkeypatch.setattr(native, "choose", lambda device: pytest.fail("the files were looked at again"))
    assert works()
    with native.use("reference"):
        assert not native._choices
    assert native._choices


def test_a_process_loads_nothing_until_it_computes(built_library, cache):
    put(built_library, cache)
    program = (
        "import torch, stylefusion_hf.ops as ops\n"
        "from stylefusion_hf import StyleGAN2Generator\n"
        "loaded = lambda: 'stylefusion_ops' in open('/proc/self/maps').read()\n"
        "at_import = loaded()\n"
        "taps = ops.setup_filter([1, 3, 3, 1])\n"
        "call = lambda: ops.upfirdn2d(torch.ones(1, 1, 4, 4), taps)\n"
        "with ops.native.use('reference'): call()\n"
        "reference = loaded()\n"
        # The first call of all is inside a compiled graph.
        "torch.compile(call, fullgraph=True, backend='eager')()\n"
        "print(at_import, reference, loaded(), ops.native.describe('cpu'))"
    )
    if not Path("/proc/self/maps").exists():
        pytest.skip("there is no /proc to see the loaded libraries in")
    out, err = python(program).communicate(timeout=300)
    assert out.startswith("False False True native, "), out + err


def test_a_hint_where_a_build_would_help(monkeypatch, built_library, cache):
    monkeypatch.setattr(build, "build", lambda *_: pytest.fail("a build was started"))
    hint = native.build_hint()
    assert hint and "`stylefusion env --build-ops`" in hint and "\n" not in hint
    with native.use("reference"):
        assert native.build_hint() is None  # as asked for
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "/no/such/c++")
        assert native.build_hint() is None
    cache.mkdir(parents=True)
    (cache / f"{CPU.key}.failed").write_text(json.dumps({"reason": "no header", "time": 1.0}))
    assert native.build_hint() is None
    put(built_library, cache)
    assert native.build_hint() is None


# --- Building --------------------------------------------------------------------------------------------------------


def test_native_builds_once_and_leaves_nothing_else(compiler, cache, loads, caplog):
    calls = compiler()
    stale = cache / f"{CPU.key}.tmp123"  # of a process that was killed
    stale.mkdir(parents=True)
    with native.use("native"):
        assert native.describe("cpu") == "native, at first use: not built; `stylefusion env --build-ops` builds"
        assert works() and works()
        assert native.describe("cpu") == f"native, {loads[0]}"
    assert links(calls) == 1 and not caplog.records
    assert sorted(path.name for path in cache.iterdir()) == [CPU.key, f"{CPU.key}.lock"]
    assert Path(loads[0]) == cache / CPU.key / "stylefusion_ops.so"
    assert json.loads((cache / CPU.key / "info.json").read_text())["device"] == "cpu"


def test_two_processes_build_once(compiler, cache):
    calls = compiler("sleep 1")
    program = "from stylefusion_hf.ops import native; print(native.build_and_load('cpu'))"
    both = [python(program) for _ in range(2)]
    for process in both:
        out, err = process.communicate(timeout=300)
        assert out.strip() == str(cache / CPU.key / "stylefusion_ops.so"), err
    assert links(calls) == 1


def test_a_build_that_takes_too_long_is_killed_with_its_children(compiler, cache, monkeypatch, caplog):
    # The compiler starts a process of its own and waits; ninja gives both a process group of their own.
    calls = compiler("sleep 1234 & echo $! >> $0.sleeping; wait")
    monkeypatch.setenv("STYLEFUSION_OPS_TIMEOUT", "12")
    began = time.monotonic()
    with native.use("native"):
        assert works()
        assert native.describe("cpu") == f"reference: last build failed: {native._failed['cpu']}"
    assert 12 <= time.monotonic() - began < 25
    (warning,) = caplog.messages
    assert "took longer than 12 s" in warning and "\n" not in warning
    sleeping = calls.with_name("c++.sleeping")
    if not sleeping.exists():
        pytest.skip("this machine is too busy: the compiler had not started")
    for pid in sleeping.read_text().split():
        assert not alive(int(pid))
    assert not list(cache.glob("*.tmp*"))


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_the_compilers_first_error_is_the_reason_and_is_remembered(compiler, cache, caplog, loads, capsys):
    calls = compiler('echo "glue.cpp:7:1: fatal error: no_such.h: No such file" >&2; exit 1')
    with native.use("native"):
        assert works() and works()
    with native.use("native"):
        assert works()  # this process does not try again
    assert links(calls) == 0
    assert len([line for line in calls.read_text().splitlines() if " -c " in line]) <= 3  # one build of three sources
    reason = "glue.cpp:7:1: fatal error: no_such.h: No such file"
    (warning,) = caplog.messages
    assert reason in warning and "\n" not in warning
    # What another process finds: the note.
    native._failed.clear()
    assert native.describe("cpu") == f"reference: last build failed: {reason}"
    assert "could not be built: glue.cpp:7:1: fatal error" in fails(capsys, "env", "--build-ops")
    native._failed.clear()
    native._choices.clear()
    compiler()
    assert main(["env", "--build-ops"]) == 0  # tries again, and the note goes
    assert native.describe("cpu") == f"native, {loads[0]}"
    assert not list(cache.glob("*.failed"))


def test_without_a_compiler(monkeypatch, caplog):
    monkeypatch.setenv("CXX", "/no/such/c++ -flag")
    with native.use("native"):
        assert works()
    (warning,) = caplog.messages
    assert "no C++ compiler: '/no/such/c++ -flag' was not found" in warning


def test_without_ninja(monkeypatch, caplog):
    which = build.shutil.which
    monkeypatch.setattr(build.shutil, "which", lambda name, path: None if name == "ninja" else which("sh"))
    with native.use("native"):
        assert works()
    assert "ninja was not found" in caplog.messages[0]


def test_a_time_limit_that_is_none(monkeypatch, capsys):
    monkeypatch.setenv("STYLEFUSION_OPS_TIMEOUT", "soon")
    assert "must be a number of seconds above 0, got 'soon'" in fails(capsys, "env", "--build-ops")


# --- The cache -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "no library", "no info", "other info"])
def test_a_damaged_build_is_told_once_and_repaired(damage, built_library, cache, compiler, loads, caplog, capsys):
    library = put(built_library, cache)
    if damage == "truncated":  # loading this could end the process
        library.write_bytes(library.read_bytes()[: library.stat().st_size // 2])
    elif damage == "other info":
        library.with_name("info.json").write_text("[]")
    else:
        (library if damage == "no library" else library.with_name("info.json")).unlink()
    assert works() and works()
    (warning,) = caplog.messages
    assert "`stylefusion env --build-ops` repairs it" in warning and "\n" not in warning
    assert not loads
    if damage == "truncated":
        compiler()
        assert main(["env", "--build-ops", "--json"]) == 0
        captured = capsys.readouterr()
        assert str(library) in captured.err
        assert json.loads(captured.out)["native operators"]["cpu"] == f"native, {library}"
        assert build.cached(CPU) == library


def test_a_library_that_does_not_load_is_built_anew(built_library, cache, compiler, monkeypatch, caplog):
    library = put(built_library, cache)
    asked: list[str] = []

    def load(path: str) -> None:
        asked.append(path)
        if len(asked) == 1:
            raise OSError("libtorch_cpu.so: cannot open shared object file")

    monkeypatch.setattr(torch.ops, "load_library", load)
    calls = compiler()
    assert native.build_and_load("cpu") == library
    assert links(calls) == 1 and len(asked) == 2


@pytest.mark.parametrize("folder", ["/proc/no/such", "a file"])
def test_a_cache_that_cannot_be_written_to(folder, tmp_path, monkeypatch, caplog):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("STYLEFUSION_CACHE", str(tmp_path / folder))
    with native.use("native"):
        assert works()
    (warning,) = caplog.messages
    assert "the cache cannot be written to" in warning or "cannot be read" in warning
    assert "\n" not in warning


def test_the_folder_of_the_cache(monkeypatch, caplog, tmp_path):
    monkeypatch.delenv("STYLEFUSION_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert build.builds_folder() == tmp_path / "xdg" / "stylefusion_hf" / "ops"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build.builds_folder() == tmp_path / ".cache" / "stylefusion_hf" / "ops"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # what it does for users without a home
    with native.use("native"):
        assert works()
    assert "there is no home folder" in caplog.messages[0]


def test_the_key_tells_builds_apart(monkeypatch):
    key = CPU.key
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert build.target("cpu").key != key
    monkeypatch.undo()
    monkeypatch.setattr(torch, "__version__", "2.99.0")
    assert build.target("cpu").key != key
    assert build.target("cpu").key.startswith("cpu-torch2.99.0-")


# --- The lock --------------------------------------------------------------------------------------------------------


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen]:
    """Another process that holds the lock."""
    pytest.importorskip("fcntl", reason="no file locks to test")
    program = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX);"
        "print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-S", "-c", program, str(tmp_path / "lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_lock_is_waited_for_and_dies_with_its_process(holder, tmp_path):
    waiting = build._lock(tmp_path / "lock", 0.3)
    with pytest.raises(build.NotAvailable, match="another process has been building for 0.3 s"), waiting:
        pass
    holder.kill()
    holder.wait()
    with build._lock(tmp_path / "lock", 5.0):  # the file is still there
        assert (tmp_path / "lock").exists()


def test_builds_need_no_locks_where_the_file_system_has_none(tmp_path, monkeypatch):
    def refuse(lock: build.FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock; use SoftFileLock instead")

    monkeypatch.setattr(build.FileLock, "acquire", refuse)
    with build._lock(tmp_path / "lock", 5.0):
        (tmp_path / "made").touch()
    assert (tmp_path / "made").exists()


def test_the_failure_of_the_process_that_was_waited_for_counts(cache, compiler, monkeypatch):
    calls = compiler()

    @contextlib.contextmanager
    def waited(path: Path, limit: float) -> Iterator[None]:
        note = {"reason": "fatal error: theirs", "time": time.time()}
        (cache / f"{CPU.key}.failed").write_text(json.dumps(note))
        yield

    monkeypatch.setattr(build, "_lock", waited)
    with pytest.raises(build.NotAvailable, match="theirs"):
        build.build(CPU)
    assert not calls.exists()


def test_an_interrupted_build_is_cleared_away(cache, compiler, monkeypatch):
    compiler("sleep 1234")

    def interrupt(self: subprocess.Popen, limit: float | None = None) -> int:
        if limit is not None:
            raise KeyboardInterrupt
        return wait(self)

    wait = subprocess.Popen.wait
    monkeypatch.setattr(subprocess.Popen, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build.build(CPU)
    assert [path.name for path in cache.iterdir()] == [f"{CPU.key}.lock"]


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "stylefusion_hf")
