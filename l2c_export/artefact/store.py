"""The artefact on disk, verified before anything in it is used.  How it gets there is in `staging.py`."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Collection
from pathlib import Path
from typing import Any

import msgspec

from ..errors import ArtefactError
from ..support.files import replacing
from ..weights.layout import WEIGHTS
from . import check, damage, staging
from .integrity import check_file, info
from .manifest import VERSION, Manifest
from .records import FILE, FileInfo
from .upgrade import OLDEST, upgraded

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
            check_file(folder, name, info, name not in trusted)
    except ArtefactError:
        if _manifest(folder) == data:
            raise
        return read(folder, verify, trusted)  # it was replaced while we looked at it
    return manifest


def _manifest(folder: Path) -> bytes:
    path = folder / FILE
    try:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            damage.check_regular(path)
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
    remedy = f"give {below[0]}, which has one" if below else f"run l2c_export.compile(out={str(folder)!r})"
    return f"{folder} holds no complete artefact ({FILE} is missing): {remedy}"


def check_linked(folder: Path, manifest: Manifest) -> None:
    """Raise ArtefactError if the artefact has no weights to run with."""
    if manifest.denoiser.weights is None:
        raise ArtefactError(f"{folder} has no weights yet: bind them with l2c_export.link({str(folder)!r}, weights='PATH')")


def check_unchanged(folder: Path, manifest: Manifest) -> None:
    """Raise ArtefactError if the artefact was changed after its manifest was read: its files may be of both."""
    staging.recover(folder)
    try:
        raw = msgspec.json.decode(_manifest(folder))
        unchanged = isinstance(raw, dict) and raw.get("checksum") == manifest.checksum == checksum(raw)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        unchanged = False
    if not unchanged:  # what is the same was checked when it was read
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
        if raw.get("version") not in (OLDEST, VERSION):
            version = repr(raw.get("version"))[:20]
            raise ArtefactError(
                f"{where} has format version {version}, this release reads {OLDEST} to {VERSION}: run l2c-export again"
            )
        manifest = DECODER.decode(data) if raw["version"] == VERSION else msgspec.convert(upgraded(raw), Manifest)
    except (msgspec.MsgspecError, RecursionError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = damage.stand_in(data) or f"damaged: {error}; run l2c-export again"
        raise ArtefactError(f"{where} is {reason}") from None
    if manifest.checksum != checksum(raw):
        raise ArtefactError(f"{where} does not match its checksum: it was damaged or edited; run l2c-export again")
    if contradiction := check.problem(manifest):
        raise ArtefactError(f"{where} contradicts itself: {contradiction}; run l2c-export again")
    return manifest


def checksum(raw: dict[str, Any]) -> str:
    """Of a manifest as it is in its file, so that a field with a default that came later changes nothing.

    A manifest holds coefficients and timesteps: one wrong digit would be a wrong image.
    """
    return hashlib.sha256(msgspec.json.encode({**raw, "checksum": ""})).hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest, hashing every file that lies in the folder; a fingerprint is one of the weights there."""
    names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    files = {n: info(folder / n) for n in names if n != FILE and n not in staging.TOLERATED}
    record = manifest.fingerprint and msgspec.structs.replace(manifest.fingerprint, weights=files[WEIGHTS].sha256)
    write_json(folder / FILE, msgspec.structs.replace(manifest, files=files, fingerprint=record))


def write_json(path: Path, manifest: Manifest) -> Manifest:
    """Replace the manifest in one step; returned is what was written, with its checksum."""
    raw = msgspec.json.decode(msgspec.json.encode(manifest))
    complete = msgspec.structs.replace(manifest, checksum=checksum(raw))
    data = msgspec.json.encode(complete)
    try:
        msgspec.json.decode(data, type=type(manifest))
    except msgspec.ValidationError as error:  # JSON has no NaN and no infinity
        raise ArtefactError(
            f"{path}: would not be read again: {error}: check the model's and the scheduler's numbers"
        ) from None
    with replacing(path) as file:
        file.write(data)
    return complete
