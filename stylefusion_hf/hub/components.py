"""A pipeline folder's components: which ones its index lists, and loading this package's own without running code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin

from stylefusion_hf.core.checks import short, shown
from stylefusion_hf.core.hub_files import has_variant

PACKAGE = "stylefusion_hf"


def components_of(config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return {name: (library, class)} for the components in a pipeline's config, without null entries."""
    found = {}
    for name, entry in config.items():
        pair = isinstance(entry, (list, tuple)) and len(entry) == 2 and all(isinstance(e, str) for e in entry)
        if pair and not name.startswith("_"):
            found[name] = (entry[0], entry[1])
    return found


def list_components(cls: Any, folder: str, passed: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Return {name: (library, class)} for the components that a pipeline class loads from a folder; all must exist.

    OSError or ValueError for a missing or invalid component.
    """
    if not os.path.isfile(os.path.join(folder, cls.config_name)):
        raise OSError(f"{folder} is not a pipeline folder: it has no {cls.config_name}")
    expected, _ = cls._get_signature_keys(cls)
    index = os.path.join(folder, cls.config_name)
    for name, entry in cls.load_config(folder).items():
        pair = isinstance(entry, (list, tuple)) and len(entry) == 2 and len({e is None for e in entry}) == 1
        if name in expected and not (pair and all(isinstance(e, str) or e is None for e in entry)):
            wanted = "[library, class] or [null, null]"
            raise OSError(f"{index}: {name!r} must be {wanted}, got {short(entry)}")
    listed = {n: entry for n, entry in components_of(cls.load_config(folder)).items() if n in expected}
    for name in expected:
        if name in passed:
            listed.pop(name, None)
        elif name in listed and listed[name][0] == PACKAGE and not _is_model(listed[name][1]):
            class_name = shown(listed[name][1])
            raise ValueError(
                f"{index}: {name!r} names a class of {PACKAGE}, which has no class `{class_name}`; was it saved"
                " by a newer version?"
            )
        elif name not in listed and name not in cls._optional_components:
            raise OSError(
                f"{index} lists no {name!r}, which {cls.__name__} needs: pass {name}=..., or save the pipeline again"
            )
        elif name in listed and not os.path.isfile(os.path.join(folder, name, "config.json")):
            raise OSError(
                f"the component {name!r} is listed in {cls.config_name}, but {os.path.join(folder, name)} has no"
                " config.json: download or save the pipeline again"
            )
    return listed


def load_own_components(folder: str, components: Mapping[str, tuple[str, str]], kwargs: Mapping[str, Any]) -> dict:
    """Load components of this package whose folders have a `.py` file, which diffusers would insist on running."""
    loaded = {}
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
    for name, (library, class_name) in components.items():
        path = Path(folder, name)
        if library != PACKAGE or not (path / f"{library}.py").is_file():
            continue
        model_class: Any = getattr(import_module(library), class_name, None)
        known = isinstance(model_class, type) and issubclass(model_class, ModelMixin)
        if not known:
            raise ValueError(f"{path.name}: {library} has no model {class_name!r}; was it saved by a newer version?")
        options = {
            key: kwargs[key] for key in ("use_safetensors", "low_cpu_mem_usage", "disable_mmap") if key in kwargs
        }
        variant = kwargs.get("variant")
        loaded[name] = model_class.from_pretrained(
            path,
            dtype=dtype.get(name, dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype,
            variant=variant if variant and has_variant(path, variant) else None,
            **options,
        )
    return loaded


def _is_model(class_name: str) -> bool:
    found = getattr(import_module(PACKAGE), class_name, None)
    return isinstance(found, type) and issubclass(found, ModelMixin)
