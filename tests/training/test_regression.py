"""The generator that draws avatars from their attributes: codes, mapping, training."""

import json

import pytest
import torch
from accelerate import Accelerator

from stylefusion_hf import StyleGAN2Generator
from stylefusion_hf.models.layers import MappingNetwork
from stylefusion_hf.training import generator
from stylefusion_hf.training.attribute_codes import AttributeCodes, AttributeTable, distill
from stylefusion_hf.training.details import DetailDiscriminator
from stylefusion_hf.training.loop import MicroBatch
from stylefusion_hf.training.regression import (
    OUTLINE,
    OUTLINE_WEIGHT,
    RAMP,
    RegressionTraining,
    drawing_loss,
    pixel_weights,
    region_weights,
)
from tests.tiny import assert_same_weights, saved_weights

pytest.importorskip("python_avatars", reason="avatars need the extra `train`")
pytest.importorskip("resvg_py", reason="avatars need the extra `train`")

AVATARS = 24
SIZES = ("--resolution", "16", "--channels", "8,8,6", "--latent_dim", "96", "--mapping_layers", "2")


def specs(count):
    draw = torch.Generator().manual_seed(3)
    hats = ["cap", "none", "none", "wig", "none"]
    rows = []
    for _ in range(count):
        number = torch.rand(5, generator=draw)
        color = "#" + "".join(f"{int(255 * c):02x}" for c in number[:3] ** 2)
        hat = hats[int(number[3] * 5)]
        rows.append({"hat": hat, "skin_colour": color, "size": 3 + float(number[4]), "angle": 360 * float(number[3])})
    return rows


@pytest.fixture(scope="module")
def table():
    return AttributeTable(specs(3000))


def test_a_table_has_a_row_per_drawing(table):
    assert table.dim == 3 + 3 + 1 + 2 and table.rows.shape == (3000, 9)
    assert table.kinds == ["hat"] and table.columns["size"] == slice(6, 7)
    assert table.rows.mean(dim=0).abs().max() < 1e-5
    assert torch.allclose(table.rows.std(dim=0), torch.ones(9), atol=1e-4)
    caps = torch.tensor([spec["hat"] == "cap" for spec in specs(3000)])
    assert torch.equal(table.rows[:, 0] > 0, caps)


def test_rare_kinds_are_not_blown_up():
    rare = [{"hat": "cap" if i == 0 else "none"} for i in range(1000)]
    assert AttributeTable(rare).rows.abs().max() == pytest.approx(0.999 / 0.2, rel=1e-3)


def test_codes_of_a_drawing_stand_for_it(table):
    codes, drawings = AttributeCodes(table, 64), torch.arange(0, 3000, 7)
    z = codes.draw_z(drawings, torch.Generator().manual_seed(0))
    assert torch.allclose(z.square().mean(dim=1), torch.ones(len(z)), atol=1e-4)
    rows, true = codes.rows(z), table.rows[drawings]
    hat = table.columns["hat"]
    assert (rows[:, hat].argmax(dim=1) == true[:, hat].argmax(dim=1)).float().mean() > 0.99
    assert (rows - true)[:, 3:].abs().mean() < 0.05


def test_rows_of_normal_codes_are_distributed_like_the_drawings(table):
    z = torch.randn(20_000, 64, generator=torch.Generator().manual_seed(1))
    rows = AttributeCodes(table, 64).rows(z)
    assert rows.mean(dim=0).abs().max() < 0.05
    assert ((rows.std(dim=0) - 1).abs() < 0.05).all()
    for level in (0.1, 0.5, 0.9):  # of skewed colors too
        assert torch.allclose(rows[:, 3:].quantile(level, dim=0), table.rows[:, 3:].quantile(level, dim=0), atol=0.12)


def test_codes_need_free_axes(table):
    with pytest.raises(ValueError, match="--latent_dim above 8, got 8"):
        AttributeCodes(table, 8)


def test_a_mapping_learns_rows_without_mixing_attributes(table):
    codes, draw = AttributeCodes(table, 64), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    mapping = MappingNetwork(64, 0, table.dim, 3, 48)
    error = distill(mapping, codes, 250, 4.0, draw, progress=False)
    z = torch.randn(1000, 64, generator=draw)
    with torch.no_grad():
        assert (mapping(z) - codes.rows(z)).square().mean() < 0.35 and error < 0.5
    z = torch.randn(1, 64, generator=draw).requires_grad_()
    mapping(z)[0, table.columns["size"]].sum().backward()
    own = z.grad[0, codes.axes["size"]].abs().max()
    # Only the common normalization of z ties attributes together.
    assert z.grad[0, codes.axes["hat"]].abs().max() < 0.5 * own


