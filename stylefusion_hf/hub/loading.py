"""Pipelines from folders and from the Hub: whole or one clear error, no foreign code, no local paths when saved."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from importlib import import_module
from importlib.resources import as_file, files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import torch
from diffusers import ModelMixin

from stylefusion_hf.core.checks import check_path, short, shown
from stylefusion_hf.core.files import atomic_folder
from stylefusion_hf.core.hub_files import has_variant, is_hub_id, snapshot, weight_patterns, without_paths
from stylefusion_hf.core.progress import is_redirected, quiet_loading, tqdm
from stylefusion_hf.core.regular_files import check_model_folder
from stylefusion_hf.models.loading import remove_other_weights, weights_sha256

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline as _Pipeline
else:  # not a subclass: diffusers accepts only one pipeline class in a custom pipeline's file
    _Pipeline = object

PACKAGE = "stylefusion_hf"
EMBEDDED = "embedded"  # the name of the model that comes with the package


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
        given = check_path(pretrained_model_name_or_path)
        kwargs.setdefault("use_safetensors", True)
        folder = given if os.path.isdir(given) else os.fspath(cls.download(given, **kwargs))
        try:
            pipe = cls._from_folder(folder, kwargs)
        except (OSError, ValueError) as error:
            if folder == given and folder in str(error):
                raise
            kind = OSError if isinstance(error, OSError) else ValueError
            again = "" if folder == given else "; force_download=True downloads it anew"
            raise kind(f"{given}: {error}{again}") from error
        pipe.register_to_config(_name_or_path=given)
        return pipe

    @classmethod
    def _from_folder(cls, folder: str, kwargs: dict[str, Any]) -> Self:
        check_model_folder(folder, *(path.name for path in Path(folder).iterdir() if path.is_dir()))
        components = cls._listed_components(folder, kwargs)
        variant = kwargs.get("variant")
        if variant is not None and components and not any(has_variant(Path(folder, c), variant) for c in components):
            raise ValueError(f"no component in {folder} has weights of the variant {variant!r}: leave variant out")
        try:
            with quiet_loading():
                return super().from_pretrained(folder, **kwargs | _load_beside_code(folder, components, kwargs))
        except (OSError, TypeError, ValueError) as error:
            if not _raised_in("diffusers", error):
                raise
            problem = short(" ".join(str(error).split()), 400)
            raise OSError(f"{folder} cannot be loaded: {problem}. Download or save the pipeline again") from error

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
        name, variant = os.fspath(pretrained_model_name), kwargs.get("variant")
        with snapshot(name, cls.config_name, kwargs.get("revision"), kwargs) as (folder, fetch):
            components = components_of(cls.load_config(folder))
            wanted = [component for component in components if component not in kwargs]
            configs = [cls.config_name, *(f"{component}/*config*.json" for component in wanted)]
            fetch([*configs, *(pattern for component in wanted for pattern in weight_patterns(component, variant))])
            if variant is not None:
                plain = [component for component in wanted if not has_variant(folder / component, variant)]
                if plain:
                    fetch([pattern for component in plain for pattern in weight_patterns(component, None)])
        return os.fspath(folder)

    @classmethod
    def load_config(cls, *args: Any, **kwargs: Any) -> Any:
        """As in diffusers, but a class that is also given as a file's (["pipeline", "Name"]) is just "Name" here."""
        try:
            loaded = super().load_config(*args, **kwargs)
        except (RecursionError, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and "not a valid JSON" not in str(error):
                raise
            file = os.path.join(str(args[0]), cls.config_name) if args else cls.config_name
            raise OSError(f"'{file}' is not a valid JSON file: download or save the pipeline again") from error
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if not isinstance(config, dict):
            raise OSError(f"{cls.config_name} is a JSON object, found {type(config).__name__}")
        name = config.get("_class_name", "")
        name = name[-1] if isinstance(name, (list, tuple)) and name else name
        if not isinstance(name, str):
            raise OSError(f"{cls.config_name} says that _class_name is {short(name)}, and not a class's name")
        config["_class_name"] = name
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **kwargs: Any,
    ) -> None:
        """As in diffusers, without the local paths that diffusers would record.

        With `push_to_hub=True` the folder is then uploaded by `publishing.publish`, to `repo_id=` or the repository of
        the folder's name; the other keyword arguments are that function's.
        """
        models = [getattr(module, "_orig_mod", module) for module in self.components.values()]
        further = {} if push_to_hub else kwargs
        with without_paths([self, *models]), atomic_folder(save_directory, tidy=remove_other_weights) as work:
            super().save_pretrained(work, safe_serialization, variant, max_shard_size, **further)
        if push_to_hub:
            from stylefusion_hf.hub.publishing import publish

            folder = Path(save_directory)
            publish(folder, kwargs.pop("repo_id", folder.resolve().name), pipe=self, **kwargs)

    def push_to_hub(
        self,
        repo_id: str,
        commit_message: str | None = None,
        private: bool | None = None,
        token: str | None = None,
        create_pr: bool = False,
        safe_serialization: bool = True,
        variant: str | None = None,
        *,
        max_shard_size: int | str | None = None,
        **kwargs: Any,
    ) -> str:
        """Upload weights, the files with which plain diffusers loads them, and a model card with a picture.

        Args:
            repo_id: `user/name`; made where there is none.
            commit_message, private, token, create_pr: as in diffusers.
            safe_serialization: True: pickles are not published.
            variant: of the weights; other variants that the repository has stay.
            max_shard_size: weight files are split beyond it.
            kwargs: further arguments of `publishing.publish`: revision, license, base_model, tags, report,
                overwrite_card.

        Returns:
            The commit's address.

        Raises:
            OSError: one line that names the repository, what happened and what to do; nothing is published then.
        """
        from stylefusion_hf.hub.publishing import publish

        if not safe_serialization:
            raise ValueError("safe_serialization=False would publish pickles, which run code where they are loaded")
        kwargs |= {"commit_message": commit_message, "private": private, "token": token, "create_pr": create_pr}
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, variant=variant, max_shard_size=max_shard_size)
            return publish(Path(folder), repo_id, pipe=self, keep_variants=True, **kwargs)

    def progress_bar(self, iterable: Any = None, total: int | None = None) -> Any:
        """As in diffusers; quiet where stderr is not a terminal, unless `set_progress_bar_config(disable=False)`."""
        config = getattr(self, "_progress_bar_config", {})
        if "disable" not in config and is_redirected():
            return tqdm(iterable, total=total, disable=True)
        return super().progress_bar(iterable, total)

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
        index = os.path.join(folder, cls.config_name)
        for name, entry in cls.load_config(folder).items():
            pair = isinstance(entry, (list, tuple)) and len(entry) == 2 and len({e is None for e in entry}) == 1
            if name in expected and not (pair and all(isinstance(e, str) or e is None for e in entry)):
                wanted = "[library, class] or [null, null]"
                raise OSError(f"{index} says that {name!r} is {short(entry)}, and not {wanted}")
        listed = {n: entry for n, entry in components_of(cls.load_config(folder)).items() if n in expected}
        for name in expected:
            if name in passed:
                listed.pop(name, None)
            elif name in listed and listed[name][0] == PACKAGE and not _is_model(listed[name][1]):
                class_name = shown(listed[name][1])
                raise ValueError(
                    f"{index} says that {name!r} is of {PACKAGE}, which has no class `{class_name}`; is it of"
                    " a newer version?"
                )
            elif name not in listed and name not in cls._optional_components:
                raise OSError(
                    f"{index} lists no {name!r}, which {cls.__name__} needs: pass"
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


def _is_model(class_name: str) -> bool:
    found = getattr(import_module(PACKAGE), class_name, None)
    return isinstance(found, type) and issubclass(found, ModelMixin)


def _raised_in(package: str, error: BaseException) -> bool:
    """Whether an error comes from a package's own code, whose words may help nobody."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").split(".")[0] == package


def _public_name(name: Any) -> str | None:
    """A Hub id as it is; of a local path the last part."""
    if not name:
        return None
    name = str(name)
    return name if is_hub_id(name) else (re.split(r"[\\/]", os.path.normpath(name))[-1] or None)


def _assets() -> Any:
    return files(PACKAGE) / "assets"


def components_of(config: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """name -> (library, class) of a pipeline's config, without those that are null."""
    found = {}
    for name, entry in config.items():
        pair = isinstance(entry, (list, tuple)) and len(entry) == 2 and all(isinstance(e, str) for e in entry)
        if pair and not name.startswith("_"):
            found[name] = (entry[0], entry[1])
    return found


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
            variant=variant if variant and has_variant(path, variant) else None,
            **options,
        )
    return loaded
