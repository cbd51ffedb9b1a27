"""RegionTree: ways in and out, looking around, errors, and the assignment of codes."""

import json
import pickle
import random

import pytest

from stylefusion_hf.core.region_tree import MAX_DEPTH, PRESETS, RegionTree

TEXT = "all*(face*(mouth, skin), hair)"
TREE = RegionTree.parse(TEXT)


def test_text_dict_and_json_round_trip():
    assert str(TREE) == TEXT
    assert str(RegionTree.parse("  all *( face*(mouth,skin) ,hair )")) == TEXT
    data = TREE.to_dict()
    assert data == {
        "root": "all",
        "children": {"all": ["face", "hair"], "face": ["mouth", "skin"]},
        "fused": ["all", "face"],
    }
    assert RegionTree.from_dict(json.loads(json.dumps(data, sort_keys=True))) == TREE
    assert RegionTree.from_json(TREE.to_json(indent=2)) == TREE
    assert pickle.loads(pickle.dumps(TREE)) == TREE
    assert len({TREE, RegionTree.parse(TEXT), RegionTree.preset("car")}) == 2


@pytest.mark.parametrize(
    ("name", "leaves", "nets"), [("avatar", 6, 5), ("ffhq", 6, 5), ("car", 4, 3), ("church", 2, 1)]
)
def test_presets(name, leaves, nets):
    tree = RegionTree.preset(name)
    assert (len(tree.leaves), len(tree.fused)) == (leaves, nets)
    assert str(tree) == PRESETS[name]
    assert tree.active == tree.nodes
    assert (
        RegionTree.of(name) == RegionTree.of(str(tree)) == RegionTree.of(tree.to_dict()) == RegionTree.of(tree) == tree
    )


def test_looking_around():
    assert TREE.nodes == ("all", "face", "mouth", "skin", "hair")
    assert (TREE.inner, TREE.leaves, TREE.fused) == (("all", "face"), ("mouth", "skin", "hair"), ("all", "face"))
    assert (TREE.parent("mouth"), TREE.parent("all")) == ("face", None)
    assert (TREE.children("face"), TREE.children("hair")) == (("mouth", "skin"), ())
    assert TREE.subtree("face") == ("face", "mouth", "skin")
    assert TREE.ancestors("skin") == ("face", "all")
    assert (TREE.depth, RegionTree.parse("all").depth) == (2, 0)
    assert RegionTree.parse("all").levels() == ()
    assert RegionTree.parse("all*(face(mouth, skin), hair)").active == ("all", "face", "hair")


def test_levels_are_an_evaluation_order():
    tree = RegionTree.preset("avatar")
    assert tree.levels() == (("skin_mouth", "bg_clothes"), ("face", "bg_hair_clothes"), ("all",))
    done = set(tree.leaves)
    for level in tree.levels():
        assert all(set(tree.children(name)) <= done for name in level)
        done |= set(level)
    assert done == set(tree.nodes)


@pytest.mark.parametrize("name", ["half", "train", "type", "left eye", "日本"])
def test_unusual_names_are_legal(name):
    assert RegionTree.parse(f"all*({name}, b)").leaves == (name, "b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a name is missing"),
        ("all*(a, )", "unexpected '\\)'"),
        ("all*(a, b", "bracket of 'all' is not closed"),
        ("all(a, b))", "unexpected '\\)'"),
        ("all**(a, b)", "unexpected '\\*'"),
        ("all(a, b) c", "unexpected 'c'"),
        ("(a, b)", "unexpected '\\('"),
        ("all*(a, a)", "the name 'a' appears twice"),
        ("all*(face*(mouth))", "node 'face' has 1 child \\(mouth\\)|node 'all' has 1 child"),
        ("all*(a, b, c)", "node 'all' has 3 children \\(a, b, c\\)"),
        ("all*(a*, b)", "the leaf 'a' cannot be fused"),
        ("all*(a.b, c)", "illegal region name 'a.b'"),
        ("all*(a=1, c)", "illegal region name 'a=1'"),
    ],
)
def test_bad_text(text, message):
    with pytest.raises(ValueError, match=message):
        RegionTree.parse(text)


@pytest.mark.parametrize(
    ("root", "branches", "fused", "message"),
    [
        ("", {}, [], "illegal region name ''"),
        (3, {}, [], "illegal region name 3"),
        ("all", {"all": ["a", ["b"]]}, [], "illegal region name \\['b'\\]"),
        ("all", {"all": ["a", " b"]}, [], "illegal region name ' b'"),
        ("all", {"all": ["a"]}, [], "node 'all' has 1 child \\(a\\)"),
        ("all", {"all": "ab"}, [], "node 'all' has 1 child \\(ab\\)"),
        ("all", {"all": None}, [], "node 'all' has 1 child \\(None\\)"),
        ("all", {"all": ["a", "b"], "a": ["c", "all"]}, [], "cycle, all > a > all"),
        ("all", {"all": ["all", "b"]}, [], "cycle, all > all"),
        ("all", {"all": ["a", "b"], "a": ["c", "b"]}, [], "the name 'b' appears twice"),
        ("all", {"all": ["a", "b"], "x": ["c", "d"]}, [], "unknown names \\(x\\)"),
        ("all", {"all": ["a", "b"]}, ["al"], "unknown fused node 'al'.*did you mean 'all'"),
        ("all", {"all": ["a", "b"]}, ["b"], "the leaf 'b' cannot be fused"),
        ("all", {"all": ["a", "b"]}, "all", "a list of names, not 'all'"),
        ("all", {"all": ["a", "b"]}, None, "a list of names, not None"),
    ],
)
def test_bad_trees(root, branches, fused, message):
    with pytest.raises(ValueError, match=message):
        RegionTree.from_dict({"root": root, "children": branches, "fused": fused})


