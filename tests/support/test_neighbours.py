"""What other programs take of the processors, against programs that take a known amount."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from l2c_export.support import neighbours
from l2c_export.support.neighbours import Moment, share

LINUX = pytest.mark.skipif(neighbours.everybody() is None, reason="nobody counts here")
BURN = "import time\nwhile time.process_time() < {}: pass"


def test_a_neighbour_is_seen(neighbour):
    """The machine may be busy with more than it."""
    assert neighbours.pause(0.5) > 0.7
    watch = neighbours.Watch()
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    assert watch.share() > 0.4  # beside this one


@LINUX
def test_what_we_compute_is_not_the_neighbours():
    """This process, one that it started, and one that that one started, each for a known time; two have ended since."""
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {BURN.format(0.3)!r}])"
    alive = subprocess.Popen([sys.executable, "-c", BURN.format(0.3) + "\nprint(flush=True)\ninput()"], stdin=-1, stdout=-1)
    before = neighbours.now()  # its own start may be in it, or not
    alive.stdout.readline()
    subprocess.run([sys.executable, "-c", inner], check=True)
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    after = neighbours.now()
    alive.kill()
    alive.communicate()
    assert 0.6 < after.ours - before.ours < 1.3
    assert after.everybody - before.everybody > 0.6


def test_a_share_in_numbers(monkeypatch):
    """Of four processors for ten seconds: 30 s in all, 18 of them ours."""
    monkeypatch.setattr(neighbours, "processors", lambda: frozenset(range(4)))
    began = Moment(clock=5.0, everybody=1000.0, ours=7.0)
    assert share(began, Moment(15.0, 1030.0, 25.0)) == pytest.approx(0.3)
    assert share(began, Moment(15.0, 1017.9, 25.0)) == 0.0  # counted in other ways, which differ a little
    assert share(began, Moment(15.0, None, 25.0)) is None
    assert share(began, Moment(5.01, 1000.1, 7.0)) is None  # too short for a count of hundredths
    assert neighbours.mean([0.2, 0.6]) == pytest.approx(0.4)
    assert neighbours.mean([0.2, None]) is None
    assert neighbours.mean([]) is None


STAT = """cpu  999 99 999 999 99 9 9 9 9 9
cpu0 100 20 30 9999 40 5 6 7 8 9
cpu1 1 0 0 9999 0 0 0 0 0 0
cpu2 5000 0 0 9999 0 0 0 0 0 0
intr 12 0 3
"""


@pytest.mark.parametrize(
    ("text", "seconds"),
    [(STAT, 169 / 100), (STAT.replace("cpu0", "cpu3").replace("cpu1", "cpu4"), None), ("cpu0 0 0 0 0 0 0 0 0\n", None),
     ("cpu0 1 2\n", None), ("", None), (None, None)],
)  # fmt: skip
def test_the_count_of_our_processors(text, seconds, tmp_path, monkeypatch):
    """user, nice, system, irq, softirq and what a hypervisor took; of 0 and 1, which are ours.  Elsewhere it is unknown."""
    monkeypatch.setattr(neighbours, "processors", lambda: frozenset((0, 1)))
    monkeypatch.setattr(neighbours, "ticks", lambda: 100)
    monkeypatch.setattr(neighbours, "PROC", tmp_path)
    if text is not None:
        (tmp_path / "stat").write_text(text)
    assert neighbours.everybody() == seconds
    assert neighbours.ours() == 0.0  # no process is there
