"""Strangers at the Space: files that are not theirs, large and deep requests, HTML, pictures made to cost."""

import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the Space needs the extra `space`")

from gradio_client import Client, handle_file

from stylefusion_hf.spaces_app import bounds, errors, pictures, results, serving, uploads
from stylefusion_hf.spaces_app.models import Model
from stylefusion_hf.spaces_app.settings import Dial, History, Settings
from tests.space_server import serving as served
from tests.tiny import TinyEncoder, tiny_pipeline

PATIENCE = {"timeout": 120}
META = {"_type": "gradio.FileData"}
REFUSED = "uploaded in this session"


@pytest.fixture(scope="module")
def model() -> Model:
    pipe = tiny_pipeline("avatar", segmenter=True)
    pipe.register_to_config(_name_or_path="test/avatar")
    pipe.encoder = TinyEncoder()
    return Model(pipe)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gradio")


@pytest.fixture(scope="module")
def url(model: Model, folder: Path) -> Iterator[str]:
    with served([model], folder) as address:
        yield address


@pytest.fixture
def visitor(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{url}/gradio_api", **PATIENCE) as client:
        yield client


@pytest.fixture(scope="module")
def config(url: str) -> dict[str, Any]:
    return httpx.get(f"{url}/config", **PATIENCE).json()


def picture(size: tuple[int, int] = (48, 48), color: str = "teal", kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, format=kind)
    return buffer.getvalue()


def upload(visitor: httpx.Client, data: bytes, name: str = "a.png") -> str:
    answer = visitor.post("/upload", files={"files": (name, data)})
    assert answer.status_code == 200, answer.text
    return answer.json()[0]


def invert(visitor: httpx.Client, given: Any) -> str:
    """The last event of an inversion, as text."""
    named = visitor.post("/call/invert", json={"data": [given, 0, "test/avatar"]})
    return visitor.get(f"/call/invert/{named.json()['event_id']}").text


def event(visitor: httpx.Client, number: int, data: list[Any], session: str) -> dict[str, Any]:
    """What an event of the page answers."""
    body = {"data": data, "fn_index": number, "session_hash": session}
    assert visitor.post("/queue/join", json=body).status_code == 200
    with visitor.stream("GET", "/queue/data", params={"session_hash": session}) as lines:
        line = next(line for line in lines.iter_lines() if "process_completed" in line)
    return json.loads(line[len("data: ") :])["output"]


# ----------------------------------------------------------------------------------------------------
# Files.


def test_only_files_of_the_own_session_are_opened(url: str, visitor: httpx.Client, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture())
    own = upload(visitor, picture())
    assert "event: complete" in invert(visitor, {"path": own, "meta": META})
    reader, writer = os.pipe()
    given: list[Any] = [
        {"path": str(secret)},
        {"path": str(secret), "meta": META},
        {"path": str(secret), "url": "x", "orig_name": "a.png"},
        {"path": own},  # without meta, nothing is a file
        {"path": own, "meta": META, "is_stream": True},
        {"path": own, "meta": META, "url": "data:image/png;base64,AAAA"},
        {"path": f"/proc/self/fd/{reader}"},
        {"path": "/no/such/place.png"},
        {"path": f"{own}/../../../../../{secret}", "meta": META},
        {"path": "http://127.0.0.1:9/x.png", "meta": META},
        {"path": "https://example.com/x.png"},
        {"url": "data:image/png;base64,AAAA"},
        {"url": "http://127.0.0.1:9/x.png"},
        {"path": "data:image/png;base64,AAAA", "meta": META},
        {"path": "a\0b", "meta": META},
        {"path": None},
        {"path": ["/x"]},
        [{"path": str(secret)}],
        [[{"path": own, "meta": META}]],
        str(secret),
        "data:image/png;base64,AAAA",
        7,
    ]
    for each in given:
        started = time.monotonic()
        answer = invert(visitor, each)
        assert "event: error" in answer, each
        error = json.loads(answer.split("data: ", 1)[1])["error"]
        assert error and "\n" not in error and len(error) < 200, (each, error)
        assert "secret" not in error and time.monotonic() - started < 30
    messages = {invert(visitor, {"path": place}) for place in (str(secret), "/no/such/place.png", "/etc", own)}
    assert len({text.split("data: ", 1)[1] for text in messages}) == 1  # the same whatever is there
    os.close(reader), os.close(writer)


def test_every_slot_and_json_field_refuses_files(
    config: dict[str, Any], visitor: httpx.Client, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    hostile = {"path": str(tmp_path / "secret.png"), "meta": META}
    kinds = {component["id"]: component["type"] for component in config["components"]}
    tried = 0
    for dependency in config["dependencies"]:
        for i, block in enumerate(dependency["inputs"]):
            if kinds[block] in ("image", "json", "uploadbutton") and dependency["queue"] is not False:
                for given in ({"path": hostile["path"]}, [hostile], {"regions": {"hair": [hostile]}}):
                    data: list[Any] = [None] * len(dependency["inputs"])
                    data[i] = given
                    output = event(visitor, dependency["id"], data, f"slot-{tried}")
                    assert REFUSED in output["error"], (dependency["id"], i)
                    tried += 1
    assert tried > 30


def test_a_link_or_a_pipe_in_the_upload_folder_is_not_opened(
    visitor: httpx.Client, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "secret.png").write_bytes(picture())
    own = Path(upload(visitor, picture(color="red"), "swapped.png"))
    own.unlink()
    own.symlink_to(tmp_path / "secret.png")
    assert REFUSED in invert(visitor, {"path": str(own), "meta": META})
    own.unlink()
    os.mkfifo(own)
    started = time.monotonic()
    assert REFUSED in invert(visitor, {"path": str(own), "meta": META})
    assert time.monotonic() - started < 30
    own.unlink()
    assert "no longer here" in invert(visitor, {"path": str(own), "meta": META})
    (folder / "planted.png").write_bytes(picture())  # in the folder, but nobody uploaded it
    assert REFUSED in invert(visitor, {"path": str(folder / "planted.png"), "meta": META})


def test_an_upload_is_its_sessions_alone(url: str, visitor: httpx.Client, tmp_path: Path) -> None:
    path = upload(visitor, picture(color="navy"), "mine.png")
    assert visitor.get(f"/file={path}").status_code == 200
    with httpx.Client(base_url=f"{url}/gradio_api", **PATIENCE) as other:
        other.get(f"{url}/config")
        for stranger in (other, httpx.Client(base_url=f"{url}/gradio_api", **PATIENCE)):
            assert REFUSED in invert(stranger, {"path": path, "meta": META})
            for place in (path, path.replace("/mine", "/./mine"), f"//{path}", path + "/../mine.png"):
                assert stranger.get(f"/file={place}").status_code in (403, 404), place
        assert upload(other, picture(color="navy"), "mine.png") == path  # the same place: both have it now
        assert "event: complete" in invert(other, {"path": path, "meta": META})
    (tmp_path / "me.png").write_bytes(picture(color="green"))
    clients = [Client(url, verbose=False, download_files=str(tmp_path), httpx_kwargs=dict(PATIENCE)) for _ in "ab"]
    assert len({client.cookies["stylefusion-session"] for client in clients}) == 2
    for client in clients:  # gradio's client keeps the cookie
        made = client.predict(picture=handle_file(str(tmp_path / "me.png")), api_name="/invert")
        assert made[1]["base"]["space"] == "w+"


def test_addresses_of_gradio_that_the_page_does_not_use_are_closed(visitor: httpx.Client) -> None:
    for place in ("/deep_link?session_hash=a", "/proxy=http://a.hf.space/x", "/file=http://example.com/x.png",
                  "/file=https://example.com/x.png", "/file/http://example.com/x"):  # fmt: skip
        assert visitor.get(place).status_code in (403, 404), place
    for place in ("/component_server", "/process_recording", "/vibe-edit", "/vibe-code"):
        assert visitor.post(place, json={}).status_code == 404, place


def test_what_a_session_keeps_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(uploads, "MAX_FILES", 3)
    monkeypatch.setattr(uploads, "MAX_STORED", 1000)
    kept = uploads.Uploads()

    def add(session: str, name: str, size: int = 10) -> str:
        (tmp_path / name).write_bytes(bytes(size))
        kept.add(session, str(tmp_path / name))
        return str(tmp_path / name)

    paths = [add("a", f"{i}.png") for i in range(5)]
    assert [kept.owns("a", path) for path in paths] == [False, False, True, True, True]
    assert [os.path.exists(path) for path in paths] == [False, False, True, True, True]
    shared = add("b", "4.png")
    large = add("b", "large.png", 990)
    assert not any(kept.owns("a", path) for path in paths)  # the oldest session's went
    assert os.path.exists(shared) and kept.check("b", large) == os.path.realpath(large)
    old = tmp_path / "tmpabc"
    old.write_bytes(b"half")
    os.utime(old, (1, 1))
    uploads.remove_unfinished()
    assert not old.exists()
    kept.close()
    assert list(tmp_path.iterdir()) == []


# ----------------------------------------------------------------------------------------------------
# Requests.


def test_requests_are_bounded_before_they_are_read(url: str, visitor: httpx.Client) -> None:
    head = b'{"fn_index": 0, "session_hash": "a", "data": ['
    for status, body in (
        (413, head + b"[]," * 10_000_000 + b"[]]}"),
        (413, head + b'"' + b"a" * (2 << 20) + b'"]}'),
        (413, head + b"[]," * 30_000 + b"[]]}"),
        (413, head + b"[" * 400 + b"]" * 400 + b"]}"),
        (413, head + b"[" * 9000 + b"]" * 9000 + b"]}"),
        (413, head + b'{"a":' * 50 + b"1" + b"}" * 50 + b"]}"),
        (400, head),
        (400, b'{"session_hash": "' + b"a" * 1000 + b'", "data": []}'),
        (400, b'{"session_hash": {"a": 1}, "data": []}'),
        (422, b'{"session_hash": "a", "data": "' + b"x" * 1000 + b'"}'),
    ):
        started = time.monotonic()
        answer = visitor.post("/queue/join", content=body, headers={"content-type": "application/json"})
        assert answer.status_code == status, (body[:80], answer.text[:200])
        assert len(answer.content) < 200 and "\n" not in answer.json()["detail"]
        assert time.monotonic() - started < 20

    def chunks() -> Iterator[bytes]:
        yield b"[" * 100

    assert visitor.post("/queue/join", content=chunks()).status_code == 411
    answer = visitor.post("/upload", files=[("files", ("a.png", bytes(2 << 20))) for _ in range(8)])
    assert answer.status_code == 413 and "10 MB" in answer.text
    assert visitor.get(f"{url}/config").status_code == 200


def test_a_long_text_costs_no_more_than_reading_it(visitor: httpx.Client) -> None:
    for text in ("/" * 60_000, "/a" * 30_000, "~/" + "a/" * 30_000, "'" * 60_000, "\x1b[31m" * 10_000):
        started = time.monotonic()
        call = {"data": [1, {text: 1}, "", {}, 0.7, "test/avatar"]}
        named = visitor.post("/call/compose", json=call).json()["event_id"]
        answer = visitor.get(f"/call/compose/{named}").text
        assert "event: error" in answer and len(answer) < 1500
        assert time.monotonic() - started < 20
    for text in ("/" * 3_000_000, "/a" * 1_500_000, ("'" + "a" * 50) * 60_000, "C:\\" * 1_000_000):
        started = time.monotonic()
        assert len(errors.public_message(text)) <= errors.MAX_LENGTH
        assert time.monotonic() - started < 0.5
    quoted = errors.public_message("unknown region '" + "a" * 200 + "' here")
    assert "a" * 81 not in quoted and quoted.endswith("here")
    assert "\x1b" not in errors.public_message("a \x1b[31m\u202e b")


def test_html_is_text(model: Model, visitor: httpx.Client, config: dict[str, Any]) -> None:
    hostile = '<a href="https://evil.example">click</a><img src=x onerror=alert(1)>'
    for data in ([1, {hostile: 1}, "", {}, 0.7, "test/avatar"], [1, {}, "", {}, 0.7, hostile]):
        named = visitor.post("/call/compose", json={"data": data}).json()["event_id"]
        error = json.loads(visitor.get(f"/call/compose/{named}").text.split("data: ", 1)[1])["error"]
        assert "&lt;a" in error and "<" not in error
    load = next(each["id"] for each in config["dependencies"] if any(t[1] == "load" for t in each["targets"]))
    inputs = next(each["inputs"] for each in config["dependencies"] if each["id"] == load)
    values = {component["id"]: component["props"].get("value") for component in config["components"]}
    recipe = json.dumps({"version": 1, "base": 1, "regions": {hostile: 1}})
    data = [None if values[block] == "" else values[block] for block in inputs]
    body = {"data": data, "fn_index": load, "session_hash": "link"}
    assert visitor.post("/queue/join", params={"recipe": recipe}, json=body).status_code == 200
    with visitor.stream("GET", "/queue/data", params={"session_hash": "link"}) as lines:
        line = next(line for line in lines.iter_lines() if "process_completed" in line)
    error = json.loads(line[6:])["output"]["error"]
    assert "&lt;a" in error and "<" not in error
    # gradio's own errors go the same way
    dropdown = next(c["id"] for c in config["components"] if c["props"].get("elem_id") == "sf-edit-direction")
    each = next(d for d in config["dependencies"] if dropdown in d["inputs"] and d["queue"] is not False)
    data = [0 if i == 0 else hostile if block == dropdown else None for i, block in enumerate(each["inputs"])]
    assert "<" not in event(visitor, each["id"], data, "own")["error"]

    def broken(*_: Any) -> Any:
        raise ValueError(hostile)

    with pytest.raises(errors.Refusal) as caught:
        errors.show_errors(broken)()
    assert "<" not in caught.value.message
    assert errors.show_errors_on_stage(broken, "stage")()["stage"]["message"].startswith("<a href")


def test_a_sessions_text_is_not_kept(visitor: httpx.Client, url: str) -> None:
    from stylefusion_hf.spaces_app.guard import MAX_UNREAD, Page

    page = next(each for each in _living(Page) if each.is_running and each.local_url.rstrip("/") == url)
    config = httpx.get(f"{url}/config", **PATIENCE).json()
    about = next(each["id"] for each in config["dependencies"] if each["api_name"] == "about")
    for i in range(20):
        body = {"data": ["x" * 900_000], "fn_index": about, "session_hash": f"text-{i}"}
        assert visitor.post("/queue/join", json=body).status_code == 200
    event(visitor, about, ["test/avatar"], "last")
    held = page.state_holder.session_data
    assert page.state_holder.capacity <= 500
    for i in range(20):
        assert len(str(held[f"text-{i}"].config_values)) < 10_000
    assert sum(queue.qsize() for queue in page._queue.pending_messages_per_session.values()) <= MAX_UNREAD + 10


def _living(kind: type) -> list[Any]:
    import gc

    return [each for each in gc.get_objects() if type(each) is kind]


def test_history_and_recipes_are_bounded(model: Model, tmp_path: Path) -> None:
    steps = History([Settings(Dial(0), Dial(), (), 0.7)])
    for i in range(40):
        kept = {"regions": {"hair": {"space": "w", "data": str(i % 10) * 500_000}}}
        steps = steps.push(Settings(Dial(i), Dial(), (), 0.7, kept), "", 0)
    texts = {step.kept.get("regions", {}).get("hair", {}).get("data", "")[:1] for step in steps.steps}
    assert 2 <= len(steps.steps) < 10 and len(texts) > 1
    assert steps.present.base == Dial(39)
    for text, reason in (
        ("[]," * 30_000, "values"),
        ("[" * 5000, "lists and objects"),
        ('{"version": 1, "base": ' + "[" * 60 + "]" * 60 + "}", "lists and objects"),
        ("{", "not JSON"),
    ):
        with pytest.raises(ValueError, match=reason):
            model.check(text)
    assert bounds.read_json('{"a": [1, {"b": 2}]}') == {"a": [1, {"b": 2}]}
    (tmp_path / "large.json").write_bytes(b" " * (results.MAX_RECIPE + 1))
    with pytest.raises(ValueError, match="more than 2 MB"):
        results.read_recipe(str(tmp_path / "large.json"))
    os.mkfifo(tmp_path / "pipe.json")
    with pytest.raises(ValueError, match="not a file"):
        results.read_recipe(str(tmp_path / "pipe.json"))


# ----------------------------------------------------------------------------------------------------
# Pictures.


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def test_large_pictures_are_decoded_once_smaller_and_one_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradient = Image.linear_gradient("L").resize((3000, 2400))
    asked: list[int] = []
    at_once: list[int] = []
    true = pictures.decode

    def counting(data: bytes, name: str, side: int, *more: Any) -> Image.Image:
        at_once.append(1)
        asked.append(len(at_once))
        time.sleep(0.05)
        try:
            return true(data, name, side, *more)
        finally:
            at_once.pop()

    monkeypatch.setattr(pictures, "decode", counting)
    for name, image, settings in (
        ("a.png", gradient.convert("RGBA"), {}),
        ("a.jpg", gradient.convert("RGB"), {}),
        ("a.webp", gradient.convert("RGB"), {"quality": 10, "method": 0}),
        ("p.png", gradient.convert("P"), {}),
        ("i.png", Image.new("I;16", (2400, 2400), 40_000), {}),
        ("wide.png", Image.new("RGB", (60_000, 20)), {}),
    ):
        image.save(tmp_path / name, **settings)
        asked.clear()
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda path: pictures.open_picture(path, "it", 64), [str(tmp_path / name)] * 8))
        assert asked == [1], name
        assert len(found) == 8
        assert {(image.mode, image.width <= 512, image.height <= 512) for image in found} == {("RGB", True, True)}
    small = Image.effect_noise((700, 500), 50).convert("RGB")
    small.save(tmp_path / "small.png")
    assert pictures.open_picture(str(tmp_path / "small.png"), "it", 64).tobytes() == small.tobytes()
    turned = Image.new("RGB", (2000, 1000), "red")
    turned.paste("blue", (0, 0, 1000, 1000))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter to the right
    turned.save(tmp_path / "turned.jpg", exif=exif)
    upright = pictures.open_picture(str(tmp_path / "turned.jpg"), "it", 64)
    assert upright.getpixel((256, 20))[2] > 200 and upright.getpixel((256, 490))[0] > 200


