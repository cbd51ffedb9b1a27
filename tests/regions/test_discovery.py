"""Regions found in a generator's features: parts on data whose answer is known, the whole on the embedded model."""

import itertools
import json
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from benchmarks.regions import matched as matched_iou
from stylefusion_hf import RegionSegmenter, RegionTree, StyleFusionPipeline, StyleGAN2Generator
from stylefusion_hf.cli import main
from stylefusion_hf.evaluation.judges import load_judges
from stylefusion_hf.models.labeller import FeatureLabeller, describe
from stylefusion_hf.regions import clustering, discovery, folders
from stylefusion_hf.regions.distillation import distil
from stylefusion_hf.regions.naming import moving_together, named_tree, touching
from stylefusion_hf.training import fusion
from tests.tiny import tiny_generator


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- Clusters --------------------------------------------------------------------------------------------------------


def test_kmeans_finds_planted_directions():
    draw = seeded()
    centres = F.normalize(torch.randn(5, 32, generator=draw), dim=1)
    member = torch.randint(5, (600,), generator=draw)
    x = F.normalize(centres[member] + 0.1 * torch.randn(600, 32, generator=draw), dim=1)
    found = clustering.spherical_kmeans(x, 5, draw)
    assert torch.allclose(found.norm(dim=1), torch.ones(5))
    matched = (found @ centres.t()).argmax(1)
    assert sorted(matched.tolist()) == list(range(5))
    assert torch.equal(matched[(x @ found.t()).argmax(1)], member)


def test_colour_agreement_is_the_correlation_by_hand():
    draw = seeded()
    colours = torch.rand(40, 60, 3, generator=draw)
    nearest = torch.arange(60).remainder(4).expand(40, 60).contiguous()
    colours[:, nearest[0] == 1] = colours[:, nearest[0] == 0]  # 1 has 0's color in every picture
    nearest[:, nearest[0] == 3] = 2  # and 3 is never there
    found = clustering.colour_agreement(colours, nearest, 4)
    mean = torch.stack([colours[:, nearest[0] == c].mean(1) for c in range(3)], 1)
    for a, b in itertools.product(range(3), range(3)):
        same = (mean[:, a] - mean[:, b]).square().sum(1).mean()
        pairs = [(n, m) for n in range(40) for m in range(40) if n != m]
        other = torch.stack([(mean[n, a] - mean[m, b]).square().sum() for n, m in pairs]).mean()
        assert float(found[a, b]) == pytest.approx(float(1 - same / other), abs=1e-4)
    assert float(found[0, 1]) == pytest.approx(1, abs=1e-5) and abs(float(found[0, 2])) < 0.5
    assert found[3].eq(0).all()


def test_what_never_meets_in_one_place_stands_for_each_other():
    nearest = torch.zeros(10, 8, dtype=torch.long)
    nearest[:, 4:] = 3
    nearest[:5, :4], nearest[5:, :4] = 1, 2  # a blue sky or a red one
    found = clustering.alternation(*clustering.occupancy(nearest, 5))
    assert float(found[1, 2]) == pytest.approx(1)
    assert found[1, 3].eq(0) and found[0].eq(0).all()  # another place; never there
    nearest[:5, 2:4] = 2  # where the blue one is, half of it is red
    assert float(clustering.alternation(*clustering.occupancy(nearest, 5))[1, 2]) == 0


def test_joins_are_average_linkage():
    affinity = torch.tensor([[1, 0.9, 0.2, 0.1], [0.9, 1, 0.4, 0.1], [0.2, 0.4, 1, 0.5], [0.1, 0.1, 0.5, 1]])
    weight = torch.tensor([1.0, 3.0, 1.0, 1.0])
    joins = clustering.join_clusters(affinity, weight)
    assert [(j.a, j.b) for j in joins] == [(0, 1), (2, 3), (4, 5)]
    last = ((0.2 + 0.1) * 1 + (0.4 + 0.1) * 3) / (4 * 2)  # each pair by the product of its weights
    assert [j.similarity for j in joins] == pytest.approx([0.9, 0.5, last])
    assert clustering.members_of(joins, 4)[4:].int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]]


