"""Contact sheets: which codes go where, in how many calls, and what is drawn."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stylefusion_hf.core.region_tree import RegionTree
from stylefusion_hf.imaging import sheets
from stylefusion_hf.imaging.sheets import contact_sheet, draw_sheet, sheet_columns
from tests.tiny import tiny_pipeline

AVATAR_LEAVES = ["mouth", "skin", "eyes", "clothes", "background", "hair"]


class Recorder:
    """A pipeline that only remembers how it was called."""

    def __init__(self, tree: str, size: int = 8) -> None:
        self.fusion, self.size = SimpleNamespace(tree=RegionTree.of(tree)), size
        self.generator = SimpleNamespace(picture_size=(size, size))
        self.calls: list[dict[str, Any]] = []

    def __call__(self, **call: Any) -> Any:
        self.calls.append(call)
        return SimpleNamespace(images=[Image.new("RGB", (self.size, self.size)) for _ in call["base"]])


def test_one_call_makes_the_whole_sheet() -> None:
    pipe = Recorder("all*(car, background)")
    contact_sheet(pipe, [1, 2], [11, 12], truncation_psi=0.5)
    (call,) = pipe.calls
    columns = ["base", "source", "car", "background", "global"]
    assert sheet_columns(pipe.fusion.tree) == columns
    assert call["base"] == [1, 11, 1, 1, 1, 2, 12, 2, 2, 2]
    assert call["regions"]["car"] == [1, 11, 11, 1, 1, 2, 12, 12, 2, 2]
    assert call["regions"]["background"] == [1, 11, 1, 11, 1, 2, 12, 2, 12, 2]
    assert call["global_code"] == [1, 11, 1, 1, 11, 2, 12, 2, 2, 12]
    assert call["truncation_psi"] == 0.5


def test_large_sheets_are_made_in_slices() -> None:
    pipe = Recorder("avatar")
    contact_sheet(pipe, [1, 2, 3], [9], max_batch=10)
    assert [len(call["base"]) for call in pipe.calls] == [10, 10, 7]
    assert all(len(codes) == len(call["base"]) for call in pipe.calls for codes in call["regions"].values())


def test_sheets_of_large_pictures_are_made_of_small_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(sheets, "draw_sheet", lambda columns, labels, rows, *_, **__: drawn.append(rows))
    pipe = Recorder("avatar", size=1024)
    contact_sheet(pipe, [1, 2], [9])
    assert [len(call["base"]) for call in pipe.calls] == [1] * 18
    assert {picture.size for row in drawn[0] for picture in row} == {(256, 256)}
    contact_sheet(pipe, [1], [9], scale=1)
    assert {picture.size for row in drawn[1] for picture in row} == {(1024, 1024)}
    middle = Recorder("avatar", size=256)
    contact_sheet(middle, [1, 2], [9])
    assert [len(call["base"]) for call in middle.calls] == [16, 2]


@pytest.mark.parametrize(
    ("tree", "columns"),
    [
        ("avatar", ["base", "source", *AVATAR_LEAVES, "global"]),
        ("all*(face(mouth, skin), hair)", ["base", "source", "face", "hair", "global"]),  # face is not fused
        ("picture", ["base", "source", "picture"]),
    ],
)
def test_the_columns_are_what_can_be_swapped(tree: str, columns: list[str]) -> None:
    assert sheet_columns(RegionTree.of(tree)) == columns
    pipe = tiny_pipeline(tree)
    assert contact_sheet(pipe, [1], [2]).height > 32 * 4


def test_the_pictures_are_the_pipelines() -> None:
    pipe = tiny_pipeline()
    sheet = contact_sheet(pipe, [1, 2], [11, 12], scale=1)
    pictures = [
        pipe(base=2).images[0],
        pipe(base=12).images[0],
        *(pipe(base=2, regions={name: 12}).images[0] for name in AVATAR_LEAVES),
        pipe(base=2, global_code=12).images[0],
    ]
    pixels = np.asarray(sheet).astype(int)
    top, right = sheet.height - 16 - 32, sheet.width - 16  # the last row; the margin is 16
    for left_of, picture in zip((0, 52, 90, 128, 166, 204, 242, 294, 332), reversed(pictures), strict=True):
        cell = pixels[top : top + 32, right - 32 - left_of : right - left_of]
        assert np.abs(cell - np.asarray(picture)).max() <= 1  # another batch size


@pytest.mark.parametrize(
    ("size", "scale", "drawn"), [(32, None, 128), (64, None, 128), (128, None, 128), (1024, None, 256), (32, 3, 96)]
)
def test_pictures_are_brought_to_a_visible_size(size: int, scale: int | None, drawn: int) -> None:
    one = draw_sheet(["base"], [("a", "b")], [[Image.new("RGB", (size, size), "red")]], scale)
    red = np.all(np.asarray(one) == (255, 0, 0), axis=2)
    assert red.sum() == drawn * drawn


def test_text_grows_with_large_pictures() -> None:
    def height_of_text(size: int) -> int:
        sheet = draw_sheet(["hair"], [("", "")], [[Image.new("RGB", (size, size), "white")]], 1, regions=[])
        return int(np.any(np.asarray(sheet) < 255, axis=(1, 2)).sum())

    small, large = height_of_text(256), height_of_text(1024)
    assert 4 * small < large < 6 * small


def test_long_names_are_wrapped_into_their_column() -> None:
    columns = ["base", "background_of_the_picture_bottom"]
    pictures = [[Image.new("RGB", (64, 64)) for _ in columns]]
    wrapped, short = draw_sheet(columns, [("a", "b")], pictures), draw_sheet(["base", "sky"], [("a", "b")], pictures)
    assert wrapped.width == short.width
    assert wrapped.height > short.height


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bases": [], "sources": [1]}, "got 0 and 1"),
        ({"bases": [1, 2], "sources": [1, 2, 3]}, "got 2 and 3"),
        ({"bases": [1], "sources": [1], "scale": 0}, "at least 1"),
        ({"bases": [1], "sources": [1], "max_batch": 0}, "at least 1"),
    ],
)
def test_impossible_sheets_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contact_sheet(Recorder("avatar"), **arguments)
