"""StyleFusionPhotoPipeline: what changes in a photograph, what stays, faces, other photographs, recipes, stopping."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import Code, Direction, StyleFusionInversionPipeline, StyleFusionPhotoPipeline, StyleGAN2Generator
from stylefusion_hf.core.recipes import Recipe
from stylefusion_hf.imaging import compositing
from stylefusion_hf.imaging.faces import align, face_square
from stylefusion_hf.pipelines.photo_outputs import changed_leaves, explained_share
from stylefusion_hf.pipelines.photo_recipes import PhotoRecipe
from stylefusion_hf.pipelines.steps import segment
from tests.portraits import FIVE, similarity
from tests.tiny import NUM_WS, W_DIM, draw, tiny_encoder, tiny_fusion, tiny_generator, tiny_pipeline

SIZE = (150, 120)
POINTS = similarity(FIVE - FIVE.mean(axis=0), 0.35, 0.2, (70, 62))  # a square of 70 pixels
HERE = {"landmarks": POINTS, "num_inference_steps": 2}


def photograph(mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (*SIZE[::-1], *channels), dtype=np.uint8)
    return Image.fromarray(values)


def five_dots(image: Image.Image) -> list[np.ndarray]:
    """A detector that finds one face, in every picture at the same place."""
    assert image.mode == "RGB"
    return [POINTS]


@pytest.fixture(scope="module")
def pipe() -> StyleFusionPhotoPipeline:
    made = StyleFusionPhotoPipeline.from_pipe(tiny_pipeline(segmenter=True))
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def bare() -> StyleFusionPhotoPipeline:
    """Without a segmenter."""
    made = StyleFusionPhotoPipeline.from_pipe(tiny_pipeline())
    made.set_progress_bar_config(disable=True)
    return made


def differs(a: Image.Image, b: Image.Image) -> np.ndarray:
    found = np.asarray(a) != np.asarray(b)
    return found if found.ndim == 2 else found.any(axis=-1)


# ----------------------------------------------------------------------------------------------------
# Refinement.


def test_a_refined_photograph_and_its_recipe(pipe, bare):
    image = photograph()
    plain = pipe(image, regions={"hair": 7}, **HERE)
    out = pipe(image, regions={"hair": 7}, refine_steps=3, **HERE)
    assert out.recipes[0]["fusion"]["refine_steps"] == 3
    assert differs(out.images[0], plain.images[0]).any()
    again, _ = pipe.from_recipe(out.recipes[0], image)
    assert not differs(again.image, out.images[0]).any()
    latent = pipe(image, regions={"hair": 7}, refine_steps=3, output_type="latent", **HERE)
    drawn = pipe(image, regions={"hair": 7}, output_type="latent", **HERE)
    assert not torch.equal(latent.images, drawn.images)
    with pytest.raises(ValueError, match="refine_steps needs a segmenter"):
        bare(image, regions={"hair": 7}, refine_steps=3, **HERE)
    with pytest.raises(ValueError, match="no region has a code of its own"):
        pipe(image, global_code=7, refine_steps=3, **HERE)


# ----------------------------------------------------------------------------------------------------
# What changes and what stays.


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_the_region_changes_and_everything_else_stays(pipe: Any, mode: str) -> None:
    given = photograph(mode)
    out = pipe(given, regions={"hair": 7}, **HERE)
    edited, mask = out.images[0], np.asarray(out.masks[0])
    assert (edited.mode, edited.size) == (given.mode, given.size)
    changed = differs(given, edited)
    assert changed.any() and not changed[mask == 0].any()
    low, high = face_square(POINTS).min(axis=0), face_square(POINTS).max(axis=0)
    ys, xs = np.nonzero(mask)
    assert xs.min() >= low[0] - 1 and xs.max() <= high[0] + 1 and ys.min() >= low[1] - 1 and ys.max() <= high[1] + 1
    assert out.reconstructions[0].size == (32, 32) and out.codes.tensor.shape == (1, NUM_WS, W_DIM)
    assert len(out.mse) == len(out.feature_distance) == len(out.explained) == 1
    assert given.tobytes() == photograph(mode).tobytes()


def test_regions_that_stay_are_those_that_both_pictures_have(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, torch.Tensor] = {}
    blend = compositing.blend_change

    def spy(image: Any, corners: Any, original: Any, before: Any, after: Any, regions: Any, stays: Any) -> Any:
        labels = segment(pipe.segmenter, torch.stack([original, after]))
        given.update(regions=regions, stays=stays, hair=labels["hair"], eyes=labels["eyes"])
        return blend(image, corners, original, before, after, regions, stays)

    monkeypatch.setattr(compositing, "blend_change", spy)
    pipe(photograph(), regions={"hair": 7}, **HERE)
    assert torch.equal(given["regions"] > 0, given["hair"].any(dim=0))
    assert not (given["regions"] * given["stays"]).any()
    assert (given["stays"] >= given["eyes"].all(dim=0)).all()
    pipe(photograph(), global_code=7, **HERE)  # all regions change, and none stays
    assert not given["stays"].any()


def test_no_change_gives_the_photograph_itself(pipe: Any, bare: Any) -> None:
    given = photograph()
    for made in (pipe, bare):
        out = made(given, regions={"hair": 7}, strength=0.0, **HERE)
        assert out.images[0].tobytes() == given.tobytes() and not np.asarray(out.masks[0]).any()
        same = made(given, regions={"hair": out.codes}, **HERE)
        assert same.images[0].tobytes() == given.tobytes()


def test_it_is_what_the_other_pipelines_give(bare: Any) -> None:
    """The code is that of the inversion of the aligned face."""
    given = photograph()
    out = bare(given, regions={"eyes": 3}, **HERE)
    inverted = StyleFusionInversionPipeline.from_pipe(bare)(align(given, POINTS, 32), num_inference_steps=2)
    assert torch.equal(out.codes.tensor, inverted.codes.tensor)
    assert torch.equal(out.mse, inverted.mse)
    style = bare(given, regions={"eyes": 3}, output_type="latent", **HERE).images
    assert torch.equal(style, bare(given, {"eyes": 3}, output_type="latent", **HERE).images)
    assert out.recipes[0]["fusion"]["regions"] == {"eyes": 3}


def test_the_search_alone_and_what_goes_on_from_it(pipe: Any) -> None:
    given = photograph()
    found = pipe.invert(given, **HERE)
    whole = pipe(given, regions={"hair": 7}, **HERE)
    assert torch.equal(found.codes.tensor, whole.codes.tensor) and torch.equal(found.explained, whole.explained)
    assert found.images[0].size == found.reconstructions[0].size == (32, 32)
    assert found.photographs is None and found.masks is None and found.recipes == []
    assert found.reconstructions[0].tobytes() == whole.reconstructions[0].tobytes()
    on = {"start": found.codes, "landmarks": found.landmarks, "num_inference_steps": 0}
    assert pipe(given, regions={"hair": 7}, **on).images[0].tobytes() == whole.images[0].tobytes()
    assert len(pipe.invert([given, photograph(seed=1)], landmarks=[POINTS] * 2, num_inference_steps=1).mse) == 2
    with pytest.raises(ValueError, match="no face was found"):
        pipe.invert(given, detector=lambda image: [])
    with pytest.raises(ValueError, match="image must be a file"):
        pipe.invert(3)


def test_how_long_the_search_is(pipe: Any) -> None:
    """Fewer steps from an encoder's guess than from the mean."""
    taken: list[int] = []

    def on_step(given: Any, step: int, *rest: Any) -> dict[str, Any]:
        taken.append(given.num_timesteps)
        given.interrupt = True
        return {}

    guessing = StyleFusionPhotoPipeline.from_pipe(pipe, encoder=tiny_encoder())
    guessing.set_progress_bar_config(disable=True)
    for made, start in ((pipe, None), (guessing, None), (guessing, "mean"), (guessing, "encoder")):
        made.invert(photograph(), landmarks=POINTS, start=start, callback_on_step_end=on_step)
    assert taken == [100, 50, 100, 50]


