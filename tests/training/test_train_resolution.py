"""Training at a resolution below the generator's: pictures, gates beyond it, the segmenter's size, the last phase."""

import pytest
import torch
from accelerate.state import AcceleratorState
from torch.torch_version import TorchVersion

from stylefusion_hf import FusionHierarchy, RegionSegmenter, StyleFusionPipeline
from stylefusion_hf.models.fusion.net import fuse_reference
from stylefusion_hf.models.sampling import draw_codes
from stylefusion_hf.models.segmenter import receptive_field, segmenter_channels
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.regions import distillation
from stylefusion_hf.training import fusion, fusion_setup
from stylefusion_hf.training.networks import FrozenNetworks, training_resolution
from stylefusion_hf.training.start_gates import beyond, measure_energies
from tests.planted import COLUMNS
from tests.tiny import (
    assert_same_weights,
    saved_weights,
    tiny_fusion,
    tiny_generator,
    tiny_mobile_generator,
    tiny_segmenter,
)
from tests.training.test_fusion_training import fusion_args, save_base


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def distillations(monkeypatch):
    """The settings of every distillation, which take two steps here: an untrained segmenter agrees with nothing."""
    made = []

    def distil(*given, **settings):
        made.append(settings)
        return distillation.distil(*given, samples=12, steps=2, batch=4, progress=False, **settings)

    monkeypatch.setattr(fusion_setup, "distil", distil)
    return made


def test_the_default_is_at_most_256():
    sizes = [4, 8, 16, 32, 64, 128, 256, 512, 1024]
    assert training_resolution(None, sizes) == 256
    assert training_resolution(None, sizes[:5]) == 64
    assert training_resolution(128, sizes) == 128
    assert training_resolution(8, [4, 8]) == 8
    for wrong in (48, 8, 2048, 0):
        with pytest.raises(ValueError, match=f"--train_resolution {wrong}: this generator makes pictures of 16, 32"):
            training_resolution(wrong, sizes)


def test_it_trains_below_the_generators_size_and_resumes_to_the_bit(base, tmp_path):
    flags = ("--train_resolution", "16", "--static_steps", "1", "--full_resolution_steps", "1")
    fusion.train(fusion_args(base, tmp_path / "whole", *flags, "--max_train_steps", "3"))
    halves = (*flags, "--max_train_steps", "3", "--checkpointing_steps", "2")
    fusion.train(fusion_args(base, tmp_path / "halves", *halves))
    (tmp_path / "halves" / "checkpoint-3").rename(tmp_path / "gone")
    fusion.train(fusion_args(base, tmp_path / "halves", *halves, "--resume_from_checkpoint", "latest"))
    assert_same_weights(tmp_path / "whole" / "fusion", tmp_path / "halves" / "fusion")
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "whole")
    assert pipe(base=1, regions={"hair": 2}).images[0].size == (32, 32)


def test_gates_beyond_it_stay_as_they_were_measured_but_for_the_last_phase(base, tmp_path):
    flags = ("--train_resolution", "16", "--static_steps", "0", "--no-use_ema")
    found = {}
    for name, more in (
        ("start", ("--max_train_steps", "1", "--gate_learning_rate", "1e-12", "--learning_rate", "1e-12")),
        ("low", ("--max_train_steps", "4")),
        ("full", ("--max_train_steps", "4", "--full_resolution_steps", "2")),
    ):
        fusion.train(fusion_args(base, tmp_path / name, *flags, *more))
        found[name] = FusionHierarchy.from_pretrained(tmp_path / name, subfolder="fusion")
    g = tiny_generator(use_noise=False)
    high = beyond(g, 16)
    assert high.sum() == 24  # two convolutions and a toRGB layer of 8 channels at 32 px
    torch.manual_seed(0)
    codes = {name: torch.randn(6, g.style_dim) for name in found["low"].tree.nodes}
    for node, gates in found["low"].gates(codes).items():
        start = found["start"].gates(codes)[node]
        torch.testing.assert_close(gates[:, high], start[:, high], atol=1e-6, rtol=0)  # as measured
        assert torch.allclose(gates[:, high], gates[:1, high].expand(6, -1), atol=1e-6)  # constant
        assert (gates[:, ~high] - gates[:1, ~high]).abs().max() > 1e-4
        trained = found["full"].gates(codes)[node]
        assert (trained[:, high] - start[:, high]).abs().max() > 1e-3


