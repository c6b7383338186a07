"""Pipelines where processes are forked, sent to, and ended."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import time

import pytest
from recorded import ROOT

from l2c_export.errors import RunError
from l2c_export.support.ending import LAST_SECONDS


def test_a_pipeline_is_not_sent_to_another_process(pipe):
    with pytest.raises(RunError, match="load the artefact there"):
        pickle.dumps(pipe)


FORKED = """
import multiprocessing, sys, threading, time
import l2c_export
pipe = l2c_export.load(sys.argv[1], backend=sys.argv[2], threads=2)
pipe([1])
began, over = threading.Event(), threading.Event()
if sys.argv[3] == "busy":
    hold = lambda *_: (began.set(), over.wait())
    threading.Thread(target=lambda: pipe([1], callback_on_step_end=hold), daemon=True).start()
    began.wait()
elif sys.argv[3] == "resting":
    half = pipe.steps([1], None, pipe.noise(1, 0))
    threading.Thread(target=lambda: (next(half), began.set(), time.sleep(600)), daemon=True).start()
    began.wait()
def child(answers):
    try:
        answers.put(float(abs(pipe([1]).latents).max()))
    except l2c_export.L2CError as error:
        answers.put(str(error))
fork = multiprocessing.get_context("fork")
answers = fork.SimpleQueue()
fork.Process(target=child, args=(answers,), daemon=True).start()
print(answers.get())
over.set()
"""


ALONE = "loaded before its process was forked"


@pytest.mark.parametrize(
    ("backend", "meanwhile", "says"),
    [("onnxruntime", "", r"\d+\.\d+"), ("onnxruntime", "resting", r"\d+\.\d+"), ("onnxruntime", "busy", ALONE),
     ("openvino", "", ALONE)],
)  # fmt: skip
def test_a_server_that_forks_after_loading_is_told_where_that_does_not_work(tiny, backend, meanwhile, says):
    pytest.importorskip(backend)
    done = python(FORKED, tiny[0], backend, meanwhile)
    assert re.search(says, done.stdout), done


STOPPED = """
import sys, threading, time
import l2c_export
pipe, other = (l2c_export.load(sys.argv[1], backend=sys.argv[2], threads=1) for _ in range(2))
def serve():
    while True:
        pipe([1])
def leave():
    half = other.steps([1], None, pipe.noise(1, 0))
    next(half)
    time.sleep(60)
for work in (serve, leave):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.5)
sys.exit(0)
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_server_ends_in_peace_while_a_request_runs(tiny, backend):
    """Its threads are daemons: what they compute with would be destroyed under them.  Nobody waits for what rests."""
    pytest.importorskip(backend)
    started = time.monotonic()
    assert python(STOPPED, tiny[0], backend).returncode == 0
    assert time.monotonic() - started < LAST_SECONDS


def python(program, *words):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=600, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
