"""The command that messages name for an extra works in the installation at hand."""

from __future__ import annotations

import json
import re
import shlex
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import pytest

import stylefusion_hf
from stylefusion_hf.core.installing import install_command

ROOT = Path(stylefusion_hf.__file__).resolve().parents[1]


def installed_from(monkeypatch, tmp_path, url: dict | None) -> None:
    place = tmp_path / "site-packages/stylefusion_hf/core/installing.py"
    monkeypatch.setattr("stylefusion_hf.core.installing.__file__", str(place))
    text = None if url is None else json.dumps(url)
    found = SimpleNamespace(read_text=lambda name: text)
    monkeypatch.setattr("stylefusion_hf.core.installing.distribution", lambda name: found)


def test_a_checkout_names_itself():
    assert shlex.split(install_command("space", "train")) == ["pip", "install", "-e", f"{ROOT}[space,train]"]


def test_a_wheel_names_itself_while_it_is_there(monkeypatch, tmp_path):
    wheel = tmp_path / "my wheels" / "stylefusion_hf-0.1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    wheel.touch()
    installed_from(monkeypatch, tmp_path, {"url": wheel.as_uri(), "archive_info": {}})
    assert shlex.split(install_command("space")) == ["pip", "install", f"{wheel}[space]"]
    wheel.unlink()
    assert shlex.split(install_command("space"))[2] == f"path/to/{wheel.name}[space]"


@pytest.mark.parametrize(
    ("recorded", "last"),
    [
        (None, "stylefusion-hf[video]"),
        ({}, "stylefusion-hf[video]"),
        ({"url": "https://h/x.whl"}, "stylefusion-hf[video] @ https://h/x.whl"),
        (
            {"url": "https://h/x.git", "vcs_info": {"vcs": "git", "commit_id": "ab12"}},
            "stylefusion-hf[video] @ git+https://h/x.git@ab12",
        ),
    ],
)
def test_other_installations(monkeypatch, tmp_path, recorded, last):
    installed_from(monkeypatch, tmp_path, recorded)
    assert shlex.split(install_command("video")) == ["pip", "install", last]


def test_not_installed_at_all(monkeypatch, tmp_path):
    installed_from(monkeypatch, tmp_path, None)

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr("stylefusion_hf.core.installing.distribution", missing)
    assert install_command() == 'pip install "stylefusion-hf"'


def test_no_text_names_an_index_that_does_not_have_the_package():
    folders = ("stylefusion_hf", "pipelines", "conversion", "spaces_app", "docs")
    texts = [p for folder in folders for p in (ROOT / folder).glob("**/*") if p.suffix in (".py", ".md", ".ipynb")]
    written = re.compile(r"pip install ['\"]?stylefusion-hf\[")
    assert [str(p) for p in [*texts, *ROOT.glob("*.md")] if written.search(p.read_text(errors="replace"))] == []