def test_leaves_that_change() -> None:
    pipe = tiny_pipeline()
    tree = pipe.fusion.tree
    for call, leaves in (
        ({"regions": {"hair": 7}}, {"hair"}),
        ({"regions": {"face": 7}}, {"mouth", "skin", "eyes"}),
        ({"nodes": {"bg_clothes": 7}, "regions": {"eyes": 3}}, {"clothes", "background", "eyes"}),
        ({"global_code": 5}, set(tree.leaves)),
        ({"edits": {"mouth": Direction("d", "w", torch.ones(W_DIM))}}, {"mouth"}),
    ):
        recipe = Recipe.from_dict(pipe(base=1, output_type="latent", **call).recipe)
        assert set(changed_leaves(tree, recipe)) == leaves


def test_edits_by_direction(pipe: Any) -> None:
    given, direction = photograph(), Direction("d", "w", draw(W_DIM))
    out = pipe(given, edits={"mouth": direction(3.0)}, **HERE)
    assert differs(given, out.images[0]).any()
    assert list(out.recipes[0]["fusion"]["edits"]) == ["mouth"]


def test_the_share_that_a_reconstruction_explains() -> None:
    face = photograph().resize((32, 32))
    assert explained_share(face, face) == 1
    mean = Image.new("RGB", (32, 32), tuple(np.asarray(face, float).mean(axis=(0, 1)).astype(int)))
    assert -0.1 < explained_share(face, mean) < 0.05
    assert explained_share(face, photograph(seed=1).resize((32, 32))) < 0
    assert torch.isfinite(explained_share(mean, mean))