def test_bad_containers():
    with pytest.raises(ValueError, match="given: \\['root'\\]"):
        RegionTree.from_dict({"root": "all"})
    with pytest.raises(ValueError, match="given: list"):
        RegionTree.from_json("[]")
    with pytest.raises(ValueError, match="does not parse"):
        RegionTree.from_json("{")
    with pytest.raises(ValueError, match="not int"):
        RegionTree.of(3)
    with pytest.raises(ValueError, match=r"unknown preset 'avatr'.*did you mean 'avatar'"):
        RegionTree.preset("avatr")


def test_depth_is_guarded():
    def chain(depth):
        return {f"n{i}": [f"n{i + 1}", f"leaf{i}"] for i in range(depth)}

    assert RegionTree("n0", chain(MAX_DEPTH)).depth == MAX_DEPTH
    for depth in (MAX_DEPTH + 1, 5_000):
        with pytest.raises(ValueError, match="too deep"):
            RegionTree("n0", chain(depth))
    with pytest.raises(ValueError, match="too deep"):
        RegionTree.parse("".join(f"n{i}(" for i in range(5_000)) + "x" + "".join(f",l{i})" for i in range(5_000)))


def test_unknown_name_lists_the_names_and_the_closest():
    with pytest.raises(
        ValueError, match="unknown region 'hiar': the tree has all, face, mouth, skin, hair; did you mean 'hair'"
    ):
        TREE.resolve("hiar")
    with pytest.raises(ValueError, match="unknown region 7"):
        TREE.resolve(7)


# ----------------------------------------------------------------------------------------------------
# assign


def test_assign_by_hand():
    assert TREE.assign(0) == dict.fromkeys(TREE.nodes, 0)
    assert TREE.assign(0, {"face": 1}) == {"all": 0, "face": 1, "mouth": 1, "skin": 1, "hair": 0}
    assert TREE.assign(0, {"skin": 2, "face": 1}) == {"all": 0, "face": 1, "mouth": 1, "skin": 2, "hair": 0}
    assert TREE.assign(0, {"all": 1, "face": 2}) == {"all": 1, "face": 2, "mouth": 2, "skin": 2, "hair": 1}
    assert TREE.assign(0, global_code=5) == {"all": 5, "face": 5, "mouth": 0, "skin": 0, "hair": 0}
    assert TREE.assign(0, {"face": 1}, 5) == {"all": 5, "face": 1, "mouth": 1, "skin": 1, "hair": 0}
    assert TREE.assign(0, {"mouth": 1}, 5) == {"all": 5, "face": 5, "mouth": 1, "skin": 0, "hair": 0}
    assert TREE.assign(0, {"face": 1}, 5, {"face": 9}) == {"all": 5, "face": 9, "mouth": 1, "skin": 1, "hair": 0}
    assert TREE.assign(0, nodes={"all": 9}) == {"all": 9, "face": 0, "mouth": 0, "skin": 0, "hair": 0}


@pytest.mark.parametrize("where", ["regions", "nodes"])
def test_assign_rejects_two_codes_for_the_root(where):
    with pytest.raises(ValueError, match=f"global_code and {where}\\['all'\\]"):
        TREE.assign(0, global_code=1, **{where: {"all": 2}})
    with pytest.raises(ValueError, match="unknown region 'eyes'"):
        TREE.assign(0, **{where: {"eyes": 2}})
    with pytest.raises(ValueError, match=f"{where} is a dict, node -> code, not list"):
        TREE.assign(0, **{where: ["hair"]})


def test_assign_follows_its_definition():
    tree, draw = RegionTree.preset("avatar"), random.Random(0)
    for _ in range(300):
        regions = {name: draw.randint(1, 9) for name in draw.sample(tree.nodes, draw.randint(0, len(tree.nodes)))}
        nodes = {name: draw.randint(20, 29) for name in draw.sample(tree.nodes, draw.randint(0, len(tree.nodes)))}
        shared = draw.choice([None, 10, 19])
        if shared is not None:
            regions.pop("all", None)
            nodes.pop("all", None)
        codes = tree.assign(0, regions, shared, nodes)
        for name in tree.nodes:
            named = [above for above in (name, *tree.ancestors(name)) if above in regions]
            fallback = shared if shared is not None and name in tree.inner else 0
            assert codes[name] == nodes.get(name, regions[named[0]] if named else fallback)