def test_jaccard_index_of_every_pair_of_nodes():
    draw = seeded()
    mine, theirs = torch.randint(3, (50,), generator=draw), torch.randint(4, (50,), generator=draw)
    nodes, others = torch.tensor([[1, 0, 0], [0, 1, 1]]).bool(), torch.tensor([[1, 1, 0, 0], [0, 0, 0, 1]]).bool()
    found = clustering.best_jaccard(nodes, mine, others, theirs)
    for i, j in itertools.product(range(2), range(2)):
        a, b = nodes[i][mine], others[j][theirs]
        assert float(found[i, j]) == pytest.approx(float((a & b).sum() / (a | b).sum()))


def alone(nodes: list[int]) -> list[list[int]]:
    return [[node] for node in nodes]


def test_alternatives_are_one_region():
    nearest = torch.tensor([[0, 0, 3, 3], [1, 1, 3, 3], [2, 2, 3, 3]] * 4)  # three skies above one ground
    same = discovery.merge_alternatives(*clustering.occupancy(nearest, 4), torch.eye(7, 4, dtype=torch.bool))
    assert [sorted(group) for group in same([0, 1, 2, 3])] == [[0, 1, 2], [3]]
    assert same([0, 3]) == [[0], [3]]


def test_small_and_unstable_nodes_are_no_regions():
    joins = clustering.join_clusters(torch.eye(5) + torch.diag(torch.tensor([1.0, 0.0, 0.9, 0.0]), 1), torch.ones(5))
    stable, large = torch.full((9,), 0.9), torch.ones(9, dtype=torch.bool)
    apart = discovery.choose_regions(joins, stable, large, None, 12, alone)
    assert len(apart) == 3  # two joins are of more than ALIKE
    assert len(discovery.choose_regions(joins, stable, large, None, 2, alone)) == 2
    assert len(discovery.choose_regions(joins, stable, large, 5, 12, alone)) == 5
    stable[apart[0][0]] = 0.3
    assert apart[0] not in discovery.choose_regions(joins, stable, large, None, 12, alone)
    large[apart[1][0]] = False
    with pytest.raises(ValueError, match=r"nothing stable is found .* number of regions \(2, 4 can be found\)"):
        discovery.choose_regions(joins, stable, large, None, 12, alone)
    assert len(discovery.choose_regions(joins, stable, large, 4, 12, alone)) == 4
    with pytest.raises(ValueError, match=r"there are no 9 regions .* another number \(2, 4 can be found\)"):
        discovery.choose_regions(joins, stable, large, 9, 12, alone)
    with pytest.raises(ValueError, match=r"\(none can be found\)"):
        discovery.choose_regions(joins, torch.zeros(9), large, None, 12, alone)


# --- The tree --------------------------------------------------------------------------------------------------------


def scene(count: int = 40) -> torch.Tensor:
    """Sky 0, ground 1, and before them a box 2 with two wheels 3 that it takes along."""
    draw, maps = seeded(), torch.zeros(count, 32, 32, dtype=torch.long)
    maps[:, 18:] = 1
    for n in range(count):
        x, y = (int(torch.randint(6, (), generator=draw)) for _ in range(2))
        maps[n, 10 + y : 18 + y, 4 + x : 24 + x] = 2
        maps[n, 16 + y : 20 + y, 6 + x : 10 + x] = 3
        maps[n, 16 + y : 20 + y, 18 + x : 22 + x] = 3
    return maps


def test_what_touches_and_moves_together_shares_a_parent_and_background_goes_last():
    tree, names = named_tree(scene(), 4)
    assert names[:2] == ["background_top", "background_bottom"]
    assert str(tree).startswith(f"all*(group_1*({names[2]}, {names[3]}), background*(")
    assert float(moving_together(scene(), 4)[2, 3]) > 0.95
    assert float(touching(scene(), 4)[2, 3]) > 0.4


