"""Downloads from Hub repositories: all files from one commit, verified against the Hub's hashes, with clear errors.

Models and pipelines load through this module. It wraps huggingface_hub and keeps its cache, resumption and retries.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from huggingface_hub.file_download import repo_folder_name

from stylefusion_hf.core.hub_errors import CLIENT_ERROR, NoAnswer, explain_errors

WEIGHTS = ("diffusion_pytorch_model", "model")  # stems of weight files in diffusers and transformers
OPTIONS = (
    "cache_dir",
    "force_download",
    "token",
    "local_files_only",
)  # of from_pretrained, passed to huggingface_hub
LOCAL_PATH = "_name_or_path"  # config key under which diffusers records a model's origin, a path on this machine
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # of a repository
CHUNK = 2**20  # bytes hashed at a time
PATIENCE = 2.5  # seconds to wait for the Hub's first answer; HF_HUB_ETAG_TIMEOUT overrides it


def weight_patterns(folder: str, variant: str | None) -> list[str]:
    """Return patterns of a component's safetensors files, single or sharded; `folder` is "" for the root."""
    dot = f".{variant}" if variant else ""
    ends = (f"{dot}.safetensors", f"{dot}-*-of-*.safetensors", f".safetensors.index{dot}.json")
    return [f"{folder}/{stem}{end}".lstrip("/") for stem in WEIGHTS for end in ends]


def has_variant(folder: Path, variant: str) -> bool:
    """Return whether a component's folder has weights of that variant, single or sharded."""
    names = (f"*.{variant}{shard}.{suffix}" for shard in ("", "-*-of-*") for suffix in ("safetensors", "bin"))
    return any(any(folder.glob(name)) for name in names)


# --- Downloads -------------------------------------------------------------------------------------------------------


@contextmanager
def snapshot(
    repo_id: str, file: str, revision: str | None, options: Mapping[str, Any]
) -> Iterator[tuple[Path, Callable[[Sequence[str]], None]]]:
    """Download from a single commit of a repository, even if someone pushes meanwhile.

    Args:
        repo_id: `user/name`.
        file: fetched first and determines the commit; the repository must have it.
        revision: branch, tag or commit; None for the default branch.
        options: keyword arguments of `from_pretrained`; only those in OPTIONS are used.

    Yields:
        The snapshot's folder in the cache, and a function that fetches all files that match any of the given patterns
        (never `.py`). On exit all downloads are verified against the Hub's hashes.

    Raises:
        OSError: one line that names the repository, what happened and what to do.
    """
    chosen = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    with explain_errors(f"{repo_id!r} is not a local folder, and cannot be loaded from the Hub", revision):
        storage = Path(chosen.get("cache_dir") or constants.HF_HUB_CACHE).expanduser()
        storage /= repo_folder_name(repo_id=repo_id, repo_type="model")
        before = _blobs(storage)
        try:
            patience = _patience()
            _check_connection(repo_id, file, revision, chosen, patience)
            asked = {"filename": file, "revision": revision, "etag_timeout": patience}
            first = Path(_or_cached(hf_hub_download, repo_id, **asked, **chosen))
            folder = first.parents[file.count("/")]

            def fetch(patterns: Sequence[str]) -> None:
                which = {"allow_patterns": list(patterns), "ignore_patterns": ["*.py"]}
                _or_cached(snapshot_download, repo_id, revision=folder.name, **which, **chosen)

            yield folder, fetch
        finally:
            damaged = _remove_damaged(storage, before)
        if damaged:
            raise OSError(
                f"{repo_id!r} was damaged in download: {', '.join(damaged)} does not match the Hub's hash, and was"
                " removed from the cache. Load it again"
            )


def _patience() -> float:
    own = constants.HF_HUB_ETAG_TIMEOUT
    return PATIENCE if own == constants.DEFAULT_ETAG_TIMEOUT else float(own)


