"""The training score, the gates learned on it, and upper bounds, on tiny models."""

import pytest
import torch

from stylefusion_hf.evaluation.gates import LearnedGates
from stylefusion_hf.evaluation.limits import LimitSearch, all_limits, limit_codes, start_gates
from stylefusion_hf.evaluation.methods import move
from stylefusion_hf.evaluation.pairs import VALIDATION_SEED, draw_pairs
from stylefusion_hf.evaluation.score import Scores, TrainingScore
from tests.planted import planted_pipeline
from tests.tiny import STYLE_DIM, tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return planted_pipeline()


@pytest.fixture(scope="module")
def score(pipe):
    return TrainingScore(pipe, samples=16)


@pytest.fixture(scope="module")
def pairs(pipe):
    return draw_pairs(pipe, 5, VALIDATION_SEED)


@pytest.fixture(scope="module")
def targets(score, pairs):
    """Region 0 of the first pair, 1 of the second, 2 of the third, 0 of the fourth, 1 of the fifth."""
    base, source = score.describe_pairs(pairs)
    return score.targets(base, source, torch.arange(5) % 3)


# --- The score -------------------------------------------------------------------------------------------------------


def test_the_base_scores_nothing_and_the_source_everything(score, pairs, targets):
    outside, transfer = score(targets, pairs.base).ratios()
    assert outside == 0 and abs(transfer) < 1e-4
    scores = score(targets, pairs.source)
    torch.testing.assert_close(scores.outside, scores.outside_reference)
    assert (scores.outside > 0).all() and (scores.transfer_reference > 0).all()
    # Color and maps are read off the very picture; the outline is too, but in another pose.
    assert (scores.transfer[:, :2] < 1e-3 * scores.transfer_reference[:, :2]).all()


def test_nothing_under_the_dilated_mask_counts_as_outside(score, pairs, targets):
    scores = score(targets[:1], pairs.source[:1])
    squared = (pairs.other - pairs.plain).square()[0]
    torch.testing.assert_close(scores.outside[0], squared[..., 13:].sum())  # a is 12 columns, and one of margin


def test_a_static_region_is_not_moved_and_the_others_are(pipe, pairs):
    score, region = TrainingScore(pipe, samples=4), torch.full((5,), 2)
    # Sources whose regions lie 4 columns further left; the foremost one, which nothing hides, is looked at.
    probs = torch.cat([pairs.source_probs[..., 4:], pairs.source_probs[..., -4:]], dim=-1)
    base = score.describe(pairs.base, pairs.plain, pairs.base_probs)
    source = score.describe(pairs.source, pairs.other, probs)
    moved = score.targets(base, source, region)
    still = TrainingScore(pipe, static=["right"], samples=4).targets(base, source, region)
    assert (moved.initial_distance[:, 2] < 0.7 * still.initial_distance[:, 2]).all()


def test_an_outline_is_not_asked_for_where_something_hides_it(score, pairs):
    """In the source a reaches where the base has b, which lies in front: that part of it cannot be shown."""
    wide = torch.cat([pairs.source_probs[..., :4], pairs.source_probs[..., :-4]], dim=-1)
    base = score.describe(pairs.base, pairs.plain, pairs.base_probs)
    source = score.describe(pairs.source, pairs.other, wide)
    targets = score.targets(base, source, torch.zeros(5, dtype=torch.long))
    assert not targets.visible[..., 12:].any() and targets.visible[..., :11].any()
    cells = targets.outline.unflatten(1, (round(targets.outline.shape[1] ** 0.5), -1))
    assert cells[..., 0].all() and not cells[..., cells.shape[-1] // 2 :].any()


def test_a_head_that_says_nothing_does_not_count(score):
    # Planted outlines hardly differ from picture to picture; what the pictures show there does.
    assert (score.head_weights[:, :2] == 0.5).all() and not score.head_weights[:, 2].any()


def test_a_pair_without_the_region_does_not_count(score, pairs):
    probs = pairs.source_probs.clone()
    probs[2, 1] = 0
    base = score.describe(pairs.base, pairs.plain, pairs.base_probs)
    source = score.describe(pairs.source, pairs.other, probs)
    scores = score(score.targets(base, source, torch.ones(5, dtype=torch.long)), pairs.source)
    assert [bool(x) for x in scores.outside_reference > 0] == [True, True, False, True, True]
    assert not scores.transfer[2].any() and not scores.transfer_reference[2].any()


def test_a_region_that_vanishes_has_not_been_transferred(pipe, score, pairs, targets, monkeypatch):
    segment = pipe.segmenter.segment
    monkeypatch.setattr(pipe.segmenter, "segment", lambda x: segment(x) - 1e4 * torch.eye(3)[0].view(1, 3, 1, 1))
    scores = score(targets[:1], pairs.source[:1])
    assert (scores.transfer >= scores.transfer_reference * 0.999)[0, :2].all()


def test_ratios_are_of_sums(targets):
    scores = Scores(
        outside=torch.tensor([1.0, 2.0, 3.0]),
        outside_reference=torch.tensor([10.0, 10.0, 4.0]),
        transfer=torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [1.0, 0.0, 2.0]]),
        transfer_reference=torch.tensor([[2.0, 2.0, 2.0], [4.0, 4.0, 4.0], [2.0, 2.0, 2.0]]),
        heads=torch.tensor([[1 / 3] * 3, [1 / 3] * 3, [0.5, 0.5, 0.0]]),
    )
    groups = torch.tensor([0, 0, 1])
    outside, transfer = scores.ratios(groups, 2)
    torch.testing.assert_close(outside, torch.tensor([0.15, 0.75]))
    torch.testing.assert_close(transfer, torch.tensor([0.5, 0.75]))
    torch.testing.assert_close(scores.loss(2.0, groups=groups), torch.tensor(0.15 + 0.75 + 2 * (0.5 + 0.25)))


