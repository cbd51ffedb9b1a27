"""What docs/reference/stability.md promises, frozen: names may be added, those in tests/data/promises must stay.

`python -m tests.repository.test_promises` writes the lists anew; do that only to add a promise.
"""

import argparse
import importlib
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import stylefusion_hf
from stylefusion_hf.cli import COMMANDS, build_parser

DATA = Path(__file__).resolve().parents[1] / "data" / "promises"
TRAINERS = ("generator", "segmenter", "fusion", "encoder", "judges")
# The modules beyond the top level that README and docs imported from when 0.1.0 was documented.
MODULES = {
    "animation": ["write_animation"],
    "conversion.convert": ["convert"],
    "directions": ["boundary_from_labels", "boundary_from_regions", "ganspace", "sefa", "style_channel"],
    "editing": ["load_directions", "save_directions"],
    "faces": ["align"],
    "images": ["fit_square", "open_image"],
    "landmarks": ["find_landmarks", "load_detector"],
    "latents": ["labels_to_tensor", "seeds_to_z"],
}
RECIPES = {
    "regions": {"version": 1, "base": 1, "regions": {"hair": 7, "eyes": 3}, "global_code": 5},
    "psi": {"version": 1, "base": 11, "nodes": {"face": 2}, "truncation_psi": 1.0, "strength": {"face": 0.5}},
}


def python_names() -> dict[str, dict[str, list[str]]]:
    """Public name -> its public methods -> their parameters, without what diffusers and torch define."""
    found: dict[str, dict[str, list[str]]] = {}
    for name in stylefusion_hf.__all__:
        value = getattr(stylefusion_hf, name)
        found[name] = {}
        if not inspect.isclass(value) or name == "ModelMixin":
            continue
        for method in ("__init__", "__call__", *(n for n in dir(value) if not n.startswith("_"))):
            member = inspect.getattr_static(value, method, None)
            function = getattr(member, "__func__", getattr(member, "fget", member))
            function = inspect.unwrap(function) if callable(function) else function
            if inspect.isfunction(function) and function.__module__.startswith("stylefusion_hf"):
                found[name][method] = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
    return found


def options(parser: argparse.ArgumentParser) -> list[str]:
    """All option strings of a parser and of the commands below it."""
    found = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                found |= set(options(below))
    return sorted(found)


def trainer_options(job: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    module = importlib.import_module(f"stylefusion_hf.training.{job}")
    seen: list[argparse.ArgumentParser] = []

    def keep(self: argparse.ArgumentParser, *args: object, **kwargs: object) -> argparse.Namespace:
        seen.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", keep)
    with pytest.raises(SystemExit):
        module.parse_args([])
    return options(seen[0])


def read(name: str) -> dict:
    return json.loads((DATA / name).read_text(encoding="utf-8"))


def test_python_names_and_their_arguments_stay() -> None:
    now = python_names()
    for name, methods in read("python.json").items():
        assert name in now
        for method, parameters in methods.items():
            assert method in now[name], f"{name}.{method} is gone"
            missing = [p for p in parameters if p not in now[name][method]]
            assert not missing, f"{name}.{method} lost {missing}"


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_flags_of_commands_stay(command: str) -> None:
    parsers = build_parser(command)._subparsers._group_actions[0].choices  # type: ignore[union-attr]
    gone = set(read("commands.json").get(command, ())) - set(options(parsers[command]))
    assert not gone


@pytest.mark.parametrize("job", TRAINERS)
def test_flags_of_trainers_stay(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not set(read("trainers.json")[job]) - set(trainer_options(job, monkeypatch))


def test_commands_stay() -> None:
    assert set(read("commands.json")) <= set(COMMANDS)


@pytest.mark.parametrize("module", sorted(MODULES))
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_documented_modules_stay(module: str) -> None:
    found = importlib.import_module(f"stylefusion_hf.{module}")
    for name in MODULES[module]:
        assert callable(getattr(found, name))


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_pictures_of_recipes_stay(name: str) -> None:
    picture = stylefusion_hf.StyleFusionPipeline.from_embedded().from_recipe(RECIPES[name]).images[0]
    frozen = Image.open(DATA / f"{name}.png", formats=["PNG"])
    difference = np.asarray(picture).astype(int) - np.asarray(frozen).astype(int)
    assert np.abs(difference).max() <= 1  # another machine may round otherwise


def write() -> None:
    parsers = {command: build_parser(command) for command in COMMANDS}
    commands = {
        command: options(parser._subparsers._group_actions[0].choices[command])  # type: ignore[union-attr]
        for command, parser in parsers.items()
    }
    trainers = {}
    for job in TRAINERS:
        with pytest.MonkeyPatch.context() as patch:
            trainers[job] = trainer_options(job, patch)
    DATA.mkdir(parents=True, exist_ok=True)
    for file, value in (("python", python_names()), ("commands", commands), ("trainers", trainers)):
        (DATA / f"{file}.json").write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    pipe = stylefusion_hf.StyleFusionPipeline.from_embedded()
    for name, recipe in RECIPES.items():
        pipe.from_recipe(recipe).images[0].save(DATA / f"{name}.png")


if __name__ == "__main__":
    write()
