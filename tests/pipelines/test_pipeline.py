"""StyleFusionPipeline on tiny random models: every promise of the interface."""

import doctest
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import Code, StyleFusionPipeline
from stylefusion_hf.core import codes, recipes
from stylefusion_hf.core.codes import seed_classes, seeds_to_z
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.models import latents
from stylefusion_hf.models.latents import codes_to_style
from stylefusion_hf.pipelines import fuse
from stylefusion_hf.pipelines.output import StyleFusionPipelineOutput
from tests.tiny import (
    NUM_WS,
    STYLE_DIM,
    W_DIM,
    Z_DIM,
    TinyEncoder,
    tiny_pipeline,
)

LEAVES = ("mouth", "skin", "eyes", "clothes", "background", "hair")
INNER = ("all", "face", "skin_mouth", "bg_hair_clothes", "bg_clothes")


@pytest.fixture(scope="module")
def pipe() -> StyleFusionPipeline:
    return tiny_pipeline(segmenter=True)


def styles(pipe: StyleFusionPipeline, **call) -> torch.Tensor:
    return pipe(**call, output_type="latent").images


def by_hand(pipe: StyleFusionPipeline, seeds: dict[str, int], psi: float = 0.7) -> torch.Tensor:
    """The fused code of one seed a node."""
    with torch.no_grad():
        rows = {seed: codes_to_style(pipe.generator, [seed], truncation_psi=psi) for seed in set(seeds.values())}
        return pipe.fusion.fuse({node: rows[seed] for node, seed in seeds.items()})


def close(a: torch.Tensor, b: torch.Tensor, atol: float = 1e-4) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, atol=atol)


# ----------------------------------------------------------------------------------------------------
# What the codes do.

NAMED: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "leaf": ({"regions": {"hair": 7}}, {"hair": 7}),
    "inner node": ({"regions": {"face": 7}}, dict.fromkeys(["face", "skin_mouth", "mouth", "skin", "eyes"], 7)),
    "more specific": (
        {"regions": {"face": 7, "skin_mouth": 8, "mouth": 9}},
        {"face": 7, "eyes": 7, "skin_mouth": 8, "skin": 8, "mouth": 9},
    ),
    "root": ({"regions": {"all": 7}}, dict.fromkeys(LEAVES + INNER, 7)),
    "global": ({"global_code": 5}, dict.fromkeys(INNER, 5)),
    "global beside inner": (
        {"regions": {"face": 7}, "global_code": 5},
        dict.fromkeys(INNER, 5) | dict.fromkeys(["face", "skin_mouth", "mouth", "skin", "eyes"], 7),
    ),
    "nodes": ({"nodes": {"face": 7}}, {"face": 7}),
    "nodes win": (
        {"regions": {"face": 7, "hair": 8}, "global_code": 5, "nodes": {"face": 9, "hair": 10, "bg_clothes": 11}},
        dict.fromkeys(INNER, 5)
        | dict.fromkeys(["skin_mouth", "mouth", "skin", "eyes"], 7)
        | {"face": 9, "hair": 10, "bg_clothes": 11},
    ),
}


@pytest.mark.parametrize("case", NAMED)
def test_every_node_takes_the_code_that_is_meant_for_it(pipe, case):
    call, expected = NAMED[case]
    assert close(styles(pipe, base=1, **call), by_hand(pipe, dict.fromkeys(LEAVES + INNER, 1) | expected))


def test_equal_codes_give_the_plain_picture_exactly(pipe):
    with torch.no_grad():
        plain = pipe.generator(seeds_to_z([1, 2, 3], Z_DIM), truncation_psi=0.7)
    expected = (plain.sample / 2 + 0.5).clamp(0, 1)
    out = pipe(base=[1, 2, 3], output_type="pt")
    assert torch.equal(out.images, expected)
    assert torch.equal(out.style_codes, plain.style_codes)
    out = pipe(base=[1, 2, 3], regions={"hair": [1, 2, 3]}, global_code=[1, 2, 3], output_type="pt")
    assert torch.equal(out.images, expected)
    code = Code(plain.style_codes, "s")  # equal numbers, not the same object: these pass the nets
    assert torch.equal(pipe(base=code, nodes={"hair": Code(code.tensor, "s")}, output_type="pt").images, expected)


