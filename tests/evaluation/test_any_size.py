"""The ruler at any resolution: sizes relative to the picture, a measuring size, and batches that bound memory."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from stylefusion_hf import FusionHierarchy, RegionSegmenter, StyleFusionPipeline
from stylefusion_hf.evaluation import channels, limit_curves, measuring, registry, sections
from stylefusion_hf.evaluation import measurement as core
from stylefusion_hf.evaluation.baselines import EditingInStyle, LocalChannels, RetrieveInStyle
from stylefusion_hf.evaluation.channels import fitting_batch
from stylefusion_hf.evaluation.evaluate import build_subject, measuring_size
from stylefusion_hf.evaluation.fusion_swaps import StyleFusionSwap
from stylefusion_hf.evaluation.gates import LearnedGates
from stylefusion_hf.evaluation.judges import Judges, PortraitJudge, portrait_channels
from stylefusion_hf.evaluation.limits import LimitSearch
from stylefusion_hf.evaluation.measuring import measure_jobs
from stylefusion_hf.evaluation.pairs import draw_pairs
from stylefusion_hf.evaluation.realism import realism_rows
from stylefusion_hf.evaluation.score import TrainingScore
from stylefusion_hf.models.discriminator import StyleGAN2Discriminator
from tests.planted import TREE
from tests.tiny import tiny_generator

RESOLUTION, BATCH, SIZE = 128, 2, 32


class Watched(RegionSegmenter):
    """A segmenter that writes down what it is shown: (pictures, pixels)."""

    def segment(self, images: torch.Tensor, return_features: bool = False):
        self.__dict__.setdefault("shown", []).append((len(images), images.shape[-1]))
        return super().segment(images, return_features)


def watched(seed: int) -> Watched:
    torch.manual_seed(seed)
    return Watched(regions=["right", "a", "b"], channels=[4, 4], groups=2).eval()


@pytest.fixture
def pipe() -> StyleFusionPipeline:
    g = tiny_generator(resolution=RESOLUTION, channels=[4] * 6)
    torch.manual_seed(0)
    sizes = {"conv_sizes": g.conv_sizes, "rgb_sizes": g.rgb_sizes, "num_indicators": 12}
    fusion = FusionHierarchy(TREE, padded_width=4, hidden_width=8, indicator_repeats=1, **sizes).eval()
    return StyleFusionPipeline(g, fusion, watched(0))


def test_what_counts_is_a_share_of_the_picture():
    assert [core.least_pixels(n, n) for n in (64, 128, 256, 1024)] == [8, 32, 128, 2048]
    assert core.least_pixels(8, 8) == 1
    assert [core.border_width(n) for n in (16, 64, 128, 256, 1024)] == [1, 1, 2, 4, 16]
    for n in (64, 256):  # a region of half the least area does not count at any size
        mask = torch.zeros(2, n, n, dtype=torch.bool)
        mask[0, 0, : n // 8], mask[1, : n // 64, : n // 8] = True, True
        assert core.is_counted(mask).tolist() == [n == 64, True]


def test_a_mask_is_widened_by_the_same_share_at_every_size():
    small, large = torch.zeros(1, 64, 64, dtype=torch.bool), torch.zeros(1, 256, 256, dtype=torch.bool)
    small[:, 20:30, 20:40], large[:, 80:120, 80:160] = True, True
    a, b = (core.changed_area(x, torch.zeros_like(x)) for x in (small, large))
    assert torch.equal(a.repeat_interleave(4, 1).repeat_interleave(4, 2), b)


def test_pictures_are_measured_at_a_size_of_their_own(pipe):
    subject = build_subject(pipe, Judges(watched(1), None, None, Path("planted")), batch=BATCH, size=SIZE)
    assert subject.ruler.look(torch.zeros(1, 3, RESOLUTION, RESOLUTION)).images.shape[-1] == SIZE
    x = torch.rand(2, 3, SIZE, SIZE) * 2 - 1
    assert torch.equal(subject.ruler.look(x).images, x)
    fine = x.repeat_interleave(4, 2).repeat_interleave(4, 3)
    coarse = core.at_measuring_size(fine, SIZE)
    assert (coarse - x).abs().mean() < 0.5 * x.abs().mean()
    assert core.at_measuring_size(fine, None) is fine


def test_the_measuring_size_is_the_smallest_that_model_and_judges_know():
    segmenter, portrait = watched(1), PortraitJudge(resolution=64, channels=[8] * 4, reduced=4, features=8)
    alone, with_portrait = (Judges(segmenter, p, None, Path("planted")) for p in (None, portrait))
    assert measuring_size(64, alone) == 64 and measuring_size(1024, alone) == 256
    assert measuring_size(1024, with_portrait) == 64 and measuring_size(1024, with_portrait, 128) == 128
    with pytest.raises(ValueError, match="measured at 16 to 64 pixels, not at 128"):
        measuring_size(64, alone, 128)
    with pytest.raises(ValueError, match="trained at 64 pixels, this model has 32"):
        measuring_size(32, with_portrait)


def test_rendered_avatars_are_large_enough_for_every_judge(pipe):
    """The discriminator may know larger pictures than those that are measured."""
    pytest.importorskip("python_avatars", reason="avatars need the extra `train`")
    pytest.importorskip("resvg_py", reason="avatars need the extra `train`")
    judge = StyleGAN2Discriminator(resolution=RESOLUTION, channels=[4] * 6, mbstd_channels=0).eval()
    subject = build_subject(pipe, Judges(watched(1), None, judge, Path("planted")), batch=BATCH, size=SIZE)
    rows = realism_rows(subject, 10, "avatars")["rows"]
    assert "below the 5th percentile" in rows["other real pictures"]
    assert {size for _, size in subject.judges.segmenter.shown} == {SIZE}


def test_the_training_score_reads_large_pictures_at_its_size(pipe):
    score = TrainingScore(pipe, samples=4, batch=BATCH, size=SIZE)
    base, source = score.describe_pairs(draw_pairs(pipe, 2, batch=BATCH))
    assert base.images.shape == (2, 3, SIZE, SIZE) and base.probs.shape == (2, 3, SIZE, SIZE)
    codes = base.codes.clone().requires_grad_()
    found = score(score.targets(base, source, torch.tensor([0, 1])), codes)
    assert float(found.outside.detach().abs().max()) < 1e-6
    found.transfer.sum().backward()
    assert codes.grad is not None and codes.grad.isfinite().all()


def test_a_large_model_is_evaluated_in_batches_that_bound_memory(pipe, monkeypatch):
    """Every network sees at most a batch at once, the judges at the measuring size, whatever is fitted on the way."""
    judges = Judges(watched(1), None, None, Path("planted"))
    monkeypatch.setattr(measuring, "HEAD_PAIRS", 2)
    monkeypatch.setattr(measuring, "GALLERY_SIZE", 3)
    monkeypatch.setattr(sections, "SOURCES", 3)
    rendered = []
    pipe.generator.synthesis.register_forward_pre_hook(lambda _, args: rendered.append(len(args[0])))
    subject = build_subject(pipe, judges, batch=BATCH, size=SIZE)
    score = TrainingScore(pipe, samples=3, batch=BATCH, size=SIZE)
    methods = {
        "stylefusion": StyleFusionSwap(pipe),
        "editing-in-style": EditingInStyle(pipe, samples=3, batch=BATCH),
        "retrieve-in-style": RetrieveInStyle(pipe, samples=3, batch=BATCH),
        "local-channels": LocalChannels(pipe, samples=3, batch=BATCH),
        "static-gates": LearnedGates(pipe, (1.0,), steps=1, batch=5, pool=4, score=score, chunk_size=BATCH),
    }
    jobs = [(name, "a", method.strengths[-1]) for name, method in methods.items()]
    found = measure_jobs(subject, methods, jobs, 3, thorough=True, specific=True, recognized=jobs)
    assert all(len(columns["outside"]) == 3 for columns in found.values())
    sections.diversity_rows(subject, 1)
    realism_rows(subject, 10, None)
    search = LimitSearch(pipe, draw_pairs(pipe, 3, batch=BATCH), ["a"], [1.0], score, chunk=BATCH)
    search.search("gate", steps=1)
    assert len(rendered) > 50
    assert max(rendered) == BATCH
    shown = pipe.segmenter.shown
    assert max(n for n, _ in shown) == BATCH and {size for _, size in shown} == {RESOLUTION}
    judged = judges.segmenter.shown
    assert max(n for n, _ in judged) == BATCH and {size for _, size in judged} == {SIZE}


def test_methods_are_fitted_in_the_batches_of_the_command(pipe):
    fitted = registry.build_methods(pipe, ["editing-in-style", "retrieve-in-style", "local-channels"], 3).values()
    assert all(method.batch == 3 for method in fitted)
    assert registry.build_methods(pipe, ["static-gates"], 3)["static-gates"].chunk_size == 3
    large = SimpleNamespace(generator=SimpleNamespace(mean_side=256))
    assert [fitting_batch(large, 32, batch) for batch in (None, 3, 100)] == [8, 3, 32]


class LargestOutput(TorchDispatchMode):
    """Records the size of the largest tensor that an operation computes; views and joined batches do not count."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        view = any(r.alias_info is not None for r in function._schema.returns)
        if isinstance(out, torch.Tensor) and not view and "aten.cat" not in str(function):
            self.numel = max(self.numel, out.numel())
        return out


