"""The fusion trainer on tiny models: any tree, any term, exact resumption, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from stylefusion_hf import (
    FusionHierarchy,
    RegionTree,
    StyleFusionPipeline,
    StyleGAN2Discriminator,
)
from stylefusion_hf.core.randomness import step_generator
from stylefusion_hf.training import fusion
from stylefusion_hf.training._segmenters import load_segmenter
from stylefusion_hf.training.card import model_card
from stylefusion_hf.training.choices import Shares
from stylefusion_hf.training.context import reduced_rank
from stylefusion_hf.training.fusion_setup import build_criterion, load_frozen, without_batch_statistics
from tests.small_fusion import draw_codes
from tests.tiny import assert_same_weights, tiny_generator, tiny_segmenter


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


def save_base(root: Path) -> Path:
    """A folder with a tiny generator, segmenter and discriminator."""
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
    assert_same_weights(whole / "fusion", halves / "fusion")
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
        g, discriminator = load_frozen(args, Accelerator())
        segmenter = load_segmenter(args)
        criterion = build_criterion(args, nets.tree, g, segmenter, discriminator)
        with torch.no_grad():  # the same 60 samples for both
            values = []
            for i in range(10):
                sample = criterion.draw(6, step_generator(1, i), Shares())
                view = criterion.networks(nets.fuse(criterion.codes(sample)))
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
    assert_same_weights(tmp_path / "whole" / "fusion", tmp_path / "halves" / "fusion")
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


def test_the_contrastive_objective_with_plain_gates_resumes_to_the_bit(base, tmp_path):
    flags = ("--objective", "contrastive", "--gates", "plain", "--static_steps", "1", "--checkpointing_steps", "2")
    for name, steps, more in (
        ("whole", "3", ()),
        ("halves", "2", ()),
        ("halves", "3", ("--resume_from_checkpoint", "latest")),
    ):
        fusion.train(fusion_args(base, tmp_path / name, *flags, "--max_train_steps", steps, *more))
    assert_same_weights(tmp_path / "whole" / "fusion", tmp_path / "halves" / "fusion")
    log = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    assert "spatial" in log[0] and "locality" not in log[0]
    assert {"dial all", "dial face", "dial hair"} <= {name for line in log for name in line}
    nets = FusionHierarchy.from_pretrained(tmp_path / "whole", subfolder="fusion")
    assert (nets.config.pooling, nets.config.final_activation, nets.config.gate_novelty) == ("max", "lrelu", False)
    card = (tmp_path / "whole" / "README.md").read_text()
    assert "the contrastive objective" in card and "| `--gates` | plain |" in card


def test_a_finished_training_stores_smaller_nets(base, tmp_path, caplog):
    flags = ("--max_train_steps", "2", "--static_steps", "0", "--hidden_width", "8", "--checkpointing_steps", "2")
    caplog.set_level("INFO", logger="stylefusion_hf")
    fusion.train(fusion_args(base, tmp_path / "out", *flags))
    whole = StyleFusionPipeline.from_pretrained(tmp_path / "out")
    again = (*flags, "--resume_from_checkpoint", "latest", "--input_rank", "3", "--output_rank", "2")
    fusion.train(fusion_args(base, tmp_path / "out", *again))
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "out")
    assert (pipe.fusion.config.input_rank, pipe.fusion.config.output_rank) == (3, 2)
    counts = [f"{nets.num_parameters() / 1e6:.1f}" for nets in (pipe.fusion, whole.fusion)]
    assert f"nets of {counts[0]} million numbers, for {counts[1]}, change fused codes by" in caplog.text
    assert pipe.fusion.num_parameters() < whole.fusion.num_parameters()
    a, b = (np.asarray(p(base=1, regions={"hair": 2}).images[0], dtype=float) for p in (pipe, whole))
    assert abs(a - b).mean() < 2
    for name in ("input_rank", "output_rank"):
        with pytest.raises(ValueError, match=f"--{name} must be at least 1, got 0"):
            fusion.train(fusion_args(base, tmp_path / "no", f"--{name}", "0"))
        with pytest.raises(ValueError, match=f"--max_train_steps 0 measures constant gates: leave --{name} out"):
            fusion.train(fusion_args(base, tmp_path / "no", "--max_train_steps", "0", f"--{name}", "2"))
    with pytest.raises(ValueError, match="input_rank=9 must be at most hidden_width=8"):  # before the training
        fusion.train(fusion_args(base, tmp_path / "no", *flags, "--input_rank", "9"))
    assert not (tmp_path / "no").exists()


def test_training_goes_on_from_other_nets(base, tmp_path):
    few = ("--max_train_steps", "1", "--hidden_width", "8")
    fusion.train(fusion_args(base, tmp_path / "first", *few, "--static_steps", "0"))
    first = FusionHierarchy.from_pretrained(tmp_path / "first", subfolder="fusion")
    start = ("--initial_fusion", str(tmp_path / "first"))
    args = fusion_args(
        base, tmp_path / "second", *few, *start, "--learning_rate", "1e-12", "--gate_learning_rate", "0"
    )
    assert args.static_steps == 0
    fusion.train(args)
    same = FusionHierarchy.from_pretrained(tmp_path / "second", subfolder="fusion").state_dict()
    assert all(torch.allclose(x, same[name], atol=1e-9) for name, x in first.state_dict().items())
    fusion.train(fusion_args(base, tmp_path / "third", *few, *start))
    third = FusionHierarchy.from_pretrained(tmp_path / "third", subfolder="fusion").state_dict()
    assert any(not torch.equal(x, third[name]) for name, x in first.state_dict().items() if ".layers." in name)
    with pytest.raises(ValueError, match="does not fit the flags and --model: hidden_width is 8, not 16"):
        fusion.train(fusion_args(base, tmp_path / "no", "--hidden_width", "16", *start))
    with pytest.raises(ValueError, match="leave --initial_fusion out"):
        fusion.train(fusion_args(base, tmp_path / "no", "--max_train_steps", "0", *start))


def test_training_goes_on_from_nets_that_were_made_smaller_and_had_no_context(base, tmp_path):
    few = ("--max_train_steps", "1", "--hidden_width", "8")
    smaller = ("--static_steps", "0", "--input_rank", "3", "--output_rank", "2")
    fusion.train(fusion_args(base, tmp_path / "first", *few, *smaller))
    first = FusionHierarchy.from_pretrained(tmp_path / "first", subfolder="fusion")
    start = ("--initial_fusion", str(tmp_path / "first"), "--context_width", "4")
    still = ("--learning_rate", "1e-12", "--gate_learning_rate", "0")
    fusion.train(fusion_args(base, tmp_path / "second", *few, *start, *still))
    second = FusionHierarchy.from_pretrained(tmp_path / "second", subfolder="fusion")
    assert (second.spec.input_rank, second.spec.output_rank, second.spec.context_width) == (None, None, 4)
    codes = draw_codes(second, batch=6)
    torch.testing.assert_close(second.fuse(codes), first.fuse(codes))  # so far the context changes nothing
    # The context starts as what predicts the regions' looks.
    pictures = torch.randn(64, second.style_width)
    known = second.layout.context([second.layout.seen(pictures)])
    assert known.shape == (64, 4) and known.isfinite().all() and known.std() > 0.01
    fusion.train(fusion_args(base, tmp_path / "third", *few, *start, "--initial_fusion", str(tmp_path / "second")))
    third = FusionHierarchy.from_pretrained(tmp_path / "third", subfolder="fusion").state_dict()
    moved = {name: float((x - third[name]).abs().max()) for name, x in second.state_dict().items()}
    assert moved["nets.net_all.blender_segments.context.weight"] > 1e-3
    with pytest.raises(ValueError, match="does not fit the flags and --model: context_width is 4, not None"):
        fusion.train(fusion_args(base, tmp_path / "no", *few, "--initial_fusion", str(tmp_path / "second")))
    with pytest.raises(ValueError, match="--context_width must be at least 1, got 0"):
        fusion.train(fusion_args(base, tmp_path / "no", *few, "--context_width", "0"))
    with pytest.raises(ValueError, match="leave --context_width out"):
        fusion.train(fusion_args(base, tmp_path / "no", "--max_train_steps", "0", "--context_width", "4"))


def test_the_context_starts_as_what_predicts_the_features_best():
    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(200, 30, generator=draw)
    truth = torch.randn(2, 30, generator=draw)
    features = codes @ truth.t() @ torch.randn(2, 50, generator=draw) + 0.1 * torch.randn(200, 50, generator=draw)
    found = reduced_rank(codes, features, 2)
    known = codes @ found.t()
    torch.testing.assert_close(known.std(dim=0), torch.ones(2))
    overlap = torch.linalg.svdvals(torch.linalg.qr(found.t()).Q.t() @ torch.linalg.qr(truth.t()).Q)
    assert overlap.min() > 0.95  # the same plane
    assert reduced_rank(codes, features[:, :1], 3).shape == (3, 30)  # more than the features have


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
    path.write_text('{"push_to_hub": false, "tree": "-x", "min_psi": -1}')
    args = fusion.parse_args(["--output_dir", "x", "--config", str(path)])
    assert (args.push_to_hub, args.tree, args.min_psi) == (False, "-x", -1.0)
    with pytest.raises(SystemExit):  # an abbreviation would be parsed, but not read
        fusion.parse_args(["--output_dir", "x", "--conf", str(path)])
    for text, message in (
        ("{", "cannot be read"),
        ("[1]", "not list"),
        ('{"look_weight": 1}', "no flag '--look_weight'"),
        ('{"looks_weight": null}', "looks_weight is None"),
        ('{"looks_weight": true}', "looks_weight is True, not a number"),
        ('{"code_shares": [true, 1, 0, 0]}', "not a number"),
        ('{"push_to_hub": 1}', "push_to_hub is 1, not true or false"),
        ('{"a\\n\\u001b[31m": 1}', r"no flag '--a\\n\\x1b"),
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
        (("--tree", "all*(nose, chin)"), "but not the tree.s nose, chin"),
        (("--tree", "all*(face(eyes, mouth), hair)"), "nothing to train for eyes, mouth"),
        (("--pose_regions", "nose"), "--pose_regions: 'nose'"),
        (("--tree", "all*(a"), "all"),
        (("--learning_rate", "0"), "--learning_rate must be positive"),
        (("--max_train_steps", "-1"), "--max_train_steps must be at least 0"),
        (("--report_to", "clearml2"), "--report_to 'clearml2' is unknown"),
        (("--mixed_precision", "fp16"), "does not train on a CPU"),
        (("--looks_weight", "-1"), "--looks_weight must not be negative"),
        (("--looks_weight", "nan"), "--looks_weight must be finite, got nan"),
        (("--code_shares", "nan", "0.5", "0.3", "0.2"), "four numbers from 0 that sum to 1"),
        (("--hidden_layers", "0"), "--hidden_layers must be at least 1, got 0"),
        (("--validation_pairs", "-1"), "--validation_pairs must be at least 0, got -1"),
        (("--gate_learning_rate", "-1"), "--gate_learning_rate must not be negative"),
        (("--ema_decay", "2"), "--ema_decay must be at least 0 and below 1"),
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
