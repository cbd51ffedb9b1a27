"""A Space on this machine, for tests and measurements."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


@contextmanager
def serving(models: Sequence[Any], folder: Path) -> Iterator[str]:
    """The address of a Space with these models, which keeps its files in `folder`."""
    from stylefusion_hf.spaces_app import app

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        page = app.queued(app.build(models))
        _, url, _ = page.launch(prevent_thread_lock=True, quiet=True, **app.launch_settings())
        try:
            yield url.rstrip("/")
        finally:
            page.close(verbose=False)
