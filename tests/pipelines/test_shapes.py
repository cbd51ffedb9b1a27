"""Rectangular pictures, and pictures of one to five channels, through everything that takes or makes pictures."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf import (
    ImageEncoder,
    RegionSegmenter,
    StyleFusionInterpolationPipeline,
    StyleFusionInversionPipeline,
    StyleFusionPipeline,
    StyleGAN2Discriminator,
    StyleGAN2Generator,
)
from stylefusion_hf.imaging.alignment import fit_similarity, region_axes, warp
from stylefusion_hf.imaging.modes import MODES, to_picture
from stylefusion_hf.imaging.sheets import contact_sheet
from stylefusion_hf.regions import discovery, few_shot, folders, label_page
from stylefusion_hf.training.composed import cell_features, cell_side, masked_distance
from tests.tiny import W_DIM, tiny_fusion, tiny_generator

TREE = "all*(a, b)"
SHAPES: dict[str, dict[str, Any]] = {
    "wide": {"resolution": 32, "base_size": [4, 6]},
    "tall": {"resolution": 64, "base_size": [4, 2], "channels": [8] * 5},
    "of three rows": {"resolution": 24, "base_size": [3, 5]},
    "square of six": {"resolution": 48, "base_size": [6, 6]},
    "gray": {"img_channels": 1},
    "gray and alpha": {"img_channels": 2},
    "wide, with alpha": {"resolution": 32, "base_size": [4, 6], "img_channels": 4},
}


def shaped_pipeline(**changes: Any) -> StyleFusionPipeline:
    """A generator of this shape, with fusion nets, a segmenter and an encoder that fit it."""
    g = tiny_generator(**changes)
    torch.nn.init.normal_(g.synthesis.rgbs[-1].bias)
    c = g.config.img_channels
    segmenter = RegionSegmenter(regions=["a", "b"], channels=[4, 4], groups=2, img_channels=c).eval()
    sizes = {"num_ws": g.num_ws, "w_dim": W_DIM, "resolution": 16, "channels": [8, 8], "img_channels": c}
    encoder = ImageEncoder(**sizes, groups=4, reduced=2, features=16).eval()
    pipe = StyleFusionPipeline(g, tiny_fusion(g, TREE, num_indicators=12), segmenter, encoder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture(scope="module", params=SHAPES)
def pipe(request) -> StyleFusionPipeline:
    return shaped_pipeline(**SHAPES[request.param])


def own_picture(pipe: StyleFusionPipeline, scale: int = 2) -> Image.Image:
    """Noise in the generator's mode and aspect ratio."""
    height, width = pipe.generator.picture_size
    size = (height * scale, width * scale, pipe.generator.config.img_channels)
    return to_picture(np.random.RandomState(0).randint(0, 256, size, np.uint8))


def test_pictures_masks_and_recipes(pipe, tmp_path):
    height, width = pipe.generator.picture_size
    channels = pipe.generator.config.img_channels
    out = pipe(base=[1, 2], regions={"a": 3}, output_masks=True)
    assert {(x.size, x.mode) for x in out.images} == {((width, height), MODES[channels])}
    assert out.masks["a"].shape == (2, height, width)
    noisy = pipe(base=1, noise_mode="random", output_type="np", generator=torch.Generator().manual_seed(0))
    assert noisy.images.shape == (1, height, width, channels)
    pipe.save_pretrained(tmp_path)
    again = StyleFusionPipeline.from_pretrained(tmp_path).from_recipe(out.recipe)
    assert [x.tobytes() for x in again.images] == [x.tobytes() for x in out.images]


def test_pictures_as_codes(pipe):
    picture = own_picture(pipe)
    array = np.asarray(picture).reshape(picture.height, picture.width, -1)
    found = [pipe(base=code, output_type="latent").style_codes for code in (picture, array)]
    assert torch.equal(*found)
    with pytest.raises(ValueError, match="base is 100 x 70 pixels, and the model"):
        pipe(base=Image.new("RGB", (100, 70)))


