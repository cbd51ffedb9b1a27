"""`train fusion --max_train_steps 0`: measured constant gates, an ordinary folder, no training."""

import json

import pytest
import torch

from stylefusion_hf import FusionHierarchy, StyleFusionPipeline
from stylefusion_hf.training import fusion, start_gates
from stylefusion_hf.training.networks import FrozenNetworks
from tests.planted import PlantedSegmenter, planted_pipeline
from tests.tiny import assert_same_weights, tiny_generator, tiny_mobile_generator, tiny_segmenter
from tests.training.test_fusion_training import fusion_args, save_base

ZERO = ("--max_train_steps", "0", "--start_pictures", "6")


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_base(tmp_path_factory.mktemp("base"))


def test_a_folder_of_measured_gates_is_an_ordinary_one(base, tmp_path) -> None:
    fusion.train(fusion_args(base, tmp_path / "a", *ZERO))
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "a")
    assert pipe(base=1, regions={"hair": 2}).images[0].size == (32, 32)
    assert (tmp_path / "a" / "samples" / "000000.png").is_file()
    assert not list((tmp_path / "a").glob("checkpoint-*"))
    assert json.loads((tmp_path / "a" / "arguments.json").read_text())["max_train_steps"] == 0
    card = (tmp_path / "a" / "README.md").read_text()
    assert "measured" in card and "Trained" not in card and "| `--learning_rate`" not in card
    nets = pipe.fusion
    torch.manual_seed(0)
    codes = {name: torch.randn(4, nets.style_width) for name in nets.tree.nodes}
    for gates in nets.gates(codes).values():
        assert ((gates > 0) & (gates < 1)).all() and float(gates.detach().std()) > 0.01
    for net in nets.nets.values():  # constants, and what depends on novelty: no MLP takes part
        assert not net.blender_segments.layers[-1].weight.any()
        assert net.blender_segments.adaptive is not None and not net.blender_segments.adaptive.any()
    fusion.train(fusion_args(base, tmp_path / "b", *ZERO))
    assert_same_weights(tmp_path / "a" / "fusion", tmp_path / "b" / "fusion")


def test_measuring_and_training_start_from_the_same_pictures_and_gates_follow_what_was_changed(base, tmp_path) -> None:
    fusion.train(fusion_args(base, tmp_path / "a", *ZERO))
    nets = FusionHierarchy.from_pretrained(tmp_path / "a" / "fusion")
    tree = nets.tree
    for leaf in tree.leaves:
        torch.manual_seed(1)
        a, b = torch.randn(2, 1, nets.style_width)
        passed = (nets.fuse({n: b if n == leaf else a for n in tree.nodes}) - a) / (b - a)
        assert float(passed.detach().mean()) > 0.05  # through every level of the tree
        others = [nets.fuse({n: b if n == other else a for n in tree.nodes}) for other in tree.leaves if other != leaf]
        assert all(not torch.allclose(a + passed * (b - a), other) for other in others)


def test_a_channel_goes_to_the_region_that_it_drives() -> None:
    pipe = planted_pipeline()
    energies = torch.tensor([[9.0], [1.0], [0.0]]).expand(3, pipe.generator.style_dim).clone()
    energies[:, 0] = 0  # drives nothing
    nets = FusionHierarchy.for_generator(pipe.generator, pipe.fusion.tree, gate_bias=True, gate_novelty=True)
    start_gates.start_gates(nets, energies, ["a", "b", "right"], novelty=1.5)
    torch.manual_seed(0)
    base, source = torch.randn(2, 1, nets.style_width)
    codes = {"a": base, "b": source, "left": base, "right": base, "all": base}
    gate = nets.gates(codes)["left"]
    constant = torch.tensor(0.25).logit()  # of the square roots, 1 / (3 + 1)
    torch.testing.assert_close(gate[0, 5], torch.sigmoid(constant + 1.5), rtol=0.02, atol=0.01)
    torch.testing.assert_close(gate[0, 0], torch.sigmoid(torch.tensor(1.5)), rtol=0.02, atol=0.01)


def test_large_generators_differentiate_few_full_pictures(monkeypatch) -> None:
    g = tiny_generator(use_noise=False)
    networks = FrozenNetworks(g, PlantedSegmenter(), [0, 1, 2], resolution=16)
    networks.segmenter = SizedPlanted()
    codes = g.to_style(torch.randn(12, 16)).detach()
    seen = []
    plain = type(g.synthesis).forward

    def forward(self, s, *args, up_to=None, **settings):
        seen.append((len(s), up_to, s.requires_grad))
        return plain(self, s, *args, up_to=up_to, **settings)

    monkeypatch.setattr(type(g.synthesis), "forward", forward)
    monkeypatch.setattr(start_gates, "LARGE", 16)
    energies = start_gates.measure_energies(networks, codes, batch=4, full_batch=1)
    assert sum(n for n, up_to, grad in seen if up_to is None and grad) == start_gates.FULL_PICTURES
    assert (energies[:, start_gates.beyond(g, 16)] > 0).any()


class SizedPlanted(PlantedSegmenter):
    """The planted map at the pictures' size."""

    def segment(self, images: torch.Tensor) -> torch.Tensor:
        logits = super().segment(torch.zeros(len(images), 1, 32, 32))
        return torch.nn.functional.adaptive_avg_pool2d(logits, images.shape[-1])


def test_pictures_that_show_every_region_come_first() -> None:
    shares = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.1, 0.9]])
    assert start_gates.showing_all(shares).tolist() == [1, 2, 0]


def test_a_mobile_generator_is_measured_on_previews_with_regions_found(tmp_path) -> None:
    tiny_mobile_generator(use_noise=False).save_pretrained(tmp_path / "generator")
    tiny_segmenter().save_pretrained(tmp_path / "segmenter")
    fusion.train(fusion_args(tmp_path, tmp_path / "run", *ZERO, "--train_resolution", "16"))
    pipe = StyleFusionPipeline.from_pretrained(tmp_path / "run")
    assert 16 in pipe.generator.picture_sizes
    assert pipe(base=1, regions={"hair": 2}).images[0].size == (32, 32)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--max_train_steps", "-1"), "--max_train_steps must be at least 0, got -1"),
        (("--max_train_steps", "0", "--start_pictures", "1"), "--start_pictures must be at least 2"),
        (("--max_train_steps", "0", "--resume_from_checkpoint", "latest"), "--max_train_steps 0 trains nothing"),
    ],
)
def test_what_does_not_go_with_measuring_is_refused(base, tmp_path, flags, message) -> None:
    with pytest.raises(ValueError, match=message):
        fusion.train(fusion_args(base, tmp_path, *flags))
