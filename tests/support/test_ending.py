"""A process that ends while its other threads compute, load or rest."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from l2c_export.support.ending import LAST_SECONDS, Gate

ROOT = Path(__file__).parents[2]
PROGRAM = """
import atexit, sys, threading, time
import l2c_export
load = lambda **how: l2c_export.load(sys.argv[1], backend=sys.argv[2], threads=1, **how)
pipe = load()
busy = threading.Event()
def generating():
    while True:
        pipe([1])
        busy.set()
def resting():
    for _ in pipe.steps([1], None, pipe.noise(1, 0)):
        busy.set()
        time.sleep(60)
def in_a_callback():
    pipe([1], callback_on_step_end=lambda *_: (busy.set(), time.sleep(60)))
def loading():
    if sys.argv[2] == "openvino":  # the moment when its C++ begins to work
        import openvino
        compiled = openvino.Core.compile_model
        openvino.Core.compile_model = lambda *arguments: (busy.set(), compiled(*arguments))[1]
    else:
        busy.set()
    while True:
        load(link="static")  # engines that no cache has
threading.Thread(target=globals()[sys.argv[3]], daemon=True).start()
busy.wait()
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("meanwhile", ["generating", "resting", "in_a_callback", "loading"])
def test_a_process_ends_in_peace_whatever_its_daemons_do(tiny, backend, meanwhile):
    pytest.importorskip(backend)
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny[0]), backend, meanwhile], capture_output=True, text=True, timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < LAST_SECONDS, "nobody waits for what does not compute"


LATE = """
import atexit, sys, threading
def late():
    try:
        print(pipe([1]).latents.shape)
    except l2c_export.L2CError as error:
        print(error)
atexit.register(late)  # runs after what l2c_export registers
import l2c_export
pipe = l2c_export.load(sys.argv[1], backend="onnxruntime", threads=1)
pipe([1])
if sys.argv[2] == "half":
    half, begun = pipe.steps([1], None, pipe.noise(1, 0)), threading.Event()
    threading.Thread(target=lambda: (next(half), begun.set(), threading.Event().wait()), daemon=True).start()
    begun.wait()
"""


@pytest.mark.parametrize(
    ("meanwhile", "says"), [("", "(1, 4, 8, 8)"), ("half", "the process ends in the middle of a generation")]
)
def test_the_thread_that_ends_a_process_may_still_use_it(tiny, meanwhile, says):
    done = subprocess.run(
        [sys.executable, "-c", LATE, str(tiny[0]), meanwhile], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert says in done.stdout


def test_a_busy_thread_does_not_keep_the_end_waiting():
    """It enters again as soon as it has left, which a lock would let it do for ever."""
    gate, rounds = Gate(), []

    def work():
        while True:
            gate.enter()
            time.sleep(0.001)
            rounds.append(1)
            gate.leave()

    for _ in range(3):
        threading.Thread(target=work, daemon=True).start()
    while not rounds:
        time.sleep(0.001)
    gate.close(20)
    seen = len(rounds)
    time.sleep(0.05)
    assert len(rounds) == seen, "nothing computes from now on"
    gate.enter()  # but who closed it may


def test_a_long_piece_of_work_ends_at_its_next_stop():
    gate, rounds = Gate(), []

    def work():
        gate.enter()
        while True:
            gate.stop()
            rounds.append(time.sleep(0.001))

    threading.Thread(target=work, daemon=True).start()
    while not rounds:
        time.sleep(0.001)
    started = time.monotonic()
    gate.close(20)
    assert time.monotonic() - started < 10
    seen = len(rounds)
    time.sleep(0.05)
    assert len(rounds) == seen


def test_the_end_waits_no_longer_than_it_is_told():
    gate = Gate()
    thread = threading.Thread(target=gate.enter)
    thread.start()
    thread.join()
    started = time.monotonic()
    gate.close(0.2)
    assert 0.2 <= time.monotonic() - started < 10
