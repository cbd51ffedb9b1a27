"""Edits: what is added to which code, what files of directions hold, what the commands refuse."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from stylefusion_hf import Code, Direction
from stylefusion_hf.cli import main
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.core.edits import Edit, load_directions, save_directions
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.editing.directions import (
    sample_w,
)
from tests.command_line import fails
from tests.tiny import NUM_WS, STYLE_DIM, W_DIM, Z_DIM, draw, tiny_generator, tiny_pipeline


@pytest.fixture(scope="module")
def g():
    return tiny_generator().requires_grad_(False)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(segmenter=True)


DIRECTIONS = {
    "w": Direction("in-w", "w", draw(W_DIM), scale=0.5),
    "w, some rows": Direction("rows", "w", draw(W_DIM, seed=1), layers=(0, 3)),
    "w+": Direction("in-wplus", "w+", draw(NUM_WS, W_DIM, seed=2)),
    "s": Direction("in-s", "s", draw(STYLE_DIM, seed=3), scale=2.0),
    "convolutions": Direction("convs", "s", draw(56, seed=4)),
    "s, some rows": Direction("s-rows", "s", draw(STYLE_DIM, seed=5), layers=(1,)),
}


def style(pipe, **call) -> torch.Tensor:
    return pipe(**call, output_type="latent").style_codes


# ----------------------------------------------------------------------------------------------------
# Applying.


@pytest.mark.parametrize("kind", DIRECTIONS)
@pytest.mark.parametrize("space", ["w", "w+", "s"])
def test_an_edit_adds_the_same_in_every_space(g, kind, space):
    """By hand in s: A is the affine layers' matrix, row by row of w+."""
    direction = DIRECTIONS[kind]
    tensor, rows = direction.scale * direction.tensor, torch.zeros(NUM_WS, 1)
    rows[list(direction.layers or range(NUM_WS))] = 1
    if direction.space == "s":
        offset = torch.cat([tensor, torch.zeros(STYLE_DIM - len(tensor))]) * rows[g.style_rows, 0]
    else:
        every = (tensor.expand(NUM_WS, -1) * rows)[g.style_rows]
        offset = (g.affine_weight * every).sum(1) / W_DIM**0.5
    w = sample_w(g, 3)
    code = {"w": w, "w+": w[:, None].repeat(1, NUM_WS, 1), "s": g.to_style(w)}[space]
    edited = direction(1.5)(Code(code, space), g)
    result = edited.tensor if edited.space == "s" else g.to_style(edited.tensor)
    assert torch.allclose(result, g.to_style(w) + 1.5 * offset, atol=1e-4)
    assert edited.space == max(direction.step(g).space, space, key=["w", "w+", "s"].index)


def test_edits_add_up(g):
    a, b = DIRECTIONS["w"], DIRECTIONS["s"]
    w = Code(sample_w(g, 2), "w")
    both = (a(2.0) + b(-1.0))(w, g).tensor
    assert torch.allclose(both, b(-1.0)(a(2.0)(w, g), g).tensor, atol=1e-5)
    assert torch.allclose(both, a(2.0)(b(-1.0)(w, g), g).tensor, atol=1e-5)
    assert torch.allclose(both, Edit.of([(a, 2.0), b(-1.0)])(w, g).tensor)
    assert torch.allclose(Edit.of([a, a])(w, g).tensor, Edit.of((a, 2))(w, g).tensor)
    assert Edit.of((a, (1.0, 2.0))).parts[0][1] == (1.0, 2.0)
    listed = a([0.0, 1.0])(Code(w.tensor[:1], "w"), g).tensor
    assert torch.equal(listed[0], w.tensor[0]) and torch.equal(listed[1:], a(1.0)(Code(w.tensor[:1], "w"), g).tensor)
    assert a(0.0)(w, g) is w and not a(0) and a([0, 1])


