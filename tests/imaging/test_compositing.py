"""Putting a changed square back: the geometry, the mask, colors at the seam, and that nothing else changes."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stylefusion_hf.imaging import compositing
from stylefusion_hf.imaging.compositing import (
    change_mask,
    color_shift,
    inside_photograph,
    put_back,
    square_map,
    unchanged,
)
from stylefusion_hf.imaging.faces import align, face_square
from stylefusion_hf.imaging.images import open_image
from tests.portraits import FIVE, similarity

ONES, NONE = torch.ones(32, 32), torch.zeros(3, 32, 32)


def waves(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth picture; transparency goes from 0 to 255."""
    y, x = np.indices((height, width))
    bands = [128 + 90 * np.sin(x / 23), 128 + 90 * np.cos(y / 19), 128 + 90 * np.sin((x + y) / 31), x * 255 / width]
    pixels = np.stack(bands, axis=-1).astype(np.uint8)
    used = {"RGB": [0, 1, 2], "RGBA": [0, 1, 2, 3], "L": 0, "LA": [0, 3]}[mode]
    return Image.fromarray(np.ascontiguousarray(pixels[..., used]))


def placed(scale: float, degrees: float, middle: Any) -> np.ndarray:
    """Five landmarks whose square is 200 * scale pixels wide."""
    return similarity(FIVE - FIVE.mean(axis=0), scale, math.radians(degrees), middle)


def as_tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


# ----------------------------------------------------------------------------------------------------
# Geometry.


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0), (0.3, 25), (4.0, -100), (1.7, 180)])
def test_the_map_takes_the_corners_to_the_square(scale: float, degrees: float) -> None:
    corners = face_square(placed(scale, degrees, (300, 200)))
    matrix = square_map(corners, 64)
    found = (corners + 0.5) @ matrix[:, :2].T + matrix[:, 2]
    assert np.allclose(found, [[0, 0], [0, 64], [64, 64], [64, 0]], atol=1e-9)


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0), (0.5, 20), (1.6, -35), (2.5, 90)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_aligned_face_goes_back_to_where_it_was(scale: float, degrees: float, mode: str) -> None:
    photograph, points = waves(700, 640, mode), placed(scale, degrees, (350, 320))
    square = align(photograph, points, 256)
    edited, coverage = put_back(photograph, face_square(points), square, ONES, NONE)
    inside = np.asarray(coverage) > 250
    error = np.abs(np.asarray(edited, dtype=float) - np.asarray(photograph))[inside]
    assert 0.8 < inside.sum() / (200 * scale) ** 2 < 1.1
    assert error.mean() < 1.2 and np.percentile(error, 99) < 5  # of 255


def test_a_dot_of_the_square_lands_on_its_point() -> None:
    points = placed(0.9, 30, (320, 260))
    square = np.zeros((200, 200, 3), np.uint8)
    square[95:105, 45:55] = 255  # its middle is (50, 100)
    edited, _ = put_back(Image.new("RGB", (600, 500)), face_square(points), Image.fromarray(square), ONES, NONE)
    weight = np.asarray(edited, dtype=float)[..., 0]
    ys, xs = np.indices(weight.shape)
    found = np.array([(weight * xs).sum(), (weight * ys).sum()]) / weight.sum()
    corners = face_square(points)
    assert np.allclose(found, corners[0] + (corners[3] - corners[0]) / 4 + (corners[1] - corners[0]) / 2, atol=0.1)


@pytest.mark.skipif("STYLEFUSION_FACES" not in os.environ, reason="STYLEFUSION_FACES names no folder of photographs")
def test_hand_set_points_of_photographs() -> None:
    """Pupils lie level and at one height in every aligned face, and an aligned face goes back to where it was."""
    folder = Path(os.environ["STYLEFUSION_FACES"], "photos")
    table = json.loads((folder / "points.json").read_text())
    heights = []
    for name in sorted(table)[:4]:
        points = np.array(table[name])[[0, 1, 55, 87, 93]]  # pupils, under the nose, corners of the mouth
        photograph, corners = open_image(folder / name), face_square(points)
        matrix = square_map(corners, 256)
        pupils = (points[:2] + 0.5) @ matrix[:, :2].T + matrix[:, 2]
        assert abs(pupils[0, 1] - pupils[1, 1]) < 6  # the mouth may lean by a little
        assert abs(pupils.mean(axis=0)[0] - 128) < 4
        heights.append(pupils[:, 1].mean())
        edited, coverage = put_back(photograph, corners, align(photograph, points, 1024), ONES, NONE)
        inside = np.asarray(coverage) > 250
        error = np.abs(np.asarray(edited, dtype=float) - np.asarray(photograph))[inside]
        assert error.mean() < 2.5  # of 255, after two resamplings of hair and pores
        assert np.array_equal(
            np.asarray(edited)[np.asarray(coverage) == 0], np.asarray(photograph)[np.asarray(coverage) == 0]
        )
    assert max(heights) - min(heights) < 12


