"""Errors of the Hugging Face Hub and of its client in one line: what happened and what to do."""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import unquote

from huggingface_hub import constants
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

CLIENT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]  # base error of the HTTP client that huggingface_hub uses


class NoAnswer(CLIENT_ERROR):  # type: ignore[misc, valid-type]  # known at run time
    """The Hub did not answer in time."""


@contextmanager
def explain_errors(failure: str, revision: str | None = None) -> Iterator[None]:
    """Convert errors of huggingface_hub to `OSError("{failure}: what happened. What to do")`; others pass unchanged.

    The message contains only the kind of the error, its status, and paths, never a token.
    """
    try:
        yield
    except Exception as error:
        found = _reason(error, revision)
        if found is None:
            raise
        raise OSError(f"{failure}: {found[0]}. {found[1]}") from error


def _reason(error: BaseException | None, revision: str | None) -> tuple[str, str] | None:
    """Return what happened and what to do; None for an error that is not from the Hub, its client or the network."""
    if error is None:
        return None
    if isinstance(error, HFValidationError):
        return "that is not a repository name", "Give a folder that exists, or a name of the form user/name"
    if isinstance(error, RevisionNotFoundError):
        return f"it has no revision {revision!r}", "Give revision= a branch, a tag or a commit of it"
    if isinstance(error, GatedRepoError):
        return "access must be granted by its owner", "Ask for it on its page, then log in with `hf auth login`"
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
    if isinstance(error, LocalEntryNotFoundError):  # the cache was the fallback: report why the download failed
        what, do = _reason(error.__cause__, revision) or _reason(OfflineModeIsEnabled(), revision) or ("", "")
        return f"{what}, and the cache does not hold all of it", do
    if isinstance(error, EntryNotFoundError):
        url = unquote(str(error.response.url)) if isinstance(error, HfHubHTTPError) else ""
        file = re.split(r"/resolve/[^/]+/", url)[-1] if "/resolve/" in url else "such file"
        return f"it has no {file}", "Check the name, and revision= where one was given"
    if isinstance(error, HfHubHTTPError):
        return _status_reason(error)
    if isinstance(error, (FileMetadataError, json.JSONDecodeError, UnicodeDecodeError)):
        return f"{constants.ENDPOINT} does not answer like a Hub", "Check HF_ENDPOINT, the proxy and the firewall"
    if isinstance(error, CLIENT_ERROR):
        return (
            f"no connection to {constants.ENDPOINT} ({type(error).__name__})",
            "Check the network and try again (HF_HUB_ETAG_TIMEOUT=30 waits longer); models loaded before load with"
            " local_files_only=True",
        )
    if isinstance(error, OSError) and (error.errno or str(error).startswith("Consistency check failed")):
        if error.errno == errno.ENOSPC:
            return f"no space is left on the disk ({error.filename or 'the cache'})", "Free some, or pass cache_dir="
        if error.errno:
            return f"{error.strerror} ({error.filename})", "Check the folder, or pass cache_dir="
        return "a download was incomplete", "Load it again; it continues where it stopped"
    if isinstance(error, (RuntimeError, ValueError)):  # huggingface_hub's wrapper around the error of one file
        return _reason(error.__cause__, revision)
    return None


def _status_reason(error: HfHubHTTPError) -> tuple[str, str]:
    """Return what happened and what to do for an HTTP error status."""
    status = error.response.status_code
    wait = error.response.headers.get("retry-after")
    said = " ".join((error.server_message or "").split())[:200]
    said = re.sub(r"hf_\w+", "hf_...", f": {said}" if said else "")  # in case a server echoes a token
    if status == 401:
        return f"the Hub requires a valid login (401){said}", "Log in with `hf auth login`, or check HF_TOKEN"
    if status == 403:
        return (
            f"the token does not permit this (403){said}",
            "Use one that does: huggingface.co/settings/tokens, then `hf auth login`",
        )
    if status in (409, 412):
        return f"someone else changed it meanwhile ({status}){said}", "Try again"
    if status == 429:
        return "too many requests (429)", f"Try again in {wait} seconds" if wait else "Try again in a few minutes"
    if status >= 500:
        return f"the Hub has an internal error ({status})", "Try again later; see status.huggingface.co"
    return f"the Hub refused ({status}){said}", "Check the name and the arguments"
