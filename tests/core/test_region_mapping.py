"""Tables from classes to regions: the shipped ones, how names are matched, what is refused."""

import json
from collections import Counter

import pytest

from stylefusion_hf import RegionTree
from stylefusion_hf.core.region_mapping import RegionMap, shipped
from tests.tiny_hub import ADE, FACE

LABELS = dict(enumerate(FACE))
CAR_TREE = "all*(car, background*(background_top, background_bottom))"


def test_the_face_table_gives_the_leaves_of_ffhq() -> None:
    found = RegionMap.of("face.json").classes(LABELS)
    assert set(found) == set(RegionTree.of("ffhq").leaves)
    assert sorted(number for numbers in found.values() for number in numbers) == list(range(19))
    assert {FACE[n] for n in found["mouth"]} == {"mouth", "u_lip", "l_lip"}
    assert {FACE[n] for n in found["eyes"]} == {"l_eye", "r_eye", "l_brow", "r_brow", "eye_g"}
    assert {FACE[n] for n in found["hair"]} == {"hair", "hat"}
    reordered = {i: name.upper().replace("_", " ") for i, name in enumerate(FACE[::-1])}
    names = {region: {FACE[n] for n in numbers} for region, numbers in found.items()}
    again = RegionMap.of("face").classes(reordered)
    assert {region: {FACE[::-1][n] for n in numbers} for region, numbers in again.items()} == names


@pytest.mark.parametrize(("name", "tree"), [("ade20k-car.json", CAR_TREE), ("ade20k-church.json", "church")])
def test_the_ade20k_tables_give_every_class_a_region(name: str, tree: str) -> None:
    labels = dict(enumerate(ADE))
    assert len(labels) == 150
    found = RegionMap.of(name).classes(labels)
    assert set(found) == set(RegionTree.of(tree).leaves)
    assert Counter(number for numbers in found.values() for number in numbers) == Counter(range(150))
    front = {ADE[n] for n in list(found.values())[-1]}
    assert front >= ({"car", "truck"} if "car" in name else {"building", "tower"})
    synonyms = {i: f"{label}, {label} of another kind; thing {i}" for i, label in labels.items()}
    assert RegionMap.of(name).classes(synonyms) == found


def test_the_shipped_tables_are_listed() -> None:
    assert shipped() == ["ade20k-car.json", "ade20k-church.json", "face.json"]


def test_ways_in(tmp_path) -> None:
    table = {"#": "a note", "regions": {"a": ["skin", 13], "b": ["Lower Lip|l lip"]}, "rest": "c"}
    (tmp_path / "t.json").write_text(json.dumps(table))
    of_dict, of_file = RegionMap.of(table), RegionMap.of(tmp_path / "t.json")
    assert of_dict.classes(LABELS) == of_file.classes(LABELS)
    assert RegionMap.of(of_dict) is of_dict
    found = of_dict.classes(LABELS)
    assert list(found) == ["a", "b", "c"] and found["a"] == [1, 13] and found["b"] == [12] and len(found["c"]) == 16
    without = RegionMap.of({"regions": table["regions"]}).classes(LABELS)
    assert without == {"a": [1, 13], "b": [12]}  # what no region names counts for nothing


REFUSED = [
    (
        {"regions": {"a": ["skinn"], "b": ["hair"]}},
        "no class 'skinn' for 'a'; did you mean skin\\?.* It has background",
    ),
    ({"regions": {"a": ["skin", 1], "b": ["hair"]}}, r"class 1 \(skin\) is twice in 'a'"),
    ({"regions": {"a": ["skin"], "b": ["hair", "SKIN"]}}, "class 1 .* is in 'a' and 'b'"),
    ({"regions": {"a": ["skin"], "b": []}}, "'b' has no class"),
    ({"regions": {"a": [19], "b": [1]}}, "class 19, but the network's are 0 to 18"),
    ({"regions": {"a": [-1], "b": [1]}}, "class -1, but the network's are 0 to 18"),
    ({"regions": {"a": ["skin"]}}, "two or more regions"),
    ({"regions": ["a", "b"]}, "two or more regions"),
    ({"regions": {"a": "skin", "b": ["hair"]}}, "'a' is a list of classes"),
    ({"regions": {"a": [1.5], "b": ["hair"]}}, "a class of 'a' is a name or a number"),
    ({"regions": {"a": [True], "b": ["hair"]}}, "a class of 'a' is a name or a number"),
    ({"regions": {"a": [""], "b": ["hair"]}}, "no class ''"),
    ({"regions": {"a": [1], "b": [2]}, "rest": 3}, '"rest" is the name of a region'),
    ({"regions": {"a": [1], "b": [2]}, "others": "c"}, "has regions and rest, .*got 'others'"),
    (
        {"regions": {"a": list(range(10)), "b": list(range(10, 19))}, "rest": "c"},
        "nothing is left for the \"rest\" 'c'",
    ),
]


@pytest.mark.parametrize(("table", "message"), REFUSED, ids=lambda x: str(x)[:40])
def test_what_does_not_fit_is_refused_in_one_line(table, message) -> None:
    with pytest.raises(ValueError, match=message) as found:
        RegionMap.of(table).classes(LABELS)
    assert "\n" not in str(found.value) and len(str(found.value)) < 700


def test_a_name_of_several_classes_is_refused() -> None:
    labels = {0: "screen door, screen", 1: "screen, silver screen", 2: "wall"}
    with pytest.raises(ValueError, match="'screen' of 'a' fits the classes 0, 1: give a number"):
        RegionMap.of({"regions": {"a": ["screen"]}, "rest": "b"}).classes(labels)
    labels[3] = "screen"  # the whole label goes first
    assert RegionMap.of({"regions": {"a": ["screen"]}, "rest": "b"}).classes(labels)["a"] == [3]


def test_files_that_are_no_tables(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match="no region map 'faces.json': .* ade20k-car.json"):
        RegionMap.of("faces.json")
    for text, message in (("{", "not JSON"), ("[1]", "JSON object, found list"), ("[" * 10**5, "not JSON")):
        (tmp_path / "t.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            RegionMap.of(tmp_path / "t.json")
    with pytest.raises(ValueError, match="a region map is a dict, a file"):
        RegionMap.of(3)  # type: ignore[arg-type]
