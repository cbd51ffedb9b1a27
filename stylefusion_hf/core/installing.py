"""The command that adds an extra of this package to the installation at hand."""

from __future__ import annotations

import json
import os
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

NAME = "stylefusion-hf"


def install_command(*extras: str) -> str:
    """Return `pip install ...` for the extras, from where the package was installed: a checkout, a wheel or an index.

    It can be pasted into a shell, or cmd on Windows, as it is.
    """
    listed = f"[{','.join(extras)}]" if extras else ""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e {_quote(f'{checkout}{listed}')}"
    url = _origin()
    if url is None:
        return f"pip install {_quote(NAME + listed)}"
    local = Path(url2pathname(urlsplit(url).path)) if url.startswith("file:") else None
    if local is not None and local.exists():
        return f"pip install {_quote(f'{local}{listed}')}"
    if local is not None:  # the wheel is gone
        return f"pip install {_quote(f'path/to/{local.name}{listed}')}"
    return f"pip install {_quote(f'{NAME}{listed} @ {url}')}"


def _origin() -> str | None:
    """Return the address that pip recorded for a wheel, a folder or a repository; None for an index."""
    try:
        text = distribution(NAME).read_text("direct_url.json")
        found = json.loads(text or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return None
    url = found.get("url") if isinstance(found, dict) else None
    if not isinstance(url, str):
        return None
    kind = found.get("vcs_info") or {}
    return f"{kind['vcs']}+{url}@{kind['commit_id']}" if {"vcs", "commit_id"} <= set(kind) else url


def _quote(text: str) -> str:
    """Quote for any shell: doubly, which cmd knows too, unless that leaves something for a POSIX shell to expand."""
    return shlex.quote(text) if os.name != "nt" and set(text) & set('$`"\\!') else f'"{text}"'
