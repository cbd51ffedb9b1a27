"""StyleGAN3's generator: its filters, layers and motion, against parity files and a plain implementation."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import signal

from stylefusion_hf import StyleGAN3Generator, StyleGenerator
from stylefusion_hf.conversion.modules import read_modules
from stylefusion_hf.conversion.nvidia import convert_generator
from stylefusion_hf.conversion.stylegan3 import stylegan3_generator
from stylefusion_hf.core.untrusted.safe_pickle import load
from stylefusion_hf.models.stylegan3_plan import plan_signals
from stylefusion_hf.ops import filtered_lrelu as filtering
from stylefusion_hf.ops.filtered_lrelu import filtered_lrelu
from stylefusion_hf.ops.lowpass import design_lowpass
from tests.parity import load_case, parity_file, relative_error
from tests.plain_stylegan3 import PlainStyleGAN3, lowpass
from tests.tiny import W_DIM, draw, tiny_stylegan3_generator

CONFIGS: dict[str, dict[str, Any]] = {
    "t": {},
    "r": {"conv_kernel": 1, "use_radial_filters": True},
    "radial, 3 x 3": {"use_radial_filters": True},
    "64 px": {"img_resolution": 64, "num_layers": 8, "channel_base": 300, "channel_max": 12},
    "48 px": {"img_resolution": 48},
    "classes": {"c_dim": 3},
    "grey": {"img_channels": 1, "output_scale": 1.0},
    "alpha": {"img_channels": 4, "margin_size": 4},
    "all but one critical": {"num_layers": 4, "num_critical": 3},
    "none critical": {"num_critical": 0, "use_radial_filters": True},
    "first stopband": {"img_resolution": 64, "first_stopband": 6.5},
    "cutoff": {"first_cutoff": 3.0, "first_stopband": 9.0, "last_stopband_rel": 1.4},
    "no clamp, one mapping layer": {"conv_clamp": None, "map_layers": 1},
    "a clamp that matters": {"conv_clamp": 0.5},
    "filters": {"filter_size": 4, "lrelu_upsampling": 4, "use_radial_filters": True},
    "not oversampled": {"lrelu_upsampling": 1},
    "5 x 5": {"conv_kernel": 5},
}


def picture_error(given: torch.Tensor, expected: torch.Tensor) -> float:
    return float((given - expected).abs().max() / expected.std())


def load_converted(converted: Any) -> StyleGAN3Generator:
    g = StyleGAN3Generator(**converted.config)
    g.load_state_dict(converted.state, strict=True)
    assert converted.unused == []
    return g.eval().requires_grad_(False)


def codes(g: StyleGenerator, batch: int = 2, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return g.to_style(draw(batch, W_DIM, seed=seed))


# --- Parity with NVIDIA's code ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["fast", "ref"])
@pytest.mark.parametrize("case", ["sg3t-tiny32", "sg3r-tiny32"])
def test_parity(case: str, impl: str) -> None:
    data = load_case(f"nvidia-{case}")
    content = load(parity_file(f"nvidia-{case}.pkl"))
    g = load_converted(convert_generator(read_modules(content["G_ema"], case), case, 0.7))
    w = g.mapping(data["z"])
    rows = w[:, None].expand(-1, g.num_ws, -1)
    assert relative_error(rows, data["ws"]) < 1e-4
    assert relative_error(g.truncate(w, 0.7)[:, None].expand_as(rows), data["ws_psi0.7"]) < 1e-4
    s = g.to_style(w)
    given = sorted((n for n in data if n.startswith("affine.L")), key=lambda n: int(n[8:].split("_")[0]))
    assert len(given) == len(g.style_sizes) - 1
    for name, vector in zip(["affine.input", *given], g.split_style(s).values(), strict=True):
        assert relative_error(vector, data[name]) < 1e-4, name
    torch.testing.assert_close(g.to_style(rows), s)
    assert picture_error(g.synthesis(s, impl=impl), data["image"]) < 1e-3
    truncated = g.to_style(g.truncate(w, 0.7))
    assert picture_error(g.synthesis(truncated, impl=impl), data["image_psi0.7"]) < 1e-3

    # The same motion as part of the style code, and as the input's transform: translate 0.1, 0.3 rad.
    moved = g.move_style(s, (0.1, 0.0), math.degrees(0.3))
    assert picture_error(g.synthesis(moved, impl=impl), data["image_moved"]) < 1e-3
    g.synthesis.input.transform.copy_(data["moved_transform"])
    assert picture_error(g.synthesis(s, impl=impl), data["image_moved"]) < 1e-3


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_any_configuration(name: str) -> None:
    plain = PlainStyleGAN3(**CONFIGS[name])
    g = load_converted(stylegan3_generator(plain.tensors, 0.7, plain.attributes))
    c = plain.c
    assert (g.config.resolution, g.num_ws) == (c["img_resolution"], c["num_layers"] + 2)
    labels = torch.eye(3)[:2] if c["c_dim"] else None
    z = draw(2, c["z_dim"])
    w = g.mapping(z, labels)
    assert relative_error(w, plain.mapping(z, labels)) < 1e-4
    ws = draw(2, g.num_ws, c["w_dim"], seed=1)
    expected = plain.synthesis(ws)
    assert expected.std() > 0.01
    s = g.to_style(ws)
    assert relative_error(g.split_style(s)["conv0"], plain.affine("synthesis.input", ws[:, 0])) < 1e-4
    assert picture_error(g.synthesis(s), expected) < 1e-3
    assert picture_error(g.synthesis(s, impl="ref"), expected) < 1e-3

    # Without attributes, where only names and shapes and NVIDIA's defaults say what it is.
    usual = {"img_resolution", "num_layers", "channel_base", "channel_max", "conv_kernel", "use_radial_filters"}
    if set(CONFIGS[name]) <= usual | {"c_dim"}:
        again = load_converted(stylegan3_generator(plain.tensors))
        assert torch.equal(again.synthesis(s), g.synthesis(s))


def test_filters_are_those_of_scipy() -> None:
    for taps in (2, 5, 12, 24):
        for cutoff, width in ((0.1, 0.02), (0.3, 0.2), (0.49, 0.9)):
            expected = torch.as_tensor(signal.firwin(taps, cutoff, width=width, fs=1), dtype=torch.float32)
            torch.testing.assert_close(design_lowpass(taps, cutoff, width, 1), expected, rtol=1e-6, atol=1e-8)
            if taps % 2 == 0:  # scipy's formula divides by zero at the middle of an odd one
                expected = lowpass(taps, cutoff, width, 1, radial=True)
                found = design_lowpass(taps, cutoff, width, 1, radial=True)
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)
    odd = design_lowpass(5, 0.2, 0.1, 1, radial=True)
    assert odd.isfinite().all() and odd.argmax() == 12
    for settings in ((1, 0.2, 0.1, 1), (6, 0.5, 0.1, 1), (6, 0.0, 0.1, 1)):
        with pytest.raises(ValueError, match="at least 2 taps and a cutoff between 0 and half"):
            design_lowpass(*settings)


def test_converted_filters_are_the_file_s_own() -> None:
    plain = PlainStyleGAN3(use_radial_filters=True)
    name = next(n for n in plain.tensors if n.endswith("L1_36_16.down_filter"))
    plain.tensors[name] = plain.tensors[name] * 1.0001
    g = load_converted(stylegan3_generator(plain.tensors, 0.7, plain.attributes))
    assert torch.equal(g.synthesis.layers[1].down_filter, plain.tensors[name])
    del plain.tensors[name]  # a file without them
    designed = stylegan3_generator(plain.tensors).state["synthesis.layers.1.down_filter"]
    torch.testing.assert_close(designed * 1.0001, g.synthesis.layers[1].down_filter, rtol=1e-5, atol=1e-7)


# --- The filtered leaky ReLU -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("up", [1, 2, 3])
@pytest.mark.parametrize("down", [1, 2])
@pytest.mark.parametrize("padding", [(0, 0), (11, 10), (-2, -5), (7, -3)])
@pytest.mark.parametrize("dims", [(0, 0), (1, 1), (1, 2), (2, 0)])
def test_the_filtered_nonlinearity(
    up: int, down: int, padding: tuple[int, int], dims: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fast path, and its strips of rows, agree with the reference."""
    up_filter, down_filter = (draw(*[6] * dim, seed=dim) if dim else None for dim in dims)
    x = draw(2, 3, 20, 18)
    for gain, slope, clamp in ((2**0.5, 0.2, None), (1.0, 1.0, 0.5), (0.0, 0.2, None)):
        args: Any = (up_filter, down_filter, draw(3), up, down, padding, gain, slope, clamp)
        expected = filtered_lrelu(x, *args, impl="ref")
        torch.testing.assert_close(filtered_lrelu(x, *args), expected, rtol=1e-4, atol=1e-4)
        with monkeypatch.context() as patch, torch.no_grad():
            patch.setattr(filtering, "STRIP", 1)
            torch.testing.assert_close(filtered_lrelu(x, *args), expected, rtol=1e-4, atol=1e-4)


