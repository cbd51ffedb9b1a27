"""The Space, measured: a dial's turn in a browser, visitors at once, memory.

    python -m benchmarks.space                      # a local server with the embedded model, and chromium
    python -m benchmarks.space --model faces        # six minutes with faces of 1024 px
    python -m benchmarks.space --turns 100 --visitors 20 --renders 500 --json space.json

Wants the extra `space`, playwright and chromium. A turn is timed in the page, from the input event to the moment when
the new picture is in the document; the requests of visitors from sending to having the PNG's bytes. Figures are
printed as they come: of each part as many turns, requests and pictures as --seconds allow. Beside times, which say
little on a machine with other work, stands the processor time that the server spent.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# The first new picture, a preview where the model has any, and the full one, which is a PNG.
TURN = """([selector, value, whole]) => new Promise(done => {
    const picture = document.querySelector("#sf-compose-stage .sf-picture"), before = picture.src;
    const input = document.querySelector(selector), begun = performance.now();
    let first = null;
    new MutationObserver((_, observer) => {
        if (picture.src === before) return;
        first ??= performance.now() - begun;
        if (whole && !picture.src.startsWith("data:image/png")) return;
        observer.disconnect();
        done([first, performance.now() - begun]);
    }).observe(picture, { attributes: true });
    if (value === null) return input.click();
    input.value = value;
    input.dispatchEvent(new Event("input", { bubbles: true }));
})"""
REST = 400  # ms from a preview until the page asks for the full picture, as in stage.js
PATIENCE = 300  # seconds that a client waits for an answer
PAUSE = 100  # ms between turns of a dial that is being turned
IDLE = 0.25  # of a core: what a server that draws nothing may use
WARM_UP = 2  # turns before those that count
RESTED = 3  # one turn in so many waits for the full picture and for what follows it


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a folder or a Hub id (default: the embedded model)")
    parser.add_argument("--turns", type=int, default=60, help="of each dial, at most; 0 leaves them out")
    parser.add_argument("--visitors", type=int, default=20, help="at once; 0 leaves them out")
    parser.add_argument("--requests", type=int, default=10, help="of each visitor, at most")
    parser.add_argument("--renders", type=int, default=500, help="for the memory, at most; 0 leaves it out")
    parser.add_argument("--seconds", type=float, default=60, help="that each part of the measurement takes at most")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args(argv)

    found: dict[str, Any] = {}

    def tell(name: str, value: Any) -> None:
        found[name] = value
        print(f"{name}: {value}", flush=True)

    tell("cores", os.cpu_count())
    tell("load before", os.getloadavg()[0])
    begun = time.perf_counter()
    with serving(args.model) as (url, process):
        tell("seconds from the start until it answers and is idle", round(time.perf_counter() - begun, 1))
        tell("of them, processor time", round(cpu_seconds(process), 1))
        if args.turns:
            in_browser(url, args.turns, args.seconds, process, tell)
        if args.visitors:
            visitors(url, args.visitors, args.requests, args.seconds, process, tell)
        if args.renders:
            memory(url, process, args.renders, args.seconds, tell)
    tell("load after", os.getloadavg()[0])
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


@contextmanager
def serving(model: str | None) -> Iterator[tuple[str, int]]:
    """The address of `stylefusion space` in a process of its own, and that process."""
    import httpx

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "stylefusion_hf.cli", "space", "--port", str(port)]
    command += ["--model", model] if model else []
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            command,
            env={**os.environ, "GRADIO_TEMP_DIR": folder},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        url = f"http://127.0.0.1:{port}"
        try:
            for _ in range(3000):
                try:
                    httpx.get(url)
                    break
                except httpx.TransportError:
                    if process.poll() is not None:
                        raise RuntimeError(f"{' '.join(command)} has ended: run it by hand") from None
                    time.sleep(0.2)
            until_idle(process.pid)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait()


def cpu_seconds(process: int) -> float:
    """Processor time of a process and its threads, on Linux."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def until_idle(process: int, patience: float = 600.0) -> None:
    """Wait until the server has prepared what its first visitors see, and draws nothing."""
    begun = time.perf_counter()
    before, at = cpu_seconds(process), begun
    while time.perf_counter() - begun < patience:
        time.sleep(0.6)
        now, now_at = cpu_seconds(process), time.perf_counter()
        if now - before < IDLE * (now_at - at):
            return
        before, at = now, now_at


def timed(job: Callable[[int], Any], count: int, seconds: float) -> list[float]:
    """Milliseconds of job(0), job(1), ..., of at most `count` of them, begun within these seconds."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < count and time.perf_counter() < end:
        begun = time.perf_counter()
        job(len(times))
        times.append(1e3 * (time.perf_counter() - begun))
    return times


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Median and 95th percentile, in milliseconds, and of how many."""
    p95 = statistics.quantiles(times, n=20, method="inclusive")[-1] if len(times) > 1 else times[0]
    return {"median ms": round(statistics.median(times)), "p95 ms": round(p95), "of": len(times)}


