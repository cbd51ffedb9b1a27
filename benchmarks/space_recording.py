"""A short recording of the Space as an animated WebP, made by driving the page: for the README and the guide.

    python -m benchmarks.space_recording docs/images/space.webp --model faces --stills docs/images
    python -m benchmarks.space_recording space.webp --model my-model --url http://127.0.0.1:7860

Wants the extra `space`, playwright and chromium. Frames are screenshots, each shown for as long as its step says. With
--stills, pictures of the tabs Compose and Edit are written too.
"""

from __future__ import annotations

import argparse
import io
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.space import serving

SIZE = (1280, 860)  # of the browser's window
MOST = 10**6  # bytes of the file
SETTLE = 2500  # ms until thumbnails and candidates have followed a full picture
QUALITY = 85  # of a JPEG
PICTURE = "document.querySelector('#sf-compose-stage .sf-picture')?.src"
ROW = "document.querySelector('#sf-looks .sf-candidate img')?.src"


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="ends in .webp")
    parser.add_argument("--model", help="a folder or a Hub id (default: the embedded model)")
    parser.add_argument("--url", help="a Space that runs already (default: one is started)")
    parser.add_argument("--stills", type=Path, help="a folder for space-compose.jpg and space-edit.jpg")
    parser.add_argument("--width", type=int, default=800, help="of the recording, in pixels")
    args = parser.parse_args(argv)
    with address(args.url, args.model) as url:
        frames = list(record(url, args.stills))
    write(args.file, frames, args.width)
    print(f"{args.file}: {len(frames)} frames, {args.file.stat().st_size:,} bytes")


@contextmanager
def address(url: str | None, model: str | None) -> Iterator[str]:
    """Yield the address of the Space that was given, or of one that is started for the recording."""
    if url is not None:
        yield url
        return
    with serving(model) as (started, _):
        yield started


def record(url: str, stills: Path | None = None) -> Iterator[tuple[bytes, int]]:
    """Yield screenshots (PNG) and how long each is shown, in milliseconds; write some as JPEG into `stills`."""
    from playwright.sync_api import sync_playwright

    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as driver:
        page = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"]).new_page(
            viewport={"width": SIZE[0], "height": SIZE[1]}
        )
        page.set_default_timeout(120_000)
        page.goto(url)
        page.wait_for_function(f"{PICTURE}?.startsWith('data:image/png')")
        page.wait_for_timeout(SETTLE)
        yield page.screenshot(), 1200
        if stills is not None:
            page.locator("#sf-compose-stage .sf-frame").hover(position={"x": 230, "y": 60})
            page.screenshot(path=stills / "space-compose.jpg", quality=QUALITY)
            page.mouse.move(0, 0)

        def act(action: Callable[[], Any], changed: str, shown: int) -> tuple[bytes, int]:
            before = page.evaluate(changed)
            action()
            page.wait_for_function(f"before => {changed} !== before", arg=before)
            settle()
            return page.screenshot(), shown

        def settle() -> None:
            """Wait for the full picture, and for what follows it."""
            page.wait_for_function(f"{PICTURE}?.startsWith('data:image/png')")
            page.wait_for_timeout(SETTLE)

        candidates = page.locator("#sf-looks .sf-candidate")
        for number in (1, 5):
            yield act(candidates.nth(number).click, PICTURE, 900)
        for number in (3, 2):
            yield act(page.locator("#sf-looks .sf-place").nth(number).click, ROW, 700)
            yield act(candidates.nth(4).click, PICTURE, 900)
        yield act(page.locator("#sf-surprise").click, PICTURE, 1200)
        yield act(lambda: page.keyboard.press("Control+z"), PICTURE, 1200)
        page.get_by_role("tab", name="Edit").click()
        strips = page.locator("#sf-strips .sf-strip")
        strips.first.wait_for()
        wait_for_stages(page, "before", "local", "global")
        yield page.screenshot(), 1500
        if stills is not None:
            page.screenshot(path=stills / "space-edit.jpg", quality=QUALITY, full_page=True)


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
