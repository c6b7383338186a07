"""Learning a schedule: soft caching is what it says, training finds what can be removed, and nothing is lost on the way."""

from __future__ import annotations

import csv
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from helpers import all_cases, case
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from l2c_export.cli import main
from l2c_export.errors import ScheduleError, UsageError
from l2c_export.models import dit, families, lookup
from l2c_export.models.dit import DiT
from l2c_export.models.updates import update
from l2c_export.pytorch.eager import Denoiser
from l2c_export.samplers.reference import updates
from l2c_export.schedules import routers
from l2c_export.schedules.schedule import Schedule
from l2c_export.training import data
from l2c_export.training.lessons import Draw, FromData, Observer
from l2c_export.training.mixing import AsCompiled, mixed_output
from l2c_export.training.options import TrainingOptions
from l2c_export.training.pairs import full_calls, make_pairs
from l2c_export.training.result import trade_off
from l2c_export.training.sampling import Trajectories, influence
from l2c_export.training.state import Log, StateFile, restore
from l2c_export.training.tradeoff import threshold_for
from l2c_export.training.train import Training
from l2c_export.training.trainer import CALIBRATE, TRAIN
from l2c_export.training.workers import Workers

ROOT = Path(__file__).parents[2]
FAMILIES = {"dit": ("dit_tiny_lowvar", 6), "uvit": ("uvit_tiny_oddnfe", 8)}  # a case, and steps with two or three pairs


def model_of(kind, dtype=torch.float32):
    chosen = case(FAMILIES[kind][0])
    family = lookup.resolve(str(chosen.path / "config.json"), None, None, None).family
    weights = load_file(chosen.path / "model.safetensors")
    return family, {name: torch.from_numpy(value).to(dtype) for name, value in weights.items()}


pytestmark = pytest.mark.usefixtures("one_thread")


class Taught(NamedTuple):
    """A guided trajectory, its lessons, and what it was made from."""

    family: Any
    weights: dict
    calls: tuple
    pairs: tuple
    given: tuple  # noise, labels, guidance
    lessons: list


def taught(kind, dtype=torch.float32):
    family, weights = model_of(kind, dtype)
    steps, noise = FAMILIES[kind][1], np.random.default_rng(0).standard_normal((2, *family.latent), np.float32)
    calls, pairs = full_calls(family, steps), make_pairs(family, steps)
    labels = torch.tensor([3, 5, family.null_label, family.null_label], dtype=torch.int32)
    given = torch.from_numpy(noise), labels, torch.full((1, family.latent[0], 1, 1), 0.5)
    lessons = Observer(family, weights).lessons(calls, dict(enumerate(pairs)), 0, pairs[-1].cached, *given)
    return Taught(family, weights, calls, pairs, given, list(lessons))


@pytest.fixture(scope="module", params=list(FAMILIES))
def lesson_of(request):
    return taught(request.param)


# the pairs and the noise are those of inference


@pytest.mark.parametrize("chosen", all_cases(), ids=lambda c: c.path.name)
def test_the_pairs_are_the_cached_calls_of_the_reference(chosen):
    family = lookup.resolve(str(chosen.path / "config.json"), None, None, None).family
    golden = chosen.golden
    pairs = make_pairs(family, chosen.config.get("num_steps") or chosen.config["nfe"])
    cached = np.flatnonzero(golden["nfe_cached"])
    assert [pair.cached for pair in pairs] == cached.tolist()
    assert [pair.row for pair in pairs] == golden["router_index"][cached].tolist()
    assert all(pair.fill == pair.cached - 1 for pair in pairs)


@pytest.mark.parametrize(("sampler", "steps"), [("ddim", 20), ("ddim", 7), ("dpm-solver++", 20), ("dpm-solver++", 9)])
def test_a_perfect_model_moves_noised_data_to_the_next_noise_level(sampler, steps):
    """x = signal data + noise e stays of that form, with the next call's signal and noise, if e is what is predicted."""
    table, base = updates(sampler, steps), None
    for now, after in itertools.pairwise(table):
        x = np.array([now.signal, now.noise])
        base = x if base is None else base
        of_base, of_x, of_noise = now.coefficients
        moved = of_base * base + of_x * x + of_noise * np.array([0.0, 1.0])
        assert np.allclose(moved, [after.signal, after.noise], rtol=1e-4, atol=1e-6)
        assert now.signal**2 + now.noise**2 == pytest.approx(1)
        base = moved if now.ends_step else base


class Recording(Observer):
    def steps(self, calls, x, labels, guidance):
        self.x, self.labels, self.guidance = x, labels, guidance
        return iter(())


def test_data_are_noised_at_the_start_of_the_filling_step_and_some_labels_dropped():
    for kind in FAMILIES:
        family, weights = model_of(kind)
        calls, pairs = full_calls(family, 8), make_pairs(family, 8)
        values = np.random.default_rng(0).standard_normal((3, *family.latent), np.float32)
        samples = data.Samples(values, np.array([1, 2, 3]))
        observer = Recording(family, weights)
        list(FromData(observer, calls, pairs, samples, torch.device("cpu")).lessons(Draw((0,), range(200))))
        start, x, labels = calls[pairs[-1].start], observer.x.numpy(), observer.labels.numpy()
        kept = labels != family.null_label
        assert 0.8 < kept.mean() < 0.97
        assert start.ends_step or pairs[-1].start == pairs[-1].fill - 1, "two evaluations per step"
        noise = (x[kept] - start.signal * values[labels[kept] - 1]) / start.noise
        assert abs(noise.mean()) < 0.05
        assert abs(noise.std() - 1) < 0.05
        assert not observer.guidance.any()