def test_small_regions_weigh_more_and_edges_count():
    labels = torch.zeros(1, 10, 10, dtype=torch.long)
    labels[:, :1, :2] = 1
    weights = region_weights(labels, 3)
    assert len(weights) == 3 and weights[1] > 5 * weights[0] and weights[labels].mean() == pytest.approx(1.0)
    real, plain = torch.zeros(1, 3, 10, 10), torch.ones(1, 1, 10, 10)
    even, edge = torch.full_like(real, 0.1), real.clone()
    edge[..., ::2] = 0.2
    assert drawing_loss(even, real, plain) == pytest.approx(0.05)  # .1 squared / (2 SMOOTH), without edges
    assert drawing_loss(edge, real, plain) > 2 * drawing_loss(even, real, plain)


def test_outlines_weigh_more():
    labels = torch.zeros(1, 12, 12, dtype=torch.long)
    labels[:, :, 6:] = 1
    weights = pixel_weights(labels, torch.tensor([0.5, 1.5]))
    assert weights.shape == (1, 1, 12, 12)
    row = [0.5] * (6 - OUTLINE) + [0.5 + OUTLINE_WEIGHT] * OUTLINE + [1.5 + OUTLINE_WEIGHT] * OUTLINE
    assert weights[0, 0, 3].tolist() == row + [1.5] * (6 - OUTLINE)


def test_details_are_what_a_blur_would_remove():
    torch.manual_seed(0)
    d, labels = DetailDiscriminator(3), torch.randint(3, (2, 16, 16))
    images = torch.rand(2, 3, 16, 16)
    logits = d(images, labels)
    assert logits.shape == (2, 1, 4, 4)
    assert torch.allclose(d(images + 0.3, labels), logits, atol=1e-5)  # of another brightness
    assert not torch.allclose(d(images.flip(3), labels), logits, atol=1e-3)
    assert not torch.allclose(d(images, labels.flip(2)), logits, atol=1e-3)


def arguments(out, *more):
    flags = ("--output_dir", str(out), "--loss", "regression", "--avatars", str(AVATARS), "--mapping_steps", "20")
    rest = ("--train_batch_size", "4", "--logging_steps", "1", "--validation_steps", "0")
    return generator.parse_args([*flags, *SIZES, *rest, *more])


def run(out, *more):
    return generator.train(arguments(out, *more))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    root = tmp_path_factory.mktemp("regression")
    cache = ("--cache_dir", str(root / "data"))
    rate = ("--learning_rate", "0.02")
    run(root / "whole", *cache, *rate, "--max_train_steps", "40", "--checkpointing_steps", "20")
    return root