def test_sheets_and_films(pipe):
    sheet = contact_sheet(pipe, [1, 2], [3, 4], scale=1)
    assert sheet.mode == "RGB"
    height, width = pipe.generator.picture_size
    assert sheet.height > 2 * height and sheet.width > 4 * width
    film = StyleFusionInterpolationPipeline.from_pipe(pipe)
    film.set_progress_bar_config(disable=True)
    frames = film(base=[1, 2], frames=3).frames
    assert {x.size for x in frames} == {(width, height)} and frames[0].tobytes() == pipe(base=1).images[0].tobytes()


def test_inversion(pipe):
    height, width = pipe.generator.picture_size
    inversion = StyleFusionInversionPipeline.from_pipe(pipe)
    inversion.set_progress_bar_config(disable=True)
    weights = {"masks": np.ones((height, width), np.float32), "region_weights": {"a": 0.5}}
    out = inversion(own_picture(pipe), num_inference_steps=2, num_tuning_steps=1, **weights)
    assert out.images[0].size == (width, height) and out.generator.picture_size == (height, width)
    for fit in ("crop", "pad"):
        assert inversion(Image.new("RGB", (200, 150)), num_inference_steps=0, fit=fit).images[0].size == (
            width,
            height,
        )
    tensor = torch.rand(1, pipe.generator.config.img_channels, height, width)
    assert inversion(tensor, num_inference_steps=1, output_type="pt").images.shape == tensor.shape
    preview = pipe.generator.picture_sizes[-2]
    assert inversion(tensor, num_inference_steps=2, num_final_steps=1, preview_resolution=preview).mse.isfinite().all()


def test_regions_are_found_and_painted(pipe, tmp_path, monkeypatch):
    monkeypatch.setattr(discovery, "STABLE", -1.0)  # random weights have no parts
    g, (height, width) = pipe.generator, pipe.generator.picture_size
    found = discovery.discover(g, 8, 6, num_regions=2, min_area=0.0, trials=2, progress=False)
    folders.write_found(tmp_path / "found", g, found, samples=8, steps=2, progress=False)
    tree, segmenter = folders.read_regions(tmp_path / "found")
    x = g.synthesis(torch.randn(1, g.style_dim)).clamp(-1, 1)
    assert segmenter.segment(x).shape == (1, 2, height, width) and len(tree.leaves) == 2
    with Image.open(tmp_path / "found" / "samples.png") as strip:
        assert strip.size == (16 * width, height) and strip.mode == MODES[g.config.img_channels]

    paint = few_shot.PaintFolder.create(tmp_path / "painted", g, ["sky", "car"], 2)
    page = label_page.PaintSession(g, paint, tmp_path / "out", 8, 2, 0)
    about = page.about()
    assert (about["size"], about["width"]) == (height, width)
    labels = np.zeros((height, width), np.uint8)
    labels[height // 2 :] = 1
    page.keep(0, labels.tobytes())
    assert np.array_equal(paint.labels(0), labels)
    monkeypatch.setattr(few_shot, "fit_head", lambda *given, **how: head(*given, **{**how, "steps": 2}))
    assert few_shot.learn(g, paint, progress=False).report["area"].keys() == {"sky", "car"}


head = few_shot.fit_head


def test_five_channels_are_numbers_only(tmp_path):
    pipe = shaped_pipeline(img_channels=5)
    assert pipe(base=1, output_type="pt").images.shape == (1, 5, 32, 32)
    assert pipe(base=1, output_type="np").images.shape == (1, 32, 32, 5)
    film = StyleFusionInterpolationPipeline.from_pipe(pipe)
    inversion = StyleFusionInversionPipeline.from_pipe(pipe)
    recipe = pipe(base=1, output_type="latent").recipe
    for refused in (
        lambda: pipe(base=1),
        lambda: pipe.from_recipe(recipe),
        lambda: contact_sheet(pipe, [1], [2]),
        lambda: film(base=[1, 2], frames=2),
        lambda: film.stream(base=[1, 2], frames=2),
        lambda: inversion(torch.rand(1, 5, 32, 32)),
        lambda: folders.find_regions(tmp_path / "regions", pipe.generator),
        lambda: few_shot.PaintFolder.create(tmp_path / "paint", pipe.generator, ["a", "b"], 2),
    ):
        with pytest.raises(ValueError, match=r'img_channels is 5, .*output_type="pt"'):
            refused()
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="channels must be 3"):
        inversion(Image.new("RGB", (32, 32)), output_type="pt")


