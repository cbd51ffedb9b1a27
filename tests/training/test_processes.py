"""Several processes: two of them train what one trains with twice the accumulation; accelerate's configs parse."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from safetensors.torch import load_file

from stylefusion_hf.training import checkpoints
from tests import soak, two_processes

ROOT = Path(__file__).resolve().parents[2]
ROUNDING = 1e-4  # the most that `distance` may be between runs that draw the same


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return soak.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def both(data, tmp_path_factory) -> Path:
    """All trainers, in two processes on the CPU."""
    out = tmp_path_factory.mktemp("both")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = "-m torch.distributed.run --standalone --nproc_per_node 2 -m tests.two_processes"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command.split(), str(data), str(out), str(port)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize("name", soak.JOBS)
def test_two_processes_train_what_one_trains_with_twice_the_accumulation(both, data, tmp_path, name):
    ranks = [json.loads((both / f"{name}-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["digests"] and ranks[0]["digests"] == ranks[1]["digests"]  # weights, optimizers, averages
    alone = two_processes.train(name, data, tmp_path / name, 4, "--gradient_accumulation_steps", "2")
    same_networks(both / name, tmp_path / name)
    drawn = [[*a, *b] for a, b in zip(ranks[0]["seeds"], ranks[1]["seeds"], strict=True)]
    assert sorted(drawn) == sorted(alone["seeds"])  # the judges' trainer does one judge after the other, in each run
    seeds = [seed for step in alone["seeds"] for seed in step]
    assert len(set(seeds)) == len(seeds)  # every micro-batch of every step and process draws its own


def test_half_the_pictures_train_something_else(both, data, tmp_path):
    two_processes.train("segmenter", data, tmp_path, 4)
    file = "checkpoint-4/model.safetensors"
    assert distance(both / "segmenter" / file, tmp_path / file) > 10 * ROUNDING


def same_networks(folder: Path, other: Path) -> None:
    """All networks of a folder are in the other one too, with the same weights.

    Up to what rounding does, which depends on where in memory a process has its numbers: Adam divides a gradient by
    its own size, so that a single weight whose gradient is near 0 may move a whole step the other way. Their root mean
    square over a file is a hundredth of a step then; of other draws it is a step, 1e-3.
    """
    found = sorted(p.relative_to(folder) for p in folder.rglob("*.safetensors"))
    assert found
    for file in found:
        assert distance(folder / file, other / file) < ROUNDING, file


def distance(file: Path, other: Path) -> float:
    """Root mean square difference over all weights of two files."""
    one, two = load_file(file), load_file(other)
    assert one.keys() == two.keys()
    return float(torch.cat([(one[key].double() - two[key]).flatten() for key in one]).square().mean().sqrt())


def test_one_process_continues_what_two_began(both, data, tmp_path):
    folder = both / "segmenter"
    with pytest.raises(ValueError, match=r"made with --num_processes 2 \(now 1\): continue with the old value"):
        two_processes.train("segmenter", data, folder, 5)
    two_processes.train("segmenter", data, folder, 5, "--gradient_accumulation_steps", "2")
    assert checkpoints.step_of(checkpoints.list_checkpoints(folder)[-1]) == 5


@pytest.mark.parametrize("name", two_processes.SHARED_OUT)
def test_weights_that_are_shared_out_train_to_the_same(both, data, tmp_path, name):
    folder = both / "fsdp" / name
    assert {p.suffix for p in (folder / "checkpoint-4").iterdir()} == {".safetensors", ".json"}
    assert checkpoints.damage(folder / "checkpoint-4") is None
    two_processes.train(name, data, tmp_path / name, 4, "--gradient_accumulation_steps", "2")
    same_networks(folder / name, tmp_path / name / name)


def test_the_generator_is_not_shared_out(data, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="need second derivatives, which FSDP's sharded weights do not give"):
        two_processes.train("generator", data, tmp_path / "run", 1)
    assert not (tmp_path / "run").exists()


CONFIGS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "guides" / "train.md").read_text(), flags=re.DOTALL)


@pytest.mark.parametrize("text", CONFIGS, ids=[text.splitlines()[0] for text in CONFIGS])
def test_accelerate_takes_the_configs_of_the_docs(text, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    config = load_config_from_file(str(path))  # refuses unknown keys
    given = yaml.safe_load(text)
    assert given.items() <= {k: getattr(v, "value", v) for k, v in vars(config).items()}.items()
    if config.distributed_type == "FSDP":
        known = {a.dest for a in launch_command_parser()._actions}
        assert set(config.fsdp_config) <= known


def test_the_docs_have_the_four_configs():
    found = [yaml.safe_load(text) for text in CONFIGS]
    kinds = [(c["distributed_type"], c["num_machines"] > 1) for c in found]
    assert kinds == [("NO", False), ("MULTI_GPU", False), ("MULTI_GPU", True), ("FSDP", False)]
