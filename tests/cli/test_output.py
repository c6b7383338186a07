"""Data on stdout, everything else on stderr, and whoever reads may stop."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from desk import GOOD, ROOT, invoke, started


@pytest.mark.parametrize("stderr", ["2>&-", "2>/dev/full", "2>&1 | true"])
def test_words_that_nobody_can_read_stop_nothing(new, stderr):
    line = shlex.join([sys.executable, "-m", "l2c_export", "run", "engines", "--class-label", "3", "--out", "new.npy"])
    subprocess.run(
        ["bash", "-o", "pipefail", "-c", f"{line} {stderr}"], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert np.load("new.npy").shape[0] == 1
    Path("new.npy").unlink()


@pytest.mark.parametrize("line", [f"export {GOOD}", "link copy --weights model.safetensors",
                                  "run engines --class-label 3 --out copy/x.npy"])  # fmt: skip
def test_what_makes_no_data_says_nothing_on_stdout(copy, new, line):
    done = invoke(line)
    assert (done.exit_code, done.stdout) == (0, "")
    assert "new" in done.stderr or "copy" in done.stderr


@pytest.mark.parametrize("line", ["inspect engines", "inspect router.pt", "inspect schedule.json", f"export {GOOD} --dry-run",
                                  "verify engines --golden case --backend onnxruntime"])  # fmt: skip
def test_a_table_is_data(desk, line):
    done = invoke(line)
    assert done.exit_code == 0, done.stderr
    assert len(done.stdout.splitlines()) > 8
    assert not re.search(r"^call ", done.stderr, re.MULTILINE)
    assert "\x1b" not in done.stdout + done.stderr, "no colours where nobody looks"


def test_a_reader_that_has_seen_enough_is_no_error(desk):
    for line in ("inspect engines --json", "inspect engines"):
        process = started(line)
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 1
        process.stderr.close()


def test_a_result_is_refused_before_the_work_where_it_cannot_be_written(desk, monkeypatch):
    Path("closed").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "closed")
    for line in ("bench engines --save closed/x", "bench engines --plot closed/x.png", "profile engines --trace closed/x"):
        done = invoke(line)
        assert (done.exit_code, done.stdout) == (2, "")
        assert re.fullmatch(r"error: --\w+ closed/x\S*: cannot be written: choose another file\n", done.stderr)
    done = invoke(f"export {GOOD.replace('--out new', '--out closed/new')}")
    assert re.fullmatch(r"error: --out closed/new: /.*/closed cannot be written to: choose another folder\n", done.stderr)
