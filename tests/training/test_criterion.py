"""The fusion objective on a pipeline whose segmenter knows its map: what is right costs nothing, what is wrong 1."""

import pytest
import torch

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.training.choices import TERMS, Shares
from stylefusion_hf.training.criterion import Criterion
from stylefusion_hf.training.networks import FrozenNetworks
from stylefusion_hf.training.pool import RenderedPool
from stylefusion_hf.training.roles import Roles
from stylefusion_hf.training.samples import Sample
from stylefusion_hf.training.sampling import count_codes
from tests.planted import TREE, planted_pipeline

NAMES = ["a", "b", "right"]


@pytest.fixture(scope="module")
def pipe():
    return planted_pipeline()


def criterion(pipe, weights=None, features=("maps",), **settings) -> Criterion:
    torch.manual_seed(0)
    tree = RegionTree.of(TREE)
    weights = dict.fromkeys(TERMS, 1.0) if weights is None else weights
    networks = FrozenNetworks(
        pipe.generator, pipe.segmenter, [0, 1, 2], features=features, map_resolutions=(8, 16), keep_maps=True
    )
    codes = torch.randn(40, pipe.generator.style_dim)
    networks.calibrate(codes)
    roles = Roles.of(tree, NAMES, static="right")
    return Criterion(tree, roles, networks, RenderedPool.render(networks, codes), weights, **settings)


def assigned(c: Criterion, rows: int = 8, **numbers: int) -> Sample:
    """Samples of the pool with the base everywhere but in the named nodes."""
    index = torch.arange(rows)[:, None] + torch.arange(count_codes(c.tree)) * 2
    nodes = torch.zeros(rows, len(c.tree.nodes), dtype=torch.long)
    for name, number in numbers.items():
        nodes[:, c.tree.nodes.index(name)] = number
    return c.source.sample(index, nodes, torch.full((rows,), -1))


def losses(c: Criterion, sample: Sample, codes: torch.Tensor) -> dict[str, float]:
    with torch.no_grad():
        found, _ = c(sample, c.targets(sample), c.networks(codes))
    return {name: float(x) for name, x in found.items()}


def test_roles_come_from_the_tree():
    tree = RegionTree.preset("avatar")
    known = ["background", "skin", "clothes", "mouth", "eyes", "hair", "hat"]
    roles = Roles.of(tree, known)
    assert roles.names == known[:6]
    assert [known[i] for i in roles.pose] == ["skin", "mouth", "eyes"]
    assert roles.static == [0]
    groups = {node: tuple([known[i] for i in g] for g in pair) for node, *pair in roles.groups}
    assert groups == {
        "face": (["skin", "mouth"], ["eyes"]),
        "skin_mouth": (["mouth"], ["skin"]),
        "bg_hair_clothes": (["clothes"], ["hair"]),
        "bg_clothes": (["clothes"], ["skin", "mouth", "eyes"]),  # the background does not move
    }
    assert Roles.of(tree, known, pose="eyes, mouth", static="").pose == [4, 3]


def test_nothing_swapped_costs_nothing(pipe):
    c = criterion(pipe)
    sample = assigned(c)
    found = losses(c, sample, c.pool.codes[sample.base])
    for name in ("outside", "looks", "transfer", "pose", "layout"):
        assert found[name] == pytest.approx(0, abs=1e-5), name
    assert found["locality"] < 1e-2  # the pool keeps its pictures in 8 bits


@pytest.mark.parametrize("features", [("maps",), ("texture",), ("maps", "texture")])
def test_a_swap_is_measured_from_0_to_1(pipe, features):
    c = criterion(pipe, features=features)
    sample = assigned(c, rows=20, a=1)
    assert sample.single.all()
    assert torch.equal(sample.counted[0], torch.tensor([True, False, False]))
    source = sample.owners[:, 0]
    nothing = losses(c, sample, c.pool.codes[sample.base])
    everything = losses(c, sample, c.pool.codes[source])
    assert nothing["outside"] == pytest.approx(0, abs=0.05)
    assert nothing["looks"] == pytest.approx(1, abs=0.25)  # relative to a mean over other pairs
    assert nothing["transfer"] == pytest.approx(1, abs=0.15)
    assert everything["outside"] == pytest.approx(1, abs=0.3)
    around = float(c.scales.outside[0] / c.scales.inside[0])  # what is around the region, in units of what is in it
    assert around > 1 and nothing["leak"] == pytest.approx(0, abs=0.05 * around)
    assert everything["leak"] == pytest.approx(around, rel=0.3)
    assert everything["looks"] < 0.4  # not 0: only codes of the same pose would look the same
    assert everything["transfer"] < 0.3
    assert everything["locality"] == pytest.approx(1, abs=0.15)


