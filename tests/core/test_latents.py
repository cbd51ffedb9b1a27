"""Codes: what users may hand in, broadcasting, labels, and any space to s."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf.core.codes import Code, check_shapes, common_batch, labels_to_tensor, parse_labels, seeds_to_z
from stylefusion_hf.models.latents import codes_to_style, encode_images, parse_code
from tests.tiny import NUM_WS, STYLE_DIM, W_DIM, Z_DIM, TinyEncoder, tiny_generator


def test_seeds_follow_the_convention_of_the_field():
    seeds: list[Any] = [3, np.int64(1), 3]
    z = seeds_to_z(seeds, 512)
    expected = np.random.RandomState(3).randn(1, 512).astype(np.float32)
    assert z.dtype == torch.float32
    assert np.array_equal(z[:1].numpy(), expected)
    assert torch.equal(z[0], z[2])
    assert torch.equal(seeds_to_z([1], 512), z[1:2])  # the same in every place of a batch


@pytest.mark.parametrize("seed", [-1, 2**32, True, 1.0, "1", None])
def test_bad_seeds(seed):
    with pytest.raises(ValueError, match="a seed is an integer from 0 to 4294967295, got"):
        seeds_to_z([seed], 4)


# ----------------------------------------------------------------------------------------------------
# Parsing.


def test_codes_of_every_kind():
    image, rows = Image.new("RGB", (4, 4)), torch.randn(2, 5)
    parsed = parse_code(
        [1, [np.int32(2), [3]], rows, Code(rows, "w"), image, np.array([8, 9]), range(2), rows.numpy()]
    )
    assert [row for row in parsed if isinstance(row, int)] == [1, 2, 3, 8, 9, 0, 1]
    codes = [row for row in parsed if isinstance(row, Code)]
    assert [code.space for code in codes] == ["z", "z", "w", "w", "z", "z"]
    assert all(code.tensor.shape == (1, 5) and code.tensor.dtype == torch.float32 for code in codes)
    assert torch.equal(torch.cat([code.tensor for code in codes]), rows.repeat(3, 1))
    assert image in parsed
    assert len(parse_code(torch.randn(4, 3, 2), "w+")) == 4


@pytest.mark.parametrize(("space", "single"), [("z", (5,)), ("w", (5,)), ("s", (5,)), ("w+", (3, 5))])
def test_a_single_code_may_come_without_its_batch_dimension(space, single):
    assert len(Code(torch.zeros(single), space)) == 1
    assert Code(torch.zeros(4, *single, dtype=torch.bfloat16), space).rows()[3].tensor.shape == (1, *single)


LIST: Any = ["z"]
ARRAY: Any = np.zeros((1, 2))
BAD_CODES = {
    "space": (lambda: Code(torch.zeros(1, 2), "x"), "unknown latent space 'x': choose from z, w, w\\+, s"),
    "latent_type": (lambda: parse_code(1, "W"), "unknown latent space 'W'"),
    "latent_type of another kind": (lambda: parse_code(1, LIST), "unknown latent space"),
    "array in place of a tensor": (lambda: Code(ARRAY, "z"), "floating-point tensor, got ndarray"),
    "integers": (lambda: parse_code(torch.ones(1, 2, dtype=torch.int64)), "got torch.int64: seeds are ints"),
    "dimensions": (lambda: Code(torch.zeros(1, 2, 3), "z"), r"has the shape \(batch, numbers\), got \(1, 2, 3\)"),
    "dimensions of w+": (lambda: Code(torch.zeros(4), "w+"), r"\(batch, num_ws, w_dim\), got \(4,\)"),
    "empty batch": (lambda: Code(torch.zeros(0, 4), "w"), r"got \(0, 4\)"),
    "NaN": (lambda: Code(torch.tensor([[1.0, float("nan")]]), "w"), "numbers that are not finite"),
    "infinite": (lambda: parse_code(torch.tensor([[float("inf")]])), "numbers that are not finite"),
    "too large": (lambda: Code(torch.tensor([[1e300]], dtype=torch.float64), "s"), "not finite"),
    "negative seed": (lambda: parse_code([1, -2], name="base"), "base: a seed is an integer from 0"),
    "bool": (lambda: parse_code(True, name="base"), "base: a seed .* got True"),
    "array of bools": (lambda: parse_code(np.array([True])), "a seed .* got True"),
    "float": (lambda: parse_code(3.0, name="base"), "base is a seed .* got float"),
    "text": (lambda: parse_code("7", name="base"), "base is a seed .* got str"),
    "None in a list": (lambda: parse_code([None], name="base"), "got NoneType"),
    "dict": (lambda: parse_code({}, name="base"), "got dict"),
    "empty list": (lambda: parse_code([], name="base"), "base is an empty list"),
    "empty nested list": (lambda: parse_code([1, []], name="base"), "base is an empty list"),
    "tensor": (lambda: parse_code(torch.zeros(1, 2, 3), name="base"), "base: .* latent_type='z'"),
}


@pytest.mark.parametrize("case", BAD_CODES)
def test_bad_codes(case):
    make, message = BAD_CODES[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_images_pass_the_encoder_as_one_batch():
    white, grey = Image.new("RGB", (40, 40), "white"), Image.new("L", (9, 9), 51)
    encoder = TinyEncoder()
    groups: dict[str, Any] = {"base": (1, white), "regions['hair']": (grey, white)}
    encoded = encode_images(groups, encoder, resolution=16, img_channels=3)
    assert encoder.batches == [2]
    assert encoded["base"][0] == 1
    assert encoded["base"][1] is encoded["regions['hair']"][1]
    grey_code = encoded["regions['hair']"][0]
    assert isinstance(grey_code, Code)
    assert (grey_code.space, grey_code.tensor.shape) == ("w+", (1, NUM_WS, W_DIM))
    assert torch.allclose(grey_code.tensor, torch.tensor(51 / 127.5 - 1), atol=1e-5)
    assert encode_images({"base": (1, 2)}, None, 16, 3) == {"base": (1, 2)}
    with pytest.raises(ValueError, match=r"regions\['hair'\] is an image, and this pipeline has no encoder"):
        encode_images({"base": (1,), "regions['hair']": (grey,)}, None, 16, 3)
    with pytest.raises(ValueError, match=r"regions\['hair'\] is 40 x 30 pixels, and the model takes squares"):
        encode_images({"base": (white,), "regions['hair']": (white.crop((0, 0, 40, 30)),)}, encoder, 16, 3)


# ----------------------------------------------------------------------------------------------------
# Broadcasting and labels.


def test_lengths_broadcast():
    assert common_batch({"base": 1, "x": 1}) == 1
    assert common_batch({"base": 1, "x": 3, "y": 3}) == 3
    with pytest.raises(ValueError, match=r"base has length 2 and regions\['hair'\] length 3"):
        common_batch({"base": 2, "regions['hair']": 3})


def test_labels_of_every_kind():
    expected = torch.tensor([[0.0, 0, 1], [1, 0, 0]])
    for labels in ([2, 0], torch.tensor([2, 0]), np.array([2, 0]), expected, expected.tolist()):
        parsed = parse_labels(labels)
        assert parsed == (2, 0)
        assert torch.equal(labels_to_tensor(parsed, 3), expected)
    assert parse_labels(1) == (1,)
    assert parse_labels(None) is None
    mixed = parse_labels([[0.5, 0.25, 0.25]])
    assert mixed == ((0.5, 0.25, 0.25),)
    assert torch.equal(labels_to_tensor(mixed, 3), torch.tensor([[0.5, 0.25, 0.25]]))


@pytest.mark.parametrize("labels", [True, -1, 1.5, "a", [[]], [[float("nan")]], [["a"]], [None], torch.ones(2, 2, 2)])
def test_bad_labels(labels):
    with pytest.raises(ValueError, match="class_labels are classes"):
        parse_labels(labels)


@pytest.mark.parametrize(
    ("labels", "label_dim", "message"),
    [((3,), 3, "classes 0 to 2, got 3"), (((0.5, 0.5),), 3, "has 3 numbers, got 2"), ((0,), 0, "without labels")],
)
def test_labels_that_the_model_does_not_have(labels, label_dim, message):
    with pytest.raises(ValueError, match=message):
        labels_to_tensor(labels, label_dim)


# ----------------------------------------------------------------------------------------------------
# Any space to s.


@torch.no_grad()
def test_every_space_gives_the_same_style_code():
    generator = tiny_generator()
    z = seeds_to_z([7], Z_DIM)
    w = generator.mapping(z)
    s = generator.to_style(w)
    wp = w[:, None].expand(-1, NUM_WS, -1)
    rows: list[Any] = [7, Code(z, "z"), Code(w, "w"), Code(wp, "w+"), Code(s, "s"), 7]
    style = codes_to_style(generator, rows)
    assert style.shape == (6, STYLE_DIM)
    assert torch.allclose(style, s.expand(6, -1), atol=1e-5)
    assert torch.equal(style[4], s[0])  # as it is
    assert torch.equal(codes_to_style(generator, [7]), s)


@torch.no_grad()
def test_truncation_is_for_seeds_and_z_only():
    generator = tiny_generator()
    z, w, s = seeds_to_z([7], Z_DIM), torch.randn(1, W_DIM), torch.randn(1, STYLE_DIM)
    rows: list[Any] = [7, Code(z, "z"), Code(w, "w"), Code(w[:, None].repeat(1, NUM_WS, 1), "w+"), Code(s, "s")]
    style = codes_to_style(generator, rows, truncation_psi=0.25)
    truncated = generator.to_style(generator.truncate(generator.mapping(z), 0.25))
    expected = torch.cat([truncated, truncated, generator.to_style(w), generator.to_style(w), s])
    assert torch.allclose(style, expected, atol=1e-5)
    cut = codes_to_style(generator, rows, truncation_psi=0.25, truncation_cutoff=3)
    expected[:2] = generator.to_style(generator.truncate(generator.mapping(z), 0.25, 3))
    assert torch.allclose(cut, expected, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_style_codes_stay_in_float32_under_half_precision_weights(dtype):
    generator = tiny_generator()
    expected = codes_to_style(generator, [1, 2])
    half = codes_to_style(generator.to(dtype), [1, 2])
    assert half.dtype == torch.float32
    assert (half - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (Code(torch.zeros(2, 7), "z"), r"base has the shape \(batch, 7\), .* in z is \(batch, 16\)"),
        (Code(torch.zeros(2, 7), "w"), r"in w is \(batch, 16\)"),
        (Code(torch.zeros(2, 7, 16), "w+"), r"\(batch, 7, 16\), .* in w\+ is \(batch, 8, 16\)"),
        (Code(torch.zeros(2, 7), "s"), r"in s is \(batch, 88\)"),
    ],
)
def test_shapes_of_another_model(code, expected):
    with pytest.raises(ValueError, match=expected):
        check_shapes(tiny_generator(), {"regions": (1,), "base": code.rows()})
