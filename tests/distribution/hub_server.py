"""A Hugging Face hub that repositories can be pushed to, as far as its own client asks for it."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from urllib.parse import urlsplit

from distribution.servers import Handler, State


class HubState(State):
    """`commits` are whole repositories, the last one is main; files of more than `large` bytes go to a store of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: dict[str, dict[str, bytes]] = {}
        self.order: list[str] = []
        self.large, self.private, self.ignored = 4000, False, ""

    @property
    def main(self) -> dict[str, bytes]:
        return self.commits[self.order[-1]]


def git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Hub(Handler):
    state: HubState

    def serve(self) -> None:
        path, state = urlsplit(self.path).path, self.state
        if path == "/api/repos/create":
            told = json.loads(self.body())
            state.private = told.get("private") is True or told.get("visibility") == "private"
            self.commit({}, "first")
            self.tell({"url": f"{state.url}/me/dit", "name": "me/dit"})
        elif path == "/api/validate-yaml":
            self.body()
            self.tell({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/store/(\w+)", path):
            data = self.body()
            state.received += len(data)
            state.blobs[match[1]] = data
            self.answer(200)
        elif not state.order:
            self.body()
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif re.fullmatch(r"/api/models/me/dit(/revision/.*)?", path):
            self.tell({"id": "me/dit", "sha": self.revision(path.rpartition("/revision/")[2]), "siblings": []})
        elif match := re.fullmatch(r"/api/models/me/dit/tree/([^/]+)", path):
            files = state.commits[self.revision(match[1])]
            self.tell([self.entry(name, data) for name, data in sorted(files.items())])
        elif path.startswith("/api/models/me/dit/preupload/"):
            asked = json.loads(self.body())["files"]
            self.tell({"files": [{"path": f["path"], "uploadMode": "lfs" if f["size"] > state.large else "regular",
                                  "shouldIgnore": f["path"] == state.ignored, "oid": None} for f in asked]})  # fmt: skip
        elif path == "/me/dit.git/info/lfs/objects/batch":
            asked = json.loads(self.body())["objects"]
            self.tell({"transfer": "basic", "objects": [self.upload(entry) for entry in asked]})
        elif path.startswith("/api/models/me/dit/commit/"):
            self.take([json.loads(line) for line in self.body().splitlines()])
        elif match := re.fullmatch(r"/me/dit/resolve/([^/]+)/(.+)", path):
            self.resolve(self.revision(match[1]), match[2])
        else:
            self.body()
            self.answer(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})

    def revision(self, name: str) -> str:
        return name if name in self.state.commits else self.state.order[-1]

    def entry(self, name: str, data: bytes) -> dict[str, object]:
        lfs = {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}}
        return {"type": "file", "path": name, "size": len(data), "oid": git(data), **(lfs if self.is_large(data) else {})}

    def is_large(self, data: bytes) -> bool:
        return len(data) > self.state.large

    def upload(self, asked: dict[str, object]) -> dict[str, object]:
        there = asked["oid"] in self.state.blobs
        return asked if there else {**asked, "actions": {"upload": {"href": f"{self.state.url}/store/{asked['oid']}"}}}

    def take(self, lines: list[dict[str, object]]) -> None:
        files = dict(self.state.main)
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.state.received += len(files[value["path"]])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.state.blobs[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.commit(files, lines[0]["value"]["summary"])
        self.tell({"success": True, "commitOid": oid, "commitUrl": f"{self.state.url}/me/dit/commit/{oid}"})

    def commit(self, files: dict[str, bytes], summary: str) -> str:
        told = json.dumps([summary, len(self.state.order), sorted((n, git(d)) for n, d in files.items())])
        oid = hashlib.sha1(told.encode()).hexdigest()
        self.state.commits[oid] = files
        self.state.order.append(oid)
        return oid

    def resolve(self, commit: str, name: str) -> None:
        files = self.state.commits[commit]
        if name not in files:
            self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
            return
        data = files[name]
        etag = hashlib.sha256(data).hexdigest() if self.is_large(data) else git(data)
        self.content(data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"})

    def tell(self, told: object) -> None:
        self.answer(200, json.dumps(told).encode(), {"Content-Type": "application/json"})
