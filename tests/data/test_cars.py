"""Drawn cars: the same everywhere, and with label maps that are exact."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from stylefusion_hf import RegionTree
from stylefusion_hf.cli import main
from stylefusion_hf.data import raster as _raster
from stylefusion_hf.data.car_spec import BODIES, GROUNDS, RIMS, SCENES
from stylefusion_hf.data.cars import CARS, REGION_FIELDS, REGIONS, car_spec, render_car, swap_region
from stylefusion_hf.data.folders import ImageFolder

pytest.importorskip("resvg_py")


def test_regions_are_the_presets_and_all_are_there():
    assert set(REGIONS) == set(RegionTree.preset("car").leaves)
    _, labels = CARS.render_arrays(48, workers=1, progress=False)
    shares = np.stack([(labels == region).mean(axis=(1, 2)) for region in range(len(REGIONS))])
    assert (shares.mean(1) > [0.2, 0.2, 0.1, 0.02]).all() and (shares > 0.005).all()
    rows = np.arange(64)[None, :, None]
    sky, ground, body, wheels = ((rows * (labels == r)).sum() / (labels == r).sum() for r in range(4))
    assert sky < body < wheels < ground


def test_every_kind_is_drawn_and_an_index_decides():
    specs = [car_spec(index) for index in range(200)]
    for field, kinds in (("body", BODIES), ("rim", RIMS), ("scene", SCENES), ("ground_kind", GROUNDS)):
        assert {getattr(spec, field) for spec in specs} == set(kinds)
    assert car_spec(7) == specs[7] and car_spec(7, seed=1) != specs[7]
    image, labels = render_car(specs[7], 32)
    alone, _ = CARS.render_arrays(1, 32, start=7, workers=1, progress=False)
    assert image.shape == (32, 32, 3) and labels.shape == (32, 32) and np.array_equal(alone[0], image)


@pytest.mark.parametrize(
    ("region", "change"),
    [
        ("background_top", {"sky_from": "#ffffff", "sky_to": "#000000", "scene": "city", "scenery": 5}),
        ("background_bottom", {"ground_colour": "#00ff00", "kerb_colour": "#ff00ff"}),
        ("car_body", {"paint": "#ff00ff", "glass": "#00ff00"}),
        ("wheels", {"tyre_colour": "#ff00ff", "rim": "disc"}),
    ],
)
def test_a_regions_look_changes_that_region_alone(region, change, monkeypatch):
    """With one sample a pixel the map is exact to the pixel."""
    monkeypatch.setattr(_raster, "SAMPLES", 1)
    assert set(change) <= set(REGION_FIELDS[region])
    for index in range(6):
        spec = replace(car_spec(index, seed=4), two_tone=False)
        (image, labels), (other, same) = render_car(spec, 128), render_car(replace(spec, **change), 128)
        assert np.array_equal(labels, same)
        different, inside = (image != other).any(-1), labels == REGIONS.index(region)
        assert not (different & ~inside).any() and (different & inside).sum() > 0.4 * inside.sum()


def test_a_swap_keeps_the_pose():
    a, b = car_spec(1), car_spec(2)
    swapped = swap_region(a, b, "wheels")
    assert swapped.pose == a.pose and swapped.rim_colour == b.rim_colour and swapped.paint == a.paint
    with pytest.raises(ValueError, match="unknown region 'hair'"):
        swap_region(a, b, "hair")
    with pytest.raises(ValueError, match="at least 0"):
        car_spec(-1)
    with pytest.raises(ValueError, match="at least 16"):
        render_car(a, 8)


def test_data_cars(tmp_path, capsys):
    assert (
        main(["data", "cars", "--count", "3", "--size", "32", "--out", str(tmp_path / "set"), "--workers", "1"]) == 0
    )
    assert "3 cars of 32 x 32" in capsys.readouterr().out
    folder = ImageFolder(tmp_path / "set", 32)
    assert folder.regions == REGIONS
    image, labels = render_car(car_spec(2), 32)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "set" / "images" / "000002.png")), image)
    assert np.array_equal(folder[2]["labels"].numpy(), labels)
    assert len((tmp_path / "set" / "cars.jsonl").read_text().splitlines()) == 3
