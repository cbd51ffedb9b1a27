"""Strict loading for every model of the package, from folders and from the Hub.

diffusers only warns about weights that a checkpoint lacks, and leaves those parameters on the meta device, where the
first call fails with a message that names nothing. Here an incomplete or damaged checkpoint is one clear error.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import ModelMixin
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.overrides import TorchFunctionMode

from stylefusion_hf.core.checks import check_path, short
from stylefusion_hf.core.hub_files import explained, snapshot, weight_patterns, without_paths

STEM = "diffusion_pytorch_model"  # of weight files
LARGEST_CONFIG = 2**24  # bytes; a config has some hundred
_loading = threading.RLock()  # diffusers changes torch's default dtype for all threads while it loads


class StrictModelMixin(ModelMixin):
    """A diffusers `ModelMixin` whose `from_pretrained` returns a complete model or raises; its files tell no paths.

    Raises:
        OSError: a file is missing, truncated or not what its name says, or the Hub does not give it; names it and says
            what to do.
        ValueError: the files are sound, but lack weights that the config asks for, or have them in another shape.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any) -> Self:
        """As in diffusers, from a folder or a Hub id, with `subfolder=` for a component of a pipeline."""
        given, subfolder = check_path(pretrained_model_name_or_path), kwargs.pop("subfolder", None) or ""
        where = path = os.path.join(given, subfolder) if subfolder else given
        wants_info = kwargs.pop("output_loading_info", False)
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True  # diffusers falls back to pickles where there are no safetensors
        fetched = bool(given) and not os.path.exists(given) and kwargs["use_safetensors"]
        if fetched:
            variant = kwargs.get("variant")
            config = f"{subfolder}/{cls.config_name}".lstrip("/")
            with snapshot(given, config, kwargs.pop("revision", None), kwargs) as (folder, fetch):
                fetch(weight_patterns(subfolder, variant))
            path = os.path.join(folder, subfolder)
        elif not os.path.isdir(given):  # a file, or pickles from the Hub, which diffusers is left to load
            path, kwargs["subfolder"] = given, subfolder or None
        if os.path.isdir(path):
            cls._check_files(path, where, kwargs.get("variant"))
        light = nullcontext() if kwargs.get("low_cpu_mem_usage") is False else WithoutMemory()
        try:
            with _undisturbed(), light:
                model, info = super().from_pretrained(path, output_loading_info=True, **kwargs)
        except OSError as error:
            problem = " ".join(str(error).split())
            if "Unable to load weights" in problem:
                problem = f"its weights are truncated or in another format ({problem})"
            elif named := re.search(r"Error no file named (diffusion_pytorch_model\S*)", problem):
                problem = f"there is no {named[1]}"
            elif not os.path.isdir(path):
                raise  # a matter of the Hub or the network, which diffusers explains
            again = (
                "Load it again with force_download=True" if fetched else "Download, convert or save the model again"
            )
            raise OSError(f"{cls.__name__} cannot be loaded from {where}: {problem}. {again}") from error
        except (RuntimeError, TypeError, ValueError) as error:
            if "size mismatch" not in str(error) and "expected shape" not in str(error):
                problem = " ".join(str(error).split())
                raise ValueError(f"{cls.__name__} cannot be made of {where}: {problem}") from error
            problem = " ".join(str(error).split(" If you want to instead")[0].split()).rstrip(".")
            raise ValueError(
                f"the weights in {where} do not fit {cls.__name__}'s config.json: {problem}. Use the config.json that"
                " was saved with the weights"
            ) from error
        if fetched:  # diffusers has noted where the files are in the cache
            model.register_to_config(_name_or_path=given)

        missing = set(info.get("missing_keys", ()))
        if getattr(model, "hf_device_map", None) is None:  # else offloaded weights are on meta by design
            tensors = itertools.chain(model.named_parameters(), model.named_buffers())
            missing |= {name for name, tensor in tensors if tensor.is_meta}
        if missing:
            raise ValueError(
                f"the checkpoint {where} is incomplete: {cls._describe_missing(model, sorted(missing))}."
                " Download or convert it again, or correct its config.json"
            )
        return (model, info) if wants_info else model  # type: ignore[return-value]

    @classmethod
    def _check_files(cls, folder: str, where: str, variant: str | None) -> None:
        """What diffusers does not look at: JSON of another kind, and weights that are no real numbers, which it would
        convert. Damaged safetensors are left to diffusers' own errors."""
        for name in (cls.config_name, f"{STEM}.safetensors.index.json"):
            file = Path(folder, name)
            if not file.is_file():
                continue
            try:
                content: Any = json.loads(file.read_text("utf-8")) if file.stat().st_size <= LARGEST_CONFIG else None
                sound = isinstance(content, dict)
                if sound and name != cls.config_name:  # shards are files of this folder, nothing else is opened
                    shards = content.get("weight_map")
                    sound = isinstance(shards, dict) and bool(shards)
                    sound = sound and all(isinstance(s, str) and re.fullmatch(r"[\w.-]+", s) for s in shards.values())
                    sound = sound and isinstance(content.get("metadata"), dict)
            except (ValueError, RecursionError, OSError):
                sound = False
            if not sound:
                raise OSError(
                    f"{cls.__name__} cannot be loaded from {where}: {name} is not the JSON object that it should be."
                    " Download, convert or save the model again"
                )

        files = [file for pattern in weight_patterns("", variant) for file in Path(folder).glob(pattern)]
        for file in files:
            try:
                with safe_open(file, "pt") as opened:
                    kinds = {name: opened.get_slice(name).get_dtype() for name in opened.keys()}  # noqa: SIM118
            except (SafetensorError, OSError):
                continue
            for name, kind in kinds.items():
                if not kind.startswith(("F", "BF")):
                    raise ValueError(
                        f"the weights in {file} are no floating-point numbers: {short(name)} is of type {kind}."
                        " Download, convert or save the model again"
                    )

    @wraps(ModelMixin.save_pretrained)  # pipelines look at the names of its parameters
    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        folder, given = (
            Path(save_directory),
            signature(ModelMixin.save_pretrained).bind(self, save_directory, *args, **kwargs),
        )
        given.apply_defaults()
        main, safe, variant = (given.arguments[name] for name in ("is_main_process", "safe_serialization", "variant"))
        dot = f".{variant}" if variant else ""
        whole, index = folder / f"{STEM}{dot}.safetensors", folder / f"{STEM}.safetensors.index{dot}.json"
        if main and safe:
            index.unlink(missing_ok=True)  # of an earlier save in shards: loading would look for these
        super().save_pretrained(save_directory, *args, **kwargs)
        if main and safe and index.is_file():
            whole.unlink(missing_ok=True)  # of an earlier save in one file
        elif main and safe and not self.state_dict():
            save_file({}, whole, metadata={"format": "pt"})  # a tree may have no net; diffusers would write nothing

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """As in diffusers, without the local path that diffusers would record."""
        with without_paths([self]):
            super().save_config(save_directory, push_to_hub, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """As in diffusers; OSError in one line for whatever the Hub refuses."""
        with explained(f"cannot upload to {repo_id!r}"):
            return str(super().push_to_hub(repo_id, **kwargs))

    @classmethod
    def _describe_missing(cls, model: Any, keys: Sequence[str]) -> str:
        """What the missing keys mean to a user; a model of several parts overrides it to name them."""
        listed = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        return f"{cls.__name__} lacks {len(keys)} of its weights ({listed})"


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without diffusers' warning on missing weights (an error follows), and with torch's default dtype put back, which
    diffusers leaves at `dtype` where a model's constructor raises."""

    def keep(record: logging.LogRecord) -> bool:
        return "are newly initialized: " not in record.getMessage()

    with _loading:
        logger, default = logging.getLogger("diffusers.models.modeling_utils"), torch.get_default_dtype()
        logger.addFilter(keep)
        try:
            yield
        finally:
            logger.removeFilter(keep)
            torch.set_default_dtype(default)


class WithoutMemory(TorchFunctionMode):
    """Large tensors that a constructor fills are made on the meta device: a checkpoint's own take their place, and the
    sizes in a stranger's config cost nothing before they are compared with the checkpoint's."""

    LARGE = 2**18  # numbers; smaller tensors may be constants that no checkpoint holds
    FILLED = frozenset((torch.randn, torch.rand, torch.zeros, torch.ones, torch.empty, torch.eye))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FILLED and kwargs.get("device") is None:
            outline = func(*args, **{**kwargs, "device": "meta"})
            if outline.numel() >= self.LARGE:
                return outline
        return func(*args, **kwargs)
