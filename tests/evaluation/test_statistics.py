"""Ratios of sums, their intervals, kernel distances and curves, on numbers whose answer is known."""

import math

import pytest
import torch

from stylefusion_hf.evaluation.curves import LEVELS, OURS, ROUNDS, Curve, compare
from stylefusion_hf.evaluation.limit_curves import BASELINE, LIMITS, shares
from stylefusion_hf.evaluation.realism import estimate_from_error, number_of_kinds
from stylefusion_hf.evaluation.report import format_cell, mark_not_reached, table, to_json_types
from stylefusion_hf.evaluation.statistics import (
    Estimate,
    density_and_coverage,
    effective_number,
    kid,
    kid_subsets,
    outside_at,
    pareto,
    ratio,
    resamples,
    share_on_manifold,
    value_at,
)


def test_the_first_resample_is_every_pair_once():
    counts = resamples(20, rounds=50)
    assert counts.shape == (51, 20)
    assert (counts[0] == 1).all()
    assert (counts.sum(dim=1) == 20).all()
    assert not torch.equal(counts[1], counts[2])
    torch.testing.assert_close(counts, resamples(20, rounds=50), rtol=0, atol=0)


def test_an_interval_covers_as_often_as_it_says():
    """95 % intervals of a ratio whose truth is 0.5 contain it in most of 100 samples of 80."""
    draw = torch.Generator().manual_seed(0)
    counts = resamples(80, rounds=300)
    hits = 0
    for _ in range(100):
        below = torch.rand(80, generator=draw) + 0.5
        above = 0.5 * below + 0.2 * torch.randn(80, generator=draw)
        e = Estimate.of(ratio(counts, above, below), 80)
        hits += e.low <= 0.5 <= e.high
    assert 85 <= hits <= 100


def test_a_ratio_to_nothing_is_undefined():
    counts = resamples(4, rounds=10)
    e = Estimate.of(ratio(counts, torch.ones(4), torch.zeros(4)), 4)
    assert math.isnan(e.value)
    assert e.to_json() == {"value": None, "low": None, "high": None, "n": 4}
    assert format_cell(e) == "undefined"


def test_kid_and_manifolds():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(400, 8, generator=draw), torch.randn(400, 8, generator=draw)
    assert abs(kid(x, y)) < 0.02 < kid(x, y + 1)
    assert share_on_manifold(x, y) > 0.8
    assert share_on_manifold(x, y + 20) == 0.0
    half = y.clone()
    half[:, 0] = half[:, 0].abs() + 30
    assert share_on_manifold(x, half) == 0.0


def test_subsets_tell_the_error_of_kid():
    draw = torch.Generator().manual_seed(0)
    x, y = torch.randn(500, 8, generator=draw), torch.randn(500, 8, generator=draw)
    small, large = (kid_subsets(x, y, size) for size in (50, 200))
    assert large.std() < small.std()
    assert abs(float(large.mean()) - kid(x, y)) < 0.05


def test_the_envelope_keeps_what_nothing_beats():
    outside, transfer = [0.5, 0.1, 0.2, 0.4, 0.3], [0.2, 0.2, 0.5, 0.5, 0.0]
    assert pareto(outside, transfer) == [1, 2]  # 0 and 3 cost more for as much, 4 transfers nothing
    assert pareto([0.1], [-0.2]) == []


def test_outside_change_is_read_off_a_rising_curve():
    transfer, outside = [0.2, 0.4, 0.6], [0.1, 0.3, 0.2]
    assert outside_at(outside, transfer, 0.0) == 0.0
    assert outside_at(outside, transfer, 0.1) == pytest.approx(0.05)  # a line from (0, 0)
    assert outside_at(outside, transfer, 0.5) == pytest.approx(0.25)  # .3 and .2 are pooled: it never falls
    assert outside_at(outside, transfer, 0.6) == pytest.approx(0.25)
    assert math.isnan(outside_at(outside, transfer, 0.61))  # never extrapolated
    assert math.isnan(outside_at([], [], 0.1))
    # Settings that transfer less than nothing, or what is not known, play no part.
    assert outside_at([0.05, 0.1, 0.3], [-0.1, 0.2, 0.5], 0.1) == pytest.approx(0.05)
    assert outside_at([0.9, 0.2], [math.nan, 0.5], 0.25) == pytest.approx(0.1)