def test_the_gradient_says_how_the_loss_changes(score, pairs, targets):
    direction = torch.randn(pairs.base.shape, generator=torch.Generator().manual_seed(0))
    point = move(pairs.base, pairs.source, 0.5)
    scale = score(targets, point)

    def loss(t: torch.Tensor) -> torch.Tensor:
        return score(targets, point + t * direction).loss(0.7, scale=scale)

    t = torch.zeros((), requires_grad=True)
    (slope,) = torch.autograd.grad(loss(t), t)
    with torch.no_grad():
        step = torch.tensor(1e-3)
        difference = (loss(step) - loss(-step)) / (2 * step)
    torch.testing.assert_close(slope, difference, rtol=0.05, atol=1e-2)


def test_the_score_checks_its_names(pipe):
    with pytest.raises(ValueError, match="no segmenter"):
        TrainingScore(tiny_pipeline())
    with pytest.raises(ValueError, match="unknown region 'nose': the segmenter knows a, b, right"):
        TrainingScore(pipe, pose=["nose"])
    with pytest.raises(ValueError, match=r"no feature maps of \[64\] pixels"):
        TrainingScore(pipe, samples=2, resolutions=[64])


# --- Learned static gates --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def learned(pipe, score):
    return LearnedGates(pipe, lambdas=(0.2, 2.0), steps=20, batch=12, pool=24, score=score).fit()


def test_learning_gates_lowers_the_loss_and_leaves_the_networks_alone(pipe, score, learned):
    assert sum(learned.history[-10:]) < 0.9 * sum(learned.history[:10])
    assert learned.logits.shape == (2, 3, STYLE_DIM) and not learned.logits.requires_grad
    assert all(p.grad is None for p in (*pipe.generator.parameters(), *pipe.segmenter.parameters()))


def test_more_weight_on_transfer_transfers_more(score, learned, pairs, targets):
    found = []
    for strength in (1.0, 2.0):
        gates = torch.stack([learned.gate(score.regions[r], strength) for r in targets.region])
        found.append(score(targets, move(pairs.base, pairs.source, gates)).ratios())
    (weak_outside, weak_transfer), (outside, transfer) = found
    assert weak_transfer < transfer and weak_outside < outside


def test_strengths_go_from_nothing_to_the_source(learned):
    weak, strong = learned.logits[:, 1].sigmoid()
    assert not learned.gate("b", 0).any() and (learned.gate("b", 3) == 1).all()
    torch.testing.assert_close(learned.gate("b", 0.5), weak / 2)
    torch.testing.assert_close(learned.gate("b", 1.0), weak)
    torch.testing.assert_close(learned.gate("b", 1.5), learned.logits[:, 1].mean(dim=0).sigmoid())
    torch.testing.assert_close(learned.gate("b", 2.0), strong)
    torch.testing.assert_close(learned.gate("b", 2.5), (strong + 1) / 2)
    assert len(learned.strengths) >= 10 and list(learned.strengths) == sorted(learned.strengths)
    assert learned.strengths[-1] == 3
    assert [learned.strength_of(x) for x in (0.1, 0.2, 2.0, 5.0)] == [1, 1, 2, 2]
    assert learned.strength_of(0.2 * 10**0.5) == pytest.approx(1.5)


