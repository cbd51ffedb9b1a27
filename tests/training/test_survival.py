"""What goes wrong in a training: each fault is one clear error or message, and no checkpoint is lost."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file

from stylefusion_hf.core import tensor_files
from stylefusion_hf.training import checkpoints, common, generator, resuming, segmenter, states
from tests import soak
from tests.tiny import assert_same_weights


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """What the tiny trainings of the soak need: a model folder, pictures with label maps, a cache of avatars."""
    return soak.make_data(tmp_path_factory.mktemp("data"))


def args_of(data: Path, name: str, out: Path, steps: int, *more: str):
    job = soak.JOBS[name]
    return job.module.parse_args([*job.flags(data, out), "--max_train_steps", str(steps), *more])


LATEST = ("--resume_from_checkpoint", "latest")


@pytest.fixture(scope="module")
def three(data, tmp_path_factory) -> Path:
    """A segmenter's run of three steps with the checkpoints 1, 2 and 3, to be copied."""
    out = tmp_path_factory.mktemp("three") / "run"
    segmenter.train(args_of(data, "segmenter", out, 3, "--checkpoints_total_limit", "0"))
    return out


@pytest.fixture
def run(three, tmp_path) -> Path:
    shutil.copytree(three, tmp_path / "run")
    return tmp_path / "run"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


# --- Checkpoints that are not whole ----------------------------------------------------------------------------------


def cut(folder: Path) -> None:
    os.truncate(folder / "optimizer.safetensors", 100)


def zeros(folder: Path) -> None:  # what a power cut leaves of pages that were not flushed
    size = (folder / "model.safetensors").stat().st_size
    (folder / "model.safetensors").write_bytes(bytes(size))


def lost(folder: Path) -> None:
    (folder / "state.json").unlink()


def no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink(missing_ok=True)


def half_a_manifest(folder: Path) -> None:
    os.truncate(folder / "manifest.json", 50)


def other_json(folder: Path) -> None:
    (folder / "manifest.json").write_text("[]")


DAMAGES = {
    cut: "optimizer.safetensors has 100 bytes, not ",
    zeros: "the content of model.safetensors has changed",
    lost: "state.json is missing",
    no_manifest: "it has no manifest.json",
    half_a_manifest: "its manifest.json cannot be read: ",
    other_json: "its manifest.json is not that of a checkpoint",
}


@pytest.mark.parametrize("harm", DAMAGES)
def test_a_damaged_checkpoint_is_skipped_with_a_message(data, three, run, harm, caplog):
    harm(run / "checkpoint-3")
    harm(run / "checkpoint-2")
    before = contents(run / "checkpoint-3")
    with caplog.at_level("INFO"):
        segmenter.train(args_of(data, "segmenter", run, 3, *LATEST, "--checkpoints_total_limit", "0"))
    for name in ("checkpoint-3", "checkpoint-2"):
        assert any(f"{run / name} is skipped: {DAMAGES[harm]}" in line for line in caplog.messages), caplog.messages
    assert f"resumed from {run / 'checkpoint-1'}" in caplog.messages
    assert contents(run / "checkpoint-3.aside-1") == before
    assert_same_weights(run / "segmenter", three / "segmenter")
    assert [checkpoints.damage(p) for p in checkpoints.list_checkpoints(run)] == [None] * 3


def test_one_that_was_being_written_is_named_and_removed(data, run, caplog):
    os.rename(run / "checkpoint-3", run / ".partial-checkpoint-3")
    with caplog.at_level("INFO"):
        segmenter.train(args_of(data, "segmenter", run, 3, *LATEST))
    assert f"{run / '.partial-checkpoint-3'} is skipped: the run ended while writing it" in caplog.messages
    assert not list(run.glob(".partial*"))


def test_no_whole_checkpoint_is_an_error_and_not_a_fresh_start(data, run):
    for p in checkpoints.list_checkpoints(run):
        cut(p)
    before = contents(run)
    with pytest.raises(
        ValueError, match=r"no checkpoint in .* is complete \(checkpoint-3: optimizer.safetensors has 100"
    ):
        segmenter.train(args_of(data, "segmenter", run, 4, *LATEST))
    with pytest.raises(
        ValueError, match=r"no checkpoint in .* is complete \(checkpoint-2: optimizer.safetensors has 100"
    ):
        segmenter.train(args_of(data, "segmenter", run, 4, "--resume_from_checkpoint", "checkpoint-2"))
    assert contents(run) == before


def test_checkpoints_without_a_manifest_are_not_taken(data, run):
    for p in checkpoints.list_checkpoints(run):
        no_manifest(p)
    before = contents(run)
    with pytest.raises(ValueError, match=r"no checkpoint in .* is complete \(checkpoint-3: it has no manifest.json"):
        segmenter.train(args_of(data, "segmenter", run, 3, *LATEST))
    assert contents(run) == before


