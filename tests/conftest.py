"""Fixtures of more than one file: an empty folder for commands, and the native operators, built once a session."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from stylefusion_hf.ops import native
from stylefusion_hf.ops.native import build


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty folder, on the CPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STYLEFUSION_DEBUG", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.fixture(scope="session")
def built_library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The library that this process has loaded: the user's, where the default mode finds one, else one built here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("STYLEFUSION_OPS", raising=False)
        native.choose("cpu")  # so that the other tests of this session go on with what they started with
        patch.setenv("STYLEFUSION_CACHE", str(tmp_path_factory.mktemp("native")))
        try:
            library = native.build_and_load("cpu")
        except build.NotAvailable as error:
            if "not found" in str(error):  # a tool
                pytest.skip(f"the native operators cannot be built here: {error}")
            raise
        yield library
