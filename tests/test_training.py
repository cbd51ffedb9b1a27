"""The trainers on tiny models: they run, they resume to the bit, they refuse what makes no sense."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from stylefusion_hf import (
    FusionHierarchy,
    RegionSegmenter,
    RegionTree,
    StyleFusionPipeline,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
)
from stylefusion_hf.training import common, fusion, generator, segmenter
from stylefusion_hf.training._fusion_parts import (
    build_criterion,
    load_frozen,
    pool_size,
    without_batch_statistics,
)
from stylefusion_hf.training.augment import augment, parse_policy
from stylefusion_hf.training.card import model_card
from stylefusion_hf.training.sampling import Shares
from tests.tiny import tiny_generator, tiny_segmenter


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


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "diffusion_pytorch_model.safetensors")


def assert_same(a: Path, b: Path) -> None:
    x, y = weights(a), weights(b)
    assert x.keys() == y.keys()
    assert [k for k in x if not torch.equal(x[k], y[k])] == []


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
        assert_same(whole / part, halves / part)
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
        weights(tmp_path / "more" / "generator")["synthesis.const"], weights(whole / "generator")["synthesis.const"]
    )


@pytest.mark.parametrize(("limit", "kept"), [("2", [2, 3]), ("1", [3]), ("5", [1, 2, 3]), ("0", [1, 2, 3])])
def test_old_checkpoints_go_and_half_written_ones_do_not_count(pictures, tmp_path, limit, kept):
    (tmp_path / ".partial-checkpoint-9").mkdir()
    (tmp_path / "checkpoint-tmp").mkdir()
    more = ("--max_train_steps", "3", "--checkpointing_steps", "1", "--checkpoints_total_limit", limit)
    generator.train(generator_args(pictures, tmp_path, *more, "--resume_from_checkpoint", "latest"))
    assert [int(c.name[-1]) for c in common.list_checkpoints(tmp_path)] == kept
    assert not list(tmp_path.glob(".partial*"))


def test_a_tracker_and_an_upload(pictures, tmp_path, monkeypatch):
    uploads = []

    class Api:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, name, exist_ok):
            return type("Repo", (), {"repo_id": f"user/{name}"})

        def upload_folder(self, repo_id, folder_path, ignore_patterns):
            assert {"checkpoint-*", "logs/*", "arguments.json"} <= set(ignore_patterns)  # states and local paths
            uploads.append((repo_id, Path(folder_path).name, (Path(folder_path) / "config.json").is_file()))

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    flags = "--max_train_steps 1 --report_to tensorboard --push_to_hub --hub_token secret --hub_model_id avatars"
    generator.train(generator_args(pictures, tmp_path, *flags.split()))
    assert uploads == [("user/avatars", "generator", True)]
    assert list((tmp_path / "logs").rglob("events.out.tfevents.*"))
    assert "secret" not in (tmp_path / "arguments.json").read_text()


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


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("base")
    g = tiny_generator(use_noise=False)
    g.save_pretrained(root / "generator")
    tiny_segmenter().save_pretrained(root / "segmenter")
    StyleGAN2Discriminator(resolution=32, channels=[8] * 4).save_pretrained(root / "discriminator")
    return root


def fusion_args(base, out, *more):
    flags = f"--model {base} --output_dir {out} --pool_size 16 --train_batch_size 6 --hidden_width 8 --hidden_layers 1"
    return fusion.parse_args(
        [*flags.split(), "--logging_steps", "1", "--validation_steps", "2", "--lr_scheduler", "constant", *more]
    )


def test_fusion_runs_and_resumes_to_the_bit(base, tmp_path):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    fusion.train(fusion_args(base, whole, "--max_train_steps", "4"))
    fusion.train(fusion_args(base, halves, "--max_train_steps", "2"))
    fusion.train(fusion_args(base, halves, "--max_train_steps", "4", "--resume_from_checkpoint", "checkpoint-2"))
    assert_same(whole / "fusion", halves / "fusion")
    nets = FusionHierarchy.from_pretrained(whole, subfolder="fusion")
    code = torch.randn(2, nets.style_width)
    assert torch.equal(nets.fuse(dict.fromkeys(nets.tree.nodes, code)), code)
    assert (whole / "samples" / "000004.png").is_file()
    pipe = StyleFusionPipeline.from_pretrained(whole)
    assert pipe(base=1, regions={"hair": 2}, output_masks=True).masks["hair"].shape == (1, 32, 32)


def test_fusion_learns_on_any_tree(base, tmp_path):
    tree = "all*(face*(eyes, mouth), rest*(skin, stuff*(hair, more*(clothes, background))))"
    simple = [x for name in ("pose", "transfer", "regions", "layout") for x in (f"--{name}_weight", "0")]
    more = ("--tree", tree, *simple, "--no-use_ema", "--pool_size", "32")
    losses = []
    for name, steps, rate in (("untrained", 1, "1e-9"), ("trained", 40, "0.1")):
        args = fusion_args(base, tmp_path / name, *more, "--max_train_steps", str(steps), "--gate_learning_rate", rate)
        fusion.train(args)
        nets = FusionHierarchy.from_pretrained(tmp_path / name, subfolder="fusion")
        criterion = build_criterion(args, nets.tree, *load_frozen(args, common.start(args)))
        with torch.no_grad():  # the same 60 samples for both
            values = []
            for i in range(10):
                sample = criterion.draw(6, common.step_generator(1, i), Shares())
                view = criterion.eye(nets.fuse(criterion.codes(sample)))
                values.append(criterion.total(criterion(sample, criterion.targets(sample), view)[0]))
        losses.append(float(torch.stack(values).mean()))
    assert losses[1] < 0.8 * losses[0]  # of random nets, locality alone is what can be had


EVERYTHING = (
    "--outside_weight 1 --looks_weight 1 --layout_weight 0.1 --realism_weight 0.1"
    " --pooled_weight 0.1 --spatial_weight 0.1 --features maps,texture --reference aligned"
    " --twin_share 0.5 --discriminator_learning_rate 0.001 --no-rgb_indicators --no-standardise --static_steps 1"
)


def test_fusion_with_every_term_and_switch_resumes_to_the_bit(base, tmp_path):
    for name, steps, more in (
        ("whole", 3, []),
        ("halves", 2, []),
        ("halves", 3, ["--resume_from_checkpoint", "latest"]),
    ):
        flags = [*EVERYTHING.split(), "--max_train_steps", str(steps), "--checkpointing_steps", "2", *more]
        fusion.train(fusion_args(base, tmp_path / name, *flags))
    assert_same(tmp_path / "whole" / "fusion", tmp_path / "halves" / "fusion")
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    losses = {
        "outside",
        "looks",
        "locality",
        "transfer",
        "regions",
        "pooled",
        "spatial",
        "pose",
        "layout",
        "realism",
        "discriminator",
    }
    assert losses <= {name for line in log for name in line}
    assert {"s fusion", "s generator", "s segmenter", "s objective", "T hair"} <= set(log[0])
    nets = FusionHierarchy.from_pretrained(tmp_path / "whole", subfolder="fusion")
    assert nets.config.shared_indicators
    assert not nets.config.standardise


def test_the_ruler_watches_the_training(base, tmp_path):
    tiny_segmenter(seed=1).save_pretrained(tmp_path / "judges" / "segmenter")
    flags = ("--max_train_steps", "2", "--validation_pairs", "4", "--judges", str(tmp_path / "judges"))
    fusion.train(fusion_args(base, tmp_path / "run", *flags))
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert "O hair" in log[-1]
    assert "G" in log[-1]
    assert "## Figures (4 validation pairs)" in (tmp_path / "run" / "README.md").read_text()


def test_the_model_card_has_the_figures_and_the_flags(tmp_path):
    args = fusion.parse_args(["--output_dir", "runs/mine/", "--seed", "3"])
    tree = RegionTree.of("all*(head, rest)")
    figures = {"O head": 0.0123, "T head": 0.456, "O rest": 0.2, "T rest": 0.9, "G": 0.71, "kept": 0.82}
    card = model_card(args, tree, figures, 120)
    for text in (
        "# mine\n",
        "`all*(head, rest)`",
        "| head | 0.012 | 0.46 |",
        "pose error 0.71",
        "| `--seed` | 3 |",
        "2 min",
    ):
        assert text in card, text
    assert "reconstruction" in card
    assert "## Figures" not in model_card(args, tree, {}, 120)


def test_the_smallest_tree_and_pool_train(base, tmp_path):
    flags = ("--tree", "all*(hair, skin)", "--pool_size", "8", "--max_train_steps", "2", "--static_steps", "1")
    fusion.train(fusion_args(base, tmp_path / "small", *flags))
    with Image.open(tmp_path / "small" / "samples" / "000002.png") as sheet:
        assert sheet.size == (5 * 32, 4 * 32)  # base, source, two leaves, the common codes; half the pool in rows
    assert "layout" not in json.loads((tmp_path / "small" / "log.jsonl").read_text().splitlines()[0])
    alone = [x for name in ("locality", "transfer", "regions", "pose") for x in (f"--{name}_weight", "0")]
    with pytest.raises(ValueError, match="nothing to train for"):  # no inner node below the root, nothing else asked
        fusion.train(fusion_args(base, tmp_path / "layout", *flags, *alone))


def test_codes_with_labels_are_refused(base, tmp_path):
    tiny_generator(label_dim=3).save_pretrained(tmp_path / "model" / "generator")
    tiny_segmenter().save_pretrained(tmp_path / "model" / "segmenter")
    with pytest.raises(ValueError, match="class-conditional"):
        fusion.train(fusion_args(tmp_path / "model", tmp_path / "out"))


def test_pools_are_kept_to_what_memory_holds():
    args = fusion.parse_args(["--output_dir", "x"])
    assert pool_size(args, 64, 6) == 3072
    assert pool_size(args, 1024, 6) == 512
    args.pool_size = 5000
    assert pool_size(args, 1024, 6) == 5000


def test_constant_gates_come_first(base, tmp_path):
    for name, more in (("gates", ["--no-gate_novelty"]), ("novelty", [])):
        flags = ("--static_steps", "3", "--max_train_steps", "3", "--validation_pairs", "0", *more)
        fusion.train(fusion_args(base, tmp_path / name, *flags))
        nets = FusionHierarchy.from_pretrained(tmp_path / name, subfolder="fusion")
        for parameter, value in nets.named_parameters():
            if ".layers.2." in parameter:  # the last layer starts at 0, and no MLP has moved yet
                assert not value.any(), parameter
            elif parameter.endswith("gate_bias"):
                assert value.any(), parameter
        codes = {n: torch.randn(8, nets.style_width) for n in nets.tree.nodes}
        constant = all(torch.allclose(g, g[:1].expand_as(g), atol=1e-5) for g in nets.gates(codes).values())
        assert constant == (name == "gates")


def test_a_config_sets_flags_and_the_command_line_goes_before_it(tmp_path):
    path = tmp_path / "row.json"
    path.write_text(
        '{"# why": "a note", "looks_weight": 3, "reference": "aligned", "code_shares": [0, 1, 0, 0],'
        ' "standardise": false, "model": "base"}'
    )
    args = fusion.parse_args(["--output_dir", "x", "--config", str(path), "--looks_weight", "2"])
    assert (args.looks_weight, args.reference, list(args.code_shares)) == (2.0, "aligned", [0, 1, 0, 0])
    assert (args.standardise, args.pretrained_model_name_or_path) == (False, "base")
    for text, message in (
        ("{", "cannot be read"),
        ("[1]", "not list"),
        ('{"look_weight": 1}', "no flag --look_weight"),
        ('{"looks_weight": null}', "looks_weight is None"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            fusion.parse_args(["--output_dir", "x", "--config", str(path)])
    with pytest.raises(ValueError, match="cannot be read"):
        fusion.parse_args(["--output_dir", "x", "--config", str(tmp_path / "absent.json")])


def test_the_discriminator_without_batch_statistics_judges_each_picture_by_itself():
    torch.manual_seed(0)
    d = StyleGAN2Discriminator(resolution=32, channels=[8] * 4)
    plain = without_batch_statistics(d)
    images = torch.rand(4, 3, 32, 32)
    alone = torch.cat([plain(x[None]).logits for x in images])
    torch.testing.assert_close(plain(images).logits, alone, atol=1e-5, rtol=1e-5)
    same = images[:1].expand(4, -1, -1, -1)  # without deviation the two agree
    torch.testing.assert_close(plain(same).logits, d(same).logits, atol=1e-3, rtol=1e-3)
    assert without_batch_statistics(plain) is plain


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--tree", "all*(nose, chin)"), "does not know the regions nose, chin"),
        (("--tree", "all*(face(eyes, mouth), hair)"), "nothing to train for eyes, mouth"),
        (("--pose_regions", "nose"), "--pose_regions: 'nose'"),
        (("--tree", "all*(a"), "all"),
        (("--learning_rate", "0"), "--learning_rate must be positive"),
        (("--max_train_steps", "0"), "--max_train_steps must be at least 1"),
        (("--report_to", "clearml2"), "--report_to 'clearml2' is unknown"),
        (("--mixed_precision", "fp16"), "does not train on a CPU"),
        (("--looks_weight", "-1"), "--looks_weight must not be negative"),
        (("--features", "colour,edges"), "unknown features 'colour'"),
        (("--code_shares", "1", "1", "0", "0"), "shares of codes"),
        (("--min_psi", "2"), "--min_psi and --mixed_share"),
        (("--pool_size", "2"), "--pool_size must be at least"),
        (("--temperature", "0"), "--temperature must be positive"),
        (("--deficit", "-1"), "--deficit must not be negative"),
        (("--common_resolution", "2"), "--common_resolution must be at least 4"),
        (("--discriminator_learning_rate", "0.1"), "give --realism_weight too"),
        (("--pose_regions", ","), "--pose_regions names no region"),
        (("--judges", "nowhere"), "nowhere holds no judges"),
        (("--resume_from_checkpoint", "checkpoint-9"), "checkpoint-9' is not in"),
    ],
)
def test_fusion_refuses(base, tmp_path, flags, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        fusion.train(fusion_args(base, tmp_path, *flags))


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
