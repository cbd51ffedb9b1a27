"""The page of `stylefusion regions label`: paint strokes on generated samples, and see what is learned from them.

A server from the standard library and one HTML file: nothing to install, and no WebGL, which Gradio's image editor
needs. It serves one user on this machine; requests that change something are limited in size and run one at a time.
"""

from __future__ import annotations

import base64
import io
import ipaddress
import json
import math
import os
import socket
import threading
import webbrowser
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stylefusion_hf.evaluation.pairs import style_codes
from stylefusion_hf.imaging.images import open_image
from stylefusion_hf.models.style_generator import StyleGenerator
from stylefusion_hf.regions.few_shot import PaintFolder, learn, predict_labels
from stylefusion_hf.regions.folders import write_found
from stylefusion_hf.regions.sheet import region_colours, tinted

PAGE = Path(__file__).with_name("label_page.html")
OWN_HOSTS = ("127.0.0.1", "localhost", "::1")
ALL_HOSTS = ("0.0.0.0", "::", "")


class PaintSession:
    """The actions of the page, one at a time.

    Args:
        generator: the frozen generator.
        paint: the samples and their paint.
        out: the folder of regions that `save` writes.
        samples, steps, seed, resolution: settings of the distillation.
    """

    def __init__(
        self,
        generator: StyleGenerator,
        paint: PaintFolder,
        out: Path,
        samples: int | None,
        steps: int | None,
        seed: int,
        resolution: int | None = None,
    ):
        self.generator, self.paint, self.out = generator, paint, out
        self.samples, self.steps, self.seed, self.resolution = samples, steps, seed, resolution
        self.colours = region_colours(len(paint.regions))
        self.size: tuple[int, int] = generator.picture_size
        self.lock = threading.Lock()

    def about(self) -> dict[str, Any]:
        """Return the page's initial content: regions with colors, and each sample's picture and paint.

        `size` is the pictures' height.
        """
        hexes = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b in self.colours]
        samples = [
            {
                "seed": seed,
                "image": data_url(open_image(self.paint.image_file(seed))),
                "labels": base64.b64encode(self.paint.labels(seed).tobytes()).decode(),
            }
            for seed in self.paint.seeds
        ]
        height, width = self.size
        return {"size": height, "width": width, "regions": self.paint.regions, "colours": hexes, "samples": samples}

    def keep(self, seed: int, labels: bytes) -> dict[str, Any]:
        """Save a sample's paint, one byte per pixel, row by row; ValueError for an unknown sample, size or value."""
        if seed not in self.paint.seeds:
            raise ValueError(f"there is no sample of seed {seed}")
        found = np.frombuffer(labels, np.uint8)
        if found.size != math.prod(self.size):
            raise ValueError(f"expected {math.prod(self.size)} labels, got {found.size}")
        if ((found >= len(self.paint.regions)) & (found != 255)).any():
            raise ValueError(f"labels must be 0 to {len(self.paint.regions) - 1}, or 255")
        self.paint.paint(seed, found.reshape(self.size).copy())
        return {"said": ""}

    def learn(self) -> dict[str, Any]:
        """Learn from the painted samples; return every sample tinted by its predicted regions, and a summary."""
        found = learn(self.generator, self.paint, progress=False)
        maps = predict_labels(self.generator, found.labeller, style_codes(self.generator, self.paint.seeds)).numpy()
        pictures = []
        for seed, labels in zip(self.paint.seeds, maps, strict=True):
            pictures.append(data_url(tinted(open_image(self.paint.image_file(seed)), labels, self.colours)))
        held = found.report.get("IoU on painted pictures left out")
        said = f"Learned from {found.report['places']} places on {len(found.report['painted'])} samples."
        if held:
            said += f" On painted samples that were left out: IoU {held['mean']:.2f}."
        return {"said": said, "pictures": pictures}

    def save(self) -> dict[str, Any]:
        """Learn from the painted samples, distill the result and write the folder of regions."""
        found = learn(self.generator, self.paint, progress=False)
        write_found(
            self.out,
            self.generator,
            found,
            self.samples,
            self.steps,
            self.seed,
            progress=False,
            resolution=self.resolution,
        )
        return {"said": f"Saved. The tree: {found.tree}"}


