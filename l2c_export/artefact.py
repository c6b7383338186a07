"""The artefact on disk: written whole or not at all, and verified before anything in it is used."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import msgspec

from . import weights
from .errors import ArtefactError
from .manifest import FILE, VERSION, FileInfo, Manifest

TOLERATED = {"README.md", ".gitignore"}  # what may lie in an output folder that is not an artefact


def read(folder: Path, verify: bool = True) -> Manifest:
    """The manifest of an artefact, after checking its version and every file's size and hash."""
    try:
        data = (folder / FILE).read_bytes()
    except OSError:
        raise ArtefactError(f"{folder} holds no complete artefact ({FILE} is missing): run l2c-export --out {folder}") from None
    manifest = parse(data, str(folder / FILE))
    used = {s.file for s in manifest.segments.values()} | {g.file for g in manifest.graphs.values()}
    used |= {weights.FILE} if manifest.weights else set()
    used |= {manifest.decoder.file} if manifest.decoder else set()
    used |= {file for build in manifest.builds.values() for file in build.engines.values()}
    if unlisted := sorted(used - set(manifest.files)):
        raise ArtefactError(f"{folder / FILE} does not list {unlisted[0]}, which it uses: run l2c-export again")
    for name, info in manifest.files.items() if verify else ():
        _verify(folder, name, info)
    return manifest


def parse(data: bytes, where: str) -> Manifest:
    """Decode a manifest, telling an old or foreign one from a damaged one."""
    try:
        head = msgspec.json.decode(data)
        if not isinstance(head, dict) or head.get("format") != "l2c-export":
            raise ArtefactError(f"{where} was not written by l2c-export")
        if head.get("version") != VERSION:
            raise ArtefactError(
                f"{where} has format version {head.get('version')}, this release reads {VERSION}: run l2c-export again"
            )
        manifest = msgspec.json.decode(data, type=Manifest)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise ArtefactError(f"{where} is damaged: {error}; run l2c-export again") from None
    if manifest.checksum != checksum(manifest):
        raise ArtefactError(f"{where} does not match its checksum: it was damaged or edited; run l2c-export again")
    return manifest


def checksum(manifest: Manifest) -> str:
    """A manifest holds coefficients and timesteps: one wrong digit would be a wrong image."""
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, checksum=""))).hexdigest()


def _verify(folder: Path, name: str, info: FileInfo) -> None:
    path = folder / name
    if not _inside(folder, name):
        raise ArtefactError(f"{folder / FILE} names {name!r}, which is outside the artefact: do not use this artefact")
    if not path.is_file():
        raise ArtefactError(f"{path} is missing: the artefact is incomplete; run l2c-export again")
    if path.stat().st_size != info.bytes:
        raise ArtefactError(f"{path} has {path.stat().st_size} bytes, expected {info.bytes}: run l2c-export again")
    if sha256(path) != info.sha256:
        raise ArtefactError(f"{path} does not match its hash: the artefact is damaged; run l2c-export again")


def _inside(folder: Path, name: str) -> bool:
    """Whether a name from a manifest stays in its folder, through links too."""
    plain = not PurePosixPath(name).is_absolute() and ".." not in PurePosixPath(name).parts and "\0" not in name
    return plain and (folder / name).resolve().is_relative_to(folder.resolve())


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file) -> str:  # type: ignore[no-untyped-def]  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def info(path: Path) -> FileInfo:
    return FileInfo(bytes=path.stat().st_size, sha256=sha256(path))


def check_target(folder: Path) -> None:
    """Refuse an output folder that holds anything but an artefact of ours."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ArtefactError(f"--out {folder}: is a file, not a folder")
    ours = {FILE, *_old_files(folder)}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink() and any(o.startswith(name + "/") for o in ours):
            continue
        if name not in ours and name not in TOLERATED and not name.startswith(".l2c-partial"):
            raise ArtefactError(f"--out {folder}: holds {name}, which is not ours: choose an empty folder")


class AnyVersion(msgspec.Struct):
    """What manifests of all versions have in common: enough to replace an artefact that cannot be read."""

    format: Literal["l2c-export"]
    files: dict[str, Any]


def _old_files(folder: Path) -> list[str]:
    """The files of the artefact in `folder`, of any format version, if it holds one."""
    try:
        names = msgspec.json.decode((folder / FILE).read_bytes(), type=AnyVersion).files
    except (OSError, msgspec.MsgspecError, RecursionError, ValueError):
        return []
    return [name for name in names if _inside(folder, name) and name not in TOLERATED]


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder to write an artefact to; it replaces the artefact in `folder` when the block ends without an error.

    After an error nothing has changed.
    """
    check_target(folder)
    existed = folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = Path(tempfile.mkdtemp(prefix=".l2c-partial-", dir=folder))
    except OSError as error:
        raise ArtefactError(f"--out {folder}: cannot be written: {error.strerror}: choose another folder") from None
    try:
        yield stage
        _replace(folder, stage)
    except OSError as error:
        raise ArtefactError(f"--out {folder}: cannot be written: {error.strerror or error}: choose another folder") from None
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not existed and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()


def _replace(folder: Path, stage: Path) -> None:
    old = _old_files(folder)
    (folder / FILE).unlink(missing_ok=True)  # from here on the old artefact is not complete any more
    for name in old:
        (folder / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty yet, or the artefact's own folder
            (folder / name).parent.rmdir()
    new = sorted(p.relative_to(stage).as_posix() for p in stage.rglob("*") if p.is_file())
    for name in sorted(new, key=lambda n: n == FILE):  # the manifest last: present means complete
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(stage / name, folder / name)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, hashing every file that lies in the folder."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file() and not _hidden(p, folder))
    files = {n: info(folder / n) for n in names if n != FILE and n not in TOLERATED}
    write_json(folder / FILE, msgspec.structs.replace(manifest, files=files))


def write_json(path: Path, manifest: Manifest) -> Manifest:
    """Replace the manifest in one step; returned is what was written, with its checksum."""
    summed = msgspec.structs.replace(manifest, checksum=checksum(manifest))
    partial = path.with_name(f"{FILE}.partial")
    with open(partial, "wb") as file:
        file.write(msgspec.json.encode(summed))
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)
    return summed


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