def test_more_samples_take_no_larger_tensors(pipe, monkeypatch):
    """Whatever is computed at once depends on the batch, not on how many samples or pairs there are."""
    size = 64
    subject = build_subject(pipe, Judges(watched(1), None, None, Path("planted")), batch=BATCH, size=size)
    monkeypatch.setattr(limit_curves, "LARGEST_SIZE", size)
    monkeypatch.setattr(channels, "LARGEST_SIZE", size)
    largest = {}
    for count in (4, 40):
        with LargestOutput() as seen:
            TrainingScore(pipe, samples=count, batch=BATCH, size=size)
        largest["score", count] = seen.numel
        with LargestOutput() as seen:
            channels.energy_shares(pipe, count, BATCH)
        largest["energies", count] = seen.numel
        with LargestOutput() as seen:
            kept, judged = limit_curves.draw_small_pairs(subject, count)
        largest["limit pairs", count] = seen.numel
        assert kept.plain.shape == judged.base.images.shape == (count, 3, size, size)
        assert kept.base_probs.shape[2:] == (size, size)
    for name in ("score", "energies", "limit pairs"):
        assert largest[name, 40] == largest[name, 4], name


@pytest.mark.parametrize("size", [64, 128, 256])
def test_the_portrait_judges_field_grows_with_the_picture(size):
    """Each cell of the coarsest map sees at least half of the picture from its middle on, at any size."""
    levels = len(portrait_channels(size))
    judge = PortraitJudge(resolution=size, channels=[2] * levels, reduced=1, features=2, groups=1)
    assert judge.to_features.in_features == 8 * 8
    x = torch.rand(1, 3, size, size, requires_grad=True)
    y = judge.stem(x)
    for k, block in enumerate(judge.levels):
        block.norm1 = block.norm2 = torch.nn.Identity()  # statistics would see everything
        y = block(torch.nn.functional.avg_pool2d(y, 2) if k else y)
    y[:, :, 4, 4].sum().backward()
    seen = x.grad.abs().sum(dim=(0, 1)) > 0
    rows, columns = (int(seen.any(dim=d).sum()) for d in (1, 0))
    assert min(rows, columns) >= size / 2
