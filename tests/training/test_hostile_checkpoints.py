"""An untrusted training folder: nothing of it is unpickled, and weights other than the run began with are noticed."""

import argparse
import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from stylefusion_hf import cli
from stylefusion_hf.training import checkpoints, encoder, inputs, segmenter, state_files, states
from tests import soak
from tests.command_line import fails

LATEST = ("--resume_from_checkpoint", "latest")
WRITTEN = ("model.safetensors", "optimizer.safetensors", "optimizer.json", "state.json", "random_states_0.json")
OLD = (
    "custom_checkpoint_0.pkl",
    "random_states_0.pkl",
    "optimizer.bin",
    "optimizer_1.bin",
    "scheduler.bin",
    "sampler.bin",
    "dl_state_dict.bin",
    "scaler.pt",
    "pytorch_model.bin",
    "pytorch_model_fsdp.bin",
    "pytorch_model_fsdp_0/.metadata",
    "optimizer_0/__0_0.distcp",
)


class Planted:
    """Makes a file where it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return soak.make_data(tmp_path_factory.mktemp("data"))


def args_of(data: Path, out: Path, steps: int, *more: str) -> argparse.Namespace:
    return segmenter.parse_args(
        [*soak.JOBS["segmenter"].flags(data, out), "--max_train_steps", str(steps), *LATEST, *more]
    )


@pytest.fixture(scope="module")
def one(data, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("one") / "run"
    segmenter.train(args_of(data, out, 1))
    return out


@pytest.fixture
def run(one, tmp_path) -> Path:
    shutil.copytree(one, tmp_path / "run")
    return tmp_path / "run"


def plant(folder: Path, name: str, raw: bool) -> Path:
    """A pickle that leaves a mark, under this name; returns the mark. Its manifest, if it lists it, agrees."""
    marker = folder.parent / "executed"
    (folder / name).parent.mkdir(exist_ok=True)
    if raw:
        (folder / name).write_bytes(pickle.dumps(Planted(marker)))
    else:
        buffer = io.BytesIO()
        torch.save(Planted(marker), buffer)
        (folder / name).write_bytes(buffer.getvalue())
    return marker


def listed(folder: Path, name: str, **more: object) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    content = (folder / name).read_bytes()
    manifest["files"][name] = [len(content), hashlib.sha256(content).hexdigest()]
    path.write_text(json.dumps(manifest | more))


def test_a_checkpoint_is_safetensors_and_json(one):
    names = {p.name for p in (one / "checkpoint-1").iterdir()}
    assert names == {*WRITTEN, "manifest.json"}


@pytest.mark.parametrize("raw", [False, True], ids=["torch", "raw"])
@pytest.mark.parametrize("name", WRITTEN)
def test_a_pickle_under_the_name_of_a_file_is_refused(data, run, name, raw):
    marker = plant(run / "checkpoint-1", name, raw)
    listed(run / "checkpoint-1", name)
    with pytest.raises(
        ValueError, match="checkpoint-1 cannot be loaded: it is damaged, or its networks differ"
    ) as caught:
        segmenter.train(args_of(data, run, 2))
    assert not marker.exists() and "\n" not in str(caught.value)


@pytest.mark.parametrize("raw", [False, True], ids=["torch", "raw"])
def test_pickles_beside_a_checkpoint_are_never_opened(data, run, raw):
    markers = [plant(run / "checkpoint-1", name, raw) for name in OLD]
    segmenter.train(args_of(data, run, 1))
    assert not any(marker.exists() for marker in markers)


@pytest.mark.parametrize("name", OLD)
def test_a_manifest_that_lists_a_pickle_is_refused(data, run, name):
    marker = plant(run / "checkpoint-1", name, False)
    listed(run / "checkpoint-1", name)
    with pytest.raises(ValueError, match="no checkpoint in .* is complete .*which is not a file of a checkpoint"):
        segmenter.train(args_of(data, run, 1))
    assert not marker.exists()


@pytest.mark.parametrize("manifest", [True, False], ids=["version 1", "no manifest"])
def test_checkpoints_of_an_older_version_are_refused_in_one_line(data, run, manifest, capsys):
    folder = run / "checkpoint-1"
    for file in folder.iterdir():
        if file.name not in ("manifest.json", "model.safetensors"):
            file.unlink()
    marker = plant(folder, "custom_checkpoint_0.pkl", True)
    plant(folder, "optimizer.bin", False)
    if manifest:
        listed(folder, "optimizer.bin", version=1)
    else:
        (folder / "manifest.json").unlink()
    flags = soak.JOBS["segmenter"].flags(data, run)
    said = fails(capsys, "train", "segmenter", *flags, "--max_train_steps", "2", *LATEST)
    assert "written by an older version, as pickles" in said and "begin another one from its networks" in said
    assert not marker.exists() and (folder / "optimizer.bin").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"files": {"../../arguments.json": [1, "0" * 64]}}, "lists '../../arguments.json', which is not a file"),
        ({"files": {"/etc/passwd": [1, "0" * 64]}}, "lists '/etc/passwd', which is not a file of a checkpoint"),
        ({"files": {"model.safetensors": "big"}}, "lacks the size and the sha256 of model.safetensors"),
        ({"files": {"\x1b[31m": [1, "0"]}}, r"lists '\\x1b\[31m', which is not a file"),
        ({"version": 99}, "has the version 99, and this package reads 2"),
        ({"flags": []}, r"is not that of a checkpoint: flags is \[\]"),
        ({"processes": "a" * 10**6}, "is not that of a checkpoint: processes is 'aaa"),
    ],
)
def test_a_manifest_is_checked_before_anything_is_opened(data, run, change, message, monkeypatch):
    path = run / "checkpoint-1" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    monkeypatch.setattr(checkpoints, "sha256_of", lambda file: pytest.fail(f"{file} was opened"))
    with pytest.raises(ValueError, match=message) as caught:
        segmenter.train(args_of(data, run, 2))
    assert len(str(caught.value)) < 1200 and "\x1b" not in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_pipes_and_links_are_not_opened(data, run, name):
    folder = run / "checkpoint-1"
    (folder / name).rename(run / "elsewhere")
    os.mkfifo(folder / name)
    with pytest.raises(ValueError, match=r"is not a regular file"):
        segmenter.train(args_of(data, run, 2))
    (folder / name).unlink()
    os.symlink(run / "elsewhere", folder / name)
    with pytest.raises(ValueError, match=r"is not a regular file"):
        segmenter.train(args_of(data, run, 2))


STRUCTURES = {
    "deep": "[" * 10**5 + "]" * 10**5,
    "no JSON": "{",
    "a list": "[]",
    "two kinds": '{"list": [], "dict": []}',
    "another kind": '{"call": ["os.system"]}',
    "no such tensor": '{"tensor": "nothing"}',
    "a number": "1e999",
}


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("name", ["optimizer.json", "state.json"])
def test_damaged_structures_are_refused(data, run, name, structure):
    path = run / "checkpoint-1" / name
    path.write_text(STRUCTURES[structure])
    listed(path.parent, name)
    with pytest.raises(ValueError, match="checkpoint-1 cannot be loaded") as caught:
        segmenter.train(args_of(data, run, 2))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1200


def test_states_of_another_shape_are_refused(data, run):
    path = run / "checkpoint-1" / "optimizer.json"
    state = state_files.read_state(path, WRITTEN)
    state["state"][0]["exp_avg"] = torch.zeros(3)
    state_files.write_state(path, state)
    listed(path.parent, "optimizer.json")
    listed(path.parent, "optimizer.safetensors")
    with pytest.raises(ValueError, match=r"the optimizer's 'exp_avg' has the shape \(3,\), not "):
        segmenter.train(args_of(data, run, 2))


@pytest.mark.parametrize(
    "change",
    [
        {"numpy": ["MT19937", [0] * 624, 10**6, 0, 0.0]},
        {"numpy": ["MT19937", [0] * 3, 1, 0, 0.0]},
        {"torch": "00"},
        {"python": [3, [1], None]},
    ],
)
def test_damaged_random_states_are_refused(data, run, change):
    path = run / "checkpoint-1" / "random_states_0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    listed(path.parent, path.name)
    with pytest.raises(ValueError, match="checkpoint-1 cannot be loaded"):
        segmenter.train(args_of(data, run, 2))


def test_files_that_the_manifest_does_not_list_are_not_opened(data, run):
    path = run / "checkpoint-1" / "manifest.json"
    for name in WRITTEN[:-1]:
        manifest = json.loads(path.read_text())
        manifest["files"] = {k: v for k, v in manifest["files"].items() if k != name}
        before = path.read_text()
        path.write_text(json.dumps(manifest))
        (run / "checkpoint-1" / name).rename(run / "kept")
        os.mkfifo(run / "checkpoint-1" / name)
        with pytest.raises(ValueError, match="checkpoint-1 cannot be loaded"):
            segmenter.train(args_of(data, run, 2))
        os.replace(run / "kept", run / "checkpoint-1" / name)
        path.write_text(before)


def test_states_come_back_as_they_were(tmp_path):
    shared, names = torch.arange(4.0), ("a.json", "a.safetensors")
    state = {
        "a": [shared, shared[:2], (1, 2.5, None, True, "text")],
        3: {"b": torch.ones(2, dtype=torch.bfloat16), "c": [], "d": {}},
        "scalar": torch.tensor(7),
        "inf": float("inf"),
    }
    state_files.write_state(tmp_path / "a.json", state)
    found = state_files.read_state(tmp_path / "a.json", names)
    assert torch.equal(found["a"][0], shared) and torch.equal(found["a"][1], shared[:2])
    assert found["a"][2] == state["a"][2] and found[3]["c"] == [] and found[3]["d"] == {}
    assert found[3]["b"].dtype == torch.bfloat16 and found["scalar"].shape == () and found["inf"] == float("inf")
    first = [(tmp_path / name).read_bytes() for name in names]
    for _ in range(5):  # the same state, the same bytes
        state_files.write_state(tmp_path / "a.json", state)
        assert [(tmp_path / name).read_bytes() for name in names] == first
    with pytest.raises(TypeError, match="a checkpoint cannot store x, of type object"):
        state_files.write_state(tmp_path / "a.json", {"x": object()})
    assert [(tmp_path / name).read_bytes() for name in names] == first


def test_random_states_go_on(tmp_path):
    import random

    import numpy as np

    before = json.loads(json.dumps(states.random_states()))
    drawn = [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]
    states.set_random_states(before)
    assert drawn == [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(3).tolist()]


# --- The weights that went in ----------------------------------------------------------------------------------------


def test_other_weights_are_noticed_on_resumption(data, tmp_path, capsys):
    model, out = tmp_path / "model", tmp_path / "run"
    shutil.copytree(data / "model", model)
    flags = soak.JOBS["encoder"].flags(data, out)
    flags[flags.index("--model") + 1] = str(model)
    encoder.train(encoder.parse_args([*flags, "--max_train_steps", "1"]))
    file = model / "generator" / "diffusion_pytorch_model.safetensors"
    manifest = json.loads((out / "checkpoint-1" / "manifest.json").read_text())
    name = "--model generator/diffusion_pytorch_model.safetensors"
    assert manifest["inputs"][name] == inputs.sha256_of(file)
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    weights, old = load_file(file), file.read_bytes()
    save_file({k: v + 1 for k, v in weights.items()}, file, metadata={"format": "pt"})
    said = fails(capsys, "train", "encoder", *flags, "--max_train_steps", "2", *LATEST)
    assert f"the sha256 of {name} was {manifest['inputs'][name][:16]} and is now {inputs.sha256_of(file)[:16]}" in said
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before
    file.write_bytes(old)
    assert cli.main(["train", "encoder", *flags, "--max_train_steps", "2", *LATEST]) == 0


@pytest.mark.parametrize(
    ("trainer", "more", "expected"),
    [
        ("generator", {}, {"--model discriminator", "--model generator"}),
        ("segmenter", {}, {"--model segmenter"}),
        ("fusion", {"realism_weight": 0.0}, {"--model generator", "--model segmenter"}),
        ("fusion", {"realism_weight": 1.0}, {"--model discriminator", "--model generator", "--model segmenter"}),
        ("fusion", {"segmenter": "segmenter", "realism_weight": 0.0}, {"--model generator", "--segmenter"}),
        ("encoder", {}, {"--model generator", "--model segmenter"}),
        ("judges", {}, {"--model generator"}),
    ],
)
def test_what_each_trainer_takes_in(data, tmp_path, trainer, more, expected):
    more = more | ({"segmenter": str(data / "model" / "segmenter")} if "segmenter" in more else {})
    args = argparse.Namespace(
        trainer=f"stylefusion train {trainer}",
        pretrained_model_name_or_path=str(data / "model"),
        output_dir=str(tmp_path),
        **more,
    )
    found = {
        name.removesuffix("diffusion_pytorch_model.safetensors").strip("/ ") for name in inputs.digests_of_inputs(args)
    }
    assert found == expected
    args.output_dir = str(data)  # what the run itself writes may change
    inputs.forget_inputs(args)
    assert inputs.digests_of_inputs(args) == {}


def test_a_second_training_into_one_folder_is_refused(data, run):
    from stylefusion_hf.core.files import locked

    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    with locked(run, "training"), pytest.raises(OSError, match="run is being written by another training"):
        segmenter.train(args_of(data, run, 2))
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before
    segmenter.train(args_of(data, run, 2))
    assert not (run / ".writing").exists()