def test_names_are_distinct_whatever_the_maps():
    draw = seeded(3)
    for count in (2, 3, 9, 20):
        coarse = torch.randint(count, (6, 8, 8), generator=draw)
        coarse[:, 0, :] = coarse[0, 0, 0]
        maps = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)
        tree, names = named_tree(maps, count)
        assert sorted(tree.leaves) == sorted(names) and len(set(names)) == count
        assert set(tree.inner) == set(tree.fused)
    same = torch.zeros(3, 8, 8, dtype=torch.long)
    assert len(named_tree(same, 2)[0].leaves) == 2  # one of them is never there


# --- The labeller ----------------------------------------------------------------------------------------------------


def test_a_region_has_the_probability_of_its_classes(tmp_path):
    torch.manual_seed(0)
    labeller = FeatureLabeller(["a", "b"], [4, 8], [3, 5], classes=[1, 0, 1], members=1)
    maps = {4: torch.randn(2, 3, 4, 4), 8: torch.randn(2, 5, 8, 8)}
    x = describe(maps, [4, 8], 8)
    assert torch.allclose(x.norm(dim=1), torch.ones(2, 8, 8))
    classes = F.conv1d(x.flatten(2), labeller.layers[0].weight, labeller.layers[0].bias).softmax(1)
    regions = labeller.label(maps, 8).exp().flatten(2)
    assert torch.allclose(regions, torch.stack([classes[:, 1], classes[:, 0] + classes[:, 2]], 1), atol=1e-5)
    labeller.save_pretrained(tmp_path)
    assert torch.equal(FeatureLabeller.from_pretrained(tmp_path).label(maps, 16), labeller.label(maps, 16))


def test_an_ensemble_is_its_members_side_by_side():
    torch.manual_seed(0)
    both = FeatureLabeller(["a", "b", "c"], [8], [6], hidden=[5], members=2)
    x = torch.randn(2, 6, 10)
    found = both.read(x)
    for m in range(2):
        hidden = F.leaky_relu(F.conv1d(x, *[p[5 * m : 5 * m + 5] for p in both.layers[0].parameters()]), 0.2)
        alone = F.conv1d(hidden, *[p[3 * m : 3 * m + 3] for p in both.layers[1].parameters()]).log_softmax(1)
        assert torch.allclose(found[:, m], alone, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"regions": ["a"]}, "two or more different region names"),
        ({"classes": [0, 0]}, "classes must name each"),
        ({"channels": [1]}, "do not fit"),
    ],
)
def test_a_labeller_refuses_what_does_not_fit(config, problem):
    with pytest.raises(ValueError, match=problem):
        FeatureLabeller(**{"regions": ["a", "b"], "resolutions": [4, 8], "channels": [3, 5]} | config)


def test_a_labeller_is_for_its_own_generator():
    labeller = FeatureLabeller(["a", "b"], [8], [6])
    with pytest.raises(ValueError, match="no feature maps of 8 pixels"):
        labeller.label({4: torch.zeros(1, 6, 4, 4)}, 8)
    with pytest.raises(ValueError, match="another generator's"):
        labeller.label({8: torch.zeros(1, 7, 8, 8)}, 8)


# --- The whole -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def embedded() -> StyleFusionPipeline:
    return StyleFusionPipeline.from_embedded()


@pytest.fixture(scope="module")
def found(embedded) -> discovery.Discovery:
    return discovery.discover(embedded.generator, samples=64, clusters=24, trials=3, progress=False)