def test_it_learns_and_writes_a_generator_alone(trained):
    rows = [json.loads(line) for line in (trained / "whole" / "log.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    assert not (trained / "whole" / "discriminator").exists()
    g = StyleGAN2Generator.from_pretrained(trained / "whole", subfolder="generator")
    images = g(torch.randn(2, 96)).sample
    assert images.shape == (2, 3, 16, 16) and torch.isfinite(images).all() and g.w_avg.abs().max() > 0
    assert g.config.truncation_psi == 1.0


def test_it_resumes_to_the_bit_and_keeps_its_mapping(trained):
    flags = ("--cache_dir", str(trained / "data"), "--learning_rate", "0.02", "--checkpointing_steps", "20")
    run(trained / "halves", *flags, "--max_train_steps", "20")
    mapping = {k: v for k, v in saved_weights(trained / "halves" / "generator").items() if k.startswith("mapping")}
    torch.randn(3)
    run(trained / "halves", *flags, "--max_train_steps", "40", "--resume_from_checkpoint", "latest")
    assert_same_weights(trained / "whole" / "generator", trained / "halves" / "generator")
    after = saved_weights(trained / "halves" / "generator")
    assert mapping and all(torch.equal(value, after[name]) for name, value in mapping.items())


def test_details_are_judged_and_resumed_to_the_bit(trained):
    flags = ("--cache_dir", str(trained / "data"), "--model", str(trained / "whole"), "--adversarial_weight", "0.5")
    rest = ("--learning_rate", "0.01", "--checkpointing_steps", "2")
    run(trained / "sharp", *flags, *rest, "--max_train_steps", "4")
    rows = [json.loads(line) for line in (trained / "sharp" / "log.jsonl").read_text().splitlines()]
    assert all({"loss", "g_loss", "d_loss"} <= set(row) for row in rows)
    run(trained / "plain", *flags[:4], *rest, "--max_train_steps", "4")
    sharp, plain = (saved_weights(trained / name / "generator") for name in ("sharp", "plain"))
    assert any((sharp[name] != plain[name]).any() for name in sharp)
    run(trained / "again", *flags, *rest, "--max_train_steps", "2")
    run(trained / "again", *flags, *rest, "--max_train_steps", "4", "--resume_from_checkpoint", "latest")
    assert_same_weights(trained / "sharp" / "generator", trained / "again" / "generator")


def test_it_grows_and_goes_on(trained):
    grow = ("--resolution", "32", "--channels", "8,8,6,4", "--grow_from", str(trained / "whole"))
    run(trained / "32", *grow, "--max_train_steps", "2")
    old, new = saved_weights(trained / "whole" / "generator"), saved_weights(trained / "32" / "generator")
    assert all(torch.equal(old[name], new[name]) for name in old if name.startswith("mapping"))
    assert (new["synthesis.rgbs.3.weight"] != 0).any()
    run(trained / "on", "--model", str(trained / "whole"), "--max_train_steps", "1")
    again = saved_weights(trained / "on" / "generator")
    assert torch.equal(old["mapping.layers.0.weight"], again["mapping.layers.0.weight"])


def test_it_trains_another_mapping_for_a_synthesis(trained):
    flags = ("--model", str(trained / "whole"), "--new_mapping", "--mapping_width", "160", "--learning_rate", "1e-9")
    run(trained / "new", *flags, "--max_train_steps", "2", "--checkpointing_steps", "1")
    old, new = saved_weights(trained / "whole" / "generator"), saved_weights(trained / "new" / "generator")
    assert new["mapping.layers.0.weight"].shape[0] == 160 and (new["w_avg"] != old["w_avg"]).any()
    kept = [name for name in old if name.startswith(("synthesis", "affine"))]
    assert kept and all(torch.allclose(old[name], new[name], atol=1e-6) for name in kept)
    run(trained / "new", *flags, "--max_train_steps", "3", "--resume_from_checkpoint", "latest")
    again = saved_weights(trained / "new" / "generator")
    assert all(torch.equal(new[name], again[name]) for name in new if name.startswith("mapping"))


def test_kinds_may_be_inexact_but_stay_themselves(trained):
    args = arguments(trained / "codes", "--model", str(trained / "whole"), "--cache_dir", str(trained / "data"))
    training = RegressionTraining(args, Accelerator(cpu=True), None)
    assert training.ramp == 0  # it goes on from a synthesis that is trained
    training.ramp = RAMP
    table, numbers = training.table, torch.arange(AVATARS)

    def codes(step):
        draw = torch.Generator().manual_seed(step)
        return training.codes_of(numbers, MicroBatch(step, draw, {}, 1.0))

    assert torch.equal(codes(0), table.rows)
    late, is_kind = codes(5 * RAMP), training.kinds.sum(dim=0) > 0
    assert torch.equal(late[:, ~is_kind], table.rows[:, ~is_kind])
    changed = (late - table.rows)[:, is_kind].abs().amax(dim=1)
    assert (changed > 0.1).all()
    mean = training.generator.w_avg
    for name, rows in zip(table.kinds, training.rows_of_kinds, strict=True):
        at = table.columns[name]
        # How far toward the mean is not known here: at whichever distance fits best, its own kind is the nearest.
        own = torch.cdist(table.rows[:, at], rows).argmin(dim=1)
        nearer = torch.stack([mean[at] + psi * (rows - mean[at]) for psi in torch.linspace(0.55, 1, 91)])
        found = torch.cdist(late[:, at], nearer).amin(dim=0).argmin(dim=1)
        assert (found == own).float().mean() > 0.9


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--new_mapping",), "--new_mapping has no meaning without --loss regression and --model or --grow_from"),
        (("--adversarial_weight", "-1"), "--adversarial_weight must not be negative, got -1"),
        (("--loss", "logistic", "--adversarial_weight", "1"), "--adversarial_weight has no meaning without --loss"),
        (("--mirror",), "--mirror has no meaning with --loss regression"),
        (("--augment", "color"), "--augment has no meaning"),
        (("--use_noise",), "--use_noise has no meaning"),
        (("--path_length_weight", "2"), "--path_length_weight has no meaning"),
        (("--r1_gamma", "1"), "--r1_gamma has no meaning"),
        (("--r2_gamma", "1"), "--r2_gamma has no meaning"),
        (("--r1_interval", "1"), "--r1_interval has no meaning"),
        (("--mixing_prob", "0"), "--mixing_prob has no meaning"),
        (("--mapping_steps", "0"), "--mapping_steps must be at least 1, got 0"),
        (("--latent_dim", "40"), "need --latent_dim above .*, got 40"),
        (("--model", "a", "--grow_from", "b"), "give one of them"),
        (("--avatars", "3"), "at least 16 --avatars, got 3"),
        (("--mapping_width", "8"), "--mapping_width 8 has no room for some of 27 attributes: give at least"),
    ],
)
def test_it_refuses(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "x", *flags)
    assert not (tmp_path / "x").exists()


def test_it_refuses_a_folder_of_pictures(tmp_path):
    flags = ["--output_dir", str(tmp_path / "x"), "--train_data_dir", str(tmp_path), "--loss", "regression"]
    with pytest.raises(ValueError, match="attributes are known: give --avatars"):
        generator.train(generator.parse_args(flags))


def test_it_refuses_a_generator_with_other_codes(trained, tmp_path):
    plain = StyleGAN2Generator(resolution=16, channels=[8, 8, 6], z_dim=96, w_dim=8, mapping_layers=2, use_noise=False)
    plain.save_pretrained(tmp_path / "plain" / "generator")
    with pytest.raises(ValueError, match=r"codes of other sizes \(z 96, w 8\)"):
        run(tmp_path / "x", "--model", str(tmp_path / "plain"))
    assert "mapping.layers.0.weight" in saved_weights(trained / "whole" / "generator")
