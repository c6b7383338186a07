"""Soft caching is what it says."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from small_trainings import FAMILIES, model_of

from l2c_export.models.updates import update
from l2c_export.pytorch.eager import Denoiser
from l2c_export.training.lessons import Observer
from l2c_export.training.mixing import mixed_output
from l2c_export.training.pairs import full_calls, make_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


class Taught(NamedTuple):
    """A guided trajectory, its lessons, and what it was made from."""

    family: Any
    weights: dict
    calls: tuple
    pairs: tuple
    request: tuple  # noise, labels, guidance
    lessons: list


def taught(kind, dtype=torch.float32):
    family, weights = model_of(kind, dtype)
    steps, noise = FAMILIES[kind][1], np.random.default_rng(0).standard_normal((2, *family.latent), np.float32)
    calls, pairs = full_calls(family, steps), make_pairs(family, steps)
    labels = torch.tensor([3, 5, *family.inputs[0].without(2)], dtype=torch.int32)
    request = torch.from_numpy(noise), {"class_labels": labels}, torch.full((1, family.latent[0], 1, 1), 0.5)
    lessons = Observer(family, weights).lessons(calls, dict(enumerate(pairs)), 0, pairs[-1].cached, *request)
    return Taught(family, weights, calls, pairs, request, list(lessons))


@pytest.fixture(scope="module", params=list(FAMILIES))
def lesson_of(request):
    return taught(request.param)


def test_scores_of_one_are_the_uncached_model(lesson_of):
    for lesson in lesson_of.lessons:
        scores = torch.ones(len(lesson_of.family.sublayers))
        assert torch.equal(mixed_output(lesson_of.family, lesson_of.weights, lesson, scores), lesson.target)


@settings(max_examples=10, deadline=None)
@given(subset=st.integers(0, 2**6 - 1), which=st.integers(0, 1))
@example(subset=2**6 - 1, which=1)
def test_scores_of_zero_and_one_are_the_cached_model(lesson_of, subset, which):
    """... that of the denoiser which meets the golden cases."""
    family, weights, calls, pairs, request, lessons = lesson_of
    reused = tuple(j for j in range(6) if subset >> j & 1)
    scores = torch.tensor([0.0 if j in reused else 1.0 for j in range(6)])
    cached, inputs = pairs[which].cached, lessons[which].inputs
    index, coefficients = torch.arange(2, dtype=torch.int32), torch.tensor(calls[cached].coefficients)
    output = mixed_output(family, weights, lessons[which], scores)
    latents = update(output, inputs[0], inputs[0], index, index + 2, request[2], coefficients)
    caching = [call._replace(reused=reused if n == cached else ()) for n, call in enumerate(calls)]
    wanted = list(Denoiser(family, weights).steps(caching, *request))[cached]
    assert torch.allclose(latents, wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


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