def data_url(image: Image.Image) -> str:
    """Encode a picture as a data URL."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


class Handler(BaseHTTPRequestHandler):
    """Handles GET / and /about; POST /paint/SEED, /learn and /save."""

    server: Server

    def do_GET(self) -> None:
        if not self._names_this_server():
            return
        if self.path == "/":
            self._send(200, PAGE.read_bytes(), "text/html; charset=utf-8")
        elif self.path == "/about":
            self._do(self.server.work.about)
        else:
            self._send(404, b"page not found", "text/plain")

    def do_POST(self) -> None:
        if not self._names_this_server():
            return
        work, length = self.server.work, self.headers.get("Content-Length", "0")
        # Pages of other sites can send requests here, but not with this header.
        if (
            self.headers.get("X-Stylefusion") != "label"
            or not length.isdecimal()
            or int(length) > math.prod(work.size)
        ):
            self._send(400, b"not a request of this page", "text/plain")
            return
        body = self.rfile.read(int(length))
        if self.path.startswith("/paint/") and self.path[7:].isdecimal() and len(self.path) < 20:
            self._do(lambda: work.keep(int(self.path[7:]), body))
        elif self.path in ("/learn", "/save"):
            self._do(work.learn if self.path == "/learn" else work.save)
        else:
            self._send(404, b"unknown action", "text/plain")

    def _names_this_server(self) -> bool:
        """Return whether a request names this server; answer it with an error if not.

        Another site can point its own name to this address (DNS rebinding), which gives its pages the same origin as
        this page in the browser; but their requests still carry that name.
        """
        hosts, origins = self.headers.get_all("Host", []), self.headers.get_all("Origin", [])
        named = len(hosts) == 1 and self.server.serves(hosts[0])
        if self.command == "POST" and origins:
            named = named and len(origins) == 1 and self.server.serves(origins[0].removeprefix("http://"))
        if not named:
            self._send(403, b"this request names another server: open the address that was printed", "text/plain")
        return named

    def _do(self, action: Any) -> None:
        try:
            with self.server.work.lock:
                found, status = action(), 200
        except (ValueError, OSError) as error:
            found, status = {"said": str(error)}, 422
        self._send(status, json.dumps(found).encode(), "application/json")

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the page reports what happens."""


class Server(ThreadingHTTPServer):
    """Serves the page for one session."""

    daemon_threads = True

    def __init__(self, host: str, port: int, work: PaintSession):
        self.work, self.host = work, host
        super().__init__((host, port), Handler)

    def serves(self, name: str) -> bool:
        """Return whether a host name with a port, as sent by a browser, is this server's.

        When serving on all addresses (0.0.0.0), these are all numeric addresses, which no other site can use as its
        name, and the machine's name.
        """
        host, _, port = name.lower().rpartition(":")
        if not port.isdecimal() or host.startswith("[") != host.endswith("]"):  # no port: HTTP's default
            host, port = name.lower(), "80"
        host = host.strip("[]")
        if len(port) > 5 or int(port) != self.server_address[1]:
            return False
        if host in OWN_HOSTS or host == self.host.lower():
            return True
        return self.host in ALL_HOSTS and (_is_address(host) or host == socket.gethostname().lower())


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def label(
    generator: StyleGenerator,
    regions: Sequence[str],
    count: int,
    out: str | os.PathLike[str],
    samples: int | None,
    steps: int | None,
    seed: int,
    host: str = "127.0.0.1",
    port: int = 7861,
    open_browser: bool = True,
    resolution: int | None = None,
) -> None:
    """Serve the page until interrupted, with `count` samples whose paint is kept in out/painted.

    Raises:
        ValueError: as in `PaintFolder.create`.
        OSError: the port is not available; names it.
    """
    out = Path(out)
    paint = PaintFolder.create(out / "painted", generator, regions, count)
    try:
        server = Server(host, port, PaintSession(generator, paint, out, samples, steps, seed, resolution))
    except OSError as error:
        raise OSError(f"--port {port} of {host} is not available: {error.strerror or error}") from error
    address = f"http://{host}:{server.server_address[1]}"
    print(f"paint on {address} (press Ctrl-C to stop; paint is kept in {out / 'painted'})", flush=True)
    if host not in OWN_HOSTS:
        print("everyone who can reach this address can paint", flush=True)
    if open_browser:
        webbrowser.open(address)
    with server:
        server.serve_forever()
