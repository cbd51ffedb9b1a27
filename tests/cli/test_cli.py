"""The command line, mostly in this process: what is written, what is said, and one line for every bad input."""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stylefusion_hf import __version__
from stylefusion_hf.cli import COMMANDS, env, main
from stylefusion_hf.cli.train import JOBS
from stylefusion_hf.core import command_line
from tests.command_line import fails
from tests.tiny import tiny_pipeline

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STYLEFUSION_DEBUG", raising=False)


# ----------------------------------------------------------------------------------------------------
# Help.


def test_help_imports_neither_torch_nor_diffusers() -> None:
    program = (
        "import sys\n"
        "from stylefusion_hf.cli import COMMANDS, main\n"
        "for argv in (['--help'], *([name, '--help'] for name in COMMANDS), ['data', 'avatars', '--help']):\n"
        "    try: main(argv)\n"
        "    except SystemExit as stop: assert stop.code == 0, argv\n"
        "loaded = {'torch', 'diffusers', 'numpy', 'accelerate', 'gradio'} & set(sys.modules)\n"
        "assert not loaded, loaded"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for name, (_, summary) in COMMANDS.items():
        assert name in done.stdout
        assert summary.split()[0] in done.stdout


def test_without_a_command_it_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert __version__ in capsys.readouterr().out


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert "sheet" in fails(capsys, "shet")


# ----------------------------------------------------------------------------------------------------
# Errors.


def test_debug_shows_where_an_error_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STYLEFUSION_DEBUG", "1")
    with pytest.raises(ValueError, match="go together"):
        main(["sheet", "--bases", "1"])


def test_an_interruption_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(env, "run", interrupted)
    assert main(["env"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(env, "run", broken)
    with pytest.raises(ZeroDivisionError):
        main(["env"])


# ----------------------------------------------------------------------------------------------------
# env, data, train


def test_env(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["env", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["stylefusion-hf"] == __version__
    assert found["packages"]["torch"]
    assert found["torch"]["threads"] >= 1
    assert main(["env"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split()[:2] == ["diffusers", found["packages"]["diffusers"]] for line in lines)


def test_env_counts_the_embedded_models_numbers(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tiny_pipeline(segmenter=True)
    pipe.save_pretrained("assets")
    monkeypatch.setattr(env, "files", lambda package: Path.cwd())
    found = env.environment()["embedded model"]
    for name in ("generator", "fusion", "segmenter"):
        state = pipe.components[name].state_dict()
        assert found[name]["parameters"] == sum(tensor.numel() for tensor in state.values())
    assert main(["env"]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("embedded model: generator"))
    assert f"{found['generator']['parameters']:,} parameters" in line


def test_data_avatars(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("python_avatars", reason="avatars need the extra `train`")
    pytest.importorskip("resvg_py", reason="avatars need the extra `train`")
    argv = ["data", "avatars", "--count", "3", "--size", "32", "--out", "avatars", "--workers", "1"]
    assert main([*argv, "--start", "5"]) == 0
    assert len(list(Path("avatars/images").glob("*.png"))) == 3
    assert "3 avatars" in capsys.readouterr().out
    assert "holds a dataset" in fails(capsys, *argv, "--start", "6")
    assert "seed" in fails(capsys, "data", "avatars", "--count", "1", "--out", "other", "--seed", "-1")


def test_data_wants_a_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert "KIND" in fails(capsys, "data")


def test_train_forwards_its_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    from stylefusion_hf.training import generator

    given: list[argparse.Namespace] = []
    monkeypatch.setattr(generator, "train", given.append)
    assert main(["train", "generator", "--output_dir", "runs/x", "--avatars", "9"]) == 0
    assert [(args.output_dir, args.avatars) for args in given] == [("runs/x", 9)]


@pytest.mark.parametrize("job", JOBS)
def test_wrong_flags_of_a_trainer_do_not_wait_for_torch(job: str) -> None:
    code = f"""
import sys
from stylefusion_hf.cli import main
try:
    main(["train", "{job}", "--output_dir", "x", "--nosuch"])
except SystemExit as stop:
    print(stop.code, "torch" in sys.modules)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.stdout == "2 False\n", found.stderr


@pytest.mark.parametrize("job", ["generator", "segmenter", "fusion", "judges"])
def test_train_shows_the_trainers_own_help(job: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["train", job, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"usage: stylefusion train {job}")
    assert "--output_dir" in shown


def test_train_refuses(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'generators'" in fails(capsys, "train", "generators")
    flags = ("--avatars", "4", "--output_dir", "run", "--max_train_steps", "0")
    assert "--max_train_steps" in fails(capsys, "train", "generator", *flags)


def test_every_command_has_the_two_functions() -> None:
    for module, _ in COMMANDS.values():
        implementation = __import__(module, fromlist=["run"])
        assert callable(implementation.add_arguments)
        assert callable(implementation.run)
    assert command_line.describe(ValueError("two\n  lines")) == "two lines"
