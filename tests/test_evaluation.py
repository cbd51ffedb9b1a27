"""The figures on inputs whose figure is known."""

import pytest
import torch

from stylefusion_hf.evaluation.realism import compare, coverage, kid
from stylefusion_hf.evaluation.report import report
from stylefusion_hf.evaluation.swaps import change_sums, dilate, measure_swaps
from tests.tiny import tiny_pipeline, tiny_segmenter


def test_kid_and_coverage():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 8, generator=draw), torch.randn(400, 8, generator=draw)
    assert abs(kid(x, y)) < 0.02 < kid(x, y + 1)
    assert coverage(x, y) > 0.8
    assert coverage(x, y + 20) == 0.0
    half = y[:, :].clone()
    half[:, 0] = half[:, 0].abs() + 30
    assert coverage(x, half) == 0.0


def test_compare_prefers_the_same_distribution():
    judge = tiny_segmenter()
    draw = torch.Generator().manual_seed(0)
    real, same = (torch.randn(60, 3, 16, 16, generator=draw).clamp(-1, 1) for _ in range(2))
    soft = torch.nn.functional.interpolate(torch.nn.functional.avg_pool2d(same, 4), scale_factor=4)
    good, bad = compare(judge, real, same), compare(judge, real, soft)
    assert good["KID x 1000"] < bad["KID x 1000"]
    assert good["precision"] > bad["precision"]


def test_change_sums_and_dilate():
    plain, source = torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 2.0)
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2:4, 2:4] = True
    swapped = plain.clone()
    swapped[:, :, mask[0]] = 1.0
    assert change_sums(plain, source, swapped, mask).tolist() == [[12.0, 48.0, 0.0, 720.0]]
    assert dilate(mask, 1).sum() == 16


def test_measure_swaps():
    pipe = tiny_pipeline(segmenter=True)
    names = list(pipe.segmenter.config.regions)
    pipe.segmenter.segment = lambda x: torch.nn.functional.one_hot(  # vertical stripes
        torch.arange(32).mul(len(names)).div(32, rounding_mode="floor").expand(len(x), 32, 32), len(names)
    ).permute(0, 3, 1, 2)
    result = measure_swaps(pipe, pairs=5, batch=2)
    assert list(result) == list(pipe.fusion.tree.leaves)
    for row in result.values():
        assert row["pairs"] == 5
        assert 0 < row["inside"] < 2
        assert 0 < row["outside"] < 2
    with pytest.raises(ValueError, match="pairs must be at least 1"):
        measure_swaps(pipe, pairs=0)
    with pytest.raises(ValueError, match="no segmenter"):
        measure_swaps(tiny_pipeline(), pairs=1)


def test_report(tmp_path, capsys):
    report("region", {"hair": {"inside": 0.25, "pairs": 7}}, str(tmp_path / "figures.json"))
    assert capsys.readouterr().out.splitlines()[:3] == [
        "| region | inside | pairs |",
        "|---|---|---|",
        "| hair | 0.250 | 7 |",
    ]
    assert (tmp_path / "figures.json").read_text().startswith('{\n  "hair"')