# soft caching


def test_scores_of_one_are_the_uncached_model(lesson_of):
    for lesson in lesson_of.lessons:
        scores = torch.ones(len(lesson_of.family.sublayers))
        assert torch.equal(mixed_output(lesson_of.family, lesson_of.weights, lesson, scores), lesson.target)


@settings(max_examples=10, deadline=None)
@given(subset=st.integers(0, 2**6 - 1), which=st.integers(0, 1))
@example(subset=2**6 - 1, which=1)
def test_scores_of_zero_and_one_are_the_cached_model(lesson_of, subset, which):
    """... that of the denoiser which meets the golden cases."""
    family, weights, calls, pairs, given, lessons = lesson_of
    reused = tuple(j for j in range(6) if subset >> j & 1)
    scores = torch.tensor([0.0 if j in reused else 1.0 for j in range(6)])
    cached, inputs = pairs[which].cached, lessons[which].inputs
    index, coefficients = torch.arange(2, dtype=torch.int32), torch.tensor(calls[cached].coefficients)
    output = mixed_output(family, weights, lessons[which], scores)
    found = update(output, inputs[0], inputs[0], index, index + 2, given[2], coefficients)
    caching = [call._replace(reused=reused if n == cached else ()) for n, call in enumerate(calls)]
    wanted = list(Denoiser(family, weights).steps(caching, *given))[cached]
    assert torch.allclose(found, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_a_gradient_reaches_the_logits_of_its_row_and_nothing_else(lesson_of):
    family, weights, _, _, _, lessons = lesson_of
    logits = torch.zeros(2, 6, requires_grad=True)
    output = mixed_output(family, weights, lessons[1], torch.sigmoid(logits[1]))
    output.square().sum().backward()
    assert not logits.grad[0].any()
    assert logits.grad[1].all()
    assert not any(tensor.requires_grad for tensor in (*weights.values(), *lessons[1].cache.values(), lessons[1].target))


def test_the_gradient_is_that_of_the_whole_mixed_model(lesson_of):
    """... by central differences: what a score changes in later sublayers counts, too."""
    family, weights, _, _, _, lessons = lesson_of
    scores = torch.tensor([0.3, 0.6, 0.5, 0.2, 0.7, 0.4], requires_grad=True)

    def error(scores):
        return (mixed_output(family, weights, lessons[1], scores) - lessons[1].target).square().sum()

    error(scores).backward()
    steps = 0.02 * torch.eye(6)
    with torch.no_grad():
        numeric = [(error(scores + step) - error(scores - step)) / 0.04 for step in steps]
    assert torch.allclose(scores.grad, torch.stack(numeric), rtol=0.03, atol=1e-3 * float(scores.grad.abs().max()))


# training


# what keeps all that is worth anything
STRICT = "--batch 2 --iterations 50 --lr 0.2 --lambda 1e-8 --threshold 0.5 --error output --json"


def desk(folder, kind, useless=()):
    """A model in `folder`; the sublayers in `useless` give nothing."""
    chosen = case(FAMILIES[kind][0])
    (folder / "config.json").write_bytes((chosen.path / "config.json").read_bytes())
    tensors = load_file(chosen.path / "model.safetensors")
    for name in useless:
        for part in ("weight", "bias"):
            tensors[f"{name}.{part}"] = np.zeros_like(tensors[f"{name}.{part}"])
    save_file(tensors, folder / "model.safetensors")
    return f"train --model {folder}/config.json --weights {folder}/model.safetensors"


def invoke(line):
    return CliRunner().invoke(main.l2c, shlex.split(line))


def trained(line):
    done = invoke(line)
    assert done.exit_code == 0, done.stderr + str(done.exception)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("kind", "steps", "output", "column"), [
    ("dit", 4, "blocks.1.mlp.fc2", 3), ("dit", 4, "blocks.2.attn.proj", 4), ("uvit", 6, "mid_block.attn.proj", 2),
])  # fmt: skip
def test_a_useless_sublayer_is_removed_and_the_useful_ones_stay(tmp_path, kind, steps, output, column):
    line = desk(tmp_path, kind, [output])
    line += f" --steps {steps} --data self {STRICT}"
    found = trained(f"{line} --out {tmp_path}/out")
    schedule = Schedule.from_json((tmp_path / "out/schedule.json").read_bytes())
    reusing = [call.reused for call in schedule.calls if call.reused]
    assert len(reusing) == len(make_pairs(model_of(kind)[0], steps))
    assert set(reusing) == {(column,)}
    assert found["removed"] == pytest.approx(1 / 6)
    assert found["error"] == found["mse"] == 0


def logits_of(path):
    return routers.read(path).logits


def test_data_of_a_file_train_as_well(tmp_path):
    line = desk(tmp_path, "dit", ["blocks.1.mlp.fc2"])
    values = np.random.default_rng(0).standard_normal((8, 4, 8, 8), np.float32)
    np.savez(tmp_path / "data.npz", latents=values, labels=np.arange(8))
    trained(f"{line} --steps 4 --data {tmp_path}/data.npz {STRICT} --out {tmp_path}/out")
    schedule = Schedule.from_json((tmp_path / "out/schedule.json").read_bytes())
    assert {call.reused for call in schedule.calls if call.reused} == {(3,)}


