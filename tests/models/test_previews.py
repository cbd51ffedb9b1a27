"""A generator's own smaller pictures: fitted preview heads, and the skip sums of StyleGAN2."""

import pytest
import torch
import torch.nn.functional as F

from stylefusion_hf import MobileStyleGANGenerator
from tests.tiny import STYLE_DIM, draw, style_codes, tiny_generator, tiny_mobile_generator


def test_a_preview_head_is_fitted_saved_and_loaded(tmp_path) -> None:
    g = tiny_mobile_generator()
    s = style_codes(g, 4)
    assert g.picture_sizes == [32]
    with pytest.raises(
        ValueError, match=r"no preview head of 16 px, only pictures of 32: fit one .*fit_preview\(16\)"
    ):
        g.synthesis(s, up_to=16)
    quality = g.fit_preview(16, samples=8)
    assert g.picture_sizes == [16, 32] and g.config.preview_resolutions == [16]
    with torch.no_grad():
        preview, full = g.synthesis(s, up_to=16), g.synthesis(s)
    assert preview.shape == (4, 3, 16, 16) and preview.is_contiguous()
    # The picture's layer scales by a style that a fixed head does not know: it is close, not equal.
    assert float((preview - F.avg_pool2d(full, 2)).std()) < float(full.std())
    assert quality > 0 and quality == g.fit_preview(16, samples=8)
    g.save_pretrained(tmp_path)
    loaded = MobileStyleGANGenerator.from_pretrained(tmp_path)
    assert loaded.picture_sizes == [16, 32]
    with torch.no_grad():
        assert torch.equal(loaded.synthesis(s, up_to=16), preview) and torch.equal(loaded.synthesis(s), full)
        assert loaded.to(torch.bfloat16).synthesis(s.bfloat16(), up_to=16).dtype == torch.bfloat16


def test_a_preview_head_fits_what_a_linear_map_can_say() -> None:
    """Where the picture is one linear map of the features, and has no detail, the head finds that map."""
    g = tiny_mobile_generator()
    with torch.no_grad():
        g.synthesis.to_image.weight[3:] = 0
        g.synthesis.to_image.bias[3:] = 0
        first = g.style_dim - g.rgb_sizes[0]
        g.affine_weight[first:] = 0  # the same style for every code
    assert g.fit_preview(16, samples=6, seed=3) > 80


def test_previews_of_a_conditional_model() -> None:
    g = tiny_mobile_generator(label_dim=3)
    g.fit_preview(8, samples=4)
    assert g.synthesis(style_codes(g), up_to=8).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"resolution": 32}, "resolution is one of 4, 8, 16, got 32"),
    ({"resolution": 16, "samples": 0}, "samples is an integer from 1"),
])  # fmt: skip
def test_previews_that_cannot_be_fitted(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_mobile_generator().fit_preview(**arguments)


@pytest.mark.parametrize("size", [4, 8, 16, 32])
def test_a_stylegan2_gives_its_skip_sum_at_any_size(size: int) -> None:
    g = tiny_generator()
    s = draw(2, STYLE_DIM)
    full, maps = g.synthesis(s, return_features=True)
    picture, features = g.synthesis(s, return_features=True, up_to=size)
    assert picture.shape == (2, 3, size, size) and features.keys() == {r for r in maps if r <= size}
    assert all(torch.equal(features[r], maps[r]) for r in features)
    assert torch.equal(g.synthesis(s, up_to=size), picture)
    assert (size == 32) == torch.equal(picture, full) if size == 32 else True
    assert g.picture_sizes == [4, 8, 16, 32]
    smaller = tiny_generator(resolution=size, channels=[8] * (size.bit_length() - 2))
    smaller.load_state_dict({k: v for k, v in g.state_dict().items() if k in smaller.state_dict()}
                            | {k: v for k, v in smaller.state_dict().items() if k.startswith("affine")})  # fmt: skip
    parts = g.split_style(s)
    own = torch.cat([parts[name] for name in smaller.style_sizes], 1)
    torch.testing.assert_close(smaller.synthesis(own), picture)
    with pytest.raises(ValueError, match="up_to is one of 4, 8, 16, 32, got 12"):
        g.synthesis(s, up_to=12)
