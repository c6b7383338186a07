"""What a file is: its first bytes say it, whatever it is called."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from .files import small

HEAD = 4096  # bytes that are looked at
LEGACY = bytes.fromhex("6cfc9c46f9206aa85019")  # the magic number that torch.save wrote first, before it made zip archives
TENSORFLOW = bytes.fromhex("57fb808b247547db")  # the last bytes of its tables


class Kind(NamedTuple):
    """What a file is, and what helps if another kind was wanted ("" for nothing in particular)."""

    words: str
    remedy: str = ""

    def instead(self, remedy: str) -> str:
        """The part of a message that says what was found instead of what was wanted."""
        return f"it is {self.words}: {self.remedy or remedy}"


AGAIN = "download the file itself"
UNPACK = "give the file that is inside"
SAFETENSORS = Kind("a .safetensors file", "give weights with weights=..")
TORCH = Kind("a file of torch.save")
LEGACY_TORCH = Kind("a file of torch.save in its old format")
JSON = Kind("JSON")
EMPTY = Kind("empty", "download or save it again")
POINTER = Kind("a pointer of Git LFS, not what it points to", f"{AGAIN}, as with git lfs pull")
PAGE = Kind("a web page, perhaps of an error or a login", AGAIN)
CONFLICT = Kind("a text with the marks of a merge conflict", "settle it, or download the file again")
UTF16 = Kind("a text in UTF-16, as PowerShell writes it", "give it in UTF-8")
TEXT = Kind("a text")
PLAIN_PICKLE = Kind("a pickle, but not one of torch.save", "give the state_dict() that it holds, as torch.save writes it")
NPZ = Kind("an .npz archive of NumPy")
SCRIPT = Kind("a TorchScript archive", "give its state_dict(), as torch.save writes it")
ZIP = Kind("a zip archive, but no checkpoint", UNPACK)
UNKNOWN = Kind("of no kind that is known here")

SIGNATURES = (
    (b"GGUF", Kind("a GGUF file, of llama.cpp or stable-diffusion.cpp")),
    (b"\x93NUMPY", Kind("an .npy array of NumPy")),
    (b"\x89HDF\r\n\x1a\n", Kind("an HDF5 file, as of Keras")),
    (b"\x1f\x8b", Kind("packed with gzip", UNPACK)),
    (b"BZh", Kind("packed with bzip2", UNPACK)),
    (b"\xfd7zXZ\0", Kind("packed with xz", UNPACK)),
    (b"\x28\xb5\x2f\xfd", Kind("packed with zstd", UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", Kind("a 7z archive", UNPACK)),
    (b"Rar!", Kind("a RAR archive", UNPACK)),
    (b"\x89PNG", Kind("a PNG picture")),
    (b"\xff\xd8\xff", Kind("a JPEG picture")),
    (b"%PDF", Kind("a PDF")),
    (b"SQLite format 3", Kind("a database of SQLite")),
)


def of(path: Path) -> Kind:
    """What the file at `path` is.  Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        head, size = file.read(HEAD), file.seek(0, 2)
        file.seek(max(0, size - 8))
        tail = file.read(8)
    if head.startswith((b"PK\3\4", b"PK\5\6")):
        return _archive(path)
    if tail == TENSORFLOW:
        return Kind("a checkpoint of TensorFlow")
    return of_bytes(head)


def of_bytes(head: bytes) -> Kind:
    """The same, from the first bytes of what is no zip archive."""
    if not head:
        return EMPTY
    if head[4:7] == bytes(3) and head[8:9] == b"{":  # the length of the header that follows, which nobody makes of 4 GB
        return SAFETENSORS
    if head[:1] == b"\x80" and head[1:2] in b"\2\3\4\5":
        return LEGACY_TORCH if LEGACY in head[:40] else PLAIN_PICKLE
    for signature, kind in SIGNATURES:
        if head.startswith(signature):
            return kind
    if head[257:262] == b"ustar":
        return Kind("a tar archive", UNPACK)
    if head[:1] == b"\x08" and head[2:3] in (b"\x12", b"\x3a", b"\x42"):
        return Kind("an ONNX model", "give the checkpoint that it was exported from")
    return _text(head)


def _archive(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError):
        return TORCH  # truncated, most likely; its reader says more
    if any(name.endswith("constants.pkl") for name in names):
        return SCRIPT
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return TORCH
    return NPZ if names and all(name.endswith(".npy") for name in names) else ZIP


def _text(head: bytes) -> Kind:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or (head[:1] in b"{[" and head[1:2] == b"\0"):
        return UTF16
    head = head.removeprefix(b"\xef\xbb\xbf")
    start = head.lstrip()[:200].lower()
    if start.startswith(b"version https://git-lfs"):
        return POINTER
    if start.startswith((b"<!doctype", b"<html", b"<?xml", b"<head", b"<error")):
        return PAGE
    if re.search(rb"^(<<<<<<< |>>>>>>> )", head, re.MULTILINE):
        return CONFLICT
    if start[:1] in (b"{", b"[", b'"'):
        return JSON
    return TEXT if _is_text(head) else UNKNOWN


def _is_text(head: bytes) -> bool:
    """Whether the bytes are UTF-8 (perhaps cut inside a character) without control characters."""
    try:
        decoded = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:
            return False
        decoded = head[: error.start].decode("utf-8")
    return all(c.isprintable() or c in "\t\r\n\f" for c in decoded)


def is_json(path: Path) -> bool:
    """Whether a file holds JSON, or is called so and holds no tensors: its reader then says what is wrong with it."""
    is_named_json = path.suffix.lower() == ".json"
    try:
        kind = of(path)
    except OSError:
        return is_named_json
    return kind in (JSON, UTF16) or (is_named_json and kind not in (TORCH, LEGACY_TORCH))


class NotJson(ValueError):
    """A file of another kind, where JSON is wanted; the message says which and what to do."""


def json_text(path: Path, remedy: str = "give JSON") -> bytes:
    """The text of a file of JSON, in UTF-8 and without a byte order mark.

    Raises OSError where it cannot be read, and NotJson for a file that is recognised as something else.
    """
    data = small(path)
    kind = of(path)
    if kind not in (JSON, TEXT, UNKNOWN):
        raise NotJson(kind.instead(remedy))
    return data.removeprefix(b"\xef\xbb\xbf")


INDEX = Kind("an index of weights", "give it with weights=..")
SCHEDULE = Kind("a schedule", "give it with schedule=..")
MODEL = Kind("a description of a model", "give it with model=..")
SCHEDULER = Kind("the configuration of a scheduler", "give it with sampler=..")
# what files of JSON are, by a key that only they have, and the option that takes each
JSON_KINDS: tuple[tuple[str, Kind], ...] = (
    ("checksum", Kind("the manifest of an artefact", "give the schedule.json that lies beside it")),
    ("weight_map", INDEX),
    ("arch", MODEL),
    ("calls", SCHEDULE),
    ("beta_schedule", SCHEDULER),
    ("num_train_timesteps", SCHEDULER),
    ("transformer", Kind("the index of a pipeline", "give its folder with model=..")),
    ("_class_name", Kind("a configuration of diffusers", "give the pipeline's folder with model=..")),
)


def of_json(content: object) -> Kind | None:
    """What decoded JSON is, as far as it is of a kind that somebody may confuse with another."""
    if not isinstance(content, Mapping):
        return None
    if "Scheduler" in str(content.get("_class_name")):
        return SCHEDULER
    return next((kind for key, kind in JSON_KINDS if key in content), None)
