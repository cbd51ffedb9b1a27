"""Pipelines from folders and from the Hub: whole or one clear error, no foreign code, no local paths when saved."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import ModelMixin
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Pipeline
else:  # not a subclass: diffusers accepts only one pipeline class in a custom pipeline's file
    _Pipeline = object

PACKAGE = "stylefusion_hf"
EMBEDDED = "embedded"  # the name of the model that comes with the package
WEIGHTS = ("diffusion_pytorch_model", "model")  # stems of weight files: diffusers' and transformers'


class HubMixin(_Pipeline):
    """Loading and saving, for every pipeline of the package: `class P(HubMixin, DiffusionPipeline)`.

    A folder or a Hub id loads without `trust_remote_code`, also where the repository carries the small `.py` files
    that let plain diffusers load it: they are neither downloaded nor run.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """A pipeline from a folder or a Hub id; arguments as in diffusers, safetensors unless told otherwise.

        Raises:
            OSError: no such folder or repository, or a file is missing or damaged; names it.
            ValueError: sound files that do not fit together, such as a region tree without one of its nets.
        """
        given = os.fspath(pretrained_model_name_or_path)
        kwargs.setdefault("use_safetensors", True)
        folder = given if os.path.isdir(given) else os.fspath(cls.download(given, **kwargs))
        components = cls._listed_components(folder, kwargs)
        variant = kwargs.get("variant")
        if variant is not None and components and not any(_has_variant(Path(folder, c), variant) for c in components):
            raise ValueError(f"no component in {folder} has weights of the variant {variant!r}: leave variant out")
        kwargs |= _load_beside_code(folder, components, kwargs)
        pipe = super().from_pretrained(folder, **kwargs)
        pipe.register_to_config(_name_or_path=given)
        return pipe

    @classmethod
    def from_embedded(cls, **kwargs: Any) -> Self:
        """The model that comes with the package; needs no network. OSError where the installation has none."""
        with as_file(_assets()) as folder:
            if not (folder / cls.config_name).is_file():
                raise OSError(
                    f"this installation of {PACKAGE} has no embedded model: {folder / cls.config_name} is missing."
                    " Install the package's wheel or a full checkout, or load a model with from_pretrained"
                )
            pipe = cls.from_pretrained(folder, **kwargs)
        pipe.register_to_config(_name_or_path=EMBEDDED)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Self:
        """A pipeline around the same components, or those given instead; each keeps its dtype unless `dtype` is given.

        (diffusers' own would cast the shared components to float32.)
        """
        dtype = kwargs.pop("torch_dtype", None)
        dtype = kwargs.pop("dtype", dtype)
        expected, settings = cls._get_signature_keys(cls)
        shared = {name: module for name, module in pipeline.components.items() if name in expected}
        shared |= {name: pipeline.config[name] for name in settings if name in pipeline.config}
        made = cls(**(shared | kwargs))
        if (name := pipeline.config.get("_name_or_path")) is not None:
            made.register_to_config(_name_or_path=name)
        return made if dtype is None else made.to(dtype=dtype)

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike, **kwargs: Any) -> str:
        """The snapshot folder of a Hub repository: the index, and each component's config and safetensors; no code.

        Args: as in diffusers; components that are passed are not fetched, `variant` fetches the default weights only
        of components without that variant.
        """
        name = os.fspath(pretrained_model_name)
        passed_on = ("cache_dir", "force_download", "token", "local_files_only")
        options = {key: kwargs[key] for key in passed_on if kwargs.get(key) is not None}
        try:
            index = hf_hub_download(name, cls.config_name, revision=kwargs.get("revision"), **options)
        except (HFValidationError, RepositoryNotFoundError, EntryNotFoundError, OSError) as error:
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise OSError(
                f"{name!r} is no folder here, and no pipeline on the Hub that can be reached: {reason[0].strip()}"
            ) from error
        commit = Path(index).parent.name  # so that everything comes from one revision, whatever is pushed meanwhile
        components = _components(cls.load_config(os.path.dirname(index)))
        wanted = [component for component in components if component not in kwargs]
        variant = kwargs.get("variant")
        configs = [cls.config_name, *(f"{component}/*config*.json" for component in wanted)]

        def fetch(patterns: Sequence[str]) -> str:
            return snapshot_download(
                name, revision=commit, allow_patterns=list(patterns), ignore_patterns=["*.py"], **options
            )

        folder = fetch([*configs, *(pattern for component in wanted for pattern in _weights(component, variant))])
        if variant is not None:
            plain = [component for component in wanted if not _has_variant(Path(folder, component), variant)]
            if plain:
                folder = fetch([pattern for component in plain for pattern in _weights(component, None)])
        return folder

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, but a class that is also given as a file's (["pipeline", "Name"]) is just "Name" here."""
        loaded = super().load_config(*args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if not isinstance(config, dict):
            raise OSError(f"{cls.config_name} is a JSON object, found {type(config).__name__}")
        if isinstance(config.get("_class_name"), (list, tuple)):
            config["_class_name"] = config["_class_name"][-1]
        return loaded

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, without the local paths that diffusers would record."""
        models = [getattr(module, "_orig_mod", module) for module in self.components.values()]
        with _without_paths([self, *models]):
            super().save_pretrained(save_directory, *args, **kwargs)

    @property
    def device(self) -> torch.device:
        """The generator's. (diffusers would ask the first component by name, which may be any object that encodes.)"""
        return self.generator.device

    @property
    def dtype(self) -> torch.dtype:
        """The generator's."""
        return self.generator.dtype

    @classmethod
    def _listed_components(cls, folder: str, passed: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
        """name -> (library, class) of what is to be loaded from a folder; an error where something is not there."""
        if not os.path.isfile(os.path.join(folder, cls.config_name)):
            raise OSError(f"{folder} is no pipeline folder: it has no {cls.config_name}")
        expected, _ = cls._get_signature_keys(cls)
        listed = {n: entry for n, entry in _components(cls.load_config(folder)).items() if n in expected}
        for name in expected:
            if name in passed:
                listed.pop(name, None)
            elif name not in listed and name not in cls._optional_components:
                raise OSError(
                    f"{os.path.join(folder, cls.config_name)} lists no {name!r}, which {cls.__name__} needs: pass"
                    f" {name}=..., or save the pipeline again"
                )
            elif name in listed and not os.path.isfile(os.path.join(folder, name, "config.json")):
                raise OSError(
                    f"the component {name!r} is listed in {cls.config_name}, but {os.path.join(folder, name)} has no"
                    " config.json: download or save the pipeline again"
                )
        return listed

    # ------------------------------------------------------------------------------------------------
    # Which model this is, for recipes.

    def model_identity(self) -> dict[str, Any]:
        """{"name": Hub id, folder's last name or None, "sha256": {component: of its weights}}; no local path.

        Hashing costs a second or so for the largest models, once: afterwards only where weights were replaced or
        changed in place. (What is written through `parameter.data` goes unseen.)
        """
        known = self.__dict__.setdefault("_known_sha256", {})
        hashes = {}
        for name in ("generator", "fusion"):
            model: Any = getattr(self, name, None)
            if model is None:
                continue
            model = getattr(model, "_orig_mod", model)
            tensors = list(itertools.chain(model.parameters(), model.buffers()))
            if any(tensor.is_meta for tensor in tensors):
                continue  # offloaded: its numbers are not at hand
            state = (id(model), *((t.data_ptr(), t.dtype, 0 if t.is_inference() else t._version) for t in tensors))
            if name not in known or known[name][0] != state:
                known[name] = (state, weights_sha256(model))
            hashes[name] = known[name][1]
        return {"name": _public_name(self.config.get("_name_or_path")), "sha256": hashes}


def weights_sha256(model: torch.nn.Module) -> str:
    """The sha256 of a model's saved tensors: names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _public_name(name: Any) -> str | None:
    """A Hub id as it is; of a local path the last part."""
    if not name:
        return None
    name = str(name)
    is_id = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", name) and not os.path.isdir(name)
    return name if is_id else (re.split(r"[\\/]", os.path.normpath(name))[-1] or None)


def _assets() -> Any:
    return files(PACKAGE) / "assets"


def _components(config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """name -> (library, class) of a pipeline's config, without those that are null."""
    found = {}
    for name, entry in config.items():
        pair = isinstance(entry, (list, tuple)) and len(entry) == 2 and all(isinstance(e, str) for e in entry)
        if pair and not name.startswith("_"):
            found[name] = (entry[0], entry[1])
    return found


def _weights(component: str, variant: str | None) -> list[str]:
    """Patterns of a component's safetensors files, whole or in shards."""
    dot = f".{variant}" if variant else ""
    ends = (f"{dot}.safetensors", f"{dot}-*-of-*.safetensors", f".safetensors.index{dot}.json")
    return [f"{component}/{stem}{end}" for stem in WEIGHTS for end in ends]


def _has_variant(folder: Path, variant: str) -> bool:
    return any(folder.glob(f"*.{variant}.safetensors")) or any(folder.glob(f"*.{variant}-*-of-*.safetensors"))


def _load_beside_code(folder: str, components: Mapping[str, tuple[str, str]], kwargs: Mapping[str, Any]) -> dict:
    """Our components of a folder that has a `.py` file for them, which diffusers would insist on running."""
    loaded = {}
    dtype = kwargs.get("dtype", kwargs.get("torch_dtype"))
    for name, (library, class_name) in components.items():
        path = Path(folder, name)
        if library != PACKAGE or not (path / f"{library}.py").is_file():
            continue
        model_class: Any = getattr(import_module(library), class_name, None)
        known = isinstance(model_class, type) and issubclass(model_class, ModelMixin)
        if not known:
            raise ValueError(f"{path.name}: {library} has no model {class_name!r}; is the model of a newer version?")
        options = {
            key: kwargs[key] for key in ("use_safetensors", "low_cpu_mem_usage", "disable_mmap") if key in kwargs
        }
        variant = kwargs.get("variant")
        loaded[name] = model_class.from_pretrained(
            path,
            dtype=dtype.get(name, dtype.get("default", torch.float32)) if isinstance(dtype, dict) else dtype,
            variant=variant if variant and _has_variant(path, variant) else None,
            **options,
        )
    return loaded


@contextmanager
def _without_paths(configured: Sequence[Any]) -> Iterator[None]:
    """Takes `_name_or_path` out of these objects' configs for a while."""
    key, taken = "_name_or_path", []
    for owner in configured:
        config = getattr(owner, "_internal_dict", None)
        if config is not None and key in config:
            taken.append((owner, config[key]))
            owner._internal_dict = type(config)({k: v for k, v in config.items() if k != key})
    try:
        yield
    finally:
        for owner, name in taken:
            owner.register_to_config(**{key: name})
