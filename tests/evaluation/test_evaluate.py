"""`stylefusion evaluate` from end to end, on a tiny model with tiny judges."""

import json
from pathlib import Path

import pytest

from stylefusion_hf import RegionSegmenter, StyleGAN2Discriminator
from stylefusion_hf.cli import main
from stylefusion_hf.evaluation import curves, measuring, sections
from stylefusion_hf.evaluation.evaluate import Settings, build_subject
from tests.command_line import fails
from tests.evaluation.conftest import TREE
from tests.planted import planted_pipeline
from tests.tiny import tiny_fusion, tiny_pipeline, tiny_segmenter

# --- The command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_a_whole_report(folders, tmp_path, capsys, monkeypatch):
    model, judges = folders
    monkeypatch.setattr(sections, "SOURCES", 10)
    monkeypatch.setattr(measuring, "HEAD_PAIRS", 16)
    out = tmp_path / "report"
    names = ["swaps", "global", "realism", "interpolation", "gates", "diversity", "curves", "limits"]
    args = ["evaluate", "--model", model, "--judges", judges, "--out", str(out), "--device", "cpu", "--quick"]
    asked = [name for name in names if name != "curves"]  # which limits brings with it
    args += ["--sections", ",".join(asked), "--pairs", "8", "--curve-pairs", "6", "--realism-count", "20"]
    args += ["--limit-pairs", "6", "--limit-steps", "2", "--methods", "stylefusion,interpolation,pixel-paste"]
    args += ["--global-pairs", "2", "--validation-pairs", "3"]
    assert main(args) == 0
    text = capsys.readouterr().out
    assert "QUICK" in text
    report = json.loads((out / "report.json").read_text())
    assert list(report["seconds"]) == names
    assert set(report["heads of transfer"]) == set(report["swaps"]["leaf"])
    assert report["settings"]["model"] == Path(model).name
    # No path of this machine is published, in whichever file.
    assert str(Path(model).parent) not in (out / "report.json").read_text() + (out / "report.md").read_text()
    assert str(Path(judges).parent) not in (out / "report.json").read_text()
    everything = {"stylefusion", "interpolation", "pixel-paste", "mean", "random-code"}
    assert set(report["curves"]["points"]) == set(report["curves"]["as local as ours"]) == everything
    for name in ("mean", "random-code"):
        assert report["curves"]["as local as ours"][name]["specific"]["value"] in (0, None)
    for point in report["curves"]["points"]["stylefusion"]["mouth"]:
        assert set(point) == {"strength", "outside", "leak", "specific", "transfer"}
    assert "| leaf code only | specific | recognition | outside | leak | transfer |" in text
    assert report["settings"]["curve_pairs"] == 6 and report["settings"]["validation_pairs"] == 3
    assert "NaN" not in (out / "report.json").read_text()
    assert (out / "report.md").read_text().count("\n## ") == len(names)
    for picture in ("report.png", "limits.png"):
        assert (out / picture).read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--swap-rows", "leaf,widest"], "unknown row of swaps 'widest': choose from leaf, wider"),
        (["--sections", "swap"], "unknown section 'swap': choose from calibration, swaps"),
        (
            ["--sections", "curves", "--methods", "stylefusion,magic"],
            "unknown method 'magic': choose from stylefusion",
        ),
        (["--sections", "curves", "--methods", "interpolation"], "needs the method 'stylefusion'"),
        (["--pairs", "0"], "not an integer from 1"),
        (["--quick", "--full"], "not allowed with"),
        (["--judges", "nowhere"], "nowhere holds no judges"),
        (["--sections", "calibration"], "calibration needs judges with a portrait judge"),
        (["--sections", "realism", "--real", "nowhere"], "nowhere"),
        (["--sections", "realism", "--realism-count", "9"], "10 to 100000 pictures"),
        (["--sections", "limits"], "give --limit-pairs"),
        (["--seed", "201"], "0 to 200; got 201"),
        (["--psi", "0"], "at 0 all pictures are the same"),
        (["--pairs", "1"], "at least two pairs"),
        (["--validation-pairs", "1"], "at least two pairs"),
        (["--measuring-size", "64"], "pictures of 32 pixels are measured at 16 to 32 pixels, not at 64"),
        (["--sections", "curves", "--static-gates", "nowhere"], "nowhere"),
        (["--picture-size", "24"], "--picture-size 24: this generator draws pictures of 4, 8, 16, 32 pixels"),
    ],
)
def test_one_line_for_bad_input(folders, tmp_path, capsys, monkeypatch, more, message):
    monkeypatch.chdir(tmp_path)
    model, judges = folders
    args = ["evaluate", "--model", model, "--device", "cpu", "--quick", "--curve-pairs", "2", "--realism-count", "10"]
    given = args if "--judges" in more else [*args, "--judges", judges]
    assert message in fails(capsys, *given, *more)