def test_the_filtered_nonlinearity_has_gradients() -> None:
    x = draw(1, 2, 5, 6).double().requires_grad_()
    f = draw(4).double()
    assert torch.autograd.gradcheck(lambda x: filtered_lrelu(x, f, f, None, 2, 2, (3, 2), clamp=2.0), (x,))


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="maps that the filters fit on"):
        filtered_lrelu(draw(1, 1, 4, 4), draw(6), draw(6), up=2, padding=(-3, -3))
    with pytest.raises(ValueError, match="factors of at least 1"):
        filtered_lrelu(draw(1, 1, 4, 4), up=0)
    with pytest.raises(ValueError, match="unknown implementation 'slow'"):
        filtered_lrelu(draw(1, 1, 4, 4), impl="slow")


# --- The generator ---------------------------------------------------------------------------------------------------


def test_the_plan_of_published_networks() -> None:
    """stylegan3-t at 1024 px: names of its layers are L{i}_{size}_{channels}."""
    plan = plan_signals(1024, 14, 2, 2.0, 2**2.1, 2**0.3, 10)
    assert plan.sizes == [36, 36, 52, 52, 84, 148, 148, 276, 276, 532, 1044, 1044, 1044, 1024, 1024]
    assert plan.details == [4, 8, 16, 16, 32, 64, 64, 128, 256, 256, 512, 1024, 1024, 1024, 1024]
    assert plan.heights == [16, 16, 32, 32, 64, 128, 128, 256, 256, 512, 1024, 1024, 1024, 1024, 1024]


