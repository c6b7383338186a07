"""Files that are whole or absent."""

from __future__ import annotations

import os

import numpy as np
import pytest

from l2c_export.errors import RunError
from l2c_export.runtime import images
from l2c_export.support import files


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x.npy"
    images.Output(np.zeros(3)).save(path)
    before = path.read_bytes()

    def half():
        with files.replacing(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["x.npy"]


def test_the_name_of_a_new_file_is_on_the_disk_too(tmp_path, disk):
    files.write(tmp_path / "x", b"1")
    assert disk == [("move", tmp_path / "x"), ("sync", tmp_path)]


def test_a_small_file_may_be_as_large_as_allowed_and_no_larger(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert files.small(tmp_path / "x", 5) == b"12345"
    with pytest.raises(OSError, match="it has more than"):
        files.small(tmp_path / "x", 4)


def test_a_file_is_whole_or_absent_and_a_pipe_is_written_to(tmp_path):
    files.write(tmp_path / "x", b"1")
    assert (tmp_path / "x").read_bytes() == b"1"
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    files.check_place(tmp_path / "pipe")
    files.write(tmp_path / "pipe", b"2")
    assert os.read(reader, 9) == b"2"
    os.close(reader)
    with pytest.raises(RunError, match=r"out='.*/no/x': cannot be written: No such file or directory: choose another file"):
        files.write(tmp_path / "no" / "x", b"3", "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipe", "x"]
