"""Checks of arguments that need no torch, so that errors are immediate: model folders, regions, files, ports."""

from __future__ import annotations

import argparse
import errno
import json
import os
import socket
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

from stylefusion_hf.core.checks import shown
from stylefusion_hf.core.devices import check_device_name
from stylefusion_hf.core.named_models import find_model
from stylefusion_hf.core.region_tree import RegionTree

INDEX = "model_index.json"
MAX_CONFIG = 2**24  # bytes of a config


def check_model(args: argparse.Namespace, index: str = INDEX) -> Path | None:
    """Return the folder of `--model`, or of the embedded model; None for a model on the Hub, which must exist there.

    Args:
        args: parsed arguments with `model` and optionally `generator`.
        index: the file by which a model's folder is recognized.

    Raises:
        OSError: no such folder or repository, or a folder without a model.
    """
    if getattr(args, "generator", None) and not Path(args.generator, "config.json").is_file():
        raise OSError(
            f"--generator {shown(args.generator, 200)} is not a folder of a generator: it has no config.json"
        )
    if not args.model:
        return Path(str(files("stylefusion_hf") / "assets"))
    folder = Path(find_model(args.model))
    if os.path.isdir(folder):
        if not (folder / index).is_file():
            raise OSError(f"{shown(args.model, 200)} is not a pipeline folder: it has no {index}")
        return folder
    if os.path.lexists(folder):
        raise NotADirectoryError(
            f"--model {shown(args.model, 200)} is a file: give the folder of a model, or a Hub id"
        )
    if looks_like_path(args.model):
        raise FileNotFoundError(f"--model {shown(args.model, 200)}: there is no such folder")

    from stylefusion_hf.core.hub_files import snapshot

    with snapshot(args.model, index, None, {}):
        return None


def check_named_device(name: str | None) -> None:
    """Raise ValueError for a `--device` that is not a device, or that this machine cannot have."""
    if name is not None:
        try:
            check_device_name(name)
        except ValueError as error:
            raise ValueError(f"--device {error}") from None


def looks_like_path(text: str) -> bool:
    """Return whether a text is a path rather than a Hub id (`name`, `user/name`).

    A path is absolute, starts with a dot or `~`, has a backslash, or has more than two parts.
    """
    return text.startswith((".", "~", os.sep, "/")) or "\\" in text or text.count("/") > 1


def check_regions(folder: Path | None, args: argparse.Namespace) -> None:
    """Raise ValueError for a name in --region, --node or --edit that the model's tree does not have.

    If the tree cannot be read here, nothing is checked; loading the model then reports what is wrong.
    """
    given = [(option, _names(getattr(args, option, None))) for option in ("region", "node", "edit")]
    if folder is None or not any(names for _, names in given):
        return
    try:
        file = folder / "fusion" / "config.json"
        tree = RegionTree.of(json.loads(file.read_bytes())["tree"] if file.stat().st_size <= MAX_CONFIG else "")
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return
    for option, names in given:
        for name in names:
            try:
                tree.resolve(tree.root if name == "all" and option != "node" else name)
            except ValueError as error:
                raise ValueError(f"{option}s: {error}") from None


def _names(values: Iterable[str] | str | None) -> list[str]:
    if isinstance(values, str):
        values = [values]
    return [text.partition("=")[0].strip() for text in values or ()]


def check_file(path: str, what: str) -> None:
    """Raise FileNotFoundError or IsADirectoryError, naming the argument `what`, if `path` is not a file."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{what} {shown(path, 200)} is a folder: name a file")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{what} {shown(path, 200)}: there is no such file")


def check_port(host: str, port: int | None) -> None:
    """Raise OSError if a server cannot listen at this address; `port` None lets the server choose one."""
    if port is not None and port > 65535:
        raise ValueError(f"--port {port}: expected a port from 1 to 65535")
    try:
        found: Any = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(found[0], found[1]) as probe:
            if os.name != "nt":  # on Windows the option would allow a port that is in use
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not a host name"
        where = f"--port {port} of {shown(host)}" if port else f"--host {shown(host)}"
        advice = ": choose another with --port" if port and getattr(error, "errno", None) == errno.EADDRINUSE else ""
        raise OSError(f"{where} is not available: {reason}{advice}") from error
