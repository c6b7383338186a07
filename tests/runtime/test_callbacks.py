"""Callbacks after every step, as in diffusers."""

from __future__ import annotations

import numpy as np
import pytest
from recorded import close, latents, same

import l2c_export
from l2c_export.errors import RunError, UsageError


def test_a_callback_is_told_step_timestep_and_latents(pipe):
    seen = []
    out = pipe([1, 2], callback_on_step_end=lambda *told: seen.append(told))
    assert [told[0] for told in seen] == [pipe] * 7
    assert [told[1] for told in seen] == list(range(7))
    assert [told[2] for told in seen] == [999, 832, 666, 500, 333, 166, 0]
    assert all(told[3].keys() == {"latents"} and told[3]["latents"].shape == (2, 4, 8, 8) for told in seen)
    assert same(seen[-1][3]["latents"], out.latents)
    assert len({told[3]["latents"].tobytes() for told in seen}) == 7, "each is a copy of its own"


def test_a_solver_step_of_two_evaluations_is_one_callback(pixels):
    pipe, seen = l2c_export.load(pixels), []
    pipe([1], callback_on_step_end=lambda p, step, timestep, v: seen.append((step, timestep)))
    assert len(pipe.manifest.program().calls) == 4
    assert seen == [(0, 1000), (1, pytest.approx(500.5))], "the timestep at which the step began"


def test_latents_that_a_callback_returns_take_effect(pipe):
    wanted = pipe.noise(2, 123)

    def replace(p, step, t, v):
        return {"latents": wanted.astype(np.float64)} if step == 3 else None

    def by_hand():
        for done in pipe.steps([1, 2], None, pipe.noise(2, 0)):
            if done.index == 3:
                done.x[...] = wanted
        return done.x.copy()

    changed = pipe([1, 2], callback_on_step_end=replace).latents
    assert same(changed, by_hand())
    assert not close(changed, pipe([1, 2]).latents)
    assert same(pipe([1, 2], callback_on_step_end=lambda *_: {"latents": wanted}).latents, wanted)


@pytest.mark.parametrize("answer", [None, {}, {"prompt": 1}], ids=repr)
def test_a_callback_that_returns_no_latents_changes_nothing(pipe, answer):
    def scribble(p, step, t, v):
        v["latents"][...] = 0
        return answer

    assert same(pipe([1, 2], callback_on_step_end=scribble).latents, pipe([1, 2]).latents)


@pytest.mark.parametrize("answer", [5, np.zeros(3), "latents"])
def test_a_callback_that_returns_something_else_is_told_what_to_return(pipe, answer):
    with pytest.raises(UsageError, match=r"the callback returned a \w+: return None, or {\"latents\": \.\.}"):
        pipe([1], callback_on_step_end=lambda *_: answer)


def test_a_callback_that_raises_leaves_the_pipeline_usable(pipe):
    before = pipe([1, 2]).latents

    def stop(p, step, t, v):
        if step == 2:
            raise ZeroDivisionError("enough")

    with pytest.raises(ZeroDivisionError, match="enough"):
        pipe([1, 2], callback_on_step_end=stop)
    assert same(pipe([1, 2]).latents, before)


@pytest.mark.parametrize(
    "bad", [np.zeros((1, 4, 8, 8), np.float32), np.zeros((2, 4, 8, 8), int), None], ids=["shape", "int", "None"]
)
def test_bad_latents_of_a_callback_are_named(pipe, bad):
    with pytest.raises(UsageError, match="latents of"):
        pipe([1, 2], callback_on_step_end=lambda *_: {"latents": bad})


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, MemoryError, RunError, SystemExit, StopIteration])
def test_after_an_error_in_a_callback_the_pipeline_is_as_before(pipe, error):
    wanted = latents(pipe)

    def fail(pipe, step, *_):
        if step == 1:
            raise error

    with pytest.raises((error, RunError)):
        pipe([0, 1], 2.0, seed=3, callback_on_step_end=fail)
    assert np.array_equal(latents(pipe), wanted)