def test_the_price_of_a_sublayer_decides_how_many_stay(tmp_path):
    line = desk(tmp_path, "dit") + " --steps 4 --batch 2 --data self --iterations 30 --lr 0.3 --threshold 0.5 --json"
    removed = [trained(f"{line} --lambda {price} --out {tmp_path}/{price}")["removed"] for price in ("0", "1e9")]
    assert removed[0] <= 0.2
    assert removed[1] == 1
    assert logits_of(tmp_path / "1e9/router.pt")[[0, 2]].min() == -5, "clamped"


def test_nothing_moves_a_score_that_changes_nothing_and_costs_nothing(tmp_path):
    line = desk(tmp_path, "dit", ["blocks.1.mlp.fc2"]) + " --steps 4 --batch 2 --data self --lambda 0 --lr 0.1"
    logits = []
    for iterations in (1, 4):
        trained(f"{line} --iterations {iterations} --out {tmp_path}/out --json")
        logits.append(logits_of(tmp_path / "out/router.pt"))
    moved = (logits[0] != logits[1])[[0, 2]]
    assert moved.any(0).tolist() == [True, True, True, False, True, True]


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_target_is_met_and_its_curve_goes_from_nothing_to_everything(tmp_path, kind):
    line = desk(tmp_path, kind) + f" --steps {FAMILIES[kind][1]} --batch 2 --data self --iterations 20 --lr 0.2"
    found = trained(f"{line} --target-reduction 0.4 --out {tmp_path}/out --json")
    curve = json.loads((tmp_path / "out/tradeoff.json").read_bytes())
    assert 0.4 <= found["removed"] <= 0.4 + 1 / 6
    assert curve["lambda"] == found["lambda"] > 0
    assert curve["chosen"] in curve["points"]
    assert curve["chosen"]["removed"] == found["removed"]
    removed = [point["removed"] for point in curve["points"]]
    assert (removed[0], removed[-1], removed) == (0, 1, sorted(removed))
    assert curve["points"][0]["mse"] == 0
    assert curve["points"][-1]["mse"] > curve["chosen"]["mse"] > 0
    assert (tmp_path / "out/tradeoff.png").read_bytes().startswith(b"\x89PNG")


def prepared(tmp_path, kind="dit", **chosen):
    """A training that has not begun."""
    desk(tmp_path, kind)
    given = {"model": f"{tmp_path}/config.json", "weights": f"{tmp_path}/model.safetensors", "steps": 6, "data": "self"}
    return Training(TrainingOptions(**{**given, "out": tmp_path / "out", "batch": 2, "device": "cpu", **chosen}), print)


def test_the_influence_of_a_call_is_what_its_error_does_to_the_final_latents(tmp_path):
    made = prepared(tmp_path, guidance="none")
    family, weights, calls, pairs = made.task.family, made.observer.weights, made.task.calls, made.task.pairs
    curriculum, draw = made._curriculum, made.trainer.draw(0, 0)
    found = influence(made.sampler, curriculum, draw)
    lessons = list(curriculum.lessons(draw))
    uncached = made.sampler.latents(draw, made.sampler.everything)
    nothing, ratios = torch.zeros(6), []
    for lesson, pair in zip(lessons, pairs, strict=True):
        cached = mixed_output(family, weights, lesson, nothing)
        _, of_x, of_noise = calls[pair.cached].coefficients
        x = of_x * lesson.inputs[0] + of_noise * cached[:, :4]
        for call in calls[pair.cached + 1 :]:  # without guidance DDIM is this
            y, t = lesson.inputs[3], torch.full((2,), call.timestep)
            noise = family.call(AsCompiled(family, weights, frozenset(), {}, {}), x, torch.arange(2), t, y)[:, :4]
            x = call.coefficients[1] * x + call.coefficients[2] * noise
        ratios.append(float((x - uncached).square().mean() / (cached - lesson.target).square().mean()))
    assert found.mean() == pytest.approx(1)
    assert found.tolist() == pytest.approx([ratio / np.mean(ratios) for ratio in ratios], rel=1e-3)


def test_where_no_call_has_an_influence_all_have_the_same(tmp_path, monkeypatch):
    made = prepared(tmp_path, guidance="none")
    monkeypatch.setattr(Trajectories, "latents", lambda *_: torch.zeros(2, 4, 8, 8))
    assert influence(made.sampler, made._curriculum, made.trainer.draw(0, 0)).tolist() == [1, 1, 1]


def test_the_gradient_is_that_of_the_mean_squared_error(tmp_path):
    """... by a central difference: lambda is a price in its unit."""
    trainer = prepared(tmp_path).trainer
    logits, step = torch.zeros(3, 6), torch.zeros(3, 6)
    step[0, 2] = 0.1
    low, gradient, high = (trainer.errors(logits + n * step, trainer.lessons(TRAIN, 0)) for n in (-1, 0, 1))
    assert float(gradient[1][0, 2]) == pytest.approx(float(high[0][0] - low[0][0]) / 0.2, rel=0.05)


def test_every_iteration_and_every_image_has_a_chance_of_its_own():
    draws = [Draw((4, TRAIN, iteration), range(2)).generators(0) for iteration in range(2)]
    assert len({chance.random() for chances in draws for chance in chances}) == 4


