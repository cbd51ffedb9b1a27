"""A Hub on this machine: the requests that huggingface_hub makes, with repositories, commits, LFS, rights and faults.

    hub = HubServer()
    hub.add("me/avatars", folder)                          # the first commit of a repository
    hub.fail("drop", r"GET /lfs/", times=1, after=1000)    # the connection breaks after 1000 bytes, once
    hub.requests                                           # "GET /me/avatars/resolve/main/model_index.json", ...

huggingface_hub reads HF_ENDPOINT when it is imported: tests/conftest.py sets it to this server's address before that.
Large files are answered by a redirect to another origin (localhost for 127.0.0.1), as the real Hub does.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import socket
import struct
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE = 4096  # bytes from which a file is stored by LFS; .safetensors always are
WRITER, READER = "hf_WriterOfTheTests", "hf_ReaderOfTheTests"  # tokens
ALWAYS = float("inf")
STATUS = {"401": 401, "403": 403, "404": 404, "429": 429, "500": 500, "503": 503}


def git_hash(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def is_large(path: str, content: bytes) -> bool:
    return path.endswith(".safetensors") or len(content) >= LARGE


@dataclass
class Repository:
    """`commits`: hash -> {path: content}; `refs`: branch or tag -> hash."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], ref: str = "main") -> str:
        text = json.dumps([len(self.commits), ref, {path: git_hash(it) for path, it in sorted(files.items())}])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.commits[oid] = dict(files)
        self.refs[ref] = oid
        return oid

    def oid(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)


@dataclass
class Fault:
    """What goes wrong with requests that match `where`, `times` times, after `skip` of them."""

    kind: str
    where: str
    times: float
    skip: int
    after: int
    action: Any


