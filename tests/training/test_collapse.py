"""The guard against collapse: a dial that does nothing is noticed, named, logged and written into the model card."""

import json

import pytest
import torch

from stylefusion_hf import FusionHierarchy
from stylefusion_hf.training import fusion, fusion_setup
from stylefusion_hf.training.collapse import CollapseGuard
from tests.planted import TREE
from tests.training.test_criterion import criterion, pipe  # noqa: F401
from tests.training.test_fusion_training import fusion_args, save_base


def nets(generator) -> FusionHierarchy:
    """Constant gates that let every dial do something."""
    torch.manual_seed(0)
    fusion = FusionHierarchy(
        TREE,
        generator.conv_sizes,
        generator.rgb_sizes,
        padded_width=8,
        hidden_width=8,
        num_indicators=8,
        indicator_repeats=1,
        gate_bias=True,
        lr_multiplier=1.0,
        final_activation="linear",
    )
    for name in fusion.tree.fused:
        fusion.set_constant_gates(name, segments=0.5, common=0.2)
    return fusion.eval()


def test_a_dead_gate_is_noticed(pipe, caplog):  # noqa: F811
    c = criterion(pipe)
    guard, fusion = CollapseGuard(c), nets(pipe.generator)
    found = guard.check(fusion.fuse, 10)
    assert set(found) == {f"dial {n}" for n in ("all", "left", "a", "b", "right")}
    assert all(value > 0.02 for value in found.values())
    assert guard.dead == [] and "collapse" not in caplog.text

    fusion.set_constant_gates("left", segments=1e-6)  # never b
    found = guard.check(fusion.fuse, 20)
    assert guard.dead == ["b"]
    assert found["dial b"] < 1e-3 < found["dial a"]
    assert "collapse: at step 20 the dial of b does nothing (net left)" in caplog.text

    fusion.set_constant_gates("left", segments=0.5)
    fusion.set_constant_gates("all", common=1e-6)  # the global code is ignored
    caplog.clear()
    guard.check(fusion.fuse, 30)
    assert guard.dead == ["all"]
    assert "the dial of all does nothing (net all)" in caplog.text


def test_the_guard_compares_with_a_whole_swap(pipe):  # noqa: F811
    guard = CollapseGuard(criterion(pipe))
    everything = guard.responses(lambda codes: codes["right"])
    assert everything["right"] == pytest.approx(1, abs=1e-4)
    assert everything["a"] == 0
    nothing = guard.responses(lambda codes: guard.base)
    assert set(nothing.values()) == {0.0}


def test_a_training_whose_dial_died_says_so(tmp_path, monkeypatch, caplog):
    base = save_base(tmp_path)
    start = fusion_setup.start_gates

    def plant(fusion, energies, regions):
        start(fusion, energies, regions)
        fusion.set_constant_gates("bg_hair_clothes", segments=1e-9)  # hair is its second child

    monkeypatch.setattr(fusion_setup, "start_gates", plant)
    flags = ("--max_train_steps", "2", "--static_steps", "2", "--gate_learning_rate", "1e-9")
    for objective in ("contrastive", "composed"):
        out = tmp_path / objective
        caplog.clear()
        fusion.train(fusion_args(base, out, *flags, "--objective", objective, "--gates", "plain"))
        assert "collapse: at step 2 the dial of hair does nothing (net bg_hair_clothes)" in caplog.text
        log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        assert [line["dial hair"] < 0.02 < line["dial skin"] for line in log if "dial hair" in line] == [True]
        assert "**Collapsed:** the dial of hair" in (out / "README.md").read_text()
