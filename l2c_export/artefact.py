"""The artefact on disk, verified before anything in it is used.  How it gets there is in `staging.py`."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from . import consistency, damage, staging, weights
from .errors import ArtefactError
from .files import replacing
from .manifest import FILE, VERSION, FileInfo, Manifest

# external data in an ONNX file: an entry with the key `location`, then its value with tag and length (protobuf)
LOCATION, WEIGHTS = b"location", b"\x12" + bytes([len(weights.FILE)]) + weights.FILE.encode()
DECODER = msgspec.json.Decoder(Manifest)  # made here, once: two threads that make one crash in msgspec
LARGEST = 64 * 2**20  # bytes of a manifest; that of a large model has less than one MB


def read(folder: Path, verify: bool = True, trusted: Collection[str] = ()) -> Manifest:
    """The manifest of an artefact, after checking its version, and every file's size and hash.

    The hashes of `trusted` files are not computed, so that these are no links out of the folder; without `verify` no file is
    looked at, only the manifest.
    """
    staging.recover(folder)
    data = _manifest(folder)
    manifest = parse(data, str(folder / FILE))
    try:
        for name, info in manifest.files.items() if verify else ():
            _verify(folder, name, info, name not in trusted)
    except ArtefactError:
        if _manifest(folder) == data:
            raise
        return read(folder, verify, trusted)  # it was replaced while we looked at it
    return manifest


def _manifest(folder: Path) -> bytes:
    path = folder / FILE
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            damage.check_file(path)
        with open(path, "rb") as file:
            return file.read(LARGEST + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtefactError(_nothing(folder)) from None
    except OSError as error:
        raise ArtefactError(f"{path}: {damage.unreadable(error)}") from None


def _nothing(folder: Path) -> str:
    """What is wrong with a folder that has no manifest."""
    if folder.is_file():
        return f"{folder} is a file: give the artefact's folder, {folder.parent}"
    below = sorted(path.parent for path in folder.glob(f"*/{FILE}"))
    remedy = f"give {below[0]}, which has one" if below else f"run l2c-export --out {folder}"
    return f"{folder} holds no complete artefact ({FILE} is missing): {remedy}"


def check_linked(folder: Path, manifest: Manifest) -> None:
    """Raise ArtefactError if the artefact has no weights to run with."""
    if manifest.weights is None:
        raise ArtefactError(f"{folder} has no weights yet: bind them with l2c link {folder} --weights PATH")


def check_unchanged(folder: Path, manifest: Manifest) -> None:
    """Raise ArtefactError if the artefact was changed after its manifest was read: its files may be of both."""
    if read(folder, verify=False).checksum != manifest.checksum:
        raise ArtefactError(f"{folder}: was replaced since it was loaded: load it again")


def check_same(folder: Path, name: str, info: FileInfo) -> None:
    """Raise ArtefactError if a file is no longer the one that `info` describes."""
    if read(folder, verify=False).files.get(name) != info:
        raise ArtefactError(f"{folder}: {name} was replaced since the artefact was loaded: load it again")


def parse(data: bytes, where: str) -> Manifest:
    """Decode a manifest, telling an old or foreign one from a damaged one.  It agrees with itself, or is refused."""
    if len(data) > LARGEST:
        raise ArtefactError(f"{where} is larger than {LARGEST >> 20} MB: no manifest is")
    try:
        raw = msgspec.json.decode(data)
        if not isinstance(raw, dict) or raw.get("format") != "l2c-export":
            raise ArtefactError(f"{where} was not written by l2c-export")
        if raw.get("version") != VERSION:
            found = repr(raw.get("version"))[:20]
            raise ArtefactError(f"{where} has format version {found}, this release reads {VERSION}: run l2c-export again")
        manifest = DECODER.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        found = damage.stand_in(data) or f"damaged: {error}; run l2c-export again"
        raise ArtefactError(f"{where} is {found}") from None
    if manifest.checksum != checksum(raw):
        raise ArtefactError(f"{where} does not match its checksum: it was damaged or edited; run l2c-export again")
    if wrong := consistency.problem(manifest):
        raise ArtefactError(f"{where} contradicts itself: {wrong}; run l2c-export again")
    return manifest


def checksum(raw: dict[str, Any]) -> str:
    """Of a manifest as it is in its file, so that a field with a default that came later changes nothing.

    A manifest holds coefficients and timesteps: one wrong digit would be a wrong image.
    """
    return hashlib.sha256(msgspec.json.encode({**raw, "checksum": ""})).hexdigest()


def _verify(folder: Path, name: str, info: FileInfo, hashed: bool) -> None:
    """Compare a file with what the manifest says.  A link is as good as what it leads to, if that is hashed."""
    path = folder / name
    if not staging.NAME.fullmatch(name):
        raise ArtefactError(f"{folder / FILE} names {name!r}, which is outside the artefact: do not use this artefact")
    if not staging.inside(folder, name):
        raise ArtefactError(f"{path} is in a folder that is a link: put the folder itself there (cp -rL)")
    damage.check_file(path)
    if not hashed and leaves(folder, path):
        raise ArtefactError(
            f"{path} is a link out of the artefact, to what would not be checked: load it without verify=False (--trust)"
        )
    try:
        same = path.stat().st_size == info.bytes and not (hashed and sha256(path) != info.sha256)
    except OSError as error:
        raise ArtefactError(f"{path} {damage.unreadable(error)}") from None
    if not same:
        raise mismatch(path, info)


def leaves(folder: Path, path: Path) -> bool:
    """Whether a file is, through links, not in its folder."""
    return not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))


def mismatch(path: Path, info: FileInfo) -> ArtefactError:
    return ArtefactError(f"{path} {damage.changed(path, info)}")


def verified(path: Path, info: FileInfo) -> bytes:
    """The bytes of a file, which are those that were hashed: what a library is given cannot be changed after the check."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path} {damage.unreadable(error)}") from None
    if len(data) != info.bytes or hashlib.sha256(data).hexdigest() != info.sha256:
        raise mismatch(path, info)
    return data


def check_closed(data: bytes, path: Path) -> bytes:
    """The bytes of an ONNX model, which may keep data in the artefact's weights and in no other file.

    Not every ONNX reader refuses other files, and they know no way to ask: every place that says where data lies is looked at.
    """
    if data.count(LOCATION) != data.count(LOCATION + WEIGHTS):
        raise ArtefactError(f"{path} keeps data outside {weights.FILE}: do not use this artefact")
    return data


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


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, hashing every file that lies in the folder."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = {n: info(folder / n) for n in names if n != FILE and n not in staging.TOLERATED}
    write_json(folder / FILE, msgspec.structs.replace(manifest, files=files))


def write_json(path: Path, manifest: Manifest) -> Manifest:
    """Replace the manifest in one step; returned is what was written, with its checksum."""
    raw = msgspec.json.decode(msgspec.json.encode(manifest))
    summed = msgspec.structs.replace(manifest, checksum=checksum(raw))
    data = msgspec.json.encode(summed)
    try:
        msgspec.json.decode(data, type=type(manifest))
    except msgspec.ValidationError as error:  # JSON has no NaN and no infinity
        raise ArtefactError(
            f"{path}: would not be read again: {error}: check the model's and the scheduler's numbers"
        ) from None
    with replacing(path) as file:
        file.write(data)
    return summed
