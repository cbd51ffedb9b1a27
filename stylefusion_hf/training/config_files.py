"""Flags from a JSON file: `--config FILE`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from stylefusion_hf.core.checks import short
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
    actions = parser._option_string_actions
    known = {flag.removeprefix("--") for flag in actions} - {"help", "-h", "config", "help-all", "help_all"}
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
            raise ValueError(f"--config {path}: there is no flag {short(f'--{name}')}; --help-all lists the flags")
        switch = actions[f"--{name}"].nargs == 0
        if isinstance(value, bool) and switch:
            off = [f"--no-{name}"] if f"--no-{name}" in actions else []  # else it is off unless given
            words += [f"--{name}"] if value else off
            continue
        values = value if isinstance(value, list) else [value]
        if switch or any(isinstance(x, bool) or not isinstance(x, (str, int, float)) for x in values):
            wanted = "true or false" if switch else "a number, a text or a list of these"
            raise ValueError(f"--config {path}: {name} is {short(value)}, not {wanted}")
        if isinstance(value, list):
            words += [f"--{name}", *map(str, values)]
        else:
            words.append(f"--{name}={value}")  # one word, since a text may begin with a dash
    return words
