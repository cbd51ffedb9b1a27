"""Alignment of faces: the square against the published formula, and known points of pictures at their places."""

import math
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from stylefusion_hf.imaging.faces import align, check_landmarks, face_square
from tests.portraits import FIVE, SIXTY_EIGHT, blob_centre, portrait, similarity


def published_square(
    eye_left: Any, eye_right: Any, mouth_left: Any, mouth_right: Any
) -> tuple[complex, complex, float]:
    """Karras et al., arXiv 1710.10196, appendix C, in complex numbers: center, axis of length 1, side."""
    e0, e1, m0, m1 = (complex(*point) for point in (eye_left, eye_right, mouth_left, mouth_right))
    x = e1 - e0
    y = (e0 + e1) / 2 - (m0 + m1) / 2
    centre = (e0 + e1) / 2 - 0.1 * y
    side = max(4.0 * abs(x), 3.6 * abs(y))
    axis = x + 1j * y  # x - Rotate90(y); a quarter's turn is by -i, since y points down
    return centre, axis / abs(axis), side


@pytest.mark.parametrize("seed", range(20))
def test_the_square_is_the_published_one(seed: int) -> None:
    random = np.random.default_rng(seed)
    scale, angle = random.uniform(0.5, 5), random.uniform(-2.5, 2.5)
    points = similarity(FIVE + random.normal(0, 4, FIVE.shape), scale, angle, random.uniform(-50, 500, 2))
    centre, axis, side = published_square(*points[[0, 1, 3, 4]])
    corners = [complex(*corner) for corner in face_square(points)]
    expected = [centre + side / 2 * axis * c for c in (-1 - 1j, -1 + 1j, 1 + 1j, 1 - 1j)]
    assert np.allclose(corners, expected, atol=1e-9)


def test_68_points_give_the_square_of_their_5() -> None:
    assert np.allclose(face_square(SIXTY_EIGHT), face_square(FIVE))
    moved = SIXTY_EIGHT.copy()
    moved[:36] += 30  # jaw, brows and nose do not count, nor does the mouth but for its corners
    moved[49:54] += 30
    moved[55:] += 30
    assert np.allclose(face_square(moved), face_square(FIVE))


# ----------------------------------------------------------------------------------------------------
# Pictures.


def canonical(points: np.ndarray, size: int) -> np.ndarray:
    """Where landmarks come to lie in the aligned picture, in its pixels, by the published formula."""
    centre, axis, side = published_square(*points[[0, 1, 3, 4]])
    places = (np.array([complex(*point) for point in points]) - centre) / axis / side + (0.5 + 0.5j)
    return np.stack([places.real, places.imag], axis=1) * size - 0.5


@pytest.mark.parametrize("size", [256, 100])
@pytest.mark.parametrize(
    ("scale", "degrees", "shift"),
    [(1.0, 0, (0, 0)), (1.0, 35, (10, -20)), (0.6, -60, (0, 30)), (2.5, 170, (0, 0)), (7.0, 20, (100, 50))],
)
def test_points_come_to_their_canonical_places(scale: float, degrees: float, shift: Any, size: int) -> None:
    canvas = int(600 * max(scale, 1))
    middle = np.full(2, canvas / 2) + shift
    points = similarity(FIVE - FIVE.mean(axis=0), scale, math.radians(degrees), middle)
    aligned = align(portrait(points, (canvas, canvas), radius=4 * scale), points, size)
    assert aligned.size == (size, size) and aligned.mode == "RGB"
    for index, place in enumerate(canonical(points, size)):
        assert np.hypot(*(blob_centre(aligned, index) - place)) < 0.15


def smooth(angle: float = 0, scale: float = 1.0, side: int = 500) -> Image.Image:
    """A pattern of waves around the middle, turned and scaled: a formula, so that turning costs no sharpness."""
    y, x = (np.indices((side, side)) - (side - 1) / 2) / scale
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    waves = [np.sin(u / 9) * np.cos(v / 15), np.sin(v / 11 + 1), np.cos(u / 17 - v / 13)]
    return Image.fromarray(np.rint(127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8))


@pytest.mark.parametrize(("degrees", "scale"), [(30, 1.0), (-75, 0.8), (180, 1.5), (10, 3.0)])
def test_a_turned_and_scaled_picture_is_aligned_alike(degrees: float, scale: float) -> None:
    face, angle = FIVE - FIVE.mean(axis=0), math.radians(degrees)
    plain = align(smooth(), face + 249.5, 128)
    side = int(500 * max(scale, 1))
    turned = align(smooth(angle, scale, side), similarity(face, scale, angle, (side - 1) / 2), 128)
    assert np.abs(np.subtract(plain, turned, dtype=float)).mean() < 1.5


