"""Recipes: there and back through JSON, and every way in which one can be wrong."""

import ast
import base64
import copy
import json
import math
import pickle
from typing import Any

import pytest
import torch

from stylefusion_hf.core.codes import Code
from stylefusion_hf.core.recipes import MAX_CHARACTERS, MAX_IMAGES, Recipe

SHA = "0123456789abcdef" * 4


def code_entry(tensor: torch.Tensor, space: str = "w") -> dict[str, Any]:
    data = base64.b64encode(tensor.float().numpy().tobytes()).decode()
    return {"space": space, "shape": list(tensor.shape), "data": data}


def full_recipe() -> Recipe:
    wp = Code(torch.randn(2, 3, 4), "w+").rows()
    return Recipe(
        base=(1, 4294967295),
        num_images=2,
        regions={"hair": wp, "eyes": (7,)},
        nodes={"face": (Code(torch.tensor([[1e-30, -0.0, 9.9e11]]), "s"),)},
        global_code=(5,),
        class_labels=(0, (0.5, 0.25)),
        truncation_psi=0.7,
        truncation_cutoff=0,
        strength={"hair": 0.3},
        noise_mode="random",
        noise_seeds=(8, 9),
        model={"name": "user/repo", "sha256": {"generator": SHA}},
    )


def assert_same(a: Recipe, b: Recipe) -> None:
    assert a.to_dict() == b.to_dict()
    for (name, rows), (other, others) in zip(a.groups().items(), b.groups().items(), strict=True):
        assert name == other
        for row, twin in zip(rows, others, strict=True):
            if isinstance(row, Code):
                assert isinstance(twin, Code)
                assert row.space == twin.space
                assert torch.equal(row.tensor, twin.tensor)
            else:
                assert row == twin


def test_round_trip():
    recipe = full_recipe()
    assert_same(Recipe.from_json(recipe.to_json()), recipe)
    assert_same(Recipe.from_json(recipe.to_json(indent=2)), recipe)


def test_recipes_of_seeds_are_short():
    recipe = Recipe(base=(1,), num_images=1, regions={"hair": (7,)}, truncation_psi=0.7)
    text = '{"version": 1, "num_images": 1, "base": 1, "regions": {"hair": 7}, "truncation_psi": 0.7, '
    assert recipe.to_json() == text + '"noise_mode": "const"}'


def test_what_may_be_left_out():
    recipe = Recipe.from_dict({"version": 1, "base": 1, "global_code": [4, 5, 6], "strength": 1, "model": None})
    assert recipe.num_images == 3
    assert recipe.truncation_psi is None  # the model's own
    assert Recipe.from_dict({"version": 1, "base": 1, "num_images": 4}).num_images == 4


def test_the_recipe_of_one_picture():
    recipe = full_recipe()
    second = recipe.select(1)
    assert (second.num_images, second.base, second.noise_seeds) == (1, (4294967295,), (9,))
    assert second.class_labels == ((0.5, 0.25),)
    assert second.regions["hair"] == (recipe.regions["hair"][1],)
    assert second.regions["eyes"] == (7,)
    with pytest.raises(ValueError, match="pictures 0 to 1, there is no 2"):
        recipe.select(2)


# ----------------------------------------------------------------------------------------------------
# Wrong recipes: one ValueError that names the field.

W = code_entry(torch.zeros(1, 4))
NOT_FINITE = code_entry(torch.tensor([[1.0, math.nan]]))
DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]