def test_layers_are_as_coarse_as_their_frequencies() -> None:
    g = tiny_stylegan3_generator()
    expected = {"conv0": 4, "conv1": 4, "conv2": 16, "conv3": 32, "conv4": 32, "rgb0": 32}
    assert g.style_resolutions == expected


def test_features_are_the_part_that_the_picture_shows() -> None:
    g = tiny_stylegan3_generator()
    _, maps = g.synthesis(codes(g), return_features=True)
    assert {height: x.shape[1] for height, x in maps.items()} == g.feature_sizes == {16: 8, 32: 6}
    assert all(x.shape[2] == x.shape[3] == height for height, x in maps.items())
    picture, some = g.synthesis(codes(g), return_features=True, up_to=16)
    assert picture is None and some.keys() == {16} and torch.equal(some[16], maps[16])
    with pytest.raises(ValueError, match=r"no preview head of 16 px, only pictures of 32: .*fit_preview\(16\)"):
        g.synthesis(codes(g), up_to=16)
    with pytest.raises(ValueError, match="up_to is one of 16, 32, got 8"):
        g.synthesis(codes(g), up_to=8)
    # Details move with the picture: by a quarter of the width in the features as in the picture.
    s = codes(g, 1)
    moved = g.synthesis(g.move_style(s, (0.25, 0.0)), return_features=True)[1][16]
    still = g.synthesis(s, return_features=True)[1][16]
    inner = (moved[..., 4:] - still[..., :-4]).abs()[:, :, 2:-2, 2:-2]
    assert inner.mean() < 0.2 * (moved - still).abs().mean()


