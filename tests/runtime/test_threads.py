"""How many threads compute, and what a busy machine is told."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest
from recorded import close

import l2c_export
from l2c_export.backends.choose import open_backend
from l2c_export.backends.contract import Request
from l2c_export.errors import BackendError
from l2c_export.support import machine
from l2c_export.support.neighbours import Watch


def test_a_process_has_one_pool_of_threads_for_onnxruntime(pipe, tiny, monkeypatch):
    """Two pools would spin against each other, and ONNX Runtime has only the first one to offer."""
    same = l2c_export.load(tiny[0], "onnxruntime", threads=1)
    assert close(same([1, 2]).latents, pipe([1, 2]).latents)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    with pytest.raises(BackendError, match="a pool of 1 thread already: use threads=1,"):
        l2c_export.load(tiny[0], "onnxruntime", threads=2)


@pytest.mark.parametrize(
    ("share", "threads", "spins", "told"),
    [(0.9, None, True, 1), (0.1, None, True, 0), (None, None, True, 0), (0.9, 2, True, 0), (0.9, None, False, 0)],
)
def test_a_busy_machine_is_told_where_threads_are_not_chosen(tiny, monkeypatch, caplog, share, threads, spins, told):
    """ONNX Runtime's threads keep their processors while they wait; the number is not changed, as other bits would come out."""
    monkeypatch.setattr(Watch, "share", lambda self: share)
    monkeypatch.setattr("l2c_export.backends.onnxruntime.cpu.share_pool", lambda threads: 2 * spins)
    opened = open_backend("onnxruntime", Request(threads=threads))
    assert opened.backend.spins == spins
    monkeypatch.setattr("l2c_export.runtime.opening.open_backend", lambda *_: opened)
    monkeypatch.setattr("l2c_export.runtime.opening.load_engines", lambda *_: None)
    monkeypatch.setattr("l2c_export.runtime.pipeline.Pipeline", lambda *_: None)
    l2c_export.load(tiny[0], "onnxruntime", threads=threads)
    assert len(caplog.records) == told
    if told:
        assert caplog.messages == ["other programs use 90% of the processors: one thread instead of all may be faster here"]


def test_the_command_tells_it_beside_a_neighbour(tiny, tmp_path, neighbour):
    short = "from l2c_export.support import neighbours; neighbours.SHORTEST = 0.01; import l2c_export.__main__"
    words = [sys.executable, "-c", short, "run", str(tiny[0]), "--class-label", "1", "--backend", "onnxruntime"]

    def told(*threads):
        done = subprocess.run([*words, *threads, "--out", str(tmp_path / "x.npy")], capture_output=True, text=True, check=True)
        return bool(re.search(r"^other programs use \d+% of the processors: one thread", done.stderr, re.MULTILINE))

    # what takes no longer than this load is not measured elsewhere, and here by a few hundredths of a second
    assert any(told() for _ in range(5)) == (machine.cores() > 1)
    assert not told("--threads", "1")