class HubServer:
    """Listens from the start; see the module."""

    def __init__(self) -> None:
        hub = self

        class Handler(HubHandler):
            server_hub = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.lock = threading.RLock()
        self.total = self.injected = 0  # requests and faults, of the whole session
        self.reset()
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def reset(self) -> None:
        """An empty Hub without faults."""
        with self.lock:
            self.repositories: dict[str, Repository] = {}
            self.variables: dict[tuple[str, str], str] = {}  # (Space, key) -> value
            self.objects: dict[str, bytes] = {}  # LFS
            self.faults: list[Fault] = []
            self.requests: list[str] = []
            self.headers: list[dict[str, str]] = []
            self.part_size: int | None = None  # LFS uploads in parts of so many bytes
            self.etags = True

    def add(self, name: str, folder: Path | dict[str, bytes], **changes: Any) -> str:
        """A commit of a repository, which is made where there is none; its hash."""
        files = folder if isinstance(folder, dict) else read_folder(folder)
        repository = self.repositories.setdefault(name, Repository())
        ref = changes.pop("ref", "main")
        for key, value in changes.items():
            setattr(repository, key, value)
        for path, content in files.items():
            if is_large(path, content):
                self.objects[hashlib.sha256(content).hexdigest()] = content
        return repository.commit(files, ref)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[name]
        return repository.commits[repository.refs[revision]]

    def fail(
        self,
        kind: str,
        where: str = "",
        times: float = ALWAYS,
        skip: int = 0,
        after: int = 0,
        action: Any = None,
    ) -> None:
        """Lets requests fail whose "METHOD /path" matches `where` (a pattern to search for).

        Args:
            kind: a status ("401", "403", "404", "429", "500", "503"); "drop": the connection breaks after `after`
                bytes of the body; "reset": before an answer; "flip": one byte of the body is another; "short": an
                answer that says it is whole and lacks its end; "lost": the request is carried out, its answer is not
                sent; "stall": no answer for a second; "call": `action()` is run, then all goes on as usual.
            times: how often.
            skip: so many matching requests go well first.
        """
        with self.lock:
            self.faults.append(Fault(kind, where, times, skip, after, action))

    def fault_for(self, line: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.where, line):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    self.injected += fault.kind != "call"
                    return fault
        return None

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def read_folder(folder: Path) -> dict[str, bytes]:
    """Path -> content of every file below a folder."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


class HubHandler(BaseHTTPRequestHandler):
    """One connection."""

    server_hub: HubServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else 40 ms an answer

    def handle(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # the client went away, or a fault closed the connection
            super().handle()

    def log_message(self, *args: Any) -> None:
        pass

    def serve(self) -> None:
        hub = self.server_hub
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunks()
        path = unquote(urlsplit(self.path).path)
        line = f"{self.command} {path}"
        with hub.lock:
            hub.total += 1
            hub.requests.append(line)
            hub.headers.append({key.lower(): value for key, value in self.headers.items()})
        self.fault = hub.fault_for(line)
        kind = self.fault.kind if self.fault else ""
        if kind == "call" and self.fault:
            self.fault.action()
        elif kind == "stall":
            self.close_connection = True
            threading.Event().wait(1)
            return
        elif kind == "reset":
            self.break_off()
            return
        elif kind in STATUS:
            self.refuse(STATUS[kind])
            return
        with hub.lock:
            self.route(path, parse_qs(urlsplit(self.path).query))

    do_GET = do_HEAD = do_POST = do_PUT = serve

    def read_chunks(self) -> bytes:
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def break_off(self) -> None:
        """Ends the connection as a broken line does: with a reset, not in an orderly way."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.wfile.flush()
        self.connection.close()

    # --- Answers ---

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        kind, after = (self.fault.kind, self.fault.after) if self.fault else ("", 0)
        if kind == "lost":
            self.break_off()
            return
        length = len(body)
        if kind == "short":
            body = body[: len(body) // 2]
            length = len(body)
        if kind == "flip" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(length))
        if kind == "drop":
            self.end_headers()
            self.wfile.write(body[:after])
            self.wfile.flush()
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def json(self, value: Any, status: int = 200) -> None:
        self.answer(status, json.dumps(value).encode(), Content_Type="application/json")

    def refuse(self, status: int, code: str = "", message: str = "", **more: str) -> None:
        headers = {"X_Error_Code": code} if code else {}
        headers |= {"X_Error_Message": message} if message else {}
        headers |= {"Retry_After": "7"} if status == 429 else {}
        self.answer(status, json.dumps({"error": message or f"refused {status}"}).encode(), **headers, **more)

    # --- What is asked ---

    def route(self, path: str, query: dict[str, list[str]]) -> None:
        path = path.replace("/api/spaces/", "/api/models/spaces/", 1)  # a Space is a repository with another prefix
        for pattern, handler in ROUTES:
            if match := re.fullmatch(pattern, f"{self.command} {path}"):
                getattr(self, handler)(query=query, **match.groupdict())
                return
        self.refuse(404, message="no such page")

    def repository(self, name: str, write: bool = False) -> Repository | None:
        """The repository, or None after an answer that says why not."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        found = self.server_hub.repositories.get(name)
        if token and token not in (WRITER, READER):
            self.refuse(401, message="Invalid credentials in Authorization header")
        elif found is None or (found.private and not token):
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif found.gated and token != WRITER:
            self.refuse(403, "GatedRepo", "Access to this model is restricted")
        elif write and token != WRITER:
            self.refuse(403 if token else 401, message="You don't have the rights")
        else:
            return found
        return None

    def files(self, name: str, revision: str, write: bool = False) -> tuple[str, dict[str, bytes]] | None:
        repository = self.repository(name, write)
        if repository is None:
            return None
        if (oid := repository.oid(revision)) is None:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return oid, repository.commits[oid]

    def info(self, name: str, query: Any, revision: str | None = None) -> None:
        if found := self.files(name, revision or "main"):
            oid, files = found
            self.json({"id": name, "sha": oid, "siblings": [{"rfilename": path} for path in files], "private": False})

    def tree(self, name: str, revision: str, query: Any) -> None:
        if found := self.files(name, revision):
            entries: list[dict[str, Any]] = []
            for path, content in found[1].items():
                entries.append({"type": "file", "path": path, "oid": git_hash(content), "size": len(content)})
                if is_large(path, content):
                    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
                    entries[-1]["lfs"] = lfs
            self.json(entries)

    def resolve(self, name: str, revision: str, file: str, query: Any) -> None:
        if found := self.files(name, revision):
            oid, files = found
            if file not in files:
                self.refuse(404, "EntryNotFound", "Entry not found", X_Repo_Commit=oid)
                return
            content, headers = files[file], {"X_Repo_Commit": oid}
            if not is_large(file, content):
                etag = {"ETag": f'"{git_hash(content)}"'} if self.server_hub.etags else {}
                self.send_file(content, **headers, **etag)
                return
            digest = hashlib.sha256(content).hexdigest()
            headers |= {"X_Linked_Etag": f'"{digest}"', "X_Linked_Size": str(len(content))}
            self.answer(302, Location=f"http://localhost:{self.server_hub.port}/lfs/{digest}", **headers)

    def lfs(self, digest: str, query: Any) -> None:
        assert "Authorization" not in self.headers, "the token left the Hub"
        self.send_file(self.server_hub.objects[digest], ETag=f'"{digest}"')

    def send_file(self, content: bytes, **headers: str) -> None:
        given = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if given and int(given[1]) < len(content):
            start = int(given[1])
            part = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], Content_Range=part, **headers)
        else:
            self.answer(200, content, **headers)

    # --- Uploads ---

    def create(self, query: Any) -> None:
        asked = json.loads(self.body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if asked.get("type") == "space":
            assert asked["sdk"] == "gradio"
            name = f"spaces/{name}"
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token != WRITER:
            self.refuse(403 if token == READER else 401, message="Invalid username or password.")
        elif name in self.server_hub.repositories:
            self.json(
                {"error": "You already created this model repo", "url": f"{self.server_hub.endpoint}/{name}"}, 409
            )
        else:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.server_hub.add(name, {".gitattributes": b"*.safetensors filter=lfs\n"}, private=private)
            self.json({"url": f"{self.server_hub.endpoint}/{name}", "name": name})

    def variable(self, name: str, query: Any) -> None:
        if self.repository(name, write=True):
            asked = json.loads(self.body)
            self.server_hub.variables[name, asked["key"]] = asked["value"]
            self.json({asked["key"]: {"key": asked["key"], "value": asked["value"]}})

    def branch(self, name: str, branch: str, query: Any) -> None:
        if repository := self.repository(name, write=True):
            if branch in repository.refs:
                self.refuse(409, message="Reference already exists")
            else:
                repository.refs[branch] = repository.refs["main"]
                self.json({})

    def validate(self, query: Any) -> None:
        self.json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str, query: Any) -> None:
        if found := self.files(name, revision, write=True):
            answers = []
            for file in json.loads(self.body)["files"]:
                large = file["path"].endswith(".safetensors") or file["size"] >= LARGE
                old = found[1].get(file["path"])
                answers.append({"path": file["path"], "uploadMode": "lfs" if large else "regular"})
                answers[-1] |= {"shouldIgnore": False, "oid": None}
                if old is not None:
                    answers[-1]["oid"] = hashlib.sha256(old).hexdigest() if large else git_hash(old)
            self.json({"files": answers})

    def batch(self, name: str, query: Any) -> None:
        if self.repository(name, write=True) is None:
            return
        hub, objects = self.server_hub, []
        for item in json.loads(self.body)["objects"]:
            entry: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in hub.objects:
                put = f"http://localhost:{hub.port}/upload/{item['oid']}"
                upload: dict[str, Any] = {"href": put}
                if hub.part_size and item["size"] > hub.part_size:
                    count = -(-item["size"] // hub.part_size)
                    parts = {str(k + 1): f"{put}/{k + 1}" for k in range(count)}
                    upload = {
                        "href": f"{hub.endpoint}/complete",
                        "header": {"chunk_size": str(hub.part_size), **parts},
                    }
                entry["actions"] = {"upload": upload, "verify": {"href": f"{hub.endpoint}/verify"}}
            objects.append(entry)
        self.json({"transfer": "multipart" if hub.part_size else "basic", "objects": objects})

    def put(self, digest: str, query: Any, part: str | None = None) -> None:
        assert "Authorization" not in self.headers, "the token left the Hub"
        if part is None:
            if hashlib.sha256(self.body).hexdigest() != digest:
                self.refuse(400, message="the content has another hash")
                return
            self.server_hub.objects[digest] = self.body
        else:
            self.server_hub.objects[f"{digest}/{part}"] = self.body
        self.answer(200, ETag=f'"{hashlib.md5(self.body).hexdigest()}"')

    def complete(self, query: Any) -> None:
        asked, objects = json.loads(self.body), self.server_hub.objects
        parts = [objects.pop(f"{asked['oid']}/{part['partNumber']}") for part in asked["parts"]]
        objects[asked["oid"]] = b"".join(parts)
        self.json({"success": True})

    def verify(self, query: Any) -> None:
        asked, objects = json.loads(self.body), self.server_hub.objects
        if len(objects.get(asked["oid"], b"")) != asked["size"]:
            self.refuse(404, message="object not found")
        else:
            self.json({"success": True})

    def commit(self, name: str, revision: str, query: dict[str, list[str]]) -> None:
        found = self.files(name, revision, write=True)
        if found is None:
            return
        hub, (oid, files) = self.server_hub, found
        files = dict(files)
        for text in self.body.splitlines():
            entry = json.loads(text)
            value = entry["value"]
            if entry["key"] == "header" and value.get("parentCommit", oid) != oid:
                self.refuse(412, message="A commit has happened since. Please refresh and try again.")
                return
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                if value["oid"] not in hub.objects:
                    self.refuse(400, message=f"LFS pointer to a missing object: {value['path']}")
                    return
                files[value["path"]] = hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        ref = "refs/pr/1" if query.get("create_pr") else revision
        new = hub.repositories[name].commit(files, ref)
        url = f"{hub.endpoint}/{name}"
        answer = {"success": True, "commitOid": new, "commitUrl": f"{url}/commit/{new}"}
        self.json(answer | ({"pullRequestUrl": f"{url}/discussions/1"} if query.get("create_pr") else {}))


NAME, REVISION = r"(?P<name>(?:spaces/)?[^/]+/[^/]+)", r"(?P<revision>refs/pr/\d+|[^/]+)"
ROUTES = [
    (rf"GET /api/models/{NAME}", "info"),
    (rf"GET /api/models/{NAME}/revision/{REVISION}", "info"),
    (rf"GET /api/models/{NAME}/tree/{REVISION}", "tree"),
    (rf"(GET|HEAD) /{NAME}/resolve/{REVISION}/(?P<file>.+)", "resolve"),
    (r"(GET|HEAD) /lfs/(?P<digest>\w+)", "lfs"),
    (r"POST /api/repos/create", "create"),
    (rf"POST /api/models/{NAME}/branch/(?P<branch>.+)", "branch"),
    (rf"POST /api/models/{NAME}/variables", "variable"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{NAME}/preupload/{REVISION}", "preupload"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /upload/(?P<digest>\w+)", "put"),
    (r"PUT /upload/(?P<digest>\w+)/(?P<part>\d+)", "put"),
    (r"POST /complete", "complete"),
    (r"POST /verify", "verify"),
    (rf"POST /api/models/{NAME}/commit/{REVISION}", "commit"),
]