# ----------------------------------------------------------------------------------------------------
# Faces.


def test_faces_are_detected_and_chosen(pipe: Any) -> None:
    small = similarity(FIVE - FIVE.mean(axis=0), 0.2, 0, (110, 90))

    def two(image: Image.Image) -> list[np.ndarray]:
        return [small, POINTS]

    call = {"regions": {"hair": 7}, "num_inference_steps": 0}
    assert np.array_equal(pipe(photograph(), detector=five_dots, **call).landmarks[0], POINTS)
    assert np.array_equal(pipe(photograph(), detector=two, face=1, **call).landmarks[0], small)
    with pytest.raises(ValueError, match=r"2 faces were found in image.*0 at \(70, 62\)"):
        pipe(photograph(), detector=two, **call)
    with pytest.raises(ValueError, match="got face=2"):
        pipe(photograph(), detector=two, face=2, **call)
    with pytest.raises(ValueError, match=r"no face was found in image\[1\]"):
        pipe([photograph(), photograph()], detector=lambda image: [], landmarks=[POINTS, None], **call)


def test_a_turned_photograph(pipe: Any, tmp_path: Path) -> None:
    """The face is found in the upright picture, and the file stays as it was stored."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = photograph().transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "a.png", exif=exif)
    out = pipe(tmp_path / "a.png", regions={"hair": 7}, detector=five_dots, num_inference_steps=2)
    upright = pipe(photograph(), regions={"hair": 7}, **HERE)
    assert out.images[0].tobytes() == upright.images[0].tobytes()
    out.photographs[0].save(tmp_path / "b.png")
    with Image.open(tmp_path / "b.png") as kept:
        assert kept.getexif()[0x0112] == 6 and kept.size == stored.size
        expected = out.images[0].transpose(Image.Transpose.ROTATE_90)
        assert kept.tobytes() == expected.tobytes()


@pytest.mark.parametrize("middle", [(20, 15), (140, 110)])
def test_a_face_at_the_edge(pipe: Any, middle: tuple[int, int]) -> None:
    given, points = photograph(), similarity(FIVE - FIVE.mean(axis=0), 0.35, 0, middle)
    out = pipe(given, regions={"hair": 7, "background": 3}, landmarks=points, num_inference_steps=2)
    assert differs(given, out.images[0]).any()
    assert not differs(given, out.images[0])[np.asarray(out.masks[0]) == 0].any()


def test_small_faces() -> None:
    """Down to a square of a sixteenth of the model's side; below that, one line."""
    generator = StyleGAN2Generator(resolution=256, channels=[8] * 7, z_dim=16, w_dim=16, mapping_layers=2)
    pipe = StyleFusionPhotoPipeline(generator, tiny_fusion(generator, num_indicators=14))
    pipe.set_progress_bar_config(disable=True)
    for side, fine in ((17, True), (15, False)):
        points = similarity(FIVE - FIVE.mean(axis=0), side / 200, 0, (70, 62))
        call: dict[str, Any] = {"regions": {"hair": 7}, "landmarks": points, "num_inference_steps": 0}
        if fine:
            assert pipe(photograph(), **call).reconstructions[0].size == (256, 256)
        else:
            with pytest.raises(ValueError, match="a side of 15 pixels, too small for a model of 256: it needs .* 16"):
                pipe(photograph(), **call)