def test_z_is_for_codes_in_z(g):
    direction = Direction("in-z", "z", draw(Z_DIM))
    z = Code(draw(2, Z_DIM, seed=1), "z")
    assert torch.equal(direction(2.0)(z, g).tensor, z.tensor + 2 * direction.tensor)
    with pytest.raises(ValueError, match="in z cannot be added to one in w"):
        direction(1.0)(Code(draw(1, W_DIM), "w"), g)
    for name in ("w", "s"):
        with pytest.raises(ValueError, match="cannot be added"):
            DIRECTIONS[name](1.0)(z, g)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a b", "w", draw(4)), "without : = and spaces"),
        (("a=b", "w", draw(4)), "without : = and spaces"),
        (("a", "x", draw(4)), "unknown latent space 'x'"),
        (("a", "w", draw(4, 4)), r"floats \(numbers,\), got \(4, 4\)"),
        (("a", "w+", draw(4)), r"\(num_ws, w_dim\)"),
        (("a", "w", torch.zeros(4)), "is zero"),
        (("a", "w", draw(4) / 0), "not finite"),
        (("a", "w", [1.0]), "got list"),
        (("a", "w", draw(4), float("nan")), "scale is a finite number"),
        (("a", "w", draw(4), 1.0, [-1]), "layers are rows"),
        (("a", "z", draw(4), 1.0, [1]), "layers are rows"),
        (("a", "w", draw(4), 1.0, []), "layers are rows"),
    ],
)
def test_what_is_no_direction(arguments, message):
    with pytest.raises(ValueError, match=message):
        Direction(*arguments)


def test_what_an_edit_refuses(g):
    direction = DIRECTIONS["w"]
    for strength in ("2", None, float("inf"), True, [], 1e7):
        with pytest.raises(ValueError, match="the strength of 'in-w' is"):
            direction(strength)
    with pytest.raises(ValueError, match="in w is .batch, 16"):
        Direction("other", "w", draw(9))(1.0)(Code(draw(1, W_DIM), "w"), g)
    with pytest.raises(ValueError, match="row 8 of w"):
        Direction("other", "w", draw(W_DIM), layers=(8,)).step(g)
    with pytest.raises(ValueError, match="give one length, or 1"):
        (direction([1, 2]) + direction([1, 2, 3])).displacement(g)
    with pytest.raises(ValueError, match="length 3"):
        direction([1, 2, 3])(Code(draw(2, W_DIM), "w"), g)


# ----------------------------------------------------------------------------------------------------
# In the pipeline.


@pytest.mark.parametrize("kind", DIRECTIONS)
def test_an_edit_enters_the_regions_own_code_alone(pipe, monkeypatch, kind):
    given: list[dict[str, torch.Tensor]] = []
    fuse = pipe.fusion.forward
    monkeypatch.setattr(pipe.fusion, "forward", lambda codes, **o: given.append(dict(codes)) or fuse(codes, **o))
    call: dict[str, Any] = {"base": 1, "regions": {"eyes": 4}, "strength": 0.5}
    style(pipe, **call)
    style(pipe, **call, edits={"hair": DIRECTIONS[kind](1.5)})
    plain, edited = given
    assert [node for node in plain if not torch.equal(plain[node], edited[node])] == ["hair"]
    moved = DIRECTIONS[kind](1.5)(Code(plain["hair"], "s"), pipe.generator)
    assert torch.allclose(edited["hair"], moved.tensor, atol=1e-5)


def test_an_inner_node_edits_its_subtree_and_edits_add_up(pipe, monkeypatch):
    given: list[dict[str, torch.Tensor]] = []
    fuse = pipe.fusion.forward
    monkeypatch.setattr(pipe.fusion, "forward", lambda codes, **o: given.append(dict(codes)) or fuse(codes, **o))
    a, b = DIRECTIONS["w"], DIRECTIONS["s"]
    style(pipe, base=1, edits={"face": (a, 2), "eyes": b})
    step_a = 2 * (a(1.0)(Code(given[0]["hair"], "s"), pipe.generator).tensor - given[0]["hair"])
    changed = {node: code - given[0]["hair"] for node, code in given[0].items()}
    for node in ("face", "skin_mouth", "mouth", "skin"):
        assert torch.allclose(changed[node], step_a, atol=1e-5)
    assert torch.allclose(changed["eyes"], step_a + 2.0 * b.tensor, atol=1e-5)
    assert not any(changed[node].any() for node in ("all", "hair", "clothes", "bg_clothes"))