def test_strength_moves_from_the_base_to_the_code(pipe):
    with torch.no_grad():
        base, hair, shared = (codes_to_style(pipe.generator, [seed], truncation_psi=0.7) for seed in (1, 7, 5))
    call: dict[str, Any] = {"base": 1, "regions": {"hair": 7}, "global_code": 5}

    def expected(for_hair, for_global):
        codes = dict.fromkeys(INNER, base + for_global * (shared - base))
        codes |= dict.fromkeys(LEAVES, base) | {"hair": base + for_hair * (hair - base)}
        with torch.no_grad():
            return pipe.fusion.fuse(codes)

    assert close(styles(pipe, **call, strength=0.25), expected(0.25, 0.25))
    assert close(styles(pipe, **call, strength={"hair": 0.25}), expected(0.25, 1))
    assert close(styles(pipe, **call, strength={"hair": 0.5, "all": 0.25}), expected(0.5, 0.25))
    assert torch.equal(styles(pipe, **call, strength=0), styles(pipe, base=[1, 7, 5])[:1])
    subtree = styles(pipe, base=1, regions={"face": 7}, strength={"face": 0.5})
    halfway = Code(base + 0.5 * (hair - base), "s")
    assert close(subtree, styles(pipe, base=1, regions={"face": halfway}))


def test_truncation_is_for_seeds_and_z_only(pipe):
    w = Code(torch.randn(1, W_DIM), "w")
    assert torch.equal(styles(pipe, base=w, truncation_psi=0.1), styles(pipe, base=w, truncation_psi=1.5))
    assert torch.equal(styles(pipe, base=1), styles(pipe, base=1, truncation_psi=0.7))  # the model's own
    seed = by_hand(pipe, dict.fromkeys(LEAVES + INNER, 1), psi=0.3)
    assert torch.equal(styles(pipe, base=1, truncation_psi=0.3), seed)
    assert torch.equal(styles(pipe, base=seeds_to_z([1], Z_DIM), truncation_psi=0.3), seed)
    assert not close(styles(pipe, base=1, truncation_psi=0.3, truncation_cutoff=2), seed)
    assert close(styles(pipe, base=1, truncation_psi=0.3, truncation_cutoff=NUM_WS), seed)


def test_one_call_mixes_spaces(pipe):
    with torch.no_grad():
        w = pipe.generator.mapping(seeds_to_z([7], Z_DIM))
        rows = w[:, None].repeat(1, NUM_WS, 1)
        style = pipe.generator.to_style(w)
    z = seeds_to_z([7], Z_DIM).double()
    expected = styles(pipe, base=1, regions={"hair": 7, "eyes": 7, "mouth": 7}, global_code=7, truncation_psi=1)
    mixed = {"hair": Code(w, "w"), "eyes": Code(style, "s"), "mouth": Code(z, "z")}
    call: dict[str, Any] = {"base": 1, "regions": mixed, "truncation_psi": 1}
    assert close(styles(pipe, **call, global_code=rows, latent_type="w+"), expected)
    assert close(styles(pipe, **call, global_code=Code(rows, "w+")), expected)


def test_images_are_encoded():
    pipe = tiny_pipeline()
    pipe.register_modules(encoder=TinyEncoder())
    white = Image.new("RGB", (50, 50), "white")
    out = pipe(base=1, regions={"hair": white}, output_type="latent")
    ones = Code(torch.ones(1, NUM_WS, W_DIM), "w+")
    assert close(out.images, styles(pipe, base=1, regions={"hair": ones}))
    assert torch.equal(pipe.from_recipe(out.recipe, output_type="latent").images, out.images)
    assert pipe.encoder.batches == [1]  # recipes keep the code


# ----------------------------------------------------------------------------------------------------
# Batches.