def test_a_branch_that_is_given_up_is_kept_aside(data, three, run, caplog):
    go_on = ("--resume_from_checkpoint", "checkpoint-1", "--learning_rate", "0.001")
    with caplog.at_level("INFO"):
        segmenter.train(args_of(data, "segmenter", run, 2, *go_on))
    assert "--learning_rate was 0.002, from now on it is 0.001" in caplog.messages
    assert contents(run / "checkpoint-3.aside-1") == contents(three / "checkpoint-3")
    assert [p.name for p in checkpoints.list_checkpoints(run)] == ["checkpoint-1", "checkpoint-2"]


def test_a_changed_rate_is_the_rate_of_the_next_step(data, run):
    args = args_of(data, "segmenter", run, 9, *LATEST, "--learning_rate", "0.5", "--lr_warmup_steps", "0")
    network = torch.nn.Conv2d(3, 8, 3)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.5)
    accelerator = Accelerator()
    schedule = common.build_schedule(args, optimizer)
    network, optimizer = accelerator.prepare(network, optimizer)
    accelerator.register_for_checkpointing(resuming.State(schedule=schedule))
    rate = {"lr": 0.002, "initial_lr": 0.002}
    optimizer.param_groups[0].update(rate)
    schedule.base_lrs = [0.002]
    states.write(run / "checkpoint-5", states.collect(accelerator))
    names = {p.name: [p.stat().st_size, checkpoints.sha256_of(p)] for p in (run / "checkpoint-5").iterdir()}
    about = json.loads((run / "checkpoint-3" / "manifest.json").read_text())
    (run / "checkpoint-5" / "manifest.json").write_text(json.dumps(about | {"files": names}))
    optimizer.param_groups[0].update({"lr": 0.5, "initial_lr": 0.5})
    schedule.base_lrs = [0.5]
    resuming.load_checkpoint(accelerator, run / "checkpoint-5")
    assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[0]["initial_lr"] == 0.5
    optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [0.5 * schedule.lr_lambdas[0](1)]


# --- Flags that changed ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("segmenter", "--channels 8,8", r"checkpoint-1 was made with --channels 8,16 \(now 8,8\)"),
        ("segmenter", "--train_batch_size 8", r"--train_batch_size 4 \(now 8\)"),
        ("segmenter", "--seed 3 --degrade 0.5", r"--seed 0 \(now 3\), --degrade 1.0 \(now 0.5\)"),
        ("segmenter", "--gradient_accumulation_steps 2", r"--gradient_accumulation_steps 1 \(now 2\)"),
        ("segmenter", "--train_data_dir elsewhere", r"--train_data_dir .*pictures \(now elsewhere\)"),
        ("segmenter", "--allow_tf32", r"--allow_tf32 False \(now True\)"),
        ("fusion", "--tree all*(hair,skin)", r"--tree None \(now all\*\(hair,skin\)\)"),
        ("fusion", "--pool_size 24", r"--pool_size 16 \(now 24\)"),
        ("generator", "--channels 8,8,16", r"--channels 8,8,8 \(now 8,8,16\)"),
    ],
)
def test_a_run_of_other_flags_is_refused_and_changes_nothing(data, tmp_path_factory, name, more, message):
    out = done(data, name, tmp_path_factory)
    before = contents(out)
    with pytest.raises(ValueError, match=message):
        soak.JOBS[name].module.train(args_of(data, name, out, 2, *LATEST, *more.split()))
    assert contents(out) == before


DONE: dict[str, Path] = {}


def done(data: Path, name: str, factory) -> Path:
    """A run of one step, made once."""
    if name not in DONE:
        DONE[name] = factory.mktemp(name) / "run"
        soak.JOBS[name].module.train(args_of(data, name, DONE[name], 1))
    return DONE[name]


def test_checkpoints_of_another_trainer_are_refused(data, tmp_path_factory):
    out = done(data, "generator", tmp_path_factory)
    before = contents(out)
    with pytest.raises(ValueError, match="made by `stylefusion train generator`, and this is `stylefusion train segm"):
        segmenter.train(args_of(data, "segmenter", out, 2, *LATEST))
    with pytest.raises(ValueError, match="already holds checkpoints"):
        generator.train(args_of(data, "generator", out, 2))
    assert contents(out) == before


def test_flags_that_only_report_may_change(data, run, tmp_path):
    os.symlink(data / "pictures", tmp_path / "link")
    more = "--checkpointing_steps 2 --logging_steps 2 --checkpoints_total_limit 1 --report_to tensorboard"
    more += f" --max_grad_norm 2 --train_data_dir {tmp_path / 'link'}"
    segmenter.train(args_of(data, "segmenter", run, 4, *LATEST, *more.split()))
    assert [p.name for p in checkpoints.list_checkpoints(run)] == ["checkpoint-4"]
    assert json.loads((run / "arguments.json").read_text())["max_train_steps"] == 4


def test_the_images_of_a_step_count_not_how_they_are_shared_out(data, run):
    path = run / "checkpoint-3" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"processes": 2}))
    with pytest.raises(ValueError, match=r"made with --num_processes 2 \(now 1\)"):
        segmenter.train(args_of(data, "segmenter", run, 4, *LATEST))
    segmenter.train(args_of(data, "segmenter", run, 4, *LATEST, "--gradient_accumulation_steps", "2"))