@pytest.mark.parametrize("error", ["latents", "output"])
def test_errors_count_by_their_influence_or_as_they_are(tmp_path, error):
    made = prepared(tmp_path, error=error, iterations=1)
    made.run()
    assert (len(set(made.trainer.influence.tolist())) == 1) == (error == "output")
    assert made.trainer.influence.mean() == pytest.approx(1)
    entry = next(csv.DictReader((tmp_path / "out/log.csv").open()))
    first = made.rows[[pair.row for pair in made.task.pairs]]
    mse, gradient = made.trainer.errors(first, made.trainer.lessons(TRAIN, 0))
    assert float(entry["mse"]) == pytest.approx(float(mse.mean()), rel=1e-4)
    weighed = float((made.trainer.influence * mse).mean())
    price = float(entry["loss"]) - weighed
    scores = torch.sigmoid(first)
    assert price == pytest.approx(made.trainer.lambda_ * float(scores.sum(1).mean()), rel=0.1, abs=1e-3 * weighed)
    wanted = made.trainer.influence[:, None] * gradient + made.trainer.lambda_ * scores * (1 - scores)
    assert torch.allclose(made.trainer.logits.grad, wanted, rtol=1e-4)


@pytest.mark.parametrize("share", [0.1, 0.4, 0.9])
def test_the_price_for_a_target_is_what_this_share_is_not_worth(tmp_path, share):
    made = prepared(tmp_path, error="output")
    lambda_ = made.trainer.calibrate(share)
    logits = torch.zeros(3, 6)
    worth = -sum(made.trainer.errors(logits, made.trainer.lessons(CALIBRATE, n))[1] for n in range(8)) / 8
    pushed_down = lambda_ * 0.25 > worth
    assert float(pushed_down.float().mean()) == pytest.approx(share, abs=1 / 18)


def test_no_price_is_negative(tmp_path, monkeypatch):
    trainer = prepared(tmp_path, error="output").trainer
    monkeypatch.setattr(trainer, "errors", lambda logits, _: (None, torch.ones_like(logits)))  # computing makes it worse
    assert trainer.calibrate(0.4) == 0


@pytest.mark.parametrize(("logits", "warned"), [(torch.zeros(18), True), (torch.linspace(-1, 1, 18), False)])
def test_a_target_that_ties_exceed_is_said(tmp_path, logits, warned):
    said = []
    made = prepared(tmp_path, target_reduction=0.65)
    made.report = said.append
    made.trainer.logits.data = logits.reshape(3, 6)
    removed = trade_off(made).chosen.removed
    assert (removed == 1) == warned
    assert any("100% of the sublayers are removed, not 65%: many scores are equal" in line for line in said) == warned


@given(scores=st.lists(st.sampled_from([0.1, 0.2, 0.5, 0.7, 0.9]), min_size=1, max_size=12), share=st.floats(0, 1))
@example(scores=[n / 32 for n in range(25)], share=0.28)  # 0.28 * 25 is 7.000000000000001
def test_a_threshold_removes_at_least_what_is_asked_and_no_more_than_ties(scores, share):
    found = np.array(scores, np.float32)
    threshold = threshold_for(found, share)
    assert (found <= np.float32(threshold)).mean() >= share - 1e-5
    assert (found < np.float32(threshold)).mean() < share or threshold == 0


def test_the_random_rows_that_nobody_reads_stay_and_the_others_are_trained(tmp_path):
    line = desk(tmp_path, "uvit") + " --steps 8 --batch 2 --data self --lr 0.1"
    rows = []
    for iterations in (1, 3):
        trained(f"{line} --iterations {iterations} --out {tmp_path}/out --json")
        rows.append(logits_of(tmp_path / "out/router.pt"))
    changed = (rows[0] != rows[1]).any(1)
    assert changed.tolist() == [False, True, True, True, False, False, False, False]
    assert rows[0].shape == (8, 6)


# what is written is what the compiler reads


@pytest.mark.parametrize(("kind", "steps"), [("dit", 6), ("dit", 7), ("uvit", 8), ("uvit", 9)])
def test_the_compiler_takes_the_router_and_the_schedule(tmp_path, kind, steps):
    line = desk(tmp_path, kind) + f" --steps {steps} --batch 2 --data self --iterations 2"
    found = trained(f"{line} --target-reduction 0.4 --out {tmp_path}/out --json")
    schedule = Schedule.from_json((tmp_path / "out/schedule.json").read_bytes())
    reused = sum(len(call.reused) for call in schedule.calls)
    assert found["removed"] == pytest.approx(reused / 6 / len(make_pairs(model_of(kind)[0], steps)))
    assert schedule == routers.read(tmp_path / "out/router.pt").schedule(found["threshold"], steps)
    model = f"--model {tmp_path}/config.json --weights {tmp_path}/model.safetensors"
    costs = []
    for learned in (f"router.pt --threshold {found['threshold']}", "schedule.json"):
        done = invoke(f"export --schedule {tmp_path}/out/{learned} {model} --dry-run --json")
        assert done.exit_code == 0, done.stderr
        costs.append(json.loads(done.stdout)["schedule"]["total"])
    assert costs[0] == costs[1]


