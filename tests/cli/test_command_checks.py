"""What the command line refuses: in one short line, before torch is imported, and without waiting for the Hub."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from stylefusion_hf import StyleFusionPipeline, StyleGAN2Generator
from stylefusion_hf.cli import _light, main
from stylefusion_hf.cli.arguments import code
from stylefusion_hf.core.devices import check_device
from stylefusion_hf.core.edits import Direction, save_directions
from stylefusion_hf.core.progress import tqdm
from tests.command_line import fails
from tests.tiny import tiny_pipeline

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A model in the folder in which the commands run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    tiny_pipeline(segmenter=True).save_pretrained("model")
    save_directions("d.safetensors", [Direction("older", "w", torch.ones(16))])
    return "model"


# ----------------------------------------------------------------------------------------------------
# What is said.


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("--region hair=missing.png", "--region hair=missing.png: there is no picture file missing.png"),
        ("--region hair=no/such", "there is no picture file no/such"),
        ("--base ./me.JPG", "--base ./me.JPG: there is no picture file ./me.JPG"),
        ("--global codes.safetensors:me", "there is no file of codes codes.safetensors"),
        ("--node eyes=model/", "model/ is a folder: name a picture file"),
        ("--edit hair=no.safetensors:x=1", "--edit no.safetensors: there is no such file"),
        ("--from-recipe no.png", "no.png"),
        ("--generator no", "--generator no is not a folder of a generator"),
        ("--region hiar=7", "regions: unknown region 'hiar': the tree has all, face, .*; did you mean 'hair'[?]"),
        ("--node hiar=7", "nodes: unknown region 'hiar'"),
        ("--edit hiar=d.safetensors:older", "edits: unknown region 'hiar'"),
        ("--base 1.5", "--base 1.5: '1.5' is not a seed: give an integer from 0 to 4294967295"),
        ("--base=-1", "--base -1: '-1' is not a seed"),
        ("--base 4294967296", "'4294967296' is not a seed"),
        ("--base 1e3", "'1e3' is not a seed"),
        ("--base nan", "'nan' is not a seed"),
        (f"--base {'9' * 5000}", "9' is not a seed|9[.]{3}' is not a seed"),
        (f"--base {','.join(map(str, range(200)))}", "'0,1,2,3,.*[.]{3}' is neither a seed"),
        (f"--region hair={'x' * 9000}", "is neither a seed"),
        (f"--region {'x' * 9000}", "expected NAME=VALUE|unknown region"),
        ("--psi " + "9" * 9000, "is not a finite number"),
        ("--device meta", "--device meta: not a device to compute on; give cpu, cuda"),
        ("--device xla:junk", "--device xla:junk: not a device to compute on"),
        ("--device \x1b[31mred", "--device .x1b.31mred: not a device to compute on"),
        ("--device cpu:7", "--device cpu:7: there is only one cpu"),
        ("--device xla", "--device xla: it cannot be used here: "),
        ("--device hpu", "--device hpu: it cannot be used here: "),
        ("--frobnicate " + "x" * 9000, "unrecognized arguments"),
    ],
)
def test_one_short_line(model: str, capsys: pytest.CaptureFixture[str], argv: str, said: str) -> None:
    text = fails(capsys, "fuse", "--model", model, *argv.split(" "))
    assert re.search(said, text), text[:500]
    assert len(text) < 1200 and text.isprintable()
    assert not Path("fused.png").exists()


@pytest.mark.skipif(torch.version.cuda is not None or sys.platform == "darwin", reason="a machine with such devices")
def test_devices_that_are_not_here(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("cuda", "cuda:99"):
        assert f"--device {name}: this torch is built without CUDA; give cpu" in fails(
            capsys, "fuse", "--device", name
        )
    assert "--device mps: MPS needs a Mac, and this is not one" in fails(capsys, "sheet", "--device", "mps")
    for name in ("cuda", "mps", "meta", "xla", "cuda:99", "", "cpu,cuda", "cuda:-1", "privateuseone"):
        with pytest.raises(ValueError, match=f"^{name}: "):
            check_device(name)
    assert check_device(None) == "cpu" == check_device("cpu")


def test_other_commands(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    recipes = Path("recipes.jsonl")
    recipes.write_text("{}")
    (Path("empty")).mkdir()
    for seed in ("1.5", "-1", "4294967296", "9" * 5000, "x"):
        assert "is not a seed" in fails(capsys, "sheet", f"--seed={seed}")
        assert "is not a seed" in fails(capsys, "evaluate", f"--seed={seed}")
        assert "is not a seed" in fails(capsys, "directions", "discover", f"--seed={seed}")
        assert "is not a seed" in fails(capsys, "render", "--random", "3", f"--seed={seed}", "--out", "o")
    for argv in ("sheet", "fuse", "interpolate", "invert me.png", "render recipes.jsonl --out o", "evaluate", "export",
                 "directions discover", "edit --edit hair=d.safetensors:older", "space"):  # fmt: skip
        assert "empty is not a pipeline folder: it has no model_index.json" in fails(
            capsys, *argv.split(), "--model", "empty"
        )
        assert "there is no such folder" in fails(capsys, *argv.split(), "--model", "./nowhere")
        assert "recipes.jsonl is a file: give the folder" in fails(capsys, *argv.split(), "--model", "recipes.jsonl")
    assert "there is no such file" in fails(capsys, "directions", "sheet", "--file", "no.safetensors")
    assert "there is no such file" in fails(capsys, "render", "no.jsonl", "--out", "o")
    assert "there is no picture or folder me.png" in fails(capsys, "invert", "me.png")
    assert "is not an integer from 1 to 1000000000" in fails(capsys, "sheet", "--batch-size", "9" * 5000)
    assert "is not an integer from 0 to 999999999" in fails(capsys, "fuse", "--optimize", "9" * 5000)


def test_what_looks_like_a_path_and_is_there(model: str) -> None:
    Image.new("RGB", (32, 32)).save("7.png")
    Image.new("RGB", (32, 32)).save("picture", format="PNG")
    assert code("7.png").size == code("picture").size == (32, 32)
    assert code("7") == 7


def test_a_port_that_is_taken(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for argv in (["space"], ["regions", "label", "--model", model, "--out", "o", "--region", "a"]):
            assert f"--port {port} of 127.0.0.1 is not available: " in fails(capsys, *argv, "--port", port)
        assert "expected a port from 1 to 65535" in fails(capsys, "space", "--port", "65536")
        assert "--host no.such.host.invalid is not available" in fails(
            capsys, "space", "--host", "no.such.host.invalid"
        )


# ----------------------------------------------------------------------------------------------------
# When it is said.

REFUSED = [
    "fuse --region hiar=7",
    "fuse --region hair=missing.png",
    "fuse --base 1.5",
    "fuse --edit hair=missing.safetensors:x",
    "fuse --from-recipe missing.png",
    "sheet --model empty",
    "sheet --seed -1",
    "interpolate --device meta",
    "render --random 3 --out o --device mps:x",
    "invert missing.png",
    "directions sheet --file missing.safetensors",
    "publish missing me/x",
    "space --port {port}",
    "regions label --model model --out o --port {port}",
    "evaluate --model ./nowhere",
    "export --model ./nowhere",
]


def test_errors_do_not_wait_for_torch(model: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        commands = [line.format(port=taken.getsockname()[1]).split() for line in REFUSED]
        program = (
            "import json, sys\n"
            "from stylefusion_hf.cli import main\n"
            "for argv in json.loads(sys.argv[1]):\n"
            "    try: status = main(argv)\n"
            "    except SystemExit as stop: status = stop.code\n"
            "    assert status == 2, argv\n"
            "    heavy = {'torch', 'diffusers', 'transformers', 'accelerate', 'gradio', 'scipy'} & set(sys.modules)\n"
            "    assert not heavy, (argv, heavy)\n"
        )
        done = run("-c", program, json.dumps(commands))
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(REFUSED) and all(line.startswith("stylefusion: error: ") for line in lines), done.stderr


def run(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, env=env, timeout=300)


# ----------------------------------------------------------------------------------------------------
# The Hub out of reach.


@pytest.fixture(params=["closed", "silent"])
def unreachable(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a port where nothing listens, and of one that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if request.param == "silent":
            listening.listen(16)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


@pytest.mark.parametrize("name", ["nosuch", "user/nosuch"])
def test_a_name_that_is_nothing_and_no_hub(
    unreachable: str, model: str, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", unreachable)
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", unreachable + "/{repo_id}/{filename}")
    began = time.monotonic()
    line = fails(capsys, "fuse", "--model", name)
    assert time.monotonic() - began < 4
    said = f"'{name}' is not a local folder, and cannot be loaded from the Hub: no connection to {unreachable}"
    assert said in line and "and the cache does not hold all of it" in line
    for load in (StyleFusionPipeline.from_pretrained, StyleGAN2Generator.from_pretrained):
        began = time.monotonic()
        with pytest.raises(OSError, match=re.escape(said)):
            load(name)
        assert time.monotonic() - began < 4


def test_the_hub_is_asked_without_torch(tmp_path: Path) -> None:
    program = "import sys; from stylefusion_hf.cli import main; s = main(); assert 'torch' not in sys.modules; exit(s)"
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        home = str(tmp_path)
        done = run("-c", program, "fuse", "--model", "nosuch", HF_ENDPOINT=f"http://127.0.0.1:{port}", HF_HOME=home)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr


# ----------------------------------------------------------------------------------------------------
# Progress bars.


def test_bars_are_for_terminals(model: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Neither loading (in shards too), nor sheets, walks and inversions draw any into a file."""
    pipe = StyleFusionPipeline.from_pretrained(model)
    pipe.save_pretrained("shards", max_shard_size="10KB")
    list(tqdm(range(3), desc="ours"))
    list(pipe.progress_bar(range(3)))
    capfd.readouterr()
    StyleFusionPipeline.from_pretrained("shards")
    assert main(["interpolate", "--model", "shards", "--base", "1,2", "--frames", "3", "--out", "walk.gif"]) == 0
    assert main(["sheet", "--model", "shards", "--bases", "1,2", "--sources", "3,4", "--batch-size", "1"]) == 0
    assert capfd.readouterr().err == ""
    pipe.set_progress_bar_config(disable=False)  # who asks for one gets one
    list(pipe.progress_bar(range(3)))
    assert "3/3" in capfd.readouterr().err