def test_the_frame_is_the_roots_and_the_looks_are_the_leaves(pipe):
    c = criterion(pipe)
    sample = assigned(c, all=3)
    assert torch.equal(sample.frame, sample.base + 6)
    assert (sample.owners == sample.base[:, None]).all()
    assert sample.counted.all()
    assert not sample.changed.any()
    assert losses(c, sample, c.pool.codes[sample.base + 1])["outside"] == 0  # nothing to compare with
    still, moved = (losses(c, sample, c.pool.codes[i])["pose"] for i in (sample.frame, sample.base))
    assert still < 1e-5 < moved


def test_a_twins_reference_is_its_partner(pipe):
    c = criterion(pipe)
    drawn = c.draw(40, torch.Generator().manual_seed(0), Shares(codes=(0, 0, 0, 1), inner=(0, 0.5, 0.5, 0), twin=1.0))
    twins = (drawn.twin >= 0).nonzero()[:, 0]
    assert len(twins) == 20
    assert (drawn.changed[twins].sum(dim=1) == 1).all()
    assert (drawn.nodes[twins] != drawn.nodes[twins - 1]).sum(dim=1).max() == 1
    mixes = {n: x.clone() for n, x in c.codes(drawn).items()}
    same = mixes["a"] * 1.0
    same[twins] = same[twins - 1]  # nets that take no notice of the leaf that differs
    assert losses(c, drawn, same)["outside"] == pytest.approx(0, abs=1e-6)
    assert losses(c, drawn, c.pool.codes[: len(same)])["outside"] > 0.3


def test_aligned_references_are_the_nets_own_pictures(pipe):
    c = criterion(pipe, reference="aligned")
    sample = assigned(c, rows=6, a=1, all=2)
    seen = []

    def fuse(codes):
        seen.append(codes)
        return codes["a"]

    t = c.targets(sample, fuse)
    assert len(seen) == 1
    assert len(seen[0]["a"]) == 12  # each code of a sample once, not once a region
    assert torch.equal(seen[0]["a"], seen[0]["right"])
    for region in range(3):
        torch.testing.assert_close(
            t.looks["colour"][:, region], c.pool.looks["colour"][sample.owners[:, region], region], atol=1e-5, rtol=0
        )
    assert t.picture is not None
    owner = sample.owners[0, 0]
    torch.testing.assert_close(t.picture[0, :, :, 2], c.pool.pictures(owner[None])[0, :, :, 2], atol=0.01, rtol=0)


def test_terms_without_weight_are_not_computed_and_unknown_ones_refused(pipe):
    c = criterion(pipe, weights={"outside": 2.0, "looks": 1.0})
    found = losses(c, assigned(c, a=1), c.pool.codes[:8])
    assert set(found) == {"outside", "looks"}
    total = float(c.total({k: torch.tensor(v) for k, v in found.items()}))
    assert total == pytest.approx(2 * found["outside"] + found["looks"])
    with pytest.raises(ValueError, match="unknown term 'beauty'"):
        criterion(pipe, weights={"beauty": 1.0})
    with pytest.raises(ValueError, match="unknown reference 'mirrored'"):
        criterion(pipe, reference="mirrored")
    networks = FrozenNetworks(pipe.generator, pipe.segmenter, [0, 1, 2], map_resolutions=(128,))
    with pytest.raises(ValueError, match="no maps of"):
        networks.calibrate(torch.randn(4, pipe.generator.style_dim))
