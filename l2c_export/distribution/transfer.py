"""`push` and `pull`: an artefact to a registry and back, every file checked against the manifest on arrival."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..artefact import integrity, staging, store
from ..artefact.manifest import Manifest
from ..artefact.records import FILE, FileInfo
from ..errors import ArtefactError, UsageError
from ..runtime.request import folder
from ..support.files import Report
from ..support.log import logged
from ..support.progress import Progress, unseen
from ..support.words import counted
from .address import Address, address_of
from .bucket import Bucket
from .hub import HubRepository
from .oci import Repository, wrong
from .registry import Registry


@dataclass(frozen=True)
class PushResult:
    """What `push` has done: the address that means this very artefact for ever, and what had to be sent."""

    address: str
    files: int
    sent: int
    bytes_sent: int


@dataclass(frozen=True)
class PullResult:
    """What `pull` has done: the folder, and what had to be fetched.  It stands wherever a path may."""

    path: Path
    files: int
    fetched: int
    bytes_fetched: int

    def __fspath__(self) -> str:
        return str(self.path)


def push(
    path: str | os.PathLike[str], address: str, *, plain_http: bool = False, report: Report = logged,
    progress: Progress = unseen,
) -> PushResult:  # fmt: skip
    """Send an artefact to `address`: oci://HOST/REPOSITORY:TAG, hf://OWNER/NAME[@BRANCH] or s3://BUCKET/FOLDER.

    Every file is a blob of its own by the hash that the manifest has of it; what the registry has is not sent again.  The
    address begins to mean the new artefact when all files are there.  Who we are is what docker, the hub's and Amazon's
    clients have kept.  `plain_http` speaks to a registry of containers without TLS, as is done with this machine's.
    Raises ArtefactError for a damaged artefact, RunError where the registry or the network fails: then the same call goes on.
    """
    target, here = address_of(address), folder(path)
    if target.digest:
        raise UsageError(f"{address}: a digest follows from what is pushed: leave it out")
    manifest = store.read(here)
    data = (here / FILE).read_bytes()
    sent: dict[str, FileInfo] = {}
    with _opened(target, plain_http, report) as place:
        step = progress("pushing", max(manifest.bytes, 1))
        for name, info in sorted(manifest.files.items()):
            if not place.has(name, here / name, info):
                place.send(name, here / name, info)
                sent[name] = info
            step(info.bytes)
        store.check_unchanged(here, manifest)
        lasting = place.publish(data, manifest)
    result = PushResult(lasting, len(manifest.files), len(sent), sum(info.bytes for info in sent.values()))
    report(f"{lasting}: {counted(result.sent, 'file')} of {result.files} sent, {result.bytes_sent / 2**20:.1f} MB")
    return result


def pull(
    path: str | os.PathLike[str], address: str, *, trust_engines: bool = False, plain_http: bool = False,
    report: Report = logged, progress: Progress = unseen,
) -> PullResult:  # fmt: skip
    """Bring the artefact at `address` into the folder `path`, in place of the one that is there, if there is one.

    Addresses are those of `push`; with @sha256:.. (or @COMMIT of the hub) behind them they mean one artefact for ever.  Files
    that the folder has are not fetched again.  Every file is checked against its hash before the folder changes, in one
    moment; after an error it is as it was.  An artefact with engines for GPUs is a program: it is refused without
    `trust_engines`.  `plain_http` is that of `push`.
    Raises ArtefactError for what is no artefact, or not what its hashes say, RunError where the registry or the network fails.
    """
    source, target = address_of(address), folder(path)
    staging.check_target(target, report, "")
    with _opened(source, plain_http, report) as place:
        data = place.manifest()
        manifest = store.parse(data, f"{source}: {FILE}")
        _check(source, manifest, trust_engines)
        with staging.staged(target, report, "") as stage:
            step = progress("pulling", max(manifest.bytes, 1))
            present, fetched = _present(target), dict[str, FileInfo]()
            for name, info in sorted(manifest.files.items()):
                if not _copied(present.get(info.sha256), stage / name, info):
                    _receive(place, source, name, stage / name, info)
                    fetched[name] = info
                step(info.bytes)
            (stage / FILE).write_bytes(data)
    result = PullResult(target, len(manifest.files), len(fetched), sum(info.bytes for info in fetched.values()))
    report(f"{target}: {counted(result.fetched, 'file')} of {result.files} fetched, {result.bytes_fetched / 2**20:.1f} MB")
    return result


@contextlib.contextmanager
def _opened(address: Address, plain_http: bool, report: Report) -> Iterator[Registry]:
    """The registry that an address is of.  Raises MissingExtra."""
    if plain_http and address.scheme != "oci":
        raise UsageError("plain_http=True: is for a registry of containers (oci://..): leave it out")
    place: Repository | HubRepository | Bucket
    if address.scheme == "oci":
        place = Repository(address, plain_http)
    else:
        place = HubRepository(address, report) if address.scheme == "hf" else Bucket(address)
    with contextlib.closing(place):
        yield place


def _check(source: Address, manifest: Manifest, trust_engines: bool) -> None:
    """Refuse an artefact before anything is fetched: one with programs, or with files outside of its folder."""
    if manifest.builds and not trust_engines:
        names = ", ".join(sorted(manifest.builds))
        raise UsageError(
            f"{source}: holds engines for GPUs ({names}), which are programs: if you trust who made them, pull it with "
            "trust_engines=True"
        )
    for name in manifest.files:
        if not integrity.NAME.fullmatch(name) or name == FILE or name in staging.TOLERATED:
            raise ArtefactError(f"{source}: names a file {name!r}, which no artefact has: do not use it")


def _present(folder: Path) -> dict[str, Path]:
    """The files of the artefact that is there, by their hashes as its manifest has them."""
    try:
        manifest = store.read(folder, verify=False)
    except ArtefactError:
        return {}
    return {info.sha256: folder / name for name, info in manifest.files.items()}


def _copied(present: Path | None, path: Path, info: FileInfo) -> bool:
    """Whether a file was there, is right, and is now in the staging folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if present is None or not _is(present, info):
        return False
    shutil.copyfile(present, path)
    return True


def _receive(place: Registry, source: Address, name: str, path: Path, info: FileInfo) -> None:
    """One file into the staging folder, fetched and checked."""
    place.fetch(name, path, info)
    if not _is(path, info):
        raise wrong(str(source), name)


def _is(path: Path, info: FileInfo) -> bool:
    """Whether a file is what its hash says."""
    try:
        return path.stat().st_size == info.bytes and integrity.sha256(path) == info.sha256
    except OSError:
        return False