BAD: dict[str, tuple[Any, str]] = {
    "not an object": ([1], "a recipe is a JSON object, got list"),
    "no version": ({"base": 1}, "version: .* got None"),
    "a later version": ({"version": 2, "base": 1}, "version: this package reads recipes of version 1, got 2"),
    "version true": ({"version": True, "base": 1}, "version"),
    "unknown field": ({"version": 1, "base": 1, "basis": 2}, "unknown field 'basis'"),
    "no base": ({"version": 1}, "base: the recipe has no base"),
    "base": ({"base": "1"}, "base: a seed"),
    "bool": ({"base": True}, "base: a seed"),
    "negative": ({"base": [1, -1]}, "base: a seed"),
    "float": ({"base": 1.0}, "base: a seed"),
    "null in a list": ({"base": [None]}, "base: a seed"),
    "empty": ({"base": []}, "base: the number of codes"),
    "too many": ({"base": [1] * (MAX_IMAGES + 1)}, "base: the number of codes"),
    "nested": ({"base": [[1]]}, "base: a seed"),
    "deep": ({"base": DEEP}, "base: a seed"),
    "huge text": ({"base": "x" * 10**6}, r"base: a seed .{0,80}$"),
    "fields": (
        {"global_code": {"space": "w"}},
        "global_code: a code is a seed or an object with space, shape and data",
    ),
    "more fields": (
        {"global_code": {**W, "pickle": ""}},
        "global_code: a code is a seed or an object with space, shape and data",
    ),
    "space": ({"regions": {"hair": {**W, "space": "x"}}}, r"regions\['hair'\]: unknown latent space 'x'"),
    "space of another kind": ({"base": {**W, "space": {}}}, "base: unknown latent space"),
    "shape": ({"nodes": {"hair": {**W, "shape": [1, 2, 2]}}}, r"nodes\['hair'\]: the shape of a code in w"),
    "batch": ({"base": {**W, "shape": [2, 2]}}, "base: the shape"),
    "shape of text": ({"base": {**W, "shape": "14"}}, "base: the shape"),
    "negative size": ({"base": {**W, "shape": [1, -4]}}, "base: a size in shape"),
    "size of another kind": ({"base": {**W, "shape": [1, 4.0]}}, "base: a size in shape"),
    "huge size": ({"base": {**W, "shape": [1, 2**40]}}, "base: a size in shape"),
    "huge product": ({"base": {"space": "w+", "shape": [1, 2**18, 2**18], "data": ""}}, "base: the count of numbers"),
    "length of data": ({"base": {**W, "shape": [1, 5]}}, r"base: data of the shape \[1, 5\] is text of 28 characters"),
    "data of another kind": ({"base": {**W, "data": [1]}}, "base: data .* got list"),
    "not base64": ({"base": {**W, "data": "?" * 24}}, "base: data is not the base64 text"),
    "not ASCII": ({"base": {**W, "data": "é" * 24}}, "base: data is not the base64 text"),
    "padding": ({"base": {**W, "data": "A" * 24}}, "base: data is not the base64 text"),
    "not finite": ({"base": NOT_FINITE}, "base: data is not the base64 text of finite"),
    "regions": ({"regions": [1]}, "regions is an object"),
    "num_images": ({"num_images": 0}, f"num_images is an integer from 1 to {MAX_IMAGES}"),
    "many images": ({"num_images": 10**9}, "num_images"),
    "num_images of another kind": ({"num_images": "2"}, "num_images"),
    "lengths": ({"base": [1, 2], "global_code": [1, 2, 3]}, "base has length 2 and global_code length 3"),
    "length and num_images": ({"base": [1, 2], "num_images": 3}, "base has length 2 and num_images is 3"),
    "class_labels": ({"class_labels": ["a"]}, "class_labels"),
    "empty class_labels": ({"class_labels": []}, "class_labels is an empty list"),
    "truncation_psi": ({"truncation_psi": "0.7"}, "truncation_psi is a number"),
    "psi is not finite": ({"truncation_psi": math.nan}, "truncation_psi"),
    "psi is huge": ({"truncation_psi": 10**4000}, "truncation_psi"),
    "truncation_cutoff": ({"truncation_cutoff": -1}, "truncation_cutoff"),
    "strength": ({"strength": 1.5}, "strength is a number from 0 to 1, got 1.5"),
    "strength of a node": ({"strength": {"hair": -0.1}}, r"strength\['hair'\] is a number from 0 to 1"),
    "strength bool": ({"strength": True}, "strength"),
    "noise_mode": ({"noise_mode": "loud"}, "noise_mode 'loud': choose from const, random, none"),
    "noise_mode of another kind": ({"noise_mode": ["const"]}, "noise_mode"),
    "random noise without seeds": ({"noise_mode": "random"}, "noise_seeds"),
    "noise_seeds without random": ({"noise_seeds": [1]}, "noise_seeds"),
    "noise_seeds": ({"noise_mode": "random", "noise_seeds": 3}, "noise_seeds is a list"),
    "noise seed": ({"noise_mode": "random", "noise_seeds": [-3]}, "noise_seeds: a seed"),
    "model": ({"model": "avatar"}, "model is an object"),
    "model's fields": ({"model": {"name": "a", "path": "b"}}, "model has a name"),
    "model's name": ({"model": {"name": "a" * 300}}, "model has a name"),
    "sha256": ({"model": {"name": None, "sha256": {"generator": "00"}}}, "model: the sha256 of 'generator'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_recipes(case):
    data, message = BAD[case]
    if isinstance(data, dict) and not case.endswith("version") and case not in ("version true", "no base"):
        data = {"version": 1, "base": 1, **data}
    with pytest.raises(ValueError, match=message) as error:
        Recipe.from_dict(data)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 10**6, "not JSON"),
        ("null", "JSON object, got NoneType"),
        ('{"version": 1, "base": ' + "9" * 5000 + "}", "not JSON"),
        ('{"version": 1, "base": 1, "truncation_psi": NaN}', "truncation_psi"),
        ("x" * (MAX_CHARACTERS + 1), "at most"),
    ],
    ids=["empty", "open", "deep", "null", "long number", "NaN", "large"],
)
def test_bad_json(text, message):
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(text)


def test_a_recipe_is_json_without_nan():
    json.loads(full_recipe().to_json(), parse_constant=lambda name: pytest.fail(name))


def test_a_recipe_prints_as_json():
    data = full_recipe().to_dict()
    assert json.loads(str(data)) == data == json.loads(f"{data}")
    assert ast.literal_eval(repr(data)) == data  # and Python's own way to write it
    for copied in (copy.deepcopy(data), pickle.loads(pickle.dumps(data)), Recipe.from_dict(data).to_dict()):
        assert str(copied) == str(data)
    assert isinstance(data, dict)
