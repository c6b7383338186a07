"""Forecasts of the model's output: L2P, and OpenVINO GenAI's TaylorSeer Lite."""

from __future__ import annotations

import numpy as np
import pytest
from foreign import DIT, bits, imported, schedule
from hypothesis import given
from hypothesis import strategies as st

from l2c_export.errors import ScheduleError, UsageError
from l2c_export.schedules.resolve import resolve


def outputs(result):
    """What the output of every call is, as (age, coefficient)."""
    return [values["output"] for values in resolve(result.cacheable, result.calls)]


def triangle(seed, rows):
    return np.tril(np.random.default_rng(seed).normal(size=(rows, rows))).tolist()


@st.composite
def full_calls(draw):
    count = draw(st.integers(3, 9))
    full = {0, *draw(st.sets(st.integers(1, count - 1), max_size=count - 2))}
    return count, full if len(full) < count else full - {count - 1}


@given(full_calls(), st.integers(0, 10**6), st.booleans())
def test_a_prediction_is_what_the_history_gives(chosen, seed, square):
    """The history holds predicted outputs, too: here they are vectors, appended one by one."""
    count, full = chosen
    weights = triangle(seed, count)
    result = schedule(weights if square else [row[: n + 1] for n, row in enumerate(weights)], steps=count,
                      full_calls="full:" + ",".join(map(str, sorted(full))))  # fmt: skip
    values = np.random.default_rng(seed + 1).normal(size=(count, 5))
    history = []
    for n, terms in enumerate(outputs(result)):
        t = len(history)
        history.append(values[n] if n in full else np.array(weights[t - 1][:t]) @ np.array(history))
        assert np.allclose(history[n], sum(c * values[n - age] for age, c in terms), rtol=1e-9)
        assert all(n - age in full for age, _ in terms)
    assert bits(result) == "".join(str(int(n in full)) for n in range(count))


def test_what_counts_for_nothing_is_left_out():
    result = schedule([[1], [0, 2], [0, 0, 0]], steps=4, full_calls="full:0,1")
    assert outputs(result)[2:] == [((1, 2.0),), ((2, 0.0),)]


@pytest.mark.parametrize(("rows", "says"), [
    ([[1.0, 2.0], [1.0, 1.0]], "row 0 has more than 1 coefficients: it must be a lower triangle"),
    ([[1.0], [1.0, "x"]], "row 1, entry 1 is 'x': give a finite number"), ([[1.0], [1.0, 1e300]], "row 1, entry 1 is 1e"),
    ("[[1.0], [.nan, 1.0]]", "row 1, entry 0 is nan"), ([[1.0], [1, 1]], "call 3 is predicted, but there are 2 rows"),
    ([[1e29], [1e29, 1e29], [0, 0, 1e29]], r"call 2, rule of 'output': terms with the coefficients .* must be finite"),
])  # fmt: skip
def test_a_wrong_triangle(rows, says):
    with pytest.raises(ScheduleError, match=says):
        schedule(rows, steps=4, full_calls="full:0")


def test_numbers_of_python_are_read():
    assert outputs(schedule("[[1e0,], [-5e-1, 1.5,],]", steps=3, full_calls="full:0,1"))[2] == ((1, 1.5), (2, -0.5))


def test_which_calls_are_computed_must_be_said():
    with pytest.raises(UsageError, match=r"L2P does not say which calls are computed: give full_calls=\.\."):
        imported(triangle(0, 4))
    with pytest.raises(UsageError, match=r"^full_calls='full:1': use every:K"):
        schedule(triangle(0, 4), steps=4, full_calls="full:1")


# OpenVINO


def walked(interval, before, after, count):
    """The steps that run the model, as the library's state decides it."""
    end = count + after if after < 0 else after
    if before >= count or end < 0 or end <= before:
        return "1" * count
    text, start = "", max(before, 2)
    for step in range(count):
        if step < start or step >= end:
            text += "1"
            continue
        offset = step - start
        text += "1" if offset >= interval - 1 and (offset - (interval - 1)) % interval == 0 else "0"
    return text


@given(st.integers(2, 6), st.integers(0, 12), st.integers(-12, 12), st.integers(2, 20))
def test_steps_between_are_forecast(interval, before, after, count):
    content = {"cache_interval": interval, "disable_cache_before_step": before, "disable_cache_after_step": after}
    result = schedule(content, steps=count)
    assert bits(result) == walked(interval, before, after, count)
    assert {str(call.rules) for call in result.calls} <= {"{}", "{'output': 'taylor:1'}"}


def test_the_defaults_are_those_of_the_library():
    result = schedule({"cache_interval": 3}, steps=20)
    assert bits(result) == "11111100100100100111"
    assert outputs(result)[6:8] == [((1, 2.0), (2, -1.0)), ((2, 3.0), (3, -2.0))]
    assert imported({"cache_interval": 3}).assumed == ("disable_cache_before_step is 6", "disable_cache_after_step is -2")


@pytest.mark.parametrize(("content", "says"), [
    ({"cache_interval": 1}, "cache_interval is 1: give a whole number from 2"),
    ({"cache_interval": "3"}, "cache_interval is '3'"),
    ({"cache_interval": 3, "max_order": 2}, "with 'max_order', which is not known"),
    ({"disable_cache_before_step": -1}, "disable_cache_before_step is -1"),
    ({"disable_cache_before_step": True}, "disable_cache_before_step is True: give a whole number"),
])  # fmt: skip
def test_wrong_options(content, says):
    with pytest.raises(ScheduleError, match=says):
        schedule(content, DIT, steps=10)
