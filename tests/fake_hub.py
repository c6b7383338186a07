"""A Hugging Face hub of one machine: repositories are folders, over HTTP as `huggingface_hub` asks for them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(NamedTuple):
    url: str
    asked: list[str]  # the files whose content was asked for, as OWNER/NAME/path


@contextlib.contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """Serve the repositories OWNER/NAME in `root`."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(content=False)

        def do_GET(self) -> None:
            self.answer(content=True)

        def answer(self, content: bool) -> None:
            _, *parts = unquote(urlsplit(self.path).path).split("/")
            if parts[:2] == ["api", "models"]:
                self.tell(root / "/".join(parts[2:4]), tree="tree" in parts[4:])
            elif parts[2:3] == ["resolve"]:
                self.send(root / parts[0] / parts[1], "/".join(parts[4:]), content)
            else:
                self.refuse("EntryNotFound")

        def tell(self, repository: Path, tree: bool) -> None:
            names = sorted(p.relative_to(repository).as_posix() for p in repository.rglob("*") if p.is_file())
            files = [
                {"type": "file", "path": n, "size": (repository / n).stat().st_size, "oid": etag(repository / n)} for n in names
            ]
            told = {"id": repository.name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            if repository.is_dir():
                self.finish_with(json.dumps(files if tree else told).encode(), True, {})
            else:
                self.refuse("RepoNotFound")

        def send(self, repository: Path, name: str, content: bool) -> None:
            if (repository / name).is_file():
                asked.extend([f"{repository.parent.name}/{repository.name}/{name}"] * content)
                self.finish_with((repository / name).read_bytes(), content, {"ETag": f'"{etag(repository / name)}"'})
            else:
                self.refuse("EntryNotFound" if repository.is_dir() else "RepoNotFound")

        def refuse(self, code: str) -> None:
            self.send_response(404)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def finish_with(self, data: bytes, content: bool, headers: dict[str, str]) -> None:
            self.send_response(200)
            for key, value in {"Content-Length": str(len(data)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if content:
                self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Hub(f"http://127.0.0.1:{server.server_address[1]}", asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def etag(path: Path) -> str:
    return hashlib.sha1(path.read_bytes()).hexdigest()
