"""A trainer that is refused before its first step is over leaves everything as it was, whichever trainer it is."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylefusion_hf import RegionTree, StyleGAN2Discriminator
from stylefusion_hf.training import encoder, fusion, generator, judges, segmenter
from tests.tiny import tiny_fusion, tiny_generator, tiny_segmenter

TRAINERS = {"generator": generator, "segmenter": segmenter, "fusion": fusion, "encoder": encoder, "judges": judges}
LEAVES = list(RegionTree.of("avatar").leaves)


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """What trainings start from: model/ of 32 px, pictures/ with labels, and folders with a fault each."""
    root = tmp_path_factory.mktemp("given")
    g = tiny_generator(use_noise=False)
    for name in ("model", "broken"):
        g.save_pretrained(root / name / "generator")
        tiny_segmenter().save_pretrained(root / name / "segmenter")
        StyleGAN2Discriminator(resolution=32, channels=[8] * 4).save_pretrained(root / name / "discriminator")
    for part in ("generator", "segmenter"):
        (root / "broken" / part / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    tiny_segmenter("all*(sky, sea)").save_pretrained(root / "other-regions" / "segmenter")
    tiny_fusion(g, "all*(sky, sea)").save_pretrained(root / "other-nets" / "fusion")
    for name in ("pictures", "truncated", "other-labels"):
        for kind in ("images", "labels"):
            (root / name / kind).mkdir(parents=True)
        for i in range(4):
            pixels = np.full((32, 32, 3), 40 * i, np.uint8)
            Image.fromarray(pixels).save(root / name / "images" / f"{i}.png")
            Image.fromarray(pixels[..., 0] // 40).save(root / name / "labels" / f"{i}.png")
        regions = ["sky", "sea", "sun", "sand"] if name == "other-labels" else LEAVES
        (root / name / "dataset.json").write_text(json.dumps({"regions": regions}))
    for picture in (root / "truncated" / "images").iterdir():
        noise = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(picture)
        picture.write_bytes(picture.read_bytes()[:1200])
    (root / "empty").mkdir()
    return root


PLAIN = "--max_train_steps 1 --train_batch_size 2 --resolution 32 "
WITHOUT = {  # what each trainer runs with, but for one flag or two
    "generator": PLAIN + "--channels 8,8,8,8 --latent_dim 8 --mapping_layers 1 --validation_steps 0",
    "segmenter": PLAIN + "--channels 8,8 --eval_avatars 0",
    "fusion": "--max_train_steps 1 --train_batch_size 6 --pool_size 16 --hidden_width 8 --validation_steps 0",
    "encoder": "--max_train_steps 1 --train_batch_size 2 --channels 8,8 --eval_images 0 --pool_size 8",
    "judges": PLAIN + "--eval_avatars 0 --segmenter_channels 8,8",
}
REFUSED = [
    ("generator", "--train_data_dir {pictures} --model {nothing}", "nothing"),
    ("generator", "--train_data_dir {pictures} --model {model} --resolution 64", "makes 32 px"),
    ("generator", "--train_data_dir {nothing}", "nothing"),
    ("generator", "--train_data_dir {empty}", "empty"),
    ("generator", "--train_data_dir {truncated}", "png"),
    ("generator", "--avatars 4 --channels 8,8", "--channels 8,8"),
    ("generator", "--avatars 4 --grow_from {nothing} --channels 8,8,8,8", "nothing"),
    ("generator", "--avatars 4 --lr_scheduler triangle", "--lr_scheduler triangle: choose one of linear, cosine"),
    ("generator", "--avatars 4 --discriminator projected --feature_network {nothing}", "nothing"),
    ("segmenter", "--train_data_dir {nothing}", "nothing"),
    ("segmenter", "--train_data_dir {truncated}", "png"),
    ("segmenter", "--train_data_dir {pictures} --eval_data_dir {other-labels}", "has sky, sea, sun, sand"),
    ("segmenter", "--avatars 4 --model {nothing}", "nothing"),
    ("segmenter", "--avatars 4 --model {other-regions}", "knows"),
    ("segmenter", "--avatars 4 --eval_data_dir {nothing}", "nothing"),
    ("segmenter", "--avatars 4 --lr_scheduler piecewise_constant", "--lr_scheduler piecewise_constant: choose one"),
    ("fusion", "--model {nothing}", "nothing"),
    ("fusion", "--model {broken}", "broken"),
    ("fusion", "", "--model is missing"),
    ("fusion", "--model {model} --initial_fusion {nothing}", "nothing"),
    ("fusion", "--model {model} --initial_fusion {other-nets}", "--initial_fusion .*does not fit"),
    ("fusion", "--model {model} --tree all*(sky,sea)", "not the tree's sky, sea"),
    ("fusion", "--model {model} --segmenter {nothing}", "nothing"),
    ("fusion", "--model {model} --judges {nothing} --validation_pairs 2", "holds no judges"),
    ("fusion", "--model {model} --judges {nothing} --validation_pairs 2 --max_train_steps 0", "holds no judges"),
    ("fusion", "--model {model} --judges {nothing} --validation_pairs 2 --regions auto", "holds no judges"),
    ("fusion", "--model {model} --regions auto --initial_fusion {nothing}", "nothing"),
    ("fusion", "--model {model} --regions auto --lr_scheduler triangle", "--lr_scheduler triangle"),
    ("fusion", "--model {model} --train_resolution 24", "--train_resolution 24"),
    ("fusion", "--model {model} --memory_gib 1e-6", "memory"),
    ("fusion", "--model {model} --pose_regions moon", "moon"),
    ("encoder", "--model {nothing}", "nothing"),
    ("encoder", "--model {model} --resolution 64", "makes 32 px"),
    ("encoder", "--model {model} --train_data_dir {nothing}", "nothing"),
    ("encoder", "--model {model} --sample_dir {empty}", "empty"),
    ("encoder", "--model {model} --channels= --encoder {nothing}", "nothing"),
    ("encoder", "--model {model} --avatars 4 --channels= --encoder {nothing}", "nothing"),
    ("encoder", "--model {model} --avatars 4 --real_share 1 --picture_batch 1", "--picture_batch 1"),
    ("judges", "--avatars 4 --model {nothing}", "nothing"),
    ("judges", "--avatars 4 --model {model} --resolution 16", "makes 32 px"),
    ("judges", "--avatars 4 --model {model} --discriminator_channels 8,8", "--discriminator_channels 8,8"),
    ("judges", "--avatars 4 --segmenter_channels 0", "--segmenter_channels 0: "),
    ("segmenter", "--avatars 4 --channels 8,x", "--channels 8,x: "),
    ("judges", "--avatars 4 --eval_data_dir {nothing}", "nothing"),
    ("judges", "--train_data_dir {nothing}", "nothing"),
]


def arguments(trainer: str, flags: str, given: Path, out: Path):
    folders = {name: given / name for name in (*(path.name for path in given.iterdir()), "nothing")}
    text = f"{WITHOUT[trainer]} {flags}".split()
    return TRAINERS[trainer].parse_args([word.format_map(folders) for word in text] + ["--output_dir", str(out)])


def content(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def refuse(trainer: str, flags: str, given: Path, out: Path, says: str) -> None:
    with pytest.raises((OSError, ValueError), match=says) as caught:
        TRAINERS[trainer].train(arguments(trainer, flags, given, out))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("trainer", "flags", "says"), REFUSED)
def test_nothing_is_left(trainer, flags, says, given, tmp_path):
    new = tmp_path / "runs" / "mine" / "now"
    refuse(trainer, flags, given, new, says)
    assert content(tmp_path) == {}
    # A folder that the user has made, with a file of the user's.
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / "notes.txt").write_text("mine")
    before = content(tmp_path)
    refuse(trainer, flags, given, tmp_path / "made", says)
    assert content(tmp_path) == before


STARTED = {
    "generator": "--train_data_dir {pictures}",
    "segmenter": "--train_data_dir {pictures}",
    "fusion": "--model {model}",
    "encoder": "--model {model}",
    "judges": "--train_data_dir {pictures} --only segmenter",
}


def lose(run: Path) -> None:
    (newest(run) / "manifest.json").write_text("{")


def break_weights(run: Path) -> None:
    (newest(run) / "model.safetensors").write_bytes(b"broken")


def newest(run: Path) -> Path:
    return max(run.rglob("checkpoint-*"))


@pytest.mark.parametrize("trainer", STARTED)
def test_a_run_is_not_touched(trainer, given, tmp_path):
    run, flags = tmp_path / "run", STARTED[trainer]
    TRAINERS[trainer].train(arguments(trainer, flags, given, run))
    kept = content(run)

    def again(more: str, says: str) -> None:
        before = content(run)
        refuse(trainer, f"{flags} {more}", given, run, says)
        assert content(run) == before

    on = "--max_train_steps 2 --resume_from_checkpoint"
    again("--max_train_steps 2", "already holds checkpoints")
    again(f"{on} checkpoint-7", "checkpoint-7' is not in")
    again(f"{on} latest --lr_scheduler triangle", "--lr_scheduler triangle")
    if "pictures" in flags:
        again(f"{on} latest --train_data_dir {{nothing}}", "train_data_dir|nothing")
    else:
        again(f"{on} latest --model {{nothing}}", "pretrained_model_name_or_path|nothing")
    faults: list[Callable[[Path], None]] = [break_weights, lose]
    for fault in faults:
        fault(run)
        again(f"{on} latest", "no checkpoint in .* is complete")
    assert json.loads(kept[str(next(run.rglob("arguments.json")).relative_to(run))])["max_train_steps"] == 1


def test_a_tracker_leaves_nothing_either(given, tmp_path):
    pytest.importorskip("tensorboard")
    refuse("fusion", "--model {model} --report_to tensorboard --memory_gib 1e-6", given, tmp_path / "run", "memory")
    assert content(tmp_path) == {}
    # Logs of somebody else stay, also in the same folder.
    (tmp_path / "run" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "logs" / "events.out.mine").write_text("x")
    before = content(tmp_path)
    refuse("fusion", "--model {model} --report_to tensorboard --memory_gib 1e-6", given, tmp_path / "run", "memory")
    assert content(tmp_path) == before
