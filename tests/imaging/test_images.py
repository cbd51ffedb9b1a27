"""Pictures from outside: what is taken and what becomes of it, and one clear line for everything else."""

import struct
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf.cli import main
from stylefusion_hf.imaging import images
from stylefusion_hf.imaging.images import check_image, fit_square, image_size, open_image, picture_files, to_tensor
from tests.command_line import fails
from tests.tiny import TinyEncoder, tiny_pipeline

COLOURS = ((200, 40, 90), (30, 60, 220))  # of the upper and the lower half


def picture(width: int = 40, height: int = 40, mode: str = "RGB") -> Image.Image:
    image = Image.new("RGB", (width, height), COLOURS[0])
    image.paste(COLOURS[1], (0, height // 2, width, height))
    return (image.convert("RGBA") if mode == "RGBa" else image).convert(mode)  # Pillow 10 needs the step between


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file of one's own making."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    body = [struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def colours(image: Image.Image) -> list[tuple[int, ...]]:
    """Of a pixel in the upper and one in the lower half."""
    array = np.asarray(image)
    return [tuple(np.atleast_1d(array[y * image.height // 8, image.width // 2]).tolist()) for y in (1, 7)]


# ----------------------------------------------------------------------------------------------------
# What is taken.


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif", "gif", "ppm", "avif"])
def test_formats(tmp_path: Path, suffix: str) -> None:
    if suffix == "avif" and ".avif" not in Image.registered_extensions():
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / f"a.{suffix}"
    picture(40, 30).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = open_image(path)
    assert (image.mode, image.size, image_size(path)) == ("RGB", (40, 30), (40, 30))
    assert np.abs(np.subtract(colours(image), COLOURS)).max() <= 8  # lossy ones


@pytest.mark.parametrize("mode", ["RGB", "P", "CMYK", "YCbCr", "HSV", "RGBA", "RGBX", "RGBa", "PA"])
def test_colour_modes_keep_their_colours(mode: str) -> None:
    image = picture().quantize().convert(mode) if mode in ("P", "PA") else picture(mode=mode)
    for channels, target in ((3, "RGB"), (4, "RGBA"), (1, "L")):
        converted = check_image(image, channels=channels)
        assert converted.mode == target
        if channels >= 3:
            assert np.abs(np.subtract([c[:3] for c in colours(converted)], COLOURS)).max() <= 4


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_modes(mode: str) -> None:
    image = Image.new("1", (20, 20), 0)
    image.paste(1, (0, 10, 20, 20))
    grey = check_image(image.convert("L").convert(mode))
    assert colours(grey) == [(0, 0, 0), (255, 255, 255)]


def test_cmyk_files(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.tif"):
        picture(mode="CMYK").save(tmp_path / name)
        assert np.abs(np.subtract(colours(open_image(tmp_path / name)), COLOURS)).max() <= 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_put_on_white(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.png"
    if mode == "P":
        Image.new("P", (20, 20), 0).save(path, transparency=0)  # its only color, black, is clear
    else:
        Image.new("RGBA", (20, 20), (0, 0, 0, 0)).convert(mode).save(path)
    assert open_image(path).getextrema() == ((255, 255),) * 3
    assert open_image(path, channels=1).getextrema() == (255, 255)
    assert open_image(path, channels=4).getextrema()[3] == (0, 0)  # kept where a model has alpha


def test_half_transparent_pixels_are_mixed_with_white() -> None:
    assert colours(check_image(Image.new("RGBA", (20, 20), (0, 100, 200, 128))))[0] == (127, 177, 227)


@pytest.mark.parametrize("kind", ["I;16", "I;16B", "I;16 PNG", "PPM"])
def test_16_bits_are_scaled_rather_than_clipped(tmp_path: Path, kind: str) -> None:
    levels = np.repeat(np.linspace(0, 65535, 256).astype("<u2")[None], 16, axis=0)
    path = tmp_path / ("a.png" if "PNG" in kind else "a.ppm" if kind == "PPM" else "a.tif")
    if kind == "PPM":
        path.write_bytes(b"P5 256 16 65535\n" + levels.astype(">u2").tobytes())
    elif kind == "I;16B":
        Image.frombytes("I;16B", (256, 16), levels.astype(">u2").tobytes()).save(path)
    else:
        Image.fromarray(levels).save(path)
    assert np.array_equal(np.asarray(open_image(path, channels=1)), np.tile(np.arange(256, dtype=np.uint8), (16, 1)))


def test_a_clear_level_of_16_bits_is_white(tmp_path: Path) -> None:
    levels = np.full((16, 16), 5000, ">u2")
    levels[8:] = 60000
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    (tmp_path / "a.png").write_bytes(png(16, 16, 16, 0, rows, (b"tRNS", struct.pack(">H", 5000))))
    assert [colour[0] for colour in colours(open_image(tmp_path / "a.png"))] == [255, 60000 >> 8]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "deep.png", "in hand"])
def test_pictures_are_turned_upright(tmp_path: Path, name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    lying = picture(30, 40).rotate(90, expand=True)
    if name == "deep.png":
        lying = Image.fromarray(np.asarray(lying.convert("L")).astype(np.uint16) * 257)
    if name == "in hand":
        lying.info["exif"] = exif.tobytes()
        upright = check_image(lying)
    else:
        lying.save(tmp_path / name, exif=exif)
        upright = open_image(tmp_path / name)
    expected = colours(picture(30, 40, "L").convert("RGB") if name == "deep.png" else picture(30, 40))
    assert upright.size == (30, 40)
    assert np.abs(np.subtract(colours(upright), expected)).max() <= 8
    assert check_image(upright).size == (30, 40)  # not turned twice


def test_a_cameras_second_picture_is_no_animation(tmp_path: Path) -> None:
    picture().save(tmp_path / "a.mpo", save_all=True, append_images=[Image.new("RGB", (40, 40))])
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert np.abs(np.subtract(colours(open_image(tmp_path / "a.jpg")), COLOURS)).max() <= 8


def test_30_megapixels_are_taken_in_bounded_time_and_memory(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="this system does not tell how much memory was used")
    path = tmp_path / "large.jpg"
    picture(6400, 4800).save(path, quality=50)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    tensor = to_tensor([open_image(path)], 256, fit="crop")
    assert tensor.shape == (1, 3, 256, 256)
    assert time.perf_counter() - start < 20  # about 1 s
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 800 * 1024  # KiB; the pixels are 90 MiB


# ----------------------------------------------------------------------------------------------------
# What is refused.


def animated(path: Path) -> None:
    picture().save(path, save_all=True, append_images=[picture().rotate(90 * k) for k in (1, 2)], duration=100)


def cut_off(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def bomb(side: int) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(png(side, side, 8, 2, b"\0" * 100))


FRAMES = "has 3 frames: save the intended one"
REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "text": ("a.png", lambda path: path.write_text("no picture"), "not a picture that Pillow knows"),
    "empty": ("a.jpg", lambda path: path.write_bytes(b""), "not a picture that Pillow knows"),
    "missing": ("a.png", lambda path: None, "No such file"),
    "a folder": ("a.png", lambda path: path.mkdir(), "Is a directory"),
    "another format": ("a.tga", lambda path: picture().save(path), "is a TGA file: save it as PNG"),
    "animated GIF": ("a.gif", animated, FRAMES),
    "animated PNG": ("a.png", animated, FRAMES),
    "animated WebP": ("a.webp", animated, FRAMES),
    "pages": ("a.tif", animated, "has 3 pages: save the intended one"),
    "float": ("a.tif", lambda path: picture(mode="F").save(path), "has mode F, whose values have no known range"),
    "32 bits": ("a.tif", lambda path: picture(mode="I").save(path), "has mode I, whose values"),
    "one pixel": ("a.png", lambda path: picture(1, 1).save(path), "is 1 x 1 pixels: too small"),
    "a line": ("a.png", lambda path: picture(500, 7).save(path), "is 500 x 7 pixels: too small, each side needs at"),
    "cut off PNG": ("a.png", cut_off, "cannot read"),
    "cut off JPEG": ("a.jpg", cut_off, "truncated"),
    "cut off WebP": ("a.webp", cut_off, "cannot read"),
    "cut off TIFF": ("a.tif", cut_off, "cannot read"),
    "cut off GIF": ("a.gif", cut_off, "cannot read"),
    "cut off BMP": ("a.bmp", cut_off, "cannot read"),
    "large": ("a.png", bomb(9000), "is 9000 x 9000 pixels, 81 megapixels: at most 64 are taken"),
    "where Pillow warns": ("a.png", bomb(10000), "is 10000 x 10000 pixels, 100 megapixels: at most 64 are taken"),
    "where Pillow raises": ("a.png", bomb(50000), "has more than 179 megapixels: at most 64 are taken"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_files(tmp_path: Path, case: str) -> None:
    name, make, message = REFUSED[case]
    make(tmp_path / name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises((ValueError, OSError)) as caught:
            open_image(tmp_path / name)
    said = str(caught.value)
    assert message in said and str(tmp_path / name) in said and "\n" not in said
    assert isinstance(caught.value, OSError) == ("cannot read" in said)


@pytest.mark.parametrize("case", REFUSED)
def test_the_command_line_refuses_them_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    name, make, message = REFUSED[case]
    make(tmp_path / name)
    said = fails(
        capsys, "fuse", "--base", "1", "--region", f"hair={tmp_path / name}", "--out", str(tmp_path / "o.png")
    )
    message = {"missing": "there is no picture file", "a folder": "is a folder: name a picture file"}.get(
        case, message
    )
    assert message in said and "--region hair=" in said
    assert not (tmp_path / "o.png").exists()


def test_headers_alone_tell_what_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb(9000)(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", lambda self: pytest.fail("decoded"))
    for opens in (open_image, image_size):
        with pytest.raises(ValueError, match="81 megapixels"):
            opens(tmp_path / "a.png")


IN_HAND: dict[str, tuple[Callable[[Path], Image.Image], str]] = {
    "float": (lambda _: picture(mode="F"), "regions['hair'] has mode F"),
    "32 bits": (lambda _: picture(mode="I"), "regions['hair'] has mode I"),
    "LAB": (lambda _: Image.new("LAB", (20, 20)), "regions['hair'] has mode LAB"),
    "one pixel": (lambda _: picture(1, 1), "regions['hair'] is 1 x 1 pixels: too small"),
    "not square": (lambda _: picture(60, 40), "regions['hair'] is 60 x 40 pixels, and the model takes squares"),
    "animated": (lambda folder: animated(folder / "a.gif") or Image.open(folder / "a.gif"), "has 3 frames"),  # type: ignore[func-returns-value]
    "cut off": (lambda folder: cut_off(folder / "a.jpg") or Image.open(folder / "a.jpg"), "cannot read regions"),  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("case", IN_HAND)
def test_pipelines_refuse_images_in_hand(tmp_path: Path, case: str) -> None:
    make, message = IN_HAND[case]
    pipe = tiny_pipeline()
    pipe.register_modules(encoder=TinyEncoder())
    with make(tmp_path) as image, pytest.raises((ValueError, OSError)) as caught:
        pipe(base=1, regions={"hair": image})
    assert message in str(caught.value)


def test_the_command_line_encodes_square_pictures_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tiny_pipeline()
    pipe.register_modules(encoder=TinyEncoder())
    monkeypatch.setattr("stylefusion_hf.cli.fuse.load_pipeline", lambda args, **_: pipe)
    picture(60, 40).save(tmp_path / "wide.jpg")
    Image.new("RGB", (60, 60), "white").save(tmp_path / "white.png")
    out = str(tmp_path / "o.png")
    said = fails(capsys, "fuse", "--base", "1", "--region", f"hair={tmp_path / 'wide.jpg'}", "--out", out)
    assert "regions['hair'] is 60 x 40 pixels" in said and "stylefusion align" in said and 'fit="crop"' in said
    assert main(["fuse", "--base", "1", "--region", f"hair={tmp_path / 'white.png'}", "--out", out]) == 0
    expected = pipe(base=1, regions={"hair": Image.new("RGB", (32, 32), "white")}).images[0]
    assert np.array_equal(np.asarray(open_image(out)), np.asarray(expected))


# ----------------------------------------------------------------------------------------------------
# To a model's size.


def bars() -> Image.Image:
    """90 x 30: a red, a green and a blue square."""
    image = Image.new("RGB", (90, 30), "red")
    image.paste("lime", (30, 0, 60, 30))
    image.paste("blue", (60, 0, 90, 30))
    return image


def test_fit() -> None:
    assert fit_square(bars(), 30, fit="crop").getextrema() == ((0, 0), (255, 255), (0, 0))
    padded = fit_square(bars(), 90, fit="pad")
    assert np.array_equal(np.asarray(padded)[30:60], np.asarray(bars()))
    assert (np.asarray(padded)[:30] == 255).all() and (np.asarray(padded)[60:] == 255).all()
    with pytest.raises(
        ValueError, match='the image is 90 x 30 pixels, and the model takes squares: align .* fit="crop"'
    ):
        fit_square(bars(), 30)
    with pytest.raises(ValueError, match="fit must be one of 'refuse', 'crop', 'pad'; got 'stretch'"):
        fit_square(bars(), 30, fit="stretch")  # type: ignore[arg-type]


def test_shrinking_does_not_alias() -> None:
    board = np.indices((256, 256)).sum(axis=0) % 2 * 255
    grey = np.asarray(fit_square(Image.fromarray(board.astype(np.uint8)), 16), dtype=int)
    assert np.abs(grey - 127.5).max() <= 2


def test_too_small_for_a_model() -> None:
    assert fit_square(picture(16, 16), 64).size == (64, 64)
    with pytest.raises(
        ValueError, match=r"is 15 x 15 pixels, too small for a model of 64 x 64: each side needs .* 16"
    ):
        fit_square(picture(15, 15), 64)
    with pytest.raises(ValueError, match="too small for a model"):
        fit_square(picture(90, 15), 64, fit="pad")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tensors(channels: int) -> None:
    tensor = to_tensor([picture(), Image.new("L", (32, 32))], 32, channels)
    assert tensor.shape == (2, channels, 32, 32) and tensor.dtype == torch.float32
    assert (tensor[1, : min(channels, 3)] == -1).all()
    if channels == 3:
        assert torch.allclose(tensor[0, :, 2, 2], torch.tensor(COLOURS[0]) / 127.5 - 1)
        assert torch.allclose(tensor[0, :, -2, 2], torch.tensor(COLOURS[1]) / 127.5 - 1)
    if channels == 4:
        assert (tensor[:, 3] == 1).all()


def test_tensors_refuse() -> None:
    with pytest.raises(ValueError, match=r"images\[1\] is 60 x 40 pixels"):
        to_tensor([picture(), picture(60, 40)], 32)
    assert to_tensor([picture(60, 40)], 32, fit="pad").shape == (1, 3, 32, 32)
    with pytest.raises(ValueError, match="at least one image"):
        to_tensor([], 32)
    with pytest.raises(ValueError, match="channels must be 3"):
        to_tensor([picture()], 32, channels=5)
    with pytest.raises(ValueError, match="1 names were given for 2 images"):
        to_tensor([picture(), picture()], 32, names=["a"])


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/x.JPG", "a.png", ".hidden.png"):
        picture().save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("")
    assert picture_files(tmp_path) == [tmp_path / "a.png", tmp_path / "b" / "x.JPG"]
    (tmp_path / "b" / "x.JPG").unlink()
    with pytest.raises(ValueError, match=r"no pictures in .*b \(looked for .avif, .bmp"):
        picture_files(tmp_path / "b")
    with pytest.raises(NotADirectoryError, match="none is not a folder"):
        picture_files(tmp_path / "none")


def test_every_suffix_is_of_a_format_that_is_taken() -> None:
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in images.SUFFIXES if suffix in known} <= images.FORMATS