def test_lists_broadcast_and_samples_equal_their_single_runs(pipe):
    z = torch.randn(3, Z_DIM)
    batch = pipe(base=1, regions={"hair": [3, 4, 5], "eyes": z}, global_code=Code(z[:1], "z"), output_type="pt")
    assert batch.images.shape == (3, 3, 32, 32)
    for i, seed in enumerate((3, 4, 5)):
        single = pipe(base=1, regions={"hair": seed, "eyes": z[i]}, global_code=Code(z[:1], "z"), output_type="pt")
        assert close(batch.images[i : i + 1], single.images)
        assert close(batch.style_codes[i : i + 1], single.style_codes)
        again = pipe.from_recipe(Recipe.from_dict(batch.recipe).select(i), output_type="pt")
        assert torch.equal(again.images, single.images)


def test_several_pictures_an_input(pipe):
    given = styles(pipe, base=[1, 2], regions={"hair": 7}, num_images_per_prompt=3)
    assert torch.equal(given, styles(pipe, base=[1, 2], regions={"hair": 7}).repeat_interleave(3, dim=0))
    assert len(pipe(base=1, num_images_per_prompt=3).images) == 3
    drawn = pipe(regions={"hair": [7, 8]}, num_images_per_prompt=2, generator=torch.Generator().manual_seed(0))
    assert len(set(drawn.recipe["base"])) == 4  # what is drawn differs from picture to picture
    assert drawn.recipe["regions"]["hair"] == [7, 7, 8, 8]
    assert torch.equal(pipe.from_recipe(drawn.recipe).style_codes, drawn.style_codes)


def test_a_base_is_drawn_from_the_generator(pipe):
    def seeded(seed=0):
        return torch.Generator().manual_seed(seed)

    seeds = pipe(num_images_per_prompt=3, generator=seeded()).recipe["base"]
    assert pipe(num_images_per_prompt=3, generator=seeded()).recipe["base"] == seeds
    assert pipe(generator=seeded(1)).recipe["base"] not in seeds
    torch.manual_seed(5)
    first = pipe().recipe["base"]
    torch.manual_seed(5)
    assert pipe().recipe["base"] == first
    assert torch.equal(pipe(generator=[seeded()]).style_codes, pipe(base=seeds[0]).style_codes)


@pytest.mark.parametrize("noise_mode", ["const", "random"])
@pytest.mark.parametrize("call", [{}, {"num_images_per_prompt": 2}, {"regions": {"hair": [7, 7, 7, 7]}}])
def test_with_a_list_of_generators_a_sample_equals_its_single_run(pipe, noise_mode, call):
    shared: dict[str, Any] = {"noise_mode": noise_mode, "output_type": "pt"}
    batch = pipe(generator=[torch.Generator().manual_seed(i) for i in range(4)], **call, **shared)
    regions = {"hair": 7} if "regions" in call else None
    for i in range(4):
        single = pipe(generator=torch.Generator().manual_seed(i), regions=regions, **shared)
        assert close(batch.images[i : i + 1], single.images)


def test_random_noise_is_in_the_recipe(pipe):
    out = pipe(base=[1, 1], noise_mode="random", generator=torch.Generator().manual_seed(0), output_type="pt")
    assert not close(out.images[:1], out.images[1:])
    assert torch.equal(pipe.from_recipe(json.dumps(out.recipe), output_type="pt").images, out.images)
    none = pipe(base=1, noise_mode="none", output_type="pt").images
    assert not close(none, pipe(base=1, output_type="pt").images)


def test_slices_give_the_same_pictures():
    pipe, sizes = tiny_pipeline(segmenter=True), []
    pipe.generator.synthesis.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    call: dict[str, Any] = {"base": [1, 2, 3], "regions": {"hair": 7}, "output_type": "pt", "output_masks": True}
    whole = pipe(**call)
    for slice_size in (1, 2):
        pipe.enable_slicing(slice_size)
        sliced = pipe(**call)
        assert close(sliced.images, whole.images)
        assert whole.masks is not None
        assert sliced.masks is not None
        assert all(torch.equal(sliced.masks[name], mask) for name, mask in whole.masks.items())
    pipe.disable_slicing()
    pipe(**call)
    assert sizes == [3, 1, 1, 1, 2, 1, 3]
    with pytest.raises(ValueError, match="slice_size is an integer from 1"):
        pipe.enable_slicing(0)