def test_a_router_of_a_uvit_of_odd_depth_is_as_wide_as_the_references(tmp_path):
    arch = {"img_size": 4, "in_chans": 3, "embed_dim": 16, "depth": 3, "num_heads": 2, "num_classes": 4}
    (tmp_path / "odd.json").write_text(json.dumps({"family": "uvit", "arch": arch}))
    line = f"train --model {tmp_path}/odd.json --weights random --steps 4 --batch 1 --data self --iterations 1"
    assert trained(f"{line} --out {tmp_path}/out --json")["random_weights"] is True
    assert logits_of(tmp_path / "out/router.pt").shape == (4, 8)
    assert Schedule.from_json((tmp_path / "out/schedule.json").read_bytes()).columns == 6


# a training that was interrupted


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_a_killed_training_goes_on_as_if_nothing_had_happened(tmp_path):
    line = desk(tmp_path, "dit") + " --steps 6 --batch 2 --data self --lr 0.1 --lambda 1e-6 --seed 4 --checkpoint-every 3"
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "l2c_export", *shlex.split(f"{line} --iterations 100000 --out {out}")]
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    while not (out / "checkpoint.pt").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, process.stderr.read()
    reached = torch.load(out / "checkpoint.pt")["iteration"]
    assert reached >= 3
    logged = len((out / "log.csv").read_text().splitlines()) - 1
    assert logged >= reached
    goal = logged + 2
    resumed = invoke(f"{line} --iterations {goal} --out {out}")
    assert f"goes on after iteration {reached}\n" in resumed.stderr
    trained(f"{line} --iterations {goal} --out {tmp_path}/whole --json")
    assert torch.equal(logits_of(out / "router.pt"), logits_of(tmp_path / "whole/router.pt"))
    both = [list(csv.DictReader((folder / "log.csv").open())) for folder in (out, tmp_path / "whole")]
    assert [row["iteration"] for row in both[0]] == [str(n + 1) for n in range(goal)]
    for name in ("loss", "mse", "computed"):
        assert [row[name] for row in both[0]] == [row[name] for row in both[1]]
    assert not list(out.glob("*.partial"))


def test_what_a_killed_training_had_logged_beyond_its_checkpoint_is_dropped(tmp_path):
    entries = [StateFile(n, 1.0, 1.0, 0.5, 0.1) for n in range(1, 6)]
    log = Log(tmp_path, 0)
    for entry in entries:
        log.add(entry)
    Log(tmp_path, 3).add(entries[3])
    assert [row["iteration"] for row in csv.DictReader((tmp_path / "log.csv").open())] == ["1", "2", "3", "4"]


def test_a_finished_training_can_be_given_another_threshold(tmp_path):
    line = desk(tmp_path, "dit") + f" --steps 4 --batch 2 --data self --iterations 2 --out {tmp_path}/out --json"
    first, second = trained(f"{line} --target-reduction 0.4"), trained(f"{line} --threshold 1")
    assert first["lambda"] == second["lambda"] != 5e-6
    assert first["iterations_per_second"] > 0
    assert (second["iterations"], second["iterations_per_second"]) == (2, None)
    assert (second["threshold"], second["removed"], second["removed_of_all"]) == (1, 1, 0.5)


@pytest.mark.parametrize(("change", "name"), [
    ("--lambda 1e-3", "lambda"), ("--batch 1", "batch"), ("--steps 6", "steps"), ("--precision bf16", "precision"),
    ("--weights random:1", "weights"),
])  # fmt: skip
def test_a_training_does_not_go_on_with_other_options(tmp_path, change, name):
    line = desk(tmp_path, "dit") + f" --steps 4 --batch 2 --data self --iterations 1 --out {tmp_path}/out"
    trained(f"{line} --json")
    done = invoke(f"{line} {change}")
    assert done.exit_code == 1
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"error: .*/out holds a training with --{name} \S+( out)?, not \S+: .*", last), last


# several processes


def test_images_do_not_depend_on_who_makes_them(tmp_path):
    line = desk(tmp_path, "uvit") + " --steps 8 --batch 4 --data self --iterations 3 --lr 0.1 --lambda 1e-6 --device cpu"
    trained(f"{line} --out {tmp_path}/one --json")
    launch = "-m torch.distributed.run --standalone --nproc-per-node 2 -m l2c_export"
    command = [sys.executable, *shlex.split(f"{launch} {line} --out {tmp_path}/two --json")]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["device"] == "2 x cpu"
    one, two = (logits_of(tmp_path / name / "router.pt") for name in ("one", "two"))
    assert torch.allclose(one, two, atol=1e-3)


def test_processes_share_a_batch_evenly_or_refuse_it():
    workers = Workers("cpu")
    workers._state = Namespace(num_processes=2, process_index=1)
    assert workers.images(4) == range(2, 4)
    with pytest.raises(UsageError, match="--batch 5: cannot be split over 2 processes: use a multiple of 2"):
        workers.images(5)


# precision


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_model_in_half_precision_trains_alike(tmp_path, precision):
    moved = []
    for chosen in ("fp32", precision):
        made = prepared(tmp_path, steps=4, batch=4, precision=chosen)
        found = made.trainer.errors(made.trainer.logits, made.trainer.lessons(TRAIN, 0))[1]
        moved.append(found.flatten())
    assert float(torch.cosine_similarity(*moved, dim=0)) > 0.99


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this PyTorch has no CUDA")
def test_a_gpu_trains_alike(tmp_path):
    line = desk(tmp_path, "uvit") + " --steps 8 --batch 4 --data self --iterations 3 --lr 0.1 --target-reduction 0.4 --json"
    there, here = (trained(f"{line} --device {device} --out {tmp_path}/{device}") for device in ("cuda", "cpu"))
    assert there["peak_gpu_bytes"] > 0
    assert there["lambda"] == pytest.approx(here["lambda"], rel=0.05)
    logits = [logits_of(tmp_path / device / "router.pt") for device in ("cuda", "cpu")]
    assert torch.allclose(*logits, atol=0.05)