# ----------------------------------------------------------------------------------------------------
# What is kept.


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pixels_outside_the_mask_keep_their_values(mode: str) -> None:
    photograph, points = waves(400, 380, mode), placed(1.2, 15, (180, 170))
    mask = torch.zeros(32, 32)
    mask[8:20, 10:26] = torch.rand(12, 16, generator=torch.Generator().manual_seed(0))
    shift = torch.full((3, 32, 32), 0.2)
    edited, coverage = put_back(photograph, face_square(points), Image.new("RGB", (64, 64), "red"), mask, shift)
    assert (edited.mode, edited.size) == (mode, photograph.size) == (photograph.mode, coverage.size)
    before, after, where = np.asarray(photograph), np.asarray(edited), np.asarray(coverage)
    assert np.array_equal(before[where == 0], after[where == 0])
    assert 0.05 < (where > 0).mean() < 0.5 and (before != after).any()
    if "A" in mode:
        assert np.array_equal(before[..., -1], after[..., -1])


def test_strips_are_seamless(monkeypatch: pytest.MonkeyPatch) -> None:
    photograph, corners = waves(400, 380), face_square(placed(1.6, 40, (190, 200)))
    call = (photograph, corners, waves(64, 64), torch.rand(32, 32), torch.rand(3, 32, 32) - 0.5)
    whole = put_back(*call)
    monkeypatch.setattr(compositing, "STRIP", 1000)
    for a, b in zip(whole, put_back(*call), strict=True):
        assert np.abs(np.asarray(a, dtype=int) - np.asarray(b)).max() <= 1


@pytest.mark.parametrize("middle", [(5, 8), (395, 200), (-60, 190), (2000, 100), (-500, -500)])
def test_squares_beyond_the_photograph(middle: tuple[int, int]) -> None:
    photograph, corners = waves(400, 380), face_square(placed(1.0, 10, middle))
    edited, coverage = put_back(photograph, corners, Image.new("RGB", (64, 64)), ONES, NONE)
    near = abs(middle[0]) < 400
    assert (np.asarray(coverage).any()) == near
    assert (np.asarray(edited) != np.asarray(photograph)).any() == near
    share = inside_photograph(corners, photograph.size, 32).mean().item()
    assert (share > 0) == near and share < 1


def test_a_large_square_is_reduced_without_aliasing() -> None:
    board = Image.fromarray((np.indices((512, 512)).sum(axis=0) % 2 * 255).astype(np.uint8)).convert("RGB")
    photograph = Image.new("RGB", (200, 200), (127, 127, 127))
    edited, _ = put_back(photograph, face_square(placed(0.3, 10, (100, 100))), board, ONES, NONE)
    assert np.abs(np.asarray(edited).astype(int) - 127).max() < 12


# ----------------------------------------------------------------------------------------------------
# The mask.


