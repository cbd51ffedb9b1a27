"""Protection of the server: sessions, limits on requests, and which files a request may name.

`Guard` is the outermost ASGI middleware. `Page` is gradio's `Blocks` with checks before every event: files must be the
visitor's own, errors are shortened to one line, and little of what a visitor sends is kept.
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
from gradio.blocks import BlocksConfig
from starlette.responses import JSONResponse, Response

from stylefusion_hf.core.checks import short
from stylefusion_hf.spaces_app.bounds import MAX_BODY, TooLarge, read_json
from stylefusion_hf.spaces_app.errors import to_refusal
from stylefusion_hf.spaces_app.uploads import MAX_FILE, VISITOR, Uploads, check_files, remove_unfinished

COOKIE = "stylefusion-session"
SESSION = "stylefusion.session"  # key in a request's scope
MAX_UPLOAD = MAX_FILE + 2**16  # one file with its multipart headers
MAX_NAME = 128  # characters of a client's name for its session
MAX_UNREAD = 1000  # messages kept for visitors who have not fetched them
API = "/gradio_api"
# Routes of gradio that this page does not use: they open URLs, write files, or call into components.
CLOSED_PATHS = ("deep_link", "proxy=", "component_server", "process_recording", "vibe-", "undo-vibe-", "stream/",
                "dev/", "custom_component", "run-history", "runs")  # fmt: skip

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

logger = logging.getLogger(__name__)


class Guard:
    """ASGI middleware for gradio's application."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        session = _read_session(headers)
        scope[SESSION] = session or secrets.token_hex(16)
        if session is None:
            send = _add_cookie(send, _cookie_header(scope, headers))
        uploads = scope["app"].get_blocks().uploads
        place = scope["path"]
        api = place[len(API) :].lstrip("/") if place.startswith(API) else None
        if (api is not None and api.startswith(CLOSED_PATHS)) or place.startswith("/monitoring"):
            return await _send_error(send, 404, "this page has no such address")
        if api is not None and api.startswith(("file=", "file/")) and not _may_serve(api[5:], uploads, scope[SESSION]):
            return await _send_error(send, 403, "this file is not yours to fetch")
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return await self.app(scope, receive, send)
        length = headers.get(b"content-length", b"")
        if headers.get(b"transfer-encoding") or not length.isdigit() or len(length) > 12:
            return await _send_error(send, 411, "the length of the request is missing: send Content-Length")
        upload = api is not None and api.rstrip("/") == "upload"
        if int(length) > (most := MAX_UPLOAD if upload else MAX_BODY):
            return await _send_error(
                send, 413, f"a request has at most {most // 2**20} MB, got {int(length) // 1000} kB"
            )
        if upload:
            if len(scope["query_string"]) > 2 * MAX_NAME:
                return await _send_error(send, 400, "the address of an upload is too long")
            remove_unfinished()
            return await self.app(scope, receive, _register_uploads(send, uploads, scope[SESSION]))
        body = await _read_body(receive)
        if body is None:
            return None  # the client disconnected
        if problem := await anyio.to_thread.run_sync(_find_problem, body):
            return await _send_error(send, *problem)
        return await self.app(scope, _replay(body, receive), send)


async def refuse_fields(*_: Any) -> Response:
    """Return the response to a request with wrong fields; gradio's own would echo the whole request."""
    return JSONResponse({"detail": "the request does not have the fields that this address takes"}, 422)


class SessionConfig(BlocksConfig):
    """What a session keeps of the page's components.

    Gradio would describe every component anew that an event may change, for links to a page's state, which are closed
    here: of a dial's turn that took longer than sending the picture.
    """

    @staticmethod
    def config_for_block(*_: Any, **__: Any) -> dict[str, Any]:
        return {}


class PageConfig(BlocksConfig):
    """The page's components; gradio copies it for each session."""

    def __copy__(self) -> BlocksConfig:
        copied: BlocksConfig = super().__copy__()
        copied.__class__ = SessionConfig
        return copied


class Page(gr.Blocks):
    """gradio's page with checks before its events.

    `uploads` records which session owns which files. `preparations` are functions that make what visitors see first,
    for a server to call in the meantime: the page works without them, and its first visitor waits.
    """

    def __init__(self, **settings: Any):
        super().__init__(**settings)
        self.default_config.__class__ = PageConfig
        self.uploads = Uploads()
        self.preparations: list[Callable[[], Any]] = []

    async def process_api(self, block_fn: Any, inputs: list[Any], *args: Any, **settings: Any) -> Any:
        """Run an event, as gradio does, after checking the files that it names; errors are raised as `Refusal`."""
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
            raise to_refusal(error) from None
        finally:
            VISITOR.reset(visitor)
            self._forget_messages()

    def _forget_messages(self) -> None:
        """Drop messages that gradio would keep for visitors who have not fetched them."""
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


def _read_session(headers: dict[bytes, bytes]) -> str | None:
    for part in headers.get(b"cookie", b"")[:8192].decode("latin-1").split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE and re.fullmatch("[0-9a-f]{32}", value):
            return value
    return None


def _cookie_header(scope: Scope, headers: dict[bytes, bytes]) -> bytes:
    """Return the cookie header of a new session.

    A Space on the Hub is framed by a page of another site, which requires a partitioned cookie.
    """
    secure = scope.get("scheme") == "https" or headers.get(b"x-forwarded-proto", b"").startswith(b"https")
    kind = "SameSite=None; Secure; Partitioned" if secure else "SameSite=Lax"
    return f"{COOKIE}={scope[SESSION]}; Path=/; HttpOnly; {kind}".encode()


def _add_cookie(send: Send, cookie: bytes) -> Send:
    async def sending(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message = message | {"headers": [*message.get("headers", ()), (b"set-cookie", cookie)]}
        await send(message)

    return sending


def _may_serve(path: str, uploads: Uploads, session: str) -> bool:
    """Return whether a session may fetch a path: no URL or upload of another session. Gradio checks the rest."""
    return "://" not in path[:16] and (not uploads.is_known(path) or uploads.owns(session, path))


def _register_uploads(send: Send, uploads: Uploads, session: str) -> Send:
    """Wrap `send` to record the uploaded files as the session's before the client receives their paths."""
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


async def _read_body(receive: Receive) -> bytes | None:
    parts, more = [], True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that yields a body that has already been read."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def receiving() -> dict[str, Any]:
        return left.pop() if left else await receive()

    return receiving


def _find_problem(body: bytes) -> tuple[int, str] | None:
    """Check a request's JSON. Returns the status and message of the error, or None if there is none."""
    if not body.strip():
        return None
    try:
        data = read_json(body)
    except TooLarge as error:
        return 413, f"the request is too large: {error}"
    except ValueError:
        return 400, "the body of the request is not JSON"
    if isinstance(data, dict) and data.get("session_hash") is not None:
        name = data["session_hash"]
        if not isinstance(name, str) or len(name) > MAX_NAME:
            return 400, f"session_hash must be a string of at most {MAX_NAME} characters"
    return None


async def _send_error(send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
