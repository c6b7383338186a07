"""l2c schedule calibrate: the decisions of a reader in numpy, from values that the model of numpy made."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from numpy_dit import NULL, Blocks, guided, predicted, step
from numpy_loop import timesteps
from ruled_trainings import numpy_desk, requested
from small_trainings import desk, invoke

from l2c_export.cli import choices
from l2c_export.errors import ScheduleError
from l2c_export.schedules.schedule import Schedule
from l2c_export.training import online
from l2c_export.training.lessons import CALIBRATE

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 12


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return numpy_desk(tmp_path_factory.mktemp("numpy"))


@pytest.fixture(scope="module")
def recorded(here):
    """Of every call of two uncached, guided trajectories: what the first block's attention is given, normalised and modulated,
    what that block adds, and what both blocks add."""
    x, labels = requested(here.subject(steps=STEPS).request(CALIBRATE, 0))
    times, seen = timesteps(STEPS), {"modulated": [], "stack[0:1]": [], "stack": []}

    def value(name, compute):
        output = compute()
        if name == "blocks.0.attn" and len(seen["modulated"]) <= n:
            seen["modulated"].append(compute.__defaults__[1])
        if name in seen:
            seen[name].append(output)
        return output

    for n, t in enumerate(times):
        inputs = here.weights, np.concatenate([x, x]), t, np.array([*labels, NULL, NULL]), value
        predicted(*inputs, Blocks("stack[0:1]", 0, 1))
        noise = predicted(*inputs, Blocks("stack", 0, 2))
        x = step(x, guided(noise), t, times[n + 1] if n + 1 < STEPS else None)
    return seen


def teacache(seen, threshold, polynomial):
    values, calls, total = seen["modulated"], [0], 0.0
    for n in range(1, STEPS):
        total += np.polyval(polynomial, np.abs(values[n] - values[n - 1]).mean() / np.abs(values[n - 1]).mean())
        if total >= threshold or n == STEPS - 1:
            calls, total = [*calls, n], 0.0
    return calls


def fbcache(seen, threshold):
    values, calls = seen["stack[0:1]"], [0]
    for n in range(1, STEPS):
        last = values[calls[-1]]
        if np.abs(values[n] - last).mean() / np.abs(last).mean() >= threshold:
            calls.append(n)
    return calls


def magcache(seen, threshold, most, retention):
    sizes = [np.sqrt(np.square(value).sum(-1)) for value in seen["stack"]]
    ratios = [1.0, *((now / before).mean() for before, now in itertools.pairwise(sizes))]
    calls = list(range(round(retention * STEPS)))
    while calls[-1] < STEPS - 1:
        error, product, n = 0.0, 1.0, calls[-1] + 1
        while n < STEPS:
            product *= ratios[n]
            error += abs(1 - product)
            if error > threshold or n - calls[-1] > most:
                break
            n += 1
        if n == STEPS:
            return calls
        calls.append(n)
    return calls


@pytest.mark.parametrize(("options", "reader", "level"), [
    ("teacache --threshold 1", lambda seen: teacache(seen, 1, [1, 0]), "stack"),
    ("teacache --threshold 0.8 --polynomial=0.2,0.3,0", lambda seen: teacache(seen, 0.8, [0.2, 0.3, 0]), "stack"),
    ("fbcache --threshold 1.1", lambda seen: fbcache(seen, 1.1), "stack[1:2]"),
    ("magcache --threshold 0.6 --max-skips 3 --retention 0.25", lambda seen: magcache(seen, 0.6, 3, 0.25), "stack"),
    ("magcache --threshold 3 --max-skips 2", lambda seen: magcache(seen, 3, 2, 0.1), "stack"),
])  # fmt: skip
def test_a_methods_decisions_are_those_of_a_reader(here, recorded, tmp_path, options, reader, level):
    done = invoke(f"schedule calibrate --method {options} {here.line} --steps {STEPS} --batch 2 --out {tmp_path}/s.json")
    assert done.exit_code == 0, done.stderr
    schedule = Schedule.read(tmp_path / "s.json")
    computed = [n for n, call in enumerate(schedule.calls) if not call.rules]
    assert computed == reader(recorded)
    assert 2 < len(computed) < STEPS - 1, "something to decide"
    assert {tuple(call.rules.items()) for call in schedule.calls if call.rules} == {((level, "reuse"),)}
    live = (0, 1) if level != "stack" else ()
    assert {call.computed for call in schedule.calls if call.rules} == {live}
    assert f"{len(computed)} of {STEPS} calls are computed, the others reuse {level}; error of the latents" in done.stderr


def test_teacache_computes_the_last_call_whatever_the_threshold(here, tmp_path):
    done = invoke(
        f"schedule calibrate --method teacache --threshold 99 {here.line} --steps 5 --batch 1 --out {tmp_path}/s.json"
    )
    assert done.exit_code == 0, done.stderr
    assert [bool(call.rules) for call in Schedule.read(tmp_path / "s.json").calls] == [False, True, True, True, False]


def test_a_threshold_of_zero_skips_nothing(here, tmp_path):
    done = invoke(f"schedule calibrate --method fbcache --threshold 0 {here.line} --steps 5 --batch 1 --out {tmp_path}/s.json")
    assert done.exit_code == 0, done.stderr
    assert Schedule.read(tmp_path / "s.json").computed_share == 1


@pytest.mark.parametrize(("options", "problem"), [
    ("teacache --threshold -1", "--threshold -1.0: must be a finite number, at least 0"),
    ("teacache --threshold 1 --polynomial 1,a", "--polynomial 1,a: use numbers with commas between, as 1.5,0"),
    ("teacache --threshold 1 --max-skips 2", "--max-skips 2: teacache has no use for it: leave it out"),
    ("magcache --threshold 1 --retention 0", "--retention 0.0: must be more than 0, and at most 1"),
    ("magcache --threshold 1 --retention 0.01", "--retention 0.01: of 12 calls that is less than one: raise it"),
    ("speca --threshold 1", "--method speca: use one of teacache, fbcache, magcache"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(here, tmp_path, options, problem):
    done = invoke(f"schedule calibrate --method {options} {here.line} --steps {STEPS} --batch 1 --out {tmp_path}/s.json")
    assert done.exit_code != 0
    assert done.stderr.splitlines()[-1].startswith(f"error: {problem}")
    assert not (tmp_path / "s.json").exists()


@pytest.mark.parametrize("method", online.METHODS)
def test_a_uvit_is_calibrated_too(tmp_path, method):
    line = desk(tmp_path, "uvit").removeprefix("train ")
    done = invoke(f"schedule calibrate --method {method} --threshold 9 {line} --steps 8 --batch 1 --out {tmp_path}/s.json")
    assert done.exit_code == 0, done.stderr
    assert Schedule.read(tmp_path / "s.json").computed_share < 1


def test_a_schedule_that_cannot_be_compiled_is_refused_and_not_written(here, tmp_path, monkeypatch):
    def refuse(*_):
        raise ScheduleError("schedule: stack: what it makes is also read outside of it")

    monkeypatch.setattr(online, "lower", refuse)
    done = invoke(f"schedule calibrate --method fbcache --threshold 9 {here.line} --steps 5 --batch 1 --out {tmp_path}/s.json")
    assert done.exit_code != 0
    assert not (tmp_path / "s.json").exists()


def test_the_choices_are_the_methods():
    assert tuple(online.METHODS) == choices.METHODS
