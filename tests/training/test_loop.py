"""The whole loop under a rule, against the loop of numpy alone, and its gradients."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy_dit import NAMES, Blocks
from numpy_loop import denoised
from ruled_trainings import numpy_desk, requested, ruled

from l2c_export.ir.inputs import class_labels
from l2c_export.schedules.rules import LEVELS
from l2c_export.schedules.schedule import Schedule
from l2c_export.training.learn import Learning
from l2c_export.training.loop import RuledLoop
from l2c_export.training.ruled import schedule_of
from l2c_export.training.ruled_options import RuledOptions
from l2c_export.training.subject import Subject

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS, FULL = 7, frozenset((0, 1, 4))
STACK = {"stack": Blocks("stack", 0, 2)}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    return numpy_desk(tmp_path_factory.mktemp("numpy"))


def loop_of(here, rule, level, **options):
    subject = here.subject(steps=STEPS, **options)
    return RuledLoop(subject, FULL, rule, level)


def close(output, expected):
    return np.abs(output.detach().numpy() - expected).max() / np.abs(expected).max() < 1e-4


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("rule", ["reuse", "taylor:2"])
def test_scores_of_one_are_the_uncached_loop_and_scores_of_zero_the_rule(here, rule, level):
    loop = loop_of(here, rule, level)
    request = loop.subject.request(0, 0)
    noise, labels = requested(request)
    light = {n: ((), {"*" if level == "sublayer" else level: rule}) for n in range(STEPS) if n not in FULL}
    by_rule = denoised(here.weights, noise, light, STACK.get(level), STEPS, labels)
    uncached = denoised(here.weights, noise, {}, None, STEPS, labels)
    following = loop.by_the_rule()
    assert close(loop.latents(following, request), by_rule)
    for score, expected in ((0.0, by_rule), (1.0, uncached)):
        scores = torch.full(following.kept.shape, score)
        assert close(loop.latents(following._replace(scores=scores), request), expected)
    assert not close(torch.from_numpy(by_rule), uncached)


@pytest.mark.parametrize("level", LEVELS)
def test_what_is_kept_and_how_the_rest_follows_is_what_the_schedule_says(here, level):
    """... whose forecasts read full calls only, whatever else was computed since."""
    loop = loop_of(here, "taylor:2", level)
    request, chance = loop.subject.request(0, 1), torch.Generator().manual_seed(0)
    following = loop.by_the_rule()
    kept = torch.rand(following.kept.shape, generator=chance) < 0.4
    weights = 1 + 0.2 * torch.randn(following.weights.shape, generator=chance)
    for n, chosen in enumerate((following._replace(kept=kept), following._replace(kept=kept, weights=weights))):
        schedule = schedule_of(loop, chosen, "taylor:2")
        noise, labels = requested(request)
        expected = denoised(here.weights, noise, ruled(schedule), STACK.get(level), STEPS, labels)
        assert close(loop.latents(chosen, request), expected)
        explicit = [rule for call in schedule.calls for rule in call.rules.values() if not isinstance(rule, str)]
        assert n == 0 or len(explicit) == int((~kept).sum())
        assert Schedule.from_json(schedule.to_json()) == schedule


def test_a_schedule_that_only_follows_the_rule_names_it(here):
    loop = loop_of(here, "taylor:2", "sublayer")
    schedule = schedule_of(loop, loop.by_the_rule(), "taylor:2")
    assert [call.rules for call in schedule.calls] == [{} if n in FULL else {"*": "taylor:2"} for n in range(STEPS)]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ["scores", "weights"])
def test_gradients_are_those_of_the_whole_loop(here, level, name):
    """... by central differences, in float64: a call changes those behind it, too."""
    loop = loop_of(here, "taylor:1", level)
    loop.subject.weights.update({key: value.double() for key, value in here.tensors.items()})
    for n, call in loop.light.items():
        loop.light[n] = call._replace(expansion=call.expansion.double())
    noise, inputs, guidance = loop.subject.request(0, 2)
    request = (noise.double(), inputs, guidance.double())
    following = loop.by_the_rule()
    values = {"weights": following.weights.double(), "scores": torch.full(following.kept.shape, 0.3, dtype=torch.float64)}
    if name == "weights":
        del values["scores"]
    chosen = values[name].requires_grad_()

    def error(values):
        return loop.latents(following._replace(**values), request).square().mean()

    error(values).backward()
    assert (chosen.grad != 0).all(dim=None) or name == "weights"
    for place in [(0, 0, 0), (1, -1, 1), (3, 0, 0)]:
        at = place[: chosen.ndim]
        step = torch.zeros_like(chosen)
        step[at] = 1e-3
        with torch.no_grad():
            numeric = (error({**values, name: chosen + step}) - error({**values, name: chosen - step})) / 2e-3
        assert float(chosen.grad[at]) == pytest.approx(float(numeric), rel=2e-3, abs=1e-7)


class Waves:
    """A model that predicts a wave over time: a sum of two earlier values is exactly the next one, by coefficients that are
    not Taylor's."""

    name, latent, out_channels, sublayers = "dit", (2, 4, 4), 2, ("blocks.0.attn",)
    inputs = (class_labels(3, 3),)

    def call(self, run, x, rows, t, request):
        fields = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 1, 2, 4, 4), np.float32))
        angle = t.reshape(-1, 1, 1, 1) / 400
        return fields[0] * angle.cos() + fields[1] * angle.sin()


def test_the_coefficients_of_a_loop_that_is_linear_are_recovered(tmp_path):
    uncached = Schedule.every(1, family="dit", steps=3, columns=("blocks.0.attn",))
    source = SimpleNamespace(family=Waves(), schedule=uncached)
    workers = SimpleNamespace(device=torch.device("cpu"), mean=lambda value: value)
    asked = SimpleNamespace(declared=Waves.inputs, draw=lambda chances: {"class_labels": np.zeros(len(chances), np.int32)})
    subject = Subject(None, source, {}, None, asked, workers, range(2), 0)
    options = RuledOptions(steps=3, data="self", out=tmp_path, weights="random", rule="taylor:1", every=3, level="output",
                           learn_coefficients=True, iterations=400, lr=0.05)  # fmt: skip
    loop = RuledLoop(subject, options.full(3), options.rule, options.level)
    assert loop.full == {0, 1}
    terms = loop.terms(Learning(subject, loop, options, print).run(lambda: None))[0]["output"]
    a, b, c = (call.timestep / 400 for call in uncached.calls)
    basis = np.array([[math.cos(b), math.cos(a)], [math.sin(b), math.sin(a)]])
    exact = np.linalg.solve(basis, [math.cos(c), math.sin(c)])
    assert [age for age, _ in terms] == [1, 2]
    assert [coefficient for _, coefficient in terms] == pytest.approx(exact, abs=2e-3)
    assert abs(exact - [2, -1]).max() > 0.1, "Taylor's"


def test_a_score_goes_where_computing_pays(here):
    """One of four sublayers adds nothing: its price, however small, decides."""
    options = here.options(steps=STEPS, rule="reuse", every=3, lambda_=1e-9, iterations=25, lr=0.3)
    subject, useless = here.subject(steps=STEPS), NAMES.index("blocks.1.mlp")
    for part in ("weight", "bias"):
        subject.weights[f"blocks.1.mlp.fc2.{part}"].zero_()
    loop = RuledLoop(subject, options.full(STEPS), "reuse", "sublayer")
    kept = Learning(subject, loop, options, id).run(lambda: None).kept
    assert not kept[:, useless].any()
    assert kept[:, :useless].float().mean() > 0.6
