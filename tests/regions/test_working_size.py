"""Large generators: regions are found on previews, never on a batch of full pictures, and hold on both sizes."""

import json

import pytest
import torch
import torch.nn.functional as F

from stylefusion_hf import MobileStyleGANGenerator, RegionSegmenter
from stylefusion_hf.cli import main
from stylefusion_hf.regions import discovery, few_shot, folders
from stylefusion_hf.regions.working_size import working_size
from tests.command_line import fails
from tests.tiny import tiny_generator, tiny_mobile_generator

SMALL = {"samples": 12, "steps": 2, "progress": False, "clusters": 6, "trials": 2, "num_regions": 2, "min_area": 0.0}
CHANNELS = [8, 8, 8, 8, 8, 8, 4, 4]  # 4 to 512 px: pictures of 1024


@pytest.fixture
def large() -> MobileStyleGANGenerator:
    g = tiny_mobile_generator(resolution=512, channels=CHANNELS[:7], use_noise=False, preview_resolutions=[128])
    torch.nn.init.normal_(g.synthesis.previews["128"].weight)
    return g.eval().requires_grad_(False)


@pytest.fixture
def sizes(monkeypatch) -> list[tuple[int, int | None]]:
    """The batch and `up_to` of every rendering."""
    seen: list[tuple[int, int | None]] = []
    kind = type(tiny_mobile_generator().synthesis)
    plain = kind.forward

    def forward(self, s, *args, up_to=None, **settings):
        seen.append((len(s), up_to))
        return plain(self, s, *args, up_to=up_to, **settings)

    monkeypatch.setattr(kind, "forward", forward)
    return seen


def test_small_generators_work_on_full_pictures_and_large_ones_on_previews(large) -> None:
    assert working_size(tiny_generator()) == 32
    assert working_size(tiny_generator(), 16) == 16
    assert working_size(large) == 128
    assert working_size(large, 512) == 512
    assert working_size(large, layers=[8, 64]) == 128


def test_a_missing_preview_is_fitted(monkeypatch) -> None:
    g = tiny_mobile_generator(resolution=512, channels=CHANNELS[:7])
    calls = []
    monkeypatch.setattr(type(g), "fit_preview", lambda self, size: calls.append(size))
    assert working_size(g) == 128 and calls == [128]


@pytest.mark.parametrize(("asked", "layers"), [(48, ()), (8, ()), (1024, ()), (16, (32,))])
def test_sizes_that_are_refused(large, asked, layers) -> None:
    with pytest.raises(ValueError, match=f"a working size of {asked} px: choose from .*512"):
        working_size(large, asked, layers)


def test_discovery_and_distillation_render_previews(large, sizes, tmp_path) -> None:
    folder = folders.find_regions(tmp_path / "regions", large, **SMALL)
    batches = [batch for batch, size in sizes if size is None]
    assert max(batches) <= 4 and any(size == 128 for _, size in sizes)
    report = json.loads((folder / "regions.json").read_text())
    assert report["resolution"] == 128
    assert 0 <= report["IoU of segmenter with what it learned from"]["mean on full pictures"] <= 1
    segmenter = RegionSegmenter.from_pretrained(folder / "segmenter")
    assert segmenter.config.resolution == 128
    assert segmenter.segment(torch.zeros(1, 3, 512, 512)).shape == (1, 2, 512, 512)


def test_painted_regions_are_learned_on_previews(large, sizes, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(few_shot, "FINEST", 32)
    paint = few_shot.PaintFolder.create(tmp_path / "painted", large, ["up", "down"], 2)
    for seed in paint.seeds:
        labels = paint.labels(seed)
        labels[:200], labels[300:] = 0, 1
        paint.paint(seed, labels)
    sizes.clear()
    found = few_shot.learn(large, paint, progress=False)
    assert {size for _, size in sizes} == {128}
    maps = few_shot.predict_labels(large, found.labeller, discovery.sample_codes(large, 2, torch.Generator()))
    assert maps.shape == (2, 512, 512)


def test_a_segmenter_of_previews_says_the_same_of_full_pictures() -> None:
    torch.manual_seed(0)
    small = RegionSegmenter(["a", "b"], channels=[8, 8], resolution=16).eval()
    images = torch.randn(2, 3, 16, 16)
    large = F.interpolate(images, scale_factor=4, mode="nearest")
    with torch.no_grad():
        logits, features = small.segment(images, return_features=True)
        again, same = small.segment(large, return_features=True)
    torch.testing.assert_close(features, same)
    assert again.shape == (2, 2, 64, 64)
    torch.testing.assert_close(F.avg_pool2d(again, 4)[..., 1:-1, 1:-1], logits[..., 1:-1, 1:-1], rtol=0.3, atol=0.3)
    assert small.segment(torch.zeros(1, 3, 24, 40)).shape == (1, 2, 24, 40)
    plain = RegionSegmenter(["a", "b"], channels=[8, 8])
    assert plain.segment(torch.zeros(1, 3, 24, 40)).shape == (1, 2, 24, 40)
    with pytest.raises(ValueError, match="resolution must be above 0"):
        RegionSegmenter(["a", "b"], channels=[8, 8], resolution=0)


def test_long_features_are_projected_and_regions_stay_the_same(monkeypatch) -> None:
    g = tiny_generator(use_noise=False)
    how = {"samples": 16, "clusters": 6, "trials": 2, "num_regions": 2, "min_area": 0.0, "progress": False}
    plain = discovery.discover(g, **how)
    monkeypatch.setattr(discovery, "MOST_DIMENSIONS", 8)
    monkeypatch.setattr(discovery, "KEPT_DIMENSIONS", 20)
    projected = discovery.discover(g, **how)
    codes = discovery.sample_codes(g, 8, torch.Generator().manual_seed(5))
    with torch.no_grad():
        _, maps = g.synthesis(codes, return_features=True)
    a, b = (found.labeller.label(maps).argmax(1) for found in (plain, projected))
    agreement = float((a == b).float().mean())
    assert max(agreement, 1 - agreement) > 0.9


def test_the_command_takes_a_size(tmp_path, capsys) -> None:
    tiny_generator(use_noise=False).save_pretrained(tmp_path / "model" / "generator")
    flags = ("--model", str(tmp_path / "model"), "--samples", "12", "--steps", "2", "--clusters", "6")
    flags += ("--num-regions", "2", "--min-area", "0")
    given = ["regions", "discover", *flags, "--out", str(tmp_path / "r"), "--layers", "8,16", "--resolution", "16"]
    assert main(given) == 0
    assert RegionSegmenter.from_pretrained(tmp_path / "r" / "segmenter").config.resolution == 16
    wrong = (*flags, "--out", str(tmp_path / "q"), "--resolution", "20")
    assert "a working size of 20 px: choose from" in fails(capsys, "regions", "discover", *wrong)