def _check_connection(
    repo_id: str, file: str, revision: str | None, options: Mapping[str, Any], patience: float
) -> None:
    """Raise the client's error if the Hub cannot be reached within a few seconds.

    Only checked for files not in the cache: for these huggingface_hub would retry for minutes, while it falls back to
    the cache immediately. Any answer of the Hub, even an error status, is left to huggingface_hub.
    """
    cache = options.get("cache_dir")
    if constants.HF_HUB_OFFLINE or options.get("local_files_only"):
        return
    known = try_to_load_from_cache(repo_id, file, cache_dir=cache, revision=revision)
    if isinstance(known, str) and not options.get("force_download"):
        return
    url = hf_hub_url(repo_id, file, revision=revision)
    problems: list[Exception] = []

    def ask() -> None:
        try:
            get_hf_file_metadata(url, token=options.get("token"), timeout=patience)
            problems.clear()
        except CLIENT_ERROR as error:
            problems[:] = [] if isinstance(error, HfHubHTTPError) else [error]
        except Exception:  # the download itself will report it
            problems.clear()

    until = time.monotonic() + patience
    for wait in (0.2, 0.6, 0.0):
        problems[:] = [NoAnswer(f"no answer within {patience:g} s")]
        request = threading.Thread(target=ask, daemon=True)  # DNS lookups ignore the client's timeout
        request.start()
        request.join(max(until - time.monotonic(), 0.1))
        if not problems or time.monotonic() + wait >= until:
            break
        time.sleep(wait)
    if problems and options.get("force_download"):
        raise problems[0]
    if problems:
        raise LocalEntryNotFoundError(f"{file} is not in the cache") from problems[0]


def _or_cached(download: Callable[..., str], repo_id: str, **kwargs: Any) -> str:
    """Download, or use the cache if the connection breaks (huggingface_hub does so only if it cannot be made)."""
    try:
        try:
            return download(repo_id, **kwargs)
        except AttributeError as error:
            # huggingface_hub's threads share a client; the first one to lose its connection closes it for the others.
            if "'NoneType' object has no attribute" not in str(error):
                raise
            raise NoAnswer("no connection") from error
    except CLIENT_ERROR as error:
        if isinstance(error, HfHubHTTPError):  # the Hub answered
            raise
        try:
            return download(repo_id, **kwargs | {"local_files_only": True})
        except (OSError, ValueError):
            if isinstance(error, NoAnswer):
                raise LocalEntryNotFoundError("the cache lacks a file") from error
            raise error from None


def _blobs(storage: Path) -> dict[Path, tuple[int, int]]:
    """Return a repository's cached files, which are named by their hashes -> (modification time, size)."""
    files = [path for path in storage.glob("blobs/*") if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", path.name)]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.is_file()}


def _remove_damaged(storage: Path, before: Mapping[Path, Any]) -> list[str]:
    """Remove new files whose content does not match the hash in their name; return their paths in the repository.

    huggingface_hub itself compares sizes only. On systems without symbolic links cached files are not named by their
    hashes, and are not verified.
    """
    removed = []
    for blob, state in _blobs(storage).items():
        if before.get(blob) == state or blob.name in _hashes(blob):
            continue
        for link in storage.glob("snapshots/*/**/*"):
            if link.is_symlink() and link.resolve() == blob.resolve():
                removed.append("/".join(link.relative_to(storage).parts[2:]))
                link.unlink()
        blob.unlink()
    return removed


def _hashes(path: Path) -> set[str]:
    """Return the hashes by which the Hub or a mirror may name a file: git's for small files, LFS's for large ones."""
    size = path.stat().st_size
    if len(path.name) == 64:
        digests = [hashlib.sha256()]
    else:
        digests = [hashlib.sha1(f"blob {size}\0".encode()), hashlib.sha1()]
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            for digest in digests:
                digest.update(chunk)
    return {digest.hexdigest() for digest in digests}


# --- Local paths -----------------------------------------------------------------------------------------------------


@contextmanager
def without_paths(configured: Sequence[Any]) -> Iterator[None]:
    """Remove `_name_or_path` from these objects' configs during the body, so that it is not saved."""
    taken = []
    for owner in configured:
        config = getattr(owner, "_internal_dict", None)
        if config is not None and LOCAL_PATH in config:
            taken.append((owner, config[LOCAL_PATH]))
            owner._internal_dict = type(config)({k: v for k, v in config.items() if k != LOCAL_PATH})
    try:
        yield
    finally:
        for owner, name in taken:
            owner.register_to_config(**{LOCAL_PATH: name})


def is_hub_id(name: Any) -> bool:
    """Return whether this is a name of the form `user/name` or `name` and not an existing folder."""
    return bool(NAME.fullmatch(str(name))) and not os.path.isdir(name)
