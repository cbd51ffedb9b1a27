"""Photographs read and written: every value, the orientation, EXIF data and color profile are kept, or refused."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps

from stylefusion_hf.imaging.photographs import Photograph, read_photograph, set_orientation, without_thumbnail

SIZE = (40, 24)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def smooth(size: tuple[int, int] = SIZE) -> Image.Image:
    """A picture that JPEG keeps well, and of which no turn gives the same."""
    y, x = np.indices(size[::-1])
    waves = [np.sin(x / 11), np.cos(y / 9), np.sin((x + 2 * y) / 25)]
    return Image.fromarray((130 + 60 * np.stack(waves, axis=-1)).astype(np.uint8))


def picture(mode: str) -> Image.Image:
    if mode == "1":
        return Image.fromarray(noise(24, 40) > 127)
    if mode == "P":
        return smooth().quantize(50)
    if mode == "P with a transparent color":
        found = smooth().quantize(50)
        found.info["transparency"] = 7
        return found
    channels = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(noise(24, 40, *channels))


@pytest.mark.parametrize("suffix", [".png", ".webp"])
@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "P with a transparent color", "RGB", "RGBA"])
def test_every_value_is_kept(mode: str, suffix: str, tmp_path: Path) -> None:
    given = picture(mode)
    given.save(tmp_path / "given.png", **({"transparency": 7} if "transparent" in mode else {}))
    photograph = read_photograph(tmp_path / "given.png")
    transparent = "A" in mode or "transparent" in mode
    assert ("A" in photograph.image.mode) is transparent
    photograph.save(tmp_path / f"kept{suffix}")
    with Image.open(tmp_path / f"kept{suffix}") as kept, Image.open(tmp_path / "given.png") as original:
        kind = "RGBA" if transparent else "RGB"
        assert np.array_equal(np.asarray(kept.convert(kind)), np.asarray(original.convert(kind)))
        if suffix == ".png":
            assert kept.mode == photograph.image.mode


def exif_bytes(orientation: int, order: str = "<", thumbnail: bool = False) -> bytes:
    """EXIF data as a camera writes them: a maker, the orientation, and perhaps a second directory."""
    entries = [(0x010F, 2, 4, b"Mee\0"), (0x0112, 3, 1, struct.pack(order + "HH", orientation, 0))]
    after = 8 + 2 + 12 * len(entries) + 4
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    for tag, kind, count, value in entries:
        data += struct.pack(order + "HHI", tag, kind, count) + value
    data += struct.pack(order + "I", after if thumbnail else 0)
    if thumbnail:
        data += struct.pack(order + "HHHIII", 1, 0x0103, 3, 1, 6, 0)
    return b"Exif\0\0" + data


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once_and_kept(orientation: int, order: str, tmp_path: Path) -> None:
    stored, exif = smooth(), exif_bytes(orientation, order)
    stored.save(tmp_path / "given.jpg", exif=exif, quality=95)
    photograph = read_photograph(tmp_path / "given.jpg")
    with Image.open(tmp_path / "given.jpg") as given:
        upright = np.asarray(ImageOps.exif_transpose(given))
        values = np.asarray(given).astype(int)
    assert np.array_equal(np.asarray(photograph.image), upright)
    photograph.save(tmp_path / "kept.jpg")
    with Image.open(tmp_path / "kept.jpg") as kept:  # stored as it was
        assert kept.info["exif"] == exif
        assert np.abs(np.asarray(kept) - values).max() <= 3
    photograph.save(tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as kept:  # stored upright
        assert kept.getexif()[0x0112] == 1 and kept.getexif()[0x010F] == "Mee"
        assert np.array_equal(np.asarray(kept), upright)


def test_a_png_keeps_its_own_orientation(tmp_path: Path) -> None:
    Image.fromarray(noise(24, 40, 3)).save(tmp_path / "given.png", exif=exif_bytes(6))
    read_photograph(tmp_path / "given.png").save(tmp_path / "kept.png")
    with Image.open(tmp_path / "kept.png") as kept:
        assert kept.getexif()[0x0112] == 6
        assert np.array_equal(np.asarray(kept), noise(24, 40, 3))


@pytest.mark.parametrize("order", ["<", ">"])
def test_a_stale_thumbnail_is_unlinked(order: str) -> None:
    assert without_thumbnail(exif_bytes(3, order, thumbnail=True))[:-18] == exif_bytes(3, order)
    assert without_thumbnail(exif_bytes(3, order)) == exif_bytes(3, order)


@pytest.mark.parametrize(
    "data", [b"", b"Exif\0\0", b"II*\0", b"II*\0\xff\xff\xff\xff\0\0", exif_bytes(3)[:20], b"?" * 50]
)
def test_damaged_exif_data_are_left_alone(data: bytes) -> None:
    assert set_orientation(data, 1) is None
    assert without_thumbnail(data) == data


def test_profile_and_resolution_are_kept(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for given, kept in (("a.png", "b.png"), ("a.jpg", "b.jpg"), ("a.jpg", "b.webp"), ("a.png", "b.jpg")):
        smooth().save(tmp_path / given, icc_profile=profile, dpi=(300, 300))
        read_photograph(tmp_path / given).save(tmp_path / kept)
        with Image.open(tmp_path / kept) as image:
            assert image.info["icc_profile"] == profile
            if kept != "b.webp":
                assert np.allclose(image.info["dpi"], 300, atol=0.1)


@pytest.mark.parametrize(("quality", "subsampling"), [(60, 2), (90, 1), (97, 0)])
def test_a_jpeg_is_written_with_its_own_tables(quality: int, subsampling: int, tmp_path: Path) -> None:
    smooth((160, 120)).save(tmp_path / "a.jpg", quality=quality, subsampling=subsampling)
    read_photograph(tmp_path / "a.jpg").save(tmp_path / "b.jpg")
    with Image.open(tmp_path / "a.jpg") as a, Image.open(tmp_path / "b.jpg") as b:
        assert a.quantization == b.quantization and a.layer == b.layer
        assert np.abs(np.asarray(a).astype(int) - np.asarray(b)).mean() < 1


def test_a_gray_jpeg_stays_gray(tmp_path: Path) -> None:
    smooth().convert("L").save(tmp_path / "a.jpg")
    read_photograph(tmp_path / "a.jpg").save(tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as image:
        assert image.mode == "L"


def test_a_tiff_keeps_what_its_tags_say_of_the_photograph(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Me", 8
    smooth().save(tmp_path / "a.tif", exif=exif)
    photograph = read_photograph(tmp_path / "a.tif")
    photograph.save(tmp_path / "b.png")
    with Image.open(tmp_path / "a.tif") as given, Image.open(tmp_path / "b.png") as kept:
        assert kept.size == ImageOps.exif_transpose(given).size == SIZE[::-1]
        assert kept.getexif()[0x010F] == "Me" and kept.getexif().get(0x0112, 1) == 1


def sixteen_bit_png() -> bytes:
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes(10 * 6) for _ in range(10))
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 10, 10, 16, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def refused() -> dict[str, tuple[str, bytes, str]]:
    def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
        buffer = io.BytesIO()
        image.save(buffer, kind, **options)
        return buffer.getvalue()

    frames = {"save_all": True, "append_images": [Image.new("RGB", SIZE, "red")]}
    deep = Image.fromarray(noise(24, 40).astype(np.uint16) * 256)
    return {
        "CMYK": ("a.jpg", saved(smooth().convert("CMYK"), "JPEG"), "is CMYK"),
        "gray of 16 bits": ("a.png", saved(deep, "PNG"), "16 bits per channel"),
        "gray TIFF of 16 bits": ("a.tif", saved(deep, "TIFF"), "16 bits per channel"),
        "color of 16 bits": ("a.png", sixteen_bit_png(), "16 bits per channel"),
        "color PPM of 16 bits": ("a.ppm", b"P6 10 10 65535\n" + bytes(600), "16 bits per channel"),
        "animation": ("a.gif", saved(smooth(), "GIF", **frames), "2 frames"),
        "LAB": ("a.tif", saved(Image.new("LAB", SIZE), "TIFF"), "LAB"),
        "cut off": ("a.png", saved(Image.fromarray(noise(24, 40)), "PNG")[:200], "cannot read"),
        "text": ("a.jpg", b"no picture", "cannot read"),
    }


@pytest.mark.parametrize("case", refused())
def test_what_could_not_be_kept_is_refused(case: str, tmp_path: Path) -> None:
    name, content, said = refused()[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises((ValueError, OSError), match=said) as caught:
        read_photograph(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_arrays_and_pictures_in_memory() -> None:
    pixels = noise(24, 40, 3)
    for source in (pixels, Image.fromarray(pixels)):
        photograph = read_photograph(source)
        assert np.array_equal(np.asarray(photograph.image), pixels) and photograph.format == ""
    assert read_photograph(photograph) is photograph
    with pytest.raises(ValueError, match="2 pictures"):
        read_photograph(noise(2, 24, 40, 3))
    with pytest.raises(ValueError, match="not RGB"):
        Photograph(smooth().convert("L")).with_image(smooth())


def test_targets_that_cannot_hold_it(tmp_path: Path) -> None:
    transparent = Photograph(Image.fromarray(noise(24, 40, 4)))
    for target, said in (("a.jpg", "transparency"), ("a.gif", "expected a file name"), ("a", "expected a file name")):
        with pytest.raises(ValueError, match=said):
            transparent.save(tmp_path / target)
    with pytest.raises(ValueError, match="at most 16383"):
        Photograph(Image.new("L", (16384, 8))).save(tmp_path / "a.webp")
    with pytest.raises(ValueError, match="EXIF"):
        Photograph(smooth(), exif=bytes(70000)).save(tmp_path / "a.jpg")


def test_a_model_sees_transparency_as_white() -> None:
    pixels = noise(24, 40, 4)
    pixels[..., 3] = 0
    assert (np.asarray(Photograph(Image.fromarray(pixels)).rgb()) == 255).all()
    assert Photograph(Image.fromarray(noise(24, 40))).rgb().mode == "RGB"


def test_the_digest_is_that_of_the_pixels() -> None:
    pixels = noise(600, 40, 3)
    same, other = Photograph(Image.fromarray(pixels)), Photograph(Image.fromarray(pixels), name="x", orientation=6)
    assert same.sha256() == other.sha256()
    pixels[-1, -1, 0] ^= 1
    assert Photograph(Image.fromarray(pixels)).sha256() != same.sha256()
    assert Photograph(Image.fromarray(pixels[:, :, 0])).sha256() != same.sha256()
