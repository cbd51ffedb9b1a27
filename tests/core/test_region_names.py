"""Region names in words."""

import pytest

from stylefusion_hf.core.region_names import spell_out
from stylefusion_hf.core.region_tree import PRESETS, RegionTree


@pytest.mark.parametrize(
    ("name", "words"),
    [("bg", "background"), ("BG", "background"), ("bg_hair_clothes", "background hair clothes"), ("hair", "hair"),
     ("l_eye", "left eye"), ("r_brow", "right brow"), ("l_lip", "lower lip"), ("u_lip", "upper lip"),
     ("eye_g", "eyeglasses"), ("neck_l", "necklace"), ("center_1", "center 1"), ("bgcolor", "bgcolor"), ("_", "_"),
     ("Haut", "Haut"), ("fg", "foreground"), ("cloth", "clothes"), ("l", "l")],
)  # fmt: skip
def test_names_in_words(name: str, words: str) -> None:
    assert spell_out(name) == words


@pytest.mark.parametrize("preset", PRESETS)
def test_no_abbreviation_of_a_preset_is_left(preset: str) -> None:
    shown = [spell_out(name) for name in RegionTree.parse(PRESETS[preset]).nodes]
    assert not any("bg" in name.split() or "_" in name for name in shown)