def test_pictures_that_browsers_do_not_show_are_not_read(tmp_path: Path) -> None:
    for kind in ("TIFF", "BMP", "PPM", "EPS", "ICO", "PCX"):
        with pytest.raises(ValueError, match="cannot read it: not a picture"):
            pictures.decode(picture((64, 64), kind=kind), "it", 512)
    frames = [Image.new("RGB", (64, 64), (50 * i, 0, 99)) for i in range(5)]
    for kind in ("GIF", "WEBP", "PNG"):
        buffer = io.BytesIO()
        frames[0].save(buffer, format=kind, save_all=True, append_images=frames[1:])
        with pytest.raises(ValueError, match="2 frames or more"):
            pictures.decode(buffer.getvalue(), "it", 512)
    assert pictures.decode(picture(kind="GIF"), "it", 512).size == (48, 48)
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 1, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(ValueError, match="megapixels"):
        pictures.decode(bomb, "it", 512)
    with pytest.raises(ValueError, match="cannot read it"):
        pictures.decode(picture((400, 400))[:300], "it", 512)


# ----------------------------------------------------------------------------------------------------
# Its end.


@pytest.mark.slow  # a process of its own, which is killed
def test_a_stopped_space_leaves_nothing_behind(tmp_path: Path) -> None:
    left = tmp_path / f"{serving.PREFIX}dead"
    left.mkdir()
    (left / serving.LOCK).touch()
    (left / "picture.png").write_bytes(b"of somebody")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "GRADIO_TEMP_DIR": str(tmp_path), "TMPDIR": str(tmp_path), "PYTHONUNBUFFERED": "1",
                   "GRADIO_ANALYTICS_ENABLED": "False", "HOME": str(tmp_path / "home")}  # fmt: skip
    command = [sys.executable, "-m", "stylefusion_hf.cli", "space", "--port", str(port), "--device", "cpu"]
    command += ["--model", "embedded"]  # by its name, as beside others
    space = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        for _ in range(1200):
            try:
                httpx.get(f"{url}/config", timeout=5).raise_for_status()
                break
            except httpx.HTTPError:
                assert space.poll() is None, space.stdout and space.stdout.read()
                time.sleep(0.25)
        assert not left.exists()
        assert space.stdout is not None
        told = [space.stdout.readline().strip() for _ in range(3)]
        with httpx.Client(base_url=f"{url}/gradio_api", **PATIENCE) as visitor:
            assert Path(upload(visitor, picture())).is_relative_to(tmp_path)
        space.send_signal(signal.SIGTERM)
        said, _ = space.communicate(timeout=120)
    finally:
        space.kill()
    assert space.returncode == 128 + signal.SIGTERM, said
    assert "Traceback" not in said
    assert told[:2] == ["Loading the model embedded ...", "Drawing the first pictures ..."]
    assert told[2] == f"Ready: {url}/ (Ctrl-C stops it)"
    assert "share" not in said
    left = [path for path in tmp_path.rglob("*") if path.is_file() and "home" not in path.parts]
    assert [path for path in left if path.name != ".ses"] == []  # which onnxruntime writes