# ----------------------------------------------------------------------------------------------------
# Several photographs.


def test_a_batch_equals_single_calls(pipe: Any) -> None:
    given = [photograph(seed=k) for k in range(2)]
    out = pipe(given, regions={"hair": [7, 8]}, landmarks=[POINTS] * 2, num_inference_steps=2)
    assert len(out.images) == len(out.recipes) == len(out.reconstructions) == 2
    for k, seed in enumerate((7, 8)):
        single = pipe(given[k], regions={"hair": seed}, **HERE)
        difference = np.abs(np.asarray(out.images[k], dtype=int) - np.asarray(single.images[0]))
        assert difference.max() <= 2


def test_one_photograph_with_several_looks(pipe: Any) -> None:
    out = pipe(photograph(), regions={"hair": [7, 8]}, **HERE)
    assert len(out.images) == 2 and len(out.codes) == len(out.reconstructions) == 1
    assert differs(*out.images).any()
    with pytest.raises(ValueError, match="length"):
        pipe([photograph()] * 2, regions={"hair": [7, 8, 9]}, landmarks=[POINTS] * 2, num_inference_steps=0)


def test_sizes_differ(pipe: Any) -> None:
    given = [photograph(), photograph().crop((0, 0, 140, 120))]
    call = {"regions": {"hair": 7}, "landmarks": [POINTS] * 2, "num_inference_steps": 0}
    assert [image.size for image in pipe(given, **call).images] == [(150, 120), (140, 120)]
    with pytest.raises(ValueError, match="2 sizes or modes cannot be stacked"):
        pipe(given, **call, output_type="pt")


def test_a_region_from_another_photograph(pipe: Any, tmp_path: Path) -> None:
    other = photograph(seed=5)
    other.save(tmp_path / "other.png")
    call: dict[str, Any] = {"landmarks": POINTS, "detector": five_dots, "num_inference_steps": 2}
    out = pipe(photograph(), regions={"hair": other}, **call)
    assert len(out.codes) == len(out.mse) == 1
    code = pipe(other, regions={"hair": 7}, **HERE).codes
    named = pipe(photograph(), regions={"hair": code}, **HERE)
    assert np.abs(np.asarray(out.images[0], dtype=int) - np.asarray(named.images[0])).max() <= 2
    from_file = pipe(photograph(), regions={"hair": str(tmp_path / "other.png")}, **call)
    assert from_file.images[0].tobytes() == out.images[0].tobytes()
    with pytest.raises(ValueError, match=r"no face was found in the picture of regions\['hair'\]"):
        pipe(photograph(), regions={"hair": other}, landmarks=POINTS, detector=lambda image: [])
    with pytest.raises(ValueError, match="give codes in regions"):
        pipe(photograph(), regions={"hair": other}, start=code, **call)


def test_other_regions_without_another_search(pipe: Any) -> None:
    first = pipe(photograph(), regions={"hair": 7}, **HERE)
    call = {"start": first.codes, "landmarks": first.landmarks, "num_inference_steps": 0}
    again = pipe(photograph(), regions={"hair": 7}, **call)
    assert again.images[0].tobytes() == first.images[0].tobytes()
    assert torch.equal(again.codes.tensor, first.codes.tensor)
    assert differs(pipe(photograph(), regions={"eyes": 7}, **call).images[0], first.images[0]).any()


