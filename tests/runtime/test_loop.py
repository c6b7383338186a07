"""The loop, call by call."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from recorded import latents, same

from l2c_export.errors import RunError, UsageError
from l2c_export.runtime.loop import turns


@pytest.mark.parametrize(("labels", "count", "says"), [
    ([50], 1, "class label 50: must be"), ([-1], 1, "class label -1: must be"), ([1, 2], 1, "latents of shape"),
    ([1, 2, 3], 3, "3 class labels: this artefact makes"), ([], 1, "0 class labels"), (["dog"], 1, "class label 'dog'"),
])  # fmt: skip
def test_the_loop_itself_refuses_what_a_call_refuses(pipe, labels, count, says):
    with pytest.raises(UsageError, match=says):
        pipe.steps(labels, None, pipe.noise(count, 0))
    assert same(pipe([1]).latents, pipe(1).latents)


def test_the_latents_of_every_step_can_be_kept(pipe):
    kept = [done.x for done in pipe.steps([1], None, pipe.noise(1, 0))]
    seen = [done.x.copy() for done in pipe.steps([1], None, pipe.noise(1, 0))]
    assert same(np.stack(kept), np.stack(seen))


def test_stopping_after_every_call_changes_nothing(pipe):
    whole = pipe([1, 2], seed=5).latents
    assert same(pipe([1, 2], seed=5, check_finite=True).latents, whole)
    assert same(pipe([1, 2], seed=5, callback_on_step_end=lambda *_: None).latents, whole)
    *_, last = pipe.steps([1, 2], None, pipe.noise(2, 5))
    assert same(last.x, whole)


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_no_call_writes_over_latents_that_are_still_needed(ends):
    """A call reads the latents of the call before and those at the start of its solver step."""
    calls = [SimpleNamespace(ends_step=end) for end in ends]
    written, start = 0, 0
    for call, turn in zip(calls, turns(calls), strict=True):
        assert (turn.now, turn.base) == (written, start)
        assert turn.after not in (turn.now, turn.base)
        written, start = turn.after, turn.after if call.ends_step else start


def test_check_finite_names_the_first_call(pipe):
    def explode(p, step, t, v):
        return {"latents": np.full_like(v["latents"], 3e38)} if step == 2 else None

    with pytest.raises(RunError, match=r"call 3 \(timestep 500\) made NaN or infinite latents"):
        pipe([1, 2], callback_on_step_end=explode, check_finite=True)
    assert not np.isfinite(pipe([1, 2], callback_on_step_end=explode).latents).all(), "and only when asked"


def test_check_finite_does_not_blame_a_call_for_its_callback(pipe):
    def poison(p, step, t, v):
        return {"latents": v["latents"] * np.nan} if step == 4 else None

    with pytest.raises(RunError, match="the callback after step 4 returned NaN"):
        pipe([1, 2], callback_on_step_end=poison, check_finite=True)
    assert np.isfinite(pipe([1, 2], check_finite=True).latents).all()


def test_check_finite_needs_no_callback(pipe):
    with pytest.raises(RunError, match=r"call 0 \(timestep 999\)"):
        pipe([1, 2], latents=np.full((2, 4, 8, 8), np.inf), check_finite=True)


def test_a_cancelled_generation_leaves_the_pipeline_as_before(pipe):
    wanted = latents(pipe)
    for steps in range(1, 4):
        stepwise = pipe.steps([0, 1], 2.0, pipe.noise(2, 9))
        for _ in range(steps):
            next(stepwise)
        stepwise.close()
        assert np.array_equal(latents(pipe), wanted)
    for _ in pipe.steps([0, 1], 2.0, pipe.noise(2, 9)):
        break
    assert np.array_equal(latents(pipe), wanted)
