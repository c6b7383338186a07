"""What a user holds: `l2c_export.load` and the pipeline's promises about one request and the next."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers import case
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from recorded import close

import l2c_export
from l2c_export.backends.choose import open_backend
from l2c_export.backends.contract import Request
from l2c_export.compiler.compile import compile_artefact
from l2c_export.errors import ArtefactError, BackendError, L2CError, RunError, UsageError
from l2c_export.runtime.images import to_images
from l2c_export.runtime.loop import turns
from l2c_export.support import machine
from l2c_export.support.ending import LAST_SECONDS
from l2c_export.support.neighbours import Watch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pipe(tiny):
    """A DiT on 8 x 8 latents, 10 classes, 7 steps, compiled for a batch of 2 with guidance of 4."""
    return l2c_export.load(tiny[0], backend="onnxruntime")


def same(a, b):
    return np.array_equal(a, b, equal_nan=True)


# guidance


def test_the_guidance_scale_of_one_request_is_not_that_of_the_next(pipe, tiny):
    golden = tiny[1].golden
    request = {"class_labels": golden["y"][:2], "latents": golden["x_T"][:2]}
    first = pipe(**request, guidance_scale=4.0).latents
    assert close(first, golden["cached_final"][:2])
    assert not close(pipe(**request, guidance_scale=1.5).latents, golden["cached_final"][:2])
    assert same(pipe(**request, guidance_scale=4).latents, first)


def test_without_a_guidance_scale_the_artefact_has_one(pipe):
    assert same(pipe([1, 2]).latents, pipe([1, 2], guidance_scale=pipe.manifest.guidance.scale).latents)


def test_first3_leaves_the_fourth_channel_of_the_first_call_unguided(pipe):
    noise = pipe.noise(1, 0)
    first = {scale: next(pipe.steps([1], scale, noise)).x.copy() for scale in (1, 2, 4)}
    for channel, guided in enumerate((True, True, True, False)):
        low, high = (first[s][:, channel] - first[1][:, channel] for s in (2, 4))
        assert np.allclose(high, 3 * low, rtol=1e-3, atol=1e-4)
        assert (np.abs(high).max() > 1e-2) == guided


def test_guidance_1_runs_half_the_rows_and_equals_an_artefact_without_guidance(pipe, tiny, tmp_path):
    compile_artefact(tiny[1].options(tmp_path / "e", guidance="none"))
    without = l2c_export.load(tmp_path / "e", backend="onnxruntime")
    assert pipe.generation([1, 2], 1).loop.rows == 2
    assert pipe.generation([1, 2], 1.5).loop.rows == 4
    assert close(pipe([1, 2], guidance_scale=1).latents, without([1, 2]).latents)
    assert without.manifest.guidance.scale == 1
    with pytest.raises(UsageError, match=r"guidance_scale=4: this artefact was compiled with guidance='none': use .*=1"):
        without([1, 2], guidance_scale=4)


def test_guidance_1_still_equals_full_guidance_with_a_scale_close_to_1(pipe):
    assert np.allclose(pipe([1, 2], guidance_scale=1).latents, pipe([1, 2], guidance_scale=1 + 1e-6).latents, atol=1e-3)


# noise


@given(st.lists(st.integers(0, 2**64), min_size=1, max_size=4))
def test_the_noise_of_an_image_depends_on_its_seed_alone(pipe, seeds):
    many = pipe.noise(len(seeds), seeds)
    assert all(same(many[i], pipe.noise(1, seed)[0]) for i, seed in enumerate(seeds))
    assert len({n.tobytes() for n in many}) == len(set(seeds))


def test_one_seed_stands_for_consecutive_ones(pipe):
    assert same(pipe.noise(3, 7), pipe.noise(3, [7, 8, 9]))
    assert same(pipe([1, 2], seed=7).latents, pipe([1, 2], seed=np.array([7, 8])).latents)


def test_noise_is_standard_normal_and_the_same_in_every_release(pipe):
    noise = pipe.noise(64, 0)
    assert noise.dtype == np.float32
    assert abs(noise.mean()) < 0.03
    assert abs(noise.std() - 1) < 0.03
    assert np.allclose(noise[0].ravel()[:3], [-0.24822916, -0.02676702, -1.9444163], atol=1e-6)


def test_latents_are_the_noise_that_a_seed_would_have_made(pipe):
    drawn = pipe([1, 2], seed=3).latents
    assert same(pipe([1, 2], latents=pipe.noise(2, 3)).latents, drawn)
    assert same(pipe([1, 2], latents=pipe.noise(2, 3).astype(np.float64), seed=8).latents, drawn)
    assert not same(pipe([1, 2], seed=4).latents, drawn)
    half = pipe.noise(2, 3).astype(np.float16)
    assert same(pipe([1, 2], latents=half).latents, pipe([1, 2], latents=half.astype(np.float32)).latents)


def test_given_latents_are_not_written_to(pipe):
    noise = pipe.noise(2, 0)
    pipe([1, 2], latents=noise, callback_on_step_end=lambda p, s, t, v: {"latents": v["latents"] * 0})
    assert same(noise, pipe.noise(2, 0))


# batches


def test_a_smaller_batch_gives_the_same_images(pipe):
    both = pipe([3, 5], seed=[11, 12]).latents
    for i, (label, seed) in enumerate([(3, 11), (5, 12)]):
        assert close(pipe([label], seed=seed).latents, both[i : i + 1])


def test_an_image_does_not_depend_on_its_neighbour(pipe):
    assert close(pipe([3, 5], seed=[11, 12]).latents[:1], pipe([3, 9], seed=[11, 0]).latents[:1])


def test_three_images_without_guidance_equal_their_recordings_together_and_alone(tmp_path):
    chosen = case("dit_batch3_no_cfg")
    compile_artefact(chosen.options(tmp_path / "e"))
    pipe = l2c_export.load(tmp_path / "e", backend="onnxruntime")
    golden = chosen.golden
    out = pipe(golden["y"], latents=golden["x_T"]).latents
    assert close(out, golden["cached_final"])
    for i in range(3):
        assert close(pipe(golden["y"][i], latents=golden["x_T"][i : i + 1]).latents, out[i : i + 1])


@pytest.mark.parametrize("labels", [3, np.int64(3), [3], (3,), np.array([3])], ids=repr)
def test_labels_may_be_one_number_or_any_sequence(pipe, labels):
    assert same(pipe(labels).latents, pipe([3]).latents)


def test_a_generation_repeats_to_the_bit_whatever_ran_between(pipe):
    first = pipe([1, 2], seed=5).latents
    kept = first.copy()
    between = [pipe([1, 2], seed=5).latents, pipe([7]).latents, pipe([4, 4], guidance_scale=1, seed=9).latents]
    next(pipe.steps([1, 2], None, pipe.noise(2, 1)))  # and one that nobody finished
    assert same(pipe([1, 2], seed=5).latents, kept)
    assert same(between[0], kept)
    assert same(first, kept), "a result is not overwritten by the next request"


def test_hoisted_rows_that_do_not_fit_are_computed_in_chunks(pipe, tiny, monkeypatch):
    whole, manifest = pipe([1, 2], seed=5).latents, pipe.manifest
    hoisted = pipe.generation([1, 2], None).loop.hoisted
    assert hoisted.window == len(manifest.calls)
    per_call = 2 * 2 * sum(manifest.values[name].row_bytes for name in manifest.graphs[manifest.prologue].outputs)
    for calls in (1, 2, 3, 5):
        monkeypatch.setattr(sys.modules[type(hoisted).__module__], "HOISTED_BYTES", calls * per_call)
        chunked = l2c_export.load(tiny[0], backend="onnxruntime")
        assert chunked.generation([1, 2], None).loop.hoisted.window < len(manifest.calls)
        first = chunked([1, 2], seed=5).latents
        assert close(first, whole), f"{calls} calls at a time"
        assert same(chunked([1, 2], seed=5).latents, first)
        assert close(chunked([1, 2], seed=5, callback_on_step_end=lambda *_: None).latents, whole)
        assert not close(chunked([3, 4], seed=5).latents, whole), "with the labels of the last request"


def test_numbers_of_numpy_do_not_wrap_around(pipe):
    assert same(pipe([1, 2], seed=np.uint8(255)).latents, pipe([1, 2], seed=[255, 256]).latents)
    assert same(pipe([1, 2], seed=np.int32(2**31 - 1)).latents, pipe([1, 2], seed=2**31 - 1).latents)
    assert same(pipe([np.int8(1)], np.uint8(0)).latents, pipe([1], 0.0).latents)
    assert same(pipe([1], np.float16(3)).latents, pipe([1], 3).latents)
    with pytest.raises(UsageError, match="must be a finite number"):
        pipe([1], np.float16("inf"))


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


def test_a_pipeline_is_not_sent_to_another_process(pipe):
    with pytest.raises(RunError, match="load the artefact there"):
        pickle.dumps(pipe)


def test_a_block_ends_with_its_own_error_and_a_closed_pipeline(tiny):
    pipe = l2c_export.load(tiny[0], backend="onnxruntime")
    loop = pipe.steps([1], None, pipe.noise(1, 0))

    def block():
        with pipe:
            next(loop)
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        block()
    with pytest.raises(RunError, match="is closed"):
        pipe([1])
    assert list(loop) == []


FORKED = """
import multiprocessing, sys, threading, time
import l2c_export
pipe = l2c_export.load(sys.argv[1], backend=sys.argv[2], threads=2)
pipe([1])
began, over = threading.Event(), threading.Event()
if sys.argv[3] == "busy":
    hold = lambda *_: (began.set(), over.wait())
    threading.Thread(target=lambda: pipe([1], callback_on_step_end=hold), daemon=True).start()
    began.wait()