def test_everything_edited_is_the_edited_code_exactly(pipe):
    plain = style(pipe, base=[1, 2])
    for name in ("w", "w+", "s"):
        edited = DIRECTIONS[name](1.5)(Code(plain, "s"), pipe.generator).tensor
        assert torch.allclose(style(pipe, base=[1, 2], edits={"all": DIRECTIONS[name](1.5)}), edited, atol=1e-5)
    s = DIRECTIONS["s"]
    assert torch.equal(style(pipe, base=[1, 2], edits={"all": s}), plain + s.scale * s.tensor)
    other = tiny_pipeline(tree="top*(left, right)")  # whose root has another name
    for name in ("all", "top"):
        expected = style(other, base=1) + s.scale * s.tensor
        assert torch.equal(style(other, base=1, edits={name: s}), expected)


def test_strength_0_is_no_edit(pipe):
    plain = pipe(base=[1, 2], regions={"hair": 7})
    for edit in (DIRECTIONS["w"](0.0), (DIRECTIONS["s"], 0), [DIRECTIONS["w"](0), DIRECTIONS["w+"]([0, 0])]):
        out = pipe(base=[1, 2], regions={"hair": 7}, edits={"hair": edit})
        assert torch.equal(out.style_codes, plain.style_codes)
        assert out.recipe == plain.recipe
    assert torch.equal(style(pipe, base=1, edits={}), style(pipe, base=1))


def test_strength_is_of_codes_and_leaves_edits_alone(pipe):
    a = DIRECTIONS["w"]
    at_zero = style(pipe, base=1, regions={"hair": 7}, strength=0, edits={"hair": a})
    assert torch.allclose(at_zero, style(pipe, base=1, edits={"hair": a}), atol=1e-5)


def test_strengths_and_codes_broadcast(pipe):
    a = DIRECTIONS["w"]
    row = pipe(base=1, edits={"hair": a([-1, 0, 2])}, output_type="latent")
    assert len(row.images) == 3 and torch.allclose(row.images[1:2], style(pipe, base=1), atol=1e-5)
    assert torch.allclose(row.images[2:], style(pipe, base=1, edits={"hair": a(2)}), atol=1e-5)
    twice = style(pipe, base=1, edits={"hair": a([1, 2])}, num_images_per_prompt=2)
    assert torch.equal(twice[0], twice[1]) and torch.equal(twice[2], twice[3])
    with pytest.raises(ValueError, match=re.escape("edits['hair'] length 3")):
        pipe(base=[1, 2], edits={"hair": a([1, 2, 3])})


def test_recipes_reproduce_edits(pipe):
    edits = {"hair": DIRECTIONS["w"]([1, 2]), "face": [DIRECTIONS["w+"], (DIRECTIONS["s"], -0.5)]}
    out = pipe(base=1, regions={"eyes": 3}, strength=0.5, edits=edits, output_type="pt")
    text = json.dumps(out.recipe)
    again = pipe.from_recipe(text, output_type="pt")
    assert torch.equal(again.images, out.images)
    assert out.recipe["edits"]["hair"][0]["space"] == "w" and out.recipe["edits"]["face"]["space"] == "s"
    one = pipe.from_recipe(Recipe.from_json(text).select(1), output_type="pt")
    assert torch.allclose(one.images, out.images[1:], atol=1e-4)
    del out.recipe["edits"]
    assert pipe.from_recipe(out.recipe).recipe.get("edits") is None  # older recipes


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"hare": DIRECTIONS["w"]}, "did you mean 'hair'"),
        ({"hair": "older"}, re.escape("edits['hair'] is a Direction")),
        ({"hair": []}, "an empty list"),
        ({"hair": (DIRECTIONS["w"], "2")}, "the strength of 'in-w'"),
        ({"hair": Direction("x", "w", draw(9))}, "direction 'x' has the shape"),
        ({"hair": Direction("x", "z", draw(Z_DIM))}, "not in z"),
        ([DIRECTIONS["w"]], "edits must be a dict"),
    ],
)
def test_the_pipeline_refuses(pipe, edits, message):
    with pytest.raises(ValueError, match=message):
        pipe(base=1, edits=edits)