def test_an_interrupted_comparison_keeps_its_validation_pairs(folders, tmp_path, monkeypatch):
    model, judges = folders
    measure, calls = curves.measure_jobs, []

    def measure_once(*args, **options):
        calls.append(options["progress"])
        if len(calls) > 1:
            raise KeyboardInterrupt
        return measure(*args, **options)

    monkeypatch.setattr(curves, "measure_jobs", measure_once)
    monkeypatch.setattr(measuring, "HEAD_PAIRS", 4)
    args = ["--quick", "--sections", "curves", "--curve-pairs", "2", "--methods", "stylefusion", "--device", "cpu"]
    main(["evaluate", "--model", model, "--judges", judges, "--out", str(tmp_path), *args])
    kept = json.loads((tmp_path / "report.json").read_text())["curves"]["on the validation pairs"]
    assert calls == ["strengths, validation", "strengths, test"]
    assert set(kept) == {"specific", "transfer"} and set(kept["transfer"]["ours"]) >= {"stylefusion", "mean"}
    assert "look better than they are" in (tmp_path / "report.md").read_text()


@pytest.mark.slow
def test_the_embedded_model_and_the_checkouts_judges_fit_each_other(tmp_path, capsys, monkeypatch):
    """In sizes, too, of which each judge has its own."""
    pytest.importorskip("python_avatars", reason="avatars need the extra `train`")
    pytest.importorskip("resvg_py", reason="avatars need the extra `train`")
    monkeypatch.setattr(measuring, "HEAD_PAIRS", 4)
    few = ["--pairs", "2", "--global-pairs", "2", "--calibration-pairs", "2", "--realism-count", "10"]
    names = ["calibration", "swaps", "global", "realism"]
    args = ["--quick", "--sections", ",".join(names), "--device", "cpu", "--out", str(tmp_path), *few]
    assert main(["evaluate", *args]) == 0
    assert list(json.loads((tmp_path / "report.json").read_text())["seconds"]) == names


def test_smaller_pictures_of_the_generator_can_be_measured(folders, tmp_path):
    model, judges = folders
    sizes = {}
    for size in (32, 16):
        out = tmp_path / str(size)
        few = ["--quick", "--sections", "swaps,curves", "--pairs", "2", "--curve-pairs", "2", "--device", "cpu"]
        main(["evaluate", "--model", model, "--judges", judges, "--picture-size", str(size), "--out", str(out), *few])
        sizes[size] = json.loads((out / "report.json").read_text())
        assert sizes[size]["picture size"] == sizes[size]["measuring size"] == size
    assert sizes[16]["swaps"] != sizes[32]["swaps"]


def test_judges_of_other_regions_are_refused(folders, tmp_path, capsys):
    RegionSegmenter(regions=["sky", "ground"], channels=[4, 4], groups=2).save_pretrained(tmp_path / "segmenter")
    message = fails(capsys, "evaluate", "--model", folders[0], "--device", "cpu", "--judges", str(tmp_path))
    assert "knows sky, ground, not the tree's mouth" in message


def test_judges_of_another_size_are_refused(folders, tmp_path, capsys):
    StyleGAN2Discriminator(64, channels=[8] * 5).save_pretrained(tmp_path / "discriminator")
    tiny_segmenter(TREE, seed=1).save_pretrained(tmp_path / "segmenter")
    args = ["evaluate", "--model", folders[0], "--device", "cpu", "--judges", str(tmp_path)]
    assert "were trained at 64 pixels, this model has 32" in fails(capsys, *args)


@pytest.mark.parametrize("tree", ["all*(left(a, b), right)", "all"])
def test_leaves_that_no_net_stands_above_are_refused(subject, tree):
    pipe = planted_pipeline()
    pipe.fusion = tiny_fusion(pipe.generator, tree)
    with pytest.raises(ValueError, match="cannot be swapped"):
        build_subject(pipe, subject.judges)


def test_a_model_without_a_segmenter_is_refused(tmp_path, capsys, folders):
    tiny_pipeline().save_pretrained(tmp_path / "plain")
    args = ["evaluate", "--model", str(tmp_path / "plain"), "--device", "cpu", "--judges", folders[1]]
    assert "has no segmenter" in fails(capsys, *args)


def test_the_quick_look_is_smaller_in_everything():
    whole, quick = Settings(), Settings().quick_version()
    for name in ("pairs", "validation_pairs", "curve_pairs", "global_pairs", "limit_pairs", "walks", "realism_count"):
        assert getattr(quick, name) < getattr(whole, name)
    assert set(quick.methods) < set(whole.methods)
