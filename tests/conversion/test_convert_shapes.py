"""Conversion of rectangular generators, and of generators with other channels than three."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import StyleFusionPipeline, StyleGAN2Generator
from stylefusion_hf.cli import main
from stylefusion_hf.conversion.convert import convert
from stylefusion_hf.conversion.rendering import render, render_size
from stylefusion_hf.conversion.tensorflow import square_names
from stylefusion_hf.core.untrusted.inert import ConversionError
from stylefusion_hf.imaging.modes import MODES
from tests import checkpoints
from tests.command_line import fails
from tests.conversion.test_convert import loaded, same_weights

QUIET = {"progress": False}
BASES = ([4, 6], [3, 5], [4, 2], [6, 6], [1, 8])


def shaped(base: list[int]) -> tuple:
    """A generator and a discriminator of three blocks that start from this size."""
    size = {"base_size": base, "resolution": 4 * base[0]}
    return checkpoints.generator(**size), checkpoints.discriminator(**size)


def save(kind: str, path: Path, g, d) -> None:
    if kind == "nvidia":
        checkpoints.save_nvidia(path, g, d)
    elif kind == "tensorflow":
        checkpoints.save_tensorflow(path, g, d)
    else:
        parts = {"g_ema": checkpoints.rosinality_generator(g), "d": checkpoints.rosinality_discriminator(d)}
        torch.save(parts | {"latent_avg": g.w_avg}, path)


@pytest.mark.parametrize("kind", ["nvidia", "tensorflow", "rosinality"])
@pytest.mark.parametrize("base", BASES)
def test_the_constant_says_height_and_width(tmp_path, kind, base):
    g, d = shaped(base)
    save(kind, tmp_path / "x.pkl", g, d)
    report = convert(tmp_path / "x.pkl", tmp_path / "out", with_discriminator=True, **QUIET)
    same_weights(loaded(tmp_path / "out"), g, exactly=kind != "tensorflow")  # whose biases lack an added 1
    same_weights(loaded(tmp_path / "out", "discriminator"), d)
    height, width = 4 * base[0], 4 * base[1]
    config = json.loads((tmp_path / "out" / "generator" / "config.json").read_text())
    assert (config["resolution"], config["base_size"]) == (height, base)
    if height != width:
        assert f"{height} x {width} px (height x width)" in report.parts["generator"]["lines"][0]
    if min(height, width) > 4:
        picture = StyleFusionPipeline.from_pretrained(tmp_path / "out")(base=1).images[0]
        assert picture.size == (width, height)


def test_configs_of_squares_have_no_base(tmp_path):
    checkpoints.save_nvidia(tmp_path / "x.pkl", checkpoints.generator(), checkpoints.discriminator())
    convert(tmp_path / "x.pkl", tmp_path / "out", with_discriminator=True, **QUIET)
    for part in ("generator", "discriminator"):
        assert "base_size" not in json.loads((tmp_path / "out" / part / "config.json").read_text())


def test_noise_of_another_size_than_the_constant_says_is_refused(tmp_path):
    g, _ = shaped([3, 5])
    tensors = checkpoints.rosinality_generator(g)
    tensors["noises.noise_1"] = tensors["noises.noise_1"].mT
    torch.save({"g_ema": tensors}, tmp_path / "x.pt")
    with pytest.raises(ConversionError, match=r"'noises.noise_1' has shape \(1, 1, 10, 6\), expected \(6, 10\)"):
        convert(tmp_path / "x.pt", tmp_path / "out", **QUIET)


def test_noise_that_is_not_stored_has_the_constants_shape(tmp_path):
    g, _ = shaped([3, 5])
    tensors = {n: x for n, x in checkpoints.rosinality_generator(g).items() if not n.startswith("noises.")}
    torch.save({"g_ema": tensors}, tmp_path / "x.pt")
    convert(tmp_path / "x.pt", tmp_path / "out", **QUIET)
    assert loaded(tmp_path / "out").synthesis.convs[3].noise_const.shape == (12, 20)


def test_scopes_of_rectangles_in_tensorflow():
    given = {"synthesis/5x3/Const/const": 1, "synthesis/10x6/Conv0_up/weight": 2, "mapping/Dense0/weight": 3}
    names = ["synthesis/4x4/Const/const", "synthesis/8x8/Conv0_up/weight", "mapping/Dense0/weight"]
    assert dict(square_names(given)) == dict(zip(names, (1, 2, 3), strict=True))
    assert square_names({"20x12/FromRGB/weight": 1, "10x6/Conv0/weight": 2, "5x3/Conv/weight": 3}) == {
        "16x16/FromRGB/weight": 1, "8x8/Conv0/weight": 2, "4x4/Conv/weight": 3,
    }  # fmt: skip
    for kept in ({"4x4/Conv/weight": 1, "8x8/Conv0/weight": 2}, {"5x3/Conv/weight": 1, "9x6/Conv0/weight": 2}, {}):
        assert square_names(kept) == kept


@pytest.mark.parametrize(("base", "blocks"), [([4, 6], 5), ([3, 5], 5), ([1, 8], 4), ([20, 2], 3)])
def test_tiles_give_the_picture(base, blocks):
    size = {"resolution": base[0] * 2 ** (blocks - 1), "channels": [4] * blocks, "base_size": base}
    g = checkpoints.generator(**size)
    s = torch.randn(2, g.style_dim)
    with torch.no_grad():
        expected = g.synthesis(s)
    torch.testing.assert_close(render(g, s, whole=16, tile=5), expected, rtol=1e-3, atol=1e-3 * float(expected.std()))
    assert render_size(g.config, tiled=False) == max(4, 3) * expected[0, 0].numel()


# --- Channels --------------------------------------------------------------------------------------------------------


def save_reference(folder: Path, channels: int) -> StyleGAN2Generator:
    """A checkpoint, and the picture of seed 5 as the pipeline draws it: source.pkl, seed0005.png."""
    g = checkpoints.generator(img_channels=channels)
    g.affine_weight.data.mul_(0.3)
    g.synthesis.requires_grad_(False)
    checkpoints.save_nvidia(folder / "source.pkl", g)
    convert(folder / "source.pkl", folder / "first", **QUIET)
    picture = StyleFusionPipeline.from_pretrained(folder / "first")(base=5, truncation_psi=0.7).images[0]
    assert picture.mode == MODES[channels]
    picture.save(folder / "seed0005.png")
    return g


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_reference_picture_of_any_mode(tmp_path, channels):
    save_reference(tmp_path, channels)
    report = convert(tmp_path / "source.pkl", tmp_path / "out", reference=tmp_path / "seed0005.png", **QUIET)
    assert report.comparison and not report.mismatches
    assert report.comparison[0][1] < 0.5
    inverted = np.array(Image.open(tmp_path / "seed0005.png"))
    inverted[..., -1:] = 255 - inverted[..., -1:]  # for alpha, only the alpha
    Image.fromarray(inverted).save(tmp_path / "other0005.png")
    report = convert(tmp_path / "source.pkl", tmp_path / "worse", reference=tmp_path / "other0005.png", **QUIET)
    assert report.mismatches


def test_reference_pictures_that_cannot_be_compared(tmp_path):
    save_reference(tmp_path, 4)
    Image.open(tmp_path / "seed0005.png").convert("RGB").save(tmp_path / "opaque0005.png")
    with pytest.raises(ConversionError, match="has mode RGB, the generator's pictures RGBA"):
        convert(tmp_path / "source.pkl", tmp_path / "out", reference=tmp_path / "opaque0005.png", **QUIET)
    checkpoints.save_nvidia(tmp_path / "five.pkl", checkpoints.generator(img_channels=5))
    with pytest.raises(ConversionError, match=r"img_channels is 5, .*give a \.safetensors"):
        convert(tmp_path / "five.pkl", tmp_path / "five", reference=tmp_path / "seed0005.png", **QUIET)


def test_the_command_line_refuses_five_channels_in_one_line(tmp_path, capsys):
    checkpoints.save_nvidia(tmp_path / "five.pkl", checkpoints.generator(img_channels=5))
    assert main(["convert", str(tmp_path / "five.pkl"), str(tmp_path / "five")]) == 0
    folder = str(tmp_path / "five")
    commands = (
        ["fuse", "--base", "1", "--out", str(tmp_path / "x.png")],
        ["sheet", "--out", str(tmp_path / "x.png")],
        ["interpolate", "--base", "1,2", "--frames", "2", "--out", str(tmp_path / "x.webp")],
        ["regions", "discover", "--out", str(tmp_path / "regions")],
    )
    for command in commands:
        said = fails(capsys, *command, "--model", folder)
        assert "img_channels is 5" in said and 'output_type="pt"' in said
