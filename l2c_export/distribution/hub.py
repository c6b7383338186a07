"""An artefact in a repository of the Hugging Face hub: its files by their names, all of them in one commit."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..artefact import store
from ..artefact.manifest import Manifest
from ..artefact.records import FILE, FileInfo
from ..artefact.staging import ours
from ..errors import ArtefactError, L2CError, RunError
from ..support.extras import needs
from ..support.files import Report
from ..support.words import first_line
from .address import Address
from .card import CARD, card

MISSING = (
    "RepositoryNotFoundError",
    "RevisionNotFoundError",
    "EntryNotFoundError",
    "RemoteEntryNotFoundError",
    "GatedRepoError",
)


class HubRepository:
    """An artefact in a repository of the hub."""

    def __init__(self, address: Address, report: Report) -> None:
        self.address, self.what, self._report = address, str(address), report
        self._hub = needs("huggingface_hub", "registry")
        self._api = self._hub.HfApi()
        self._id = f"{address.place}/{address.name}"
        self._commit: str | None = None  # that is read
        self._there: dict[str, Any] | None = None  # its files, where they are about to be replaced
        self._added: dict[str, Path] = {}
        self._folder = Path(tempfile.mkdtemp(prefix="l2c-hub-"))

    def close(self) -> None:
        """Remove what was downloaded to be looked at."""
        shutil.rmtree(self._folder, ignore_errors=True)

    # there

    def has(self, name: str, path: Path, info: FileInfo) -> bool:
        """Whether it keeps this file already, under this name."""
        return _is(self._files().get(name), path, info)

    def send(self, name: str, path: Path, info: FileInfo) -> None:
        """Take a file into the commit."""
        self._added[name] = path

    def publish(self, data: bytes, manifest: Manifest) -> str:
        """The commit: what is new, the manifest, a card where there is none, and without what an earlier artefact had."""
        add, delete = self._hub.CommitOperationAdd, self._hub.CommitOperationDelete
        there = self._files()
        if not self._added and FILE in there and there[FILE].blob_id == _git_hash(data):
            return str(self.address._replace(tag=self._sha()))
        added = [add(path_in_repo=name, path_or_fileobj=str(path)) for name, path in self._added.items()]
        added.append(add(path_in_repo=FILE, path_or_fileobj=data))
        if CARD not in there:
            added.append(add(path_in_repo=CARD, path_or_fileobj=card(manifest, self._id).encode()))
        gone = sorted(self._earlier() - set(manifest.files) - {FILE})
        message = f"{manifest.denoiser.name or manifest.denoiser.family}, compiled by {manifest.tool}"
        with self._in_one_line():
            commit = self._api.create_commit(
                self._id, [*added, *(delete(path_in_repo=name) for name in gone if name in there)], commit_message=message,
                revision=self.address.tag,
            )  # fmt: skip
            there = self._tree(commit.oid)
        for name, path in self._added.items():
            if not _is(there.get(name), path, manifest.files[name]):
                raise RunError(f"{self.what}: the hub has left out {name}, perhaps by a .gitignore there: remove that")
        return str(self.address._replace(tag=commit.oid))

    def _files(self) -> dict[str, Any]:
        """What is in the repository, by name; it is made, private, if it is not there."""
        if self._there is None:
            with self._in_one_line():
                if not self._api.repo_exists(self._id):
                    self._api.create_repo(self._id, private=True)
                    self._report(f"{self.what}: made, private: whom it is for is said on its page")
                self._there = self._tree(self.address.tag)
        return self._there

    def _tree(self, revision: str | None) -> dict[str, Any]:
        files = self._api.list_repo_tree(self._id, recursive=True, revision=revision)
        return {file.path: file for file in files if hasattr(file, "blob_id")}

    def _earlier(self) -> set[str]:
        """The files of the artefact that is in the repository, if one is."""
        if FILE not in self._files():
            return set()
        self._download(FILE, self.address.tag, self._folder)
        return ours(self._folder)

    # back

    def manifest(self) -> bytes:
        """The artefact's manifest.json, of one commit, from which all else will come."""
        self._commit = self._sha()
        path = self._download(FILE, self._commit, self._folder)
        if path.stat().st_size > store.LARGEST:
            raise ArtefactError(f"{self.what}: its {FILE} has {path.stat().st_size} bytes: no manifest has")
        return path.read_bytes()

    def fetch(self, name: str, path: Path, info: FileInfo) -> None:
        """Write a file; the hub's client goes on after a connection that broke."""
        root = path.parents[name.count("/")]
        try:
            self._download(name, self._commit, root)
        finally:
            shutil.rmtree(root / ".cache", ignore_errors=True)  # what the client has noted

    def _sha(self) -> str:
        """The commit that the address means now."""
        with self._in_one_line():
            return str(self._api.repo_info(self._id, revision=self.address.tag).sha)

    def _download(self, name: str, revision: str | None, folder: Path) -> Path:
        with self._in_one_line():
            return Path(self._hub.hf_hub_download(self._id, name, revision=revision, local_dir=folder))

    @contextlib.contextmanager
    def _in_one_line(self) -> Iterator[None]:
        """The hub's errors; those of the disk as they are."""
        errors = needs("huggingface_hub.errors", "registry")
        again = "check the network, and give the same command again"
        try:
            yield
        except L2CError:
            raise
        except errors.LocalEntryNotFoundError as error:  # what a download says where the hub does not answer as it should
            raise RunError(f"{self.what}: {_words(error.__cause__ or error)}: {again}") from None
        except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
            raise RunError(f"{self.what}: {_words(error)}: check the address; for a private one: hf auth login") from None
        except Exception as error:  # of the network library, which is another one in every release
            if isinstance(error, OSError) and error.errno:
                raise
            raise RunError(f"{self.what}: {_words(error)}: {again}") from None


def _is(file: Any, path: Path, info: FileInfo) -> bool:
    """Whether a file of the hub is this one: large files go by the hash that we have, small ones by git's."""
    if file is None or file.size != info.bytes:
        return False
    return bool(file.lfs.sha256 == info.sha256 if file.lfs else file.blob_id == _git_hash(path.read_bytes()))


def _words(error: BaseException) -> str:
    return first_line(error).rstrip(".")


def _git_hash(data: bytes) -> str:
    """What git calls the content of a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