def test_a_missing_tracker_is_told_before_anything_is_written(data, run, monkeypatch):
    before = contents(run)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="--report_to wandb needs its package: pip install wandb"):
        segmenter.train(args_of(data, "segmenter", run, 4, *LATEST, "--report_to", "wandb"))
    assert contents(run) == before


def test_a_folder_that_not_all_machines_share_is_told(tmp_path):
    with pytest.raises(
        OSError, match=r"elsewhere is not seen by process 0 \(.*\): it must be on a file system that all"
    ):
        common.check_shared(tmp_path / "elsewhere", {}, patience=0)
    (tmp_path / "arguments.json").write_text('{"seed": 1}')  # of a run before, on a disk of this machine
    with pytest.raises(OSError, match="is not seen by process 0"):
        common.check_shared(tmp_path, {"seed": 2}, patience=0)
    common.check_shared(tmp_path, {"seed": 1}, patience=0)


# --- Numbers that are not finite -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["segmenter", "fusion", "generator"])
def test_nan_stops_at_the_last_good_checkpoint(data, tmp_path, name):
    job, out = soak.JOBS[name], tmp_path / "run"
    train = job.module.train
    train(args_of(data, name, out, 1))
    before = contents(out / "checkpoint-1")
    rate = "1e30" if name == "segmenter" else "1e38"
    rates = ["--learning_rate", rate, *(["--gate_learning_rate", rate] if name == "fusion" else [])]
    for more in (["--logging_steps", "50"], ["--checkpointing_steps", "50", "--logging_steps", "1"]):
        with pytest.raises(FloatingPointError, match=r"finite at step \d+.*; the last good checkpoint is ") as caught:
            train(args_of(data, name, out, 9, *LATEST, *rates, *more, "--checkpoints_total_limit", "0"))
        named = Path(str(caught.value).split("good checkpoint is ")[1].split(":")[0])
        assert named == checkpoints.list_checkpoints(out)[-1]
    assert contents(out / "checkpoint-1") == before
    for path in checkpoints.list_checkpoints(out):
        assert all(x.isfinite().all() for file in path.glob("*.safetensors") for x in load_file(file).values())
    train(args_of(data, name, out, 3, "--resume_from_checkpoint", "checkpoint-1"))
    assert json.loads((out / "log.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_nan_before_the_first_checkpoint(data, tmp_path):
    more = ("--learning_rate", "1e30", "--checkpointing_steps", "9")
    args = args_of(data, "segmenter", tmp_path / "run", 9, *more)
    with pytest.raises(FloatingPointError, match="run has no good checkpoint yet: start again, and lower"):
        segmenter.train(args)
    assert not checkpoints.list_checkpoints(tmp_path / "run")


# --- A full disk -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors"])
def test_a_full_disk_keeps_the_checkpoints_there_are(data, three, run, file, monkeypatch):
    """Half of one file is written, then safetensors' own words for a full disk are raised."""
    plain = tensor_files.save_file

    def full(tensors, path, metadata=None):
        plain(tensors, path, metadata=metadata)
        if Path(path).name.endswith(f"-{file}"):
            os.truncate(path, Path(path).stat().st_size // 2)
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensor_files, "save_file", full)
    with pytest.raises(
        OSError, match=r"checkpoint-4 could not be written \(.*\): make room .*MiB are free.*; the last good"
    ):
        segmenter.train(args_of(data, "segmenter", run, 5, *LATEST, "--checkpoints_total_limit", "1"))
    monkeypatch.undo()
    for name in ("checkpoint-1", "checkpoint-2", "checkpoint-3", "segmenter"):
        assert contents(run / name) == contents(three / name)
    assert not list(run.glob(".partial*"))
    segmenter.train(args_of(data, "segmenter", run, 5, *LATEST, "--checkpoints_total_limit", "1"))
    assert [p.name for p in checkpoints.list_checkpoints(run)] == ["checkpoint-5"]


def test_an_export_to_a_full_disk_keeps_the_old_one(data, three, run, monkeypatch):
    def full(self, folder, **_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("stylefusion_hf.RegionSegmenter.save_pretrained", full)
    with pytest.raises(OSError, match=r"segmenter could not be written .*No space left.*good checkpoint is .*-4"):
        segmenter.train(args_of(data, "segmenter", run, 5, *LATEST))
    assert contents(run / "segmenter") == contents(three / "segmenter")


def test_a_log_on_a_full_disk_is_named(data, run):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    (run / "log.jsonl").unlink()
    os.symlink("/dev/full", run / "log.jsonl")
    with pytest.raises(OSError, match=r"log.jsonl could not be written .*No space left.*good checkpoint is .*-3"):
        segmenter.train(args_of(data, "segmenter", run, 5, *LATEST))


# --- Kills -----------------------------------------------------------------------------------------------------------


def test_killed_trainings_and_renderings_go_on_to_the_bit():
    """A cycle a job; `make soak` does 100. In a process of its own, which forks: this one may have threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.soak", "--cycles", str(len(soak.EVERY)), "--seed", "1"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root, timeout=300)
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    assert counts["bit-identical"] == counts["cycles"] == len(soak.EVERY)
    assert counts["kills"] and counts["kills while a checkpoint was written"]
