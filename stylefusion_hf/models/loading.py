"""Strict loading for all models of the package, from folders and from the Hub.

diffusers only warns about weights missing from a checkpoint and leaves those parameters on the meta device, where the
first call fails with an unhelpful message. Here an incomplete or damaged checkpoint raises one clear error.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import Any, Self

import torch
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from diffusers.models.modeling_utils import ModelMixin
from safetensors import SafetensorError, safe_open
from torch.overrides import TorchFunctionMode

from stylefusion_hf.core.checks import check_path, describe_error, short, shown
from stylefusion_hf.core.files import atomic_folder
from stylefusion_hf.core.hub_errors import explain_errors
from stylefusion_hf.core.hub_files import snapshot, weight_patterns, without_paths
from stylefusion_hf.core.json_files import read_object
from stylefusion_hf.core.named_models import find_model
from stylefusion_hf.core.progress import quiet_loading
from stylefusion_hf.core.regular_files import check_model_folder
from stylefusion_hf.core.tensor_files import write_tensors
from stylefusion_hf.models.hooks import PREFIX, cast_own_weights, has_hooks, plain_copy, true_tensors

STEM = "diffusion_pytorch_model"  # of the names of weight files
WRITTEN = re.compile(
    rf"{STEM}(?:(?P<variant>\.[\w]+)?(?:-\d+-of-\d+)?\.safetensors|\.safetensors\.index(?P<indexed>\.[\w]+)?\.json)"
)
SHARD = re.compile(r"[\w.-]+")  # name of a weight file in the model's own folder; nothing else is opened
LARGEST_CONFIG = 2**24  # bytes; a typical config has a few hundred
NO_DISK = "offload_to_disk_path is not supported: leave it out, so that weights are kept in memory"
_loading = threading.RLock()  # diffusers changes torch's default dtype for all threads while it loads


class StrictModelMixin(ModelMixin):
    """A diffusers `ModelMixin` whose `from_pretrained` returns a complete model or raises.

    Saved files contain no local paths.

    Raises:
        OSError: a file is missing, truncated or not of the expected format, or the Hub does not provide it; the
            message names it and says what to do.
        ValueError: the files are intact, but lack weights that the config requires, or have other shapes.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None, **kwargs: Any) -> Self:
        """Load as in diffusers, from a folder or a Hub id, with `subfolder=` for a component of a pipeline."""
        given, subfolder = find_model(check_path(pretrained_model_name_or_path)), kwargs.pop("subfolder", None) or ""
        where = path = os.path.join(given, subfolder) if subfolder else given
        wants_info = kwargs.pop("output_loading_info", False)
        check_device_map(kwargs.get("device_map"))
        if kwargs.get("use_safetensors") is None:
            kwargs["use_safetensors"] = True  # otherwise diffusers falls back to pickles
        fetched = bool(given) and not os.path.exists(given) and kwargs["use_safetensors"]
        if fetched:
            variant = kwargs.get("variant")
            config = f"{subfolder}/{cls.config_name}".lstrip("/")
            with snapshot(given, config, kwargs.pop("revision", None), kwargs) as (folder, fetch):
                fetch(weight_patterns(subfolder, variant))
            path = os.path.join(folder, subfolder)
        elif not os.path.isdir(given):  # a file, or pickles from the Hub: leave it to diffusers
            path, kwargs["subfolder"] = given, subfolder or None
        if os.path.isdir(path):
            cls._check_files(path, where, kwargs.get("variant"))
        allocation = nullcontext() if kwargs.get("low_cpu_mem_usage") is False else MetaAllocation()
        try:
            with _restore_torch_defaults(), quiet_loading(), allocation:
                model, info = super().from_pretrained(path, output_loading_info=True, **kwargs)
        except OSError as error:
            problem = describe_error(error, 800)
            if "Unable to load weights" in problem:
                problem = f"its weights are truncated or in another format ({problem})"
            elif named := re.search(r"Error no file named (diffusion_pytorch_model\S*)", problem):
                problem = f"there is no {named[1]}"
                if pickles := sorted(file.name for file in Path(path).glob(f"{STEM}*.bin")):
                    raise OSError(
                        f"{cls.__name__} cannot be loaded from {where}: {problem}, only {pickles[0]}, a pickle. If you"
                        " trust where it is from, pass use_safetensors=False, and save the model again"
                    ) from error
            elif not os.path.isdir(path):
                raise  # a Hub or network problem, which diffusers explains
            remedy = (
                "Load it again with force_download=True" if fetched else "Download, convert or save the model again"
            )
            raise OSError(f"{cls.__name__} cannot be loaded from {where}: {problem}. {remedy}") from error
        except (RuntimeError, TypeError, ValueError) as error:
            if left_out := re.match(r"(\S+) doesn't have any device set", str(error)):
                raise ValueError(
                    f"device_map={short(kwargs['device_map'])} leaves out {left_out[1]} of {cls.__name__}: give a"
                    " device for all, {'': device}"
                ) from error
            if "size mismatch" not in str(error) and "expected shape" not in str(error):
                problem = describe_error(error, 800)
                raise ValueError(f"{cls.__name__} cannot be built from {where}: {problem}") from error
            problem = shown(" ".join(str(error).split(" If you want to instead")[0].split()).rstrip("."), 800)
            raise ValueError(
                f"the weights in {where} do not fit {cls.__name__}'s config.json: {problem}. Use the config.json that"
                " was saved with the weights"
            ) from error
        if fetched:  # diffusers has recorded the files' place in the cache
            model.register_to_config(_name_or_path=given)

        missing = set(info.get("missing_keys", ()))
        if getattr(model, "hf_device_map", None) is None:  # offloaded weights are on meta by design
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
        """Check what diffusers does not: the structure of JSON files, and weights that are not floating-point, which
        it would convert. Damaged safetensors are left to diffusers' own errors."""
        try:
            check_model_folder(folder)
        except OSError as error:
            raise OSError(f"{cls.__name__} cannot be loaded from {where}: {error}") from error
        for name in (cls.config_name, f"{STEM}.safetensors.index.json"):
            file = Path(folder, name)
            if not file.is_file():
                continue
            try:
                content: Any = read_object(file, largest=LARGEST_CONFIG)
                sound = True
                if name != cls.config_name:  # shards must be files in this folder
                    shards = content.get("weight_map")
                    sound = isinstance(shards, dict) and bool(shards)
                    sound = sound and all(isinstance(s, str) and SHARD.fullmatch(s) for s in shards.values())
                    sound = sound and isinstance(content.get("metadata"), dict)
            except (ValueError, OSError):
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
                        f"the weights in {file} are not floating-point numbers: {short(name)} is of type {kind}."
                        " Download, convert or save the model again"
                    )

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        save_function: Callable[..., Any] | None = None,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str = "10GB",
        push_to_hub: bool = False,
        use_flashpack: bool = False,
        **kwargs: Any,
    ) -> None:
        """Save as in diffusers: config and weights, of an offloaded, cast or compiled model as of a plain one.

        OSError if the files cannot be written.
        """
        if not is_main_process:
            return
        kwargs |= {"use_flashpack": True} if use_flashpack else {}
        if has_hooks(self):
            # Weights on meta or in another dtype could be saved, but not loaded and used.
            plain_copy(self, "cpu").save_pretrained(
                save_directory, True, save_function, safe_serialization, variant, max_shard_size, push_to_hub, **kwargs
            )
            return
        if push_to_hub:
            kwargs.setdefault("repo_id", Path(save_directory).absolute().name)  # not the temporary folder's
        with atomic_folder(save_directory, tidy=remove_other_weights) as work:
            try:
                super().save_pretrained(
                    work, True, save_function, safe_serialization, variant, max_shard_size, push_to_hub, **kwargs
                )
            except SafetensorError as error:  # raised for a full disk, for example
                raise OSError(f"the weights cannot be written to {save_directory}: {error}") from error
            if safe_serialization and not self.state_dict():  # a tree without nets, for which diffusers writes no file
                write_tensors(work / f"{STEM}{f'.{variant}' if variant else ''}.safetensors", {}, {"format": "pt"})

    def save_config(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save as in diffusers, but without recording the local path."""
        with without_paths([self]), atomic_folder(save_directory) as work:
            super().save_config(work, push_to_hub, **kwargs)

    def push_to_hub(self, repo_id: str, **kwargs: Any) -> str:
        """Upload as in diffusers; one-line OSError if the Hub refuses."""
        with explain_errors(f"cannot upload to {repo_id!r}"):
            return str(super().push_to_hub(repo_id, **kwargs))

    # ------------------------------------------------------------------------------------------------
    # Compiled parts and layerwise casting.

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As of any module, with the same names where parts are compiled: `model.part = torch.compile(model.part)`."""
        state = super().state_dict(*args, **kwargs)
        for name in [name for name in state if PREFIX in name]:
            state[name.replace(PREFIX, "")] = state.pop(name)
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module, from the names of `state_dict`."""
        names = {name.replace(PREFIX, ""): name for name in super().state_dict()}
        return super().load_state_dict({names.get(k, k): v for k, v in state_dict.items()}, strict, assign)

    def enable_group_offload(self, onload_device: torch.device | str, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, without streams, which prefetch layers in the order of the first call, and without disks.

        ValueError for these: these models' calls use different layers, and are small.
        """
        given = signature(ModelMixin.enable_group_offload).bind(self, onload_device, *args, **kwargs)
        if given.arguments.get("use_stream"):
            raise ValueError(
                f"{type(self).__name__} cannot be offloaded with use_stream=True, which expects every call to use the"
                " same layers in the same order: leave it out"
            )
        if given.arguments.get("offload_to_disk_path") is not None:
            raise ValueError(f"{type(self).__name__} cannot be offloaded so: {NO_DISK}")
        super().enable_group_offload(torch.device(onload_device), *args, **kwargs)

    def enable_layerwise_casting(
        self,
        storage_dtype: torch.dtype = torch.float8_e4m3fn,
        compute_dtype: torch.dtype | None = None,
        skip_modules_pattern: tuple[str, ...] | None = None,
        skip_modules_classes: tuple[type[torch.nn.Module], ...] | None = None,
        non_blocking: bool = False,
    ) -> None:
        """Keep weights in `storage_dtype` and compute in `compute_dtype` (None: the model's own), as in diffusers.

        diffusers knows torch's own layers; here the weights of this package's layers are cast too. Biases, noise and
        filters keep their dtype. Classes and names are skipped as in diffusers.
        """
        compute_dtype = self.dtype if compute_dtype is None else compute_dtype
        given = DEFAULT_SKIP_MODULES_PATTERN if skip_modules_pattern is None else tuple(skip_modules_pattern)
        patterns = (*given, *(self._keep_in_fp32_modules or ()), *(self._skip_layerwise_casting_patterns or ()))
        super().enable_layerwise_casting(
            storage_dtype, compute_dtype, skip_modules_pattern, skip_modules_classes, non_blocking
        )
        for name, module in self.named_modules():
            skipped = skip_modules_classes is not None and isinstance(module, skip_modules_classes)
            if not skipped and not any(re.search(pattern, name) for pattern in patterns):
                cast_own_weights(module, storage_dtype, compute_dtype, non_blocking)

    @classmethod
    def _describe_missing(cls, model: Any, keys: Sequence[str]) -> str:
        """Describe the missing keys to users; models with several parts override it to name those."""
        listed = ", ".join(keys[:4]) + (f" and {len(keys) - 4} more" if len(keys) > 4 else "")
        return f"{cls.__name__} lacks {len(keys)} of its weights ({listed})"


def check_device_map(device_map: Any, strategies: Sequence[str] = (), dicts: bool = True) -> Any:
    """Return a device map as diffusers takes it.

    Args:
        device_map: a device, one of the strategies, or a dict of devices.
        strategies: that are supported. "auto" is none: it would cut models into pieces that cannot be.
        dicts: whether a dict is supported.

    Raises:
        ValueError: not supported, or a device that cannot be used here.
    """
    if device_map is None or (isinstance(device_map, str) and device_map in strategies):
        return device_map
    for place in device_map.values() if dicts and isinstance(device_map, dict) else [device_map]:
        try:
            if isinstance(place, bool):
                raise TypeError("a number of an accelerator is no bool")
            torch.empty(0, device=place)
        except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
            known = f"{', '.join([*map(repr, strategies), 'a device'])}{' or a dict of devices' if dicts else ''}"
            is_device = isinstance(place, torch.device) or re.match(r"(cuda|mps|xpu|npu|hpu)\b", str(place))
            problem = f" ({describe_error(error, 200)})" if is_device else ""
            raise ValueError(
                f"device_map={short(device_map)} is not supported{problem}, only {known}: use .to(device), or a"
                " pipeline's enable_model_cpu_offload()"
            ) from None
    return device_map


def remove_other_weights(folder: Path, written: set[str]) -> None:
    """Remove weights of an earlier save, single or sharded, that loading would prefer to those just written."""
    for name in sorted(written):
        if not (found := WRITTEN.fullmatch(name)):
            continue
        dot = found["variant"] or found["indexed"] or ""
        for pattern in (
            f"{STEM}{dot}.safetensors",
            f"{STEM}{dot}-*-of-*.safetensors",
            f"{STEM}.safetensors.index{dot}.json",
        ):
            for file in folder.glob(pattern):
                if file.name not in written and WRITTEN.fullmatch(file.name):
                    file.unlink(missing_ok=True)


@contextmanager
def _restore_torch_defaults() -> Iterator[None]:
    """Restore torch's default dtype, which diffusers leaves at `dtype` if a model's constructor raises; also suppress
    diffusers' warning about missing weights, which an error follows."""

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


class MetaAllocation(TorchFunctionMode):
    """Creates large tensors in constructors on the meta device. The checkpoint's tensors replace them, so absurd sizes
    in an untrusted config allocate nothing before they are compared with the checkpoint."""

    LARGE = 2**18  # elements; smaller tensors may be constants that are not in the checkpoint
    FILLED = frozenset((torch.randn, torch.rand, torch.zeros, torch.ones, torch.empty, torch.eye))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FILLED and kwargs.get("device") is None:
            sizes = _sizes(func, args, kwargs)
            if math.prod(sizes) >= self.LARGE:
                # Not `func` itself: some have Python implementations on meta, which import torch's compiler.
                options = {name: kwargs[name] for name in ("dtype", "requires_grad") if name in kwargs}
                return torch.empty(sizes, **options, device="meta")
        return func(*args, **kwargs)


def weights_sha256(model: torch.nn.Module) -> str:
    """Return the SHA-256 of a model's saved tensors: names, dtypes, shapes and bytes, sorted by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(true_tensors(model), key=lambda pair: pair[0]):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.flatten().view(torch.uint8).numpy()))  # type: ignore[arg-type]  # is a buffer
    return digest.hexdigest()


def _sizes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape that torch.eye(n, m), torch.zeros(*sizes) or torch.zeros(sizes) creates."""
    if func is torch.eye:
        n = args[0] if args else kwargs["n"]
        m = args[1] if len(args) > 1 else kwargs.get("m")
        return (n, n if m is None else m)
    given = args[0] if args and not isinstance(args[0], int) else args or kwargs["size"]
    return tuple(given)
