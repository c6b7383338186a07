"""One generation at a time, whichever threads ask."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
from folders import GOLDEN
from recorded import latents, same

import l2c_export
from l2c_export.errors import RunError


@pytest.fixture
def pipe():
    """One of one's own: it may be closed."""
    with l2c_export.load(GOLDEN) as loaded:
        yield loaded


def test_a_generation_may_go_on_in_another_thread(pipe):
    """As a server's worker threads take a stream's items; none of them waits for the generation that it is making."""
    want = [done.x.copy() for done in pipe.steps([1], None, pipe.noise(1, 0))]
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        loop = pipe.steps([1], None, pipe.noise(1, 0))
        seen = [first.submit(next, loop).result(100).x.copy()]
        seen.append(second.submit(next, loop).result(100).x.copy())
        with pytest.raises(RunError, match="in the middle of a generation"):
            second.submit(pipe, [2]).result(100)
        waiting = first.submit(pipe, [2])  # no longer its generation: it waits for its turn
        assert wait([waiting], timeout=0.2).not_done
        seen += second.submit(lambda: [done.x.copy() for done in loop]).result(100)
        assert same(waiting.result(100).latents, pipe([2]).latents)
    assert same(np.stack(seen), np.stack(want))


def test_threads_take_turns_and_get_what_one_alone_gets(pipe):
    serial = [latents(pipe, seed) for seed in range(40)]
    by_seed: dict[int, np.ndarray] = {}

    def work(first: int) -> None:
        for seed in range(first, 40, 8):
            by_seed[seed] = latents(pipe, seed)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(600)
    assert all(np.array_equal(by_seed[seed], serial[seed]) for seed in range(40))


def test_a_generation_inside_a_generation_is_an_error(pipe):
    wanted = latents(pipe)

    def again(pipe, step, timestep, values):
        return {"latents": latents(pipe)}

    with pytest.raises(RunError, match="in the middle of a generation: end it first, or load a second pipeline"):
        pipe([0, 1], 2.0, callback_on_step_end=again)
    stepwise = pipe.steps([0, 1], 2.0, pipe.noise(2, 0))
    next(stepwise)
    for act in (lambda: latents(pipe), lambda: next(pipe.steps([0], None, pipe.noise(1, 0))), pipe.close):
        with pytest.raises(RunError, match="in the middle of a generation"):
            act()
    stepwise.close()
    assert np.array_equal(latents(pipe), wanted)


def test_closing_waits_for_the_generation_that_runs(pipe):
    stepwise, closed = pipe.steps([0, 1], 2.0, pipe.noise(2, 0)), []
    next(stepwise)
    closing = threading.Thread(target=lambda: (pipe.close(), closed.append(1)))
    closing.start()
    closing.join(0.2)
    assert not closed
    *_, last = stepwise
    closing.join(100)
    assert closed
    assert np.isfinite(last.x).all()