def test_the_embedded_generators_regions_are_found_without_a_label(embedded, found):
    g = embedded.generator
    codes = discovery.sample_codes(g, 48, seeded(99))
    with torch.no_grad():
        images, maps = g.synthesis(codes, return_features=True)
        truth = load_judges().segmenter.segment(images.clamp(-1, 1)).argmax(1)
        labels = found.labeller.label(maps, g.config.resolution).argmax(1)
    matched = matched_iou(labels, truth, int(truth.max()) + 1).tolist()
    assert sum(matched) / len(matched) > 0.5 and sum(iou > 0.35 for iou in matched) >= 5
    assert "background" in str(found.tree).rsplit("(", 1)[0].split(",")[-1] or "background" in found.tree.leaves[-1]
    assert list(found.labeller.config.regions) == list(found.tree.leaves)
    assert all(s >= discovery.STABLE for s in found.report["stability"].values())


def test_discovery_is_the_same_every_time_and_takes_a_number(embedded):
    g = embedded.generator
    same = [discovery.discover(g, samples=16, clusters=8, trials=2, num_regions=3, progress=False) for _ in range(2)]
    assert same[0].report == same[1].report and len(same[0].tree.leaves) == 3
    assert torch.equal(same[0].labeller.layers[0].weight, same[1].labeller.layers[0].weight)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"num_regions": 1}, "from 2 to the number of clusters"),
        ({"clusters": 3}, "clusters from 4 to 256"),
        ({"samples": 2}, "8 samples"),
        ({"resolutions": [256]}, "no feature maps of 256 pixels"),
    ],
)
def test_discover_refuses(embedded, arguments, problem):
    with pytest.raises(ValueError, match=problem):
        discovery.discover(embedded.generator, **arguments)


def test_a_student_learns_what_its_teacher_says():
    g = tiny_generator()

    def brightness(images, maps):
        return torch.cat([images.mean(1, keepdim=True), -images.mean(1, keepdim=True)], 1)

    student, iou = distil(g, brightness, ["light", "dark"], 64, 60, 8, channels=(8,), progress=False)
    assert isinstance(student, RegionSegmenter) and not student.training
    assert iou["mean"] > 0.6
    again, _ = distil(g, brightness, ["light", "dark"], 64, 60, 8, channels=(8,), progress=False)
    assert all(torch.equal(a, b) for a, b in zip(student.parameters(), again.parameters(), strict=True))


# --- Folders and the command -----------------------------------------------------------------------------------------

SMALL = {"samples": 16, "steps": 2, "progress": False, "clusters": 8, "trials": 2}


@pytest.fixture
def model(tmp_path):
    tiny_generator(use_noise=False).save_pretrained(tmp_path / "model" / "generator")
    return tmp_path / "model"


@pytest.fixture(scope="module")
def written(embedded, tmp_path_factory):
    out = tmp_path_factory.mktemp("found") / "regions"
    return folders.find_regions(out, embedded.generator, num_regions=3, **SMALL)


@pytest.fixture
def folder(written, tmp_path):
    return Path(shutil.copytree(written, tmp_path / "regions"))


def test_a_folder_of_regions_is_whole(folder):
    report = json.loads((folder / "regions.json").read_text())
    tree, segmenter = folders.read_regions(folder)
    assert str(tree) == report["tree"] and list(segmenter.config.regions) == list(tree.leaves)
    assert list(load_judges(folder / "judges").segmenter.config.regions) == list(tree.leaves)
    picture = Image.open(folder / "regions.png")
    assert picture.width > 700 and picture.height > 300
    assert not any("/" in str(v) for v in report.values() if isinstance(v, str))


