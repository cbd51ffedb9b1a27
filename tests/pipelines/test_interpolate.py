"""StyleFusionInterpolationPipeline: keyframes are the fuse pipeline's pictures; between them the named codes move."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import Code, StyleFusionInterpolationPipeline, StyleFusionPipeline
from stylefusion_hf.core.codes import seeds_to_z
from stylefusion_hf.models.latents import codes_to_style
from stylefusion_hf.pipelines.walk import Timeline, slerp
from tests.tiny import NUM_WS, STYLE_DIM, W_DIM, Z_DIM, TinyEncoder, tiny_pipeline

SPACES = ("w", "s", "z")


@pytest.fixture(scope="module")
def fuse() -> StyleFusionPipeline:
    return tiny_pipeline(segmenter=True)


@pytest.fixture(scope="module")
def pipe(fuse) -> StyleFusionInterpolationPipeline:
    made = StyleFusionInterpolationPipeline.from_pipe(fuse)
    made.set_progress_bar_config(disable=True)
    return made


def keyframe(call: dict[str, Any], k: int) -> dict[str, Any]:
    """The k-th code of every list."""

    def one(value: Any) -> Any:
        return value[k] if isinstance(value, list) else value

    return {
        name: {node: one(code) for node, code in value.items()} if name in ("regions", "nodes") else one(value)
        for name, value in call.items()
    }


# ----------------------------------------------------------------------------------------------------
# What the frames are.

CALLS: dict[str, dict[str, Any]] = {
    "a region": {"base": 1, "regions": {"hair": [7, 8, 9]}},
    "several": {"base": 1, "regions": {"hair": [7, 8, 9], "face": [3, 1, 4], "eyes": 5}, "global_code": [6, 6, 2]},
    "the base": {"base": [1, 2, 3], "nodes": {"face": 7}},
    "everything": {"base": [1, 2, 3]},
    "strengths": {"base": [1, 2, 3], "regions": {"hair": [7, 8, 9]}, "strength": {"hair": 0.5}},
    "from the base's own": {"base": 1, "regions": {"hair": [1, 8, 9]}, "truncation_psi": 0.4, "noise_mode": "none"},
}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("name", CALLS)
def test_keyframes_are_the_fuse_pipelines_pictures(fuse, pipe, name, space):
    call = CALLS[name]
    single = pipe(**call, frames=8, space=space, batch_size=1, output_type="pt")
    batched = pipe(**call, frames=8, space=space, batch_size=3, output_type="pt")
    assert single.keyframes == [0, 4, 7]
    assert single.frames.shape == (8, 3, 32, 32)
    for k, frame in enumerate(single.keyframes):
        expected = fuse(**keyframe(call, k), output_type="pt")
        assert torch.equal(single.frames[frame], expected.images[0])
        assert torch.equal(single.style_codes[frame], expected.style_codes[0])
    assert torch.allclose(single.frames, batched.frames, atol=1e-4)
    assert torch.equal(fuse.from_recipe(single.recipe).style_codes, fuse(**call).style_codes)


@pytest.mark.parametrize("space", ["w", "s"])
def test_between_keyframes_the_line_in_w_is_the_line_in_s(fuse, pipe, space):
    found = pipe(base=1, regions={"hair": [7, 8]}, steps=4, space=space, output_type="latent", truncation_psi=0.6)
    z = seeds_to_z([7, 8], Z_DIM)
    with torch.no_grad():
        a, b = fuse.generator.truncate(fuse.generator.mapping(z), 0.6)[:, None]
    for step, style in enumerate(found.frames):
        code = Code(a + step / 4 * (b - a), "w")
        expected = fuse(base=1, regions={"hair": code}, truncation_psi=0.6, output_type="latent")
        assert torch.allclose(style, expected.images[0], atol=1e-5)


def test_a_walk_from_the_bases_own_code_turns_the_strength(fuse, pipe):
    found = pipe(base=1, regions={"hair": [1, 8]}, steps=4, output_type="latent")
    for step, style in enumerate(found.frames):
        expected = fuse(base=1, regions={"hair": 8}, strength=step / 4, output_type="latent")
        assert torch.allclose(style, expected.images[0], atol=1e-5)


def test_in_z_a_frame_is_the_picture_of_the_z_there(fuse, pipe):
    found = pipe(base=1, regions={"face": [7, 8]}, steps=4, space="z", output_type="latent", truncation_cutoff=3)
    a, b = seeds_to_z([7, 8], Z_DIM).split(1)
    for step, style in enumerate(found.frames):
        code = Code(slerp(a, b, step / 4), "z")
        expected = fuse(base=1, regions={"face": code}, truncation_cutoff=3, output_type="latent")
        assert torch.allclose(style, expected.images[0], atol=1e-5)


@pytest.mark.parametrize("space", SPACES)
def test_what_is_not_named_keeps_its_code(pipe, space, monkeypatch):
    fused = []
    forward = pipe.fusion.forward

    def spy(given, **options):
        fused.append(given)
        return forward(given, **options)

    monkeypatch.setattr(pipe.fusion, "forward", spy)
    pipe(base=1, regions={"hair": [7, 8], "eyes": 5}, steps=6, batch_size=3, space=space, output_type="latent")
    assert [len(given["hair"]) for given in fused] == [3, 3, 1]
    moving = torch.cat([given["hair"] for given in fused])
    assert len(torch.unique(moving, dim=0)) == 7
    for node in set(fused[0]) - {"hair"}:
        assert len(fused[0][node]) == 1
        assert all(torch.equal(given[node], fused[0][node]) for given in fused)


@pytest.mark.parametrize("space", SPACES)
def test_equal_keyframes_stand_still(pipe, space):
    code = Code(seeds_to_z([7], Z_DIM), "z")
    for hair in ([7, 7], [code, code], [7, code]):
        frames = pipe(base=1, regions={"hair": hair}, steps=3, space=space, batch_size=1, output_type="pt").frames
        assert all(torch.equal(frame, frames[0]) for frame in frames)


def test_a_loop_closes_without_a_doubled_frame(pipe):
    call = {"base": 1, "regions": {"hair": [7, 8, 9]}, "output_type": "latent"}
    looped, there = pipe(**call, steps=4, loop=True), pipe(**call, steps=4)
    assert (len(looped.frames), looped.keyframes) == (12, [0, 4, 8])
    assert (len(there.frames), there.keyframes) == (9, [0, 4, 8])
    assert torch.allclose(looped.frames[:9], there.frames, atol=1e-5)
    steps = (looped.frames.roll(-1, 0) - looped.frames).norm(dim=1)
    assert steps.min() > 0
    home = pipe(base=1, regions={"hair": [9, 7]}, steps=4, output_type="latent")
    assert torch.allclose(looped.frames[8:], home.frames[:4], atol=1e-5)  # and the next frame would be the first


def test_smooth_walks_are_slow_at_keyframes(pipe):
    call: dict[str, Any] = {"base": [1, 2], "steps": 10, "output_type": "latent"}
    linear, smooth = pipe(**call).frames, pipe(**call, easing="smooth").frames
    assert torch.allclose(linear[[0, 5, 10]], smooth[[0, 5, 10]], atol=1e-5)
    share = (smooth[1] - smooth[0]).norm() / (linear[1] - linear[0]).norm()
    assert share.item() == pytest.approx(10 * 0.1**2 * (3 - 0.2), rel=1e-3)


def test_every_keyframe_is_a_frame():
    for loop in (False, True):
        for keyframes in (2, 3, 5):
            for frames in (keyframes, keyframes + 1, 17, 60):
                line = Timeline(keyframes, frames, loop)
                positions = list(line.positions())
                assert len(positions) == frames
                assert [i for i, p in enumerate(positions) if p.t == 0] == line.marks()
                assert [positions[i].start for i in line.marks()] == list(range(keyframes))
                gaps = np.diff([*line.marks(), *([frames] if loop else [])])
                assert gaps.max() - gaps.min() <= 1
    assert Timeline(3, 60, True).marks() == [0, 20, 40]


# ----------------------------------------------------------------------------------------------------
# The sphere.


def test_slerp_is_shoemakes_formula_and_keeps_the_norm():
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 512, dtype=torch.float64)
    angle = math.acos((a * b).sum() / (a.norm() * b.norm()))
    for t in (0.0, 0.25, 0.5, 1.0):
        found = slerp(a, b, t)
        direction = (math.sin((1 - t) * angle) * a / a.norm() + math.sin(t * angle) * b / b.norm()) / math.sin(angle)
        assert torch.allclose(found, direction * (a.norm() + t * (b.norm() - a.norm())))
    assert torch.allclose(slerp(a, b, 0.3), slerp(b, a, 0.7))
    assert slerp(a.half(), b.half(), 0.5).dtype == torch.float16


@pytest.mark.parametrize("factor", [1.0, 2.0, 1 + 1e-12, -1.0, -0.5, -1 - 1e-12])
def test_slerp_of_parallel_and_opposite_vectors(factor):
    a = torch.randn(1, 512, generator=torch.Generator().manual_seed(0))
    b = (a.double() * factor).float()
    ways = [slerp(a, b, t) for t in (0.0, 0.5, 1.0)]
    assert torch.allclose(ways[0], a, atol=1e-5)
    assert torch.allclose(ways[2], b, atol=1e-5)
    assert ways[1].norm().item() == pytest.approx((a.norm() + b.norm()).item() / 2, rel=1e-5)
    assert torch.equal(ways[1], slerp(a, b, 0.5))
    cosine = torch.cosine_similarity(a, ways[1]).item()
    assert cosine == pytest.approx(1.0 if factor > 0 else 0.0, abs=1e-5)


def test_slerp_from_zero_is_straight():
    a, zero = torch.randn(1, 8), torch.zeros(1, 8)
    assert torch.allclose(slerp(zero, a, 0.25), a / 4)
    assert torch.allclose(slerp(a, zero, 0.25), a * 0.75)
    assert torch.equal(slerp(zero, zero, 0.5), zero)


# ----------------------------------------------------------------------------------------------------
# Codes of other kinds.


def test_images_walk_in_w_plus():
    pipe = StyleFusionInterpolationPipeline.from_pipe(tiny_pipeline(), encoder=TinyEncoder())
    pipe.set_progress_bar_config(disable=True)
    white, black = Image.new("RGB", (40, 40), "white"), Image.new("RGB", (32, 32), "black")
    out = pipe(base=1, regions={"hair": [white, black]}, steps=2, output_type="latent")
    middle = Code(torch.zeros(1, NUM_WS, W_DIM), "w+")
    expected = pipe(base=1, regions={"hair": [middle, middle]}, frames=2, output_type="latent")
    assert torch.allclose(out.frames[1], expected.frames[0], atol=1e-5)
    assert pipe.encoder.batches == [2]
    mixed = pipe(base=1, regions={"hair": [white, 7]}, steps=2, output_type="latent").frames
    assert torch.allclose(mixed[2], pipe(base=1, regions={"hair": [7, 7]}, frames=2, output_type="latent").frames[0])
    with pytest.raises(ValueError, match=r"regions\['hair'\] has a keyframe in w\+, .* image is encoded to w\+"):
        pipe(base=1, regions={"hair": [white, black]}, space="z")
    assert len(pipe(base=white, regions={"hair": [7, 8]}, space="z", frames=3).frames) == 3  # it does not move


def test_a_space_takes_only_its_codes(pipe):
    style, w = Code(torch.randn(2, STYLE_DIM), "s"), Code(torch.randn(2, W_DIM), "w")
    assert len(pipe(base=1, regions={"hair": style}, space="s", frames=3).frames) == 3
    with pytest.raises(ValueError, match=r"regions\['hair'\] has a keyframe in s, .* Choose space='s'"):
        pipe(base=1, regions={"hair": style})
    with pytest.raises(ValueError, match=r"base has a keyframe in w, .* Choose space='w' or 's'"):
        pipe(base=w, space="z")


def test_labels_are_keyframes_too():
    fuse = tiny_pipeline(label_dim=3)
    pipe = StyleFusionInterpolationPipeline.from_pipe(fuse)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(base=1, class_labels=[0, 2], frames=3, batch_size=1, output_type="pt")
    for k, frame in enumerate(out.keyframes):
        expected = fuse(base=1, class_labels=[0, 2][k], output_type="pt")
        assert torch.equal(out.frames[frame], expected.images[0])
    along = pipe(base=[1, 2], class_labels=2, frames=3, space="z", output_type="latent").frames[1]
    z = Code(slerp(*seeds_to_z([1, 2], Z_DIM).split(1), 0.5), "z")
    with torch.no_grad():
        label = torch.eye(3)[2:]
        assert torch.allclose(along, codes_to_style(fuse.generator, [z], label, 0.7)[0], atol=1e-5)
    with pytest.raises(ValueError, match="mapped together with z and cannot be interpolated"):
        pipe(base=[1, 2], class_labels=[0, 2], space="z")


# ----------------------------------------------------------------------------------------------------
# The stream.


def test_a_stream_holds_a_batch(pipe, monkeypatch):
    made = []
    synthesis = pipe.generator.synthesis

    def count(_, args):
        made.append(len(args[0]))

    hook = synthesis.register_forward_pre_hook(count)
    try:
        stream = pipe.stream(base=1, regions={"hair": [7, 8]}, frames=10**5, batch_size=4, output_type="pt")
        assert made == []
        assert (stream.frames, stream.keyframes) == (10**5, [0, 10**5 - 1])
        assert next(stream).shape == (4, 3, 32, 32)
        assert made == [4]
        next(stream)
        assert made == [4, 4]
    finally:
        hook.remove()
    assert not torch.is_inference_mode_enabled()
    assert torch.is_grad_enabled()


def test_a_stream_has_the_frames_of_the_call(pipe):
    call: dict[str, Any] = {"base": 1, "regions": {"hair": [7, 8]}, "frames": 7, "batch_size": 3}
    out = pipe(**call)
    stream = pipe.stream(**call)
    parts = list(stream)
    assert [len(part) for part in parts] == [3, 3, 1]
    assert [frame for part in parts for frame in part] == out.frames
    assert stream.recipe == out.recipe
    array = pipe(**call, output_type="np").frames
    assert array.shape == (7, 32, 32, 3)
    assert np.array_equal(array, np.concatenate(list(pipe.stream(**call, output_type="np"))))
    frames, codes, keyframes, recipe = pipe(**call, return_dict=False)
    assert (frames, keyframes, recipe) == (out.frames, out.keyframes, out.recipe)
    assert torch.equal(codes, out.style_codes)


def test_a_list_of_generators_draws_a_base_for_each_keyframe(pipe):
    draws = [torch.Generator().manual_seed(k) for k in (1, 2)]
    walk = pipe(regions={"hair": [7, 8]}, steps=2, generator=draws, output_type="latent")
    first, second = walk.recipe["base"]
    assert first != second
    one = pipe(regions={"hair": [7, 8]}, steps=2, generator=[torch.Generator().manual_seed(1)], output_type="latent")
    assert one.recipe["base"] == [first] or one.recipe["base"] == first
    assert torch.equal(one.style_codes[0], walk.style_codes[0])


def test_a_base_is_drawn_once(pipe):
    call: dict[str, Any] = {"regions": {"hair": [7, 8]}, "frames": 3}
    a = pipe(**call, generator=torch.Generator().manual_seed(5))
    b = pipe(**call, generator=torch.Generator().manual_seed(5))
    assert isinstance(a.recipe["base"], int)
    assert (a.recipe, a.frames) == (b.recipe, b.frames)


# ----------------------------------------------------------------------------------------------------
# Refusals, and the other pipeline.

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "lengths": (
        {"base": [1, 2], "regions": {"hair": [7, 8, 9]}},
        r"base has length 2 and regions\['hair'\] length 3: give one length, or 1 to repeat",
    ),
    "label lengths": ({"base": [1, 2], "class_labels": [0, 1, 2]}, "class_labels length 3"),
    "nothing moves": ({"base": 1, "regions": {"hair": 7}, "loop": True}, "nothing moves: give base"),
    "both": ({"base": [1, 2], "frames": 9, "steps": 3}, "frames=9 and steps=3"),
    "few": ({"base": [1, 2, 3], "frames": 2}, "frames is 2, fewer than the 3 keyframes"),
    "no frames": ({"base": [1, 2], "frames": 0}, "frames is an integer from 1"),
    "no steps": ({"base": [1, 2], "steps": 0}, "steps is an integer from 1"),
    "space": ({"base": [1, 2], "space": "x"}, "unknown space 'x': a walk goes through w, s, z"),
    "spaces": ({"base": [1, 2], "space": ["w"]}, "unknown space"),
    "easing": ({"base": [1, 2], "easing": "bounce"}, "unknown easing 'bounce'"),
    "noise": ({"base": [1, 2], "noise_mode": "random"}, "would flicker"),
    "batch": ({"base": [1, 2], "batch_size": 0}, "batch_size is an integer from 1"),
    "output": ({"base": [1, 2], "output_type": "gif"}, "unknown output_type 'gif'"),
    "region": ({"base": 1, "regions": {"hare": [1, 2]}}, "hair"),
    "shape": ({"base": torch.zeros(2, 3)}, r"base has the shape \(batch, 3\)"),
    "image": ({"base": Image.new("RGB", (8, 8))}, "no encoder"),
    "generators": ({"regions": {"hair": [1, 2]}, "generator": [torch.Generator()] * 3}, "generator"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_refused_at_once(pipe, name):
    call, message = REFUSED[name]
    for method in (pipe, pipe.stream):
        with pytest.raises(ValueError, match=message):
            method(**call)
    with pytest.raises(TypeError, match="frame_rate"):
        pipe.stream(base=[1, 2], frame_rate=3)


def test_half_precision(fuse):
    half = StyleFusionInterpolationPipeline.from_pipe(tiny_pipeline(), dtype=torch.bfloat16)
    half.set_progress_bar_config(disable=True)
    out = half(base=1, regions={"hair": [7, 8]}, frames=3, space="z", output_type="pt")
    assert out.frames.dtype == torch.float32
    assert out.style_codes.dtype == torch.float32
    assert out.frames.isfinite().all()
