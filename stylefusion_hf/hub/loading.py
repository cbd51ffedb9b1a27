"""Loading of pipelines from folders and the Hub, and saving: no code is run, and no local paths are saved."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from importlib.resources import as_file, files
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Self

import torch

from stylefusion_hf.core.checks import check_path, short
from stylefusion_hf.core.files import atomic_folder
from stylefusion_hf.core.hub_files import has_variant, is_hub_id, snapshot, weight_patterns, without_paths
from stylefusion_hf.core.named_models import EMBEDDED, check_embedded, find_model
from stylefusion_hf.core.progress import is_redirected, quiet_loading, tqdm
from stylefusion_hf.core.regular_files import check_model_folder
from stylefusion_hf.hub.components import PACKAGE, components_of, list_components, load_own_components
from stylefusion_hf.models.hooks import fingerprint, unwrap
from stylefusion_hf.models.loading import (
    NO_DISK,
    StrictModelMixin,
    check_device_map,
    remove_other_weights,
    weights_sha256,
)

if TYPE_CHECKING:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline as _Pipeline

    from stylefusion_hf.models.fusion.hierarchy import FusionHierarchy
    from stylefusion_hf.models.style_generator import StyleGenerator
else:  # not a subclass, since diffusers accepts only one pipeline class in the file of a custom pipeline
    _Pipeline = object


class HubMixin(_Pipeline):
    """Loading and saving for every pipeline of the package: `class P(HubMixin, DiffusionPipeline)`.

    Folders and Hub ids load without `trust_remote_code`. The small `.py` files in a repository, with which plain
    diffusers can load it, are neither downloaded nor run.
    """

    if TYPE_CHECKING:  # the components; what is assigned may also be compiled, or a component of the caller's own

        @property
        def generator(self) -> StyleGenerator: ...
        @generator.setter
        def generator(self, value: Any) -> None: ...
        @property
        def fusion(self) -> FusionHierarchy: ...
        @fusion.setter
        def fusion(self, value: Any) -> None: ...

        segmenter: Any
        encoder: Any

        def to(self, *args: Any, **kwargs: Any) -> Self: ...

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Self:
        """Load a pipeline from a folder or a Hub id; arguments as in diffusers, with safetensors by default.

        Raises:
            OSError: no such folder or repository, or a file is missing or damaged; names it.
            ValueError: valid files that do not fit together, such as a region tree without one of its nets.
        """
        given = check_path(pretrained_model_name_or_path)
        if check_device_map(kwargs.get("device_map"), ("balanced",), dicts=False) not in (None, "balanced"):
            kwargs["device_map"] = torch.device(kwargs["device_map"]).type  # diffusers takes texts only
        kwargs.setdefault("use_safetensors", True)
        local = find_model(given)
        folder = local if os.path.isdir(local) else os.fspath(cls.download(given, **kwargs))
        try:
            pipe = cls._from_folder(folder, kwargs)
        except (OSError, ValueError) as error:
            if folder == given and folder in str(error):
                raise
            kind = OSError if isinstance(error, OSError) else ValueError
            again = "" if folder == local else "; force_download=True downloads it again"
            raise kind(f"{given}: {error}{again}") from error
        pipe.register_to_config(_name_or_path=given)
        return pipe

    @classmethod
    def _from_folder(cls, folder: str, kwargs: dict[str, Any]) -> Self:
        check_model_folder(folder, *(path.name for path in Path(folder).iterdir() if path.is_dir()))
        components = list_components(cls, folder, kwargs)
        variant = kwargs.get("variant")
        if variant is not None and components and not any(has_variant(Path(folder, c), variant) for c in components):
            raise ValueError(f"no component in {folder} has weights of the variant {variant!r}: leave variant out")
        try:
            with quiet_loading():
                return super().from_pretrained(folder, **kwargs | load_own_components(folder, components, kwargs))
        except (OSError, TypeError, ValueError) as error:
            if not _raised_in("diffusers", error):
                raise
            problem = short(" ".join(str(error).split()), 400)
            raise OSError(f"{folder} cannot be loaded: {problem}. Download or save the pipeline again") from error

    @classmethod
    def from_embedded(cls, **kwargs: Any) -> Self:
        """Load the model that comes with the package, without network access. OSError if it is not installed."""
        with as_file(_assets()) as folder:
            pipe = cls.from_pretrained(check_embedded(folder), **kwargs)
        pipe.register_to_config(_name_or_path=EMBEDDED)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: Any, **kwargs: Any) -> Self:
        """Create a pipeline with the components of another, or those given instead.

        Components keep their dtype unless `dtype` is given (diffusers would cast the shared ones to float32).
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
        """Download the index, configs and safetensors of a Hub repository, but no code; returns the snapshot folder.

        Arguments as in diffusers. Components that are passed are not fetched. With `variant`, default weights are
        fetched only for components without that variant.
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
        """Load the config as diffusers does, but reduce a class with a file (["pipeline", "Name"]) to "Name"."""
        try:
            loaded = super().load_config(*args, **kwargs)
        except (RecursionError, UnicodeDecodeError, OSError) as error:
            if isinstance(error, OSError) and "not a valid JSON" not in str(error):
                raise
            file = os.path.join(str(args[0]), cls.config_name) if args else cls.config_name
            raise OSError(f"'{file}' is not a valid JSON file: download or save the pipeline again") from error
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if not isinstance(config, dict):
            raise OSError(f"{cls.config_name} must be a JSON object, found {type(config).__name__}")
        name = config.get("_class_name", "")
        name = name[-1] if isinstance(name, (list, tuple)) and name else name
        if not isinstance(name, str):
            raise OSError(f"{cls.config_name}: _class_name must be the name of a class, got {short(name)}")
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
        """Save the pipeline as diffusers does, but without recording local paths.

        With `push_to_hub=True` the folder is then uploaded by `publishing.publish` to `repo_id=`, by default a
        repository with the folder's name; further keyword arguments are passed to that function.
        """
        models = [unwrap(module) for module in self.components.values()]
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
            repo_id: `user/name`; created if it does not exist.
            commit_message, private, token, create_pr: as in diffusers.
            safe_serialization: must be True; pickles are not published.
            variant: variant of the weights; other variants in the repository are kept.
            max_shard_size: larger weight files are split.
            kwargs: further arguments of `publishing.publish`: revision, license, base_model, tags, report,
                overwrite_card.

        Returns:
            The URL of the commit.

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
        """Return a progress bar as in diffusers, silent by default if stderr is not a terminal.

        `set_progress_bar_config(disable=False)` shows it there too.
        """
        config = getattr(self, "_progress_bar_config", {})
        if "disable" not in config and is_redirected():
            return tqdm(iterable, total=total, disable=True)
        return super().progress_bar(iterable, total)

    # ------------------------------------------------------------------------------------------------
    # Offloading.

    def enable_sequential_cpu_offload(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; ValueError for components of other packages, which are used without being called."""
        self._refuse_other_modules("enable_sequential_cpu_offload", ())
        super().enable_sequential_cpu_offload(*args, **kwargs)

    def enable_group_offload(self, onload_device: Any, *args: Any, **kwargs: Any) -> None:
        """As in diffusers, without streams and disks; ValueError for these, and for components of other packages,
        which are used without being called, unless they are in `exclude_modules`."""
        given = signature(super().enable_group_offload).bind(onload_device, *args, **kwargs).arguments
        excluded = given.get("exclude_modules") or ()
        excluded = [excluded] if isinstance(excluded, str) else list(excluded)
        self._refuse_other_modules("enable_group_offload", excluded)
        if given.get("use_stream"):
            raise ValueError(
                "enable_group_offload(use_stream=True) expects every call of a model to use the same layers in the"
                " same order, which these models' calls do not: leave use_stream out"
            )
        if given.get("offload_to_disk_path") is not None:
            raise ValueError(f"enable_group_offload: {NO_DISK}")
        super().enable_group_offload(torch.device(onload_device), *args, **kwargs)

    def _refuse_other_modules(self, method: str, excluded: Iterable[str]) -> None:
        for name, part in self.components.items():
            is_other = isinstance(part, torch.nn.Module) and not isinstance(unwrap(part), StrictModelMixin)
            if is_other and name not in excluded:
                raise ValueError(
                    f"{method}: the {name} is a {type(part).__name__}, of which only a method is used, and"
                    " offloading layer by layer acts on calls alone: use enable_model_cpu_offload"
                )

    @property
    def device(self) -> torch.device:
        """The generator's device. (diffusers would use the first component by name, which need not be a module.)"""
        return self.generator.device

    @property
    def dtype(self) -> torch.dtype:
        """The generator's dtype."""
        return self.generator.dtype

    # ------------------------------------------------------------------------------------------------
    # Identity of the model, for recipes.

    def model_identity(self) -> dict[str, Any]:
        """Return {"name": Hub id, last part of the folder, or None, "sha256": {component: hash of its weights}}.

        Hashes are cached until weights are replaced or changed in place; the largest models take about a second.
        (Changes through `parameter.data` are not noticed.)
        """
        known = self.__dict__.setdefault("_known_sha256", {})
        hashes = {}
        for name in ("generator", "fusion"):
            model: Any = getattr(self, name, None)
            if model is None:
                continue
            state = fingerprint(model)
            if name not in known or known[name][0] != state:
                known[name] = (state, weights_sha256(model))
            hashes[name] = known[name][1]
        return {"name": _public_name(self.config.get("_name_or_path")), "sha256": hashes}


def _raised_in(package: str, error: BaseException) -> bool:
    """Return whether an error was raised by a package's own code, so that its message needs context."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").split(".")[0] == package


def _public_name(name: Any) -> str | None:
    """Return a Hub id unchanged, and the last part of a local path."""
    if not name:
        return None
    name = str(name)
    return name if is_hub_id(name) else (re.split(r"[\\/]", os.path.normpath(name))[-1] or None)


def _assets() -> Any:
    return files(PACKAGE) / "assets"
