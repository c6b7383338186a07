"""What is kept was made by the code that is here: a change in any file that decides it changes the key, and no other does."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import onnx
import pytest

from l2c_export.backends.tensorrt import builder
from l2c_export.compiler.onnx import export
from l2c_export.compiler.record import record
from l2c_export.models import families
from l2c_export.models.updates import UPDATES
from l2c_export.support.source_hash import PACKAGE, python_files, source_hash

KEYS = {"segments": export.SOURCES, "plans": builder.SOURCES}


@pytest.fixture
def copy(tmp_path):
    """The package's source, to be changed."""
    return shutil.copytree(PACKAGE, tmp_path / "package", ignore=lambda _, names: [n for n in names if n == "__pycache__"])


@pytest.mark.parametrize("kind", KEYS)
def test_every_file_of_the_key_changes_it(kind, copy):
    def key():
        source_hash.cache_clear()
        return source_hash(*KEYS[kind], root=copy)

    before, seen = key(), set()
    files = [f for f in copy.rglob("*.py") if any(f.relative_to(copy).as_posix().startswith(part) for part in KEYS[kind])]
    for file in files:
        text = file.read_bytes()
        file.write_bytes(text + b"\n")
        seen.add(key())
        file.write_bytes(text)
    assert before == key()
    assert before not in seen
    assert len(seen) == len(files) > 4


@pytest.mark.parametrize("kind", KEYS)
def test_new_and_renamed_files_change_it_and_files_elsewhere_do_not(kind, copy):
    keys = []

    def note():
        source_hash.cache_clear()
        keys.append(source_hash(*KEYS[kind], root=copy))

    folder = copy / KEYS[kind][-1 if kind == "segments" else 0]
    note()
    (copy / "cli" / "run.py").write_text("# another command\n")
    (copy / "runtime" / "new.py").write_text("")
    note()
    assert keys[0] == keys[1]
    (folder / "new.py").write_text("")
    note()
    (folder / "new.py").rename(folder / "newer.py")
    note()
    assert len(set(keys)) == 3


def test_all_that_is_exported_lies_in_the_folders_of_the_key():
    functions = [o.function for name in ("DiT-S/2", "U-ViT-H/2") for o in family(name).segments.values()]
    files = {file for part in export.SOURCES for file in python_files(PACKAGE / part)}
    assert {Path(sys.modules[function.__module__].__file__) for function in [*functions, *UPDATES.values()]} <= files


def family(name):
    kind = next(f for f in (each.load() for each in families.FAMILIES.values()) if f.named(name))
    return kind(kind.named(name))


def test_the_key_follows_the_source(monkeypatch):
    """What `cached` is asked for, with another source beneath."""
    keys, body = [], record(family("DiT-S/2")).bodies["modulation"]
    monkeypatch.setattr(export, "cached", lambda kind, key, make: keys.append(key) or onnx.ModelProto().SerializeToString())
    for digest in ("a", "a", "b"):
        monkeypatch.setattr(export, "source_hash", lambda *parts, digest=digest: digest)
        export.export(body)
    assert keys[0] == keys[1] != keys[2]


def test_a_folder_that_is_not_there_is_a_mistake_of_ours():
    with pytest.raises(FileNotFoundError, match="no source"):
        source_hash("modells")
