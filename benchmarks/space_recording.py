"""A short recording of the Space as an animated WebP, made by driving the page: for the README and the guide.

    python -m benchmarks.space_recording docs/images/space.webp --model faces --stills docs/images
    python -m benchmarks.space_recording space.webp --model my-model --url http://127.0.0.1:7860

Wants the extra `space`, playwright and chromium. Frames are screenshots, each shown for as long as its step says. With
--stills, pictures of the tabs Compose, Edit and Mix pictures are written too, and one of the page on a desk and on a
phone, in light and dark.
"""

from __future__ import annotations

import argparse
import base64
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.space import serving

SIZE = (1280, 860)  # of the browser's window
WINDOWS = [(1280, 860), (390, 860)]  # of the stills in light and dark
STEPS = "10"  # of optimization, for a still of the tab Mix pictures
MOST = 10**6  # bytes of the file
SETTLE = 2500  # ms until thumbnails and candidates have followed a full picture
QUALITY = 85  # of a JPEG
PICTURE = "document.querySelector('#sf-compose-stage .sf-picture')?.src"
ROW = "document.querySelector('#sf-looks .sf-candidate img')?.src"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", help="ends in .webp; leave it out for stills alone")
    parser.add_argument("--model", help="a folder or a Hub id (default: the embedded model)")
    parser.add_argument("--url", help="a Space that runs already (default: one is started)")
    parser.add_argument("--stills", type=Path, help="a folder for space-*.jpg: compose, edit, mix, screens")
    parser.add_argument("--width", type=int, default=800, help="of the recording, in pixels")
    args = parser.parse_args(argv)
    if args.file is None and args.stills is None:
        parser.error("give a file for the recording, or --stills")
    with address(args.url, args.model) as url:
        if args.file is not None:
            frames = list(record(url))
            write(args.file, frames, args.width)
            print(f"{args.file}: {len(frames)} frames, {args.file.stat().st_size:,} bytes", flush=True)
        if args.stills is not None:
            for name in draw_stills(url, args.stills):
                print(args.stills / name, flush=True)


@contextmanager
def address(url: str | None, model: str | None) -> Iterator[str]:
    """Yield the address of the Space that was given, or of one that is started for the recording."""
    if url is not None:
        yield url
        return
    with serving(model) as (started, _):
        yield started


@contextmanager
def browsing() -> Iterator[Any]:
    """Yield a browser."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def visit(browser: Any, url: str, size: tuple[int, int] = SIZE, scheme: str = "light") -> Any:
    """Return a page that shows the first full picture, and what follows it."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, has_touch=size[0] < 500
    )
    page = context.new_page()
    page.set_default_timeout(600_000)
    page.goto(url)
    settle(page)
    return page


def settle(page: Any) -> None:
    """Wait for the full picture, and for what follows it."""
    page.wait_for_function(f"{PICTURE}?.startsWith('data:image/png')")
    page.wait_for_timeout(SETTLE)


def record(url: str) -> Iterator[tuple[bytes, int]]:
    """Yield screenshots (PNG) and how long each is shown, in milliseconds."""
    with browsing() as browser:
        page = visit(browser, url)
        yield page.screenshot(), 1200

        def act(action: Callable[[], Any], changed: str, shown: int) -> tuple[bytes, int]:
            before = page.evaluate(changed)
            action()
            page.wait_for_function(f"before => {changed} !== before", arg=before)
            settle(page)
            return page.screenshot(), shown

        candidates = page.locator("#sf-looks .sf-candidate")
        for number in (1, 5):
            yield act(candidates.nth(number).click, PICTURE, 900)
        for number in (3, 2):
            yield act(page.locator("#sf-looks .sf-place").nth(number).click, ROW, 700)
            yield act(candidates.nth(4).click, PICTURE, 900)
        yield act(page.locator("#sf-surprise").click, PICTURE, 1200)
        yield act(lambda: page.keyboard.press("Control+z"), PICTURE, 1200)
        open_edit(page)
        yield page.screenshot(), 1500


def open_edit(page: Any) -> None:
    """Open the tab Edit, and wait for its example and its strips."""
    page.get_by_role("tab", name="Edit").click()
    page.locator("#sf-strips .sf-strip").first.wait_for()
    wait_for_stages(page, "before", "local", "global")


