"""Registries of this machine, over HTTP: one of containers, one of S3, both with faults."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


@dataclass
class Fault:
    """What goes wrong, so many times: method and path are patterns.

    "drop": the connection ends after `after` bytes of the body, of the answer or of what is sent; "lost": all is done, but the
    connection ends before the answer; "stall": nothing more comes, until `go_on` is set; a number is an answer; a function
    changes the content.
    """

    method: str
    path: str
    what: object
    times: int = 1
    after: int = 0


@dataclass
class State:
    """What a registry holds, and what it was asked."""

    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    asked: list[tuple[str, str]] = field(default_factory=list)
    authorizations: list[tuple[str, str | None]] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    received: int = 0  # bytes of blobs
    sent: int = 0
    user: str | None = None  # NAME:PASSWORD, where one is asked for
    basic: bool = False
    redirect: str | None = None  # where blobs are
    store: str = ""  # where they are sent to
    headers: dict[str, str] = field(default_factory=dict)  # of every answer
    url: str = ""
    stalled: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    @property
    def host(self) -> str:
        return self.url.removeprefix("http://")

    def of(self, method: str, path: str = "") -> list[str]:
        return [p for m, p in self.asked if m == method and re.search(path, p)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # small answers wait for nobody
    state: State

    def log_message(self, *_: object) -> None:
        pass

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        self.route, self.query = unquote(parts.path), parse_qs(parts.query)
        self.state.asked.append((self.command, self.path))
        self.state.authorizations.append((self.path, self.headers.get("Authorization")))
        self.fault = next((f for f in self.state.faults if f.times and re.fullmatch(f.method, self.command)
                           and re.search(f.path, self.path)), None)  # fmt: skip
        if self.fault:
            self.fault.times -= 1
        if self.fault and isinstance(self.fault.what, int):
            self.body()
            self.answer(self.fault.what, b'{"errors": [{"code": "X", "message": "so it is"}]}', {"Retry-After": "0"})
            return
        with contextlib.suppress(ConnectionError):
            self.serve()

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = handle_any  # noqa: N815

    def serve(self) -> None:
        raise NotImplementedError

    def body(self) -> bytes:
        """What is sent; a part of it where the connection drops."""
        size = int(self.headers.get("Content-Length") or 0)
        if self.fault and self.fault.what == "drop" and size:
            data = self.rfile.read(min(self.fault.after, size))
            self.hang_up()
            return data
        return self.rfile.read(size)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def answer(self, status: int, data: bytes = b"", headers: dict[str, str] | None = None, size: int | None = None) -> None:
        if self.fault and callable(self.fault.what):
            data = self.fault.what(data)
        if self.fault and self.fault.what == "lost":
            self.hang_up()
            return
        self.send_response(status)
        for key, value in {
            "Content-Length": str(len(data) if size is None else size),
            **self.state.headers,
            **(headers or {}),
        }.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault and self.fault.what == "stall":
            self.wfile.write(data[: self.fault.after])
            self.state.stalled.set()
            self.state.go_on.wait()
            self.hang_up()
            return
        if self.fault and self.fault.what == "drop":
            self.wfile.write(data[: self.fault.after])
            self.wfile.flush()
            self.hang_up()
            return
        self.wfile.write(data)

    def content(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Something that is kept, or the part of it that is asked for."""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if self.command == "HEAD":
            self.answer(200, b"", headers, len(data))
        elif match:
            first, last = int(match[1]), int(match[2] or len(data) - 1)
            self.state.sent += last + 1 - first
            self.answer(206, data[first : last + 1], {**(headers or {}), "Content-Range": f"bytes {first}-{last}/{len(data)}"})
        else:
            self.state.sent += len(data)
            self.answer(200, data, headers)