def test_an_envelope_is_what_no_other_setting_beats():
    curve = straight(0.1, 0.6)
    curve.strengths.append(9.0)
    for name, value in (("outside", 0.5), ("transfer", 0.4), ("specific", 0.4), ("leak", 0.9)):
        getattr(curve, name).append(torch.full((ROUNDS + 1,), value, dtype=torch.float64))
    wanted = torch.full((ROUNDS + 1,), 0.45, dtype=torch.float64)
    assert float(curve.at(wanted)[0]) > 0.1  # the fit goes through the bad setting as well
    assert curve.envelope().strengths == [0.5, 1.0]
    assert float(curve.envelope().at(wanted)[0]) == pytest.approx(0.045)
    curve.strengths[-1] = 1.0  # as the upper bounds have it: one trade-off, several ways toward it
    assert curve.envelope().strengths == [0.5, 1.0]
    assert float(curve.envelope().at(wanted)[0]) == pytest.approx(0.045)


def test_what_half_of_the_resamples_reach_is_not_reached():
    draw = torch.Generator().manual_seed(0)
    barely = straight(0.4, 1.0)
    barely.strengths, barely.outside, barely.leak = [1.0], barely.outside[1:], barely.leak[1:]
    barely.specific = barely.specific[1:]
    barely.transfer = [0.251 + 0.02 * torch.randn(ROUNDS + 1, generator=draw, dtype=torch.float64)]
    barely.transfer[0][0] = 0.251
    curves = {OURS: {"a": straight(0.1, 0.6)}, "barely": {"a": barely}}
    row = compare(curves, 10)["0.25"]["barely"]
    assert row["regions"] == 0
    assert math.isnan(row["a"].value)
    assert math.isnan(row["ratio"].value)


def test_regions_that_few_resamples_miss_count_in_the_others():
    """Each of two regions reaches the transfer in 98 of 100 resamples, both at once in 96."""
    curves = {OURS: {"a": straight(0.1, 0.6), "b": straight(0.1, 0.6)}}
    curves["twice"] = {"a": straight(0.2, 0.6), "b": straight(0.2, 0.6)}
    few = ROUNDS // 50
    curves["twice"]["a"].transfer[-1][1 : 1 + few] = curves["twice"]["a"].transfer[0][1 : 1 + few] = 0.1
    curves["twice"]["b"].transfer[-1][-few:] = curves["twice"]["b"].transfer[0][-few:] = 0.1
    row = compare(curves, 10)["0.25"]["twice"]
    assert row["regions"] == 2
    assert row["ratio"].value == row["ratio"].low == row["ratio"].high == pytest.approx(2.0)
    assert row["leak"].value == pytest.approx(0.2)


def test_a_comparison_is_paired():
    """Both methods' O goes up and down with the resample; their ratio does not."""
    draw = torch.Generator().manual_seed(0)
    luck = 1 + 0.3 * torch.rand(ROUNDS + 1, generator=draw, dtype=torch.float64)
    curves = {OURS: {"a": straight(0.1, 0.6)}, "twice": {"a": straight(0.2, 0.6)}}
    for by_leaf in curves.values():
        by_leaf["a"].outside = [o * luck for o in by_leaf["a"].outside]
    row = compare(curves, 10)["0.25"]["twice"]
    assert row["a"].high > 1.1 * row["a"].low
    assert row["ratio"].high == pytest.approx(row["ratio"].low) == pytest.approx(2.0)


def straight(slope: float, longest: float) -> Curve:
    """O = slope T, measured without noise."""
    curve = Curve()
    for strength in (0.5, 1.0):
        t = torch.full((ROUNDS + 1,), strength * longest, dtype=torch.float64)
        curve.strengths.append(strength)
        curve.outside.append(slope * t)
        curve.transfer.append(t)
        curve.specific.append(t / 2)
        curve.leak.append(torch.full_like(t, slope))
    return curve


