"""An artefact in a registry of containers, by the OCI distribution specification 1.1 (spec.md) and image specification 1.1.

The image manifest has the artefact's manifest.json as its config, and every file as a layer, whose digest is the hash that
manifest.json has of it: tools of others read it, with the files' names in their titles.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from ..artefact import store
from ..artefact.manifest import Manifest
from ..artefact.records import FileInfo
from ..errors import ArtefactError
from .address import Address
from .http import Session
from .patience import Dropped, patiently
from .registry import DIGEST

IMAGE = "application/vnd.oci.image.manifest.v1+json"
OURS, CONFIG, LAYER = (
    "application/vnd.l2c-export.artefact",
    "application/vnd.l2c-export.manifest+json",
    "application/octet-stream",
)
TITLE = "org.opencontainers.image.title"
LARGEST = 4 * 2**20  # bytes of an image manifest, as registries have it
CHUNK = 64 * 2**20  # larger files go in pieces, so that a connection that breaks costs one
BLOCK = 2**20
DOCKER = {"docker.io": "registry-1.docker.io", "index.docker.io": "registry-1.docker.io"}


class Blob(msgspec.Struct, frozen=True, rename="camel"):
    """A descriptor: something that a registry keeps by its digest."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] | msgspec.UnsetType = msgspec.UNSET