def in_browser(url: str, turns: int, seconds: float, process: int, tell: Callable[[str, Any], None]) -> None:
    """Time turns of a seed, a strength and psi in the tab Compose, and clicks of buttons."""
    from playwright.sync_api import sync_playwright

    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    controls: dict[str, tuple[str, Callable[[int], float] | None]] = {
        "seed": ("#sf-dial-0 .sf-seed input", lambda i: 100 + i),
        "strength": ("#sf-dial-0 .sf-strength input[type=range]", lambda i: 0.1 + 0.8 * (i % 40) / 40),
        "psi": ("#sf-psi input[type=range]", lambda i: 0.3 + (i % 50) / 100),
        "shuffle": ("#sf-dial-0 .sf-buttons button", None),
        "surprise": ("#sf-surprise", None),
        "undo": ("#sf-undo", None),
    }
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(300_000)
        page.goto(url)
        page.wait_for_function(
            "document.querySelector('#sf-compose-stage .sf-picture')?.src.startsWith('data:image/png')"
        )
        page.wait_for_timeout(2000)

        def run(selector: str, value: Callable[[int], float] | None, count: int, whole: bool) -> list[Any]:
            """Return [ms to the first picture, ms to the last one, the server's CPU ms] of turns."""
            found, end = [], time.perf_counter() + seconds / 2
            for i in range(-WARM_UP, count):
                if time.perf_counter() > end and len(found) > WARM_UP + 1:
                    break
                begun = cpu_seconds(process)
                first, last = page.evaluate(TURN, [selector, str(value(i)) if value else None, whole])
                page.wait_for_timeout(PAUSE)
                if whole:
                    until_idle(process)  # thumbnails and candidates follow the full picture
                found.append([first, last, 1e3 * (cpu_seconds(process) - begun)])
            until_idle(process)
            return found[WARM_UP:]

        for name, (selector, value) in controls.items():
            times = run(selector, value, turns, whole=False)
            spent = {"server CPU ms": round(statistics.median(each[2] for each in times))}
            tell(
                f"first picture after a {name} that is being turned", percentiles([each[0] for each in times]) | spent
            )
        for name in ("seed", "surprise"):
            times = run(*controls[name], max(turns // RESTED, 2), whole=True)
            spent = {"server CPU ms, with all that follows": round(statistics.median(each[2] for each in times))}
            tell(f"first picture after a {name}, from rest", percentiles([each[0] for each in times]))
            tell(f"the same, until all is drawn, {name}", percentiles([last for _, last, _ in times]) | spent)
            # A model without previews sends one picture: it is both the first and the last.
            rested = [last - first - REST for first, last, _ in times if last - first > REST]
            if rested:
                tell(f"full picture from {REST} ms after the preview, {name}", percentiles(rested))
        browser.close()


def visitors(
    url: str, count: int, requests: int, seconds: float, process: int, tell: Callable[[str, Any], None]
) -> None:
    """Time so many clients at once, each with pictures of its own."""
    from gradio_client import Client

    with tempfile.TemporaryDirectory() as folder:
        kwargs = {"timeout": PATIENCE}
        clients = [Client(url, verbose=False, download_files=folder, httpx_kwargs=kwargs) for _ in range(count)]

        def visit(number: int) -> list[float]:
            def ask(i: int) -> None:
                _, made = clients[number].predict(base=1000 * number + i, api_name="/compose")
                if made["base"] != 1000 * number + i:
                    raise AssertionError("a visitor got another's picture")

            return timed(ask, requests, seconds)

        begun, spent = time.perf_counter(), cpu_seconds(process)
        with ThreadPoolExecutor(count) as pool:
            times = [one for each in pool.map(visit, range(count)) for one in each]
        taken = time.perf_counter() - begun
    rate = {
        "pictures a second": round(len(times) / taken, 2),
        "server CPU ms per picture": round(1e3 * (cpu_seconds(process) - spent) / len(times)),
        "MB of the server": resident(process),
    }
    tell(f"{count} visitors at once", percentiles(times) | rate)


def memory(url: str, process: int, renders: int, seconds: float, tell: Callable[[str, Any], None]) -> None:
    """Watch the server's resident memory over pictures of different seeds, through the server."""
    from gradio_client import Client

    client = Client(url, verbose=False, download_files=False, httpx_kwargs={"timeout": PATIENCE})

    def draw(i: int) -> None:
        client.predict(base=50_000 + i, regions={}, api_name="/compose")

    parts = 6  # the first warms up
    sizes, done = [], 0
    for part in range(parts):
        start = done
        done += len(timed(lambda i, start=start: draw(start + i), renders // (parts - 1) or 1, seconds / parts))  # type: ignore[misc]
        if part:
            sizes.append(resident(process))
    tell(f"MB over {done} pictures, at equal intervals", sizes)


def resident(process: int) -> float:
    """MB of a process, on Linux."""
    return round(int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


if __name__ == "__main__":
    main()