def test_a_picture_that_is_its_own_square_stays_as_it_is() -> None:
    picture = smooth(side=200)
    points = FIVE - face_square(FIVE)[0]
    points = points * 200 / face_square(points)[2, 0] - 0.5
    assert np.allclose(face_square(points), [[-0.5, -0.5], [-0.5, 199.5], [199.5, 199.5], [199.5, -0.5]])
    same = align(picture, points, 200, padding="refuse")
    assert np.abs(np.subtract(same, picture, dtype=float)).max() < 6  # of 255: it was sampled twice
    assert np.abs(np.subtract(same, picture, dtype=float)).mean() < 1
    with pytest.raises(ValueError, match="extends 1 pixels beyond"):
        align(picture, points + 0.3, 200, padding="refuse")


def test_a_large_picture_does_not_alias() -> None:
    board = (np.indices((2400, 2400)).sum(axis=0) % 2 * 255).astype(np.uint8)
    aligned = align(Image.fromarray(board), (FIVE - FIVE.mean(axis=0)) * 10 + 1200, 64)
    assert np.abs(np.subtract(aligned, 127.5)).max() <= 2


def test_padding_reflects_blurs_and_fades_to_the_median() -> None:
    points = FIVE - face_square(FIVE)[0] - [0, 60]  # the square begins 60 pixels above the picture
    picture = Image.new("RGB", (200, 200), (180, 120, 60))
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 40, 199, 80), fill=(40, 120, 60))
    draw.rectangle((0, 20, 199, 23), fill=(0, 0, 0))  # a line, whose mirror image is padding
    aligned = np.asarray(align(picture, points, 256), dtype=int)

    def level(y: float) -> int:
        return int(aligned[round((y + 60) * 256 / 200), 128, 0])

    assert level(100) == 180 and level(60) == 40  # inside, nothing changed
    assert level(22) < 60  # the line
    assert 60 < level(-22) < 150  # its mirror image, blurred
    # a tenth of 200 pixels more are added outside: at 56 of 80 the mirror image of 40 is .7 of the median
    assert abs(level(-56) - (0.3 * 40 + 0.7 * 180)) < 6
    with pytest.raises(
        ValueError, match="extends 60 pixels beyond the picture: give a picture with more space around"
    ):
        align(picture, points, 256, padding="refuse")


@pytest.mark.parametrize("scale", [0.1, 1, 1.9])
def test_within_the_picture_padding_does_not_matter(scale: float) -> None:
    points = (FIVE - FIVE.mean(axis=0)) * scale + 249.5
    assert np.array_equal(align(smooth(), points, 64), align(smooth(), points, 64, padding="refuse"))


def test_exif_orientation_comes_first() -> None:
    points = FIVE - FIVE.mean(axis=0) + (300, 250)
    upright = portrait(points, (600, 500))
    lying = upright.rotate(90, expand=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    lying.info["exif"] = exif.tobytes()
    assert np.array_equal(align(lying, points, 64), align(upright, points, 64))


# ----------------------------------------------------------------------------------------------------
# What is refused.


def changed(index: int, point: Any) -> np.ndarray:
    points = FIVE.copy()
    points[index] = point
    return points


BAD_LANDMARKS: dict[str, tuple[Any, str]] = {
    "shape": (np.zeros((67, 2)), r"the landmarks of me have the shape \(67, 2\): expected \(68, 2\)"),
    "3-D": (np.zeros((68, 3)), r"shape \(68, 3\)"),
    "ragged": ([[1, 2], [3]], "the landmarks of me are not numbers"),
    "text": ("no", "the landmarks of me are not numbers"),
    "none": (None, "shape"),
    "NaN": (changed(2, math.nan), "not finite"),
    "infinite": (changed(0, math.inf), "not finite"),
    "eyes coincide": (changed(1, FIVE[0]), "less than a pixel apart"),
    "all in one place": (np.full((68, 2), 50.0), "less than a pixel apart"),
    "mirrored": (FIVE[[1, 0, 2, 4, 3]], "mirrored: the left eye must be the one on the left of the picture"),
    "outside": (FIVE + 5000, r"me is 600 x 600 pixels, and its landmarks \(x from 5\d* to .* lie outside"),
    "before": (FIVE - [300, 0], "lie outside"),
}


@pytest.mark.parametrize("case", BAD_LANDMARKS)
def test_bad_landmarks(case: str) -> None:
    landmarks, message = BAD_LANDMARKS[case]
    with pytest.raises(ValueError, match=message):
        align(Image.new("RGB", (600, 600)), landmarks, 64, name="me")


def test_bad_arguments() -> None:
    image = Image.new("RGB", (600, 600))
    for size in (0, 7, 1025, 64.0, True):
        with pytest.raises(ValueError, match="size is an integer from 8 to 1024, got"):
            align(image, FIVE, size)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="padding is 'reflect' or 'refuse'; got 'black'"):
        align(image, FIVE, 64, padding="black")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"me: the square around the face has a side of 200 pixels, too small .* at most 800"
    ):
        align(image, FIVE, 1024, name="me")
    with pytest.raises(ValueError, match="me has mode F"):
        align(Image.new("F", (600, 600)), FIVE, 64, name="me")


def test_lists_of_integers_are_landmarks() -> None:
    assert check_landmarks([[1, 2], [9, 2], [5, 5], [2, 9], [8, 9]]).dtype == np.float64
