"""Strange values for every argument of every pipeline, and random calls: the right pictures or one clear error."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given

from stylefusion_hf import (
    Code,
    Direction,
    StyleFusionInterpolationPipeline,
    StyleFusionInversionPipeline,
    StyleFusionPipeline,
)
from tests.refusals import Refusal, attempt, examples
from tests.strange import strange_values
from tests.tiny import (
    NUM_WS,
    RESOLUTION,
    STYLE_DIM,
    W_DIM,
    Z_DIM,
    draw,
    tiny_encoder,
    tiny_fusion,
    tiny_generator,
    tiny_segmenter,
)

pytestmark = pytest.mark.filterwarnings("ignore")  # numpy's and torch's on deprecated kinds of arrays


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    generator = tiny_generator()
    parts = (generator, tiny_fusion(generator), tiny_segmenter(), tiny_encoder())
    kinds = {
        "fuse": StyleFusionPipeline,
        "walk": StyleFusionInterpolationPipeline,
        "invert": StyleFusionInversionPipeline,
    }
    made = {name: kind(*parts) for name, kind in kinds.items()}
    for pipe in made.values():
        pipe.set_progress_bar_config(disable=True)
    return made


# A call that works -> its other arguments; "name[]" stands for a dict's entry for hair.
CALLS: dict[str, tuple[dict[str, Any], str]] = {
    "fuse": (
        {"base": 1, "regions": {"hair": 7}, "output_type": "pt"},
        "base regions regions[] global_code nodes nodes[] latent_type class_labels strength strength[] edits edits[]"
        " truncation_psi truncation_cutoff noise_mode generator num_images_per_prompt output_type output_masks"
        " return_dict",
    ),
    "walk": (
        {"base": [1, 2], "regions": {"hair": 7}, "frames": 3, "output_type": "pt"},
        "base regions regions[] global_code nodes nodes[] frames steps loop space easing latent_type class_labels"
        " strength strength[] truncation_psi truncation_cutoff noise_mode generator batch_size output_type"
        " return_dict",
    ),
    "invert": (
        {"image": torch.full((1, 3, RESOLUTION, RESOLUTION), 0.5), "num_inference_steps": 1, "output_type": "pt"},
        "image latent_type num_inference_steps num_tuning_steps start fit masks region_weights region_weights[]"
        " pixel_weight feature_weight prior_weight learning_rate tuning_learning_rate locality_weight tolerance"
        " patience noise_mode batch_size generator callback_on_step_end_tensor_inputs output_type return_dict",
    ),
}
# Errors that rightly speak of something else than the argument.
ELSEWHERE = ("every code is a single one", "cannot read", "the picture", "is fewer than", "both set the root's code")


@pytest.mark.parametrize(
    ("kind", "argument"), [(kind, argument) for kind, (_, names) in CALLS.items() for argument in names.split()]
)
def test_every_strange_value_is_taken_or_refused(pipes, kind, argument):
    works, name = CALLS[kind][0], argument.removesuffix("[]")
    refused = 0
    for what, value in strange_values().items():
        call = works | {name: {"hair": value} if argument.endswith("[]") else value}
        if argument == "steps":
            call["frames"] = None
        out = attempt(f"argument of {kind}", lambda call=call: pipes[kind](**call))
        if isinstance(out, Refusal):
            refused += 1
            assert name in str(out) or any(part in str(out) for part in ELSEWHERE), f"{what}: {out}"
        else:
            check_pictures(out)
    assert refused > 20  # of some eighty, in every argument


def check_pictures(out: Any) -> None:
    pictures = out[0] if isinstance(out, tuple) else (out["frames"] if "frames" in out else out["images"])
    if isinstance(pictures, torch.Tensor):
        assert pictures.isfinite().all()
    assert len(pictures) > 0


# --- Calls that should work: the same pictures as one at a time ------------------------------------------------------

SEEDS = st.integers(0, 2**32 - 1) | st.integers(0, 9).map(np.int64)
SHAPES = {"z": (Z_DIM,), "w": (W_DIM,), "w+": (NUM_WS, W_DIM), "s": (STYLE_DIM,)}
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


@st.composite
def codes(draw_: Any, count: int) -> Any:
    """`count` codes in one of the ways to write them, spaces mixed."""
    rows: list[Any] = []
    while len(rows) < count:
        if draw_(st.booleans()):
            rows.append(draw_(SEEDS))
        else:
            space, dtype = draw_(st.sampled_from(list(SHAPES))), draw_(st.sampled_from(DTYPES))
            rows.append(Code(draw(1, *SHAPES[space], seed=draw_(st.integers(0, 99))).to(dtype), space))
    if count == 1 and draw_(st.booleans()):
        return rows[0]
    return draw_(st.sampled_from([list, tuple]))(rows)


NODES = ("all", "face", "skin_mouth", "mouth", "eyes", "bg_hair_clothes", "hair", "clothes", "background")


@st.composite
def calls(draw_: Any) -> tuple[int, dict[str, Any]]:
    batch = draw_(st.sampled_from([1, 2, 3, 5]))

    def some() -> Any:
        return draw_(codes(draw_(st.sampled_from([1, batch]))))

    call: dict[str, Any] = {"base": draw_(codes(batch))}
    for argument in ("regions", "nodes"):
        chosen = draw_(st.lists(st.sampled_from(NODES[1:]), max_size=3, unique=True))
        call[argument] = {node: some() for node in chosen}
    if draw_(st.booleans()):
        call["global_code"] = some()
    call["strength"] = draw_(st.sampled_from([1.0, 0.5, 0, np.float32(0.25)]))
    call["truncation_psi"] = draw_(st.sampled_from([None, 1, 0.5, 0, -0.5]))
    call["truncation_cutoff"] = draw_(st.sampled_from([None, 0, 3, np.int64(2), NUM_WS]))
    call["noise_mode"] = draw_(st.sampled_from(["const", "none"]))
    if draw_(st.booleans()):
        step = Direction("older", "w", draw(W_DIM, seed=5))
        call["edits"] = {draw_(st.sampled_from(NODES)): step(draw_(st.floats(-2, 2)))}
    return batch, call


@given(calls())
@examples(60)
def test_a_batch_is_its_pictures_one_by_one(pipes, drawn):
    batch, call = drawn
    pipe = pipes["fuse"]
    out = attempt("random call of fuse", lambda: pipe(**call, output_type="pt"))
    assert not isinstance(out, Refusal), str(out)
    assert out.images.shape == (batch, 3, RESOLUTION, RESOLUTION)
    assert out.images.isfinite().all()
    again = pipe.from_recipe(out.recipe, output_type="pt")
    assert torch.equal(again.images, out.images)
    k = batch - 1
    single = {name: pick(value, k) for name, value in call.items()}
    alone = pipe(**single, output_type="pt")
    assert (alone.images[0] - out.images[k]).abs().max() <= 1 / 255 + 1e-6


def pick(value: Any, k: int) -> Any:
    """The part of an argument that picture k is made of."""
    if isinstance(value, dict):
        return {name: pick(item, k) for name, item in value.items()}
    return value[k if len(value) > 1 else 0] if isinstance(value, (list, tuple)) else value


@given(st.integers(1, 7), st.integers(1, 40), st.sampled_from(["const", "none", "random"]))
@examples(8)
def test_slicing_gives_the_same_pictures(pipes, size, batch, noise):
    pipe = StyleFusionPipeline.from_pipe(pipes["fuse"])
    call = {"base": list(range(batch)), "regions": {"hair": [7]}, "noise_mode": noise, "output_type": "pt"}
    whole = pipe(**call, output_masks=True, generator=torch.Generator().manual_seed(1))
    pipe.enable_slicing(size)
    parts = pipe(**call, output_masks=True, generator=torch.Generator().manual_seed(1))
    assert (whole.images - parts.images).abs().max() <= 1 / 255 + 1e-6
    assert all((whole.masks[name] != mask).float().mean() < 0.01 for name, mask in parts.masks.items())


def test_slicing_bounds_what_is_fitting_batch(pipes):
    pipe, seen = StyleFusionPipeline.from_pipe(pipes["fuse"]), []
    hook = pipe.generator.synthesis.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        pipe.enable_slicing(np.int64(16))
        out = pipe(base=list(range(1000)), output_type="np")
    finally:
        hook.remove()
    assert out.images.shape == (1000, RESOLUTION, RESOLUTION, 3)
    assert max(seen) == 16
    assert sum(seen) == 1000


@given(st.data())
@examples(25)
def test_frames_of_a_random_walk(pipes, data):
    keyframes = data.draw(st.integers(2, 4))
    call: dict[str, Any] = {
        "base": data.draw(st.lists(SEEDS, min_size=keyframes, max_size=keyframes)),
        "regions": {"hair": data.draw(codes(1))},
        "frames": data.draw(st.integers(keyframes, 9)),
        "space": data.draw(st.sampled_from(["w", "s", "z"])),
        "easing": data.draw(st.sampled_from(["linear", "smooth"])),
        "loop": data.draw(st.booleans()),
        "strength": data.draw(st.sampled_from([1.0, 0.5])),
    }
    sizes = st.integers(1, 9)
    out = attempt("random call of walk", lambda: pipes["walk"](**call, batch_size=data.draw(sizes), output_type="pt"))
    assert not isinstance(out, Refusal), str(out)
    assert out.frames.shape == (call["frames"], 3, RESOLUTION, RESOLUTION)
    still = pipes["fuse"](base=call["base"], regions=call["regions"], strength=call["strength"], output_type="pt")
    assert (out.frames[out.keyframes] - still.images).abs().max() <= 1 / 255 + 1e-6


@given(st.integers(1, 5), st.integers(1, 5), st.sampled_from(["w", "w+", "s"]), st.integers(0, 3))
@examples(8)
def test_inversion_in_any_batches(pipes, count, size, space, steps):
    images = draw(count, 3, RESOLUTION, RESOLUTION, seed=count).sigmoid()
    call: dict[str, Any] = {"latent_type": space, "num_inference_steps": steps, "output_type": "pt"}
    out = attempt("random call of invert", lambda: pipes["invert"](images, **call, batch_size=size))
    assert not isinstance(out, Refusal), str(out)
    assert len(out.codes) == count
    assert out.images.isfinite().all()
    alone = pipes["invert"](images[-1:], **call)
    assert (alone.images[0] - out.images[-1]).abs().max() < 0.02  # optimization enlarges rounding


def test_codes_too_large_are_no_picture(pipes):
    for call in (
        {"base": torch.full((1, W_DIM), 2e12), "latent_type": "w"},
        {"base": 1, "truncation_psi": 1e30},
        {"base": 1, "edits": {"all": Direction("far", "w", torch.ones(W_DIM), scale=1e30)(1e6)}},
    ):
        out = attempt("codes too large", lambda call=call: pipes["fuse"](**call))
        assert isinstance(out, Refusal)
        assert "finite" in str(out)
    damaged = tiny_generator()
    damaged.synthesis.convs[0].weight.data[0, 0, 0, 0] = torch.nan
    pipe = StyleFusionPipeline(damaged, tiny_fusion(damaged))
    assert "pictures are not finite" in str(attempt("damaged weights", lambda: pipe(base=1)))
