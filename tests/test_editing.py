"""Directions and edits: what is found, what is added to which code, what files hold, and what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from benchmarks.edits import at_equal
from stylefusion_hf import Code, Direction
from stylefusion_hf.cli import main
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.directions import (
    STATISTICS,
    boundary_from_labels,
    boundary_from_regions,
    ganspace,
    measure_regions,
    principal_components,
    sample_w,
    sefa,
    style_channel,
)
from stylefusion_hf.editing import Edit, load_directions, save_directions
from stylefusion_hf.evaluation.statistics import resamples
from stylefusion_hf.recipes import Recipe
from tests.command_line import fails
from tests.tiny import NUM_WS, RESOLUTION, STYLE_DIM, W_DIM, Z_DIM, tiny_generator, tiny_pipeline, tiny_segmenter


@pytest.fixture(scope="module")
def g():
    return tiny_generator().requires_grad_(False)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline(segmenter=True)


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


DIRECTIONS = {
    "w": Direction("in-w", "w", random(W_DIM), scale=0.5),
    "w, some rows": Direction("rows", "w", random(W_DIM, seed=1), layers=(0, 3)),
    "w+": Direction("in-wplus", "w+", random(NUM_WS, W_DIM, seed=2)),
    "s": Direction("in-s", "s", random(STYLE_DIM, seed=3), scale=2.0),
    "convolutions": Direction("convs", "s", random(56, seed=4)),
    "s, some rows": Direction("s-rows", "s", random(STYLE_DIM, seed=5), layers=(1,)),
}


def style(pipe, **call) -> torch.Tensor:
    return pipe(**call, output_type="latent").style_codes


# ----------------------------------------------------------------------------------------------------
# Finding: closed forms against plain references.


@pytest.mark.parametrize("layers", [None, [0, 3]])
def test_sefa_is_the_eigenvectors_of_the_affine_layers(g, layers):
    found = sefa(g, 5, layers)
    matrix = g.affine_weight.double() / W_DIM**0.5
    if layers:
        matrix = matrix[[k for k, row in enumerate(g.style_rows.tolist()) if row in layers]]
    _, values, vectors = torch.linalg.svd(matrix)
    for k, direction in enumerate(found):
        v = direction.tensor.double()
        assert torch.allclose(matrix.t() @ (matrix @ v), values[k] ** 2 * v, atol=1e-4)
        assert abs(float(v @ vectors[k])) == pytest.approx(1, abs=1e-5)
        assert v[v.abs().argmax()] > 0
        assert direction.scale == pytest.approx(float((sample_w(g, 2000) @ direction.tensor).std()), rel=1e-4)
        assert direction.layers == (None if layers is None else (0, 3))
    assert [direction.name for direction in found] == [f"sefa-{k}" for k in range(5)]


@pytest.mark.parametrize("shape", [(200, 12), (20, 300)])
def test_principal_components_are_those_of_the_samples(shape):
    x = random(*shape) * torch.linspace(3, 1, shape[1]) + 5
    vectors, deviations = principal_components(x, 4)
    centred = x.double() - x.double().mean(0)
    _, values, reference = torch.linalg.svd(centred, full_matrices=False)
    assert torch.allclose(deviations, values[:4] / (len(x) - 1) ** 0.5)
    assert torch.allclose((vectors * reference[:4]).sum(1).abs(), torch.ones(4, dtype=torch.float64), atol=1e-6)
    assert torch.allclose(vectors @ vectors.t(), torch.eye(4, dtype=torch.float64), atol=1e-6)


def test_ganspace_of_w_and_of_features(g):
    w = sample_w(g, 500)
    found = ganspace(g, 3, samples=500)
    _, values, vectors = torch.linalg.svd(w - w.mean(0), full_matrices=False)
    for k, direction in enumerate(found):
        assert abs(float(direction.tensor @ vectors[k])) == pytest.approx(1, abs=1e-3)
        assert direction.scale == pytest.approx(float(values[k]) / 499**0.5, rel=1e-3)
    assert [direction.name for direction in found] == ["pc000", "pc001", "pc002"]

    found = ganspace(g, 2, samples=300, space="features", resolution=4)
    w = sample_w(g, 300)
    x = g.synthesis(g.to_style(w), return_features=True)[1][4].flatten(1)
    u, values, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    coordinates = u * values
    for k, direction in enumerate(found):
        fit = torch.linalg.lstsq(coordinates[:, :6], w - w.mean(0)).solution[k] * values[k] / 299**0.5
        cosine = torch.nn.functional.cosine_similarity(fit, direction.tensor, dim=0)
        assert abs(float(cosine)) == pytest.approx(1, abs=1e-3)
        assert direction.scale == pytest.approx(float(fit.norm()), rel=1e-2)


def test_a_boundary_finds_the_planted_direction():
    codes, planted = random(3000, 16) * torch.linspace(0.5, 3, 16), random(16, seed=1)
    planted /= planted.norm()
    along = codes @ planted
    for labels in (along > 0, (along > 0).int() * 2 - 1, along * 3 + 7, (along * 3).tolist()):
        direction = boundary_from_labels(codes, labels, "smile")
        assert float(direction.tensor @ planted) > 0.98
        assert float(direction.tensor.norm()) == pytest.approx(1)
        assert direction.scale == pytest.approx(float((codes @ direction.tensor).std()), rel=1e-3)
    assert boundary_from_labels(codes, along).provenance["r2"] > 0.999
    rows = codes.reshape(3000, 4, 4)
    assert boundary_from_labels(rows, along, space="w+").tensor.shape == (4, 4)
    for labels, message in (
        ([1] * 3000, "all labels are the same"),
        ([1, 2], "a label for each of 3000"),
        (along / 0, "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            boundary_from_labels(codes, labels)


class Planted:
    """A segmenter that sees "hair" all over the picture, as strongly as the picture is bright."""

    def __init__(self):
        self.config = type("Config", (), {"regions": ["background", "hair"]})
        self.dtype = torch.float32

    def segment(self, images):
        level = images.mean((1, 2, 3))[:, None, None].expand(-1, *images.shape[2:])
        return torch.stack([torch.zeros_like(level), level], 1)


def test_a_boundary_of_a_region_moves_its_statistic(g):
    direction = boundary_from_regions(g, Planted(), "hair", "area", samples=400)
    w = sample_w(g, 100, seed=9) * 0.3
    pictures = [g.synthesis(g.to_style(w + a * direction.scale * direction.tensor)) for a in (-1, 0, 1)]
    low, middle, high = (Planted().segment(x.clamp(-1, 1))[:, 1].mean() for x in pictures)
    assert low < middle < high
    assert direction.name == "hair-area" and direction.provenance["r2"] > 0.1

    segmenter = tiny_segmenter()
    measured = measure_regions(g, segmenter, 130)
    assert set(measured.values) == {(region, s) for region in segmenter.config.regions for s in STATISTICS}
    assert sum(measured.values[region, "area"] for region in segmenter.config.regions).allclose(torch.ones(130))
    with pytest.raises(ValueError, match="unknown region 'hare'"):
        boundary_from_regions(g, segmenter, "hare", measured=measured)
    with pytest.raises(ValueError, match="unknown statistic 'size': choose from area"):
        boundary_from_regions(g, segmenter, "hair", "size", measured=measured)


def test_a_style_channel_changes_one_number(g):
    direction = style_channel(g, "conv2", 3)
    code = Code(g.to_style(sample_w(g, 2)), "s")
    changed = direction(2.0)(code, g).tensor - code.tensor
    assert (changed[0] != 0).sum() == 1
    column = g.split_style(changed)["conv2"][:, 3]
    deviation = g.split_style(g.to_style(sample_w(g, 2000)))["conv2"][:, 3].std()
    assert torch.allclose(column, 2 * deviation.expand(2), rtol=1e-3)
    with pytest.raises(ValueError, match="'conv9' is no layer of this generator: it has conv0"):
        style_channel(g, "conv9", 0)
    with pytest.raises(ValueError, match="from 0 to 7, got 8"):
        style_channel(g, "conv2", 8)


def test_samples_are_the_same_every_time_and_have_classes_where_the_generator_has():
    g = tiny_generator(label_dim=3)
    assert torch.equal(sample_w(g, 50, 1), sample_w(g, 50, 1))
    assert not torch.equal(sample_w(g, 50, 1), sample_w(g, 50, 2))
    assert sample_w(g, 50).std(dim=0).min() > 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: sefa(g, 17), "count is an integer from 1 to 16"),
        (lambda g: sefa(g, 1, [8]), "from 0 to 7, got 8"),
        (lambda g: sefa(g, 1, []), "layers is empty"),
        (lambda g: ganspace(g, 1, 10, space="z"), "unknown space 'z'"),
        (lambda g: ganspace(g, 1, 10, space="features", resolution=5), "4, 8, 16, 32 pixels, not 5"),
        (lambda g: ganspace(g, 10, 5), "from 1 to 4, got 10"),
        (lambda g: sample_w(g, 1), "samples is an integer from 2"),
    ],
)
def test_finding_refuses(g, call, message):
    with pytest.raises(ValueError, match=message):
        call(g)


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
    direction = Direction("in-z", "z", random(Z_DIM))
    z = Code(random(2, Z_DIM, seed=1), "z")
    assert torch.equal(direction(2.0)(z, g).tensor, z.tensor + 2 * direction.tensor)
    with pytest.raises(ValueError, match="in z cannot be added to one in w"):
        direction(1.0)(Code(random(1, W_DIM), "w"), g)
    for name in ("w", "s"):
        with pytest.raises(ValueError, match="cannot be added"):
            DIRECTIONS[name](1.0)(z, g)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a b", "w", random(4)), "without : = and spaces"),
        (("a=b", "w", random(4)), "without : = and spaces"),
        (("a", "x", random(4)), "unknown latent space 'x'"),
        (("a", "w", random(4, 4)), r"floats \(numbers,\), got \(4, 4\)"),
        (("a", "w+", random(4)), r"\(num_ws, w_dim\)"),
        (("a", "w", torch.zeros(4)), "is zero"),
        (("a", "w", random(4) / 0), "not finite"),
        (("a", "w", [1.0]), "got list"),
        (("a", "w", random(4), float("nan")), "scale is a finite number"),
        (("a", "w", random(4), 1.0, [-1]), "layers are rows"),
        (("a", "z", random(4), 1.0, [1]), "layers are rows"),
        (("a", "w", random(4), 1.0, []), "layers are rows"),
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
        Direction("other", "w", random(9))(1.0)(Code(random(1, W_DIM), "w"), g)
    with pytest.raises(ValueError, match="row 8 of w"):
        Direction("other", "w", random(W_DIM), layers=(8,)).step(g)
    with pytest.raises(ValueError, match="give one length, or 1"):
        (direction([1, 2]) + direction([1, 2, 3])).displacement(g)
    with pytest.raises(ValueError, match="length 3"):
        direction([1, 2, 3])(Code(random(2, W_DIM), "w"), g)


# ----------------------------------------------------------------------------------------------------
# In the pipeline.


@pytest.mark.parametrize("kind", DIRECTIONS)
def test_an_edit_enters_the_regions_own_code_alone(pipe, monkeypatch, kind):
    given: list[dict[str, torch.Tensor]] = []
    fuse = pipe.fusion.fuse
    monkeypatch.setattr(pipe.fusion, "fuse", lambda codes: given.append(dict(codes)) or fuse(codes))
    call: dict[str, Any] = {"base": 1, "regions": {"eyes": 4}, "strength": 0.5}
    style(pipe, **call)
    style(pipe, **call, edits={"hair": DIRECTIONS[kind](1.5)})
    plain, edited = given
    assert [node for node in plain if not torch.equal(plain[node], edited[node])] == ["hair"]
    moved = DIRECTIONS[kind](1.5)(Code(plain["hair"], "s"), pipe.generator)
    assert torch.allclose(edited["hair"], moved.tensor, atol=1e-5)


def test_an_inner_node_edits_its_subtree_and_edits_add_up(pipe, monkeypatch):
    given: list[dict[str, torch.Tensor]] = []
    fuse = pipe.fusion.fuse
    monkeypatch.setattr(pipe.fusion, "fuse", lambda codes: given.append(dict(codes)) or fuse(codes))
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
        ({"hair": []}, "without an item"),
        ({"hair": (DIRECTIONS["w"], "2")}, "the strength of 'in-w'"),
        ({"hair": Direction("x", "w", random(9))}, "direction 'x' has the shape"),
        ({"hair": Direction("x", "z", random(Z_DIM))}, "nothing in z"),
        ([DIRECTIONS["w"]], "edits is a dict"),
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
    made = [*DIRECTIONS.values(), Direction("in-z", "z", random(4), provenance={"source": "a.npy", "method": "b"})]
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
        ({"a": 1}, {}, "entry of 'a' is no object"),
        ({"a": GOOD | {"provenance": 1}}, {}, "entry of 'a' is no object"),
        ({"a": GOOD | {"space": "y"}}, {}, "unknown latent space"),
        ({"a": GOOD | {"space": ["w"]}}, {}, "unknown latent space"),
        ({"a": GOOD | {"space": "w+"}}, {}, "num_ws, w_dim"),
        ({"a": GOOD | {"scale": "1"}}, {}, "scale is a finite"),
        ({"a": GOOD | {"scale": 1e999}}, {}, "scale is a finite"),
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
        with pytest.raises(ValueError, match="is no directions file .*stylefusion convert"):
            load_directions(path)
    save_file({"a": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="is no directions file"):
        load_directions(path)


# ----------------------------------------------------------------------------------------------------
# The benchmark.


def test_the_benchmark_reads_the_ratio_where_the_inside_is_equal():
    whole_in, whole_out = random(20).abs() + 1, random(20, seed=1).abs() + 1
    # inside grows as a^2, outside as a^3 / 8: equal inside at a = 2, where the ratio is 2
    sums = [torch.stack([whole_in * a**2 / 4, whole_out * a**3 / 16, whole_in, whole_out]).double() for a in (1, 3)]
    draws = at_equal(resamples(20), sums, [1.0, 3.0])
    assert torch.allclose(draws.exp(), torch.full_like(draws, 2.0), atol=1e-6)


# ----------------------------------------------------------------------------------------------------
# The commands.


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_pipeline(segmenter=True).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STYLEFUSION_DEBUG", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)


@pytest.mark.parametrize("method", ["sefa", "ganspace", "regions"])
def test_discover_writes_directions_and_a_sheet(elsewhere, model, capsys, method):
    argv = ["discover", "--method", method, "--count", "2", "--samples", "300", "--model", model]
    assert main(["directions", *argv, "--out", "new/d.safetensors", "--sheet", "d.png"]) == 0
    found = load_directions("new/d.safetensors")
    assert len(found) == 2 and all(name in capsys.readouterr().out for name in list(found)[:1])
    with Image.open("d.png") as sheet:
        assert sheet.width > 7 * RESOLUTION and sheet.height > 2 * RESOLUTION
    if method == "sefa":
        argv = ["--file", "new/d.safetensors", "--region", "hair", "--out", "hair.png", "--model", model]
        assert main(["directions", "sheet", *argv]) == 0
        assert Path("hair.png").read_bytes() != Path("d.png").read_bytes()


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
        (["edit", "--edit", "hair=nowhere.safetensors:a"], "nowhere.safetensors: no such file"),
        (["edit", "--edit", "hair=d.safetensors:in-v=2"], "did you mean 'in-w'?"),
        (["edit", "--edit", "hair=d.safetensors"], "holds several directions, name one of in-w"),
        (["edit", "--edit", "hair=d.safetensors:in-w=much"], "'much' is no number"),
        (["edit", "--edit", "hare=d.safetensors:in-w"], "did you mean 'hair'?"),
        (["edit", "--edit", "hair=x.safetensors:x"], "direction 'x' has the shape (batch, 9)"),
        (["edit", "--edit", "hair=z.safetensors:z"], "nothing in z"),
        (["edit", "--edit", "hair=d.npy:z"], "is no directions file"),
        (["fuse", "--from-recipe", "x.json", "--edit", "hair=d.safetensors:in-w"], "leave out --edit"),
        (["directions"], "JOB"),
        (["directions", "discover", "--method", "pca"], "invalid choice: 'pca'"),
        (["directions", "discover", "--count", "99"], "count is an integer from 1 to 16"),
        (["directions", "discover", "--layers", "0-x"], "no list of rows"),
        (["directions", "discover", "--layers", "0-99"], "from 0 to 7, got 8"),
        (["directions", "discover", "--layers", "1", "--method", "ganspace"], "--layers goes with"),
        (["directions", "discover", "--out", "d.pt"], "ends in .safetensors"),
        (["directions", "sheet", "--file", "d.npy"], "is no directions file"),
        (["directions", "sheet", "--file", "d.safetensors", "--region", "hare"], "did you mean 'hair'?"),
    ],
)
def test_commands_refuse(elsewhere, model, capsys, argv, message):
    save_directions("d.safetensors", DIRECTIONS.values())
    save_directions("x.safetensors", [Direction("x", "w", random(9))])
    save_directions("z.safetensors", [Direction("z", "z", random(Z_DIM))])
    np.save("d.npy", np.zeros(3))
    before = {path.name for path in Path.cwd().iterdir()}
    model_flag = ["--model", model] if len(argv) > 1 or argv == ["edit"] else []
    assert message in fails(capsys, *argv, *model_flag)
    assert {path.name for path in Path.cwd().iterdir()} == before
