"""Drawn cars with exact region maps, a second domain, for the preset `car`. The drawings are our own.

    image, labels = render_car(car_spec(7), size=128)
    other = render_car(swap_region(car_spec(7), car_spec(8), "wheels"))[0]  # the ground-truth swap

They are rasterized with resvg, which the extra `train` installs: ``pip install '.[train]'`` in a checkout.
"""

from importlib.util import find_spec

from stylefusion_hf.core.installing import install_command
from stylefusion_hf.data.artwork import Artwork
from stylefusion_hf.data.car_render import render_car
from stylefusion_hf.data.car_spec import REGION_FIELDS, REGIONS, CarSpec, car_spec, swap_region

__all__ = ["CARS", "REGIONS", "REGION_FIELDS", "CarSpec", "car_spec", "render_car", "swap_region"]


def _parts() -> str:
    if find_spec("resvg_py") is None:
        raise ImportError(f"drawing cars needs resvg-py: {install_command('train')}")
    return "our own"


CARS = Artwork(
    name="car",
    regions=REGIONS,
    recipe=1,
    parts=_parts,
    credit="stylefusion-hf (Apache-2.0)",
    spec=car_spec,
    render=render_car,
    palette=(90, 150, 220, 90, 90, 90, 220, 60, 60, 30, 30, 30),
)