def test_learning_is_repeatable(pipe, score):
    first, second, other = (
        LearnedGates(pipe, lambdas=(1.0,), steps=3, batch=6, pool=8, seed=seed, score=score).fit().logits
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)


def test_gates_are_saved_and_loaded(pipe, learned, tmp_path):
    learned.save(tmp_path / "gates.safetensors")
    again = LearnedGates.load(pipe, tmp_path / "gates.safetensors")
    assert torch.equal(again.logits, learned.logits) and again.lambdas == learned.lambdas
    assert again.strengths == learned.strengths
    with pytest.raises(ValueError, match="has gates of 88 style channels for a, b, right; this model has 88"):
        LearnedGates.load(tiny_pipeline(segmenter=True), tmp_path / "gates.safetensors")
    with pytest.raises(ValueError, match="not fitted yet"):
        LearnedGates(pipe).save(tmp_path / "more.safetensors")
    with pytest.raises(ValueError, match=r"lambdas must be positive and ascending, got \[1.0, 0.5\]"):
        LearnedGates(pipe, lambdas=[1.0, 0.5])


# --- Upper bounds ----------------------------------------------------------------------------------------------------


def losses(search: LimitSearch, codes) -> float:
    return sum(o + weight * (1 - t) for (weight, _), (o, t) in search.measure(codes).items())


@pytest.mark.parametrize("kind", ["static", "gate", "code"])
def test_a_limit_beats_its_start(pipe, score, pairs, kind):
    search = LimitSearch(pipe, pairs[:3], ["b", "right"], [0.3, 3.0], score)
    start = search._start(kind, None)
    codes = search.codes(kind, search.search(kind, steps=10))
    assert codes.keys() == {(0.3, "b"), (0.3, "right"), (3.0, "b"), (3.0, "right")}
    assert all(s.shape == (3, STYLE_DIM) for s in codes.values())
    assert losses(search, codes) < 0.9 * losses(search, search.codes(kind, start))


def test_a_freer_limit_is_no_worse(pipe, score, pairs, learned):
    search = LimitSearch(pipe, pairs[:3], ["a", "b"], [1.0], score)
    found = all_limits(pipe, pairs[:3], ["a", "b"], [1.0], steps=20, gates=learned, score=score)
    static, gate, code = (losses(search, found[kind]) for kind in ("static", "gate", "code"))
    assert code < gate < static


def test_a_static_gate_is_one_for_all_pairs(pipe, score, pairs):
    codes = limit_codes(pipe, pairs, ["a"], [1.0], "static", steps=2, score=score)[1.0, "a"]
    gates = (codes - pairs.base) / (pairs.source - pairs.base)
    clear = (pairs.source - pairs.base).abs() > 0.1
    mean = (gates * clear).sum(dim=0) / clear.sum(dim=0).clamp_min(1)
    assert ((gates - mean).abs()[clear] < 1e-4).all() and mean.std() > 0.01


def test_the_chunk_does_not_matter(pipe, score, pairs):
    one, other = (
        limit_codes(pipe, pairs[:3], ["a", "right"], [1.0], "gate", steps=2, score=score, chunk=chunk)
        for chunk in (4, 100)
    )
    for key, codes in one.items():
        torch.testing.assert_close(codes, other[key], rtol=0, atol=1e-2)


def test_learned_gates_are_a_start(pipe, score, pairs, learned):
    start = start_gates(learned, ["right", "a"], [0.2, 2.0])
    assert start.shape == (2, 2, 1, STYLE_DIM)
    assert torch.equal(start[1, 0, 0], learned.gate("right", 2.0))
    search = LimitSearch(pipe, pairs, ["right", "a"], [0.2, 2.0], score)
    torch.testing.assert_close(search._start("gate", start)[..., :, 0].sigmoid().clamp(0.01, 0.99)[..., 0],
                               start[..., 0, 0].clamp(0.01, 0.99))  # fmt: skip


def test_limits_check_what_they_are_given(pipe, score, pairs):
    with pytest.raises(ValueError, match="unknown kind 'net' of limit: choose from static, gate, code"):
        limit_codes(pipe, pairs, ["a"], [1.0], "net", score=score)
    with pytest.raises(ValueError, match="unknown region 'nose'"):
        limit_codes(pipe, pairs, ["nose"], [1.0], "gate", score=score)
    with pytest.raises(ValueError, match=r"lambdas must be positive, got \[0\]"):
        limit_codes(pipe, pairs, ["a"], [0], "gate", score=score)
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        limit_codes(pipe, pairs, ["a"], [1.0], "gate", steps=0, score=score)