def test_an_edit_without_effect_is_refused():
    pipe = tiny_pipeline(tree="all*(face(mouth, skin), hair)")
    with pytest.raises(ValueError, match=re.escape("edits['skin'] can have no effect: 'face' above it")):
        pipe(base=1, edits={"skin": DIRECTIONS["w"]})
    assert not torch.equal(style(pipe, base=1), style(pipe, base=1, edits={"face": DIRECTIONS["w"]}))


@pytest.mark.parametrize("entry", [7, {"space": "z", "shape": [1, 16], "data": "AAAA" * 21 + "AA=="}, "x"])
def test_recipes_with_other_edits(entry):
    with pytest.raises(ValueError, match=re.escape("edits['hair']")):
        Recipe.from_dict({"version": 1, "base": 1, "edits": {"hair": entry}})


# ----------------------------------------------------------------------------------------------------
# Files.


def test_files_come_back_as_they_went(tmp_path):
    path = tmp_path / "d.safetensors"
    made = [*DIRECTIONS.values(), Direction("in-z", "z", draw(4), provenance={"source": "a.npy", "method": "b"})]
    save_directions(path, made)
    found = load_directions(path)
    assert list(found) == [direction.name for direction in made]
    for direction in made:
        other = found[direction.name]
        assert torch.equal(other.tensor, direction.tensor)
        for name in ("name", "space", "scale", "layers", "provenance"):
            assert getattr(other, name) == getattr(direction, name)
    for wrong in ([], [made[0], made[0]]):
        with pytest.raises(ValueError, match="of different names"):
            save_directions(path, wrong)


def test_converted_files_are_read(tmp_path, g):
    components, deviations = np.random.RandomState(0).randn(2, 1, W_DIM), np.array([2.0, 0.5])
    np.savez(tmp_path / "a.npz", lat_comp=components, lat_stdev=deviations)
    convert(tmp_path / "a.npz", tmp_path / "out", progress=False, layers=[0, 1])
    found = load_directions(tmp_path / "out" / "directions.safetensors")
    assert list(found) == ["pc000", "pc001"]
    assert found["pc001"].scale == 0.5 and found["pc001"].layers == (0, 1)
    assert found["pc001"].provenance == {"source": "a.npz"}
    assert found["pc000"].step(g).tensor[0, 1, 0] == pytest.approx(2 * components[0, 0, 0], rel=1e-5)


GOOD = {"space": "w", "layers": None, "scale": 1.0, "source": ""}


def write(path: Path, table: Any, **metadata: str) -> None:
    text = table if isinstance(table, str) else json.dumps(table)
    about = {"format": "stylefusion-directions", "version": "1", "directions": text} | metadata
    save_file({"a": torch.ones(4)}, path, metadata=about)


@pytest.mark.parametrize(
    ("table", "metadata", "message"),
    [
        ({"a": GOOD}, {"format": "other"}, "lack format=stylefusion-directions"),
        ({"a": GOOD}, {"version": "2"}, "version=1"),
        ("{", {}, "is not JSON"),
        ("[" * 100_000, {}, "is not JSON"),
        ([], {}, "do not name the same"),
        ({"b": GOOD}, {}, "do not name the same"),
        ({"a": GOOD, "b": GOOD}, {}, "do not name the same"),
        ({"a": 1}, {}, "entry for 'a' is not an object"),
        ({"a": GOOD | {"provenance": 1}}, {}, "entry for 'a' is not an object"),
        ({"a": GOOD | {"space": "y"}}, {}, "unknown latent space"),
        ({"a": GOOD | {"space": ["w"]}}, {}, "unknown latent space"),
        ({"a": GOOD | {"space": "w+"}}, {}, "num_ws, w_dim"),
        ({"a": GOOD | {"scale": "1"}}, {}, "scale is a finite"),
        ({"a": GOOD | {"scale": 1e999}}, {}, "scale is a number that is not finite"),
        ({"a": GOOD | {"layers": [1.5]}}, {}, "layers are rows"),
        ({"a": GOOD | {"layers": "01"}}, {}, "layers are rows"),
        ({"a": GOOD | {"layers": 1}}, {}, "layers are rows"),
    ],
)
def test_hostile_tables(tmp_path, table, metadata, message):
    write(tmp_path / "d.safetensors", table, **metadata)
    with pytest.raises(ValueError, match=message) as caught:
        load_directions(tmp_path / "d.safetensors")
    assert len(str(caught.value)) < 600 and "d.safetensors" in str(caught.value)