def test_too_large_a_batch_is_one_line(tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr("l2c_export.training.trainer.mixed_output", full)
    done = invoke(desk(tmp_path, "dit") + f" --steps 4 --batch 2 --data self --out {tmp_path}/out --iterations 1")
    assert done.exit_code == 1
    assert done.stderr.endswith(
        "error: --batch 2: does not fit into the GPU's memory: use a smaller one, or --precision bf16\n"
    )


# data


def test_images_of_all_forms_are_the_same(tmp_path):
    family = lookup.resolve(str(pixel_model(tmp_path, 1)), None, None, None).family
    pixels = np.random.default_rng(0).integers(0, 256, (5, 4, 4, 1), np.uint8)
    floats = pixels.transpose(0, 3, 1, 2).astype(np.float64) / 127.5 - 1
    read = []
    for n, arrays in enumerate([{"images": pixels}, {"images": pixels[..., 0]}, {"images": floats}, {"latents": floats}]):
        np.savez(tmp_path / f"{n}.npz", **arrays, labels=np.arange(5) % 3)
        read.append(data.read(tmp_path / f"{n}.npz", family))
    for samples in read:
        assert samples.values.dtype == np.float32
        assert np.allclose(samples.values, floats, atol=1e-6)
        assert samples.labels.tolist() == [0, 1, 2, 0, 1]


def pixel_model(folder, channels):
    arch = {"input_size": 4, "in_channels": channels, "hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    path = folder / "pixels.json"
    path.write_text(json.dumps({"family": "dit", "arch": arch}))
    return path


FINE = {"latents": np.zeros((2, 1, 4, 4), np.float32), "labels": np.array([0, 2])}


@pytest.mark.parametrize(("arrays", "problem"), [
    ({"labels": FINE["labels"]}, "holds neither `latents` nor `images` (but labels)"),
    ({"latents": FINE["latents"]}, "holds no `labels` (but latents)"),
    ({**FINE, "latents": np.zeros((2, 4, 4, 4), np.float32)}, "`latents` are (2, 4, 4, 4) as (N, C, H, W): the model needs"),
    ({**FINE, "latents": np.zeros((0, 1, 4, 4), np.float32)}, "`latents` are (0, 1, 4, 4) as"),
    ({**FINE, "latents": np.zeros((2, 1, 4, 4), int)}, "`latents` are int64 of shape (2, 1, 4, 4): use floats"),
    ({**FINE, "latents": np.full((2, 1, 4, 4), np.nan)}, "`latents` hold NaN or infinite values"),
    ({"images": FINE["latents"] + 3, "labels": FINE["labels"]}, "`images` reach 3: scale them to -1..1"),
    ({"images": np.zeros((2, 4, 4, 4), np.uint8), "labels": FINE["labels"]}, "`images` are (2, 4, 4, 4) as"),
    ({**FINE, "labels": np.array([0, 3])}, "`labels` from 0 to 3: the model has 0 to 2"),
    ({**FINE, "labels": np.array([-1, 2])}, "`labels` from -1 to 2: the model has 0 to 2"),
    ({**FINE, "labels": np.array([0.0, 1.0])}, "`labels` are float64 of shape (2,): use 2 whole numbers"),
    ({**FINE, "labels": np.array([0])}, "`labels` are int64 of shape (1,)"),
    ({**FINE, "labels": np.array([None, {}], object)}, "cannot be read: Object arrays cannot be loaded"),
], ids=range(13))  # fmt: skip
def test_data_that_cannot_be_used_are_refused(tmp_path, arrays, problem):
    np.savez(tmp_path / "data.npz", **arrays)
    family = lookup.resolve(str(pixel_model(tmp_path, 1)), None, None, None).family
    with pytest.raises(UsageError, match=re.escape(f"data.npz: {problem}")):
        data.read(tmp_path / "data.npz", family)


def test_labels_and_latents_may_have_an_axis_of_their_own(tmp_path):
    family = lookup.resolve(str(pixel_model(tmp_path, 1)), None, None, None).family
    latents = np.random.default_rng(0).standard_normal((2, 1, 4, 4), np.float32)
    np.savez(tmp_path / "data.npz", latents=latents[:, None].astype(np.float16), labels=np.array([[2], [0]]))
    samples = data.read(tmp_path / "data.npz", family)
    assert np.array_equal(samples.values, latents.astype(np.float16))
    assert samples.labels.tolist() == [2, 0]


def features(folder, latents, labels, shape=(1,)):
    """As fast-DiT's extract_features.py leaves them."""
    for kind, values in (("features", latents), ("labels", labels)):
        (folder / f"imagenet256_{kind}").mkdir(parents=True)
        for n, value in enumerate(values):
            np.save(folder / f"imagenet256_{kind}" / f"{n}.npy", value if kind == "features" else np.full(shape, value))
    return folder


@pytest.mark.parametrize("shape", [(1,), (1, 1), ()], ids=str)
def test_a_folder_of_features_is_read_when_it_is_taken(tmp_path, monkeypatch, shape):
    family = lookup.resolve(str(pixel_model(tmp_path, 1)), None, None, None).family
    latents = np.random.default_rng(0).standard_normal((12, 1, 1, 4, 4), np.float32)
    folder = features(tmp_path / "data", latents, np.arange(12) % 3, shape)
    read, real = [], np.load
    monkeypatch.setattr(np, "load", lambda path, **options: (read.append(path), real(path, **options))[1])
    samples = data.read(folder, family)
    assert samples.labels.tolist() == [0, 1, 2] * 4  # 2.npy is before 10.npy
    assert sum(path.parent.name == "imagenet256_features" for path in read) == 1
    assert np.array_equal(samples.values[[11, 2, 11]], latents[[11, 2, 11], 0])


def test_a_router_is_trained_on_a_folder_of_features_as_on_an_npz(tmp_path):
    line = desk(tmp_path, "dit") + " --steps 4 --batch 2 --iterations 2"
    latents = np.random.default_rng(0).standard_normal((4, 1, 4, 8, 8), np.float32)
    np.savez(tmp_path / "data.npz", latents=latents[:, 0], labels=np.arange(4))
    folder = features(tmp_path / "data", latents, np.arange(4))
    for name, path in (("npz", tmp_path / "data.npz"), ("folder", folder)):
        done = invoke(f"{line} --data {path} --out {tmp_path / name}")
        assert done.exit_code == 0, done.stderr
    assert torch.equal(*(routers.read(tmp_path / name / "router.pt").logits for name in ("npz", "folder")))


@pytest.mark.parametrize(("change", "problem"), [
    (lambda f: shutil.rmtree(f / "imagenet256_labels"), "data: must hold one folder *features and one *labels, of *lab"),
    (lambda f: (f / "other_features").mkdir(), "and one *labels, of *features it has imagenet256_features, o"),
    (lambda f: (f / "imagenet256_labels/1.npy").unlink(), "data: 1.npy has features, but no label"),
    (lambda f: (f / "imagenet256_features/1.npy").unlink(), "data: 1.npy has a label, but no features"),
    (lambda f: [p.unlink() for p in (f / "imagenet256_features").iterdir()], "imagenet256_features: holds no .npy files"),
    (lambda f: np.save(f / "imagenet256_features/0.npy", np.zeros((1, 4, 4, 4))), "0.npy: float64 of shape (1, 4, 4, 4): the"),
    (lambda f: np.save(f / "imagenet256_features/0.npy", np.full((1, 1, 4, 4), np.nan)), "0.npy: holds NaN or infinite values"),
    (lambda f: (f / "imagenet256_features/0.npy").write_bytes(b"x"), "0.npy: cannot be read"),
    (lambda f: np.save(f / "imagenet256_labels/0.npy", np.zeros(3, int)), "0.npy: int64 of shape (3,): use one whole number"),
    (lambda f: np.save(f / "imagenet256_labels/0.npy", np.array([7])), "data: `labels` from 1 to 7: the model has 0 to 2"),
    (lambda f: np.save(f / "imagenet256_labels/0.npy", np.array([None]), allow_pickle=True), "0.npy: cannot be read: Object"),
], ids=range(11))  # fmt: skip
def test_folders_that_cannot_be_used_are_refused(tmp_path, change, problem):
    family = lookup.resolve(str(pixel_model(tmp_path, 1)), None, None, None).family
    folder = features(tmp_path / "data", np.zeros((2, 1, 1, 4, 4), np.float32), [0, 1])
    change(folder)
    with pytest.raises(UsageError, match=re.escape(problem)):
        data.read(folder, family)


# what a user may do wrong

GOOD = "--weights model.safetensors --model config.json --steps 4 --data self --batch 2 --iterations 1"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("desk"), Path.cwd()
    desk(folder, "dit")
    os.chdir(folder)
    Path("text.npz").write_text("a letter to my mother")
    Path("foreign").mkdir()
    Path("foreign/thesis.tex").write_text("my only copy")
    Path("torn").mkdir()
    Path("torn/checkpoint.pt").write_bytes(b"PK")
    arch = {**json.loads(Path("config.json").read_text())["arch"], "class_dropout_prob": 0}
    Path("no-null.json").write_text(json.dumps({"family": "dit", "arch": arch}))
    yield folder
    os.chdir(before)


def test_what_the_weights_do_not_say_of_their_model_is_asked_for_or_said_by_their_training(here):
    line = "--steps 4 --data self --batch 2 --iterations 1 --out unnamed"
    done = invoke(f"train {line} --weights model.safetensors")
    assert done.exit_code == 1
    assert "model.safetensors does not show how many heads it has" in done.stderr
    state = {name: torch.from_numpy(value) for name, value in load_file("model.safetensors").items()}
    torch.save({"ema": state, "args": {"num_heads": 2, "num_classes": 10}}, "noted.pt")
    done = invoke(f"train {line} --weights noted.pt")
    shutil.rmtree("unnamed", ignore_errors=True)
    assert done.exit_code == 0, done.stderr
    assert "dit, 3 x 32, 2 heads, 10 classes + null" in done.stderr
    assert "assumed: that it predicts noise" in done.stderr


# families


class Third(DiT):
    """A family of somebody else."""

    name = "third"

    @staticmethod
    def named(name):
        return None


@pytest.mark.parametrize(("sampler", "rows"), [("ddim", (3, 3)), ("dpm-solver++", (2, 4))])
def test_a_router_of_another_family_is_that_familys(tmp_path, monkeypatch, sampler, rows):
    monkeypatch.setitem(families.FAMILIES, "third", Third)
    monkeypatch.setattr(Third, "default_sampler", sampler)
    arch = {"input_size": 4, "hidden_size": 16, "depth": 1, "num_heads": 2, "num_classes": 3}
    (tmp_path / "m.json").write_text(json.dumps({"family": "third", "arch": arch}))
    line = f"--model {tmp_path}/m.json --weights random"
    found = trained(f"train {line} --steps 6 --batch 1 --data self --iterations 1 --out {tmp_path}/out --json")
    assert found["family"] == "third"
    assert routers.read(tmp_path / "out/router.pt").family == "third"
    made = Schedule.from_json((tmp_path / "out/schedule.json").read_bytes())
    assert (made.family, made.sampler) == ("third", sampler)
    cached = len(make_pairs(Third(dit.DiTArch(**arch)), 6))
    assert (cached, 6 - cached) == rows
    for learned in (f"router.pt --threshold {found['threshold']}", "schedule.json"):
        done = invoke(f"export --schedule {tmp_path}/out/{learned} {line} --dry-run")
        assert done.exit_code == 0, done.stderr
    monkeypatch.delitem(families.FAMILIES, "third")
    with pytest.raises(ScheduleError, match="a router of unknown family 'third': known are dit, uvit"):
        routers.read(tmp_path / "out/router.pt")


@pytest.mark.parametrize(("options", "code", "problem"), [
    ("--iterations 0", 2, "--iterations 0: must be at least 1"),
    ("--batch 0", 2, "--batch 0: must be at least 1"),
    ("--checkpoint-every 0", 2, "--checkpoint-every 0: must be at least 1"),
    ("--seed -1", 2, "--seed -1: must be at least 0"),
    ("--lr 0", 2, "--lr 0.0: must be more than 0"),
    ("--lr nan", 2, "--lr nan: must be more than 0"),
    ("--lambda -1", 2, "--lambda -1.0: must be at least 0"),
    ("--threshold 1.5", 2, "--threshold 1.5: must be between 0 and 1"),
    ("--guidance-scale nan", 2, "--guidance-scale nan: must be a finite number"),
    ("--guidance-scale 1e40", 2, "--guidance-scale 1e+40: must be a finite number"),
    ("--model foreign", 2, "--model foreign: training knows no pipeline folders"),
    ("--target-reduction 40", 2, "--target-reduction 40.0: must be between 0 and 1, like 0.4"),
    ("--target-reduction 0.4 --threshold 0.4", 2, "--threshold 0.4: --target-reduction chooses it"),
    ("--precision int8", 2, "--precision int8: use one of fp32, fp16, bf16"),
    ("--guidance some", 2, "--guidance some: use one of first3, all, none"),
    ("--guidance all --weights random --model no-null.json", 2, "--guidance all: the model was trained without a null class"),
    ("--error image", 2, "--error image: use one of latents, output"),
    ("--data missing.npz", 2, "--data missing.npz: no such file"),
    ("--data text.npz", 2, "--data text.npz: cannot be read"),
    ("--device tpu", 2, "--device tpu: use cpu or cuda"),
    ("--steps 1", 2, "--steps 1: DDIM takes 2 to 1000 steps"),
    ("--steps 1000000000", 2, "--steps 1000000000: DDIM takes 2 to 1000 steps"),
    ("--weights missing.pt", 1, "--weights missing.pt: no such file"),
    ("--weights random --model uvit.txt", 1, "unknown model 'uvit.txt'"),
    ("--out foreign", 1, "--out foreign: holds thesis.tex, which is not ours"),
    ("--out config.json", 2, "Invalid value for '--out'"),
    ("--out torn", 1, "torn/checkpoint.pt is not a training's checkpoint"),
    ("--out foreign/thesis.tex/x", 1, "--out foreign/thesis.tex/x: cannot be written: Not a directory"),
])  # fmt: skip
def test_what_cannot_be_is_one_line_and_leaves_nothing(here, options, code, problem):
    before = sorted(here.rglob("*"))
    done = invoke(f"train {GOOD} --out new {options}")
    assert done.exit_code == code, done.stderr
    assert problem in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) <= 1
    assert sorted(here.rglob("*")) == before


def test_a_missing_extra_is_named(here, monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    done = invoke(f"train {GOOD} --out new")
    assert (done.exit_code, done.stderr) == (1, "error: accelerate is not installed: pip install 'l2c-export[train]'\n")


def test_a_uvit_with_one_solver_step_has_nothing_to_train(tmp_path):
    done = invoke(desk(tmp_path, "uvit") + f" --steps 2 --data self --out {tmp_path}/out")
    assert done.exit_code == 2
    assert "--steps 2: no call of uvit would run from the cache" in done.stderr


def test_weights_that_make_nan_are_named_before_anything_is_spoilt(here):
    tensors = load_file("model.safetensors")
    tensors["blocks.0.mlp.fc2.bias"].fill(3e38)
    save_file(tensors, "huge.safetensors")
    done = invoke(f"train {GOOD} --weights huge.safetensors --out nan")
    assert done.exit_code == 1
    assert "error: iteration 0: the loss is NaN or infinite" in done.stderr
    assert restore(Path("nan"), {}) is None
