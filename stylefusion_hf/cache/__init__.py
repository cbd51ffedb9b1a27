"""Where this package keeps what it makes for the user: builds of the native operators, converted models."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return $STYLEFUSION_CACHE, else $XDG_CACHE_HOME/stylefusion_hf, else ~/.cache/stylefusion_hf.

    Raises:
        OSError: neither is set, and the user has no home folder.
    """
    if named := os.environ.get("STYLEFUSION_CACHE"):
        return Path(os.path.expanduser(named))
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    if base.startswith("~"):
        raise OSError("there is no home folder; set STYLEFUSION_CACHE to a folder for builds and models")
    return Path(base) / "stylefusion_hf"