def test_constant_rows_are_those_of_the_plain_reference():
    g = tiny_generator()
    nets = tiny_fusion(
        g, gate_bias=True, gate_product=True, gate_novelty=True, adaptive_conv_layers=3, adaptive_rgb_layers=2
    )
    s0, s1, common = torch.randn(3, 5, g.style_dim)
    for name in nets.tree.fused:
        for given in ((s0, s1, common), (s0, s1, None), (s0, None, common)):
            wanted = fuse_reference(nets.net(name), nets.spec, *given)
            torch.testing.assert_close(nets.blend(name, *given), wanted, atol=1e-5, rtol=1e-4)
    again = FusionHierarchy.from_config(nets.config)
    again.load_state_dict(nets.state_dict())  # which rows are constant is config, not weights
    torch.testing.assert_close(again.blend("all", s0, s1, common), nets.blend("all", s0, s1, common))


def test_constant_rows_need_a_bias():
    g = tiny_generator()
    with pytest.raises(ValueError, match="need gate_bias=True"):
        tiny_fusion(g, adaptive_conv_layers=2)
    with pytest.raises(ValueError, match="adaptive_rgb_layers is an integer from 0"):
        tiny_fusion(g, adaptive_rgb_layers=-1)


class Sized(torch.nn.Module):
    """Knows the columns of `tests.planted` on pictures of one size (or of any), and else sees one region."""

    def __init__(self, size: int | None):
        super().__init__()
        self.size = size

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        width = images.shape[-1]
        column = torch.arange(3).repeat_interleave(torch.tensor([c * width // 32 for c in COLUMNS.values()]))
        planted = torch.nn.functional.one_hot(column, 3).float()
        if self.size not in (None, width):
            planted = torch.nn.functional.one_hot(torch.zeros_like(column), 3).float()
        return 9 * planted.T[:, None].expand(len(images), -1, width, -1)


@pytest.mark.parametrize(("size", "chosen"), [(None, 8), (32, 32)])
def test_the_segmenter_sees_pictures_at_the_smallest_size_at_which_it_agrees_with_itself(size, chosen):
    networks = FrozenNetworks(tiny_generator(), Sized(size), [0, 1, 2], resolution=8)
    assert networks.choose_segmenter_resolution(torch.randn(6, networks.generator.style_dim)) == pytest.approx(1)
    assert networks.segmenter_resolution == chosen
    found = networks(torch.randn(2, networks.generator.style_dim))
    assert found.images.shape == (2, 3, 8, 8)
    assert found.probs.argmax(dim=1)[0, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2]


def test_a_segmenter_that_cannot_make_out_training_pictures_is_distilled(
    base, tmp_path, monkeypatch, caplog, distillations
):
    monkeypatch.setattr(fusion_setup, "LEAST_AGREEMENT", 1.1)
    caplog.set_level("INFO")
    flags = ("--train_resolution", "16", "--max_train_steps", "2", "--checkpointing_steps", "1")
    fusion.train(fusion_args(base, tmp_path / "run", *flags))
    assert [settings["resolution"] for settings in distillations] == [16]
    assert "distilling one for them" in caplog.text
    student = RegionSegmenter.from_pretrained(tmp_path / "run" / "segmenter-16px")
    teacher = RegionSegmenter.from_pretrained(tmp_path / "run", subfolder="segmenter")
    assert student.config.regions == teacher.config.regions
    assert list(teacher.config.channels) == [4, 4]  # the pipeline keeps its own
    (tmp_path / "run" / "checkpoint-2").rename(tmp_path / "gone")
    weights = saved_weights(tmp_path / "run" / "fusion")
    fusion.train(fusion_args(base, tmp_path / "run", *flags, "--resume_from_checkpoint", "latest"))
    assert len(distillations) == 1
    again = saved_weights(tmp_path / "run" / "fusion")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


def test_energies_beyond_the_training_resolution_come_from_full_pictures():
    g = tiny_generator(use_noise=False)
    networks = FrozenNetworks(g, Sized(None), [0, 1, 2], resolution=16)
    codes = g.to_style(torch.randn(48, 16)).detach()
    energies = measure_energies(networks, codes, batch=5, full_batch=3)
    high = beyond(g, 16)
    assert energies.shape == (3, g.style_dim)
    assert (energies[:, high] > 0).any()
    whole = measure_energies(networks, codes, batch=48, full_batch=48)
    torch.testing.assert_close(energies, whole, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("size", [64, 128, 256, 512, 1024])
def test_a_segmenter_sees_half_of_its_picture(size):
    widths = segmenter_channels(size)
    assert receptive_field(len(widths)) >= size / 2
    model = RegionSegmenter(channels=widths)
    assert sum(p.numel() for p in model.parameters()) < 2e6
    assert max(widths) <= 96
    if size == 64:
        assert widths == [16, 32, 64, 96]  # as ever
    if size > 256:
        return  # the formula is held by the smaller ones
    narrow = RegionSegmenter(channels=[2] * len(widths), groups=1)
    for block in (*narrow.down, *narrow.up):
        block.norm1 = block.norm2 = torch.nn.Identity()  # which see the whole picture, but only its mean
        for conv in (block.conv1, block.conv2):
            torch.nn.init.ones_(conv.weight)
    images = torch.zeros(1, 3, size, size, requires_grad=True)
    narrow.segment(images)[0, 0, size // 2, size // 2].backward()
    seen = (images.grad != 0).any(dim=1)[0].any(dim=0).sum()
    assert seen >= min(size, size / 2)


def test_a_mobile_generator_trains_on_its_own_previews(tmp_path):
    g = tiny_mobile_generator(use_noise=False)
    g.save_pretrained(tmp_path / "generator")
    tiny_segmenter().save_pretrained(tmp_path / "segmenter")
    size = 16
    assert size not in g.picture_sizes
    flags = ("--train_resolution", str(size), "--max_train_steps", "2", "--static_steps", "0", "--features", "maps")
    fusion.train(fusion_args(tmp_path, tmp_path / "run", *flags))
    nets = FusionHierarchy.from_pretrained(tmp_path / "run", subfolder="fusion")
    g = StyleGenerator.from_pretrained(tmp_path / "run", subfolder="generator")
    assert g.picture_sizes == [16, 32]
    high = beyond(g, size)
    assert high.sum() == g.rgb_sizes[0]  # the layer that makes full pictures has no part in those of the head
    torch.manual_seed(0)
    codes = {name: torch.randn(4, g.style_dim) for name in nets.tree.nodes}
    for gates in nets.gates(codes).values():
        assert torch.allclose(gates[:, high], gates[:1, high].expand(4, -1), atol=1e-6)


@pytest.fixture
def new_precision():
    """accelerate keeps the first precision of a process."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


@pytest.mark.usefixtures("new_precision")
def test_bf16_trains(base, tmp_path):
    flags = ("--mixed_precision", "bf16", "--max_train_steps", "2", "--static_steps", "0")
    fusion.train(fusion_args(base, tmp_path / "half", *flags))
    nets = FusionHierarchy.from_pretrained(tmp_path / "half", subfolder="fusion")
    assert all(p.dtype == torch.float32 and p.isfinite().all() for p in nets.parameters())


def test_training_pictures_are_drawn_in_the_asked_precision():
    g = tiny_generator(resolution=32).requires_grad_(False)
    networks = FrozenNetworks(g, tiny_segmenter(), order=[0, 1, 2], resolution=32, dtype=torch.bfloat16)
    networks.calibrate(codes := draw_codes(g, 4, torch.Generator().manual_seed(0), 0.5, 0.2))
    exact, _ = networks.render(codes)
    low, maps = networks.render(s := codes.clone().requires_grad_())
    most = 0.1 if TorchVersion(torch.__version__) >= "2.7" else 0.11  # torch 2.6 rounds a little more
    assert 1e-4 < (low - exact).abs().max() < most  # not the same numbers, and the same pictures
    probs = networks.segment(low)
    assert low.dtype == probs.dtype == maps[16].dtype == torch.float32
    probs.square().sum().backward()
    assert s.grad.isfinite().all() and s.grad.abs().sum() > 0
    assert {p.dtype for p in g.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--train_resolution", "24"), "--train_resolution 24: this generator makes pictures of 16, 32 px"),
        (("--train_resolution", "16", "--segmenter_resolution", "4"), "--segmenter_resolution must be at least 16"),
        (("--full_resolution_steps", "-1"), "--full_resolution_steps is from 0"),
        (("--memory_gib", "0"), "--memory_gib must be at least 0.5"),
        (("--start_pictures", "1"), "--start_pictures must be at least 2"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(base, tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        fusion.train(fusion_args(base, tmp_path, *flags, "--max_train_steps", "2"))
