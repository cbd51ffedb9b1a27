"""Measurements on a rectangular model with transparency, judged by networks of the same shape."""

from pathlib import Path

import pytest
import torch

from stylefusion_hf import RegionSegmenter, StyleFusionPipeline, StyleGAN2Discriminator
from stylefusion_hf.evaluation import sections
from stylefusion_hf.evaluation.curves import local_rows, sweep
from stylefusion_hf.evaluation.evaluate import build_subject
from stylefusion_hf.evaluation.judges import Judges
from stylefusion_hf.evaluation.measuring import Subject
from stylefusion_hf.evaluation.registry import build_methods
from tests.tiny import tiny_fusion, tiny_generator

SHAPE = {"resolution": 24, "base_size": [3, 5], "img_channels": 4}
REGIONS = ["mouth", "skin", "hair"]


def segmenter(seed: int) -> RegionSegmenter:
    torch.manual_seed(seed)
    return RegionSegmenter(regions=REGIONS, channels=[4, 4], groups=2, img_channels=4).eval()


@pytest.fixture(scope="module")
def subject() -> Subject:
    g = tiny_generator(**SHAPE)
    torch.manual_seed(0)
    judge = StyleGAN2Discriminator(channels=[8] * 4, mbstd_channels=0, **SHAPE).eval()
    pipe = StyleFusionPipeline(g, tiny_fusion(g, "all*(face*(mouth, skin), hair)"), segmenter(0))
    return build_subject(pipe, Judges(segmenter(1), None, judge, Path("planted")), batch=4)


def test_pictures_are_measured_whole(subject: Subject) -> None:
    assert subject.ruler.look(torch.zeros(2, 4, 24, 40)).images.shape == (2, 4, 24, 40)


def test_curves(subject: Subject) -> None:
    methods = build_methods(subject.pipe, ["stylefusion", "mean", "interpolation"])
    for method in methods.values():
        method.strengths = (0.5, 1.0)
    validated = {}
    found = sweep(subject, methods, 2, 3, validated.update)
    assert set(found.curves) == set(validated) == set(methods)
    chosen = {leaf: curve.strengths for leaf, curve in found.curves["stylefusion"].items()}
    assert {leaf: curve.strengths for leaf, curve in validated["stylefusion"].items()} == chosen
    for by_leaf in found.curves.values():
        assert set(by_leaf) == set(REGIONS) and all(curve.points() for curve in by_leaf.values())
    rows = local_rows(found, 3)
    assert rows["stylefusion"]["outside"].value >= 0


def test_swaps(subject: Subject) -> None:
    swaps = sections.swap_rows(subject, 4, thorough=False)
    assert swaps and all(rows for rows in swaps.values())
