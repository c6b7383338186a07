"""What goes wrong in the engine, by too many clients, and by those that leave: one clear answer for everybody else."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from held import SOON
from served import IMAGES, in_thread

pytest.importorskip("fastapi")
pytest.importorskip("PIL.Image")


def error_of(answer):
    """The body of an error, which is OpenAI's, and says nothing of this machine."""
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in ("/", "Traceback", ".py", "\n"):
        assert word not in error["message"].replace("GET /v1/models", "")
    return error


def count(server):
    counts = server.engine.counts
    assert counts["accepted"] == counts["made"] + counts["failed"] + counts["cancelled"]
    return counts


def test_too_many_are_told_so_and_when_to_come_again(running):
    running.held.hold()
    with ThreadPoolExecutor(40) as pool:
        first = pool.submit(running.ask)
        running.held.wait_begun(1)
        asked = [pool.submit(running.ask, seed=n) for n in range(30)]
        running.wait_waiting(6)
        longest = running.engine.waiting
        until = time.monotonic() + SOON
        while sum(future.done() for future in asked) < 24 and time.monotonic() < until:
            longest = max(longest, running.engine.waiting)
        running.held.let()
        answers = [future.result(SOON) for future in (first, *asked)]
    assert Counter(answer.status_code for answer in answers) == {200: 7, 429: 24}
    assert longest == 6
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert error_of(refused) == {"message": "6 images wait, and at most 6 may: ask again later", "type": "rate_limit_error",
                                 "param": None, "code": "queue_full"}  # fmt: skip
    assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert count(running)["rejected"] == 24


def test_images_of_one_request_are_taken_together_or_refused(running):
    running.held.hold()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(running.ask)
        running.held.wait_begun(1)
        other = pool.submit(running.ask, n=4)
        running.wait_waiting(4)
        assert running.ask(n=3).status_code == 429
        assert running.engine.waiting == 4
        assert running.ask(n=7).json()["error"]["message"] == "n=7: at most 6 images may wait here: ask for fewer at once"
        running.held.let()
        assert [len(future.result(SOON).json()["data"]) for future in (first, other)] == [1, 4]


@pytest.mark.parametrize(("fault", "message"), [
    ("raises", "the generation failed: the server's log says why"), ("nan", "the latents hold NaN or infinite values"),
])  # fmt: skip
def test_an_engine_that_fails_is_one_clear_error_and_the_next_request_is_answered(running, fault, message):
    assert running.ask().status_code == 200
    if fault == "raises":
        running.held.raises = ValueError("/secret/path.py broke")
    else:
        running.held.nan_row = 0
    answer = running.ask()
    assert (answer.status_code, error_of(answer)["code"]) == (500, "generation_failed")
    assert message in error_of(answer)["message"]
    running.held.raises = running.held.nan_row = None
    assert running.ask().status_code == 200
    assert count(running)["failed"] == 1


def test_a_stream_that_fails_ends_with_an_event(running):
    running.ask()
    running.held.raises = ValueError("/secret/path.py broke")
    answer = running.ask(stream=True)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    name, data = answer.text.strip().split("\n")
    assert name == "event: error"
    assert json.loads(data.removeprefix("data: "))["error"]["message"] == "the generation failed: the server's log says why"


def test_whoever_leaves_while_waiting_gives_his_place_to_another(running):
    running.held.hold()
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(running.ask)
        running.held.wait_begun(1)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}{IMAGES}", json={"prompt": "1", "n": 6}, timeout=0.3)
        running.wait_waiting(0)
        other = pool.submit(running.ask, n=6)
        running.wait_waiting(6)
        running.held.let()
        assert [future.result(SOON).status_code for future in (first, other)] == [200, 200]
    assert running.held.batches == [1, 4, 2], "nothing was computed for those who left"
    assert count(running)["cancelled"] == 6


