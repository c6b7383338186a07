"""An artefact in a bucket of S3, or of whatever else speaks its protocol: blobs by their digest, and a manifest.json."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..artefact import store
from ..artefact.manifest import Manifest
from ..artefact.records import FILE, FileInfo
from ..errors import ArtefactError, L2CError, RunError
from ..support.extras import needs
from ..support.words import first_line
from .address import Address
from .oci import wrong
from .registry import DIGEST

TRIES = 5
ABSENT = ("404", "NoSuchKey", "NotFound")


class Bucket:
    """An artefact below a folder of a bucket: manifest.json is the last one that was pushed, blobs/ has all."""

    def __init__(self, address: Address) -> None:
        self.address, self.what = address, str(address)
        boto3 = needs("boto3", "registry")
        settings = needs("boto3.session", "registry").botocore.config.Config(
            retries={"mode": "standard", "max_attempts": TRIES}
        )
        with self._in_one_line():
            self._client: Any = boto3.client("s3", config=settings)

    def close(self) -> None:
        """Hang up."""
        self._client.close()

    def has(self, name: str, path: Path, info: FileInfo) -> bool:
        """Whether it keeps a blob of this digest and size already."""
        try:
            with self._in_one_line(absent=True):
                head = self._client.head_object(Bucket=self.address.place, Key=self._blob(info.sha256))
        except Absent:
            return False
        return bool(head["ContentLength"] == info.bytes)

    def send(self, name: str, path: Path, info: FileInfo) -> None:
        """Give it a file, in parts where it is large."""
        with self._in_one_line():
            self._client.upload_file(str(path), self.address.place, self._blob(info.sha256))

    def publish(self, data: bytes, manifest: Manifest) -> str:
        """The manifest as a blob, and in the place of the one before."""
        digest = hashlib.sha256(data).hexdigest()
        for key in (self._blob(digest), f"{self.address.name}/{FILE}"):
            with self._in_one_line():
                self._client.put_object(Bucket=self.address.place, Key=key, Body=data, ContentType="application/json")
        return str(self.address._replace(digest=DIGEST + digest))

    def manifest(self) -> bytes:
        """The manifest.json, or the blob of the digest in the address."""
        digest = (self.address.digest or "").removeprefix(DIGEST)
        key = self._blob(digest) if digest else f"{self.address.name}/{FILE}"
        with self._in_one_line():
            answer = self._client.get_object(Bucket=self.address.place, Key=key)
            data: bytes = answer["Body"].read(store.LARGEST + 1)
        if len(data) > store.LARGEST:
            raise ArtefactError(f"{self.what}: its {FILE} has more than {store.LARGEST} bytes: no manifest has")
        if digest and hashlib.sha256(data).hexdigest() != digest:
            raise wrong(self.what, FILE)
        return data

    def fetch(self, name: str, path: Path, info: FileInfo) -> None:
        """Write a file, in parts where it is large."""
        if not self.has(name, path, info):
            raise ArtefactError(f"{self.what}: {name} is not there, or of another size: nothing was changed; push it again")
        with self._in_one_line():
            self._client.download_file(self.address.place, self._blob(info.sha256), str(path))

    def _blob(self, digest: str) -> str:
        return f"{self.address.name}/blobs/sha256/{digest}"

    @contextlib.contextmanager
    def _in_one_line(self, absent: bool = False) -> Iterator[None]:
        """The library's errors; Absent for what is not there, if that is asked for."""
        try:
            yield
        except L2CError:
            raise
        except Exception as error:  # of the library, and of the one below it
            told = getattr(error, "response", {}).get("Error", {})
            if told.get("Code") in ABSENT and absent:
                raise Absent from None
            if isinstance(error, OSError) and error.errno:
                raise
            remedy = "check the address, the credentials and the network, and give the same command again"
            raise RunError(f"{self.what}: {first_line(error).rstrip('.')}: {remedy}") from None


class Absent(Exception):
    """There is nothing of this name."""
