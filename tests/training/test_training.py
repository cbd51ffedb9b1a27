"""The trainers on tiny models: they run, they resume to the bit, they refuse what makes no sense."""

import json
import shutil
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
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.evaluation.judges import PortraitJudge
from stylefusion_hf.models.discriminator import ProjectedDiscriminator
from stylefusion_hf.ops import upfirdn2d
from stylefusion_hf.regions.agreement import region_iou
from stylefusion_hf.training import common, gan_validation, generator, growing, judges, segmenter
from stylefusion_hf.training.augment import augment
from stylefusion_hf.training.checkpoints import list_checkpoints
from stylefusion_hf.training.choices import parse_augmentations
from stylefusion_hf.training.flags import common_parser
from stylefusion_hf.training.gan_losses import discriminator_loss, generator_loss
from stylefusion_hf.training.reports import Log
from tests.hub_server import WRITER
from tests.tiny import assert_same_weights, saved_weights, tiny_segmenter


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A labeled data set of 12 pictures: a disc on a background."""
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
    assert [int(c.name[-1]) for c in list_checkpoints(tmp_path)] == kept
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


@pytest.mark.parametrize("flag", ["--degrade", "--dice_weight", "--eval_avatars"])
def test_segmenter_refuses_negative_numbers(pictures, tmp_path, flag):
    args = segmenter.parse_args(["--train_data_dir", str(pictures), "--output_dir", str(tmp_path / "out"), flag, "-1"])
    with pytest.raises(ValueError, match=f"{flag} must not be negative, got -1"):
        segmenter.train(args)
    assert not (tmp_path / "out").exists()


def test_segmenter_learns(pictures, tmp_path):
    flags = f"--output_dir {tmp_path} --train_data_dir {pictures} --resolution 16 --channels 8,16 --train_batch_size 8"
    args = segmenter.parse_args(
        [*flags.split(), "--max_train_steps", "60", "--logging_steps", "10", "--degrade", "0.5"]
    )
    segmenter.train(args)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]
    model = RegionSegmenter.from_pretrained(tmp_path, subfolder="segmenter")
    assert model.config.regions == ["background", "disc"] and model.config.resolution == 16
    # A larger picture is seen at that size.
    large = torch.rand(1, 3, 64, 64)
    small = torch.nn.functional.avg_pool2d(large, 4)
    seen = model.segment(large)
    assert seen.shape == (1, 2, 64, 64)
    torch.testing.assert_close(torch.nn.functional.interpolate(model.segment(small), size=64, mode="bilinear"), seen)


def test_dice_counts_small_regions_as_much_as_large_ones():
    labels = torch.zeros(2, 4, 4, dtype=torch.long)
    labels[:, 0, 0] = 1
    sure = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1) * 100.0
    assert segmenter.dice_loss(sure, labels) == pytest.approx(0)  # no picture has the third region
    without = sure.clone()
    without[:, :, 0, 0] = torch.tensor([100.0, 0.0, 0.0])  # the small region is not found: 1 of 16 pixels is wrong
    assert segmenter.dice_loss(without, labels) == pytest.approx((1 - 30 / 31 + 1) / 2)


def test_segmenter_learns_with_dice(pictures, tmp_path):
    flags = f"--output_dir {tmp_path} --train_data_dir {pictures} --resolution 16 --channels 8,16 --train_batch_size 8"
    more = f" --max_train_steps 60 --lr_warmup_steps 0 --dice_weight 1 --eval_data_dir {pictures}"
    segmenter.train(segmenter.parse_args((flags + more).split()))
    assert json.loads((tmp_path / "iou.json").read_text())["held-out"]["mean"] > 0.6


def test_segmenter_reports_the_iou_of_a_held_out_folder(pictures, tmp_path):
    flags = f"--output_dir {tmp_path} --train_data_dir {pictures} --resolution 16 --channels 8,16 --train_batch_size 8"
    more = f" --max_train_steps 60 --lr_warmup_steps 0 --eval_data_dir {pictures}"
    segmenter.train(segmenter.parse_args((flags + more).split()))
    report = json.loads((tmp_path / "iou.json").read_text())
    assert set(report["held-out"]) == {"background", "disc", "mean"}
    assert report["held-out"]["mean"] > 0.6 and report["held-out, degraded"]["mean"] > 0.3


@pytest.mark.parametrize("regions", [["disc", "background"], None])
def test_segmenter_refuses_a_held_out_folder_with_other_regions(pictures, tmp_path, regions):
    other = shutil.copytree(pictures, tmp_path / "other")
    (other / "dataset.json").write_text(json.dumps({"regions": regions, "size": 16, "count": 12}))
    flags = f"--output_dir {tmp_path / 'out'} --train_data_dir {pictures} --resolution 16 --eval_data_dir {other}"
    with pytest.raises(ValueError, match=r"--eval_data_dir .* has .*, the training data has background, disc"):
        segmenter.train(segmenter.parse_args(flags.split()))


def test_the_judges_segmenter_reports_the_same(pictures, tmp_path):
    flags = f"--output_dir {tmp_path} --train_data_dir {pictures} --resolution 16 --segmenter_channels 8,16"
    judges.train(judges.parse_args([*flags.split(), "--max_train_steps", "2", "--eval_data_dir", str(pictures)]))
    found = json.loads((tmp_path / "judges.json").read_text())["segmenter"]["figures"]["IoU"]
    assert set(found["held-out"]) == {"background", "disc", "mean"}


def test_region_iou_counts_pixels():
    model = tiny_segmenter("all(left, right)")
    model.segment = lambda x: torch.stack([x[:, 0], -x[:, 0]], dim=1)
    images, labels = torch.ones(1, 3, 2, 2), torch.tensor([[[0, 0], [0, 1]]])
    iou = region_iou(model, images, labels)
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
        tuple(torch.randn(2, generator=step_generator(*key)).tolist())
        for key in [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0)]
    }
    assert len(draws) == 6
    again = [torch.randn(2, generator=step_generator(3, 4, 5)) for _ in range(2)]
    assert torch.equal(*again)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    args = common_parser("x", "x").parse_args(["--output_dir", str(tmp_path)])
    log = Log(common.start(args), args)
    log.add(loss=float("nan"))
    with pytest.raises(FloatingPointError, match="loss is not finite at step 7"):
        log.report(7)


def test_augmentation_is_differentiable_and_off_by_default():
    x = torch.rand(3, 3, 16, 16, requires_grad=True)
    assert augment(x, parse_augmentations("none")) is x
    y = augment(x, parse_augmentations("color,translation,cutout"), torch.Generator().manual_seed(1))
    assert y.shape == x.shape
    y.sum().backward()
    assert x.grad is not None and (x.grad != 0).any()
    still = augment(torch.ones(2, 1, 8, 8), ("translation",), torch.Generator().manual_seed(0))
    assert set(still.unique().tolist()) <= {0.0, 1.0}  # what is shifted in is black


# --- Losses, growing, judging: the generator's trainer ---------------------------------------------------------------


def test_losses_rank_pairs():
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[1.0], [3.0]])
    soft = torch.nn.functional.softplus
    assert torch.isclose(generator_loss("logistic", fake), soft(-fake).mean())
    assert torch.isclose(discriminator_loss("logistic", real, fake), soft(fake).mean() + soft(-real).mean())
    assert torch.isclose(generator_loss("relativistic", fake, real), soft(torch.tensor([1.0, -3.0])).mean())
    assert torch.isclose(discriminator_loss("relativistic", real, fake), soft(torch.tensor([-1.0, 3.0])).mean())
    # What counts are differences, pair by pair.
    assert torch.isclose(
        discriminator_loss("relativistic", real + 5, fake + 5), discriminator_loss("relativistic", real, fake)
    )
    with pytest.raises(ValueError, match="logits of both"):
        generator_loss("relativistic", fake)
    for loss in (lambda: generator_loss("hinge", fake), lambda: discriminator_loss("hinge", real, fake)):
        with pytest.raises(ValueError, match="unknown loss 'hinge'; choose from logistic, relativistic"):
            loss()


R3GAN = ("--loss", "relativistic", "--r1_gamma", "1", "--r2_gamma", "1", "--r1_interval", "1")


def test_the_relativistic_loss_resumes_to_the_bit(pictures, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    generator.train(generator_args(pictures, whole, "--max_train_steps", "3", *R3GAN))
    generator.train(generator_args(pictures, halves, "--max_train_steps", "1", *R3GAN))
    again = ("--max_train_steps", "3", "--resume_from_checkpoint", "latest")
    generator.train(generator_args(pictures, halves, *again, *R3GAN))
    for part in ("generator", "discriminator"):
        assert_same_weights(whole / part, halves / part)
    rows = [json.loads(line) for line in (whole / "log.jsonl").read_text().splitlines()]
    assert all({"r1", "r2"} <= set(row) for row in rows)
    with pytest.raises(ValueError, match="made with --loss relativistic .now logistic."):
        generator.train(generator_args(pictures, halves, *again))


def randomize(model, seed):
    """Every parameter drawn anew, so that none is at its first value."""
    draw = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=draw)
    return model.eval()


@pytest.mark.parametrize("use_noise", [False, True])
def test_grown_networks_start_as_the_small_ones(use_noise):
    g = StyleGAN2Generator(resolution=8, channels=[8, 6], z_dim=8, w_dim=8, mapping_layers=2, use_noise=use_noise)
    g = randomize(g, 0)
    g.w_avg.normal_()
    grown = growing.grow_generator(growing.grow_generator(g, 4), 4).eval()
    z = torch.randn(3, 8)
    small, large = (m(z, truncation_psi=0.7, noise_mode="none").sample for m in (g, grown))
    for _ in range(2):
        small = upfirdn2d(small, grown.synthesis.fir, up=2, padding=(2, 1, 2, 1), gain=4.0)
    assert torch.allclose(small, large, atol=1e-4)
    d = randomize(StyleGAN2Discriminator(resolution=8, channels=[8, 6]), 1)
    bigger = growing.grow_discriminator(growing.grow_discriminator(d, 4), 3)
    assert bigger.config.input_skips == 2 and list(bigger.config.channels) == [8, 6, 4, 3]
    x = torch.randn(4, 3, 32, 32)
    assert torch.allclose(d(torch.nn.functional.avg_pool2d(x, 4)).logits, bigger(x).logits, atol=1e-4)
    # A new block is not dead: its last layers learn in the first step, all of it from then on.
    bigger = growing.grow_discriminator(d, 4)
    bigger(x[..., ::2, ::2]).logits.sum().backward()
    assert (bigger.blocks[0].conv1.weight.grad != 0).any() and (bigger.blocks[0].skip.weight.grad != 0).any()


def test_growing_trains_on_and_refuses_what_does_not_fit(pictures, tmp_path):
    small = generator_args(pictures, tmp_path / "8", "--max_train_steps", "2")
    small.resolution, small.channels = 8, "8,6"
    generator.train(small)
    grow = ("--grow_from", str(tmp_path / "8"), "--channels", "8,6,4", "--max_train_steps", "2")
    generator.train(generator_args(pictures, tmp_path / "16", *grow))
    again = ("--resume_from_checkpoint", "latest", "--max_train_steps", "3")
    generator.train(generator_args(pictures, tmp_path / "16", *grow, *again))
    d = StyleGAN2Discriminator.from_pretrained(tmp_path / "16", subfolder="discriminator")
    assert d.config.input_skips == 1 and d.config.resolution == 16
    assert (saved_weights(tmp_path / "16" / "generator")["synthesis.rgbs.2.weight"] != 0).any()
    for flags, message in (
        (("--grow_from", str(tmp_path / "8"), "--channels", "8,8,4"), "does not continue .* 8,6"),
        (("--grow_from", str(tmp_path / "16")), "its generator is for 16 px, so --resolution must be 32, got 16"),
        (("--grow_from", str(tmp_path / "8"), "--model", str(tmp_path / "16")), "give one of them"),
        (("--r2_gamma", "-1"), "--r2_gamma must not be negative, got -1"),
        (("--path_length_weight", "-1"), "--path_length_weight must not be negative, got -1"),
        (("--ema_kimg", "-1"), "--ema_kimg must not be negative, got -1"),
        (("--mixing_prob", "2"), "--mixing_prob must be from 0 to 1, got 2"),
        (("--learning_rate", "inf"), "--learning_rate must be finite, got inf"),
        (("--r1_gamma", "nan"), "--r1_gamma must not be negative, got nan"),
        (("--r1_interval", "0"), "--r1_interval must be at least 1, got 0"),
        (("--path_length_interval", "0"), "--path_length_interval must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.train(generator_args(pictures, tmp_path / "x", *flags))
    with pytest.raises(OSError, match="nowhere"):
        generator.train(generator_args(pictures, tmp_path / "x", "--grow_from", str(tmp_path / "nowhere")))


def test_judges_count_kinds_while_training(pictures, tmp_path):
    torch.manual_seed(0)
    about = {"size": {"region": "disc", "classes": ["small", "large"]}}
    widths = {"channels": [8, 8, 8, 8], "reduced": 8, "features": 8}
    PortraitJudge(attributes=about, colours={}, resolution=16, **widths).save_pretrained(tmp_path / "j" / "portrait")
    tiny_segmenter("all(background, disc)").save_pretrained(tmp_path / "j" / "segmenter")
    judged = ("--validation_judges", str(tmp_path / "j"), "--validation_samples", "12", "--max_train_steps", "2")
    generator.train(generator_args(pictures, tmp_path / "judged", *judged))
    rows = [json.loads(line) for line in (tmp_path / "judged" / "log.jsonl").read_text().splitlines()]
    assert "kinds of size in the data" in rows[0] and rows[0]["step"] == 0
    (row,) = (r for r in rows if "KID x 1000" in r)
    assert row["step"] == 2 and row["images"] == 8 and 1 <= row["kinds of size"] <= 2
    assert 0 <= row["recall"] <= 1 and 0 <= row["precision"] <= 1
    # Watching changes nothing.
    generator.train(generator_args(pictures, tmp_path / "alone", "--max_train_steps", "2"))
    assert_same_weights(tmp_path / "judged" / "generator", tmp_path / "alone" / "generator")
    (tmp_path / "no" / "portrait").mkdir(parents=True)
    for flags, error, message in (
        (("--validation_judges", str(tmp_path / "no")), FileNotFoundError, "holds no judges"),
        ((*judged, "--validation_samples", "13"), ValueError, "holds 12 pictures, fewer than --validation_samples 13"),
        ((*judged, "--validation_samples", "9"), ValueError, "--validation_samples must be at least 10, got 9"),
    ):
        with pytest.raises(error, match=message):
            generator.train(generator_args(pictures, tmp_path / "x", "--max_train_steps", "1", *flags))
    shutil.rmtree(tmp_path / "j" / "portrait")
    with pytest.raises(ValueError, match="have no portrait/, which counts kinds"):
        generator.train(generator_args(pictures, tmp_path / "x", *judged))


def test_kinds_show_a_collapse(tmp_path):
    """A generator that draws one picture has one kind of everything and no recall, the real pictures all of them."""
    torch.manual_seed(1)
    widths = {"channels": [8, 8, 8, 8], "reduced": 8, "features": 8}
    about = {"shade": {"region": "all", "classes": ["dark", "bright"]}}
    PortraitJudge(attributes=about, colours={}, resolution=16, **widths).save_pretrained(tmp_path / "portrait")
    tiny_segmenter("all(a, b)").save_pretrained(tmp_path / "segmenter")
    real = torch.randn(40, 3, 16, 16)
    judge = gan_validation.SampleJudge(
        gan_validation.load_judge(tmp_path, 40), lambda numbers: real[list(numbers)], 40, "cpu"
    )
    g = StyleGAN2Generator(resolution=16, channels=[8, 8, 8], z_dim=8, w_dim=8, mapping_layers=1, use_noise=False)
    torch.nn.init.zeros_(g.affine_weight)
    found = judge.figures(g)
    assert found["kinds of shade"] == pytest.approx(1) and found["recall"] == 0
    assert found["KID x 1000"] > 0


def test_a_projected_discriminator_trains_and_resumes_to_the_bit(pictures, tmp_path):
    torch.manual_seed(2)
    tiny_segmenter("all(background, disc)").save_pretrained(tmp_path / "features" / "segmenter")
    projected = ("--discriminator", "projected", "--feature_network", str(tmp_path / "features"), *R3GAN)
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    generator.train(generator_args(pictures, whole, "--max_train_steps", "3", *projected))
    generator.train(generator_args(pictures, halves, "--max_train_steps", "1", *projected))
    again = ("--max_train_steps", "3", "--resume_from_checkpoint", "latest")
    generator.train(generator_args(pictures, halves, *again, *projected))
    for part in ("generator", "discriminator"):
        assert_same_weights(whole / part, halves / part)
    trained = saved_weights(whole / "discriminator")
    frozen = saved_weights(tmp_path / "features" / "segmenter")
    kept = {name: value for name, value in frozen.items() if name.startswith("down.")}
    assert kept and all(torch.equal(trained[f"frozen.{name}"], value) for name, value in kept.items())
    # Started from, it is the same network with the same random mixtures.
    more = generator_args(pictures, tmp_path / "more", "--max_train_steps", "1", "--model", str(whole), *projected)
    generator.train(more)
    further = saved_weights(tmp_path / "more" / "discriminator")
    mixtures = [name for name in trained if name.startswith("across_")]
    assert mixtures and all(torch.equal(trained[name], further[name]) for name in mixtures)
    assert any(not torch.equal(trained[name], further[name]) for name in trained if name.startswith("heads."))
    for flags, message in (
        (("--discriminator", "projected"), "go together"),
        (("--feature_network", str(tmp_path / "features")), "go together"),
        ((*projected, "--grow_from", str(whole)), "grows the plain discriminator"),
    ):
        with pytest.raises(ValueError, match=message):
            generator.train(generator_args(pictures, tmp_path / "x", *flags))


def test_a_projected_discriminator_checks_its_input():
    config = {"regions": ["a", "b"], "channels": [8, 8]}
    d = ProjectedDiscriminator(config, resolution=16, width=8)
    x = torch.randn(2, 3, 16, 16, requires_grad=True)
    d(x).logits.sum().backward()
    assert (x.grad != 0).any() and not list(d.frozen.parameters())
    with pytest.raises(ValueError, match="expected images of shape"):
        d(torch.randn(2, 3, 8, 8))
    for arguments, message in (
        ({"network": {"channels": [8]}}, "has no usable one at 16 px"),
        ({"network": config, "width": 0}, "width must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            ProjectedDiscriminator(**arguments, resolution=16)
    with pytest.raises(ValueError, match="input_skips must be from 0 to 1 .the blocks., got 2"):
        StyleGAN2Discriminator(resolution=8, channels=[8, 8], input_skips=2)


def test_help_shows_what_most_users_need_and_help_all_the_rest(capsys):
    shown = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            generator.parse_args([flag])
        assert stop.value.code == 0
        shown[flag] = {word.strip("[](),") for word in capsys.readouterr().out.split() if "--" in word}
    assert {"--model", "--avatars", "--train_data_dir", "--resolution", "--grow_from"} <= shown["--help"]
    assert len(shown["--help"]) < 24 and not {"--ema_rampup", "--hub_token"} & shown["--help"]
    assert {"--ema_rampup", "--hub_token", "--path_length_interval", "--channels"} <= shown["--help-all"]
    assert len(shown["--help-all"]) > 50
