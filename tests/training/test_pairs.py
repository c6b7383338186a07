"""The pairs and the noise of training are those of inference."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from helpers import all_cases
from recorded import asked
from small_trainings import FAMILIES, model_of

from l2c_export.models import lookup
from l2c_export.samplers.reference import updates
from l2c_export.training import data
from l2c_export.training.lessons import Draw, FromData, Observer
from l2c_export.training.pairs import full_calls, make_pairs

pytestmark = pytest.mark.usefixtures("one_thread")


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
    def steps(self, calls, x, request, guidance):
        self.x, self.labels, self.guidance = x, request["class_labels"], guidance
        return iter(())


def test_data_are_noised_at_the_start_of_the_filling_step_and_some_labels_dropped():
    for kind in FAMILIES:
        family, weights = model_of(kind)
        calls, pairs = full_calls(family, 8), make_pairs(family, 8)
        values = np.random.default_rng(0).standard_normal((3, *family.latent), np.float32)
        samples = data.Samples(values, asked([1, 2, 3]))
        observer = Recording(family, weights)
        list(FromData(observer, calls, pairs, samples, torch.device("cpu")).lessons(Draw((0,), range(200))))
        start, x, labels = calls[pairs[-1].start], observer.x.numpy(), observer.labels.numpy()
        kept = labels != family.inputs[0].unconditional
        assert 0.8 < kept.mean() < 0.97
        assert start.ends_step or pairs[-1].start == pairs[-1].fill - 1, "two evaluations per step"
        noise = (x[kept] - start.signal * values[labels[kept] - 1]) / start.noise
        assert abs(noise.mean()) < 0.05
        assert abs(noise.std() - 1) < 0.05
        assert not observer.guidance.any()
