"""Avatars: determinism, exact maps, true swaps, the statistics of the collection, and the files they are stored in."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("python_avatars", reason="avatars need the extra `train`")
pytest.importorskip("resvg_py", reason="avatars need the extra `train`")

from stylefusion_hf.core.installing import install_command
from stylefusion_hf.data import avatar_choices as choices
from stylefusion_hf.data import raster as _raster
from stylefusion_hf.data.avatar_parts import load_part
from stylefusion_hf.data.avatars import (
    REGION_FIELDS,
    REGIONS,
    AvatarDataset,
    AvatarSpec,
    avatar_spec,
    cached_arrays,
    render_arrays,
    render_avatar,
    swap_region,
    write_dataset,
)

COLOUR_FIELDS = {
    "background": ("background_from", "background_to"),
    "skin": ("skin_colour",),
    "clothes": ("clothes_colour", "clothes_trim"),
    "mouth": ("mouth_colour", "tongue_colour", "facial_hair_colour"),
    "eyes": ("eye_colour", "brow_colour", "glasses_colour"),
    "hair": ("hair_colour", "hat_colour", "hat_trim"),
}


@pytest.fixture(scope="module")
def hundred() -> tuple[np.ndarray, np.ndarray]:
    return render_arrays(150, size=64, seed=5, workers=1, progress=False)


def recoloured(spec: AvatarSpec, region: str) -> AvatarSpec:
    """The avatar with the inverse of every colour of a region."""
    colours = {name: bytes.fromhex(getattr(spec, name)[1:]) for name in COLOUR_FIELDS[region]}
    changes: dict[str, Any] = {name: "#" + bytes(255 - level for level in rgb).hex() for name, rgb in colours.items()}
    return replace(spec, **changes)


def grown(mask: np.ndarray) -> np.ndarray:
    """The mask dilated by one pixel in all eight directions."""
    padded, (height, width) = np.pad(mask, 1), mask.shape
    return np.any([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)], axis=0)


# -- attributes -------------------------------------------------------------------------------------------------------
def test_spec_depends_on_index_and_seed_alone() -> None:
    assert avatar_spec(17, seed=3) == avatar_spec(17, seed=3)
    assert avatar_spec(17, seed=3) != avatar_spec(18, seed=3)
    assert avatar_spec(17, seed=3) != avatar_spec(17, seed=4)
    # Written down, so that a change of the collection is noticed (and RECIPE raised with it).
    spec = avatar_spec(0)
    assert (spec.top, spec.mouth, spec.eyes, spec.clothes) == (
        "hair/pompadour",
        "concerned",
        "side",
        "shirt_scoop_neck",
    )
    assert (spec.hair_colour, spec.rotation) == ("#b42651", -8.854)


def test_spec_survives_json() -> None:
    spec = avatar_spec(4)
    assert AvatarSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert set(spec.attributes) | set(spec.pose) >= set(spec.to_dict())
    with pytest.raises(ValueError, match=r"unknown \['beard'\], missing \['mouth'\]"):
        AvatarSpec.from_dict({name: value for name, value in spec.to_dict().items() if name != "mouth"} | {"beard": 1})
    with pytest.raises(ValueError, match="hair_colour must be a color like #a55728, got 'red'"):
        replace(spec, hair_colour="red")
    with pytest.raises(ValueError, match="index=-1"):
        avatar_spec(-1)


def test_shares_and_variety() -> None:
    specs = [avatar_spec(index) for index in range(3000)]
    assert np.mean([spec.attributes["has_hat"] for spec in specs]) == pytest.approx(0.15, abs=0.02)
    assert np.mean([spec.attributes["has_glasses"] for spec in specs]) == pytest.approx(0.25, abs=0.025)
    assert np.mean([spec.attributes["has_facial_hair"] for spec in specs]) == pytest.approx(0.25, abs=0.025)
    for name, table in (("eyes", choices.EYES), ("mouth", choices.MOUTHS), ("clothes", choices.CLOTHES)):
        assert {getattr(spec, name) for spec in specs} == set(table)
    assert {spec.top for spec in specs} == set(choices.HAIR) | set(choices.HATS)
    assert len({spec.hair_colour for spec in specs}) > 2500
    assert max(abs(spec.rotation) for spec in specs) <= 14


def test_every_curated_part_can_be_drawn() -> None:
    tables = {
        "top": choices.HAIR | choices.HATS,
        "eyes": choices.EYES,
        "eyebrows": choices.EYEBROWS,
        "glasses": choices.GLASSES,
        "nose": choices.NOSES,
        "mouth": choices.MOUTHS,
        "facial_hair": choices.FACIAL_HAIR,
        "clothes": choices.CLOTHES,
    }
    for field, table in tables.items():
        region = REGIONS.index(next(name for name, names in REGION_FIELDS.items() if field in names))
        for part in table:
            grey = f'"#{region:02x}{region:02x}{region:02x}"'
            assert field == "nose" or grey in load_part(field, part).labels, (field, part)
    assert not {"vomit"} & set(choices.MOUTHS) and not {"heart", "x_dizzy"} & set(choices.EYES)
    with pytest.raises(ValueError, match="no top named 'hair/nothing'"):
        render_avatar(replace(avatar_spec(0), top="hair/nothing"))


# -- pictures and maps ------------------------------------------------------------------------------------------------
def test_picture_depends_on_its_index_alone(hundred: tuple[np.ndarray, np.ndarray]) -> None:
    images, labels = hundred
    image, label = render_avatar(avatar_spec(77, seed=5))
    assert image.dtype == label.dtype == np.uint8 and image.shape == (64, 64, 3) and label.shape == (64, 64)
    assert np.array_equal(image, images[77]) and np.array_equal(label, labels[77])
    with pytest.raises(ValueError, match="at least 16 pixels, got 8"):
        render_avatar(avatar_spec(0), size=8)


def test_regions_are_visible_and_the_head_fills_the_frame(hundred: tuple[np.ndarray, np.ndarray]) -> None:
    _, labels = hundred
    assert set(np.unique(labels)) == set(range(6))
    shares = np.stack([(labels == region).mean(axis=(1, 2)) for region in range(6)], axis=1)
    visible = dict(zip(REGIONS, (shares >= 0.01).mean(axis=0), strict=True))
    assert min(visible.values()) >= 0.9, visible
    # Face (skin, mouth, eyes) above the clothes: crown to chin is 0.7 of the height, less what hair and hats cover.
    face = np.isin(labels, [REGIONS.index(name) for name in ("skin", "mouth", "eyes")])
    heights = [np.flatnonzero(mask.any(axis=1)) for mask in face]
    assert 0.5 < np.mean([(rows[-1] - rows[0]) / 64 for rows in heights]) < 0.9
    head = face | (labels == REGIONS.index("hair"))
    assert head.any(axis=(1, 2)).all() and 0.35 < head.mean() < 0.65
    # Clothes are at the bottom, mouths below eyes.
    rows = np.arange(64)[None, :, None]
    middle = {
        name: (rows * (labels == REGIONS.index(name))).sum() / (labels == REGIONS.index(name)).sum()
        for name in REGIONS
    }
    assert middle["hair"] < middle["eyes"] < middle["mouth"] < middle["clothes"]


@pytest.mark.parametrize("region", REGIONS)
def test_recolouring_a_region_changes_that_region_alone(region: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one sample a pixel the map is exact to the pixel: no picture outside the mask changes by one level."""
    monkeypatch.setattr(_raster, "SAMPLES", 1)
    changed = 0
    for index in range(12):
        spec = avatar_spec(index, seed=9)
        other = recoloured(spec, region)
        image, labels = render_avatar(spec, size=128)
        other_image, same = render_avatar(other, size=128)
        assert np.array_equal(labels, same)
        difference = (image != other_image).any(axis=-1)
        inside = labels == REGIONS.index(region)
        # one hat's strap is a stroke of half a pixel, translucent where resvg thins it
        assert (difference & ~inside).sum() <= 1
        changed += (difference & inside).sum() > 0.2 * inside.sum()
    assert changed >= 11


