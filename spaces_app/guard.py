"""What stands between the network and the page: who a request is from, how large it may be, and what it may name.

`Guard` is the outermost part of the server that knows the page. `Page` is gradio's, with one gate in front of every
event: files are the visitor's own, errors are one line, and little of what a visitor sends is kept.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import anyio.to_thread
import gradio as gr
from starlette.responses import JSONResponse, Response

from stylefusion_hf.core.checks import short
from stylefusion_hf.spaces_app.bounds import MAX_BODY, TooLarge, read_json
from stylefusion_hf.spaces_app.errors import page_error
from stylefusion_hf.spaces_app.uploads import MAX_FILE, VISITOR, Uploads, check_files, remove_unfinished

COOKIE = "stylefusion-session"
SESSION = "stylefusion.session"  # of a request's scope
MAX_UPLOAD = MAX_FILE + 2**16  # one file and what is around it
MAX_NAME = 128  # characters of what a client calls its session
MAX_UNREAD = 1000  # messages that wait for visitors who do not fetch them
API = "/gradio_api"
# Of gradio's, but not of this page: they open addresses, write files, or call into components.
CLOSED = ("deep_link", "proxy=", "component_server", "process_recording", "vibe-", "undo-vibe-", "stream/", "dev/",
          "custom_component", "run-history", "runs")  # fmt: skip

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

logger = logging.getLogger(__name__)


class Guard:
    """ASGI middleware of a server whose application is gradio's."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        session = _session(headers)
        scope[SESSION] = session or secrets.token_hex(16)
        if session is None:
            send = _with_cookie(send, _cookie(scope, headers))
        uploads = scope["app"].get_blocks().uploads
        place = scope["path"]
        api = place[len(API) :].lstrip("/") if place.startswith(API) else None
        if (api is not None and api.startswith(CLOSED)) or place.startswith("/monitoring"):
            return await _answer(send, 404, "this page has no such address")
        if api is not None and api.startswith(("file=", "file/")) and not _served(api[5:], uploads, scope[SESSION]):
            return await _answer(send, 403, "this file is not yours to fetch")
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        length = headers.get(b"content-length", b"")
        if headers.get(b"transfer-encoding") or not length.isdigit() or len(length) > 12:
            return await _answer(send, 411, "a request says how long it is: send Content-Length")
        upload = api is not None and api.rstrip("/") == "upload"
        if int(length) > (most := MAX_UPLOAD if upload else MAX_BODY):
            return await _answer(send, 413, f"a request has at most {most // 2**20} MB, got {int(length) // 1000} kB")
        if upload:
            if len(scope["query_string"]) > 2 * MAX_NAME:
                return await _answer(send, 400, "the address of an upload is too long")
            remove_unfinished()
            return await self.app(scope, receive, _registering(send, uploads, scope[SESSION]))
        body = await _body(receive)
        if body is None:
            return None  # the client went away
        if trouble := await anyio.to_thread.run_sync(_trouble, body):
            return await _answer(send, *trouble)
        return await self.app(scope, _again(body, receive), send)


async def refused(*_: Any) -> Response:
    """The answer to a request whose fields are wrong: gradio's would send all of it back."""
    return JSONResponse({"detail": "the request has not the fields that this address takes"}, 422)


class Page(gr.Blocks):
    """gradio's page with the gate in front of its events. `uploads`: whose files are whose."""

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.uploads = Uploads()

    async def process_api(self, block_fn: Any, inputs: list[Any], *args: Any, **settings: Any) -> Any:
        """gradio's, for every event from the network and from the page."""
        request = settings.get("request")
        network = getattr(request, "request", None)
        session = "" if network is None else network.scope.get(SESSION, "")
        visitor = VISITOR.set((self.uploads, session))
        try:
            if settings.get("iterator") is None:
                check_files(inputs, self.uploads, session)
            return await super().process_api(block_fn, inputs, *args, **settings)
        except Exception as error:
            if not isinstance(error, (gr.Error, ValueError)):
                logger.warning("an event failed: %s: %s", type(error).__name__, short(str(error), 300))
            raise page_error(error) from None
        finally:
            VISITOR.reset(visitor)
            self._forget(settings.get("state"), block_fn)

    def _forget(self, state: Any, block_fn: Any) -> None:
        """Gradio keeps a copy of every value for links to a page's state, and messages until somebody reads them."""
        configs = getattr(state, "config_values", {})
        for block in (*getattr(block_fn, "inputs", ()), *getattr(block_fn, "outputs", ())):
            if "props" in configs.get(block._id, {}):
                configs[block._id]["props"]["value"] = None
        waiting = self._queue.pending_messages_per_session
        unread = sum(queue.qsize() for queue in waiting.values())
        for queue in list(waiting.values()):
            if unread <= MAX_UNREAD:
                break
            unread -= queue.qsize()
            while not queue.empty():
                queue.get_nowait()
        named = self._queue.pending_event_ids_session
        for name in list(named)[: max(len(named) - 2 * MAX_UNREAD, 0)]:
            if name not in waiting:
                named.pop(name, None)


# ----------------------------------------------------------------------------------------------------
# Requests.


def _session(headers: dict[bytes, bytes]) -> str | None:
    for part in headers.get(b"cookie", b"")[:8192].decode("latin-1").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE and re.fullmatch("[0-9a-f]{32}", value):
            return value
    return None


def _cookie(scope: Scope, headers: dict[bytes, bytes]) -> bytes:
    """The header for a new session. A Space on the Hub is a frame in another site's page: it needs the second form."""
    secure = scope.get("scheme") == "https" or headers.get(b"x-forwarded-proto", b"").startswith(b"https")
    kind = "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"
    return f"{COOKIE}={scope[SESSION]}; Path=/; HttpOnly; {kind}".encode()


def _with_cookie(send: Send, cookie: bytes) -> Send:
    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message.get("headers", ()), (b"set-cookie", cookie)]}
        await send(message)

    return sending


def _served(path: str, uploads: Uploads, session: str) -> bool:
    """Whether a file may be asked for: no address, and nobody else's upload. Gradio checks the rest."""
    return "://" not in path[:16] and (not uploads.known(path) or uploads.owns(session, path))


def _registering(send: Send, uploads: Uploads, session: str) -> Send:
    """`send` of an upload's answer, a JSON list of places: they are the session's before the client hears of them."""
    held: list[dict[str, Any]] = []

    async def sending(message: dict[str, Any]) -> None:
        held.append(message)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            if held[0].get("status") == 200:
                paths = json.loads(b"".join(each.get("body", b"") for each in held[1:]))
                for path in paths if isinstance(paths, list) else ():
                    uploads.add(session, str(path))
            for each in held:
                await send(each)

    return sending


async def _body(receive: Receive) -> bytes | None:
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, receive: Receive) -> Receive:
    """`receive` of a body that was read already."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> dict[str, Any]:
        return left.pop() if left else await receive()

    return receiving


def _trouble(body: bytes) -> tuple[int, str] | None:
    """What is wrong with a request's JSON, as a status and a line; None where nothing is."""
    if not body.strip():
        return None
    try:
        data = read_json(body)
    except TooLarge as error:
        return 413, f"this request is not read: {error}"
    except ValueError:
        return 400, "a request's body is JSON"
    if isinstance(data, dict) and data.get("session_hash") is not None:
        name = data["session_hash"]
        if not isinstance(name, str) or len(name) > MAX_NAME:
            return 400, f"session_hash is a text of at most {MAX_NAME} characters"
    return None


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
