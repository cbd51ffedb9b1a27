"""The flags of the fusion trainer: a dozen for users, named objectives and gates, everything by --help-all."""

import json

import pytest

from stylefusion_hf.training import fusion
from stylefusion_hf.training.fusion_flags import OBJECTIVES, SHORT, build_parser, shares_of

REQUIRED = ("--output_dir", "x")


def shown(text: str) -> set[str]:
    return {word.strip("[],") for word in text.split() if word.strip("[],").startswith("--")}


def test_help_shows_what_users_turn_and_help_all_the_rest(capsys):
    helps = {}
    for flag in ("--help", "--help-all"):
        with pytest.raises(SystemExit) as stop:
            fusion.parse_args([flag])
        assert stop.value.code == 0
        helps[flag] = shown(capsys.readouterr().out)
    assert {"--objective", "--gates", "--train_resolution", "--memory_gib", "--tree", "--model"} <= helps["--help"]
    assert len(helps["--help"] - {"--help", "--help-all", "--help_all"}) <= len(SHORT) + 3
    assert "--deficit" not in helps["--help"]
    every = {flag for action in build_parser()._actions for flag in action.option_strings if flag.startswith("--")}
    assert len(every) > 70
    assert every <= helps["--help-all"] | {flag for flag in every if flag.startswith("--no-")}


def test_objectives_and_gates_stand_for_flags_that_may_be_set_alone(tmp_path):
    args = fusion.parse_args(REQUIRED)
    assert (args.objective, args.gates) == ("composed", "ours")
    assert (args.locality_weight, args.transfer_weight, args.spatial_weight) == (1.0, 1.5, 0.0)
    assert args.gate_product and args.gate_novelty and args.standardise and args.rgb_indicators
    assert (args.pooling, args.final_activation) == ("mean", "linear")
    assert shares_of(args).single == 0.75

    args = fusion.parse_args([*REQUIRED, "--objective", "contrastive", "--gates", "plain", "--pose_weight", "0.1"])
    weights = {name: getattr(args, name) for name in OBJECTIVES["composed"] if name.endswith("_weight")}
    assert {name for name, value in weights.items() if value} == {"spatial_weight", "pose_weight"}
    assert not (args.gate_product or args.gate_novelty or args.standardise or args.rgb_indicators)
    assert (args.pooling, args.final_activation) == ("max", "lrelu")
    assert shares_of(args).inner == (0.0, 0.0, 1.0, 0.0)  # a global code of its own on every level

    path = tmp_path / "row.json"
    path.write_text(json.dumps({"objective": "contrastive", "gate_novelty": True, "gates": "plain"}))
    args = fusion.parse_args([*REQUIRED, f"--config={path}", "--gates", "ours", "--no-gate_product"])
    assert (args.objective, args.spatial_weight, args.gates) == ("contrastive", 1.0, "ours")
    assert (args.gate_novelty, args.gate_product, args.standardise) == (True, False, True)


@pytest.mark.parametrize("wrong", [("--objective", "best"), ("--gates", "none"), ("--config",)])
def test_unknown_choices_are_refused(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        fusion.parse_args([*REQUIRED, *wrong])
    assert stop.value.code == 2