def test_previews() -> None:
    g = tiny_stylegan3_generator()
    quality = g.fit_preview(16, samples=8)
    assert quality > 10
    assert g.picture_sizes == [16, 32]
    small = g.synthesis(codes(g), up_to=16)
    assert small.shape == (2, 3, 16, 16)
    with pytest.raises(ValueError, match="preview_resolutions must be among"):
        tiny_stylegan3_generator(preview_resolutions=[4])


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    g = tiny_stylegan3_generator()
    s = codes(g, 3)
    with torch.no_grad():
        together = g.synthesis(s)
        alone = torch.cat([g.synthesis(one) for one in s.split(1)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        monkeypatch.setattr("stylefusion_hf.models.stylegan3_synthesis.chunk_size", lambda resolution, most: 2)
        parts, maps = g.synthesis(s, return_features=True)
        torch.testing.assert_close(parts, alone, rtol=1e-4, atol=1e-5)
        assert [len(x) for x in maps.values()] == [3, 3]
        assert g.synthesis(s[:0]).shape == (0, 3, 32, 32)
    assert torch.equal(g.synthesis(s, "none"), g.synthesis(s, "random"))
    with pytest.raises(ValueError, match="unknown noise_mode 'loud'"):
        g.synthesis(s, "loud")


def test_degenerate_styles_give_finite_pictures() -> None:
    g = tiny_stylegan3_generator()
    assert g.synthesis(torch.zeros(2, g.style_dim)).isfinite().all()
    s = codes(g).requires_grad_()
    g.synthesis(s).square().mean().backward()
    assert s.grad is not None and s.grad.isfinite().all() and s.grad[:, :4].abs().sum() > 0


def test_motion_composes() -> None:
    g = tiny_stylegan3_generator()
    s = codes(g)
    there = g.move_style(s, (0.2, -0.1), 40)
    assert not torch.allclose(there, s)
    assert torch.equal(there[:, 4:], s[:, 4:])
    back = g.move_style(g.move_style(there, (-0.2, 0.1)), (0, 0), -40)
    torch.testing.assert_close(g.synthesis(back), g.synthesis(s), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(g.synthesis(g.move_style(s, rotate=360)), g.synthesis(s), rtol=1e-3, atol=1e-4)


def test_motion_of_other_resolutions_is_in_fractions_of_the_width() -> None:
    g = tiny_stylegan3_generator(resolution=48, num_layers=6, channels=[8] * 7)
    s = codes(g, 1)
    g.requires_grad_(False)
    moved = g.synthesis(g.move_style(s, (0.25, 0.0)))
    still = g.synthesis(s)
    errors = [float((moved[..., k:] - still[..., : 48 - k])[..., 6:-6, 6:-6].square().mean()) for k in range(8, 17)]
    assert int(np.argmin(errors)) + 8 == 12


def test_saving(tmp_path: Path) -> None:
    g = tiny_stylegan3_generator()
    g.synthesis.input.transform[0, 2] = 0.1
    g.save_pretrained(tmp_path)
    again = StyleGenerator.from_pretrained(tmp_path)
    assert isinstance(again, StyleGAN3Generator)
    assert torch.equal(again.synthesis(codes(g)), g.synthesis(codes(g)))


@pytest.mark.parametrize(
    ("config", "match"),
    [
        ({"num_layers": 0, "channels": [8]}, "at least 1 layer"),
        ({"num_critical": 4}, "fewer critically sampled"),
        ({"channels": [8] * 4}, "needs 5 positive channel counts"),
        ({"channels": [8, 8, 0, 8, 8]}, "needs 5 positive channel counts"),
        ({"first_cutoff": 20.0}, "frequencies must grow"),
        ({"first_stopband": 1e5}, "frequencies must grow"),
        ({"first_cutoff": 9.0}, "no transition band"),
        ({"resolution": 2**15}, "resolution is an integer from 4 to 16384"),
        ({"margin_size": 10**4}, "margin_size is an integer from 0 to 4096"),
        ({"filter_size": 1000}, "filter_size is an integer from 1 to 64"),
        ({"lrelu_upsampling": 0}, "lrelu_upsampling is an integer from 1 to 8"),
        ({"conv_kernel": 99}, "conv_kernel is an integer from 1 to 31"),
        ({"conv_clamp": 0.0}, "conv_clamp must be above 0"),
    ],
)
def test_configs_that_give_no_network(config: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        tiny_stylegan3_generator(**config)
