"""Flags from a JSON file: `--config FILE`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stylefusion_hf.core.json_files import read_json


def config_of(argv: Sequence[str]) -> str | None:
    """Return the last value of --config, which is needed before the rest is parsed."""
    found = None
    for i, word in enumerate(argv):
        if word == "--config":
            found = argv[i + 1] if i + 1 < len(argv) else None
        elif word.startswith("--config="):
            found = word.split("=", 1)[1]
    return found


def read_config(path: Path, parser: argparse.ArgumentParser) -> list[str]:
    """Return the flags in a JSON file as words of a command line.

    Values are numbers, strings, lists of these, true and false. Names that begin with # are comments. ValueError for
    an unknown flag or another kind of value.
    """
    known = {flag.removeprefix("--") for flag in parser._option_string_actions} - {
        "help",
        "-h",
        "config",
        "help-all",
        "help_all",
    }
    try:
        given = read_json(path, "the file")
    except (OSError, ValueError) as error:
        raise ValueError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"--config {path} must hold a JSON object of flags, not {type(given).__name__}")
    words = []
    for name, value in given.items():
        if name.startswith("#"):
            continue
        if name not in known:
            raise ValueError(f"--config {path}: there is no flag --{name[:80]}; --help-all lists the flags")
        values = value if isinstance(value, list) else [value]
        if any(not isinstance(x, (str, int, float)) for x in values):
            raise ValueError(
                f"--config {path}: {name} is {value!r}, not a number, a text, a list of these, true or false"
            )
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            words += [f"--{name}", *map(str, values)]
    return words
