"""Fixtures shared by several files: an empty folder for commands, the native operators (built once), and a Hub.

No test reaches the real Hub: HF_ENDPOINT, which huggingface_hub reads when it is imported, names one on this machine.
Nothing heavy is imported here, because every process of a session reads this file.
"""

import gc
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_server import WRITER, HubServer

HUB = HubServer()
HF_HOME = tempfile.TemporaryDirectory(prefix="stylefusion-hf-home-")  # the cache, and no login of the user's
os.environ |= {"HF_ENDPOINT": HUB.endpoint, "HF_HOME": HF_HOME.name, "HF_HUB_DISABLE_XET": "1"}
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
# Many tests compare bits. On AMD's processors MKL, which reads this when it is first used, otherwise adds in an order
# that depends on where in memory the numbers lie.
os.environ.setdefault("MKL_CBWR", "COMPATIBLE")
for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN_PATH"):
    os.environ.pop(name, None)

# What `make test` leaves to `make test-all`.
SLOW = {
    "test_convert_fuzz.py", "test_from_zero.py", "test_hub_download.py", "test_ops_build.py", "test_package.py",
    "test_processes.py", "test_space_browser.py", "test_space_large.py", "test_space_tabs.py",
    "test_strange_calls.py", "test_strange_configs.py", "test_strange_files.py", "test_survival.py",
    "test_threads_and_memory.py", "test_tutorial.py",
}  # fmt: skip


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Files that `-m "not slow"` would deselect are not even imported: hypothesis and such take seconds."""
    return True if config.option.markexpr == "not slow" and collection_path.name in SLOW else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.name in SLOW:
            item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Leave what was imported out of garbage collections: there are millions of objects, and a pass takes a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty folder, on the CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STYLEFUSION_DEBUG", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(scope="session")
def built_library(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The library that this process has loaded: the user's, where the default mode finds one, else the tests' own.

    That one is built once for each version of the sources, into pytest's cache.
    """
    from stylefusion_hf.ops import native
    from stylefusion_hf.ops.native import build

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STYLEFUSION_OPS", raising=False)
        native.choose("cpu")  # so that the other tests of this session go on with what they started with
        kept = getattr(pytestconfig, "cache", None)
        cache = kept.mkdir("native") if kept else tmp_path_factory.mktemp("native")
        patch.setenv("STYLEFUSION_CACHE", str(cache))
        try:
            library = native.build_and_load("cpu")
        except build.NotAvailable as error:
            if "not found" in str(error):  # a tool
                pytest.skip(f"the native operators cannot be built here: {error}")
            raise
        yield library


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> HubServer:
    """An empty Hub whose writer is logged in; the client's waits between two attempts are short."""
    import huggingface_hub.constants

    assert HUB.endpoint == huggingface_hub.constants.ENDPOINT, "huggingface_hub was imported before tests/conftest.py"
    HUB.reset()
    sleep = time.sleep
    monkeypatch.setattr(time, "sleep", lambda seconds: sleep(min(seconds, 0.002)))
    monkeypatch.setenv("HF_TOKEN", WRITER)
    return HUB


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if HUB.total:
        terminalreporter.write_line(f"Hub: {HUB.total} requests answered, {HUB.injected} faults injected")
    refusals = sys.modules.get("tests.refusals")
    if refusals is not None and refusals.TRIED:
        listed = ", ".join(f"{count} x {kind}" for kind, count in sorted(refusals.TRIED.items()))
        terminalreporter.write_line(f"Inputs tried: {listed}")
