"""The encoder's trainer on tiny models: with pictures and without, to the bit after a break, refusals."""

import json
import re
from pathlib import Path

import pytest
import torch

from stylefusion_hf import Code, ImageEncoder, StyleFusionInversionPipeline
from stylefusion_hf.core.code_files import save_codes
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.imaging.degradation import compress, occlude
from stylefusion_hf.inversion.optimization import CodePrior
from stylefusion_hf.models.sampling import draw_rows
from stylefusion_hf.training import encoder
from stylefusion_hf.training.encoder_objective import PictureDistance
from stylefusion_hf.training.encoder_pool import SamplePool
from tests.inversion.test_inversion import pil
from tests.tiny import NUM_WS, RESOLUTION, W_DIM, assert_same_weights, draw, tiny_mobile_generator, tiny_pipeline


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(segmenter=True, use_noise=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for i, image in enumerate(draw(6, 3, RESOLUTION, RESOLUTION)):
        pil(image).save(folder / f"{i}.png")
    return folder


def arguments(model: Path, out: Path, *more: str):
    flags = f"--model {model} --output_dir {out} --channels 16,16 --train_batch_size 4 --logging_steps 1 --seed 3"
    return encoder.parse_args(
        [*flags.split(), "--eval_images", "8", "--validation_steps", "2", "--lr_warmup_steps", "0", *more]
    )


@pytest.mark.parametrize("with_photos", [False, True])
def test_the_encoder_runs_and_resumes_to_the_bit(model, photos, tmp_path, with_photos):
    more = ["--train_data_dir", str(photos), "--gradient_accumulation_steps", "2"] if with_photos else ["--no-use_ema"]
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    constant = [*more, "--lr_scheduler", "constant"]
    encoder.train(arguments(model, whole, "--max_train_steps", "4", *constant))
    encoder.train(arguments(model, halves, "--max_train_steps", "2", *constant))
    resumed = ["--resume_from_checkpoint", "latest"]
    encoder.train(arguments(model, halves, "--max_train_steps", "4", *constant, *resumed))
    assert_same_weights(whole / "encoder", halves / "encoder")
    figures = json.loads((whole / "figures.json").read_text())
    assert set(figures) == {"samples"} and set(figures["samples"]) == {"mse", "feature"}
    assert (whole / "samples" / "samples-000004.png").is_file()


def test_the_encoder_learns_and_serves_its_pipeline(model, tmp_path):
    more = ["--learning_rate", "0.005", "--ema_decay", "0.5", "--train_batch_size", "16"]
    encoder.train(arguments(model, tmp_path, "--max_train_steps", "40", "--validation_steps", "0", *more))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.8 * lines[0]["loss"]
    assert lines[-1]["code"] < lines[0]["code"]
    trained = ImageEncoder.from_pretrained(tmp_path, subfolder="encoder")
    pipe = StyleFusionInversionPipeline.from_pretrained(model, encoder=trained)
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        rows = draw_rows(pipe.generator, 8, step_generator(99, 0), 0.7, 0.0)
        samples = (pipe.generator.synthesis(pipe.generator.to_style(rows)).clamp(-1, 1) + 1) / 2
    assert pipe(samples).mse.mean() < 0.9 * pipe(samples, start="mean").mse.mean()


def test_the_loss_knows_what_the_codes_of_samples_are():
    pipe = tiny_pipeline()
    g, prior = pipe.generator.requires_grad_(False), CodePrior.of(pipe.generator)
    known = draw_rows(g, 2, step_generator(0, 0), 1.0, 0.0)
    images = g.synthesis(g.to_style(known), noise_mode="none")
    weights = {"code": 1.0, "pixel": 1.0, "feature": 1.0, "prior": 0.0}
    from stylefusion_hf.imaging.features import edge_maps

    right, terms = encoder.encoder_loss(g, edge_maps, known, known, images, prior, weights)
    assert right < 1e-8 and terms["prior"] > 0
    both = torch.cat([images, images.flip(3)])  # two samples, two real pictures
    wrong, terms = encoder.encoder_loss(g, edge_maps, torch.cat([known, known]), known, both, prior, weights)
    assert terms["code"] < 1e-8 and terms["pixel"] > 0.01 and wrong > 0.01
    assert encoder.encoder_loss(g, edge_maps, known, known[:0], images, prior, weights)[1]["code"] == 0


def test_a_model_without_segmenter_trains_on_edges(model, tmp_path, capsys):
    alone = tmp_path / "alone"
    tiny_pipeline(use_noise=False).generator.save_pretrained(alone / "generator")
    encoder.train(arguments(alone, tmp_path / "out", "--max_train_steps", "1"))
    assert "features are edges" in capsys.readouterr().out
    assert ImageEncoder.from_pretrained(tmp_path / "out" / "encoder").config.num_ws == NUM_WS


def test_draws_of_rows_mix_and_jitter():
    g = tiny_pipeline().generator
    rows = draw_rows(g, 64, step_generator(0, 0), 0.7, 0.0)
    assert rows.shape == (64, NUM_WS, W_DIM)
    assert torch.equal(rows, rows[:, :1].expand_as(rows))
    mixed = draw_rows(g, 64, step_generator(0, 0), 0.7, 1.0)
    assert (mixed != mixed[:, :1]).any(dim=2).any(dim=1).float().mean() > 0.9


# --- Large generators: previews, a pool, and few pictures ------------------------------------------------------------

FAST = "--train_resolution 16 --pool_size 70 --picture_batch 1 --degrade 1 --code_metric pictures --row_axes 4"


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """A model with previews of 16 px."""
    folder = tmp_path_factory.mktemp("large")
    generator = tiny_mobile_generator()
    generator.fit_preview(16, samples=8)
    generator.save_pretrained(folder / "generator")
    return folder


def test_a_large_generator_trains_on_previews_and_resumes_to_the_bit(large, tmp_path, monkeypatch):
    rendered = []
    monkeypatch.setattr(SamplePool, "draw", lambda *a, own=SamplePool.draw: rendered.append(own(*a)) or rendered[-1])
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    flags = [*FAST.split(), "--lr_scheduler", "constant"]
    encoder.train(arguments(large, whole, "--max_train_steps", "4", *flags))
    assert rendered[0][1].shape == (4, 3, 16, 16)
    encoder.train(arguments(large, halves, "--max_train_steps", "2", *flags))
    files = {file: file.stat().st_mtime_ns for file in (halves / "pool").iterdir()}
    assert len(files) == 2  # of 64 samples each
    encoder.train(arguments(large, halves, "--max_train_steps", "4", *flags, "--resume_from_checkpoint", "latest"))
    assert_same_weights(whole / "encoder", halves / "encoder")
    assert {file: file.stat().st_mtime_ns for file in (halves / "pool").iterdir()} == files, "rendered again"
    trained = ImageEncoder.from_pretrained(whole, subfolder="encoder")
    assert trained.config.resolution == 16 and trained.config.row_axes == 4


def test_the_pool_is_rendered_again_for_other_samples_and_after_damage(tmp_path):
    g = tiny_mobile_generator()
    settings = {"seed": 0, "min_psi": 0.5, "mixed_share": 0.5}
    first = SamplePool.render(g, 3, tmp_path, **settings)
    assert first.images.shape == (3, 3, RESOLUTION, RESOLUTION) and first.images.float().std() > 1
    made = g.synthesis(g.to_style(first.codes), noise_mode="none").clamp(-1, 1)
    assert (made - (first.images / 127.5 - 1)).abs().max() < 0.005
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-100])
    assert torch.equal(SamplePool.render(g, 3, tmp_path, **settings).images, first.images)
    other = SamplePool.render(g, 3, tmp_path, **settings | {"seed": 1})
    assert not torch.equal(other.images, first.images)