def test_a_terminal_has_its_bars() -> None:
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    program = "from stylefusion_hf.core.progress import tqdm\nfor _ in tqdm(range(3), desc='ours'): pass"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", program], stderr=theirs, env=env, timeout=60, check=True)
    os.close(theirs)
    assert b"3/3" in os.read(ours, 10_000)
    os.close(ours)


# ----------------------------------------------------------------------------------------------------
# A light start.

LIGHT = (
    "import sys\n"
    "from stylefusion_hf.cli import main\n"
    "from stylefusion_hf.cli import _light\n"
    "if {broken}: _light.WANTED = (*_light.WANTED, 'diffusers.no_such_module')\n"
    "sys.argv[0] = 'stylefusion'\n"
    "assert main() == 0\n"
    "names = ['torch._dynamo', 'scipy', 'transformers', 'diffusers.models.unets']\n"
    "import torch\n"
    "if torch.torch_version.TorchVersion(torch.__version__) >= '2.13': names.append('sympy')\n"  # 2.6 imports it
    "heavy = [name for name in names if name in sys.modules]\n"
    "assert bool(heavy) is {broken}, heavy\n"
)
AFTERWARDS = (
    "import diffusers, scipy.stats, torch, transformers\n"
    "assert diffusers.AutoencoderKL.__module__ == 'diffusers.models.autoencoders.autoencoder_kl'\n"
    "compiled = torch.compile(torch.nn.Linear(1, 1), backend='eager')\n"
    "from diffusers.utils.torch_utils import is_compiled_module\n"
    "assert is_compiled_module(compiled) and not is_compiled_module(torch.nn.Linear(1, 1))\n"
    "import importlib.metadata; assert importlib.metadata.packages_distributions()\n"
)