elif sys.argv[3] == "resting":
    half = pipe.steps([1], None, pipe.noise(1, 0))
    threading.Thread(target=lambda: (next(half), began.set(), time.sleep(600)), daemon=True).start()
    began.wait()
def child(answers):
    try:
        answers.put(float(abs(pipe([1]).latents).max()))
    except l2c_export.L2CError as error:
        answers.put(str(error))
fork = multiprocessing.get_context("fork")
answers = fork.SimpleQueue()
fork.Process(target=child, args=(answers,), daemon=True).start()
print(answers.get())
over.set()
"""


ALONE = "loaded before its process was forked"


@pytest.mark.parametrize(
    ("backend", "meanwhile", "says"),
    [("onnxruntime", "", r"\d+\.\d+"), ("onnxruntime", "resting", r"\d+\.\d+"), ("onnxruntime", "busy", ALONE),
     ("openvino", "", ALONE)],
)  # fmt: skip
def test_a_server_that_forks_after_loading_is_told_where_that_does_not_work(tiny, backend, meanwhile, says):
    pytest.importorskip(backend)
    done = python(FORKED, tiny[0], backend, meanwhile)
    assert re.search(says, done.stdout), done


STOPPED = """
import sys, threading, time
import l2c_export
pipe, other = (l2c_export.load(sys.argv[1], backend=sys.argv[2], threads=1) for _ in range(2))
def serve():
    while True:
        pipe([1])