def test_names_are_edited_in_tree_json(folder, capsys):
    tree, _ = folders.read_regions(folder)
    before = (folder / "regions.png").read_bytes()
    names = dict(zip(tree.leaves, ("sky", "skin", "hair"), strict=True))
    text = (folder / "tree.json").read_text()
    for old, new in names.items():
        text = text.replace(f'"{old}"', f'"{new}"')
    (folder / "tree.json").write_text(text)
    assert main(["regions", "update", str(folder)]) == 0
    assert "sky, skin, hair" in capsys.readouterr().out
    new_tree, segmenter = folders.read_regions(folder)
    assert list(new_tree.leaves) == ["sky", "skin", "hair"] == list(segmenter.config.regions)
    assert list(load_judges(folder / "judges").segmenter.config.regions) == ["sky", "skin", "hair"]
    assert set(json.loads((folder / "regions.json").read_text())["stability"]) == {"sky", "skin", "hair"}
    assert (folder / "regions.png").read_bytes() != before
    # then its shape, of the same names
    (folder / "tree.json").write_text(RegionTree.parse("all*(sky, front*(hair, skin))").to_json())
    assert list(folders.update_regions(folder).leaves) == ["sky", "hair", "skin"]
    (folder / "tree.json").write_text(RegionTree.parse("all*(front*(moon, hair), skin)").to_json())
    assert main(["regions", "update", str(folder)]) == 2
    assert "another shape and new names (moon)" in capsys.readouterr().err


def test_an_unfinished_folder_is_refused(folder, model, tmp_path, capsys):
    (folder / "regions.json").unlink()
    assert main(["regions", "update", str(folder)]) == 2
    assert "holds no finished regions" in capsys.readouterr().err
    flags = f"train fusion --model {model} --output_dir {tmp_path / 'out'} --regions {folder}"
    assert main(flags.split()) == 2
    assert "holds no regions: name auto, or a folder" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "diary.txt").write_text("dear diary")
    assert main(["regions", "discover", "--model", str(model), "--out", str(tmp_path / "full")]) == 2
    assert "is not empty and holds no regions" in capsys.readouterr().err


FLAGS = (
    "--pool_size 16 --train_batch_size 4 --hidden_width 8 --hidden_layers 1 --validation_pairs 2 --max_train_steps 2"
)


def test_fusion_nets_of_found_regions(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(folders, "find_regions", partial(folders.find_regions, **SMALL | {"min_area": 0.0}))
    monkeypatch.setattr(discovery, "STABLE", 0.0)  # in random weights nothing is
    out = tmp_path / "out"
    flags = f"--model {model} --output_dir {out} --regions auto --num_regions 3 {FLAGS} --validation_steps 2"
    fusion.train(fusion.parse_args(flags.split()))
    pipe = StyleFusionPipeline.from_pretrained(out)
    leaves = pipe.fusion.tree.leaves
    assert len(leaves) == 3 and list(pipe.segmenter.config.regions) == list(leaves)
    assert set(pipe(base=1, regions={leaves[0]: 2}, output_masks=True).masks) == set(leaves)
    figures = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any(f"O {leaves[-1]}" in line for line in figures)  # measured by its judge
    # again, from the folder: nothing is searched a second time
    monkeypatch.setattr(folders, "find_regions", None)
    more = (
        f"--model {model} --output_dir {tmp_path / 'again'} --regions {out / 'regions'} {FLAGS} --validation_pairs 0"
    )
    fusion.train(fusion.parse_args(more.split()))
    resumed = flags.replace("--max_train_steps 2", "--max_train_steps 3 --resume_from_checkpoint latest")
    fusion.train(fusion.parse_args(resumed.split()))
    assert (out / "checkpoint-3").is_dir()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("--regions auto --tree ffhq", "makes a tree of its own"),
        ("--num_regions 3", "--num_regions goes with --regions auto"),
        ("", "Without a segmenter, find regions in the generator with --regions auto"),
    ],
)
def test_flags_that_do_not_go_together(model, tmp_path, capsys, flags, problem):
    assert main(["train", "fusion", "--model", str(model), "--output_dir", str(tmp_path / "out"), *flags.split()]) == 2
    assert problem in capsys.readouterr().err


def test_a_generator_can_be_loaded_alone(model):
    assert isinstance(StyleGAN2Generator.from_pretrained(model, subfolder="generator"), StyleGAN2Generator)