def test_sizes_that_do_not_fit_the_base_are_refused():
    for kind in (StyleGAN2Generator, StyleGAN2Discriminator):
        with pytest.raises(ValueError, match=r"resolution must be 3 .*got 20"):
            kind(resolution=20, base_size=[3, 5])
        with pytest.raises(ValueError, match="no side above 16384"):
            kind(resolution=2**12, base_size=[4, 64])
        for wrong in ([3], [3, 0], [3, 5, 7]):
            with pytest.raises(ValueError, match=r"base_size is a height and a width, .*got \[3"):
                kind(resolution=24, base_size=wrong)
        square = {"resolution": 16, "channels": [4, 4, 4]}
        assert "base_size" not in kind(**square, base_size=[4, 4]).config
    with pytest.raises(ValueError, match=r"expected images of shape \(batch, 3, 16, 24\)"):
        StyleGAN2Discriminator(resolution=16, base_size=[4, 6], channels=[4, 4, 4])(torch.zeros(1, 3, 16, 16))


# --- Geometry and distances in rectangles ----------------------------------------------------------------------------


def test_a_rotation_in_pixels_is_found_in_a_rectangle():
    """Points of a picture of 2 x 1 that turn by 30 degrees about its middle, in pixels."""
    aspect, angle = 2.0, torch.tensor(torch.pi / 6)
    turn = torch.stack([torch.stack([angle.cos(), -angle.sin()]), torch.stack([angle.sin(), angle.cos()])])
    points = torch.tensor([[[0.2, 0.1], [-0.3, 0.4], [0.5, -0.2]]])
    units = torch.tensor([aspect, 1.0])
    moved = (points * units) @ turn.t() / units
    theta = fit_similarity(points, moved, torch.ones(1, 3), aspect=aspect)
    torch.testing.assert_close(points @ theta[0, :, :2].t() + theta[0, :, 2], moved, atol=1e-5, rtol=0)
    # The warp keeps lengths in pixels: a disk stays one.
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(128.0), indexing="ij")
    disk = (((x - 63.5) ** 2 + (y - 31.5) ** 2) < 20**2).float()[None, None]
    theta[..., 2] = 0
    assert (warp(disk, theta) - disk).abs().mean() < 0.02


def test_axes_are_those_of_the_picture():
    """A bar at 45 degrees in pixels, in a picture three times as wide as high."""
    y, x = torch.meshgrid(torch.arange(60.0) - 29.5, torch.arange(180.0) - 89.5, indexing="ij")
    bar = ((x - y).abs() < 4) & ((x + y).abs() < 40)
    ends = region_axes(bar.long()[None], 2)[0, 1] * torch.tensor([90.0, 30.0])  # in pixels
    assert abs(abs(float((ends[0, 0] - ends[1, 0]) / (ends[0, 1] - ends[1, 1]))) - 1) < 0.05


@pytest.mark.parametrize(("height", "width"), [(192, 320), (24, 40), (16, 512), (512, 16), (6, 1536), (1024, 512)])
def test_cells_divide_any_rectangle(height, width):
    side = cell_side(height, width)
    assert height % side == width % side == 0 and side <= max(1, width // 64)
    seen = cell_features(torch.rand(2, 3, height, width))
    assert masked_distance(seen, torch.zeros_like(seen), torch.ones(2, *seen.shape[2:])).shape == (2,)


def test_cells_of_squares_are_a_64th_of_the_width():
    assert [cell_side(n, n) for n in (16, 64, 128, 256, 1024)] == [1, 1, 2, 4, 16]
