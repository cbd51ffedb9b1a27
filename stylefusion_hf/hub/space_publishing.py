"""Uploads the Space to the Hub in one commit, with the wheel of this package, which is not on PyPI."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.hub_errors import explain_errors
from stylefusion_hf.hub.cleaning import clean_png

INSTALLED = Path(__file__).parents[1]  # the package's folder
SPACE = INSTALLED / "spaces_app"
WHEEL = re.compile(r"stylefusion_hf-[\w.+]+-py3-none-any\.whl")
# The files of the Space, and those of a wheel of this package.
SPACE_FILES = re.compile(
    r"[a-z]\w*\.(py|js|css)|__init__\.py|README\.md|about\.md|requirements\.txt|samples/[\w-]+\.png"
)
WHEEL_FILES = re.compile(
    r"stylefusion_hf-[\w.+]+\.dist-info/(METADATA|WHEEL|RECORD|entry_points\.txt|top_level\.txt|LICENSE|licenses/LICENSE)"
    r"|stylefusion_hf/(\w+/)*(\w+\.(py|html|js|css|cu|cpp|cuh|h)|py\.typed)"
    r"|stylefusion_hf/spaces_app/(README\.md|about\.md|requirements\.txt|samples/[\w-]+\.png)"
    r"|stylefusion_hf/core/region_maps/[\w.-]+\.json"
    r"|stylefusion_hf/assets/(model_index\.json|README\.md|\w+/(config\.json|diffusion_pytorch_model\.safetensors))"
)


def build_wheel(folder: str | Path) -> Path:
    """Build the wheel of the checkout from which this package runs; returns its path in `folder`.

    Raises:
        ValueError: the package does not run from a checkout. OSError: the build failed; says why.
    """
    checkout = INSTALLED.parent
    if not (checkout / "pyproject.toml").is_file() or not (checkout / "spaces_app").is_dir():
        raise ValueError(
            f"{checkout} is not a checkout of stylefusion-hf, from which a wheel can be built: give --wheel FILE"
        )
    flags = ["--no-deps", "--disable-pip-version-check", "--quiet", "--wheel-dir", str(folder)]
    command = [sys.executable, "-m", "pip", "wheel", *flags, str(checkout)]
    done = subprocess.run(command, capture_output=True, text=True)
    built = sorted(Path(folder).glob("*.whl"))
    if done.returncode or not built:
        reason = " ".join((done.stderr or done.stdout).split())[-300:]
        raise OSError(
            f"the wheel could not be built ({reason}): build one with `pip wheel --no-deps .` and give --wheel"
        )
    return built[-1]


def space_files(repo_id: str, wheel: str | Path, endpoint: str, model: str | None = None) -> dict[str, bytes]:
    """Return the files of the Space's repository as {path: content}.

    The requirements give the URL of the wheel, because a Space's files are not available while it is being built.

    Args:
        repo_id: user/space.
        wheel: a wheel of this package, with its standard name.
        endpoint: URL of the Hub.
        model: the repository that the card lists as its model.

    Raises:
        ValueError: not a wheel of this package.
    """
    wheel = Path(wheel)
    if not WHEEL.fullmatch(wheel.name) or not wheel.is_file():
        raise ValueError(
            f"{wheel} is not a wheel of stylefusion-hf: expected a file such as stylefusion_hf-0.1.0-py3-none-any.whl"
        )
    check_wheel(wheel)
    root = SPACE.resolve()
    files = {}
    for path in sorted([*root.iterdir(), *(root / "samples").iterdir()]):
        name = path.relative_to(root).as_posix()
        if SPACE_FILES.fullmatch(name) and path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            files[name] = clean_png(content, name) if name.endswith(".png") else content
    address = f"{endpoint}/spaces/{repo_id}/resolve/main/{wheel.name}"
    lines = files["requirements.txt"].decode().splitlines()
    others = [line for line in lines if line and not line.startswith("#") and "stylefusion" not in line]
    # Without the extra `space`: the Hub installs gradio by the card's sdk_version.
    files["requirements.txt"] = "\n".join([*others, f"stylefusion-hf @ {address}", ""]).encode()
    if model is not None:
        head, body = files["README.md"].decode().removeprefix("---\n").split("\n---\n", 1)
        head = re.sub(r"(?m)^models:\n(?:[ -].*\n?)*", "", head + "\n").rstrip("\n")
        files["README.md"] = f"---\n{head}\nmodels:\n- {model}\n---\n{body}".encode()
    return files | {wheel.name: wheel.read_bytes()}


def check_wheel(wheel: Path) -> None:
    """Raise ValueError for a wheel with foreign files, such as others in the checkout that it was built from."""
    if not zipfile.is_zipfile(wheel):
        raise ValueError(f"{wheel} is damaged: build it again with `pip wheel --no-deps .`")
    with zipfile.ZipFile(wheel) as opened:
        names = opened.namelist()
    foreign = [name for name in names if not name.endswith("/") and not WHEEL_FILES.fullmatch(name)]
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        listed = ", ".join(map(shown, foreign[:3]))
        raise ValueError(
            f"{wheel.name} has files that are not part of this package: {listed}{more}; build a clean one"
        )


def publish_space(
    repo_id: str,
    *,
    model: str | None = None,
    wheel: str | Path | None = None,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
) -> str:
    """Upload the Space; returns the URL of the commit.

    Args:
        repo_id: user/space; created if it does not exist.
        model: the model on the Hub to show (the variable STYLEFUSION_MODEL); None for the embedded model.
        wheel: a wheel of this package; None builds one from the checkout.
        private: whether a new Space is private. The build of a private Space cannot fetch the wheel from it.
        token: access token; None for the stored login or HF_TOKEN.
        commit_message: title of the commit.

    Raises:
        ValueError, OSError: one line that says what is wrong; nothing is published then.
    """
    api: Any = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        files = space_files(repo_id, build_wheel(folder) if wheel is None else wheel, api.endpoint, model)
    with explain_errors(f"cannot publish to the Space {repo_id!r}"):
        api.create_repo(repo_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True)
        parent = api.repo_info(repo_id, repo_type="space").sha
        existing = api.list_repo_files(repo_id, repo_type="space", revision=parent)
        operations: list[Any] = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        # Delete wheels of other versions, and nothing else.
        operations += [CommitOperationDelete(path) for path in existing if WHEEL.fullmatch(path) and path not in files]
        if model is not None:
            api.add_space_variable(repo_id, "STYLEFUSION_MODEL", model)
        commit = api.create_commit(
            repo_id,
            operations,
            commit_message=commit_message or "Upload with stylefusion-hf",
            repo_type="space",
            parent_commit=parent,
        )
    return str(commit.commit_url)
