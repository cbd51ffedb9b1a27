"""The documentation cannot rot: its commands are ones that the parsers take, its links lead somewhere.

Commands in code blocks are parsed whole; those within a sentence, which may be shortened, by their names and flags.
"""

import argparse
import ast
import contextlib
import inspect
import io
import re
import shlex
import textwrap
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from torch.distributed.run import get_args_parser

from stylefusion_hf.cli import COMMANDS, build_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.is_file()]
WRAPPED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
WIDTH = 120  # characters; tables, pictures and links are as long as they are
COMMAND = re.compile(r"(?:[A-Z_]+=\S+ )*(?:stylefusion|accelerate launch|torchrun) ")
TRAINERS = "stylefusion_hf.training."
FENCE = re.compile(r"^( *)```[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)


def blocks(text: str) -> Iterator[str]:
    """Lines of commands in code blocks, fenced or indented."""
    fenced = [match[2] for match in FENCE.finditer(text)]
    indented = [line for line in FENCE.sub("", text).splitlines() if line.startswith("    ")]
    for line in "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines():
        if COMMAND.match(line.strip()):
            yield line.strip()


def sentences(text: str) -> Iterator[str]:
    """Commands between backticks."""
    for match in re.finditer(r"`([^`]+)`", FENCE.sub("", text)):
        command = " ".join(match[1].split())
        if COMMAND.match(command + " "):
            yield command


def program(words: list[str]) -> list[str]:
    """The words as those of `stylefusion`, whatever starts it; what starts it has to take its own flags."""
    while "=" in words[0]:
        words = words[1:]
    if words[0] == "stylefusion":
        return words[1:]
    parser = launch_command_parser() if words[0] == "accelerate" else get_args_parser()
    args = parser.parse_args(words[2:] if words[0] == "accelerate" else words[1:])
    assert args.module, "-m is missing"
    if args.training_script == "stylefusion_hf.cli":
        return list(args.training_script_args)
    assert 'if __name__ == "__main__"' in inspect.getsource(import_module(args.training_script))
    return ["train", args.training_script.removeprefix(TRAINERS), *args.training_script_args]


def parse(command: str) -> None:
    """Take the command as a shell and then the program would; SystemExit where it does not."""
    words = program(shlex.split(command, comments=True))
    args = build_parser(words[0]).parse_args(words)
    if args.command == "train":
        import_module(TRAINERS + args.job).parse_args(args.flags)


def known_flags(words: list[str]) -> set[str]:
    """The flags of the command that the words begin with; SystemExit where there is none of that name."""
    if words[0] == "train" and len(words) > 1:
        build_parser("train").parse_args(words[:2])
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.suppress(SystemExit):
            import_module(TRAINERS + words[1]).parse_args(["--help"])
        return set(re.findall(r"--\w+", shown.getvalue()))
    assert words[0] in COMMANDS, f"there is no command {words[0]}"
    parsers, found = [build_parser(words[0])], set()
    while parsers:
        for action in parsers.pop()._actions:
            found |= set(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    return found


FULL = [(path.name, command) for path in PAGES for command in blocks(path.read_text(encoding="utf-8"))]
SHORT = [(path.name, command) for path in PAGES for command in sentences(path.read_text(encoding="utf-8"))]


def test_commands_are_found() -> None:
    assert len(FULL) > 40
    assert len(SHORT) > 20
    assert {"README.md", "train.md", "hub.md", "export.md"} <= {page for page, _ in FULL}


@pytest.mark.parametrize(("page", "command"), FULL, ids=lambda text: text[:60])
def test_a_command_in_a_block_is_taken(page: str, command: str) -> None:
    parse(command)


@pytest.mark.parametrize(("page", "command"), SHORT, ids=lambda text: text[:60])
def test_a_command_in_a_sentence_has_flags_that_exist(page: str, command: str) -> None:
    if "<" in command:  # stylefusion_hf.training.<job>
        command = command.replace("<job>", "generator")
    words = [word for word in shlex.split(command) if word != "..."]
    if "-m" not in words and words[0] != "stylefusion":  # `torchrun` by itself: nothing of ours
        return
    words = program(words)
    if words:
        wanted = {word.split("=")[0] for word in words if word.startswith("--")}
        assert wanted <= known_flags(words) | {"--help", "--help-all"}


@pytest.mark.parametrize(
    "command",
    [
        "stylefusion fuse --bases 1",
        "stylefusion train fusion --model m --output_dir o --steps 3",
        "accelerate launch -m stylefusion_hf.training.fusion --model m --output_dir o --steps 3",
        "accelerate launch --processes 3 -m stylefusion_hf.training.fusion --model m --output_dir o",
        "stylefusion fuze --base 1",
    ],
)
def test_a_wrong_command_is_seen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse(command)


def test_modules_and_files_of_other_commands_exist() -> None:
    found = 0
    for path in PAGES:
        for module, rest in re.findall(r"python -m ([\w.]+)([^`\n]*)", path.read_text(encoding="utf-8")):
            files = [word for word in rest.split() if word.startswith("tests/")] if module == "pytest" else []
            if module.split(".")[0] in ("benchmarks", "tests"):
                files = [module.replace(".", "/") + ".py"]
            for file in files:
                found += 1
                assert (ROOT / file).is_file(), f"{path.name} names {file}"
    assert found > 3


def test_what_examples_import_is_there() -> None:
    found = set()
    for path in PAGES:
        for block in re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL):
            for node in ast.walk(ast.parse(textwrap.dedent(block))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stylefusion_hf"):
                    found |= {(node.module or "", alias.name) for alias in node.names}
    for module, name in found:
        assert hasattr(import_module(module), name), f"{module} has no {name}"
        assert not any(part.startswith("_") for part in (*module.split("."), name)), f"{module}.{name} is not public"
    assert len(found) > 15


def test_links_lead_somewhere() -> None:
    found = 0
    for path in PAGES:
        text = FENCE.sub("", path.read_text(encoding="utf-8"))
        targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^\]]+\]: (\S+)", text, re.MULTILINE)
        for target in targets:
            own = re.match(r"https://(?:raw\.githubusercontent|github)\.com/stylefusion-hf/stylefusion-hf/", target)
            if own:  # absolute, so that the README works on PyPI and on the Hub
                place = ROOT / target[own.end() :].removeprefix("blob/").removeprefix("main/").split("#")[0]
            elif "://" in target:
                continue
            else:
                place = path.parent / target.split("#")[0]
            found += 1
            assert place.exists(), f"{path.name} links to {target}"
    assert found > 20


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "docs").rglob("*"):
        if path.suffix in (".md", ".ipynb") and path.parent != ROOT / "docs":
            assert f"({path.relative_to(ROOT / 'docs').as_posix()})" in index, f"docs/README.md lacks {path.name}"


@pytest.mark.parametrize("page", [path.relative_to(ROOT).as_posix() for path in WRAPPED])
def test_lines_are_wrapped(page: str) -> None:
    lines = enumerate((ROOT / page).read_text(encoding="utf-8").splitlines(), 1)
    plain = ((n, line) for n, line in lines if not re.match(r"\s*(\||!?\[[^\]]*\](\(|: )\S+$)", line))
    assert not [f"{page}:{n} has {len(line)} characters" for n, line in plain if len(line) > WIDTH]