@pytest.mark.parametrize("stream", [False, True])
def test_a_batch_that_everybody_has_left_computes_at_most_one_more_step(running, stream):
    """Who leaves in the middle of a generation: of its 4 solver steps at most the one that runs is finished."""
    running.ask()
    left, steps = threading.Event(), []
    original = running.held.pipe.__call__

    def watched(**request):
        callback = request.pop("callback_on_step_end")

        def after(pipe, step, timestep, values):
            steps.append((step, left.is_set()))
            if step == 0:
                assert left.wait(SOON)
            return callback(pipe, step, timestep, values) if callback else None

        return original(callback_on_step_end=after, **request)

    running.held.pipe = Watched(running.held.pipe, watched)
    with httpx.Client(base_url=running.url, timeout=SOON) as client:
        body = {"prompt": "1", "n": 1, **({"stream": True} if stream else {})}
        if stream:
            with client.stream("POST", IMAGES, json=body) as answer:
                assert answer.status_code == 200
                wait_for(lambda: steps)
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(IMAGES, json=body, timeout=0.5)
    wait_for(lambda: running.engine.counts["cancelled"] == 1)
    left.set()
    wait_for(lambda: not running.engine.running)
    assert running.held.ended[-1].startswith("cancelled before call")
    assert len(steps) == 1
    assert running.ask().status_code == 200


class Watched:
    def __init__(self, pipe, call):
        self.pipe, self.call = pipe, call

    def __getattr__(self, name):
        return getattr(self.pipe, name)

    def __call__(self, **request):
        return self.call(**request)


def wait_for(condition):
    until = time.monotonic() + SOON
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    assert condition()


def test_while_it_drains_it_answers_503_and_finishes_what_was_accepted(rgb, monkeypatch):
    import signal

    with in_thread(rgb, monkeypatch) as running, ThreadPoolExecutor(9) as pool:
        assert running.client.get("/health/ready").json() == {"status": "ready"}
        running.held.hold()
        accepted = [pool.submit(running.ask, seed=n) for n in range(8)]
        wait_for(lambda: running.engine.waiting + running.engine.running == 8)
        running.server.handle_exit(signal.SIGTERM, None)
        answer = running.ask()
        assert (answer.status_code, error_of(answer)["code"]) == (503, "draining")
        assert (answer.headers["retry-after"], answer.headers["connection"]) == ("1", "close")
        with httpx.Client(base_url=running.url) as other:
            assert other.get("/health/live").status_code == 200
            assert (other.get("/health/ready").status_code, other.get("/health/ready").json()) == (503, {"status": "draining"})
        running.held.let()
        assert [future.result(SOON).status_code for future in accepted] == [200] * 8


def test_what_cannot_be_finished_in_time_is_answered_too(rgb, monkeypatch):
    import signal

    with in_thread(rgb, monkeypatch, drain_seconds=0.2) as running, ThreadPoolExecutor(9) as pool:
        running.held.hold()
        accepted = [pool.submit(running.ask, seed=n) for n in range(8)]
        wait_for(lambda: running.engine.waiting + running.engine.running == 8)
        running.server.handle_exit(signal.SIGTERM, None)
        answers = [future.result(SOON) for future in accepted]
        running.held.let()
    assert {answer.status_code for answer in answers} == {503}
    assert {error_of(answer)["code"] for answer in answers} == {"draining"}


def test_before_a_model_is_loaded_it_says_so(rgb, monkeypatch):
    seen = []

    def watch(url):
        with httpx.Client(base_url=url) as client:
            answers = [client.get("/health/live"), client.get("/health/ready"), client.post(IMAGES, json={"prompt": "1"})]
            seen.extend((answer.status_code, answer.headers.get("retry-after")) for answer in answers)

    with in_thread(rgb, monkeypatch, while_loading=watch) as running:
        assert running.ask().status_code == 200
        assert running.client.get("/health/ready").status_code == 200
    assert seen == [(200, None), (503, None), (503, "2")]
