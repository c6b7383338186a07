"""On a GPU the processor makes the pictures of a batch beside the loop of the next one."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from held import SOON, Held
from recorded import same

import l2c_export
from l2c_export.errors import Draining, RunError
from l2c_export.serving.engine import ServingEngine
from l2c_export.serving.job import Job

LOOPS = 3  # whose pictures are made, wait for that, and wait for a place to wait


class Drawn(Held):
    """A pipeline of a GPU whose pictures, too, wait until they are let go."""

    decoder = SimpleNamespace(on_host=True)

    def __init__(self, pipe):
        super().__init__(pipe)
        self.device = "cuda:0"
        self.asked: list[str] = []  # which outputs
        self.drawn, self.broken = 0, False
        self._drawing, self._pictures = threading.Condition(), math.inf

    def __call__(self, **request):
        self.asked.append(request["output_type"])
        return super().__call__(**request)

    def decode(self, latents):
        with self._drawing:
            self.drawn += 1
            turn = self.drawn
            self._drawing.notify_all()
            assert self._drawing.wait_for(lambda: turn <= self._pictures, SOON)
        if self.broken:
            raise ValueError("no memory")
        return self.pipe.decode(latents)

    def draw(self, pictures=math.inf):
        """Let so many pictures be made from the first one on."""
        with self._drawing:
            self._pictures = pictures
            self._drawing.notify_all()

    def wait_drawing(self, count):
        with self._drawing:
            assert self._drawing.wait_for(lambda: self.drawn >= count, SOON)


@pytest.fixture
def drawn(rgb):
    with l2c_export.load(rgb, threads=1) as pipe:
        yield Drawn(pipe)


def job(n):
    return Job({"class_labels": n % 3}, seed=n)


def wanted(drawn, n):
    return drawn.pipe([n % 3], seed=[n], output_type="np").images[0]


def test_the_next_loop_runs_while_pictures_are_made_to_the_bit(drawn):
    drawn.draw(0)
    with ServingEngine(drawn, max_batch=1, max_wait=0) as engine:
        tickets = [engine.submit(job(n)) for n in range(6)]
        drawn.wait_begun(LOOPS)
        assert drawn.drawn == 1
        assert not any(ticket.done() for ticket in tickets)
        assert engine.running == LOOPS
        drawn.draw()
        images = [ticket.result(SOON) for ticket in tickets]
    assert set(drawn.asked) == {"latent"}
    for n, image in enumerate(images):
        assert same(image.pixels, wanted(drawn, n))
    assert engine.counts["made"] == len(images)


def test_no_more_loops_run_ahead_of_their_pictures(drawn):
    drawn.draw(0)
    with ServingEngine(drawn, max_batch=1, max_wait=0) as engine:
        tickets = [engine.submit(job(n)) for n in range(6)]
        drawn.wait_begun(LOOPS)
        time.sleep(0.5)
        assert len(drawn.batches) == LOOPS
        drawn.draw()
        assert all(ticket.result(SOON) for ticket in tickets)


@pytest.mark.parametrize(("device", "decodes_on_host"), [("cpu", True), ("cuda:0", False)])
def test_what_has_one_place_for_both_does_one_after_the_other(drawn, device, decodes_on_host):
    drawn.device, drawn.decoder = device, SimpleNamespace(on_host=decodes_on_host)
    with ServingEngine(drawn) as engine:
        assert same(engine.submit(job(4)).result(SOON).pixels, wanted(drawn, 4))
    assert (drawn.asked, drawn.drawn) == (["np"], 0)


def test_no_picture_is_made_for_those_who_have_left_nor_for_padding(drawn):
    drawn.draw(0)
    with ServingEngine(drawn, max_wait=0) as engine:
        drawn.hold()
        engine.submit(job(4))
        drawn.wait_begun(1)
        tickets = [engine.submit(job(n)) for n in range(3)]
        drawn.let()
        drawn.wait_begun(2)
        assert tickets[1].cancel()
        drawn.draw()
        assert same(tickets[2].result(SOON).pixels, wanted(drawn, 2))
        with pytest.raises(CancelledError):
            tickets[1].result(0)
    assert drawn.batches == [1, 4]
    assert drawn.drawn == 3, "the first one's, and two of three"


def test_a_picture_that_cannot_be_made_is_one_clear_error_and_the_next_goes_on(drawn):
    drawn.broken = True
    with ServingEngine(drawn) as engine:
        with pytest.raises(RunError, match="the generation failed: ValueError: no memory"):
            engine.submit(job(1)).result(SOON)
        drawn.broken = False
        assert same(engine.submit(job(2)).result(SOON).pixels, wanted(drawn, 2))
    assert engine.counts["failed"] == engine.counts["made"] == 1


def test_pictures_are_made_by_the_pipeline_that_accepted_them_before_it_is_given_back(drawn, rgb):
    drawn.draw(0)
    with l2c_export.load(rgb, threads=1) as other, ThreadPoolExecutor(1) as pool, ServingEngine(drawn, max_batch=1) as engine:
        first, ticket = (engine.submit(job(n)) for n in (4, 5))
        drawn.wait_begun(2)
        replaced = pool.submit(engine.replace, other)
        drawn.draw(1)
        assert first.result(SOON)
        drawn.wait_drawing(2)  # the first batch is finished, the second one is not
        with pytest.raises(TimeoutError):
            replaced.result(0.5)
        late = engine.submit(job(1))
        drawn.draw()
        assert replaced.result(SOON) is drawn
        assert ticket.done()
        assert late.result(SOON)


def test_closing_finishes_pictures_too_or_says_that_it_could_not(drawn):
    drawn.draw(0)
    engine = ServingEngine(drawn, max_batch=1, max_wait=0)
    tickets = [engine.submit(job(n)) for n in range(2)]
    drawn.wait_drawing(1)
    threading.Timer(0.5, drawn.draw).start()
    assert engine.close(0.1) is False
    for ticket in tickets:
        with pytest.raises(Draining):
            ticket.result(0)
    engine = ServingEngine(drawn)
    ticket = engine.submit(job(3))
    assert engine.close(SOON) is True
    assert same(ticket.result(0).pixels, wanted(drawn, 3))