def test_methods_are_compared_at_equal_transfer():
    curves = {
        OURS: {"a": straight(0.1, 0.6), "b": straight(0.2, 0.4)},
        "worse": {"a": straight(0.4, 0.9), "b": straight(0.2, 0.9)},
        "short": {"a": straight(0.1, 0.1), "b": straight(0.1, 0.1)},
    }
    found = compare(curves, 10)
    assert list(found) == [*map(str, LEVELS), "ours", "transfer, ours"]
    assert found["transfer, ours"]["a"].value == pytest.approx(0.6)
    quarter = found["0.25"]
    assert quarter["worse"]["a"].value == pytest.approx(0.1)
    assert quarter["worse"]["ratio"].value == pytest.approx(2.0)  # sqrt(4 * 1)
    assert quarter[OURS]["ratio"].value == pytest.approx(1.0)
    assert quarter["short"]["regions"] == 0
    assert mark_not_reached(quarter)["short"]["a"] == "not reached"
    assert found["0.5"]["worse"]["regions"] == 1  # ours reaches .5 in a alone
    assert found["ours"]["worse"]["b"].value == pytest.approx(0.08)
    assert quarter["worse"]["leak"].value == pytest.approx(0.3)  # the mean of .4 and .2
    by_source = compare(curves, 10, by="specific")  # S is half of T: .25 is reached where T is .5
    assert by_source["0.25"][OURS]["regions"] == 1
    assert by_source["0.25"]["worse"]["a"].value == pytest.approx(0.2)
    assert by_source["specific, ours"]["b"].value == pytest.approx(0.2)


def test_a_method_is_read_where_it_is_as_local_as_ours():
    curve = straight(0.4, 0.9)
    assert curve.most_specific(0.2) == 0.5  # O .18 and .36
    assert curve.most_specific(0.4) == 1.0
    assert curve.most_specific(0.1) == 0.5  # nothing is so local: the most local setting


def test_any_figure_is_read_between_settings():
    assert value_at([0.4, 0.8], [0.2, 0.6], 0.4) == pytest.approx(0.6)
    assert value_at([0.4, 0.8], [0.2, 0.6], 0.1) == pytest.approx(0.4)
    assert math.isnan(value_at([0.4, 0.8], [0.2, 0.6], 0.7)) and math.isnan(value_at([], [], 0.1))


# --- Variety ---------------------------------------------------------------------------------------------------------


def test_density_and_coverage_of_equal_and_of_degenerate_pictures():
    draw = torch.Generator().manual_seed(0)
    real, fake = torch.randn(600, 4, generator=draw), torch.randn(600, 4, generator=draw)
    density, coverage = density_and_coverage(real, fake)
    assert density == pytest.approx(1, abs=0.1)
    assert coverage > 0.9
    constant = real.mean(dim=0, keepdim=True).expand(600, -1)
    assert share_on_manifold(real, constant) == 1.0  # precision is fooled
    assert density_and_coverage(real, constant)[1] < 0.1
    assert density_and_coverage(real, real + 100) == (0.0, 0.0)


def test_balls_by_hand():
    real = torch.tensor([[0.0], [1.0], [3.0]])
    fake = torch.tensor([[0.5], [10.0]])
    # Nearest neighbors are 1, 1 and 2 away; the first fake lies in the balls of 0 and 1, the other one in none.
    assert density_and_coverage(real, fake, k=1) == (pytest.approx(1.0), pytest.approx(2 / 3))


def test_the_effective_number_of_kinds():
    assert float(effective_number(torch.tensor([3, 3, 3, 3]))) == pytest.approx(1)
    assert float(effective_number(torch.arange(8))) == pytest.approx(8)
    assert float(effective_number(torch.tensor([0, 0, 0, 1]))) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )
    e = number_of_kinds({"hair": torch.arange(8), "eyes": torch.zeros(8, dtype=torch.long)})
    assert e.value == pytest.approx(8**0.5)
    assert e.low < e.value


def test_the_share_of_what_a_gate_per_pair_could_gain():
    curves = {
        OURS: {"a": straight(0.2, 0.6)},
        BASELINE: {"a": straight(0.5, 1.0)},
        LIMITS["gate"]: {"a": straight(0.1, 0.9)},
        "short": {"a": straight(0.1, 0.1)},
    }
    found = shares(curves, 10)["ours"]
    assert found[OURS]["share"].value == pytest.approx(0.75)
    assert found[BASELINE]["share"].value == pytest.approx(0.0)
    assert found[LIMITS["gate"]]["share"].value == pytest.approx(1.0)
    assert "short" not in found
    assert shares({OURS: curves[OURS]}, 10) == {}


def test_tables_and_json():
    e = estimate_from_error(0.5, 0.1, 9)
    assert format_cell(e) == "0.500 [0.304, 0.696]"
    text = table("region", {"hair": {"outside": e, "n": 3}, "eyes": {"outside": 0.25}})
    assert text.splitlines() == [
        "| region | outside | n |",
        "|---|---|---|",
        "| hair | 0.500 [0.304, 0.696] | 3 |",
        "| eyes | 0.250 |  |",
    ]
    assert to_json_types({"a": [math.nan, e]})["a"] == [None, e.to_json()]