@pytest.mark.parametrize("broken", [False, True])
def test_a_command_starts_light(model: str, broken: bool) -> None:
    """The picture is the same, what was hidden can be had afterward, and where hiding fails nothing is lost."""
    argv = ["fuse", "--model", model, "--base", "1", "--region", "hair=7", "--device", "cpu"]
    program = LIGHT.format(broken=broken) + ("" if broken else AFTERWARDS)
    done = run("-c", program, *argv, "--out", "light.png")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert main([*argv, "--out", "plain.png"]) == 0
    assert Path("light.png").read_bytes() == Path("plain.png").read_bytes()


def test_other_models_and_other_programs_import_everything(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not _light.own_process  # `main` was given arguments
    monkeypatch.setattr(_light, "own_process", True)
    assert not _light.import_diffusers(Path(model))  # it is there already
    assert _light._is_own(Path(model))
    index = json.loads(Path(model, "model_index.json").read_text())
    for entry in (["stylefusion_hf", "HubSegmenter"], ["transformers", "SegformerModel"], ["diffusers", "VaeModel"]):
        Path(model, "model_index.json").write_text(json.dumps(index | {"segmenter": entry}))
        assert not _light._is_own(Path(model))
    for text in ("{", "[]", '"x"', "null"):
        Path(model, "model_index.json").write_text(text)
        assert not _light._is_own(Path(model))
    assert not _light._is_own(Path("nowhere")) and not _light._is_own(None)