class Containers(Handler):
    """The distribution specification, as far as it is used here, and the way to a token."""

    def serve(self) -> None:
        if self.route == "/token":
            self.token()
        elif not self.allowed():
            self.body()
            scope = f"repository:team/digits:{'pull' if self.command in ('GET', 'HEAD') else 'pull,push'}"
            challenge = f'Bearer realm="{self.state.url}/token",service="here",scope="{scope}"'
            self.answer(401, b'{"errors": [{"code": "UNAUTHORIZED", "message": "authentication required"}]}',
                        {"WWW-Authenticate": 'Basic realm="here"' if self.state.basic else challenge})  # fmt: skip
        elif match := re.fullmatch(r"/v2/team/digits/blobs/uploads/(\w*)", self.route):
            self.upload(match[1])
        elif match := re.fullmatch(r"(?:/v2/team/digits)?/blobs/(sha256:\w+)", self.route):
            self.blob(match[1])
        elif match := re.fullmatch(r"/v2/team/digits/manifests/(.+)", self.route):
            self.manifest(match[1])
        else:
            self.body()
            self.answer(404, b'{"errors": [{"code": "NAME_UNKNOWN", "message": "repository name not known"}]}')

    def allowed(self) -> bool:
        if self.state.user is None or not self.route.startswith("/v2/"):
            return True
        header = self.headers.get("Authorization", "")
        if self.state.basic:
            return header == f"Basic {base64.b64encode(self.state.user.encode()).decode()}"
        return header == "Bearer pull,push" or (header == "Bearer pull" and self.command in ("GET", "HEAD"))

    def token(self) -> None:
        known = f"Basic {base64.b64encode((self.state.user or '').encode()).decode()}"
        if self.headers.get("Authorization") != known:
            self.answer(401, b'{"errors": [{"code": "DENIED", "message": "who are you?"}]}')
        else:
            assert self.query["service"] == ["here"]
            self.answer(200, json.dumps({"token": self.query["scope"][0].rpartition(":")[2]}).encode())

    def upload(self, key: str) -> None:
        uploads = self.state.uploads
        if self.command == "POST":
            self.body()
            key = uuid.uuid4().hex
            uploads[key] = b""
            self.told(202, key)
        elif key not in uploads:
            self.body()
            self.answer(404)
        elif self.command == "GET":
            self.told(204, key)
        elif self.command == "PATCH":
            first, last = map(int, self.headers["Content-Range"].split("-"))
            if first != len(uploads[key]):
                self.body()
                self.told(416, key)
                return
            assert last + 1 - first == int(self.headers["Content-Length"])
            uploads[key] += (data := self.body())
            self.state.received += len(data)
            self.told(202, key)
        else:
            data, digest = uploads[key] + self.body(), self.query["digest"][0]
            self.state.received += len(data) - len(uploads[key])
            if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
                self.answer(400, b'{"errors": [{"code": "DIGEST_INVALID", "message": "provided digest did not match"}]}')
                return
            del uploads[key]
            self.state.blobs[digest] = data
            self.answer(201, b"", {"Location": f"/v2/team/digits/blobs/{digest}"})

    def told(self, status: int, key: str) -> None:
        """Of an upload; its address changes, and has a query of its own."""
        location = f"{self.state.store}/v2/team/digits/blobs/uploads/{key}?_state={uuid.uuid4().hex}%3D"
        self.answer(status, b"", {"Location": location, "Range": f"0-{max(len(self.state.uploads[key]) - 1, 0)}"})

    def blob(self, digest: str) -> None:
        if digest not in self.state.blobs:
            self.answer(404, b'{"errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown"}]}')
        elif self.state.redirect and self.command == "GET" and self.route.startswith("/v2/"):
            self.answer(307, b"", {"Location": f"{self.state.redirect}/blobs/{digest}"})
        else:
            self.content(self.state.blobs[digest])

    def manifest(self, reference: str) -> None:
        if self.command == "PUT":
            data = self.body()
            told = json.loads(data)
            missing = [b["digest"] for b in (told["config"], *told["layers"]) if b["digest"] not in self.state.blobs]
            if missing:
                self.answer(400, b'{"errors": [{"code": "MANIFEST_BLOB_UNKNOWN", "message": "blob unknown"}]}')
                return
            digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
            self.state.manifests[reference] = self.state.manifests[digest] = data
            self.answer(201, b"", {"Docker-Content-Digest": digest})
        elif reference in self.state.manifests:
            data = self.state.manifests[reference]
            self.content(data, {"Content-Type": "application/vnd.oci.image.manifest.v1+json"})
        else:
            self.answer(404, b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}')


class Buckets(Handler):
    """S3 with path-style addresses; large files come in parts."""

    def serve(self) -> None:
        key, blobs = self.route.lstrip("/"), self.state.blobs
        if self.command == "POST" and "uploads" in urlsplit(self.path).query:
            self.body()
            upload = uuid.uuid4().hex
            self.state.uploads[upload] = b""
            self.xml(200, f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>")
        elif self.command == "POST":
            self.body()
            upload = self.query["uploadId"][0]
            blobs[key] = b"".join(blobs.pop(p) for p in sorted(p for p in blobs if p.startswith(f"{upload}/")))
            self.xml(200, '<CompleteMultipartUploadResult><ETag>"x"</ETag></CompleteMultipartUploadResult>')
        elif self.command == "PUT":
            data = self.sent_content()
            self.state.received += len(data)
            if "partNumber" in self.query:
                key = f"{self.query['uploadId'][0]}/{int(self.query['partNumber'][0]):05}"
            blobs[key] = data
            self.answer(200, b"", {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})
        elif key in blobs:
            self.content(blobs[key], {"ETag": f'"{hashlib.md5(blobs[key]).hexdigest()}"'})
        elif self.command == "HEAD":
            self.answer(404)
        else:
            self.xml(404, "<Error><Code>NoSuchKey</Code><Message>The specified key does not exist.</Message></Error>")

    def xml(self, status: int, text: str) -> None:
        self.answer(status, f'<?xml version="1.0" encoding="UTF-8"?>{text}'.encode(), {"Content-Type": "application/xml"})

    def sent_content(self) -> bytes:
        """A body; in chunks with a checksum behind, as the client sends streams."""
        if self.headers.get("Expect"):
            pass  # http.server has said to go on
        data = self.body()
        if "aws-chunked" not in self.headers.get("Content-Encoding", ""):
            return data
        whole = b""
        while data:
            size, _, data = data.partition(b"\r\n")
            count = int(size.split(b";")[0], 16)
            if not count:
                break
            whole, data = whole + data[:count], data[count + 2 :]
        return whole


@contextlib.contextmanager
def serving(kind: type[Handler], make: Callable[[], State] = State) -> Iterator[State]:
    """A registry, at `state.url`."""
    state = make()
    handler = type("Own", (kind,), {"state": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
