"""A user's own pictures: orientation, crops, kinds of files, label maps, and the errors for what cannot be used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf.data.folders import ImageFolder


def picture(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """Red to the right, green downwards; blue is 128."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    image = Image.fromarray(np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.uint8))
    return image.convert(mode)


def test_finds_pictures_in_order(tmp_path: Path) -> None:
    (tmp_path / "b" / "deep").mkdir(parents=True)
    (tmp_path / ".thumbnails").mkdir()
    names = ["a.png", "b/deep/c.JPG", "b/x.webp", "z.bmp"]
    for name in names:
        picture(20, 20).save(tmp_path / name)
    picture(20, 20).save(tmp_path / ".thumbnails" / "t.png")
    (tmp_path / "notes.txt").write_text("no picture")
    folder = ImageFolder(tmp_path, 16)
    assert [path.relative_to(tmp_path).as_posix() for path in folder.paths] == names
    assert len(folder) == 4 and set(folder[0]) == {"image"}
    image = folder[3]["image"]
    assert image.shape == (3, 16, 16) and image.dtype == torch.float32 and -1 <= image.min() < image.max() <= 1


def test_centre_crop_keeps_the_middle(tmp_path: Path) -> None:
    picture(60, 20).save(tmp_path / "wide.png")
    image = ImageFolder(tmp_path, 20)[0]["image"]
    assert torch.equal(image, torch.from_numpy(np.array(picture(60, 20))[:, 20:40]).permute(2, 0, 1) / 127.5 - 1)
    with pytest.raises(ValueError, match=r"1 of 1 pictures are not square, first .*wide.png \(60 x 20\)"):
        ImageFolder(tmp_path, 16, crop="none")


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    picture(32, 32).save(tmp_path / "phone.png", exif=exif)
    image = ImageFolder(tmp_path, 32)[0]["image"]
    upright = np.array(picture(32, 32).rotate(-90)).astype(np.float32)
    assert torch.allclose(image, torch.from_numpy(upright).permute(2, 0, 1) / 127.5 - 1)


def test_mirror_adds_mirror_images(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        picture(16, 16).save(tmp_path / name)
    folder = ImageFolder(tmp_path, 16, mirror=True)
    assert len(folder) == 4
    assert torch.equal(folder[3]["image"], folder[1]["image"].flip(-1)) and torch.equal(
        folder[-1]["image"], folder[3]["image"]
    )


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "1"])
def test_modes_become_colour(tmp_path: Path, mode: str) -> None:
    picture(16, 16, mode).save(tmp_path / ("a.tif" if mode == "CMYK" else "a.png"))
    assert ImageFolder(tmp_path, 16)[0]["image"].shape == (3, 16, 16)
    assert ImageFolder(tmp_path, 16, channels=1)[0]["image"].shape == (1, 16, 16)


def test_transparency_is_put_on_white_and_16_bits_are_scaled(tmp_path: Path) -> None:
    Image.new("RGBA", (16, 16), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.fromarray(np.full((16, 16), 32896, np.uint16)).save(tmp_path / "deep.png")
    folder = ImageFolder(tmp_path, 16)
    assert (folder[0]["image"] == 1).all()
    assert folder[1]["image"].abs().max() < 0.01


def test_unusable_folders_and_arguments(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="nowhere is not a folder"):
        ImageFolder(tmp_path / "nowhere", 16)
    (tmp_path / "raw.xcf").write_text("")
    with pytest.raises(ValueError, match=r"no pictures in .* it holds 1 x \.xcf"):
        ImageFolder(tmp_path, 16)
    with pytest.raises(ValueError, match="resolution must be at least 1, got 0"):
        ImageFolder(tmp_path, 0)
    with pytest.raises(ValueError, match='crop must be "center" or "none", got \'left\''):
        ImageFolder(tmp_path, 16, crop="left")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="channels must be 3"):
        ImageFolder(tmp_path, 16, channels=5)