def write_samples(folder: Path, count: int = 5, **changes) -> torch.Tensor:
    """A folder of samples of the tiny generator, with codes in w; returns the codes."""
    g = tiny_mobile_generator()
    w = draw_rows(g, count, step_generator(5, 0), 0.7, 0.0)[:, 0]
    (folder / "images").mkdir(parents=True)
    with torch.no_grad():
        for k, picture in enumerate(g.synthesis(g.to_style(w), noise_mode="none")):
            pil(picture).save(folder / f"images/{k}.png")
    save_codes(folder / "codes.safetensors", {str(k): Code(row[None], "w") for k, row in enumerate(w)})
    return w


def test_samples_drawn_before_are_read(large, tmp_path):
    w = write_samples(tmp_path / "samples")
    pool = SamplePool.read(tmp_path / "samples", tiny_mobile_generator(), RESOLUTION)
    assert torch.equal(pool.codes, w[:, None].expand(-1, NUM_WS, -1)) and pool.images.shape == (5, 3, 32, 32)
    g = tiny_mobile_generator()
    made = g.synthesis(g.to_style(pool.codes), noise_mode="none").clamp(-1, 1)
    assert (made - (pool.images / 127.5 - 1)).abs().max() < 0.01
    assert SamplePool.read(tmp_path / "samples", g, 16).images.shape[-1] == 16

    flags = ["--sample_dir", str(tmp_path / "samples"), "--train_resolution", "16", "--picture_batch", "0"]
    encoder.train(arguments(large, tmp_path / "out", "--max_train_steps", "2", *flags))
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert lines[0]["pixel"] == 0 and lines[0]["code"] > 0

    pil(draw(3, 32, 32)).save(tmp_path / "samples/images/stranger.png")
    with pytest.raises(ValueError, match="has no code of the picture stranger"):
        SamplePool.read(tmp_path / "samples", g, 16)
    (tmp_path / "samples/codes.safetensors").unlink()
    with pytest.raises(OSError, match="codes"):
        SamplePool.read(tmp_path / "samples", g, 16)
    write_samples(tmp_path / "samples2")
    with pytest.raises(ValueError, match="samples2"):
        SamplePool.read(tmp_path / "samples2", tiny_mobile_generator(w_dim=8), 16)


