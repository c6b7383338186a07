"""Coverage-guided fuzzing of everything that reads files: `pip install atheris`, then

    python scripts/fuzz.py manifest|schedule|router|safetensors|model [-max_total_time=60] [-runs=..]

An exception that is not an L2CError of one line ends it, with the input in a file called crash-*.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import msgspec  # noqa: E402

with atheris.instrument_imports(include=["l2c_export", "zipfile"]):
    from l2c_export import L2CError, Schedule
    from l2c_export.artefact import store, user_weights
    from l2c_export.models import lookup
    from l2c_export.schedules import routers

GOLDEN = ROOT / "tests" / "golden" / "v2"
FOLDER = Path(tempfile.mkdtemp(prefix="l2c-fuzz-"))
ARTEFACT = store.read(GOLDEN / "engines")


def manifest(data: bytes) -> object:
    """Signed, so that more than the checksum is reached."""
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, ValueError):
        raw = None
    signed = msgspec.json.encode({**raw, "checksum": store.checksum(raw)}) if isinstance(raw, dict) else data
    return store.parse(signed, "manifest.json")


def in_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    path = FOLDER / name

    def of_bytes(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return of_bytes


READERS: dict[str, tuple[Callable[[bytes], object], Path]] = {
    "manifest": (manifest, GOLDEN / "engines" / "manifest.json"),
    "schedule": (in_file("s.json", Schedule.read), GOLDEN / "engines" / "schedule.json"),
    "router": (in_file("r.pt", routers.read), ROOT / "tests/cases/dit_batch3_no_cfg/router.pt"),
    "safetensors": (in_file("w.safetensors", lambda p: dict(user_weights.tensors(p, ARTEFACT))),
                    GOLDEN / "engines" / "weights.safetensors"),
    "model": (in_file("m.json", lambda p: lookup.resolve(str(p), None, None, None)), GOLDEN / "model.json"),
}  # fmt: skip


def main() -> None:
    name, *options = sys.argv[1:] or ["schedule"]
    read, seed = READERS[name]
    corpus = FOLDER / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(seed.read_bytes())

    def one(data: bytes) -> None:
        try:
            read(data)
        except L2CError as error:
            if "\n" in str(error):
                raise AssertionError(f"more than a line: {error}") from error

    atheris.Setup([sys.argv[0], "-max_len=40000", *options, str(corpus)], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
