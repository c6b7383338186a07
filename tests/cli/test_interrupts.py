"""Commands that are stopped half way, or find no room: everything is as it was."""

from __future__ import annotations

import os
import re
import shutil
import signal

import pytest
from desk import E, default_interrupt, invoke, ran, small_files, started, tree

from l2c_export.cli import compile


def test_an_output_folder_that_vanishes_is_an_error(new, monkeypatch):
    say = compile.say

    def vanish(line):
        say(line)
        if str(line).startswith("weights from"):
            shutil.rmtree("new")

    monkeypatch.setattr(compile, "say", vanish)
    done = invoke(E)
    assert done.exit_code == 1
    assert (
        done.stderr.splitlines()[-1] == "error: --out new: cannot be written: No such file or directory: choose another folder"
    )
    assert not new.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_output_folder_is_an_error(new):
    new.mkdir(0o500)
    done = invoke(E)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-1] == "error: --out new: cannot be written: Permission denied: choose another folder"
    assert not list(new.iterdir())


def test_a_full_disk_keeps_the_old_artefact(copy):
    """A process that may write no large file stands for a disk without room for the weights."""
    before = tree()
    code, out, err = ran(f"{E} --out copy", preexec_fn=small_files)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1] == "error: --out copy: cannot be written: File too large: choose another folder"
    assert tree() == before


def test_linking_on_a_full_disk_keeps_the_old_weights(copy):
    before = tree()
    code, _, err = ran("link copy --weights random:3", preexec_fn=small_files)
    assert code == 1
    assert re.fullmatch(r"error: copy: cannot be written: File too large: check the disk\n", err)
    assert tree() == before


@pytest.mark.parametrize("moment", ["dit, 6 sublayers", "7 calls:", "weights from"])
@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
def test_an_interrupted_export_leaves_everything_as_it_was(copy, new, moment, old, monkeypatch):
    before = tree()

    def interrupt(line):
        if str(line).startswith(moment):
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(compile, "say", interrupt)
        done = invoke(f"{E} --out {'copy' if old else 'new'}")
    assert done.exit_code == 130
    assert tree() == before
    assert not new.exists()


def test_control_c_leaves_nothing(new, tmp_path):
    """While PyTorch exports the operations, which is most of the time."""
    before = tree()
    process = started(E, cache=str(tmp_path), preexec_fn=default_interrupt)
    for _ in range(2):
        assert process.stderr.readline()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    assert (out, err) == ("", "interrupted\n")
    assert process.returncode in (130, -signal.SIGINT), "a shell shows both as 130"
    assert tree() == before
    assert not new.exists()
