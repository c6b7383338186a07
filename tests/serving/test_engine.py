"""The engine: what comes out, in batches of whatever was asked for, and that every accepted job is answered once."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor

import numpy as np
import pytest
from folders import GOLDEN
from held import SOON, Held
from recorded import same

import l2c_export
from l2c_export.errors import Draining, Full, RunError, UsageError
from l2c_export.serving.engine import ServingEngine
from l2c_export.serving.job import Job
from l2c_export.serving.previews import shown_steps


def label(n, seed=0, **more):
    return Job({"class_labels": n}, seed, **more)


def alone(pipe, job):
    return pipe(**{name: [value] for name, value in job.inputs.items()}, seed=[job.seed], guidance_scale=job.guidance_scale,
                steps=job.steps).latents[0]  # fmt: skip


@pytest.fixture
def held(wide_pipe):
    """The pipeline, whose calls wait to be let go."""
    return Held(wide_pipe)


def answered(engine):
    """The counts of an engine, of which every accepted job is one of three."""
    counts = engine.counts
    assert counts["accepted"] == counts["made"] + counts["failed"] + counts["cancelled"]
    return counts


# what comes out


def test_a_job_is_what_the_pipeline_makes(wide_pipe):
    with ServingEngine(wide_pipe) as engine:
        for job in (label(3), label("7", 5), label(1, 2**40, guidance_scale=1.0), label(2, 1, guidance_scale=2.5, steps=4)):
            assert same(engine.submit(job).result(SOON).latents, alone(wide_pipe, job))


def test_a_batch_may_mix_labels_seeds_and_scales_to_the_bit(held):
    jobs = [label(1, 4), label(9, 4, guidance_scale=1.0), label(1, 99, guidance_scale=7.5), label(0, 3, guidance_scale=-2.0)]
    with ServingEngine(held) as engine:
        tickets = held.behind_one(engine, jobs)
        images = [ticket.result(SOON) for ticket in tickets]
    assert {image.batch for image in images} == {4}
    assert held.batches[-1] == 4
    for job, image in zip(jobs, images, strict=True):
        assert same(image.latents, alone(held.pipe, job))


def test_jobs_of_other_steps_wait_for_a_batch_of_their_own(held):
    jobs = [label(1, 1), label(2, 2, steps=4), label(3, 3), label(4, 4, steps=4), label(5, 5)]
    with ServingEngine(held) as engine:
        images = [ticket.result(SOON) for ticket in held.behind_one(engine, jobs)]
    assert held.batches == [1, 3, 2]
    for job, image in zip(jobs, images, strict=True):
        assert same(image.latents, alone(held.pipe, job))


def test_on_a_processor_a_batch_is_as_large_as_it_has_jobs(held):
    with ServingEngine(held) as engine:
        for ticket in held.behind_one(engine, [label(n) for n in range(3)]):
            ticket.result(SOON)
        assert held.batches == [1, 3]
        assert answered(engine)["padding"] == 0


def test_on_a_gpu_it_has_one_of_the_sizes_that_are_warm(held):
    held.device = "cuda:0"
    with ServingEngine(held) as engine:
        assert held.warmed == {(7, (1, 2, 4)), (4, (1, 2, 4))}
        jobs = [label(n, n) for n in range(3)]
        images = [ticket.result(SOON) for ticket in held.behind_one(engine, jobs)]
        assert held.batches == [1, 4]
        assert answered(engine)["padding"] == 1
    assert [image.batch for image in images] == [3, 3, 3]
    for job, image in zip(jobs, images, strict=True):
        assert same(image.latents, alone(held.pipe, job))


def test_max_batch_cuts_batches(held):
    with ServingEngine(held, max_batch=2) as engine:
        for ticket in held.behind_one(engine, [label(n) for n in range(5)]):
            ticket.result(SOON)
    assert held.batches == [1, 2, 2, 1]


def test_the_first_of_a_batch_waits_a_moment_for_others(wide_pipe):
    with ServingEngine(wide_pipe, max_wait=2.0) as engine:
        began = time.monotonic()
        first = engine.submit(label(1))
        others = [engine.submit(label(2)) for _ in range(3)]
        assert {ticket.result(SOON).batch for ticket in (first, *others)} == {4}
        assert time.monotonic() - began < 1.9, "a full batch does not wait"
    with ServingEngine(wide_pipe, max_wait=0.2) as engine:
        assert engine.submit(label(1)).result(SOON).queued_seconds >= 0.2


def test_pixels_are_those_of_the_pipeline(pixels):
    with l2c_export.load(pixels, threads=1) as pipe:
        wanted = pipe([2], seed=[8], output_type="np").images[0]
        with ServingEngine(pipe) as engine:
            assert same(engine.submit(label(2, 8)).result(SOON).pixels, wanted)
        with ServingEngine(pipe, output_type="latent") as engine:
            assert engine.submit(label(2, 8)).result(SOON).pixels is None


# previews


def test_previews_are_the_latents_on_the_way_and_change_nothing(held):
    wanted, seen, others = {}, [], []
    held.pipe([1], seed=[4], callback_on_step_end=lambda _, step, t, values: wanted.update({step + 1: values["latents"][0]}))
    with ServingEngine(held) as engine:
        held.hold()
        first = held.begun(engine)
        asked = engine.submit(label(1, 4, previews=3), seen.append)
        silent = engine.submit(label(2, 5), others.append)
        held.let()
        images = [ticket.result(SOON) for ticket in (first, asked, silent)]
    assert [preview.step for preview in seen] == sorted(shown_steps(3, 7)) == [2, 4, 5]
    assert all(
        preview.steps == 7 and preview.pixels is None and same(preview.latents, wanted[preview.step]) for preview in seen
    )
    assert not others, "only those who asked"
    assert held.batches == [1, 2]
    assert same(images[1].latents, alone(held.pipe, label(1, 4)))
    assert same(images[2].latents, alone(held.pipe, label(2, 5)))


def test_previews_of_pixels_have_pixels(pixels):
    seen = []
    with l2c_export.load(pixels, threads=1) as pipe, ServingEngine(pipe) as engine:
        engine.submit(label(1, previews=100), seen.append).result(SOON)
    steps = seen[0].steps
    assert [preview.step for preview in seen] == list(range(1, steps))
    assert all(preview.pixels.shape == (4, 4, 3) and 0 <= preview.pixels.min() <= preview.pixels.max() <= 1 for preview in seen)


def test_a_preview_that_fails_costs_nobody_an_image(wide_pipe):
    def broken(_):
        raise ValueError("no such window")

    with ServingEngine(wide_pipe) as engine:
        assert same(engine.submit(label(1, 4, previews=2), broken).result(SOON).latents, alone(wide_pipe, label(1, 4)))


@pytest.mark.parametrize(("previews", "steps", "shown"), [
    (0, 7, set()), (1, 7, {4}), (3, 20, {5, 10, 15}), (3, 2, {1}), (9, 4, {1, 2, 3}), (1, 1, set()),
])  # fmt: skip
def test_what_is_shown(previews, steps, shown):
    assert shown_steps(previews, steps) == shown


# who leaves


def test_a_batch_that_nobody_waits_for_ends_before_its_next_step(held):
    with ServingEngine(held) as engine:
        held.hold()
        tickets = [engine.submit(label(1, previews=6), lambda _: tickets[0].cancel())]
        held.let()
        with pytest.raises(CancelledError):
            tickets[0].result(SOON)
        engine.submit(label(2)).result(SOON)
        assert answered(engine)["cancelled"] == 1
    assert held.ended == ["cancelled before call 2 of 7", "made"]


def test_one_that_leaves_a_batch_costs_the_others_nothing(held):
    with ServingEngine(held) as engine:
        held.hold()
        held.begun(engine)
        tickets = [engine.submit(label(n, n)) for n in range(3)]
        held.let(1)
        held.wait_begun(2)
        assert tickets[1].cancel()
        held.let()
        assert same(tickets[0].result(SOON).latents, alone(held.pipe, label(0, 0)))
        assert same(tickets[2].result(SOON).latents, alone(held.pipe, label(2, 2)))
        assert tickets[1].cancelled()
        counts = answered(engine)
    assert (counts["made"], counts["cancelled"]) == (3, 1)


def test_one_that_leaves_the_queue_gives_its_place_to_another(held):
    with ServingEngine(held, max_queue=2) as engine:
        held.hold()
        running = held.begun(engine)
        waiting = [engine.submit(label(n)) for n in (1, 2)]
        with pytest.raises(Full):
            engine.submit(label(3))
        assert waiting[0].cancel()
        assert engine.waiting == 1
        late = engine.submit(label(3))
        held.let()
        assert [ticket.result(SOON).batch for ticket in (running, waiting[1], late)] == [1, 2, 2]
        assert not waiting[1].cancel(), "it has its image"


# bounds


def test_the_queue_never_exceeds_its_bound(held):
    with ServingEngine(held, max_queue=8) as engine:
        held.hold()
        running, longest, outcomes = held.begun(engine), [], []
        with ThreadPoolExecutor(16) as pool:

            def ask(n):
                try:
                    return engine.submit(label(n % 10, n))
                except Full as error:
                    return error
                finally:
                    longest.append(engine.waiting)

            outcomes += pool.map(ask, range(200))
        accepted = [outcome for outcome in outcomes if not isinstance(outcome, Full)]
        assert (len(accepted), max(longest)) == (8, 8)
        assert "8 images wait, and at most 8 may: ask again later" in {str(outcome) for outcome in outcomes}
        held.let()
        for ticket in (running, *accepted):
            ticket.result(SOON)
        assert answered(engine)["rejected"] == 192


def test_several_jobs_are_accepted_together_or_not_at_all(held):
    with ServingEngine(held, max_queue=3) as engine:
        held.hold()
        running = held.begun(engine)
        two = engine.submit_all([label(1), label(2)])
        with pytest.raises(Full, match="2 images wait, and at most 3 may"):
            engine.submit_all([label(3), label(4)])
        with pytest.raises(UsageError, match="class label 77"):
            engine.submit_all([label(3), label(77)])
        assert engine.waiting == 2
        held.let()
        for ticket in (running, *two):
            ticket.result(SOON)
        assert answered(engine)["accepted"] == 3


@pytest.mark.parametrize(("job", "message"), [
    (label(10), "class label 10: must be a whole number from 0 to 9"),
    (label(None), "class label None: must be a whole number from 0 to 9"),
    (Job({"prompt": "a cat"}), "prompt=..: this artefact has no such input"),
    (Job({"class_labels": 1, "strength": 0.5}), "strength=.."),
    (label(1, seed=-1), r"seed=\[-1\]"),
    (label(1, steps=5), "steps=5: this artefact was compiled for 7 or 4 steps"),
    (label(1, guidance_scale=float("nan")), "guidance_scale=nan"),
    (label(1, guidance_scale=(1.0, 2.0)), "guidance_scale"),
    (label(1, height=512, width=512), "height=512, width=512"),
])  # fmt: skip
def test_what_the_artefact_cannot_make_is_refused_at_once(wide_pipe, job, message):
    with ServingEngine(wide_pipe) as engine, pytest.raises(UsageError, match=message):
        engine.submit(job)


@pytest.mark.parametrize("wrong", [{"max_batch": 0}, {"max_queue": 0}, {"max_wait": -1}, {"output_type": "pil"}])
def test_wrong_settings(wide_pipe, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ServingEngine(wide_pipe, **wrong)


# what fails


def test_an_engine_that_raises_is_one_clear_error_and_the_next_batch_goes_on(held):
    with ServingEngine(held) as engine:
        held.raises = ValueError("bad kernel")
        failed = held.behind_one(engine, [label(n) for n in range(3)])
        for ticket in failed:
            with pytest.raises(RunError, match="the generation failed: ValueError: bad kernel"):
                ticket.result(SOON)
        assert same(engine.submit(label(3, 3)).result(SOON).latents, alone(held.pipe, label(3, 3)))
        counts = answered(engine)
    assert (counts["made"], counts["failed"]) == (2, 3)


def test_nan_fails_the_image_that_has_it(held):
    with ServingEngine(held) as engine:
        held.nan_row = 1
        tickets = held.behind_one(engine, [label(n, n) for n in range(3)])
        with pytest.raises(RunError, match="NaN or infinite"):
            tickets[1].result(SOON)
        for n in (0, 2):
            assert same(tickets[n].result(SOON).latents, alone(held.pipe, label(n, n)))
        assert answered(engine)["failed"] == 1


# the end


def test_closing_finishes_what_was_accepted(held):
    engine = ServingEngine(held)
    held.hold()
    tickets = [held.begun(engine), *(engine.submit(label(n, n)) for n in range(6))]
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(engine.close, SOON)
        refused = None
        while refused is None:
            try:
                tickets.append(engine.submit(label(1)))
            except Draining as error:
                refused = error
        assert "accepts nothing more" in str(refused)
        held.let()
        assert closing.result(SOON) is True
    assert all(ticket.result(0) for ticket in tickets)
    assert answered(engine)["made"] == len(tickets)


def test_what_cannot_be_finished_in_time_is_answered(held):
    engine = ServingEngine(held)
    held.hold()
    tickets = [held.begun(engine), *(engine.submit(label(n)) for n in range(6))]
    threading.Timer(0.5, held.let).start()
    assert engine.close(0.1) is False
    for ticket in tickets:
        with pytest.raises(Draining, match=r"drain_seconds=0\.1"):
            ticket.result(0)
    assert answered(engine)["failed"] == 7
    assert engine.close() is True


# exchange


def test_what_was_accepted_is_made_by_the_one_that_accepted_it(held, tmp_path):
    with l2c_export.load(GOLDEN, threads=1) as other, ServingEngine(held) as engine, ThreadPoolExecutor(1) as pool:
        held.hold()
        before = [held.begun(engine), *(engine.submit(label(n, n)) for n in range(3))]
        exchange = pool.submit(engine.replace, other)
        while engine.pipe is held:
            time.sleep(0.001)
        after = [engine.submit(label(2, n)) for n in range(3)]
        with pytest.raises(UsageError, match="class label 9"):
            engine.submit(label(9))
        assert not exchange.done()
        held.let()
        assert exchange.result(SOON) is held
        for n, ticket in enumerate(before[1:]):
            assert same(ticket.result(SOON).latents, alone(held.pipe, label(n, n)))
        assert [ticket.result(SOON).batch for ticket in after] == [2, 2, 1], "of its own batch"
        assert same(after[1].result().latents, alone(other, label(2, 1)))


def test_one_that_does_not_run_does_not_take_its_place(held):
    with l2c_export.load(GOLDEN, threads=1) as broken:
        pass  # closed
    with ServingEngine(held) as engine:
        with pytest.raises(RunError, match="closed"):
            engine.replace(broken)
        assert engine.pipe is held
        assert engine.submit(label(1)).result(SOON)


def test_exchanging_under_load_loses_nothing(wide):
    pipes = [l2c_export.load(wide, threads=1) for _ in range(2)]
    wanted = {n: alone(pipes[0], label(n, n)) for n in range(10)}
    counts = Counter()
    with ServingEngine(pipes[0], max_queue=200) as engine:

        def ask(first):
            for k in range(first, 120, 4):
                counts[same(engine.submit(label(k % 10, k % 10)).result(SOON).latents, wanted[k % 10])] += 1

        threads = [threading.Thread(target=ask, args=(n,)) for n in range(4)]
        for thread in threads:
            thread.start()
        for n in range(10):
            assert engine.replace(pipes[(n + 1) % 2]) is pipes[n % 2]
        for thread in threads:
            thread.join(SOON)
        assert answered(engine)["failed"] == 0
    assert counts == {True: 120}
    for pipe in pipes:
        pipe.close()


def test_a_process_that_ends_without_closing_just_ends(wide):
    import subprocess
    import sys

    code = (
        "import sys, l2c_export\nfrom l2c_export.serving.engine import ServingEngine\nfrom l2c_export.serving.job import Job\n"
        "engine = ServingEngine(l2c_export.load(sys.argv[1], threads=1))\n"
        "for n in range(50): engine.submit(Job({'class_labels': 1}, n))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(wide)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_memory_stays_flat(wide_pipe):
    import tracemalloc

    with ServingEngine(wide_pipe) as engine:

        def some(count):
            for ticket in [engine.submit(label(n % 10, n)) for n in range(count)]:
                np.asarray(ticket.result(SOON).latents)

        some(60)
        tracemalloc.start()
        before = tracemalloc.take_snapshot()
        for _ in range(3):
            some(60)
        grown = sum(statistic.size_diff for statistic in tracemalloc.take_snapshot().compare_to(before, "filename"))
        tracemalloc.stop()
    assert grown < 100_000
