"""Files are whole or as they were: full disks, modes, links, and one writer per folder."""

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stylefusion_hf import Code, Direction, cli
from stylefusion_hf.core import files
from stylefusion_hf.core.code_files import save_codes
from stylefusion_hf.core.edits import save_directions
from stylefusion_hf.export import rendering, shards
from stylefusion_hf.inversion.tuned import save_tuned
from tests.command_line import fails
from tests.tiny import tiny_generator, tiny_pipeline

BIG = 2**16  # numbers, more than a limited disk takes


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def small_disk(most: int = 4096) -> Iterator[None]:
    """No file grows beyond `most` bytes: writing fails in the middle, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def noise() -> Image.Image:
    return Image.frombytes("RGB", (128, 128), os.urandom(3 * 128 * 128))


def a_shard(path: Path) -> None:
    with shards.write_shard(path, {}) as write:
        write({"key": "a", "line": 1, "picture": 0, "image": os.urandom(BIG), "mask": None, "recipe": "{}"})


def a_direction(path: Path) -> None:
    save_directions(path, [Direction("a", "s", torch.ones(BIG))])


WRITERS = {
    "a.txt": lambda p: files.write_text(p, "x" * BIG),
    "a.json": lambda p: files.write_json(p, list(range(BIG))),
    "a.png": lambda p: files.save_image(noise(), p),
    "a.tar": a_shard,
    "codes.safetensors": lambda p: save_codes(p, {"a": Code(torch.zeros(1, BIG), "s")}),
    "directions.safetensors": a_direction,
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("mask", [0o022, 0o027, 0o002])
def test_files_have_the_mode_of_the_umask(name, mask, tmp_path):
    with umask(mask):
        WRITERS[name](tmp_path / name)
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o666 & ~mask
        assert os.umask(mask) == mask  # nobody changed it
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_older_file(name, tmp_path):
    (tmp_path / name).write_bytes(b"older")
    with small_disk(), pytest.raises(OSError, match=name):
        WRITERS[name](tmp_path / name)
    assert (tmp_path / name).read_bytes() == b"older"
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_models_and_pipelines_have_the_mode_of_the_umask(mask, tmp_path):
    generator, pipe = tiny_generator(), tiny_pipeline(segmenter=True)
    with umask(mask):
        pipe.save_pretrained(tmp_path / "pipe")
        generator.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
        save_tuned(generator, tmp_path)
    found = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert {stat.S_IMODE(p.stat().st_mode) for p in found} == {0o666 & ~mask}
    assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.rglob("*") if p.is_dir()} == {0o777 & ~mask}
    assert not list(tmp_path.rglob(f"{files.PARTIAL}*"))


def test_a_full_disk_leaves_the_older_model_and_pipeline(tmp_path):
    for model, folder in ((tiny_generator(), tmp_path / "model"), (tiny_pipeline(), tmp_path / "pipe")):
        model.save_pretrained(folder)
        (folder / "notes.txt").write_text("mine")
        before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        with small_disk(), pytest.raises(OSError, match=folder.name):
            (tiny_generator(seed=1) if folder.name == "model" else tiny_pipeline(seed=1)).save_pretrained(folder)
        assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model", "pipe"]


def test_a_pipeline_saved_over_shards_is_the_new_one(tmp_path):
    tiny_pipeline(seed=1).save_pretrained(tmp_path, max_shard_size="20KB")
    assert list((tmp_path / "generator").glob("*.index.json"))
    pipe = tiny_pipeline(seed=2)
    pipe.save_pretrained(tmp_path)
    assert [p.name for p in (tmp_path / "generator").glob("*.safetensors*")] == ["diffusion_pytorch_model.safetensors"]
    again = type(pipe).from_pretrained(tmp_path)
    for name, tensor in pipe.generator.state_dict().items():
        assert torch.equal(tensor, again.generator.state_dict()[name])


def test_links_stay_and_devices_are_written(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "real.txt").write_text("older")
    os.symlink(tmp_path / "there" / "real.txt", tmp_path / "link.txt")
    files.write_text(tmp_path / "link.txt", "newer")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "there" / "real.txt").read_text() == "newer"
    files.write_text("/dev/null", "nothing")
    assert not Path("/dev/null").is_file()
    with pytest.raises(IsADirectoryError, match="there"):
        files.write_text(tmp_path / "there", "x")
    with pytest.raises(FileNotFoundError, match="nowhere/a.txt"):
        files.write_text(tmp_path / "nowhere" / "a.txt", "x")
    name = "x" * 240 + ".txt"
    files.write_text(tmp_path / name, "long")
    assert (tmp_path / name).read_text() == "long"


def test_an_error_of_another_file_is_not_blamed_on_this_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="other.txt"), files.atomic_path(tmp_path / "a.txt"):
        (tmp_path / "other.txt").read_text()
    assert not list(tmp_path.iterdir())


def test_two_writers_of_one_file_never_mix(tmp_path):
    path = tmp_path / "a.json"

    def write(value: int) -> None:
        for _ in range(20):
            files.write_json(path, [value] * 5000, sync=False)

    threads = [threading.Thread(target=write, args=(value,)) for value in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        if path.exists():
            assert len(set(json.loads(path.read_text()))) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


# --- Commands --------------------------------------------------------------------------------------------------------

SETS = [
    ("a.png", "sheet --bases 1 --sources 2 --out a.png"),
    ("a.png", "fuse --base 1 --out a.png"),
    ("a.json", "fuse --base 1 --out b.png --recipe a.json"),
    ("masks/hair.png", "fuse --base 1 --out b.png --masks masks"),
    ("a.gif", "interpolate --base 1,2 --frames 3 --out a.gif"),
    ("a.webp", "interpolate --base 1,2 --frames 3 --out a.webp"),
    ("a.safetensors", "directions discover --method sefa --count 2 --out a.safetensors"),
    ("out/dataset.json", "render --random 1 --out out"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model") / "model"
    tiny_pipeline(segmenter=True).save_pretrained(folder)
    return str(folder)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("name", "argv"), SETS)
def test_commands_on_a_full_disk_leave_the_older_file(model, name, argv, capsys, monkeypatch):
    assert cli.main([*argv.split(), "--model", model, "--device", "cpu"]) == 0
    before = Path(name).read_bytes()
    for file in Path().rglob("*.tar"):
        file.unlink()

    def full(path):
        if path.is_file():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # First the module that may be imported only now: it must not pick up the patched function for good.
    monkeypatch.setattr("stylefusion_hf.imaging.animation.flush", full)
    monkeypatch.setattr(files, "flush", full)
    capsys.readouterr()
    said = fails(capsys, *argv.split(), "--model", model, "--device", "cpu")
    assert "No space left" in said and len(said.strip().splitlines()) == 1
    assert Path(name).read_bytes() == before
    assert not list(Path().rglob(f"{files.PARTIAL}*"))


# --- One writer per folder -------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from stylefusion_hf.core.files import FolderLock
lock = FolderLock(sys.argv[1], "rendering")
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_writer_is_refused_until_the_first_ends_or_dies(tmp_path):
    root = Path(__file__).resolve().parents[2]
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=root)
    try:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(
            OSError, match="is being written by another rendering: wait until it ends, or name another"
        ):
            files.FolderLock(tmp_path, "rendering")
    finally:
        first.kill()
        first.wait()
    with files.locked(tmp_path, "rendering"):
        pass
    assert not list(tmp_path.iterdir())


def test_two_renderings_into_one_folder(tmp_path, monkeypatch):
    """The second is refused while the first writes, whose shards are whole."""
    pipe = tiny_pipeline()
    source, plain, refused = rendering.RandomRecipes(3, 0, pipe.fusion.tree), rendering.render_batch, []

    def while_another_starts(*args):
        with pytest.raises(OSError, match="out is being written by another rendering") as caught:
            rendering.render(pipe, source, tmp_path / "out", shard_size=2, masks=False)
        refused.append(str(caught.value))
        yield from plain(*args)

    monkeypatch.setattr(rendering, "render_batch", while_another_starts)
    assert rendering.render(pipe, source, tmp_path / "out", shard_size=2, masks=False).pictures == 3
    assert refused and all("\n" not in line for line in refused)
    monkeypatch.undo()
    rendering.render(pipe, source, tmp_path / "again", shard_size=2, masks=False)
    for file in (tmp_path / "again").iterdir():
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == sorted(
        p.name for p in (tmp_path / "again").iterdir()
    )


def test_what_a_killed_rendering_left_is_removed(tmp_path):
    pipe = tiny_pipeline()
    (tmp_path / f"{files.PARTIAL}12345678-shard-000000.tar").write_bytes(b"half")
    (tmp_path / files.LOCK).touch()
    rendering.render(pipe, rendering.RandomRecipes(1, 0, pipe.fusion.tree), tmp_path, masks=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dataset.json", "shard-000000.tar"]


def test_weights_are_readable_after_a_round(tmp_path):
    save_codes(tmp_path / "a.safetensors", {"a": Code(torch.ones(1, 4), "s")})
    assert torch.equal(load_file(tmp_path / "a.safetensors")["a"], torch.ones(1, 4))


@pytest.mark.parametrize("name", ["", "a\0b"])
def test_a_folder_has_a_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pipe = tiny_pipeline()
    for save in (pipe.save_pretrained, pipe.generator.save_pretrained, pipe.fusion.save_config):
        with pytest.raises(ValueError, match="expected the name of a folder, got '"):
            save(name)
    assert not list(tmp_path.iterdir())