def test_each_step_runs_once_on_what_differs():
    pipe, calls = tiny_pipeline(), []
    for name, module in (("mapping", pipe.generator.mapping), ("synthesis", pipe.generator.synthesis)):
        module.register_forward_pre_hook(lambda _, args, name=name: calls.append((name, len(args[0]))))
    for net in pipe.fusion.nets.values():
        net.register_forward_pre_hook(lambda _, args: calls.append(("net", len(args[1]))))
    pipe(base=1, regions={"hair": [7, 8, 7, 1], "eyes": 7}, global_code=[8, 8, 9, 9])
    # The seeds 1, 7, 8 and 9. Hair comes in with the fourth net; before that the pictures differ in the common code.
    assert calls == [("mapping", 4), *[("net", n) for n in (2, 2, 2, 4, 4)], ("synthesis", 4)]


# ----------------------------------------------------------------------------------------------------
# What comes out.


def test_output_types(pipe):
    call: dict[str, Any] = {"base": [1, 2], "regions": {"hair": 7}}
    pt, array, pil, latent = (pipe(**call, output_type=kind) for kind in ("pt", "np", "pil", "latent"))
    assert pt.images.shape == (2, 3, 32, 32)
    assert pt.images.dtype == torch.float32
    assert 0 <= pt.images.min() < pt.images.max() <= 1
    assert array.images.shape == (2, 32, 32, 3)
    assert np.array_equal(array.images, pt.images.permute(0, 2, 3, 1).numpy())
    assert [image.size for image in pil.images] == [(32, 32)] * 2
    assert np.array_equal(np.array(pil.images[1]), (array.images[1] * 255).round())
    assert latent.images.shape == (2, STYLE_DIM)
    assert torch.equal(latent.images, latent.style_codes)
    assert isinstance(pt, StyleFusionPipelineOutput)
    assert pt.masks is None
    assert not pt.style_codes.requires_grad


@pytest.mark.parametrize("masks", [False, True])
def test_tuple_equals_dict_output(pipe, masks):
    call: dict[str, Any] = {"base": 1, "regions": {"hair": 7}, "output_type": "np", "output_masks": masks}
    out, parts = pipe(**call), pipe(**call, return_dict=False)
    assert isinstance(parts, tuple)
    assert len(parts) == 3 + masks
    assert np.array_equal(parts[0], out.images)
    assert torch.equal(parts[1], out.style_codes)
    assert parts[2] == out.recipe
    again = pipe.from_recipe(out.recipe, output_type="np", output_masks=masks, return_dict=False)
    assert np.array_equal(again[0], out.images)


@pytest.mark.parametrize("output_type", ["pil", "latent"])
def test_masks_share_out_every_pixel(pipe, output_type):
    out = pipe(base=[1, 2], output_masks=True, output_type=output_type)
    assert set(out.masks) == set(LEAVES)
    assert all(mask.shape == (2, 32, 32) and mask.dtype == torch.bool for mask in out.masks.values())
    assert torch.stack(list(out.masks.values())).sum(0).eq(1).all()


def test_recipes_make_the_pictures_again(pipe):
    regions: dict[str, Any] = {
        "hair": 7,
        "eyes": Code(torch.randn(1, W_DIM).to(torch.bfloat16), "w"),
        "mouth": torch.randn(Z_DIM),
    }
    out = pipe(
        base=2**32 - 1, regions=regions, global_code=5, nodes={"face": 6}, strength={"hair": 0.3, "all": 0.1},
        truncation_psi=0.123456789, truncation_cutoff=3, noise_mode="none", output_type="pt",
    )  # fmt: skip
    text = json.dumps(out.recipe)
    again = pipe.from_recipe(text, output_type="pt")
    assert torch.equal(again.images, out.images)
    assert again.recipe == out.recipe == json.loads(text)
    reordered = json.loads(json.dumps(out.recipe, sort_keys=True))
    assert torch.equal(pipe.from_recipe(reordered, output_type="pt").images, out.images)