def test_an_encoder_is_trained_further(large, tmp_path):
    flags = [*FAST.split(), "--validation_steps", "0"]
    encoder.train(arguments(large, tmp_path / "one", "--max_train_steps", "3", *flags))
    plain = [flag for flag in flags if flag not in ("--row_axes", "4")]
    more = ["--encoder", str(tmp_path / "one/encoder"), "--max_train_steps", "1", "--learning_rate", "1e-9"]
    args = arguments(large, tmp_path / "two", *plain, *more)
    args.channels = None
    encoder.train(args)
    first, second = (ImageEncoder.from_pretrained(tmp_path / name, subfolder="encoder") for name in ("one", "two"))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_codes_count_by_what_they_change_in_pictures():
    g = tiny_mobile_generator().requires_grad_(False)
    prior = CodePrior.of(g)
    axes = torch.diag(prior.w_std)
    near = PictureDistance.measure(g, axes, samples=8)
    assert near.importance.shape == (NUM_WS, W_DIM) and abs(near.importance.sum() - 1) < 1e-5
    assert near.importance[-2:].abs().max() == 0  # rows that drive nothing
    codes = draw_rows(g, 256, step_generator(1, 0), 1.0, 0.0)
    assert 1.5 < near(codes[:128], codes[128:]).mean() < 2.5
    moved = codes.clone()
    moved[:, -2:] += 1.0
    assert near(moved, codes).abs().max() < 1e-8
    # The axis that counts most changes pictures more than the one that counts least.
    row, axis = divmod(int(near.importance.argmax()), W_DIM)
    least = divmod(int(torch.where(near.importance > 0, near.importance, 1e9).argmin()), W_DIM)
    changes = []
    for at in ((row, axis), least):
        step = codes[:32].clone()
        step[:, at[0]] += 0.1 * axes[at[1]]
        pictures = [g.synthesis(g.to_style(x), noise_mode="none") for x in (step, codes[:32])]
        changes.append(float((pictures[0] - pictures[1]).square().mean()))
    assert changes[0] > 2 * changes[1]


def test_degraded_pictures_differ_where_they_should():
    x, draws = torch.zeros(16, 3, 32, 32), [torch.Generator().manual_seed(k) for k in range(3)]
    hidden = occlude(x, draws[0], 1.0)
    share = (hidden != 0).any(dim=1).float().mean(dim=(1, 2))
    assert (share > 0).all() and share.max() < 0.6
    assert torch.equal(occlude(x, draws[1], 0.0), x)
    noise = torch.rand(8, 3, 32, 32, generator=draws[2]) * 2 - 1
    lossy = compress(noise, draws[2], 1.0)
    assert all(0.01 < (a - b).abs().mean() < 0.8 for a, b in zip(noise, lossy, strict=True))
    assert torch.equal(compress(noise, draws[2], 0.0), noise)


BAD = {
    "no size": (["--train_resolution", "24"], "--train_resolution 24: this generator makes pictures of 16, 32 px"),
    "pictures": (["--picture_batch", "5"], "--picture_batch must be from 0 to --train_batch_size, 4, got 5"),
    "pool": (["--pool_size", "-1"], "--pool_size and --degrade must not be negative"),
    "axes": (["--row_axes", "17"], "--row_axes 17: row_axes must be at most w_dim, 16, got 17"),
    "no axes": (["--row_axes", "0"], "--features and --row_axes must be at least 1"),
    "both": (["--encoder", "x"], "--encoder has its own sizes: leave --channels and --row_axes out"),
    "no model": (["--model", ""], "--model is missing"),
    "resolution": (["--resolution", "64"], "--resolution 64: the generator in --model makes 32 px"),
    "channels": (["--channels", "16,9"], "--channels 16,9: expected at least two widths"),
    "share": (["--real_share", "2"], "--real_share must be from 0 to 1, got 2"),
    "psi": (["--min_psi", "-1"], "--min_psi and --mixed_share must be from 0 to 1"),
    "weight": (["--pixel_weight", "-1"], "--pixel_weight must not be negative"),
    "nothing": (["--pixel_weight", "0", "--code_weight", "0", "--feature_weight", "0"], "nothing to train for"),
    "decay": (["--ema_decay", "1"], "--ema_decay must be at least 0 and below 1"),
    "no pictures": (["--train_data_dir", "."], "no pictures in"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_flags_are_named(model, tmp_path, monkeypatch, case):
    monkeypatch.chdir(tmp_path)
    more, message = BAD[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        encoder.train(arguments(model, tmp_path / "out", "--max_train_steps", "1", *more))
    assert not list(tmp_path.glob("out/checkpoint-*"))