def test_small_pictures_need_permission(tmp_path: Path) -> None:
    picture(10, 12).save(tmp_path / "small.png")
    with pytest.raises(ValueError, match=r"1 of 1 pictures are smaller than 16 pixels, first .*small.png \(10 x 12\)"):
        ImageFolder(tmp_path, 16)
    assert ImageFolder(tmp_path, 16, upscale=True)[0]["image"].shape == (3, 16, 16)


def test_broken_pictures(tmp_path: Path) -> None:
    picture(64, 64).save(tmp_path / "good.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    folder = ImageFolder(tmp_path, 16)
    with pytest.raises(OSError, match=r"cannot read the picture .*truncated.png"):
        folder[1]
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(OSError, match=r"cannot read the picture .*text.jpg: not a picture that Pillow knows"):
        ImageFolder(tmp_path, 16)
    folder = ImageFolder(tmp_path, 16, skip_broken=True, progress=False)
    assert len(folder) == 1 and sorted(path.name for path in folder.skipped) == ["text.jpg", "truncated.png"]
    (tmp_path / "good.png").unlink()
    with pytest.raises(ValueError, match="none of the 2 pictures"):
        ImageFolder(tmp_path, 16, skip_broken=True, progress=False)


def test_animations_are_unusable(tmp_path: Path) -> None:
    picture(16, 16).save(tmp_path / "good.png")
    picture(16, 16).save(tmp_path / "film.gif", save_all=True, append_images=[picture(16, 16).rotate(90)])
    with pytest.raises(OSError, match=r"film.gif has 2 frames: .* skip_broken=True"):
        ImageFolder(tmp_path, 16)
    assert len(ImageFolder(tmp_path, 16, skip_broken=True, progress=False)) == 1


def labelled(folder: Path, size: tuple[int, int] = (32, 32), mode: str = "P") -> Path:
    """A folder in the layout of `write_dataset`: id 5 in the left half, 2 in the right."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    picture(32, 32).save(folder / "images" / "000000.png")
    ids = np.full((size[1], size[0]), 2, np.uint8)
    ids[:, : size[0] // 2] = 5
    labels = Image.fromarray(ids)
    if mode == "P":
        labels.putpalette([0] * 18)
    labels.convert(mode).save(folder / "labels" / "000000.png")
    return folder


def test_labels_are_read_without_mixing(tmp_path: Path) -> None:
    folder = ImageFolder(labelled(tmp_path), 16, mirror=True)
    assert len(folder) == 2
    labels = folder[0]["labels"]
    assert labels.dtype == torch.int64 and labels.shape == (16, 16)
    assert (labels[:, :8] == 5).all() and (labels[:, 8:] == 2).all()
    assert torch.equal(folder[1]["labels"], labels.flip(-1))


def test_unusable_labels(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is 16 x 16, its picture 32 x 32"):
        ImageFolder(labelled(tmp_path / "size", (16, 16)), 16)[0]
    with pytest.raises(ValueError, match="has mode RGB"):
        ImageFolder(labelled(tmp_path / "mode", mode="RGB"), 16)[0]
    few = labelled(tmp_path / "few")
    (few / "dataset.json").write_text(json.dumps({"regions": ["sky", "ground"]}))
    with pytest.raises(ValueError, match="has label 5, but the dataset's regions are sky, ground"):
        ImageFolder(few, 16)[0]
    (few / "labels" / "000000.png").unlink()
    with pytest.raises(ValueError, match=r"1 of 1 pictures have no label map, first .*000000\.png"):
        ImageFolder(few, 16)


def test_reads_what_write_dataset_writes(tmp_path: Path) -> None:
    pytest.importorskip("python_avatars", reason="avatars need the extra `train`")
    from stylefusion_hf.data.avatars import REGIONS, AvatarDataset, write_dataset

    write_dataset(tmp_path / "set", 2, size=32, workers=1, progress=False)
    folder, drawn = ImageFolder(tmp_path / "set", 32), AvatarDataset(2, size=32)
    assert folder.regions == REGIONS
    for key in ("image", "labels"):
        assert torch.equal(folder[1][key], drawn[1][key])