def draw_stills(url: str, folder: Path) -> Iterator[str]:
    """Write pictures of the page into a folder; yield their names."""
    with browsing() as browser:
        page = visit(browser, url)
        page.locator("#sf-compose-stage .sf-frame").hover(position={"x": 230, "y": 60})
        page.screenshot(path=folder / "space-compose.jpg", quality=QUALITY)
        yield "space-compose.jpg"
        uploads = [own_picture(page, number) for number in (0, 2)]  # before other tabs: these are of Compose
        open_edit(page)
        page.screenshot(path=folder / "space-edit.jpg", quality=QUALITY, full_page=True)
        yield "space-edit.jpg"
        open_mix(page, uploads)
        page.screenshot(path=folder / "space-mix.jpg", quality=QUALITY, full_page=True)
        yield "space-mix.jpg"
        page.context.close()

        shots = []
        for size in WINDOWS:
            for scheme in ("light", "dark"):
                page = visit(browser, url, size, scheme)
                shots.append(Image.open(io.BytesIO(page.screenshot())).convert("RGB"))
                page.context.close()
        beside(shots).save(folder / "space-screens.jpg", quality=QUALITY)
        yield "space-screens.jpg"


def own_picture(page: Any, number: int) -> bytes:
    """Return the PNG of one of the page's examples: a picture of the kind that its model draws."""
    if number:  # the page begins with the first
        before = page.evaluate(PICTURE)
        page.locator(".sf-examples [data-example]").nth(number).click()
        page.wait_for_function(f"before => {PICTURE} !== before", arg=before)
    settle(page)
    return base64.b64decode(page.evaluate(PICTURE).partition(",")[2])


def open_mix(page: Any, uploads: Sequence[bytes]) -> None:
    """Open the tab Mix pictures, upload two, and take the last region from the second."""
    page.get_by_role("tab", name="Mix pictures").click()
    for slot, data in zip("ab", uploads, strict=True):
        file = {"name": f"{slot}.png", "mimeType": "image/png", "buffer": data}
        page.locator(f"#sf-picture-{slot} input[type=file]").set_input_files(file)
        page.locator(f"#sf-picture-{slot} img").wait_for()
    page.locator("#sf-steps input[type=range]").fill(STEPS)
    page.locator("#sf-read").click()
    caption = "(document.querySelector('#sf-mix-stage .sf-caption')?.textContent || '')"
    page.wait_for_function(f"{caption}.endsWith('as the model sees it')")
    page.locator("[id^=sf-take-]:visible").last.get_by_label("B").check()
    page.wait_for_function(f"{caption}.endsWith('from B')")


def beside(shots: Sequence[Image.Image], gap: int = 24) -> Image.Image:
    """Return screenshots side by side, of half the size."""
    shots = [shot.reduce(2) for shot in shots]
    size = sum(shot.width for shot in shots) + gap * (len(shots) - 1), max(shot.height for shot in shots)
    sheet = Image.new("RGB", size, "white")
    left = 0
    for shot in shots:
        sheet.paste(shot, (left, 0))
        left += shot.width + gap
    return sheet


def wait_for_stages(page: Any, *names: str) -> None:
    """Wait until these stages of the tab Edit show full pictures."""
    for name in names:
        page.wait_for_function(
            f"document.querySelector('#sf-edit-{name} .sf-picture').src.startsWith('data:image/png')"
        )


def write(path: Path, frames: Sequence[tuple[bytes, int]], width: int) -> None:
    """Write an animated WebP of at most MOST bytes, at the best quality that fits."""
    pictures = [Image.open(io.BytesIO(data)).convert("RGB") for data, _ in frames]
    pictures = [picture.resize((width, round(picture.height * width / picture.width))) for picture in pictures]
    times = [shown for _, shown in frames]
    for quality in (80, 65, 50, 35):
        buffer = io.BytesIO()
        pictures[0].save(
            buffer, "WEBP", save_all=True, append_images=pictures[1:], duration=times, loop=0, quality=quality
        )
        if buffer.tell() <= MOST:
            path.write_bytes(buffer.getvalue())
            return
    raise ValueError(f"the recording has {buffer.tell():,} bytes at the lowest quality: pass a smaller --width")


if __name__ == "__main__":
    main()