def test_tuning_tunes_a_copy(pipe: Any) -> None:
    before = [p.clone() for p in pipe.generator.parameters()]
    out = pipe(photograph(), regions={"hair": 7}, num_tuning_steps=2, **HERE)
    assert isinstance(out.generator, StyleGAN2Generator) and out.generator is not pipe.generator
    assert all(torch.equal(a, b) for a, b in zip(before, pipe.generator.parameters(), strict=True))
    with pytest.raises(ValueError, match="generator have other weights"):
        pipe.from_recipe(out.recipes[0], photograph())
    tuned = StyleFusionPhotoPipeline.from_pipe(pipe, generator=out.generator)
    assert tuned.from_recipe(out.recipes[0], photograph())[0].image.tobytes() == out.images[0].tobytes()


# ----------------------------------------------------------------------------------------------------
# Recipes.


def test_a_recipe_makes_the_same_picture(pipe: Any) -> None:
    given = [photograph(seed=k) for k in range(2)]
    out = pipe(
        given, regions={"hair": photograph(seed=4)}, landmarks=[POINTS] * 2, detector=five_dots, num_inference_steps=2
    )
    for k in range(2):
        text = json.dumps(out.recipes[k])
        for recipe in (out.recipes[k], text, PhotoRecipe.from_json(text)):
            edited, mask = pipe.from_recipe(recipe, given[k])
            assert edited.image.tobytes() == out.images[k].tobytes()
            assert mask.tobytes() == out.masks[k].tobytes()


def test_recipes_of_other_photographs_are_refused(pipe: Any) -> None:
    recipe = pipe(photograph(), regions={"hair": 7}, **HERE).recipes[0]
    with pytest.raises(ValueError, match="image has other pixels than the photograph of this recipe"):
        pipe.from_recipe(recipe, photograph(seed=1))
    pipe.from_recipe(recipe, photograph(seed=1), check_photograph=False)
    with pytest.raises(ValueError, match="of 150 x 120 pixels, and image has 120 x 120"):
        pipe.from_recipe(recipe, photograph().crop((0, 0, 120, 120)), check_photograph=False)
    other = StyleFusionPhotoPipeline(tiny_generator(1), pipe.fusion)
    with pytest.raises(ValueError, match="generator have other weights"):
        other.from_recipe(recipe, photograph())
    other.from_recipe(recipe, photograph(), check_model=False)


DIGITS = "0" * 64
SOUND = {
    "version": 1,
    "photograph": {"size": [150, 120], "sha256": DIGITS},
    "landmarks": POINTS.tolist(),
    "fusion": {"version": 1, "base": 1, "regions": {"hair": 7}},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "reads photographs' recipes of version 1, got 2"),
        ({"version": True}, "version"),
        ({"more": 1}, "unknown field 'more'"),
        ({"photograph": None}, "photograph: expected size"),
        ({"photograph": {"size": [1.5, 2], "sha256": DIGITS}}, "photograph: a side in size"),
        ({"photograph": {"size": [10**9, 2], "sha256": DIGITS}}, "photograph: a side in size"),
        ({"photograph": {"size": [150, 120], "sha256": "0" * 63 + "\n"}}, "64 hexadecimal digits"),
        ({"landmarks": [[1, 2]]}, "landmarks: the points have the shape"),
        ({"landmarks": "x" * 500}, "landmarks: the points are not numbers"),
        ({"landmarks": [[float("nan")] * 2] * 5}, "not finite"),
        ({"fusion": {"version": 1}}, "fusion: base"),
        ({"fusion": {"version": 1, "base": [1, 2]}}, "it makes 2 pictures"),
        ({"fusion": {"version": 1, "base": 1, "noise_mode": "random", "noise_seeds": [1]}}, "noise_mode"),
    ],
)
def test_recipes_are_checked(change: dict[str, Any], said: str) -> None:
    PhotoRecipe.from_dict(SOUND)
    with pytest.raises(ValueError, match=said) as caught:
        PhotoRecipe.from_dict(SOUND | change)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"version": 1, "base": 1}', "{" * 10000])