def leave():
    half = other.steps([1], None, pipe.noise(1, 0))
    next(half)
    time.sleep(60)
for work in (serve, leave):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.5)
sys.exit(0)
"""


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_a_server_ends_in_peace_while_a_request_runs(tiny, backend):
    """Its threads are daemons: what they compute with would be destroyed under them.  Nobody waits for what rests."""
    pytest.importorskip(backend)
    started = time.monotonic()
    assert python(STOPPED, tiny[0], backend).returncode == 0
    assert time.monotonic() - started < LAST_SECONDS


def python(program, *words):
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True, timeout=600, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


def test_stopping_after_every_call_changes_nothing(pipe):
    whole = pipe([1, 2], seed=5).latents
    assert same(pipe([1, 2], seed=5, check_finite=True).latents, whole)
    assert same(pipe([1, 2], seed=5, callback_on_step_end=lambda *_: None).latents, whole)
    *_, last = pipe.steps([1, 2], None, pipe.noise(2, 5))
    assert same(last.x, whole)


def test_new_labels_replace_all_that_the_old_ones_made(pipe):
    """With and without stops, and after a request that nobody finished."""
    want = {labels: pipe(labels, seed=5).latents for labels in [(1, 2), (3, 4)]}
    for labels in [(1, 2), (3, 4), (1, 2)]:
        assert same(pipe(labels, seed=5, callback_on_step_end=lambda *_: None).latents, want[labels])
        next(pipe.steps([5, 6], None, pipe.noise(2, 1)))
    for labels in [(1, 2), (3, 4), (1, 2)]:
        assert same(pipe(labels, seed=5).latents, want[labels])


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_no_call_writes_over_latents_that_are_still_needed(ends):
    """A call reads the latents of the call before and those at the start of its solver step."""
    calls = [SimpleNamespace(ends_step=end) for end in ends]
    written, start = 0, 0
    for call, turn in zip(calls, turns(calls), strict=True):
        assert (turn.now, turn.base) == (written, start)
        assert turn.after not in (turn.now, turn.base)
        written, start = turn.after, turn.after if call.ends_step else start


# callbacks


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
    assert len(pipe.manifest.calls) == 4
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


@pytest.mark.parametrize("given", [None, {}, {"prompt": 1}], ids=repr)
def test_a_callback_that_returns_no_latents_changes_nothing(pipe, given):
    def scribble(p, step, t, v):
        v["latents"][...] = 0
        return given

    assert same(pipe([1, 2], callback_on_step_end=scribble).latents, pipe([1, 2]).latents)


@pytest.mark.parametrize("given", [5, np.zeros(3), "latents"])
def test_a_callback_that_returns_something_else_is_told_what_to_return(pipe, given):
    with pytest.raises(UsageError, match=r"the callback returned a \w+: return None, or {\"latents\": \.\.}"):
        pipe([1], callback_on_step_end=lambda *_: given)


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


# NaN and infinity


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


# images


@pytest.mark.parametrize("kind", ["np", "pil"])
def test_a_model_of_latents_makes_no_images(pipe, kind):
    with pytest.raises(UsageError, match=f"output_type '{kind}'.*no decoder.*output_type=\"latent\""):
        pipe([1], output_type=kind)
    assert pipe([1]).images is None


def test_latents_of_the_device_are_a_copy_of_numpys_on_a_cpu(pipe):
    want = pipe([1, 2], seed=3).latents
    there = pipe([1, 2], seed=3, output_type="device")
    assert there.images is None
    pipe([2, 1], seed=4)
    assert np.array_equal(there.latents, want)
    seen = []
    called = pipe([1, 2], seed=3, output_type="device", callback_on_step_end=lambda p, s, t, v: seen.append(v["latents"]))
    assert np.array_equal(called.latents, seen[-1])
    assert np.array_equal(called.latents, want)


def test_a_model_of_pixels_makes_images(pixels):
    pipe = l2c_export.load(pixels)
    out = pipe([0, 1], output_type="np")
    assert out.latents.shape == (2, 3, 4, 4)
    assert out.images.shape == (2, 4, 4, 3)
    assert np.allclose(out.images, np.clip((out.latents.transpose(0, 2, 3, 1) + 1) / 2, 0, 1))
    pictures = pipe([0, 1], output_type="pil").images
    assert [(p.mode, p.size) for p in pictures] == [("RGB", (4, 4))] * 2
    assert np.abs(np.array(pictures) / 255 - out.images).max() <= 0.5 / 255 + 1e-6


def test_pixels_are_clipped_and_a_single_channel_is_gray():
    x = np.array([-3, -1, 0, 1, 9, 0.5], np.float32).reshape(1, 1, 2, 3)
    assert to_images(x, "np").ravel().tolist() == [0, 0, 0.5, 1, 1, 0.75]
    (picture,) = to_images(x, "pil")
    assert isinstance(picture, Image.Image)
    assert (picture.mode, np.array(picture).tolist()) == ("L", [[0, 0, 128], [255, 255, 191]])


# wrong values

GOOD = {"class_labels": [1, 2]}
BAD = {
    "no labels": ({"class_labels": []}, "0 class labels: .*1 to 2 images at once: give at least one"),
    "too many labels": (
        {"class_labels": [1, 2, 3]},
        "3 class labels: .*1 to 2 images at once: .* compile it with batch=3",
    ),
    "null class": ({"class_labels": [10]}, "class label 10: must be a whole number from 0 to 9"),
    "negative label": ({"class_labels": [-1]}, "class label -1: .* from 0 to 9"),
    "fraction": ({"class_labels": [1.5]}, r"class label 1\.5: .* from 0 to 9"),
    "truth": ({"class_labels": [True]}, "class label True: .* from 0 to 9"),
    "text": ({"class_labels": "cat"}, "class label 'cat': .* from 0 to 9"),
    "nothing": ({"class_labels": None}, "class label None: .* from 0 to 9"),
    "nested": ({"class_labels": [[1]]}, r"class label \[1\]: .* from 0 to 9"),
    "fewer latents": ({"latents": np.zeros((1, 4, 8, 8), np.float32)}, r"\(1, 4, 8, 8\).*2 labels need \(2, 4, 8, 8\)"),
    "one latent": ({"latents": np.zeros((4, 8, 8), np.float32)}, r"\(4, 8, 8\).*need \(2, 4, 8, 8\)"),
    "other channels": ({"latents": np.zeros((2, 3, 8, 8), np.float32)}, r"\(2, 3, 8, 8\).*need"),
    "whole latents": ({"latents": np.zeros((2, 4, 8, 8), int)}, "latents of dtype int64: use float32"),
    "complex latents": ({"latents": np.zeros((2, 4, 8, 8), complex)}, "dtype complex128: use float32"),
    "huge latents": ({"latents": np.full((2, 4, 8, 8), 1e300)}, "latents: they hold numbers that are too large for float32"),
    "objects": ({"latents": np.full((2, 4, 8, 8), None)}, "dtype object: use float32"),
    "negative seed": ({"seed": -1}, r"seed -1: give one whole number >= 0, or one per image \(2\)"),
    "fractional seed": ({"seed": 0.5}, r"seed 0\.5: give one whole number"),
    "no seed": ({"seed": None}, "seed None: give one whole number"),
    "text seed": ({"seed": "12"}, "seed '12': give one whole number"),
    "true seed": ({"seed": [True, 0]}, r"seed \[True, 0\]: give one"),
    "one seed of two": ({"seed": [1]}, r"seed \[1\]: .*one per image \(2\)"),
    "three seeds": ({"seed": [1, 2, 3]}, r"seed \[1, 2, 3\]: .*\(2\)"),
    "nan guidance": ({"guidance_scale": float("nan")}, "guidance_scale nan: must be a finite number"),
    "infinite guidance": ({"guidance_scale": -float("inf")}, "guidance_scale -inf: must be a finite number"),
    "guidance beyond floats": ({"guidance_scale": 10**400}, r"guidance_scale 1000.*: must be a finite number"),
    "text guidance": ({"guidance_scale": "4"}, "guidance_scale '4': must be a finite number"),
    "complex guidance": ({"guidance_scale": 1j}, "guidance_scale 1j: must be a finite number"),
    "output type": ({"output_type": "jpeg"}, "output_type 'jpeg': use one of latent, device, np, pil"),
}


@pytest.mark.parametrize("bad", BAD)
def test_a_wrong_value_is_named_with_what_is_right(pipe, bad):
    change, says = BAD[bad]
    ran = []
    with pytest.raises(UsageError, match=says) as error:
        pipe(**{**GOOD, **change}, callback_on_step_end=lambda *_: ran.append(1))
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)
    assert not ran


def test_ragged_latents_are_an_error_of_ours(pipe):
    with pytest.raises(UsageError, match="latents"):
        pipe([1, 2], latents=[[1.0], [1.0, 2.0]])


# loading


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_an_artefact_may_be_named_as_text_and_its_weights_be_trusted(tiny, tmp_path):
    folder = shutil.copytree(tiny[0], tmp_path / "e")
    flip(folder / "weights.safetensors")
    with pytest.raises(ArtefactError, match=r"weights\.safetensors does not match its hash"):
        l2c_export.load(str(folder))
    assert l2c_export.load(str(folder), verify=False)([1]).latents.shape == (1, 4, 8, 8)
    flip(folder / "step-000.onnx")
    with pytest.raises(ArtefactError, match=r"step-000\.onnx does not match its hash"):
        l2c_export.load(str(folder), verify=False)


@pytest.mark.parametrize(("asked", "says"), [
    ({"backend": "tensorflow"}, "unknown backend 'tensorflow': known are auto, .*onnxruntime"),
    ({"backend": "onnxruntime", "device": "tpu"}, "device 'tpu'.*use cpu"),
    ({"threads": 0}, "threads=0: must be at least 1"),
])  # fmt: skip
def test_what_cannot_be_loaded_is_named(tiny, asked, says):
    with pytest.raises(L2CError, match=says):
        l2c_export.load(tiny[0], **asked)


@pytest.mark.parametrize("link", ["shared", "static"])
def test_an_artefact_can_be_linked_in_the_other_way_when_it_is_loaded(pipe, tiny, link):
    other = l2c_export.load(tiny[0], "onnxruntime", link=link)
    assert other.link == link
    assert close(other([1, 2]).latents, pipe([1, 2]).latents)


def test_a_pipeline_says_what_it_runs_on(pipe, tiny):
    assert pipe.backend.startswith("onnxruntime (CPU, ")
    assert pipe.backend.endswith("), as asked")
    assert "the first that works here" in l2c_export.load(tiny[0], "auto").backend


def test_a_process_has_one_pool_of_threads_for_onnxruntime(pipe, tiny, monkeypatch):
    """Two pools would spin against each other, and ONNX Runtime has only the first one to offer."""
    threads = len(os.sched_getaffinity(0))
    same = l2c_export.load(tiny[0], "onnxruntime", threads=threads)
    assert close(same([1, 2]).latents, pipe([1, 2]).latents)
    monkeypatch.setattr(os, "cpu_count", lambda: threads + 1)
    with pytest.raises(BackendError, match=f"a pool of {threads} threads already: use threads={threads}"):
        l2c_export.load(tiny[0], "onnxruntime", threads=threads + 1)


@pytest.mark.parametrize(
    ("share", "threads", "spins", "told"),
    [(0.9, None, True, 1), (0.1, None, True, 0), (None, None, True, 0), (0.9, 2, True, 0), (0.9, None, False, 0)],
)
def test_a_busy_machine_is_told_where_threads_are_not_chosen(tiny, monkeypatch, caplog, share, threads, spins, told):
    """ONNX Runtime's threads keep their processors while they wait; the number is not changed, as other bits would come out."""
    monkeypatch.setattr(Watch, "share", lambda self: share)
    monkeypatch.setattr("l2c_export.backends.onnxruntime.session.share_pool", lambda threads: 2 * spins)
    opened = open_backend("onnxruntime", Request(threads=threads))
    assert opened.backend.spins == spins
    monkeypatch.setattr("l2c_export.runtime.pipeline.open_backend", lambda *_: opened)
    monkeypatch.setattr("l2c_export.runtime.program.load_program", lambda *_: None)
    monkeypatch.setattr("l2c_export.runtime.pipeline.Pipeline", lambda *_: None)
    l2c_export.load(tiny[0], "onnxruntime", threads=threads)
    assert len(caplog.records) == told
    if told:
        assert caplog.messages == ["other programs use 90% of the processors: one thread instead of all may be faster here"]


