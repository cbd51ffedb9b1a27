"""Channels and modes: one table, and transparency that is kept or put on white."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stylefusion_hf.imaging.animation import write_animation
from stylefusion_hf.imaging.images import check_image, fit_picture, open_image, to_tensor
from stylefusion_hf.imaging.modes import MODES, check_viewable, keep_transparency, put_on_white, to_picture
from stylefusion_hf.imaging.sheets import image_grid, to_cell


def noise(mode: str, size: tuple[int, int] = (12, 20), seed: int = 0) -> Image.Image:
    """A picture of random levels; PIL's size is (20, 12)."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    return to_picture(np.random.RandomState(seed).randint(0, 256, (*size, channels), np.uint8))


def on_white(image: Image.Image) -> np.ndarray:
    """As `put_on_white`, computed here."""
    levels = np.asarray(image.convert("RGBA"), np.float64)
    alpha = levels[..., 3:] / 255
    return levels[..., :3] * alpha + 255 * (1 - alpha)


@pytest.mark.parametrize(("channels", "mode"), MODES.items())
def test_every_mode_keeps_its_channels(channels, mode, tmp_path):
    image = noise(mode)
    assert image.mode == mode and to_picture(np.asarray(image).reshape(12, 20, channels)).tobytes() == image.tobytes()
    image.save(tmp_path / "x.png")
    assert open_image(tmp_path / "x.png", channels).tobytes() == image.tobytes()
    assert to_tensor([image], (12, 20), channels).shape == (1, channels, 12, 20)


@pytest.mark.parametrize("channels", [0, 5, 8])
def test_other_channels_are_no_images(channels):
    for refused in (lambda: check_viewable(channels), lambda: to_picture(np.zeros((8, 8, channels), np.uint8))):
        with pytest.raises(ValueError, match=rf'img_channels is {channels}, .*output_type="pt"'):
            refused()


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_put_on_white_where_it_is_not_kept(mode):
    image = noise(mode)
    for found in (put_on_white(image), to_cell(image, 1), check_image(image, channels=3)):
        assert found.mode == "RGB"
        np.testing.assert_allclose(np.asarray(found), on_white(image), atol=1.01)
    assert keep_transparency(image).mode == "RGBA" and keep_transparency(noise("L")).mode == "RGB"
    assert image_grid(to_tensor([image], (12, 20), len(mode)), 1).mode == mode


@pytest.mark.parametrize("mode", MODES.values())
def test_films_keep_transparency_or_put_it_on_white(mode, tmp_path: Path):
    frames = [noise(mode, seed=i) for i in range(3)]
    for name in ("x.webp", "x.gif", "frames"):
        write_animation(tmp_path / name, frames, fps=10)
    for i, frame in enumerate(frames):
        assert Image.open(tmp_path / "frames" / f"{i:04d}.png").tobytes() == frame.tobytes()
        with Image.open(tmp_path / "x.webp") as film:
            film.seek(i)
            assert film.n_frames == 3 and film.convert("RGBA").tobytes() == frame.convert("RGBA").tobytes()
        with Image.open(tmp_path / "x.gif") as film:
            film.seek(i)
            error = np.abs(np.asarray(film.convert("RGB"), np.float64) - on_white(frame))
            assert film.n_frames == 3 and error.mean() < 8  # 256 colors are near 240 pixels, not equal


def test_a_film_of_opaque_frames_says_no_transparency(tmp_path):
    for name, mode in (("opaque.webp", "RGB"), ("clear.webp", "RGBA")):
        write_animation(tmp_path / name, [noise(mode)] * 2, fps=10)
    assert [(tmp_path / n).read_bytes()[20] for n in ("opaque.webp", "clear.webp")] == [0x02, 0x12]


# --- Rectangles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("given", "size"), [((96, 64), (32, 48)), ((512, 1024), (24, 12)), ((101, 61), (24, 40))])
def test_pictures_of_the_models_aspect_ratio_are_only_resized(given, size):
    """PIL's (width, height), and the model's (height, width); the last is less than a pixel from it."""
    assert fit_picture(Image.new("RGB", given), size).size == size[::-1]


def test_others_are_refused_cropped_or_padded():
    image = Image.new("RGB", (90, 90), "red")
    with pytest.raises(ValueError, match=r"x is 90 x 90 pixels, and the model's pictures are 32 x 48 px \(height x"):
        fit_picture(image, (32, 48), name="x")
    assert fit_picture(image, (32, 48), "crop").getcolors() == [(32 * 48, (255, 0, 0))]
    padded = np.asarray(fit_picture(image, (32, 48), "pad"))
    assert padded.shape == (32, 48, 3)
    assert (padded[:, :5] == 255).all() and (padded[:, 12:36, 1:] == 0).all() and (padded[:, -5:] == 255).all()
    tall = np.asarray(fit_picture(image, (48, 32), "pad"))
    assert (tall[:5] == 255).all() and (tall[12:36, :, 1:] == 0).all()
    with pytest.raises(ValueError, match="too small for a model of 48 x 32: it needs at least 12 x 8"):
        fit_picture(Image.new("RGB", (11, 8)), (32, 48), "crop")


def test_the_middle_is_kept():
    image = np.zeros((60, 100, 3), np.uint8)
    image[:, 40:60] = 255
    found = np.asarray(fit_picture(Image.fromarray(image), (60, 20), "crop"))
    assert found.shape == (60, 20, 3) and (found == 255).all()
