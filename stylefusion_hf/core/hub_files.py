"""Files of Hub repositories: of one commit, whole, compared with the Hub's hashes; one clear error for each failure.

Under the models and the pipelines alike, and on top of huggingface_hub, whose cache, resumption and retries it keeps.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from huggingface_hub import (
    constants,
    get_hf_file_metadata,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
    try_to_load_from_cache,
)
from huggingface_hub.errors import (
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.file_download import repo_folder_name

WEIGHTS = ("diffusion_pytorch_model", "model")  # stems of weight files: diffusers' and transformers'
OPTIONS = ("cache_dir", "force_download", "token", "local_files_only")  # of from_pretrained, for huggingface_hub
LOCAL_PATH = "_name_or_path"  # the key under which diffusers notes where a model came from: a path of this machine
NAME = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")  # of a repository
CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # of whichever HTTP client huggingface_hub uses
CHUNK = 2**20  # bytes hashed at a time
PATIENCE = 2.5  # seconds for the Hub to answer at all; HF_HUB_ETAG_TIMEOUT in the environment replaces it


class NoAnswer(CLIENT_ERROR):  # type: ignore[misc, valid-type]  # known at run time
    """The Hub did not answer within the time that it is given."""


def weight_patterns(folder: str, variant: str | None) -> list[str]:
    """Patterns of a component's safetensors files, whole or in shards; `folder` is "" at the top of a repository."""
    dot = f".{variant}" if variant else ""
    ends = (f"{dot}.safetensors", f"{dot}-*-of-*.safetensors", f".safetensors.index{dot}.json")
    return [f"{folder}/{stem}{end}".lstrip("/") for stem in WEIGHTS for end in ends]


def has_variant(folder: Path, variant: str) -> bool:
    """Whether a component's folder has weights of that variant, whole or in shards."""
    return any(folder.glob(f"*.{variant}.safetensors")) or any(folder.glob(f"*.{variant}-*-of-*.safetensors"))


# --- Downloads -------------------------------------------------------------------------------------------------------


@contextmanager
def snapshot(
    repo_id: str, file: str, revision: str | None, options: Mapping[str, Any]
) -> Iterator[tuple[Path, Callable[[Sequence[str]], None]]]:
    """One commit of a repository, whatever is pushed meanwhile: the one that `file` was found in.

    Args:
        repo_id: `user/name`.
        file: fetched first; the repository must have it.
        revision: branch, tag or commit; None for the default branch.
        options: keyword arguments of `from_pretrained`; those in OPTIONS count.

    Yields:
        The snapshot's folder in the cache, and a function that fetches the files that match any of its patterns
        (never `.py`). Whatever was downloaded is compared with the hash that the Hub gave for it in the end.

    Raises:
        OSError: one line that names the repository, what happened and what to do.
    """
    chosen = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    with explained(f"{repo_id!r} is no folder here, and cannot be loaded from the Hub", revision):
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
                f"{repo_id!r} did not arrive as the Hub has it: {', '.join(damaged)} has another hash, and was removed"
                " from the cache. Load it again"
            )


def _patience() -> float:
    own = constants.HF_HUB_ETAG_TIMEOUT
    return PATIENCE if own == constants.DEFAULT_ETAG_TIMEOUT else float(own)


def _check_connection(
    repo_id: str, file: str, revision: str | None, options: Mapping[str, Any], patience: float
) -> None:
    """Raises the client's error where the Hub cannot be reached within a few seconds.

    Only for what is not in the cache, to which huggingface_hub falls back at once; else it would try for minutes. What
    a Hub answers, if only a status, is left to huggingface_hub.
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
        except Exception:  # whatever it is, the download itself will say it
            problems.clear()

    until = time.monotonic() + patience
    for wait in (0.2, 0.6, 0.0):
        problems[:] = [NoAnswer(f"no answer within {patience:g} s")]
        asked = threading.Thread(target=ask, daemon=True)  # a name server may take longer than any time limit
        asked.start()
        asked.join(max(until - time.monotonic(), 0.1))
        if not problems or time.monotonic() + wait >= until:
            break
        time.sleep(wait)
    if problems and options.get("force_download"):
        raise problems[0]
    if problems:
        raise LocalEntryNotFoundError(f"{file} is not in the cache") from problems[0]


def _or_cached(download: Callable[..., str], repo_id: str, **kwargs: Any) -> str:
    """huggingface_hub's download, from the cache where the connection breaks: it does so only if there is none."""
    try:
        try:
            return download(repo_id, **kwargs)
        except AttributeError as error:
            # Its threads share a client, which the first that finds no connection closes under the others.
            if "'NoneType' object has no attribute" not in str(error):
                raise
            raise NoAnswer("no connection") from error
    except CLIENT_ERROR as error:
        if isinstance(error, HfHubHTTPError):  # an answer
            raise
        try:
            return download(repo_id, **kwargs | {"local_files_only": True})
        except (OSError, ValueError):
            if isinstance(error, NoAnswer):
                raise LocalEntryNotFoundError("the cache lacks a file") from error
            raise error from None


