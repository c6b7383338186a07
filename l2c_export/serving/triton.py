"""`l2c triton`: a repository of models that a stock Triton server loads, two for every artefact.

A model is a configuration and a short program; what that runs is `triton_model.py`.  Its twin streams previews: over HTTP a
server has only models that answer once.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import NamedTuple

from ..artefact import staging, store
from ..artefact.manifest import Manifest
from ..errors import ArtefactError, UsageError
from ..runtime.request import folder as folder_of
from ..support.files import Report, locked, sync, sync_tree
from ..version import __version__
from .triton_tensors import TritonTensor, outputs_of, taken

CONFIG, PROGRAM = "config.pbtxt", Path("1") / "model.py"
PREVIEWS = "_previews"  # behind the name of a model: its twin
MARK = "# Written by l2c triton"


class TritonOptions(NamedTuple):
    """How the server is to run what it is given; None leaves it to the artefact and the server's machine."""

    backend: str | None = None
    device: str | None = None
    threads: int | None = None
    verify: bool = True
    max_queue: int = 32  # requests that wait
    max_wait_ms: float = 5  # for a batch to fill
    previews: bool = True


def write_repository(
    engines: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str], options: TritonOptions, report: Report = id,
    named: Mapping[str, Path] | None = None,
) -> list[str]:  # fmt: skip
    """Write the models of these artefacts, called as their folders, and of those that are `named` to the folder `out`.

    Returned are the names of all models.
    Models of other artefacts that are there stay; every model is the old or the new one at every moment, and after an error
    nothing has changed.  Raises UsageError for a wrong option, ArtefactError for an artefact without weights and for a
    folder that cannot be written, or holds something else under one of the names.
    """
    check(options)
    folders = [*((folder_of(path).absolute().name, folder_of(path)) for path in engines), *(named or {}).items()]
    models = {model: files for name, folder in folders for model, files in models_of(name, folder, options)}
    if len(models) < len(folders) * (1 + options.previews):
        raise UsageError(f"{' '.join(map(str, engines))}: two would be models of one name: rename one of the folders")
    target = Path(out)
    if target.exists() and not target.is_dir():
        raise ArtefactError(f"out={str(target)!r}: is a file, not a folder")
    existed = target.exists()
    try:
        with staging.writing(target, f"out={str(target)!r}"), locked(target, report):
            _write(target, models)
    finally:
        if not existed:
            with contextlib.suppress(OSError):  # it holds something, or is gone
                target.rmdir()
    return list(models)


def check(options: TritonOptions) -> None:
    """Refuse what a server would only say when it starts.  Raises UsageError."""
    if options.max_queue < 1:
        raise UsageError(f"max_queue={options.max_queue}: must be at least 1")
    if not 0 <= options.max_wait_ms <= 60_000:
        raise UsageError(f"max_wait_ms={options.max_wait_ms:g}: must be from 0 to 60000")
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"threads={options.threads}: must be at least 1")


def models_of(name: str, folder: Path, options: TritonOptions) -> Iterator[tuple[str, dict[Path, str]]]:
    """An artefact's model and its twin: their names, and the files of each."""
    manifest = store.read(folder, verify=False)
    store.check_linked(folder, manifest)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}", name):
        raise UsageError(f"{folder}: no model of Triton can be called {name!r}: rename it, with letters, digits, _, - and .")
    for twin in (False, True) if options.previews else (False,):
        called = name + PREVIEWS * twin
        yield called, {Path(CONFIG): config(called, folder, manifest, options, twin), PROGRAM: program()}


def config(name: str, folder: Path, manifest: Manifest, options: TritonOptions, previews: bool) -> str:
    """The configuration of a model."""
    chosen = {
        "artefact": str(folder.absolute()),
        "backend": options.backend or "",
        "device": options.device or "",
        "threads": str(options.threads or ""),
        "verify": str(int(options.verify)),
    }
    return filled(
        CONFIG,
        name=name,
        batch=manifest.batch,
        inputs=listed(taken(manifest, previews)),
        outputs=listed(outputs_of(manifest, previews)),
        wait=round(1000 * options.max_wait_ms),
        queue=options.max_queue,
        decoupled=str(previews).lower(),
        parameters="\n".join(parameter(*pair) for pair in chosen.items()),
    )


def program() -> str:
    """The model.py of every model: it finds this package, and what that needs, where they are now."""
    own = Path(__file__).resolve().parents[2]
    places = [str(own), *(sysconfig.get_path(name) for name in ("purelib", "platlib"))]
    return filled("model.py.txt", python=repr(sys.version_info[:2]), paths=repr(list(dict.fromkeys(places))))


def filled(template: str, **values: object) -> str:
    text = (resources.files(__package__) / "templates" / template).read_text()
    return Template(text).substitute(values, version=__version__)


def listed(tensors: Sequence[TritonTensor]) -> str:
    return ",\n".join(tensor.text for tensor in tensors)


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}", value: {{ string_value: "{quoted(value)}" }} }}'


def quoted(text: str) -> str:
    """The inside of a string in protobuf's text format."""
    return "".join(chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else rf"\{byte:03o}" for byte in os.fsencode(text))


def _write(out: Path, models: dict[str, dict[Path, str]]) -> None:
    for name in models:
        if (out / name).exists() and not is_ours(out / name):
            raise ArtefactError(f"out={str(out)!r}: holds {name}, which is not ours: choose another folder")
    for remainder in out.glob(f"{staging.PARTIAL}*"):  # of somebody who was killed
        shutil.rmtree(remainder, ignore_errors=True)
    stage = Path(tempfile.mkdtemp(prefix=staging.PARTIAL, dir=out))
    try:
        for name, files in models.items():
            for path, text in files.items():
                (stage / name / path).parent.mkdir(parents=True, exist_ok=True)
                (stage / name / path).write_text(text)
        sync_tree(stage)
        for name, files in models.items():
            if (out / name).exists():
                for path in sorted(
                    files, key=lambda p: p.name == CONFIG
                ):  # both are whole, and each goes with the other's old one
                    os.replace(stage / name / path, out / name / path)
            else:
                os.rename(stage / name, out / name)
        sync(out)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def is_ours(model: Path) -> bool:
    """Whether a folder is a model that this has written."""
    try:
        return (model / CONFIG).read_text(errors="replace").startswith(MARK)
    except OSError:
        return False
