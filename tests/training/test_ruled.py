"""l2c train --rule: what it writes is what the compiler reads, and what it says is what the loop of numpy finds."""

from __future__ import annotations

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from blocked import without
from numpy_dit import SCALE
from numpy_loop import denoised
from ruled_trainings import numpy_desk, requested, ruled
from small_trainings import ENVIRONMENT, desk, invoke, trained

import l2c_export
from l2c_export.errors import UsageError
from l2c_export.schedules import routers
from l2c_export.schedules.schedule import Schedule
from l2c_export.training.lessons import EVALUATE
from l2c_export.training.ruled_options import RuledOptions, only

pytestmark = pytest.mark.usefixtures("one_thread")

LINE = "--steps 8 --data self --batch 2 --iterations 12 --lr 0.1"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return numpy_desk(tmp_path_factory.mktemp("numpy"))


def error_of(here, schedule, steps):
    """The relative error of the final latents, of the noise that is kept for the end."""
    noise, labels = requested(here.subject(steps=steps).request(EVALUATE, 0))
    uncached = denoised(here.weights, noise, {}, None, steps, labels)
    latents = denoised(here.weights, noise, ruled(schedule), None, steps, labels)
    return np.sqrt(np.square(latents - uncached).mean() / np.square(uncached).mean())


def test_what_it_says_of_the_error_is_true(here, tmp_path):
    line = f"train {here.line} {LINE} --rule taylor:1 --every 4 --target-reduction 0.6 --learn-coefficients --json"
    summary = trained(f"{line} --out {tmp_path}/out")
    schedule = Schedule.read(tmp_path / "out/schedule.json")
    assert summary["full"] == [0, 1, 4]
    assert (summary["sampler"], summary["level"], summary["router"]) == ("ddim", "sublayer", None)
    light = [call for n, call in enumerate(schedule.calls) if n not in summary["full"]]
    assert summary["removed"] == pytest.approx(1 - sum(len(call.computed) for call in light) / 4 / len(light))
    assert 0.6 <= summary["removed"] <= 0.65
    assert summary["threshold"] == schedule.threshold
    assert summary["error"] == pytest.approx(error_of(here, schedule, 8), rel=1e-3)
    alone = Schedule.from_rule("every:4", family="dit", steps=8, columns=schedule.sublayers,
                               caching=RuledOptions(steps=8, data="self", out=tmp_path, weights="w", rule="taylor:1",
                                                    every=4).caching)  # fmt: skip
    assert summary["error_of_rule"] == pytest.approx(error_of(here, alone, 8), rel=1e-3)
    curve = json.loads((tmp_path / "out/tradeoff.json").read_bytes())
    assert curve["chosen"] in curve["points"]
    assert curve["points"][-1]["error"] == pytest.approx(summary["error_of_rule"])
    assert curve["points"][0] == {"threshold": curve["points"][0]["threshold"], "removed": 0, "mse": None, "error": 0}
    rows = list(csv.DictReader((tmp_path / "out/log.csv").open()))
    assert [row["learned"] for row in rows] == ["scores"] * 12 + ["coefficients"] * 12


@pytest.mark.parametrize("level", ["sublayer", "stack", "output"])
def test_learned_coefficients_are_better_than_the_rules_own(here, tmp_path, level):
    summary = trained(f"train {here.line} {LINE} --iterations 40 --lr 0.02 --batch 8 --rule taylor:1 --every 3 --level {level} "
                      f"--learn-coefficients --out {tmp_path}/out --json")  # fmt: skip
    assert summary["removed"] == 1
    assert summary["threshold"] is None
    assert summary["error"] < 0.9 * summary["error_of_rule"]
    schedule = Schedule.read(tmp_path / "out/schedule.json")
    assert any(not isinstance(rule, str) for call in schedule.calls for rule in call.rules.values())
    assert not (tmp_path / "out/tradeoff.json").exists()


def test_a_learned_schedule_is_compiled(here, tmp_path):
    model, weights = here.line.split()[1:4:2]
    trained(f"train {here.line} {LINE} --rule taylor:1 --every 3 --level output --learn-coefficients --out {tmp_path} --json")
    schedule = Schedule.read(tmp_path / "schedule.json")
    pipe = l2c_export.compile(schedule, model=model, weights=weights, out=tmp_path / "engines", backend="onnxruntime",
                              batch=2).load()  # fmt: skip
    subject = here.subject(steps=8)
    request = subject.request(EVALUATE, 0)
    latents = pipe(requested(request)[1], SCALE, latents=request.noise.numpy()).latents
    expected = subject.latents(schedule, request).numpy()
    assert np.abs(latents - expected).max() < 1e-4 * np.abs(expected).max()