def pair(side: int = 128) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A picture, the same with a changed disc, and the disc."""
    before = as_tensor(waves(side, side))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    disc = ((x - side * 0.4).square() + (y - side * 0.5).square() < (side * 0.2) ** 2).float()
    return before, before + disc * (0.8 - before), disc


def test_nothing_changed_means_an_empty_mask() -> None:
    before, _, disc = pair()
    for regions in (None, disc, torch.ones_like(disc)):
        assert not change_mask(before, before.clone(), regions).any()
        assert not change_mask(before, before + 0.005, regions).any()


@pytest.mark.parametrize("side", [32, 128, 300])
def test_the_mask_follows_the_change(side: int) -> None:
    before, after, disc = pair(side)
    for regions in (None, disc):
        mask = change_mask(before, after, regions)
        size = min(side, 256)
        assert mask.shape == (size, size) and mask.min() >= 0 and mask.max() <= 1
        shrunk = torch.nn.functional.adaptive_avg_pool2d(disc[None], size)[0]
        assert mask[shrunk > 0.99].mean() > 0.95
        far = torch.nn.functional.max_pool2d(shrunk[None], 2 * (size // 8) + 1, 1, size // 8)[0] == 0
        assert not mask[far].any()


def test_a_region_keeps_weak_changes_elsewhere_out() -> None:
    before, after, disc = pair()
    leak = after.clone()
    leak[:, :, 100:] += 0.25
    mask = change_mask(before, leak, disc)
    assert mask[disc > 0].mean() > 0.95 and not mask[:, 104:].any()
    assert change_mask(before, leak)[20:-20, 106:118].mean() > 0.9  # without regions it counts


def test_a_strong_change_beside_the_region_belongs_to_it() -> None:
    before, after, disc = pair()
    shadow = after.clone()
    row = slice(60, 68)
    shadow[:, row, 77:82] -= 0.9  # touches the disc, whose right end is column 76
    near = change_mask(before, shadow, disc)[row, 78:81].mean()
    assert near > 0.5 > change_mask(before, after, disc)[row, 80:82].mean()


def test_of_other_regions_only_shadows_change() -> None:
    before, after, disc = pair()
    row, stays = slice(60, 68), 1 - disc
    beside = (row, slice(78, 81))  # columns just right of the disc

    def near(change: list[float], stays: torch.Tensor) -> float:
        changed = after.clone()
        changed[:, row, 77:82] += torch.tensor(change)[:, None, None]
        return float(change_mask(before, changed, disc, stays)[beside].mean())

    plain = near([0.0, 0.0, 0.0], stays)
    assert near([-0.9, -0.9, -0.9], stays) > 0.5 > plain
    for change in ([0.9, 0.9, 0.9], [-0.9, 0.3, 0.9]):  # lighter; another color
        assert near(change, stays) <= plain + 0.01 and change_mask(before, after, disc, stays)[disc > 0].mean() > 0.95
    stays[50:78, 70:90] = 0  # an outline of another region moved
    assert near([-0.9, -0.9, -0.9], stays) <= plain + 0.01


def test_the_mask_ends_before_the_border() -> None:
    before = as_tensor(waves(128, 128))
    mask = change_mask(before, -before.sign() + before * 0, torch.ones(128, 128))
    edge = torch.cat([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    assert not edge.any() and mask[64, 64] == 1


# ----------------------------------------------------------------------------------------------------
# Colors.


def hole(side: int = 64) -> torch.Tensor:
    mask = torch.zeros(side, side)
    mask[16:48, 12:50] = 1
    return mask


def test_a_constant_difference_is_taken_over() -> None:
    after = as_tensor(waves(64, 64))
    offset = torch.tensor([0.1, -0.2, 0.05])[:, None, None]
    shift = color_shift(after + offset, after, hole(), torch.ones(64, 64))
    assert torch.allclose(shift, offset.expand_as(shift), atol=1e-4)


def test_inside_it_is_the_smooth_continuation() -> None:
    ramp = torch.linspace(-0.3, 0.3, 64).expand(3, 64, 64)
    after = torch.zeros(3, 64, 64)
    original = ramp + hole() * 0.5  # what the change replaces does not count
    shift = color_shift(original, after, hole(), torch.ones(64, 64))
    assert (shift - ramp).abs().max() < 0.06 and (shift - ramp).abs().mean() < 0.015


def test_what_cannot_be_trusted_does_not_count() -> None:
    after = as_tensor(waves(64, 64))
    original = after + 0.1
    original[:, :, 50:] = -1.0  # say, beyond the photograph's border
    trust = torch.ones(64, 64)
    trust[:, 50:] = 0
    shift = color_shift(original, after, hole(), trust)
    assert (shift[:, 16:48, 12:50] - 0.1).abs().max() < 0.02
    assert not color_shift(original, after, hole(), torch.zeros(64, 64)).any()
    assert not color_shift(original, after, torch.ones(64, 64), trust).any()


def test_unchanged_leaves_regions_and_changes_out() -> None:
    before, after, disc = pair()
    kept = unchanged(before, after, 128)
    assert kept[disc > 0].mean() < 0.1 and kept[:, 110:].min() == 1
    assert not unchanged(before, before, 128, disc)[disc > 0].any()


def test_the_seam_is_weaker_than_that_of_a_paste() -> None:
    """Gradients across the mask's edge: a paste of a picture in other colors, and the same blended."""
    original = waves(256, 256).point(lambda value: value * 0.6)
    before = as_tensor(original) + 0.15  # a reconstruction whose colors are off
    _, _, disc = pair(256)
    after = before + disc * 0.4
    corners = np.array([[-0.5, -0.5], [-0.5, 255.5], [255.5, 255.5], [255.5, -0.5]])
    mask = change_mask(before, after, disc)
    changed = Image.fromarray(((after.clamp(-1, 1) + 1) * 127.5).byte().permute(1, 2, 0).numpy())
    shift = color_shift(as_tensor(original), after, mask, unchanged(before, after, 256, disc))
    blended, coverage = put_back(original, corners, changed, mask, shift)
    pasted, _ = put_back(original, corners, changed, (mask > 0.5).float(), torch.zeros_like(shift))

    def seam(picture: Image.Image) -> float:
        pixels, inside = np.asarray(picture, dtype=float).mean(axis=-1), np.asarray(coverage) > 127
        edge = inside[:, 1:] != inside[:, :-1]
        return float(np.abs(np.diff(pixels, axis=1))[edge].mean())

    assert seam(blended) < 0.5 * seam(pasted)
    middle = np.asarray(blended, dtype=float)[128, 100] - np.asarray(original, dtype=float)[128, 100]
    assert np.allclose(middle, 0.4 * 127.5, atol=12)  # the change itself arrives, without the colors' error
