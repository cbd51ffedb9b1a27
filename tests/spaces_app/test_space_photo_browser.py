"""The tab "Your photograph" in a real browser: an upload, its face, what the model makes of it, a change, the file."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the Space needs the extra `space`")
api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install playwright")

from stylefusion_hf import StyleFusionPipeline  # noqa: E402
from stylefusion_hf.imaging import landmarks  # noqa: E402
from stylefusion_hf.spaces_app.mix import SAMPLES  # noqa: E402
from stylefusion_hf.spaces_app.models import Model  # noqa: E402
from tests.browsing import Visit  # noqa: E402
from tests.space_server import serving  # noqa: E402

SIDE, LEFT, TOP = 192, 100, 60
# Five points whose square is where the face lies in `portrait`.
POINTS = np.array([[0.375, 0.4765], [0.625, 0.4765], [0.5, 0.6], [0.41, 0.7115], [0.59, 0.7115]]) * SIDE + [LEFT, TOP]


def find(image: Image.Image) -> list[np.ndarray]:
    """A detector that knows where the face is, and that a dark picture has none."""
    return [POINTS] if np.asarray(image).mean() > 30 else []


def portrait() -> Image.Image:
    """An avatar in a wide photograph."""
    picture = Image.new("RGB", (420, 300), (120, 150, 180))
    with Image.open(SAMPLES[0]) as avatar:
        picture.paste(avatar.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), (LEFT, TOP))
    return picture


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(landmarks.DETECTORS, "mtcnn", f"{__name__}:find")
        with serving([Model(StyleFusionPipeline.from_embedded())], tmp_path_factory.mktemp("gradio")) as address:
            yield address


def test_a_photograph_is_read_changed_and_saved(visit: Visit, tmp_path: Path) -> None:
    page = visit.page
    portrait().save(tmp_path / "me.jpg", quality=95)
    visit.open("Your photograph")
    page.locator("#sf-photo-upload input[type=file]").set_input_files(tmp_path / "me.jpg")
    api.expect(page.locator("#sf-photo-note")).to_contain_text("One face in 420 x 300 pixels")
    api.expect(page.locator("#sf-photo-change")).to_be_disabled()
    page.locator("#sf-photo-steps input[type=range]").fill("10")
    page.locator("#sf-photo-read").click()
    api.expect(page.locator("#sf-photo-seen img")).to_have_count(2)
    api.expect(page.locator("#sf-photo-seen")).to_contain_text("% of this face")

    page.locator("#sf-photo-seed-5 input").fill("7")
    page.locator("#sf-photo-change").click()
    view = page.locator("#sf-photo-view")
    api.expect(view.locator(".sf-caption")).to_contain_text("Hair 7")
    view.locator(".sf-wipe").fill("20")
    assert "80%" in view.locator(".sf-photo-before").evaluate("image => image.style.clipPath")
    link = page.locator("#sf-photo-files a[href*='me-edited.jpg']").first
    edited = Image.open(io.BytesIO(page.request.get(link.get_attribute("href")).body()))
    assert edited.format == "JPEG" and edited.size == (420, 300)
    moved = np.abs(np.asarray(edited, dtype=int) - np.asarray(Image.open(tmp_path / "me.jpg"))).max(axis=-1)
    assert moved[TOP : TOP + SIDE, LEFT : LEFT + SIDE].max() > 40 > 10 > moved[:, : LEFT - 16].max()
    if folder := os.environ.get("STYLEFUSION_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "space-photo.png", full_page=True)

    # Another photograph closes what followed from the first; one without a face is said to have none.
    Image.new("RGB", (64, 64)).save(tmp_path / "dark.png")
    page.locator("#sf-photo-upload").get_by_label("Clear").or_(page.locator("#sf-photo-upload button")).first.click()
    api.expect(page.locator("#sf-photo-view")).to_be_hidden()
    page.locator("#sf-photo-upload input[type=file]").set_input_files(tmp_path / "dark.png")
    api.expect(page.get_by_text("No face was found in the photograph")).to_be_visible()
    api.expect(page.locator("#sf-photo-read")).to_be_disabled()
