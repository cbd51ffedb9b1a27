"""What `make floors` installs: the lower bounds as they are written."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.floors import EXTRAS, lower_bounds, main

ROOT = Path(__file__).resolve().parents[2]


def test_every_requirement_has_a_lower_bound(capsys):
    with open(ROOT / "pyproject.toml", "rb") as file:
        bounds = lower_bounds(tomllib.load(file)["project"])
    assert {"torch", "diffusers", "huggingface-hub", "transformers", "onnxscript", "pytest"} <= set(bounds)
    assert main(["--print"]) == 0
    assert f"torch=={bounds['torch']}\n" in capsys.readouterr().out


def test_the_highest_of_several_bounds_counts_and_none_is_an_error():
    extras = {key: ["a>=1.10,<2"] for key in EXTRAS}
    project = {"dependencies": ["a>=1.9"], "optional-dependencies": extras | {"dev": ["B-c >= 2"]}}
    assert lower_bounds(project) == {"a": "1.10", "b-c": "2"}
    with pytest.raises(ValueError, match="'numpy' in pyproject.toml has no lower bound"):
        lower_bounds(project | {"dependencies": ["numpy"]})