def test_recolouring_hair_stays_within_its_mask_and_one_pixel() -> None:
    outside, total = 0, 0
    for index in range(24):
        spec = avatar_spec(index, seed=2)
        other = recoloured(spec, "hair")
        image, labels = render_avatar(spec)
        difference = (image != render_avatar(other)[0]).any(axis=-1)
        outside += int((difference & ~grown(labels == REGIONS.index("hair"))).sum())
        total += int(difference.sum())
    # What is left are strands thinner than half a pixel, which win no pixel of the map.
    assert outside < 0.002 * total, (outside, total)


def test_swap_is_the_other_region_in_the_same_pose() -> None:
    a, b = avatar_spec(1), avatar_spec(2)
    everything = a
    for region in REGIONS:
        swapped = swap_region(a, b, region)
        taken = {name for name, value in swapped.to_dict().items() if value != getattr(a, name)}
        assert taken <= set(REGION_FIELDS[region]) and swapped.pose == a.pose
        everything = swap_region(everything, b, region)
    pose: dict[str, Any] = a.pose
    assert everything == replace(b, **pose)
    with pytest.raises(ValueError, match="unknown region 'nose'; the avatar's regions are background, skin"):
        swap_region(a, b, "nose")
    image, labels = render_avatar(a)
    image_b, labels_b = render_avatar(swap_region(a, b, "mouth"))
    mouth = REGIONS.index("mouth")
    assert np.array_equal(image, image_b) is False
    assert not (image != image_b).any(axis=-1)[~grown((labels == mouth) | (labels_b == mouth))].any()


