"""A light import of diffusers, for commands that fuse pictures: half a second instead of four.

diffusers imports all its models with a pipeline, and for these transformers, scipy and torch's compiler, where they
are installed. Models of this package need none of them. While diffusers is imported they are hidden as if they were
not installed, a case that diffusers has code for; afterwards they can be imported as ever. What is hidden stays
unknown to diffusers in this process, so this happens only in processes of the command line, for models that consist of
this package's own classes; if anything goes wrong, diffusers is imported as usual.
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
# Classes that need nothing else.
OWN = {"FusionHierarchy", "ImageEncoder", "MobileStyleGANGenerator", "RegionSegmenter", "StyleGAN2Generator"}
HIDDEN = ("transformers", "peft", "scipy", "torchvision", "onnxruntime")
WANTED = (
    "diffusers.image_processor",
    "diffusers.hooks.group_offloading",
    "diffusers.models.modeling_utils",
    "diffusers.pipelines.pipeline_utils",
)
COMPILER = "torch._dynamo"
LARGEST = 2**20  # bytes of an index

own_process = False  # whether this process is a command's, and no other program's that calls `cli.main`


def import_diffusers(folder: Path | None) -> bool:
    """Imports what pipelines need of diffusers; False where nothing was done, and it is left to be imported as usual.

    Args:
        folder: of the model; None for one that is not on this machine yet.
    """
    if not own_process or "diffusers" in sys.modules or COMPILER in sys.modules or not _is_own(folder):
        return False
    import accelerate  # noqa: F401  # before anything is hidden
    import torch  # noqa: F401

    before = set(sys.modules)
    try:
        with _hidden():
            _compare_lazily(import_module("diffusers.utils.torch_utils"))
            with _without_vae(import_module("diffusers.models")):
                for name in WANTED:
                    import_module(name)
    except Exception:  # of versions that cannot do without
        for name in set(sys.modules) - before:
            if name.split(".")[0] == "diffusers":
                del sys.modules[name]
        return False
    return True


def _is_own(folder: Path | None) -> bool:
    """Whether a model consists of classes of this package that stand on torch alone."""
    try:
        index: Any = Path(folder, "model_index.json") if folder is not None else None
        if index is None or index.stat().st_size > LARGEST:
            return False
        entries = json.loads(index.read_bytes()).items()
    except (OSError, ValueError, AttributeError, RecursionError):
        return False
    pairs = [entry for name, entry in entries if not name.startswith("_") and isinstance(entry, list)]
    return all(
        entry == [None, None] or (entry[0] == PACKAGE and entry[1] in OWN) for entry in pairs if len(entry) == 2
    )


@contextmanager
def _hidden() -> Iterator[None]:
    """Packages that are not imported yet cannot be; of torch's compiler only decorators that do nothing can."""
    stub: Any = ModuleType(COMPILER)
    stub.allow_in_graph = lambda function: function
    stub.disable = _decorate_nothing
    hidden: dict[str, Any] = {name: None for name in HIDDEN if name not in sys.modules}
    hidden[COMPILER] = stub
    sys.modules.update(hidden)
    # Which package brings which module: read from all that is installed, and asked only of packages hidden here.
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
def _without_vae(models: Any) -> Iterator[None]:
    """A name in place of the class that diffusers' pipelines compare with, in a method for pipelines that have one.

    The class would be imported with all models of diffusers. Whoever asks for it afterwards gets it.
    """
    models.AutoencoderKL = type("AutoencoderKL", (), {"__doc__": "No model is one."})
    try:
        yield
    finally:
        del models.AutoencoderKL


def _compare_lazily(torch_utils: Any) -> None:
    """diffusers asks of every component whether it was compiled, and imports the compiler to find out."""
    compare = torch_utils.is_compiled_module

    @wraps(compare)
    def is_compiled_module(module: Any) -> bool:
        return COMPILER in sys.modules and compare(module)

    torch_utils.is_compiled_module = is_compiled_module


def _decorate_nothing(function: Any = None, *_: Any, **__: Any) -> Any:
    """`@disable` and `@disable()` of torch.compiler, which matter only to code that is compiled."""
    return function if callable(function) else _decorate_nothing
