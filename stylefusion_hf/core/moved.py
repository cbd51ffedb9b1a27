"""Deprecated module names that docs/reference/stability.md keeps alive: they warn and forward to the new modules."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from importlib import import_module
from typing import Any


def forward(old: str, *homes: str) -> Callable[[str], Any]:
    """Return a module `__getattr__` that looks names up in the modules `homes` and warns that `old` is deprecated."""

    def lookup(name: str) -> Any:
        if not name.startswith("_"):
            for home in homes:
                module = import_module(home)
                if hasattr(module, name):
                    warnings.warn(f"{old}.{name} is now {home}.{name}", FutureWarning, stacklevel=2)
                    return getattr(module, name)
        raise AttributeError(f"module {old!r} has no attribute {name!r}")

    return lookup