def test_a_recipe_of_other_weights_is_refused():
    pipe = tiny_pipeline()
    recipe = pipe(base=1).recipe
    assert pipe.from_recipe(recipe).recipe == recipe
    with torch.no_grad():
        pipe.generator.w_avg.add_(1)
    with pytest.raises(ValueError, match="generator have other weights: load that model, or pass check_model=False"):
        pipe.from_recipe(recipe)
    changed = pipe.from_recipe(recipe, check_model=False).recipe
    assert changed["model"] != recipe["model"]
    assert len(pipe.from_recipe({"version": 1, "base": [1, 2]}).images) == 2  # written by hand: of no model


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(dtype):
    pipe = tiny_pipeline(segmenter=True)
    call: dict[str, Any] = {"base": [1, 2], "regions": {"hair": 7}, "output_type": "pt", "output_masks": True}
    expected = pipe(**call).images
    out = pipe.to(dtype=dtype)(**call)
    assert out.images.dtype == out.style_codes.dtype == torch.float32
    assert (out.images - expected).abs().mean() < 0.05
    equal = pipe(base=[1, 2], nodes={"hair": [1, 2]}, output_type="pt").images
    assert torch.equal(equal, pipe(base=[1, 2], output_type="pt").images)
    assert pipe(base=1, output_type="np").images.dtype == np.float32


def test_class_labels():
    pipe = tiny_pipeline(label_dim=3)
    both = styles(pipe, base=1, class_labels=[0, 2])
    assert not close(both[:1], both[1:])
    assert close(styles(pipe, base=1, class_labels=2), both[1:])
    out = pipe(base=1, regions={"hair": [7, 8]}, class_labels=torch.eye(3)[[0, 2]], output_type="latent")
    assert out.recipe["class_labels"] == [0, 2]
    for i in (0, 1):
        single = styles(pipe, base=1, regions={"hair": 7 + i}, class_labels=2 * i)
        assert close(out.images[i : i + 1], single)
    assert torch.equal(pipe.from_recipe(out.recipe, output_type="latent").images, out.images)
    assert styles(pipe, base=Code(torch.zeros(1, W_DIM), "w")).shape == (1, STYLE_DIM)  # w needs no label
    with pytest.raises(ValueError, match=r"class-conditional, and a code in z .* class_labels, 0 to 2"):
        pipe(base=torch.zeros(1, Z_DIM))


def test_seeds_have_classes_of_their_own():
    pipe = tiny_pipeline(label_dim=3)
    seeds = list(range(40))
    classes = seed_classes(seeds, 3)
    assert set(classes) == {0, 1, 2}
    assert close(styles(pipe, base=seeds), styles(pipe, base=seeds, class_labels=classes))
    one = next(s for s in seeds if classes[s] != classes[0])
    out = pipe(base=0, regions={"hair": one}, output_type="latent")  # two classes in one picture
    assert "class_labels" not in out.recipe
    assert torch.equal(pipe.from_recipe(out.recipe, output_type="latent").images, out.images)
    assert not close(out.images, styles(pipe, base=0, regions={"hair": one}, class_labels=classes[0]))


def test_trees_with_nodes_that_own_no_net():
    pipe = tiny_pipeline("all*(face(mouth, skin), hair)")
    assert close(styles(pipe, base=1, regions={"face": 7}), by_hand(pipe, {"all": 1, "face": 7, "hair": 1}))
    with pytest.raises(ValueError, match=r"regions\['mouth'\] can have no effect: 'face' above it .* Set 'face'"):
        pipe(base=1, regions={"mouth": 7})
    with pytest.raises(ValueError, match=r"nodes\['skin'\] can have no effect"):
        pipe(base=1, nodes={"skin": 7})
    single = tiny_pipeline("all")
    assert torch.equal(styles(single, base=1, regions={"all": 7}), styles(single, base=7))
    with pytest.raises(ValueError, match="global_code can have no effect"):
        single(base=1, global_code=5)


# ----------------------------------------------------------------------------------------------------
# The rest.


@pytest.mark.parametrize("module", [codes, latents, recipes, fuse])
def test_docstring_examples(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