def test_reuse_in_every_second_call_is_a_router(tmp_path):
    line = desk(tmp_path, "dit") + " --steps 6 --batch 2 --data self --iterations 2 --rule reuse --every 2"
    summary = trained(f"{line} --target-reduction 0.5 --out {tmp_path}/out --json")
    schedule = Schedule.read(tmp_path / "out/schedule.json")
    read = routers.read(tmp_path / "out/router.pt").schedule(summary["threshold"], 6)
    assert read.calls == schedule.calls
    assert {len(call.reused) for call in schedule.calls} != {0}
    other = trained(f"{line.replace('--every 2', '--every 3')} --target-reduction 0.5 --out {tmp_path}/other --json")
    assert other["router"] is None
    assert not (tmp_path / "other/router.pt").exists()


def test_a_sampler_of_diffusers(here, tmp_path):
    line = (
        f"train {here.line} --data self --batch 2 --iterations 1 --rule taylor:1 --every 3 --level output --learn-coefficients"
    )
    trained(f"{line} --steps 6 --sampler DPMSolverMultistepScheduler --out {tmp_path}/out --json")
    schedule = Schedule.read(tmp_path / "out/schedule.json")
    assert (schedule.sampler, schedule.source.rule) == ("DPMSolverMultistepScheduler", None)


@pytest.mark.parametrize(("options", "problem"), [
    ("--rule reuse", "--every is missing: give one of the two, for the calls from which the others follow by --rule reuse"),
    ("--rule taylor:1 --every 1", "--every 1: one call of so many is full: use 2 or more"),
    ("--rule reuse --every 2 --full-calls full:0", "--every 2: --full-calls full:0 says it: give one of the two"),
    ("--rule reuse --full-calls full:0,9", "--full-calls full:0,9: use every:K"),
    ("--rule taylor:x --every 2", "--rule taylor:x: use reuse, taylor:M with M from 0 to 9"),
    ("--rule reuse --every 2 --full-first 8", "--every 2: all 8 calls are full: use fewer, or more steps"),
    ("--rule reuse --every 2 --error output", "--error output: a training under a rule has no use for it: leave it out"),
    ("--every 2", "--every 2: a training without --rule has no use for it: leave it out"),
    ("--sampler ddim", "--sampler ddim: a training without --rule has no use for it: leave it out"),
    ("--search --lr 0.1", "--lr 0.1: a search has no use for it: leave it out"),
    ("--rule reuse --every 2 --times-on cpu", "--times-on cpu: a training under a rule has no use for it: leave it out"),
    ("--search --rule reuse", "--rule reuse: a search has no use for it: leave it out"),
    ("--rule reuse --every 2 --level stack --sampler euler", "--sampler euler: use one of"),
])  # fmt: skip
def test_what_does_not_fit_is_one_line(here, tmp_path, options, problem):
    done = invoke(f"train {here.line} --steps 8 --data self --batch 2 {options} --out {tmp_path}/out")
    assert done.exit_code != 0
    assert done.stderr.splitlines()[-1].startswith(f"error: {problem}")
    assert not (tmp_path / "out").exists()


def test_only_a_search_needs_what_the_compiler_does():
    """... since it predicts times of what it tries."""
    code = without({"onnx", "onnxscript"}) + (
        "import l2c_export.training.ruled, l2c_export.training.training\n"
        "print('both are there')\n"
        "l2c_export.train(steps=6, data='self', model='demo', search=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.stdout == "both are there\n"
    assert done.stderr.splitlines()[-1].startswith("l2c_export.errors.MissingExtra: onnx")


def test_options_that_say_nothing_are_left_out():
    with pytest.raises(UsageError, match="full_last=0: a search has no use"):
        only(RuledOptions.__mro__[1], "a search", {"full_last": 0})


@pytest.mark.parametrize("command", [
    "train --data self --rule reuse --every 2 --out {}/made", "train --data self --search --out {}/made",
    "schedule calibrate --method fbcache --threshold 1 --out {}/made",
])  # fmt: skip
def test_nothing_is_learned_of_weights_that_nobody_gave(here, tmp_path, command):
    model = here.line.split()[1]
    done = invoke(f"{command.format(tmp_path)} --model {model} --weights none --steps 8 --batch 2")
    assert done.exit_code != 0
    assert done.stderr.splitlines()[-1].startswith("error: --weights none: without weights there are no latents to look at")
    assert not (tmp_path / "made").exists()
