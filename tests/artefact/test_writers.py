"""One writer at a time, and readers who come meanwhile."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time

import pytest
from folders import replace, tree

from l2c_export.artefact import integrity, staging, store
from l2c_export.compiler.link import bind
from l2c_export.support import files

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


def test_the_second_writer_waits_and_says_so(copy, other, tmp_path):
    said, order = [], []
    with staging.changed(copy) as stage:
        second = threading.Thread(target=lambda: (bind(copy, "random:4", said.append), order.append("second")))
        second.start()
        deadline = time.monotonic() + 100
        while not said and time.monotonic() < deadline:
            time.sleep(0.01)
        order.append("first")
        shutil.copytree(other, stage, dirs_exist_ok=True)
    second.join(100)
    assert said == [f"{copy}: another process is writing here: waiting for it"]
    assert order == ["first", "second"]
    assert store.read(copy).denoiser.weights.random == 4
    assert set(store.read(copy).files) == set(store.read(other).files), "it changed what the first has made"


@needs_fork
def test_a_writer_that_died_blocks_nobody(copy):
    ready, go = os.pipe()
    child = os.fork()
    if not child:
        with staging.changed(copy):
            os.write(go, b"x")
            time.sleep(60)
        os._exit(0)
    assert os.read(ready, 1) == b"x"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    said = []
    bind(copy, "random:4", said.append)
    assert [line.partition(" was ")[0] for line in said] == ["its fingerprint"], "it has waited"
    assert not list(copy.glob(".l2c*")), "and what it left is gone"


def test_a_folder_that_vanishes_while_one_waits_for_it_is_made_again(tmp_path, other):
    folder, done = tmp_path / "out", []
    with contextlib.suppress(ZeroDivisionError), staging.staged(folder):
        waiting = threading.Thread(target=lambda: (replace(folder, other), done.append(1)))
        waiting.start()
        time.sleep(0.2)
        1 / 0  # noqa: B018  (the first writer fails, and removes the folder that it made)
    waiting.join(100)
    assert done
    assert tree(folder) == tree(other)


def test_without_locks_one_still_writes(copy, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    (copy / ".l2c-partial-of-somebody").mkdir()
    bind(copy, "random:4")
    assert store.read(copy).denoiser.weights.random == 4
    assert (copy / ".l2c-partial-of-somebody").exists(), "perhaps he is still at it"


def test_who_reads_while_the_artefact_is_replaced_sees_the_new_one(copy, other, monkeypatch):
    verify, done = integrity.check_file, []

    def meanwhile(*arguments):
        if not done:
            done.append(replace(copy, other))
        verify(*arguments)

    monkeypatch.setattr(store, "check_file", meanwhile)
    assert store.read(copy) == store.read(other)
