"""A light import of diffusers for commands that fuse pictures: half a second instead of four.

With a pipeline, diffusers imports all its models, and for these transformers, scipy and torch's compiler if installed.
Models of this package need none of them. While diffusers is imported they are hidden as if they were not installed, a
case that diffusers supports; afterward they can be imported normally. For the rest of the process, diffusers does not
know of the hidden packages, so this is done only in command-line processes and for models of this package's own
classes. If anything goes wrong, diffusers is imported normally.
"""

from __future__ import annotations

import importlib.metadata
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import wraps
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

PACKAGE = "stylefusion_hf"
# Classes that need none of the hidden packages.
OWN = {
    "FusionHierarchy",
    "ImageEncoder",
    "MobileStyleGANGenerator",
    "RegionSegmenter",
    "StyleGAN2Generator",
    "StyleGAN3Generator",
}
HIDDEN = ("transformers", "peft", "scipy", "torchvision", "onnxruntime")
WANTED = (
    "diffusers.image_processor",
    "diffusers.hooks.group_offloading",
    "diffusers.models.modeling_utils",
    "diffusers.pipelines.pipeline_utils",
)
COMPILER = "torch._dynamo"
MAX_INDEX = 2**20  # bytes of a model index

own_process = False  # whether this process runs a command, as opposed to another program that calls `cli.main`


def import_diffusers(folder: Path | None) -> bool:
    """Import the parts of diffusers that pipelines need; returns False if nothing was done.

    Args:
        folder: the model's folder; None for a model that may not be on this machine yet.
    """
    if not own_process or "diffusers" in sys.modules or COMPILER in sys.modules or not _is_own(folder):
        return False
    import accelerate  # noqa: F401  # before anything is hidden
    import torch  # noqa: F401

    before = set(sys.modules)
    try:
        with _hide_packages():
            _compare_lazily(import_module("diffusers.utils.torch_utils"))
            with _stub_vae(import_module("diffusers.models")):
                for name in WANTED:
                    import_module(name)
    except Exception:  # from versions that cannot be imported in part
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "diffusers":
                del sys.modules[name]
        return False
    return True


def _is_own(folder: Path | None) -> bool:
    """Return whether a model consists of classes of this package that need only torch."""
    try:
        index: Any = Path(folder, "model_index.json") if folder is not None else None
        if index is None or index.stat().st_size > MAX_INDEX:
            return False
        entries = json.loads(index.read_bytes()).items()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    pairs = [entry for name, entry in entries if not name.startswith("_") and isinstance(entry, list)]
    return all(
        entry == [None, None] or (entry[0] == PACKAGE and entry[1] in OWN) for entry in pairs if len(entry) == 2
    )


@contextmanager
def _hide_packages() -> Iterator[None]:
    """Make the packages of HIDDEN unimportable unless already imported; stub torch's compiler with null decorators."""
    stub: Any = ModuleType(COMPILER)
    stub.allow_in_graph = lambda function: function
    stub.disable = _null_decorator
    hidden: dict[str, Any] = {name: None for name in HIDDEN if name not in sys.modules}
    hidden[COMPILER] = stub
    sys.modules.update(hidden)
    # The map of modules to packages is slow to read, and diffusers needs it only for packages that are hidden here.
    distributions = importlib.metadata.packages_distributions
    importlib.metadata.packages_distributions = dict
    try:
        yield
    finally:
        importlib.metadata.packages_distributions = distributions
        for name, module in hidden.items():
            if sys.modules.get(name, module) is module:
                sys.modules.pop(name, None)
        torch = sys.modules["torch"]
        if vars(torch).get("_dynamo") is stub:
            delattr(torch, "_dynamo")


@contextmanager
def _stub_vae(models: Any) -> Iterator[None]:
    """Stub AutoencoderKL, which diffusers' pipelines only compare with, and whose import would load all its models.

    After the block, the real class can be imported.
    """
    models.AutoencoderKL = type("AutoencoderKL", (), {"__doc__": "A stub without instances."})
    try:
        yield
    finally:
        del models.AutoencoderKL


def _compare_lazily(torch_utils: Any) -> None:
    """Keep diffusers from importing the compiler to find out whether a component was compiled."""
    compare = torch_utils.is_compiled_module

    @wraps(compare)
    def is_compiled_module(module: Any) -> bool:
        return COMPILER in sys.modules and compare(module)

    torch_utils.is_compiled_module = is_compiled_module


def _null_decorator(function: Any = None, *_: Any, **__: Any) -> Any:
    """Stand in for `@disable` and `@disable()` of torch.compiler, which only affect compiled code."""
    return function if callable(function) else _null_decorator
