"""Several processes: two of them train what one trains with twice the accumulation; accelerate's configs parse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from stylefusion_hf.training import checkpoints
from tests import soak, two_processes

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return soak.make_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def both(data, tmp_path_factory) -> Path:
    """All trainers, in two processes on the CPU."""
    out = tmp_path_factory.mktemp("both")
    command = "-m torch.distributed.run --standalone --nproc_per_node 2 -m tests.two_processes"
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command.split(), str(data), str(out)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return out


@pytest.mark.parametrize("name", soak.JOBS)
def test_two_processes_train_what_one_trains_with_twice_the_accumulation(both, data, tmp_path, name):
    ranks = [json.loads((both / f"{name}-{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0]["digests"] and ranks[0]["digests"] == ranks[1]["digests"]  # weights, optimisers, averages
    alone = two_processes.train(name, data, tmp_path / name, 4, "--gradient_accumulation_steps", "2")
    drawn = [[*a, *b] for a, b in zip(ranks[0]["seeds"], ranks[1]["seeds"], strict=True)]
    assert sorted(drawn) == sorted(alone["seeds"])  # the judges' trainer does one judge after the other, in each run
    seeds = [seed for step in alone["seeds"] for seed in step]
    assert len(set(seeds)) == len(seeds)  # every micro-batch of every step and process draws its own
    found = sorted(p.relative_to(both / name) for p in (both / name).rglob("*.safetensors"))
    assert found
    for file in found:
        one, two = load_file(tmp_path / name / file), load_file(both / name / file)
        assert one.keys() == two.keys()
        for key in one:
            torch.testing.assert_close(two[key], one[key], atol=1e-6, rtol=1e-6, msg=lambda m, f=file: f"{f}: {m}")


def test_one_process_continues_what_two_began(both, data, tmp_path):
    folder = both / "segmenter"
    with pytest.raises(ValueError, match=r"made with --num_processes 2 \(now 1\): continue with the old value"):
        two_processes.train("segmenter", data, folder, 5)
    two_processes.train("segmenter", data, folder, 5, "--gradient_accumulation_steps", "2")
    assert checkpoints.step_of(checkpoints.list_checkpoints(folder)[-1]) == 5
