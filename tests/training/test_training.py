"""The trainers on tiny models: they run, they resume to the bit, they refuse what makes no sense."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import (
    RegionSegmenter,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
)
from stylefusion_hf.training import common, generator, segmenter
from stylefusion_hf.training.augment import augment, parse_policy
from tests.hub_server import WRITER
from tests.tiny import assert_same_weights, saved_weights, tiny_segmenter


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A labelled data set of 12 pictures: a disc on a background."""
    root = tmp_path_factory.mktemp("pictures")
    random = np.random.RandomState(0)
    for kind in ("images", "labels"):
        (root / kind).mkdir()
    ys, xs = np.mgrid[:16, :16]
    for i in range(12):
        cy, cx = random.randint(5, 11, 2)
        disc = (ys - cy) ** 2 + (xs - cx) ** 2 < 16
        colours = random.randint(0, 255, (2, 3))
        Image.fromarray(np.where(disc[..., None], colours[0], colours[1]).astype(np.uint8)).save(
            root / f"images/{i:06d}.png"
        )
        Image.fromarray(disc.astype(np.uint8)).save(root / f"labels/{i:06d}.png")
    (root / "dataset.json").write_text(json.dumps({"regions": ["background", "disc"], "size": 16, "count": 12}))
    return root


def generator_args(pictures, out, *more):
    flags = f"--output_dir {out} --train_data_dir {pictures} --resolution 16 --channels 8,8,8 --latent_dim 8"
    return generator.parse_args(
        [
            *flags.split(),
            "--mapping_layers",
            "2",
            "--train_batch_size",
            "4",
            "--logging_steps",
            "1",
            "--validation_steps",
            "2",
            *more,
        ]
    )


OPTIONS = (
    "--use_noise",
    "--path_length_weight",
    "2",
    "--augment",
    "color,translation,cutout",
    "--mirror",
    "--r1_interval",
    "2",
)


def test_generator_runs_and_resumes_to_the_bit(pictures, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    generator.train(generator_args(pictures, whole, "--max_train_steps", "4", *OPTIONS))
    generator.train(generator_args(pictures, halves, "--max_train_steps", "2", *OPTIONS))
    torch.randn(7)  # whatever happens between two runs
    again = ("--max_train_steps", "4", "--resume_from_checkpoint", "latest", *OPTIONS)
    generator.train(generator_args(pictures, halves, *again))
    for part in ("generator", "discriminator"):
        assert_same_weights(whole / part, halves / part)
    assert (whole / "samples" / "0000004.png").is_file()
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 2, 3, 4]
    assert {"g_loss", "d_loss", "r1", "path_length"} <= set().union(*rows)
    g = StyleGAN2Generator.from_pretrained(whole, subfolder="generator")
    d = StyleGAN2Discriminator.from_pretrained(whole, subfolder="discriminator")
    assert torch.isfinite(d(g(torch.randn(2, 8)).sample).logits).all()
    # A further run starts from the trained model.
    more = generator_args(pictures, tmp_path / "more", "--max_train_steps", "1", "--model", str(whole))
    generator.train(more)
    assert not torch.equal(
        saved_weights(tmp_path / "more" / "generator")["synthesis.const"],
        saved_weights(whole / "generator")["synthesis.const"],
    )


@pytest.mark.parametrize(("limit", "kept"), [("2", [2, 3]), ("1", [3]), ("5", [1, 2, 3]), ("0", [1, 2, 3])])
def test_old_checkpoints_go_and_half_written_ones_do_not_count(pictures, tmp_path, limit, kept):
    (tmp_path / ".partial-checkpoint-9").mkdir()
    (tmp_path / "checkpoint-tmp").mkdir()
    more = ("--max_train_steps", "3", "--checkpointing_steps", "1", "--checkpoints_total_limit", limit)
    generator.train(generator_args(pictures, tmp_path, *more, "--resume_from_checkpoint", "latest"))
    assert [int(c.name[-1]) for c in common.list_checkpoints(tmp_path)] == kept
    assert not list(tmp_path.glob(".partial*"))


def test_a_tracker_and_an_upload(pictures, tmp_path, hub):
    flags = f"--max_train_steps 1 --report_to tensorboard --push_to_hub --hub_token {WRITER} --hub_model_id me/avatars"
    generator.train(generator_args(pictures, tmp_path, *flags.split()))
    files = {
        ".gitattributes",
        "README.md",
        "config.json",
        "diffusion_pytorch_model.safetensors",
    }  # no states, no paths
    assert set(hub.files("me/avatars")) == files
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))
    assert WRITER not in (tmp_path / "arguments.json").read_text()


def test_gradient_accumulation_covers_the_same_batch(pictures, tmp_path):
    generator.train(generator_args(pictures, tmp_path, "--max_train_steps", "1", "--gradient_accumulation_steps", "2"))
    assert (tmp_path / "generator").is_dir()


def test_segmenter_learns(pictures, tmp_path):
    flags = f"--output_dir {tmp_path} --train_data_dir {pictures} --resolution 16 --channels 8,16 --train_batch_size 8"
    args = segmenter.parse_args(
        [*flags.split(), "--max_train_steps", "60", "--logging_steps", "10", "--degrade", "0.5"]
    )
    segmenter.train(args)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    model = RegionSegmenter.from_pretrained(tmp_path, subfolder="segmenter")
    assert model.config.regions == ["background", "disc"]


def test_region_iou_counts_pixels():
    model = tiny_segmenter("all(left, right)")
    model.segment = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    images, labels = torch.ones(1, 3, 2, 2), torch.tensor([[[0, 0], [0, 1]]])
    iou = segmenter.region_iou(model, images, labels)
    assert iou == pytest.approx({"left": 0.75, "right": 0.0, "mean": 0.375})


def test_generator_refuses(pictures, tmp_path):
    for flags, message in (
        (("--channels", "8,8"), "--channels 8,8: .* needs 3"),
        (("--resolution", "24"), "power of two"),
        (("--augment", "blur"), "unknown augmentation 'blur'"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.train(generator_args(pictures, tmp_path / "x", *flags))
    (tmp_path / "y" / "checkpoint-3").mkdir(parents=True)
    with pytest.raises(ValueError, match="already holds checkpoints"):
        generator.train(generator_args(pictures, tmp_path / "y"))


def test_step_generators_differ_in_every_argument():
    draws = {
        tuple(torch.randn(2, generator=common.step_generator(*key)).tolist())
        for key in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0)]
    }
    assert len(draws) == 6
    again = [torch.randn(2, generator=common.step_generator(3, 4, 5)) for _ in range(2)]
    assert torch.equal(*again)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    args = common.common_parser("x", "x").parse_args(["--output_dir", str(tmp_path)])
    log = common.Log(common.start(args), args)
    log.add(loss=float("nan"))
    with pytest.raises(FloatingPointError, match="loss is not finite at step 7"):
        log.report(7)


def test_augmentation_is_differentiable_and_off_by_default():
    x = torch.rand(3, 3, 16, 16, requires_grad=True)
    assert augment(x, parse_policy("none")) is x
    y = augment(x, parse_policy("color,translation,cutout"), torch.Generator().manual_seed(1))
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None and (x.grad != 0).any()
    still = augment(torch.ones(2, 1, 8, 8), ("translation",), torch.Generator().manual_seed(0))
    assert set(still.unique().tolist()) <= {0.0, 1.0}  # what is shifted in is black
