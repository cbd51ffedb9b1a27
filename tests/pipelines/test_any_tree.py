"""Trees by hand: from the command line and from files, of any shape, with names that are awkward."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import FusionHierarchy, RegionTree
from stylefusion_hf.cli import main
from stylefusion_hf.conversion.hierarchy import choose_tree
from stylefusion_hf.imaging.sheets import contact_sheet, sheet_columns
from stylefusion_hf.training import fusion
from stylefusion_hf.training.choices import Shares
from stylefusion_hf.training.roles import Roles
from stylefusion_hf.training.sampling import count_codes, draw_assignment
from tests.tiny import tiny_pipeline

NAMES = ["half", "train", "données", "car body", "a/b", "base", "source", "global", "all", "nodes", "items", "-x", "9"]


def random_tree(seed: int, most: int = 20, every: bool = False) -> RegionTree:
    """A tree of 2 to `most` leaves, any shape; some inner nodes without nets unless `every` has one."""
    draw = random.Random(seed)
    names = [*NAMES, *(f"r{i}" for i in range(2 * most))]
    draw.shuffle(names)
    nodes, children, fused = [names.pop() for _ in range(draw.randint(2, most))], {}, []
    while len(nodes) > 1:
        above, pair = names.pop(), [nodes.pop(draw.randrange(len(nodes))) for _ in range(2)]
        children[above] = pair
        fused += [above] if every or draw.random() < 0.8 else []
        nodes.append(above)
    return RegionTree.from_dict({"root": nodes[0], "children": children, "fused": fused})


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(8, 25))])
def test_random_trees(seed: int, tmp_path: Path) -> None:
    tree = random_tree(seed)
    assert RegionTree.of(str(tree)) == RegionTree.from_json(tree.to_json()) == RegionTree.of(tree.to_dict()) == tree
    path = tmp_path / "tree.json"
    path.write_text(tree.to_json(), encoding="utf-8")
    assert RegionTree.from_argument(str(path)) == tree
    for name in tree.nodes:
        assert tree.parent(name) == next((n for n in tree.inner if name in tree.children(n)), None)
    below = {name for level in tree.levels() for name in level}
    assert below == set(tree.inner)
    torch.manual_seed(seed)
    nets = FusionHierarchy(tree, [8, 4], [8], padded_width=8, hidden_width=4, hidden_layers=1)
    codes = {name: torch.randn(3, 20) for name in tree.nodes}
    fused, gates = nets.fuse_with_gates(codes)
    assert torch.allclose(nets.fuse(codes), fused, atol=1e-6)
    assert set(gates) == set(tree.fused) & set(tree.active)
    one = codes[tree.root]
    assert torch.equal(nets.fuse(dict.fromkeys(tree.nodes, one)), one)
    for name in tree.nodes:  # what plays no part is what the tree says plays none
        moved = nets.fuse(codes | {name: codes[name] + 1})
        assert torch.equal(moved, nets.fuse(codes)) == (name not in tree.active)


@pytest.mark.parametrize("seed", range(25))
def test_random_trees_have_roles_and_samples(seed: int) -> None:
    tree = random_tree(seed, every=True)
    known = ["another", *sorted(tree.leaves)]
    roles = Roles.of(tree, known)
    assert roles.names == sorted(tree.leaves)
    assert roles.pose
    assert len(roles.groups) == len(tree.inner) - 1
    assert all(first and second for _, first, second in roles.groups)
    draw = torch.Generator().manual_seed(seed)
    for shares in (Shares(), Shares((0, 0, 0, 1)), Shares((0, 0, 1, 0)), Shares((1, 0, 0, 0)), Shares(twin=1.0)):
        found = draw_assignment(tree, 16, draw, shares)
        assert found.nodes.shape == (16, len(tree.nodes))
        assert 0 <= int(found.nodes.min()) <= int(found.nodes.max()) < count_codes(tree)
        assert int(found.twin.max()) < 15


def test_trees_from_files(tmp_path: Path) -> None:
    tree, path = RegionTree.of("all*(a, rest*(b, c))"), tmp_path / "tree.json"
    for text in (tree.to_json(), tree.to_json(indent=1), json.dumps(str(tree))):
        path.write_text(text, encoding="utf-8")
        assert RegionTree.from_argument(str(path)) == tree
    assert RegionTree.from_argument("avatar") == RegionTree.preset("avatar")
    assert RegionTree.from_argument(str(tree)) == tree
    assert choose_tree(["all", "rest"], 64, tmp_path / "nets.json", str(path)) == ("custom", tree)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "tree.json cannot be read: No such file"),
        ("{", "region tree in .*tree.json: the file is not JSON"),
        ("[1, 2]", r"an object with root, children and fused, not \[1, 2\]"),
        ('{"root": "a"}', r"tree.json: a region tree's dict has root, children .* given: \['root'\]"),
        ('{"root": "a", "children": {"a": ["b"]}, "fused": []}', "node 'a' has 1 child"),
        ('"all*(a, a)"', "the name 'a' appears twice"),
        ("[" * 100_000, "tree.json: "),
        ("\xff", "tree.json: "),
    ],
)
def test_files_that_are_no_tree(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "tree.json"
    if text is not None:
        path.write_bytes(text.encode("latin-1"))
    with pytest.raises((ValueError, OSError), match=message):
        RegionTree.from_argument(str(path))
    with pytest.raises((ValueError, OSError), match=message):
        fusion.train(fusion.parse_args(["--output_dir", str(tmp_path / "out"), "--tree", str(path)]))


def test_regions_that_are_called_like_a_sheets_columns() -> None:
    pipe = tiny_pipeline("all*(source, x*(base, global))")
    assert sheet_columns(pipe.fusion.tree) == ["base", "source", "source", "base", "global", "global"]
    sheet = np.array(contact_sheet(pipe, [1], [2], scale=1))
    columns = [
        pipe(base=2),
        pipe(base=1, regions={"source": 2}),
        pipe(base=1, regions={"base": 2}),
        pipe(base=1, regions={"global": 2}),
        pipe(base=1, global_code=2),
    ]
    height = sheet.shape[0] - 16 - 32
    places = []
    for out in columns:  # every column's picture is there, from left to right
        picture = np.array(out.images[0])
        found = [x for x in range(sheet.shape[1] - 31) if np.array_equal(sheet[height:-16, x : x + 32], picture)]
        assert len(found) == 1
        places += found
    assert places == sorted(places)


def test_awkward_names_on_the_command_line(tmp_path: Path, elsewhere: None) -> None:
    tree = "all*(half, train*(données, rest*(car body, a/b)))"
    tiny_pipeline(tree, segmenter=True).save_pretrained(tmp_path / "model")
    regions = [word for text in ("car body=7", "données=3", "half=4", "a/b=2") for word in ("--region", text)]
    model = ["--model", str(tmp_path / "model")]
    assert main(["fuse", "--base", "1", *regions, "--masks", "masks", *model]) == 0
    masks = [np.array(Image.open(path)) for path in Path("masks").iterdir()]
    assert len(masks) == 5 - 1
    assert (np.stack(masks).astype(int).sum(axis=0) == 255).all()
    assert main(["fuse", "--from-recipe", "fused.png", "--out", "again.png", *model]) == 0
    assert Image.open("again.png").tobytes() == Image.open("fused.png").tobytes()
    assert main(["render", "--random", "2", "--out", "rendered", *model]) == 0
    assert json.loads(Path("rendered/dataset.json").read_text(encoding="utf-8"))["regions"][0] == "half"