def test_the_command_tells_it_beside_a_neighbour(tiny, tmp_path, neighbour):
    words = [sys.executable, "-m", "l2c_export", "run", str(tiny[0]), "--class-label", "1", "--backend", "onnxruntime"]

    def told(*threads):
        done = subprocess.run([*words, *threads, "--out", str(tmp_path / "x.npy")], capture_output=True, text=True, check=True)
        return bool(re.search(r"^other programs use \d+% of the processors: one thread", done.stderr, re.MULTILINE))

    assert (told(), told("--threads", "1")) == (machine.cores() > 1, False)


# the promise of the package: no framework at run time

BLOCKED = ("torch", "onnx", "onnxscript", "diffusers", "transformers", "click", "rich", "matplotlib", "platformdirs")
WITHOUT = f"""
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {BLOCKED}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
import numpy as np
import l2c_export

pipe = l2c_export.load(sys.argv[1], backend="onnxruntime")
steps = []
x = pipe([1, 2], seed=5, callback_on_step_end=lambda p, s, t, v: steps.append(s), check_finite=True).latents
np.save(sys.argv[2], np.stack([x, pipe([1, 2], guidance_scale=1, seed=5).latents]))
print(steps, sorted(set({BLOCKED}) & set(sys.modules)))
"""


def test_the_whole_loop_runs_without_any_framework(pipe, tiny, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", WITHOUT, str(tiny[0]), str(tmp_path / "x.npy")]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.stdout.strip() == "[0, 1, 2, 3, 4, 5, 6] []", done.stderr
    guided, plain = np.load(tmp_path / "x.npy")
    assert close(guided, pipe([1, 2], seed=5).latents)
    assert close(plain, pipe([1, 2], guidance_scale=1, seed=5).latents)


def test_buffers_of_one_batch_size_go_before_those_of_the_next_come(tiny, monkeypatch):
    """On a GPU that is full, both do not fit."""
    from l2c_export.runtime import loop as runtime

    pipe, alive, Loop = l2c_export.load(tiny[0], "onnxruntime"), [], runtime.Loop  # noqa: N806
    monkeypatch.setattr(runtime, "Loop", lambda *given: alive.append(len(pipe._loops)) or Loop(*given))
    pipe([1])
    pipe([1, 2])
    pipe([1, 2], 1.0)
    assert alive == [0, 0, 0]


def test_a_guidance_that_float32_does_not_hold_is_refused(tiny):
    with pytest.raises(UsageError, match="must be a finite number"):
        l2c_export.load(tiny[0], "onnxruntime")([1], guidance_scale=1e39)