def test_what_is_no_recipe(text: str) -> None:
    with pytest.raises(ValueError, match="recipe|JSON"):
        PhotoRecipe.from_json(text)


# ----------------------------------------------------------------------------------------------------
# Progress and stopping.


def test_progress_and_stopping(pipe: Any) -> None:
    seen: list[int] = []

    def watch(given: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        assert given is pipe and step == timestep and set(tensors) == {"latents", "losses"}
        seen.append(step)
        return {}

    call = {"regions": {"hair": 7}, "landmarks": POINTS}
    pipe(photograph(), num_inference_steps=4, callback_on_step_end=watch, **call)
    assert seen == [0, 1, 2, 3] and not pipe.interrupt

    def stop(given: Any, step: int, timestep: int, tensors: dict[str, Any]) -> dict[str, Any]:
        seen.append(step)
        given.interrupt = step == 2
        return {}

    seen.clear()
    out = pipe(photograph(), num_inference_steps=50, callback_on_step_end=stop, **call)
    assert seen == [0, 1, 2] and len(out.images) == 1
    assert not pipe.interrupt and not pipe._searching


def test_an_error_in_a_callback_ends_the_call(pipe: Any) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        pipe(photograph(), regions={"hair": 7}, callback_on_step_end=fail, **HERE)
    assert not pipe._searching


# ----------------------------------------------------------------------------------------------------
# Refusals.


@pytest.mark.parametrize(
    ("call", "said"),
    [
        ({}, "nothing to change"),
        ({"regions": {}}, "nothing to change"),
        ({"regions": {"hairs": 7}}, "did you mean 'hair'"),
        ({"regions": {"hair": "nobody.jpg"}}, r"regions\['hair'\] is a seed"),
        ({"regions": 7}, "regions must be a dict"),
        ({"edits": {"hair": 7}}, "edits"),
        ({"regions": {"hair": 7}, "face": -1}, "face is an integer"),
        ({"regions": {"hair": 7}, "source_face": True}, "source_face is an integer"),
        ({"regions": {"hair": 7}, "landmarks": [POINTS, POINTS]}, "one array .* per photograph, 1; got 2"),
        ({"regions": {"hair": 7}, "landmarks": "points"}, "landmarks"),
        ({"regions": {"hair": 7}, "landmarks": [[1, 2], [3]]}, "landmarks"),
        ({"regions": {"hair": 7}, "landmarks": POINTS + 5000}, "lie outside"),
        ({"regions": {"hair": 7}, "landmarks": None, "detector": "nobody"}, "no landmark detector is called 'nobody'"),
        ({"regions": {"hair": 7}, "landmarks": None, "detector": 7}, "detector must be"),
        ({"regions": {"hair": 7}, "noise_mode": "random"}, "unknown noise_mode 'random'"),
        ({"regions": {"hair": 7}, "code_space": "z"}, "latent_type must be one of"),
        ({"regions": {"hair": 7}, "start": Code(draw(2, NUM_WS, W_DIM), "w+")}, "start has 2 codes for 1 pictures"),
        ({"regions": {"hair": 7}, "num_inference_steps": -1}, "num_inference_steps"),
        ({"regions": {"hair": 7}, "strength": 2}, "strength"),
        ({"regions": {"hair": 7}, "return_dict": "False"}, "return_dict"),
    ],
)
def test_calls_are_checked(pipe: Any, call: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        pipe(photograph(), **({"landmarks": POINTS, "num_inference_steps": 0} | call))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("image", [None, 7, [], "", [""], torch.zeros(3, 40, 40), b"bytes"])
def test_what_is_no_photograph(pipe: Any, image: Any) -> None:
    with pytest.raises((ValueError, OSError)) as caught:
        pipe(image, regions={"hair": 7}, **HERE)
    assert "\n" not in str(caught.value)


def test_generators_of_other_channels() -> None:
    generator = tiny_generator(img_channels=4)
    pipe = StyleFusionPhotoPipeline(generator, tiny_fusion(generator, num_indicators=14))
    with pytest.raises(ValueError, match="3 channels .* has 4"):
        pipe(photograph(), regions={"hair": 7}, **HERE)