def _blobs(storage: Path) -> dict[Path, tuple[int, int]]:
    """A repository's files in the cache, which bear their hashes as names -> what changes when they are replaced."""
    files = [path for path in storage.glob("blobs/*") if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", path.name)]
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.is_file()}


def _remove_damaged(storage: Path, before: Mapping[Path, Any]) -> list[str]:
    """Removes new files that are not what their names say; returns what they are called in the repository.

    (huggingface_hub compares sizes only. Where the system has no links, files do not bear their hashes as names, and
    are not compared.)
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
    """What the Hub, or a mirror of it, may call this content: git's hash of a small file, LFS's of a large one."""
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


# --- What goes wrong -------------------------------------------------------------------------------------------------


@contextmanager
def explained(failure: str, revision: str | None = None) -> Iterator[None]:
    """Turns what huggingface_hub raises into `OSError("{failure}: what happened: what to do")`; else changes nothing.

    No token is ever part of it: only the kind of the error, its status, and paths are.
    """
    try:
        yield
    except Exception as error:
        found = _reason(error, revision)
        if found is None:
            raise
        raise OSError(f"{failure}: {found[0]}. {found[1]}") from error


def _reason(error: BaseException | None, revision: str | None) -> tuple[str, str] | None:
    """What happened and what to do; None for an error that is not of the Hub, its client or the network."""
    if error is None:
        return None
    if isinstance(error, HFValidationError):
        return "that is no name of a repository", "Give a folder that exists, or a name of the form user/name"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}", "Give revision= a branch, a tag or a commit of it"
    if isinstance(error, GatedRepoError):
        return "its owner grants access one by one", "Ask for it on its page, then log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return (
            "there is no such repository, or it is private",
            "Check the name; for a private one log in with `hf auth login` or pass token=",
        )
    if isinstance(error, OfflineModeIsEnabled):
        return (
            "downloads are switched off",
            "Load it once without local_files_only and HF_HUB_OFFLINE",
        )
    if isinstance(error, LocalEntryNotFoundError):  # the cache was the second choice: what was wrong with the first?
        what, do = _reason(error.__cause__, revision) or _reason(OfflineModeIsEnabled(), revision) or ("", "")
        return f"{what}, and the cache does not hold all of it", do
    if isinstance(error, EntryNotFoundError):
        url = unquote(str(error.response.url)) if isinstance(error, HfHubHTTPError) else ""
        file = re.split(r"/resolve/[^/]+/", url)[-1] if "/resolve/" in url else "such file"
        return f"it has no {file}", "Check the name, and revision= where one was given"
    if isinstance(error, HfHubHTTPError):
        return _status_reason(error)
    if isinstance(error, (FileMetadataError, json.JSONDecodeError, UnicodeDecodeError)):
        return f"{constants.ENDPOINT} does not answer as a Hub does", "Check HF_ENDPOINT, the proxy and the firewall"
    if isinstance(error, CLIENT_ERROR):
        return (
            f"no connection to {constants.ENDPOINT} ({type(error).__name__})",
            "Check the network and try again (HF_HUB_ETAG_TIMEOUT=30 waits longer); what was loaded before loads with"
            " local_files_only=True",
        )
    if isinstance(error, OSError) and (error.errno or str(error).startswith("Consistency check failed")):
        if error.errno == errno.ENOSPC:
            return f"no space is left on the disk ({error.filename or 'the cache'})", "Free some, or pass cache_dir="
        if error.errno:
            return f"{error.strerror} ({error.filename})", "Check the folder, or pass cache_dir="
        return "a file did not arrive whole", "Load it again; what did arrive is kept"
    if isinstance(error, (RuntimeError, ValueError)):  # huggingface_hub's wrapping of what happened to one file
        return _reason(error.__cause__, revision)
    return None


def _status_reason(error: HfHubHTTPError) -> tuple[str, str]:
    """Of an answer that is no success."""
    status = error.response.status_code
    wait = error.response.headers.get("retry-after")
    said = " ".join((error.server_message or "").split())[:200]
    said = re.sub(r"hf_\w+", "hf_...", f": {said}" if said else "")  # should a server ever repeat a token
    if status == 401:
        return f"the Hub wants a login, or another one (401){said}", "Log in with `hf auth login`, or check HF_TOKEN"
    if status == 403:
        return (
            f"the token lacks the right to do this (403){said}",
            "Use one with that right: huggingface.co/settings/tokens, then `hf auth login`",
        )
    if status in (409, 412):
        return f"it was changed by somebody else meanwhile ({status}){said}", "Try again"
    if status == 429:
        return "too many requests (429)", f"Try again in {wait} seconds" if wait else "Try again in some minutes"
    if status >= 500:
        return f"the Hub has a fault of its own ({status})", "Try again later; status.huggingface.co says how it is"
    return f"the Hub refused ({status}){said}", "Check the name and the arguments"


# --- Local paths -----------------------------------------------------------------------------------------------------


@contextmanager
def without_paths(configured: Sequence[Any]) -> Iterator[None]:
    """Takes `_name_or_path` out of these objects' configs for a while, so that it is not saved."""
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
    """Whether this is a name of the form `user/name` or `name`, and no folder."""
    return bool(NAME.fullmatch(str(name))) and not os.path.isdir(name)
