"""StyleFusionPipeline: every wrong call is one clear error."""

from typing import Any

import pytest
import torch
from PIL import Image

from stylefusion_hf import Code, StyleFusionPipeline
from tests.tiny import Z_DIM, tiny_fusion, tiny_generator, tiny_pipeline, tiny_segmenter


@pytest.fixture(scope="module")
def pipe() -> StyleFusionPipeline:
    return tiny_pipeline(segmenter=True)


NAN = torch.full((1, Z_DIM), torch.nan)
BAD_CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown region": ({"regions": {"hairs": 7}}, "unknown region 'hairs': the tree has all, .* did you mean 'hair'"),
    "unknown node": ({"nodes": {"Face": 7}}, "unknown region 'Face'.*did you mean 'face'"),
    "regions": ({"regions": ["hair"]}, "regions must be a dict, node -> code, not list"),
    "nodes": ({"nodes": 7}, "nodes must be a dict"),
    "root twice": ({"regions": {"all": 7}, "global_code": 5}, "both set the root's code"),
    "shape": ({"base": torch.zeros(1, 7)}, r"base has the shape \(batch, 7\).* in z is \(batch, 16\)"),
    "shape of a region": ({"regions": {"hair": Code(torch.zeros(2, 9), "s")}}, r"regions\['hair'\] .*\(batch, 88\)"),
    "space": ({"base": torch.zeros(1, 16), "latent_type": "x"}, "unknown latent_type 'x': choose from z, w, w"),
    "space of nothing": ({"base": None, "latent_type": "x"}, "unknown latent_type"),
    "list of regions": ({"regions": []}, "regions must be a dict"),
    "NaN": ({"base": 1, "regions": {"hair": NAN}}, r"regions\['hair'\]: .* not finite"),
    "negative seed": ({"base": -1}, "base: a seed is an integer from 0"),
    "bool": ({"regions": {"hair": True}}, r"regions\['hair'\]: a seed"),
    "float": ({"base": 1.5}, "base is a seed"),
    "none": ({"regions": {"hair": None}}, r"regions\['hair'\] is a seed .* got NoneType"),
    "empty list": ({"base": 1, "global_code": []}, "global_code is an empty list"),
    "lengths": ({"base": [1, 2], "regions": {"hair": [1, 2, 3]}}, r"base has length 2 and regions\['hair'\] length 3"),
    "image": ({"base": Image.new("RGB", (8, 8))}, "base is an image, and this pipeline has no encoder"),
    "strength": ({"regions": {"hair": 7}, "strength": 1.1}, "strength is a number from 0 to 1, got 1.1"),
    "strength of a node": ({"regions": {"hair": 7}, "strength": {"hair": -1}}, r"strength\['hair'\] is a number"),
    "strength of an unknown": ({"regions": {"hair": 7}, "strength": {"hare": 1}}, "unknown region 'hare'.*'hair'"),
    "strength of an unset": (
        {"regions": {"hair": 7}, "strength": {"eyes": 1}},
        r"strength\['eyes'\] can have no effect",
    ),
    "strength without a code": ({"strength": {"all": 0.5}}, "gives codes for no node"),
    "strength of another kind": ({"strength": "1"}, "strength is a number"),
    "noise_mode": ({"noise_mode": "loud"}, "unknown noise_mode 'loud': choose from const, random, none"),
    "psi": ({"truncation_psi": "0.7"}, "truncation_psi is a number"),
    "cutoff": ({"truncation_psi": 0.5, "truncation_cutoff": 99}, "truncation cutoff must be between 0 and 8"),
    "labels": ({"class_labels": 1}, "class_labels were given, but this model was trained without labels"),
    "generator": ({"base": None, "generator": 5}, "generator must be a torch.Generator or a list of them, got int"),
    "generators": ({"generator": [5]}, "generator must be a torch.Generator or a list of them"),
    "many generators": ({"base": [1, 2], "generator": [torch.Generator()] * 3}, "base has length 2 and generator"),
    "odd generators": ({"num_images_per_prompt": 2, "generator": [torch.Generator()] * 3}, "does not divide"),
    "num_images_per_prompt": ({"num_images_per_prompt": 0}, "num_images_per_prompt is an integer from 1"),
    "too many": ({"base": [1] * 1025}, "num_images is an integer from 1 to 1024"),
    "output_type": ({"output_type": "jpg"}, "unknown output_type 'jpg': choose from pil, np, pt, latent"),
}


@pytest.mark.parametrize("case", BAD_CALLS)
def test_bad_calls(pipe, case):
    call, message = BAD_CALLS[case]
    with pytest.raises(ValueError, match=message) as error:
        pipe(**({"base": 1} | call))
    assert len(str(error.value).splitlines()) == 1


def test_other_bad_input(pipe):
    with pytest.raises(TypeError, match="editing"):
        pipe(base=1, editing={})
    with pytest.raises(ValueError, match="output_masks needs a segmenter"):
        tiny_pipeline()(base=1, output_masks=True)
    with pytest.raises(ValueError, match="unknown output_type"):
        pipe.from_recipe({"version": 1, "base": 1}, output_type="gif")
    with pytest.raises(ValueError, match="unknown region 'nose'"):
        pipe.from_recipe({"version": 1, "base": 1, "regions": {"nose": 1}})
    with pytest.raises(ValueError, match="the recipe is not JSON"):
        pipe.from_recipe("hair=7")


def test_components_that_do_not_fit():
    generator = tiny_generator()
    nothing: Any = None
    fusion = tiny_fusion(generator)
    other = tiny_generator(channels=[8, 8, 8, 4])
    with pytest.raises(ValueError, match=r"the generator's conv_sizes are .*4\], the fusion nets' .*8\]"):
        StyleFusionPipeline(other, fusion)
    with pytest.raises(ValueError, match=r"does not know the regions mouth, skin, .* it has background, church"):
        StyleFusionPipeline(generator, fusion, tiny_segmenter("all*(background, church)"))
    with pytest.raises(ValueError, match="fusion must be a FusionHierarchy, got NoneType"):
        StyleFusionPipeline(generator, nothing)