def test_other_files(tmp_path):
    path = tmp_path / "d.safetensors"
    with pytest.raises(FileNotFoundError):
        load_directions(path)
    save_directions(path, DIRECTIONS.values())
    whole = path.read_bytes()
    np.save(tmp_path / "x.npy", np.zeros(3))
    contents = [b"", b"x", whole[:-1], whole[:50], b"\xff" * 100, (tmp_path / "x.npy").read_bytes()]
    for content in contents:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a file of directions .*stylefusion convert"):
            load_directions(path)
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="is not a file of directions"):
        load_directions(path)


# ----------------------------------------------------------------------------------------------------
# The commands.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(segmenter=True).save_pretrained(folder)
    return str(folder)


def test_edit_writes_the_edited_picture_and_its_recipe(elsewhere, model):
    save_directions("d.safetensors", DIRECTIONS.values())
    save_directions("one.safetensors", [DIRECTIONS["w"]])
    argv = "--base 1 --region eyes=3 --edit hair=d.safetensors:in-w=2.5 --edit hair=d.safetensors:in-s=-1"
    assert main(["edit", "--model", model, *argv.split(), "--edit", "face=one.safetensors"]) == 0
    edits = {"hair": DIRECTIONS["w"](2.5) + DIRECTIONS["s"](-1), "face": DIRECTIONS["w"]}
    expected = tiny_pipeline()(base=1, regions={"eyes": 3}, edits=edits).images[0]
    assert main(["fuse", "--model", model, "--from-recipe", "edited.png", "--out", "again.png"]) == 0
    for file in ("edited.png", "again.png"):
        with Image.open(file) as image:
            assert np.array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["edit"], "give at least one --edit"),
        (["edit", "--edit", "hair"], "expected NAME=FILE:DIRECTION=STRENGTH"),
        (["edit", "--edit", "hair=nowhere.safetensors:a"], "nowhere.safetensors: there is no such file"),
        (["edit", "--edit", "hair=d.safetensors:in-v=2"], "did you mean 'in-w'?"),
        (["edit", "--edit", "hair=d.safetensors"], "holds several directions, name one of in-w"),
        (["edit", "--edit", "hair=d.safetensors:in-w=much"], "'much' is not a finite number"),
        (["edit", "--edit", "hare=d.safetensors:in-w"], "did you mean 'hair'?"),
        (["edit", "--edit", "hair=x.safetensors:x"], "direction 'x' has the shape (batch, 9)"),
        (["edit", "--edit", "hair=z.safetensors:z"], "not in z"),
        (["edit", "--edit", "hair=d.npy:z"], "is not a file of directions"),
        (["fuse", "--from-recipe", "x.json", "--edit", "hair=d.safetensors:in-w"], "leave out --edit"),
        (["directions"], "JOB"),
        (["directions", "discover", "--method", "pca"], "invalid choice: 'pca'"),
        (["directions", "discover", "--count", "99"], "count is an integer from 1 to 16"),
        (["directions", "discover", "--layers", "0-x"], "not a list of rows"),
        (["directions", "discover", "--layers", "0-99"], "from 0 to 7, got 8"),
        (["directions", "discover", "--layers", "1", "--method", "ganspace"], "--layers goes with"),
        (["directions", "discover", "--out", "d.pt"], "ends in .safetensors"),
        (["directions", "sheet", "--file", "d.npy"], "is not a file of directions"),
        (["directions", "sheet", "--file", "d.safetensors", "--region", "hare"], "did you mean 'hair'?"),
    ],
)
def test_commands_refuse(elsewhere, model, capsys, argv, message):
    save_directions("d.safetensors", DIRECTIONS.values())
    save_directions("x.safetensors", [Direction("x", "w", draw(9))])
    save_directions("z.safetensors", [Direction("z", "z", draw(Z_DIM))])
    np.save("d.npy", np.zeros(3))
    before = {path.name for path in Path.cwd().iterdir()}
    model_flag = ["--model", model] if len(argv) > 1 or argv == ["edit"] else []
    assert message in fails(capsys, *argv, *model_flag)
    assert {path.name for path in Path.cwd().iterdir()} == before