class Image(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An image manifest."""

    schema_version: int = 2
    media_type: str = IMAGE
    artifact_type: str = OURS
    config: Blob
    layers: tuple[Blob, ...]


class Repository:
    """An artefact in a repository of a registry."""

    def __init__(self, address: Address, plain_http: bool) -> None:
        host = DOCKER.get(address.place, address.place)
        self.address, self.what = address, str(address)
        self._session = Session(host, plain_http or address.is_loopback, self.what)
        self._path = f"/v2/{address.name}"

    def close(self) -> None:
        """Hang up."""
        self._session.close()

    # there

    def has(self, name: str, path: Path, info: FileInfo) -> bool:
        """Whether it keeps this file already."""
        return self._has(DIGEST + info.sha256)

    def _has(self, digest: str) -> bool:
        def ask() -> bool:
            with self._session.asked("HEAD", f"{self._path}/blobs/{digest}", (200, 404)) as answer:
                return bool(answer.status_code == 200)

        return patiently(self.what, ask)

    def send(self, name: str, path: Path, info: FileInfo) -> None:
        """Give it a file, in one piece or several."""
        upload = Upload(self._session, f"{self._path}/blobs/uploads/", path, info)

        def go_on() -> None:
            if not (upload.begun and self._has(DIGEST + info.sha256)):  # its last answer alone may have been lost
                upload.go_on()

        patiently(f"{self.what}: {name}", go_on, lambda: upload.sent)

    def publish(self, data: bytes, manifest: Manifest) -> str:
        """Put the image manifest under its tag."""
        config = Blob(CONFIG, DIGEST + hashlib.sha256(data).hexdigest(), len(data))
        if not self._has(config.digest):
            patiently(self.what, lambda: self._post(config.digest, data))
        layers = [Blob(LAYER, DIGEST + info.sha256, info.bytes, {TITLE: name}) for name, info in sorted(manifest.files.items())]
        image = msgspec.json.encode(Image(config=config, layers=tuple(layers)))
        url = f"{self._path}/manifests/{self.address.tag or 'latest'}"
        patiently(self.what, lambda: self._put(url, image, IMAGE))
        return str(self.address._replace(tag=None, digest=DIGEST + hashlib.sha256(image).hexdigest()))

    def _post(self, digest: str, data: bytes) -> None:
        with self._session.asked("POST", f"{self._path}/blobs/uploads/", (202,)) as answer:
            location = self._session.url(answer.headers["Location"])
        self._put(location.copy_merge_params({"digest": digest}), data, LAYER)

    def _put(self, url: Any, data: bytes, kind: str) -> None:
        headers = {"Content-Type": kind, "Content-Length": str(len(data))}
        with self._session.asked("PUT", url, (201,), headers, lambda: [data]):
            pass

    # back

    def manifest(self) -> bytes:
        """The artefact's manifest.json, by way of the image manifest."""
        image = self._image()
        if image.config.media_type != CONFIG:
            raise ArtefactError(
                f"{self.what}: holds {image.config.media_type[:80]}, no artefact of l2c-export: check the address"
            )
        if image.config.size > store.LARGEST:
            raise ArtefactError(f"{self.what}: its manifest.json has {image.config.size} bytes: no manifest has")
        data = patiently(self.what, lambda: self._small(f"/blobs/{image.config.digest}", "*/*", image.config.size))
        _check(self.what, "manifest.json", data, image.config.digest)
        return data

    def _image(self) -> Image:
        reference = self.address.digest or self.address.tag or "latest"
        data = patiently(self.what, lambda: self._small(f"/manifests/{reference}", IMAGE, LARGEST))
        if self.address.digest:
            _check(self.what, "the image manifest", data, self.address.digest)
        try:
            return msgspec.json.decode(data, type=Image)
        except (msgspec.MsgspecError, RecursionError) as error:
            raise ArtefactError(f"{self.what}: is no image manifest of one artefact: {error}: check the address") from None

    def _small(self, path: str, kind: str, most: int) -> bytes:
        with self._session.asked("GET", self._path + path, (200,), {"Accept": kind}) as answer:
            data = b""
            for block in answer.iter_bytes():
                data += block
                if len(data) > most:
                    raise ArtefactError(f"{self.what}: {path} has more than {most} bytes: do not use it")
            return data

    def fetch(self, name: str, path: Path, info: FileInfo) -> None:
        """Write a file; where the connection breaks, what is missing is asked for."""
        with open(path, "xb") as file:
            patiently(f"{self.what}: {name}", lambda: self._more(name, file, info), file.tell)

    def _more(self, name: str, file: Any, info: FileInfo) -> None:
        """The rest of a file."""
        start = file.tell()
        if start == info.bytes and start:
            return
        headers = {"Range": f"bytes={start}-"} if start else {}
        url = f"{self._path}/blobs/{DIGEST}{info.sha256}"
        with self._session.asked("GET", url, (200, 206) if start else (200,), headers) as answer:
            if start and answer.status_code == 200:  # it sends everything again
                file.seek(0)
                file.truncate()
            for block in answer.iter_raw():
                if file.tell() + len(block) > info.bytes:
                    raise wrong(self.what, name)
                file.write(block)
        if file.tell() < info.bytes:
            raise Dropped(f"{self._session.host} ended after {file.tell()} of {info.bytes} bytes")


class Upload:
    """A file on its way to a registry.  `sent` bytes are there; after a connection that broke, `go_on` asks how many."""

    def __init__(self, session: Session, start: str, path: Path, info: FileInfo) -> None:
        self._session, self._start, self._path, self._info = session, start, path, info
        self._location: Any = None
        self.sent = 0

    @property
    def begun(self) -> bool:
        """Whether the registry has been told of it."""
        return self._location is not None

    def go_on(self) -> None:
        """Send the rest.  Raises Dropped; then it can be called again."""
        whole = self._info.bytes <= CHUNK
        if whole or not self.begun or not self._asked():
            self._begin()
        while not whole and self.sent < self._info.bytes:
            self._piece(min(CHUNK, self._info.bytes - self.sent))
        self._end(self._info.bytes if whole else 0)

    def _begin(self) -> None:
        self.sent = 0
        with self._session.asked("POST", self._start, (202,), {"Content-Length": "0"}) as answer:
            self._locate(answer)

    def _asked(self) -> bool:
        """Whether the upload is known there; how much has arrived."""
        with self._session.asked("GET", self._location, (204, 404)) as answer:
            if answer.status_code == 404:
                return False
            self._locate(answer)
            self.sent = _arrived(answer)
            return self.sent <= self._info.bytes

    def _piece(self, size: int) -> None:
        headers = {"Content-Type": LAYER, "Content-Length": str(size), "Content-Range": f"{self.sent}-{self.sent + size - 1}"}
        with self._session.asked("PATCH", self._location, (202, 416), headers, lambda: self._read(size)) as answer:
            if answer.status_code == 416:
                raise Dropped(f"{self._session.host} has not {self.sent} bytes")
            self._locate(answer)
        self.sent += size

    def _end(self, size: int) -> None:
        url = self._location.copy_merge_params({"digest": DIGEST + self._info.sha256})
        headers = {"Content-Type": LAYER, "Content-Length": str(size)}
        with self._session.asked("PUT", url, (201,), headers, lambda: self._read(size)):
            self.sent = self._info.bytes

    def _locate(self, answer: Any) -> None:
        self._location = self._session.url(answer.headers.get("Location") or self._location)

    def _read(self, size: int) -> Iterator[bytes]:
        with open(self._path, "rb") as file:
            file.seek(self.sent)
            while size and (block := file.read(min(BLOCK, size))):
                size -= len(block)
                yield block


def _arrived(answer: Any) -> int:
    """How many bytes an upload has, by its answer: Range: 0-LAST; none without."""
    last = str(answer.headers.get("Range", "")).rpartition("-")[2]
    return int(last) + 1 if last.isdecimal() and last != "0" else 0


def _check(what: str, name: str, data: bytes, digest: str) -> None:
    if DIGEST + hashlib.sha256(data).hexdigest() != digest:
        raise wrong(what, name)


def wrong(what: str, name: str) -> ArtefactError:
    """The error for a file that is not what its digest says."""
    return ArtefactError(f"{what}: {name} is not what its digest says: nothing was changed; ask whoever keeps it")
