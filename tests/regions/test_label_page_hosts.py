"""The label page answers requests that name it, and no others: a site whose name points here is another site."""

import http.client
import threading
from collections.abc import Iterator

import pytest

from stylefusion_hf.regions import label_page
from stylefusion_hf.regions.few_shot import PaintFolder
from tests.tiny import tiny_generator


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> label_page.PaintSession:
    out, generator = tmp_path_factory.mktemp("out"), tiny_generator(use_noise=False)
    paint = PaintFolder.create(out / "painted", generator, ["sky", "car"], 1)
    return label_page.PaintSession(generator, paint, out, samples=16, steps=2, seed=0)


@pytest.fixture
def server(work: label_page.PaintSession) -> Iterator[label_page.Server]:
    with label_page.Server("127.0.0.1", 0, work) as found:
        thread = threading.Thread(target=found.serve_forever)
        thread.start()
        yield found
        found.shutdown()
        thread.join()


def ask(server: label_page.Server, method: str, path: str, headers: list[tuple[str, str]]) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    body = bytes(1024) if method == "POST" and path.startswith("/paint") else b""
    for name, value in [*headers, ("X-Stylefusion", "label"), ("Content-Length", str(len(body)))]:
        connection.putheader(name, value)
    connection.endheaders(body)
    return connection.getresponse().status


ROUTES = [("GET", "/"), ("GET", "/about"), ("GET", "/elsewhere"), ("POST", "/paint/0"), ("POST", "/learn"),
          ("POST", "/save"), ("POST", "/elsewhere")]  # fmt: skip


def test_requests_that_name_another_server_are_refused(server: label_page.Server) -> None:
    port = server.server_address[1]
    for method, path in ROUTES:
        for host in (f"evil.example:{port}", "evil.example", "127.0.0.1", f"127.0.0.1:{port + 1}", f"10.0.0.1:{port}",
                     f"127.0.0.1.evil.example:{port}", f"localhost:{port}:{port}", f"evil@localhost:{port}", "",
                     f"[::1:{port}", f"localhost.:{port}", f"localhost:{'9' * 5000}"):  # fmt: skip
            assert ask(server, method, path, [("Host", host)]) == 403, (method, path, host)
        assert ask(server, method, path, []) == 403
        own = ("Host", f"127.0.0.1:{port}")
        assert ask(server, method, path, [own, ("Host", "evil.example")]) == 403
        if method == "POST":
            for origin in ("http://evil.example", "null", f"https://127.0.0.1:{port}", f"http://evil.example:{port}"):
                assert ask(server, method, path, [own, ("Origin", origin)]) == 403, (path, origin)
    assert server.work.paint.painted() == []


def test_requests_that_name_this_one_are_answered(server: label_page.Server) -> None:
    port = server.server_address[1]
    for host in ("127.0.0.1", "localhost", "LOCALHOST", "[::1]"):
        assert ask(server, "GET", "/about", [("Host", f"{host}:{port}")]) == 200
        headers = [("Host", f"{host}:{port}"), ("Origin", f"http://{host}:{port}")]
        assert ask(server, "POST", "/paint/0", headers) == 200, host
    assert ask(server, "POST", "/paint/0", [("Host", f"localhost:{port}")]) == 200  # curl sends no Origin


@pytest.mark.parametrize(
    ("told", "name", "answered"),
    [
        ("0.0.0.0", "192.168.1.7", True),
        ("0.0.0.0", "[fe80::1]", True),
        ("0.0.0.0", "evil.example", False),
        ("192.168.1.7", "192.168.1.7", True),
        ("192.168.1.7", "192.168.1.8", False),
        ("box.example", "BOX.example", True),
        ("box.example", "evil.example", False),
    ],
)
def test_the_address_that_it_serves_on_is_its_name(
    work: label_page.PaintSession, told: str, name: str, answered: bool
) -> None:
    with label_page.Server("127.0.0.1", 0, work) as server:
        server.host = told  # as if it listened there
        port = server.server_address[1]
        assert server.serves(f"{name}:{port}") is answered
        assert not server.serves(f"{name}:{port + 1}")
