"""Errors, their influence on the images, and their gradients."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from small_trainings import desk, invoke, logits_of, prepared, trained

from l2c_export.training.lessons import TRAIN, Draw
from l2c_export.training.mixing import AsCompiled, mixed_output
from l2c_export.training.sampling import Trajectories, influence

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_influence_of_a_call_is_what_its_error_does_to_the_final_latents(tmp_path):
    training = prepared(tmp_path, guidance="none")
    family, weights, calls, pairs = training.task.family, training.observer.weights, training.task.calls, training.task.pairs
    curriculum, draw = training._curriculum, training.trainer.draw(0, 0)
    influences = influence(training.sampler, curriculum, draw)
    lessons = list(curriculum.lessons(draw))
    uncached = training.sampler.latents(draw, training.sampler.everything)
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
    assert influences.mean() == pytest.approx(1)
    assert influences.tolist() == pytest.approx([ratio / np.mean(ratios) for ratio in ratios], rel=1e-3)


def test_where_no_call_has_an_influence_all_have_the_same(tmp_path, monkeypatch):
    training = prepared(tmp_path, guidance="none")
    monkeypatch.setattr(Trajectories, "latents", lambda *_: torch.zeros(2, 4, 8, 8))
    assert influence(training.sampler, training._curriculum, training.trainer.draw(0, 0)).tolist() == [1, 1, 1]


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
    training = prepared(tmp_path, error=error, iterations=1)
    training.run()
    assert (len(set(training.trainer.influence.tolist())) == 1) == (error == "output")
    assert training.trainer.influence.mean() == pytest.approx(1)
    entry = next(csv.DictReader((tmp_path / "out/log.csv").open()))
    first = training.rows[[pair.row for pair in training.task.pairs]]
    mse, gradient = training.trainer.errors(first, training.trainer.lessons(TRAIN, 0))
    assert float(entry["mse"]) == pytest.approx(float(mse.mean()), rel=1e-4)
    weighed = float((training.trainer.influence * mse).mean())
    price = float(entry["loss"]) - weighed
    scores = torch.sigmoid(first)
    assert price == pytest.approx(training.trainer.lambda_ * float(scores.sum(1).mean()), rel=0.1, abs=1e-3 * weighed)
    wanted = training.trainer.influence[:, None] * gradient + training.trainer.lambda_ * scores * (1 - scores)
    assert torch.allclose(training.trainer.logits.grad, wanted, rtol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_model_in_half_precision_trains_alike(tmp_path, precision):
    moved = []
    for chosen in ("fp32", precision):
        training = prepared(tmp_path, steps=4, batch=4, precision=chosen)
        gradient = training.trainer.errors(training.trainer.logits, training.trainer.lessons(TRAIN, 0))[1]
        moved.append(gradient.flatten())
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