# -- datasets ---------------------------------------------------------------------------------------------------------
def test_dataset_items() -> None:
    dataset = AvatarDataset(3, size=32, seed=1, start=10)
    item = dataset[2]
    assert len(dataset) == 3 and item["index"] == 12
    assert item["image"].shape == (3, 32, 32) and item["labels"].shape == (32, 32)
    assert -1 <= item["image"].min() < item["image"].max() <= 1 and str(item["labels"].dtype) == "torch.int64"
    image, _ = render_avatar(avatar_spec(12, seed=1), size=32)
    assert np.array_equal(((item["image"] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy(), image)
    with pytest.raises(IndexError):
        dataset[3]


def test_two_workers_make_the_same_pictures() -> None:
    alone = render_arrays(70, size=16, seed=2, start=4, workers=1, progress=False)
    together = render_arrays(70, size=16, seed=2, start=4, workers=2, progress=False)
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "count must be at least 1, got 0"),
        ({"count": 1, "size": 8}, "size must be at least 16, got 8"),
        ({"count": 1, "seed": -1}, "seed must be at least 0, got -1"),
        ({"count": 1, "start": -2}, "start must be at least 0, got -2"),
        ({"count": 1, "workers": 0}, "workers must be at least 1"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        render_arrays(**arguments)
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_cache_is_reused_while_it_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options: dict[str, Any] = {"size": 16, "seed": 3, "workers": 1, "progress": False}
    images, labels = cached_arrays(tmp_path / "cache", 6, **options)
    expected = render_arrays(6, **options)
    assert np.array_equal(images, expected[0]) and np.array_equal(labels, expected[1])
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["arrays.json", "images.npy", "labels.npy"]
    stamp = (tmp_path / "cache" / "images.npy").stat().st_mtime_ns
    assert np.array_equal(cached_arrays(tmp_path / "cache", 4, **options)[0], expected[0][:4])
    assert (tmp_path / "cache" / "images.npy").stat().st_mtime_ns == stamp
    more, _ = cached_arrays(tmp_path / "cache", 7, **options)
    assert len(more) == 7 and (tmp_path / "cache" / "images.npy").stat().st_mtime_ns != stamp
    other, _ = cached_arrays(tmp_path / "cache", 4, **options | {"seed": 4})
    assert not np.array_equal(other, expected[0][:4])


def test_write_dataset(tmp_path: Path) -> None:
    from PIL import Image

    options: dict[str, Any] = {"size": 16, "seed": 3, "start": 5, "workers": 1, "progress": False}
    out = write_dataset(tmp_path / "set", 3, **options)
    images, labels = render_arrays(3, **options)
    for number in range(3):
        assert np.array_equal(np.asarray(Image.open(out / "images" / f"{number:06d}.png")), images[number])
        with Image.open(out / "labels" / f"{number:06d}.png") as stored:
            assert stored.mode == "P" and np.array_equal(np.asarray(stored), labels[number])
    lines = [json.loads(line) for line in (out / "avatars.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [5, 6, 7]
    assert AvatarSpec.from_dict(
        {name: value for name, value in lines[1]["attributes"].items() if not name.startswith("has_")}
        | lines[1]["pose"]
    ) == avatar_spec(6, seed=3)
    about = json.loads((out / "dataset.json").read_text())
    assert about["regions"] == list(REGIONS) and about["count"] == 3 and "Pablo Stanley" in about["credit"]

    # An interrupted run goes on: what is there stays, what is missing is drawn.
    kept = (out / "images" / "000000.png").stat().st_mtime_ns
    (out / "labels" / "000002.png").unlink()
    write_dataset(out, 4, **options)
    assert (out / "images" / "000000.png").stat().st_mtime_ns == kept
    assert len(list((out / "labels").iterdir())) == len(list((out / "images").iterdir())) == 4
    with pytest.raises(ValueError, match=r"holds a dataset with \{'seed': 3\}, not \{'seed': 4\}"):
        write_dataset(out, 4, **options | {"seed": 4})
    with pytest.raises(ValueError, match="already holds a dataset of 4 avatars, more than count=2"):
        write_dataset(out, 2, **options)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        write_dataset(tmp_path / "other", 2, **options)


def test_missing_packages_are_named() -> None:
    """Importing needs neither package; using says which extra to install."""
    code = (
        "import sys; sys.modules['python_avatars'] = sys.modules['resvg_py'] = None\n"
        "from importlib import util; real = util.find_spec\n"
        "util.find_spec = lambda name, *a: None if name in ('python_avatars', 'resvg_py') else real(name, *a)\n"
        "from stylefusion_hf.data.avatar_render import render_avatar\n"
        "from stylefusion_hf.data.avatar_spec import avatar_spec\n"
        "try:\n    render_avatar(avatar_spec(0))\n"
        "except ImportError as error:\n    print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert install_command("train") in result.stdout
