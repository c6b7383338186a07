"""What is kept was made by the code that is here: a change in any file that decides it changes the key, and no other does."""

from __future__ import annotations

import shutil

import pytest

from l2c_export.backends.tensorrt.builder import SOURCES
from l2c_export.support.source_hash import PACKAGE, source_hash


@pytest.fixture
def copy(tmp_path):
    """The package's source, to be changed."""
    return shutil.copytree(PACKAGE, tmp_path / "package", ignore=lambda _, names: [n for n in names if n == "__pycache__"])


def key_of(copy):
    source_hash.cache_clear()
    return source_hash(*SOURCES, root=copy)


def test_every_file_of_the_key_changes_it(copy):
    before, seen = key_of(copy), set()
    files = [f for f in copy.rglob("*.py") if any(f.relative_to(copy).as_posix().startswith(part) for part in SOURCES)]
    for file in files:
        text = file.read_bytes()
        file.write_bytes(text + b"\n")
        seen.add(key_of(copy))
        file.write_bytes(text)
    assert before == key_of(copy)
    assert before not in seen
    assert len(seen) == len(files) > 4


def test_new_and_renamed_files_change_it_and_files_elsewhere_do_not(copy):
    folder, keys = copy / SOURCES[0], [key_of(copy)]
    (copy / "cli" / "run.py").write_text("# another command\n")
    (copy / "runtime" / "new.py").write_text("")
    assert key_of(copy) == keys[0]
    (folder / "new.py").write_text("")
    keys.append(key_of(copy))
    (folder / "new.py").rename(folder / "newer.py")
    keys.append(key_of(copy))
    assert len(set(keys)) == 3


def test_a_folder_that_is_not_there_is_a_mistake_of_ours():
    with pytest.raises(FileNotFoundError, match="no source"):
        source_hash("modells")
