"""What can be told of arguments without torch: a model's folder, its regions, files, ports. Errors come at once."""

from __future__ import annotations

import argparse
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
LARGEST = 2**24  # bytes of a config


def check_model(args: argparse.Namespace, index: str = INDEX) -> Path | None:
    """The folder of `--model`, or that of the embedded model; None for one of the Hub, which the Hub was asked for.

    Args:
        args: with `model`, and perhaps `generator`.
        index: the file that tells a model's folder from others.

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
            raise OSError(f"{shown(args.model, 200)} is no pipeline folder: it has no {index}")
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
    """ValueError for a `--device` that is none, or that this machine cannot have."""
    if name is not None:
        try:
            check_device_name(name)
        except ValueError as error:
            raise ValueError(f"--device {error}") from None


def looks_like_path(text: str) -> bool:
    """Whether a text is no Hub id (`name`, `user/name`): absolute, relative to here or a home, or of more parts."""
    return text.startswith((".", "~", os.sep, "/")) or "\\" in text or text.count("/") > 1


def check_regions(folder: Path | None, args: argparse.Namespace) -> None:
    """ValueError for a name in --region, --node or --edit that the model's tree does not have.

    Where the tree cannot be read here, loading the model will say what is wrong.
    """
    given = [(option, _names(getattr(args, option, None))) for option in ("region", "node", "edit")]
    if folder is None or not any(names for _, names in given):
        return
    try:
        file = folder / "fusion" / "config.json"
        tree = RegionTree.of(json.loads(file.read_bytes())["tree"] if file.stat().st_size <= LARGEST else "")
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
    """FileNotFoundError or IsADirectoryError that names the argument, before anything heavy is imported."""
    if os.path.isdir(path):
        raise IsADirectoryError(f"{what} {shown(path, 200)} is a folder: name a file")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{what} {shown(path, 200)}: there is no such file")


def check_port(host: str, port: int | None) -> None:
    """OSError where a server could not listen there; None for a port that the server chooses."""
    if port is not None and port > 65535:
        raise ValueError(f"--port {port}: ports are 1 to 65535")
    try:
        found: Any = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(found[0], found[1]) as probe:
            if os.name != "nt":  # where it means another thing
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(found[4])
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or "not the name of a machine"
        where = f"--port {port} of {shown(host)}" if port else f"--host {shown(host)}"
        raise OSError(f"{where} cannot be had: {reason}") from error
